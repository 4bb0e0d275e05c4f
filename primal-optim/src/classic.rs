//! Rule `classic`: the original project's rule, kept as a baseline (its history knows it as
//! "poltergeist").
//!
//! A gradient votes −sign(g) where |g| > mean + k·std of its matrix; the micro-batches' votes are
//! summed; a weight flips by the sign of the sum with probability clamp(p/|s|, 1e-4, 0.05); every
//! step starts from nothing.

use std::ops::Range;

use primal_kernels::{GradientSizes, VoteRng, cast_classic, count_classic_row};
use primal_lut::QuantMatrix;

use crate::StepContext;

/// Random stream of the flips.
pub const FLIP_STREAM: u8 = 2;

#[derive(Clone, Debug)]
pub(crate) struct Classic {
    /// (rows, cols) f32: the threshold needs the mean and spread of the whole matrix first.
    pub(crate) grad: Vec<f32>,
    /// (rows, cols) i16.
    pub(crate) votes: Vec<i16>,
    cols: usize,
}

impl Classic {
    pub(crate) fn new(rows: usize, cols: usize) -> Self {
        Classic {
            grad: vec![0.0; rows * cols],
            votes: vec![0; rows * cols],
            cols,
        }
    }

    /// Casts the votes of the micro-batch whose gradient was kept.
    pub(crate) fn end_micro_batch(&mut self, ctx: &StepContext<'_>) {
        let mut sizes = GradientSizes::default();
        for row in self.grad.chunks_exact(self.cols) {
            sizes.add_row(ctx.isa, row);
        }
        let threshold = sizes.threshold(ctx.config.classic_k);
        cast_classic(&self.grad, threshold, &mut self.votes);
    }

    /// Flips by the summed votes of `rows` and clears them. Returns the flips.
    pub(crate) fn count(
        &mut self,
        ctx: &StepContext<'_>,
        tensor: u16,
        matrix: &mut QuantMatrix,
        rows: Range<usize>,
    ) -> u64 {
        let (cols, row_bytes, high_row_bytes) =
            (matrix.cols(), matrix.row_bytes(), matrix.high_row_bytes());
        let last_code = matrix.grid().len() as u8 - 1;
        let rng = VoteRng {
            seed: ctx.seed,
            stream: FLIP_STREAM,
            step: ctx.step,
            tensor,
            micro_batch: 0,
        };
        let base = ctx.config.classic_probability;
        let groups = matrix.groups_per_row();
        let (nibbles, high, scales) = matrix.planes_mut();
        let mut high = high.map(|high| high.chunks_exact_mut(high_row_bytes));
        let all = nibbles
            .chunks_exact_mut(row_bytes)
            .zip(self.votes.chunks_exact_mut(cols))
            .zip(scales.chunks_exact(groups));
        let mut flips = 0;
        for (row, ((nibbles, votes), scales)) in all.enumerate().take(rows.end) {
            let high = high.as_mut().and_then(Iterator::next);
            if row < rows.start {
                continue;
            }
            let scale = scales.iter().map(|scale| scale.abs()).sum::<f32>() / groups as f32;
            let probability = (base / scale).clamp(1e-4, 0.05);
            let p_q16 = (probability * 65536.0).round() as u32;
            flips += u64::from(count_classic_row(
                nibbles, high, votes, last_code, p_q16, &rng, row as u32,
            ));
        }
        flips
    }
}
