//! What can go wrong in the optimizer crate.

use thiserror::Error;

/// Errors of this crate; messages name the parameter and the values.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OptimError {
    /// A rule name that does not exist.
    #[error("unknown rule '{0}': known are consensus, classic, frozen, shadow, adamw")]
    UnknownRule(String),
    /// A hyperparameter outside its range.
    #[error("optim.{key} = {value} is out of range")]
    OutOfRange {
        /// The TOML key.
        key: &'static str,
        /// The refused value.
        value: f32,
    },
    /// A stored state that does not fit the parameter.
    #[error(
        "{name}: stored matrix is {found_rows} x {found_cols} on grid {found_grid}, expected {rows} x {cols} on {grid}"
    )]
    MatrixMismatch {
        /// Parameter name.
        name: String,
        /// Rows in the file.
        found_rows: usize,
        /// Columns in the file.
        found_cols: usize,
        /// Grid id in the file.
        found_grid: String,
        /// Rows of the parameter.
        rows: usize,
        /// Columns of the parameter.
        cols: usize,
        /// Grid id of the parameter.
        grid: String,
    },
    /// An error of the tensor file.
    #[error(transparent)]
    Lut(#[from] primal_lut::LutError),
}
