//! The votes of the rule `classic`: one where a gradient stands out of its matrix, flips by chance.

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

use super::count::{check_planes, code_at, set_code};
use super::rng::{BLOCK_COLS, VoteRng, uniform_block};

/// What the threshold of a matrix is taken from: the sizes of its gradients. Rows are added up in
/// f32 lanes, the matrix in f64, row after row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GradientSizes {
    sum: f64,
    sum_sq: f64,
    elements: usize,
}

impl GradientSizes {
    /// Takes in the next row.
    pub fn add_row(&mut self, isa: Isa, grad: &[f32]) {
        let [sum, sum_sq] = dispatch!(isa, sizes_lanes(grad));
        self.sum += f64::from(sum);
        self.sum_sq += f64::from(sum_sq);
        self.elements += grad.len();
    }

    /// The mean of |g| plus `k` standard deviations of it.
    pub fn threshold(&self, k: f32) -> f32 {
        let n = self.elements.max(1) as f64;
        let mean = self.sum / n;
        let std = (self.sum_sq / n - mean * mean).max(0.0).sqrt();
        (mean + f64::from(k) * std) as f32
    }
}

/// Σ |g| and Σ g².
#[inline(always)]
fn sizes_lanes<L: Lanes>(lanes: L, grad: &[f32]) -> [f32; 2] {
    let (mut sum, mut sum_sq) = (lanes.zero(), lanes.zero());
    let (whole, tail) = grad.as_chunks::<LANES>();
    for g in whole {
        let g = lanes.load(g);
        sum = lanes.add(sum, lanes.abs(g));
        sum_sq = lanes.mul_then_add(g, g, sum_sq);
    }
    let g = lanes.load_tail(tail);
    sum = lanes.add(sum, lanes.abs(g));
    sum_sq = lanes.mul_then_add(g, g, sum_sq);
    [lanes.sum(sum), lanes.sum(sum_sq)]
}

/// A vote against the sign of every gradient that is larger than `threshold`, into the sums of
/// votes.
///
/// # Panics
/// If the lengths differ.
pub fn cast_classic(grad: &[f32], threshold: f32, votes: &mut [i16]) {
    assert_eq!(grad.len(), votes.len(), "a vote a gradient");
    for (vote, &g) in votes.iter_mut().zip(grad) {
        if g.abs() > threshold {
            *vote = vote.saturating_sub(g.signum() as i16);
        }
    }
}

/// Counts a row by the rule `classic`: a weight with votes moves one rank by their sign with
/// probability `p_q16` / 65536, unless it is at the end of the grid (code 0 or `last_code`).
/// `votes` is (cols) i16 and is cleared; the planes are packed as in [`crate::decode_values`].
/// Returns the number of flips.
///
/// # Panics
/// If the lengths do not agree or a field of `rng` is out of its range.
pub fn count_classic_row(
    nibbles: &mut [u8],
    mut high: Option<&mut [u8]>,
    votes: &mut [i16],
    last_code: u8,
    p_q16: u32,
    rng: &VoteRng,
    row: u32,
) -> u32 {
    check_planes(nibbles, high.as_deref(), votes.len());
    let mut flips = 0;
    for (block, votes) in votes.chunks_mut(BLOCK_COLS).enumerate() {
        let uniforms = uniform_block(rng, row, block as u32);
        for (i, vote) in votes.iter_mut().enumerate() {
            let vote = std::mem::take(vote);
            if vote == 0 || u32::from(uniforms[i]) >= p_q16 {
                continue;
            }
            let col = block * BLOCK_COLS + i;
            let old = code_at(nibbles, high.as_deref(), col);
            let new = if vote > 0 {
                old.saturating_add(1).min(last_code)
            } else {
                old.saturating_sub(1)
            };
            flips += u32::from(new != old);
            set_code(nibbles, high.as_deref_mut(), col, new);
        }
    }
    flips
}
