//! Self-attention, causal or over whole sequences, that never holds the (T, T) scores: forward with a running softmax over
//! tiles of 64 × 64, backward from recomputed probabilities (FlashAttention, Dao et al. 2022).
//!
//! A task is one head of one sequence (forward) or one key/value head of one sequence (backward),
//! done by one thread in a fixed order: the same bits for any number of threads. The tiles live
//! on the stack of the task. Attention over a cache is in [`cached`].

mod cached;

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use crate::dense::{View, multiply, multiply_into};
use crate::grid::dot;
use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes, exp, ln};

pub use cached::{CacheKind, KvCache, attention_cached};

/// Rows and columns of a tile of scores.
pub(crate) const TILE: usize = 64;

/// The sizes of an attention over whole sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences, B.
    pub batch: usize,
    /// Tokens of a sequence, T.
    pub time: usize,
    /// Query heads, H: a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads, KV; `heads / kv_heads` query heads share one.
    pub kv_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
    /// Whether a token sees only itself and what is before it, else the whole sequence.
    pub causal: bool,
}

impl AttentionShape {
    /// Elements of a row of `qkv`: (H + 2·KV)·D.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Elements of a row of the output: H·D.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn tokens(&self) -> usize {
        self.batch * self.time
    }

    /// What scores are multiplied by.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn tiles(&self) -> usize {
        self.time.div_ceil(TILE)
    }

    /// Tiles of keys that the queries of a tile see.
    fn key_tiles(&self, query_tile: usize) -> Range<usize> {
        let last = if self.causal {
            query_tile + 1
        } else {
            self.tiles()
        };
        0..last
    }

    /// Whether the causal mask cuts through a tile of scores.
    fn is_cut(&self, query_tile: usize, key_tile: usize) -> bool {
        self.causal && key_tile == query_tile
    }

    /// Tokens of a tile.
    fn tile(&self, tile: usize) -> Range<usize> {
        tile * TILE..((tile + 1) * TILE).min(self.time)
    }

    fn assert_heads(&self) {
        let &AttentionShape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads) && head_dim > 0,
            "{heads} heads of {head_dim} over {kv_heads} key/value heads"
        );
    }
}

/// out = softmax(mask(q kᵀ / √D)) v for every head, each token seeing itself and what is before,
/// or the whole sequence.
///
/// `qkv` is (B, T, (H + 2·KV)·D) with rows [query heads | key heads | value heads], `out`
/// (B, T, H·D), `lse` (B, H, T): the logarithm of the softmax's denominator, for the backward pass.
///
/// # Panics
/// If a length does not match the shape.
pub fn attention(isa: Isa, shape: &AttentionShape, qkv: &[f32], out: &mut [f32], lse: &mut [f32]) {
    shape.assert_heads();
    assert_eq!(
        qkv.len(),
        shape.tokens() * shape.qkv_width(),
        "qkv is (B, T, (H + 2 KV) D)"
    );
    assert_eq!(
        out.len(),
        shape.tokens() * shape.width(),
        "out is (B, T, H D)"
    );
    assert_eq!(lse.len(), shape.tokens() * shape.heads, "lse is (B, H, T)");
    if shape.time == 0 {
        return;
    }
    let out = SharedRows::new(out, shape.width());
    lse.par_chunks_mut(shape.time)
        .enumerate()
        .for_each(|(task, lse)| {
            let head = Head::new(shape, qkv, task / shape.heads, task % shape.heads);
            for (queries, lse) in (0..shape.tiles()).zip(lse.chunks_mut(TILE)) {
                forward_tile(isa, &head, &out, queries, lse);
            }
        });
}

/// The gradient of [`attention`]: `dqkv`, laid out like `qkv`, is overwritten.
///
/// `out` and `lse` are what the forward pass returned, `dout` (B, T, H·D) is the gradient of `out`.
///
/// # Panics
/// If a length does not match the shape.
pub fn attention_backward(
    isa: Isa,
    shape: &AttentionShape,
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    dqkv: &mut [f32],
) {
    shape.assert_heads();
    assert_eq!(
        qkv.len(),
        shape.tokens() * shape.qkv_width(),
        "qkv is (B, T, (H + 2 KV) D)"
    );
    assert_eq!(
        out.len(),
        shape.tokens() * shape.width(),
        "out is (B, T, H D)"
    );
    assert_eq!(lse.len(), shape.tokens() * shape.heads, "lse is (B, H, T)");
    assert_eq!(dout.len(), out.len(), "dout is (B, T, H D)");
    assert_eq!(dqkv.len(), qkv.len(), "dqkv is like qkv");
    if shape.time == 0 {
        return;
    }
    let group = shape.heads / shape.kv_heads;
    let dqkv = SharedRows::new(dqkv, shape.qkv_width());
    (0..shape.batch * shape.kv_heads)
        .into_par_iter()
        .for_each(|task| {
            let (sequence, kv_head) = (task / shape.kv_heads, task % shape.kv_heads);
            for head in kv_head * group..(kv_head + 1) * group {
                let first_of_group = head == kv_head * group;
                let lse = &lse[(sequence * shape.heads + head) * shape.time..][..shape.time];
                let head = Head::new(shape, qkv, sequence, head);
                for (queries, lse) in (0..shape.tiles()).zip(lse.chunks(TILE)) {
                    backward_tile(isa, &head, (out, lse, dout), &dqkv, queries, first_of_group);
                }
            }
        });
}

/// One head of one sequence, within `qkv`.
struct Head<'a> {
    shape: &'a AttentionShape,
    qkv: &'a [f32],
    /// First row of the sequence in `qkv`, `out` and their gradients.
    first_row: usize,
    /// First columns of the head in a row of `qkv`; `query` holds for `out` as well.
    query: usize,
    key: usize,
    value: usize,
}

impl<'a> Head<'a> {
    fn new(shape: &'a AttentionShape, qkv: &'a [f32], sequence: usize, head: usize) -> Self {
        let kv_head = head / (shape.heads / shape.kv_heads);
        Head {
            shape,
            qkv,
            first_row: sequence * shape.time,
            query: head * shape.head_dim,
            key: (shape.heads + kv_head) * shape.head_dim,
            value: (shape.heads + shape.kv_heads + kv_head) * shape.head_dim,
        }
    }

    /// The rows of `qkv` from `token` on, from the column `column` on.
    fn view(&self, token: usize, column: usize) -> View<'a> {
        let stride = self.shape.qkv_width();
        View::rows(
            &self.qkv[(self.first_row + token) * stride + column..],
            stride,
        )
    }

    /// The head's part of row `token` of a buffer laid out like `out`.
    fn out_row<'b>(&self, buffer: &'b [f32], token: usize) -> &'b [f32] {
        let start = (self.first_row + token) * self.shape.width() + self.query;
        &buffer[start..start + self.shape.head_dim]
    }
}

/// Scores of up to 64 queries (rows) against up to 64 keys.
#[repr(align(64))]
struct Tile([[f32; TILE]; TILE]);

impl Tile {
    fn new() -> Self {
        Tile([[0.0; TILE]; TILE])
    }

    fn view(&self) -> View<'_> {
        View::rows(self.0.as_flattened(), TILE)
    }
}

/// Columns of row `row` that the causal mask leaves.
#[inline(always)]
fn visible(row: usize, cols: usize, diagonal: bool) -> usize {
    if diagonal { row + 1 } else { cols }
}

fn forward_tile(
    isa: Isa,
    head: &Head<'_>,
    out: &SharedRows<'_>,
    query_tile: usize,
    lse: &mut [f32],
) {
    let shape = head.shape;
    let dim = shape.head_dim;
    let queries = shape.tile(query_tile);
    let rows = queries.len();
    let mut scores = Tile::new();
    let mut softmax = Softmax::new();
    for key_tile in shape.key_tiles(query_tile) {
        let keys = shape.tile(key_tile);
        let cols = keys.len();
        let q = head.view(queries.start, head.query);
        let k = head.view(keys.start, head.key).transposed();
        multiply(
            (rows, cols, dim),
            q,
            k,
            scores.0.as_flattened_mut(),
            TILE,
            false,
        );

        let (tile, diagonal) = (&mut scores.0[..rows], shape.is_cut(query_tile, key_tile));
        dispatch!(
            isa,
            softmax_tile(
                tile,
                |r| visible(r, cols, diagonal),
                shape.scale(),
                &mut softmax
            )
        );
        if key_tile > 0 {
            // SAFETY: this task alone uses this head's columns of this sequence's rows.
            unsafe { scale_rows(isa, out, head, &queries, &softmax.rescale) };
        }
        let v = head.view(keys.start, head.value);
        let (to, stride) = out.block(head.first_row + queries.start, rows, head.query, dim);
        // SAFETY: `block` checked the bounds; this task alone uses these columns of these rows.
        unsafe {
            multiply_into(
                (rows, dim, cols),
                scores.view(),
                v,
                to,
                stride,
                key_tile > 0,
            )
        };
    }
    for ((lse, &max), sum) in lse.iter_mut().zip(&softmax.max).zip(&mut softmax.sum) {
        *lse = max + ln(*sum);
        *sum = 1.0 / *sum;
    }
    // SAFETY: this task alone uses this head's columns of this sequence's rows.
    unsafe { scale_rows(isa, out, head, &queries, &softmax.sum) };
}

/// The running softmax of a tile's rows.
struct Softmax {
    /// Largest scaled score so far.
    max: [f32; TILE],
    /// Sum of exp(score − max).
    sum: [f32; TILE],
    /// What the newest maximum multiplies older sums by.
    rescale: [f32; TILE],
}

impl Softmax {
    fn new() -> Self {
        Softmax {
            max: [f32::NEG_INFINITY; TILE],
            sum: [0.0; TILE],
            rescale: [0.0; TILE],
        }
    }
}

/// Turns scores into exp(scale · score − running maximum), zero from column `visible(row)` on.
#[inline(always)]
fn softmax_tile<L: Lanes>(
    lanes: L,
    scores: &mut [[f32; TILE]],
    visible: impl Fn(usize) -> usize,
    scale: f32,
    softmax: &mut Softmax,
) {
    for (r, row) in scores.iter_mut().enumerate() {
        let used = mask_row(lanes, row, visible(r));
        if used == 0 {
            softmax.rescale[r] = 0.0;
            continue;
        }
        let vectors = &row.as_chunks::<LANES>().0[..used];
        let mut max = lanes.load(&vectors[0]);
        for x in &vectors[1..] {
            max = lanes.max(lanes.load(x), max);
        }
        let before = softmax.max[r];
        let tile_max = lanes.max_lane(max) * scale;
        let max = if before > tile_max { before } else { tile_max };
        softmax.max[r] = max;
        softmax.rescale[r] = before - max;
    }
    let rescale = softmax.rescale.as_chunks_mut::<LANES>().0;
    for x in &mut rescale[..scores.len().div_ceil(LANES)] {
        lanes.store(exp(lanes, lanes.load(x)), x);
    }
    for (r, row) in scores.iter_mut().enumerate() {
        let used = visible(r).div_ceil(LANES);
        let (vectors, rest) = row.as_chunks_mut::<LANES>().0.split_at_mut(used);
        let max = lanes.splat(softmax.max[r]);
        let mut sum = lanes.zero();
        for x in vectors {
            let score = lanes.mul(lanes.load(x), lanes.splat(scale));
            let p = exp(lanes, lanes.sub(score, max));
            lanes.store(p, x);
            sum = lanes.add(sum, p);
        }
        rest.as_flattened_mut().fill(0.0);
        softmax.sum[r] = softmax.sum[r] * softmax.rescale[r] + lanes.sum(sum);
    }
}

/// Hides the columns from `visible` on in the vectors that have visible ones; returns how many.
#[inline(always)]
fn mask_row<L: Lanes>(lanes: L, row: &mut [f32; TILE], visible: usize) -> usize {
    /// A window of it is infinite where a lane is visible and minus infinite where not.
    static EDGE: [f32; 2 * LANES] = {
        let mut edge = [f32::INFINITY; 2 * LANES];
        let mut lane = LANES;
        while lane < 2 * LANES {
            edge[lane] = f32::NEG_INFINITY;
            lane += 1;
        }
        edge
    };
    let used = visible.div_ceil(LANES);
    if used == 0 {
        return 0;
    }
    let last = &mut row.as_chunks_mut::<LANES>().0[used - 1];
    if let Some(edge) = EDGE[used * LANES - visible..].first_chunk() {
        lanes.store(lanes.min(lanes.load(last), lanes.load(edge)), last);
    }
    used
}

/// Multiplies the head's part of each row of `queries` by its factor.
///
/// # Safety
/// The calling task alone must use the head's columns of these rows.
unsafe fn scale_rows(
    isa: Isa,
    out: &SharedRows<'_>,
    head: &Head<'_>,
    queries: &Range<usize>,
    factors: &[f32; TILE],
) {
    for (token, &factor) in queries.clone().zip(factors) {
        // SAFETY: the caller's promise.
        let row = unsafe { out.row(head.first_row + token, head.query, head.shape.head_dim) };
        dispatch!(isa, scale_row(row, factor));
    }
}

#[inline(always)]
fn scale_row<L: Lanes>(lanes: L, row: &mut [f32], factor: f32) {
    let factor = lanes.splat(factor);
    let (vectors, tail) = row.as_chunks_mut::<LANES>();
    for x in vectors {
        lanes.store(lanes.mul(lanes.load(x), factor), x);
    }
    if !tail.is_empty() {
        lanes.store_tail(lanes.mul(lanes.load_tail(tail), factor), tail);
    }
}

/// Gradients from the tile of queries `query_tile`: sets dq, adds to dk and dv, which the first
/// head of a group sets where it meets them first: on the diagonal, or in the first tile.
fn backward_tile(
    isa: Isa,
    head: &Head<'_>,
    (out, lse, dout): (&[f32], &[f32], &[f32]),
    dqkv: &SharedRows<'_>,
    query_tile: usize,
    first_of_group: bool,
) {
    let shape = head.shape;
    let dim = shape.head_dim;
    let queries = shape.tile(query_tile);
    let rows = queries.len();
    let mut rows_dot = [0.0; TILE];
    for (token, sum) in queries.clone().zip(&mut rows_dot) {
        let (o, d) = (head.out_row(out, token), head.out_row(dout, token));
        *sum = dot(isa, o, d);
    }
    let q = head.view(queries.start, head.query);
    let dout_start = (head.first_row + queries.start) * shape.width() + head.query;
    let d_out = View::rows(&dout[dout_start..], shape.width());
    let (mut p, mut ds) = (Tile::new(), Tile::new());
    for key_tile in shape.key_tiles(query_tile) {
        let keys = shape.tile(key_tile);
        let cols = keys.len();
        let diagonal = shape.is_cut(query_tile, key_tile);
        let k = head.view(keys.start, head.key);
        let v = head.view(keys.start, head.value);
        multiply(
            (rows, cols, dim),
            q,
            k.transposed(),
            p.0.as_flattened_mut(),
            TILE,
            false,
        );
        multiply(
            (rows, cols, dim),
            d_out,
            v.transposed(),
            ds.0.as_flattened_mut(),
            TILE,
            false,
        );

        let (p_rows, ds_rows) = (&mut p.0[..rows], &mut ds.0[..rows]);
        let of_rows = (lse, &rows_dot[..rows]);
        dispatch!(
            isa,
            backward_scores(p_rows, ds_rows, cols, diagonal, shape.scale(), of_rows)
        );

        let met_first = if shape.causal {
            key_tile == query_tile
        } else {
            query_tile == 0
        };
        let add_to_keys = !(first_of_group && met_first);
        let block = |token, rows, column| dqkv.block(head.first_row + token, rows, column, dim);
        let (dq, stride) = block(queries.start, rows, head.query);
        let (dk, _) = block(keys.start, cols, head.key);
        let (dv, _) = block(keys.start, cols, head.value);
        let (p, ds) = (p.view(), ds.view());
        // SAFETY: `block` checked the bounds; this task alone uses the columns of this key/value
        // head and of its query heads, in the rows of this sequence.
        unsafe {
            multiply_into((rows, dim, cols), ds, k, dq, stride, key_tile > 0);
            multiply_into(
                (cols, dim, rows),
                ds.transposed(),
                q,
                dk,
                stride,
                add_to_keys,
            );
            multiply_into(
                (cols, dim, rows),
                p.transposed(),
                d_out,
                dv,
                stride,
                add_to_keys,
            );
        }
    }
}

/// Turns scores `p` into probabilities and their gradients `ds` into those of q kᵀ.
#[inline(always)]
fn backward_scores<L: Lanes>(
    lanes: L,
    p: &mut [[f32; TILE]],
    ds: &mut [[f32; TILE]],
    cols: usize,
    diagonal: bool,
    scale: f32,
    (lse, rows_dot): (&[f32], &[f32]),
) {
    let by = lanes.splat(scale);
    for (r, ((p, ds), (&lse, &dot))) in p
        .iter_mut()
        .zip(ds)
        .zip(lse.iter().zip(rows_dot))
        .enumerate()
    {
        let used = mask_row(lanes, p, visible(r, cols, diagonal));
        let (p, p_rest) = p.as_chunks_mut::<LANES>().0.split_at_mut(used);
        let (ds, ds_rest) = ds.as_chunks_mut::<LANES>().0.split_at_mut(used);
        for (p, ds) in p.iter_mut().zip(ds) {
            let score = lanes.mul(lanes.load(p), by);
            let probability = exp(lanes, lanes.sub(score, lanes.splat(lse)));
            lanes.store(probability, p);
            let centred = lanes.sub(lanes.load(ds), lanes.splat(dot));
            lanes.store(lanes.mul(lanes.mul(probability, centred), by), ds);
        }
        p_rest.as_flattened_mut().fill(0.0);
        ds_rest.as_flattened_mut().fill(0.0);
    }
}

/// Rows that several tasks write at once, each its own columns or rows.
struct SharedRows<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: plain memory; every access goes through methods whose callers promise that it is theirs.
unsafe impl Send for SharedRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedRows<'_> {}

impl<'a> SharedRows<'a> {
    fn new(buffer: &'a mut [f32], width: usize) -> Self {
        let rows = buffer.len() / width;
        SharedRows {
            start: buffer.as_mut_ptr(),
            rows,
            width,
            buffer: PhantomData,
        }
    }

    /// Where `rows` rows from `row` on begin in column `column`, and their stride; checks that
    /// `cols` columns of them lie inside.
    fn block(&self, row: usize, rows: usize, column: usize, cols: usize) -> (*mut f32, usize) {
        assert!(
            row + rows <= self.rows && column + cols <= self.width,
            "a block of the buffer"
        );
        (
            self.start.wrapping_add(row * self.width + column),
            self.width,
        )
    }

    /// # Safety
    /// Nobody else may use these columns of this row while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the callers keep what they take apart")]
    unsafe fn row(&self, row: usize, column: usize, cols: usize) -> &mut [f32] {
        let (start, _) = self.block(row, 1, column, cols);
        // SAFETY: inside the buffer, by `block`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start, cols) }
    }
}

#[cfg(test)]
mod tests;
