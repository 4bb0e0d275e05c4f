//! A GPT whose matrices live on the grid: embeddings, blocks, final norm, head; one forward and
//! backward pass over the micro-batches of a step.

use std::ops::Range;

use primal_kernels as kernels;
use primal_kernels::{AttentionShape, Isa, fill_rows, matmul_tn_tile, philox4x32};
use primal_lut::{Grid, TensorFile};
use primal_optim::{
    FlipStats, FloatVector, Footprint, Rule, StatePart, StateVisitor, StepContext, Weight,
    WeightSpec,
};
use rayon::prelude::*;

use crate::activations::Activations;
use crate::block::Block;
use crate::config::{Config, FloatPart};
use crate::error::ModelError;
use crate::layers::{Linear, Norm, Param, ParamMut, Pieces};

/// Random stream of the initial weights; the optimizer uses streams 0 to 2.
const INIT_STREAM: u32 = 3;

/// The sizes of a GPT, resolved from a config and a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GptShape {
    /// Vocabulary V.
    pub vocab: usize,
    /// Longest sequence T.
    pub context: usize,
    /// Blocks L.
    pub n_layer: usize,
    /// Attention heads H.
    pub n_head: usize,
    /// Width C of the residual stream.
    pub width: usize,
    /// Width F of the feed-forward layer.
    pub ff_width: usize,
    /// Whether the head is the token embedding.
    pub tie_head: bool,
    /// Whether norms and linear layers have biases.
    pub biases: bool,
}

impl GptShape {
    /// Resolves the sizes; `vocab` is the tokenizer's and stands in where the config says 0.
    pub fn new(config: &Config, vocab: usize) -> Result<Self, ModelError> {
        let m = &config.model;
        let shape = GptShape {
            vocab: if m.vocab_size == 0 {
                vocab
            } else {
                m.vocab_size
            },
            context: m.context,
            n_layer: m.n_layer,
            n_head: m.n_head,
            width: m.width,
            ff_width: m.resolved_ff_width(),
            tie_head: m.tie_head,
            biases: m.biases,
        };
        if shape.vocab < vocab {
            return Err(ModelError::Shape(format!(
                "model.vocab_size = {} is smaller than the tokenizer's {vocab}",
                shape.vocab
            )));
        }
        let sizes = [
            shape.vocab,
            shape.context,
            shape.n_layer,
            shape.n_head,
            shape.width,
        ];
        if sizes.contains(&0) || !shape.width.is_multiple_of(shape.n_head) {
            return Err(ModelError::Shape(format!(
                "sizes must be positive and width a multiple of n_head, found {shape:?}"
            )));
        }
        Ok(shape)
    }

    /// Weights of all matrices.
    pub fn matrix_weights(&self) -> u64 {
        let (v, t, c, f) = (self.vocab, self.context, self.width, self.ff_width);
        let heads = if self.tie_head { 1 } else { 2 };
        (heads * v * c + t * c + self.n_layer * (4 * c * c + 2 * c * f)) as u64
    }

    /// The attention of `sequences` sequences of `time` tokens.
    pub(crate) fn attention(&self, sequences: usize, time: usize) -> AttentionShape {
        AttentionShape {
            batch: sequences,
            time,
            heads: self.n_head,
            kv_heads: self.n_head,
            head_dim: self.width / self.n_head,
        }
    }
}

/// The micro-batches of one pass: token windows and what follows each token.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Number of the first micro-batch within the step.
    pub first_micro_batch: u16,
    /// Micro-batches in this pass.
    pub micro_batches: usize,
    /// Tokens of a sequence.
    pub time: usize,
    /// (micro_batches · sequences, time) token ids.
    pub tokens: &'a [u32],
    /// The same shape; `u32::MAX` carries no loss.
    pub targets: &'a [u32],
}

/// A GPT; trainable or for inference.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) shape: GptShape,
    pub(crate) tok_embedding: Weight,
    pub(crate) pos_embedding: Weight,
    pub(crate) blocks: Vec<Block>,
    pub(crate) norm: Norm,
    /// `None` when tied to the token embedding.
    pub(crate) head: Option<Weight>,
}

impl Model {
    /// A model with fresh weights, a pure function of config, vocabulary and seed.
    pub fn new(config: &Config, vocab: usize) -> Result<Self, ModelError> {
        let shape = GptShape::new(config, vocab)?;
        let m = &config.model;
        let grid = Grid::by_id(&m.grid)
            .ok_or_else(|| ModelError::Shape(format!("unknown grid '{}'", m.grid)))?;
        let fine = Grid::fine();
        let mut init = Init {
            config,
            next_tensor: 0,
        };
        let (c, f) = (shape.width, shape.ff_width);
        let std = m.init_std;
        let residual_std = std / (2.0 * shape.n_layer as f32).sqrt();

        let part = FloatPart::Embeddings;
        let tok_embedding = init.matrix(
            "tok_embedding",
            (shape.vocab, c),
            m.embedding_std,
            &grid,
            part,
        )?;
        let pos_embedding = init.matrix(
            "pos_embedding",
            (shape.context, c),
            m.embedding_std,
            &grid,
            part,
        )?;
        let mut blocks = Vec::with_capacity(shape.n_layer);
        for layer in 0..shape.n_layer {
            let last = layer + 1 == shape.n_layer;
            let grid = if last && m.fine_last_block {
                &fine
            } else {
                &grid
            };
            let mut linear = |name: &str, rows, cols, std, part| {
                init.linear(
                    &format!("blocks.{layer}.{name}"),
                    (rows, cols),
                    std,
                    grid,
                    part,
                    shape.biases,
                )
            };
            let qkv = linear("qkv", 3 * c, c, std, FloatPart::Attention)?;
            let attention_out = linear("attention_out", c, c, residual_std, FloatPart::Attention)?;
            let up = linear("up", f, c, std, FloatPart::Mlp)?;
            let down = linear("down", c, f, residual_std, FloatPart::Mlp)?;
            let norm = |name: &str| Norm::new(&format!("blocks.{layer}.{name}"), c, shape.biases);
            blocks.push(Block {
                norm1: norm("norm1"),
                qkv,
                attention_out,
                norm2: norm("norm2"),
                up,
                down,
            });
        }
        let head = if shape.tie_head {
            None
        } else {
            Some(init.matrix("head", (shape.vocab, c), std, &grid, FloatPart::Head)?)
        };
        let norm = Norm::new("norm", c, shape.biases);
        Ok(Model {
            shape,
            tok_embedding,
            pos_embedding,
            blocks,
            norm,
            head,
        })
    }

    /// The sizes.
    pub fn shape(&self) -> &GptShape {
        &self.shape
    }

    /// The matrices on the grid with their names.
    pub fn grid_matrices(&self) -> Vec<(&str, &primal_lut::QuantMatrix)> {
        let weights = self.params().into_iter().filter_map(|param| match param {
            Param::Matrix(weight) => Some(weight),
            Param::Vector(_) => None,
        });
        weights
            .filter_map(|weight| Some((weight.name(), weight.quant()?)))
            .collect()
    }

    fn head_weight(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.tok_embedding)
    }

    /// Losses in nats of each token of `pass`, left in `acts.losses()`; no gradients.
    pub fn forward(&self, isa: Isa, pass: &Pass<'_>, acts: &mut Activations) {
        let pieces = self.pieces(pass);
        self.run_blocks(isa, pass, pieces, acts);
        let n = pieces.rows();
        let c = self.shape.width;
        acts.normalise_output(isa, &self.norm, n * c);
        kernels::cross_entropy_forward(
            isa,
            &acts.output[..n * c],
            self.head_weight(),
            pass.targets,
            pieces.piece_rows,
            &mut acts.losses[..n],
            &mut acts.loss_lse[..n],
            &mut acts.cross_entropy,
        );
    }

    /// Forward and backward over one pass of a step; votes are cast and float gradients summed.
    /// `losses` receives the mean loss in nats of each micro-batch. Returns false, with the
    /// backward pass cut short, when a loss or a gradient is not finite: the caller then
    /// [discards](Model::discard) the step.
    pub fn forward_backward(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        acts: &mut Activations,
        losses: &mut [f64],
    ) -> bool {
        self.forward(ctx.isa, pass, acts);
        let pieces = self.pieces(pass);
        for ((_, rows), loss) in pieces.iter().zip(losses.iter_mut()) {
            let sum: f64 = acts.losses[rows.clone()]
                .iter()
                .map(|&l| f64::from(l))
                .sum();
            let counted = pass.targets[rows]
                .iter()
                .filter(|&&t| t != u32::MAX)
                .count();
            *loss = sum / counted.max(1) as f64;
        }
        if !losses.iter().all(|loss| loss.is_finite()) {
            return false;
        }
        let finite = self.backward_head(ctx, pass, pieces, acts);
        if acts.poison_gradient {
            acts.d_stream[0] = f32::NAN;
        }
        finite
            && self.backward_blocks(ctx, pass, pieces, acts)
            && self.backward_embeddings(ctx, pass, pieces, acts)
    }

    fn pieces(&self, pass: &Pass<'_>) -> Pieces {
        let count = pass.micro_batches.max(1);
        Pieces {
            first: pass.first_micro_batch,
            count,
            piece_rows: pass.tokens.len() / count,
        }
    }

    /// Embeds the tokens and runs the blocks; leaves the residual stream in `acts`.
    fn run_blocks(&self, isa: Isa, pass: &Pass<'_>, pieces: Pieces, acts: &mut Activations) {
        let n = pieces.rows();
        let c = self.shape.width;
        let time = pass.time;
        let positions = &mut acts.positions[..time * c];
        fill_rows(isa, &self.pos_embedding, 0..time, positions);
        let positions = &*positions;
        let tok = &self.tok_embedding;
        acts.inputs[0][..n * c]
            .par_chunks_mut(time * c)
            .zip(pass.tokens.par_chunks(time))
            .for_each(|(stream, tokens)| {
                for (t, (row, &token)) in stream.chunks_exact_mut(c).zip(tokens).enumerate() {
                    kernels::MatrixRows::fill_row(tok, isa, token as usize, row);
                    kernels::add(isa, &positions[t * c..(t + 1) * c], row);
                }
            });
        let attention = self.shape.attention(n / time, time);
        let segment = acts.segment_len();
        for (layer, block) in self.blocks.iter().enumerate() {
            let slot = layer % segment;
            if slot == 0 {
                acts.start_segment(layer / segment, n * c);
            }
            acts.block_forward(isa, block, slot, pieces, &attention, n * c);
        }
    }

    /// Cross-entropy gradient: votes of the head, gradient of the final norm, and the gradient of
    /// the residual stream in `acts.d_stream`.
    fn backward_head(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: Pieces,
        acts: &mut Activations,
    ) -> bool {
        let c = self.shape.width;
        let n = pieces.rows();
        let mut finite = true;
        for (micro_batch, rows) in pieces.iter() {
            let part = rows.start * c..rows.end * c;
            let x = &acts.output[part.clone()];
            let targets = &pass.targets[rows.clone()];
            let piece = HeadPiece {
                x,
                targets,
                lse: &acts.loss_lse[rows.clone()],
                piece_rows: pieces.piece_rows,
            };
            let dx = &mut acts.d_output[part];
            dx.fill(0.0);
            let scratch = &mut acts.cross_entropy;
            match &mut self.head {
                Some(head) => {
                    finite &= piece.vote(ctx, micro_batch, head, Some(dx), scratch, &|_, _| {})
                }
                // A tied head votes together with the embedding, at the end.
                None => piece.backward(ctx, &self.tok_embedding, dx, scratch),
            }
        }
        acts.final_norm_backward(ctx.isa, &mut self.norm, pieces, n * c);
        finite
    }

    fn backward_blocks(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: Pieces,
        acts: &mut Activations,
    ) -> bool {
        let n = pieces.rows();
        let c = self.shape.width;
        let attention = self.shape.attention(n / pass.time, pass.time);
        let segment = acts.segment_len();
        let n_layer = self.blocks.len();
        let last_segment = (n_layer - 1) / segment;
        let mut finite = true;
        for seg in (0..=last_segment).rev() {
            let layers = seg * segment..((seg + 1) * segment).min(n_layer);
            if seg != last_segment {
                // The last segment's activations are still there from the forward pass.
                acts.restore_segment(seg, n * c);
                for (slot, layer) in layers.clone().enumerate() {
                    acts.block_forward(
                        ctx.isa,
                        &self.blocks[layer],
                        slot,
                        pieces,
                        &attention,
                        n * c,
                    );
                }
            }
            for layer in layers.rev() {
                finite &= acts.block_backward(
                    ctx,
                    &mut self.blocks[layer],
                    layer % segment,
                    pieces,
                    &attention,
                    n * c,
                );
                if !finite {
                    return false;
                }
            }
        }
        finite
    }

    fn backward_embeddings(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: Pieces,
        acts: &mut Activations,
    ) -> bool {
        let isa = ctx.isa;
        let c = self.shape.width;
        let time = pass.time;
        let mut finite = true;
        for (micro_batch, rows) in pieces.iter() {
            let d_stream = &acts.d_stream[rows.start * c..rows.end * c];
            let sequences = rows.len() / time;
            let add_rows = |positions: &mut dyn Iterator<Item = usize>, out: &mut [f32]| {
                for row in positions {
                    kernels::add(isa, &d_stream[row * c..(row + 1) * c], out);
                }
            };

            finite &= self
                .pos_embedding
                .accumulate(ctx, micro_batch, 0..time, &|tile, grad| {
                    grad.fill(0.0);
                    for (t, out) in tile.zip(grad.chunks_exact_mut(c)) {
                        add_rows(&mut (0..sequences).map(|b| b * time + t), out);
                    }
                });
            self.pos_embedding.end_micro_batch(ctx);

            acts.token_index.build(&pass.tokens[rows.clone()]);
            let index = &acts.token_index;
            let tokens_grad = |tile: Range<usize>, grad: &mut [f32]| {
                for (token, out) in tile.zip(grad.chunks_exact_mut(c)) {
                    add_rows(&mut index.rows_of(token), out);
                }
            };
            if self.head.is_some() {
                finite &= self.tok_embedding.accumulate(
                    ctx,
                    micro_batch,
                    0..self.shape.vocab,
                    &|tile, grad| {
                        grad.fill(0.0);
                        tokens_grad(tile, grad);
                    },
                );
                self.tok_embedding.end_micro_batch(ctx);
            } else {
                let x = &acts.output[rows.start * c..rows.end * c];
                let targets = &pass.targets[rows.clone()];
                let lse = &acts.loss_lse[rows.clone()];
                let piece = HeadPiece {
                    x,
                    targets,
                    lse,
                    piece_rows: pieces.piece_rows,
                };
                let scratch = &mut acts.cross_entropy;
                finite &= piece.vote(
                    ctx,
                    micro_batch,
                    &mut self.tok_embedding,
                    None,
                    scratch,
                    &tokens_grad,
                );
            }
        }
        finite
    }

    /// Prepares the parameters for a step.
    pub fn begin_step(&mut self, ctx: &StepContext<'_>) {
        self.for_each_mut(&mut |param| {
            if let ParamMut::Matrix(weight) = param {
                weight.begin_step(ctx);
            }
        });
    }

    /// Global norm of the float gradient of the step, averaged over its micro-batches.
    pub fn grad_norm(&mut self, ctx: &StepContext<'_>) -> f64 {
        let mut sum = 0.0;
        self.for_each_mut(&mut |param| sum += param.grad_sum_squares(ctx.isa));
        sum.sqrt() / f64::from(ctx.micro_batches)
    }

    /// Takes the step. `grad_factor` is 1 / micro-batches times the clip.
    pub fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) -> FlipStats {
        let mut total = FlipStats::default();
        self.for_each_mut(&mut |param| match param {
            ParamMut::Matrix(weight) => {
                let stats = weight.step(ctx, grad_factor);
                total.flips += stats.flips;
                total.weights += stats.weights;
            }
            ParamMut::Vector(vector) => vector.step(ctx, grad_factor),
        });
        total
    }

    /// Drops the gradients and votes of a step that is not taken.
    pub fn discard(&mut self) {
        self.for_each_mut(&mut |param| param.discard());
    }

    /// Walks over one half of the state in a fixed order.
    pub fn visit<'a>(&'a self, part: StatePart, to: &mut dyn StateVisitor<'a>) {
        for param in self.params() {
            param.visit(part, to);
        }
    }

    /// Reads one half of the state from a tensor file.
    pub fn load_state(&mut self, part: StatePart, file: &TensorFile) -> Result<(), ModelError> {
        let mut result = Ok(());
        self.for_each_mut(&mut |param| {
            if result.is_ok() {
                result = param.load(part, file);
            }
        });
        Ok(result?)
    }

    /// Bytes of the persistent state.
    pub fn footprint(&self) -> Footprint {
        let mut total = Footprint::default();
        for param in self.params() {
            total.add(param.footprint());
        }
        total
    }

    /// Bytes of parameters and optimizer state in memory.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let bytes = |param| match param {
            Param::Matrix(weight) => weight.allocated_bytes().total(),
            Param::Vector(vector) => vector.allocated_bytes(),
        };
        self.params().into_iter().map(bytes).sum()
    }

    /// A model for inference from the tensors of a checkpoint.
    pub(crate) fn from_tensors(
        config: &Config,
        vocab: usize,
        file: &TensorFile,
    ) -> Result<Self, ModelError> {
        let shape = GptShape::new(config, vocab)?;
        let (c, f) = (shape.width, shape.ff_width);
        let matrix = |name: &str, rows: usize, cols: usize| -> Result<Weight, ModelError> {
            if !file.quant_names().any(|quant| quant == name) {
                return Ok(Weight::from_dense(
                    name,
                    rows,
                    cols,
                    file.f32(name, &[rows, cols])?,
                ));
            }
            let matrix = file.quant(name)?;
            if (matrix.rows(), matrix.cols()) != (rows, cols) {
                let (r, k) = (matrix.rows(), matrix.cols());
                return Err(ModelError::Shape(format!(
                    "{name} is {r} x {k}, expected {rows} x {cols}"
                )));
            }
            Ok(Weight::from_quant(name, matrix))
        };
        let vector = |name: &str, len: usize| -> Result<FloatVector, ModelError> {
            Ok(FloatVector::new(name, file.f32(name, &[len])?).without_training())
        };
        let norm = |name: &str| -> Result<Norm, ModelError> {
            let weight = vector(&format!("{name}.weight"), c)?;
            let bias = shape
                .biases
                .then(|| vector(&format!("{name}.bias"), c))
                .transpose()?;
            Ok(Norm { weight, bias })
        };
        let linear = |name: String, rows: usize, cols: usize| -> Result<Linear, ModelError> {
            let weight = matrix(&name, rows, cols)?;
            let bias = shape
                .biases
                .then(|| vector(&format!("{name}.bias"), rows))
                .transpose()?;
            Ok(Linear { weight, bias })
        };
        let block = |layer: usize| -> Result<Block, ModelError> {
            Ok(Block {
                norm1: norm(&format!("blocks.{layer}.norm1"))?,
                qkv: linear(format!("blocks.{layer}.qkv"), 3 * c, c)?,
                attention_out: linear(format!("blocks.{layer}.attention_out"), c, c)?,
                norm2: norm(&format!("blocks.{layer}.norm2"))?,
                up: linear(format!("blocks.{layer}.up"), f, c)?,
                down: linear(format!("blocks.{layer}.down"), c, f)?,
            })
        };
        Ok(Model {
            shape,
            tok_embedding: matrix("tok_embedding", shape.vocab, c)?,
            pos_embedding: matrix("pos_embedding", shape.context, c)?,
            blocks: (0..shape.n_layer).map(block).collect::<Result<_, _>>()?,
            norm: norm("norm")?,
            head: (!shape.tie_head)
                .then(|| matrix("head", shape.vocab, c))
                .transpose()?,
        })
    }

    pub(crate) fn params(&self) -> Vec<Param<'_>> {
        let mut params = vec![
            Param::Matrix(&self.tok_embedding),
            Param::Matrix(&self.pos_embedding),
        ];
        for block in &self.blocks {
            block.params(&mut params);
        }
        self.norm.params(&mut params);
        params.extend(self.head.as_ref().map(Param::Matrix));
        params
    }

    pub(crate) fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>)) {
        each(ParamMut::Matrix(&mut self.tok_embedding));
        each(ParamMut::Matrix(&mut self.pos_embedding));
        for block in &mut self.blocks {
            block.for_each_mut(each);
        }
        self.norm.for_each_mut(each);
        if let Some(head) = &mut self.head {
            each(ParamMut::Matrix(head));
        }
    }
}

/// The cross-entropy of one micro-batch.
struct HeadPiece<'a> {
    /// (n, C), the normalised residual stream.
    x: &'a [f32],
    targets: &'a [u32],
    lse: &'a [f32],
    piece_rows: usize,
}

impl HeadPiece<'_> {
    /// Adds the gradient of `x` to `dx`.
    fn backward(
        &self,
        ctx: &StepContext<'_>,
        head: &Weight,
        dx: &mut [f32],
        scratch: &mut kernels::CrossEntropyScratch,
    ) {
        for tile in kernels::vocab_tiles(head.rows()) {
            self.tile(ctx, head, tile, Some(&mut *dx), scratch);
        }
    }

    /// Casts the votes of the head, whose gradient `extra` completes; adds the gradient of `x`
    /// to `dx` if wanted. The logits of a tile of the vocabulary exist for that tile only.
    fn vote(
        &self,
        ctx: &StepContext<'_>,
        micro_batch: u16,
        head: &mut Weight,
        mut dx: Option<&mut [f32]>,
        scratch: &mut kernels::CrossEntropyScratch,
        extra: &(impl Fn(Range<usize>, &mut [f32]) + Sync),
    ) -> bool {
        let (n, c) = (self.targets.len(), head.cols());
        let mut finite = true;
        for tile in kernels::vocab_tiles(head.rows()) {
            let d_logits = self.tile(ctx, head, tile.clone(), dx.as_deref_mut(), scratch);
            finite &= head.accumulate(ctx, micro_batch, tile.clone(), &|rows, grad| {
                let within = rows.start - tile.start..rows.end - tile.start;
                matmul_tn_tile(d_logits, self.x, n, tile.len(), c, within, grad);
                extra(rows, grad);
            });
        }
        head.end_micro_batch(ctx);
        finite
    }

    fn tile<'s>(
        &self,
        ctx: &StepContext<'_>,
        head: &Weight,
        tile: Range<usize>,
        dx: Option<&mut [f32]>,
        scratch: &'s mut kernels::CrossEntropyScratch,
    ) -> &'s [f32] {
        let counted = self.targets.iter().filter(|&&t| t != u32::MAX).count();
        let grad_scale = 1.0 / counted.max(1) as f32;
        kernels::cross_entropy_backward_tile(
            ctx.isa,
            self.x,
            head,
            tile,
            self.targets,
            self.lse,
            grad_scale,
            self.piece_rows,
            dx,
            scratch,
        )
    }
}

/// Numbers and fills the matrices of a new model.
struct Init<'a> {
    config: &'a Config,
    next_tensor: u16,
}

impl Init<'_> {
    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        std: f32,
        grid: &Grid,
        part: FloatPart,
    ) -> Result<Weight, ModelError> {
        let tensor = self.next_tensor;
        self.next_tensor += 1;
        let config = self.config;
        let on_grid = config.optim.rule != Rule::Adamw && !config.model.is_float(part);
        let spec = WeightSpec {
            rule: config.optim.rule,
            grid: on_grid.then_some(grid),
            std,
            scale_per_std: config.model.scale_per_std,
            many_micro_batches: config.train.micro_batches > 1,
        };
        let initial = normal_values(config.train.seed, tensor, rows * cols, std);
        Ok(Weight::new(name, tensor, (rows, cols), initial, &spec)?)
    }

    fn linear(
        &mut self,
        name: &str,
        size: (usize, usize),
        std: f32,
        grid: &Grid,
        part: FloatPart,
        bias: bool,
    ) -> Result<Linear, ModelError> {
        let weight = self.matrix(name, size, std, grid, part)?;
        let bias = bias.then(|| FloatVector::new(format!("{name}.bias"), vec![0.0; size.0]));
        Ok(Linear { weight, bias })
    }
}

/// `len` values ~ N(0, std²), a pure function of (seed, tensor): Box-Muller over counter-based
/// random numbers.
fn normal_values(seed: u64, tensor: u16, len: usize, std: f32) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut values = vec![0.0f32; len];
    values.par_chunks_mut(4).enumerate().for_each(|(i, chunk)| {
        let words = philox4x32(
            [
                i as u32,
                (i as u64 >> 32) as u32,
                u32::from(tensor),
                INIT_STREAM << 28,
            ],
            key,
        );
        let uniform = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
        for (pair, words) in chunk.chunks_mut(2).zip(words.chunks_exact(2)) {
            let radius = (-2.0 * uniform(words[0]).ln()).sqrt() * f64::from(std);
            let angle = std::f64::consts::TAU * uniform(words[1]);
            for (value, normal) in pair
                .iter_mut()
                .zip([radius * angle.cos(), radius * angle.sin()])
            {
                *value = normal as f32;
            }
        }
    });
    values
}
