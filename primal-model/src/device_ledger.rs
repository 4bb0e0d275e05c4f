//! The ledger of a GPU's memory: every buffer of a run there, known from the configuration alone,
//! with or without a GPU.

use primal_kernels::{CacheKind, Int8Grid, VOCAB_TILE};
use primal_lut::Grid;
use primal_optim::{Rule, TILE_ROWS};

use crate::config::Config;
use crate::generate::{Generator, wide};
use crate::ledger::{Ledger, PlannedMatrix, learns, matrices, vector_weights};
use crate::rope::Rope;
use crate::sampling::REPEAT_WINDOW;
use crate::shape::ModelShape;

/// Rows of a matrix whose gradient exists at a time on a GPU: enough to keep it busy, few enough
/// to stay in its L2 cache.
pub(crate) const GRADIENT_ROWS: usize = VOCAB_TILE;

/// Columns of the smallest group of weights that tokens are multiplied with in int8.
const SMALLEST_GROUP: usize = 32;

/// The most tokens of a prompt that are read at a time.
const CHUNK_ROWS: usize = 64;

/// Bytes of the buffers of those tokens, if more than one.
const CHUNK_BYTES: u64 = 750 << 10;

/// Where a buffer may begin, as primal-kernels places them in a pool.
const ALIGNMENT: u64 = 32;

/// The same in elements of the arena of float parameters, for its matrices.
pub(crate) const ARENA_ALIGNMENT: usize = ALIGNMENT as usize / 4;

/// Elements whose squares are added up in f32.
const SQUARES_BLOCK: u64 = 4096;

/// The token rows of a pass.
pub(crate) fn pass_rows(config: &Config, shape: &ModelShape) -> usize {
    let train = &config.train;
    train.batch / train.micro_batches.max(1) * train.micro_batches_per_pass * shape.context
}

/// Blocks whose activations are kept together.
pub(crate) fn segment_len(config: &Config, shape: &ModelShape) -> usize {
    match config.train.recompute {
        0 => shape.n_layer,
        every => every.min(shape.n_layer),
    }
}

/// Widest rows whose columns are summed up.
pub(crate) fn widest_row(shape: &ModelShape) -> usize {
    let [qkv, out, up, down] = shape.block_matrices().map(|(rows, _)| rows);
    qkv.max(out).max(up).max(down).max(shape.width)
}

/// Elements of the largest matrix of a block or tile of the head that a product in float decodes:
/// of those on a grid.
pub(crate) fn decoded_len(config: &Config, shape: &ModelShape) -> usize {
    let sizes = matrices(config, shape)
        .into_iter()
        .filter(|planned| planned.multiplied)
        .filter(|planned| planned.training_grid(config.optim.rule).is_some())
        .map(|planned| match (planned.layer, planned.size) {
            (Some(_), (rows, cols)) => rows * cols,
            (None, (rows, cols)) => rows.min(VOCAB_TILE) * cols,
        });
    sizes.fold(0, usize::max)
}

/// Longest rows that a product multiplies: inputs and gradients of layers, gradients of logits.
pub(crate) fn widest_operand(shape: &ModelShape) -> usize {
    let tile = shape.vocab.min(VOCAB_TILE);
    widest_row(shape).max(widest_matrix(shape)).max(tile)
}

/// Longest rows of any matrix.
pub(crate) fn widest_matrix(shape: &ModelShape) -> usize {
    let cols = shape.block_matrices().map(|(_, cols)| cols);
    cols.into_iter().fold(shape.width, usize::max)
}

impl Ledger {
    /// The memory of a GPU that trains `config`, of each if there are several.
    pub fn for_gpu_training(config: &Config, shape: &ModelShape) -> Ledger {
        let all = matrices(config, shape);
        let mut bytes = TrainingBytes::default();
        for planned in &all {
            bytes.add_matrix(config, planned);
        }
        let vectors = vector_weights(shape);
        for (layer, len) in vector_lengths(shape) {
            if learns(config, layer) {
                bytes.pieces += len.div_ceil(SQUARES_BLOCK);
            }
        }
        let mut ledger = Ledger::empty(0, 0);
        ledger.row("weights: packed codes", bytes.codes);
        ledger.row("weights that stay, scales that follow", bytes.still);
        ledger.row("ballots", bytes.ballots);
        ledger.row("votes of a step", bytes.votes);
        ledger.row("gradients of a micro-batch", bytes.kept);
        ledger.row("statistics of votes", bytes.statistics);
        // Flips of a matrix and squared votes, and two sums of the cast.
        ledger.row("counts of a step", 4 * 8 * all.len() as u64);
        ledger.row(
            "float matrices, gradients, moments",
            16 * bytes.matrix_elements,
        );
        ledger.row(
            "float state: scales, norms, gradients, moments",
            16 * (bytes.scales + vectors) + 12 * bytes.pieces + 4,
        );
        ledger.row("angles of rotary positions", Rope::bytes(shape));
        for (what, bytes) in activations(config, shape) {
            ledger.row(what, bytes);
        }
        if config.train.gpus > 1 {
            // The float sums of a micro-batch of every GPU, and of the rounds so far.
            let sums = 4 * (bytes.scales + vectors + bytes.lines) + 2 * 8 * all.len() as u64;
            let copies = config.train.gpus as u64 + 1;
            ledger.row("exchange between GPUs", copies * sums);
        }
        // A matrix has at most four buffers of codes and grid and thirteen for its votes, a block
        // nine of activations and up to two streams; then arena, workspace, tokens, losses, exchange.
        let buffers = 17 * all.len() + (9 + 2) * shape.n_layer + 48;
        ledger.align("buffers", buffers);
        ledger
    }

    /// The memory of a GPU that generates with a full context.
    pub fn for_gpu_inference(config: &Config, shape: &ModelShape) -> Ledger {
        let all = matrices(config, shape);
        let bytes = |planned: &PlannedMatrix| {
            let group = match planned.group {
                0 => planned.size.1,
                group => group,
            };
            matrix_bytes(
                planned.size,
                planned.grid.as_ref().map(|grid| (grid, group)),
            )
        };
        let mut ledger = Ledger::for_gpu_weights(shape, all.iter().map(bytes));
        let reader = Ledger::for_gpu_reader(shape, config.inference.kv_cache.into());
        for row in reader.rows() {
            ledger.row(row.what.as_str(), row.bytes);
        }
        ledger
    }

    /// The part of a model that all its readers share; `matrices` are the bytes of each.
    pub(crate) fn for_gpu_weights(
        shape: &ModelShape,
        matrices: impl ExactSizeIterator<Item = u64>,
    ) -> Ledger {
        let count = matrices.len();
        let mut ledger = Ledger::empty(0, 0);
        ledger.row("weights", matrices.sum());
        ledger.row("norms and biases", 4 * vector_weights(shape));
        ledger.row("angles of rotary positions", Rope::bytes(shape));
        // Two planes of codes, scales, and the grid's values in two forms; norms, angles.
        ledger.align("weights", 5 * count + 3);
        ledger
    }

    /// What reads a text.
    pub(crate) fn for_gpu_reader(shape: &ModelShape, kind: CacheKind) -> Ledger {
        let mut ledger = Ledger::empty(0, 0);
        ledger.row("key and value cache", Generator::cache_bytes(shape, kind));
        ledger.row(
            "buffers of tokens",
            chunk_rows(shape) as u64 * token_bytes(shape),
        );
        ledger.row(
            "logits, and what chooses of them",
            (4 + 8) * shape.vocab as u64 + 4 * (REPEAT_WINDOW as u64 + 1),
        );
        // Two planes of a cache and their scales; seven buffers of tokens, four of logits.
        ledger.align("buffers", 4 * shape.n_layer + 11);
        ledger
    }

    /// A row for where up to `buffers` of a GPU may begin.
    fn align(&mut self, what: &str, buffers: usize) {
        let bytes = ALIGNMENT * buffers as u64;
        self.row(format!("alignment of {what}"), bytes);
        self.alignment += bytes;
    }
}

/// What the parameters of a run take.
#[derive(Default)]
struct TrainingBytes {
    codes: u64,
    /// Of what does not learn, and the scales of rule `shadow`.
    still: u64,
    ballots: u64,
    votes: u64,
    /// Gradients that rule `classic` keeps.
    kept: u64,
    statistics: u64,
    /// Elements of float matrices, and of those behind codes, that AdamW moves.
    matrix_elements: u64,
    /// Scales that it moves.
    scales: u64,
    /// Rows and columns of the matrices that vote by rule `consensus`.
    lines: u64,
    /// Pieces of the gradient whose squares are added up.
    pieces: u64,
}

impl TrainingBytes {
    fn add_matrix(&mut self, config: &Config, planned: &PlannedMatrix) {
        let (rows, cols) = (planned.size.0 as u64, planned.size.1 as u64);
        let elements = rows * cols;
        let rule = config.optim.rule;
        let grid = planned.training_grid(rule);
        self.codes += grid.map_or(0, |grid| code_bytes(grid, rows, cols));
        match (grid, rule) {
            (grid, _) if !learns(config, planned.layer) => {
                self.still += 4 * grid.map_or(elements, |_| rows);
            }
            (Some(_), Rule::Shadow) => {
                self.still += 4 * rows;
                self.add_float_matrix(elements);
            }
            (Some(_), _) => {
                self.scales += rows;
                self.pieces += rows.div_ceil(SQUARES_BLOCK);
                match rule {
                    Rule::Classic => {
                        self.votes += 2 * elements;
                        self.kept += 4 * elements;
                        self.statistics += 4 * (2 * rows + 1);
                    }
                    Rule::Consensus => {
                        let many = config.train.micro_batches > 1;
                        let tiles = rows.div_ceil(TILE_ROWS as u64);
                        self.ballots += elements;
                        self.votes += if many {
                            2 * elements.next_multiple_of(2)
                        } else {
                            0
                        };
                        self.lines += rows + cols;
                        self.statistics += 4 * (4 * rows + 3 * cols + tiles * cols + 4 + 64);
                    }
                    Rule::Spectral | Rule::Frozen | Rule::Shadow | Rule::Adamw | Rule::Muon => {}
                }
            }
            (None, _) => self.add_float_matrix(elements),
        }
    }

    fn add_float_matrix(&mut self, elements: u64) {
        self.matrix_elements += elements.next_multiple_of(ARENA_ALIGNMENT as u64);
        self.pieces += elements.div_ceil(SQUARES_BLOCK);
    }
}

/// Bytes of a matrix on a grid with scales by groups of columns, or in float.
pub(crate) fn matrix_bytes((rows, cols): (usize, usize), grid: Option<(&Grid, usize)>) -> u64 {
    let size = (rows as u64, cols as u64);
    grid.map_or(4 * size.0 * size.1, |(grid, group)| {
        code_bytes(grid, size.0, size.1) + 4 * size.0 * cols.div_ceil(group) as u64
    })
}

/// Bytes of a matrix's codes, and of its grid's values as floats and, where they have that form,
/// as integers.
fn code_bytes(grid: &Grid, rows: u64, cols: u64) -> u64 {
    let high = if grid.is_wide() { cols.div_ceil(8) } else { 0 };
    let integers = Int8Grid::new(grid).map_or(0, |_| 32);
    rows * (cols.div_ceil(2) + high) + 32 * 4 + integers
}

/// Tokens of a prompt that a GPU reads at a time: as many as its buffers have room for, so that
/// they weigh little beside any model.
pub(crate) fn chunk_rows(shape: &ModelShape) -> usize {
    ((CHUNK_BYTES / token_bytes(shape)) as usize).clamp(1, CHUNK_ROWS)
}

/// Bytes of the buffers of a token that is read.
fn token_bytes(shape: &ModelShape) -> u64 {
    let floats = 2 * shape.width + wide(shape) + 3;
    let (cols, groups) = widest_token(shape);
    4 * floats as u64 + quantised_bytes(1, cols, groups)
}

/// Most columns of a token in int8, and most groups of them.
pub(crate) fn widest_token(shape: &ModelShape) -> (usize, usize) {
    let cols = widest_matrix(shape);
    (cols, cols.div_ceil(SMALLEST_GROUP))
}

/// Bytes of `rows` rows of `cols` columns in int8, in `groups` groups.
fn quantised_bytes(rows: usize, cols: usize, groups: usize) -> u64 {
    (rows * (cols.next_multiple_of(8) + 4 * groups)) as u64
}

/// The lengths of all norms and biases, with their blocks.
fn vector_lengths(shape: &ModelShape) -> Vec<(Option<usize>, u64)> {
    let c = shape.width as u64;
    let mut list = Vec::new();
    let norm = |list: &mut Vec<_>, layer| {
        let count = if shape.norm_bias() { 2 } else { 1 };
        list.extend(std::iter::repeat_n((layer, c), count));
    };
    for layer in (0..shape.n_layer).map(Some) {
        norm(&mut list, layer);
        norm(&mut list, layer);
        for (i, (rows, _)) in shape.block_matrices().into_iter().enumerate() {
            if (i == 0 && shape.qkv_bias) || (i > 0 && shape.biases) {
                list.push((layer, rows as u64));
            }
        }
    }
    norm(&mut list, None);
    list
}

/// Buffers of passes by purpose, in bytes.
fn activations(config: &Config, shape: &ModelShape) -> Vec<(&'static str, u64)> {
    let rows = pass_rows(config, shape);
    let segment = segment_len(config, shape);
    let segments = shape.n_layer.div_ceil(segment);
    let (c, f) = (shape.width, shape.ff_width);
    let tile = shape.vocab.min(VOCAB_TILE);
    let streams = segment + 1 + (segments - 1);
    let kept =
        4 + shape.qkv_width() + shape.n_head + shape.attention_width() + c + shape.up_width();
    let normed = c.max(shape.attention_width());
    let workspace = rows * (normed + 2 * f + c + shape.qkv_width() + shape.n_head)
        + rows * (3 * c + 4)
        + rows.div_ceil(TILE_ROWS) * widest_row(shape)
        + GRADIENT_ROWS * widest_matrix(shape);
    let products = if config.resolved_compute().is_int8() {
        quantised_bytes(rows, widest_operand(shape), 1) + quantised_bytes(rows, c, 1)
    } else {
        4 * decoded_len(config, shape) as u64
    };
    let tokens = 3 * rows + shape.vocab + 1;
    vec![
        (
            "activations: residual stream",
            4 * (streams * rows * c) as u64,
        ),
        ("activations: blocks", 4 * (segment * rows * kept) as u64),
        ("workspace", 4 * workspace as u64),
        ("workspace of products", products),
        (
            "loss tiles",
            4 * (rows * tile + 2 * rows) as u64
                + 8 * config.train.micro_batches_per_pass.max(1) as u64,
        ),
        ("token windows and their index", 4 * tokens as u64),
    ]
}
