//! A quantised matrix: packed codes and a scale per row or per group of columns.

use crate::error::LutError;
use crate::grid::{Code, Grid};
use crate::pack::{BitPlane, bit_row_bytes, nibble_row_bytes, pack_nibbles, unpack_nibbles};

/// Name in the errors of a matrix that has none yet.
const UNNAMED: &str = "(new matrix)";

/// A matrix on a grid: `value[r][c] = scale[r][c / group] * grid[code[r][c]]`.
///
/// Codes lie in a nibble plane (rows, cols.div_ceil(2)) u8, low nibble first, and for a wide grid
/// also a bit plane (rows, cols.div_ceil(8)) u8, LSB first. The free nibble of an odd row holds
/// the low nibble of the zero code, free bits are zero. Scales are (rows, cols.div_ceil(group)) f32.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantMatrix {
    grid: Grid,
    layout: Layout,
    nibbles: Vec<u8>,
    high: Option<BitPlane>,
    scales: Vec<f32>,
}

impl QuantMatrix {
    /// A matrix of zeros: every code the zero code, every scale 1. `group` columns share a scale;
    /// `group == cols` is one scale a row.
    ///
    /// # Errors
    /// [`LutError::Shape`] for an empty matrix, a group outside 1..=cols, or sizes that overflow.
    pub fn zeros(
        grid: &Grid,
        rows: usize,
        cols: usize,
        group: usize,
    ) -> Result<QuantMatrix, LutError> {
        let layout = Layout::new(rows, cols, group, UNNAMED)?;
        let codes = vec![grid.zero_code(); cols];
        let scales = vec![1.0; layout.scales()];
        Ok(QuantMatrix::from_rows(grid, layout, scales, |_, out| {
            out.copy_from_slice(&codes)
        }))
    }

    /// Quantises `weights` (rows, cols): code = nearest(weight / scale), see [`Grid::nearest`];
    /// `scales` is (rows, cols.div_ceil(group)). A scale of zero sends its weights to zero or to
    /// the ends by sign, and all of them read back as zero.
    ///
    /// # Errors
    /// Those of [`QuantMatrix::zeros`]; [`LutError::Length`] and [`LutError::Scale`] for buffers
    /// that do not fit and scales that are not finite.
    pub fn quantise(
        grid: &Grid,
        rows: usize,
        cols: usize,
        group: usize,
        weights: &[f32],
        scales: Vec<f32>,
    ) -> Result<QuantMatrix, LutError> {
        let layout = Layout::new(rows, cols, group, UNNAMED)?;
        check_length(UNNAMED, "weights", rows * cols, weights.len())?;
        layout.check_scales(&scales, UNNAMED)?;
        let row_scales = scales.clone();
        Ok(QuantMatrix::from_rows(grid, layout, scales, |row, out| {
            let weights = weights[row * cols..][..cols].chunks(group);
            let scales = &row_scales[row * layout.groups..][..layout.groups];
            for ((weights, out), &scale) in weights.zip(out.chunks_mut(group)).zip(scales) {
                for (&weight, code) in weights.iter().zip(out) {
                    *code = grid.nearest(weight / scale);
                }
            }
        }))
    }

    /// A matrix from its stored planes; `name` is what errors call it.
    ///
    /// # Errors
    /// [`LutError::Shape`], [`LutError::Length`]; [`LutError::InvalidCode`] with the position of
    /// the first code that the grid does not have; [`LutError::Padding`]; [`LutError::Scale`].
    pub fn from_planes(
        grid: &Grid,
        rows: usize,
        cols: usize,
        group: usize,
        nibbles: Vec<u8>,
        high: Option<Vec<u8>>,
        scales: Vec<f32>,
        name: &str,
    ) -> Result<QuantMatrix, LutError> {
        let layout = Layout::new(rows, cols, group, name)?;
        check_length(
            name,
            "nibble plane",
            rows * layout.row_bytes(),
            nibbles.len(),
        )?;
        let high_bytes = if grid.is_wide() {
            rows * layout.high_row_bytes()
        } else {
            0
        };
        let found = high.as_ref().map_or(0, Vec::len);
        check_length(name, "bit plane", high_bytes, found)?;
        layout.check_scales(&scales, name)?;
        let high = high.filter(|_| grid.is_wide());
        let high = high.map(|bytes| BitPlane::from_bytes(bytes, cols));
        let matrix = QuantMatrix {
            grid: grid.clone(),
            layout,
            nibbles,
            high,
            scales,
        };
        matrix.check_codes(name)?;
        Ok(matrix)
    }

    /// The grid of the codes.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.layout.cols
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.layout.group
    }

    /// Scales a row: `cols.div_ceil(group)`.
    pub fn groups_per_row(&self) -> usize {
        self.layout.groups
    }

    /// Bytes of a row of the nibble plane: `cols.div_ceil(2)`.
    pub fn row_bytes(&self) -> usize {
        self.layout.row_bytes()
    }

    /// Bytes of a row of the bit plane: `cols.div_ceil(8)`.
    pub fn high_row_bytes(&self) -> usize {
        self.layout.high_row_bytes()
    }

    /// The nibble plane (rows, row_bytes) u8, low nibble first.
    pub fn nibbles(&self) -> &[u8] {
        &self.nibbles
    }

    /// The bit plane (rows, high_row_bytes) u8, LSB first, of a wide grid.
    pub fn high(&self) -> Option<&[u8]> {
        self.high.as_ref().map(BitPlane::bytes)
    }

    /// The scales (rows, groups_per_row) f32.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The scales (rows, groups_per_row) f32, to be changed.
    pub fn scales_mut(&mut self) -> &mut [f32] {
        &mut self.scales
    }

    /// Nibble plane, bit plane and scales for in-place kernels, which keep every code below
    /// `grid().len()` and the padding as it is.
    pub fn planes_mut(&mut self) -> (&mut [u8], Option<&mut [u8]>, &[f32]) {
        (
            &mut self.nibbles,
            self.high.as_mut().map(BitPlane::bytes_mut),
            &self.scales,
        )
    }

    /// The code at a position.
    ///
    /// # Panics
    /// If the position is outside the matrix.
    pub fn code(&self, row: usize, col: usize) -> Code {
        assert!(
            row < self.rows() && col < self.cols(),
            "({row}, {col}) is outside the matrix"
        );
        let byte = self.nibbles[row * self.row_bytes() + col / 2];
        let low = if col.is_multiple_of(2) {
            byte & 15
        } else {
            byte >> 4
        };
        let high = self.high.as_ref().is_some_and(|high| high.get(row, col));
        low | (u8::from(high) << 4)
    }

    /// Sets the code at a position.
    ///
    /// # Errors
    /// [`LutError::Position`] outside the matrix, [`LutError::InvalidCode`] for a code that the
    /// grid does not have.
    pub fn set_code(&mut self, row: usize, col: usize, code: Code) -> Result<(), LutError> {
        let (rows, cols) = (self.rows(), self.cols());
        if row >= rows || col >= cols {
            return Err(LutError::Position {
                row,
                col,
                rows,
                cols,
            });
        }
        if usize::from(code) >= self.grid.len() {
            return Err(self.invalid_code("(matrix)", row, col, code));
        }
        let index = row * self.row_bytes() + col / 2;
        let byte = &mut self.nibbles[index];
        *byte = if col.is_multiple_of(2) {
            (*byte & 0xf0) | (code & 15)
        } else {
            (*byte & 15) | (code << 4)
        };
        if let Some(high) = &mut self.high {
            high.set(row, col, code >= 16);
        }
        Ok(())
    }

    /// The codes of a row into `out` (cols).
    ///
    /// # Panics
    /// If the row is outside the matrix or `out` has another length.
    pub fn row_codes(&self, row: usize, out: &mut [Code]) {
        assert!(row < self.rows(), "row {row} is outside the matrix");
        assert_eq!(out.len(), self.cols(), "one code a column");
        unpack_nibbles(
            &self.nibbles[row * self.row_bytes()..][..self.row_bytes()],
            out,
        );
        if let Some(high) = &self.high {
            for (code, bit) in out.iter_mut().zip(high.row(row)) {
                *code |= u8::from(bit) << 4;
            }
        }
    }

    /// The values (rows, cols) f32.
    pub fn dequantise(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows() * self.cols()];
        let mut codes = vec![0; self.cols()];
        for (row, values) in values.chunks_exact_mut(self.cols()).enumerate() {
            self.row_codes(row, &mut codes);
            let scales = &self.scales[row * self.groups_per_row()..][..self.groups_per_row()];
            let groups = values
                .chunks_mut(self.group())
                .zip(codes.chunks(self.group()));
            for ((values, codes), &scale) in groups.zip(scales) {
                for (value, &code) in values.iter_mut().zip(codes) {
                    *value = scale * self.grid.table()[usize::from(code)];
                }
            }
        }
        values
    }

    /// How often each code occurs: (grid().len()) counts, padding left out.
    pub fn code_histogram(&self) -> Vec<u64> {
        let mut counts = [0; 32];
        let mut codes = vec![0; self.cols()];
        for row in 0..self.rows() {
            self.row_codes(row, &mut codes);
            for &code in &codes {
                counts[usize::from(code)] += 1;
            }
        }
        counts[..self.grid.len()].to_vec()
    }

    /// Bytes of codes and scales, padding included.
    pub fn bytes(&self) -> usize {
        self.nibbles.len() + self.high().map_or(0, <[u8]>::len) + size_of_val(self.scales())
    }

    /// Packs the codes that `fill(row, out)` gives for each row.
    fn from_rows(
        grid: &Grid,
        layout: Layout,
        scales: Vec<f32>,
        mut fill: impl FnMut(usize, &mut [Code]),
    ) -> QuantMatrix {
        let Layout { rows, cols, .. } = layout;
        let mut nibbles = vec![0; rows * layout.row_bytes()];
        let mut high = grid
            .is_wide()
            .then(|| BitPlane::from_bytes(vec![0; rows * layout.high_row_bytes()], cols));
        let mut codes = vec![0; cols];
        for (row, nibbles) in nibbles.chunks_exact_mut(layout.row_bytes()).enumerate() {
            fill(row, &mut codes);
            pack_nibbles(&codes, grid.zero_code(), nibbles);
            if let Some(high) = &mut high {
                for (col, &code) in codes.iter().enumerate() {
                    high.set(row, col, code >= 16);
                }
            }
        }
        QuantMatrix {
            grid: grid.clone(),
            layout,
            nibbles,
            high,
            scales,
        }
    }

    /// Every code must be in the grid and every padding what the format fixes.
    fn check_codes(&self, name: &str) -> Result<(), LutError> {
        let pad = self.grid.zero_code() << 4;
        let mut codes = vec![0; self.cols()];
        for row in 0..self.rows() {
            self.row_codes(row, &mut codes);
            let invalid = |&code: &Code| usize::from(code) >= self.grid.len();
            if let Some(col) = codes.iter().position(invalid) {
                return Err(self.invalid_code(name, row, col, codes[col]));
            }
            let last = self.nibbles[(row + 1) * self.row_bytes() - 1];
            let nibble_ok = self.cols().is_multiple_of(2) || last & 0xf0 == pad;
            let bits_ok = self
                .high
                .as_ref()
                .is_none_or(|high| high.row(row).skip(self.cols()).all(|bit| !bit));
            if !(nibble_ok && bits_ok) {
                return Err(LutError::Padding {
                    name: name.to_owned(),
                    row,
                });
            }
        }
        Ok(())
    }

    fn invalid_code(&self, name: &str, row: usize, col: usize, code: Code) -> LutError {
        let (grid, len) = (self.grid.id().to_owned(), self.grid.len());
        LutError::InvalidCode {
            name: name.to_owned(),
            row,
            col,
            code,
            grid,
            len,
        }
    }
}

/// Checked sizes of a matrix: none of them is zero and no product of them overflows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Layout {
    rows: usize,
    cols: usize,
    group: usize,
    /// Scales a row.
    pub(crate) groups: usize,
}

impl Layout {
    pub(crate) fn new(
        rows: usize,
        cols: usize,
        group: usize,
        name: &str,
    ) -> Result<Layout, LutError> {
        let refuse = |reason| {
            Err(LutError::Shape {
                name: name.to_owned(),
                rows,
                cols,
                group,
                reason,
            })
        };
        if rows == 0 || cols == 0 {
            return refuse("it is empty");
        }
        if !(1..=cols).contains(&group) {
            return refuse("a group is 1 to all columns");
        }
        // Four bytes an element is the largest buffer of a matrix.
        if rows
            .checked_mul(cols)
            .and_then(|len| len.checked_mul(size_of::<f32>()))
            .is_none()
        {
            return refuse("it is too large");
        }
        Ok(Layout {
            rows,
            cols,
            group,
            groups: cols.div_ceil(group),
        })
    }

    pub(crate) fn row_bytes(&self) -> usize {
        nibble_row_bytes(self.cols)
    }

    pub(crate) fn high_row_bytes(&self) -> usize {
        bit_row_bytes(self.cols)
    }

    fn scales(&self) -> usize {
        self.rows * self.groups
    }

    fn check_scales(&self, scales: &[f32], name: &str) -> Result<(), LutError> {
        check_length(name, "scales", self.scales(), scales.len())?;
        match scales.iter().position(|scale| !scale.is_finite()) {
            None => Ok(()),
            Some(index) => Err(LutError::Scale {
                name: name.to_owned(),
                row: index / self.groups,
                group: index % self.groups,
                value: scales[index],
            }),
        }
    }
}

fn check_length(
    name: &str,
    what: &'static str,
    expected: usize,
    found: usize,
) -> Result<(), LutError> {
    if expected == found {
        return Ok(());
    }
    Err(LutError::Length {
        name: name.to_owned(),
        what,
        expected,
        found,
    })
}
