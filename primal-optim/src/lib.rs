//! Learning by votes.
//!
//! placeholder tour, replaced when the crate is complete

mod error;
mod rule;

pub use error::OptimError;
pub use rule::{OptimConfig, Rule};
