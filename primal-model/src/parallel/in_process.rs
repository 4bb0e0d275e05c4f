//! Ranks as threads of one process, so that the arithmetic of many can be tested anywhere.

use std::sync::Arc;
use std::time::Duration;

use super::Exchange;
use super::mailbox::Mailbox;
use crate::error::ModelError;

/// One of the ranks; each belongs to a thread of its own.
pub struct InProcess {
    rank: usize,
    timeout: Duration,
    mailboxes: Arc<Vec<Mailbox>>,
}

impl InProcess {
    /// `ranks` ranks that wait at most `timeout` for each other.
    pub fn ranks(ranks: usize, timeout: Duration) -> Vec<InProcess> {
        let mailboxes = (0..ranks).map(|_| Mailbox::new(ranks)).collect();
        let mailboxes = Arc::new(mailboxes);
        let rank = |rank| InProcess {
            rank,
            timeout,
            mailboxes: Arc::clone(&mailboxes),
        };
        (0..ranks).map(rank).collect()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        for mailbox in self.mailboxes.iter() {
            mailbox.end(self.rank);
        }
    }
}

impl Exchange for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.mailboxes.len()
    }

    fn send(&mut self, to: usize, message: Vec<u8>) {
        self.mailboxes[to].put(self.rank, message);
    }

    fn receive(&mut self, from: usize) -> Result<Vec<u8>, ModelError> {
        self.mailboxes[self.rank].take(from, self.timeout)
    }

    fn finish(&mut self) {}
}
