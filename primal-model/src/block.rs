//! One transformer block: x + attention(norm(x)), then x + mlp(norm(x)); forward and backward.

use primal_kernels as kernels;
use primal_kernels::{AttentionShape, Isa};
use primal_optim::StepContext;

use crate::layers::{Linear, Norm, NormStats, Param, ParamMut, Pieces};

/// The parameters of a block.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) norm1: Norm,
    /// (3C, C): rows are [query heads | key heads | value heads].
    pub(crate) qkv: Linear,
    /// (C, C).
    pub(crate) attention_out: Linear,
    pub(crate) norm2: Norm,
    /// (F, C).
    pub(crate) up: Linear,
    /// (C, F).
    pub(crate) down: Linear,
}

/// What the backward pass of a block needs beside the block's input. n = token rows of a pass.
pub(crate) struct BlockActivations {
    norm1: NormStats,
    /// (n, 3C).
    qkv: Vec<f32>,
    /// (sequences, heads, T) log-sum-exp of the attention scores.
    lse: Vec<f32>,
    /// (n, C), before the output projection.
    attention: Vec<f32>,
    /// (n, C), the residual stream between the two halves.
    middle: Vec<f32>,
    norm2: NormStats,
    /// (n, F), before the activation function.
    up: Vec<f32>,
}

impl BlockActivations {
    pub(crate) fn new(rows: usize, heads: usize, width: usize, ff_width: usize) -> Self {
        BlockActivations {
            norm1: NormStats::new(rows),
            qkv: vec![0.0; rows * 3 * width],
            lse: vec![0.0; rows * heads],
            attention: vec![0.0; rows * width],
            middle: vec![0.0; rows * width],
            norm2: NormStats::new(rows),
            up: vec![0.0; rows * ff_width],
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        let stats = [&self.norm1, &self.norm2].map(|stats| stats.mean.len() + stats.rstd.len());
        let floats = [
            &self.qkv,
            &self.lse,
            &self.attention,
            &self.middle,
            &self.up,
        ]
        .map(|v| v.len());
        4 * (stats.iter().sum::<usize>() + floats.iter().sum::<usize>()) as u64
    }

    /// Bytes of [`BlockActivations::new`].
    pub(crate) fn bytes(rows: usize, heads: usize, width: usize, ff_width: usize) -> u64 {
        4 * (rows * (4 + 5 * width + heads + ff_width)) as u64
    }
}

/// Buffers that every block uses in turn.
pub(crate) struct Workspace {
    /// (n, C): the output of a norm, recomputed in the backward pass.
    pub(crate) normed: Vec<f32>,
    /// (n, F): the output of the activation function, recomputed in the backward pass.
    hidden: Vec<f32>,
    /// (n, F).
    d_hidden: Vec<f32>,
    /// (n, C).
    pub(crate) d_normed: Vec<f32>,
    /// (n, 3C).
    d_qkv: Vec<f32>,
    /// The decoded values of one matrix of a block.
    pub(crate) decoded: Vec<f32>,
}

impl Workspace {
    pub(crate) fn new(rows: usize, width: usize, ff_width: usize, training: bool) -> Self {
        let back = if training { rows } else { 0 };
        Workspace {
            normed: vec![0.0; rows * width],
            hidden: vec![0.0; rows * ff_width],
            d_hidden: vec![0.0; back * ff_width],
            d_normed: vec![0.0; back * width],
            d_qkv: vec![0.0; back * 3 * width],
            decoded: vec![0.0; width * ff_width.max(3 * width)],
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        let all = [
            &self.normed,
            &self.hidden,
            &self.d_hidden,
            &self.d_normed,
            &self.d_qkv,
            &self.decoded,
        ];
        4 * all.iter().map(|v| v.len()).sum::<usize>() as u64
    }

    /// Bytes of [`Workspace::new`].
    pub(crate) fn bytes(rows: usize, width: usize, ff_width: usize, training: bool) -> u64 {
        let back = if training { rows } else { 0 };
        4 * (rows * (width + ff_width)
            + back * (ff_width + 4 * width)
            + width * ff_width.max(3 * width)) as u64
    }
}

impl Block {
    /// `y` (n, C) = block of `x` (n, C); fills `kept` for the backward pass.
    pub(crate) fn forward(
        &self,
        isa: Isa,
        pieces: Pieces,
        shape: &AttentionShape,
        x: &[f32],
        kept: &mut BlockActivations,
        y: &mut [f32],
        ws: &mut Workspace,
    ) {
        let n = pieces.rows();
        let width = x.len() / n;
        let ff_width = self.up.weight.rows();
        let normed = &mut ws.normed[..n * width];
        let qkv = &mut kept.qkv[..n * 3 * width];
        let attention = &mut kept.attention[..n * width];
        let middle = &mut kept.middle[..n * width];
        let up = &mut kept.up[..n * ff_width];
        let hidden = &mut ws.hidden[..n * ff_width];

        self.norm1.forward(isa, x, normed, &mut kept.norm1);
        self.qkv
            .forward(isa, pieces, normed, qkv, false, &mut ws.decoded);
        kernels::attention(isa, shape, qkv, attention, &mut kept.lse[..n * shape.heads]);
        middle.copy_from_slice(x);
        self.attention_out
            .forward(isa, pieces, attention, middle, true, &mut ws.decoded);

        self.norm2.forward(isa, middle, normed, &mut kept.norm2);
        self.up
            .forward(isa, pieces, normed, up, false, &mut ws.decoded);
        kernels::gelu(isa, up, hidden);
        y.copy_from_slice(middle);
        self.down
            .forward(isa, pieces, hidden, y, true, &mut ws.decoded);
    }

    /// Turns `dx` (n, C) from the gradient of the block's output into that of its input `x`,
    /// casting votes on the way. Returns false if a weight gradient was not finite.
    pub(crate) fn backward(
        &mut self,
        ctx: &StepContext<'_>,
        pieces: Pieces,
        shape: &AttentionShape,
        x: &[f32],
        kept: &mut BlockActivations,
        dx: &mut [f32],
        ws: &mut Workspace,
    ) -> bool {
        let isa = ctx.isa;
        let n = pieces.rows();
        let width = x.len() / n;
        let ff_width = self.up.weight.rows();
        let normed = &mut ws.normed[..n * width];
        let hidden = &mut ws.hidden[..n * ff_width];
        let d_hidden = &mut ws.d_hidden[..n * ff_width];
        let d_normed = &mut ws.d_normed[..n * width];
        let d_qkv = &mut ws.d_qkv[..n * 3 * width];
        let middle = &kept.middle[..n * width];
        let up = &kept.up[..n * ff_width];

        kernels::gelu(isa, up, hidden);
        let mut finite = self
            .down
            .backward(ctx, pieces, hidden, dx, d_hidden, &mut ws.decoded);
        kernels::gelu_backward(isa, up, d_hidden);
        self.norm2.forward(isa, middle, normed, &mut kept.norm2);
        finite &= self
            .up
            .backward(ctx, pieces, normed, d_hidden, d_normed, &mut ws.decoded);
        self.norm2
            .backward(isa, pieces, d_normed, middle, &kept.norm2, dx);

        let attention = &kept.attention[..n * width];
        let d_attention = &mut ws.normed[..n * width];
        finite &=
            self.attention_out
                .backward(ctx, pieces, attention, dx, d_attention, &mut ws.decoded);
        let qkv = &kept.qkv[..n * 3 * width];
        let lse = &kept.lse[..n * shape.heads];
        kernels::attention_backward(isa, shape, qkv, attention, lse, d_attention, d_qkv);
        let normed = &mut ws.normed[..n * width];
        self.norm1.forward(isa, x, normed, &mut kept.norm1);
        finite &= self
            .qkv
            .backward(ctx, pieces, normed, d_qkv, d_normed, &mut ws.decoded);
        self.norm1
            .backward(isa, pieces, d_normed, x, &kept.norm1, dx);
        finite
    }

    pub(crate) fn params<'a>(&'a self, to: &mut Vec<Param<'a>>) {
        self.norm1.params(to);
        self.qkv.params(to);
        self.attention_out.params(to);
        self.norm2.params(to);
        self.up.params(to);
        self.down.params(to);
    }

    pub(crate) fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>)) {
        self.norm1.for_each_mut(each);
        self.qkv.for_each_mut(each);
        self.attention_out.for_each_mut(each);
        self.norm2.for_each_mut(each);
        self.up.for_each_mut(each);
        self.down.for_each_mut(each);
    }
}
