//! The memory ledger: every buffer of a run, known from its configuration alone.

use primal_lut::Grid;
use primal_optim::{MatrixPlan, Role, Rule, WeightBytes, tile_bytes_per_thread};
use serde::Serialize;

use crate::activations::{Activations, PassPlan};
use crate::config::{Config, FloatPart};
use crate::data::Dataset;
use crate::error::ModelError;
use crate::generate::Generator;
use crate::inference::Matrix;
use crate::rope::Rope;
use crate::shape::ModelShape;

/// Resident bytes of the program itself: code, runtime, allocator, one thread's stack. Measured
/// on Linux x86-64 as the peak of a run whose other rows are negligible.
const PROGRAM_BYTES: u64 = 13 << 20;

/// One account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerRow {
    /// What the bytes are for.
    pub what: String,
    /// Bytes.
    pub bytes: u64,
}

/// Every buffer of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ledger {
    rows: Vec<LedgerRow>,
    #[serde(rename = "total_bytes")]
    total: u64,
    #[serde(skip)]
    model: u64,
    #[serde(skip)]
    activations: u64,
    /// Bytes between buffers of a GPU.
    #[serde(skip)]
    pub(crate) alignment: u64,
}

impl Ledger {
    /// The ledger of a training run. `data` may be unknown before a run: its row is then left out.
    pub fn for_training(
        config: &Config,
        shape: &ModelShape,
        threads: usize,
        data: Option<&Dataset>,
    ) -> Ledger {
        let train = &config.train;
        let rule = config.optim.rule;
        let many = train.micro_batches > 1;
        let mut weights = WeightBytes::default();
        for planned in matrices(config, shape) {
            let grid = planned.training_grid(rule);
            let plan = MatrixPlan {
                size: planned.size,
                grid,
                group: config.model.group,
                many_micro_batches: many,
                role: planned.role(),
            };
            weights += if learns(config, planned.layer) {
                WeightBytes::plan(rule, &plan)
            } else {
                WeightBytes::plan(Rule::Frozen, &plan).still(grid.is_some())
            };
        }
        // Value, two gradients and two moments of every vector.
        let vectors = 20 * vector_weights(shape);
        let plan = PassPlan::for_training(config);
        let sequences = plan.sequences;
        let activations = Activations::bytes(shape, &plan);
        let activation_bytes: u64 = activations.iter().map(|(_, bytes)| bytes).sum();
        let values = if !rule.is_on_grid() {
            "weights: float32"
        } else {
            "weights: packed codes and float parts"
        };
        let angles = Rope::bytes(shape);
        let mut ledger = Ledger::empty(weights.total() + vectors + angles, activation_bytes);
        ledger.row(values, weights.values);
        ledger.row("ballots", weights.ballots);
        ledger.row("votes of a step", weights.votes);
        ledger.row("statistics of votes", weights.statistics);
        ledger.row(
            "float state: scales, norms, gradients, moments",
            weights.float_state + vectors,
        );
        ledger.row("angles of rotary positions", angles);
        for (what, bytes) in activations {
            ledger.row(what, bytes);
        }
        ledger.row("token windows", 2 * 4 * (sequences * shape.context) as u64);
        if let Some(data) = data {
            ledger.row(
                "text as tokens",
                data.train.memory_bytes() + data.val.memory_bytes(),
            );
        }
        ledger.row(
            "scratch of all threads",
            threads as u64 * thread_bytes(shape) + weights.scratch,
        );
        ledger.row("program", PROGRAM_BYTES);
        if let Some(data) = data {
            // The text is there together with its tokens before anything else is allocated.
            let tokens = data.train.memory_bytes() + data.val.memory_bytes();
            let loading = data.train.text_bytes() + data.val.text_bytes() + tokens + PROGRAM_BYTES;
            let excess = loading.saturating_sub(ledger.total);
            ledger.row("text while it is read, beyond the above", excess);
        }
        ledger
    }

    /// Sets `train.recompute` to what costs least time within `train.memory_budget_mib`, if there
    /// is one, and returns the ledger of that. Recomputation changes no result.
    ///
    /// # Errors
    /// [`ModelError::MemoryBudget`] with the least that would do.
    pub fn within_budget(
        config: &mut Config,
        shape: &ModelShape,
        threads: usize,
        data: Option<&Dataset>,
    ) -> Result<Ledger, ModelError> {
        let budget = config.train.memory_budget_mib;
        if budget == 0 {
            return Ok(Ledger::for_training(config, shape, threads, data));
        }
        let mut smallest = u64::MAX;
        // Every other choice takes more than 1 does and saves little more than it.
        for recompute in [0, 1] {
            config.train.recompute = recompute;
            let ledger = Ledger::for_training(config, shape, threads, data);
            let needed = ledger.total.div_ceil(1 << 20);
            if needed <= budget {
                return Ok(ledger);
            }
            smallest = smallest.min(needed);
        }
        Err(ModelError::MemoryBudget { smallest, budget })
    }

    /// The ledger of generation with a full context.
    pub fn for_inference(config: &Config, shape: &ModelShape, threads: usize) -> Ledger {
        let kind = config.inference.kv_cache.into();
        let values = matrices(config, shape).iter().map(Matrix::bytes).sum();
        let mut ledger = Ledger::empty(values, 0);
        ledger.row("weights", values);
        ledger.row("norms and biases", 4 * vector_weights(shape));
        ledger.row("angles of rotary positions", Rope::bytes(shape));
        ledger.row("key and value cache", Generator::cache_bytes(shape, kind));
        ledger.row(
            "buffers of a chunk of tokens",
            Generator::buffer_bytes(shape),
        );
        ledger.row(
            "scratch of all threads",
            threads as u64 * primal_kernels::int8_panel_bytes(shape.widest()),
        );
        ledger.row("program", PROGRAM_BYTES);
        ledger
    }

    pub(crate) fn empty(model: u64, activations: u64) -> Ledger {
        Ledger {
            rows: Vec::new(),
            total: 0,
            model,
            activations,
            alignment: 0,
        }
    }

    pub(crate) fn row(&mut self, what: impl Into<String>, bytes: u64) {
        if bytes > 0 {
            self.rows.push(LedgerRow {
                what: what.into(),
                bytes,
            });
            self.total += bytes;
        }
    }

    /// The accounts, none of them empty.
    pub fn rows(&self) -> &[LedgerRow] {
        &self.rows
    }

    /// Their sum in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Holds what was allocated against the plan.
    pub(crate) fn check_allocated(&self, model: u64, activations: u64) -> Result<(), ModelError> {
        for (what, allocated, planned) in [
            ("model", model, self.model),
            ("activations", activations, self.activations),
        ] {
            if allocated != planned {
                return Err(ModelError::Ledger {
                    what,
                    allocated,
                    planned,
                });
            }
        }
        Ok(())
    }
}

/// A matrix that a configuration asks for.
pub(crate) struct PlannedMatrix {
    /// Its block, if it belongs to one.
    pub(crate) layer: Option<usize>,
    /// (rows, cols).
    pub(crate) size: (usize, usize),
    /// Rows of the matrices that are stacked in it; empty where it is one.
    pub(crate) stack: Vec<usize>,
    /// `None` for float.
    pub(crate) grid: Option<Grid>,
    /// Columns that share a scale; 0 means all of a row.
    pub(crate) group: usize,
    /// Whether tokens are multiplied with it, or only rows of it looked up.
    pub(crate) multiplied: bool,
    /// Whether inference holds it in bytes: a float head below blocks on a grid.
    pub(crate) in_bytes: bool,
}

impl PlannedMatrix {
    /// The grid that it has in training: none under float rules.
    pub(crate) fn training_grid(&self, rule: Rule) -> Option<&Grid> {
        self.grid.as_ref().filter(|_| rule.is_on_grid())
    }

    /// What it does in its network.
    pub(crate) fn role(&self) -> Role<'_> {
        match self.layer {
            Some(_) => Role::Hidden(&self.stack),
            None => Role::Edge,
        }
    }
}

/// Whether the parameters of a block, or those of none, learn.
pub(crate) fn learns(config: &Config, layer: Option<usize>) -> bool {
    let only = &config.train.only_blocks;
    only.is_empty() || layer.is_some_and(|layer| only.contains(&layer))
}

/// Every matrix.
pub(crate) fn matrices(config: &Config, shape: &ModelShape) -> Vec<PlannedMatrix> {
    let ModelShape {
        vocab,
        context,
        n_layer,
        width: c,
        tie_head,
        ..
    } = *shape;
    let grid = Grid::by_id(&config.model.grid).unwrap_or_else(Grid::prime);
    let planned = |layer, size, part, grid: &Grid| PlannedMatrix {
        layer,
        group: config.model.group,
        size,
        stack: Vec::new(),
        grid: (!config.model.is_float(part)).then(|| grid.clone()),
        multiplied: part != FloatPart::Embeddings,
        in_bytes: false,
    };
    let bytes = |part| config.model.is_float(part) && !config.model.is_float(FloatPart::Mlp);
    let mut list = vec![PlannedMatrix {
        multiplied: tie_head,
        in_bytes: tie_head && bytes(FloatPart::Embeddings),
        ..planned(None, (vocab, c), FloatPart::Embeddings, &grid)
    }];
    if shape.learned_positions() {
        list.push(planned(None, (context, c), FloatPart::Embeddings, &grid));
    }
    for layer in 0..n_layer {
        let fine = config.model.fine_last_block && layer + 1 == n_layer;
        let grid = if fine { Grid::fine() } else { grid.clone() };
        let parts = [
            FloatPart::Attention,
            FloatPart::Attention,
            FloatPart::Mlp,
            FloatPart::Mlp,
        ];
        let matrices = shape.block_matrices().into_iter().zip(shape.block_stacks());
        for ((size, stack), part) in matrices.zip(parts) {
            list.push(PlannedMatrix {
                stack,
                ..planned(Some(layer), size, part, &grid)
            });
        }
    }
    if !tie_head {
        list.push(PlannedMatrix {
            in_bytes: bytes(FloatPart::Head),
            ..planned(None, (vocab, c), FloatPart::Head, &grid)
        });
    }
    list
}

/// Elements of all norms and biases.
pub(crate) fn vector_weights(shape: &ModelShape) -> u64 {
    let c = shape.width;
    let per_norm = if shape.norm_bias() { 2 * c } else { c };
    let [(qkv, _), rest @ ..] = shape.block_matrices();
    let biased = |has_bias, rows| if has_bias { rows } else { 0 };
    let linear_biases =
        biased(shape.qkv_bias, qkv) + biased(shape.biases, rest.iter().map(|(rows, _)| rows).sum());
    let head_norms = if shape.qk_norm { 2 * shape.head_dim } else { 0 };
    (shape.n_layer * (2 * per_norm + head_norms + linear_biases) + per_norm) as u64
}

/// Bytes that one thread comes to hold: the gradient tile, and what the `gemm` crate packs into.
fn thread_bytes(shape: &ModelShape) -> u64 {
    let widest = shape.ff_width.max(shape.qkv_width());
    tile_bytes_per_thread(widest) + primal_kernels::GEMM_BYTES_PER_THREAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_chooses_what_is_kept() {
        let mut config = Config::preset("ghost-0.1b").unwrap();
        let shape = ModelShape::new(&config, 50_257).unwrap();
        let mut total_of = |recompute| {
            config.train.recompute = recompute;
            let ledger = Ledger::for_training(&config, &shape, 2, None);
            ledger.total().div_ceil(1 << 20)
        };
        let (all, inputs) = (total_of(0), total_of(1));
        assert!(inputs < all, "{inputs} and {all} MiB");
        for (budget, want) in [(all, 0), (all - 1, 1), (inputs, 1)] {
            config.train.memory_budget_mib = budget;
            let ledger = Ledger::within_budget(&mut config, &shape, 2, None).unwrap();
            assert_eq!(config.train.recompute, want);
            assert!(ledger.total() <= budget << 20);
        }
        config.train.memory_budget_mib = inputs - 1;
        let refused = Ledger::within_budget(&mut config, &shape, 2, None).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains(&format!("--memory-budget {inputs}")),
            "{refused}"
        );
    }
}
