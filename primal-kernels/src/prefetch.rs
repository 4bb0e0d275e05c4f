//! Asking for memory ahead of its use.

/// Elements of a cache line.
const LINE: usize = 16;

/// Asks for the lines of `row`, which is written a few hundred cycles from now: rows of a result
/// lie pages apart, so that no hardware foresees them.
#[inline(always)]
pub(crate) fn ask_for(row: &[f32]) {
    for line in row.chunks(LINE) {
        #[cfg(target_arch = "x86_64")]
        prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// Asks for the cache line at `address`, which may be any, mapped or not.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch<const HINT: i32>(address: *const i8) {
    #[allow(unused_unsafe, reason = "a safe function in newer compilers only")]
    // SAFETY: a prefetch may name any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<HINT>(address);
    }
}
