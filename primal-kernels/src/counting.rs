//! A counting allocator, by which tests show that a steady training step allocates nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::inside_gemm;

/// The system's allocator, counting. Install it in a test with `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator {
    ours: AtomicU64,
    of_gemm: AtomicU64,
}

impl CountingAllocator {
    /// Nothing counted yet.
    #[expect(
        clippy::new_without_default,
        reason = "a static needs a const constructor"
    )]
    pub const fn new() -> Self {
        CountingAllocator {
            ours: AtomicU64::new(0),
            of_gemm: AtomicU64::new(0),
        }
    }

    /// Allocations so far: ours, and those that the `gemm` crate makes for its packing buffers.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.ours.load(Ordering::Relaxed),
            self.of_gemm.load(Ordering::Relaxed),
        )
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let counter = if inside_gemm() {
            &self.of_gemm
        } else {
            &self.ours
        };
        counter.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
