//! `primal bench`: tokens per second of reading, writing and training.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use primal_kernels::{Isa, multiply_rates, read_rate};
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Backend, Compute, Config};
use primal_model::generate::Generator;
use primal_model::process::peak_rss_bytes;
use primal_model::sampling::{Sampling, TokenSampler};
use primal_model::train::{Event, Trainer};
use primal_model::{GpuUse, Model, ResidentModel, Work};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::commands::train::cut_batch;
use crate::commands::{apply_overrides, bench_vocoder, fit_rule_to, start_threads};
use crate::output;
use crate::progress::note;

/// Training steps before the first that counts: buffers grow and caches fill.
const WARM_UP_STEPS: usize = 2;

/// Measurements of the units' speed on each side of a test; the best counts.
const PEAK_REPS: usize = 3;

/// One test, named as llama-bench does.
#[derive(Serialize)]
struct Row<'a> {
    model: &'a str,
    backend: &'static str,
    /// Of the processor, or the GPU's architecture.
    isa: String,
    threads: usize,
    test: String,
    /// Median, least and most over the repetitions.
    tokens_per_s: f64,
    min: f64,
    max: f64,
    weight_bytes: u64,
    peak_rss_bytes: u64,
    /// All our buffers on the GPU.
    peak_vram_bytes: Option<u64>,
    /// How fast all threads read the weights and do nothing else, measured around the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes_per_s: Option<f64>,
    /// The share of it that writing reaches: weights read a second by that.
    #[serde(skip_serializing_if = "Option::is_none")]
    bandwidth_fraction: Option<f64>,
    /// The share that reading and training reach of the speed at which the units multiply out of
    /// registers, measured around the test.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_fraction: Option<f64>,
    /// Of training: all buffers by the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger_bytes: Option<u64>,
}

/// What a test measured.
struct Measured {
    test: String,
    /// Tokens per second, one a repetition.
    speeds: Vec<f64>,
    weight_bytes: u64,
    floor: Option<Floor>,
    ledger_bytes: Option<u64>,
    gpu: Option<GpuUse>,
}

/// What bounds a test, measured around it.
enum Floor {
    /// Bytes a second of reading alone, and bytes of weights a token.
    Bandwidth { rate: f64, bytes: f64 },
    /// Seconds of a token's multiply-adds alone.
    Peak { seconds: f64 },
}

/// What is measured: a model's name, its configuration and its vocabulary.
struct Subject {
    name: String,
    config: Config,
    vocab: usize,
    checkpoint: Option<Checkpoint>,
}

/// Measures and prints one row a test.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    start_threads(args.threads)?;
    let isa = Isa::from_env()?;
    if !args.vocoder.is_empty() {
        bench_vocoder::run(args, isa)?;
        return Ok(ExitCode::SUCCESS);
    }
    let subject = Subject::new(args)?;
    let context = subject.config.model.context;
    // Without any test named: reading a prompt of half the context, and writing.
    let nothing_named = args.pp.is_empty() && args.tg.is_empty() && !args.train;
    let (pp, tg) = if nothing_named {
        (vec![context / 2], vec![context.min(256) / 2])
    } else {
        (args.pp.clone(), args.tg.clone())
    };
    for &length in pp.iter().chain(&tg) {
        ensure!(
            length <= context,
            "{length} tokens do not fit the model's context of {context}"
        );
    }
    if !args.json {
        output::line(format_args!(
            "{:<18} {:<8} {:>7} {:>8} {:>12} {:>12} {:>12} {:>12} {:>10}",
            "model", "isa", "threads", "test", "tokens/s", "min", "max", "weights", "of floor"
        ))?;
    }
    let print = |measured: Measured| -> Result<()> {
        let Measured {
            test,
            mut speeds,
            weight_bytes,
            floor,
            ledger_bytes,
            gpu,
        } = measured;
        speeds.sort_by(f64::total_cmp);
        let tokens_per_s = speeds[speeds.len() / 2];
        let (read, peak) = match floor {
            Some(Floor::Bandwidth { rate, bytes }) => (Some((rate, bytes)), None),
            Some(Floor::Peak { seconds }) => (None, Some(seconds * tokens_per_s)),
            None => (None, None),
        };
        let row = Row {
            model: &subject.name,
            backend: if gpu.is_some() { "cuda" } else { "cpu" },
            isa: gpu
                .as_ref()
                .map_or(isa.name(), |gpu| &gpu.architecture)
                .to_string(),
            threads: rayon::current_num_threads(),
            test,
            tokens_per_s,
            min: speeds[0],
            max: speeds[speeds.len() - 1],
            weight_bytes,
            peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
            peak_vram_bytes: gpu.map(|gpu| gpu.allocated_bytes),
            read_bytes_per_s: read.map(|(rate, _)| rate),
            bandwidth_fraction: read.map(|(rate, bytes)| tokens_per_s * bytes / rate),
            peak_fraction: peak,
            ledger_bytes,
        };
        if args.json {
            output::json(&row)
        } else {
            print_row(&row)
        }
    };
    if !(pp.is_empty() && tg.is_empty()) {
        let kv_cache = args.kv_cache.unwrap_or(subject.config.inference.kv_cache);
        let model = subject.model(args.backend)?;
        let weight_bytes = model.weight_bytes();
        let vocab = model.shape().vocab;
        let mut reader = Reader {
            generator: model.generator(isa, kv_cache.into())?,
            vocab,
            chooser: model.gpu().map(|_| greedy()).transpose()?,
        };
        for length in pp {
            let work = Work::of_reading(&subject.config, vocab, length)?;
            let gpu = model.gpu();
            let (speeds, floor) = beside_peak(isa, &work, gpu.as_ref(), || {
                reading(&mut reader, length, args.reps)
            })?;
            print(Measured {
                test: format!("pp{length}"),
                speeds,
                weight_bytes,
                floor,
                ledger_bytes: None,
                gpu,
            })?;
        }
        let codes = model.codes();
        let code_bytes: usize = codes.iter().map(|part| part.len()).sum();
        for length in tg {
            let mut rates = read_rate(isa, &codes, args.reps);
            let speeds = writing(&mut reader, length, args.reps)?;
            rates.extend(read_rate(isa, &codes, args.reps));
            rates.sort_by(f64::total_cmp);
            print(Measured {
                test: format!("tg{length}"),
                speeds,
                weight_bytes,
                floor: (code_bytes > 0).then(|| Floor::Bandwidth {
                    rate: rates[rates.len() / 2],
                    bytes: code_bytes as f64,
                }),
                ledger_bytes: None,
                gpu: model.gpu(),
            })?;
        }
    }
    if args.train {
        print(training(&subject, args, isa)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Subject {
    fn new(args: &BenchArgs) -> Result<Subject> {
        if let Some(path) = &args.model {
            let checkpoint = Checkpoint::open(path)?;
            return Ok(Subject {
                name: path
                    .file_name()
                    .unwrap_or(path.as_os_str())
                    .to_string_lossy()
                    .into_owned(),
                config: checkpoint.config.clone(),
                vocab: checkpoint.position.vocab,
                checkpoint: Some(checkpoint),
            });
        }
        let name = args.preset.as_deref().unwrap_or("small");
        let mut config = Config::preset(name)?;
        fit_rule_to(&mut config, Some(args.backend), None);
        apply_overrides(&args.set, |assignment| config.set(assignment))?;
        let vocab = match config.data.tokenizer.as_str() {
            "gpt2" => 50_257,
            // As many as tinyshakespeare has, the text that the preset is meant for.
            "chars" => 65,
            _ => 256,
        };
        Ok(Subject {
            name: name.to_string(),
            config,
            vocab,
            checkpoint: None,
        })
    }

    /// The checkpoint's weights, or random ones, where they are to be measured.
    fn model(&self, backend: Backend) -> Result<ResidentModel> {
        Ok(match &self.checkpoint {
            Some(checkpoint) => ResidentModel::load(checkpoint, backend, Compute::Int8)?,
            None => ResidentModel::random(&self.config, self.vocab, backend)?,
        })
    }
}

/// What reads tokens, and how it comes to know what follows them.
struct Reader<'m> {
    generator: Generator<'m>,
    vocab: usize,
    /// On a GPU, which chooses a token where its logits lie; the processor's are at hand.
    chooser: Option<TokenSampler>,
}

impl Reader<'_> {
    /// Reads tokens, until what follows them is known.
    fn read(&mut self, tokens: &[u32]) -> Result<()> {
        self.generator.read(tokens)?;
        match &mut self.chooser {
            Some(chooser) => {
                self.generator.choose(chooser, self.vocab, &[])?;
            }
            None => {
                self.generator.logits()?;
            }
        }
        Ok(())
    }
}

/// Takes the likeliest token.
fn greedy() -> Result<TokenSampler> {
    Ok(TokenSampler::new(Sampling {
        temperature: 0.0,
        ..Sampling::default()
    })?)
}

/// Tokens per second of reading a prompt of `length` into an empty memory.
fn reading(reader: &mut Reader<'_>, length: usize, reps: usize) -> Result<Vec<f64>> {
    let prompt: Vec<u32> = (0..length)
        .map(|index| made_up_token(index, reader.vocab))
        .collect();
    let mut once = || -> Result<f64> {
        reader.generator.clear();
        let started = Instant::now();
        reader.read(&prompt)?;
        Ok(length as f64 / started.elapsed().as_secs_f64())
    };
    once()?;
    (0..reps).map(|_| once()).collect()
}

/// Tokens per second of writing `length` tokens one at a time.
fn writing(reader: &mut Reader<'_>, length: usize, reps: usize) -> Result<Vec<f64>> {
    let mut once = || -> Result<f64> {
        reader.generator.clear();
        let started = Instant::now();
        for index in 0..length {
            reader.read(&[made_up_token(index, reader.vocab)])?;
        }
        Ok(length as f64 / started.elapsed().as_secs_f64())
    };
    once()?;
    (0..reps).map(|_| once()).collect()
}

/// Runs a test bound by arithmetic between two measurements of the arithmetic alone, which a GPU
/// has none of.
fn beside_peak(
    isa: Isa,
    work: &Work,
    gpu: Option<&GpuUse>,
    test: impl FnOnce() -> Result<Vec<f64>>,
) -> Result<(Vec<f64>, Option<Floor>)> {
    let seconds = || match gpu {
        Some(_) => None,
        None => multiply_rates(isa, PEAK_REPS).map(|rates| work.seconds(&rates)),
    };
    let before = seconds();
    let speeds = test()?;
    let seconds = before.zip(seconds()).map(|(a, b)| a.min(b));
    Ok((speeds, seconds.map(|seconds| Floor::Peak { seconds })))
}

/// Training steps through the trainer itself, on made-up text in a temporary folder.
fn training(subject: &Subject, args: &BenchArgs, isa: Isa) -> Result<Measured> {
    let folder = TemporaryFolder::create()?;
    let mut config = subject.config.clone();
    cut_batch(&mut config.train, args.batch, args.micro_batches);
    let steps = WARM_UP_STEPS + args.reps;
    let text = folder.0.join("text.txt");
    // As many kinds of token as the model has: characters of a small vocabulary, else bytes.
    let kinds = subject.vocab.min(256);
    let character = |index| char::from_u32(0x100 + made_up_token(index, kinds)).unwrap_or(' ');
    let made_up: String = (0..16 * (config.model.context + kinds))
        .map(character)
        .collect();
    std::fs::write(&text, made_up).with_context(|| format!("cannot write {}", text.display()))?;
    config.data.train = vec![text.clone()];
    config.data.val = vec![text];
    config.data.tokenizer = if kinds < 256 { "chars" } else { "bytes" }.to_string();
    config.model.vocab_size = subject.vocab;
    config.train.run = folder.0.join("run");
    config.train.threads = args.threads;
    config.train.backend = args.backend;
    // Stopped by hand before the last step, so that no evaluation is made.
    config.train.steps = steps as u32 + 1;
    config.train.eval_every = 0;
    config.train.save_every = 0;
    let work = Work::of_training(&config, subject.vocab)?;
    let mut trainer = Trainer::new(config)?;
    let gpu = trainer.gpu();
    let (speeds, floor) = beside_peak(isa, &work, gpu.as_ref(), || {
        let mut speeds = Vec::with_capacity(steps);
        trainer.run(&mut |event| {
            if let Event::Step(row) = event {
                speeds.push(row.tokens_per_s);
            }
            if speeds.len() < steps {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(speeds.split_off(WARM_UP_STEPS))
    })?;
    Ok(Measured {
        test: "train".to_string(),
        speeds,
        weight_bytes: weight_bytes(trainer.model()),
        floor,
        ledger_bytes: Some(trainer.ledger().total()),
        gpu,
    })
}

/// A token that looks like nothing in particular; `vocab` of them in a row are all different.
fn made_up_token(index: usize, vocab: usize) -> u32 {
    // 7919 is prime, so it has no factor in common with any vocabulary but its own multiples.
    (index * 7919 % vocab) as u32
}

fn weight_bytes(model: &Model) -> u64 {
    model
        .grid_matrices()
        .iter()
        .map(|(_, matrix)| matrix.bytes() as u64)
        .sum()
}

fn print_row(row: &Row<'_>) -> Result<()> {
    output::line(format_args!(
        "{:<18} {:<8} {:>7} {:>8} {:>12.1} {:>12.1} {:>12.1} {:>12} {:>10}",
        row.model,
        row.isa,
        row.threads,
        row.test,
        row.tokens_per_s,
        row.min,
        row.max,
        output::bytes(row.weight_bytes),
        row.bandwidth_fraction
            .or(row.peak_fraction)
            .map_or("-".to_string(), |fraction| format!(
                "{:.0} %",
                100.0 * fraction
            )),
    ))
}

/// A folder that goes away with its owner.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("primal-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(TemporaryFolder(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            note(format_args!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_tokens_cover_the_vocabulary() {
        for vocab in [2, 65, 256, 50_257] {
            let tokens: std::collections::BTreeSet<u32> = (0..vocab)
                .map(|index| made_up_token(index, vocab))
                .collect();
            assert_eq!(tokens.len(), vocab);
        }
    }
}
