//! Rule `spectral`: votes along the orthogonalised gradient of a whole matrix.
//!
//! A gradient asks all weights of a matrix to move together along a few directions. A step that
//! is made orthogonal first moves every direction by the same amount: none overshoots, weak ones
//! are heard, and the rate can stay large, as only large steps get across the gaps of a grid. That
//! is the preconditioning of Muon (Jordan et al. 2024; Liu et al. 2025).
//!
//! - **sum** each micro-batch adds −g in fixed-point integers, rounded at random without bias, so
//!   that the sum of a step has no order. The unit of a row is the root mean square of its
//!   gradients in the steps before.
//! - **vote** S is orthogonalised; a step of root mean square η·ρ grid units, over q, rounded at
//!   random once, goes into the ballot.
//! - **count** a weight flips where its ballot has passed half the gap to the neighbour, and spends
//!   the whole gap: code and ballot together stand for a value, and the code is the nearest to it.
//!   The ballot begins as what rounding to the first code left.
//!
//! Embeddings and the head vote by rule `consensus`, at a rate of their own.

use std::ops::Range;

use primal_kernels::{FlipTable, VoteRng, cast_votes_i16, sum_squares};
use primal_lut::{QuantMatrix, TensorFile};
use rayon::prelude::*;

use super::codes::Codes;
use super::consensus::{self, CAST_STREAM, LEAK_STREAM, MAX_VOTES, quantum};
use crate::orthogonal::{Parts, orthogonal_bytes, with_matrix};
use crate::parts::{ConsensusStep, SpectralStep};
use crate::rows::GradientRow;
use crate::rule::{
    Counted, LearningRule, MakeRows, MatrixPlan, NewMatrix, Place, Role, Values, ValuesMut,
    ValuesRef,
};
use crate::tiles::{SplitRows, cut};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// Random stream of the rounding of a step to votes.
pub const STEP_STREAM: u8 = 6;
/// Least mean square of a row's gradient relative to that of all rows.
const SILENT_ROW: f32 = 1e-6;

/// A matrix under this rule.
#[derive(Clone, Debug)]
struct Spectral {
    codes: Codes,
    parts: Parts,
    /// (rows, cols) i8, persistent.
    ballot: Vec<i8>,
    /// (rows, cols) i16, minus the gradient of this step in units of its row; then its votes.
    sum: Vec<i16>,
    table: FlipTable,
    /// Vote value q in units of the grid.
    quantum: f32,
    /// (rows) running mean of g², biased towards its start at zero.
    row_mean: Vec<f32>,
    /// Updates made of it.
    updates: f32,

    // What follows lives for one step.
    /// (rows) mean of g² by row, summed over the micro-batches.
    row_sum: Vec<f32>,
    /// (rows) root mean square that a row's unit is made of, 0 where none is known.
    row_rms: Vec<f32>,
    /// (cols) ones.
    ones: Vec<f32>,
}

pub(crate) fn begin(matrix: NewMatrix<'_>) -> Result<Box<dyn LearningRule>, OptimError> {
    let Role::Hidden(stack) = matrix.role else {
        return consensus::begin(matrix);
    };
    let (rows, cols) = matrix.size;
    let codes = Codes::nearest(&matrix)?;
    let quantum = quantum(codes.matrix.grid());
    Ok(Box::new(Spectral {
        parts: Parts::new(matrix.size, stack)?,
        ballot: residual(&codes.matrix, &matrix.initial, quantum),
        sum: vec![0; rows * cols],
        table: FlipTable::new(codes.matrix.grid(), MAX_VOTES).at_half_a_gap(),
        quantum,
        row_mean: vec![0.0; rows],
        updates: 0.0,
        row_sum: vec![0.0; rows],
        row_rms: vec![0.0; rows],
        ones: vec![1.0; cols],
        codes,
    }))
}

pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
    let Role::Hidden(_) = matrix.role else {
        return consensus::plan(matrix);
    };
    let (rows, cols) = (matrix.size.0 as u64, matrix.size.1 as u64);
    WeightBytes {
        ballots: rows * cols,
        votes: 2 * rows * cols,
        statistics: 4 * (3 * rows + cols),
        scratch: orthogonal_bytes(matrix.size),
        ..Codes::plan(matrix)
    }
}

/// What rounding `initial` to `matrix` left, in votes.
fn residual(matrix: &QuantMatrix, initial: &[f32], quantum: f32) -> Vec<i8> {
    let (cols, group) = (matrix.cols(), matrix.group());
    let grid = matrix.grid();
    let mut codes = vec![0; cols];
    let mut left = Vec::with_capacity(initial.len());
    for (row, values) in initial.chunks_exact(cols).enumerate() {
        matrix.row_codes(row, &mut codes);
        let scales = &matrix.scales()[row * matrix.groups_per_row()..];
        for (col, (value, &code)) in values.iter().zip(&codes).enumerate() {
            let value = value / scales[col / group];
            let votes = (value - grid.value(code).unwrap_or(value)) / quantum;
            // Beyond the ends of the grid there is nothing to wait for.
            left.push(votes.round().clamp(-63.0, 63.0) as i8);
        }
    }
    left
}

impl Spectral {
    /// Adds the gradient of a row to the sums. Refuses one whose squares are not finite.
    fn add(row: &GradientRow<'_>, step: &AddStep<'_>, to: &mut SumRows<'_>) -> bool {
        let i = row.row - to.first_row;
        let cols = row.grad.len();
        let row_sq = (sum_squares(step.ctx.isa, row.grad) * f64::from(row.scale).powi(2)
            / cols as f64) as f32;
        if !row_sq.is_finite() {
            return false;
        }
        to.row_sum[i] += row_sq;
        // In the first step there is no measure but the micro-batch's own.
        let rms = match to.row_rms[i] {
            0.0 => row_sq.sqrt(),
            rms => rms,
        };
        if rms > 0.0 {
            cast_votes_i16(
                step.ctx.isa,
                row.grad,
                row.scale * step.numbers.units_per_rms / rms,
                step.ones,
                step.numbers.most_units,
                &step.rng,
                row.row as u32,
                &mut to.sum[i * cols..(i + 1) * cols],
            );
        }
        true
    }
}

/// The factors of a micro-batch.
struct AddStep<'a> {
    ctx: &'a StepContext<'a>,
    numbers: SpectralStep,
    rng: VoteRng,
    ones: &'a [f32],
}

/// Buffers of a range of rows.
struct SumRows<'a> {
    first_row: usize,
    cols: usize,
    row_rms: &'a [f32],
    row_sum: &'a mut [f32],
    sum: &'a mut [i16],
}

impl SplitRows for SumRows<'_> {
    fn rows(&self) -> usize {
        self.row_sum.len()
    }

    fn split_at(self, row: usize) -> (Self, Self) {
        let (rms_a, rms_b) = self.row_rms.split_at(row);
        let (sq_a, sq_b) = cut(self.row_sum, row, 1);
        let (sum_a, sum_b) = cut(self.sum, row, self.cols);
        let part = |first_row, row_rms, row_sum, sum| SumRows {
            first_row,
            cols: self.cols,
            row_rms,
            row_sum,
            sum,
        };
        (
            part(self.first_row, rms_a, sq_a, sum_a),
            part(self.first_row + row, rms_b, sq_b, sum_b),
        )
    }
}

impl LearningRule for Spectral {
    fn values(&self) -> ValuesRef<'_> {
        ValuesRef::Grid(&self.codes.matrix)
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        ValuesMut::Grid(&mut self.codes.matrix)
    }

    fn into_values(self: Box<Self>) -> Values {
        Values::Grid(self.codes.matrix)
    }

    fn begin_step(&mut self, ctx: &StepContext<'_>) -> Result<(), OptimError> {
        self.row_sum.fill(0.0);
        let numbers = SpectralStep::new(ctx, self.quantum, self.updates);
        let mean = self.row_mean.iter().sum::<f32>() / self.row_mean.len() as f32;
        for (rms, &row_mean) in self.row_rms.iter_mut().zip(&self.row_mean) {
            // A row that was silent and wakes up must not speak without bound.
            *rms = (row_mean.max(SILENT_ROW * mean) * numbers.bias).sqrt();
        }
        Ok(())
    }

    fn accumulate(&mut self, ctx: &StepContext<'_>, at: Place, make: MakeRows<'_>) -> u32 {
        let step = AddStep {
            ctx,
            numbers: SpectralStep::new(ctx, self.quantum, self.updates),
            rng: ctx.rng(CAST_STREAM, at.tensor, at.micro_batch),
            ones: &self.ones,
        };
        let cols = self.parts.cols();
        let rows = at.rows.clone();
        let sums = SumRows {
            first_row: rows.start,
            cols,
            row_rms: &self.row_rms[rows.clone()],
            row_sum: &mut self.row_sum[rows.clone()],
            sum: &mut self.sum[rows.start * cols..rows.end * cols],
        };
        self.codes.accumulate(ctx, rows, make, sums, &|row, sums| {
            Spectral::add(row, &step, sums)
        })
    }

    /// All rows or none: a matrix is orthogonalised as a whole.
    fn count(&mut self, ctx: &StepContext<'_>, tensor: u16, rows: Range<usize>) -> Counted {
        if rows.is_empty() {
            return Counted::default();
        }
        let mut rng = ctx.rng(STEP_STREAM, tensor, 0);
        let numbers = SpectralStep::new(ctx, self.quantum, self.updates);
        let cols = self.parts.cols();
        let Spectral { sum, ones, .. } = self;
        let units = self.row_rms.iter().zip(&self.row_sum);
        with_matrix(&self.parts, |mut step| {
            let rows = step.values.chunks_exact_mut(cols);
            for ((x, sum), (rms, sq)) in rows.zip(sum.chunks_exact_mut(cols)).zip(units) {
                let unit = if *rms > 0.0 { *rms } else { sq.sqrt() };
                for (x, sum) in x.iter_mut().zip(sum) {
                    *x = unit * f32::from(std::mem::take(sum));
                }
            }
            step.orthogonalise();
            // The sum is minus the gradient, and a cast turns the sign once more.
            let factor = -numbers.votes_per_unit;
            let limit = f32::from(MAX_VOTES);
            step.values
                .par_chunks_exact(cols)
                .zip(sum.par_chunks_exact_mut(cols))
                .enumerate()
                .for_each(|(row, (step, votes))| {
                    let row = row as u32;
                    cast_votes_i16(ctx.isa, step, factor, ones, limit, &rng, row, votes);
                });
        });
        rng.stream = LEAK_STREAM;
        let leak = ConsensusStep::new(ctx, self.quantum, 0.0).leak_q24;
        let Spectral {
            codes,
            ballot,
            sum,
            table,
            ..
        } = self;
        codes.count(ctx.isa, rows, ballot, sum, table, leak, &rng)
    }

    fn finish_step(&mut self, ctx: &StepContext<'_>, grad_factor: f32, _counted: Counted) -> u64 {
        let decay = ctx.config.stat_decay;
        let m = f32::from(ctx.micro_batches);
        for (mean, sum) in self.row_mean.iter_mut().zip(&self.row_sum) {
            *mean = decay * *mean + (1.0 - decay) * (sum / m);
        }
        self.updates += 1.0;
        self.codes.step_scales(ctx, grad_factor);
        0
    }

    fn discard(&mut self) {
        self.codes.scales.grad.fill(0.0);
        self.sum.fill(0);
        self.row_sum.fill(0.0);
    }

    fn forget(&mut self) {
        self.ballot.fill(0);
    }

    fn float_gradient(&self) -> &[f32] {
        &self.codes.scales.grad
    }

    fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.codes.scales.grad);
        to.f32(&mut self.row_sum);
    }

    fn votes_mut(&mut self) -> &mut [i16] {
        &mut self.sum
    }

    fn ballot(&self) -> &[i8] {
        &self.ballot
    }

    fn ballot_mut(&mut self) -> &mut [i8] {
        &mut self.ballot
    }

    fn counts_whole(&self) -> bool {
        true
    }

    fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>) {
        let (rows, cols) = (self.parts.rows(), self.parts.cols());
        self.codes.visit(name, to);
        to.i8(&format!("{name}.ballot"), &[rows, cols], &self.ballot);
        to.f32(&format!("{name}.row_mean"), &[rows], &self.row_mean);
        let updates = std::slice::from_ref(&self.updates);
        to.f32(&format!("{name}.updates"), &[1], updates);
    }

    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        let (rows, cols) = (self.parts.rows(), self.parts.cols());
        self.codes.load(name, file)?;
        self.ballot = file.i8(&format!("{name}.ballot"), &[rows, cols])?;
        self.row_mean = file.f32(&format!("{name}.row_mean"), &[rows])?;
        self.updates = file.f32(&format!("{name}.updates"), &[1])?[0];
        Ok(())
    }

    fn bytes(&self) -> WeightBytes {
        let floats =
            self.row_mean.len() + self.row_sum.len() + self.row_rms.len() + self.ones.len();
        WeightBytes {
            ballots: self.ballot.len() as u64,
            votes: 2 * self.sum.len() as u64,
            statistics: 4 * floats as u64,
            scratch: orthogonal_bytes((self.parts.rows(), self.parts.cols())),
            ..self.codes.bytes()
        }
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        let statistics = 4 * (self.row_mean.len() + 1) as u64;
        (
            self.ballot.len() as u64,
            self.codes.scales.bytes() + statistics,
        )
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        WeightParts::OnlyHere
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}
