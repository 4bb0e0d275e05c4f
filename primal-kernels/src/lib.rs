//! CPU kernels of PRIMAL: scalar, AVX2 and AVX-512 behind one safe interface.
//!
//! Every kernel takes an [`Isa`], a token that exists only where the CPU has the instructions,
//! and all tiers give bit-equal results: each kernel is written once over sixteen lanes, adds
//! in one order (lane `index % 16`, then a fixed tree) and splits work for threads in pieces
//! that depend on shapes alone. Dense products are the `gemm` crate's, which chooses by itself.
//!
//! - **Weights on a grid**: [`decode_row`], [`matvec`], [`fill_rows`] over [`MatrixRows`].
//! - **Integers**: [`QuantisedRows`] of int8 activations times grid weights, summed in i32:
//!   [`int8_matvec`] over [`PackedWeights`] for one token, [`int8_matmul_nt`] for many,
//!   [`int8_matmul_nn`] for input gradients; [`byte_matvec`] over [`ByteWeights`], floats rounded
//!   to bytes.
//! - **Votes**: [`cast_votes_i8`] draws them from a gradient, [`count_row`] counts a ballot and
//!   flips codes; random numbers are a function of their place ([`VoteRng`], [`uniform16`]).
//! - **Layers**: [`matmul_nt`], [`attention`], [`norm()`], [`rotate`], [`gelu`], [`swiglu`],
//!   [`cross_entropy_forward`] and their backward passes.
//! - **Float part**: [`adamw`].
//! - **Text**: [`TokenChooser`] takes the next token by its logit.
//! - **Sound**: [`Conv1d`] over channel-major [`Signal`]s.
//!
//! ```
//! use primal_kernels::{FlipTable, Isa, VoteRng, cast_votes_i8, count_row, decode_row};
//! use primal_lut::{Grid, QuantMatrix};
//!
//! let isa = Isa::best();
//! let grid = Grid::prime();
//! let mut matrix = QuantMatrix::zeros(&grid, 1, 4, 4)?;
//!
//! // A gradient that wants the first weight up and the last one down.
//! let grad = [-30.0, 0.0, 0.0, 30.0];
//! let mut rng = VoteRng { seed: 1, stream: 0, step: 0, tensor: 0, micro_batch: 0 };
//! let mut ballot = [0_i8; 4];
//! cast_votes_i8(isa, &grad, 1.0, &[1.0; 4], 100.0, &rng, 0, &mut ballot);
//! assert_eq!(ballot, [30, 0, 0, -30]);
//!
//! // From zero to 1/13 takes 20 votes; what is left stays in the ballot.
//! let table = FlipTable::new(&grid, 127);
//! rng.stream = 1;
//! let (nibbles, high, _) = matrix.planes_mut();
//! let counted = count_row(isa, nibbles, high, 4, &mut ballot, None, &table, 0, &rng, 0);
//! assert_eq!((counted.flips, ballot), (2, [10, 0, 0, -10]));
//!
//! let mut row = [0.0; 4];
//! decode_row(isa, &matrix, 0, &mut row);
//! assert_eq!(row, [1.0 / 13.0, 0.0, 0.0, -1.0 / 13.0]);
//! # Ok::<(), primal_lut::LutError>(())
//! ```

mod act;
mod adamw;
mod attention;
mod bandwidth;
mod conv;
mod counting;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dense;
mod error;
mod grid;
mod huge;
mod int16;
mod int8;
mod isa;
mod lanes;
mod loss;
mod multiply_rate;
mod norm;
mod prefetch;
mod rope;
mod rows;
mod sampling;
mod signal;
mod swiglu;
#[cfg(test)]
mod test_support;
mod vote;

pub use act::{add, add_bias, gelu, gelu_backward, gelu_in_place, sum_rows};
pub use adamw::{AdamStep, adamw, all_finite, root_mean_square, scale, sum_squares};
pub use attention::{
    AttentionShape, CacheKind, KvCache, attention, attention_backward, attention_cached,
};
pub use bandwidth::{read_bandwidth, read_rate};
pub use conv::{Conv1d, conv1d_weight_gradient};
pub use counting::CountingAllocator;
pub use dense::{
    GEMM_BYTES_PER_THREAD, inside_gemm, matmul_nn, matmul_nt, matmul_tn_tile, symmetric_nt,
    symmetric_tn,
};
pub use error::KernelError;
pub use grid::{add_scaled, decode_row, decode_values, dot, matvec};
pub use huge::{HugeArena, HugeBytes, LargePages};
pub use int8::{
    ByteWeights, INT8_MAX_COLS, Int8Grid, Int8Rows, PackedWeights, QuantisedRows, byte_matvec,
    int8_matmul_nn, int8_matmul_nt, int8_matvec, int8_panel_bytes,
};
pub use int16::{Int16Panels, int16_tn_tile};
pub use isa::{Extras, Isa, Tier};
pub use loss::{
    CrossEntropyScratch, IGNORED, VOCAB_TILE, cross_entropy_backward_tile, cross_entropy_forward,
    vocab_tiles,
};
pub use multiply_rate::{MultiplyRates, multiply_rates};
pub use norm::{NormKind, norm, norm_backward};
pub use rope::rotate;
pub use rows::{DenseRows, MatrixRows, fill_rows};
pub use sampling::{NoToken, TokenChoice, TokenChooser};
pub use signal::Signal;
pub use swiglu::{swiglu, swiglu_backward};
pub use vote::{
    CastStats, CountStats, FlipTable, GradientSizes, RowStats, VoteRng, cast_classic,
    cast_votes_i8, cast_votes_i16, count_classic_row, count_row, gradient_row_stats, philox4x32,
    uniform16,
};
