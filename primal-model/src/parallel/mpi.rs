//! Ranks as processes under `mpirun`, on one machine or many; feature `mpi`.
//!
//! Machines must agree on the byte order. A process that dies is noticed by `mpirun`, which ends
//! the others and names it; one that hangs is named by those that wait for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use super::Exchange;
use crate::error::ModelError;

/// Tag of the messages by which ranks say that they are here.
const HERE: i32 = 13;

/// Pause between two looks for them.
const PAUSE: Duration = Duration::from_micros(100);

/// This process among those of `mpirun`.
pub struct MpiExchange {
    /// Taken when all ranks end together. A rank that fails leaves MPI running on purpose: its exit
    /// code makes `mpirun` end the others, which wait for it.
    universe: Option<Universe>,
    timeout: Duration,
    /// Meetings that each rank came to.
    came: Vec<u64>,
    meetings: u64,
    /// When a collective operation began that is still going on.
    busy_since: Arc<Mutex<Option<Instant>>>,
}

impl MpiExchange {
    /// Joins the other processes of `mpirun`; alone without it.
    ///
    /// # Errors
    /// [`ModelError::Mpi`] when the library cannot be used.
    pub fn start() -> Result<Self, ModelError> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| ModelError::Mpi("it was started already".to_string()))?;
        if threading < Threading::Serialized {
            return Err(ModelError::Mpi(
                "this MPI library cannot be called from threads".to_string(),
            ));
        }
        let ranks = universe.world().size() as usize;
        Ok(MpiExchange {
            universe: Some(universe),
            timeout: Duration::from_secs(300),
            came: vec![0; ranks],
            meetings: 0,
            busy_since: Arc::default(),
        })
    }

    /// Sets how long the others are waited for, and begins to watch over this rank's exchanges.
    pub fn watch(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        let busy_since = Arc::clone(&self.busy_since);
        let rank = self.rank();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(500));
                let since = *busy_since.lock().unwrap_or_else(PoisonError::into_inner);
                if since.is_some_and(|since| since.elapsed() > timeout) {
                    // The calling thread is inside the library and cannot return an error.
                    tracing::error!(
                        "rank {rank} waited {} s in an exchange: another rank stopped in the middle",
                        timeout.as_secs()
                    );
                    SimpleCommunicator::world().abort(1);
                }
            }
        });
        self
    }

    fn busy(&self, since: Option<Instant>) {
        *self
            .busy_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Drop for MpiExchange {
    fn drop(&mut self) {
        // Finalising waits for all ranks, and those of a failed run never come.
        std::mem::forget(self.universe.take());
    }
}

impl Exchange for MpiExchange {
    fn rank(&self) -> usize {
        SimpleCommunicator::world().rank() as usize
    }

    fn ranks(&self) -> usize {
        self.came.len()
    }

    fn meet(&mut self) -> Result<(), ModelError> {
        let world = SimpleCommunicator::world();
        let me = self.rank();
        self.meetings += 1;
        for rank in (0..self.ranks()).filter(|rank| *rank != me) {
            // So small that it needs no receiver to be sent.
            world
                .process_at_rank(rank as i32)
                .send_with_tag(&self.meetings, HERE);
        }
        self.came[me] = self.meetings;
        let started = Instant::now();
        loop {
            while let Some(status) = world.any_process().immediate_probe_with_tag(HERE) {
                let source = status.source_rank();
                let (_, _) = world.process_at_rank(source).receive_with_tag::<u64>(HERE);
                self.came[source as usize] += 1;
            }
            let late = |rank: &usize| self.came[*rank] < self.meetings;
            let missing: Vec<usize> = (0..self.ranks()).filter(late).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if started.elapsed() > self.timeout {
                return Err(ModelError::RanksLost {
                    ranks: missing,
                    seconds: started.elapsed().as_secs(),
                });
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), ModelError> {
        self.busy(Some(Instant::now()));
        SimpleCommunicator::world().all_gather_into(own, all);
        self.busy(None);
        Ok(())
    }

    fn scatter(&mut self, own: &[u8], received: &mut [u8]) -> Result<(), ModelError> {
        self.busy(Some(Instant::now()));
        SimpleCommunicator::world().all_to_all_into(own, received);
        self.busy(None);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ModelError> {
        self.meet()?;
        drop(self.universe.take());
        Ok(())
    }
}
