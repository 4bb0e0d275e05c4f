//! What a matrix takes in memory during a run, from its sizes alone.

use primal_lut::Grid;

use crate::Rule;
use crate::tiles::TILE_ROWS;
use crate::weight::group_or_row;

/// Bytes of one matrix and everything that trains it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Packed codes, or float values.
    pub values: u64,
    /// Persistent votes.
    pub ballots: u64,
    /// Votes of the step at hand, when it has several micro-batches.
    pub votes: u64,
    /// Row scales; gradients and moments of float parts; latent weights; kept gradients.
    pub float_state: u64,
    /// Row and column statistics and the partial sums of tiles.
    pub statistics: u64,
}

impl WeightBytes {
    /// The account of a (rows, cols) matrix. `grid` is `None` for a float matrix; `group` columns
    /// share a scale, 0 is a row.
    pub fn plan(
        (rows, cols): (usize, usize),
        grid: Option<&Grid>,
        group: usize,
        rule: Rule,
        many_micro_batches: bool,
    ) -> Self {
        let (n, rows_n, cols_n) = ((rows * cols) as u64, rows as u64, cols as u64);
        let adam = |len: u64| 12 * len;
        let Some(grid) = grid.filter(|_| rule != Rule::Adamw) else {
            return WeightBytes {
                values: 4 * n,
                float_state: adam(n),
                ..Default::default()
            };
        };
        let high = if grid.is_wide() {
            rows * cols.div_ceil(8)
        } else {
            0
        };
        let values = (rows * cols.div_ceil(2) + high) as u64;
        let n_scales = (rows * cols.div_ceil(group_or_row(group, cols).max(1))) as u64;
        let scales = 4 * n_scales;
        let on_grid = WeightBytes {
            values,
            float_state: scales + adam(n_scales),
            ..Default::default()
        };
        match rule {
            Rule::Frozen => on_grid,
            Rule::Classic => WeightBytes {
                votes: 2 * n,
                float_state: on_grid.float_state + 4 * n,
                ..on_grid
            },
            Rule::Shadow => WeightBytes {
                float_state: scales + 4 * n + adam(n),
                ..on_grid
            },
            Rule::Consensus | Rule::Adamw => {
                let tiles = rows.div_ceil(TILE_ROWS) as u64;
                WeightBytes {
                    ballots: n,
                    votes: if many_micro_batches { 2 * n } else { 0 },
                    statistics: 4 * (2 * rows_n + 3 * cols_n + tiles * cols_n + 2 * tiles),
                    ..on_grid
                }
            }
        }
    }

    /// What is left of such a matrix when it does not learn: values and scales.
    pub fn still(self, on_grid: bool) -> Self {
        // Under `frozen` the float state is scale, gradient and two moments.
        let scales = if on_grid { self.float_state / 4 } else { 0 };
        WeightBytes {
            values: self.values,
            float_state: scales,
            ..Default::default()
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.values + self.ballots + self.votes + self.float_state + self.statistics
    }
}

impl std::ops::AddAssign for WeightBytes {
    fn add_assign(&mut self, other: Self) {
        self.values += other.values;
        self.ballots += other.ballots;
        self.votes += other.votes;
        self.float_state += other.float_state;
        self.statistics += other.statistics;
    }
}
