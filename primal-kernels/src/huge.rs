//! Large pages: a mapping for weights that are streamed, handed out in pieces, and an allocator
//! for everything else.
//!
//! A matrix that is read once a token misses the page tables at every 4 KiB; with 2 MiB pages two
//! threads read about a quarter faster. So does a product that writes 64 columns of every row of
//! its result at a time. Pages are an advice to the kernel: without it nothing but speed changes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use memmap2::{MmapMut, MmapRaw};

/// Every piece starts at a cache line.
const ALIGNMENT: usize = 64;

/// Size of a large page on x86-64 and most 64-bit ARM systems.
const LARGE_PAGE: usize = 2 << 20;

/// A mapping that is handed out from its start; pages that nobody writes take no memory.
#[derive(Debug)]
pub struct HugeArena {
    map: Arc<MmapRaw>,
    /// Where the next piece may start.
    next: usize,
}

impl HugeArena {
    /// Room for pieces of `bytes` in all; see [`HugeArena::piece_bytes`].
    ///
    /// # Errors
    /// When the system gives no memory.
    pub fn new(bytes: usize) -> std::io::Result<HugeArena> {
        let map = MmapMut::map_anon(bytes.max(1) + LARGE_PAGE)?;
        let next = map.as_ptr().align_offset(LARGE_PAGE).min(LARGE_PAGE);
        #[cfg(target_os = "linux")]
        {
            // The rest that fills no large page stays small, so that resident memory is what is
            // used. Refused advice costs speed only.
            let whole = bytes / LARGE_PAGE * LARGE_PAGE;
            if whole > 0 {
                let _ = map.advise_range(memmap2::Advice::HugePage, next, whole);
            }
        }
        Ok(HugeArena {
            map: Arc::new(MmapRaw::from(map)),
            next,
        })
    }

    /// What a piece of `len` bytes takes of an arena.
    pub fn piece_bytes(len: usize) -> usize {
        len.next_multiple_of(ALIGNMENT)
    }

    /// A zeroed piece of `len` bytes that starts at a cache line; `None` when the arena is used up.
    pub fn take(&mut self, len: usize) -> Option<HugeBytes> {
        let range = self.next..self.next.checked_add(len)?;
        let end = range.start.checked_add(HugeArena::piece_bytes(len))?;
        if end > self.map.len() {
            return None;
        }
        self.next = end;
        Some(HugeBytes {
            map: Arc::clone(&self.map),
            range,
        })
    }
}

/// A piece of a [`HugeArena`]: bytes that it alone owns.
#[derive(Debug)]
pub struct HugeBytes {
    map: Arc<MmapRaw>,
    // Invariant: within the mapping and disjoint from every other piece.
    range: Range<usize>,
}

impl Deref for HugeBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as the `Arc`, is initialised (anonymous memory is
        // zero), holds the range, and only this piece gives out references to it.
        unsafe {
            std::slice::from_raw_parts(self.map.as_ptr().add(self.range.start), self.range.len())
        }
    }
}

impl DerefMut for HugeBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the reference the only one.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.map.as_mut_ptr().add(self.range.start),
                self.range.len(),
            )
        }
    }
}

/// The system's allocator, which asks for large pages for what is large:
/// `#[global_allocator] static ALLOCATOR: LargePages = LargePages;`
#[derive(Debug, Clone, Copy)]
pub struct LargePages;

// SAFETY: every call is the system allocator's own; advice moves and changes no byte.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is what `System` asks for, here and below.
        advised(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        advised(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        advised(unsafe { System.realloc(start, layout, size) }, size)
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

/// `start`, after advice for the large pages that lie wholly within the `len` bytes behind it.
fn advised(start: *mut u8, len: usize) -> *mut u8 {
    #[cfg(target_os = "linux")]
    if len >= 2 * LARGE_PAGE && !start.is_null() {
        let skipped = start.align_offset(LARGE_PAGE);
        let whole = len.saturating_sub(skipped) / LARGE_PAGE * LARGE_PAGE;
        // SAFETY: the range lies within the allocation. Refused advice costs speed only.
        unsafe { libc::madvise(start.add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = len;
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_keep_their_bytes() {
        for size in [1, LARGE_PAGE, 2 * LARGE_PAGE, 5 * LARGE_PAGE + 1] {
            let layout = Layout::from_size_align(size, 64).unwrap();
            // SAFETY: sizes are not zero, and every pointer goes back with its layout.
            unsafe {
                let start = LargePages.alloc_zeroed(layout);
                assert!(
                    std::slice::from_raw_parts(start, size)
                        .iter()
                        .all(|&x| x == 0)
                );
                start.add(size - 1).write(7);
                let grown = LargePages.realloc(start, layout, 3 * size);
                assert_eq!(grown.add(size - 1).read(), 7);
                let layout = Layout::from_size_align(3 * size, 64).unwrap();
                LargePages.dealloc(grown, layout);
            }
        }
    }

    #[test]
    fn pieces_are_zero_aligned_and_apart() {
        let mut arena = HugeArena::new(3 * 64 + 100).unwrap();
        let mut first = arena.take(65).unwrap();
        let second = arena.take(64).unwrap();
        assert!(first.iter().chain(second.iter()).all(|&byte| byte == 0));
        assert_eq!(
            (first.as_ptr() as usize % 64, second.as_ptr() as usize % 64),
            (0, 0)
        );
        first.fill(7);
        assert!(second.iter().all(|&byte| byte == 0));
        drop(arena);
        assert_eq!((first.len(), first[64]), (65, 7));
    }

    #[test]
    fn a_used_up_arena_gives_nothing() {
        let mut arena = HugeArena::new(64).unwrap();
        assert!(arena.take(usize::MAX).is_none());
        // The alignment of the start leaves room for up to one large page more.
        assert!(arena.take(2 * LARGE_PAGE).is_none());
        assert_eq!(arena.take(64).unwrap().len(), 64);
        assert_eq!(arena.take(0).unwrap().len(), 0);
    }
}
