//! The rules beside `consensus` on the device: gradients of scales, the votes of `classic`, codes
//! that follow float values.

use std::sync::Arc;

use primal_lut::{Grid, QuantMatrix};

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for_rows, launch};
use super::error::CudaError;
use super::vote::raw_rng;
use super::weights::DeviceWeights;
use crate::vote::VoteRng;

/// Where a kernel adds what it counts: an element of a buffer that is cleared once a step.
pub type Counter = (Arc<Buffer<u64>>, usize);

fn counter_address((buffer, at): &Counter) -> u64 {
    buffer.view(*at..*at + 1).address
}

/// `d_scale` (all rows of the matrix) += dL/ds of rows `first`.., from `grad` (rows, cols) = dL/dW.
///
/// # Panics
/// If a length does not match.
pub fn scale_gradient(
    weights: &DeviceWeights,
    grad: View<'_, f32>,
    (first, rows): (usize, usize),
    d_scale: View<'_, f32>,
) -> Result<(), CudaError> {
    take_gradient(weights, grad, (first, rows), d_scale, [0; 2])
}

fn take_gradient(
    weights: &DeviceWeights,
    grad: View<'_, f32>,
    (first, rows): (usize, usize),
    d_scale: View<'_, f32>,
    [kept, sizes]: [u64; 2],
) -> Result<(), CudaError> {
    assert!(weights.has_row_scales(), "one scale a row");
    assert!(first + rows <= weights.rows(), "rows of the matrix");
    launch!(
        grad.device,
        "scale_gradient",
        blocks_for_rows(rows),
        THREADS,
        grad.of(rows * weights.cols(), "a gradient a weight"),
        weights.raw(),
        first as i32,
        rows as i32,
        d_scale.of(weights.rows(), "a scale's gradient a row"),
        kept,
        sizes,
    )
}

/// What a step of the rule `classic` keeps of one matrix, (rows, cols).
#[derive(Debug)]
pub struct ClassicVotes {
    /// (rows, cols) f32, dL/dW of the micro-batch at hand.
    grad: Buffer<f32>,
    /// (rows, cols) i16, summed over a step's micro-batches.
    votes: Buffer<i16>,
    /// (rows, 2) sums of |g| and g².
    sizes: Buffer<f32>,
    /// (1)
    threshold: Buffer<f32>,
    flips: Counter,
    /// The last code of the grid.
    last_code: i32,
    rows: usize,
    cols: usize,
}

impl ClassicVotes {
    /// No votes yet on `matrix`; `flips` is added to by [`count_classic`].
    pub fn new(
        device: &Device,
        matrix: &QuantMatrix,
        flips: Counter,
        what: &str,
    ) -> Result<Self, CudaError> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        Ok(ClassicVotes {
            grad: Buffer::zeros(device, rows * cols, what)?,
            votes: Buffer::zeros(device, rows * cols, what)?,
            sizes: Buffer::zeros(device, 2 * rows, what)?,
            threshold: Buffer::zeros(device, 1, what)?,
            flips,
            last_code: matrix.grid().len() as i32 - 1,
            rows,
            cols,
        })
    }

    /// The votes of the step so far, (rows, cols).
    pub fn votes(&self) -> View<'_, i16> {
        self.votes.view(..)
    }

    /// Drops the votes of a step that is not taken.
    pub fn discard(&mut self) -> Result<(), CudaError> {
        self.votes.clear()
    }

    fn check(&self, weights: &DeviceWeights) {
        let size = (weights.rows(), weights.cols());
        assert_eq!(size, (self.rows, self.cols), "the matrix");
    }
}

/// [`scale_gradient`], and keeps the gradient until [`cast_classic`].
///
/// # Panics
/// If a length does not match.
pub fn keep_gradient(
    classic: &ClassicVotes,
    weights: &DeviceWeights,
    grad: View<'_, f32>,
    rows: (usize, usize),
    d_scale: View<'_, f32>,
) -> Result<(), CudaError> {
    classic.check(weights);
    let kept = [
        classic.grad.view(..).address,
        classic.sizes.view(..).address,
    ];
    take_gradient(weights, grad, rows, d_scale, kept)
}

/// Ends a micro-batch: votes against every kept gradient that is larger than the mean of |g| plus
/// `k` standard deviations.
pub fn cast_classic(classic: &ClassicVotes, k: f32) -> Result<(), CudaError> {
    let device = classic.grad.device();
    let (rows, cols) = (classic.rows as i32, classic.cols as i32);
    let threshold = classic.threshold.view(..).address;
    launch!(
        device,
        "classic_threshold",
        [1, 1, 1],
        THREADS,
        classic.sizes.view(..).address,
        rows,
        cols,
        k,
        threshold,
    )?;
    launch!(
        device,
        "cast_classic",
        blocks_for_rows(classic.rows),
        THREADS,
        classic.grad.view(..).address,
        threshold,
        classic.votes.view(..).address,
        rows,
        cols,
    )
}

/// Flips by the votes of a step and clears them. A weight with votes flips with probability
/// `probability` / |scale|, within 1e-4 and 0.05, but not beyond the ends of its grid.
///
/// # Panics
/// If the matrix is another's.
pub fn count_classic(
    classic: &ClassicVotes,
    weights: &DeviceWeights,
    probability: f32,
    rng: &VoteRng,
) -> Result<(), CudaError> {
    classic.check(weights);
    assert!(weights.has_row_scales(), "one scale a row");
    launch!(
        classic.votes.device(),
        "count_classic",
        blocks_for_rows(classic.rows),
        THREADS,
        weights.raw(),
        weights.nibbles.view(..).address,
        weights.high.view(..).address,
        classic.votes.view(..).address,
        classic.last_code,
        probability,
        raw_rng(rng),
        classic.rows as i32,
        counter_address(&classic.flips),
    )
}

/// The `Midpoints` of rules.cu.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Midpoints([f32; 15]);

/// How float values become codes of a grid.
#[derive(Debug)]
pub struct Snap {
    midpoints: Midpoints,
    zero_code: i32,
    scale_per_std: f32,
    moved: Counter,
}

impl Snap {
    /// To `grid`, with scales of `scale_per_std` root mean squares; `moved` is added to by
    /// [`snap_rows`].
    pub fn new(grid: &Grid, scale_per_std: f32, moved: Counter) -> Snap {
        let mut midpoints = [f32::INFINITY; 15];
        for (to, &midpoint) in midpoints.iter_mut().zip(grid.midpoints()) {
            // A float is above a midpoint if it is above the nearest float that is not.
            let nearest = midpoint as f32;
            let is_above = f64::from(nearest) > midpoint;
            *to = if is_above {
                nearest.next_down()
            } else {
                nearest
            };
        }
        Snap {
            midpoints: Midpoints(midpoints),
            zero_code: grid.zero_code().into(),
            scale_per_std,
            moved,
        }
    }
}

/// Scales and codes of `latent` (rows, cols); counts the codes that change. A row whose scale would
/// be infinite stays as it is.
///
/// # Panics
/// If a length does not match.
pub fn snap_rows(
    snap: &Snap,
    latent: View<'_, f32>,
    weights: &DeviceWeights,
) -> Result<(), CudaError> {
    assert!(weights.has_row_scales(), "one scale a row");
    let rows = weights.rows();
    launch!(
        latent.device,
        "snap_rows",
        blocks_for_rows(rows),
        THREADS,
        latent.of(rows * weights.cols(), "a value a weight"),
        weights.raw(),
        weights.nibbles.view(..).address,
        weights.high.view(..).address,
        weights.scales(0..rows).address,
        snap.midpoints,
        snap.zero_code,
        snap.scale_per_std,
        rows as i32,
        counter_address(&snap.moved),
    )
}
