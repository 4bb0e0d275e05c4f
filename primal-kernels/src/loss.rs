//! Cross-entropy over a vocabulary in tiles: the (n, V) logits never exist at once.
//!
//! The forward pass keeps a running maximum and sum of exponentials a row; the backward pass
//! computes the logits of a tile anew and turns them into their gradients.

use std::ops::Range;

use rayon::prelude::*;

use crate::dense::{matmul_nn, matmul_nt};
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
    /// (tile, C), decoded rows of the head.
    head: Vec<f32>,
    /// (max_rows) each: the running maximum, the sum of exponentials.
    running: Vec<Running>,
}

impl CrossEntropyScratch {
    /// Buffers for `max_rows` rows of `width` against `vocab` tokens.
    pub fn new(max_rows: usize, vocab: usize, width: usize) -> Self {
        let tile = vocab.min(VOCAB_TILE);
        CrossEntropyScratch {
            logits: vec![0.0; max_rows * tile],
            head: vec![0.0; tile * width],
            running: vec![Running::START; max_rows],
        }
    }

    /// Bytes held.
    pub fn allocated_bytes(&self) -> u64 {
        let floats = self.logits.len() + self.head.len();
        (4 * floats + size_of::<Running>() * self.running.len()) as u64
    }

    /// What [`CrossEntropyScratch::new`] allocates.
    pub fn bytes(max_rows: usize, vocab: usize, width: usize) -> u64 {
        let tile = vocab.min(VOCAB_TILE);
        (4 * (max_rows * tile + tile * width) + size_of::<Running>() * max_rows) as u64
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
/// caller makes that of the head's rows from the returned one and `x`.
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
    tile_logits(isa, x, head, tile, n, piece_rows, scratch);
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
        let head_rows = &scratch.head[..width * head.cols()];
        matmul_nn(
            logits,
            head_rows,
            dx,
            n,
            width,
            head.cols(),
            piece_rows,
            true,
        );
    }
    logits
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
        n <= scratch.running.len()
            && n * width <= scratch.logits.len()
            && width * cols <= scratch.head.len(),
        "scratch for {n} rows, a tile of {width} and width {cols}"
    );
    let head_rows = &mut scratch.head[..width * cols];
    fill_rows(isa, head, tile, head_rows);
    let logits = &mut scratch.logits[..n * width];
    matmul_nt(x, head_rows, logits, n, width, cols, piece_rows, false);
    (logits, &mut scratch.running[..n])
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
