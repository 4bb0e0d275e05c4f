//! The grid of prime reciprocals: codes, packing, quantised matrices and their file format.
//!
//! PRIMAL's weights live on a small table of values, a [`Grid`]. The default one is
//! 0, ±1/13, ±1/11, ±1/7, ±1/5, ±1/3, ±1/2, ±1: fifteen values, four bits a weight, multiples of
//! 1/30030. A weight is a [`Code`], the index of its value; codes have the order of the values, and
//! one step of learning moves a code by one.
//!
//! ```
//! use primal_lut::Grid;
//!
//! let grid = Grid::prime();
//! let code = grid.nearest(0.3);
//! assert_eq!(grid.value(code), Some(1.0 / 3.0));
//! assert_eq!(grid.value(grid.zero_code()), Some(0.0));
//! // Neighbours are unevenly spaced, which the optimizer has to know.
//! assert!(grid.gap_up(code) > grid.gap_down(code));
//! ```
//!
//! A [`QuantMatrix`] packs two codes a byte and keeps an f32 scale for each row, or for each group
//! of columns: `value[r][c] = scale[r][c / group] * grid[code[r][c]]`. Grids of more than 15 values
//! put the fifth bit of a code into a plane of its own. [`fit_scale`] looks for the scale that
//! loses least.
//!
//! ```
//! use primal_lut::{Grid, QuantMatrix, fit_scale};
//!
//! // (rows 2, cols 3)
//! let weights = [0.1, -0.05, 0.0, 0.02, 0.3, -0.1];
//! let scales = weights.chunks(3).map(|row| fit_scale(&Grid::prime(), row)).collect();
//! let matrix = QuantMatrix::quantise(&Grid::prime(), 2, 3, 3, &weights, scales)?;
//! assert_eq!(matrix.code(0, 2), 7);
//! assert_eq!(matrix.nibbles().len(), 4);
//! for (weight, value) in weights.iter().zip(matrix.dequantise()) {
//!     assert!((weight - value).abs() < 0.01);
//! }
//! # Ok::<(), primal_lut::LutError>(())
//! ```
//!
//! A [`TensorFileWriter`] puts matrices and plain tensors into a safetensors file that names and
//! carries its grids; a [`TensorFile`] reads it back and trusts nothing that it says.
//!
//! ```
//! use primal_lut::{Grid, QuantMatrix, TensorFile, TensorFileWriter};
//!
//! let matrix = QuantMatrix::zeros(&Grid::fine(), 4, 6, 6)?;
//! let mut writer = TensorFileWriter::new();
//! writer.quant("head", &matrix).f32("norm", &[2], &[1.0, 1.0]);
//! let file = TensorFile::from_bytes(writer.to_bytes()?)?;
//! assert_eq!(file.quant("head")?, matrix);
//! assert_eq!(file.f32("norm", &[2])?, [1.0, 1.0]);
//! # Ok::<(), primal_lut::LutError>(())
//! ```

mod error;
mod file;
mod grid;
mod integer;
mod pack;
mod quant;
mod scale;

pub use error::LutError;
pub use file::{FORMAT_VERSION, QuantInfo, TensorFile, TensorFileWriter};
pub use grid::{Code, Grid};
pub use integer::Int8Table;
pub use quant::QuantMatrix;
pub use scale::{fit_scale, fit_scale_weighted};
