//! Matrices on the device, and reading them: decoding, embedding, one vector's product.

use std::ops::Range;
use std::sync::Arc;

use primal_lut::QuantMatrix;

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for, blocks_for_rows, launch};
use super::error::CudaError;
use super::int8::DeviceInt8Grid;
use crate::int8::{INT8_MAX_COLS, Int8Grid, has_int8_form};

/// A (rows, cols) matrix: packed codes, or float values.
#[derive(Clone, Debug)]
pub struct DeviceWeights {
    /// (rows, row_bytes) u8, low nibble first; empty for a float matrix.
    pub nibbles: Arc<Buffer<u8>>,
    /// (rows, high_row_bytes) u8, bit 4 of every code; empty for a narrow grid.
    pub high: Arc<Buffer<u8>>,
    /// (32) f32, the grid's values.
    table: Arc<Buffer<f32>>,
    /// The same as integers, if they have that form.
    int8_grid: Option<Arc<DeviceInt8Grid>>,
    /// What holds the (rows, groups) f32 scales, and where they begin.
    scales: (Arc<Buffer<f32>>, usize),
    /// What holds the (rows, cols) f32 of a float matrix, and where they begin.
    dense: Option<(Arc<Buffer<f32>>, usize)>,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    high_row_bytes: usize,
    group: usize,
    groups: usize,
}

/// The `Weights` of common.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RawWeights {
    nibbles: u64,
    high: u64,
    table: u64,
    scales: u64,
    dense: u64,
    cols: i32,
    row_bytes: i32,
    high_row_bytes: i32,
    group: i32,
    groups: i32,
}

impl RawWeights {
    /// No matrix, where one is optional.
    const NONE: RawWeights = RawWeights {
        nibbles: 0,
        high: 0,
        table: 0,
        scales: 0,
        dense: 0,
        cols: 0,
        row_bytes: 0,
        high_row_bytes: 0,
        group: 1,
        groups: 1,
    };
}

impl DeviceWeights {
    /// Copies a matrix, with its own scales, to the device.
    pub fn upload(device: &Device, matrix: &QuantMatrix, what: &str) -> Result<Self, CudaError> {
        let scales = Buffer::from_slice(device, matrix.scales(), what)?;
        DeviceWeights::with_scales(device, matrix, Arc::new(scales), 0, what)
    }

    /// Copies a matrix whose scales lie in `scales` from `first_scale` on.
    pub fn with_scales(
        device: &Device,
        matrix: &QuantMatrix,
        scales: Arc<Buffer<f32>>,
        first_scale: usize,
        what: &str,
    ) -> Result<Self, CudaError> {
        assert!(
            first_scale + matrix.scales().len() <= scales.len(),
            "scales of {what}"
        );
        let high = matrix.high().unwrap_or(&[]);
        let int8_grid = match Int8Grid::new(matrix.grid()) {
            Some(grid) => Some(Arc::new(DeviceInt8Grid::upload(device, &grid, what)?)),
            None => None,
        };
        Ok(DeviceWeights {
            int8_grid,
            nibbles: Arc::new(Buffer::from_slice(device, matrix.nibbles(), what)?),
            high: Arc::new(Buffer::from_slice(device, high, what)?),
            table: Arc::new(Buffer::from_slice(device, matrix.grid().table(), what)?),
            scales: (scales, first_scale),
            dense: None,
            rows: matrix.rows(),
            cols: matrix.cols(),
            row_bytes: matrix.row_bytes(),
            high_row_bytes: matrix.high_row_bytes(),
            group: matrix.group(),
            groups: matrix.groups_per_row(),
        })
    }

    /// Copies a float matrix, (rows, cols) row-major.
    pub fn upload_dense(
        device: &Device,
        values: &[f32],
        (rows, cols): (usize, usize),
        what: &str,
    ) -> Result<Self, CudaError> {
        assert_eq!(values.len(), rows * cols, "values of {what}");
        let values = Buffer::from_slice(device, values, what)?;
        DeviceWeights::dense_in(Arc::new(values), 0, (rows, cols))
    }

    /// A float matrix whose (rows, cols) values, row-major, lie in `values` from `first` on.
    ///
    /// # Panics
    /// If they end beyond it.
    pub fn dense_in(
        values: Arc<Buffer<f32>>,
        first: usize,
        (rows, cols): (usize, usize),
    ) -> Result<Self, CudaError> {
        assert!(first + rows * cols <= values.len(), "values of a matrix");
        let device = values.device();
        let none = Arc::new(Buffer::zeros(device, 0, "no scales")?);
        let no_codes = Arc::new(Buffer::zeros(device, 0, "no codes")?);
        Ok(DeviceWeights {
            nibbles: Arc::clone(&no_codes),
            high: no_codes,
            table: Arc::clone(&none),
            int8_grid: None,
            scales: (none, 0),
            dense: Some((values, first)),
            rows,
            cols,
            row_bytes: 0,
            high_row_bytes: 0,
            group: cols,
            groups: 1,
        })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether it has codes.
    pub fn is_on_grid(&self) -> bool {
        self.dense.is_none()
    }

    /// The values of some rows of a float matrix, (rows, cols) f32; `None` of one with codes.
    pub fn dense_rows(&self, rows: Range<usize>) -> Option<View<'_, f32>> {
        let (values, first) = self.dense.as_ref()?;
        Some(values.view(first + rows.start * self.cols..first + rows.end * self.cols))
    }

    /// The scales of some rows, (rows · groups) f32.
    pub fn scales(&self, rows: Range<usize>) -> View<'_, f32> {
        let (buffer, first) = &self.scales;
        buffer.view(first + rows.start * self.groups..first + rows.end * self.groups)
    }

    /// Its grid as integers, for products of `depth` summands.
    pub(crate) fn int8_grid(&self, depth: usize) -> Result<&DeviceInt8Grid, CudaError> {
        let grid = self.int8_grid.as_deref();
        grid.filter(|_| depth <= INT8_MAX_COLS).ok_or_else(|| {
            CudaError::Unsupported(format!(
                "a matrix of {} x {} on its grid has no product in int8",
                self.rows, self.cols
            ))
        })
    }

    /// Whether `int8_matvec` takes it: on a grid with an integer form, with one scale a row or
    /// groups of a multiple of 32, as on the CPU.
    pub fn has_int8_matvec(&self) -> bool {
        has_int8_form(self.cols, self.group) && self.int8_grid(self.cols).is_ok()
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }

    /// One scale a row.
    pub(crate) fn has_row_scales(&self) -> bool {
        self.is_on_grid() && self.groups == 1
    }

    pub(crate) fn device(&self) -> &Device {
        self.nibbles.device()
    }

    pub(crate) fn raw(&self) -> RawWeights {
        RawWeights {
            nibbles: self.nibbles.view(..).address,
            high: self.high.view(..).address,
            table: self.table.view(..).address,
            scales: if self.is_on_grid() {
                self.scales(0..self.rows).address
            } else {
                0
            },
            dense: self
                .dense_rows(0..self.rows)
                .map_or(0, |values| values.address),
            cols: self.cols as i32,
            row_bytes: self.row_bytes as i32,
            high_row_bytes: self.high_row_bytes as i32,
            group: self.group as i32,
            groups: self.groups as i32,
        }
    }

    /// Some rows of a matrix on a grid.
    pub(crate) fn raw_rows(&self, rows: &Range<usize>) -> RawWeights {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let all = self.raw();
        let start = rows.start as u64;
        let high = all.high + start * self.high_row_bytes as u64;
        RawWeights {
            nibbles: all.nibbles + start * self.row_bytes as u64,
            high: if self.high.is_empty() { 0 } else { high },
            scales: all.scales + 4 * start * self.groups as u64,
            ..all
        }
    }
}

/// Writes rows `first_row`.. of a matrix, scales applied, to `out`, whole rows f32.
///
/// # Panics
/// If the rows end beyond the matrix.
pub fn decode_rows(
    weights: &DeviceWeights,
    first_row: usize,
    rows: usize,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    assert!(first_row + rows <= weights.rows, "rows of {}", weights.rows);
    let to = out.of(rows * weights.cols, "decoded rows");
    launch!(
        weights.device(),
        "decode_rows",
        blocks_for(rows * weights.cols.div_ceil(2)),
        THREADS,
        weights.raw(),
        to,
        first_row as i32,
        rows as i32,
    )
}

/// out (n, C) = the rows of `tokens_of` that `tokens` (n) name, which must be below its rows, plus
/// those of `positions_of`, if there is one, for positions (`first_position` + i) % `time`.
///
/// # Panics
/// If a length does not match.
pub fn embed(
    tokens_of: &DeviceWeights,
    positions_of: Option<&DeviceWeights>,
    tokens: View<'_, u32>,
    time: usize,
    first_position: usize,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    let (n, width) = (tokens.len(), tokens_of.cols);
    if let Some(positions) = positions_of {
        assert_eq!(positions.cols, width, "positions are as wide as tokens");
        assert!(time <= positions.rows, "a position a token");
    }
    launch!(
        out.device,
        "embed",
        blocks_for(n * width),
        THREADS,
        tokens_of.raw(),
        positions_of.map_or(RawWeights::NONE, DeviceWeights::raw),
        tokens.address,
        out.of(n * width, "embedded tokens"),
        n as i32,
        time.max(1) as i32,
        first_position as i32,
    )
}

/// y (rows) = W x for x (cols), without writing the weights out.
///
/// # Panics
/// If a length does not match.
pub fn matvec(
    weights: &DeviceWeights,
    x: View<'_, f32>,
    y: View<'_, f32>,
) -> Result<(), CudaError> {
    launch!(
        y.device,
        "matvec",
        blocks_for_rows(weights.rows),
        THREADS,
        weights.raw(),
        x.of(weights.cols, "input of a matrix-vector product"),
        y.of(weights.rows, "output of a matrix-vector product"),
        weights.rows as i32,
    )
}
