//! Sixteen lanes of f32 and of i32: what every kernel is written over, once.
//!
//! Tiers give bit-equal results because (1) every operation here is either exact or one
//! IEEE rounding, and none is ever contracted into another, (2) sums run lane by lane
//! (lane `l` takes the elements with `index % 16 == l`) and end in the fixed tree of
//! [`Lanes::sum`], (3) tails are lanes padded with zeros.
//!
//! ```text
//! pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
//!     dispatch!(isa, dot_lanes(a, b))
//! }
//! #[inline(always)]
//! fn dot_lanes<L: Lanes>(lanes: L, a: &[f32], b: &[f32]) -> f32 { .. }
//! ```

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod math;
pub(crate) mod scalar;

pub(crate) use math::{exp, ln};

/// Lanes in a vector, in every tier.
pub(crate) const LANES: usize = 16;

/// A tier's vectors. The value is a token: it exists only where the CPU has the tier.
pub(crate) trait Lanes: Copy + Send + Sync + 'static {
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen 32-bit integers; the operation says whether they are signed.
    type I: Copy;
    /// Sixteen truth values.
    type M: Copy;
    /// A table of 32 f32 (or the bits of i32).
    type T: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; 16]) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; 16]);

    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }
    /// At most 16 values; the lanes beyond them are zero.
    #[inline(always)]
    fn load_tail(self, from: &[f32]) -> Self::F {
        let mut padded = [0.0; 16];
        padded[..from.len()].copy_from_slice(from);
        self.load(&padded)
    }
    /// Stores the first `to.len()` (at most 16) lanes.
    #[inline(always)]
    fn store_tail(self, x: Self::F, to: &mut [f32]) {
        let mut padded = [0.0; 16];
        self.store(x, &mut padded);
        to.copy_from_slice(&padded[..to.len()]);
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn sqrt(self, x: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: `b` where either is NaN, and for equal zeros.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: `b` where either is NaN, and for equal zeros.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn abs(self, x: Self::F) -> Self::F;
    /// `a * b + c` with two roundings: a fused one would be slow without the hardware.
    #[inline(always)]
    fn mul_then_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        self.add(self.mul(a, b), c)
    }

    /// `a * b + c` with one rounding. For convolutions, which are bound by multiplications; the
    /// portable tier computes it in software.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Ordered: false where either is NaN.
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F;
    /// Bit `l` is lane `l`.
    fn mask_bits(self, mask: Self::M) -> u16;

    /// Fixed tree: lane `l` with `l + 8`, then `l + 4`, `l + 2`, `l + 1`.
    fn sum(self, x: Self::F) -> f32;
    /// The largest lane, by [`Lanes::max`] over the same tree.
    fn max_lane(self, x: Self::F) -> f32;

    fn splat_i(self, x: i32) -> Self::I;
    fn load_i(self, from: &[i32; 16]) -> Self::I;
    fn store_i(self, x: Self::I, to: &mut [i32; 16]);
    /// From the bits of f16; exact.
    fn load_f16(self, from: &[u16; 16]) -> Self::F;
    /// Sign-extends.
    fn load_i8(self, from: &[i8; 16]) -> Self::I;
    /// Every lane must fit.
    fn store_i8(self, x: Self::I, to: &mut [i8; 16]);
    /// Sign-extends.
    fn load_i16(self, from: &[i16; 16]) -> Self::I;
    /// Every lane must fit.
    fn store_i16(self, x: Self::I, to: &mut [i16; 16]);
    /// Low nibble first.
    fn load_nibbles(self, from: &[u8; 8]) -> Self::I;
    /// The low four bits of every lane, low nibble first.
    fn store_nibbles(self, x: Self::I, to: &mut [u8; 8]);
    /// Lane `l` is 16 where bit `l` is set, else 0: a code's bit 4.
    fn spread_bit4(self, bits: u16) -> Self::I;
    /// Bit `l` is bit 4 of lane `l`.
    fn gather_bit4(self, x: Self::I) -> u16;

    /// Wraps.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// Wraps.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The low 32 bits of the product.
    fn mul_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn min_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn abs_i(self, x: Self::I) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Shift left; `by` is a literal below 32 at every call.
    fn shl(self, x: Self::I, by: u32) -> Self::I;
    /// Shift right, zeros in.
    fn shr(self, x: Self::I, by: u32) -> Self::I;
    /// Shift right, the sign in.
    fn shr_signed(self, x: Self::I, by: u32) -> Self::I;
    /// Signed `a > b`.
    fn gt_i(self, a: Self::I, b: Self::I) -> Self::M;
    fn select_i(self, mask: Self::M, yes: Self::I, no: Self::I) -> Self::I;

    /// Toward zero. Every lane must be within i32.
    fn truncate(self, x: Self::F) -> Self::I;
    /// To nearest, ties to even. Every lane must be within i32.
    fn round(self, x: Self::F) -> Self::I;
    /// Signed to nearest f32.
    fn convert(self, x: Self::I) -> Self::F;
    fn to_bits(self, x: Self::F) -> Self::I;
    fn bits_to_float(self, x: Self::I) -> Self::F;

    // Eight unsigned 64-bit lanes: lane k is the pair (2k low half, 2k+1 high half).

    /// 64-bit products of the even lanes (unsigned).
    fn mul_even(self, a: Self::I, b: Self::I) -> Self::I;
    /// The high half of every 64-bit lane, moved to the low half; zeros above.
    fn high_halves(self, x: Self::I) -> Self::I;
    /// Even lanes of `even`, and the even lanes of `odd` moved up by one.
    fn interleave(self, even: Self::I, odd: Self::I) -> Self::I;
    /// 64-bit additions, wrapping.
    fn add_u64(self, a: Self::I, b: Self::I) -> Self::I;

    fn table(self, from: &[f32; 32]) -> Self::T;
    /// Looks up the low four bits of every lane in the first half of the table.
    fn lookup16(self, table: Self::T, index: Self::I) -> Self::F;
    /// Looks up the low five bits of every lane.
    fn lookup32(self, table: Self::T, index: Self::I) -> Self::F;
}

#[cfg(test)]
mod tests;
