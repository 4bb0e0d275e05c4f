//! exp and tanh from the lanes' own operations: the same bits in every tier.

use std::f32::consts::LOG2_E;

use super::Lanes;

/// e^x, to about one unit in the last place. Below -87.33 (where the result would be
/// subnormal) it is 0, above 88.37 infinite; exp(0) is exactly 1; NaN stays NaN.
/// Range reduction by ln 2 in two parts, then the polynomial of Cephes `expf`.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(lanes: L, x: L::F) -> L::F {
    const LOWEST: f32 = -87.33;
    const HIGHEST: f32 = 88.37;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 with nine bits, so that its product with any exponent is exact, and the rest.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let clamped = lanes.max(lanes.splat(LOWEST), lanes.min(lanes.splat(HIGHEST), x));
    let rounder = lanes.splat(ROUND);
    let shifted = lanes.mul_then_add(clamped, lanes.splat(LOG2_E), rounder);
    let exponent = lanes.sub(shifted, rounder);
    let r = lanes.sub(clamped, lanes.mul(exponent, lanes.splat(LN_2_HIGH)));
    let r = lanes.sub(r, lanes.mul(exponent, lanes.splat(LN_2_LOW)));

    let mut p = lanes.splat(1.987_569_1e-4);
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ] {
        p = lanes.mul_then_add(p, r, lanes.splat(coefficient));
    }
    let p = lanes.mul_then_add(p, lanes.mul(r, r), r);
    let p = lanes.add(p, lanes.splat(1.0));

    let power = lanes.shl(lanes.to_bits(shifted), 23);
    let result = lanes.from_bits(lanes.add_i(lanes.to_bits(p), power));
    let result = lanes.select(lanes.lt(x, lanes.splat(LOWEST)), lanes.zero(), result);
    let too_large = lanes.lt(lanes.splat(HIGHEST), x);
    lanes.select(too_large, lanes.splat(f32::INFINITY), result)
}

/// tanh x with a relative error below 1e-6; odd; NaN stays NaN.
/// Below 0.625 the polynomial of Cephes `tanhf`, above 1 - 2 / (e^2|x| + 1).
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let one = lanes.splat(1.0);
    let size = lanes.abs(x);
    let squared = lanes.mul(x, x);
    let mut p = lanes.splat(-5.704_988_7e-3);
    for coefficient in [2.063_908_8e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_82] {
        p = lanes.mul_then_add(p, squared, lanes.splat(coefficient));
    }
    let small = lanes.mul_then_add(lanes.mul(p, squared), x, x);

    // From 10 on the result is 1 in f32; the limit keeps e^2|x| finite.
    let grown = exp(lanes, lanes.min(lanes.splat(20.0), lanes.add(size, size)));
    let large = lanes.sub(one, lanes.div(lanes.splat(2.0), lanes.add(grown, one)));
    let large = lanes.select(lanes.lt(x, lanes.zero()), lanes.neg(large), large);
    lanes.select(lanes.lt(size, lanes.splat(0.625)), small, large)
}
