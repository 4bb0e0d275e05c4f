//! Tests through the public interface, in one program.
//!
//! `allocations` is a program of its own: it counts what its whole process allocates.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
mod cuda_generation;
#[cfg(feature = "nccl")]
mod cuda_gpus;
#[cfg(feature = "cuda")]
mod cuda_rules;
#[cfg(feature = "cuda")]
mod cuda_training;
mod families;
mod foreign;
mod ranks;
mod training;
