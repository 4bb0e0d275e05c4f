//! `primal train`: a configuration from preset, file and flags, then the training loop.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(feature = "mpi")]
use std::time::Duration;

use anyhow::{Context, Result, bail};
use primal_model::ModelError;
use primal_model::checkpoint::{self, Checkpoint};
use primal_model::config::{Config, PositionKind, Rule, TrainConfig};
use primal_model::ledger::Ledger;
use primal_model::metrics::DoneRow;
use primal_model::parallel::Exchange;
#[cfg(feature = "mpi")]
use primal_model::parallel::mpi::MpiExchange;
use primal_model::train::{Event, Summary, Trainer};
use serde::Serialize;

use crate::args::TrainArgs;
use crate::commands::{apply_overrides, base_config, fit_rule_to, note_config};
use crate::output;
use crate::progress::{TrainProgress, note};
use crate::report::INTERRUPTED;

/// Trains and prints the last row of the metrics.
pub fn run(args: &TrainArgs) -> Result<ExitCode> {
    let ranks = join_ranks()?;
    let is_first = ranks.is_first();
    let base = args.from.as_deref().map(Checkpoint::open).transpose()?;
    let config = resolve(args, base.as_ref())?;
    let mut trainer = match &base {
        Some(base) => Trainer::from_checkpoint(config.clone(), base)?,
        None if args.resume => Trainer::resume(config.clone())?,
        None => Trainer::new(config.clone())?,
    };
    if let Some(exchange) = ranks.exchange(&config) {
        trainer = trainer.spread(exchange)?;
    }
    let stop = stop_on_signal()?;
    let mut progress = None;
    let summary = trainer.run(&mut |event| {
        match event {
            // Only one of several ranks speaks.
            _ if !is_first => {}
            Event::Start {
                config,
                ledger,
                step,
            } => {
                describe(config, ledger);
                let step_tokens = (config.train.batch * config.model.context) as u64;
                let tokens = u64::from(step) * step_tokens;
                progress = Some(TrainProgress::new(
                    "tokens",
                    config.train.steps,
                    step,
                    tokens,
                ));
            }
            Event::Step(row) => {
                if let Some(progress) = &mut progress {
                    progress.step(row);
                }
            }
            Event::Eval(row) => {
                if let Some(progress) = &progress {
                    progress.eval(row);
                }
            }
            Event::Saved(path) => note(format_args!("saved {}", path.display())),
            // The library warns of skipped steps itself.
            _ => {}
        }
        if stop.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    if let Some(progress) = &progress {
        progress.finish();
    }
    let summary = summary.map_err(|error| with_way_back(error, &config.train.run))?;
    if !is_first {
        let code = if summary.interrupted { INTERRUPTED } else { 0 };
        return Ok(ExitCode::from(code));
    }
    conclude(&config, &summary, args.json)
}

/// Says how to go on after a run that broke off: from its newest checkpoint.
fn with_way_back(error: ModelError, run: &Path) -> anyhow::Error {
    let newest = checkpoint::list(run).unwrap_or_default().pop();
    let error = anyhow::Error::from(error);
    match newest {
        Some((step, _)) => error.context(format!(
            "the run broke off; hint: what was learned up to step {step} is saved, go on with: \
             primal train --resume --run {}",
            run.display()
        )),
        None => error,
    }
}

/// The other processes that `mpirun` started together with this one.
#[cfg(feature = "mpi")]
struct RankSet(Option<MpiExchange>);

#[cfg(feature = "mpi")]
impl RankSet {
    fn is_first(&self) -> bool {
        self.0.as_ref().is_none_or(|exchange| exchange.rank() == 0)
    }

    fn exchange(self, config: &Config) -> Option<Box<dyn Exchange>> {
        let timeout = Duration::from_secs(config.train.rank_timeout_s);
        Some(Box::new(self.0?.with_timeout(timeout)))
    }
}

#[cfg(feature = "mpi")]
fn join_ranks() -> Result<RankSet> {
    // For a single process where the library cannot start, as with no room for its files.
    if std::env::var_os("PRIMAL_MPI").is_some_and(|choice| choice == "off") {
        if is_one_of_several() {
            bail!("PRIMAL_MPI is off, and the processes would train each on its own");
        }
        return Ok(RankSet(None));
    }
    let mut exchange = MpiExchange::start()?;
    if exchange.ranks() > 1 {
        return Ok(RankSet(Some(exchange)));
    }
    exchange.finish();
    Ok(RankSet(None))
}

/// Without the feature there is only this process.
#[cfg(not(feature = "mpi"))]
struct RankSet;

#[cfg(not(feature = "mpi"))]
impl RankSet {
    fn is_first(&self) -> bool {
        true
    }

    fn exchange(self, _config: &Config) -> Option<Box<dyn Exchange>> {
        None
    }
}

#[cfg(not(feature = "mpi"))]
fn join_ranks() -> Result<RankSet> {
    if is_one_of_several() {
        bail!(
            "this build knows no MPI, and its processes would train each on its own; \
             hint: cargo install --path primal-cli --features mpi"
        );
    }
    Ok(RankSet)
}

/// Whether a launcher of MPI says that it started more than this process.
fn is_one_of_several() -> bool {
    let ranks = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
    ranks.is_some_and(|ranks| ranks > 1)
}

/// Preset, file or the checkpoint's own configuration, then the flags, then `--set`.
fn resolve(args: &TrainArgs, base: Option<&Checkpoint>) -> Result<Config> {
    let from_checkpoint = args.resume && args.base.preset.is_none() && args.base.config.is_none();
    let mut config = base_config(&args.base)?;
    if from_checkpoint {
        let run = args.run.as_ref().unwrap_or(&config.train.run).clone();
        config = Checkpoint::open(&run)?.config;
        config.train.run = run;
    }
    if let Some(base) = base {
        config.model = base.config.in_use().model;
        config
            .data
            .tokenizer
            .clone_from(&base.config.data.tokenizer);
        if args.base.config.is_none() {
            // Its rates for fine-tuning are known; those of `spectral` were not measured yet.
            config.optim.rule = Rule::Consensus;
        }
    }
    if args.rule.is_none() && args.base.config.is_none() && !from_checkpoint {
        fit_rule_to(&mut config, args.backend, args.gpus);
    }
    config.data.instructions |= args.instructions;
    if !args.only_blocks.is_empty() {
        config.train.only_blocks.clone_from(&args.only_blocks);
    }
    if !args.data.is_empty() {
        config.data.train.clone_from(&args.data);
    }
    if !args.val.is_empty() {
        config.data.val.clone_from(&args.val);
    }
    override_with(&mut config.data.tokenizer, &args.tokenizer);
    override_with(&mut config.train.run, &args.run);
    override_with(&mut config.optim.rule, &args.rule);
    override_with(&mut config.train.steps, &args.steps);
    cut_batch(&mut config.train, args.batch, args.micro_batches);
    override_with(
        &mut config.train.micro_batches_per_pass,
        &args.micro_batches_per_pass,
    );
    override_with(&mut config.model.context, &args.context);
    override_with(&mut config.train.seed, &args.seed);
    override_with(&mut config.train.threads, &args.threads);
    override_with(&mut config.train.backend, &args.backend);
    override_with(&mut config.train.gpus, &args.gpus);
    override_with(&mut config.train.eval_every, &args.eval_every);
    override_with(&mut config.train.save_every, &args.save_every);
    override_with(&mut config.train.memory_budget_mib, &args.memory_budget);
    config.train.ignore_memory_limit |= args.ignore_memory_limit;
    apply_overrides(&args.set, |assignment| config.set(assignment))?;
    if let Some(base) = base {
        let own = base.config.in_use().model;
        let model = &mut config.model;
        // Windows shorter than the model's context train it; they do not shorten it.
        if model.position == PositionKind::Rope && model.context < own.context {
            model.full_context = own.context;
        }
        config.train.eval_tokens = config.train.eval_tokens.max(config.model.context);
    }
    Ok(config)
}

pub(super) fn override_with<T: Clone>(key: &mut T, flag: &Option<T>) {
    if let Some(value) = flag {
        key.clone_from(value);
    }
}

/// Takes over the sequences and the pieces of a step, where given. A batch alone is cut into
/// micro-batches of as many sequences as before, or of the most below that divide it: they are
/// what memory grows with.
pub(super) fn cut_batch(
    train: &mut TrainConfig,
    batch: Option<usize>,
    micro_batches: Option<usize>,
) {
    if let Some(batch) = batch {
        let before = train.batch / train.micro_batches.max(1);
        let divides = |size: &usize| batch.is_multiple_of(*size);
        let size = (1..=before.min(batch)).rev().find(divides).unwrap_or(1);
        (train.batch, train.micro_batches) = (batch, batch / size);
    }
    override_with(&mut train.micro_batches, &micro_batches);
}

/// The first Ctrl-C asks the run to save and stop, the second ends the program at once.
pub(super) fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        note("stopping after this step; once more to stop without saving");
    })
    .context("cannot watch for Ctrl-C")?;
    Ok(stop)
}

/// The resolved configuration as one table, and the memory that the run will take.
fn describe(config: &Config, ledger: &Ledger) {
    note_config(&config.to_toml().unwrap_or_default());
    let memory = if config.train.gpus > 1 {
        "memory of each GPU by the ledger"
    } else {
        "memory by the ledger"
    };
    note(format_args!(
        "  {memory:<32} {}",
        output::bytes(ledger.total())
    ));
}

/// The last row of `metrics.jsonl`, or where an interrupted run stands.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum LastRow<'a> {
    Done(&'a DoneRow),
    Interrupted {
        steps: u32,
        checkpoint: String,
        state_hash: &'a str,
    },
}

fn conclude(config: &Config, summary: &Summary, json: bool) -> Result<ExitCode> {
    let done = &summary.done;
    let checkpoint = summary.checkpoint.display();
    if summary.interrupted {
        note(format_args!(
            "stopped at step {} of {}: {checkpoint}",
            done.steps, config.train.steps
        ));
        let run = config.train.run.display();
        note(format_args!(
            "hint: go on with: primal train --resume --run {run}"
        ));
        if json {
            output::json(&LastRow::Interrupted {
                steps: done.steps,
                checkpoint: checkpoint.to_string(),
                state_hash: &done.state_hash,
            })?;
        }
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if json {
        output::json(&LastRow::Done(done))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (peak, planned) = (
        output::bytes(done.peak_rss_bytes),
        output::bytes(done.ledger_bytes),
    );
    let mut steps = format!("{} in {}", done.steps, output::clock(done.seconds));
    if done.skipped_steps > 0 {
        steps += &format!(", {} of them skipped", done.skipped_steps);
    }
    output::table([
        (
            "held-out loss",
            format!("{:.4} nats a token", done.val_loss),
        ),
        ("bits per byte", format!("{:.4}", done.bits_per_byte)),
        ("steps", steps),
        ("speed", format!("{:.0} tokens/s", done.tokens_per_s)),
        (
            "state of a weight",
            format!("{:.3} bytes", done.state_bytes_per_weight),
        ),
        ("float state", output::bytes(done.float_bytes)),
        ("peak memory", format!("{peak}, {planned} by the ledger")),
        ("state hash", done.state_hash.clone()),
        ("checkpoint", checkpoint.to_string()),
    ])?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_alone_keeps_the_size_of_its_pieces() {
        let pieces = |batch, micro_batches| {
            let (batch_before, micro_batches_before) = (64, 32);
            let mut train = TrainConfig {
                batch: batch_before,
                micro_batches: micro_batches_before,
                ..TrainConfig::default()
            };
            cut_batch(&mut train, batch, micro_batches);
            (train.batch, train.micro_batches)
        };
        assert_eq!(pieces(None, None), (64, 32));
        assert_eq!(pieces(Some(16), None), (16, 8));
        assert_eq!(pieces(Some(7), None), (7, 7));
        assert_eq!(pieces(Some(1), None), (1, 1));
        assert_eq!(pieces(Some(16), Some(4)), (16, 4));
        assert_eq!(pieces(None, Some(8)), (64, 8));
    }
}
