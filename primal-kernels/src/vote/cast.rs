//! Casting: from a row of the gradient to stochastic integer votes.

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

use super::rng::{BLOCK_VECTORS, Draws, VoteRng};
use super::{BALLOT_LIMIT, clamp};

/// What [`gradient_row_stats`] sums over a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowStats {
    /// Sum of (grad * scale)^2.
    pub sum_sq: f32,
    /// Sum of grad * value: the gradient of the row scale.
    pub dot: f32,
}

/// Sums of one row of the gradient with respect to weights. `grad` and `values` (the row's grid
/// values, no scale) are (cols) f32; g = grad * scale is the gradient with respect to grid values
/// and `column_sq[j] += g[j]^2`.
///
/// # Panics
/// If the lengths differ.
pub fn gradient_row_stats(
    isa: Isa,
    grad: &[f32],
    values: &[f32],
    scale: f32,
    column_sq: &mut [f32],
) -> RowStats {
    let cols = grad.len();
    assert_eq!(
        [values.len(), column_sq.len()],
        [cols; 2],
        "values and sums of {cols} columns"
    );
    dispatch!(isa, row_stats_lanes(grad, values, scale, column_sq))
}

/// What casting sums over a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CastStats {
    /// Sum of u^2, the squared steps in units of a vote, after the limit.
    pub sum_u_sq: f32,
    /// Sum of f (1 - f) with f the fraction of |u|: the variance that rounding adds.
    pub sum_rounding_var: f32,
}

/// Casts a row's votes into its ballot. u = -(grad * row_factor) * column_factor in votes,
/// limited to +-`limit` (at most 32767), NaN as 0; the vote is sign(u) * floor(|u| + r) with r = [`crate::uniform16`] /
/// 65536, exactly (fractions of |u| below 1/65536 are dropped). `ballot += vote`, saturating at
/// +-127. All slices are (cols).
///
/// # Panics
/// If the lengths differ or a field of `rng` is out of its range.
pub fn cast_votes_i8(
    isa: Isa,
    grad: &[f32],
    row_factor: f32,
    column_factor: &[f32],
    limit: f32,
    rng: &VoteRng,
    row: u32,
    ballot: &mut [i8],
) -> CastStats {
    let cols = grad.len();
    assert_eq!(
        [column_factor.len(), ballot.len()],
        [cols; 2],
        "factors, ballot of {cols} columns"
    );
    dispatch!(
        isa,
        cast_lanes(grad, row_factor, column_factor, limit, rng, row, ballot)
    )
}

/// [`cast_votes_i8`] into a wide sum that saturates at +-32767.
///
/// # Panics
/// If the lengths differ or a field of `rng` is out of its range.
pub fn cast_votes_i16(
    isa: Isa,
    grad: &[f32],
    row_factor: f32,
    column_factor: &[f32],
    limit: f32,
    rng: &VoteRng,
    row: u32,
    votes: &mut [i16],
) -> CastStats {
    let cols = grad.len();
    assert_eq!(
        [column_factor.len(), votes.len()],
        [cols; 2],
        "factors, votes of {cols} columns"
    );
    dispatch!(
        isa,
        cast_lanes(grad, row_factor, column_factor, limit, rng, row, votes)
    )
}

#[inline(always)]
fn row_stats_lanes<L: Lanes>(
    lanes: L,
    grad: &[f32],
    values: &[f32],
    scale: f32,
    column_sq: &mut [f32],
) -> RowStats {
    let scale = lanes.splat(scale);
    let (mut sum_sq, mut dot) = (lanes.zero(), lanes.zero());
    let (grad, grad_tail) = grad.as_chunks::<LANES>();
    let (values, value_tail) = values.as_chunks::<LANES>();
    let (column_sq, column_tail) = column_sq.as_chunks_mut::<LANES>();
    for ((grad, value), column) in grad.iter().zip(values).zip(column_sq) {
        let grad = lanes.load(grad);
        let scaled = lanes.mul(grad, scale);
        let squared = lanes.mul(scaled, scaled);
        sum_sq = lanes.add(sum_sq, squared);
        dot = lanes.mul_then_add(grad, lanes.load(value), dot);
        lanes.store(lanes.add(lanes.load(column), squared), column);
    }
    if !grad_tail.is_empty() {
        let grad = lanes.load_tail(grad_tail);
        let scaled = lanes.mul(grad, scale);
        let squared = lanes.mul(scaled, scaled);
        sum_sq = lanes.add(sum_sq, squared);
        dot = lanes.mul_then_add(grad, lanes.load_tail(value_tail), dot);
        lanes.store_tail(
            lanes.add(lanes.load_tail(column_tail), squared),
            column_tail,
        );
    }
    RowStats {
        sum_sq: lanes.sum(sum_sq),
        dot: lanes.sum(dot),
    }
}

/// What votes are added up in.
trait VoteSum: Copy + Default {
    const LIMIT: i32;
    fn load<L: Lanes>(lanes: L, from: &[Self; 16]) -> L::I;
    fn store<L: Lanes>(lanes: L, x: L::I, to: &mut [Self; 16]);
}

impl VoteSum for i8 {
    const LIMIT: i32 = BALLOT_LIMIT;
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[i8; 16]) -> L::I {
        lanes.load_i8(from)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::I, to: &mut [i8; 16]) {
        lanes.store_i8(x, to);
    }
}

impl VoteSum for i16 {
    const LIMIT: i32 = 32767;
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[i16; 16]) -> L::I {
        lanes.load_i16(from)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::I, to: &mut [i16; 16]) {
        lanes.store_i16(x, to);
    }
}

#[inline(always)]
fn cast_lanes<L: Lanes, S: VoteSum>(
    lanes: L,
    grad: &[f32],
    row_factor: f32,
    column_factor: &[f32],
    limit: f32,
    rng: &VoteRng,
    row: u32,
    target: &mut [S],
) -> CastStats {
    let draws = Draws::new(rng, row);
    let mut caster = Caster {
        row_factor: lanes.splat(row_factor),
        limit: lanes.splat(limit.min(32767.0)),
        sum_u_sq: lanes.zero(),
        sum_rounding_var: lanes.zero(),
    };
    let (grad, grad_tail) = grad.as_chunks::<LANES>();
    let (factor, factor_tail) = column_factor.as_chunks::<LANES>();
    let (target, target_tail) = target.as_chunks_mut::<LANES>();
    let blocks = grad
        .chunks(BLOCK_VECTORS)
        .zip(factor.chunks(BLOCK_VECTORS))
        .zip(target.chunks_mut(BLOCK_VECTORS));
    for (block, ((grad, factor), target)) in blocks.enumerate() {
        let uniforms = draws.block(lanes, block);
        for (((grad, factor), target), uniform) in grad.iter().zip(factor).zip(target).zip(uniforms)
        {
            caster.vector(lanes, lanes.load(grad), lanes.load(factor), uniform, target);
        }
    }
    if !grad_tail.is_empty() {
        let uniform = draws.block(lanes, grad.len() / BLOCK_VECTORS)[grad.len() % BLOCK_VECTORS];
        let mut padded = [S::default(); LANES];
        padded[..target_tail.len()].copy_from_slice(target_tail);
        let (grad, factor) = (lanes.load_tail(grad_tail), lanes.load_tail(factor_tail));
        caster.vector(lanes, grad, factor, uniform, &mut padded);
        target_tail.copy_from_slice(&padded[..target_tail.len()]);
    }
    // The variances were summed in units of 1 / 65536^2.
    let unit = 1.0 / (65536.0 * 65536.0);
    CastStats {
        sum_u_sq: lanes.sum(caster.sum_u_sq),
        sum_rounding_var: lanes.sum(caster.sum_rounding_var) * unit,
    }
}

/// The state of casting one row.
struct Caster<L: Lanes> {
    row_factor: L::F,
    limit: L::F,
    sum_u_sq: L::F,
    sum_rounding_var: L::F,
}

impl<L: Lanes> Caster<L> {
    #[inline(always)]
    fn vector<S: VoteSum>(
        &mut self,
        lanes: L,
        grad: L::F,
        column_factor: L::F,
        uniform: L::I,
        target: &mut [S; LANES],
    ) {
        let minus_u = lanes.mul(lanes.mul(grad, self.row_factor), column_factor);
        // `max` gives its second argument for NaN: no vote.
        let size = lanes.min(lanes.max(lanes.abs(minus_u), lanes.zero()), self.limit);
        self.sum_u_sq = lanes.mul_then_add(size, size, self.sum_u_sq);

        // |u| in 16.16 fixed point: below 2^31 even with the uniform added.
        let fixed = lanes.truncate(lanes.mul(size, lanes.splat(65536.0)));
        let fraction = lanes.convert(lanes.and(fixed, lanes.splat_i(0xffff)));
        let rest = lanes.sub(lanes.splat(65536.0), fraction);
        self.sum_rounding_var = lanes.mul_then_add(fraction, rest, self.sum_rounding_var);

        let vote = lanes.shr(lanes.add_i(fixed, uniform), 16);
        // s - (vote ^ s) is -vote for s = 0 and vote for s = -1, where -u is negative.
        let s = lanes.shr_signed(lanes.to_bits(minus_u), 31);
        let vote = lanes.sub_i(s, lanes.xor(vote, s));
        let sum = lanes.add_i(S::load(lanes, target), vote);
        S::store(lanes, clamp(lanes, sum, S::LIMIT), target);
    }
}
