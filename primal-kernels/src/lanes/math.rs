//! exp from the lanes' own operations, and ln in float64: the same bits in every tier, with every
//! C library and on a GPU.

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
    let result = lanes.bits_to_float(lanes.add_i(lanes.to_bits(p), power));
    let result = lanes.select(lanes.lt(x, lanes.splat(LOWEST)), lanes.zero(), result);
    let too_large = lanes.lt(lanes.splat(HIGHEST), x);
    lanes.select(too_large, lanes.splat(f32::INFINITY), result)
}

/// ln x of a positive, normal, finite x, to less than one unit in the last place; infinity and NaN
/// stay what they are. x = m · 2^e with m in [1/√2, √2), then the series of
/// 2 artanh((m − 1) / (m + 1)).
pub(crate) fn ln(x: f32) -> f32 {
    const ROOT_HALF_BITS: i32 = 0x3f35_04f3;
    let bits = x.to_bits().cast_signed();
    if !(0x0080_0000..0x7f80_0000).contains(&bits) {
        return x * f32::INFINITY;
    }
    let exponent = (bits - ROOT_HALF_BITS) >> 23;
    let m = f64::from(f32::from_bits((bits - (exponent << 23)).cast_unsigned()));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 19.0;
    for odd in [17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        p = p * z + 1.0 / odd;
    }
    p = p * z + 1.0;
    (f64::from(exponent) * std::f64::consts::LN_2 + 2.0 * s * p) as f32
}

#[cfg(test)]
mod tests {
    use super::ln;

    #[test]
    fn ln_is_within_half_a_unit_and_a_little() {
        let mut x = f32::MIN_POSITIVE;
        while x < 1e38 {
            let exact = f64::from(x).ln();
            let error = (f64::from(ln(x)) - exact).abs();
            assert!(
                error <= 0.5001 * f64::from(f32::EPSILON) * exact.abs(),
                "{x}"
            );
            x *= 1.000_37;
        }
        assert_eq!((ln(1.0), ln(f32::INFINITY)), (0.0, f32::INFINITY));
        assert!(ln(f32::NAN).is_nan());
    }
}
