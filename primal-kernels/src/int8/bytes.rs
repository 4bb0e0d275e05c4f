//! A float matrix rounded to bytes: what the head of a model is multiplied as when it writes.

use rayon::prelude::*;

use super::gemv::{Token, fold_group, for_each_block};
use super::packed::{BLOCK_ROWS, STEP_COLS};
use super::panel::FLIP;
use super::{INT8_MAX_COLS, Path, QuantisedRows};
use crate::huge::{HugeArena, HugeBytes};
use crate::isa::Isa;
use crate::rows::MatrixRows;

/// Columns that share a scale, or all of a narrower matrix.
const GROUP: usize = 64;

/// Weights that one task reads, at least a block of rows: 64 KiB.
const TASK_WEIGHTS: usize = 1 << 16;

/// Eight columns of a block: byte [c / 4][4 r + c % 4] is column c of row r, top bit turned over.
pub(super) type ByteStep = [[u8; 64]; 2];

/// A matrix of floats as int8, one scale for 64 columns of a row: value = scale · q with
/// q = round(w / scale), scale = max |w| / 127 of the group. A quarter of the float matrix's memory, and
/// of the time to read it; no value is off by more than half of 1/127 of its group's largest.
///
/// A group that holds a NaN or an infinity has the scale NaN.
///
/// Layout: bytes (rows / 16, cols / 8, 2, 64) in a [`HugeArena`]; scales (rows / 16, groups, 16)
/// f32. Padding is zero.
#[derive(Debug)]
pub struct ByteWeights {
    rows: usize,
    cols: usize,
    bytes: HugeBytes,
    scales: Vec<[f32; BLOCK_ROWS]>,
}

impl ByteWeights {
    /// What [`ByteWeights::zeros`] takes of an arena.
    pub fn arena_bytes(rows: usize, cols: usize) -> usize {
        let steps = rows.div_ceil(BLOCK_ROWS) * cols.div_ceil(STEP_COLS);
        HugeArena::piece_bytes(steps * size_of::<ByteStep>())
    }

    /// Bytes of scales outside the arena.
    pub fn scale_bytes(rows: usize, cols: usize) -> usize {
        rows.div_ceil(BLOCK_ROWS) * cols.div_ceil(GROUP) * size_of::<[f32; BLOCK_ROWS]>()
    }

    /// A matrix of zeros, to be filled by [`ByteWeights::set_rows`]: a large matrix then never
    /// exists twice. `None` for no columns or more than [`INT8_MAX_COLS`], or an arena without room.
    pub fn zeros((rows, cols): (usize, usize), arena: &mut HugeArena) -> Option<ByteWeights> {
        if !(1..=INT8_MAX_COLS).contains(&cols) {
            return None;
        }
        let mut bytes = arena.take(ByteWeights::arena_bytes(rows, cols))?;
        bytes.fill(FLIP);
        let blocks = rows.div_ceil(BLOCK_ROWS);
        Some(ByteWeights {
            rows,
            cols,
            bytes,
            scales: vec![[0.0; BLOCK_ROWS]; blocks * cols.div_ceil(GROUP)],
        })
    }

    /// Rounds `values` (n, cols) f32 to the rows from `first` on.
    ///
    /// # Panics
    /// If rows lie outside, or `first` is no multiple of 16.
    pub fn set_rows(&mut self, first: usize, values: &[f32]) {
        let (cols, groups) = (self.cols, self.cols.div_ceil(GROUP));
        assert!(
            first.is_multiple_of(BLOCK_ROWS)
                && values.len().is_multiple_of(cols)
                && first + values.len() / cols <= self.rows,
            "{} rows of {cols} from {first} on, of {}",
            values.len() / cols,
            self.rows
        );
        let (steps, block) = (self.steps(), first / BLOCK_ROWS);
        let scales = self.scales[block * groups..].par_chunks_mut(groups);
        bytemuck::cast_slice_mut::<u8, ByteStep>(&mut self.bytes)[block * steps..]
            .par_chunks_mut(steps)
            .zip(scales)
            .zip(values.par_chunks(BLOCK_ROWS * cols))
            .for_each(|((steps, scales), values)| {
                for (r, row) in values.chunks_exact(cols).enumerate() {
                    for (group, (scale, values)) in
                        scales.iter_mut().zip(row.chunks(GROUP)).enumerate()
                    {
                        scale[r] = round_group(values, |i, q| {
                            let col = group * GROUP + i;
                            let (step, col) = (col / STEP_COLS, col % STEP_COLS);
                            steps[step][col / 4][4 * r + col % 4] = q.cast_unsigned() ^ FLIP;
                        });
                    }
                }
            });
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        GROUP.min(self.cols)
    }

    /// Bytes of values and scales, padding included.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + size_of_val(self.scales.as_slice())
    }

    /// The values, in the order in which they are read.
    pub fn values(&self) -> &[u8] {
        &self.bytes
    }

    fn steps(&self) -> usize {
        self.cols.div_ceil(STEP_COLS)
    }

    fn block(&self, block: usize) -> ByteBlock<'_> {
        let (steps, groups) = (self.steps(), self.cols.div_ceil(GROUP));
        ByteBlock {
            steps: &bytemuck::cast_slice::<u8, ByteStep>(&self.bytes)[block * steps..][..steps],
            scales: &self.scales[block * groups..][..groups],
        }
    }
}

/// Gives each value's place and q to `set`; returns the scale.
fn round_group(values: &[f32], mut set: impl FnMut(usize, i8)) -> f32 {
    let largest = values
        .iter()
        .fold(0.0f32, |largest, x| largest.max(x.abs()));
    let inverse = 127.0 / largest;
    if values.iter().any(|x| !x.is_finite()) {
        return f32::NAN;
    }
    if !inverse.is_finite() {
        // All zeros, or too small to invert.
        (0..values.len()).for_each(|i| set(i, 0));
        return 0.0;
    }
    for (i, x) in values.iter().enumerate() {
        set(i, (x * inverse).round_ties_even() as i8);
    }
    largest / 127.0
}

/// Sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct ByteBlock<'a> {
    pub(super) steps: &'a [ByteStep],
    /// One a group.
    pub(super) scales: &'a [[f32; BLOCK_ROWS]],
}

/// Steps of a group.
pub(super) const GROUP_STEPS: usize = GROUP / STEP_COLS;

impl MatrixRows for ByteWeights {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn fill_row(&self, _isa: Isa, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "decoded row");
        let (block, r) = (self.block(row / BLOCK_ROWS), row % BLOCK_ROWS);
        for (col, out) in out.iter_mut().enumerate() {
            let (step, c) = (col / STEP_COLS, col % STEP_COLS);
            let q = (block.steps[step][c / 4][4 * r + c % 4] ^ FLIP).cast_signed();
            *out = f32::from(q) * block.scales[col / GROUP][r];
        }
    }
}

/// y = W x for one token, quantised by [`QuantisedRows::quantise_for_bytes`]; `y` (rows)
/// f32. Sums in integers, so every tier gives the same bits.
///
/// # Panics
/// If `x` does not hold one row of `weights.cols()` with scales by `weights.group()`, or `y` has
/// another length than its rows.
pub fn byte_matvec(isa: Isa, weights: &ByteWeights, x: &QuantisedRows, y: &mut [f32]) {
    assert_eq!((x.rows(), x.cols()), (1, weights.cols()), "one token");
    assert_eq!(x.group(), weights.group(), "scales by the same groups");
    assert_eq!(y.len(), weights.rows(), "output of a matrix-vector product");
    let token = Token::new(x, 1.0);
    let path = Path::of(isa);
    for_each_block(y, TASK_WEIGHTS / weights.cols(), |block, out| {
        let block = weights.block(block);
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::AvxVnni | Path::Avx512Vnni => {
                super::x86::byte_block_product(isa, block, token, out);
            }
            _ => byte_block_product_scalar(block, token, out),
        }
    });
}

/// The specification.
fn byte_block_product_scalar(block: ByteBlock<'_>, token: Token<'_>, out: &mut [f32; BLOCK_ROWS]) {
    out.fill(0.0);
    let groups = block
        .steps
        .chunks(GROUP_STEPS)
        .zip(token.values.chunks(GROUP_STEPS));
    for (group, ((steps, values), scales)) in groups.zip(block.scales).enumerate() {
        let mut sums = [0i32; BLOCK_ROWS];
        for (step, values) in steps.iter().zip(values) {
            for (quad, values) in step.iter().zip(values.as_chunks::<4>().0) {
                for (row, sum) in quad.as_chunks::<4>().0.iter().zip(&mut sums) {
                    for (&byte, &value) in row.iter().zip(values) {
                        *sum += i32::from((byte ^ FLIP).cast_signed()) * i32::from(value);
                    }
                }
            }
        }
        fold_group(&sums, scales, token.scale(group), out);
    }
}
