//! The AVX-512 tier: one register of sixteen lanes.

use std::arch::x86_64::*;

use super::Lanes;

/// The token of the AVX-512 tier.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU must have AVX-512 F, BW, DQ and VL, AVX2 and FMA.
    #[inline(always)]
    pub(crate) unsafe fn new_unchecked() -> Self {
        Avx512(())
    }
}

/// An intrinsic that touches no memory.
macro_rules! simd {
    ($call:expr) => {{
        // SAFETY: the token `self` exists only where the CPU has the features.
        unsafe { $call }
    }};
}

#[inline(always)]
fn shift_count(lanes: Avx512, by: u32) -> __m128i {
    let _ = lanes;
    // SAFETY: SSE2, which every x86-64 CPU has.
    unsafe { _mm_cvtsi32_si128(by.cast_signed()) }
}

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type M = __mmask16;
    type T = [__m512; 2];

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        simd!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; 16]) -> __m512 {
        // SAFETY: the token proves the features; the array holds the 64 bytes read.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; 16]) {
        // SAFETY: the token proves the features; the array holds the 64 bytes written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn load_tail(self, from: &[f32]) -> __m512 {
        let mask = tail_mask(from.len());
        // SAFETY: the token proves the features; lanes beyond `from.len()` are masked off.
        unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
    }
    #[inline(always)]
    fn store_tail(self, x: __m512, to: &mut [f32]) {
        let mask = tail_mask(to.len());
        // SAFETY: the token proves the features; lanes beyond `to.len()` are masked off.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, x) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        simd!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn sqrt(self, x: __m512) -> __m512 {
        simd!(_mm512_sqrt_ps(x))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        simd!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        simd!(_mm512_abs_ps(x))
    }
    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        simd!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn select(self, mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        simd!(_mm512_mask_blend_ps(mask, no, yes))
    }
    #[inline(always)]
    fn mask_bits(self, mask: __mmask16) -> u16 {
        mask
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        simd!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }
    #[inline(always)]
    fn max_lane(self, x: __m512) -> f32 {
        simd!({
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        simd!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn load_i(self, from: &[i32; 16]) -> __m512i {
        // SAFETY: the token proves the features; the array holds the 64 bytes read.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_i(self, x: __m512i, to: &mut [i32; 16]) {
        // SAFETY: the token proves the features; the array holds the 64 bytes written.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; 16]) -> __m512 {
        // SAFETY: the token proves the features; the array holds the 32 bytes read.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; 16]) -> __m512i {
        // SAFETY: the token proves the features; the array holds the 16 bytes read.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store_i8(self, x: __m512i, to: &mut [i8; 16]) {
        // SAFETY: the token proves the features; the array holds the 16 bytes written.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[inline(always)]
    fn load_i16(self, from: &[i16; 16]) -> __m512i {
        // SAFETY: the token proves the features; the array holds the 32 bytes read.
        unsafe { _mm512_cvtepi16_epi32(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn store_i16(self, x: __m512i, to: &mut [i16; 16]) {
        // SAFETY: the token proves the features; the array holds the 32 bytes written.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(x)) }
    }
    #[inline(always)]
    fn load_nibbles(self, from: &[u8; 8]) -> __m512i {
        simd!({
            // One byte a 64-bit lane; its high nibble moves to the upper 32-bit lane.
            let bytes = _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(i64::from_le_bytes(*from)));
            let both = _mm512_or_si512(bytes, _mm512_slli_epi64::<28>(bytes));
            _mm512_and_si512(both, _mm512_set1_epi32(15))
        })
    }
    #[inline(always)]
    fn store_nibbles(self, x: __m512i, to: &mut [u8; 8]) {
        let bytes = simd!({
            let x = _mm512_and_si512(x, _mm512_set1_epi32(15));
            let both = _mm512_or_si512(x, _mm512_srli_epi64::<28>(x));
            _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(both))
        });
        *to = bytes.to_le_bytes();
    }
    #[inline(always)]
    fn spread_bit4(self, bits: u16) -> __m512i {
        simd!(_mm512_maskz_set1_epi32(bits, 16))
    }
    #[inline(always)]
    fn gather_bit4(self, x: __m512i) -> u16 {
        simd!(_mm512_test_epi32_mask(x, _mm512_set1_epi32(16)))
    }

    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn mul_i(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn min_i(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_min_epi32(a, b))
    }
    #[inline(always)]
    fn max_i(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn abs_i(self, x: __m512i) -> __m512i {
        simd!(_mm512_abs_epi32(x))
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn xor(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_xor_si512(a, b))
    }
    #[inline(always)]
    fn shl(self, x: __m512i, by: u32) -> __m512i {
        simd!(_mm512_sll_epi32(x, shift_count(self, by)))
    }
    #[inline(always)]
    fn shr(self, x: __m512i, by: u32) -> __m512i {
        simd!(_mm512_srl_epi32(x, shift_count(self, by)))
    }
    #[inline(always)]
    fn shr_signed(self, x: __m512i, by: u32) -> __m512i {
        simd!(_mm512_sra_epi32(x, shift_count(self, by)))
    }
    #[inline(always)]
    fn gt_i(self, a: __m512i, b: __m512i) -> __mmask16 {
        simd!(_mm512_cmpgt_epi32_mask(a, b))
    }
    #[inline(always)]
    fn select_i(self, mask: __mmask16, yes: __m512i, no: __m512i) -> __m512i {
        simd!(_mm512_mask_blend_epi32(mask, no, yes))
    }

    #[inline(always)]
    fn truncate(self, x: __m512) -> __m512i {
        simd!(_mm512_cvttps_epi32(x))
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        simd!(_mm512_cvtps_epi32(x))
    }
    #[inline(always)]
    fn convert(self, x: __m512i) -> __m512 {
        simd!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn to_bits(self, x: __m512) -> __m512i {
        simd!(_mm512_castps_si512(x))
    }
    #[inline(always)]
    fn bits_to_float(self, x: __m512i) -> __m512 {
        simd!(_mm512_castsi512_ps(x))
    }

    #[inline(always)]
    fn mul_even(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_mul_epu32(a, b))
    }
    #[inline(always)]
    fn high_halves(self, x: __m512i) -> __m512i {
        simd!(_mm512_srli_epi64::<32>(x))
    }
    #[inline(always)]
    fn interleave(self, even: __m512i, odd: __m512i) -> __m512i {
        simd!(_mm512_mask_blend_epi32(
            0xaaaa,
            even,
            _mm512_slli_epi64::<32>(odd)
        ))
    }
    #[inline(always)]
    fn add_u64(self, a: __m512i, b: __m512i) -> __m512i {
        simd!(_mm512_add_epi64(a, b))
    }

    #[inline(always)]
    fn table(self, from: &[f32; 32]) -> [__m512; 2] {
        // SAFETY: the token proves the features; the array holds both halves.
        unsafe {
            [
                _mm512_loadu_ps(from.as_ptr()),
                _mm512_loadu_ps(from.as_ptr().add(16)),
            ]
        }
    }
    #[inline(always)]
    fn lookup16(self, table: [__m512; 2], index: __m512i) -> __m512 {
        simd!(_mm512_permutexvar_ps(index, table[0]))
    }
    #[inline(always)]
    fn lookup32(self, table: [__m512; 2], index: __m512i) -> __m512 {
        simd!(_mm512_permutex2var_ps(table[0], index, table[1]))
    }
}

#[inline(always)]
fn tail_mask(len: usize) -> __mmask16 {
    assert!(len <= 16, "a tail of {len} lanes");
    ((1_u32 << len) - 1) as u16
}
