//! Asking for memory ahead of its use.

/// Elements of a cache line.
const LINE: usize = 16;

/// Asks for the lines of `row`, which is written a few hundred cycles from now: rows of a result
/// lie pages apart, so that no hardware foresees them.
#[inline(always)]
pub(crate) fn ask_for(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        #[allow(unused_unsafe, reason = "a safe function in newer compilers only")]
        // SAFETY: a prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
    }
}
