//! Weight gradients in bf16: operands rounded to eight bits of mantissa, sums in f32.
//!
//! dW = dyᵀ x sums over tokens, two at a time. Both operands are laid out once as
//! [`Bf16Panels`]; a tile of dW is then computed wherever it is used. The sum of an element takes
//! token pairs in order, whatever the tile, so cutting the tokens into even pieces that
//! accumulate changes no bit.

use std::ops::Range;

use rayon::prelude::*;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Columns of a panel.
const PANEL_COLS: usize = 64;

/// Token pairs that are summed while both panels' parts stay in the first-level cache.
const DEPTH: usize = 64;

/// Rows that share a step in [`Bf16Panels::fill_int8`].
const INT8_ROWS: usize = 32;

/// A pair of tokens × 64 columns: the earlier token in the low half.
type Pairs = [u32; PANEL_COLS];

/// A (rows, cols) matrix in bf16 for sums over its rows: (cols / 64, rows / 2, 64) pairs. Missing
/// rows and columns are zero.
#[derive(Debug, Clone)]
pub struct Bf16Panels {
    pairs: Vec<Pairs>,
    rows: usize,
    cols: usize,
}

impl Bf16Panels {
    /// Room for `rows` rows of `cols` columns.
    pub fn new(rows: usize, cols: usize) -> Self {
        Bf16Panels {
            pairs: vec![[0; PANEL_COLS]; Bf16Panels::pairs_of(rows, cols)],
            rows: 0,
            cols: 0,
        }
    }

    /// Bytes of [`Bf16Panels::new`].
    pub fn bytes(rows: usize, cols: usize) -> u64 {
        (size_of::<Pairs>() * Bf16Panels::pairs_of(rows, cols)) as u64
    }

    /// Bytes held.
    pub fn allocated_bytes(&self) -> u64 {
        size_of_val(self.pairs.as_slice()) as u64
    }

    fn pairs_of(rows: usize, cols: usize) -> usize {
        rows.div_ceil(2) * cols.div_ceil(PANEL_COLS)
    }

    /// Rounds `x` (rows, `cols`) f32 to nearest, ties to even.
    ///
    /// # Panics
    /// If `x` is no whole rows or does not fit.
    pub fn fill(&mut self, isa: Isa, x: &[f32], cols: usize) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "whole rows");
        let rows = x.len() / cols;
        let used = Bf16Panels::pairs_of(rows, cols);
        assert!(used <= self.pairs.len(), "room for {rows} x {cols}");
        (self.rows, self.cols) = (rows, cols);
        if used == 0 {
            return;
        }
        self.pairs[..used]
            .par_chunks_mut(rows.div_ceil(2))
            .enumerate()
            .for_each(|(panel, to)| {
                let first = panel * PANEL_COLS;
                let width = PANEL_COLS.min(cols - first);
                for (to, rows) in to.iter_mut().zip(x.chunks(2 * cols)) {
                    let (low, high) = rows.split_at(cols);
                    let low = &low[first..first + width];
                    let high = high.get(first..first + width).unwrap_or(&[]);
                    dispatch!(isa, join_row(low, high, to));
                }
            });
    }

    /// As [`Bf16Panels::fill`], of `x` rounded to what int8 holds: a column of 32 rows takes whole
    /// multiples, up to ±127, of one power of two. bf16 holds those numbers exactly, so a product
    /// of two such matrices is that of integers, up to its float sums.
    ///
    /// # Panics
    /// If `x` is no whole rows or does not fit.
    pub fn fill_int8(&mut self, isa: Isa, x: &[f32], cols: usize) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "whole rows");
        let mut rounded = vec![0.0; x.len()];
        rounded
            .par_chunks_mut(INT8_ROWS * cols)
            .zip(x.par_chunks(INT8_ROWS * cols))
            .for_each(|(rounded, x)| round_to_int8(x, rounded, cols));
        self.fill(isa, &rounded, cols);
    }

    fn panel(&self, panel: usize) -> &[Pairs] {
        let pairs = self.rows.div_ceil(2);
        &self.pairs[panel * pairs..(panel + 1) * pairs]
    }
}

/// One block of [`Bf16Panels::fill_int8`].
fn round_to_int8(x: &[f32], rounded: &mut [f32], cols: usize) {
    let mut steps = vec![0.0f32; cols];
    for row in x.chunks_exact(cols) {
        for (step, x) in steps.iter_mut().zip(row) {
            // A NaN is not the larger one, and goes through the rounding as it is.
            *step = step.max(x.abs());
        }
    }
    for step in &mut steps {
        *step = power_of_two_from(*step / 127.0);
    }
    for (row, rounded) in x.chunks_exact(cols).zip(rounded.chunks_exact_mut(cols)) {
        for ((x, step), rounded) in row.iter().zip(&steps).zip(rounded) {
            *rounded = (x / step).round_ties_even() * step;
        }
    }
}

/// The least normal power of two that is not below `x` ≥ 0; 1 where there is none.
fn power_of_two_from(x: f32) -> f32 {
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let up = if bits & 0x7f_ffff == 0 { 0 } else { 1 };
    let exponent = (bits >> 23) + up;
    if exponent < 255 {
        f32::from_bits(exponent << 23)
    } else {
        1.0
    }
}

/// A tile of a weight gradient, on the calling thread: out = dy[:, rows]ᵀ x, or out += … when
/// `accumulate`; dy (n, M), x (n, K), out (rows.len(), K) f32.
///
/// An element's sum starts at 0 (or at `out`) and adds, for each pair of tokens in order, the
/// later token's product and then the earlier one's, each addition rounded to f32.
///
/// # Panics
/// If a length does not match or `rows.start` is no multiple of 64.
pub fn bf16_tn_tile(
    isa: Isa,
    dy: &Bf16Panels,
    x: &Bf16Panels,
    rows: Range<usize>,
    out: &mut [f32],
    accumulate: bool,
) {
    let k = x.cols;
    assert_eq!(dy.rows, x.rows, "as many tokens");
    assert!(
        rows.start.is_multiple_of(PANEL_COLS) && rows.end <= dy.cols,
        "rows {rows:?} of {}",
        dy.cols
    );
    assert_eq!(out.len(), rows.len() * k, "out is (rows, k)");
    if !accumulate {
        out.fill(0.0);
    }
    let first = rows.start / PANEL_COLS;
    for (i, out) in out.chunks_mut(PANEL_COLS * k).enumerate() {
        let dy = dy.panel(first + i).chunks(DEPTH);
        for (depth, dy) in dy.enumerate() {
            for (panel, start) in (0..k).step_by(PANEL_COLS).enumerate() {
                let x = &x.panel(panel)[depth * DEPTH..][..dy.len()];
                let width = PANEL_COLS.min(k - start);
                add_products(isa, dy, x, &mut out[start..], k, width);
            }
        }
    }
}

/// out[r][c] += Σ dy[·][r] x[·][c] for the rows of `out`, which start every `stride` elements,
/// and `width` columns.
fn add_products(isa: Isa, dy: &[Pairs], x: &[Pairs], out: &mut [f32], stride: usize, width: usize) {
    #[cfg(target_arch = "x86_64")]
    if isa.extras().bf16 {
        // SAFETY: the token proves AVX-512 BF16.
        unsafe { x86::add_products(dy, x, out, stride, width) };
        return;
    }
    for (r, out) in out.chunks_mut(stride).enumerate() {
        dispatch!(isa, add_row(dy, x, r, &mut out[..width]));
    }
}

/// The specification: one row of a tile.
#[inline(always)]
fn add_row<L: Lanes>(lanes: L, dy: &[Pairs], x: &[Pairs], row: usize, out: &mut [f32]) {
    let high = lanes.splat_i(!0xffff);
    for (v, out) in out.chunks_mut(LANES).enumerate() {
        let mut sum = lanes.load_tail(out);
        for (dy, x) in dy.iter().zip(x) {
            let dy = dy[row];
            let later = lanes.splat(f32::from_bits(dy & !0xffff));
            let earlier = lanes.splat(f32::from_bits(dy << 16));
            let words: &[i32; LANES] = bytemuck::cast_ref(&x.as_chunks::<LANES>().0[v]);
            let x = lanes.load_i(words);
            let x_later = lanes.bits_to_float(lanes.and(x, high));
            let x_earlier = lanes.bits_to_float(lanes.shl(x, 16));
            // Products of bf16 are exact in f32.
            sum = lanes.mul_then_add(later, x_later, sum);
            sum = lanes.mul_then_add(earlier, x_earlier, sum);
        }
        lanes.store_tail(sum, out);
    }
}

/// Rounds two rows (the second may be empty) of up to 64 columns and joins them.
#[inline(always)]
fn join_row<L: Lanes>(lanes: L, low: &[f32], high: &[f32], to: &mut Pairs) {
    for (v, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let joined = lanes.or(part(lanes, low, v), lanes.shl(part(lanes, high, v), 16));
        lanes.store_i(joined, bytemuck::cast_mut(to));
    }
}

/// Vector `v` of a row, rounded; zero past its end. Not a closure, which would not be inlined.
#[inline(always)]
fn part<L: Lanes>(lanes: L, row: &[f32], v: usize) -> L::I {
    let start = (v * LANES).min(row.len());
    let end = (start + LANES).min(row.len());
    round(lanes, lanes.load_tail(&row[start..end]))
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
fn round<L: Lanes>(lanes: L, x: L::F) -> L::I {
    let bits = lanes.to_bits(x);
    let odd = lanes.and(lanes.shr(bits, 16), lanes.splat_i(1));
    let rounded = lanes.add_i(bits, lanes.add_i(odd, lanes.splat_i(0x7fff)));
    let size = lanes.and(bits, lanes.splat_i(i32::MAX));
    let nan = lanes.gt_i(size, lanes.splat_i(0x7f80_0000));
    let quiet = lanes.or(bits, lanes.splat_i(0x0040_0000));
    lanes.shr(lanes.select_i(nan, quiet, rounded), 16)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Pairs;

    /// Rows of dW in registers beside 64 columns.
    const ROWS: usize = 6;

    /// See [`super::add_products`].
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) fn add_products(
        dy: &[Pairs],
        x: &[Pairs],
        out: &mut [f32],
        stride: usize,
        width: usize,
    ) {
        let masks = std::array::from_fn(|v| {
            let lanes = width.saturating_sub(16 * v).min(16);
            ((1u32 << lanes) - 1) as u16
        });
        for (i, out) in out.chunks_mut(ROWS * stride).enumerate() {
            let first = i * ROWS;
            match out.len().div_ceil(stride) {
                1 => rows::<1>(dy, x, first, out, stride, masks),
                2 => rows::<2>(dy, x, first, out, stride, masks),
                3 => rows::<3>(dy, x, first, out, stride, masks),
                4 => rows::<4>(dy, x, first, out, stride, masks),
                5 => rows::<5>(dy, x, first, out, stride, masks),
                _ => rows::<ROWS>(dy, x, first, out, stride, masks),
            }
        }
    }

    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    fn rows<const R: usize>(
        dy: &[Pairs],
        x: &[Pairs],
        first: usize,
        out: &mut [f32],
        stride: usize,
        masks: [u16; 4],
    ) {
        let mut sums = [[_mm512_setzero_ps(); 4]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            let row = &out[r * stride..];
            for (v, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the mask leaves what lies within the tile's row; no other is touched.
                *sum =
                    unsafe { _mm512_maskz_loadu_ps(masks[v], row.as_ptr().wrapping_add(16 * v)) };
            }
        }
        for (dy, x) in dy.iter().zip(x) {
            let (vectors, _) = x.as_chunks::<16>();
            let mut columns = [_mm512_setzero_si512(); 4];
            for (column, vector) in columns.iter_mut().zip(vectors) {
                // SAFETY: the array holds the 64 bytes read.
                *column = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
            }
            // SAFETY: a tile has at most 64 rows, as many as `dy` has words.
            let words = unsafe { dy.get_unchecked(first..first + R) };
            for (word, sums) in words.iter().zip(&mut sums) {
                let word = _mm512_set1_epi32(word.cast_signed());
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = dot(*sum, column, word);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let row = &mut out[r * stride..];
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    _mm512_mask_storeu_ps(row.as_mut_ptr().wrapping_add(16 * v), masks[v], *sum);
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dot(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: both types are 64 bytes of plain bits.
        let [a, b] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([a, b]) };
        _mm512_dpbf16_ps(sum, a, b)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{assert_close, noise};

    fn bf16(x: f32) -> f32 {
        let bits = x.to_bits();
        f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & !0xffff)
    }

    fn panels(isa: Isa, x: &[f32], cols: usize) -> Bf16Panels {
        let mut panels = Bf16Panels::new(x.len() / cols, cols);
        panels.fill(isa, x, cols);
        assert_eq!(
            panels.allocated_bytes(),
            Bf16Panels::bytes(x.len() / cols, cols)
        );
        panels
    }

    #[test]
    fn rounding_is_to_nearest_even_and_keeps_nan() {
        let x = [
            1.0,
            f32::from_bits(0x3f80_8000),
            f32::from_bits(0x3f81_8000),
            f32::from_bits(0x3f80_8001),
            f32::INFINITY,
            f32::from_bits(0x7fff_ffff),
            -3.0e-39,
        ];
        let want = [0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0x7fff, 0x8021];
        for isa in Isa::available() {
            let panels = panels(isa, &x, 1);
            let got: Vec<u32> = panels
                .pairs
                .iter()
                .flat_map(|p| [p[0] & 0xffff, p[0] >> 16])
                .collect();
            assert_eq!(got[..7], want, "{}", isa.name());
            assert_eq!(got[7], 0);
        }
    }

    #[test]
    fn int8_rounding_keeps_to_its_step_and_to_seven_bits() {
        let (rows, cols) = (70, 5);
        let mut x = noise(rows * cols, 4);
        for row in x.chunks_exact_mut(cols).take(32) {
            row[1] *= 1000.0;
            row[2] = 0.0;
        }
        x[3] = f32::NAN;
        x[cols + 4] = f32::INFINITY;
        let mut rounded = vec![0.0; x.len()];
        for (x, rounded) in x.chunks(32 * cols).zip(rounded.chunks_mut(32 * cols)) {
            round_to_int8(x, rounded, cols);
            for c in 0..3 {
                let most = x
                    .iter()
                    .skip(c)
                    .step_by(cols)
                    .fold(0.0f32, |m, x| m.max(x.abs()));
                let step = power_of_two_from(most / 127.0);
                for (x, r) in x.iter().zip(rounded.iter()).skip(c).step_by(cols) {
                    let units = r / step;
                    assert!(units.fract() == 0.0 && units.abs() <= 127.0);
                    assert!((x - r).abs() <= 0.5 * step);
                    assert_eq!(bf16(*r), *r);
                }
            }
        }
        assert!(rounded[3].is_nan() && rounded[cols + 4] == f32::INFINITY);
        assert_eq!(power_of_two_from(0.75), 1.0);
        assert_eq!(power_of_two_from(0.5), 0.5);
        assert_eq!(power_of_two_from(0.0), f32::MIN_POSITIVE);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn tiles_are_sums_of_rounded_products(
            n in prop::sample::select(vec![1usize, 2, 3, 16, 63, 130, 257]),
            m in prop::sample::select(vec![1usize, 5, 6, 63, 64, 65, 140]),
            k in prop::sample::select(vec![1usize, 15, 17, 64, 70, 130]),
            accumulate: bool,
        ) {
            let (dy, x) = (noise(n * m, 1), noise(n * k, 2));
            let start = if m > 64 { 64 } else { 0 };
            let rows = start..m;
            let before = noise(rows.len() * k, 3);
            let want: Vec<f64> = rows.clone().flat_map(|r| (0..k).map(move |c| (r, c))).map(|(r, c)| {
                let sum: f64 = (0..n).map(|t| f64::from(bf16(dy[t * m + r])) * f64::from(bf16(x[t * k + c]))).sum();
                sum + if accumulate { f64::from(before[(r - start) * k + c]) } else { 0.0 }
            }).collect();
            let mut first = None;
            for isa in Isa::variants() {
                let (dy, x) = (panels(isa, &dy, m), panels(isa, &x, k));
                let mut out = before.clone();
                bf16_tn_tile(isa, &dy, &x, rows.clone(), &mut out, accumulate);
                assert_close(&out, &want, 1e-5, isa.name());
                // Without the instruction all tiers give the same bits.
                if !isa.extras().bf16 {
                    prop_assert_eq!(first.get_or_insert_with(|| out.clone()), &out);
                }
            }
        }
    }

    #[test]
    fn pieces_of_the_tokens_add_up_to_the_same_bits() {
        let (n, m, k) = (512, 64, 96);
        let (dy, x) = (noise(n * m, 1), noise(n * k, 2));
        for isa in Isa::variants() {
            let mut whole = vec![1.0; m * k];
            let (all_dy, all_x) = (panels(isa, &dy, m), panels(isa, &x, k));
            bf16_tn_tile(isa, &all_dy, &all_x, 0..m, &mut whole, false);
            let mut parts = vec![1.0; m * k];
            for (i, rows) in [0..100, 100..356, 356..512].into_iter().enumerate() {
                let dy = panels(isa, &dy[rows.start * m..rows.end * m], m);
                let x = panels(isa, &x[rows.start * k..rows.end * k], k);
                bf16_tn_tile(isa, &dy, &x, 0..m, &mut parts, i > 0);
            }
            assert!(whole == parts, "{}", isa.name());
        }
    }
}
