//! The whole training loop, from a config to a trained model; read it top to bottom.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use primal_kernels::Isa;
use primal_optim::{StepContext, Weight};

use crate::activations::{Activations, PassPlan};
use crate::checkpoint::{self, Checkpoint, Position};
use crate::config::{Compute, Config, TrainConfig};
use crate::data::{Dataset, Sampler, eval_windows};
use crate::engine::{self, Engine, GpuUse};
use crate::error::ModelError;
use crate::eval::{EvalLoss, Windows, evaluate_by, mean_loss, window_losses};
use crate::grid_use::GridUse;
use crate::ledger::Ledger;
use crate::metrics::{DoneRow, EvalRow, ExchangeRow, MetricsLog, StepRow};
use crate::model::{Model, Pass};
use crate::parallel::{Exchange, Ranks, Verdict};
use crate::parameters::{Parameters, grad_factor};
use crate::process::{available_bytes, open_descriptors, peak_rss_bytes, rss_bytes};
use crate::shape::ModelShape;
use crate::skips::Skips;
use crate::tokenizer::Tokenizer;

/// A run: model, data and everything that a checkpoint holds.
pub struct Trainer {
    config: Config,
    isa: Isa,
    pool: Arc<rayon::ThreadPool>,
    data: Dataset,
    sampler: Sampler,
    eval_windows: Windows,
    model: Model,
    acts: Activations,
    /// What trains instead of the processor; `model` is then the copy of its state that was
    /// last asked for.
    engine: Option<Box<dyn Engine>>,
    ledger: Ledger,
    position: Position,
    /// (sequences of a pass, context) each.
    tokens: Vec<u32>,
    targets: Vec<u32>,
    /// (micro-batches of a step) mean losses in nats.
    losses: Vec<f64>,
    grid_use: GridUse,
    /// The checkpoint that the run was resumed from.
    resumed_from: Option<PathBuf>,
    /// Those that share the micro-batches of this run.
    ranks: Option<Ranks>,
    poison: Option<(u32, Poison)>,
}

/// A fault that a test injects into a step.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poison {
    /// A gradient is not a number.
    Gradient,
    /// A loss is infinite.
    Loss,
    /// A loss is infinite, in this step and all that follow.
    EveryLoss,
}

/// What happens during a run, as it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Everything is allocated; training begins.
    Start {
        /// The resolved configuration.
        config: &'a Config,
        /// Every buffer of the run.
        ledger: &'a Ledger,
        /// Where a resumed run stands, 0 for a fresh one.
        step: u32,
    },
    /// A step was made.
    Step(&'a StepRow),
    /// A step was not made, since a loss or a gradient was not finite.
    Skipped {
        /// The step, counted from 1.
        step: u32,
        /// Skipped steps so far.
        total: u32,
    },
    /// The held-out loss was measured.
    Eval(&'a EvalRow),
    /// A checkpoint was written.
    Saved(&'a std::path::Path),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The last row of the metrics.
    pub done: DoneRow,
    /// Whether it was stopped before its last step.
    pub interrupted: bool,
    /// Steps that were skipped because a loss or a gradient was not finite.
    pub skipped_steps: u32,
    /// The newest checkpoint.
    pub checkpoint: PathBuf,
}

/// What became of one step.
enum Outcome {
    Made { loss: f64, flip_rate: f64 },
    Skipped,
}

impl Trainer {
    /// Begins a run in `config.train.run`. A run folder that already holds checkpoints is refused.
    pub fn new(config: Config) -> Result<Self, ModelError> {
        if Checkpoint::exists(&config.train.run) {
            return Err(ModelError::RunExists(config.train.run));
        }
        Trainer::build(config, None, None)
    }

    /// Begins a run like [`Trainer::new`], from the weights of a checkpoint: its tokenizer, and its
    /// `[model]` with what the caller may have changed, a shorter context.
    pub fn from_checkpoint(config: Config, base: &Checkpoint) -> Result<Self, ModelError> {
        if Checkpoint::exists(&config.train.run) {
            return Err(ModelError::RunExists(config.train.run));
        }
        Trainer::build(config, None, Some(base))
    }

    /// Goes on from the newest checkpoint in `config.train.run`. What the run computes must be as
    /// in the checkpoint's own configuration; length, threads, evaluation and saving may differ.
    pub fn resume(config: Config) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(&config.train.run)?;
        checkpoint.config.check_resumable(&config)?;
        Trainer::build(config, Some(&checkpoint), None)
    }

    fn build(
        mut config: Config,
        checkpoint: Option<&Checkpoint>,
        base: Option<&Checkpoint>,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let isa = Isa::from_env()?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.train.threads)
            .build()
            .map_err(|error| ModelError::Threads(error.to_string()))?;
        let known = checkpoint.or(base);
        let tokenizer = known.map(Checkpoint::load_tokenizer).transpose()?;
        let data = pool.install(|| Dataset::load(&config.data, tokenizer))?;
        let fingerprint = data.train.fingerprint();
        let position = match checkpoint {
            None => Position {
                data_fingerprint: fingerprint.clone(),
                ..Default::default()
            },
            Some(checkpoint) => checkpoint.position.clone(),
        };
        if position.data_fingerprint != fingerprint {
            return Err(ModelError::DataChanged(config.train.run));
        }
        let sampler = Sampler::new(config.train.seed, data.train.len(), config.model.context)?;
        let context = config.model.context;
        let eval_starts = eval_windows(data.val.len(), context, config.train.eval_tokens)?;
        let vocab = data.tokenizer.vocab_size();
        let shape = ModelShape::new(&config, vocab)?;
        let threads = pool.current_num_threads();
        let ledger = Ledger::within_budget(&mut config, &shape, threads, Some(&data))?;
        if !config.train.ignore_memory_limit {
            check_memory(&ledger)?;
        }
        let mut model = pool.install(|| Model::new(&config, vocab))?;
        model.only_blocks(&config.train.only_blocks);
        if let Some(base) = base {
            base.load_weights(&mut model)?;
        }
        if let Some(checkpoint) = checkpoint {
            checkpoint.load_training(&mut model)?;
        }
        let train = &config.train;
        let sequences = train.batch / train.micro_batches * together(train);
        let (acts, engine, ledger) = match engine::open(&config, &mut model)? {
            Some((engine, ledger)) => {
                let none = PassPlan::for_inference(0, Compute::Float);
                (Activations::new(&shape, &none), Some(engine), ledger)
            }
            None => {
                let acts = Activations::new(&shape, &PassPlan::for_training(&config));
                ledger.check_allocated(model.allocated_bytes(), acts.allocated_bytes())?;
                (acts, None, ledger)
            }
        };
        Ok(Trainer {
            tokens: vec![0; sequences * shape.context],
            targets: vec![0; sequences * shape.context],
            losses: vec![0.0; train.micro_batches],
            grid_use: GridUse::new(&model, position.step),
            position: Position {
                vocab: shape.vocab,
                ..position
            },
            resumed_from: checkpoint.map(|checkpoint| checkpoint.dir.clone()),
            ranks: None,
            poison: None,
            config,
            isa,
            pool: Arc::new(pool),
            data,
            sampler,
            eval_windows: Windows::apart(&eval_starts, context),
            model,
            acts,
            engine,
            ledger,
        })
    }

    /// Spreads the micro-batches over ranks, of which this is one. All of them have the same
    /// configuration and see the same files; the first one writes.
    pub fn spread(mut self, exchange: Box<dyn Exchange>) -> Result<Self, ModelError> {
        if self.engine.is_some() {
            return Err(ModelError::RanksNeedCpu);
        }
        let train = &mut self.config.train;
        // Every micro-batch is exchanged on its own.
        train.micro_batches_per_pass = 1;
        let tokens = train.batch / train.micro_batches * self.config.model.context;
        self.tokens.truncate(tokens);
        self.targets.truncate(tokens);
        let ranks = Ranks::new(exchange, &mut self.model, train.micro_batches)?;
        self.ledger
            .row("exchange between ranks", ranks.buffer_bytes());
        self.ranks = Some(ranks);
        Ok(self)
    }

    /// Trains to the last step, or until `on_event` breaks; either way the state is saved.
    pub fn run(
        &mut self,
        on_event: &mut (dyn FnMut(Event<'_>) -> ControlFlow<()> + Send),
    ) -> Result<Summary, ModelError> {
        let pool = Arc::clone(&self.pool);
        pool.install(|| self.run_in_pool(on_event))
    }

    fn run_in_pool(
        &mut self,
        on_event: &mut (dyn FnMut(Event<'_>) -> ControlFlow<()> + Send),
    ) -> Result<Summary, ModelError> {
        let train = self.config.train.clone();
        self.compare_beginnings()?;
        let mut log = None;
        if self.is_first() {
            std::fs::create_dir_all(&train.run).map_err(ModelError::io("create", &train.run))?;
            checkpoint::write_config(&train.run, &self.config.to_toml()?)?;
            // What a killed save or removal left.
            checkpoint::prune(&train.run, train.keep_checkpoints)?;
            log = Some(MetricsLog::open(&train.run, self.position.step)?);
        }
        let mut step_seconds = 0.0;
        let tokens_before = self.position.tokens;
        let mut last_eval = None;
        // A run that was finished already has nothing to save.
        let mut last_saved = self.resumed_from.take();
        let mut skips = Skips::default();
        // Among ranks, a wish to stop takes effect in the step in which all hear of it.
        let mut asked = on_event(Event::Start {
            config: &self.config,
            ledger: &self.ledger,
            step: self.position.step,
        })
        .is_break();
        let mut stop = asked && self.ranks.is_none();

        while self.position.step < train.steps && !stop {
            let step_started = Instant::now();
            let rate = self.config.optim.rate(self.position.step, train.steps);
            let (outcome, all_stop) = self.step(rate, asked)?;
            let step_tokens = (train.batch * self.config.model.context) as u64;
            self.position.step += 1;
            self.position.tokens += step_tokens;
            let elapsed = step_started.elapsed().as_secs_f64();
            step_seconds += elapsed;
            self.position.seconds += elapsed;
            let step = self.position.step;
            last_eval = None;
            last_saved = None;

            asked |= match outcome {
                Outcome::Made { loss, flip_rate } => {
                    let row = StepRow {
                        step,
                        tokens: self.position.tokens,
                        train_loss: loss,
                        tokens_per_s: step_tokens as f64 / elapsed.max(1e-9),
                        flip_rate,
                        lr: f64::from(self.config.optim.lr * rate),
                        peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
                        exchange: match (&self.engine, &self.ranks) {
                            (Some(engine), _) => engine.exchange(),
                            (None, ranks) => ranks.as_ref().map(|ranks| ExchangeRow {
                                ranks: ranks.count(),
                                sent_bytes: ranks.sent_bytes,
                                seconds: ranks.seconds,
                            }),
                        },
                    };
                    skips.end();
                    if let Some(log) = &mut log {
                        log.step(&row)?;
                    }
                    on_event(Event::Step(&row)).is_break()
                }
                Outcome::Skipped => {
                    let total = skips.count(&mut self.position, log.as_mut())?;
                    on_event(Event::Skipped { step, total }).is_break()
                }
            };
            stop = if self.ranks.is_some() {
                all_stop
            } else {
                asked
            };
            let due = |every: u32| every > 0 && step.is_multiple_of(every);
            if due(train.compare_ranks_every) {
                self.compare_states()?;
            }
            if due(train.eval_every) && step < train.steps && !stop {
                let loss = self.evaluate(&mut log, on_event)?;
                last_eval = Some(loss);
            }
            if due(train.save_every) && step < train.steps && !stop {
                last_saved = Some(self.save(on_event)?);
            }
        }

        let finished = self.position.step >= train.steps;
        let eval = match last_eval {
            Some(loss) => loss,
            None if finished => self.evaluate(&mut log, on_event)?,
            None => EvalLoss::default(),
        };
        let checkpoint = match last_saved {
            Some(path) => path,
            None => self.save(on_event)?,
        };
        let done = DoneRow {
            steps: self.position.step,
            val_loss: eval.loss,
            bits_per_byte: eval.bits_per_byte,
            seconds: self.position.seconds,
            tokens_per_s: (self.position.tokens - tokens_before) as f64
                / f64::max(step_seconds, 1e-9),
            peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
            state_bytes_per_weight: self.model.footprint().bytes_per_weight(),
            float_bytes: self.model.footprint().float_bytes,
            ledger_bytes: self.ledger.total(),
            skipped_steps: self.position.skipped_steps,
            state_hash: self.state_hash(),
        };
        if let Some(log) = log.as_mut().filter(|_| finished) {
            log.done(&done)?;
        }
        if let Some(ranks) = &mut self.ranks {
            ranks.finish()?;
        }
        Ok(Summary {
            done,
            interrupted: !finished,
            skipped_steps: self.position.skipped_steps,
            checkpoint,
        })
    }

    /// Makes `steps` steps at the peak rate without evaluating, logging or saving; for
    /// benchmarks. Returns how many were not skipped.
    pub fn bare_steps(&mut self, steps: u32) -> u32 {
        let pool = Arc::clone(&self.pool);
        pool.install(|| {
            let mut made = 0;
            for _ in 0..steps {
                let step = self.step(1.0, false);
                made += u32::from(matches!(step, Ok((Outcome::Made { .. }, _))));
                self.position.step += 1;
            }
            made
        })
    }

    /// One optimizer step: every micro-batch forward and backward, then the count. Also returns
    /// whether any rank has `asked` to stop.
    fn step(&mut self, rate: f32, asked: bool) -> Result<(Outcome, bool), ModelError> {
        let train = &self.config.train;
        let context = self.config.model.context;
        let ctx = StepContext {
            isa: self.isa,
            config: &self.config.optim,
            seed: train.seed,
            step: self.position.step,
            rate,
            micro_batches: train.micro_batches as u16,
        };
        self.acts.poison = match self.poison {
            Some((from, Poison::EveryLoss)) if self.position.step >= from => Some(Poison::Loss),
            Some((at, poison)) if self.position.step == at => Some(poison),
            _ => None,
        };
        let per_pass = together(train);
        let sequences = train.batch / train.micro_batches * per_pass;
        match &mut self.engine {
            Some(engine) => engine.begin_step(&ctx)?,
            None => self.model.begin_step(&ctx)?,
        }
        let passes = match &mut self.ranks {
            Some(ranks) => {
                ranks.begin_step();
                ranks.own(train.micro_batches)
            }
            None => 0..train.micro_batches / per_pass,
        };
        let mut verdict = Verdict {
            finite: true,
            stop: asked,
        };
        let last_pass = passes.end - 1;
        for (index, pass) in passes.enumerate() {
            let is_last = pass == last_pass;
            let losses = &mut self.losses[pass * per_pass..(pass + 1) * per_pass];
            for i in 0..sequences {
                let window = i * context..(i + 1) * context;
                let sequence = (pass * sequences + i) as u32;
                let start = self.sampler.start(self.position.step, sequence);
                self.data.train.copy_window(
                    start,
                    &mut self.tokens[window.clone()],
                    &mut self.targets[window],
                );
            }
            let pass = Pass {
                first_micro_batch: (pass * per_pass) as u16,
                micro_batches: per_pass,
                time: context,
                tokens: &self.tokens,
                targets: &self.targets,
            };
            verdict.finite = match &mut self.engine {
                Some(engine) => engine.forward_backward(&ctx, &pass, losses)?,
                None => {
                    // Votes travel while the pass goes on to the layers before.
                    let ranks = &mut self.ranks;
                    let done = &mut |weight: &mut Weight| match ranks {
                        Some(ranks) if is_last => ranks.send_votes(weight),
                        _ => {}
                    };
                    let acts = &mut self.acts;
                    self.model
                        .forward_backward(&ctx, &pass, acts, losses, done)?
                }
            };
            if !verdict.finite {
                break;
            }
            if let Some(ranks) = &mut self.ranks {
                ranks.keep(&mut self.model, index, losses[0]);
            }
        }
        if let Some(ranks) = &mut self.ranks {
            verdict = ranks.combine(&mut self.model, &mut self.losses, verdict)?;
        }
        let norm = match &mut self.engine {
            _ if !verdict.finite => f64::NAN,
            Some(engine) => engine.grad_norm(&ctx)?,
            None => self.model.grad_norm(ctx.isa, ctx.micro_batches),
        };
        if !norm.is_finite() {
            match &mut self.engine {
                Some(engine) => engine.discard()?,
                None => self.model.discard(),
            }
            return Ok((Outcome::Skipped, verdict.stop));
        }
        let grad_factor = grad_factor(self.config.optim.grad_clip, norm, ctx.micro_batches);
        let flips = match (&mut self.engine, &mut self.ranks) {
            (Some(engine), _) => engine.step(&ctx, grad_factor)?,
            (None, Some(ranks)) => ranks.step(&mut self.model, &ctx, grad_factor)?,
            (None, None) => self.model.step(&ctx, grad_factor),
        };
        let made = Outcome::Made {
            loss: self.losses.iter().sum::<f64>() / self.losses.len() as f64,
            flip_rate: flips.flips as f64 / flips.weights.max(1) as f64,
        };
        Ok((made, verdict.stop))
    }

    /// Whether this process writes metrics and checkpoints.
    fn is_first(&self) -> bool {
        self.ranks.as_ref().is_none_or(Ranks::is_first)
    }

    /// All ranks must begin alike.
    fn compare_beginnings(&mut self) -> Result<(), ModelError> {
        let mut config = self.config.clone();
        // Machines differ in these.
        config.train.threads = 0;
        config.train.recompute = 0;
        config.train.run = PathBuf::new();
        let config = config.to_toml()?;
        if let Some(ranks) = &mut self.ranks {
            ranks.agree("configuration", &config)?;
            ranks.agree("training text", &self.position.data_fingerprint)?;
        }
        self.compare_states()
    }

    /// All ranks must stay alike.
    fn compare_states(&mut self) -> Result<(), ModelError> {
        if self.ranks.is_none() {
            return Ok(());
        }
        self.bring_back()?;
        let state = self.state_hash();
        match &mut self.ranks {
            Some(ranks) => ranks.agree("training state", &state),
            None => Ok(()),
        }
    }

    fn evaluate(
        &mut self,
        log: &mut Option<MetricsLog>,
        on_event: &mut (dyn FnMut(Event<'_>) -> ControlFlow<()> + Send),
    ) -> Result<EvalLoss, ModelError> {
        let (data, windows) = (&self.data.val, &self.eval_windows);
        let loss = match (&mut self.engine, &mut self.ranks) {
            (Some(engine), _) => evaluate_by(data, windows, engine.rows(), &mut |pass| {
                engine.sum_of_losses(pass)
            })?,
            (None, Some(ranks)) => {
                let own = windows.slice(ranks.own(windows.len()));
                let own = window_losses(&self.model, self.isa, data, &own, &mut self.acts)?;
                let all = ranks.gather_numbers(own, windows.len())?;
                mean_loss(data, windows, &all)?
            }
            (None, None) => {
                let all = window_losses(&self.model, self.isa, data, windows, &mut self.acts)?;
                mean_loss(data, windows, &all)?
            }
        };
        self.bring_back()?;
        let row = EvalRow {
            step: self.position.step,
            val_loss: loss.loss,
            bits_per_byte: loss.bits_per_byte,
            rss_bytes: rss_bytes().unwrap_or(0),
            open_descriptors: open_descriptors().unwrap_or(0),
        };
        if let Some(log) = log {
            log.eval(&row)?;
            for layer in self.grid_use.rows(&self.model, self.position.step) {
                log.layer(&layer)?;
            }
        }
        // A stop asked for here is noticed at the next step.
        let _ = on_event(Event::Eval(&row));
        Ok(loss)
    }

    /// Brings the model up to date with what trains it.
    fn bring_back(&mut self) -> Result<(), ModelError> {
        match (&mut self.engine, &mut self.ranks) {
            (Some(engine), _) => engine.download(&mut self.model),
            (None, Some(ranks)) => ranks.share_ballots(&mut self.model),
            (None, None) => Ok(()),
        }
    }

    fn save(
        &mut self,
        on_event: &mut (dyn FnMut(Event<'_>) -> ControlFlow<()> + Send),
    ) -> Result<PathBuf, ModelError> {
        self.bring_back()?;
        self.compare_states()?;
        let run = &self.config.train.run;
        if !self.is_first() {
            return Ok(Checkpoint::path(run, self.position.step));
        }
        let path = Checkpoint::save(
            run,
            &self.model,
            &self.data.tokenizer,
            &self.config,
            &self.position,
        )?;
        checkpoint::prune(run, self.config.train.keep_checkpoints)?;
        let _ = on_event(Event::Saved(&path));
        Ok(path)
    }

    /// Hex sha256 of the complete training state: equal hash, equal state.
    pub fn state_hash(&self) -> String {
        checkpoint::state_hash(&self.model, &self.position)
    }

    /// The model as it stands.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokenizer of the run.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.data.tokenizer
    }

    /// Every buffer of the run.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The GPU that computes, if one does.
    pub fn gpu(&self) -> Option<GpuUse> {
        self.engine.as_ref().map(|engine| engine.gpu())
    }

    /// Fault injection for tests: step `step` (0-based) meets a number that is not finite.
    #[doc(hidden)]
    pub fn poison_at(&mut self, step: u32, poison: Poison) {
        self.poison = Some((step, poison));
    }
}

/// Micro-batches that are computed at once, on however many GPUs.
fn together(train: &TrainConfig) -> usize {
    train.micro_batches_per_pass * train.gpus
}

/// Refuses a run that will not fit, before it takes anything. The data is in memory already.
fn check_memory(ledger: &Ledger) -> Result<(), ModelError> {
    let needed = ledger.total().saturating_sub(rss_bytes().unwrap_or(0));
    match available_bytes() {
        Some(available) if needed > available => Err(ModelError::NotEnoughMemory {
            needed: needed.div_ceil(1 << 20),
            available: available >> 20,
        }),
        _ => Ok(()),
    }
}
