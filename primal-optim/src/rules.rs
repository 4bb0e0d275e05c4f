//! The learning rules, one file each, and what those on a grid share.

pub(crate) mod adamw;
pub(crate) mod classic;
pub(crate) mod codes;
pub(crate) mod consensus;
pub(crate) mod frozen;
pub(crate) mod muon;
pub(crate) mod shadow;
pub(crate) mod spectral;
pub(crate) mod still;
