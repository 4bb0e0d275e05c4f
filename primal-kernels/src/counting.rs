//! A counting allocator, by which tests show that a steady training step allocates nothing, and
//! that a damaged file makes no reader take memory that the file does not explain.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::inside_gemm;

/// The system's allocator, counting. Install it in a test with `#[global_allocator]`.
#[derive(Debug)]
pub struct CountingAllocator {
    ours: AtomicU64,
    of_gemm: AtomicU64,
    held: AtomicU64,
    most_held: AtomicU64,
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
            held: AtomicU64::new(0),
            most_held: AtomicU64::new(0),
        }
    }

    /// Allocations so far: ours, and those that the `gemm` crate makes for its packing buffers.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.ours.load(Ordering::Relaxed),
            self.of_gemm.load(Ordering::Relaxed),
        )
    }

    /// Forgets what was held before; the bytes that are held now.
    pub fn restart_most_held(&self) -> u64 {
        let held = self.held.load(Ordering::Relaxed);
        self.most_held.store(held, Ordering::Relaxed);
        held
    }

    /// Most bytes that were held at once.
    pub fn most_held(&self) -> u64 {
        self.most_held.load(Ordering::Relaxed)
    }

    fn count(&self, layout: Layout) {
        let counter = if inside_gemm() {
            &self.of_gemm
        } else {
            &self.ours
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let bytes = layout.size() as u64;
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most_held.fetch_max(held, Ordering::Relaxed);
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.held.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
