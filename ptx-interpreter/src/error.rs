//! What can be wrong with PTX text and with a running kernel.

use std::fmt;

/// PTX that the interpreter cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A function without a body, as NVRTC 11.8 leaves behind for `__dp4a`: no driver loads it.
    #[error("PTX line {line}: unresolved external function: {text}")]
    UnresolvedExtern {
        /// 1-based line of the PTX.
        line: u32,
        /// The declaration.
        text: String,
    },
    /// An instruction or directive that the interpreter does not know.
    #[error("PTX line {line}: {what}: {text}")]
    Unsupported {
        /// 1-based line of the PTX.
        line: u32,
        /// What is wrong with it.
        what: String,
        /// The text of the line.
        text: String,
    },
}

/// A fault of a kernel, with the place where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFault {
    /// The kernel's name.
    pub kernel: String,
    /// 1-based line of the PTX, 0 before the first instruction.
    pub line: u32,
    /// Block index (x, y, z).
    pub block: [u32; 3],
    /// Thread index (x, y, z).
    pub thread: [u32; 3],
    /// What happened.
    pub fault: Fault,
}

impl fmt::Display for KernelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: PTX line {}: block {:?} thread {:?}: {}",
            self.kernel, self.line, self.block, self.thread, self.fault
        )
    }
}

impl std::error::Error for KernelFault {}

/// What a kernel did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An access that leaves its buffer.
    #[error("{bytes}-byte access at byte {offset} of {space} memory of {size} bytes")]
    OutOfBounds {
        /// Bytes of the access.
        bytes: usize,
        /// Where it starts, relative to the buffer.
        offset: u64,
        /// Bytes of the buffer.
        size: usize,
        /// "global", "shared", "local" or "param".
        space: &'static str,
    },
    /// An address that belongs to nothing, or to a freed buffer.
    #[error("address {address:#x} is in no buffer")]
    WildAddress {
        /// The address.
        address: u64,
    },
    /// An address that is not a multiple of the size of the access.
    #[error("misaligned {bytes}-byte access at {address:#x}")]
    Misaligned {
        /// Bytes of the access.
        bytes: usize,
        /// The address.
        address: u64,
    },
    /// A read of bytes that nobody wrote.
    #[error("read of uninitialised {space} memory at byte {offset}")]
    Uninitialised {
        /// Where, relative to the buffer.
        offset: u64,
        /// "global", "shared" or "local".
        space: &'static str,
    },
    /// Two threads touch the same bytes, one of them writing, and nothing orders them.
    #[error(
        "race in {space} memory at byte {offset}: {access} after {other} by block {other_block} \
         thread {other_thread} with no barrier between"
    )]
    Race {
        /// "global" or "shared".
        space: &'static str,
        /// Where, relative to the buffer.
        offset: u64,
        /// "read" or "write": this thread's access.
        access: &'static str,
        /// "read" or "write": the other thread's access.
        other: &'static str,
        /// Linear index of the other thread's block.
        other_block: u32,
        /// Linear index of the other thread in its block.
        other_thread: u32,
    },
    /// A block barrier that not every thread of the block reaches at the same instruction.
    #[error("divergent barrier: {0}")]
    DivergentBarrier(String),
    /// A shuffle or vote whose mask names lanes that do not take part.
    #[error("warp collective never completes: {0}")]
    IncompleteCollective(String),
    /// A shuffle from a lane outside the mask.
    #[error("shuffle reads lane {lane}, which the mask {mask:#x} leaves out")]
    ShuffleOutsideMask {
        /// The lane read from.
        lane: u32,
        /// The mask.
        mask: u32,
    },
    /// Integer division by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// Arguments that do not match the kernel's parameters, or impossible launch sizes.
    #[error("wrong launch: {0}")]
    WrongLaunch(String),
    /// More instructions than a kernel may take.
    #[error("more than {0} instructions: an endless loop")]
    Endless(u64),
}
