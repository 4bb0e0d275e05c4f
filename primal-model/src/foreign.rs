//! Models of other tools: the files they come in, and what is in them.
//!
//! Nothing that such a file says is trusted: every length is held against the file before memory
//! is taken, and what is wrong is named with its place.

mod bytes;
mod diagnosis;
pub(crate) mod families;
#[cfg(test)]
mod fuzz;
pub mod gguf;
mod keys;
mod model;
pub mod names;
pub mod safetensors;
pub mod vocabulary;

pub use model::ForeignModel;
