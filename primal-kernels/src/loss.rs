//! Cross-entropy over a vocabulary in tiles: the (n, V) logits never exist at once.
//!
//! The forward pass keeps a running maximum and sum of exponentials a row; the backward pass
//! computes the logits of a tile anew and turns them into their gradients. With scratch for it,
//! products with a head on the grid are computed in int8.

use std::ops::Range;

use primal_lut::QuantMatrix;
use rayon::prelude::*;

use crate::dense::{matmul_nn, matmul_nt};
use crate::int8::{Int8Rows, QuantisedRows, int8_matmul_nn, int8_matmul_nt};
use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes, exp, ln};
use crate::rows::{MatrixRows, fill_rows};

/// Vocabulary rows of a tile.
pub const VOCAB_TILE: usize = 512;

/// The target of a row that carries no loss.
pub const IGNORED: u32 = u32::MAX;

/// Rows of a task.
const CHUNK_ROWS: usize = 16;

/// The tiles of a vocabulary of `vocab` rows, in order.
pub fn vocab_tiles(vocab: usize) -> impl Iterator<Item = Range<usize>> {
    (0..vocab)
        .step_by(VOCAB_TILE)
        .map(move |start| start..(start + VOCAB_TILE).min(vocab))
}

/// Buffers of the cross-entropy, for up to as many rows as they were made for.
#[derive(Debug, Clone)]
pub struct CrossEntropyScratch {
    /// (max_rows, tile), logits, then their gradients.
    logits: Vec<f32>,
    /// (tile, C), decoded rows of the head, where products are in float.
    head: Vec<f32>,
    /// Whether a head on the grid is multiplied in int8.
    int8: bool,
    /// (max_rows, C), x of the piece at hand.
    x: QuantisedRows,
    /// (max_rows, tile), gradients of logits.
    gradients: QuantisedRows,
    /// (max_rows) each: the running maximum, the sum of exponentials.
    running: Vec<Running>,
}

impl CrossEntropyScratch {
    /// Buffers for `max_rows` rows of `width` against `vocab` tokens; `int8`: for products in
    /// int8 with a head on the grid.
    pub fn new(max_rows: usize, vocab: usize, width: usize, int8: bool) -> Self {
        let tile = vocab.min(VOCAB_TILE);
        let int8_rows = if int8 { max_rows } else { 0 };
        CrossEntropyScratch {
            logits: vec![0.0; max_rows * tile],
            head: vec![0.0; if int8 { 0 } else { tile * width }],
            int8,
            x: QuantisedRows::new(int8_rows, width),
            gradients: QuantisedRows::new(int8_rows, tile),
            running: vec![Running::START; max_rows],
        }
    }

    /// Bytes held.
    pub fn allocated_bytes(&self) -> u64 {
        let floats = self.logits.len() + self.head.len();
        (4 * floats + size_of::<Running>() * self.running.len()) as u64
            + self.x.allocated_bytes()
            + self.gradients.allocated_bytes()
    }

    /// What [`CrossEntropyScratch::new`] allocates.
    pub fn bytes(max_rows: usize, vocab: usize, width: usize, int8: bool) -> u64 {
        let tile = vocab.min(VOCAB_TILE);
        let logits = (4 * max_rows * tile + size_of::<Running>() * max_rows) as u64;
        logits
            + if int8 {
                QuantisedRows::bytes(max_rows, width) + QuantisedRows::bytes(max_rows, tile)
            } else {
                4 * (tile * width) as u64
            }
    }

    /// Takes `x` (n, C), against whose head the tiles of a backward pass come next.
    pub fn start(&mut self, isa: Isa, x: &[f32], width: usize) {
        if self.int8 {
            self.x.quantise(isa, x, width, None);
        }
    }

    /// Holds what the integer kernels take, `None` where a product goes by float.
    fn int8_head<'h>(&self, head: &'h dyn MatrixRows) -> Option<&'h QuantMatrix> {
        head.quant().filter(|matrix| {
            self.int8 && matrix.group() == matrix.cols() && matrix.int8_grid().is_some()
        })
    }

    /// Decodes the head's rows `tile` into the scratch.
    fn decode(&mut self, isa: Isa, head: &dyn MatrixRows, tile: Range<usize>) {
        let len = tile.len() * head.cols();
        if self.head.len() < len {
            // Only for a head that is float, or has groups, in a pass that computes in int8.
            self.head.resize(len, 0.0);
        }
        fill_rows(isa, head, tile, &mut self.head[..len]);
    }
}

/// A softmax under way.
#[derive(Debug, Clone, Copy)]
struct Running {
    max: f32,
    /// Sum of exp(logit − max).
    sum: f32,
}

impl Running {
    const START: Running = Running {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };
}

/// losses = −ln of the target's share of softmax(x headᵀ) for every row, in nats; 0 where the
/// target is [`IGNORED`].
///
/// `x` is (n, C), `head` (V, C), `targets`, `losses` and `lse` (n); `lse` receives the logarithm
/// of the softmax's denominator, for the backward pass. Pieces of `piece_rows` rows give the same
/// bits alone or together.
///
/// # Panics
/// If a length does not match, a target is neither below V nor [`IGNORED`], or `scratch` is too
/// small.
pub fn cross_entropy_forward(
    isa: Isa,
    x: &[f32],
    head: &dyn MatrixRows,
    targets: &[u32],
    piece_rows: usize,
    losses: &mut [f32],
    lse: &mut [f32],
    scratch: &mut CrossEntropyScratch,
) {
    assert_targets(targets, head.rows());
    assert_eq!(losses.len(), targets.len(), "a loss a row");
    assert_eq!(lse.len(), targets.len(), "an lse a row");
    let n = targets.len();
    if n == 0 {
        return;
    }
    scratch.running[..n].fill(Running::START);
    scratch.start(isa, x, head.cols());
    losses.fill(0.0);
    for tile in vocab_tiles(head.rows()) {
        let width = tile.len();
        let start = tile.start;
        let (logits, running) = tile_logits(isa, x, head, tile, n, piece_rows, scratch);
        running
            .par_chunks_mut(CHUNK_ROWS)
            .zip(logits.par_chunks(CHUNK_ROWS * width))
            .zip(
                targets
                    .par_chunks(CHUNK_ROWS)
                    .zip(losses.par_chunks_mut(CHUNK_ROWS)),
            )
            .for_each(|((running, logits), (targets, losses))| {
                let rows = logits.chunks_exact(width).zip(running.iter_mut());
                for ((row, running), (&target, loss)) in rows.zip(targets.iter().zip(losses)) {
                    *running = dispatch!(isa, softmax_row(row, *running));
                    if let Some(&logit) = row.get((target as usize).wrapping_sub(start)) {
                        *loss = -logit;
                    }
                }
            });
    }
    let rows = losses
        .iter_mut()
        .zip(lse)
        .zip(targets.iter().zip(&scratch.running));
    for ((loss, lse), (&target, running)) in rows {
        *lse = running.max + ln(running.sum);
        if target != IGNORED {
            *loss += *lse;
        }
    }
}

/// One tile of the backward pass of [`cross_entropy_forward`]: returns the gradients (n,
/// `tile.len()`) of the logits of the vocabulary rows `tile`, (softmax − one-hot) · `grad_scale`,
/// 0 in ignored rows; **adds** their share of the gradient of x to `dx` (n, C) if there is one.
///
/// Going over all [`vocab_tiles`] in order, `dx` zero before, makes the whole gradient; the
/// caller makes that of the head's rows from the returned one and `x`. Before the first tile,
/// [`CrossEntropyScratch::start`] takes `x`.
///
/// # Panics
/// As [`cross_entropy_forward`]; also if `tile` is longer than [`VOCAB_TILE`].
pub fn cross_entropy_backward_tile<'s>(
    isa: Isa,
    x: &[f32],
    head: &dyn MatrixRows,
    tile: Range<usize>,
    targets: &[u32],
    lse: &[f32],
    grad_scale: f32,
    piece_rows: usize,
    dx: Option<&mut [f32]>,
    scratch: &'s mut CrossEntropyScratch,
) -> &'s [f32] {
    assert_targets(targets, head.rows());
    assert_eq!(lse.len(), targets.len(), "an lse a row");
    let (n, width, start) = (targets.len(), tile.len(), tile.start);
    if n == 0 || width == 0 {
        return &[];
    }
    tile_logits(isa, x, head, tile.clone(), n, piece_rows, scratch);
    let logits = &mut scratch.logits[..n * width];
    logits
        .par_chunks_mut(CHUNK_ROWS * width)
        .zip(
            targets
                .par_chunks(CHUNK_ROWS)
                .zip(lse.par_chunks(CHUNK_ROWS)),
        )
        .for_each(|(logits, (targets, lse))| {
            let rows = logits.chunks_exact_mut(width).zip(targets.iter().zip(lse));
            for (row, (&target, &lse)) in rows {
                if target == IGNORED {
                    row.fill(0.0);
                    continue;
                }
                dispatch!(isa, softmax_gradient_row(row, lse, grad_scale));
                if let Some(logit) = row.get_mut((target as usize).wrapping_sub(start)) {
                    *logit -= grad_scale;
                }
            }
        });
    if let Some(dx) = dx {
        input_gradient(isa, head, tile, n, piece_rows, dx, scratch);
    }
    &scratch.logits[..n * width]
}

/// dx += the gradients of the logits in the scratch times the head's rows `tile`.
fn input_gradient(
    isa: Isa,
    head: &dyn MatrixRows,
    tile: Range<usize>,
    n: usize,
    piece_rows: usize,
    dx: &mut [f32],
    scratch: &mut CrossEntropyScratch,
) {
    let (width, cols) = (tile.len(), head.cols());
    if let Some(matrix) = scratch.int8_head(head) {
        let scales = &matrix.scales()[tile.clone()];
        let (gradients, logits) = (&mut scratch.gradients, &scratch.logits[..n * width]);
        gradients.quantise(isa, logits, width, Some(scales));
        if int8_matmul_nn(isa, gradients, matrix, tile.clone(), dx, true) {
            return;
        }
        scratch.decode(isa, head, tile);
    }
    let (logits, head_rows) = (&scratch.logits[..n * width], &scratch.head[..width * cols]);
    matmul_nn(logits, head_rows, dx, n, width, cols, piece_rows, true);
}

fn assert_targets(targets: &[u32], vocab: usize) {
    let wrong = targets
        .iter()
        .find(|&&target| target != IGNORED && target as usize >= vocab);
    assert!(
        wrong.is_none(),
        "target {wrong:?} of a vocabulary of {vocab}"
    );
}

/// Fills the scratch with the head's rows `tile` and the logits (n, tile) of `x` against them;
/// returns these and the running softmaxes.
fn tile_logits<'s>(
    isa: Isa,
    x: &[f32],
    head: &dyn MatrixRows,
    tile: Range<usize>,
    n: usize,
    piece_rows: usize,
    scratch: &'s mut CrossEntropyScratch,
) -> (&'s [f32], &'s mut [Running]) {
    let (width, cols) = (tile.len(), head.cols());
    assert!(
        n <= scratch.running.len() && n * width <= scratch.logits.len(),
        "scratch for {n} rows, a tile of {width} and width {cols}"
    );
    if let Some(matrix) = scratch.int8_head(head) {
        assert_eq!(
            (scratch.x.rows(), scratch.x.cols()),
            (n, cols),
            "x was taken"
        );
        let logits = &mut scratch.logits[..n * width];
        int8_matmul_nt(isa, &scratch.x, matrix, tile, logits, false);
    } else {
        scratch.decode(isa, head, tile);
        let head_rows = &scratch.head[..width * cols];
        let logits = &mut scratch.logits[..n * width];
        matmul_nt(x, head_rows, logits, n, width, cols, piece_rows, false);
    }
    (&scratch.logits[..n * width], &mut scratch.running[..n])
}

/// The running softmax after the logits `row`.
#[inline(always)]
fn softmax_row<L: Lanes>(lanes: L, row: &[f32], before: Running) -> Running {
    let (vectors, tail) = row.as_chunks::<LANES>();
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..tail.len()].copy_from_slice(tail);
    let last = lanes.load(&last);

    let mut max = last;
    for x in vectors {
        max = lanes.max(lanes.load(x), max);
    }
    let tile_max = lanes.max_lane(max);
    let max = if before.max > tile_max {
        before.max
    } else {
        tile_max
    };
    let shift = lanes.splat(max);
    let mut sum = lanes.zero();
    for x in vectors {
        sum = lanes.add(sum, exp(lanes, lanes.sub(lanes.load(x), shift)));
    }
    sum = lanes.add(sum, exp(lanes, lanes.sub(last, shift)));
    let mut rescale = [0.0; LANES];
    lanes.store(exp(lanes, lanes.splat(before.max - max)), &mut rescale);
    Running {
        max,
        sum: before.sum * rescale[0] + lanes.sum(sum),
    }
}

/// logit = exp(logit − lse) · `grad_scale`.
#[inline(always)]
fn softmax_gradient_row<L: Lanes>(lanes: L, row: &mut [f32], lse: f32, grad_scale: f32) {
    let (lse, by) = (lanes.splat(lse), lanes.splat(grad_scale));
    let (vectors, tail) = row.as_chunks_mut::<LANES>();
    for x in vectors {
        lanes.store(lanes.mul(exp(lanes, lanes.sub(lanes.load(x), lse)), by), x);
    }
    let last = exp(lanes, lanes.sub(lanes.load_tail(tail), lse));
    lanes.store_tail(lanes.mul(last, by), tail);
}

#[cfg(test)]
mod tests;
