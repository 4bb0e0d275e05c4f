//! The grid of prime reciprocals: codes, packing and quantised matrices.

mod error;
mod grid;
mod pack;
mod quant;

pub use error::LutError;
pub use grid::{Code, Grid};
pub use quant::QuantMatrix;
