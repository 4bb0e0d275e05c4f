//! What a matrix takes in memory during a run, from its sizes alone.

use crate::{MatrixPlan, Rule};

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
    /// What the thread that takes steps comes to hold for this matrix: one buffer serves all of
    /// them, so that of several the largest counts, and none in the total.
    pub scratch: u64,
}

impl WeightBytes {
    /// The account of a matrix under `rule`. One that is on no grid learns in float.
    pub fn plan(rule: Rule, matrix: &MatrixPlan<'_>) -> Self {
        let rule = rule.of_matrix(matrix.grid.is_some());
        rule.plan(matrix)
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
        self.scratch = self.scratch.max(other.scratch);
    }
}
