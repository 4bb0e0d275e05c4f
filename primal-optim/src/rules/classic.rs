//! Rule `classic`: the original project's rule, kept as a baseline (its history knows it as
//! "poltergeist").
//!
//! A gradient votes −sign(g) where |g| > mean + k·std of its matrix; the micro-batches' votes are
//! summed; a weight flips by the sign of the sum with probability clamp(p/|s|, 1e-4, 0.05); every
//! step starts from nothing.

use std::ops::Range;

use primal_kernels::{GradientSizes, cast_classic, count_classic_row};
use primal_lut::TensorFile;

use super::codes::Codes;
use crate::parts::CodeRule;
use crate::rows::GradRows;
use crate::rule::{
    Counted, LearningRule, MakeRows, MatrixPlan, NewMatrix, Place, Values, ValuesMut, ValuesRef,
};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// Random stream of the flips.
pub const FLIP_STREAM: u8 = 2;

/// A matrix under this rule.
#[derive(Clone, Debug)]
struct Classic {
    codes: Codes,
    /// (rows, cols) f32: the threshold needs the mean and spread of the whole matrix first.
    grad: Vec<f32>,
    /// (rows, cols) i16.
    votes: Vec<i16>,
}

pub(crate) fn begin(matrix: NewMatrix<'_>) -> Result<Box<dyn LearningRule>, OptimError> {
    let len = matrix.initial.len();
    Ok(Box::new(Classic {
        codes: Codes::nearest(&matrix)?,
        grad: vec![0.0; len],
        votes: vec![0; len],
    }))
}

pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
    let elements = (matrix.size.0 * matrix.size.1) as u64;
    let codes = Codes::plan(matrix);
    WeightBytes {
        votes: 2 * elements,
        float_state: codes.float_state + 4 * elements,
        ..codes
    }
}

impl LearningRule for Classic {
    fn values(&self) -> ValuesRef<'_> {
        ValuesRef::Grid(&self.codes.matrix)
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        ValuesMut::Grid(&mut self.codes.matrix)
    }

    fn into_values(self: Box<Self>) -> Values {
        Values::Grid(self.codes.matrix)
    }

    fn accumulate(&mut self, ctx: &StepContext<'_>, at: Place, make: MakeRows<'_>) -> u32 {
        let cols = self.codes.matrix.cols();
        let kept = GradRows {
            first_row: at.rows.start,
            cols,
            grad: &mut self.grad[at.rows.start * cols..at.rows.end * cols],
        };
        self.codes
            .accumulate(ctx, at.rows, make, kept, &|row, kept| {
                kept.row_mut(row.row).copy_from_slice(row.grad);
                true
            })
    }

    /// Casts the votes of the micro-batch whose gradient was kept.
    fn end_micro_batch(&mut self, ctx: &StepContext<'_>) {
        let mut sizes = GradientSizes::default();
        for row in self.grad.chunks_exact(self.codes.matrix.cols()) {
            sizes.add_row(ctx.isa, row);
        }
        let threshold = sizes.threshold(ctx.config.classic_k);
        cast_classic(&self.grad, threshold, &mut self.votes);
    }

    /// Flips by the summed votes of `rows` and clears them.
    fn count(&mut self, ctx: &StepContext<'_>, tensor: u16, rows: Range<usize>) -> Counted {
        let matrix = &mut self.codes.matrix;
        let (cols, row_bytes, high_row_bytes) =
            (matrix.cols(), matrix.row_bytes(), matrix.high_row_bytes());
        let last_code = matrix.grid().len() as u8 - 1;
        let rng = ctx.rng(FLIP_STREAM, tensor, 0);
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
        Counted {
            flips,
            sum_votes_sq: 0,
        }
    }

    fn finish_step(&mut self, ctx: &StepContext<'_>, grad_factor: f32, _counted: Counted) -> u64 {
        self.codes.step_scales(ctx, grad_factor);
        0
    }

    fn discard(&mut self) {
        self.codes.scales.grad.fill(0.0);
        self.votes.fill(0);
    }

    fn float_gradient(&self) -> &[f32] {
        &self.codes.scales.grad
    }

    fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.codes.scales.grad);
    }

    fn votes_mut(&mut self) -> &mut [i16] {
        &mut self.votes
    }

    fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>) {
        self.codes.visit(name, to);
    }

    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        self.codes.load(name, file)
    }

    fn bytes(&self) -> WeightBytes {
        let codes = self.codes.bytes();
        WeightBytes {
            votes: 2 * self.votes.len() as u64,
            float_state: codes.float_state + 4 * self.grad.len() as u64,
            ..codes
        }
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        (0, self.codes.scales.bytes())
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        self.codes.parts_mut(CodeRule::Classic)
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}
