//! Products of int8 activations with weights from the grid, exact in int32.

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for_rows, launch};
use super::error::CudaError;
use super::weights::DeviceWeights;
use crate::int8::Int8Grid;

/// A grid as integers, on the device.
#[derive(Debug)]
pub struct DeviceInt8Grid {
    /// (32) i8.
    values: Buffer<i8>,
    unit_value: f32,
}

impl DeviceInt8Grid {
    /// Copies a table to the device.
    pub fn upload(device: &Device, grid: &Int8Grid) -> Result<Self, CudaError> {
        Ok(DeviceInt8Grid {
            values: Buffer::from_slice(device, &grid.values, "integer values of a grid")?,
            unit_value: grid.unit_value,
        })
    }
}

/// Rows of activations as i8, each in units of its largest magnitude / 127.
#[derive(Debug)]
pub struct QuantisedRows {
    /// (rows, stride) i8, zeros behind the columns.
    pub values: Buffer<i8>,
    /// (rows) f32, the unit of each row.
    pub scales: Buffer<f32>,
    stride: usize,
}

impl QuantisedRows {
    /// For up to `rows` rows of `cols` columns.
    pub fn new(device: &Device, rows: usize, cols: usize) -> Result<Self, CudaError> {
        let stride = cols.next_multiple_of(4);
        Ok(QuantisedRows {
            values: Buffer::zeros(device, rows * stride, "activations as int8")?,
            scales: Buffer::zeros(device, rows, "units of activations")?,
            stride,
        })
    }

    /// Bytes of a row.
    pub fn stride(&self) -> usize {
        self.stride
    }
}

/// Quantises x (n, cols); with `column_scales` (cols) each column is multiplied first.
///
/// # Panics
/// If a length does not match.
pub fn quantise_rows(
    x: View<'_, f32>,
    column_scales: Option<View<'_, f32>>,
    cols: usize,
    to: &QuantisedRows,
) -> Result<(), CudaError> {
    let n = x.len() / cols;
    assert_eq!(
        cols.next_multiple_of(4),
        to.stride,
        "columns of {}",
        to.stride
    );
    launch!(
        x.device,
        "quantise_rows",
        blocks_for_rows(n),
        THREADS,
        x.of(n * cols, "x is (n, cols)"),
        column_scales.map_or(0, |scales| scales.of(cols, "a scale a column")),
        n as i32,
        cols as i32,
        to.stride as i32,
        to.values.view(..n * to.stride).address,
        to.scales.view(..n).address,
    )
}

/// y (n, m) = x wᵀ for quantised x (n, k) and w (m, k) on `grid` with one scale a row: the bits of
/// the CPU's `int8_matmul_nt`.
///
/// # Panics
/// If a length does not match.
pub fn int8_matmul_nt(
    x: &QuantisedRows,
    w: &DeviceWeights,
    grid: &DeviceInt8Grid,
    n: usize,
    y: View<'_, f32>,
) -> Result<(), CudaError> {
    assert!(w.has_row_scales(), "one scale a row");
    assert_eq!(w.cols().next_multiple_of(4), x.stride, "columns of w");
    let m = w.rows();
    launch!(
        y.device,
        "int8_gemm_nt",
        [m.div_ceil(64), n.div_ceil(64), 1],
        THREADS,
        x.values.view(..n * x.stride).address,
        x.scales.view(..n).address,
        w.raw(),
        grid.values.view(..).address,
        y.of(n * m, "y is (n, m)"),
        n as i32,
        m as i32,
        x.stride as i32,
        grid.unit_value,
    )
}

/// dx (n, k) = dy w for quantised dy · scales (n, m) and w (m, k): the bits of the CPU's
/// `int8_matmul_nn`.
///
/// # Panics
/// If a length does not match.
pub fn int8_matmul_nn(
    dy: &QuantisedRows,
    w: &DeviceWeights,
    grid: &DeviceInt8Grid,
    n: usize,
    dx: View<'_, f32>,
) -> Result<(), CudaError> {
    assert!(w.has_row_scales(), "one scale a row");
    assert_eq!(w.rows().next_multiple_of(4), dy.stride, "rows of w");
    launch!(
        dx.device,
        "int8_gemm_nn",
        [w.cols().div_ceil(64), n.div_ceil(64), 1],
        THREADS,
        dy.values.view(..n * dy.stride).address,
        dy.scales.view(..n).address,
        w.raw(),
        grid.values.view(..).address,
        dx.of(n * w.cols(), "dx is (n, k)"),
        n as i32,
        w.rows() as i32,
        dy.stride as i32,
        grid.unit_value,
    )
}
