//! A decoder whose matrices live on the grid: embeddings, blocks, final norm, head; one forward
//! and backward pass over the micro-batches of a step.

use std::ops::Range;

use primal_kernels as kernels;
use primal_kernels::{Isa, fill_rows};
use primal_lut::TensorFile;
use primal_optim::{OptimError, StatePart, StateVisitor, StepContext, StepSums, Weight};
use rayon::prelude::*;

use crate::activations::{Activations, HeadScratch};
use crate::block::{Attention, Block};
use crate::build::{Fresh, Stored, build};
use crate::config::Config;
use crate::error::ModelError;
use crate::layers::{Norm, Param, ParamMut, Pieces};
use crate::parameters::Parameters;
use crate::rope::Rope;
use crate::scratch::WeightGradient;
use crate::shape::ModelShape;
use crate::train::Poison;

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

/// A decoder of the GPT-2 or Llama family; W holds its matrices: [`Weight`] to train them.
#[derive(Clone, Debug)]
pub struct Model<W = Weight> {
    pub(crate) shape: ModelShape,
    pub(crate) tok_embedding: W,
    /// `None` where positions are rotary.
    pub(crate) pos_embedding: Option<W>,
    /// `None` where positions are learned.
    pub(crate) rope: Option<Rope>,
    pub(crate) blocks: Vec<Block<W>>,
    pub(crate) norm: Norm,
    /// `None` when tied to the token embedding.
    pub(crate) head: Option<W>,
}

impl<W> Model<W> {
    /// The sizes.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }
}

impl Model {
    /// A model with fresh weights, a pure function of config, vocabulary and seed.
    pub fn new(config: &Config, vocab: usize) -> Result<Self, ModelError> {
        build(config, vocab, &mut Fresh::new(config))
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
            &mut acts.head.cross_entropy,
        );
    }

    /// Forward and backward over one pass of a step; votes are cast and float gradients summed.
    /// `losses` receives the mean loss in nats of each micro-batch; `done` sees every matrix when
    /// the pass has cast its votes, last layer first. Returns false, with the
    /// backward pass cut short, when a loss or a gradient is not finite: the caller then
    /// discards the step.
    ///
    /// # Errors
    /// Of [`Weight::accumulate`]: the step was not begun.
    pub fn forward_backward(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        acts: &mut Activations,
        losses: &mut [f64],
        done: &mut dyn FnMut(&mut Weight),
    ) -> Result<bool, OptimError> {
        self.forward(ctx.isa, pass, acts);
        if acts.poison == Some(Poison::Loss) {
            acts.losses[0] = f32::INFINITY;
        }
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
            return Ok(false);
        }
        let finite = self.backward_head(ctx, pass, pieces, acts)?;
        if let Some(head) = &mut self.head {
            done(head);
        }
        if acts.poison == Some(Poison::Gradient) {
            acts.d_stream[0] = f32::NAN;
        }
        let finite = finite
            && self.backward_blocks(ctx, pass, pieces, acts, done)?
            && self.backward_embeddings(ctx, pass, pieces, acts)?;
        if let Some(embedding) = &mut self.pos_embedding {
            done(embedding);
        }
        done(&mut self.tok_embedding);
        Ok(finite)
    }

    fn pieces(&self, pass: &Pass<'_>) -> Pieces {
        let count = pass.micro_batches.max(1);
        Pieces {
            first: pass.first_micro_batch,
            count,
            piece_rows: pass.tokens.len() / count,
            begins: true,
            ends: true,
        }
    }

    /// Embeds the tokens and runs the blocks; leaves the residual stream in `acts`.
    fn run_blocks(&self, isa: Isa, pass: &Pass<'_>, pieces: Pieces, acts: &mut Activations) {
        let n = pieces.rows();
        let c = self.shape.width;
        let time = pass.time;
        if let Some(embedding) = &self.pos_embedding {
            fill_rows(isa, embedding, 0..time, &mut acts.positions[..time * c]);
        }
        let positions = self.pos_embedding.as_ref().map(|_| &acts.positions);
        let tok = &self.tok_embedding;
        acts.inputs[0][..n * c]
            .par_chunks_mut(time * c)
            .zip(pass.tokens.par_chunks(time))
            .for_each(|(stream, tokens)| {
                for (t, (row, &token)) in stream.chunks_exact_mut(c).zip(tokens).enumerate() {
                    kernels::MatrixRows::fill_row(tok, isa, token as usize, row);
                    if let Some(positions) = positions {
                        kernels::add(isa, &positions[t * c..(t + 1) * c], row);
                    }
                }
            });
        let attention = Attention {
            shape: self.shape.attention(n / time, time),
            rope: self.rope.as_ref(),
            lengths: &[],
        };
        acts.forward_blocks(isa, &self.blocks, pieces, &attention, c);
    }

    /// Cross-entropy gradient: votes of the head, gradient of the final norm, and the gradient of
    /// the residual stream in `acts.d_stream`.
    fn backward_head(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: Pieces,
        acts: &mut Activations,
    ) -> Result<bool, OptimError> {
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
            let scratch = &mut acts.head;
            match &mut self.head {
                Some(head) => {
                    finite &= piece.vote(ctx, micro_batch, head, Some(dx), scratch, &|_, _| {})?
                }
                // A tied head votes together with the embedding, at the end.
                None => piece.backward(ctx, &self.tok_embedding, dx, scratch),
            }
        }
        acts.final_norm_backward(ctx.isa, &mut self.norm, pieces, n * c);
        Ok(finite)
    }

    fn backward_blocks(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: Pieces,
        acts: &mut Activations,
        done: &mut dyn FnMut(&mut Weight),
    ) -> Result<bool, OptimError> {
        let n = pieces.rows();
        let c = self.shape.width;
        let attention = Attention {
            shape: self.shape.attention(n / pass.time, pass.time),
            rope: self.rope.as_ref(),
            lengths: &[],
        };
        acts.backward_blocks(ctx, &mut self.blocks, pieces, &attention, c, done)
    }

    fn backward_embeddings(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: Pieces,
        acts: &mut Activations,
    ) -> Result<bool, OptimError> {
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

            if let Some(embedding) = &mut self.pos_embedding {
                finite &= embedding.accumulate(ctx, micro_batch, 0..time, &|tile, grad| {
                    grad.fill(0.0);
                    for (t, out) in tile.zip(grad.chunks_exact_mut(c)) {
                        add_rows(&mut (0..sequences).map(|b| b * time + t), out);
                    }
                })?;
                embedding.end_micro_batch(ctx);
            }

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
                )?;
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
                let scratch = &mut acts.head;
                finite &= piece.vote(
                    ctx,
                    micro_batch,
                    &mut self.tok_embedding,
                    None,
                    scratch,
                    &tokens_grad,
                )?;
            }
        }
        Ok(finite)
    }

    /// Lets only some blocks learn; everything else stays as it is. An empty list changes nothing.
    pub(crate) fn only_blocks(&mut self, learning: &[usize]) {
        if learning.is_empty() {
            return;
        }
        let still = &mut |param: ParamMut<'_>| match param {
            ParamMut::Matrix(weight) => weight.keep_still(),
            ParamMut::Vector(vector) => vector.keep_still(),
        };
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            if !learning.contains(&layer) {
                block.for_each_mut(still);
            }
        }
        self.norm.for_each_mut(still);
        let embeddings = [Some(&mut self.tok_embedding), self.pos_embedding.as_mut()];
        for weight in embeddings.into_iter().flatten().chain(&mut self.head) {
            weight.keep_still();
        }
    }

    /// Walks over the float sums of the step so far, in a fixed order.
    pub(crate) fn step_sums(&mut self, to: &mut dyn StepSums) {
        self.for_each_mut(&mut |param| match param {
            ParamMut::Matrix(weight) => weight.step_sums(to),
            ParamMut::Vector(vector) => vector.step_sums(to),
        });
    }

    /// Walks over one half of the state in a fixed order.
    pub fn visit<'a>(&'a self, part: StatePart, to: &mut dyn StateVisitor<'a>) {
        Parameters::visit(self, part, to);
    }

    /// Bytes of parameters and optimizer state in memory.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let bytes = |param| match param {
            Param::Matrix(weight) => weight.allocated_bytes().total(),
            Param::Vector(vector) => vector.allocated_bytes(),
        };
        let rope = self.rope.as_ref().map_or(0, Rope::allocated_bytes);
        self.params().into_iter().map(bytes).sum::<u64>() + rope
    }

    /// A model for inference from the tensors of a checkpoint.
    pub(crate) fn from_tensors(
        config: &Config,
        vocab: usize,
        file: &TensorFile,
    ) -> Result<Self, ModelError> {
        build(config, vocab, &mut Stored(file))
    }
}

impl Parameters for Model {
    fn params(&self) -> Vec<Param<'_>> {
        let mut params = vec![Param::Matrix(&self.tok_embedding)];
        params.extend(self.pos_embedding.as_ref().map(Param::Matrix));
        for block in &self.blocks {
            block.params(&mut params);
        }
        self.norm.params(&mut params);
        params.extend(self.head.as_ref().map(Param::Matrix));
        params
    }

    fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>)) {
        each(ParamMut::Matrix(&mut self.tok_embedding));
        if let Some(embedding) = &mut self.pos_embedding {
            each(ParamMut::Matrix(embedding));
        }
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
        scratch: &mut HeadScratch,
    ) {
        let cross_entropy = &mut scratch.cross_entropy;
        cross_entropy.start(ctx.isa, self.x, head.cols());
        for tile in kernels::vocab_tiles(head.rows()) {
            self.tile(ctx, head, tile, Some(&mut *dx), cross_entropy);
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
        scratch: &mut HeadScratch,
        extra: &(impl Fn(Range<usize>, &mut [f32]) + Sync),
    ) -> Result<bool, OptimError> {
        let (isa, c) = (ctx.isa, head.cols());
        let HeadScratch {
            compute,
            cross_entropy,
            x_pairs,
            d_pairs,
        } = scratch;
        let units = compute.gradient_units().filter(|_| head.quant().is_some());
        if let Some(units) = units {
            x_pairs.fill(isa, self.x, c, units);
        }
        cross_entropy.start(isa, self.x, c);
        let mut finite = true;
        for tile in kernels::vocab_tiles(head.rows()) {
            let (out, dx) = (tile.len(), dx.as_deref_mut());
            let d_logits = self.tile(ctx, head, tile.clone(), dx, cross_entropy);
            let gradient = if let Some(units) = units {
                d_pairs.fill(isa, d_logits, out, units);
                WeightGradient::Int16 {
                    isa,
                    dy: d_pairs,
                    x: x_pairs,
                }
            } else {
                WeightGradient::Float {
                    dy: d_logits,
                    x: self.x,
                    out,
                    input: c,
                }
            };
            finite &= head.accumulate(ctx, micro_batch, tile.clone(), &|rows, grad| {
                let within = rows.start - tile.start..rows.end - tile.start;
                gradient.tile(within, grad, false);
                extra(rows, grad);
            })?;
        }
        head.end_micro_batch(ctx);
        Ok(finite)
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
