//! Placeholder until this crate lands.

pub mod config;
mod error;

pub use error::ModelError;
