//! One transformer block: x + attention(norm(x)), then x + mlp(norm(x)); forward and backward.

use std::ops::Range;

use primal_kernels as kernels;
use primal_kernels::{AttentionShape, Isa};
use primal_optim::{OptimError, StepContext, Weight};

use crate::config::{Compute, FeedForward};
use crate::layers::{Linear, Norm, NormStats, Param, ParamMut, Pieces};
use crate::rope::Rope;
use crate::scratch::LinearScratch;
use crate::shape::ModelShape;

/// The parameters of a block; W holds its matrices.
#[derive(Clone, Debug)]
pub(crate) struct Block<W = Weight> {
    pub(crate) norm1: Norm,
    /// ((H + 2·KV)·D, C): rows are [query heads | key heads | value heads].
    pub(crate) qkv: Linear<W>,
    /// Norms of each head's queries and keys, in models that have them.
    pub(crate) head_norms: Option<HeadNorms>,
    /// Whether queries and keys are turned by their positions, where positions are rotary.
    pub(crate) turned: bool,
    /// (C, H·D).
    pub(crate) attention_out: Linear<W>,
    pub(crate) norm2: Norm,
    pub(crate) feed_forward: FeedForward,
    /// (U, C): U = F rows, or 2·F with rows [gate | up].
    pub(crate) up: Linear<W>,
    /// (C, F).
    pub(crate) down: Linear<W>,
}

/// The norms that every head's queries, and every head's keys, share.
#[derive(Clone, Debug)]
pub(crate) struct HeadNorms {
    /// (D).
    pub(crate) query: Norm,
    /// (D).
    pub(crate) key: Norm,
}

/// Each half of a block adds second(f(first(norm(x)))) to the residual stream x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// qkv and attention_out.
    Attention,
    /// up and down.
    FeedForward,
}

/// How tokens of a pass see each other.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) rope: Option<&'a Rope>,
    /// Tokens of each sequence where they differ, all of them packed without gaps; empty:
    /// `shape.time` each.
    pub(crate) lengths: &'a [usize],
}

impl Attention<'_> {
    /// The same over the sequences of `rows` token rows.
    pub(crate) fn of_rows(&self, rows: usize) -> Self {
        Attention {
            shape: AttentionShape {
                batch: rows / self.shape.time,
                ..self.shape
            },
            ..*self
        }
    }

    /// Sequences of one length each, and their token rows.
    fn runs(&self) -> impl Iterator<Item = (AttentionShape, Range<usize>)> {
        let &Attention { shape, lengths, .. } = self;
        let alike = lengths
            .is_empty()
            .then(|| (shape, 0..shape.batch * shape.time));
        let mut start = 0;
        alike.into_iter().chain(lengths.iter().map(move |&time| {
            let rows = start..start + time;
            start = rows.end;
            let one = AttentionShape {
                batch: 1,
                time,
                ..shape
            };
            (one, rows)
        }))
    }

    /// Leaves queries and keys of `qkv` turned by their positions.
    fn forward(&self, isa: Isa, qkv: &mut [f32], out: &mut [f32], lse: &mut [f32]) {
        for (shape, rows) in self.runs() {
            let qkv = &mut qkv[of(&rows, shape.qkv_width())];
            if let Some(rope) = self.rope {
                rope.forward(isa, 0, shape.time, qkv);
            }
            let (out, lse) = (
                &mut out[of(&rows, shape.width())],
                &mut lse[of(&rows, shape.heads)],
            );
            kernels::attention(isa, &shape, qkv, out, lse);
        }
    }

    /// `qkv`, `out` and `lse` as the forward pass left them; `d_qkv` is that of `qkv` before it.
    fn backward(
        &self,
        isa: Isa,
        (qkv, out, lse): (&[f32], &[f32], &[f32]),
        d_out: &[f32],
        d_qkv: &mut [f32],
    ) {
        for (shape, rows) in self.runs() {
            let (wide, narrow) = (of(&rows, shape.qkv_width()), of(&rows, shape.width()));
            let d_qkv = &mut d_qkv[wide.clone()];
            kernels::attention_backward(
                isa,
                &shape,
                &qkv[wide],
                &out[narrow.clone()],
                &lse[of(&rows, shape.heads)],
                &d_out[narrow],
                d_qkv,
            );
            if let Some(rope) = self.rope {
                rope.backward(isa, shape.time, d_qkv);
            }
        }
    }
}

/// Heads that have a norm of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heads {
    Queries,
    Keys,
}

/// Where queries and keys lie in n rows of (H + 2·KV)·D.
struct HeadPlaces {
    shape: AttentionShape,
    rows: usize,
}

impl HeadPlaces {
    fn new(shape: AttentionShape, rows: usize) -> Self {
        HeadPlaces { shape, rows }
    }

    fn count(&self, heads: Heads) -> usize {
        match heads {
            Heads::Queries => self.shape.heads,
            Heads::Keys => self.shape.kv_heads,
        }
    }

    fn len(&self, heads: Heads) -> usize {
        self.rows * self.count(heads) * self.shape.head_dim
    }

    fn part(&self, heads: Heads) -> Range<usize> {
        let queries = self.shape.heads * self.shape.head_dim;
        match heads {
            Heads::Queries => 0..queries,
            Heads::Keys => queries..queries + self.shape.kv_heads * self.shape.head_dim,
        }
    }

    /// Copies them to `to` (n·heads, D).
    fn gather(&self, heads: Heads, qkv: &[f32], to: &mut [f32]) {
        let part = self.part(heads);
        let rows = qkv.chunks_exact(self.shape.qkv_width());
        for (row, to) in rows.zip(to.chunks_exact_mut(part.len())) {
            to.copy_from_slice(&row[part.clone()]);
        }
    }

    /// Puts them back.
    fn scatter(&self, heads: Heads, from: &[f32], qkv: &mut [f32]) {
        let part = self.part(heads);
        let rows = qkv.chunks_exact_mut(self.shape.qkv_width());
        for (row, from) in rows.zip(from.chunks_exact(part.len())) {
            row[part.clone()].copy_from_slice(from);
        }
    }
}

impl HeadNorms {
    /// Normalises queries and keys of `qkv` (n, (H + 2·KV)·D) in place; `heads` (H, D) and
    /// `stats` (H) are room for a token's.
    pub(crate) fn forward(
        &self,
        isa: Isa,
        shape: AttentionShape,
        qkv: &mut [f32],
        heads: &mut [f32],
        stats: &mut NormStats,
    ) {
        let at = HeadPlaces::new(shape, 1);
        for (which, norm) in [(Heads::Queries, &self.query), (Heads::Keys, &self.key)] {
            let part = at.part(which);
            let heads = &mut heads[..part.len()];
            for row in qkv.chunks_exact_mut(shape.qkv_width()) {
                norm.forward(isa, &row[part.clone()], heads, stats);
                row[part.clone()].copy_from_slice(heads);
            }
        }
    }
}

/// The elements of `rows` rows of `width`.
fn of(rows: &Range<usize>, width: usize) -> Range<usize> {
    rows.start * width..rows.end * width
}

/// What the backward pass of a block needs beside the block's input. n = token rows of a pass.
pub(crate) struct BlockActivations {
    norm1: NormStats,
    /// (n·H, D), then (n·KV, D): queries and keys before their norms; empty without these.
    heads: Vec<f32>,
    query_norm: NormStats,
    key_norm: NormStats,
    /// (n, (H + 2·KV)·D), queries and keys turned by their positions.
    qkv: Vec<f32>,
    /// (sequences, heads, T) log-sum-exp of the attention scores.
    lse: Vec<f32>,
    /// (n, H·D), before the output projection.
    attention: Vec<f32>,
    /// (n, C), the residual stream between the two halves.
    middle: Vec<f32>,
    norm2: NormStats,
    /// (n, U), before the activation function.
    up: Vec<f32>,
}

impl BlockActivations {
    pub(crate) fn new(rows: usize, shape: &ModelShape) -> Self {
        BlockActivations {
            norm1: NormStats::new(rows),
            heads: vec![0.0; rows * shape.normed_heads() * shape.head_dim],
            query_norm: NormStats::new(rows * shape.normed_heads().min(shape.n_head)),
            key_norm: NormStats::new(rows * shape.normed_heads().min(shape.n_kv_head)),
            qkv: vec![0.0; rows * shape.qkv_width()],
            lse: vec![0.0; rows * shape.n_head],
            attention: vec![0.0; rows * shape.attention_width()],
            middle: vec![0.0; rows * shape.width],
            norm2: NormStats::new(rows),
            up: vec![0.0; rows * shape.up_width()],
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        let stats = [&self.norm1, &self.norm2, &self.query_norm, &self.key_norm];
        let stats = stats.map(|stats| stats.mean.len() + stats.rstd.len());
        let floats = [
            &self.heads,
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
    pub(crate) fn bytes(rows: usize, shape: &ModelShape) -> u64 {
        let widths = [
            shape.normed_heads() * (shape.head_dim + 2),
            shape.qkv_width(),
            shape.n_head,
            shape.attention_width(),
            shape.width,
            shape.up_width(),
        ];
        4 * (rows * (4 + widths.iter().sum::<usize>())) as u64
    }
}

/// Buffers that every block uses in turn.
pub(crate) struct Workspace {
    /// (n, max(C, H·D)): the output of a norm, recomputed in the backward pass.
    pub(crate) normed: Vec<f32>,
    /// (n, F): the output of the activation function, recomputed in the backward pass.
    hidden: Vec<f32>,
    /// (n, F).
    d_hidden: Vec<f32>,
    /// (n, C).
    pub(crate) d_normed: Vec<f32>,
    /// (n, (H + 2·KV)·D).
    d_qkv: Vec<f32>,
    pub(crate) linear: LinearScratch,
}

impl Workspace {
    /// Buffers for `rows` token rows at a time; `cut`: these are parts of a micro-batch.
    pub(crate) fn new(
        rows: usize,
        shape: &ModelShape,
        compute: Compute,
        training: bool,
        cut: bool,
    ) -> Self {
        let back = if training { rows } else { 0 };
        Workspace {
            normed: vec![0.0; rows * normed_width(shape)],
            hidden: vec![0.0; rows * shape.ff_width],
            d_hidden: vec![0.0; back * shape.ff_width],
            d_normed: vec![0.0; back * shape.width],
            d_qkv: vec![0.0; back * shape.qkv_width()],
            linear: LinearScratch::new(shape, rows, compute, training, cut),
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        let all = [
            &self.normed,
            &self.hidden,
            &self.d_hidden,
            &self.d_normed,
            &self.d_qkv,
        ];
        4 * all.iter().map(|v| v.len()).sum::<usize>() as u64 + self.linear.allocated_bytes()
    }

    /// Bytes of [`Workspace::new`].
    pub(crate) fn bytes(
        rows: usize,
        shape: &ModelShape,
        compute: Compute,
        training: bool,
        cut: bool,
    ) -> u64 {
        let back = if training { rows } else { 0 };
        let floats = rows * (normed_width(shape) + shape.ff_width)
            + back * (shape.ff_width + shape.width + shape.qkv_width());
        4 * floats as u64 + LinearScratch::bytes(shape, rows, compute, training, cut)
    }
}

/// Elements of a row of `normed`.
fn normed_width(shape: &ModelShape) -> usize {
    shape.width.max(shape.attention_width())
}

/// `hidden` (n, F) = the activation function of `up` (n, U), F = `ff_width`.
pub(crate) fn activate(
    isa: Isa,
    kind: FeedForward,
    up: &[f32],
    ff_width: usize,
    hidden: &mut [f32],
) {
    match kind {
        FeedForward::Gelu => kernels::gelu(isa, up, hidden),
        FeedForward::Swiglu => kernels::swiglu(isa, up, ff_width, hidden),
    }
}

impl Block {
    /// `y` (n, C) = block of `x` (n, C); fills `kept` for the backward pass, which is all that
    /// is done without a `y`.
    pub(crate) fn forward(
        &self,
        isa: Isa,
        pieces: Pieces,
        attention: &Attention<'_>,
        x: &[f32],
        kept: &mut BlockActivations,
        y: Option<&mut [f32]>,
        ws: &mut Workspace,
    ) {
        let n = pieces.rows();
        let width = x.len() / n;
        self.mix(isa, pieces, attention, x, kept, ws);
        let mixed = &kept.attention[..n * self.attention_out.weight.cols()];
        let middle = &mut kept.middle[..n * width];
        middle.copy_from_slice(x);
        self.attention_out
            .forward(isa, pieces, mixed, middle, true, &mut ws.linear);

        let up = &mut kept.up[..n * self.up.weight.rows()];
        self.raise(isa, pieces, middle, up, &mut kept.norm2, ws);
        let Some(y) = y else {
            return;
        };
        let hidden = &mut ws.hidden[..n * self.down.weight.cols()];
        activate(isa, self.feed_forward, up, self.down.weight.cols(), hidden);
        y.copy_from_slice(middle);
        self.down
            .forward(isa, pieces, hidden, y, true, &mut ws.linear);
    }

    /// Queries, keys and values of `x` (n, C), and what attention makes of them.
    fn mix(
        &self,
        isa: Isa,
        pieces: Pieces,
        attention: &Attention<'_>,
        x: &[f32],
        kept: &mut BlockActivations,
        ws: &mut Workspace,
    ) {
        let n = pieces.rows();
        let normed = &mut ws.normed[..x.len()];
        let qkv = &mut kept.qkv[..n * self.qkv.weight.rows()];
        let mixed = &mut kept.attention[..n * self.attention_out.weight.cols()];
        let lse = &mut kept.lse[..n * attention.shape.heads];
        self.norm1.forward(isa, x, normed, &mut kept.norm1);
        self.qkv
            .forward(isa, pieces, normed, qkv, false, &mut ws.linear);
        if let Some(norms) = &self.head_norms {
            let at = HeadPlaces::new(attention.shape, n);
            let (queries, keys) = kept.heads.split_at_mut(at.len(Heads::Queries));
            for (heads, norm, unnormed, stats) in [
                (Heads::Queries, &norms.query, queries, &mut kept.query_norm),
                (Heads::Keys, &norms.key, keys, &mut kept.key_norm),
            ] {
                let unnormed = &mut unnormed[..at.len(heads)];
                at.gather(heads, qkv, unnormed);
                let normed = &mut ws.normed[..unnormed.len()];
                norm.forward(isa, unnormed, normed, stats);
                at.scatter(heads, normed, qkv);
            }
        }
        self.of_positions(attention).forward(isa, qkv, mixed, lse);
    }

    /// The same without positions where the block has none.
    fn of_positions<'a>(&self, attention: &Attention<'a>) -> Attention<'a> {
        Attention {
            rope: attention.rope.filter(|_| self.turned),
            ..*attention
        }
    }

    /// `up` (n, U) of the middle of the block (n, C).
    fn raise(
        &self,
        isa: Isa,
        pieces: Pieces,
        middle: &[f32],
        up: &mut [f32],
        stats: &mut NormStats,
        ws: &mut Workspace,
    ) {
        let normed = &mut ws.normed[..middle.len()];
        self.norm2.forward(isa, middle, normed, stats);
        self.up
            .forward(isa, pieces, normed, up, false, &mut ws.linear);
    }

    /// What enters the second matrix of a half, for the residual stream `x` (n, C) before it.
    pub(crate) fn second_input<'b>(
        &self,
        isa: Isa,
        half: Half,
        pieces: Pieces,
        attention: &Attention<'_>,
        x: &[f32],
        kept: &'b mut BlockActivations,
        ws: &'b mut Workspace,
    ) -> &'b [f32] {
        let n = pieces.rows();
        match half {
            Half::Attention => {
                self.mix(isa, pieces, attention, x, kept, ws);
                &kept.attention[..n * self.attention_out.weight.cols()]
            }
            Half::FeedForward => {
                let up = &mut kept.up[..n * self.up.weight.rows()];
                self.raise(isa, pieces, x, up, &mut kept.norm2, ws);
                let ff_width = self.down.weight.cols();
                let hidden = &mut ws.hidden[..n * ff_width];
                activate(isa, self.feed_forward, up, ff_width, hidden);
                hidden
            }
        }
    }

    /// The norm that a half begins with.
    pub(crate) fn norm(&self, half: Half) -> &Norm {
        match half {
            Half::Attention => &self.norm1,
            Half::FeedForward => &self.norm2,
        }
    }

    /// The matrix that a half ends with.
    pub(crate) fn second(&self, half: Half) -> &Linear {
        match half {
            Half::Attention => &self.attention_out,
            Half::FeedForward => &self.down,
        }
    }

    /// Turns `dx` (n, C) from the gradient of the block's output into that of its input `x`,
    /// casting votes on the way. Returns false if a weight gradient was not finite.
    pub(crate) fn backward(
        &mut self,
        ctx: &StepContext<'_>,
        pieces: Pieces,
        attention: &Attention<'_>,
        x: &[f32],
        kept: &mut BlockActivations,
        dx: &mut [f32],
        ws: &mut Workspace,
    ) -> Result<bool, OptimError> {
        let isa = ctx.isa;
        let n = pieces.rows();
        let width = x.len() / n;
        let ff_width = self.down.weight.cols();
        let normed = &mut ws.normed[..n * width];
        let hidden = &mut ws.hidden[..n * ff_width];
        let d_hidden = &mut ws.d_hidden[..n * ff_width];
        let d_normed = &mut ws.d_normed[..n * width];
        let d_qkv = &mut ws.d_qkv[..n * self.qkv.weight.rows()];
        let middle = &kept.middle[..n * width];
        let up = &mut kept.up[..n * self.up.weight.rows()];

        activate(isa, self.feed_forward, up, ff_width, hidden);
        let mut finite = self
            .down
            .backward(ctx, pieces, hidden, dx, d_hidden, &mut ws.linear)?;
        let d_up = match self.feed_forward {
            FeedForward::Gelu => {
                kernels::gelu_backward(isa, up, d_hidden);
                &*d_hidden
            }
            // A gate has no room in `d_hidden`; `up` is not needed any more.
            FeedForward::Swiglu => {
                kernels::swiglu_backward(isa, up, ff_width, d_hidden);
                &*up
            }
        };
        self.norm2.forward(isa, middle, normed, &mut kept.norm2);
        finite &= self
            .up
            .backward(ctx, pieces, normed, d_up, d_normed, &mut ws.linear)?;
        self.norm2
            .backward(isa, pieces, d_normed, middle, &kept.norm2, dx);

        let attention_width = self.attention_out.weight.cols();
        let mixed = &kept.attention[..n * attention_width];
        let d_mixed = &mut ws.normed[..n * attention_width];
        finite &= self
            .attention_out
            .backward(ctx, pieces, mixed, dx, d_mixed, &mut ws.linear)?;
        let qkv = &kept.qkv[..n * self.qkv.weight.rows()];
        let lse = &kept.lse[..n * attention.shape.heads];
        self.of_positions(attention)
            .backward(isa, (qkv, mixed, lse), d_mixed, d_qkv);
        if let Some(norms) = &mut self.head_norms {
            let at = HeadPlaces::new(attention.shape, n);
            let (queries, keys) = kept.heads.split_at(at.len(Heads::Queries));
            for (heads, norm, unnormed, stats) in [
                (Heads::Queries, &mut norms.query, queries, &kept.query_norm),
                (Heads::Keys, &mut norms.key, keys, &kept.key_norm),
            ] {
                let len = at.len(heads);
                // Neither is needed any more.
                let (d_heads, d_unnormed) = (&mut ws.normed[..len], &mut kept.qkv[..len]);
                at.gather(heads, d_qkv, d_heads);
                d_unnormed.fill(0.0);
                let pieces = Pieces {
                    piece_rows: pieces.piece_rows * at.count(heads),
                    ..pieces
                };
                norm.backward(isa, pieces, d_heads, &unnormed[..len], stats, d_unnormed);
                at.scatter(heads, d_unnormed, d_qkv);
            }
        }
        let normed = &mut ws.normed[..n * width];
        self.norm1.forward(isa, x, normed, &mut kept.norm1);
        finite &= self
            .qkv
            .backward(ctx, pieces, normed, d_qkv, d_normed, &mut ws.linear)?;
        self.norm1
            .backward(isa, pieces, d_normed, x, &kept.norm1, dx);
        Ok(finite)
    }

    pub(crate) fn params<'a>(&'a self, to: &mut Vec<Param<'a>>) {
        self.norm1.params(to);
        self.qkv.params(to);
        if let Some(norms) = &self.head_norms {
            norms.query.params(to);
            norms.key.params(to);
        }
        self.attention_out.params(to);
        self.norm2.params(to);
        self.up.params(to);
        self.down.params(to);
    }

    pub(crate) fn each_matrix_mut(&mut self, each: &mut dyn FnMut(&mut Weight)) {
        let Block {
            qkv,
            attention_out,
            up,
            down,
            ..
        } = self;
        for linear in [qkv, attention_out, up, down] {
            each(&mut linear.weight);
        }
    }

    pub(crate) fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>)) {
        self.norm1.for_each_mut(each);
        self.qkv.for_each_mut(each);
        if let Some(norms) = &mut self.head_norms {
            norms.query.for_each_mut(each);
            norms.key.for_each_mut(each);
        }
        self.attention_out.for_each_mut(each);
        self.norm2.for_each_mut(each);
        self.up.for_each_mut(each);
        self.down.for_each_mut(each);
    }
}
