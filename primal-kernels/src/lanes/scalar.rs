//! The portable tier: arrays of sixteen, and the meaning of every operation.

use std::array::from_fn;

use half::f16;

use super::Lanes;

/// The token of the portable tier, which every CPU has.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

#[inline(always)]
fn zip<A: Copy, B: Copy, R>(a: [A; 16], b: [B; 16], f: impl Fn(A, B) -> R) -> [R; 16] {
    from_fn(|l| f(a[l], b[l]))
}

#[inline(always)]
fn tree<A: Copy>(mut x: [A; 16], f: impl Fn(A, A) -> A) -> A {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            x[l] = f(x[l], x[l + half]);
        }
    }
    x[0]
}

#[inline(always)]
fn pair(x: [i32; 16], k: usize) -> u64 {
    u64::from(x[2 * k].cast_unsigned()) | u64::from(x[2 * k + 1].cast_unsigned()) << 32
}

#[inline(always)]
fn from_pairs(f: impl Fn(usize) -> u64) -> [i32; 16] {
    let mut out = [0; 16];
    for k in 0..8 {
        let value = f(k);
        out[2 * k] = value as i32;
        out[2 * k + 1] = (value >> 32) as i32;
    }
    out
}

#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

impl Lanes for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    type M = [bool; 16];
    type T = [f32; 32];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; 16]) {
        *to = x;
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|l| a[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt(self, x: Self::F) -> Self::F {
        x.map(f32::sqrt)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, min)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, max)
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        x.map(f32::abs)
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        zip(a, b, |a, b| a < b)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        from_fn(|l| if mask[l] { yes[l] } else { no[l] })
    }
    #[inline(always)]
    fn mask_bits(self, mask: Self::M) -> u16 {
        (0..16).fold(0, |bits, l| bits | u16::from(mask[l]) << l)
    }
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        tree(x, |a, b| a + b)
    }
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        tree(x, max)
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    fn load_i(self, from: &[i32; 16]) -> Self::I {
        *from
    }
    #[inline(always)]
    fn store_i(self, x: Self::I, to: &mut [i32; 16]) {
        *to = x;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; 16]) -> Self::F {
        from.map(|bits| f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; 16]) -> Self::I {
        from.map(i32::from)
    }
    #[inline(always)]
    fn store_i8(self, x: Self::I, to: &mut [i8; 16]) {
        *to = x.map(|x| x as i8);
    }
    #[inline(always)]
    fn load_i16(self, from: &[i16; 16]) -> Self::I {
        from.map(i32::from)
    }
    #[inline(always)]
    fn store_i16(self, x: Self::I, to: &mut [i16; 16]) {
        *to = x.map(|x| x as i16);
    }
    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 8]) -> Self::I {
        from_fn(|l| i32::from(from[l / 2] >> (l % 2 * 4) & 15))
    }
    #[inline(always)]
    fn store_nibbles(self, x: Self::I, to: &mut [u8; 8]) {
        *to = from_fn(|k| (x[2 * k] & 15 | (x[2 * k + 1] & 15) << 4) as u8);
    }
    #[inline(always)]
    fn spread_bit4(self, bits: u16) -> Self::I {
        from_fn(|l| i32::from(bits >> l & 1) << 4)
    }
    #[inline(always)]
    fn gather_bit4(self, x: Self::I) -> u16 {
        (0..16).fold(0, |bits, l| bits | ((x[l] >> 4 & 1) << l) as u16)
    }

    #[inline(always)]
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_mul)
    }
    #[inline(always)]
    fn min_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::min)
    }
    #[inline(always)]
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    fn abs_i(self, x: Self::I) -> Self::I {
        x.map(i32::wrapping_abs)
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn xor(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a ^ b)
    }
    #[inline(always)]
    fn shl(self, x: Self::I, by: u32) -> Self::I {
        x.map(|x| x << by)
    }
    #[inline(always)]
    fn shr(self, x: Self::I, by: u32) -> Self::I {
        x.map(|x| (x.cast_unsigned() >> by).cast_signed())
    }
    #[inline(always)]
    fn shr_signed(self, x: Self::I, by: u32) -> Self::I {
        x.map(|x| x >> by)
    }
    #[inline(always)]
    fn gt_i(self, a: Self::I, b: Self::I) -> Self::M {
        zip(a, b, |a, b| a > b)
    }
    #[inline(always)]
    fn select_i(self, mask: Self::M, yes: Self::I, no: Self::I) -> Self::I {
        from_fn(|l| if mask[l] { yes[l] } else { no[l] })
    }

    #[inline(always)]
    fn truncate(self, x: Self::F) -> Self::I {
        x.map(|x| x as i32)
    }
    #[inline(always)]
    fn round(self, x: Self::F) -> Self::I {
        x.map(|x| x.round_ties_even() as i32)
    }
    #[inline(always)]
    fn convert(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    fn to_bits(self, x: Self::F) -> Self::I {
        x.map(|x| x.to_bits().cast_signed())
    }
    #[inline(always)]
    fn bits_to_float(self, x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x.cast_unsigned()))
    }

    #[inline(always)]
    fn mul_even(self, a: Self::I, b: Self::I) -> Self::I {
        from_pairs(|k| u64::from(a[2 * k].cast_unsigned()) * u64::from(b[2 * k].cast_unsigned()))
    }
    #[inline(always)]
    fn high_halves(self, x: Self::I) -> Self::I {
        from_pairs(|k| pair(x, k) >> 32)
    }
    #[inline(always)]
    fn interleave(self, even: Self::I, odd: Self::I) -> Self::I {
        from_fn(|l| if l % 2 == 0 { even[l] } else { odd[l - 1] })
    }
    #[inline(always)]
    fn add_u64(self, a: Self::I, b: Self::I) -> Self::I {
        from_pairs(|k| pair(a, k).wrapping_add(pair(b, k)))
    }

    #[inline(always)]
    fn table(self, from: &[f32; 32]) -> Self::T {
        *from
    }
    #[inline(always)]
    fn lookup16(self, table: Self::T, index: Self::I) -> Self::F {
        index.map(|i| table[(i & 15) as usize])
    }
    #[inline(always)]
    fn lookup32(self, table: Self::T, index: Self::I) -> Self::F {
        index.map(|i| table[(i & 31) as usize])
    }
}
