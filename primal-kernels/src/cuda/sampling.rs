//! The choice of the next token, where the logits lie.

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for, launch};
use super::error::CudaError;
use crate::sampling::{NoToken, TokenChoice};

/// What the kernel says instead of a token.
pub(crate) const NO_TOKEN: u32 = u32::MAX;
/// Added to a token whose logit is NaN or infinite.
pub(crate) const BAD_LOGIT: u32 = 1 << 31;

/// Chooses tokens by their logits on a device.
#[derive(Debug)]
pub struct Sampler {
    /// (V).
    keys: Buffer<u64>,
    recent: Buffer<u32>,
    /// (1).
    chosen: Buffer<u32>,
}

impl Sampler {
    /// For up to `vocab` logits, and penalties of up to `recent` tokens.
    pub fn new(device: &Device, vocab: usize, recent: usize) -> Result<Self, CudaError> {
        Ok(Sampler {
            keys: Buffer::zeros(device, vocab, "order of logits")?,
            recent: Buffer::zeros(device, recent, "recent tokens")?,
            chosen: Buffer::zeros(device, 1, "chosen token")?,
        })
    }

    /// As [`TokenChooser::choose`](crate::TokenChooser::choose); the outer error is the device's.
    pub fn choose(
        &mut self,
        logits: View<'_, f32>,
        recent: &[u32],
        choice: &TokenChoice,
    ) -> Result<Result<u32, NoToken>, CudaError> {
        if logits.is_empty() {
            return Ok(Err(NoToken::AllBarred));
        }
        let vocab = logits.len();
        let keys = self.keys.view(..vocab);
        let n_recent = if choice.repeat_penalty == 1.0 {
            0
        } else {
            self.recent.upload(recent)?;
            recent.len()
        };
        let top_k = if choice.temperature == 0.0 {
            0
        } else {
            i32::try_from(choice.top_k).unwrap_or(0)
        };
        launch!(
            logits.device,
            "sample_keys",
            blocks_for(vocab),
            THREADS,
            logits.address,
            vocab as i32,
            self.recent.view(..n_recent).address,
            n_recent as i32,
            choice.repeat_penalty,
            top_k,
            keys.address,
        )?;
        // Eight tokens a thread in small vocabularies, whose time goes into barriers.
        let threads = (vocab / 8).next_multiple_of(32).clamp(32, 1024);
        launch!(
            logits.device,
            "sample",
            [1, 1, 1],
            threads as u32,
            keys.address,
            vocab as i32,
            choice.temperature,
            top_k,
            choice.top_p,
            choice.min_p,
            choice.random,
            self.chosen.view(..).address,
        )?;
        let mut chosen = [0];
        self.chosen.download(&mut chosen)?;
        Ok(match chosen[0] {
            NO_TOKEN => Err(NoToken::AllBarred),
            bad if bad >= BAD_LOGIT => Err(NoToken::BadLogit(bad - BAD_LOGIT)),
            token => Ok(token),
        })
    }
}
