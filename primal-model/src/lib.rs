//! Placeholder until this crate lands.

pub mod config;
pub mod corpus;
pub mod data;
mod error;
pub mod tokenizer;

pub use error::ModelError;
