//! The kernels of GPUs through the public interface, in one program. Those of the processor have
//! their tests beside them.
//!
//! `allocations` is a program of its own: it counts what its whole process allocates.
#![cfg(feature = "cuda")]

mod common;
#[cfg(feature = "cublas")]
mod cuda_cublas;
mod cuda_layers;
mod cuda_memory;
#[cfg(feature = "nccl")]
mod cuda_nccl;
mod cuda_rules;
mod cuda_votes;
