//! A matrix laid out once for streaming: half a byte a weight, in the order of the dot products.

use primal_lut::{Grid, QuantMatrix};
use rayon::prelude::*;

use super::panel::{FLIP, PANEL_COLS, Quad};
use super::{Int8Grid, Int8Rows, Path, has_int8_form};
use crate::huge::{HugeArena, HugeBytes};
use crate::isa::Isa;
use crate::rows::MatrixRows;

/// Rows that lie side by side.
pub(super) const BLOCK_ROWS: usize = 16;
/// Columns of a step: eight of each row of a block fill 64 bytes.
pub(super) const STEP_COLS: usize = 8;
/// The codes of a step: byte 4 r + q has column q of row r in its low nibble and column q + 4 in
/// its high one.
pub(super) type Step = [u8; 64];
/// Bit 4 of the codes of a step: bit 4 r + q of the first eight bytes (little-endian) for column
/// q, of the last eight for column q + 4.
pub(super) type HighStep = [u8; 16];

/// A matrix on a grid of at most 31 values, for inference: read once a token by
/// [`super::int8_matvec`] at the speed of memory, and by [`super::int8_matmul_nt`].
///
/// Layout: codes (rows / 16, cols / 8, 64) u8 and, for wide grids, bits (rows / 16, cols / 8, 16)
/// u8, both in a [`HugeArena`]; scales (rows / 16, groups, 16) f32. Padding decodes to zero.
#[derive(Debug)]
pub struct PackedWeights {
    grid: Grid,
    table: Int8Grid,
    rows: usize,
    cols: usize,
    group: usize,
    codes: HugeBytes,
    high: Option<HugeBytes>,
    scales: Vec<[f32; BLOCK_ROWS]>,
}

impl PackedWeights {
    /// What [`PackedWeights::new`] takes of an arena.
    pub fn arena_bytes(rows: usize, cols: usize, wide: bool) -> usize {
        let steps = rows.div_ceil(BLOCK_ROWS) * cols.div_ceil(STEP_COLS);
        let high = if wide { size_of::<HighStep>() } else { 0 };
        HugeArena::piece_bytes(steps * size_of::<Step>()) + HugeArena::piece_bytes(steps * high)
    }

    /// Bytes of scales outside the arena.
    pub fn scale_bytes(rows: usize, cols: usize, group: usize) -> usize {
        rows.div_ceil(BLOCK_ROWS) * cols.div_ceil(group) * size_of::<[f32; BLOCK_ROWS]>()
    }

    /// Lays `matrix` out anew; drop it afterwards, one at a time, and memory does not double.
    ///
    /// `None` where the integer kernels do not reach; see [`PackedWeights::zeros`].
    pub fn new(matrix: &QuantMatrix, arena: &mut HugeArena) -> Option<PackedWeights> {
        let size = (matrix.rows(), matrix.cols());
        let mut packed = PackedWeights::zeros(matrix.grid(), size, matrix.group(), arena)?;
        packed.set_rows(0, matrix);
        Some(packed)
    }

    /// A matrix of zeros, to be filled by [`PackedWeights::set_rows`]: a large matrix then never
    /// exists twice.
    ///
    /// `None` where the integer kernels do not reach: groups that are neither the whole row nor
    /// a multiple of 32, more than 65,536 columns, a grid without an i8 view, or an arena
    /// without room. [`crate::matvec`] takes any matrix.
    pub fn zeros(
        grid: &Grid,
        (rows, cols): (usize, usize),
        group: usize,
        arena: &mut HugeArena,
    ) -> Option<PackedWeights> {
        let table = Int8Grid::new(grid)?;
        if !has_int8_form(cols, group) {
            return None;
        }
        let n_steps = rows.div_ceil(BLOCK_ROWS) * cols.div_ceil(STEP_COLS);
        let codes = arena.take(n_steps * size_of::<Step>())?;
        let high = match grid.is_wide() {
            true => Some(arena.take(n_steps * size_of::<HighStep>())?),
            false => None,
        };
        Some(PackedWeights {
            grid: grid.clone(),
            table,
            rows,
            cols,
            group,
            codes,
            high,
            scales: vec![[0.0; BLOCK_ROWS]; rows.div_ceil(BLOCK_ROWS) * cols.div_ceil(group)],
        })
    }

    /// Sets the rows from `first` on to those of `matrix`.
    ///
    /// # Panics
    /// If grid, columns or group differ, rows lie outside, or `first` is no multiple of 16; also
    /// if `matrix` ends within sixteen rows before this one does.
    pub fn set_rows(&mut self, first: usize, matrix: &QuantMatrix) {
        let (rows, groups) = (matrix.rows(), self.groups());
        assert!(
            *matrix.grid() == self.grid
                && (matrix.cols(), matrix.group()) == (self.cols, self.group),
            "rows of the same kind"
        );
        let end = first + rows;
        assert!(
            first.is_multiple_of(BLOCK_ROWS)
                && end <= self.rows
                && (end == self.rows || rows.is_multiple_of(BLOCK_ROWS)),
            "rows {first}..{end} of {} are whole blocks",
            self.rows
        );
        let (steps, block, blocks) = (self.steps(), first / BLOCK_ROWS, rows.div_ceil(BLOCK_ROWS));
        let part = block * steps..(block + blocks) * steps;
        bytemuck::cast_slice_mut::<u8, Step>(&mut self.codes)[part.clone()]
            .par_chunks_mut(steps)
            .enumerate()
            .for_each(|(block, to)| pack_nibbles(matrix, block * BLOCK_ROWS, to));
        if let (Some(high), Some(from)) = (&mut self.high, matrix.high()) {
            bytemuck::cast_slice_mut::<u8, HighStep>(high)[part]
                .par_chunks_mut(steps)
                .enumerate()
                .for_each(|(block, to)| pack_bits(matrix, from, block * BLOCK_ROWS, to));
        }
        for (row, from) in (first..).zip(matrix.scales().chunks_exact(groups)) {
            let block = &mut self.scales[row / BLOCK_ROWS * groups..][..groups];
            for (to, &scale) in block.iter_mut().zip(from) {
                to[row % BLOCK_ROWS] = scale;
            }
        }
    }

    /// The grid of the codes.
    pub fn grid(&self) -> &Grid {
        &self.grid
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
        self.group
    }

    /// Bytes of codes and scales, padding included.
    pub fn bytes(&self) -> usize {
        self.codes.len()
            + self.high.as_ref().map_or(0, |high| high.len())
            + size_of_val(self.scales.as_slice())
    }

    /// The packed codes, in the order in which they are read.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    pub(super) fn table(&self) -> &Int8Grid {
        &self.table
    }

    pub(super) fn steps(&self) -> usize {
        self.cols.div_ceil(STEP_COLS)
    }

    fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Block `block` of sixteen rows.
    pub(super) fn block(&self, block: usize) -> Block<'_> {
        let (steps, groups) = (self.steps(), self.groups());
        Block {
            codes: &bytemuck::cast_slice::<u8, Step>(&self.codes)[block * steps..][..steps],
            high: match &self.high {
                Some(high) => &bytemuck::cast_slice::<u8, HighStep>(high)[block * steps..][..steps],
                None => &[],
            },
            scales: &self.scales[block * groups..][..groups],
            group_steps: self.group.div_ceil(STEP_COLS),
        }
    }

    fn code(&self, row: usize, col: usize) -> u8 {
        let block = self.block(row / BLOCK_ROWS);
        let (step, col) = (col / STEP_COLS, col % STEP_COLS);
        let place = 4 * (row % BLOCK_ROWS) + col % 4;
        let byte = block.codes[step][place];
        let nibble = if col < 4 { byte & 15 } else { byte >> 4 };
        let bit = block
            .high
            .get(step)
            .map_or(0, |high| high[8 * (col / 4) + place / 8] >> (place % 8) & 1);
        nibble | bit << 4
    }
}

/// Sixteen rows of packed weights.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) codes: &'a [Step],
    /// Empty for a narrow grid.
    pub(super) high: &'a [HighStep],
    /// One a group.
    pub(super) scales: &'a [[f32; BLOCK_ROWS]],
    pub(super) group_steps: usize,
}

impl MatrixRows for PackedWeights {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    /// Values of the grid, not of the integer table, and slower than a plain matrix: for the rows
    /// of a tied embedding.
    fn fill_row(&self, _isa: Isa, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "decoded row");
        let scales = self.block(row / BLOCK_ROWS).scales;
        for (col, out) in out.iter_mut().enumerate() {
            let scale = scales[col / self.group][row % BLOCK_ROWS];
            *out = scale * self.grid.table()[usize::from(self.code(row, col))];
        }
    }
}

impl Int8Rows for PackedWeights {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn group(&self) -> usize {
        self.group
    }
    fn int8_grid(&self) -> Option<Int8Grid> {
        Some(self.table.clone())
    }
    fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales[row / BLOCK_ROWS * self.groups() + group][row % BLOCK_ROWS]
    }

    fn fill_panel(
        &self,
        isa: Isa,
        table: &Int8Grid,
        first: usize,
        last: usize,
        panel: &mut [Quad],
    ) {
        assert!(first.is_multiple_of(BLOCK_ROWS), "whole blocks");
        for (i, start) in (first..first + PANEL_COLS).step_by(BLOCK_ROWS).enumerate() {
            if start >= last {
                for quad in panel.iter_mut() {
                    quad[64 * i..][..64].fill(FLIP);
                }
                continue;
            }
            let block = self.block(start / BLOCK_ROWS);
            let filled = (2 * block.codes.len()).min(panel.len());
            fill_block(isa, table, block, &mut panel[..filled], i);
            for quad in &mut panel[filled..] {
                quad[64 * i..][..64].fill(FLIP);
            }
        }
    }
}

/// Writes the table bytes of a block's steps, two quads each, as rows 16 `part`.. of a panel.
fn fill_block(isa: Isa, table: &Int8Grid, block: Block<'_>, panel: &mut [Quad], part: usize) {
    match Path::of(isa) {
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 | Path::AvxVnni | Path::Avx512Vnni => {
            super::x86::fill_block(isa, table, block, panel, part);
        }
        _ => {
            for (i, (codes, quads)) in block.codes.iter().zip(panel.chunks_mut(2)).enumerate() {
                for (half, quad) in quads.iter_mut().enumerate() {
                    for (place, byte) in quad[64 * part..][..64].iter_mut().enumerate() {
                        let value = step_value(table, codes, block.high.get(i), half, place);
                        *byte = value.cast_unsigned() ^ FLIP;
                    }
                }
            }
        }
    }
}

/// The table value at `place` = 4 r + q of quad `half` of a step.
pub(super) fn step_value(
    table: &Int8Grid,
    codes: &Step,
    high: Option<&HighStep>,
    half: usize,
    place: usize,
) -> i8 {
    let nibble = codes[place] >> (4 * half) & 15;
    let bit = high.map_or(0, |high| high[8 * half + place / 8] >> (place % 8) & 1);
    table.values[usize::from(nibble | bit << 4)]
}

/// Packs the nibbles of sixteen rows from `first` on; rows and columns beyond the matrix become
/// the zero code.
fn pack_nibbles(matrix: &QuantMatrix, first: usize, to: &mut [Step]) {
    let zero = matrix.grid().zero_code() & 15;
    let pad = zero | zero << 4;
    let row_bytes = matrix.row_bytes();
    for r in 0..BLOCK_ROWS {
        let row = first + r;
        let from = if row < matrix.rows() {
            &matrix.nibbles()[row * row_bytes..][..row_bytes]
        } else {
            &[]
        };
        let (words, tail) = from.as_chunks::<4>();
        let mut last = [pad; 4];
        last[..tail.len()].copy_from_slice(tail);
        let words = words.iter().chain(std::iter::once(&last)).copied();
        let words = words.chain(std::iter::repeat([pad; 4]));
        for (step, word) in to.iter_mut().zip(words) {
            let word = u32::from_le_bytes(word);
            let packed = spread(word & 0xffff) | spread(word >> 16) << 4;
            step[4 * r..][..4].copy_from_slice(&packed.to_le_bytes());
        }
    }
}

/// Four nibbles to the low halves of four bytes.
fn spread(nibbles: u32) -> u32 {
    let bytes = (nibbles | nibbles << 8) & 0x00ff_00ff;
    (bytes | bytes << 4) & 0x0f0f_0f0f
}

/// Packs bit 4 of the codes of sixteen rows from `first` on.
fn pack_bits(matrix: &QuantMatrix, high: &[u8], first: usize, to: &mut [HighStep]) {
    let row_bytes = matrix.high_row_bytes();
    to.fill([0; 16]);
    let rows = first..(first + BLOCK_ROWS).min(matrix.rows());
    for (r, row) in rows.enumerate() {
        let from = &high[row * row_bytes..][..row_bytes];
        for (step, byte) in to.iter_mut().zip(from) {
            let shift = 4 * (r % 2);
            step[r / 2] |= (byte & 15) << shift;
            step[8 + r / 2] |= (byte >> 4) << shift;
        }
    }
}
