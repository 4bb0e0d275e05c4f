//! Products of int8 activations with weights from the grid, exact in int32.

use std::ops::Range;

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for_rows, launch};
use super::error::CudaError;
use super::gemm::{LARGE_TILE, tile};
use super::weights::DeviceWeights;
use crate::int8::Int8Grid;

/// A grid as integers, on the device.
#[derive(Debug)]
pub(crate) struct DeviceInt8Grid {
    /// (32) i8.
    values: Buffer<i8>,
    unit_value: f32,
}

impl DeviceInt8Grid {
    pub(crate) fn upload(device: &Device, grid: &Int8Grid, what: &str) -> Result<Self, CudaError> {
        Ok(DeviceInt8Grid {
            values: Buffer::from_slice(device, &grid.values, what)?,
            unit_value: grid.unit_value,
        })
    }
}

/// Bytes of a row of `cols` columns.
fn stride(cols: usize) -> usize {
    cols.next_multiple_of(8)
}

/// Room for rows of activations as i8.
#[derive(Debug)]
pub struct QuantisedRows {
    /// The rows one after the other, each padded with zeros to a multiple of 8.
    pub values: Buffer<i8>,
    /// The unit of each group of each row.
    pub scales: Buffer<f32>,
}

/// Rows of activations as i8, each or each group of its columns in units of its largest magnitude
/// / 127.
#[derive(Clone, Copy, Debug)]
pub struct Quantised<'a> {
    values: View<'a, i8>,
    scales: View<'a, f32>,
    rows: usize,
    cols: usize,
    group: usize,
}

impl QuantisedRows {
    /// Room for `rows` rows of `cols` columns in `groups` groups, or any product that is no larger.
    pub fn new(
        device: &Device,
        rows: usize,
        cols: usize,
        groups: usize,
    ) -> Result<Self, CudaError> {
        Ok(QuantisedRows {
            values: Buffer::zeros(device, rows * stride(cols), "activations as int8")?,
            scales: Buffer::zeros(device, rows * groups, "units of activations")?,
        })
    }

    /// Quantises `x` (n, `cols`), a scale a row; with `column_scales` (cols) each column is multiplied first: the
    /// gradient of a layer's output takes the row scales of the layer's weights that way.
    ///
    /// # Panics
    /// If a length does not match or the rows do not fit.
    pub fn quantise(
        &self,
        x: View<'_, f32>,
        column_scales: Option<View<'_, f32>>,
        cols: usize,
    ) -> Result<Quantised<'_>, CudaError> {
        self.quantise_groups(x, column_scales, (cols, cols))
    }

    /// Quantises `x` (n, k) for a product with `w` (m, k), a scale for each group of columns for
    /// which `w` has one.
    ///
    /// # Panics
    /// If the rows do not fit.
    pub fn quantise_for(
        &self,
        x: View<'_, f32>,
        w: &DeviceWeights,
    ) -> Result<Quantised<'_>, CudaError> {
        self.quantise_groups(x, None, (w.cols(), w.group()))
    }

    fn quantise_groups(
        &self,
        x: View<'_, f32>,
        column_scales: Option<View<'_, f32>>,
        (cols, group): (usize, usize),
    ) -> Result<Quantised<'_>, CudaError> {
        let (n, groups) = (x.len() / cols, cols.div_ceil(group));
        let quantised = self.of(0..n, cols, group);
        launch!(
            x.device,
            "quantise_rows",
            blocks_for_rows(n * groups),
            THREADS,
            x.of(n * cols, "x is (n, cols)"),
            column_scales.map_or(0, |scales| scales.of(cols, "a scale a column")),
            n as i32,
            cols as i32,
            group as i32,
            groups as i32,
            stride(cols) as i32,
            quantised.values.address,
            quantised.scales.address,
        )?;
        Ok(quantised)
    }

    /// Some rows of the last [`QuantisedRows::quantise`], which took `cols` columns.
    ///
    /// # Panics
    /// If there is no room for so many.
    pub fn rows(&self, rows: Range<usize>, cols: usize) -> Quantised<'_> {
        self.of(rows, cols, cols)
    }

    fn of(&self, rows: Range<usize>, cols: usize, group: usize) -> Quantised<'_> {
        let (stride, groups) = (stride(cols), cols.div_ceil(group));
        Quantised {
            values: self.values.view(rows.start * stride..rows.end * stride),
            scales: self.scales.view(rows.start * groups..rows.end * groups),
            rows: rows.len(),
            cols,
            group,
        }
    }
}

/// y (n, rows.len()) = or += x wᵀ over rows `rows` of w (m, k) with one scale a row, for quantised
/// x (n, k): the bits of the CPU's `int8_matmul_nt`.
///
/// # Errors
/// [`CudaError::Unsupported`] if `w` has no integer form.
///
/// # Panics
/// If a length does not match.
pub fn int8_matmul_nt(
    x: Quantised<'_>,
    w: &DeviceWeights,
    rows: Range<usize>,
    y: View<'_, f32>,
    accumulate: bool,
) -> Result<(), CudaError> {
    assert_eq!(w.cols(), x.cols, "columns of w");
    let cols = rows.len();
    multiply(&NT, x, w, rows, (y, cols), accumulate)
}

/// dx (n, k) = or += dy w over rows `rows` of w (m, k), for quantised dy (n, rows.len()) **with the
/// scales of those rows multiplied in**: the bits of the CPU's `int8_matmul_nn`.
///
/// # Errors
/// [`CudaError::Unsupported`] if `w` has no integer form.
///
/// # Panics
/// If a length does not match.
pub fn int8_matmul_nn(
    dy: Quantised<'_>,
    w: &DeviceWeights,
    rows: Range<usize>,
    dx: View<'_, f32>,
    accumulate: bool,
) -> Result<(), CudaError> {
    assert_eq!(rows.len(), dy.cols, "rows of w");
    multiply(&NN, dy, w, rows, (dx, w.cols()), accumulate)
}

/// Tokens for which `int8_matvecs` reads a weight once.
const TOKENS: usize = 8;

/// y (n, m) = x wᵀ for a few quantised tokens x (n, k) and w (m, k), which is read once for every
/// eight of them: the bits of the CPU's `int8_matvec`.
///
/// # Panics
/// If a length does not match or [`DeviceWeights::has_int8_matvec`] is false.
pub fn int8_matvec(x: Quantised<'_>, w: &DeviceWeights, y: View<'_, f32>) -> Result<(), CudaError> {
    assert_eq!(w.cols(), x.cols, "columns of w");
    assert_eq!(w.group(), x.group, "scales by the same groups");
    assert!(w.has_int8_matvec(), "a matrix with an integer form");
    let grid = w.int8_grid(x.cols)?;
    let (kernel, tokens) = match x.rows {
        1 => ("int8_matvec", 1),
        _ => ("int8_matvecs", TOKENS),
    };
    launch!(
        y.device,
        kernel,
        [blocks_for_rows(w.rows())[0], x.rows.div_ceil(tokens), 1],
        THREADS,
        x.values.address,
        x.scales.address,
        w.raw(),
        grid.values.view(..).address,
        y.of(x.rows * w.rows(), "a result a token and row"),
        w.rows() as i32,
        x.rows as i32,
        stride(x.cols) as i32,
        grid.unit_value,
    )
}

/// Names of a product's kernels: by dp4a, and on tensor cores by tile.
struct Kernels {
    dp4a: &'static str,
    small: &'static str,
    large: &'static str,
}

const NT: Kernels = Kernels {
    dp4a: "int8_gemm_nt",
    small: "int8_mma_nt_64",
    large: "int8_mma_nt_128",
};
const NN: Kernels = Kernels {
    dp4a: "int8_gemm_nn",
    small: "int8_mma_nn_64",
    large: "int8_mma_nn_128",
};

/// A result (n, cols) = or += the product of `x` and rows of `w`.
fn multiply(
    kernels: &Kernels,
    x: Quantised<'_>,
    w: &DeviceWeights,
    rows: Range<usize>,
    (out, cols): (View<'_, f32>, usize),
    accumulate: bool,
) -> Result<(), CudaError> {
    let grid = w.int8_grid(x.cols)?;
    assert!(w.has_row_scales() && x.group == x.cols, "one scale a row");
    let n = x.rows;
    let (kernel, tile) = match (out.device.uses_tensor_cores(), tile(n, cols)) {
        (false, _) => (kernels.dp4a, 64),
        (true, LARGE_TILE) => (kernels.large, LARGE_TILE),
        (true, tile) => (kernels.small, tile),
    };
    launch!(
        out.device,
        kernel,
        [cols.div_ceil(tile), n.div_ceil(tile), 1],
        THREADS,
        x.values.address,
        x.scales.address,
        w.raw_rows(&rows),
        grid.values.view(..).address,
        out.of(n * cols, "a result a row and column"),
        n as i32,
        rows.len() as i32,
        stride(x.cols) as i32,
        grid.unit_value,
        i32::from(accumulate),
    )
}
