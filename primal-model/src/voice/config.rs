//! What a voice and its training are: every number, as strict TOML.

use std::path::PathBuf;

use primal_lut::Grid;
use primal_optim::{OptimConfig, Rule};
use serde::{Deserialize, Serialize};

use super::Symbol;
use crate::ModelError;
use crate::config::{
    Compute, Config, ModelConfig, PositionKind, TrainConfig, at_least_one, check, read_toml,
    same_but, set_key,
};

/// Bands of a mel spectrogram.
pub const MEL_BANDS: usize = 80;

/// Keys that may change when a run goes on.
const FREE_ON_RESUME: [&str; 7] = [
    "train.run",
    "train.steps",
    "train.threads",
    "train.eval_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.patience",
];

/// The configuration of a voice. TOML sections `[model]`, `[train]`, `[optim]`; keys are the field
/// names, a missing key has its default, an unknown key is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VoiceConfig {
    /// Shape of the network and how its weights are stored.
    pub model: VoiceModelConfig,
    /// Length, batch, evaluation and checkpoints of the run.
    pub train: VoiceTrainConfig,
    /// Learning rule and its numbers.
    pub optim: OptimConfig,
}

/// Shape of the network and how its weights are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VoiceModelConfig {
    /// Transformer blocks over symbols.
    pub encoder_blocks: usize,
    /// Transformer blocks over frames.
    pub decoder_blocks: usize,
    /// Attention heads of a block.
    pub n_head: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward layers.
    pub ff_width: usize,
    /// Width of the duration predictor.
    pub duration_width: usize,
    /// Most frames of a sentence.
    pub context: usize,
    /// Grid id of the weights, see [`primal_lut::Grid::by_id`].
    pub grid: String,
    /// Standard deviation of the weights at the start.
    pub init_std: f32,
    /// Row scale at the start, in standard deviations of the row.
    pub scale_per_std: f32,
    /// How matrix products with weights on the grid are computed.
    pub compute: Compute,
}

/// Length, batch, evaluation and checkpoints of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VoiceTrainConfig {
    /// Folder that receives metrics and checkpoints.
    pub run: PathBuf,
    /// Optimizer steps.
    pub steps: u32,
    /// Sentences in a step.
    pub batch: usize,
    /// Pieces that a step is cut into, each of which casts votes; divides `batch`.
    pub micro_batches: usize,
    /// Every random number of the run is a function of it.
    pub seed: u64,
    /// Worker threads; 0 uses all cores. Changes no result.
    pub threads: usize,
    /// Fraction of the sentences held out, spread evenly over the corpus.
    pub val_fraction: f64,
    /// Weight of the squared error of log durations beside the mel error.
    pub duration_weight: f32,
    /// Steps between evaluations.
    pub eval_every: u32,
    /// Steps between checkpoints; 0 saves only at the end.
    pub save_every: u32,
    /// Newest checkpoints kept; the best one is kept beside them.
    pub keep_checkpoints: usize,
    /// Evaluations without a better held-out loss that end a run; 0: none do.
    pub patience: u32,
}

impl Default for VoiceConfig {
    fn default() -> Self {
        VoiceConfig {
            model: VoiceModelConfig::default(),
            train: VoiceTrainConfig::default(),
            optim: OptimConfig {
                // Its rates for a voice are known; those of `spectral` were not measured yet.
                rule: Rule::Consensus,
                // Few steps: rows grow by their scales, which must be fast (docs/log.md, 2026-11-29).
                eta: 0.03,
                scale_lr_ratio: 3.0,
                weight_decay: 0.01,
                ..OptimConfig::default()
            },
        }
    }
}

impl Default for VoiceModelConfig {
    fn default() -> Self {
        VoiceModelConfig {
            encoder_blocks: 3,
            decoder_blocks: 3,
            n_head: 4,
            width: 128,
            ff_width: 512,
            duration_width: 128,
            context: 4096,
            grid: "prime15".to_string(),
            init_std: 0.05,
            scale_per_std: 3.5,
            compute: Compute::Float,
        }
    }
}

impl Default for VoiceTrainConfig {
    fn default() -> Self {
        VoiceTrainConfig {
            run: PathBuf::from("runs/voice"),
            steps: 2000,
            batch: 16,
            micro_batches: 1,
            seed: 1,
            threads: 0,
            val_fraction: 0.05,
            duration_weight: 0.2,
            eval_every: 100,
            save_every: 500,
            keep_checkpoints: 2,
            patience: 10,
        }
    }
}

impl VoiceConfig {
    /// Reads TOML over the defaults. Ranges are checked by [`VoiceConfig::validate`].
    ///
    /// # Errors
    /// Syntax errors and wrong types with their line, unknown keys with the nearest known one.
    pub fn from_toml(text: &str) -> Result<VoiceConfig, ModelError> {
        read_toml(text)
    }

    /// Applies one override, `section.key=value`, as [`Config::set`] does.
    ///
    /// # Errors
    /// No `=`, an unknown key (with the nearest known one), a value of the wrong type.
    pub fn set(&mut self, assignment: &str) -> Result<(), ModelError> {
        set_key(self, assignment)
    }

    /// The complete configuration as TOML that [`VoiceConfig::from_toml`] reads back.
    ///
    /// # Errors
    /// A seed above `i64::MAX` or a path that is not UTF-8 has no TOML form.
    pub fn to_toml(&self) -> Result<String, ModelError> {
        toml::to_string(self).map_err(|error| ModelError::ConfigSyntax(error.to_string()))
    }

    /// Checks every range and every dependence between values.
    ///
    /// # Errors
    /// The first key that is out of range, with what would be right.
    pub fn validate(&self) -> Result<(), ModelError> {
        const MAX_SIZE: usize = 1 << 16;
        let (m, t) = (&self.model, &self.train);
        for (key, value) in [
            ("model.encoder_blocks", m.encoder_blocks),
            ("model.decoder_blocks", m.decoder_blocks),
            ("model.n_head", m.n_head),
            ("model.width", m.width),
            ("model.ff_width", m.ff_width),
            ("model.duration_width", m.duration_width),
            ("model.context", m.context),
            ("train.batch", t.batch),
            ("train.micro_batches", t.micro_batches),
            ("train.eval_every", t.eval_every as usize),
            ("train.keep_checkpoints", t.keep_checkpoints),
        ] {
            at_least_one(key, value)?;
            check(key, value, value <= MAX_SIZE, || {
                format!("must be at most {MAX_SIZE}")
            })?;
        }
        check(
            "model.n_head",
            m.n_head,
            m.width.is_multiple_of(2 * m.n_head),
            || format!("must divide half of model.width = {}", m.width),
        )?;
        check("model.context", m.context, m.context >= 64, || {
            "must be at least 64".to_string()
        })?;
        check(
            "model.grid",
            &m.grid,
            Grid::by_id(&m.grid).is_some(),
            || "known are prime15, prime25, normal15, linear15".to_string(),
        )?;
        for (key, value) in [
            ("model.init_std", m.init_std),
            ("model.scale_per_std", m.scale_per_std),
        ] {
            check(key, value, value.is_finite() && value > 0.0, || {
                "must be above zero".to_string()
            })?;
        }
        check(
            "train.micro_batches",
            t.micro_batches,
            t.batch.is_multiple_of(t.micro_batches) && t.micro_batches < 1 << 14,
            || format!("must divide train.batch = {}", t.batch),
        )?;
        check(
            "train.val_fraction",
            t.val_fraction,
            t.val_fraction > 0.0 && t.val_fraction < 1.0,
            || "must lie between 0 and 1".to_string(),
        )?;
        check(
            "train.duration_weight",
            t.duration_weight,
            t.duration_weight.is_finite() && t.duration_weight >= 0.0,
            || "must be zero or above".to_string(),
        )?;
        self.optim.validate()?;
        Ok(())
    }

    /// Checks that a run of this configuration may go on under `other`.
    ///
    /// # Errors
    /// The first key whose values differ and that decides what a step computes.
    pub fn check_resumable(&self, other: &VoiceConfig) -> Result<(), ModelError> {
        same_but(self, other, &FREE_ON_RESUME)
    }

    /// The same as the configuration of a decoder: its blocks are built and trained in this way.
    pub(super) fn as_decoder(&self) -> Config {
        let (m, t) = (&self.model, &self.train);
        Config {
            model: ModelConfig {
                vocab_size: Symbol::COUNT,
                context: m.context,
                n_layer: m.encoder_blocks + m.decoder_blocks,
                n_head: m.n_head,
                width: m.width,
                ff_width: m.ff_width,
                position: PositionKind::Rope,
                biases: true,
                grid: m.grid.clone(),
                init_std: m.init_std,
                embedding_std: m.init_std,
                scale_per_std: m.scale_per_std,
                ..ModelConfig::default()
            },
            train: TrainConfig {
                micro_batches: t.micro_batches,
                seed: t.seed,
                compute: m.compute,
                ..TrainConfig::default()
            },
            optim: self.optim.clone(),
            ..Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_round_trips_and_refuses_what_it_does_not_know() {
        let config = VoiceConfig::default();
        config.validate().unwrap();
        let text = config.to_toml().unwrap();
        assert_eq!(VoiceConfig::from_toml(&text).unwrap(), config);
        let error = VoiceConfig::from_toml("[model]\nwidht = 3").unwrap_err();
        assert!(error.to_string().contains("did you mean 'model.width'"));
        for (assignment, key) in [
            ("model.n_head=3", "model.n_head"),
            ("model.width=0", "model.width"),
            ("train.val_fraction=1.0", "train.val_fraction"),
            ("train.micro_batches=5", "train.micro_batches"),
            ("model.grid=prime16", "model.grid"),
        ] {
            let mut config = VoiceConfig::default();
            config.set(assignment).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{assignment}: {error}");
        }
    }

    #[test]
    fn resuming_may_change_cost_and_length_alone() {
        let mut other = VoiceConfig::default();
        other.set("train.steps=5").unwrap();
        VoiceConfig::default().check_resumable(&other).unwrap();
        other.set("model.width=64").unwrap();
        let error = VoiceConfig::default().check_resumable(&other).unwrap_err();
        assert!(error.to_string().contains("model.width"));
    }
}
