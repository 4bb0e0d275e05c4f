//! The AVX2 tier: two registers of eight lanes.

use std::arch::x86_64::*;

use super::Lanes;

/// The token of the AVX2 tier.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU must have AVX2, FMA and F16C.
    #[inline(always)]
    pub(crate) unsafe fn new_unchecked() -> Self {
        Avx2(())
    }
}

type Floats = [__m256; 2];
type Ints = [__m256i; 2];

/// Intrinsics that touch no memory.
macro_rules! simd {
    ($call:expr) => {{
        // SAFETY: the token `self` exists only where the CPU has the features.
        unsafe { $call }
    }};
}

/// The same intrinsic on both halves.
macro_rules! both {
    ($name:ident($a:expr)) => {
        simd!([$name($a[0]), $name($a[1])])
    };
    ($name:ident($a:expr, $b:expr)) => {
        simd!([$name($a[0], $b[0]), $name($a[1], $b[1])])
    };
}

/// Both halves shifted by one count.
macro_rules! shift {
    ($name:ident($a:expr, $by:expr)) => {
        simd!({
            let by = _mm_cvtsi32_si128($by.cast_signed());
            [$name($a[0], by), $name($a[1], by)]
        })
    };
}

impl Lanes for Avx2 {
    type F = Floats;
    type I = Ints;
    type M = Ints;
    type T = [__m256; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        simd!([_mm256_set1_ps(x); 2])
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> Floats {
        // SAFETY: the token proves the features; the array holds both halves.
        unsafe {
            [
                _mm256_loadu_ps(from.as_ptr()),
                _mm256_loadu_ps(from.as_ptr().add(8)),
            ]
        }
    }
    #[inline(always)]
    fn store(self, x: Floats, to: &mut [f32; 16]) {
        // SAFETY: the token proves the features; the array holds both halves.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        }
    }
    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        both!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        both!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        both!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        simd!([
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1]),
        ])
    }
    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        both!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, x: Floats) -> Floats {
        both!(_mm256_sqrt_ps(x))
    }
    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        both!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        both!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: Floats) -> Floats {
        let sign = self.splat(-0.0);
        both!(_mm256_andnot_ps(sign, x))
    }
    #[inline(always)]
    fn lt(self, a: Floats, b: Floats) -> Ints {
        self.to_bits(simd!([
            _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0]),
            _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])
        ]))
    }
    #[inline(always)]
    fn select(self, mask: Ints, yes: Floats, no: Floats) -> Floats {
        let mask = self.bits_to_float(mask);
        simd!([
            _mm256_blendv_ps(no[0], yes[0], mask[0]),
            _mm256_blendv_ps(no[1], yes[1], mask[1])
        ])
    }
    #[inline(always)]
    fn mask_bits(self, mask: Ints) -> u16 {
        let [low, high] = both!(_mm256_movemask_ps(self.bits_to_float(mask)));
        (low | high << 8) as u16
    }
    #[inline(always)]
    fn sum(self, x: Floats) -> f32 {
        simd!({
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }
    #[inline(always)]
    fn max_lane(self, x: Floats) -> f32 {
        simd!({
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> Ints {
        simd!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn load_i(self, from: &[i32; 16]) -> Ints {
        let from = from.as_ptr().cast::<__m256i>();
        // SAFETY: the token proves the features; the array holds both halves.
        unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
    }
    #[inline(always)]
    fn store_i(self, x: Ints, to: &mut [i32; 16]) {
        let to = to.as_mut_ptr().cast::<__m256i>();
        // SAFETY: the token proves the features; the array holds both halves.
        unsafe {
            _mm256_storeu_si256(to, x[0]);
            _mm256_storeu_si256(to.add(1), x[1]);
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; 16]) -> Floats {
        // SAFETY: the token proves the features; the array holds the 32 bytes read.
        unsafe {
            let halves: *const __m128i = from.as_ptr().cast();
            [
                _mm256_cvtph_ps(_mm_loadu_si128(halves)),
                _mm256_cvtph_ps(_mm_loadu_si128(halves.add(1))),
            ]
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; 16]) -> Ints {
        // SAFETY: the token proves the features; the array holds the 16 bytes read.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            [
                _mm256_cvtepi8_epi32(bytes),
                _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)),
            ]
        }
    }
    #[inline(always)]
    fn store_i8(self, x: Ints, to: &mut [i8; 16]) {
        // SAFETY: the token proves the features; the array holds the 16 bytes written.
        unsafe {
            let words = narrow_to_i16(self, x);
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(to.as_mut_ptr().cast(), bytes);
        }
    }
    #[inline(always)]
    fn load_i16(self, from: &[i16; 16]) -> Ints {
        let from = from.as_ptr().cast::<__m128i>();
        // SAFETY: the token proves the features; the array holds both halves.
        unsafe {
            [
                _mm256_cvtepi16_epi32(_mm_loadu_si128(from)),
                _mm256_cvtepi16_epi32(_mm_loadu_si128(from.add(1))),
            ]
        }
    }
    #[inline(always)]
    fn store_i16(self, x: Ints, to: &mut [i16; 16]) {
        // SAFETY: the token proves the features; the array holds the 32 bytes written.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), narrow_to_i16(self, x)) }
    }
    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 8]) -> Ints {
        simd!({
            // One byte a 64-bit lane; its high nibble moves to the upper 32-bit lane.
            let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(*from));
            let nibble = _mm256_set1_epi32(15);
            let split = |bytes| {
                let bytes = _mm256_cvtepu8_epi64(bytes);
                _mm256_and_si256(
                    _mm256_or_si256(bytes, _mm256_slli_epi64::<28>(bytes)),
                    nibble,
                )
            };
            [split(bytes), split(_mm_srli_si128::<4>(bytes))]
        })
    }
    #[inline(always)]
    fn store_nibbles(self, x: Ints, to: &mut [u8; 8]) {
        let bytes = simd!({
            // The pair of each 64-bit lane becomes that lane's low byte.
            let join = |x| {
                let x = _mm256_and_si256(x, _mm256_set1_epi32(15));
                let x = _mm256_or_si256(x, _mm256_srli_epi64::<28>(x));
                _mm256_and_si256(x, _mm256_set1_epi64x(0xff))
            };
            let x = [join(x[0]), join(x[1])];
            let x = _mm256_or_si256(x[0], _mm256_slli_epi64::<16>(x[1]));
            // 128-bit lanes hold [0, 4 | 1, 5] and [2, 6 | 3, 7] at bytes 0, 2, 8, 10.
            let low = _mm256_castsi256_si128(x);
            let high = _mm256_extracti128_si256::<1>(x);
            let x = _mm_or_si128(low, _mm_slli_epi64::<32>(high));
            // Bytes: 0 -> 0, 2 -> 4, 4 -> 2, 6 -> 6, 8 -> 1, 10 -> 5, 12 -> 3, 14 -> 7.
            let order = _mm_setr_epi8(0, 8, 4, 12, 2, 10, 6, 14, -1, -1, -1, -1, -1, -1, -1, -1);
            _mm_cvtsi128_si64(_mm_shuffle_epi8(x, order))
        });
        *to = bytes.to_le_bytes();
    }
    #[inline(always)]
    fn spread_bit4(self, bits: u16) -> Ints {
        simd!({
            let bits = _mm256_set1_epi32(i32::from(bits));
            let low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let high = _mm256_slli_epi32::<8>(low);
            let bit4 = _mm256_set1_epi32(16);
            let spread =
                |of| _mm256_and_si256(bit4, _mm256_cmpeq_epi32(_mm256_and_si256(bits, of), of));
            [spread(low), spread(high)]
        })
    }
    #[inline(always)]
    fn gather_bit4(self, x: Ints) -> u16 {
        self.mask_bits(self.shl(x, 27))
    }

    #[inline(always)]
    fn add_i(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_sub_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn min_i(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_min_epi32(a, b))
    }
    #[inline(always)]
    fn max_i(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_max_epi32(a, b))
    }
    #[inline(always)]
    fn abs_i(self, x: Ints) -> Ints {
        both!(_mm256_abs_epi32(x))
    }
    #[inline(always)]
    fn and(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_and_si256(a, b))
    }
    #[inline(always)]
    fn or(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_or_si256(a, b))
    }
    #[inline(always)]
    fn xor(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_xor_si256(a, b))
    }
    #[inline(always)]
    fn shl(self, x: Ints, by: u32) -> Ints {
        shift!(_mm256_sll_epi32(x, by))
    }
    #[inline(always)]
    fn shr(self, x: Ints, by: u32) -> Ints {
        shift!(_mm256_srl_epi32(x, by))
    }
    #[inline(always)]
    fn shr_signed(self, x: Ints, by: u32) -> Ints {
        shift!(_mm256_sra_epi32(x, by))
    }
    #[inline(always)]
    fn gt_i(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_cmpgt_epi32(a, b))
    }
    #[inline(always)]
    fn select_i(self, mask: Ints, yes: Ints, no: Ints) -> Ints {
        simd!([
            _mm256_blendv_epi8(no[0], yes[0], mask[0]),
            _mm256_blendv_epi8(no[1], yes[1], mask[1])
        ])
    }

    #[inline(always)]
    fn truncate(self, x: Floats) -> Ints {
        both!(_mm256_cvttps_epi32(x))
    }
    #[inline(always)]
    fn round(self, x: Floats) -> Ints {
        both!(_mm256_cvtps_epi32(x))
    }
    #[inline(always)]
    fn convert(self, x: Ints) -> Floats {
        both!(_mm256_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn to_bits(self, x: Floats) -> Ints {
        both!(_mm256_castps_si256(x))
    }
    #[inline(always)]
    fn bits_to_float(self, x: Ints) -> Floats {
        both!(_mm256_castsi256_ps(x))
    }

    #[inline(always)]
    fn mul_even(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_mul_epu32(a, b))
    }
    #[inline(always)]
    fn high_halves(self, x: Ints) -> Ints {
        simd!([_mm256_srli_epi64::<32>(x[0]), _mm256_srli_epi64::<32>(x[1])])
    }
    #[inline(always)]
    fn interleave(self, even: Ints, odd: Ints) -> Ints {
        simd!([
            _mm256_blend_epi32::<0xaa>(even[0], _mm256_slli_epi64::<32>(odd[0])),
            _mm256_blend_epi32::<0xaa>(even[1], _mm256_slli_epi64::<32>(odd[1]))
        ])
    }
    #[inline(always)]
    fn add_u64(self, a: Ints, b: Ints) -> Ints {
        both!(_mm256_add_epi64(a, b))
    }

    #[inline(always)]
    fn table(self, from: &[f32; 32]) -> [__m256; 4] {
        // SAFETY: the token proves the features; the array holds the four quarters.
        unsafe {
            [
                _mm256_loadu_ps(from.as_ptr()),
                _mm256_loadu_ps(from.as_ptr().add(8)),
                _mm256_loadu_ps(from.as_ptr().add(16)),
                _mm256_loadu_ps(from.as_ptr().add(24)),
            ]
        }
    }
    #[inline(always)]
    fn lookup16(self, table: [__m256; 4], index: Ints) -> Floats {
        [
            lookup_pair(self, table[0], table[1], index[0]),
            lookup_pair(self, table[0], table[1], index[1]),
        ]
    }
    #[inline(always)]
    fn lookup32(self, table: [__m256; 4], index: Ints) -> Floats {
        let low = self.lookup16(table, index);
        let high = self.lookup16([table[2], table[3], table[0], table[1]], index);
        // `blendv` looks at the sign bit alone: bit 4 of the index is moved there.
        self.select(self.shl(index, 27), high, low)
    }
}

/// Looks up the low four bits of eight lanes in sixteen values.
#[inline(always)]
fn lookup_pair(_lanes: Avx2, low: __m256, high: __m256, index: __m256i) -> __m256 {
    // SAFETY: the token proves the features.
    unsafe {
        let bit3 = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
        _mm256_blendv_ps(
            _mm256_permutevar8x32_ps(low, index),
            _mm256_permutevar8x32_ps(high, index),
            bit3,
        )
    }
}

/// Sixteen i16 in order.
#[inline(always)]
fn narrow_to_i16(_lanes: Avx2, x: Ints) -> __m256i {
    // SAFETY: the token proves the features.
    unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1])) }
}
