//! Fault injection for tests: places where a run stops dead and waits to be killed.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// `PRIMAL_FAULT_POINT=n`: the n-th place that this process passes never lets it go on.
static STOP_AT: LazyLock<Option<u64>> =
    LazyLock::new(|| std::env::var("PRIMAL_FAULT_POINT").ok()?.parse().ok());

static PASSED: AtomicU64 = AtomicU64::new(0);

/// Marks a place between two operations of a save.
pub(crate) fn pass() {
    let Some(stop_at) = *STOP_AT else { return };
    if PASSED.fetch_add(1, Ordering::Relaxed) + 1 == stop_at {
        tracing::error!("fault point {stop_at}: waiting to be killed");
        loop {
            std::thread::park();
        }
    }
}
