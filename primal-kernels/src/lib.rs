//! CPU kernels of PRIMAL: scalar, AVX2 and AVX-512 behind one safe interface.

mod act;
mod adamw;
mod attention;
mod dense;
mod error;
mod grid;
mod isa;
mod lanes;
mod loss;
mod norm;
mod rows;
#[cfg(test)]
mod test_support;
mod vote;

pub use act::{add, add_bias, gelu, gelu_backward, gelu_in_place, sum_rows};
pub use adamw::{AdamStep, adamw, all_finite, scale, sum_squares};
pub use attention::{AttentionShape, attention, attention_backward, attention_decode};
pub use dense::{inside_gemm, matmul_nn, matmul_nt, matmul_tn_tile};
pub use error::KernelError;
pub use grid::{decode_row, decode_values, dot, matvec};
pub use isa::{Isa, Tier};
pub use loss::{
    CrossEntropyScratch, IGNORED, VOCAB_TILE, cross_entropy_backward_tile, cross_entropy_forward,
    vocab_tiles,
};
pub use norm::{layer_norm, layer_norm_backward};
pub use rows::{DenseRows, MatrixRows, fill_rows};
pub use vote::{
    CastStats, CountStats, FlipTable, RowStats, VoteRng, cast_votes_i8, cast_votes_i16,
    count_classic_row, count_row, gradient_row_stats, philox4x32, uniform16,
};
