//! Codes with row scales that learn: what every rule on a grid has, and the count that moves codes
//! by ballots.

use std::ops::Range;

use primal_kernels::{FlipTable, Isa, VoteRng, count_row};
use primal_lut::{Grid, QuantMatrix, TensorFile};

use crate::float::AdamState;
use crate::parts::CodeRule;
use crate::rows::{GradientRow, ScaleRows};
use crate::rule::{Counted, MakeRows, MatrixPlan, NewMatrix};
use crate::tiles::{SplitRows, cut, for_each_tile};
use crate::weight::group_or_row;
use crate::{OptimError, StateVisitor, StepContext, WeightBytes, WeightParts};

/// A matrix on the grid whose scales learn by AdamW.
#[derive(Clone, Debug)]
pub(crate) struct Codes {
    pub(crate) matrix: QuantMatrix,
    pub(crate) scales: AdamState,
}

impl Codes {
    /// The nearest codes to `new.initial` under one scale for all.
    pub(crate) fn nearest(new: &NewMatrix<'_>) -> Result<Self, OptimError> {
        let (rows, cols) = new.size;
        let scales = vec![new.scale_per_std * new.std; rows * cols.div_ceil(new.group)];
        let grid = new.grid.ok_or(OptimError::NoGrid)?;
        let matrix = QuantMatrix::quantise(grid, rows, cols, new.group, &new.initial, scales)?;
        let scales = AdamState::new(matrix.scales().len());
        Ok(Codes { matrix, scales })
    }

    /// Makes the gradient of a tile of rows, sums that of the scales and hands the rows to `each`,
    /// together with their part of `state`. Returns the rows that were refused or not finite.
    pub(crate) fn accumulate<S: SplitRows>(
        &mut self,
        ctx: &StepContext<'_>,
        rows: Range<usize>,
        make: MakeRows<'_>,
        state: S,
        each: &(impl Fn(&GradientRow<'_>, &mut S) -> bool + Sync),
    ) -> u32 {
        let matrix = &self.matrix;
        let tiles = (ScaleRows::new(matrix, rows, &mut self.scales.grad), state);
        for_each_tile(tiles, &|(tile, mut state): (ScaleRows<'_>, S)| {
            tile.accumulate(ctx.isa, matrix, make, |row| each(&row, &mut state))
        })
    }

    /// Moves the scales.
    pub(crate) fn step_scales(&mut self, ctx: &StepContext<'_>, grad_factor: f32) {
        let rate = ctx.config.lr * ctx.rate * ctx.config.scale_lr_ratio;
        self.scales
            .step(ctx, self.matrix.scales_mut(), grad_factor, rate, 0.0);
    }

    pub(crate) fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>) {
        self.scales
            .visit(&format!("{name}.scales"), &self.scale_shape(), to);
    }

    pub(crate) fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        let shape = self.scale_shape();
        self.scales.load(&format!("{name}.scales"), &shape, file)
    }

    /// (rows) of one scale per row, else (rows, groups).
    fn scale_shape(&self) -> Vec<usize> {
        match self.matrix.groups_per_row() {
            1 => vec![self.matrix.rows()],
            groups => vec![self.matrix.rows(), groups],
        }
    }

    /// The state, with what `rule` keeps, for another device.
    pub(crate) fn parts_mut<'a>(&'a mut self, rule: CodeRule<'a>) -> WeightParts<'a> {
        WeightParts::Codes {
            matrix: &mut self.matrix,
            scale_moments: self.scales.moments_mut(),
            rule,
        }
    }

    /// Bytes of the scales and what moves them.
    pub(crate) fn bytes(&self) -> WeightBytes {
        WeightBytes {
            float_state: 4 * self.matrix.scales().len() as u64 + self.scales.allocated_bytes(),
            ..Default::default()
        }
    }

    /// The same, with the codes, of a matrix that is not there yet.
    pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
        let (rows, cols) = matrix.size;
        let is_wide = matrix.grid.is_some_and(Grid::is_wide);
        let high = if is_wide { rows * cols.div_ceil(8) } else { 0 };
        let scales = (rows * cols.div_ceil(group_or_row(matrix.group, cols).max(1))) as u64;
        WeightBytes {
            values: (rows * cols.div_ceil(2) + high) as u64,
            // A scale, its gradient and two moments.
            float_state: 16 * scales,
            ..Default::default()
        }
    }

    /// Counts the votes of `rows`: they go into the ballot, which leaks, and where it reaches what
    /// `table` asks for, the weight flips. `votes` may be empty; they are cleared.
    pub(crate) fn count(
        &mut self,
        isa: Isa,
        rows: Range<usize>,
        ballot: &mut [i8],
        votes: &mut [i16],
        table: &FlipTable,
        leak_q24: u32,
        rng: &VoteRng,
    ) -> Counted {
        let matrix = &mut self.matrix;
        let (cols, row_bytes, high_row_bytes) =
            (matrix.cols(), matrix.row_bytes(), matrix.high_row_bytes());
        let (nibbles, high, _) = matrix.planes_mut();
        let of_width = |width: usize| rows.start * width..rows.end * width;
        let tiles = CountRows {
            first_row: rows.start,
            rows: rows.len(),
            cols,
            row_bytes,
            high_row_bytes,
            nibbles: &mut nibbles[of_width(row_bytes)],
            high: high.map(|high| &mut high[of_width(high_row_bytes)]),
            ballot: &mut ballot[of_width(cols)],
            votes: if votes.is_empty() {
                votes
            } else {
                &mut votes[of_width(cols)]
            },
        };
        for_each_tile(tiles, &|tile: CountRows<'_>| {
            tile.count(isa, table, leak_q24, rng)
        })
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
    fn count(self, isa: Isa, table: &FlipTable, leak: u32, rng: &VoteRng) -> Counted {
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
