//! Panels: 64 output columns of a product as bytes, in the order in which kernels read them.
//!
//! A panel of K summands is (K / 4, 64, 4) u8: four consecutive summands of an output column lie
//! side by side. Bytes are table values with the top bit turned over (value + 128), which is what
//! `vpdpbusd` takes; kernels subtract 128 · Σ q.

use std::ops::Range;

use primal_lut::QuantMatrix;

#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{Int8Grid, Path};
use crate::isa::Isa;

/// Output columns of a panel.
pub(super) const PANEL_COLS: usize = 64;

/// One summand quad of all columns of a panel.
pub(super) type Quad = [u8; 4 * PANEL_COLS];

/// Turns i8 into u8 + 128 and back.
pub(super) const FLIP: u8 = 0x80;

/// A matrix whose rows can be had as table values: the right operand of
/// [`super::int8_matmul_nt`].
pub trait Int8Rows: Sync {
    /// The number of rows.
    fn rows(&self) -> usize;
    /// The number of columns.
    fn cols(&self) -> usize;
    /// Columns that share a scale: all of them, or a multiple of 32.
    fn group(&self) -> usize;
    /// The table.
    fn int8_grid(&self) -> Option<Int8Grid>;
    /// Scale of row `row` for group `group`.
    fn scale(&self, row: usize, group: usize) -> f32;
    /// Writes rows `first..` (up to 64 of them, less at the end; 64-aligned for packed weights)
    /// as a panel of `panel.len()` quads: rows are the output columns, columns the summands.
    #[doc(hidden)]
    fn fill_panel(&self, isa: Isa, table: &Int8Grid, first: usize, last: usize, panel: &mut [Quad]);
}

impl Int8Rows for QuantMatrix {
    fn rows(&self) -> usize {
        self.rows()
    }
    fn cols(&self) -> usize {
        self.cols()
    }
    fn group(&self) -> usize {
        self.group()
    }
    fn int8_grid(&self) -> Option<Int8Grid> {
        Int8Grid::new(self.grid())
    }
    fn scale(&self, row: usize, group: usize) -> f32 {
        self.scales()[row * self.groups_per_row() + group]
    }

    fn fill_panel(
        &self,
        isa: Isa,
        table: &Int8Grid,
        first: usize,
        last: usize,
        panel: &mut [Quad],
    ) {
        for (strip, quads) in panel.chunks_mut(STRIP / 4).enumerate() {
            for four in (0..PANEL_COLS).step_by(4) {
                let rows = first + four..last;
                let codes = FourRows::new(self, rows, strip * STRIP);
                let blocks = codes.quads_of_columns(isa, table);
                for (quad, block) in quads.iter_mut().zip(blocks) {
                    quad[4 * four..][..16].copy_from_slice(&block);
                }
            }
        }
    }
}

/// Writes columns `first..first + 64` (less at the end; `first` a multiple of 64) of rows `rows`
/// as a panel: columns are the output columns, rows the summands.
pub(super) fn fill_panel_transposed(
    isa: Isa,
    matrix: &QuantMatrix,
    table: &Int8Grid,
    rows: Range<usize>,
    first: usize,
    panel: &mut [Quad],
) {
    for (quad, row) in panel.iter_mut().zip(rows.clone().step_by(4)) {
        for (half, to) in quad.chunks_exact_mut(4 * STRIP).enumerate() {
            let codes = FourRows::new(matrix, row..rows.end, first + STRIP * half);
            let blocks = codes.quads_of_rows(isa, table);
            to.copy_from_slice(blocks.as_flattened());
        }
    }
}

/// Columns that are decoded at a time.
const STRIP: usize = 32;

/// The codes of four rows over 32 columns; what lies outside the matrix is the zero code.
struct FourRows {
    nibbles: [[u8; STRIP / 2]; 4],
    /// Bit 4 of each code.
    high: [u32; 4],
}

impl FourRows {
    /// The first four of `rows`, which may be fewer or none, from column `start` on (a multiple
    /// of 32).
    #[inline]
    fn new(matrix: &QuantMatrix, rows: Range<usize>, start: usize) -> FourRows {
        let zero = matrix.grid().zero_code() & 15;
        let mut codes = FourRows {
            nibbles: [[zero | zero << 4; STRIP / 2]; 4],
            high: [0; 4],
        };
        let len = matrix.cols().saturating_sub(start).min(STRIP);
        if len == 0 {
            return codes;
        }
        let row_bytes = matrix.row_bytes();
        for (row, to) in rows.clone().zip(&mut codes.nibbles) {
            let from = &matrix.nibbles()[row * row_bytes..][..row_bytes];
            match from.get(start / 2..start / 2 + STRIP / 2) {
                Some(from) => to.copy_from_slice(from),
                None => {
                    let used = len.div_ceil(2);
                    to[..used].copy_from_slice(&from[row_bytes - used..]);
                }
            }
        }
        if let Some(high) = matrix.high() {
            let row_bytes = matrix.high_row_bytes();
            for (row, to) in rows.zip(&mut codes.high) {
                let from = &high[row * row_bytes..][..row_bytes];
                let used = len.div_ceil(8);
                let mut bytes = [0; 4];
                let start = (start / 8).min(row_bytes);
                bytes[..used].copy_from_slice(&from[start..][..used]);
                *to = u32::from_le_bytes(bytes);
            }
        }
        codes
    }

    /// (8, 4, 4) bytes: [quad of columns][row][column].
    #[inline]
    fn quads_of_columns(&self, isa: Isa, table: &Int8Grid) -> [[u8; 16]; 8] {
        match Path::of(isa) {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::AvxVnni | Path::Avx512Vnni => {
                x86::quads::<true>(isa, table, &self.nibbles, self.high)
            }
            _ => std::array::from_fn(|q| {
                std::array::from_fn(|i| self.byte(table, i / 4, 4 * q + i % 4))
            }),
        }
    }

    /// (32, 4) bytes: [column][row].
    #[inline]
    fn quads_of_rows(&self, isa: Isa, table: &Int8Grid) -> [[u8; 16]; 8] {
        match Path::of(isa) {
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 | Path::AvxVnni | Path::Avx512Vnni => {
                x86::quads::<false>(isa, table, &self.nibbles, self.high)
            }
            _ => std::array::from_fn(|q| {
                std::array::from_fn(|i| self.byte(table, i % 4, 4 * q + i / 4))
            }),
        }
    }

    fn byte(&self, table: &Int8Grid, row: usize, col: usize) -> u8 {
        let nibble = self.nibbles[row][col / 2] >> (4 * (col % 2)) & 15;
        let bit = (self.high[row] >> col & 1) as u8;
        table.values[usize::from(nibble | bit << 4)].cast_unsigned() ^ FLIP
    }
}
