//! Tensor files: safetensors with our metadata, written deterministically and read defensively.
//!
//! A matrix `N` is stored as `N.codes` U8 (rows, row_bytes), `N.high` U8 (rows, high_row_bytes)
//! when its grid is wide, and `N.scales` F32 (rows, groups_per_row). The metadata holds
//! `format_version`, `kind`, `tensor:N` = `{"grid": id, "cols": .., "group": ..}`, `grid:<id>` =
//! the values of every grid used, and the caller's own keys. Packed codes are typed U8, since
//! safetensors' F4 means MX float4.

mod read;
mod write;

use serde::{Deserialize, Serialize};

pub use read::{QuantInfo, TensorFile};
pub use write::TensorFileWriter;

/// Version of the tensor file format that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

const VERSION_KEY: &str = "format_version";
const KIND_KEY: &str = "kind";
const KIND: &str = "primal-tensors";
const GRID_PREFIX: &str = "grid:";
const TENSOR_PREFIX: &str = "tensor:";
/// The name that safetensors keeps for the metadata.
const RESERVED_NAME: &str = "__metadata__";

/// Bytes of the header's length, which opens the file.
const LENGTH_BYTES: usize = 8;

/// What the metadata says of a quantised matrix.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantNote {
    /// Grid id.
    grid: String,
    /// Columns of the matrix; its rows are those of `N.codes`.
    cols: usize,
    /// Columns that share a scale.
    group: usize,
}
