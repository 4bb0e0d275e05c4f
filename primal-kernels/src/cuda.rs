//! NVIDIA GPUs: the same kernels as on the CPU, for cards from Pascal (sm_61) on.
//!
//! Nothing of CUDA is needed to build. At run time [`Device::open`] finds the driver, compiles the
//! sources in `primal-kernels/cuda/` with NVRTC for the device's own architecture (kept in a cache
//! on disk), and without NVRTC takes the PTX that is part of the program. What is missing is an
//! error with the command that gets it, never a panic; [`report`] says what was found.
//!
//! Kernels add in the order of the CPU's sixteen lanes, do not contract, and use the same
//! polynomials, so every result but that of a product of matrices has the CPU's bits; products
//! are chains of fused multiply-adds in ascending order.

mod attention;
mod buffer;
mod cache;
mod cublas;
mod device;
mod elementwise;
mod error;
#[cfg(feature = "nccl")]
mod exchange;
mod gemm;
mod image;
mod int8;
mod library;
mod loss;
#[cfg(feature = "nccl")]
mod nccl;
mod norm;
mod nvrtc;
mod pool;
mod probe;
mod rules;
mod sampling;
mod source;
mod vote;
mod weights;

pub use attention::{KvCache, attention, attention_backward};
pub use buffer::{Buffer, PinnedBuffer, View};
pub use device::{Device, FloatProducts, OpenOptions};
pub use elementwise::{
    adamw, add, add_bias, gelu, gelu_backward, rotate, square_pieces, sum_squares, swiglu,
    swiglu_backward,
};
pub use error::CudaError;
#[cfg(feature = "nccl")]
pub use exchange::{Rounds, Sum, VOTES_TOO_LARGE, pair_votes, unpair_votes};
pub use gemm::{matmul_nn, matmul_nt, matmul_tn};
pub use image::{Image, ImageChoice};
pub use int8::{Quantised, QuantisedRows, int8_matmul_nn, int8_matmul_nt, int8_matvec};
pub use loss::{
    CrossEntropy, embedding_gradient, loss_begin, loss_end, loss_gradient, loss_tile,
    position_gradient, sum_losses,
};
#[cfg(feature = "nccl")]
pub use nccl::{Clique, Nccl, Queue};
pub use norm::{NormSizes, fold_column_sums, norm_backward, norm_forward};
pub use nvrtc::{Compiled, Nvrtc};
pub use probe::{CudaReport, device_count, report};
pub use rules::{
    ClassicVotes, Counter, Snap, cast_classic, count_classic, keep_gradient, scale_gradient,
    snap_rows,
};
pub use sampling::Sampler;
pub use source::{OPTIONS, Unit};
pub use vote::{
    BallotSizes, Ballots, CastStep, VoteSlot, VoteSums, begin_votes, cast_votes, count_votes,
    end_votes, update_statistics,
};
pub use weights::{DeviceWeights, decode_rows, embed, matvec};
