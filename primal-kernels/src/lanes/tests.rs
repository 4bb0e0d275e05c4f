//! Every operation of every tier against a plain computation, all tiers bit-equal.

use super::{Lanes, exp};
use crate::isa::{Isa, dispatch};

/// Values that reach the corners: signs, zeros, subnormals, infinities, large and small.
const SAMPLE: [f32; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    3.25e7,
    -2.0e-40,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.3,
    -0.7,
    1e-20,
    -1e20,
    5.5,
    65504.0,
    -12345.678,
    0.999_999_9,
];

fn lanes_of(seed: u32) -> [i32; 16] {
    let mut state = seed;
    std::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state ^ state >> 15).cast_signed()
    })
}

#[inline(always)]
fn float_ops<L: Lanes>(lanes: L, a: &[f32; 16], b: &[f32; 16], out: &mut [[u32; 16]]) {
    let (x, y) = (lanes.load(a), lanes.load(b));
    let mask = lanes.lt(x, y);
    let results = [
        lanes.add(x, y),
        lanes.sub(x, y),
        lanes.mul(x, y),
        lanes.div(x, y),
        lanes.sqrt(lanes.abs(x)),
        lanes.min(x, y),
        lanes.max(x, y),
        lanes.abs(x),
        lanes.mul_then_add(x, y, x),
        lanes.select(mask, x, y),
        lanes.load_tail(&a[..11]),
    ];
    for (result, out) in results.into_iter().zip(out.iter_mut()) {
        let mut values = [0.0; 16];
        lanes.store(result, &mut values);
        *out = values.map(|v| {
            if v.is_nan() {
                f32::NAN.to_bits()
            } else {
                v.to_bits()
            }
        });
    }
    out[11] = [u32::from(lanes.mask_bits(mask)); 16];
    let finite = lanes.min(lanes.splat(1e6), lanes.max(lanes.splat(-1e6), x));
    out[12] = [lanes.sum(finite).to_bits(); 16];
    out[13] = [lanes.max_lane(finite).to_bits(); 16];
    let mut truncated = [0; 16];
    lanes.store_i(lanes.truncate(finite), &mut truncated);
    out[14] = truncated.map(i32::cast_unsigned);
    let mut tail = [9.0; 16];
    lanes.store_tail(x, &mut tail[..5]);
    out[15] = tail.map(f32::to_bits);
    let mut rounded = [0; 16];
    lanes.store_i(lanes.round(finite), &mut rounded);
    out[16] = rounded.map(i32::cast_unsigned);
    let mut fused = [0.0; 16];
    lanes.store(lanes.fma(finite, y, finite), &mut fused);
    out[17] = fused.map(|v| if v.is_nan() { 0 } else { v.to_bits() });
}

fn plain_float_ops(a: &[f32; 16], b: &[f32; 16]) -> Vec<[u32; 16]> {
    let each = |f: &dyn Fn(f32, f32) -> f32| -> [u32; 16] {
        std::array::from_fn(|l| {
            let v = f(a[l], b[l]);
            if v.is_nan() {
                f32::NAN.to_bits()
            } else {
                v.to_bits()
            }
        })
    };
    let clamp = |x: f32| x.clamp(-1e6, 1e6);
    let mut sums = a.map(clamp);
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
    }
    vec![
        each(&|a, b| a + b),
        each(&|a, b| a - b),
        each(&|a, b| a * b),
        each(&|a, b| a / b),
        each(&|a, _| a.abs().sqrt()),
        each(&|a, b| if a < b { a } else { b }),
        each(&|a, b| if a > b { a } else { b }),
        each(&|a, _| a.abs()),
        each(&|a, b| a * b + a),
        each(&|a, b| if a < b { a } else { b }),
        std::array::from_fn(|l| if l < 11 { a[l].to_bits() } else { 0 }),
        [(0..16).map(|l| u32::from(a[l] < b[l]) << l).sum(); 16],
        [sums[0].to_bits(); 16],
        [a.map(clamp)
            .into_iter()
            .fold(f32::NEG_INFINITY, f32::max)
            .to_bits(); 16],
        a.map(|a| (clamp(a) as i32).cast_unsigned()),
        std::array::from_fn(|l| {
            if l < 5 {
                a[l].to_bits()
            } else {
                9.0_f32.to_bits()
            }
        }),
        a.map(|a| (clamp(a).round_ties_even() as i32).cast_unsigned()),
        std::array::from_fn(|l| {
            let fused = clamp(a[l]).mul_add(b[l], clamp(a[l]));
            if fused.is_nan() { 0 } else { fused.to_bits() }
        }),
    ]
}

#[test]
fn float_operations_match_plain_arithmetic() {
    for isa in Isa::available() {
        for shift in 0..16 {
            let mut b = SAMPLE;
            b.rotate_left(shift);
            let mut got = vec![[0; 16]; 18];
            dispatch!(isa, float_ops(&SAMPLE, &b, &mut got));
            for (op, (got, want)) in got.iter().zip(plain_float_ops(&SAMPLE, &b)).enumerate() {
                assert_eq!(got, &want, "{}: operation {op}, shift {shift}", isa.name());
            }
        }
    }
}

#[inline(always)]
fn int_ops<L: Lanes>(lanes: L, a: &[i32; 16], b: &[i32; 16], out: &mut [[i32; 16]]) {
    let (x, y) = (lanes.load_i(a), lanes.load_i(b));
    let results = [
        lanes.add_i(x, y),
        lanes.sub_i(x, y),
        lanes.mul_i(x, y),
        lanes.min_i(x, y),
        lanes.max_i(x, y),
        lanes.abs_i(x),
        lanes.and(x, y),
        lanes.or(x, y),
        lanes.xor(x, y),
        lanes.shl(x, 7),
        lanes.shr(x, 9),
        lanes.shr_signed(x, 31),
        lanes.select_i(lanes.gt_i(x, y), x, y),
        lanes.mul_even(x, y),
        lanes.high_halves(x),
        lanes.interleave(x, y),
        lanes.add_u64(x, y),
        lanes.spread_bit4(a[0] as u16),
        lanes.splat_i(a[3]),
        lanes.to_bits(lanes.convert(x)),
    ];
    for (result, out) in results.into_iter().zip(out.iter_mut()) {
        lanes.store_i(result, out);
    }
    out[20] = [i32::from(lanes.gather_bit4(x)); 16];
}

fn plain_int_ops(a: &[i32; 16], b: &[i32; 16]) -> Vec<[i32; 16]> {
    use std::array::from_fn;
    let each = |f: &dyn Fn(i32, i32) -> i32| -> [i32; 16] { from_fn(|l| f(a[l], b[l])) };
    let wide = |x: &[i32; 16], k: usize| {
        u64::from(x[2 * k].cast_unsigned()) | u64::from(x[2 * k + 1].cast_unsigned()) << 32
    };
    let half = |value: u64, l: usize| (value >> (l % 2 * 32)) as i32;
    let product = |k: usize| u64::from(a[2 * k] as u32) * u64::from(b[2 * k] as u32);
    vec![
        each(&|a, b| a.wrapping_add(b)),
        each(&|a, b| a.wrapping_sub(b)),
        each(&|a, b| a.wrapping_mul(b)),
        each(&|a, b| a.min(b)),
        each(&|a, b| a.max(b)),
        each(&|a, _| a.wrapping_abs()),
        each(&|a, b| a & b),
        each(&|a, b| a | b),
        each(&|a, b| a ^ b),
        each(&|a, _| a << 7),
        each(&|a, _| (a as u32 >> 9) as i32),
        each(&|a, _| if a < 0 { -1 } else { 0 }),
        each(&|a, b| a.max(b)),
        from_fn(|l| half(product(l / 2), l)),
        from_fn(|l| if l % 2 == 0 { a[l + 1] } else { 0 }),
        from_fn(|l| if l % 2 == 0 { a[l] } else { b[l - 1] }),
        from_fn(|l| half(wide(a, l / 2).wrapping_add(wide(b, l / 2)), l)),
        from_fn(|l| (a[0] >> l & 1) * 16),
        [a[3]; 16],
        each(&|a, _| (a as f32).to_bits() as i32),
        [(0..16).map(|l| (a[l] >> 4 & 1) << l).sum(); 16],
    ]
}

#[test]
fn integer_operations_match_plain_arithmetic() {
    for isa in Isa::available() {
        for seed in 0..50 {
            let (a, b) = (lanes_of(seed), lanes_of(seed + 1000));
            let mut got = vec![[0; 16]; 21];
            dispatch!(isa, int_ops(&a, &b, &mut got));
            for (op, (got, want)) in got.iter().zip(plain_int_ops(&a, &b)).enumerate() {
                assert_eq!(got, &want, "{}: operation {op}, seed {seed}", isa.name());
            }
        }
    }
}

#[inline(always)]
fn narrow_round_trip<L: Lanes>(
    lanes: L,
    bytes: &mut [i8; 16],
    words: &mut [i16; 16],
    nibbles: &mut [u8; 8],
) -> [[i32; 16]; 3] {
    let mut wide = [[0; 16]; 3];
    lanes.store_i(lanes.load_i8(bytes), &mut wide[0]);
    lanes.store_i(lanes.load_i16(words), &mut wide[1]);
    lanes.store_i(lanes.load_nibbles(nibbles), &mut wide[2]);
    lanes.store_i8(lanes.load_i(&wide[0]), bytes);
    lanes.store_i16(lanes.load_i(&wide[1]), words);
    lanes.store_nibbles(
        lanes.or(lanes.load_i(&wide[2]), lanes.splat_i(0x7ff0)),
        nibbles,
    );
    wide
}

#[test]
fn narrow_loads_and_stores_keep_order_and_sign() {
    let bytes: [i8; 16] = [-128, 127, 0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7];
    let words: [i16; 16] = bytes.map(|b| i16::from(b) * 255 - 1);
    let nibbles: [u8; 8] = [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];
    for isa in Isa::available() {
        let (mut b, mut w, mut n) = (bytes, words, nibbles);
        let wide = dispatch!(isa, narrow_round_trip(&mut b, &mut w, &mut n));
        let codes: [i32; 16] = std::array::from_fn(|l| l as i32);
        assert_eq!(
            wide,
            [bytes.map(i32::from), words.map(i32::from), codes],
            "{}",
            isa.name()
        );
        assert_eq!((b, w, n), (bytes, words, nibbles), "{}", isa.name());
    }
}

#[inline(always)]
fn widened<L: Lanes>(lanes: L, from: &[u16; 16]) -> [f32; 16] {
    let mut to = [0.0; 16];
    lanes.store(lanes.load_f16(from), &mut to);
    to
}

#[test]
fn halves_widen_exactly() {
    for isa in Isa::available() {
        for start in (0..=u16::MAX).step_by(16) {
            let bits: [u16; 16] = std::array::from_fn(|l| start + l as u16);
            let to = dispatch!(isa, widened(&bits));
            for (from, to) in bits.map(half::f16::from_bits).iter().zip(to) {
                let same = to.to_bits() == from.to_f32().to_bits();
                assert!(
                    same || (from.is_nan() && to.is_nan()),
                    "{}: {from:?}",
                    isa.name()
                );
            }
        }
    }
}

#[inline(always)]
fn look_up<L: Lanes>(lanes: L, table: &[f32; 32], index: &[i32; 16]) -> [[f32; 16]; 2] {
    let (table, index) = (lanes.table(table), lanes.load_i(index));
    let mut out = [[0.0; 16]; 2];
    lanes.store(lanes.lookup16(table, index), &mut out[0]);
    lanes.store(lanes.lookup32(table, index), &mut out[1]);
    out
}

#[test]
fn lookups_use_the_low_bits_of_the_index_alone() {
    let table: [f32; 32] = std::array::from_fn(|i| i as f32 + 0.5);
    for isa in Isa::available() {
        for seed in 0..20 {
            let index = lanes_of(seed);
            let got = dispatch!(isa, look_up(&table, &index));
            assert_eq!(
                got[0],
                index.map(|i| table[(i & 15) as usize]),
                "{}",
                isa.name()
            );
            assert_eq!(
                got[1],
                index.map(|i| table[(i & 31) as usize]),
                "{}",
                isa.name()
            );
        }
    }
}

#[inline(always)]
fn exp_of<L: Lanes>(lanes: L, x: &[f32; 16]) -> [f32; 16] {
    let mut out = [0.0; 16];
    lanes.store(exp(lanes, lanes.load(x)), &mut out);
    out
}

#[test]
fn exp_is_accurate_and_equal_in_every_tier() {
    let mut worst = 0.0_f64;
    for step in 0..40_000 {
        let x: [f32; 16] = std::array::from_fn(|l| {
            let spread = [87.3, 20.0, 2.0, 0.1, 1e-3][l % 5];
            (((step * 16 + l) as f32 * 0.618_034).fract() - 0.5) * 2.0 * spread
        });
        let scalar = exp_of(super::scalar::Scalar, &x);
        for isa in Isa::available() {
            let got = dispatch!(isa, exp_of(&x));
            assert_eq!(got, scalar, "{}: {x:?}", isa.name());
        }
        for (&x, &got) in x.iter().zip(&scalar) {
            worst = worst.max((f64::from(got) / f64::from(x).exp() - 1.0).abs());
        }
    }
    assert!(
        worst < 2.0 * f64::from(f32::EPSILON),
        "exp is off by {worst:e}"
    );
}

#[test]
fn exp_at_the_corners() {
    let mut x = [0.0; 16];
    x[..11].copy_from_slice(&[
        0.0,
        -0.0,
        f32::NEG_INFINITY,
        f32::INFINITY,
        f32::NAN,
        -87.4,
        -1e30,
        88.4,
        88.3,
        1e30,
        -f32::MAX,
    ]);
    for isa in Isa::available() {
        let name = isa.name();
        let e = dispatch!(isa, exp_of(&x));
        assert_eq!(e[..4], [1.0, 1.0, 0.0, f32::INFINITY], "{name}");
        assert!(e[4].is_nan(), "{name}: NaN is kept");
        assert_eq!(
            [e[5], e[6], e[7], e[9], e[10]],
            [0.0, 0.0, f32::INFINITY, f32::INFINITY, 0.0],
            "{name}"
        );
        assert!(e[8].is_finite() && e[8] > 2.2e38, "{name}: {}", e[8]);
    }
}
