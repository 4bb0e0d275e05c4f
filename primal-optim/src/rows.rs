//! Gradients of a range of rows on their way to votes and sums: tiles that are cut, made and dropped.

use std::ops::Range;

use primal_kernels::Isa;
use primal_lut::QuantMatrix;

use crate::rule::MakeRows;
use crate::tiles::{SplitRows, TILE_ROWS, cut, for_each_tile};

/// One row of a weight gradient, with what it takes to vote on it.
pub(crate) struct GradientRow<'a> {
    pub(crate) row: usize,
    /// (cols) dL/dW.
    pub(crate) grad: &'a [f32],
    /// (cols) grid values of the row, no scale.
    pub(crate) values: &'a [f32],
    pub(crate) scale: f32,
}

/// Scale gradients of a range of rows.
pub(crate) struct ScaleRows<'a> {
    first_row: usize,
    groups: usize,
    /// (rows, groups).
    grad: &'a mut [f32],
}

impl<'a> ScaleRows<'a> {
    pub(crate) fn new(matrix: &QuantMatrix, rows: Range<usize>, grad: &'a mut [f32]) -> Self {
        let groups = matrix.groups_per_row();
        ScaleRows {
            first_row: rows.start,
            groups,
            grad: &mut grad[rows.start * groups..rows.end * groups],
        }
    }

    /// Makes the tile's gradient, adds dL/ds = Σ_j dL/dW_ij · grid[code_ij] over the columns of
    /// each scale and hands the row to `each`, which may refuse it. Returns the rows refused or
    /// not finite; `each` does not see the latter.
    pub(crate) fn accumulate(
        self,
        isa: Isa,
        matrix: &QuantMatrix,
        make: MakeRows<'_>,
        mut each: impl FnMut(GradientRow<'_>) -> bool,
    ) -> u32 {
        let (cols, groups) = (matrix.cols(), self.groups);
        let n_rows = self.rows();
        with_tile((n_rows + 1) * cols + groups, |buffer| {
            let (grads, buffer) = buffer.split_at_mut(n_rows * cols);
            let (values, dots) = buffer.split_at_mut(cols);
            make(self.first_row..self.first_row + n_rows, grads);
            let mut bad = 0;
            let rows = grads
                .chunks_exact_mut(cols)
                .zip(self.grad.chunks_exact_mut(groups));
            for (i, (grad, scale_grad)) in rows.enumerate() {
                let row = self.first_row + i;
                primal_kernels::decode_values(
                    isa,
                    matrix.grid().table(),
                    matrix.high().map(|high| {
                        &high[row * matrix.high_row_bytes()..][..matrix.high_row_bytes()]
                    }),
                    &matrix.nibbles()[row * matrix.row_bytes()..][..matrix.row_bytes()],
                    values,
                );
                let scales = &matrix.scales()[row * groups..][..groups];
                let parts = grad
                    .chunks_mut(matrix.group())
                    .zip(values.chunks(matrix.group()));
                for (((grad, values), dot), &scale) in parts.zip(&mut *dots).zip(scales) {
                    *dot = primal_kernels::dot(isa, grad, values);
                    if groups > 1 {
                        // Votes see the gradient of the grid value; one scale is left to them.
                        primal_kernels::scale(isa, grad, scale);
                    }
                }
                let finite =
                    dots.iter().all(|dot| dot.is_finite()) && primal_kernels::all_finite(isa, grad);
                let row = GradientRow {
                    row,
                    grad,
                    values,
                    scale: if groups > 1 { 1.0 } else { scales[0] },
                };
                if finite && each(row) {
                    primal_kernels::add(isa, dots, scale_grad);
                } else {
                    bad += 1;
                }
            }
            bad
        })
    }
}

impl SplitRows for ScaleRows<'_> {
    fn rows(&self) -> usize {
        self.grad.len() / self.groups
    }

    fn split_at(self, row: usize) -> (Self, Self) {
        let (left, right) = cut(self.grad, row, self.groups);
        let (first_row, groups) = (self.first_row, self.groups);
        (
            ScaleRows {
                first_row,
                groups,
                grad: left,
            },
            ScaleRows {
                first_row: first_row + row,
                groups,
                grad: right,
            },
        )
    }
}

/// Kept gradient rows, (rows, cols) f32.
pub(crate) struct GradRows<'a> {
    pub(crate) first_row: usize,
    pub(crate) cols: usize,
    pub(crate) grad: &'a mut [f32],
}

impl GradRows<'_> {
    /// Row `row` of the matrix.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.grad[(row - self.first_row) * self.cols..][..self.cols]
    }
}

impl SplitRows for GradRows<'_> {
    fn rows(&self) -> usize {
        self.grad.len() / self.cols
    }

    fn split_at(self, row: usize) -> (Self, Self) {
        let (left, right) = cut(self.grad, row, self.cols);
        let part = |first_row, grad| GradRows {
            first_row,
            cols: self.cols,
            grad,
        };
        (
            part(self.first_row, left),
            part(self.first_row + row, right),
        )
    }
}

/// Adds the gradient of `rows` of a float matrix to `sum`, that of the whole matrix. Returns the
/// tiles that were not finite.
pub(crate) fn sum_gradient(
    isa: Isa,
    rows: Range<usize>,
    cols: usize,
    make: MakeRows<'_>,
    sum: &mut [f32],
) -> u32 {
    let tiles = GradRows {
        first_row: rows.start,
        cols,
        grad: &mut sum[rows.start * cols..rows.end * cols],
    };
    for_each_tile(tiles, &|sum: GradRows<'_>| {
        with_tile(sum.grad.len(), |grad| {
            make(sum.first_row..sum.first_row + sum.rows(), grad);
            primal_kernels::add(isa, grad, sum.grad);
            u32::from(!primal_kernels::all_finite(isa, grad))
        })
    })
}

/// Rows with no buffer of their own.
pub(crate) struct RowCount(usize);

impl RowCount {
    pub(crate) fn of(rows: &Range<usize>) -> Self {
        RowCount(rows.len())
    }
}

impl SplitRows for RowCount {
    fn rows(&self) -> usize {
        self.0
    }

    fn split_at(self, row: usize) -> (Self, Self) {
        (RowCount(row), RowCount(self.0 - row))
    }
}

/// Two states cut at the same rows.
impl<A: SplitRows, B: SplitRows> SplitRows for (A, B) {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn split_at(self, row: usize) -> (Self, Self) {
        let (a, b) = self.0.split_at(row);
        let (c, d) = self.1.split_at(row);
        ((a, c), (b, d))
    }
}

thread_local! {
    static TILE: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Lends this thread's gradient tile buffer, which only grows.
pub(crate) fn with_tile<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out while in use: work that is stolen inside `work` may ask for a tile of its own.
    let mut buffer = TILE.with(std::cell::RefCell::take);
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = work(&mut buffer[..len]);
    TILE.with(|tile| tile.replace(buffer));
    result
}

/// Bytes of the gradient tile buffer that one thread comes to hold for matrices up to `cols` wide:
/// the tile, a row of values and at most as many scale gradients.
pub fn tile_bytes_per_thread(cols: usize) -> u64 {
    4 * (TILE_ROWS as u64 + 2) * cols as u64
}
