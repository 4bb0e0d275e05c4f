//! Every buffer of a forward and backward pass, allocated once, with a choice of how many
//! activations are kept and how many are computed again.
//!
//! Blocks are grouped into segments. The input of each segment is kept; inside a segment every
//! block keeps what its backward pass needs. The backward pass restores a segment by running it
//! forward once more. One segment of all blocks recomputes nothing.

use primal_kernels::{CrossEntropyScratch, Isa};
use primal_optim::StepContext;

use crate::block::{Attention, Block, BlockActivations, Workspace};
use crate::layers::{Norm, NormStats, Pieces};
use crate::shape::ModelShape;
use crate::train::Poison;

/// The buffers of a pass of up to `sequences` × `context` tokens.
pub struct Activations {
    /// (n, C) each: the input of every block of a segment, then the output of the last.
    pub(crate) inputs: Vec<Vec<f32>>,
    /// (n, C) each: the input of every segment but the last.
    segment_inputs: Vec<Vec<f32>>,
    /// One a block of a segment.
    blocks: Vec<BlockActivations>,
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
    pub(crate) cross_entropy: CrossEntropyScratch,
    pub(crate) token_index: TokenIndex,
    n_layer: usize,
    /// Fault injection for tests.
    pub(crate) poison: Option<Poison>,
}

/// Blocks of a segment for a recompute setting: 0 keeps everything.
fn segment_len(shape: &ModelShape, recompute: usize) -> usize {
    if recompute == 0 {
        shape.n_layer
    } else {
        recompute.min(shape.n_layer)
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
    /// Buffers for training: `recompute` 0 keeps all activations, k keeps the input of every
    /// k-th block and recomputes the rest.
    pub fn for_training(shape: &ModelShape, sequences: usize, recompute: usize) -> Self {
        Activations::new(
            shape,
            sequences * shape.context,
            segment_len(shape, recompute),
            true,
        )
    }

    /// Buffers for computing losses only.
    pub fn for_inference(shape: &ModelShape, sequences: usize) -> Self {
        Activations::new(shape, sequences * shape.context, 1, false)
    }

    fn new(shape: &ModelShape, rows: usize, segment: usize, training: bool) -> Self {
        let ModelShape {
            vocab,
            n_layer,
            width,
            ..
        } = *shape;
        let stream = || vec![0.0; rows * width];
        let back = if training { rows } else { 0 };
        Activations {
            inputs: (0..=segment).map(|_| stream()).collect(),
            segment_inputs: match training {
                true => (1..n_layer.div_ceil(segment)).map(|_| stream()).collect(),
                false => Vec::new(),
            },
            blocks: (0..segment)
                .map(|_| BlockActivations::new(rows, shape))
                .collect(),
            workspace: Workspace::new(rows, shape, training),
            positions: vec![0.0; positions(shape) * width],
            output: stream(),
            output_stats: NormStats::new(rows),
            d_output: vec![0.0; back * width],
            d_stream: vec![0.0; back * width],
            losses: vec![0.0; rows],
            loss_lse: vec![0.0; rows],
            cross_entropy: CrossEntropyScratch::new(rows, vocab, width),
            token_index: TokenIndex::new(back, if training { vocab } else { 0 }),
            n_layer,
            poison: None,
        }
    }

    /// Bytes by purpose of [`Activations::for_training`] or (`recompute` `None`)
    /// [`Activations::for_inference`].
    pub(crate) fn bytes(
        shape: &ModelShape,
        sequences: usize,
        recompute: Option<usize>,
    ) -> Vec<(&'static str, u64)> {
        let ModelShape {
            vocab,
            n_layer,
            width,
            ..
        } = *shape;
        let rows = sequences * shape.context;
        let training = recompute.is_some();
        let segment = recompute.map_or(1, |k| segment_len(shape, k));
        let stream = 4 * (rows * width) as u64;
        let kept_streams = segment
            + 1
            + if training {
                n_layer.div_ceil(segment) - 1
            } else {
                0
            };
        let tail_streams = if training { 3 } else { 1 };
        let index = 4 * if training { rows + vocab + 1 } else { 1 } as u64;
        vec![
            ("activations: residual stream", kept_streams as u64 * stream),
            (
                "activations: blocks",
                segment as u64 * BlockActivations::bytes(rows, shape),
            ),
            (
                "workspace",
                Workspace::bytes(rows, shape, training)
                    + tail_streams * stream
                    + 4 * (positions(shape) * width + 4 * rows) as u64
                    + index,
            ),
            ("loss tiles", CrossEntropyScratch::bytes(rows, vocab, width)),
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
            + self.cross_entropy.allocated_bytes()
    }

    /// Losses in nats of the tokens of the last forward pass, and more rows that it did not use.
    pub fn losses(&self) -> &[f32] {
        &self.losses
    }

    pub(crate) fn segment_len(&self) -> usize {
        self.blocks.len()
    }

    /// Where the last block leaves its output.
    pub(crate) fn last_slot(&self, n_layer: usize) -> usize {
        (n_layer - 1) % self.segment_len() + 1
    }

    /// Begins segment `segment` of a forward pass over `len` stream elements.
    pub(crate) fn start_segment(&mut self, segment: usize, len: usize) {
        if segment > 0 {
            let full = self.segment_len();
            let (first, rest) = self.inputs.split_at_mut(1);
            first[0][..len].copy_from_slice(&rest[full - 1][..len]);
        }
        if let Some(kept) = self.segment_inputs.get_mut(segment) {
            kept[..len].copy_from_slice(&self.inputs[0][..len]);
        }
    }

    /// Brings the kept input of a segment back for recomputation.
    pub(crate) fn restore_segment(&mut self, segment: usize, len: usize) {
        self.inputs[0][..len].copy_from_slice(&self.segment_inputs[segment][..len]);
    }

    pub(crate) fn block_forward(
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
            y,
            &mut self.workspace,
        );
    }

    pub(crate) fn block_backward(
        &mut self,
        ctx: &StepContext<'_>,
        block: &mut Block,
        slot: usize,
        pieces: Pieces,
        attention: &Attention<'_>,
        len: usize,
    ) -> bool {
        let x = &self.inputs[slot][..len];
        let kept = &mut self.blocks[slot];
        block.backward(
            ctx,
            pieces,
            attention,
            x,
            kept,
            &mut self.d_stream[..len],
            &mut self.workspace,
        )
    }

    /// Applies the final norm to the residual stream of `len` elements.
    pub(crate) fn normalise_output(&mut self, isa: Isa, norm: &Norm, len: usize) {
        let last = self.last_slot(self.n_layer);
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
        let last = self.last_slot(self.n_layer);
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

/// Which rows of a micro-batch hold which token: a counting sort, in row order.
pub(crate) struct TokenIndex {
    /// (V + 1) where each token's rows start in `order`.
    starts: Vec<u32>,
    /// (n) row numbers grouped by token.
    order: Vec<u32>,
}

impl TokenIndex {
    fn new(rows: usize, vocab: usize) -> Self {
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
