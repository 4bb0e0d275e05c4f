//! Ranks as processes under `mpirun`, on one machine or many; feature `mpi`.
//!
//! One thread of its own makes all calls of the library, so that messages travel while the others
//! compute. Machines must agree on the byte order. A process that dies is noticed by `mpirun`,
//! which ends the others and names it; one that hangs is named by those that wait for it. Whoever
//! waits tells the others so: then they do not take it for the one that hangs.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::MatchedReceiveVec;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;

use super::Exchange;
use super::mailbox::Mailbox;
use crate::error::ModelError;

/// Pause between two looks for messages: while this rank computes, whose core a look takes away
/// for about 13 µs, and while it waits for one.
const PAUSE: Duration = Duration::from_millis(4);
const SHORT_PAUSE: Duration = Duration::from_micros(20);

/// Tags: a message of the exchange, and a word that its sender waits for another rank.
const MESSAGE: i32 = 1;
const WAITING: i32 = 2;

/// This process among those of `mpirun`.
pub struct MpiExchange {
    rank: usize,
    ranks: usize,
    timeout: Duration,
    mailbox: Arc<Mailbox>,
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread is asked to do.
enum Order {
    Send(usize, Vec<u8>),
    /// Look for messages more often: one is waited for.
    Hurry,
    /// Tell the others of a wait as often as this.
    TellEvery(Duration),
    /// End together with all other ranks.
    Finish,
}

impl MpiExchange {
    /// Joins the other processes of `mpirun`; alone without it.
    ///
    /// # Errors
    /// [`ModelError::Mpi`] when the library cannot be used.
    pub fn start() -> Result<Self, ModelError> {
        let (orders, to_do) = channel();
        let (tell, told) = channel();
        let thread =
            std::thread::spawn(
                move || match mpi::initialize_with_threading(Threading::Funneled) {
                    Some((universe, threading)) if threading >= Threading::Funneled => {
                        let world = universe.world();
                        let mailbox = Arc::new(Mailbox::new(world.size() as usize));
                        if tell.send(Ok((world.rank(), Arc::clone(&mailbox)))).is_ok() {
                            serve(universe, &to_do, &mailbox);
                        }
                    }
                    Some(_) => drop(tell.send(Err("this library cannot be called from a thread"))),
                    None => drop(tell.send(Err("it was started already"))),
                },
            );
        let started = told.recv().unwrap_or(Err("its thread ended"));
        let (rank, mailbox) = started.map_err(|why| ModelError::Mpi(why.to_string()))?;
        Ok(MpiExchange {
            rank: rank as usize,
            ranks: mailbox.ranks(),
            timeout: Duration::from_secs(300),
            mailbox,
            orders,
            thread: Some(thread),
        })
    }

    /// Sets how long the others are waited for.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self.order(Order::TellEvery(timeout / 4));
        self
    }

    fn order(&self, order: Order) {
        // Without its thread, a process waits for an answer and names who does not give it.
        let _ = self.orders.send(order);
    }
}

/// Sends and receives until all ranks end.
fn serve(universe: Universe, to_do: &Receiver<Order>, mailbox: &Mailbox) {
    let mut courier = Courier {
        world: SimpleCommunicator::world(),
        to_do,
        mailbox,
        tell_every: Duration::MAX,
        told: Instant::now(),
        end: None,
    };
    while courier.end.is_none() {
        courier.turn();
    }
    if courier.end == Some(End::Alone) {
        // Finalising waits for all ranks, and those of a failed run never come: its exit code
        // makes `mpirun` end the others, which wait for it.
        std::mem::forget(universe);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With all ranks.
    Together,
    /// The run failed.
    Alone,
}

struct Courier<'a> {
    world: SimpleCommunicator,
    to_do: &'a Receiver<Order>,
    mailbox: &'a Mailbox,
    tell_every: Duration,
    /// When the others were last told of a wait.
    told: Instant,
    end: Option<End>,
}

impl Courier<'_> {
    /// Follows an order if one comes within a pause, and looks for messages.
    fn turn(&mut self) {
        let pause = match self.mailbox.awaited_since() {
            Some(_) => SHORT_PAUSE,
            None => PAUSE,
        };
        if self.end.is_some() {
            std::thread::sleep(pause);
            self.attend();
            return;
        }
        match self.to_do.recv_timeout(pause) {
            Ok(Order::Send(to, message)) => self.send(to, &message),
            Ok(Order::TellEvery(time)) => self.tell_every = time,
            Ok(Order::Hurry) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Order::Finish) => self.end = Some(End::Together),
            Err(RecvTimeoutError::Disconnected) => self.end = Some(End::Alone),
        }
        self.attend();
    }

    /// Sends, and while the message is on its way follows other orders: a rank that does not take
    /// its messages must not keep those of the others waiting.
    fn send(&mut self, to: usize, message: &[u8]) {
        mpi::request::scope(|scope| {
            let to = self.world.process_at_rank(to as i32);
            let mut sending = to.immediate_send_with_tag(scope, message, MESSAGE);
            while let Err(unfinished) = sending.test() {
                sending = unfinished;
                self.turn();
            }
        });
    }

    /// Puts what has come into the mailbox, and tells the others of a long wait.
    fn attend(&mut self) {
        while let Some(found) = self.world.any_process().immediate_matched_probe() {
            let (message, status) = found.matched_receive_vec::<u8>();
            let from = status.source_rank() as usize;
            if status.tag() == WAITING {
                self.mailbox.note_wait(from);
            } else {
                self.mailbox.put(from, message);
            }
        }
        let waits = self.mailbox.awaited_since();
        if waits.is_some_and(|since| since.max(self.told).elapsed() > self.tell_every) {
            self.told = Instant::now();
            let me = self.world.rank();
            for rank in (0..self.world.size()).filter(|rank| *rank != me) {
                // So small that it needs no receiver to be sent.
                let word: [u8; 0] = [];
                self.world
                    .process_at_rank(rank)
                    .send_with_tag(&word[..], WAITING);
            }
        }
    }
}

impl Exchange for MpiExchange {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn send(&mut self, to: usize, message: Vec<u8>) {
        self.order(Order::Send(to, message));
    }

    fn receive(&mut self, from: usize) -> Result<Vec<u8>, ModelError> {
        if let Some(message) = self.mailbox.find(from) {
            return Ok(message);
        }
        self.order(Order::Hurry);
        self.mailbox.take(from, self.timeout)
    }

    fn finish(&mut self) {
        self.order(Order::Finish);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has nothing more to finish.
            let _ = thread.join();
        }
    }
}
