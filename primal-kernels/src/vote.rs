//! Votes: drawing, casting, counting and flipping, in integers that every tier agrees on.

mod cast;
mod classic;
mod count;
mod rng;

pub use cast::{CastStats, RowStats, cast_votes_i8, cast_votes_i16, gradient_row_stats};
pub use classic::{GradientSizes, cast_classic, count_classic_row};
pub use count::{CountStats, FlipTable, count_row};
#[cfg(feature = "cuda")]
pub(crate) use rng::{PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS};
pub use rng::{VoteRng, philox4x32, uniform16};

use crate::lanes::Lanes;

/// A ballot's largest entry, either sign.
pub(crate) const BALLOT_LIMIT: i32 = 127;

#[inline(always)]
fn clamp<L: Lanes>(lanes: L, x: L::I, limit: i32) -> L::I {
    lanes.max_i(lanes.min_i(x, lanes.splat_i(limit)), lanes.splat_i(-limit))
}

#[cfg(test)]
mod tests;
