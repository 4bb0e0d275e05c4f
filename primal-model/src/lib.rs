//! Transformers on the grid: from text to a trained model, and from a model to text.
//!
//! [`train::Trainer`] is the whole path: it reads data ([`data`], [`corpus`], [`tokenizer`]),
//! builds a [`Model`] whose matrices live on the grid, runs the training loop, measures held-out
//! loss ([`eval`]) and writes [`checkpoint`]s that hold the complete state. an
//! [`InferenceModel`] reads and writes text through [`generate`] and [`sampling`]; [`ledger`] knows every buffer beforehand.
//!
//! ```
//! use std::ops::ControlFlow;
//! use primal_model::{config::Config, train::Trainer};
//!
//! let folder = tempfile::tempdir()?;
//! let text = folder.path().join("text.txt");
//! std::fs::write(&text, "the quick brown fox jumps over the lazy dog. ".repeat(50))?;
//!
//! let mut config = Config::preset("shakespeare-char")?;
//! config.data.train = vec![text];
//! config.train.run = folder.path().join("run");
//! for change in ["model.width=32", "model.n_layer=1", "model.context=16", "train.steps=20", "optim.warmup_steps=5"] {
//!     config.set(change)?;
//! }
//! let summary = Trainer::new(config)?.run(&mut |_event| ControlFlow::Continue(()))?;
//! assert!(summary.done.val_loss < 3.4);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activations;
mod block;
mod build;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod corpus;
#[cfg(feature = "cuda")]
mod cuda;
pub mod data;
mod device_ledger;
mod engine;
mod error;
pub mod eval;
pub mod export;
mod fault_point;
pub mod foreign;
pub mod generate;
mod grid_use;
pub mod import;
mod inference;
mod instructions;
mod layers;
pub mod ledger;
pub mod metrics;
mod model;
#[cfg(test)]
mod model_tests;
pub mod parallel;
mod parameters;
pub mod process;
pub mod quantise;
mod resident;
mod rope;
pub mod sampling;
mod scratch;
mod shape;
mod skips;
mod tensorboard;
pub mod tokenizer;
pub mod train;
pub mod voice;
#[cfg(test)]
mod vote_tests;
mod work;

#[cfg(feature = "cuda")]
pub use cuda::CudaInferenceModel;
pub use engine::GpuUse;
pub use error::ModelError;
pub use inference::{InferenceModel, Matrix};
pub use model::{Model, Pass};
pub use resident::ResidentModel;
pub use shape::ModelShape;
pub use work::Work;
