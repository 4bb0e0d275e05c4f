//! Learning by votes: the optimizer of PRIMAL.
//!
//! A weight lives on a grid of at most 25 values and nowhere else. The backward pass hands the
//! gradient of a few rows at a time to [`Weight::accumulate`], which turns it into small integer
//! **votes** and drops it. [`Weight::step`] **counts**: where a **ballot** reaches the gap to the
//! neighbouring grid value, the weight **flips** one rank and spends those votes. State: half a
//! byte of code and one byte of ballot a weight.
//!
//! [`Rule`] also offers the baselines that every claim is measured against. Norms, biases and row
//! scales are float32 under AdamW.
//!
//! ```
//! use primal_kernels::Isa;
//! use primal_lut::Grid;
//! use primal_optim::{OptimConfig, Role, Rule, StepContext, Weight, WeightSpec};
//!
//! // One row of eight weights, pulled upwards by a constant gradient of -1.
//! let spec = WeightSpec {
//!     rule: Rule::Consensus,
//!     role: Role::Edge,
//!     grid: Some(&Grid::prime()),
//!     std: 0.4,
//!     scale_per_std: 2.5,
//!     group: 0,
//!     many_micro_batches: false,
//! };
//! let mut weight = Weight::new("w", 0, (1, 8), vec![0.0; 8], &spec)?;
//! let config = OptimConfig { rule: Rule::Consensus, scale_lr_ratio: 0.0, ..Default::default() };
//! let mut flips = 0;
//! for step in 0..20 {
//!     let ctx = StepContext { isa: Isa::best(), config: &config, seed: 1, step, rate: 1.0, micro_batches: 1 };
//!     weight.begin_step(&ctx)?;
//!     assert!(weight.accumulate(&ctx, 0, 0..1, &|_rows, grad| grad.fill(-1.0))?);
//!     weight.end_micro_batch(&ctx);
//!     flips += weight.step(&ctx, 1.0).flips;
//! }
//! let matrix = weight.quant().unwrap();
//! assert!(flips >= 8 * 3 && (0..8).all(|col| matrix.code(0, col) > Grid::prime().zero_code()));
//! # Ok::<(), primal_optim::OptimError>(())
//! ```

mod bytes;
mod config;
mod error;
mod float;
mod orthogonal;
mod parts;
mod rows;
mod rule;
mod rules;
mod state;
mod tiles;
mod weight;

pub use bytes::WeightBytes;
pub use config::OptimConfig;
pub use error::OptimError;
pub use float::{FloatVector, StepContext};
pub use parts::{
    CodeRule, ConsensusParts, ConsensusStep, FloatParts, SpectralStep, WeightParts, adam_step,
};
pub use rows::tile_bytes_per_thread;
pub use rule::{Counted, MatrixPlan, Role, Rule};
pub use rules::classic::FLIP_STREAM;
pub use rules::consensus::{CAST_STREAM, LEAK_STREAM};
pub use rules::spectral::STEP_STREAM;
pub use state::{Footprint, StatePart, StateVisitor, StepSums};
pub use tiles::TILE_ROWS;
pub use weight::{FlipStats, Weight, WeightSpec};
