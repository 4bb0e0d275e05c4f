//! What can go wrong with grids, quantised matrices and tensor files.

use std::io;
use std::path::PathBuf;

/// An error of this crate. Messages name the tensor, the position or the path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LutError {
    /// The values cannot be a grid.
    #[error("grid `{id}` is not valid: {reason}")]
    Grid {
        /// Id of the grid.
        id: String,
        /// Which rule the values break.
        reason: String,
    },
    /// A built-in id with values that are not the built-in ones.
    #[error("grid `{id}` does not hold the values this build knows under that id")]
    KnownGrid {
        /// Id of the grid.
        id: String,
    },
    /// A shape that no matrix can have.
    #[error(
        "tensor `{name}`: no matrix has {rows} rows, {cols} columns and groups of {group}: {reason}"
    )]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Columns that share a scale.
        group: usize,
        /// Which rule the shape breaks.
        reason: &'static str,
    },
    /// A buffer whose length does not fit the shape.
    #[error("tensor `{name}`: {what} should hold {expected} elements but holds {found}")]
    Length {
        /// Name of the tensor.
        name: String,
        /// Which buffer.
        what: &'static str,
        /// Elements the shape needs.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// A code that names no value of the grid.
    #[error(
        "tensor `{name}`: code {code} at row {row}, column {col} is not one of the {len} codes of grid `{grid}`"
    )]
    InvalidCode {
        /// Name of the tensor.
        name: String,
        /// Row of the code.
        row: usize,
        /// Column of the code.
        col: usize,
        /// The code.
        code: u8,
        /// Id of the grid.
        grid: String,
        /// Values in the grid.
        len: usize,
    },
    /// Padding of a row that does not hold what the format says.
    #[error("tensor `{name}`: the padding of row {row} is not what the format fixes")]
    Padding {
        /// Name of the tensor.
        name: String,
        /// The row.
        row: usize,
    },
    /// A scale that is infinite or not a number.
    #[error("tensor `{name}`: scale {value} of row {row}, group {group} is not finite")]
    Scale {
        /// Name of the tensor.
        name: String,
        /// The row.
        row: usize,
        /// Index of the group in its row.
        group: usize,
        /// The scale.
        value: f32,
    },
    /// A position outside the matrix.
    #[error("row {row}, column {col} is outside a matrix of {rows} rows and {cols} columns")]
    Position {
        /// Row asked for.
        row: usize,
        /// Column asked for.
        col: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file that is not a tensor file, or a damaged one.
    #[error("{file}: not a valid tensor file: {reason}")]
    Container {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A file of another version of the format.
    #[error("{file}: has format_version {found}, this build reads {supported}")]
    FormatVersion {
        /// The file.
        file: String,
        /// Version of the file.
        found: String,
        /// Version of this build.
        supported: u32,
    },
    /// Metadata that must be there is not.
    #[error("{file}: has no metadata `{key}`")]
    MissingMetadata {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// Metadata that cannot be understood.
    #[error("{file}: metadata `{key}` is not valid: {reason}")]
    Metadata {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that is not in the file.
    #[error("{file}: has no tensor `{name}`")]
    MissingTensor {
        /// The file.
        file: String,
        /// Name of the tensor.
        name: String,
    },
    /// A tensor of another type or shape than asked for.
    #[error("{file}: tensor `{name}` is {found}, expected {expected}")]
    WrongTensor {
        /// The file.
        file: String,
        /// Name of the tensor.
        name: String,
        /// Type and shape asked for.
        expected: String,
        /// Type and shape in the file.
        found: String,
    },
    /// Something handed to the writer that the format cannot hold.
    #[error("cannot write `{name}`: {reason}")]
    Unwritable {
        /// Tensor name or metadata key.
        name: String,
        /// What is wrong.
        reason: String,
    },
}

impl LutError {
    /// The error as seen from a matrix in which `rows` rows lie before the one it came from.
    pub(crate) fn after_rows(mut self, rows: usize) -> LutError {
        if let LutError::InvalidCode { row, .. }
        | LutError::Padding { row, .. }
        | LutError::Scale { row, .. } = &mut self
        {
            *row += rows;
        }
        self
    }
}
