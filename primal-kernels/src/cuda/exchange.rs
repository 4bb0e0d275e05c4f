//! What several GPUs do with each other's sums to take the step of one.

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for, launch};
use super::error::CudaError;

/// Set in `bad` by [`pair_votes`].
pub const VOTES_TOO_LARGE: u32 = 2;

/// Turns `pairs` of 16-bit votes into integers of 32 bits whose sums over `gpus` GPUs hold the sums
/// of both votes; a vote so large that its sum might not fit 16 bits sets [`VOTES_TOO_LARGE`] of
/// `bad` (1).
pub fn pair_votes(pairs: View<'_, u32>, gpus: usize, bad: View<'_, u32>) -> Result<(), CudaError> {
    let most = i32::from(i16::MAX) / gpus as i32;
    launch_pairs(pairs, false, most, bad)
}

/// Turns such sums into pairs of summed votes.
pub fn unpair_votes(pairs: View<'_, u32>, bad: View<'_, u32>) -> Result<(), CudaError> {
    launch_pairs(pairs, true, 0, bad)
}

fn launch_pairs(
    pairs: View<'_, u32>,
    back: bool,
    most: i32,
    bad: View<'_, u32>,
) -> Result<(), CudaError> {
    launch!(
        pairs.device,
        "pair_votes",
        blocks_for(pairs.len()),
        THREADS,
        pairs.address,
        pairs.len() as i32,
        i32::from(back),
        most,
        bad.of(1, "one flag"),
    )
}

/// Sums of the micro-batches of several GPUs on their way to those of a step, on one of the GPUs.
#[derive(Debug)]
pub struct Rounds<T> {
    /// (GPUs, n), a micro-batch each.
    parts: Buffer<T>,
    /// (n), the sums of the rounds so far.
    total: Buffer<T>,
}

/// Numbers that are folded in order.
pub trait Sum: bytemuck::Pod {
    /// The kernel that folds them.
    const FOLD: &str;
}

impl Sum for f32 {
    const FOLD: &str = "fold_round";
}

impl Sum for f64 {
    const FOLD: &str = "fold_round_f64";
}

impl<T: Sum> Rounds<T> {
    /// For `len` sums of each of `gpus`.
    pub fn new(device: &Device, gpus: usize, len: usize) -> Result<Self, CudaError> {
        let what = "exchange between GPUs";
        Ok(Rounds {
            parts: Buffer::zeros(device, gpus * len, what)?,
            total: Buffer::zeros(device, len, what)?,
        })
    }

    /// Where the sums of all GPUs arrive, (GPUs, n).
    pub fn parts(&self) -> View<'_, T> {
        self.parts.view(..)
    }

    /// Folds what has arrived onto the sums so far, in the order of the GPUs. `own` (n), the sums of
    /// this GPU, are zero then, or, after the `last` round of a step, those of the step.
    ///
    /// # Panics
    /// If the length does not match.
    pub fn fold(&self, own: View<'_, T>, last: bool) -> Result<(), CudaError> {
        let n = self.total.len();
        let own_at = own.of(n, "as many sums as ever");
        launch!(
            own.device,
            T::FOLD,
            blocks_for(n),
            THREADS,
            self.parts.view(..).address,
            (self.parts.len() / n.max(1)) as i32,
            n as i32,
            self.total.view(..).address,
            own_at,
            i32::from(last),
        )
    }

    /// Forgets the rounds of a step that is not taken.
    pub fn discard(&mut self) -> Result<(), CudaError> {
        self.total.clear()
    }
}
