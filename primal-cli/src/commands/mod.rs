//! One module a verb, and what several of them need.

pub mod bench;
mod bench_vocoder;
pub mod chat;
pub mod completions;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod phonemes;
pub mod plan;
pub mod report;
pub mod speak;
pub mod train;
pub mod vocode;
pub mod vocoder_train;
pub mod voice_train;
pub mod watch;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use primal_kernels::{CacheKind, Isa};
use primal_model::checkpoint::Checkpoint;
use primal_model::config::{Backend, Config, KvCacheKind, Rule};
use primal_model::generate::Generator;
use primal_model::sampling::{Sampling, TokenSampler};
use primal_model::tokenizer::Tokenizer;
use primal_model::{ModelError, ResidentModel};

use crate::args::{BaseArgs, SamplingArgs, WriterArgs};
use crate::progress::note;
use crate::report::WrongUsage;

/// The configuration that `--preset` or `--config` names; without either the preset `small`.
/// Lets a preset train on a GPU if that is asked for: by the rule that has kernels there.
fn fit_rule_to(config: &mut Config, backend: Option<Backend>, gpus: Option<usize>) {
    let on_gpu = backend == Some(Backend::Cuda) || gpus.is_some_and(|gpus| gpus > 1);
    let rule = config.optim.rule;
    if on_gpu && !Backend::Cuda.trains(rule) {
        config.optim.rule = Rule::Consensus;
        note(format_args!(
            "a GPU does not train by rule {rule} yet: this is rule consensus"
        ));
    }
}

fn base_config(base: &BaseArgs) -> Result<Config> {
    if let Some(path) = &base.config {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        return Config::from_toml(&text).with_context(|| path.display().to_string());
    }
    Ok(Config::preset(base.preset.as_deref().unwrap_or("small"))?)
}

/// Applies `--set`, after every other flag.
fn apply_overrides(
    assignments: &[String],
    mut set: impl FnMut(&str) -> Result<(), ModelError>,
) -> Result<()> {
    for assignment in assignments {
        set(assignment).map_err(|error| WrongUsage(error.to_string()))?;
    }
    Ok(())
}

/// Notes every key of a resolved configuration in TOML, a line each.
fn note_config(toml: &str) {
    let mut section = "";
    for line in toml.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, value)) = line.split_once(" = ") {
            note(format_args!("  {:<32} {value}", format!("{section}.{key}")));
        }
    }
}

/// Starts the worker threads of a command that only reads a model; 0 means all cores.
fn start_threads(threads: usize) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global()
        .context("cannot start the worker threads")
}

/// A model with all that belongs to it; M is what it was loaded for.
struct Loaded<M> {
    checkpoint: Checkpoint,
    model: M,
    tokenizer: Tokenizer,
    isa: Isa,
}

impl<M> Loaded<M> {
    /// Opens a checkpoint or the newest one of a run; `load` takes its model.
    fn open(
        path: &Path,
        threads: usize,
        load: impl FnOnce(&Checkpoint) -> Result<M, ModelError>,
    ) -> Result<Self> {
        start_threads(threads)?;
        let isa = Isa::from_env()?;
        let checkpoint = Checkpoint::open(path)?;
        let model = load(&checkpoint)?;
        let tokenizer = checkpoint.load_tokenizer()?;
        Ok(Loaded {
            checkpoint,
            model,
            tokenizer,
            isa,
        })
    }
}

impl SamplingArgs {
    /// Chooses with the seed of the flag, or with `default`.
    fn sampler(&self, default: u64) -> Result<TokenSampler> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed.unwrap_or(default),
        };
        Ok(TokenSampler::new(sampling).map_err(|error| WrongUsage(error.to_string()))?)
    }
}

impl WriterArgs {
    /// The model of `path`, where and as it shall compute.
    fn load(&self, path: &Path) -> Result<Loaded<ResidentModel>> {
        Loaded::open(path, self.threads, |checkpoint| {
            ResidentModel::load(checkpoint, self.backend, self.compute)
        })
    }
}

/// How keys and values are kept: as asked for, or as the model is configured.
fn cache_kind(checkpoint: &Checkpoint, asked: Option<KvCacheKind>) -> CacheKind {
    asked.unwrap_or(checkpoint.config.inference.kv_cache).into()
}

/// A text in the making: the model, what it has read and written, and how it chooses.
struct Writer<'m> {
    generator: Generator<'m>,
    tokenizer: &'m Tokenizer,
    sampler: TokenSampler,
    history: Vec<u32>,
}

impl<'m> Writer<'m> {
    fn new(
        loaded: &'m Loaded<ResidentModel>,
        sampler: TokenSampler,
        kv_cache: Option<KvCacheKind>,
    ) -> Result<Self> {
        let kind = cache_kind(&loaded.checkpoint, kv_cache);
        Ok(Writer {
            generator: loaded.model.generator(loaded.isa, kind)?,
            tokenizer: &loaded.tokenizer,
            sampler,
            history: Vec::new(),
        })
    }

    /// Reads text; an empty one at the very start stands for the beginning of a document.
    /// Returns how many tokens were read.
    fn read(&mut self, text: &str) -> Result<usize> {
        self.read_tokens(self.tokenizer.encode(text)?)
    }

    /// The same, and the spelling of a control token is letters.
    fn read_spoken(&mut self, text: &str) -> Result<usize> {
        self.read_tokens(self.tokenizer.encode_spoken(text)?)
    }

    /// Forgets all that was read and written.
    fn forget(&mut self) {
        self.generator.clear();
        self.history.clear();
    }

    fn read_tokens(&mut self, mut tokens: Vec<u32>) -> Result<usize> {
        if self.history.is_empty() {
            if let Some(start) = self.tokenizer.start_of_text() {
                tokens.insert(0, start);
            }
            if tokens.is_empty() {
                tokens = match self.tokenizer.end_of_text() {
                    Some(token) => vec![token],
                    None => self.tokenizer.encode("\n")?,
                };
            }
        }
        if !tokens.is_empty() {
            self.generator.read(&tokens)?;
            self.history.extend(&tokens);
        }
        Ok(tokens.len())
    }

    /// Reads a text from its start, given as its tokens; what is in memory already is not read
    /// again.
    fn read_from_start(&mut self, tokens: &[u32]) -> Result<()> {
        let known = self.generator.history().iter().zip(tokens);
        // One token is left to read: the logits that follow it are wanted.
        let known = known
            .take_while(|(a, b)| a == b)
            .count()
            .min(tokens.len().saturating_sub(1));
        self.generator.truncate(known);
        self.generator.read(&tokens[known..])?;
        self.history = tokens.to_vec();
        Ok(())
    }

    /// Writes up to `n_tokens`, each handed to `on_piece` with the text that became certain.
    /// Ends early at the end of a document or turn or when `on_piece` returns false. Returns the tokens
    /// written.
    fn write(
        &mut self,
        n_tokens: usize,
        mut on_piece: impl FnMut(&str) -> Result<bool>,
    ) -> Result<usize> {
        let mut decoder = self.tokenizer.stream_decoder();
        let mut written = 0;
        while written < n_tokens {
            let token = self.choose()?;
            if self.tokenizer.is_end(token) {
                break;
            }
            written += 1;
            self.history.push(token);
            let go_on = on_piece(&decoder.push(token)?)?;
            self.generator.read(&[token])?;
            if !go_on {
                break;
            }
        }
        on_piece(&decoder.finish())?;
        Ok(written)
    }

    fn choose(&mut self) -> Result<u32, ModelError> {
        // A model may have more rows than its tokenizer has tokens: those stand for no text.
        let known = self.tokenizer.vocab_size();
        self.generator
            .choose(&mut self.sampler, known, &self.history)
    }
}
