//! Speaking: sentences of symbols to mel spectrograms, one after the other.

use std::path::Path;

use primal_kernels::Isa;

use super::acoustic::{AcousticModel, VoiceActivations};
use super::checkpoint::{load, load_bytes};
use super::config::{MEL_BANDS, VoiceConfig};
use super::data::{Batch, Sizes};
use super::{Sentence, Symbol};
use crate::error::ModelError;

/// Fewest frames of a phoneme: one that was asked for is heard.
const MIN_PHONEME_FRAMES: u32 = 2;

/// Most frames of a symbol at length scale 1, a second and a half: more is no speech.
const MAX_SYMBOL_FRAMES: f32 = 128.0;

/// Fewest symbols of a sentence that can be cut.
const MIN_SYMBOLS_TO_CUT: usize = 2;

/// The built-in voice.
const BUILTIN_CONFIG: &str = include_str!("../../assets/voice/config.resolved.toml");
const BUILTIN_MODEL: &[u8] = include_bytes!("../../assets/voice/model.safetensors");

/// A trained voice.
pub struct Voice {
    config: VoiceConfig,
    model: AcousticModel,
    isa: Isa,
}

/// A sentence as it is spoken.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// The symbols, silences at both ends included.
    pub symbols: Vec<Symbol>,
    /// Frames of each symbol.
    pub frames: Vec<u32>,
    /// (80, frames) natural logarithms of mel magnitudes.
    pub mel: Vec<f32>,
}

impl Voice {
    /// The voice of a checkpoint folder, of a run folder (the best one of the run) or of a folder
    /// with `config.resolved.toml` and `model.safetensors`.
    ///
    /// # Errors
    /// No such folder, a damaged file, tensors that do not fit the configuration.
    pub fn open(path: &Path) -> Result<Voice, ModelError> {
        Voice::new(load(path)?)
    }

    /// The voice that is part of the program.
    ///
    /// # Errors
    /// A broken build.
    pub fn builtin() -> Result<Voice, ModelError> {
        Voice::new(load_bytes(BUILTIN_CONFIG, BUILTIN_MODEL)?)
    }

    fn new((config, model): (VoiceConfig, AcousticModel)) -> Result<Voice, ModelError> {
        Ok(Voice {
            config,
            model,
            isa: Isa::from_env()?,
        })
    }

    /// Speaks a sentence, each symbol `length_scale` times as long as it would be. One that would
    /// be longer than the network can take comes in parts.
    ///
    /// # Errors
    /// A network whose numbers are not finite.
    pub fn speak(&self, sentence: &Sentence, length_scale: f32) -> Result<Vec<Spoken>, ModelError> {
        let mut parts = Vec::new();
        self.speak_part(&sentence.symbols, length_scale, &mut parts)?;
        Ok(parts)
    }

    fn speak_part(
        &self,
        symbols: &[Symbol],
        length_scale: f32,
        parts: &mut Vec<Spoken>,
    ) -> Result<(), ModelError> {
        let context = self.config.model.context;
        let all: Vec<Symbol> = [&[Symbol::BEGIN], symbols, &[Symbol::END]].concat();
        if all.len() > context {
            return self.speak_halves(symbols, length_scale, parts);
        }
        let mut batch = Batch::default();
        batch.symbols.extend(all.iter().map(|it| it.id() as u32));
        batch.symbol_lengths.push(all.len());
        let sizes = Sizes {
            symbols: all.len(),
            frames: 0,
        };
        let compute = self.config.model.compute;
        let mut acts = VoiceActivations::new(&self.model, sizes, compute, false);
        self.model.encode(self.isa, &batch, &mut acts);
        let log_durations = acts.log_durations(all.len());
        if log_durations.iter().any(|value| !value.is_finite()) {
            return Err(not_finite());
        }
        let frames: Vec<u32> = all
            .iter()
            .zip(log_durations)
            .map(|(symbol, log)| {
                let frames = (log.exp() - 1.0).clamp(0.0, MAX_SYMBOL_FRAMES) * length_scale;
                let least = if symbol.is_phoneme() {
                    MIN_PHONEME_FRAMES
                } else {
                    0
                };
                (frames.round() as u32).clamp(least, context as u32)
            })
            .collect();
        let total: u32 = frames.iter().sum();
        if total as usize > context && symbols.len() >= MIN_SYMBOLS_TO_CUT {
            return self.speak_halves(symbols, length_scale, parts);
        }
        let total = (total as usize).clamp(1, context);
        batch.frames = fit(frames, total);
        batch.frame_lengths.push(total);
        let sizes = Sizes {
            symbols: all.len(),
            frames: total,
        };
        let mut acts = VoiceActivations::new(&self.model, sizes, compute, false);
        self.model.encode(self.isa, &batch, &mut acts);
        self.model.decode(self.isa, &batch, &mut acts);
        let rows = acts.mel(total);
        if rows.iter().any(|value| !value.is_finite()) {
            return Err(not_finite());
        }
        let mut mel = vec![0.0; rows.len()];
        for (frame, row) in rows.chunks(MEL_BANDS).enumerate() {
            for (band, &value) in row.iter().enumerate() {
                mel[band * total + frame] = value;
            }
        }
        parts.push(Spoken {
            symbols: all,
            frames: batch.frames,
            mel,
        });
        Ok(())
    }

    fn speak_halves(
        &self,
        symbols: &[Symbol],
        length_scale: f32,
        parts: &mut Vec<Spoken>,
    ) -> Result<(), ModelError> {
        let (first, second) = symbols.split_at(cut(symbols));
        self.speak_part(first, length_scale, parts)?;
        self.speak_part(second, length_scale, parts)
    }
}

/// Where to cut a sentence in two: at the pause or the gap nearest to its middle, else there.
fn cut(symbols: &[Symbol]) -> usize {
    let middle = symbols.len() / 2;
    (1..symbols.len())
        .filter(|&at| !symbols[at - 1].is_phoneme())
        .min_by_key(|&at| at.abs_diff(middle))
        .unwrap_or(middle)
}

/// The frames with a sum of `total`: the last symbols lose or the last one gains the difference.
fn fit(mut frames: Vec<u32>, total: usize) -> Vec<u32> {
    let mut left = total as u32;
    for count in &mut frames {
        *count = left.min(*count);
        left -= *count;
    }
    if let Some(last) = frames.last_mut() {
        *last += left;
    }
    frames
}

fn not_finite() -> ModelError {
    ModelError::Generate("the voice says what is not finite: its checkpoint is damaged".to_string())
}
