//! What the benchmarks measure: one library for Criterion, tests and `cargo xtask bench`.
//!
//! Every [`Workload`] is one kernel on the sizes of the preset `ghost-0.1b`, or close to it, with
//! made-up numbers; [`training_steps`] is the training loop itself.
//!
//! ```
//! use primal_kernels::Isa;
//!
//! let mut workloads = primal_benches::workloads(Isa::best(), primal_benches::Size::Tiny)?;
//! let matvec = workloads.iter_mut().find(|it| it.name.starts_with("matvec")).unwrap();
//! matvec.run();
//! assert!(matvec.bytes > 0 && matvec.flops > 0);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod integers;
mod training;
mod workload;

pub use training::training_steps;
pub use workload::{Size, Units, Workload, workloads};
