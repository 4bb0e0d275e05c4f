//! The training of a voice: the loop of the language models over sentences instead of windows.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use primal_kernels::Isa;
use primal_optim::StepContext;
use serde::{Deserialize, Serialize};

use super::acoustic::{AcousticModel, Losses, VoiceActivations};
use super::checkpoint::{BEST, VoiceCheckpoint};
use super::config::VoiceConfig;
use super::data::{Batch, Example, Order, VoiceData};
use crate::build::Fresh;
use crate::checkpoint::{self, Content, Position};
use crate::error::ModelError;
use crate::metrics::{MetricsLog, StepRow, VoiceEvalRow};
use crate::parameters::{Parameters, grad_factor};
use crate::process::peak_rss_bytes;
use crate::skips::Skips;

/// A run: model, data and everything that a checkpoint holds.
pub struct VoiceTrainer {
    config: VoiceConfig,
    isa: Isa,
    pool: Arc<rayon::ThreadPool>,
    data: VoiceData,
    order: Order,
    model: AcousticModel,
    acts: VoiceActivations,
    batch: Batch,
    position: Position,
    resumed_from: Option<PathBuf>,
}

/// What happens during a run, as it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum VoiceEvent<'a> {
    /// Training begins.
    Start {
        /// The resolved configuration.
        config: &'a VoiceConfig,
        /// Sentences trained on, and held out.
        sentences: (usize, usize),
        /// Weights of the network, and of those the ones on the grid.
        weights: (u64, u64),
        /// Where a resumed run stands, 0 for a fresh one.
        step: u32,
        /// Frames trained on so far.
        frames: u64,
    },
    /// A step was made.
    Step(&'a StepRow),
    /// The held-out loss was measured.
    Eval(&'a VoiceEvalRow),
    /// A checkpoint was written.
    Saved(&'a Path),
}

/// The end of a finished run, the last row of its metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VoiceDoneRow {
    /// Steps made.
    pub steps: u32,
    /// Held-out error of the log mel spectrogram at the end, in nats.
    pub val_loss: f64,
    /// The best one, of the checkpoint `best`.
    pub best_val_loss: f64,
    /// Its step.
    pub best_step: u32,
    /// Whether the run ended since nothing became better.
    pub stopped_early: bool,
    /// Time spent in training steps.
    pub seconds: f64,
    /// Frames trained on in a second.
    pub frames_per_s: f64,
    /// Peak resident memory.
    pub peak_rss_bytes: u64,
    /// Persistent state of a grid weight, codes and ballots, without the float part.
    pub state_bytes_per_weight: f64,
    /// Steps skipped because a loss or gradient was not finite.
    pub skipped_steps: u32,
    /// Hash over the complete training state: equal hash, equal state.
    pub state_hash: String,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct VoiceSummary {
    /// The last row of the metrics.
    pub done: VoiceDoneRow,
    /// Whether it was stopped from outside.
    pub interrupted: bool,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

impl VoiceTrainer {
    /// Begins a run in `config.train.run`. A run folder that already holds checkpoints is refused.
    ///
    /// # Errors
    /// A configuration out of range, a corpus too small or a sentence too long.
    pub fn new(config: VoiceConfig, examples: Vec<Example>) -> Result<Self, ModelError> {
        if checkpoint::Checkpoint::exists(&config.train.run) {
            return Err(ModelError::RunExists(config.train.run));
        }
        VoiceTrainer::build(config, examples, None)
    }

    /// Goes on from the newest checkpoint in `config.train.run`. What the run computes must be as
    /// in the checkpoint's own configuration.
    ///
    /// # Errors
    /// No checkpoint, another configuration or another corpus.
    pub fn resume(config: VoiceConfig, examples: Vec<Example>) -> Result<Self, ModelError> {
        let checkpoint = VoiceCheckpoint::open(&config.train.run)?;
        checkpoint.config.check_resumable(&config)?;
        VoiceTrainer::build(config, examples, Some(&checkpoint))
    }

    fn build(
        config: VoiceConfig,
        examples: Vec<Example>,
        checkpoint: Option<&VoiceCheckpoint>,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let isa = Isa::from_env()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.train.threads)
            .build()
            .map_err(|error| ModelError::Threads(error.to_string()))?;
        let train = &config.train;
        let data = VoiceData::split(examples, train.val_fraction, config.model.context)?;
        let data_fingerprint = data.fingerprint();
        let position = match checkpoint {
            None => Position {
                data_fingerprint: data_fingerprint.clone(),
                vocab: super::Symbol::COUNT,
                ..Position::default()
            },
            Some(checkpoint) => checkpoint.position.clone(),
        };
        if position.data_fingerprint != data_fingerprint {
            return Err(ModelError::DataChanged(config.train.run));
        }
        let decoder = config.as_decoder();
        let mut model =
            pool.install(|| AcousticModel::build(&config, &mut Fresh::new(&decoder)))?;
        match checkpoint {
            Some(checkpoint) => checkpoint.load_training(&mut model)?,
            None => {
                let (mean, std) = data.band_statistics();
                model.set_band_statistics(&mean, &std);
            }
        }
        let sizes = data.largest(train.batch / train.micro_batches);
        let acts = VoiceActivations::new(&model, sizes, config.model.compute, true);
        Ok(VoiceTrainer {
            order: Order::new(train.seed, data.train.len()),
            batch: Batch::default(),
            resumed_from: checkpoint.map(|checkpoint| checkpoint.dir.clone()),
            pool: Arc::new(pool),
            config,
            isa,
            data,
            model,
            acts,
            position,
        })
    }

    /// Trains until the last step, until nothing becomes better or until `on_event` breaks; either
    /// way the state is saved.
    ///
    /// # Errors
    /// What cannot be written, a run that diverges.
    pub fn run(
        &mut self,
        on_event: &mut (dyn FnMut(VoiceEvent<'_>) -> ControlFlow<()> + Send),
    ) -> Result<VoiceSummary, ModelError> {
        let pool = Arc::clone(&self.pool);
        pool.install(|| self.run_in_pool(on_event))
    }

    fn run_in_pool(
        &mut self,
        on_event: &mut (dyn FnMut(VoiceEvent<'_>) -> ControlFlow<()> + Send),
    ) -> Result<VoiceSummary, ModelError> {
        let train = self.config.train.clone();
        std::fs::create_dir_all(&train.run).map_err(ModelError::io("create", &train.run))?;
        checkpoint::write_config(&train.run, &self.config.to_toml()?)?;
        checkpoint::prune(&train.run, train.keep_checkpoints)?;
        let mut log = MetricsLog::open(&train.run, self.position.step)?;
        let footprint = self.model.footprint();
        let (grid, float) = (footprint.grid_weights, footprint.float_weights);
        let mut interrupted = on_event(VoiceEvent::Start {
            config: &self.config,
            sentences: (self.data.train.len(), self.data.val.len()),
            weights: (grid + float, grid),
            step: self.position.step,
            frames: self.position.tokens,
        })
        .is_break();
        let frames_before = self.position.tokens;
        let seconds_before = self.position.seconds;
        let mut skips = Skips::default();
        let mut last_eval = None;
        let mut last_saved = self.resumed_from.take();

        while self.position.step < train.steps && !interrupted && !self.is_past_its_best() {
            let started = Instant::now();
            let rate = self.config.optim.rate(self.position.step, train.steps);
            let (made, frames) = self.step(rate)?;
            let elapsed = started.elapsed().as_secs_f64();
            self.position.step += 1;
            self.position.tokens += frames;
            self.position.seconds += elapsed;
            let step = self.position.step;
            (last_eval, last_saved) = (None, None);
            match made {
                Some((losses, flip_rate)) => {
                    skips.end();
                    let row = StepRow {
                        step,
                        tokens: self.position.tokens,
                        train_loss: losses.mel,
                        tokens_per_s: frames as f64 / elapsed.max(1e-9),
                        flip_rate,
                        lr: f64::from(self.config.optim.lr * rate),
                        peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
                        exchange: None,
                    };
                    log.step(&row)?;
                    interrupted |= on_event(VoiceEvent::Step(&row)).is_break();
                }
                None => {
                    skips.count(&mut self.position, Some(&mut log))?;
                }
            }
            if step.is_multiple_of(train.eval_every) && step < train.steps {
                last_eval = Some(self.evaluate(&mut log, on_event)?);
            }
            if train.save_every > 0 && step.is_multiple_of(train.save_every) && step < train.steps {
                last_saved = Some(self.save(on_event)?);
            }
        }

        let finished = !interrupted || self.position.step >= train.steps;
        let eval = match last_eval {
            Some(losses) => losses,
            None if finished => self.evaluate(&mut log, on_event)?,
            None => Losses::default(),
        };
        let checkpoint = match last_saved {
            Some(path) => path,
            None => self.save(on_event)?,
        };
        let (best_step, best_val_loss) = self.position.best.unwrap_or_default();
        let seconds = self.position.seconds - seconds_before;
        let done = VoiceDoneRow {
            steps: self.position.step,
            val_loss: eval.mel,
            best_val_loss,
            best_step,
            stopped_early: finished && self.position.step < train.steps,
            seconds: self.position.seconds,
            frames_per_s: (self.position.tokens - frames_before) as f64 / seconds.max(1e-9),
            peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
            state_bytes_per_weight: footprint.bytes_per_weight(),
            skipped_steps: self.position.skipped_steps,
            state_hash: checkpoint::state_hash(&self.model, &self.position),
        };
        if finished {
            log.voice_done(&done)?;
        }
        Ok(VoiceSummary {
            done,
            interrupted: !finished,
            checkpoint,
        })
    }

    /// One optimizer step: every micro-batch forward and backward, then the count. Returns mean
    /// losses and the fraction of weights that flipped, or nothing where the step was not taken,
    /// and the frames that were looked at.
    fn step(&mut self, rate: f32) -> Result<(Option<(Losses, f64)>, u64), ModelError> {
        let train = &self.config.train;
        let ctx = StepContext {
            isa: self.isa,
            config: &self.config.optim,
            seed: train.seed,
            step: self.position.step,
            rate,
            micro_batches: train.micro_batches as u16,
        };
        self.model.begin_step(&ctx)?;
        let per_micro_batch = train.batch / train.micro_batches;
        let mut at = u64::from(self.position.step) * train.batch as u64;
        let mut sum = Losses::default();
        let mut frames = 0;
        let mut finite = true;
        for micro_batch in 0..ctx.micro_batches {
            self.batch.clear();
            for _ in 0..per_micro_batch {
                let sentence = self.order.sentence(at);
                self.batch.push(&self.data.train[sentence]);
                at += 1;
            }
            frames += self.batch.n_frames() as u64;
            let weight = train.duration_weight;
            let acts = &mut self.acts;
            let losses =
                self.model
                    .forward_backward(&ctx, micro_batch, &self.batch, weight, acts)?;
            let Some(losses) = losses else {
                finite = false;
                break;
            };
            sum.mel += losses.mel / f64::from(ctx.micro_batches);
            sum.duration += losses.duration / f64::from(ctx.micro_batches);
        }
        let norm = self.model.grad_norm(ctx.isa, ctx.micro_batches);
        if !finite || !norm.is_finite() {
            self.model.discard();
            return Ok((None, frames));
        }
        let factor = grad_factor(self.config.optim.grad_clip, norm, ctx.micro_batches);
        let flips = self.model.step(&ctx, factor);
        let flip_rate = flips.flips as f64 / flips.weights.max(1) as f64;
        Ok((Some((sum, flip_rate)), frames))
    }

    /// Whether as many evaluations as the configuration bears with brought nothing better.
    fn is_past_its_best(&self) -> bool {
        let train = &self.config.train;
        let Some((best_step, _)) = self.position.best else {
            return false;
        };
        train.patience > 0
            && self.position.step - best_step >= train.patience.saturating_mul(train.eval_every)
    }

    /// Errors on the held-out sentences: each counts by its frames and symbols.
    fn evaluate(
        &mut self,
        log: &mut MetricsLog,
        on_event: &mut (dyn FnMut(VoiceEvent<'_>) -> ControlFlow<()> + Send),
    ) -> Result<Losses, ModelError> {
        let train = &self.config.train;
        let mut sum = Losses::default();
        let (mut frames, mut symbols) = (0, 0);
        for examples in self.data.val.chunks(train.batch / train.micro_batches) {
            self.batch.clear();
            examples.iter().for_each(|it| self.batch.push(it));
            let losses = self.model.forward(self.isa, &self.batch, &mut self.acts);
            sum.mel += losses.mel * self.batch.n_frames() as f64;
            sum.duration += losses.duration * self.batch.n_symbols() as f64;
            frames += self.batch.n_frames();
            symbols += self.batch.n_symbols();
        }
        let losses = Losses {
            mel: sum.mel / frames as f64,
            duration: sum.duration / symbols as f64,
        };
        let is_best = self.position.best.is_none_or(|(_, best)| losses.mel < best);
        let row = VoiceEvalRow {
            step: self.position.step,
            val_loss: losses.mel,
            duration_loss: losses.duration,
            is_best,
        };
        log.voice_eval(&row)?;
        if is_best {
            self.position.best = Some((self.position.step, losses.mel));
            self.content()?.save_as(&self.config.train.run, BEST)?;
        }
        // A stop asked for here is noticed at the next step.
        let _ = on_event(VoiceEvent::Eval(&row));
        Ok(losses)
    }

    fn content(&self) -> Result<Content<'_>, ModelError> {
        Ok(Content {
            model: &self.model,
            config: self.config.to_toml()?,
            tokenizer: None,
            position: &self.position,
        })
    }

    fn save(
        &mut self,
        on_event: &mut (dyn FnMut(VoiceEvent<'_>) -> ControlFlow<()> + Send),
    ) -> Result<PathBuf, ModelError> {
        let run = &self.config.train.run;
        let path = self.content()?.save(run)?;
        checkpoint::prune(run, self.config.train.keep_checkpoints)?;
        let _ = on_event(VoiceEvent::Saved(&path));
        Ok(path)
    }
}
