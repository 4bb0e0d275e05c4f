//! Tests through the public interface, in one program: a link step costs more than the tests.

mod files;
mod matrices;
