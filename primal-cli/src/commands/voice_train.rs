//! `primal voice-train`: a corpus to mel spectrograms, then the training loop of the voice.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use primal_model::metrics::VoiceEvalRow;
use primal_model::voice::{
    Example, Utterance, VoiceConfig, VoiceDoneRow, VoiceEvent, VoiceTrainer, read_corpus,
};
use primal_vocoder::{MelExtractor, VocoderConfig, read_wav, resample};
use rayon::prelude::*;
use serde::Serialize;

use crate::args::VoiceTrainArgs;
use crate::commands::train::{override_with, stop_on_signal};
use crate::commands::{apply_overrides, note_config};
use crate::output;
use crate::progress::{TrainProgress, note};
use crate::report::INTERRUPTED;

/// Trains and prints the last row of the metrics.
pub fn run(args: &VoiceTrainArgs) -> Result<ExitCode> {
    let config = resolve(args)?;
    // A wrong key is told before the corpus is read.
    config.validate()?;
    let examples = examples(&args.corpus)?;
    let mut trainer = match args.resume {
        true => VoiceTrainer::resume(config.clone(), examples)?,
        false => VoiceTrainer::new(config.clone(), examples)?,
    };
    let stop = stop_on_signal()?;
    let mut progress = None;
    let summary = trainer.run(&mut |event| {
        match event {
            VoiceEvent::Start {
                config,
                sentences,
                weights,
                step,
                frames,
            } => {
                describe(config, sentences, weights);
                progress = Some(TrainProgress::new(
                    "frames",
                    config.train.steps,
                    step,
                    frames,
                ));
            }
            VoiceEvent::Step(row) => {
                if let Some(progress) = &mut progress {
                    progress.step(row);
                }
            }
            VoiceEvent::Eval(row) => note(evaluation(row, config.train.steps)),
            VoiceEvent::Saved(path) => note(format_args!("saved {}", path.display())),
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
    let summary = summary?;
    let run = config.train.run.display();
    if summary.interrupted {
        let corpus = args.corpus.display();
        note(format_args!(
            "stopped: {}; hint: go on with: primal voice-train --corpus {corpus} --resume --run {run}",
            summary.checkpoint.display()
        ));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    conclude(&config, &summary.done, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// File or the checkpoint's own configuration, then the flags, then `--set`.
fn resolve(args: &VoiceTrainArgs) -> Result<VoiceConfig> {
    let mut config = VoiceConfig::default();
    override_with(&mut config.train.run, &args.run);
    let own = config.train.run.join(primal_model::checkpoint::CONFIG_FILE);
    let from = match &args.config {
        Some(path) => Some(path.clone()),
        None => (args.resume && own.exists()).then_some(own),
    };
    if let Some(path) = from {
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        config = VoiceConfig::from_toml(&text).with_context(|| path.display().to_string())?;
    }
    override_with(&mut config.train.run, &args.run);
    override_with(&mut config.optim.rule, &args.rule);
    override_with(&mut config.train.steps, &args.steps);
    override_with(&mut config.train.batch, &args.batch);
    override_with(&mut config.train.seed, &args.seed);
    override_with(&mut config.train.threads, &args.threads);
    override_with(&mut config.train.eval_every, &args.eval_every);
    override_with(&mut config.train.save_every, &args.save_every);
    apply_overrides(&args.set, |assignment| config.set(assignment))?;
    Ok(config)
}

/// The aligned sentences of a corpus with their spectrograms.
fn examples(corpus: &Path) -> Result<Vec<Example>> {
    let utterances = read_corpus(corpus)?;
    let total = utterances.len();
    let aligned: Vec<Utterance> = utterances
        .into_iter()
        .filter(|it| it.alignment.is_some())
        .collect();
    if aligned.is_empty() {
        bail!(
            "none of the {total} sentences of {} is aligned; hint: the corpus needs an \
             alignment.jsonl, as `cargo xtask voice-corpus` writes it",
            corpus.display()
        );
    }
    if aligned.len() < total {
        let without = total - aligned.len();
        note(format_args!(
            "{without} of {total} sentences are not aligned and stay out"
        ));
    }
    let config = VocoderConfig::v1();
    let extractor = MelExtractor::new(&config)?;
    aligned
        .into_par_iter()
        .map(|utterance| example(utterance, &extractor, config.sampling_rate))
        .collect()
}

fn example(utterance: Utterance, extractor: &MelExtractor, rate_hz: u32) -> Result<Example> {
    let sound = read_wav(&utterance.wav)?;
    let samples = resample(&sound.samples, sound.rate_hz, rate_hz)?;
    let mel = extractor
        .extract(&samples)
        .with_context(|| utterance.wav.display().to_string())?;
    let mut rows = vec![0.0; mel.channels() * mel.len()];
    for band in 0..mel.channels() {
        for (frame, &value) in mel.row(band).iter().enumerate() {
            rows[frame * mel.channels() + band] = value;
        }
    }
    // Only what is aligned is here.
    let alignment = utterance.alignment.unwrap_or_default();
    Ok(Example::new(&utterance.id, alignment, rows)?)
}

fn describe(config: &VoiceConfig, (train, val): (usize, usize), (weights, on_grid): (u64, u64)) {
    note_config(&config.to_toml().unwrap_or_default());
    note(format_args!(
        "  {:<32} {train}, {val} held out",
        "sentences"
    ));
    note(format_args!(
        "  {:<32} {weights}, {on_grid} on the grid",
        "weights"
    ));
}

fn evaluation(row: &VoiceEvalRow, steps: u32) -> String {
    format!(
        "step {}/{steps}  held-out mel error {:.4}, durations {:.4}{}",
        row.step,
        row.val_loss,
        row.duration_loss,
        if row.is_best { ", the best so far" } else { "" }
    )
}

/// The last row of `metrics.jsonl`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum LastRow<'a> {
    Done(&'a VoiceDoneRow),
}

fn conclude(config: &VoiceConfig, done: &VoiceDoneRow, json: bool) -> Result<()> {
    if json {
        return output::json(&LastRow::Done(done));
    }
    let run = config.train.run.display();
    output::table([
        ("held-out mel error", format!("{:.4}", done.val_loss)),
        (
            "the best",
            format!("{:.4} at step {}", done.best_val_loss, done.best_step),
        ),
        (
            "steps",
            format!("{} in {}", done.steps, output::clock(done.seconds)),
        ),
        ("speed", format!("{:.0} frames/s", done.frames_per_s)),
        (
            "state of a weight",
            format!("{:.3} bytes", done.state_bytes_per_weight),
        ),
        ("peak memory", output::bytes(done.peak_rss_bytes)),
        ("state hash", done.state_hash.clone()),
        ("voice", format!("{run}/best")),
    ])
}
