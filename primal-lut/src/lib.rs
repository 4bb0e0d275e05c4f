//! The grid of prime reciprocals: codes, packing, quantised matrices and their file format.

mod error;
mod file;
mod grid;
mod integer;
mod pack;
mod quant;
mod scale;

pub use error::LutError;
pub use file::{FORMAT_VERSION, TensorFile, TensorFileWriter};
pub use grid::{Code, Grid};
pub use integer::Int8Table;
pub use quant::QuantMatrix;
pub use scale::fit_scale;
