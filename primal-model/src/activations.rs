//! Every buffer of a forward and backward pass, allocated once, with a choice of how many
//! activations are kept and how many are computed again.
//!
//! - Keep all: every block keeps what its backward pass needs.
//! - Keep the input of every block (`recompute = 1`): a block is computed in parts of about
//!   [`PART_ROWS`] token rows, forward and again before its backward pass, so that the inside of
//!   a block exists for one part at a time. Weight gradients are summed over the parts of a
//!   micro-batch before they vote.
//! - Keep the input of every k-th block: blocks are grouped into segments of k, inside of which
//!   everything is kept; the backward pass restores a segment by running it forward once more.
//!
//! None of them changes a bit of the result.

use std::ops::Range;

use primal_kernels::{CrossEntropyScratch, Int16Panels, Isa, VOCAB_TILE};
use primal_optim::{OptimError, StepContext, Weight};

use crate::block::{Attention, Block, BlockActivations, Workspace};
use crate::config::{Compute, Config};
use crate::layers::{Norm, NormStats, Pieces};
use crate::shape::ModelShape;
use crate::train::Poison;

/// About as many token rows are inside a block at a time; a whole sequence at least.
const PART_ROWS: usize = 2048;

/// Parts begin at multiples of this many rows of a micro-batch: float products and sums over rows
/// then fall into the same chunks with parts as without.
const PART_ALIGNMENT: usize = 768;

/// What the buffers of a pass depend on beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassPlan {
    /// Sequences of a pass.
    pub sequences: usize,
    /// Micro-batches of a pass.
    pub pieces: usize,
    /// Blocks of a segment, 0 keeps all; `None` for losses only, without gradients.
    pub recompute: Option<usize>,
    /// How products are computed.
    pub compute: Compute,
}

impl PassPlan {
    /// The passes of a training run.
    pub fn for_training(config: &Config) -> PassPlan {
        let train = &config.train;
        let pieces = train.micro_batches_per_pass;
        PassPlan {
            sequences: train.batch / train.micro_batches.max(1) * pieces,
            pieces,
            recompute: Some(train.recompute),
            compute: config.resolved_compute(),
        }
    }

    /// Passes that compute losses only.
    pub fn for_inference(sequences: usize, compute: Compute) -> PassPlan {
        PassPlan {
            sequences,
            pieces: 1,
            recompute: None,
            compute,
        }
    }

    fn training(&self) -> bool {
        self.recompute.is_some()
    }

    /// Token rows of a micro-batch.
    fn piece_rows(&self, shape: &ModelShape) -> usize {
        self.sequences / self.pieces.max(1) * shape.context
    }

    /// Token rows that are inside a block at a time; `None` where blocks keep what they need.
    fn part_rows(&self, shape: &ModelShape) -> Option<usize> {
        if !matches!(self.recompute, None | Some(1)) {
            return None;
        }
        let aligned = lcm(shape.context, PART_ALIGNMENT);
        let rows = (PART_ROWS / aligned).max(1) * aligned;
        Some(rows.min(self.piece_rows(shape)))
    }

    /// Blocks that keep what they need.
    fn segment(&self, shape: &ModelShape) -> usize {
        match self.recompute {
            Some(0) => shape.n_layer,
            Some(k) => k.min(shape.n_layer),
            None => 1,
        }
    }

    /// Whether a micro-batch comes in several parts.
    fn cut(&self, shape: &ModelShape) -> bool {
        self.training()
            && self
                .part_rows(shape)
                .is_some_and(|rows| rows < self.piece_rows(shape))
    }

    /// Streams, and kept inputs of segments beside them.
    fn streams(&self, shape: &ModelShape) -> [usize; 2] {
        match (self.recompute, self.part_rows(shape)) {
            (None, _) => [2, 0],
            (Some(_), Some(_)) => [shape.n_layer + 1, 0],
            (Some(_), None) => {
                let segment = self.segment(shape);
                [segment + 1, shape.n_layer.div_ceil(segment) - 1]
            }
        }
    }
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y > 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// The buffers of a pass of up to `sequences` × `context` tokens.
pub struct Activations {
    /// (n, C) each: the input of every block of a segment, then the output of the last; with
    /// parts, of every block.
    pub(crate) inputs: Vec<Vec<f32>>,
    /// (n, C) each: the input of every segment but the last.
    segment_inputs: Vec<Vec<f32>>,
    /// One a block of a segment; with parts, one.
    blocks: Vec<BlockActivations>,
    /// Rows of a part.
    part_rows: Option<usize>,
    workspace: Workspace,
    /// (T, C), decoded position embeddings; empty where positions are rotary.
    pub(crate) positions: Vec<f32>,
    /// (n, C), the final norm's output.
    pub(crate) output: Vec<f32>,
    pub(crate) output_stats: NormStats,
    /// (n, C).
    pub(crate) d_output: Vec<f32>,
    /// (n, C), gradient of the residual stream.
    pub(crate) d_stream: Vec<f32>,
    /// (n), nats.
    pub(crate) losses: Vec<f32>,
    /// (n).
    pub(crate) loss_lse: Vec<f32>,
    pub(crate) head: HeadScratch,
    pub(crate) token_index: TokenIndex,
    n_layer: usize,
    /// Fault injection for tests.
    pub(crate) poison: Option<Poison>,
}

/// Buffers of the loss and of the head's votes.
pub(crate) struct HeadScratch {
    pub(crate) compute: Compute,
    pub(crate) cross_entropy: CrossEntropyScratch,
    /// (n of a micro-batch, C) and (…, tile), for the weight gradient in int16.
    pub(crate) x_pairs: Int16Panels,
    pub(crate) d_pairs: Int16Panels,
}

impl HeadScratch {
    fn sizes(shape: &ModelShape, plan: &PassPlan) -> (usize, usize, usize, bool) {
        let int8 = plan.compute.is_int8();
        let pair_rows = match plan.compute.gradient_units() {
            Some(_) if plan.training() => plan.piece_rows(shape),
            _ => 0,
        };
        let rows = plan.sequences * shape.context;
        (rows, pair_rows, shape.vocab.min(VOCAB_TILE), int8)
    }

    fn new(shape: &ModelShape, plan: &PassPlan) -> Self {
        let (rows, pair_rows, tile, int8) = HeadScratch::sizes(shape, plan);
        HeadScratch {
            compute: plan.compute,
            cross_entropy: CrossEntropyScratch::new(rows, shape.vocab, shape.width, int8),
            x_pairs: Int16Panels::new(pair_rows, shape.width),
            d_pairs: Int16Panels::new(pair_rows, tile),
        }
    }

    fn bytes(shape: &ModelShape, plan: &PassPlan) -> u64 {
        let (rows, pair_rows, tile, int8) = HeadScratch::sizes(shape, plan);
        CrossEntropyScratch::bytes(rows, shape.vocab, shape.width, int8)
            + Int16Panels::bytes(pair_rows, shape.width)
            + Int16Panels::bytes(pair_rows, tile)
    }

    fn allocated_bytes(&self) -> u64 {
        self.cross_entropy.allocated_bytes()
            + self.x_pairs.allocated_bytes()
            + self.d_pairs.allocated_bytes()
    }
}

/// Learned positions.
fn positions(shape: &ModelShape) -> usize {
    if shape.learned_positions() {
        shape.context
    } else {
        0
    }
}

impl Activations {
    /// Buffers for `plan`.
    pub fn new(shape: &ModelShape, plan: &PassPlan) -> Self {
        let ModelShape { n_layer, width, .. } = *shape;
        let rows = plan.sequences * shape.context;
        let stream = || vec![0.0; rows * width];
        let back = if plan.training() { rows } else { 0 };
        let [streams, kept] = plan.streams(shape);
        let part_rows = plan.part_rows(shape);
        let inside = part_rows.unwrap_or(rows);
        let (training, cut) = (plan.training(), plan.cut(shape));
        Activations {
            inputs: (0..streams).map(|_| stream()).collect(),
            segment_inputs: (0..kept).map(|_| stream()).collect(),
            blocks: (0..plan.segment(shape))
                .map(|_| BlockActivations::new(inside, shape))
                .collect(),
            part_rows,
            workspace: Workspace::new(inside, shape, plan.compute, training, cut),
            positions: vec![0.0; positions(shape) * width],
            output: stream(),
            output_stats: NormStats::new(rows),
            d_output: vec![0.0; back * width],
            d_stream: vec![0.0; back * width],
            losses: vec![0.0; rows],
            loss_lse: vec![0.0; rows],
            head: HeadScratch::new(shape, plan),
            token_index: TokenIndex::new(back, if training { shape.vocab } else { 0 }),
            n_layer,
            poison: None,
        }
    }

    /// Bytes by purpose of [`Activations::new`].
    pub(crate) fn bytes(shape: &ModelShape, plan: &PassPlan) -> Vec<(&'static str, u64)> {
        let ModelShape { vocab, width, .. } = *shape;
        let rows = plan.sequences * shape.context;
        let stream = 4 * (rows * width) as u64;
        let [streams, kept] = plan.streams(shape);
        let inside = plan.part_rows(shape).unwrap_or(rows);
        let (training, cut) = (plan.training(), plan.cut(shape));
        let tail_streams = if training { 3 } else { 1 };
        let index = 4 * if training { rows + vocab + 1 } else { 1 } as u64;
        vec![
            (
                "activations: residual stream",
                (streams + kept) as u64 * stream,
            ),
            (
                "activations: blocks",
                plan.segment(shape) as u64 * BlockActivations::bytes(inside, shape),
            ),
            (
                "workspace",
                Workspace::bytes(inside, shape, plan.compute, training, cut)
                    + tail_streams * stream
                    + 4 * (positions(shape) * width + 4 * rows) as u64
                    + index,
            ),
            ("loss tiles", HeadScratch::bytes(shape, plan)),
        ]
    }

    /// Bytes of every buffer, as allocated.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        let streams = self.inputs.iter().chain(&self.segment_inputs);
        let own = [
            &self.positions,
            &self.output,
            &self.d_output,
            &self.d_stream,
            &self.losses,
            &self.loss_lse,
        ];
        let floats: usize = streams.chain(own).map(Vec::len).sum();
        let stats = self.output_stats.mean.len() + self.output_stats.rstd.len();
        let index = self.token_index.starts.len() + self.token_index.order.len();
        let blocks: u64 = self
            .blocks
            .iter()
            .map(BlockActivations::allocated_bytes)
            .sum();
        4 * (floats + stats + index) as u64
            + blocks
            + self.workspace.allocated_bytes()
            + self.head.allocated_bytes()
    }

    /// Losses in nats of the tokens of the last forward pass, and more rows that it did not use.
    pub fn losses(&self) -> &[f32] {
        &self.losses
    }

    /// Where the last block leaves its output.
    fn last_slot(&self) -> usize {
        match self.part_rows {
            Some(_) => self.n_layer % self.inputs.len(),
            None => (self.n_layer - 1) % self.blocks.len() + 1,
        }
    }

    /// Runs `blocks` over the residual stream of `width` columns in `inputs[0]`.
    pub(crate) fn forward_blocks(
        &mut self,
        isa: Isa,
        blocks: &[Block],
        pieces: Pieces,
        attention: &Attention<'_>,
        width: usize,
    ) {
        let Some(part_rows) = self.part_rows else {
            let len = pieces.rows() * width;
            for (layer, block) in blocks.iter().enumerate() {
                let slot = layer % self.blocks.len();
                if slot == 0 {
                    self.start_segment(layer / self.blocks.len(), len);
                }
                self.block_forward(isa, block, slot, pieces, attention, len);
            }
            return;
        };
        let slots = self.inputs.len();
        for (layer, block) in blocks.iter().enumerate() {
            // Two streams take turns where nothing is kept.
            let (from, to) = (layer % slots, (layer + 1) % slots);
            let Ok([x, y]) = self.inputs.get_disjoint_mut([from, to]) else {
                unreachable!("two neighbouring slots differ");
            };
            for (part, rows) in parts(pieces, part_rows) {
                let range = rows.start * width..rows.end * width;
                block.forward(
                    isa,
                    part,
                    &attention.of_rows(rows.len()),
                    &x[range.clone()],
                    &mut self.blocks[0],
                    Some(&mut y[range]),
                    &mut self.workspace,
                );
            }
        }
    }

    /// The backward pass of `blocks` after [`Activations::forward_blocks`], from and into
    /// `d_stream`; `done` sees the matrices of every block that is through. Returns false, cut
    /// short, if a weight gradient was not finite.
    pub(crate) fn backward_blocks(
        &mut self,
        ctx: &StepContext<'_>,
        blocks: &mut [Block],
        pieces: Pieces,
        attention: &Attention<'_>,
        width: usize,
        done: &mut dyn FnMut(&mut Weight),
    ) -> Result<bool, OptimError> {
        match self.part_rows {
            Some(part_rows) => {
                self.backward_parts(ctx, blocks, pieces, attention, width, part_rows, done)
            }
            None => self.backward_segments(ctx, blocks, pieces, attention, width, done),
        }
    }

    fn backward_parts(
        &mut self,
        ctx: &StepContext<'_>,
        blocks: &mut [Block],
        pieces: Pieces,
        attention: &Attention<'_>,
        width: usize,
        part_rows: usize,
        done: &mut dyn FnMut(&mut Weight),
    ) -> Result<bool, OptimError> {
        // The inside of the last block's last part is still there from the forward pass.
        let mut inside = part_rows >= pieces.rows();
        for (layer, block) in blocks.iter_mut().enumerate().rev() {
            for (part, rows) in parts(pieces, part_rows) {
                let range = rows.start * width..rows.end * width;
                let x = &self.inputs[layer][range.clone()];
                let attention = attention.of_rows(rows.len());
                let (kept, workspace) = (&mut self.blocks[0], &mut self.workspace);
                if !std::mem::take(&mut inside) {
                    block.forward(ctx.isa, part, &attention, x, kept, None, workspace);
                }
                workspace.linear.rewind();
                let dx = &mut self.d_stream[range];
                if !block.backward(ctx, part, &attention, x, kept, dx, workspace)? {
                    return Ok(false);
                }
            }
            block.each_matrix_mut(done);
        }
        Ok(true)
    }

    fn backward_segments(
        &mut self,
        ctx: &StepContext<'_>,
        blocks: &mut [Block],
        pieces: Pieces,
        attention: &Attention<'_>,
        width: usize,
        done: &mut dyn FnMut(&mut Weight),
    ) -> Result<bool, OptimError> {
        let len = pieces.rows() * width;
        let (n_layer, segment) = (blocks.len(), self.blocks.len());
        let last_segment = (n_layer - 1) / segment;
        for seg in (0..=last_segment).rev() {
            let layers = seg * segment..((seg + 1) * segment).min(n_layer);
            if seg != last_segment {
                // The last segment's activations are still there from the forward pass.
                self.inputs[0][..len].copy_from_slice(&self.segment_inputs[seg][..len]);
                for (slot, layer) in layers.clone().enumerate() {
                    self.block_forward(ctx.isa, &blocks[layer], slot, pieces, attention, len);
                }
            }
            for layer in layers.rev() {
                let slot = layer % segment;
                let finite = blocks[layer].backward(
                    ctx,
                    pieces,
                    attention,
                    &self.inputs[slot][..len],
                    &mut self.blocks[slot],
                    &mut self.d_stream[..len],
                    &mut self.workspace,
                )?;
                if !finite {
                    return Ok(false);
                }
                blocks[layer].each_matrix_mut(done);
            }
        }
        Ok(true)
    }

    /// Begins segment `segment` of a forward pass over `len` stream elements.
    fn start_segment(&mut self, segment: usize, len: usize) {
        if segment > 0 {
            let full = self.blocks.len();
            let (first, rest) = self.inputs.split_at_mut(1);
            first[0][..len].copy_from_slice(&rest[full - 1][..len]);
        }
        if let Some(kept) = self.segment_inputs.get_mut(segment) {
            kept[..len].copy_from_slice(&self.inputs[0][..len]);
        }
    }

    fn block_forward(
        &mut self,
        isa: Isa,
        block: &Block,
        slot: usize,
        pieces: Pieces,
        attention: &Attention<'_>,
        len: usize,
    ) {
        let (before, after) = self.inputs.split_at_mut(slot + 1);
        let (x, y) = (&before[slot][..len], &mut after[0][..len]);
        block.forward(
            isa,
            pieces,
            attention,
            x,
            &mut self.blocks[slot],
            Some(y),
            &mut self.workspace,
        );
    }

    /// Applies the final norm to the residual stream of `len` elements.
    pub(crate) fn normalise_output(&mut self, isa: Isa, norm: &Norm, len: usize) {
        let last = self.last_slot();
        norm.forward(
            isa,
            &self.inputs[last][..len],
            &mut self.output[..len],
            &mut self.output_stats,
        );
    }

    /// Sets the gradient of the residual stream from that of the final norm's output.
    pub(crate) fn final_norm_backward(
        &mut self,
        isa: Isa,
        norm: &mut Norm,
        pieces: Pieces,
        len: usize,
    ) {
        let last = self.last_slot();
        let d_stream = &mut self.d_stream[..len];
        d_stream.fill(0.0);
        norm.backward(
            isa,
            pieces,
            &self.d_output[..len],
            &self.inputs[last][..len],
            &self.output_stats,
            d_stream,
        );
    }
}

/// The parts of every micro-batch of a pass, in order, with their rows.
fn parts(pieces: Pieces, part_rows: usize) -> impl Iterator<Item = (Pieces, Range<usize>)> {
    pieces.iter().flat_map(move |(first, rows)| {
        rows.clone().step_by(part_rows).map(move |start| {
            let end = (start + part_rows).min(rows.end);
            let part = Pieces {
                first,
                count: 1,
                piece_rows: end - start,
                begins: start == rows.start,
                ends: end == rows.end,
            };
            (part, start..end)
        })
    })
}

/// Which rows of a micro-batch hold which token: a counting sort, in row order.
pub(crate) struct TokenIndex {
    /// (V + 1) where each token's rows start in `order`.
    starts: Vec<u32>,
    /// (n) row numbers grouped by token.
    order: Vec<u32>,
}

impl TokenIndex {
    pub(crate) fn new(rows: usize, vocab: usize) -> Self {
        TokenIndex {
            starts: vec![0; vocab + 1],
            order: vec![0; rows],
        }
    }

    pub(crate) fn build(&mut self, tokens: &[u32]) {
        self.starts.fill(0);
        for &token in tokens {
            self.starts[token as usize + 1] += 1;
        }
        for i in 1..self.starts.len() {
            self.starts[i] += self.starts[i - 1];
        }
        // Each start moves to its end while rows are placed, then back by one token.
        for (row, &token) in tokens.iter().enumerate() {
            let at = &mut self.starts[token as usize];
            self.order[*at as usize] = row as u32;
            *at += 1;
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
    }

    /// (V + 1) where each token's rows start.
    #[cfg(feature = "cuda")]
    pub(crate) fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Row numbers grouped by token.
    #[cfg(feature = "cuda")]
    pub(crate) fn order(&self) -> &[u32] {
        &self.order
    }

    pub(crate) fn rows_of(&self, token: usize) -> impl Iterator<Item = usize> + '_ {
        let range = self.starts[token] as usize..self.starts[token + 1] as usize;
        self.order[range].iter().map(|&row| row as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_index_lists_rows_in_order() {
        let mut index = TokenIndex::new(6, 4);
        for _ in 0..2 {
            index.build(&[2, 0, 2, 3, 0, 2]);
            let rows: Vec<Vec<usize>> = (0..4).map(|t| index.rows_of(t).collect()).collect();
            assert_eq!(rows, [vec![1, 4], vec![], vec![0, 2, 5], vec![3]]);
        }
    }
}
