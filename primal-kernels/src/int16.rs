//! Weight gradients in int16: operands rounded by blocks, products summed in integers.
//!
//! dW = dyᵀ x sums over tokens, two at a time. Both operands are laid out once as
//! [`Int16Panels`]; a tile of dW is then computed wherever it is used. In each block of 128 tokens
//! a column takes whole multiples of its own power of two, so that a block's sum is an integer,
//! exactly, whatever the order and the instructions:
//!
//! dW[r][c] = Σ_b ((Σ_{t in b} dy[t][r] · x[t][c]) as f32 · dy_step[b][r]) · x_step[b][c]
//!
//! with blocks b added in order in f32. Cutting the tokens at multiples of 128 into pieces that
//! accumulate changes no bit.

use std::ops::Range;

use rayon::prelude::*;

use crate::int8::Path;
use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};
use crate::prefetch::ask_for;

/// Columns of a panel.
const PANEL_COLS: usize = 64;

/// Tokens that share the steps of their columns.
const BLOCK_ROWS: usize = 128;

/// Pairs of tokens in a block: both panels' parts stay in the first-level cache.
const DEPTH: usize = BLOCK_ROWS / 2;

/// Rows of dW whose sums are in registers beside 64 columns.
const ROWS: usize = 6;

/// Vectors of a panel.
const VECTORS: usize = PANEL_COLS / LANES;

/// A pair of tokens × 64 columns: the earlier token in the low half.
type Pairs = [u32; PANEL_COLS];

/// What a unit is worth in the columns of a panel.
type Steps = [f32; PANEL_COLS];

/// A (rows, cols) matrix in int16 for sums over its rows: (rows / 128, cols / 64, 64, 64) pairs and
/// (rows / 128, cols / 64, 64) steps. Missing rows and columns are zero.
#[derive(Debug, Clone)]
pub struct Int16Panels {
    pairs: Vec<Pairs>,
    steps: Vec<Steps>,
    rows: usize,
    cols: usize,
}

impl Int16Panels {
    /// The most units of a value: sums of 128 products of two of them stay within i32.
    pub const MAX: i16 = 4095;

    /// Room for `rows` rows of `cols` columns.
    pub fn new(rows: usize, cols: usize) -> Self {
        let (pairs, steps) = Int16Panels::sizes(rows, cols);
        Int16Panels {
            pairs: vec![[0; PANEL_COLS]; pairs],
            steps: vec![[0.0; PANEL_COLS]; steps],
            rows: 0,
            cols: 0,
        }
    }

    /// Bytes of [`Int16Panels::new`].
    pub fn bytes(rows: usize, cols: usize) -> u64 {
        let (pairs, steps) = Int16Panels::sizes(rows, cols);
        (size_of::<Pairs>() * pairs + size_of::<Steps>() * steps) as u64
    }

    /// Bytes held.
    pub fn allocated_bytes(&self) -> u64 {
        (size_of_val(self.pairs.as_slice()) + size_of_val(self.steps.as_slice())) as u64
    }

    fn sizes(rows: usize, cols: usize) -> (usize, usize) {
        let panels = cols.div_ceil(PANEL_COLS);
        (
            panels * rows.div_ceil(2),
            panels * rows.div_ceil(BLOCK_ROWS),
        )
    }

    /// Rounds `x` (rows, `cols`) f32 to nearest, ties to even: in each block of 128 rows a column
    /// takes whole multiples, up to ±`max`, of the least power of two for which it fits. A column
    /// with a NaN or an infinity makes all its products of that block NaN.
    ///
    /// # Panics
    /// If `x` is no whole rows or does not fit, or `max` is not in 127 ..= [`Int16Panels::MAX`].
    pub fn fill(&mut self, isa: Isa, x: &[f32], cols: usize, max: i16) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "whole rows");
        assert!((127..=Int16Panels::MAX).contains(&max), "{max} units");
        let rows = x.len() / cols;
        let (pairs, steps) = Int16Panels::sizes(rows, cols);
        assert!(
            pairs <= self.pairs.len() && steps <= self.steps.len(),
            "room for {rows} x {cols}"
        );
        (self.rows, self.cols) = (rows, cols);
        if rows == 0 {
            return;
        }
        let panels = cols.div_ceil(PANEL_COLS);
        self.pairs[..pairs]
            .par_chunks_mut(panels * DEPTH)
            .zip(self.steps[..steps].par_chunks_mut(panels))
            .zip(x.par_chunks(BLOCK_ROWS * cols))
            .for_each(|((pairs, steps), x)| {
                let depth = pairs.len() / panels;
                pairs.par_chunks_mut(depth).zip(steps).enumerate().for_each(
                    |(panel, (pairs, steps))| {
                        let first = panel * PANEL_COLS;
                        let part = first..(first + PANEL_COLS).min(cols);
                        dispatch!(
                            isa,
                            round_block(x, cols, part, f32::from(max), pairs, steps)
                        );
                    },
                );
            });
    }

    fn blocks(&self) -> usize {
        self.rows.div_ceil(BLOCK_ROWS)
    }

    /// Block `block` of a panel.
    fn block(&self, panel: usize, block: usize) -> PanelBlock<'_> {
        let panels = self.cols.div_ceil(PANEL_COLS);
        let depth = DEPTH.min(self.rows.div_ceil(2) - block * DEPTH);
        let start = block * panels * DEPTH + panel * depth;
        PanelBlock {
            pairs: &self.pairs[start..start + depth],
            steps: &self.steps[block * panels + panel],
        }
    }
}

/// 64 columns of up to 128 tokens.
#[derive(Clone, Copy)]
struct PanelBlock<'a> {
    pairs: &'a [Pairs],
    steps: &'a Steps,
}

/// Rounds the columns `part` of up to 128 rows.
#[inline(always)]
fn round_block<L: Lanes>(
    lanes: L,
    x: &[f32],
    cols: usize,
    part: Range<usize>,
    max: f32,
    pairs: &mut [Pairs],
    steps: &mut Steps,
) {
    // Bits of magnitudes are ordered as their numbers, with infinities and NaN above.
    let magnitude = lanes.splat_i(i32::MAX);
    let mut largest = [lanes.splat_i(0); VECTORS];
    for row in x.chunks_exact(cols) {
        let row = &row[part.clone()];
        for (v, largest) in largest.iter_mut().enumerate() {
            let bits = lanes.to_bits(vector(lanes, row, v));
            *largest = lanes.max_i(*largest, lanes.and(bits, magnitude));
        }
    }
    let mut units = [lanes.zero(); VECTORS];
    let vectors = steps.as_chunks_mut::<LANES>().0.iter_mut();
    for ((steps, units), largest) in vectors.zip(&mut units).zip(largest) {
        let (mut bits, mut inverses) = ([0; LANES], [0.0; LANES]);
        lanes.store_i(largest, &mut bits);
        for ((step, inverse), bits) in steps.iter_mut().zip(&mut inverses).zip(bits) {
            let largest = f32::from_bits(bits.cast_unsigned());
            *step = if largest.is_finite() {
                power_of_two_from(largest / max)
            } else {
                f32::NAN
            };
            *inverse = 1.0 / *step;
        }
        *units = lanes.load(&inverses);
    }
    let (upper, lower) = (lanes.splat(max), lanes.splat(-max));
    let low_half = lanes.splat_i(0xffff);
    for (rows, pairs) in x.chunks(2 * cols).zip(pairs) {
        let (earlier, later) = rows.split_at(cols);
        let earlier = &earlier[part.clone()];
        let later = later.get(part.clone()).unwrap_or(&[]);
        let vectors = pairs.as_chunks_mut::<LANES>().0.iter_mut();
        for (v, (pairs, units)) in vectors.zip(units).enumerate() {
            // What is not a number becomes one; its step is none.
            let x = lanes.mul(vector(lanes, earlier, v), units);
            let x = lanes.round(lanes.max(lanes.min(x, upper), lower));
            let y = lanes.mul(vector(lanes, later, v), units);
            let y = lanes.round(lanes.max(lanes.min(y, upper), lower));
            let joined = lanes.or(lanes.and(x, low_half), lanes.shl(y, 16));
            lanes.store_i(joined, bytemuck::cast_mut(pairs));
        }
    }
}

/// Vector `v` of a row of up to 64 columns; zero past its end.
#[inline(always)]
fn vector<L: Lanes>(lanes: L, row: &[f32], v: usize) -> L::F {
    let (whole, tail) = row.as_chunks::<LANES>();
    match whole.get(v) {
        Some(x) => lanes.load(x),
        None if v == whole.len() => lanes.load_tail(tail),
        None => lanes.zero(),
    }
}

/// The least normal power of two that is not below `x` ≥ 0, which is below 2¹²⁶.
#[inline(always)]
fn power_of_two_from(x: f32) -> f32 {
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    f32::from_bits((bits + 0x7f_ffff) & !0x7f_ffff)
}

/// A tile of a weight gradient, on the calling thread: out = dy[:, rows]ᵀ x, or out += … when
/// `accumulate`; dy (n, M), x (n, K), out (rows.len(), K) f32. All tiers give the same bits.
///
/// # Panics
/// If a length does not match or `rows.start` is no multiple of 64.
pub fn int16_tn_tile(
    isa: Isa,
    dy: &Int16Panels,
    x: &Int16Panels,
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
    if !accumulate && x.rows == 0 {
        out.fill(0.0);
    }
    let first = rows.start / PANEL_COLS;
    for (i, out) in out.chunks_mut(PANEL_COLS * k).enumerate() {
        for block in 0..x.blocks() {
            let dy = dy.block(first + i, block);
            let accumulate = accumulate || block > 0;
            for (panel, start) in (0..k).step_by(PANEL_COLS).enumerate() {
                let tile = Tile {
                    out: &mut out[start..],
                    stride: k,
                    width: PANEL_COLS.min(k - start),
                    accumulate,
                };
                add_products(isa, dy, x.block(panel, block), tile);
            }
        }
    }
}

/// Up to 64 columns of dW.
struct Tile<'a> {
    /// Rows start every `stride` elements.
    out: &'a mut [f32],
    stride: usize,
    width: usize,
    accumulate: bool,
}

/// out[r][c] (+)= Σ dy[·][r] x[·][c].
fn add_products(isa: Isa, dy: PanelBlock<'_>, x: PanelBlock<'_>, tile: Tile<'_>) {
    let Tile { out, stride, .. } = tile;
    let mut sums = [[0; PANEL_COLS]; ROWS];
    for (i, out) in out.chunks_mut(ROWS * stride).enumerate() {
        let first = i * ROWS;
        let sums = &mut sums[..out.len().div_ceil(stride)];
        for row in out.chunks(stride) {
            ask_for(&row[..tile.width]);
        }
        match Path::of(isa) {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::AvxVnni | Path::Avx512Vnni => {
                x86::sum_pairs(isa, dy.pairs, x.pairs, first, sums);
            }
            _ => sum_pairs(dy.pairs, x.pairs, first, sums),
        }
        let dy_steps = &dy.steps[first..];
        let tile = Tile { out, ..tile };
        dispatch!(isa, fold(sums, dy_steps, x.steps, tile));
    }
}

/// The specification: sums of the columns `first`.. of `dy` with all of `x`.
fn sum_pairs(dy: &[Pairs], x: &[Pairs], first: usize, sums: &mut [[i32; PANEL_COLS]]) {
    let halves = |pair: u32| [pair as i16, (pair >> 16) as i16].map(i32::from);
    for (r, sums) in sums.iter_mut().enumerate() {
        sums.fill(0);
        for (dy, x) in dy.iter().zip(x) {
            let [earlier, later] = halves(dy[first + r]);
            for (sum, x) in sums.iter_mut().zip(x) {
                let x = halves(*x);
                *sum += earlier * x[0] + later * x[1];
            }
        }
    }
}

/// Adds a block's sums, scaled, to the tile, or to zero.
#[inline(always)]
fn fold<L: Lanes>(
    lanes: L,
    sums: &[[i32; PANEL_COLS]],
    dy_steps: &[f32],
    x_steps: &Steps,
    tile: Tile<'_>,
) {
    let rows = tile.out.chunks_mut(tile.stride);
    let rows = rows.zip(sums).zip(dy_steps);
    for ((out, sums), dy_step) in rows {
        let dy_step = lanes.splat(*dy_step);
        let vectors = sums.as_chunks::<LANES>().0.iter();
        let vectors = vectors.zip(x_steps.as_chunks::<LANES>().0);
        for (v, (sums, x_steps)) in vectors.enumerate() {
            let sum = lanes.mul(lanes.convert(lanes.load_i(sums)), dy_step);
            let sum = lanes.mul(sum, lanes.load(x_steps));
            let out = &mut out[..tile.width];
            let before = if tile.accumulate {
                vector(lanes, out, v)
            } else {
                lanes.zero()
            };
            let sum = lanes.add(before, sum);
            let (whole, tail) = out.as_chunks_mut::<LANES>();
            if v < whole.len() {
                lanes.store(sum, &mut whole[v]);
            } else if v == whole.len() {
                lanes.store_tail(sum, tail);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{PANEL_COLS, Pairs, ROWS};
    use crate::int8::Path;
    use crate::isa::Isa;

    /// See [`super::sum_pairs`].
    pub(super) fn sum_pairs(
        isa: Isa,
        dy: &[Pairs],
        x: &[Pairs],
        first: usize,
        sums: &mut [[i32; PANEL_COLS]],
    ) {
        assert!(dy.len() == x.len() && first + sums.len() <= PANEL_COLS);
        // SAFETY: the path follows from features that the token proves.
        unsafe {
            match (Path::of(isa), sums.len()) {
                (Path::Avx512Vnni, 1) => rows_512::<1>(dy, x, first, sums),
                (Path::Avx512Vnni, 2) => rows_512::<2>(dy, x, first, sums),
                (Path::Avx512Vnni, 3) => rows_512::<3>(dy, x, first, sums),
                (Path::Avx512Vnni, 4) => rows_512::<4>(dy, x, first, sums),
                (Path::Avx512Vnni, 5) => rows_512::<5>(dy, x, first, sums),
                (Path::Avx512Vnni, _) => rows_512::<ROWS>(dy, x, first, sums),
                (Path::AvxVnni, _) => rows_256_vnni(dy, x, first, sums),
                (Path::Avx2, _) => rows_256_plain(dy, x, first, sums),
                (Path::Scalar, _) => unreachable!("the scalar path has a kernel of its own"),
            }
        }
    }

    /// `R` rows × 64 columns in 4 R registers.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    fn rows_512<const R: usize>(
        dy: &[Pairs],
        x: &[Pairs],
        first: usize,
        out: &mut [[i32; PANEL_COLS]],
    ) {
        let mut sums = [[_mm512_setzero_si512(); 4]; R];
        for (dy, x) in dy.iter().zip(x) {
            let mut columns = [_mm512_setzero_si512(); 4];
            for (column, vector) in columns.iter_mut().zip(x.as_chunks::<16>().0) {
                // SAFETY: the array holds the 64 bytes read.
                *column = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
            }
            // SAFETY: the caller's rows lie within the 64 of a panel.
            let words = unsafe { dy.get_unchecked(first..first + R) };
            for (word, sums) in words.iter().zip(&mut sums) {
                let word = _mm512_set1_epi32(word.cast_signed());
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpwssd_epi32(*sum, column, word);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
                // SAFETY: the array holds the 64 bytes written.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
            }
        }
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn rows_256_vnni(dy: &[Pairs], x: &[Pairs], first: usize, sums: &mut [[i32; PANEL_COLS]]) {
        rows_256::<true>(dy, x, first, sums);
    }

    #[target_feature(enable = "avx2")]
    fn rows_256_plain(dy: &[Pairs], x: &[Pairs], first: usize, sums: &mut [[i32; PANEL_COLS]]) {
        rows_256::<false>(dy, x, first, sums);
    }

    /// Two rows × 32 columns at a time: eight sums in sixteen registers.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rows_256<const VNNI: bool>(
        dy: &[Pairs],
        x: &[Pairs],
        first: usize,
        out: &mut [[i32; PANEL_COLS]],
    ) {
        for (i, out) in out.chunks_mut(2).enumerate() {
            let row = first + 2 * i;
            // A single last row is summed twice.
            let rows = [row, row + out.len() - 1];
            for part in 0..2 {
                let mut sums = [[_mm256_setzero_si256(); 4]; 2];
                for (dy, x) in dy.iter().zip(x) {
                    // SAFETY: the caller's rows lie within the 64 of a panel.
                    let words = rows.map(|row| unsafe { *dy.get_unchecked(row) });
                    let words = words.map(|word| _mm256_set1_epi32(word.cast_signed()));
                    let (vectors, _) = x.as_chunks::<8>();
                    for v in 0..4 {
                        let vector = &vectors[4 * part + v];
                        // SAFETY: the array holds the 32 bytes read.
                        let column = unsafe { _mm256_loadu_si256(vector.as_ptr().cast()) };
                        for (sums, word) in sums.iter_mut().zip(words) {
                            sums[v] = add_pairs::<VNNI>(sums[v], column, word);
                        }
                    }
                }
                for (out, sums) in out.iter_mut().zip(sums) {
                    let (vectors, _) = out.as_chunks_mut::<8>();
                    for (v, sum) in sums.into_iter().enumerate() {
                        let vector = &mut vectors[4 * part + v];
                        // SAFETY: the array holds the 32 bytes written.
                        unsafe { _mm256_storeu_si256(vector.as_mut_ptr().cast(), sum) };
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn add_pairs<const VNNI: bool>(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        if VNNI {
            // SAFETY: the caller has the instruction where it says so.
            unsafe { dot_256(sum, a, b) }
        } else {
            _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    fn dot_256(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_dpwssd_avx_epi32(sum, a, b)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{assert_close, noise};

    const MAX: i16 = Int16Panels::MAX;

    fn panels(isa: Isa, x: &[f32], cols: usize, max: i16) -> Int16Panels {
        let mut panels = Int16Panels::new(x.len() / cols, cols);
        panels.fill(isa, x, cols, max);
        assert_eq!(
            panels.allocated_bytes(),
            Int16Panels::bytes(x.len() / cols, cols)
        );
        panels
    }

    /// The units and the step of an element.
    fn element(panels: &Int16Panels, row: usize, col: usize) -> (i16, f32) {
        let block = panels.block(col / PANEL_COLS, row / BLOCK_ROWS);
        let pair = block.pairs[row % BLOCK_ROWS / 2][col % PANEL_COLS];
        let units = (pair >> (16 * (row % 2))) as i16;
        (units, block.steps[col % PANEL_COLS])
    }

    /// (rows, cols) values as rounded.
    fn rounded(x: &[f32], cols: usize, max: i16) -> Vec<f64> {
        let panels = panels(Isa::new(crate::Tier::Scalar).unwrap(), x, cols, max);
        (0..x.len())
            .map(|i| element(&panels, i / cols, i % cols))
            .map(|(units, step)| f64::from(units) * f64::from(step))
            .collect()
    }

    #[test]
    fn rounding_keeps_to_its_step_and_its_bits() {
        let (rows, cols) = (200, 70);
        for max in [127, MAX] {
            let mut x = noise(rows * cols, 4);
            for row in x.chunks_exact_mut(cols).take(100) {
                row[1] *= 1e30;
                row[2] = 0.0;
                row[3] *= 1e-42;
            }
            for isa in Isa::available() {
                let panels = panels(isa, &x, cols, max);
                for (i, &x) in x.iter().enumerate() {
                    let (units, step) = element(&panels, i / cols, i % cols);
                    assert_eq!(step.to_bits() & 0x7f_ffff, 0, "a power of two");
                    assert!(units.abs() <= max);
                    let error = (f64::from(x) - f64::from(units) * f64::from(step)).abs();
                    assert!(error <= 0.5 * f64::from(step), "{x}: {units} x {step}");
                }
                // No coarser than need be: the largest of a column is above half of the most.
                let units = |row| element(&panels, row, 1).0.abs();
                assert!((0..BLOCK_ROWS).map(units).max() >= Some(max / 2));
            }
        }
        assert_eq!(power_of_two_from(0.75), 1.0);
        assert_eq!(power_of_two_from(0.5), 0.5);
        assert_eq!(power_of_two_from(0.0), f32::MIN_POSITIVE);
    }

    #[test]
    fn the_largest_sums_fit() {
        let (n, m, k) = (128, 7, 65);
        let dy = vec![f32::MAX / 1e10; n * m];
        let x = vec![-4095.0; n * k];
        for isa in Isa::variants() {
            let (dy, x) = (panels(isa, &dy, m, MAX), panels(isa, &x, k, MAX));
            let mut out = vec![0.0; m * k];
            int16_tn_tile(isa, &dy, &x, 0..m, &mut out, false);
            let want = vec![f64::from(f32::MAX / 1e10) * -4095.0 * 128.0; m * k];
            assert_close(&out, &want, 1e-3, isa.name());
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row_and_column() {
        let (n, m, k) = (150, 66, 67);
        let (mut dy, mut x) = (noise(n * m, 1), noise(n * k, 2));
        dy[3 * m + 65] = f32::NAN;
        x[149 * k + 64] = f32::NEG_INFINITY;
        for isa in Isa::variants() {
            let (dy, x) = (panels(isa, &dy, m, MAX), panels(isa, &x, k, MAX));
            let mut out = vec![0.0; m * k];
            int16_tn_tile(isa, &dy, &x, 0..m, &mut out, false);
            for (i, out) in out.iter().enumerate() {
                assert_eq!(out.is_nan(), i / k == 65 || i % k == 64, "{i}: {out}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn tiles_are_sums_of_rounded_products(
            n in prop::sample::select(vec![1usize, 2, 3, 16, 127, 128, 129, 257]),
            m in prop::sample::select(vec![1usize, 5, 6, 63, 64, 65, 140]),
            k in prop::sample::select(vec![1usize, 15, 17, 64, 70, 130]),
            max in prop::sample::select(vec![127i16, MAX]),
            accumulate: bool,
        ) {
            let (dy, x) = (noise(n * m, 1), noise(n * k, 2));
            let (dy_rounded, x_rounded) = (rounded(&dy, m, max), rounded(&x, k, max));
            let start = if m > 64 { 64 } else { 0 };
            let rows = start..m;
            let before = noise(rows.len() * k, 3);
            let want: Vec<f64> = rows.clone().flat_map(|r| (0..k).map(move |c| (r, c))).map(|(r, c)| {
                let sum: f64 = (0..n).map(|t| dy_rounded[t * m + r] * x_rounded[t * k + c]).sum();
                sum + if accumulate { f64::from(before[(r - start) * k + c]) } else { 0.0 }
            }).collect();
            let mut first = None;
            for isa in Isa::variants() {
                let (dy, x) = (panels(isa, &dy, m, max), panels(isa, &x, k, max));
                let mut out = before.clone();
                int16_tn_tile(isa, &dy, &x, rows.clone(), &mut out, accumulate);
                assert_close(&out, &want, 1e-6, isa.name());
                prop_assert_eq!(first.get_or_insert_with(|| out.clone()), &out);
            }
        }
    }

    #[test]
    fn pieces_of_whole_blocks_add_up_to_the_same_bits() {
        let (n, m, k) = (500, 64, 96);
        let (dy, x) = (noise(n * m, 1), noise(n * k, 2));
        for isa in Isa::variants() {
            let mut whole = vec![1.0; m * k];
            let (all_dy, all_x) = (panels(isa, &dy, m, MAX), panels(isa, &x, k, MAX));
            int16_tn_tile(isa, &all_dy, &all_x, 0..m, &mut whole, false);
            let mut parts = vec![1.0; m * k];
            for (i, rows) in [0..128, 128..384, 384..500].into_iter().enumerate() {
                let dy = panels(isa, &dy[rows.start * m..rows.end * m], m, MAX);
                let x = panels(isa, &x[rows.start * k..rows.end * k], k, MAX);
                int16_tn_tile(isa, &dy, &x, 0..m, &mut parts, i > 0);
            }
            assert!(whole == parts, "{}", isa.name());
        }
    }
}
