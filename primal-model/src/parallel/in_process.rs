//! Ranks as threads of one process, so that the arithmetic of many can be tested anywhere.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Exchange;
use crate::error::ModelError;

/// One of the ranks; each belongs to a thread of its own.
pub struct InProcess {
    rank: usize,
    /// Exchanges begun by this rank.
    round: u64,
    timeout: Duration,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Exchanges that each rank has begun.
    rounds: Vec<u64>,
    /// Ranks that ended.
    gone: Vec<bool>,
    /// What each rank gave, in even and in odd rounds: a rank can be one round ahead of those that
    /// still read.
    given: [Vec<Vec<u8>>; 2],
}

impl InProcess {
    /// `ranks` ranks that wait at most `timeout` for each other.
    pub fn ranks(ranks: usize, timeout: Duration) -> Vec<InProcess> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                rounds: vec![0; ranks],
                gone: vec![false; ranks],
                given: [vec![Vec::new(); ranks], vec![Vec::new(); ranks]],
            }),
            changed: Condvar::new(),
        });
        let rank = |rank| InProcess {
            rank,
            round: 0,
            timeout,
            shared: Arc::clone(&shared),
        };
        (0..ranks).map(rank).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A rank that panicked left whole values behind.
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives `own` and waits for everyone's; `take(rank, given)` sees them in order.
    fn round(&mut self, own: &[u8], mut take: impl FnMut(usize, &[u8])) -> Result<(), ModelError> {
        self.round += 1;
        let round = self.round;
        let place = (round % 2) as usize;
        let started = Instant::now();
        let mut state = self.lock();
        let given = &mut state.given[place][self.rank];
        given.clear();
        given.extend_from_slice(own);
        state.rounds[self.rank] = round;
        self.shared.changed.notify_all();
        loop {
            let missing = |state: &State, also: &dyn Fn(usize) -> bool| -> Vec<usize> {
                let late = |rank: &usize| state.rounds[*rank] < round && also(*rank);
                (0..state.rounds.len()).filter(late).collect()
            };
            if missing(&state, &|_| true).is_empty() {
                break;
            }
            let mut lost = missing(&state, &|rank| state.gone[rank]);
            let left = self.timeout.saturating_sub(started.elapsed());
            if lost.is_empty() && left.is_zero() {
                lost = missing(&state, &|_| true);
            }
            if !lost.is_empty() {
                return Err(ModelError::RanksLost {
                    ranks: lost,
                    seconds: started.elapsed().as_secs(),
                });
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        for (rank, given) in state.given[place].iter().enumerate() {
            take(rank, given);
        }
        Ok(())
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.lock().gone[self.rank] = true;
        self.shared.changed.notify_all();
    }
}

impl Exchange for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.lock().rounds.len()
    }

    fn meet(&mut self) -> Result<(), ModelError> {
        self.round(&[], |_, _| {})
    }

    fn gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), ModelError> {
        let len = own.len();
        self.round(own, |rank, given| {
            all[rank * len..(rank + 1) * len].copy_from_slice(given);
        })
    }

    fn scatter(&mut self, own: &[u8], received: &mut [u8]) -> Result<(), ModelError> {
        let me = self.rank;
        let len = own.len() / self.ranks();
        self.round(own, |rank, given| {
            received[rank * len..(rank + 1) * len]
                .copy_from_slice(&given[me * len..(me + 1) * len]);
        })
    }

    fn finish(&mut self) -> Result<(), ModelError> {
        self.meet()
    }
}
