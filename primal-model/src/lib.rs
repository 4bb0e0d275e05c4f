//! Placeholder until this crate lands.

pub mod config;
mod error;
pub mod tokenizer;

pub use error::ModelError;
