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
    CastStats, FlipTable, VoteRng, cast_votes_i8, cast_votes_i16, count_row, gradient_row_stats,
};
use primal_lut::{Grid, QuantMatrix, TensorFile};

use crate::parts::{ConsensusParts, ConsensusStep};
use crate::tiles::{SplitRows, TILE_ROWS, cut, for_each_tile};
use crate::weight::GradientRow;
use crate::{OptimError, StateVisitor, StepContext, StepSums};

/// Random stream of the cast.
pub const CAST_STREAM: u8 = 0;
/// Random stream of the leak.
pub const LEAK_STREAM: u8 = 1;
/// Votes that a ballot can hold either way.
const MAX_VOTES: i16 = 127;
/// Least column statistic relative to the mean, against division by zero.
const MIN_COLUMN: f32 = 1e-6;

/// The state of the rule for one matrix.
#[derive(Clone, Debug)]
pub(crate) struct Consensus {
    /// (rows, cols) i8, persistent.
    pub(crate) ballot: Vec<i8>,
    /// (rows, cols) i16, the votes of this step; empty when a step is one micro-batch.
    pub(crate) votes: Vec<i16>,
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

impl Consensus {
    pub(crate) fn new(grid: &Grid, rows: usize, cols: usize, many_micro_batches: bool) -> Self {
        let n_tiles = rows.div_ceil(TILE_ROWS);
        let largest_gap = (0..grid.len() as u8)
            .filter_map(|code| grid.gap_up(code))
            .fold(0.0, f32::max);
        Consensus {
            ballot: vec![0; rows * cols],
            votes: if many_micro_batches {
                vec![0; rows * cols]
            } else {
                Vec::new()
            },
            table: FlipTable::new(grid, MAX_VOTES),
            quantum: largest_gap / f32::from(MAX_VOTES),
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

    pub(crate) fn begin_step(&mut self, ctx: &StepContext<'_>) {
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

    pub(crate) fn discard(&mut self) {
        self.votes.fill(0);
        self.clear_step();
    }

    /// Votes that one unit of normalised gradient casts in a micro-batch: η·ρ/(q·M).
    fn votes_per_unit(&self, ctx: &StepContext<'_>) -> f32 {
        ConsensusStep::new(ctx, self.quantum, 0.0).votes_per_unit
    }

    /// The factors of a micro-batch, copied so that the rows can be borrowed mutably beside it.
    pub(crate) fn caster(&self, ctx: &StepContext<'_>, tensor: u16, micro_batch: u16) -> Caster {
        let unit = self.votes_per_unit(ctx) * self.noise_factor;
        Caster {
            isa: ctx.isa,
            unit,
            limit: ctx.config.vote_clip * unit,
            blend: self.blend,
            rng: VoteRng {
                seed: ctx.seed,
                stream: CAST_STREAM,
                step: ctx.step,
                tensor,
                micro_batch,
            },
        }
    }

    /// The buffers of `rows`, whose start is a multiple of [`TILE_ROWS`].
    pub(crate) fn rows(&mut self, rows: Range<usize>) -> VoteRows<'_> {
        let cols = self.cols;
        let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
        let elements = rows.start * cols..rows.end * cols;
        let target = if self.votes.is_empty() {
            Target::Ballot(&mut self.ballot[elements])
        } else {
            Target::Wide(&mut self.votes[elements])
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

    pub(crate) fn end_micro_batch(&mut self) {
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
    pub(crate) fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.row_sum);
        to.f32(&mut self.col_sum);
        to.f64(&mut self.expected_sq);
        to.f64(&mut self.rounding_var);
    }

    /// Counts the votes of the step in `rows` and flips.
    pub(crate) fn count(
        &mut self,
        ctx: &StepContext<'_>,
        tensor: u16,
        matrix: &mut QuantMatrix,
        rows: Range<usize>,
    ) -> Counted {
        let leak = ConsensusStep::new(ctx, self.quantum, 0.0).leak_q24;
        let rng = VoteRng {
            seed: ctx.seed,
            stream: LEAK_STREAM,
            step: ctx.step,
            tensor,
            micro_batch: 0,
        };
        let (cols, row_bytes, high_row_bytes) =
            (matrix.cols(), matrix.row_bytes(), matrix.high_row_bytes());
        let (nibbles, high, _) = matrix.planes_mut();
        let of_width = |width: usize| rows.start * width..rows.end * width;
        let votes = if self.votes.is_empty() {
            &mut []
        } else {
            &mut self.votes[of_width(cols)]
        };
        let tiles = CountRows {
            first_row: rows.start,
            rows: rows.len(),
            cols,
            row_bytes,
            high_row_bytes,
            nibbles: &mut nibbles[of_width(row_bytes)],
            high: high.map(|high| &mut high[of_width(high_row_bytes)]),
            ballot: &mut self.ballot[of_width(cols)],
            votes,
        };
        let table = &self.table;
        for_each_tile(tiles, &|tile: CountRows<'_>| {
            tile.count(ctx.isa, table, leak, &rng)
        })
    }

    /// Updates the statistics after all rows are counted.
    pub(crate) fn update_statistics(&mut self, ctx: &StepContext<'_>, sum_votes_sq: i64) {
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
        if !self.votes.is_empty() && unit > 0.0 {
            // In units of one vote per unit of gradient, so that the schedule drops out.
            let summed_sq = ((sum_votes_sq as f64 - self.rounding_var) / (unit * unit)) as f32;
            *a = decay * *a + (1.0 - decay) * summed_sq;
            *b = decay * *b + (1.0 - decay) * (self.expected_sq / (unit * unit)) as f32;
        }
        *updates += 1.0;
    }

    /// The state, for another device.
    pub(crate) fn parts(&mut self) -> ConsensusParts<'_> {
        ConsensusParts {
            ballot: &mut self.ballot,
            row_mean: &mut self.row_mean,
            col_mean: &mut self.col_mean,
            moments: &mut self.moments,
            table: &self.table,
            quantum: self.quantum,
        }
    }

    /// (ballots, wide votes, statistics) as allocated.
    pub(crate) fn allocated_bytes(&self) -> (u64, u64, u64) {
        let floats = [
            &self.row_mean,
            &self.col_mean,
            &self.row_sum,
            &self.col_sum,
            &self.tile_col,
            &self.col_factor,
        ];
        let floats: usize = floats.iter().map(|values| values.len()).sum();
        let casts = std::mem::size_of_val(self.tile_cast.as_slice());
        (
            self.ballot.len() as u64,
            2 * self.votes.len() as u64,
            (4 * floats + casts) as u64,
        )
    }

    pub(crate) fn statistics_bytes(&self) -> u64 {
        4 * (self.row_mean.len() + self.col_mean.len() + self.moments.len()) as u64
    }

    pub(crate) fn visit<'a>(&'a self, name: &str, rows: usize, to: &mut dyn StateVisitor<'a>) {
        to.i8(&format!("{name}.ballot"), &[rows, self.cols], &self.ballot);
        to.f32(&format!("{name}.row_mean"), &[rows], &self.row_mean);
        to.f32(&format!("{name}.col_mean"), &[self.cols], &self.col_mean);
        to.f32(&format!("{name}.moments"), &[3], &self.moments);
    }

    pub(crate) fn load(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        file: &TensorFile,
    ) -> Result<(), OptimError> {
        self.ballot = file.i8(&format!("{name}.ballot"), &[rows, cols])?;
        self.row_mean = file.f32(&format!("{name}.row_mean"), &[rows])?;
        self.col_mean = file.f32(&format!("{name}.col_mean"), &[cols])?;
        let moments = file.f32(&format!("{name}.moments"), &[3])?;
        self.moments.copy_from_slice(&moments);
        Ok(())
    }
}

/// Casts the votes of one micro-batch, row by row.
pub(crate) struct Caster {
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
    pub(crate) fn cast(&self, row: &GradientRow<'_>, to: &mut VoteRows<'_>) -> bool {
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
pub(crate) struct VoteRows<'a> {
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

/// What a count of some rows of a matrix gave: sums whose order does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Weights that moved.
    pub flips: u64,
    /// Sum of the squares of their summed votes, 0 where the rule does not use it.
    pub sum_votes_sq: i64,
}

impl std::ops::Add for Counted {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Counted {
            flips: self.flips + other.flips,
            sum_votes_sq: self.sum_votes_sq + other.sum_votes_sq,
        }
    }
}

/// Buffers of a range of rows during the count.
struct CountRows<'a> {
    first_row: usize,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    high_row_bytes: usize,
    nibbles: &'a mut [u8],
    high: Option<&'a mut [u8]>,
    ballot: &'a mut [i8],
    /// Empty when votes went straight into the ballot.
    votes: &'a mut [i16],
}

impl CountRows<'_> {
    fn count(
        self,
        isa: primal_kernels::Isa,
        table: &FlipTable,
        leak: u32,
        rng: &VoteRng,
    ) -> Counted {
        let mut high = self
            .high
            .map(|high| high.chunks_exact_mut(self.high_row_bytes));
        let mut votes = self.votes.chunks_exact_mut(self.cols);
        let mut total = Counted {
            flips: 0,
            sum_votes_sq: 0,
        };
        let rows = self
            .nibbles
            .chunks_exact_mut(self.row_bytes)
            .zip(self.ballot.chunks_exact_mut(self.cols));
        for (i, (nibbles, ballot)) in rows.enumerate() {
            let high = high.as_mut().and_then(Iterator::next);
            let row = (self.first_row + i) as u32;
            let stats = count_row(
                isa,
                nibbles,
                high,
                self.cols,
                ballot,
                votes.next(),
                table,
                leak,
                rng,
                row,
            );
            total.flips += u64::from(stats.flips);
            total.sum_votes_sq += stats.sum_votes_sq;
        }
        total
    }
}

impl SplitRows for CountRows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn split_at(self, row: usize) -> (Self, Self) {
        let CountRows {
            first_row,
            rows,
            cols,
            row_bytes,
            high_row_bytes,
            ..
        } = self;
        let (nibbles_a, nibbles_b) = cut(self.nibbles, row, row_bytes);
        let (high_a, high_b) = match self.high {
            Some(high) => {
                let (a, b) = cut(high, row, high_row_bytes);
                (Some(a), Some(b))
            }
            None => (None, None),
        };
        let (ballot_a, ballot_b) = cut(self.ballot, row, cols);
        let (votes_a, votes_b) = cut(self.votes, row, cols);
        let part = |first_row, rows, nibbles, high, ballot, votes| CountRows {
            first_row,
            rows,
            cols,
            row_bytes,
            high_row_bytes,
            nibbles,
            high,
            ballot,
            votes,
        };
        (
            part(first_row, row, nibbles_a, high_a, ballot_a, votes_a),
            part(
                first_row + row,
                rows - row,
                nibbles_b,
                high_b,
                ballot_b,
                votes_b,
            ),
        )
    }
}
