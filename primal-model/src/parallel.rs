//! Spreading the micro-batches of a step over ranks: processes, machines, or threads in a test.
//!
//! Every rank holds the whole model and works on its own micro-batches. Then all of them exchange
//!
//! - the **votes**: integers, summed in any order, packed in as few bits as they need;
//! - the **float sums** of every micro-batch on its own (row scales, norms, statistics of the
//!   votes), which are folded in the order of the micro-batches, a piece of them by each rank;
//!
//! and take the same step, bit for bit that of a single process. No weight is ever sent. Ranks may
//! be of any number up to the micro-batches of a step, and another after a resume.

pub mod in_process;
#[cfg(feature = "mpi")]
pub mod mpi;
mod packing;

use std::ops::Range;
use std::time::Instant;

use primal_optim::StepSums;
use sha2::{Digest, Sha256};

use crate::checkpoint::hex;
use crate::error::ModelError;
use crate::model::Model;

/// What ranks need of each other. All ranks make the same calls in the same order.
pub trait Exchange: Send {
    /// This rank, below [`Exchange::ranks`].
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn ranks(&self) -> usize;

    /// Returns when every rank is here.
    ///
    /// # Errors
    /// [`ModelError::RanksLost`] names those that did not come in time.
    fn meet(&mut self) -> Result<(), ModelError>;

    /// Piece r of `all`, (ranks, own.len()), becomes what rank r gave.
    ///
    /// # Errors
    /// [`ModelError::RanksLost`] where that is noticed.
    fn gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), ModelError>;

    /// Piece r of `own`, (ranks, len), goes to rank r; piece r of `received` comes from it.
    ///
    /// # Errors
    /// [`ModelError::RanksLost`] where that is noticed.
    fn scatter(&mut self, own: &[u8], received: &mut [u8]) -> Result<(), ModelError>;

    /// Ends the work together with all other ranks.
    ///
    /// # Errors
    /// [`ModelError::RanksLost`] names those that did not come in time.
    fn finish(&mut self) -> Result<(), ModelError>;
}

/// What a rank has to say of its part of a step, and then what all of them said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Every loss and gradient is finite.
    pub(crate) finite: bool,
    /// Someone wants the run to stop.
    pub(crate) stop: bool,
}

/// The exchange of a run and its buffers, which only grow.
pub(crate) struct Ranks {
    exchange: Box<dyn Exchange>,
    /// Micro-batches of a step.
    micro_batches: usize,
    /// Float sums of one micro-batch: in single and in double precision.
    singles: usize,
    doubles: usize,
    /// Matrices that vote.
    voting: usize,
    /// Votes of the largest of them.
    most_votes: usize,
    /// What this rank says of a step: [finite, stop], the largest vote of each matrix, and for each
    /// of its micro-batches the loss and the other sums in double precision, two words each.
    own: Vec<u32>,
    /// The same of all ranks.
    all: Vec<u32>,
    /// (ranks, own micro-batches, piece) single-precision sums by the rank that folds them, then
    /// what the other ranks sent of this rank's piece.
    floats: [Vec<f32>; 2],
    /// (ranks, piece) folded sums.
    folded: Vec<f32>,
    buffers: VoteBuffers,
    /// Bytes that left this rank in the last step, and seconds of its exchange.
    pub(crate) sent_bytes: u64,
    pub(crate) seconds: f64,
}

impl Ranks {
    /// # Errors
    /// More ranks than micro-batches.
    pub(crate) fn new(
        exchange: Box<dyn Exchange>,
        model: &mut Model,
        micro_batches: usize,
    ) -> Result<Self, ModelError> {
        let ranks = exchange.ranks();
        if ranks > micro_batches {
            return Err(ModelError::TooManyRanks {
                ranks,
                micro_batches,
            });
        }
        let mut sizes = Sizes::default();
        model.step_sums(&mut sizes);
        Ok(Ranks {
            exchange,
            micro_batches,
            singles: sizes.singles,
            doubles: sizes.doubles,
            voting: sizes.voting,
            most_votes: sizes.most_votes,
            own: Vec::new(),
            all: Vec::new(),
            floats: [Vec::new(), Vec::new()],
            folded: Vec::new(),
            buffers: VoteBuffers::default(),
            sent_bytes: 0,
            seconds: 0.0,
        })
    }

    /// Whether this rank writes metrics and checkpoints.
    pub(crate) fn is_first(&self) -> bool {
        self.exchange.rank() == 0
    }

    pub(crate) fn count(&self) -> usize {
        self.exchange.ranks()
    }

    /// This rank's micro-batches of every step.
    pub(crate) fn own_micro_batches(&self) -> Range<usize> {
        self.part(self.exchange.rank())
    }

    fn part(&self, rank: usize) -> Range<usize> {
        let ranks = self.exchange.ranks();
        rank * self.micro_batches / ranks..(rank + 1) * self.micro_batches / ranks
    }

    fn head_words(&self) -> usize {
        2 + self.voting
    }

    /// Words of a micro-batch in `own`.
    fn piece_words(&self) -> usize {
        2 * (1 + self.doubles)
    }

    /// Single-precision sums that one rank folds.
    fn float_piece(&self) -> usize {
        self.singles.div_ceil(self.exchange.ranks())
    }

    /// Micro-batches of the rank with most of them.
    fn slots(&self) -> usize {
        self.micro_batches.div_ceil(self.exchange.ranks())
    }

    /// Bytes of the buffers, the votes' at a byte each.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        let ranks = 1 + self.exchange.ranks();
        let words = self.head_words() + self.slots() * self.piece_words();
        let floats = (2 * self.slots() + 1) * self.float_piece() * self.exchange.ranks();
        (ranks * (4 * words + self.most_votes) + 4 * floats) as u64
    }

    /// Begins a step.
    pub(crate) fn begin_step(&mut self) {
        let words = self.head_words() + self.slots() * self.piece_words();
        self.own.clear();
        self.own.resize(words, 0);
        let floats = self.exchange.ranks() * self.slots() * self.float_piece();
        self.floats[0].resize(floats, 0.0);
        self.floats[1].resize(floats, 0.0);
        self.folded
            .resize(self.exchange.ranks() * self.float_piece(), 0.0);
    }

    /// Takes the float sums of the micro-batch that the model has just finished, the `index`-th of
    /// this rank, and clears them.
    pub(crate) fn keep(&mut self, model: &mut Model, index: usize, loss: f64) {
        let start = self.head_words() + index * self.piece_words();
        let words = start..start + self.piece_words();
        let (slots, piece) = (self.slots(), self.float_piece());
        let mut take = Take {
            words: self.own[words].iter_mut(),
            floats: &mut self.floats[0],
            place: |at| (at / piece * slots + index) * piece + at % piece,
            at: 0,
        };
        take.f64(&mut loss.clone());
        model.step_sums(&mut take);
    }

    /// Exchanges everything: afterwards the model's sums, and `losses` of all micro-batches, are
    /// those of the whole step on every rank.
    pub(crate) fn combine(
        &mut self,
        model: &mut Model,
        losses: &mut [f64],
        verdict: Verdict,
    ) -> Result<Verdict, ModelError> {
        self.exchange.meet()?;
        let started = Instant::now();
        self.sent_bytes = 0;
        self.own[0] = u32::from(verdict.finite);
        self.own[1] = u32::from(verdict.stop);
        let mut largest = Largest {
            votes: &mut self.own[2..2 + self.voting],
            at: 0,
        };
        model.step_sums(&mut largest);

        let ranks = self.exchange.ranks();
        let words = self.own.len();
        self.all.resize(ranks * words, 0);
        let own = bytemuck::cast_slice(&self.own);
        self.exchange
            .gather(own, bytemuck::cast_slice_mut(&mut self.all))?;
        self.sent_bytes += (own.len() * (ranks - 1)) as u64;

        let said: Vec<&[u32]> = self.all.chunks_exact(words).collect();
        let agreed = Verdict {
            finite: said.iter().all(|rank| rank[0] == 1),
            stop: said.iter().any(|rank| rank[1] == 1),
        };
        if agreed.finite {
            for (rank, said) in said.iter().enumerate() {
                for (index, micro_batch) in self.part(rank).enumerate() {
                    let start = self.head_words() + index * self.piece_words();
                    let words = said[start..start + self.piece_words()].iter();
                    let mut add = AddDoubles { words };
                    losses[micro_batch] = 0.0;
                    add.f64(&mut losses[micro_batch]);
                    model.step_sums(&mut add);
                }
            }
            let largest: Vec<u16> = (0..self.voting)
                .map(|matrix| said.iter().map(|rank| rank[2 + matrix]).max())
                .map(|largest| largest.unwrap_or(0) as u16)
                .collect();
            self.fold_floats()?;
            model.step_sums(&mut SetSingles {
                folded: self.folded.iter(),
            });
            let mut votes = SumVotes {
                exchange: self.exchange.as_mut(),
                buffers: &mut self.buffers,
                largest: largest.iter(),
                sent_bytes: 0,
                result: Ok(()),
            };
            model.step_sums(&mut votes);
            votes.result?;
            self.sent_bytes += votes.sent_bytes;
        }
        self.seconds = started.elapsed().as_secs_f64();
        Ok(agreed)
    }

    /// Folds this rank's piece of the single-precision sums and shares it.
    fn fold_floats(&mut self) -> Result<(), ModelError> {
        let ranks = self.exchange.ranks();
        let (slots, piece) = (self.slots(), self.float_piece());
        let [own, received] = &mut self.floats;
        self.exchange.scatter(
            bytemuck::cast_slice(own),
            bytemuck::cast_slice_mut(received),
        )?;
        let mut folded = vec![0.0; piece];
        for rank in 0..ranks {
            // In the order of the micro-batches, as a single process would.
            for index in 0..self.part(rank).len() {
                let start = (rank * slots + index) * piece;
                let sums = &self.floats[1][start..start + piece];
                for (folded, sum) in folded.iter_mut().zip(sums) {
                    *folded += sum;
                }
            }
        }
        let all = bytemuck::cast_slice_mut(&mut self.folded);
        self.exchange.gather(bytemuck::cast_slice(&folded), all)?;
        self.sent_bytes += (4 * piece * (slots + 1) * (ranks - 1)) as u64;
        Ok(())
    }

    /// Compares something on all ranks.
    ///
    /// # Errors
    /// [`ModelError::RanksDiffer`] with the ranks that have something else than most.
    pub(crate) fn agree(&mut self, what: &'static str, value: &str) -> Result<(), ModelError> {
        self.exchange.meet()?;
        let own: [u8; 32] = Sha256::digest(value.as_bytes()).into();
        let mut all = vec![0; own.len() * self.exchange.ranks()];
        self.exchange.gather(&own, &mut all)?;
        let said: Vec<&[u8]> = all.chunks_exact(own.len()).collect();
        let votes_for = |value: &[u8]| said.iter().filter(|other| **other == value).count();
        // Of equally many, what the lowest rank has counts as right.
        let right = said
            .iter()
            .rev()
            .max_by_key(|value| votes_for(value))
            .copied()
            .unwrap_or(&own);
        let others: Vec<usize> = (0..said.len())
            .filter(|&rank| said[rank] != right)
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(ModelError::RanksDiffer {
            what,
            ranks: others,
            right: hex(&right[..8]),
        })
    }

    /// Ends the work together with all other ranks.
    pub(crate) fn finish(&mut self) -> Result<(), ModelError> {
        self.exchange.finish()
    }
}

/// Counts what there is to exchange.
#[derive(Default)]
struct Sizes {
    singles: usize,
    doubles: usize,
    voting: usize,
    most_votes: usize,
}

impl StepSums for Sizes {
    fn f32(&mut self, sums: &mut [f32]) {
        self.singles += sums.len();
    }

    fn f64(&mut self, _sum: &mut f64) {
        self.doubles += 1;
    }

    fn votes(&mut self, votes: &mut [i16]) {
        self.voting += 1;
        self.most_votes = self.most_votes.max(votes.len());
    }
}

/// Moves float sums out of the model; `place` says where the n-th of those in single precision goes.
struct Take<'a, P> {
    words: std::slice::IterMut<'a, u32>,
    floats: &'a mut [f32],
    place: P,
    at: usize,
}

impl<P: Fn(usize) -> usize> StepSums for Take<'_, P> {
    fn f32(&mut self, sums: &mut [f32]) {
        for sum in sums {
            self.floats[(self.place)(self.at)] = std::mem::take(sum);
            self.at += 1;
        }
    }

    fn f64(&mut self, sum: &mut f64) {
        let bits = std::mem::take(sum).to_bits();
        for bits in [bits as u32, (bits >> 32) as u32] {
            if let Some(word) = self.words.next() {
                *word = bits;
            }
        }
    }

    fn votes(&mut self, _votes: &mut [i16]) {}
}

/// Adds words to the sums in double precision.
struct AddDoubles<'a> {
    words: std::slice::Iter<'a, u32>,
}

impl StepSums for AddDoubles<'_> {
    fn f32(&mut self, _sums: &mut [f32]) {}

    fn f64(&mut self, sum: &mut f64) {
        let mut word = || self.words.next().copied().map_or(0, u64::from);
        let (low, high) = (word(), word());
        *sum += f64::from_bits(high << 32 | low);
    }

    fn votes(&mut self, _votes: &mut [i16]) {}
}

/// Puts the folded sums in single precision into the model.
struct SetSingles<'a> {
    folded: std::slice::Iter<'a, f32>,
}

impl StepSums for SetSingles<'_> {
    fn f32(&mut self, sums: &mut [f32]) {
        for (sum, folded) in sums.iter_mut().zip(self.folded.by_ref()) {
            *sum = *folded;
        }
    }

    fn f64(&mut self, _sum: &mut f64) {}

    fn votes(&mut self, _votes: &mut [i16]) {}
}

/// Finds the largest magnitude among the votes of each matrix.
struct Largest<'a> {
    votes: &'a mut [u32],
    at: usize,
}

impl StepSums for Largest<'_> {
    fn f32(&mut self, _sums: &mut [f32]) {}

    fn f64(&mut self, _sum: &mut f64) {}

    fn votes(&mut self, votes: &mut [i16]) {
        self.votes[self.at] = u32::from(packing::largest(votes));
        self.at += 1;
    }
}

#[derive(Default)]
struct VoteBuffers {
    own: Vec<u8>,
    received: Vec<u8>,
    sums: Vec<i16>,
}

/// Sums the votes of each matrix over the ranks.
struct SumVotes<'a> {
    exchange: &'a mut dyn Exchange,
    buffers: &'a mut VoteBuffers,
    /// Largest vote of each matrix on any rank.
    largest: std::slice::Iter<'a, u16>,
    sent_bytes: u64,
    result: Result<(), ModelError>,
}

impl StepSums for SumVotes<'_> {
    fn f32(&mut self, _sums: &mut [f32]) {}

    fn f64(&mut self, _sum: &mut f64) {}

    fn votes(&mut self, votes: &mut [i16]) {
        let largest = self.largest.next().copied().unwrap_or(0);
        if self.result.is_ok() && largest > 0 {
            self.result = self.sum(votes, largest);
        }
    }
}

impl SumVotes<'_> {
    fn sum(&mut self, votes: &mut [i16], largest: u16) -> Result<(), ModelError> {
        let ranks = self.exchange.ranks();
        let bits = packing::bits(largest);
        let most = usize::from(largest) * ranks;
        let largest_sum = u16::try_from(most)
            .unwrap_or(i16::MAX as u16)
            .min(i16::MAX as u16);
        let sum_bits = packing::bits(largest_sum);
        // Everyone's votes to everyone, or everyone's votes to the one who sums a piece, and the
        // sums back: bits a vote that leave a rank, times the ranks.
        if ranks * bits <= bits + sum_bits {
            self.gather_votes(votes, largest)
        } else {
            self.scatter_votes(votes, largest, largest_sum)
        }
    }

    fn gather_votes(&mut self, votes: &mut [i16], largest: u16) -> Result<(), ModelError> {
        let ranks = self.exchange.ranks();
        let VoteBuffers { own, received, .. } = &mut *self.buffers;
        let bytes = packing::bytes(votes.len(), largest);
        own.resize(bytes, 0);
        received.resize(ranks * bytes, 0);
        packing::pack(votes, largest, own);
        self.exchange.gather(own, received)?;
        self.sent_bytes += (bytes * (ranks - 1)) as u64;
        votes.fill(0);
        for packed in received.chunks_exact(bytes) {
            packing::add(packed, largest, votes);
        }
        Ok(())
    }

    fn scatter_votes(
        &mut self,
        votes: &mut [i16],
        largest: u16,
        largest_sum: u16,
    ) -> Result<(), ModelError> {
        let ranks = self.exchange.ranks();
        let VoteBuffers {
            own,
            received,
            sums,
        } = &mut *self.buffers;
        let piece = packing::piece(votes.len(), ranks);
        let bytes = packing::bytes(piece, largest);
        own.clear();
        own.resize(ranks * bytes, 0);
        received.resize(ranks * bytes, 0);
        for (votes, own) in votes.chunks(piece).zip(own.chunks_exact_mut(bytes)) {
            packing::pack(votes, largest, own);
        }
        self.exchange.scatter(own, received)?;
        self.sent_bytes += (bytes * (ranks - 1)) as u64;

        let start = (self.exchange.rank() * piece).min(votes.len());
        let len = piece.min(votes.len() - start);
        sums.clear();
        sums.resize(len, 0);
        for packed in received.chunks_exact(bytes) {
            packing::add(packed, largest, sums);
        }
        let bytes = packing::bytes(piece, largest_sum);
        own.clear();
        own.resize(bytes, 0);
        received.resize(ranks * bytes, 0);
        packing::pack(sums, largest_sum, own);
        self.exchange.gather(own, received)?;
        self.sent_bytes += (bytes * (ranks - 1)) as u64;
        votes.fill(0);
        for (votes, packed) in votes.chunks_mut(piece).zip(received.chunks_exact(bytes)) {
            packing::add(packed, largest_sum, votes);
        }
        Ok(())
    }
}
