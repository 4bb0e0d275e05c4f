//! Tests of the program as its users run it, in one program of their own: every test starts
//! `primal` in processes and folders of its own, so they share nothing.

mod bad_input;
mod common;
#[cfg(feature = "cuda")]
mod cuda;
mod determinism;
mod faults;
mod foreign;
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod plain;
mod verbs;
mod vocode;
mod vocoder_train;
mod voice;
