//! Tests through the public interface, in one program.

mod bugs;
mod matrix;
