//! Votes on the device: the state of the rule `consensus` for one matrix, and its kernels.

use std::sync::Arc;

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for_rows, launch};
use super::error::CudaError;
use super::source::GRADIENT_TILE_ROWS;
use super::weights::DeviceWeights;
use crate::vote::{FlipTable, VoteRng};

/// What a step sums up and counts of every matrix, together so that one copy or exchange serves all
/// of them.
#[derive(Debug)]
pub struct VoteSums {
    /// (rows and columns of all matrices) sums of squares over the micro-batches; of each matrix
    /// its rows, then its columns.
    pub squares: Buffer<f32>,
    /// (matrices, 2) expected squares of the votes, and the variance that rounding adds.
    pub cast: Buffer<f64>,
    /// (matrices, 2) flips of the last count, and squared votes.
    pub counted: Arc<Buffer<u64>>,
}

impl VoteSums {
    /// Of `matrices` matrices that have `lines` rows and columns together.
    pub fn new(device: &Device, matrices: usize, lines: usize) -> Result<Self, CudaError> {
        let what = "sums of a step";
        Ok(VoteSums {
            squares: Buffer::zeros(device, lines, what)?,
            cast: Buffer::zeros(device, 2 * matrices, what)?,
            counted: Arc::new(Buffer::zeros(device, 2 * matrices, what)?),
        })
    }
}

/// The place of one matrix in [`VoteSums`].
#[derive(Clone, Debug)]
pub struct VoteSlot {
    /// The sums.
    pub sums: Arc<VoteSums>,
    /// Number of the matrix.
    pub matrix: usize,
    /// Where its rows begin.
    pub first_line: usize,
}

/// The state of one matrix, (rows, cols).
#[derive(Debug)]
pub struct Ballots {
    /// (rows, cols) i8, persistent.
    pub ballot: Buffer<i8>,
    /// (rows, cols) i16, summed over a step's micro-batches, and one more where that is odd; empty
    /// where a step has one.
    votes: Buffer<i16>,
    /// (rows) and (cols), persistent running means of squares.
    pub row_mean: Buffer<f32>,
    /// See `row_mean`.
    pub col_mean: Buffer<f32>,
    /// (4): running A and B, updates made; then the step's 1 / √c.
    pub moments: Buffer<f32>,
    tile_col: Buffer<f32>,
    row_u_sq: Buffer<f32>,
    row_var: Buffer<f32>,
    col_factor: Buffer<f32>,
    slot: VoteSlot,
    /// (2, 32): thresholds down, then up.
    thresholds: Buffer<i32>,
    sizes: BallotSizes,
}

/// Rows and columns of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BallotSizes {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Whether a step has more than one micro-batch.
    pub many_micro_batches: bool,
}

impl BallotSizes {
    /// Bytes of [`Ballots::new`]: (ballots, votes, statistics).
    pub fn bytes(&self) -> (u64, u64, u64) {
        let (rows, cols) = (self.rows as u64, self.cols as u64);
        let tiles = rows.div_ceil(GRADIENT_TILE_ROWS as u64);
        let floats = 4 * rows + 3 * cols + tiles * cols + 4 + 64;
        (rows * cols, 2 * self.votes() as u64, 4 * floats + 2 * 8)
    }

    /// Votes of a step: whole pairs, which is how GPUs exchange them.
    fn votes(&self) -> usize {
        if self.many_micro_batches {
            (self.rows * self.cols).next_multiple_of(2)
        } else {
            0
        }
    }
}

/// The `Ballots` of vote.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawBallots {
    ballot: u64,
    votes: u64,
    row_mean: u64,
    col_mean: u64,
    row_sum: u64,
    col_sum: u64,
    tile_col: u64,
    row_u_sq: u64,
    row_var: u64,
    col_factor: u64,
    moments: u64,
    cast_sums: u64,
    counted: u64,
}

/// The `VoteRng` of common.cuh.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct RawRng {
    key: [u32; 2],
    step: u32,
    place: u32,
}

pub(super) fn raw_rng(rng: &VoteRng) -> RawRng {
    let [_, step, place] = rng.counter_words(0);
    RawRng {
        key: rng.key(),
        step,
        place,
    }
}

impl Ballots {
    /// Empty ballots of a matrix with the flip table of its grid; its sums are those of `slot`.
    ///
    /// # Panics
    /// If the slot is beyond the sums.
    pub fn new(
        device: &Device,
        sizes: BallotSizes,
        table: &FlipTable,
        slot: VoteSlot,
        what: &str,
    ) -> Result<Self, CudaError> {
        let BallotSizes { rows, cols, .. } = sizes;
        let VoteSlot {
            sums,
            matrix,
            first_line,
        } = &slot;
        assert!(
            first_line + rows + cols <= sums.squares.len() && 2 * matrix < sums.counted.len(),
            "a place for the sums of {what}"
        );
        let elements = rows * cols;
        let tiles = rows.div_ceil(GRADIENT_TILE_ROWS);
        let floats = |len| Buffer::zeros(device, len, what);
        let or_none = |votes: i16| if votes > 0 { votes.into() } else { i32::MAX };
        let thresholds: Vec<i32> = table
            .down
            .into_iter()
            .chain(table.up)
            .map(or_none)
            .collect();
        Ok(Ballots {
            ballot: Buffer::zeros(device, elements, what)?,
            votes: Buffer::zeros(device, sizes.votes(), what)?,
            row_mean: floats(rows)?,
            col_mean: floats(cols)?,
            moments: floats(4)?,
            tile_col: floats(tiles * cols)?,
            row_u_sq: floats(rows)?,
            row_var: floats(rows)?,
            col_factor: floats(cols)?,
            slot,
            thresholds: Buffer::from_slice(device, &thresholds, what)?,
            sizes,
        })
    }

    /// Rows and columns.
    pub fn sizes(&self) -> BallotSizes {
        self.sizes
    }

    /// The votes of the step, two a word; none where a step has one micro-batch.
    pub fn vote_pairs(&self) -> View<'_, u32> {
        self.votes.view(..).words()
    }

    /// Drops the votes of a step that is not taken.
    pub fn discard(&mut self) -> Result<(), CudaError> {
        self.votes.clear()
    }

    fn raw(&self) -> RawBallots {
        let VoteSlot {
            sums,
            matrix,
            first_line,
        } = &self.slot;
        let pair = 2 * matrix..2 * matrix + 2;
        let rows = *first_line..first_line + self.sizes.rows;
        let cols = rows.end..rows.end + self.sizes.cols;
        RawBallots {
            ballot: self.ballot.view(..).address,
            votes: self.votes.view(..).address,
            row_mean: self.row_mean.view(..).address,
            col_mean: self.col_mean.view(..).address,
            row_sum: sums.squares.view(rows).address,
            col_sum: sums.squares.view(cols).address,
            tile_col: self.tile_col.view(..).address,
            row_u_sq: self.row_u_sq.view(..).address,
            row_var: self.row_var.view(..).address,
            col_factor: self.col_factor.view(..).address,
            moments: self.moments.view(..).address,
            cast_sums: sums.cast.view(pair.clone()).address,
            counted: sums.counted.view(pair).address,
        }
    }

    fn device(&self) -> &Device {
        self.ballot.device()
    }
}

/// The numbers of one micro-batch's cast.
#[derive(Clone, Copy, Debug)]
pub struct CastStep {
    /// Votes that one unit of normalised gradient casts: η·ρ / (q·M).
    pub votes_per_unit: f32,
    /// Largest normalised gradient that votes in full.
    pub vote_clip: f32,
    /// Weight of the old mean and of the new value, both divided by the bias correction.
    pub blend: [f32; 2],
    /// The random numbers.
    pub rng: VoteRng,
}

/// Prepares the factors of a step and clears its sums.
pub fn begin_votes(ballots: &Ballots, micro_batches: u16) -> Result<(), CudaError> {
    let BallotSizes { rows, cols, .. } = ballots.sizes;
    launch!(
        ballots.device(),
        "begin_votes",
        [1, 1, 1],
        THREADS,
        ballots.raw(),
        rows as i32,
        cols as i32,
        f32::from(micro_batches),
    )
}

/// Casts the votes of rows `first`.. (a multiple of 64) from `grad` (rows, cols) = dL/dW.
/// `d_scale` (all rows of the matrix) += dL/ds. A row that is not finite casts nothing and sets
/// `bad` (1).
///
/// # Panics
/// If a length does not match.
pub fn cast_votes(
    ballots: &Ballots,
    weights: &DeviceWeights,
    grad: View<'_, f32>,
    (first, rows): (usize, usize),
    step: &CastStep,
    d_scale: View<'_, f32>,
    bad: View<'_, u32>,
) -> Result<(), CudaError> {
    let BallotSizes {
        rows: all, cols, ..
    } = ballots.sizes;
    assert!(weights.has_row_scales(), "one scale a row");
    assert_eq!((weights.rows(), weights.cols()), (all, cols), "the matrix");
    assert!(first.is_multiple_of(GRADIENT_TILE_ROWS) && first + rows <= all);
    let grad_at = grad.of(rows * cols, "a gradient a weight");
    launch!(
        ballots.device(),
        "vote_columns",
        [
            cols.div_ceil(THREADS as usize),
            rows.div_ceil(GRADIENT_TILE_ROWS),
            1
        ],
        THREADS,
        grad_at,
        weights.raw(),
        ballots.raw(),
        first as i32,
        rows as i32,
    )?;
    launch!(
        ballots.device(),
        "cast_votes",
        blocks_for_rows(rows),
        THREADS,
        grad_at,
        weights.raw(),
        ballots.raw(),
        first as i32,
        rows as i32,
        step.votes_per_unit,
        step.vote_clip,
        step.blend[0],
        step.blend[1],
        raw_rng(&step.rng),
        d_scale.of(all, "a scale's gradient a row"),
        bad.of(1, "one flag"),
    )
}

/// Ends a micro-batch: folds the partial sums of its tiles in order.
pub fn end_votes(ballots: &Ballots) -> Result<(), CudaError> {
    let BallotSizes { rows, cols, .. } = ballots.sizes;
    launch!(
        ballots.device(),
        "end_votes",
        [cols.div_ceil(THREADS as usize), 1, 1],
        THREADS,
        ballots.raw(),
        rows as i32,
        cols as i32,
    )
}

/// Counts the votes of a step and flips; `counted` of the sums receives flips and squared votes.
///
/// # Panics
/// If the matrix is another's.
pub fn count_votes(
    ballots: &Ballots,
    weights: &DeviceWeights,
    leak_q24: u32,
    rng: &VoteRng,
) -> Result<(), CudaError> {
    let BallotSizes { rows, cols, .. } = ballots.sizes;
    assert_eq!((weights.rows(), weights.cols()), (rows, cols), "the matrix");
    assert!(leak_q24 <= 1 << 24, "a leak of {leak_q24} / 2^24");
    launch!(
        ballots.device(),
        "count_votes",
        blocks_for_rows(rows),
        THREADS,
        weights.raw(),
        weights.nibbles.view(..).address,
        weights.high.view(..).address,
        ballots.raw(),
        ballots.thresholds.view(..).address,
        leak_q24,
        raw_rng(rng),
        rows as i32,
    )
}

/// Moves the running statistics after a count; `unit` is the step's votes per unit of gradient.
pub fn update_statistics(
    ballots: &Ballots,
    decay: f32,
    micro_batches: u16,
    unit: f64,
) -> Result<(), CudaError> {
    let BallotSizes { rows, cols, .. } = ballots.sizes;
    launch!(
        ballots.device(),
        "update_statistics",
        [rows.max(cols).div_ceil(THREADS as usize), 1, 1],
        THREADS,
        ballots.raw(),
        rows as i32,
        cols as i32,
        decay,
        f32::from(micro_batches),
        unit,
    )
}
