//! `primal vocoder-train`: a HiFi-GAN generator from a folder of WAV files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use primal_kernels::Isa;
use primal_vocoder::{Generator, TrainOptions, TrainedStep, Trainer, VocoderConfig, VocoderError};
use serde::Serialize;
use serde_json::Value;

use crate::args::VocoderTrainArgs;
use crate::commands::start_threads;
use crate::output;
use crate::progress::note;
use crate::report::WrongUsage;

/// Time between two lines on stderr.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The best generator of a run, as a folder for `--vocoder`.
const BEST: &str = "best";

#[derive(Serialize)]
struct StepRow {
    #[serde(flatten)]
    step: TrainedStep,
    /// Seconds since the command began.
    seconds: f64,
}

/// An evaluation: mean |difference| of log-mel values over the held-out sounds.
#[derive(Serialize)]
struct EvalRow {
    step: u64,
    val_mel_l1: f64,
}

#[derive(Serialize)]
struct DoneRow {
    event: &'static str,
    steps: u64,
    /// Of the weights in `best`.
    best_step: u64,
    val_mel_l1: f64,
    /// Griffin-Lim's on the same sounds.
    griffin_lim_mel_l1: f64,
    seconds: f64,
    seconds_audio: f64,
}

/// Rows of `metrics.jsonl`, also on stdout with `--json`.
struct Log {
    file: BufWriter<File>,
    json: bool,
}

impl Log {
    fn write(&mut self, row: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(row)?;
        writeln!(self.file, "{text}")
            .and_then(|()| self.file.flush())
            .context("cannot write metrics.jsonl")?;
        match self.json {
            true => output::line(text),
            false => Ok(()),
        }
    }
}

/// Trains until the last step.
pub fn run(args: &VocoderTrainArgs) -> Result<ExitCode> {
    start_threads(args.threads)?;
    let isa = Isa::from_env()?;
    let mut trainer = match args.resume {
        true => Trainer::resume(&args.run, &args.data, isa)?,
        false => begin(args, isa)?,
    };
    let (steps, metrics) = (trainer.options().steps, args.run.join("metrics.jsonl"));
    let mut best = forget_lost_steps(&metrics, trainer.step())?;
    let file = File::options().create(true).append(true).open(&metrics);
    let file = file.with_context(|| format!("cannot write {}", metrics.display()))?;
    let mut log = Log {
        file: BufWriter::new(file),
        json: args.json,
    };
    let (training, held_out) = trainer.sounds();
    note(format_args!(
        "{training} sounds to learn from, {held_out} held out; step {} of {steps}",
        trainer.step()
    ));
    let (started, mut last_line) = (Instant::now(), None::<Instant>);
    let first_step = trainer.step();
    while trainer.step() < steps {
        let row = StepRow {
            step: trainer.advance()?,
            seconds: started.elapsed().as_secs_f64(),
        };
        log.write(&row)?;
        let (number, due) = (
            row.step.step,
            last_line.is_none_or(|it| it.elapsed() >= LINE_EVERY),
        );
        if due || number == steps {
            last_line = Some(Instant::now());
            let per_step = row.seconds / (number - first_step) as f64;
            note(format_args!(
                "step {number}/{steps}  mel {:.4}  {:.2} steps/s  {} left",
                row.step.mel_loss,
                1.0 / per_step,
                output::clock((steps - number) as f64 * per_step)
            ));
        }
        if number % args.eval_every == 0 || number == steps {
            let val_mel_l1 = trainer.evaluate()?;
            note(format_args!(
                "step {number}/{steps}  held-out mel L1 {val_mel_l1:.4}"
            ));
            log.write(&EvalRow {
                step: number,
                val_mel_l1,
            })?;
            if best.is_none_or(|(_, least)| val_mel_l1 < least) {
                best = Some((number, val_mel_l1));
                write_vocoder(&trainer, &args.run.join(BEST))?;
            }
        }
        if number % args.save_every == 0 || number == steps {
            trainer.save(&args.run)?;
        }
    }
    let (best_step, val_mel_l1) = best.unwrap_or((steps, f64::NAN));
    let options = trainer.options();
    let trained = options.steps * (options.batch * options.segment) as u64;
    log.write(&DoneRow {
        event: "done",
        steps,
        best_step,
        val_mel_l1,
        griffin_lim_mel_l1: trainer.evaluate_griffin_lim()?,
        seconds: started.elapsed().as_secs_f64(),
        seconds_audio: trained as f64 / f64::from(trainer.config().sampling_rate),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A fresh run in an empty folder.
fn begin(args: &VocoderTrainArgs, isa: Isa) -> Result<Trainer> {
    let (config, weights) = match &args.from {
        Some(folder) => {
            let (config, weights) = Generator::open_parts(folder)?;
            (config, Some(weights))
        }
        None => (shape(args)?, None),
    };
    let mut options = TrainOptions {
        seed: args.seed,
        ..TrainOptions::default()
    };
    let given = |to: &mut usize, value: Option<usize>| *to = value.unwrap_or(*to);
    given(&mut options.batch, args.batch);
    given(&mut options.segment, args.segment);
    given(&mut options.discriminator_width, args.discriminator_width);
    given(&mut options.held_out, args.held_out);
    options.steps = args.steps.unwrap_or(options.steps);
    options.warmup = args.warmup.unwrap_or(options.warmup);
    options.rate = args.rate.unwrap_or(options.rate);
    options.mel_weight = args.mel_weight.unwrap_or(options.mel_weight);
    options.stft_weight = args.stft_weight.unwrap_or(options.stft_weight);
    options.adversarial_from = args.adversarial_from;
    options
        .check(&config)
        .map_err(|error| WrongUsage(error.to_string()))?;
    let metrics = args.run.join("metrics.jsonl");
    if metrics.exists() {
        return Err(WrongUsage(format!(
            "{} holds a run; hint: --resume goes on with it, or name another folder with --run",
            args.run.display()
        ))
        .into());
    }
    let trainer = Trainer::new(options, config, weights.as_ref(), &args.data, isa)?;
    fs::create_dir_all(&args.run)
        .with_context(|| format!("cannot create {}", args.run.display()))?;
    let resolved = args.run.join("config.resolved.toml");
    let text = format!(
        "[train]\n{}\n[vocoder]\n{}",
        toml::to_string(trainer.options())?,
        toml::to_string(trainer.config())?
    );
    fs::write(&resolved, text).with_context(|| format!("cannot write {}", resolved.display()))?;
    Ok(trainer)
}

/// The generator that `--preset` or `--config` names.
fn shape(args: &VocoderTrainArgs) -> Result<VocoderConfig> {
    if let Some(path) = &args.config {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let config = match path.extension().is_some_and(|it| it == "json") {
            true => VocoderConfig::from_json(&text),
            false => VocoderConfig::from_toml(&text),
        };
        return config.with_context(|| path.display().to_string());
    }
    Ok(match args.preset.as_str() {
        "v1" => VocoderConfig::v1(),
        "v2" => VocoderConfig::v2(),
        _ => VocoderConfig::v3(),
    })
}

/// Drops the rows of steps after `step`, which are made again; gives the best evaluation before.
fn forget_lost_steps(metrics: &Path, step: u64) -> Result<Option<(u64, f64)>> {
    let (mut kept, mut best) = (String::new(), None);
    let Ok(file) = File::open(metrics) else {
        return Ok(best);
    };
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("cannot read {}", metrics.display()))?;
        // A line that a dying machine cut short belongs to a lost step too.
        let Ok(row) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let Some(number) = row["step"].as_u64().filter(|&number| number <= step) else {
            continue;
        };
        if let Some(loss) = row["val_mel_l1"].as_f64()
            && best.is_none_or(|(_, least)| loss < least)
        {
            best = Some((number, loss));
        }
        kept += &line;
        kept.push('\n');
    }
    fs::write(metrics, kept).with_context(|| format!("cannot write {}", metrics.display()))?;
    Ok(best)
}

/// The generator as a folder for `--vocoder`, in float16.
fn write_vocoder(trainer: &Trainer, folder: &Path) -> Result<(), VocoderError> {
    trainer.config().write(folder)?;
    let weights = trainer.weights()?;
    weights.write_f16(&folder.join("generator.safetensors"))
}
