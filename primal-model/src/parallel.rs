//! Spreading the micro-batches of a step over ranks: processes, machines, or threads in a test.
//!
//! Every rank holds the whole model, works on its own micro-batches, and owns a stretch of the
//! rows of every matrix. In a step
//!
//! - the **votes** of a matrix go to the owners of its rows as soon as the backward pass of the
//!   last micro-batch has cast them; integers have no order;
//! - the **float sums** of every micro-batch on its own (row scales, norms, statistics of the
//!   votes) are folded in the order of the micro-batches, a piece of them by each rank;
//! - each owner counts the votes of its rows, and tells the others which codes **flipped**.
//!
//! Then all ranks have taken the same step, bit for bit that of a single process. Weights are never
//! sent; a ballot is up to date with the owner of its row, and with everyone when it is looked at
//! or saved. Ranks may be of any number up to the micro-batches of a step, and another after a
//! resume.

mod coding;
mod flips;
pub mod in_process;
mod mailbox;
#[cfg(feature = "mpi")]
pub mod mpi;

use std::ops::Range;
use std::time::Instant;

use primal_optim::{Counted, FlipStats, StepContext, StepSums, Weight};
use sha2::{Digest, Sha256};

use crate::checkpoint::hex;
use crate::error::ModelError;
use crate::layers::ParamMut;
use crate::model::Model;
use crate::parameters::Parameters;

/// What ranks need of each other. The messages from one rank to another arrive in their order.
pub trait Exchange: Send {
    /// This rank, below [`Exchange::ranks`].
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn ranks(&self) -> usize;

    /// Sends a message and returns at once.
    fn send(&mut self, to: usize, message: Vec<u8>);

    /// The next message of rank `from`.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when it does not come in time.
    fn receive(&mut self, from: usize) -> Result<Vec<u8>, ModelError>;

    /// Ends the work, when all other ranks do so too and every message is received.
    fn finish(&mut self);
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
    sizes: Sizes,
    /// Matrices whose votes of this step are sent.
    voted: Vec<u16>,
    /// What this rank says of a step: [finite, stop], and for each of its micro-batches the loss
    /// and the other sums in double precision, two words each.
    own: Vec<u32>,
    /// The same of all ranks.
    all: Vec<u32>,
    /// (ranks, own micro-batches, piece) single-precision sums by the rank that folds them, then
    /// what the other ranks sent of this rank's piece.
    floats: [Vec<f32>; 2],
    /// (ranks, piece) folded sums.
    folded: Vec<f32>,
    /// Nibbles of this rank's rows of a matrix before the count.
    before: Vec<u8>,
    /// Whether this rank knows the ballots of all rows.
    ballots_known: bool,
    /// Messages to be filled again.
    spare: Vec<Vec<u8>>,
    /// Bytes that left this rank in the last step, and seconds in which it coded, exchanged or
    /// waited for others instead of computing.
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
        each_matrix(model, &mut |weight| {
            let votes = weight.votes_mut().len();
            sizes.voting += usize::from(votes > 0);
            sizes.votes += votes;
            sizes.most_votes = sizes.most_votes.max(votes);
            Ok(())
        })?;
        Ok(Ranks {
            exchange,
            micro_batches,
            sizes,
            voted: Vec::new(),
            own: Vec::new(),
            all: Vec::new(),
            floats: [Vec::new(), Vec::new()],
            folded: Vec::new(),
            before: Vec::new(),
            ballots_known: true,
            spare: Vec::new(),
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

    /// This rank's share of `count` micro-batches of a step, rows of a matrix or held-out windows.
    pub(crate) fn own(&self, count: usize) -> Range<usize> {
        self.share(self.exchange.rank(), count)
    }

    fn share(&self, rank: usize, count: usize) -> Range<usize> {
        let ranks = self.exchange.ranks();
        rank * count / ranks..(rank + 1) * count / ranks
    }

    /// All ranks but this one.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.exchange.rank();
        (0..self.exchange.ranks()).filter(move |rank| *rank != me)
    }

    /// Words of a micro-batch in `own`.
    fn piece_words(&self) -> usize {
        2 * (1 + self.sizes.doubles)
    }

    /// Single-precision sums that one rank folds.
    fn float_piece(&self) -> usize {
        self.sizes.singles.div_ceil(self.exchange.ranks())
    }

    /// Micro-batches of the rank with most of them.
    fn slots(&self) -> usize {
        self.micro_batches.div_ceil(self.exchange.ranks())
    }

    /// Bytes of the buffers; of coded votes on their way half a byte each, out and in.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        let ranks = self.exchange.ranks();
        let words = (1 + ranks) * (HEAD_WORDS + self.slots() * self.piece_words());
        let floats = (2 * self.slots() + 1) * self.float_piece() * ranks;
        let votes = self.sizes.votes / ranks * (ranks - 1);
        (4 * (words + floats) + votes + self.sizes.most_votes / 2 / ranks) as u64
    }

    /// Begins a step.
    pub(crate) fn begin_step(&mut self) {
        let words = HEAD_WORDS + self.slots() * self.piece_words();
        self.own.clear();
        self.own.resize(words, 0);
        let floats = self.exchange.ranks() * self.slots() * self.float_piece();
        self.floats[0].resize(floats, 0.0);
        self.floats[1].resize(floats, 0.0);
        self.folded
            .resize(self.exchange.ranks() * self.float_piece(), 0.0);
        self.voted.clear();
        self.sent_bytes = 0;
        self.seconds = 0.0;
    }

    /// Takes the float sums of the micro-batch that the model has just finished, the `index`-th of
    /// this rank, and clears them.
    pub(crate) fn keep(&mut self, model: &mut Model, index: usize, loss: f64) {
        let start = HEAD_WORDS + index * self.piece_words();
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

    /// Sends the votes that this rank has cast for the rows of others, once a step, when they are
    /// all cast.
    pub(crate) fn send_votes(&mut self, weight: &mut Weight) {
        let (tensor, cols) = (weight.tensor(), weight.cols());
        if weight.votes_mut().is_empty() || self.voted.contains(&tensor) {
            return;
        }
        let started = Instant::now();
        self.voted.push(tensor);
        for to in self.others() {
            let rows = weight.rows_of_rank(to, self.exchange.ranks());
            let votes = &mut weight.votes_mut()[rows.start * cols..rows.end * cols];
            let mut message = self.new_message();
            message.extend_from_slice(&tensor.to_le_bytes());
            coding::encode(votes, &mut message);
            votes.fill(0);
            self.send(to, message);
        }
        self.seconds += started.elapsed().as_secs_f64();
    }

    /// Exchanges votes, float sums and losses: afterwards the model's float sums, and `losses` of
    /// all micro-batches, are those of the whole step on every rank, and so are the votes of the
    /// rows that it owns.
    pub(crate) fn combine(
        &mut self,
        model: &mut Model,
        losses: &mut [f64],
        verdict: Verdict,
    ) -> Result<Verdict, ModelError> {
        // A backward pass that was cut short has not sent all; the others wait for them.
        each_matrix(model, &mut |weight| {
            self.send_votes(weight);
            Ok(())
        })?;
        let started = Instant::now();
        let arrived = self.receive_votes()?;
        self.own[0] = u32::from(verdict.finite);
        self.own[1] = u32::from(verdict.stop);
        let (own, mut all) = (std::mem::take(&mut self.own), std::mem::take(&mut self.all));
        all.resize(self.exchange.ranks() * own.len(), 0);
        self.gather(
            bytemuck::cast_slice(&own),
            bytemuck::cast_slice_mut(&mut all),
        )?;
        let said: Vec<&[u32]> = all.chunks_exact(own.len()).collect();
        let agreed = Verdict {
            finite: said.iter().all(|rank| rank[0] == 1),
            stop: said.iter().any(|rank| rank[1] == 1),
        };
        if agreed.finite {
            for (rank, said) in said.iter().enumerate() {
                for (index, micro_batch) in self.share(rank, self.micro_batches).enumerate() {
                    let start = HEAD_WORDS + index * self.piece_words();
                    let words = said[start..start + self.piece_words()].iter();
                    let mut add = AddDoubles { words };
                    losses[micro_batch] = 0.0;
                    add.f64(&mut losses[micro_batch]);
                    model.step_sums(&mut add);
                }
            }
            self.fold_floats()?;
            model.step_sums(&mut SetSingles {
                folded: self.folded.iter(),
            });
            self.add_votes(model, &arrived)?;
        }
        self.spare
            .extend(arrived.into_iter().map(|(_, message)| message));
        (self.own, self.all) = (own, all);
        self.seconds += started.elapsed().as_secs_f64();
        Ok(agreed)
    }

    /// The votes of the other ranks for this rank's rows, as (rank, message).
    fn receive_votes(&mut self) -> Result<Vec<(usize, Vec<u8>)>, ModelError> {
        let mut arrived = Vec::with_capacity(self.sizes.voting * self.exchange.ranks());
        for from in self.others() {
            for _ in 0..self.sizes.voting {
                arrived.push((from, self.exchange.receive(from)?));
            }
        }
        Ok(arrived)
    }

    fn add_votes(&self, model: &mut Model, arrived: &[(usize, Vec<u8>)]) -> Result<(), ModelError> {
        each_matrix(model, &mut |weight| {
            let (tensor, cols) = (weight.tensor().to_le_bytes(), weight.cols());
            let rows = weight.rows_of_rank(self.exchange.rank(), self.exchange.ranks());
            let votes = weight.votes_mut();
            if votes.is_empty() {
                return Ok(());
            }
            let votes = &mut votes[rows.start * cols..rows.end * cols];
            let mut voters = 1;
            for (from, message) in arrived {
                if let Some(coded) = message.strip_prefix(&tensor) {
                    coding::add(coded, votes).ok_or(ModelError::RankUnclear(*from))?;
                    voters += 1;
                }
            }
            if voters == self.exchange.ranks() {
                Ok(())
            } else {
                Err(ModelError::RankUnclear(self.exchange.rank()))
            }
        })
    }

    /// Folds this rank's piece of the single-precision sums and shares it.
    fn fold_floats(&mut self) -> Result<(), ModelError> {
        let me = self.exchange.rank();
        let (slots, piece) = (self.slots(), self.float_piece());
        let [own, mut received] = std::mem::take(&mut self.floats);
        let of = |rank: usize| rank * slots * piece..(rank + 1) * slots * piece;
        for to in self.others() {
            let mut message = self.new_message();
            message.extend_from_slice(bytemuck::cast_slice(&own[of(to)]));
            self.send(to, message);
        }
        received[of(me)].copy_from_slice(&own[of(me)]);
        for from in self.others() {
            self.receive_into(from, bytemuck::cast_slice_mut(&mut received[of(from)]))?;
        }
        let mut sums = vec![0.0; piece];
        for rank in 0..self.exchange.ranks() {
            // In the order of the micro-batches, as a single process would.
            for index in 0..self.share(rank, self.micro_batches).len() {
                let start = (rank * slots + index) * piece;
                for (sum, part) in sums.iter_mut().zip(&received[start..start + piece]) {
                    *sum += part;
                }
            }
        }
        let mut folded = std::mem::take(&mut self.folded);
        self.gather(
            bytemuck::cast_slice(&sums),
            bytemuck::cast_slice_mut(&mut folded),
        )?;
        self.folded = folded;
        self.floats = [own, received];
        Ok(())
    }

    /// Takes the step: this rank counts the rows that it owns, and learns of the flips of others.
    pub(crate) fn step(
        &mut self,
        model: &mut Model,
        ctx: &StepContext<'_>,
        grad_factor: f32,
    ) -> Result<FlipStats, ModelError> {
        let mut message = self.new_message();
        let mut own = Vec::new();
        each_matrix(model, &mut |weight| {
            let rows = weight.rows_of_rank(self.exchange.rank(), self.exchange.ranks());
            let Some(nibbles) = own_nibbles(weight, rows.clone()) else {
                return Ok(());
            };
            self.before.clear();
            self.before.extend_from_slice(nibbles);
            let counted = weight.count(ctx, rows.clone());
            own.push(counted);
            message.extend_from_slice(&counted.flips.to_le_bytes());
            message.extend_from_slice(&counted.sum_votes_sq.to_le_bytes());
            if let Some(nibbles) = own_nibbles(weight, rows) {
                flips::encode(&self.before, nibbles, &mut message);
            }
            Ok(())
        })?;
        self.ballots_known = self.exchange.ranks() == 1;

        let started = Instant::now();
        for to in self.others() {
            let mut copy = self.new_message();
            copy.extend_from_slice(&message);
            self.send(to, copy);
        }
        self.spare.push(message);
        let mut told = Vec::new();
        for from in self.others() {
            told.push((from, self.exchange.receive(from)?));
        }
        let mut unread: Vec<(usize, &[u8])> = told
            .iter()
            .map(|(from, message)| (*from, message.as_slice()))
            .collect();
        let mut own = own.into_iter();
        let mut total = FlipStats::default();
        let mut result = Ok(());
        model.for_each_mut(&mut |param| match param {
            ParamMut::Vector(vector) => vector.step(ctx, grad_factor),
            ParamMut::Matrix(weight) => {
                let mut counted = Counted::default();
                if weight.quant().is_some() {
                    counted = own.next().unwrap_or_default();
                    for (from, unread) in &mut unread {
                        let rows = weight.rows_of_rank(*from, self.exchange.ranks());
                        match learn(weight, rows, unread) {
                            Some(theirs) => {
                                counted.flips += theirs.flips;
                                counted.sum_votes_sq += theirs.sum_votes_sq;
                            }
                            None => result = Err(ModelError::RankUnclear(*from)),
                        }
                    }
                }
                let stats = weight.finish_step(ctx, grad_factor, counted);
                total.flips += stats.flips;
                total.weights += stats.weights;
            }
        });
        self.spare
            .extend(told.into_iter().map(|(_, message)| message));
        self.seconds += started.elapsed().as_secs_f64();
        result.map(|()| total)
    }

    /// Makes the ballots of all rows known to all ranks.
    pub(crate) fn share_ballots(&mut self, model: &mut Model) -> Result<(), ModelError> {
        if std::mem::replace(&mut self.ballots_known, true) {
            return Ok(());
        }
        each_matrix(model, &mut |weight| {
            if weight.ballot_mut().is_empty() {
                return Ok(());
            }
            let (cols, ranks) = (weight.cols(), self.exchange.ranks());
            let of_rank = |weight: &Weight, rank| {
                let rows = weight.rows_of_rank(rank, ranks);
                rows.start * cols..rows.end * cols
            };
            let own = of_rank(weight, self.exchange.rank());
            for to in self.others() {
                let mut message = self.new_message();
                let ballot: &[u8] = bytemuck::cast_slice(weight.ballot_mut());
                message.extend_from_slice(&ballot[own.clone()]);
                self.send(to, message);
            }
            for from in self.others() {
                let theirs = of_rank(weight, from);
                let ballot: &mut [u8] = bytemuck::cast_slice_mut(weight.ballot_mut());
                self.receive_into(from, &mut ballot[theirs])?;
            }
            Ok(())
        })
    }

    /// All of `count` numbers, of which every rank has computed its share.
    pub(crate) fn gather_numbers(
        &mut self,
        mut own: Vec<f64>,
        count: usize,
    ) -> Result<Vec<f64>, ModelError> {
        let slots = count.div_ceil(self.exchange.ranks());
        own.resize(slots, 0.0);
        let mut all = vec![0.0; slots * self.exchange.ranks()];
        self.gather(
            bytemuck::cast_slice(&own),
            bytemuck::cast_slice_mut(&mut all),
        )?;
        let said = |rank| &all[rank * slots..][..self.share(rank, count).len()];
        Ok((0..self.exchange.ranks()).flat_map(said).copied().collect())
    }

    fn new_message(&mut self) -> Vec<u8> {
        let mut message = self.spare.pop().unwrap_or_default();
        message.clear();
        message
    }

    fn send(&mut self, to: usize, message: Vec<u8>) {
        self.sent_bytes += message.len() as u64;
        self.exchange.send(to, message);
    }

    fn receive_into(&mut self, from: usize, to: &mut [u8]) -> Result<(), ModelError> {
        let message = self.exchange.receive(from)?;
        if message.len() != to.len() {
            return Err(ModelError::RankUnclear(from));
        }
        to.copy_from_slice(&message);
        self.spare.push(message);
        Ok(())
    }

    /// Piece r of `all`, (ranks, own.len()), becomes what rank r gave.
    fn gather(&mut self, own: &[u8], all: &mut [u8]) -> Result<(), ModelError> {
        for to in self.others() {
            let mut message = self.new_message();
            message.extend_from_slice(own);
            self.send(to, message);
        }
        let of = |rank: usize| rank * own.len()..(rank + 1) * own.len();
        all[of(self.exchange.rank())].copy_from_slice(own);
        for from in self.others() {
            self.receive_into(from, &mut all[of(from)])?;
        }
        Ok(())
    }

    /// Compares something on all ranks.
    ///
    /// # Errors
    /// [`ModelError::RanksDiffer`] with the ranks that have something else than most.
    pub(crate) fn agree(&mut self, what: &'static str, value: &str) -> Result<(), ModelError> {
        let own: [u8; 32] = Sha256::digest(value.as_bytes()).into();
        let mut all = vec![0; own.len() * self.exchange.ranks()];
        self.gather(&own, &mut all)?;
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
        self.gather(&[], &mut [])?;
        self.exchange.finish();
        Ok(())
    }
}

/// Words before those of the micro-batches: finite, stop.
const HEAD_WORDS: usize = 2;

fn each_matrix(
    model: &mut Model,
    each: &mut dyn FnMut(&mut Weight) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    let mut result = Ok(());
    model.for_each_mut(&mut |param| {
        if let ParamMut::Matrix(weight) = param
            && result.is_ok()
        {
            result = each(weight);
        }
    });
    result
}

/// The nibbles of `rows`, (rows, row_bytes), of a matrix on a grid.
fn own_nibbles(weight: &Weight, rows: Range<usize>) -> Option<&[u8]> {
    let matrix = weight.quant()?;
    let bytes = matrix.row_bytes();
    Some(&matrix.nibbles()[rows.start * bytes..rows.end * bytes])
}

/// Reads what the owner of `rows` says of its count of a matrix, and moves the codes.
fn learn(weight: &mut Weight, rows: Range<usize>, from: &mut &[u8]) -> Option<Counted> {
    let mut number = || {
        let (bytes, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(u64::from_le_bytes(*bytes))
    };
    let counted = Counted {
        flips: number()?,
        sum_votes_sq: number()? as i64,
    };
    let matrix = weight.quant_mut()?;
    let (row_bytes, high_row_bytes) = (matrix.row_bytes(), matrix.high_row_bytes());
    let (nibbles, high, _) = matrix.planes_mut();
    let of = |width: usize| rows.start * width..rows.end * width;
    flips::Planes {
        nibbles: &mut nibbles[of(row_bytes)],
        row_bytes,
        high: high.map(|high| &mut high[of(high_row_bytes)]),
        high_row_bytes,
    }
    .apply(counted.flips, from)?;
    Some(counted)
}

/// Counts what there is to exchange.
#[derive(Default)]
struct Sizes {
    /// Float sums of one micro-batch: in single and in double precision.
    singles: usize,
    doubles: usize,
    /// Matrices that vote, and votes of all of them and of the largest.
    voting: usize,
    votes: usize,
    most_votes: usize,
}

impl StepSums for Sizes {
    fn f32(&mut self, sums: &mut [f32]) {
        self.singles += sums.len();
    }

    fn f64(&mut self, _sum: &mut f64) {
        self.doubles += 1;
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
}
