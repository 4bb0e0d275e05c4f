//! Where dense products read weights from: rows that are made on demand.

use std::ops::Range;

use primal_lut::QuantMatrix;
use rayon::prelude::*;

use crate::grid::decode_row;
use crate::isa::Isa;

/// Values that one task of [`fill_rows`] writes, at least a row.
const TASK_VALUES: usize = 1 << 14;

/// A (rows, cols) f32 matrix whose rows can be written out, whatever holds them.
pub trait MatrixRows: Sync {
    /// The number of rows.
    fn rows(&self) -> usize;
    /// The number of columns.
    fn cols(&self) -> usize;
    /// Writes row `row` to `out`, (cols) f32.
    ///
    /// # Panics
    /// If `row` is out of range or `out` has another length.
    fn fill_row(&self, isa: Isa, row: usize, out: &mut [f32]);
    /// The matrix on a grid, where it lives on one.
    fn quant(&self) -> Option<&QuantMatrix> {
        None
    }
}

impl MatrixRows for QuantMatrix {
    fn quant(&self) -> Option<&QuantMatrix> {
        Some(self)
    }
    fn rows(&self) -> usize {
        self.rows()
    }
    fn cols(&self) -> usize {
        self.cols()
    }
    fn fill_row(&self, isa: Isa, row: usize, out: &mut [f32]) {
        decode_row(isa, self, row, out);
    }
}

/// A float matrix, row-major.
#[derive(Debug, Clone, Copy)]
pub struct DenseRows<'a> {
    /// The number of rows.
    pub rows: usize,
    /// The number of columns.
    pub cols: usize,
    /// (rows, cols) f32.
    pub values: &'a [f32],
}

impl MatrixRows for DenseRows<'_> {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn fill_row(&self, _isa: Isa, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[row * self.cols..][..self.cols]);
    }
}

/// Writes `rows` of `matrix` to `out`, (rows.len(), cols) f32, on all threads.
///
/// # Panics
/// If the range ends beyond the matrix or `out` has another length.
pub fn fill_rows(isa: Isa, matrix: &dyn MatrixRows, rows: Range<usize>, out: &mut [f32]) {
    let cols = matrix.cols();
    assert!(
        rows.end <= matrix.rows(),
        "rows {rows:?} of {}",
        matrix.rows()
    );
    assert_eq!(
        out.len(),
        rows.len() * cols,
        "output of rows {rows:?} of {cols} columns"
    );
    if out.is_empty() {
        return;
    }
    let task_rows = (TASK_VALUES / cols).max(1);
    out.par_chunks_mut(task_rows * cols)
        .enumerate()
        .for_each(|(task, out)| {
            let first = rows.start + task * task_rows;
            for (row, out) in (first..).zip(out.chunks_exact_mut(cols)) {
                matrix.fill_row(isa, row, out);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::noise;
    use primal_lut::Grid;

    #[test]
    fn fill_rows_is_each_row_by_itself() {
        let (rows, cols) = (37, 1000);
        let weights = noise(rows * cols, 5);
        let scales = noise(rows, 6);
        let matrix = QuantMatrix::quantise(&Grid::prime(), rows, cols, cols, &weights, scales);
        let matrix = matrix.unwrap();
        let dense = DenseRows {
            rows,
            cols,
            values: &weights,
        };
        for isa in Isa::available() {
            for (source, want) in [
                (&matrix as &dyn MatrixRows, matrix.dequantise()),
                (&dense, weights.clone()),
            ] {
                let mut out = vec![0.0; 30 * cols];
                fill_rows(isa, source, 5..35, &mut out);
                assert_eq!(out, want[5 * cols..35 * cols], "{}", isa.name());
                fill_rows(isa, source, 7..7, &mut []);
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows 3..9 of 4")]
    fn rows_beyond_the_matrix_are_refused() {
        let dense = DenseRows {
            rows: 4,
            cols: 1,
            values: &[0.0; 4],
        };
        fill_rows(Isa::best(), &dense, 3..9, &mut [0.0; 6]);
    }
}
