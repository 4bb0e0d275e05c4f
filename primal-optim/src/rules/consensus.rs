//! Rule `consensus`: votes into a persistent ballot, a flip when they agree.
//!
//! With g = dL/d(grid value) of one of M micro-batches, σ its running scale, q the weight value of
//! one vote and η·ρ the step:
//!
//! - **cast** v = sign(−g) · floor(|g|/σ · η·ρ/(q·M) + r), r uniform in [0, 1): E[Σ v]·q is the
//!   step that an Adam-like optimizer would make;
//! - **count** ballot ← leak(ballot + Σ v); where |ballot| reaches the gap to the neighbour (in
//!   votes) the code moves one rank and the gap is **spent** from the ballot.
//!
//! σ² of element (i, j) is R_i · C_j / mean(C) · c. R and C are running means of g² by row and by
//! column. R already holds the row at hand; C is that of the step before, since a tile sees only
//! some rows, so a column that was silent and wakes up would vote without bound: |g|/σ is limited
//! to `vote_clip`. c makes the step the same however a batch is cut: it is the
//! second moment of the *mean* gradient relative to that of a micro-batch's, estimated from the
//! summed votes: E[S²] = (Σ u)² + Σ f(1 − f), with u the expected vote and f its fraction.

use std::ops::Range;

use primal_kernels::{
    CastStats, FlipTable, VoteRng, cast_votes_i8, cast_votes_i16, gradient_row_stats,
};
use primal_lut::{Grid, TensorFile};

use super::codes::Codes;
use crate::parts::{CodeRule, ConsensusParts, ConsensusStep};
use crate::rows::GradientRow;
use crate::rule::{
    Counted, LearningRule, MakeRows, MatrixPlan, NewMatrix, Place, Values, ValuesMut, ValuesRef,
};
use crate::tiles::{SplitRows, TILE_ROWS, cut};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// Random stream of the cast.
pub const CAST_STREAM: u8 = 0;
/// Random stream of the leak.
pub const LEAK_STREAM: u8 = 1;
/// Votes that a ballot can hold either way.
pub(crate) const MAX_VOTES: i16 = 127;
/// Least column statistic relative to the mean, against division by zero.
const MIN_COLUMN: f32 = 1e-6;

/// A matrix under this rule.
#[derive(Clone, Debug)]
struct Consensus {
    codes: Codes,
    votes: Votes,
}

/// What the rule keeps of a matrix.
#[derive(Clone, Debug)]
struct Votes {
    /// (rows, cols) i8, persistent.
    ballot: Vec<i8>,
    /// (rows, cols) i16, the votes of this step; empty when a step is one micro-batch.
    wide: Vec<i16>,
    table: FlipTable,
    /// Vote value q in units of the grid.
    quantum: f32,
    cols: usize,
    /// Running means of g² by row (mean over columns) and by column (mean over rows), biased
    /// towards their start at zero.
    row_mean: Vec<f32>,
    col_mean: Vec<f32>,
    /// [running mean of A, of B, updates made]: c = A / (M·B).
    moments: [f32; 3],

    // What follows lives for one step.
    /// Sums over the micro-batches.
    row_sum: Vec<f32>,
    col_sum: Vec<f32>,
    expected_sq: f64,
    rounding_var: f64,
    /// One slot a tile: (tiles, cols) sums of g² by column, and the cast's sums.
    tile_col: Vec<f32>,
    tile_cast: Vec<CastStats>,
    /// (cols) 1 / √(C_j / mean(C)).
    col_factor: Vec<f32>,
    /// 1 / √c.
    noise_factor: f32,
    /// Weight of the old mean and of the new value, both divided by the bias correction.
    blend: [f32; 2],
}

pub(crate) fn begin(matrix: NewMatrix<'_>) -> Result<Box<dyn LearningRule>, OptimError> {
    let codes = Codes::nearest(&matrix)?;
    let votes = Votes::new(codes.matrix.grid(), matrix.size, matrix.many_micro_batches);
    Ok(Box::new(Consensus { codes, votes }))
}

pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
    let (rows, cols) = (matrix.size.0 as u64, matrix.size.1 as u64);
    let tiles = rows.div_ceil(TILE_ROWS as u64);
    let wide = if matrix.many_micro_batches { 2 } else { 0 };
    WeightBytes {
        ballots: rows * cols,
        votes: wide * rows * cols,
        statistics: 4 * (2 * rows + 3 * cols + tiles * cols + 2 * tiles),
        ..Codes::plan(matrix)
    }
}

/// The weight value of one vote, in units of the grid: the widest gap takes all that fit.
pub(crate) fn quantum(grid: &Grid) -> f32 {
    let gaps = (0..grid.len() as u8).filter_map(|code| grid.gap_up(code));
    gaps.fold(0.0, f32::max) / f32::from(MAX_VOTES)
}

impl LearningRule for Consensus {
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
        if ctx.micro_batches > 1 && self.votes.wide.is_empty() {
            return Err(OptimError::MicroBatches(ctx.micro_batches));
        }
        self.votes.begin_step(ctx);
        Ok(())
    }

    fn accumulate(&mut self, ctx: &StepContext<'_>, at: Place, make: MakeRows<'_>) -> u32 {
        let caster = self.votes.caster(ctx, at.tensor, at.micro_batch);
        let votes = self.votes.rows(at.rows.clone());
        self.codes
            .accumulate(ctx, at.rows, make, votes, &|row, votes| {
                caster.cast(row, votes)
            })
    }

    fn end_micro_batch(&mut self, _ctx: &StepContext<'_>) {
        self.votes.end_micro_batch();
    }

    fn count(&mut self, ctx: &StepContext<'_>, tensor: u16, rows: Range<usize>) -> Counted {
        let Votes {
            ballot,
            wide,
            table,
            quantum,
            ..
        } = &mut self.votes;
        let leak = ConsensusStep::new(ctx, *quantum, 0.0).leak_q24;
        let rng = ctx.rng(LEAK_STREAM, tensor, 0);
        self.codes
            .count(ctx.isa, rows, ballot, wide, table, leak, &rng)
    }

    fn finish_step(&mut self, ctx: &StepContext<'_>, grad_factor: f32, counted: Counted) -> u64 {
        self.votes.update_statistics(ctx, counted.sum_votes_sq);
        self.codes.step_scales(ctx, grad_factor);
        0
    }

    fn discard(&mut self) {
        self.codes.scales.grad.fill(0.0);
        self.votes.wide.fill(0);
        self.votes.clear_step();
    }

    fn forget(&mut self) {
        self.votes.ballot.fill(0);
    }

    fn float_gradient(&self) -> &[f32] {
        &self.codes.scales.grad
    }

    fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.codes.scales.grad);
        self.votes.step_sums(to);
    }

    fn votes_mut(&mut self) -> &mut [i16] {
        &mut self.votes.wide
    }

    fn ballot(&self) -> &[i8] {
        &self.votes.ballot
    }

    fn ballot_mut(&mut self) -> &mut [i8] {
        &mut self.votes.ballot
    }

    fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>) {
        let votes = &self.votes;
        let (rows, cols) = (votes.row_mean.len(), votes.cols);
        self.codes.visit(name, to);
        to.i8(&format!("{name}.ballot"), &[rows, cols], &votes.ballot);
        to.f32(&format!("{name}.row_mean"), &[rows], &votes.row_mean);
        to.f32(&format!("{name}.col_mean"), &[cols], &votes.col_mean);
        to.f32(&format!("{name}.moments"), &[3], &votes.moments);
    }

    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        let votes = &mut self.votes;
        let (rows, cols) = (votes.row_mean.len(), votes.cols);
        self.codes.load(name, file)?;
        votes.ballot = file.i8(&format!("{name}.ballot"), &[rows, cols])?;
        votes.row_mean = file.f32(&format!("{name}.row_mean"), &[rows])?;
        votes.col_mean = file.f32(&format!("{name}.col_mean"), &[cols])?;
        let moments = file.f32(&format!("{name}.moments"), &[3])?;
        votes.moments.copy_from_slice(&moments);
        Ok(())
    }

    fn bytes(&self) -> WeightBytes {
        let votes = &self.votes;
        let floats = [
            &votes.row_mean,
            &votes.col_mean,
            &votes.row_sum,
            &votes.col_sum,
            &votes.tile_col,
            &votes.col_factor,
        ];
        let floats: usize = floats.iter().map(|values| values.len()).sum();
        let casts = std::mem::size_of_val(votes.tile_cast.as_slice());
        WeightBytes {
            ballots: votes.ballot.len() as u64,
            votes: 2 * votes.wide.len() as u64,
            statistics: (4 * floats + casts) as u64,
            ..self.codes.bytes()
        }
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        let votes = &self.votes;
        let statistics = votes.row_mean.len() + votes.col_mean.len() + votes.moments.len();
        (
            votes.ballot.len() as u64,
            self.codes.scales.bytes() + 4 * statistics as u64,
        )
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        let Consensus { codes, votes } = self;
        codes.parts_mut(CodeRule::Consensus(ConsensusParts {
            ballot: &mut votes.ballot,
            row_mean: &mut votes.row_mean,
            col_mean: &mut votes.col_mean,
            moments: &mut votes.moments,
            table: &votes.table,
            quantum: votes.quantum,
        }))
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}

impl Votes {
    fn new(grid: &Grid, (rows, cols): (usize, usize), many_micro_batches: bool) -> Self {
        let n_tiles = rows.div_ceil(TILE_ROWS);
        let wide = if many_micro_batches { rows * cols } else { 0 };
        Votes {
            ballot: vec![0; rows * cols],
            wide: vec![0; wide],
            table: FlipTable::new(grid, MAX_VOTES),
            quantum: quantum(grid),
            cols,
            row_mean: vec![0.0; rows],
            col_mean: vec![0.0; cols],
            moments: [0.0; 3],
            row_sum: vec![0.0; rows],
            col_sum: vec![0.0; cols],
            expected_sq: 0.0,
            rounding_var: 0.0,
            tile_col: vec![0.0; n_tiles * cols],
            tile_cast: vec![CastStats::default(); n_tiles],
            col_factor: vec![1.0; cols],
            noise_factor: 1.0,
            blend: [0.0, 1.0],
        }
    }

    fn begin_step(&mut self, ctx: &StepContext<'_>) {
        let [a, b, updates] = self.moments;
        self.blend = ConsensusStep::new(ctx, self.quantum, updates).blend;

        let mean = self.col_mean.iter().sum::<f32>() / self.cols as f32;
        for (factor, &c) in self.col_factor.iter_mut().zip(&self.col_mean) {
            *factor = if mean > 0.0 {
                1.0 / (c / mean).max(MIN_COLUMN).sqrt()
            } else {
                1.0
            };
        }
        let m = f32::from(ctx.micro_batches);
        let ratio = if m > 1.0 && b > 0.0 {
            (a / (m * b)).clamp(1.0 / m, 1.0)
        } else {
            1.0
        };
        self.noise_factor = 1.0 / ratio.sqrt();
        self.clear_step();
    }

    fn clear_step(&mut self) {
        self.row_sum.fill(0.0);
        self.col_sum.fill(0.0);
        self.tile_col.fill(0.0);
        self.tile_cast.fill(CastStats::default());
        self.expected_sq = 0.0;
        self.rounding_var = 0.0;
    }

    /// Votes that one unit of normalised gradient casts in a micro-batch: η·ρ/(q·M).
    fn votes_per_unit(&self, ctx: &StepContext<'_>) -> f32 {
        ConsensusStep::new(ctx, self.quantum, 0.0).votes_per_unit
    }

    /// The factors of a micro-batch, copied so that the rows can be borrowed mutably beside it.
    fn caster(&self, ctx: &StepContext<'_>, tensor: u16, micro_batch: u16) -> Caster {
        let unit = self.votes_per_unit(ctx) * self.noise_factor;
        Caster {
            isa: ctx.isa,
            unit,
            limit: ctx.config.vote_clip * unit,
            blend: self.blend,
            rng: ctx.rng(CAST_STREAM, tensor, micro_batch),
        }
    }

    /// The buffers of `rows`, whose start is a multiple of [`TILE_ROWS`].
    fn rows(&mut self, rows: Range<usize>) -> VoteRows<'_> {
        let cols = self.cols;
        let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
        let elements = rows.start * cols..rows.end * cols;
        let target = if self.wide.is_empty() {
            Target::Ballot(&mut self.ballot[elements])
        } else {
            Target::Wide(&mut self.wide[elements])
        };
        VoteRows {
            first_row: rows.start,
            cols,
            col_factor: &self.col_factor,
            row_mean: &self.row_mean[rows.clone()],
            row_sum: &mut self.row_sum[rows],
            target,
            tile_col: &mut self.tile_col[tiles.start * cols..tiles.end * cols],
            tile_cast: &mut self.tile_cast[tiles],
        }
    }

    fn end_micro_batch(&mut self) {
        // A micro-batch is summed on its own first: ranks compute theirs apart from each other.
        let (first, others) = self.tile_col.split_at_mut(self.cols);
        for tile in others.chunks_exact_mut(self.cols) {
            for (sum, part) in first.iter_mut().zip(tile) {
                *sum += std::mem::take(part);
            }
        }
        for (sum, part) in self.col_sum.iter_mut().zip(first) {
            *sum += std::mem::take(part);
        }
        let (mut expected_sq, mut rounding_var) = (0.0, 0.0);
        for cast in &mut self.tile_cast {
            let cast = std::mem::take(cast);
            expected_sq += f64::from(cast.sum_u_sq);
            rounding_var += f64::from(cast.sum_rounding_var);
        }
        self.expected_sq += expected_sq;
        self.rounding_var += rounding_var;
    }

    /// Walks over the float sums of the step so far.
    fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.row_sum);
        to.f32(&mut self.col_sum);
        to.f64(&mut self.expected_sq);
        to.f64(&mut self.rounding_var);
    }

    /// Updates the statistics after all rows are counted.
    fn update_statistics(&mut self, ctx: &StepContext<'_>, sum_votes_sq: i64) {
        let decay = ctx.config.stat_decay;
        let m = f32::from(ctx.micro_batches);
        for (mean, sum) in self.row_mean.iter_mut().zip(&self.row_sum) {
            *mean = decay * *mean + (1.0 - decay) * (sum / m);
        }
        let per_row = 1.0 / (m * self.row_mean.len() as f32);
        for (mean, sum) in self.col_mean.iter_mut().zip(&self.col_sum) {
            *mean = decay * *mean + (1.0 - decay) * (sum * per_row);
        }
        let unit = f64::from(self.votes_per_unit(ctx));
        let [a, b, updates] = &mut self.moments;
        if !self.wide.is_empty() && unit > 0.0 {
            // In units of one vote per unit of gradient, so that the schedule drops out.
            let summed_sq = ((sum_votes_sq as f64 - self.rounding_var) / (unit * unit)) as f32;
            *a = decay * *a + (1.0 - decay) * summed_sq;
            *b = decay * *b + (1.0 - decay) * (self.expected_sq / (unit * unit)) as f32;
        }
        *updates += 1.0;
    }
}

/// Casts the votes of one micro-batch, row by row.
struct Caster {
    isa: primal_kernels::Isa,
    /// Votes per unit of normalised gradient, noise correction included.
    unit: f32,
    /// Largest expected vote.
    limit: f32,
    blend: [f32; 2],
    rng: VoteRng,
}

impl Caster {
    /// Casts the votes of a row. Refuses one whose squares are not finite.
    fn cast(&self, row: &GradientRow<'_>, to: &mut VoteRows<'_>) -> bool {
        let i = row.row - to.first_row;
        let tile = i / TILE_ROWS;
        let cols = to.cols;
        let col_sq = &mut to.tile_col[tile * cols..(tile + 1) * cols];
        let stats = gradient_row_stats(self.isa, row.grad, row.values, row.scale, col_sq);
        if !stats.sum_sq.is_finite() {
            return false;
        }
        let row_sq = stats.sum_sq / cols as f32;
        to.row_sum[i] += row_sq;
        let scale_sq = self.blend[0] * to.row_mean[i] + self.blend[1] * row_sq;
        if scale_sq <= 0.0 {
            return true;
        }
        let row_factor = row.scale * self.unit / scale_sq.sqrt();
        let elements = i * cols..(i + 1) * cols;
        let row_id = row.row as u32;
        let cast = match &mut to.target {
            Target::Ballot(ballot) => {
                let ballot = &mut ballot[elements];
                cast_votes_i8(
                    self.isa,
                    row.grad,
                    row_factor,
                    to.col_factor,
                    self.limit,
                    &self.rng,
                    row_id,
                    ballot,
                )
            }
            Target::Wide(votes) => {
                let votes = &mut votes[elements];
                cast_votes_i16(
                    self.isa,
                    row.grad,
                    row_factor,
                    to.col_factor,
                    self.limit,
                    &self.rng,
                    row_id,
                    votes,
                )
            }
        };
        let slot = &mut to.tile_cast[tile];
        slot.sum_u_sq += cast.sum_u_sq;
        slot.sum_rounding_var += cast.sum_rounding_var;
        true
    }
}

/// Where a cast goes.
enum Target<'a> {
    /// Straight into the ballot, saturating: one micro-batch a step.
    Ballot(&'a mut [i8]),
    /// Into the wide sum of the step.
    Wide(&'a mut [i16]),
}

/// Buffers of a range of rows during the cast.
struct VoteRows<'a> {
    first_row: usize,
    cols: usize,
    col_factor: &'a [f32],
    row_mean: &'a [f32],
    row_sum: &'a mut [f32],
    target: Target<'a>,
    tile_col: &'a mut [f32],
    tile_cast: &'a mut [CastStats],
}

impl SplitRows for VoteRows<'_> {
    fn rows(&self) -> usize {
        self.row_sum.len()
    }

    fn split_at(self, row: usize) -> (Self, Self) {
        let cols = self.cols;
        let tile = row / TILE_ROWS;
        let (mean_a, mean_b) = self.row_mean.split_at(row);
        let (sum_a, sum_b) = cut(self.row_sum, row, 1);
        let (target_a, target_b) = match self.target {
            Target::Ballot(ballot) => {
                let (a, b) = cut(ballot, row, cols);
                (Target::Ballot(a), Target::Ballot(b))
            }
            Target::Wide(votes) => {
                let (a, b) = cut(votes, row, cols);
                (Target::Wide(a), Target::Wide(b))
            }
        };
        let (col_a, col_b) = cut(self.tile_col, tile, cols);
        let (cast_a, cast_b) = cut(self.tile_cast, tile, 1);
        let left = VoteRows {
            first_row: self.first_row,
            cols,
            col_factor: self.col_factor,
            row_mean: mean_a,
            row_sum: sum_a,
            target: target_a,
            tile_col: col_a,
            tile_cast: cast_a,
        };
        let right = VoteRows {
            first_row: self.first_row + row,
            cols,
            col_factor: self.col_factor,
            row_mean: mean_b,
            row_sum: sum_b,
            target: target_b,
            tile_col: col_b,
            tile_cast: cast_b,
        };
        (left, right)
    }
}
