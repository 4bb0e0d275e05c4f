//! Training a HiFi-GAN generator, top to bottom: segments, forward, losses, backward, AdamW.
//!
//! Every segment of a batch is one task on one thread, from its samples to its gradients; the
//! gradients are added up in the order of the segments. So a run has the same bits for any number
//! of threads, and, since segments are a function of (seed, step, item), across a resume.

mod checkpoint;
mod conv;
mod discriminator;
mod generator;
mod loss;
mod parameters;
mod sounds;
#[cfg(test)]
mod tests;

use std::path::Path;

use primal_kernels::{Isa, Signal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::VocoderConfig;
use crate::error::VocoderError;
use crate::generator::{FRAMES_PER_PIECE, Generator};
use crate::griffin_lim::{GriffinLim, GriffinLimOptions};
use crate::mel::MelExtractor;
use crate::weights::Weights;
use discriminator::{Discriminators, JudgeTape, MIN_WIDTH};
use generator::{GeneratorTape, TrainedGenerator};
use loss::{LossScratch, SpectralLoss};
use parameters::Update;
use sounds::Sounds;

/// Decay of AdamW's running means, and its weight decay: HiFi-GAN's.
const BETA1: f32 = 0.8;
const BETA2: f32 = 0.99;
const DECAY: f32 = 0.01;

/// Part of the rate that is left at the end of a run.
const LAST_RATE: f64 = 0.05;

/// Added to the discriminators' seed, so that their weights are not the generator's.
const JUDGE_SEED: u64 = 0x6a75_6467;

/// What a run does. Everything but the number of threads changes its result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Steps in all; the rate falls from `rate` to a twentieth over them, as a cosine.
    pub steps: u64,
    /// Segments of a step.
    pub batch: usize,
    /// Samples of a segment, whole frames.
    pub segment: usize,
    /// Learning rate of generator and discriminators.
    pub rate: f32,
    /// Steps over which the rate rises from 0.
    pub warmup: u64,
    /// Seed of the first weights and of the segments.
    pub seed: u64,
    /// Weight of the mel loss.
    pub mel_weight: f32,
    /// Weight of the multi-resolution STFT loss; 0 leaves it out, as the official code does.
    pub stft_weight: f32,
    /// First step with discriminators; absent, none has.
    pub adversarial_from: Option<u64>,
    /// Channels of the discriminators' widest layers, a power of two; official: 1024.
    pub discriminator_width: usize,
    /// Sounds that are held out for evaluation.
    pub held_out: usize,
    /// Samples of a held-out sound that are evaluated.
    pub eval_samples: usize,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            steps: 10_000,
            batch: 8,
            segment: 8192,
            rate: 2e-4,
            warmup: 100,
            seed: 1,
            mel_weight: 45.0,
            stft_weight: 1.0,
            adversarial_from: None,
            discriminator_width: 128,
            held_out: 16,
            eval_samples: 2 * 22_050,
        }
    }
}

/// What a step did. Losses are means over the batch, unweighted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TrainedStep {
    /// Its number, from 1.
    pub step: u64,
    /// Mean |difference| of log-mel bands up to half the sampling rate.
    pub mel_loss: f64,
    /// Multi-resolution STFT loss.
    pub stft_loss: f64,
    /// The generator's adversarial loss, summed over the discriminators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversarial_loss: Option<f64>,
    /// Feature matching, summed over all layers of the discriminators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_loss: Option<f64>,
    /// The discriminators' own loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discriminator_loss: Option<f64>,
    /// Learning rate.
    pub rate: f64,
}

/// A run: weights, optimizer state, data.
pub struct Trainer {
    options: TrainOptions,
    config: VocoderConfig,
    isa: Isa,
    /// Steps done.
    step: u64,
    generator: TrainedGenerator,
    discriminators: Option<Discriminators>,
    loss: SpectralLoss,
    extractor: MelExtractor,
    sounds: Sounds,
    slots: Vec<Slot>,
    /// Gradients of each segment, laid out as the parameters are.
    gradients: Vec<Vec<f32>>,
    judge_gradients: Vec<Vec<f32>>,
}

/// What a segment needs from its samples to its gradients.
struct Slot {
    target: Vec<f32>,
    d_sound: Vec<f32>,
    tape: GeneratorTape,
    scratch: LossScratch,
    judges: Option<(JudgeTape, JudgeTape)>,
    losses: Losses,
}

#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    mel: f64,
    stft: f64,
    adversarial: f64,
    features: f64,
    judges: f64,
}

impl TrainOptions {
    /// Whether a run of these exists for a generator of `config`.
    ///
    /// # Errors
    /// [`VocoderError::Config`] with the first option that is wrong.
    pub fn check(&self, config: &VocoderConfig) -> Result<(), VocoderError> {
        let fail = |reason: String| Err(VocoderError::config(reason));
        if self.steps == 0 || !(1..=256).contains(&self.batch) {
            return fail(format!(
                "steps is at least 1 and batch 1 to 256, not {} and {}",
                self.steps, self.batch
            ));
        }
        let hop = config.hop_size;
        if self.segment == 0 || !self.segment.is_multiple_of(hop) || self.segment > 1 << 20 {
            return fail(format!(
                "segment is a multiple of {hop} samples up to {}, not {}",
                1 << 20,
                self.segment
            ));
        }
        let weights = [self.mel_weight, self.stft_weight];
        let sound = |weight: &f32| (0.0..1e6).contains(weight);
        // Written so that a NaN is refused too.
        if !(self.rate > 0.0 && self.rate < 1.0 && weights.iter().all(sound)) {
            return fail(format!(
                "rate is in 0..1 and weights of losses are not negative, not {} and {weights:?}",
                self.rate
            ));
        }
        let width = self.discriminator_width;
        if !width.is_power_of_two() || !(MIN_WIDTH..=1024).contains(&width) {
            return fail(format!(
                "discriminator_width is a power of two from {MIN_WIDTH} to 1024, not {width}"
            ));
        }
        if self.held_out == 0 || self.eval_samples < 4 * config.n_fft {
            return fail(format!(
                "held_out is at least 1 and eval_samples at least {}, not {} and {}",
                4 * config.n_fft,
                self.held_out,
                self.eval_samples
            ));
        }
        Ok(())
    }

    /// Learning rate of step `number`, counted from 1.
    fn rate_at(&self, number: u64) -> f64 {
        let warm = (number as f64 / (self.warmup + 1) as f64).min(1.0);
        let done = (number - 1) as f64 / self.steps as f64;
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        f64::from(self.rate) * warm * (LAST_RATE + (1.0 - LAST_RATE) * cosine)
    }
}

impl Trainer {
    /// Starts a run from `weights`, or from random ones, on the WAV files below `folder`.
    ///
    /// # Errors
    /// [`VocoderError::Config`], [`VocoderError::Training`], [`VocoderError::Io`], and those of a
    /// checkpoint that lacks a tensor.
    pub fn new(
        options: TrainOptions,
        config: VocoderConfig,
        weights: Option<&Weights>,
        folder: &Path,
        isa: Isa,
    ) -> Result<Trainer, VocoderError> {
        config.check()?;
        options.check(&config)?;
        let random;
        let weights = match weights {
            Some(weights) => weights,
            None => {
                random = Weights::random(&config, options.seed)?;
                &random
            }
        };
        let generator = TrainedGenerator::new(&config, weights)?;
        let (mel, stft) = (options.mel_weight, options.stft_weight);
        let loss = SpectralLoss::new(&config, options.segment, mel, stft)?;
        let sounds = Sounds::open(folder, options.held_out, config.sampling_rate)?;
        let slot = |_| Slot {
            target: Vec::new(),
            d_sound: vec![0.0; options.segment],
            tape: generator.tape(),
            scratch: loss.scratch(),
            judges: None,
            losses: Losses::default(),
        };
        let parameters = generator.parameters.values.len();
        Ok(Trainer {
            slots: (0..options.batch).map(slot).collect(),
            gradients: vec![vec![0.0; parameters]; options.batch],
            judge_gradients: Vec::new(),
            step: 0,
            discriminators: None,
            extractor: MelExtractor::new(&config)?,
            isa,
            generator,
            loss,
            sounds,
            options,
            config,
        })
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The options.
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// The generator's shape.
    pub fn config(&self) -> &VocoderConfig {
        &self.config
    }

    /// Numbers of sounds to train on and held out.
    pub fn sounds(&self) -> (usize, usize) {
        self.sounds.counts()
    }

    /// The generator's weights.
    ///
    /// # Errors
    /// None that can happen here.
    pub fn weights(&self) -> Result<Weights, VocoderError> {
        self.generator.weights()
    }

    /// One step.
    ///
    /// # Errors
    /// [`VocoderError::Diverged`]; those of reading a sound. The weights are those before then.
    pub fn advance(&mut self) -> Result<TrainedStep, VocoderError> {
        let number = self.step + 1;
        let adversarial = self.options.adversarial_from.is_some_and(|it| number >= it);
        if adversarial {
            self.call_judges();
        }
        self.make_sounds(number)?;
        if adversarial {
            self.teach_judges(number)?;
        }
        self.collect_gradients();
        let losses = self.mean_losses();
        for (what, loss) in [
            ("mel loss", losses.mel),
            ("STFT loss", losses.stft),
            ("adversarial loss", losses.adversarial),
            ("feature loss", losses.features),
        ] {
            finite(number, what, loss)?;
        }
        let update = self.update(number, number);
        if !self
            .generator
            .parameters
            .update(&mut self.gradients, update)
        {
            return Err(diverged(number, "generator's gradient"));
        }
        self.generator.load();
        self.step = number;
        let judged = |loss: f64| adversarial.then_some(loss);
        Ok(TrainedStep {
            step: number,
            mel_loss: losses.mel,
            stft_loss: losses.stft,
            adversarial_loss: judged(losses.adversarial),
            feature_loss: judged(losses.features),
            discriminator_loss: judged(losses.judges),
            rate: f64::from(update.rate),
        })
    }

    /// Draws the segments and makes their sounds.
    fn make_sounds(&mut self, number: u64) -> Result<(), VocoderError> {
        let (isa, options, sounds) = (self.isa, &self.options, &self.sounds);
        let (generator, extractor) = (&self.generator, &self.extractor);
        let each = |(item, slot): (usize, &mut Slot)| {
            slot.target = sounds.draw(options.seed, (number, item), options.segment)?;
            let mel = extractor.extract(&slot.target)?;
            generator.forward(isa, &mel, &mut slot.tape);
            slot.losses = Losses::default();
            Ok(())
        };
        self.slots.par_iter_mut().enumerate().try_for_each(each)
    }

    /// One step of the discriminators, on the sounds and on the real ones.
    fn teach_judges(&mut self, number: u64) -> Result<(), VocoderError> {
        let update = self.update(
            number,
            number - self.options.adversarial_from.unwrap_or(1) + 1,
        );
        let (isa, scale) = (self.isa, (self.options.batch as f32).recip());
        let Some(discriminators) = &mut self.discriminators else {
            return Ok(());
        };
        let slots = self.slots.par_iter_mut().zip(&mut self.judge_gradients);
        slots.for_each(|(slot, gradients)| {
            let Some((real, fake)) = &mut slot.judges else {
                return;
            };
            gradients.fill(0.0);
            discriminators.forward(isa, &slot.target, real);
            discriminators.forward(isa, slot.tape.samples.row(0), fake);
            slot.losses.judges = discriminators.judge(isa, true, scale, real, gradients)
                + discriminators.judge(isa, false, scale, fake, gradients);
        });
        let loss: f64 = self.slots.iter().map(|slot| slot.losses.judges).sum();
        finite(number, "discriminator loss", loss)?;
        let parameters = &mut discriminators.parameters;
        if !parameters.update(&mut self.judge_gradients, update) {
            return Err(diverged(number, "discriminators' gradient"));
        }
        discriminators.load();
        Ok(())
    }

    /// From the losses of every sound back to the gradients of the generator.
    fn collect_gradients(&mut self) {
        let (isa, loss, generator) = (self.isa, &self.loss, &self.generator);
        let discriminators = self.discriminators.as_ref();
        let scale = (self.options.batch as f32).recip();
        let slots = self.slots.par_iter_mut().zip(&mut self.gradients);
        slots.for_each(|(slot, gradients)| {
            let Slot {
                target,
                d_sound,
                tape,
                scratch,
                judges,
                losses,
            } = slot;
            gradients.fill(0.0);
            d_sound.fill(0.0);
            let sound = tape.samples.row(0);
            (losses.mel, losses.stft) = loss.run(target, sound, scale, d_sound, scratch);
            if let (Some(discriminators), Some((real, fake))) = (discriminators, judges) {
                // Judged anew: the discriminators have just learned.
                discriminators.forward(isa, target, real);
                discriminators.forward(isa, sound, fake);
                (losses.adversarial, losses.features) =
                    discriminators.deceive(isa, real, scale, fake, d_sound);
            }
            generator.backward(isa, d_sound, tape, gradients);
        });
    }

    fn mean_losses(&self) -> Losses {
        let mut mean = Losses::default();
        let share = (self.slots.len() as f64).recip();
        for Slot { losses, .. } in &self.slots {
            mean.mel += losses.mel * share;
            mean.stft += losses.stft * share;
            mean.adversarial += losses.adversarial * share;
            mean.features += losses.features * share;
            mean.judges += losses.judges * share;
        }
        mean
    }

    /// Makes the discriminators and what segments need of them, where there are none.
    fn call_judges(&mut self) {
        let (width, seed) = (self.options.discriminator_width, self.options.seed);
        let discriminators = self
            .discriminators
            .get_or_insert_with(|| Discriminators::new(width, seed ^ JUDGE_SEED));
        if self.judge_gradients.is_empty() {
            let parameters = discriminators.parameters.values.len();
            self.judge_gradients = vec![vec![0.0; parameters]; self.options.batch];
            for slot in &mut self.slots {
                slot.judges = Some((discriminators.tape(), discriminators.tape()));
            }
        }
    }

    fn update(&self, step: u64, number: u64) -> Update {
        Update {
            isa: self.isa,
            rate: self.options.rate_at(step) as f32,
            beta1: BETA1,
            beta2: BETA2,
            decay: DECAY,
            number,
        }
    }

    /// Mean |difference| of the log-mel bands that the generator reads, over the held-out sounds.
    ///
    /// # Errors
    /// Those of reading a sound and of the generator.
    pub fn evaluate(&self) -> Result<f64, VocoderError> {
        let generator = Generator::new(self.config.clone(), &self.weights()?)?;
        self.mel_distance(|mel| generator.generate(self.isa, mel, FRAMES_PER_PIECE))
    }

    /// [`Trainer::evaluate`] of Griffin-Lim, which needs no weights.
    ///
    /// # Errors
    /// As there.
    pub fn evaluate_griffin_lim(&self) -> Result<f64, VocoderError> {
        let vocoder = GriffinLim::new(&self.config, GriffinLimOptions::default())?;
        self.mel_distance(|mel| vocoder.generate(mel))
    }

    fn mel_distance(
        &self,
        vocoder: impl Fn(&Signal) -> Result<Vec<f32>, VocoderError>,
    ) -> Result<f64, VocoderError> {
        let (mut sum, mut count) = (0.0, 0);
        for samples in self.sounds.held_out(self.options.eval_samples)? {
            let mel = self.extractor.extract(&samples)?;
            let back = self.extractor.extract(&vocoder(&mel)?)?;
            for band in 0..mel.channels() {
                let pairs = mel.row(band).iter().zip(back.row(band));
                sum += pairs.map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
                count += mel.len();
            }
        }
        Ok(sum / count as f64)
    }
}

fn finite(step: u64, what: &'static str, loss: f64) -> Result<(), VocoderError> {
    match loss.is_finite() {
        true => Ok(()),
        false => Err(diverged(step, what)),
    }
}

fn diverged(step: u64, what: &'static str) -> VocoderError {
    VocoderError::Diverged { step, what }
}
