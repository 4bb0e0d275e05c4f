//! Where the messages of the other ranks wait to be received.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::ModelError;

/// The mailbox of one rank.
pub(super) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// By sender, oldest first.
    waiting: Vec<VecDeque<Vec<u8>>>,
    /// Senders that ended.
    gone: Vec<bool>,
    /// When each sender last said that it waits, too.
    waits: Vec<Option<Instant>>,
    /// Since when a message is waited for.
    awaited: Option<Instant>,
}

impl Mailbox {
    pub(super) fn new(ranks: usize) -> Self {
        Mailbox {
            state: Mutex::new(State {
                waiting: (0..ranks).map(|_| VecDeque::new()).collect(),
                gone: vec![false; ranks],
                waits: vec![None; ranks],
                awaited: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Ranks that may send.
    #[cfg(feature = "mpi")]
    pub(super) fn ranks(&self) -> usize {
        self.lock().gone.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked left whole values behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, from: usize, message: Vec<u8>) {
        self.lock().waiting[from].push_back(message);
        self.changed.notify_all();
    }

    /// Nothing comes from `rank` any more.
    pub(super) fn end(&self, rank: usize) {
        self.lock().gone[rank] = true;
        self.changed.notify_all();
    }

    /// Since when a message is waited for.
    #[cfg(feature = "mpi")]
    pub(super) fn awaited_since(&self) -> Option<Instant> {
        self.lock().awaited
    }

    /// `rank` waits for someone else: whoever waits for it has to be patient.
    #[cfg(feature = "mpi")]
    pub(super) fn note_wait(&self, rank: usize) {
        self.lock().waits[rank] = Some(Instant::now());
    }

    /// The message of `from` that is there already.
    #[cfg(feature = "mpi")]
    pub(super) fn find(&self, from: usize) -> Option<Vec<u8>> {
        self.lock().waiting[from].pop_front()
    }

    /// The next message of `from`. The timeout begins anew when that one says that it waits itself.
    pub(super) fn take(&self, from: usize, timeout: Duration) -> Result<Vec<u8>, ModelError> {
        let started = Instant::now();
        let mut state = self.lock();
        loop {
            if let Some(message) = state.waiting[from].pop_front() {
                state.awaited = None;
                return Ok(message);
            }
            let since = state.waits[from].map_or(started, |waits| waits.max(started));
            let left = timeout.saturating_sub(since.elapsed());
            if state.gone[from] || left.is_zero() {
                return Err(ModelError::RankLost {
                    rank: from,
                    seconds: since.elapsed().as_secs(),
                });
            }
            state.awaited = Some(started);
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
