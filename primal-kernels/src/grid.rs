//! Reading weights from the grid: decoding, the fused matrix-vector product, and `dot`.

use std::cell::RefCell;

use primal_lut::QuantMatrix;
use rayon::prelude::*;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Weights that one task of [`matvec`] reads, at least a block of rows.
const TASK_WEIGHTS: usize = 1 << 16;

/// Rows that [`matvec`] sums side by side: additions take several cycles, loads of `x` are shared.
const ROW_BLOCK: usize = 4;

thread_local! {
    /// One row of weights, for groups that the fused product cannot take.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Writes row `row` of `matrix`, scale applied, to `out`, (cols) f32.
///
/// # Panics
/// If `row` is out of range or `out` has another length.
pub fn decode_row(isa: Isa, matrix: &QuantMatrix, row: usize, out: &mut [f32]) {
    assert_eq!(out.len(), matrix.cols(), "decoded row");
    let codes = RowCodes::of(matrix, row);
    let groups = matrix.groups_per_row();
    let scales = &matrix.scales()[row * groups..][..groups];
    if let [scale] = *scales {
        decode(isa, matrix.grid().table(), codes, scale, out);
        return;
    }
    decode(isa, matrix.grid().table(), codes, 1.0, out);
    for (out, &scale) in out.chunks_mut(matrix.group()).zip(scales) {
        crate::adamw::scale(isa, out, scale);
    }
}

/// Writes one row of grid values, no scale, to `out`, (cols) f32. `nibbles` is
/// (cols.div_ceil(2)) u8, low nibble first; `wide_high`, for grids of more than 15 values, is
/// (cols.div_ceil(8)) u8, bit `c % 8` of byte `c / 8` being bit 4 of code `c`.
///
/// # Panics
/// If the lengths do not agree.
pub fn decode_values(
    isa: Isa,
    table: &[f32; 32],
    wide_high: Option<&[u8]>,
    nibbles: &[u8],
    out: &mut [f32],
) {
    decode(
        isa,
        table,
        RowCodes {
            nibbles,
            high: wide_high,
        },
        1.0,
        out,
    );
}

/// y = W x for `matrix` W (rows, cols), `x` (cols) f32, `y` (rows) f32, without ever writing
/// the weights out. Each group's products are summed before its scale is applied.
///
/// # Panics
/// If the lengths do not agree.
pub fn matvec(isa: Isa, matrix: &QuantMatrix, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), matrix.cols(), "input of a matrix-vector product");
    assert_eq!(y.len(), matrix.rows(), "output of a matrix-vector product");
    let task_rows = (TASK_WEIGHTS / matrix.cols())
        .next_multiple_of(ROW_BLOCK)
        .max(ROW_BLOCK);
    y.par_chunks_mut(task_rows)
        .enumerate()
        .for_each(|(task, y)| {
            matvec_task(isa, matrix, task * task_rows, x, y);
        });
}

/// The sum of `a[i] * b[i]` in the order of all kernels: lane `i % 16` first, then a fixed tree.
///
/// # Panics
/// If the lengths differ.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of a dot product");
    dispatch!(isa, dot_lanes(a, b))
}

#[inline(always)]
pub(crate) fn dot_lanes<L: Lanes>(lanes: L, a: &[f32], b: &[f32]) -> f32 {
    let mut sum = lanes.zero();
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        sum = lanes.mul_then_add(lanes.load(a), lanes.load(b), sum);
    }
    if !a_tail.is_empty() {
        sum = lanes.mul_then_add(lanes.load_tail(a_tail), lanes.load_tail(b_tail), sum);
    }
    lanes.sum(sum)
}

/// y += factor · x.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(isa: Isa, factor: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "as many sums as summands");
    dispatch!(isa, add_scaled_lanes(factor, x, y));
}

#[inline(always)]
fn add_scaled_lanes<L: Lanes>(lanes: L, factor: f32, x: &[f32], y: &mut [f32]) {
    let factor = lanes.splat(factor);
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (x, y) in x.iter().zip(y) {
        let sum = lanes.mul_then_add(factor, lanes.load(x), lanes.load(y));
        lanes.store(sum, y);
    }
    if !x_tail.is_empty() {
        let (x, y) = (lanes.load_tail(x_tail), lanes.load_tail(y_tail));
        lanes.store_tail(lanes.mul_then_add(factor, x, y), y_tail);
    }
}

/// The packed codes of one row.
#[derive(Clone, Copy)]
struct RowCodes<'a> {
    nibbles: &'a [u8],
    high: Option<&'a [u8]>,
}

impl<'a> RowCodes<'a> {
    fn of(matrix: &'a QuantMatrix, row: usize) -> Self {
        assert!(row < matrix.rows(), "row {row} of {}", matrix.rows());
        let (bytes, high_bytes) = (matrix.row_bytes(), matrix.high_row_bytes());
        RowCodes {
            nibbles: &matrix.nibbles()[row * bytes..][..bytes],
            high: matrix
                .high()
                .map(|high| &high[row * high_bytes..][..high_bytes]),
        }
    }

    fn check(&self, cols: usize) {
        assert_eq!(
            self.nibbles.len(),
            cols.div_ceil(2),
            "nibbles of {cols} columns"
        );
        if let Some(high) = self.high {
            assert_eq!(high.len(), cols.div_ceil(8), "high bits of {cols} columns");
        }
    }

    /// The codes from column `start` (a multiple of 16) on, `len` of them.
    fn slice(&self, start: usize, len: usize) -> Self {
        RowCodes {
            nibbles: &self.nibbles[start / 2..][..len.div_ceil(2)],
            high: self.high.map(|high| &high[start / 8..][..len.div_ceil(8)]),
        }
    }

    /// Whole blocks of 16 codes, and the block that holds the rest, padded with zeros.
    #[inline(always)]
    fn blocks<const WIDE: bool>(&self, cols: usize) -> (CodeBlocks<'a>, ([u8; 8], [u8; 2])) {
        let n_blocks = cols / LANES;
        let (nibbles, nibble_tail) = self.nibbles.split_at(n_blocks * 8);
        let mut tail = ([0; 8], [0; 2]);
        tail.0[..nibble_tail.len()].copy_from_slice(nibble_tail);
        let mut blocks = CodeBlocks {
            nibbles: nibbles.as_chunks().0,
            high: &[],
        };
        if let (true, Some(high)) = (WIDE, self.high) {
            let (high, high_tail) = high.split_at(n_blocks * 2);
            tail.1[..high_tail.len()].copy_from_slice(high_tail);
            blocks.high = high.as_chunks().0;
        }
        (blocks, tail)
    }
}

/// Blocks of 16 codes; `high` is empty on a narrow grid.
#[derive(Clone, Copy)]
struct CodeBlocks<'a> {
    nibbles: &'a [[u8; 8]],
    high: &'a [[u8; 2]],
}

/// The values of one block of 16 codes.
#[inline(always)]
fn block_values<L: Lanes, const WIDE: bool>(
    lanes: L,
    table: L::T,
    nibbles: &[u8; 8],
    high: [u8; 2],
) -> L::F {
    let codes = lanes.load_nibbles(nibbles);
    if WIDE {
        let codes = lanes.or(codes, lanes.spread_bit4(u16::from_le_bytes(high)));
        lanes.lookup32(table, codes)
    } else {
        lanes.lookup16(table, codes)
    }
}

fn decode(isa: Isa, table: &[f32; 32], codes: RowCodes<'_>, scale: f32, out: &mut [f32]) {
    codes.check(out.len());
    if codes.high.is_some() {
        dispatch!(isa, decode_lanes::<true>(table, codes, scale, out));
    } else {
        dispatch!(isa, decode_lanes::<false>(table, codes, scale, out));
    }
}

#[inline(always)]
fn decode_lanes<L: Lanes, const WIDE: bool>(
    lanes: L,
    table: &[f32; 32],
    codes: RowCodes<'_>,
    scale: f32,
    out: &mut [f32],
) {
    let table = lanes.table(table);
    let scale = lanes.splat(scale);
    let (blocks, tail) = codes.blocks::<WIDE>(out.len());
    let (out, out_tail) = out.as_chunks_mut::<LANES>();
    if WIDE {
        for ((out, nibbles), high) in out.iter_mut().zip(blocks.nibbles).zip(blocks.high) {
            let values = block_values::<L, WIDE>(lanes, table, nibbles, *high);
            lanes.store(lanes.mul(values, scale), out);
        }
    } else {
        for (out, nibbles) in out.iter_mut().zip(blocks.nibbles) {
            let values = block_values::<L, WIDE>(lanes, table, nibbles, [0; 2]);
            lanes.store(lanes.mul(values, scale), out);
        }
    }
    if !out_tail.is_empty() {
        let values = block_values::<L, WIDE>(lanes, table, &tail.0, tail.1);
        lanes.store_tail(lanes.mul(values, scale), out_tail);
    }
}

fn matvec_task(isa: Isa, matrix: &QuantMatrix, first_row: usize, x: &[f32], y: &mut [f32]) {
    let one_group = matrix.groups_per_row() == 1;
    if !one_group && !matrix.group().is_multiple_of(LANES) {
        ROW.with_borrow_mut(|weights| {
            weights.resize(weights.len().max(x.len()), 0.0);
            let weights = &mut weights[..x.len()];
            for (row, y) in (first_row..).zip(y) {
                decode_row(isa, matrix, row, weights);
                *y = dot(isa, weights, x);
            }
        });
    } else if matrix.high().is_some() {
        dispatch!(isa, matvec_lanes::<true>(matrix, first_row, x, y));
    } else {
        dispatch!(isa, matvec_lanes::<false>(matrix, first_row, x, y));
    }
}

#[inline(always)]
fn matvec_lanes<L: Lanes, const WIDE: bool>(
    lanes: L,
    matrix: &QuantMatrix,
    first_row: usize,
    x: &[f32],
    y: &mut [f32],
) {
    let mut row = first_row;
    let (blocks, rest) = y.as_chunks_mut::<ROW_BLOCK>();
    for y in blocks {
        *y = matvec_rows::<L, WIDE, ROW_BLOCK>(lanes, matrix, row, x);
        row += ROW_BLOCK;
    }
    for y in rest {
        [*y] = matvec_rows::<L, WIDE, 1>(lanes, matrix, row, x);
        row += 1;
    }
}

/// N rows from `row` on; the sum of a row does not depend on N.
#[inline(always)]
fn matvec_rows<L: Lanes, const WIDE: bool, const N: usize>(
    lanes: L,
    matrix: &QuantMatrix,
    row: usize,
    x: &[f32],
) -> [f32; N] {
    let table = lanes.table(matrix.grid().table());
    let groups = matrix.groups_per_row();
    let mut codes = [RowCodes {
        nibbles: &[],
        high: None,
    }; N];
    for (n, codes) in codes.iter_mut().enumerate() {
        *codes = RowCodes::of(matrix, row + n);
    }
    let mut totals = [lanes.zero(); N];
    for (group, x) in x.chunks(matrix.group()).enumerate() {
        let sums = group_sums::<L, WIDE, N>(lanes, table, &codes, group * matrix.group(), x);
        for n in 0..N {
            let scale = lanes.splat(matrix.scales()[(row + n) * groups + group]);
            totals[n] = lanes.mul_then_add(sums[n], scale, totals[n]);
        }
    }
    let mut y = [0.0; N];
    for (y, total) in y.iter_mut().zip(totals) {
        *y = lanes.sum(total);
    }
    y
}

/// Lane sums of value * x over the columns from `start` on, for N rows.
#[inline(always)]
fn group_sums<L: Lanes, const WIDE: bool, const N: usize>(
    lanes: L,
    table: L::T,
    codes: &[RowCodes<'_>; N],
    start: usize,
    x: &[f32],
) -> [L::F; N] {
    let mut sums = [lanes.zero(); N];
    let mut blocks = [CodeBlocks {
        nibbles: &[],
        high: &[],
    }; N];
    let mut tails = [([0; 8], [0; 2]); N];
    for n in 0..N {
        (blocks[n], tails[n]) = codes[n].slice(start, x.len()).blocks::<WIDE>(x.len());
    }
    let (x, x_tail) = x.as_chunks::<LANES>();
    // The lengths are equal by construction; saying so here drops the checks in the loop.
    for block in &blocks {
        assert!(block.nibbles.len() == x.len() && (!WIDE || block.high.len() == x.len()));
    }
    for (i, x) in x.iter().enumerate() {
        let x = lanes.load(x);
        for n in 0..N {
            let high = if WIDE { blocks[n].high[i] } else { [0; 2] };
            let values = block_values::<L, WIDE>(lanes, table, &blocks[n].nibbles[i], high);
            sums[n] = lanes.mul_then_add(values, x, sums[n]);
        }
    }
    if !x_tail.is_empty() {
        let x = lanes.load_tail(x_tail);
        for n in 0..N {
            let values = block_values::<L, WIDE>(lanes, table, &tails[n].0, tails[n].1);
            sums[n] = lanes.mul_then_add(values, x, sums[n]);
        }
    }
    sums
}

#[cfg(test)]
mod tests;
