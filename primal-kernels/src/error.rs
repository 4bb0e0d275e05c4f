//! What can go wrong before a kernel runs; kernels themselves only assert lengths.

use crate::isa::{Isa, TIER_VARIABLE};

/// Errors of choosing an instruction set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The name is none of the tiers that PRIMAL knows.
    #[error("unknown instruction set '{name}'; hint: {TIER_VARIABLE}=scalar|avx2|avx512|neon")]
    UnknownTier {
        /// The name as given.
        name: String,
    },
    /// The tier exists, this CPU or this build does not have it.
    #[error(
        "instruction set '{name}' is not available on this CPU; hint: {TIER_VARIABLE}={}",
        available_names()
    )]
    UnavailableTier {
        /// The tier's name.
        name: &'static str,
    },
}

fn available_names() -> String {
    let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    names.join("|")
}
