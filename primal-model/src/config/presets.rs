//! Runs with a name.

use std::path::PathBuf;

use super::{Config, FeedForward, NormKind, PositionKind, nearest};
use crate::ModelError;

/// Names accepted by [`Config::preset`].
pub const PRESETS: [&str; 4] = ["shakespeare-char", "small", "ghost-0.1b", "llama-1.1b"];

impl Config {
    /// A named configuration; see [`PRESETS`].
    ///
    /// # Errors
    /// [`ModelError::UnknownPreset`], which lists the known ones.
    pub fn preset(name: &str) -> Result<Config, ModelError> {
        let mut config = Config::default();
        match name {
            // nanoGPT's recipe for a CPU.
            "shakespeare-char" => {
                config.model.context = 64;
                config.model.n_layer = 4;
                config.model.n_head = 4;
                config.model.width = 128;
                config.data.tokenizer = "chars".to_string();
                config.train.steps = 2000;
                config.train.batch = 12;
                config.train.micro_batches = 1;
                config.train.eval_every = 500;
                config.train.save_every = 500;
                // A narrow model bears a higher rate: docs/log.md, 2026-11-25.
                config.optim.eta_edges = 0.02;
            }
            "small" => {}
            // The original project's headline run: 500 steps of 32,768 tokens.
            "ghost-0.1b" => {
                config.model.context = 512;
                config.model.n_layer = 13;
                config.model.n_head = 12;
                config.model.width = 768;
                config.model.fine_last_block = true;
                config.model.tie_head = true;
                config.data.tokenizer = "gpt2".to_string();
                config.train.steps = 500;
                config.train.batch = 64;
                // Smaller pieces need no recomputation, but learn less a step: docs/log.md, 2026-11-29.
                config.train.micro_batches = 8;
                config.train.eval_every = 100;
                config.train.save_every = 100;
                config.train.recompute = 1;
                config.optim.eta_edges = 0.006;
            }
            // The shape that small Llama models share; bytes stand in until a tokenizer is named.
            "llama-1.1b" => {
                config.model.vocab_size = 32_000;
                config.model.context = 2048;
                config.model.n_layer = 22;
                config.model.n_head = 32;
                config.model.n_kv_head = 4;
                config.model.width = 2048;
                config.model.ff_width = 5632;
                config.model.norm = NormKind::Rms;
                config.model.position = PositionKind::Rope;
                config.model.feed_forward = FeedForward::Swiglu;
                config.train.batch = 32;
                config.train.micro_batches = 32;
                config.train.recompute = 1;
            }
            _ => {
                return Err(ModelError::UnknownPreset {
                    name: name.to_string(),
                    known: PRESETS.to_vec(),
                    nearest: nearest(name, PRESETS),
                });
            }
        }
        config.train.run = PathBuf::from("runs").join(name);
        Ok(config)
    }
}
