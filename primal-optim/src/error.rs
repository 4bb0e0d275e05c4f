//! What can go wrong in the optimizer crate.

use thiserror::Error;

/// Errors of this crate; messages name the parameter and the values.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OptimError {
    /// A rule name that does not exist.
    #[error("unknown rule '{name}': known are {known}")]
    UnknownRule {
        /// The unknown name.
        name: String,
        /// The known ones.
        known: String,
    },
    /// A rule that moves codes, and a matrix that has none.
    #[error("the rule moves codes of a grid, and the matrix has none")]
    NoGrid,
    /// Rows of stacked matrices that do not add up.
    #[error("{rows} rows are no stack of {parts:?}")]
    Stack {
        /// Rows of the matrix.
        rows: usize,
        /// Those of its parts.
        parts: Vec<usize>,
    },
    /// A gradient outside a step.
    #[error("{name}: a gradient of step {step} came before the step was begun")]
    NotBegun {
        /// Parameter name.
        name: String,
        /// The step.
        step: u32,
    },
    /// Rows that are not whole tiles.
    #[error(
        "{name}: a gradient of rows {from}..{to} of {rows} begins inside a tile or ends beyond"
    )]
    Tiles {
        /// Parameter name.
        name: String,
        /// The first row.
        from: usize,
        /// The row after the last.
        to: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// More micro-batches than were declared.
    #[error("a step of {0} micro-batches for a matrix that was made for one")]
    MicroBatches(u16),
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
