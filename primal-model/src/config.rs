//! What a run is: every number of model, data, training and learning rule, as strict TOML.

mod inference;
mod model;
mod presets;

use std::path::PathBuf;

pub use inference::{InferenceConfig, KvCacheKind};
pub use model::{FeedForward, FloatPart, ModelConfig, NormKind, PositionKind, RopeScaling};
pub use presets::PRESETS;
use primal_kernels::Int16Panels;
pub use primal_optim::{OptimConfig, Rule};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::ModelError;

/// Keys that change how long a run is, what it costs, what it reads and how it is watched, but not
/// what a step computes; the data is compared by its fingerprint, not by its path.
const FREE_ON_RESUME: [&str; 20] = [
    "inference.kv_cache",
    "data.train",
    "data.val",
    "data.val_fraction",
    "data.text_key",
    "train.run",
    "train.steps",
    "train.micro_batches_per_pass",
    "train.threads",
    "train.backend",
    "train.gpus",
    "train.eval_every",
    "train.eval_tokens",
    "train.save_every",
    "train.keep_checkpoints",
    "train.recompute",
    "train.ignore_memory_limit",
    "train.memory_budget_mib",
    "train.rank_timeout_s",
    "train.compare_ranks_every",
];

/// The complete configuration of a run. TOML sections `[model]`, `[data]`, `[train]`, `[optim]`,
/// `[inference]`; keys are the field names, a missing key has its default, an unknown key is an error.
///
/// The default is the preset `small`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Shape of the transformer and how its weights are stored.
    pub model: ModelConfig,
    /// Where the text comes from and how it becomes tokens.
    pub data: DataConfig,
    /// Length, batch, evaluation and checkpoints of the run.
    pub train: TrainConfig,
    /// Learning rule and its numbers.
    pub optim: OptimConfig,
    /// How the model is run.
    pub inference: InferenceConfig,
}

/// Where the text comes from and how it becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Text files, folders, JSONL files; empty means the default corpus.
    pub train: Vec<PathBuf>,
    /// Validation text; empty takes the last `val_fraction` of the training text.
    pub val: Vec<PathBuf>,
    /// `bytes`, `chars`, `gpt2`, or the path of a Hugging Face `tokenizer.json`.
    pub tokenizer: String,
    /// Fraction of the data held out where `val` is empty.
    pub val_fraction: f32,
    /// Key of the text in the objects of a JSONL file.
    pub text_key: String,
    /// Whether `train` and `val` are JSONL files of conversations, whose answers alone carry loss.
    pub instructions: bool,
}

/// Length, batch, evaluation and checkpoints of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Folder that receives metrics and checkpoints.
    pub run: PathBuf,
    /// Optimizer steps.
    pub steps: u32,
    /// Sequences in a step.
    pub batch: usize,
    /// Pieces that a step is cut into, each of which casts votes; divides `batch`.
    pub micro_batches: usize,
    /// Pieces computed at once; divides `micro_batches`. Costs memory, changes no result.
    pub micro_batches_per_pass: usize,
    /// Every random number of the run is a function of it.
    pub seed: u64,
    /// Worker threads; 0 uses all cores. Changes no result.
    pub threads: usize,
    /// What computes.
    pub backend: Backend,
    /// GPUs that share the micro-batches of a step; divides `micro_batches`. Changes no result.
    pub gpus: usize,
    /// Steps between evaluations; 0 evaluates only at the end.
    pub eval_every: u32,
    /// Tokens of an evaluation, at most; rounded down to whole windows.
    pub eval_tokens: usize,
    /// Steps between checkpoints; 0 saves only at the end.
    pub save_every: u32,
    /// Newest checkpoints kept.
    pub keep_checkpoints: usize,
    /// Activation checkpointing: 0 keeps all activations, k keeps the input of every k-th block.
    /// 1 also computes a block in parts of a micro-batch.
    pub recompute: usize,
    /// Numbers of the blocks that learn; empty: everything does. Embeddings, head and the other
    /// blocks then stay as they are, without ballots.
    pub only_blocks: Vec<usize>,
    /// Whether a run may begin that takes more memory by the ledger than is available.
    pub ignore_memory_limit: bool,
    /// Memory that the run may take by its ledger, in MiB: `recompute` is then chosen to fit. 0
    /// sets no limit and takes `recompute` as it stands.
    pub memory_budget_mib: u64,
    /// How matrix products with weights on the grid are computed.
    pub compute: Compute,
    /// Seconds that ranks, or GPUs, wait for each other before they give up.
    pub rank_timeout_s: u64,
    /// Steps between comparisons of the ranks' states; 0 compares only before a checkpoint.
    pub compare_ranks_every: u32,
}

/// How matrix products with weights on the grid are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compute {
    /// In int8: weights through the table, activations and gradients in int8 with a scale a
    /// token, or a group of it where weights have groups; weight gradients in int16, with a scale
    /// for each column of 128 tokens.
    #[default]
    Int8,
    /// The same, and what the weight gradients multiply is rounded to the range of int8. An
    /// experiment: no faster, since the kernel is that of int16.
    Int8Blocks,
    /// As `int8`, with weight gradients in float32: what a GPU computes.
    Int8FloatGradients,
    /// In float32.
    Float,
}

impl Compute {
    /// Whether products with a matrix on the grid are of integers.
    pub(crate) fn is_int8(self) -> bool {
        self != Compute::Float
    }

    /// The most units of what weight gradients of matrices on the grid multiply, where they are of
    /// integers.
    pub(crate) fn gradient_units(self) -> Option<i16> {
        match self {
            Compute::Int8 => Some(Int16Panels::MAX),
            Compute::Int8Blocks => Some(127),
            Compute::Int8FloatGradients | Compute::Float => None,
        }
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A GPU where there is one, else the processor.
    #[default]
    Auto,
}

impl Backend {
    /// Whether it has the kernels of a rule.
    pub fn trains(self, rule: Rule) -> bool {
        self != Backend::Cuda || !matches!(rule, Rule::Spectral | Rule::Muon)
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            train: Vec::new(),
            val: Vec::new(),
            tokenizer: "bytes".to_string(),
            val_fraction: 0.1,
            text_key: "text".to_string(),
            instructions: false,
        }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            run: PathBuf::from("runs/small"),
            steps: 1000,
            batch: 16,
            micro_batches: 2,
            micro_batches_per_pass: 1,
            seed: 1,
            threads: 0,
            backend: Backend::Auto,
            gpus: 1,
            eval_every: 250,
            eval_tokens: 65_536,
            save_every: 250,
            keep_checkpoints: 2,
            recompute: 0,
            only_blocks: Vec::new(),
            ignore_memory_limit: false,
            memory_budget_mib: 0,
            compute: Compute::Int8,
            rank_timeout_s: 300,
            compare_ranks_every: 100,
        }
    }
}

impl Config {
    /// How products are computed: as `train.compute` says, but float rules have no integers.
    pub fn resolved_compute(&self) -> Compute {
        if self.optim.rule.is_on_grid() {
            self.train.compute
        } else {
            Compute::Float
        }
    }

    /// Reads TOML over the defaults. Ranges are checked by [`Config::validate`].
    ///
    /// # Errors
    /// Syntax errors and wrong types with their line, unknown keys with the nearest known one.
    pub fn from_toml(text: &str) -> Result<Config, ModelError> {
        read_toml(text)
    }

    /// Applies one override, `section.key=value`. The value is TOML; text needs no quotes, and one
    /// bare value sets a list of one.
    ///
    /// # Errors
    /// No `=`, an unknown key (with the nearest known one), a value of the wrong type.
    pub fn set(&mut self, assignment: &str) -> Result<(), ModelError> {
        set_key(self, assignment)
    }

    /// The complete configuration as TOML that [`Config::from_toml`] reads back to an equal one.
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
        self.model.validate()?;
        self.data.validate()?;
        self.train.validate(self.model.context)?;
        let n_layer = self.model.n_layer;
        let outside = self
            .train
            .only_blocks
            .iter()
            .find(|block| **block >= n_layer);
        check(
            "train.only_blocks",
            outside.copied().unwrap_or_default(),
            outside.is_none(),
            || format!("must be below model.n_layer = {n_layer}"),
        )?;
        check(
            "optim.rule",
            self.optim.rule,
            self.train.backend.trains(self.optim.rule),
            || {
                "trains on the processor alone so far; hint: --backend cpu, or --rule consensus"
                    .into()
            },
        )?;
        check(
            "data.instructions",
            self.data.instructions,
            !(self.data.instructions && self.data.train.is_empty()),
            || "needs data.train".to_string(),
        )?;
        self.optim.validate()?;
        Ok(())
    }

    /// The same with the context that the model has when it is used, not that of its training.
    pub fn in_use(&self) -> Config {
        let mut config = self.clone();
        config.model.context = config.model.context.max(config.model.full_context);
        config.model.full_context = 0;
        config
    }

    /// Raises `train.eval_tokens` to one window of the context: the default is for small models.
    pub(crate) fn hold_one_window(&mut self) {
        self.train.eval_tokens = self.train.eval_tokens.max(self.model.context);
    }

    /// Checks that a run of this configuration may go on under `other`.
    ///
    /// # Errors
    /// The first key whose values differ and that decides what a step computes.
    pub fn check_resumable(&self, other: &Config) -> Result<(), ModelError> {
        same_but(self, other, &FREE_ON_RESUME)
    }
}

impl DataConfig {
    fn validate(&self) -> Result<(), ModelError> {
        let fraction = self.val_fraction;
        check(
            "data.val_fraction",
            fraction,
            fraction > 0.0 && fraction < 1.0,
            || "must lie between 0 and 1".to_string(),
        )?;
        check("data.tokenizer", "\"\"", !self.tokenizer.is_empty(), || {
            "expected bytes, chars, gpt2 or the path of a tokenizer.json".to_string()
        })
    }
}

impl TrainConfig {
    fn validate(&self, context: usize) -> Result<(), ModelError> {
        // The range of the micro-batch field in the counters of the random numbers.
        const MAX_MICRO_BATCHES: usize = 1 << 14;
        at_least_one("train.steps", self.steps as usize)?;
        at_least_one("train.batch", self.batch)?;
        at_least_one("train.micro_batches", self.micro_batches)?;
        at_least_one("train.micro_batches_per_pass", self.micro_batches_per_pass)?;
        at_least_one("train.keep_checkpoints", self.keep_checkpoints)?;
        let (gpus, pieces) = (self.gpus, self.micro_batches);
        at_least_one("train.gpus", gpus)?;
        let several = gpus > 1;
        let on_cpu = several && self.backend == Backend::Cpu;
        check("train.gpus", gpus, !on_cpu, || {
            "needs --backend cuda".into()
        })?;
        check("train.gpus", gpus, pieces.is_multiple_of(gpus), || {
            format!("must divide train.micro_batches = {pieces}")
        })?;
        let per_pass = self.micro_batches_per_pass;
        let apart = !several || per_pass == 1;
        check("train.micro_batches_per_pass", per_pass, apart, || {
            format!("must be 1 with train.gpus = {gpus}")
        })?;
        check(
            "train.micro_batches",
            self.micro_batches,
            self.micro_batches < MAX_MICRO_BATCHES,
            || format!("must be below {MAX_MICRO_BATCHES}"),
        )?;
        check(
            "train.micro_batches",
            self.micro_batches,
            self.batch.is_multiple_of(self.micro_batches),
            || format!("must divide train.batch = {}", self.batch),
        )?;
        check(
            "train.micro_batches_per_pass",
            self.micro_batches_per_pass,
            self.micro_batches
                .is_multiple_of(self.micro_batches_per_pass),
            || format!("must divide train.micro_batches = {}", self.micro_batches),
        )?;
        check(
            "train.eval_tokens",
            self.eval_tokens,
            self.eval_tokens >= context,
            || format!("must hold one window of model.context = {context}"),
        )?;
        check(
            "train.seed",
            self.seed,
            i64::try_from(self.seed).is_ok(),
            || format!("TOML integers end at {}", i64::MAX),
        )?;
        check(
            "train.run",
            "\"\"",
            !self.run.as_os_str().is_empty(),
            || "names no folder".to_string(),
        )
    }
}

/// Reads strict TOML over the defaults of a configuration of sections.
pub(crate) fn read_toml<T: Serialize + DeserializeOwned + Default>(
    text: &str,
) -> Result<T, ModelError> {
    let table: Table = toml::from_str(text).map_err(syntax_error)?;
    let known = to_table(&T::default())?;
    for (section, value) in &table {
        let Some(known_keys) = known.get(section).and_then(Value::as_table) else {
            return Err(unknown_key(section, None, &known));
        };
        for key in value.as_table().into_iter().flat_map(Table::keys) {
            if !known_keys.contains_key(key) {
                return Err(unknown_key(section, Some(key), &known));
            }
        }
    }
    toml::from_str(text).map_err(syntax_error)
}

/// Applies one override, `section.key=value`.
pub(crate) fn set_key<T: Serialize + DeserializeOwned>(
    config: &mut T,
    assignment: &str,
) -> Result<(), ModelError> {
    let bad = |reason: String| ModelError::BadAssignment {
        assignment: assignment.to_string(),
        reason,
    };
    let (path, text) = assignment
        .split_once('=')
        .ok_or_else(|| bad("expected section.key=value".to_string()))?;
    let (section, key) = path
        .trim()
        .split_once('.')
        .ok_or_else(|| bad("expected section.key=value".to_string()))?;
    let mut table = to_table(config)?;
    let Some(slot) = table
        .get_mut(section)
        .and_then(Value::as_table_mut)
        .and_then(|keys| keys.get_mut(key))
    else {
        return Err(unknown_key(section, Some(key), &table));
    };
    *slot = parse_value(text.trim(), slot);
    *config = T::deserialize(table).map_err(|error| bad(error.message().to_string()))?;
    Ok(())
}

/// Checks that two configurations differ in the keys of `free` alone.
pub(crate) fn same_but<T: Serialize>(
    ours: &T,
    theirs: &T,
    free: &[&str],
) -> Result<(), ModelError> {
    let theirs = to_table(theirs)?;
    for (section, keys) in &to_table(ours)? {
        for (key, value) in keys.as_table().into_iter().flatten() {
            let path = format!("{section}.{key}");
            let same = theirs.get(section).and_then(|keys| keys.get(key)) == Some(value);
            if !same && !free.contains(&path.as_str()) {
                return Err(ModelError::ConfigChanged { key: path });
            }
        }
    }
    Ok(())
}

pub(crate) fn at_least_one(key: &'static str, value: usize) -> Result<(), ModelError> {
    check(key, value, value >= 1, || "must be at least 1".to_string())
}

pub(crate) fn check(
    key: &'static str,
    value: impl ToString,
    in_range: bool,
    reason: impl FnOnce() -> String,
) -> Result<(), ModelError> {
    if in_range {
        return Ok(());
    }
    Err(ModelError::OutOfRange {
        key,
        value: value.to_string(),
        reason: reason(),
    })
}

/// Reads the right side of an override; the value it replaces says what kind is wanted.
fn parse_value(text: &str, current: &Value) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value"));
    match (current, parsed) {
        (Value::Array(_), Some(list @ Value::Array(_))) => list,
        (Value::Array(_), Some(text @ Value::String(_))) => Value::Array(vec![text]),
        (Value::Array(_), _) => Value::Array(vec![Value::String(text.to_string())]),
        (Value::String(_), Some(quoted @ Value::String(_))) => quoted,
        (Value::String(_), _) | (_, None) => Value::String(text.to_string()),
        (_, Some(value)) => value,
    }
}

fn unknown_key(section: &str, key: Option<&str>, known: &Table) -> ModelError {
    let sections = || known.keys().map(String::as_str);
    let path = key.map_or_else(|| section.to_string(), |key| format!("{section}.{key}"));
    let in_section = known.get(section).and_then(Value::as_table);
    let nearest = match (in_section, key) {
        (Some(keys), Some(key)) => {
            nearest(key, keys.keys().map(String::as_str)).map(|key| format!("{section}.{key}"))
        }
        // A key outside its section is at home where the same name exists.
        (None, None) => nearest(section, sections()).or_else(|| home_of(section, known)),
        (None, Some(key)) => nearest(section, sections()).map(|section| format!("{section}.{key}")),
        (Some(_), None) => None,
    };
    ModelError::UnknownKey { key: path, nearest }
}

fn home_of(key: &str, known: &Table) -> Option<String> {
    known
        .iter()
        .find(|(_, keys)| keys.as_table().is_some_and(|keys| keys.contains_key(key)))
        .map(|(section, _)| format!("{section}.{key}"))
}

/// The candidate most like `word`, if any is close enough to be meant.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    const CLOSE_ENOUGH: f64 = 0.7;
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= CLOSE_ENOUGH)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate.to_string())
}

fn to_table(config: &impl Serialize) -> Result<Table, ModelError> {
    Table::try_from(config).map_err(|error| ModelError::ConfigSyntax(error.to_string()))
}

fn syntax_error(error: toml::de::Error) -> ModelError {
    ModelError::ConfigSyntax(error.to_string().trim_end().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_round_trip() {
        for name in PRESETS {
            let config = Config::preset(name).unwrap();
            config.validate().unwrap();
            assert_eq!(
                Config::from_toml(&config.to_toml().unwrap()).unwrap(),
                config,
                "{name}"
            );
        }
        assert_eq!(Config::preset("small").unwrap(), Config::default());
        assert_eq!(Config::from_toml("").unwrap(), Config::default());
    }

    #[test]
    fn floats_are_written_as_typed() {
        let text = Config::default().to_toml().unwrap();
        assert!(text.contains("lr = 0.003\n"), "{text}");
    }

    #[test]
    fn unknown_presets_name_the_nearest() {
        let error = Config::preset("shakespear").unwrap_err().to_string();
        assert!(error.contains("did you mean 'shakespeare-char'"), "{error}");
        let error = Config::preset("9000").unwrap_err().to_string();
        assert!(
            error.contains("known are shakespeare-char, small, ghost-0.1b, llama-1.1b"),
            "{error}"
        );
    }

    #[test]
    fn unknown_keys_name_the_nearest() {
        for (toml, expected) in [
            (
                "[model]\nwidht = 3",
                "unknown key 'model.widht'; hint: did you mean 'model.width'?",
            ),
            (
                "[modle]\nwidth = 3",
                "unknown key 'modle'; hint: did you mean 'model'?",
            ),
            (
                "batch = 3",
                "unknown key 'batch'; hint: did you mean 'train.batch'?",
            ),
            ("[train]\nzzz = 3", "unknown key 'train.zzz'"),
        ] {
            let error = Config::from_toml(toml).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{toml:?}: {error}");
        }
    }

    #[test]
    fn wrong_types_and_syntax_name_the_line() {
        for toml in [
            "[train]\nsteps = \"many\"",
            "[train]\nsteps = -1",
            "[train]\nsteps =",
        ] {
            let error = Config::from_toml(toml).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
        assert!(Config::from_toml("model = 3").is_err());
    }

    #[test]
    fn overrides_take_every_kind_of_value() {
        let mut config = Config::default();
        for assignment in [
            "train.steps=7",
            "optim.eta=1",
            "optim.lr = 6e-3",
            "optim.rule=classic",
            "train.run=runs/a b",
            "train.backend=\"cpu\"",
            "model.tie_head=false",
            "model.float_parts=[\"embeddings\", \"head\"]",
            "data.train=a.txt",
            "data.tokenizer=12",
        ] {
            config.set(assignment).unwrap();
        }
        assert_eq!(config.train.steps, 7);
        assert_eq!(config.optim.eta, 1.0);
        assert_eq!(config.optim.lr, 6e-3);
        assert_eq!(config.optim.rule, Rule::Classic);
        assert_eq!(config.train.run, PathBuf::from("runs/a b"));
        assert_eq!(config.train.backend, Backend::Cpu);
        assert!(!config.model.tie_head);
        assert_eq!(
            config.model.float_parts,
            [FloatPart::Embeddings, FloatPart::Head]
        );
        assert_eq!(config.data.train, [PathBuf::from("a.txt")]);
        assert_eq!(config.data.tokenizer, "12");
        config.validate().unwrap();
    }

    #[test]
    fn bad_overrides_leave_the_config_alone() {
        let mut config = Config::default();
        for (assignment, part) in [
            ("train.steps", "expected section.key=value"),
            ("steps=3", "expected section.key=value"),
            ("train.stesp=3", "did you mean 'train.steps'"),
            ("tarin.steps=3", "did you mean 'train.steps'"),
            ("train.steps=many", "--set train.steps=many"),
            ("optim.rule=consens", "unknown variant `consens`"),
        ] {
            let error = config.set(assignment).unwrap_err().to_string();
            assert!(error.contains(part), "{assignment}: {error}");
        }
        assert_eq!(config, Config::default());
    }

    #[test]
    fn resuming_may_change_cost_and_length_alone() {
        let config = Config::default();
        for key in FREE_ON_RESUME {
            let (section, key) = key.split_once('.').unwrap();
            assert!(
                to_table(&config).unwrap()[section].get(key).is_some(),
                "{key}"
            );
        }
        let check = |assignment: &str| {
            let mut other = Config::default();
            other.set(assignment).unwrap();
            config
                .check_resumable(&other)
                .map_err(|error| error.to_string())
        };
        for free in [
            "train.steps=5000",
            "train.threads=2",
            "data.train=elsewhere.txt",
        ] {
            check(free).unwrap();
        }
        for fixed in [
            "model.width=768",
            "train.seed=2",
            "train.batch=32",
            "optim.eta=0.05",
        ] {
            let key = fixed.split('=').next().unwrap();
            assert!(check(fixed).unwrap_err().contains(key), "{fixed}");
        }
    }

    #[test]
    fn contradictions_are_named() {
        for (assignment, key) in [
            ("model.n_head=5", "model.n_head"),
            ("model.context=0", "model.context"),
            ("model.n_kv_head=4", "model.n_kv_head"),
            ("model.rope_factor=0.5", "model.rope_factor"),
            (
                "model.rope_low_freq_factor=8",
                "model.rope_high_freq_factor",
            ),
            ("model.rope_beta_slow=64", "model.rope_beta_fast"),
            ("model.norm_eps=0", "model.norm_eps"),
            ("model.grid=prime16", "model.grid"),
            ("model.init_std=nan", "model.init_std"),
            ("model.float_parts=head", "model.float_parts"),
            ("data.val_fraction=1.0", "data.val_fraction"),
            ("train.micro_batches=3", "train.micro_batches"),
            (
                "train.micro_batches_per_pass=3",
                "train.micro_batches_per_pass",
            ),
            ("train.gpus=3", "train.gpus"),
            ("train.eval_tokens=1", "train.eval_tokens"),
            ("train.steps=0", "train.steps"),
            ("optim.tau=0", "optim.tau"),
        ] {
            let mut config = Config::default();
            config.model.tie_head = true;
            config.set(assignment).unwrap();
            let error = config.validate().unwrap_err().to_string();
            assert!(error.contains(key), "{assignment}: {error}");
        }
    }
}
