//! What can go wrong in this crate.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Errors of this crate; messages name paths, keys and values.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason the operating system gave.
        source: std::io::Error,
    },

    /// The operating system gave no memory.
    #[error("cannot allocate {bytes} bytes for the weights: {reason}")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// The reason the operating system gave.
        reason: String,
    },

    /// A configuration that is not TOML, or a value of the wrong type.
    #[error("config: {0}")]
    ConfigSyntax(String),
    /// A key that does not exist.
    #[error("config: unknown key '{key}'{}", nearest_hint(nearest))]
    UnknownKey {
        /// The key as `section.key`.
        key: String,
        /// The existing key that looks most like it.
        nearest: Option<String>,
    },
    /// A preset that does not exist.
    #[error("unknown preset '{name}': known are {}{}", known.join(", "), nearest_hint(nearest))]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// Every preset.
        known: Vec<&'static str>,
        /// The preset whose name looks most like it.
        nearest: Option<String>,
    },
    /// A `section.key=value` override that cannot be applied.
    #[error("--set {assignment}: {reason}")]
    BadAssignment {
        /// The override as given.
        assignment: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value outside its range, or values that contradict each other.
    #[error("{key} = {value}: {reason}")]
    OutOfRange {
        /// The key as `section.key`.
        key: &'static str,
        /// The refused value.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// A data path that does not exist.
    #[error("{}: no such file or folder", path.display())]
    MissingData {
        /// The path as given.
        path: PathBuf,
    },
    /// A file that someone wrote to while it was read.
    #[error("{} changed while it was read; hint: copy it first, or wait until it is written", path.display())]
    ChangingData {
        /// The file.
        path: PathBuf,
    },
    /// A file or folder without any text.
    #[error("{} holds no text", path.display())]
    EmptyData {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file that is not UTF-8 text.
    #[error("{} is not text: byte 0x{byte:02x} at offset {offset}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that cannot be text.
        offset: usize,
        /// That byte.
        byte: u8,
    },
    /// A line of a JSONL file without the text.
    #[error("{} line {line}: {reason}", path.display())]
    BadJsonLine {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A text that the tokenizer refuses.
    #[error("{document}: {source}")]
    Document {
        /// File that the text came from.
        document: String,
        /// The refusal.
        source: Box<ModelError>,
    },
    /// Fewer tokens than one window needs.
    #[error(
        "{what} data has {tokens} tokens, one window needs {needed}; \
         hint: give more text or a smaller model.context"
    )]
    TooShort {
        /// "training" or "validation".
        what: &'static str,
        /// Tokens present.
        tokens: usize,
        /// Tokens needed: the context and one target.
        needed: usize,
    },
    /// A locked dependency whose sources are not on this machine.
    #[error(
        "default corpus: {name} is not under {}; hint: run cargo fetch --locked",
        registry.display()
    )]
    MissingCrate {
        /// The crate as NAME-VERSION.
        name: String,
        /// Where it was looked for.
        registry: PathBuf,
    },
    /// A tokenizer that is not one of the known names and not a readable file.
    #[error(
        "tokenizer '{spec}': {reason}; hint: use bytes, chars, gpt2 or the path of a tokenizer.json"
    )]
    BadTokenizer {
        /// The name or path.
        spec: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// Text with a character that a character-level tokenizer has never seen.
    #[error(
        "character {character:?} at byte {offset} is not among the tokenizer's {known} characters"
    )]
    UnknownCharacter {
        /// The character.
        character: char,
        /// Where it stands in the text, in bytes.
        offset: usize,
        /// Size of the vocabulary.
        known: usize,
    },
    /// A token id beyond the tokenizer's vocabulary.
    #[error("token {token} is not among the tokenizer's {vocab_size} tokens")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// Logits that no token can be drawn from.
    #[error("the logit of token {token} is {logit}: no token can be drawn")]
    BadLogits {
        /// The token.
        token: u32,
        /// Its logit.
        logit: f32,
    },
    /// The tokenizer's library refused a text or a sequence of ids.
    #[error("tokenizer: {0}")]
    Tokenizer(String),

    /// Sizes that make no model.
    #[error("model: {0}")]
    Shape(String),
    /// A checkpoint that cannot be used.
    #[error("checkpoint {} {reason}", path.display())]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A damaged checkpoint with a good one before it.
    #[error(
        "{reason}; hint: an earlier checkpoint is complete: {}; \
         hint: to resume from it, remove {}",
        earlier.display(),
        damaged.display()
    )]
    DamagedCheckpoint {
        /// What is wrong with the newest.
        reason: Box<ModelError>,
        /// The newest, which is damaged.
        damaged: PathBuf,
        /// The newest one whose files match their checksums.
        earlier: PathBuf,
    },
    /// A new run in a folder that already holds one.
    #[error("{} already holds checkpoints; hint: --resume goes on, --run names another folder", .0.display())]
    RunExists(PathBuf),
    /// A resume on data other than the run's.
    #[error("the training data is not what the run in {} was begun with", .0.display())]
    DataChanged(PathBuf),
    /// A resume with a configuration that computes something else.
    #[error("cannot resume: {key} differs from the checkpoint's; hint: begin a new run with --run")]
    ConfigChanged {
        /// The key that differs, as `section.key`.
        key: String,
    },
    /// A model file of another tool that is damaged, or says what this build cannot take.
    #[error("{file}: {place}: {reason}")]
    Foreign {
        /// The file or folder.
        file: String,
        /// The part of it: header, metadata key, tensor.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// A model that cannot be put on a grid.
    #[error("cannot quantise: {0}")]
    Quantise(String),
    /// A model that another tool's format cannot hold.
    #[error("cannot export: {0}")]
    Export(String),
    /// Instruction data that cannot be learned from.
    #[error("instructions: {0}")]
    Instructions(String),
    /// A chat template that is no Jinja, refuses a conversation or wants too much.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The backend is not part of this build.
    #[error(
        "backend cuda is not part of this build; hint: use --backend cpu, or build with --features cuda"
    )]
    NoCuda,
    /// A model that has what no kernel of the GPU computes.
    #[error("a GPU does not compute {0} yet; hint: --backend cpu")]
    OnlyOnCpu(&'static str),
    /// The GPU, its driver or its kernels.
    #[error("{0}")]
    Cuda(String),
    /// Several GPUs are not part of this build.
    #[error(
        "several GPUs are not part of this build; hint: --gpus 1, or build with --features nccl"
    )]
    NoNccl,
    /// GPUs that no longer compute the same.
    #[error(
        "GPU {gpu} has another {what} than GPU 0: nothing is saved; \
         hint: go on with --resume; if it happens again, that GPU is to be mistrusted"
    )]
    GpusDiffer {
        /// What was compared.
        what: &'static str,
        /// The first that differs.
        gpu: usize,
    },
    /// Steps were skipped without end: training has diverged.
    #[error(
        "the last {in_a_row} steps were all not finite, up to step {step}; \
         hint: lower optim.eta and optim.lr, or go on from an earlier checkpoint"
    )]
    Diverged {
        /// Skipped steps in a row.
        in_a_row: u32,
        /// The last of them, counted from 1.
        step: u32,
    },
    /// The ledger says that the run will not fit.
    #[error(
        "the run takes {needed} MiB more by the ledger and {available} MiB are available; \
         hint: lower train.batch, raise train.micro_batches or set train.recompute=1 \
         (primal plan shows what takes it); hint: --ignore-memory-limit begins all the same"
    )]
    NotEnoughMemory {
        /// MiB that the run is still to take.
        needed: u64,
        /// MiB that the system can give.
        available: u64,
    },
    /// No choice of what is kept fits the budget.
    #[error(
        "the run takes {smallest} MiB by the ledger at least, the budget is {budget} MiB; \
         hint: --memory-budget {smallest}, a smaller train.batch or more train.micro_batches"
    )]
    MemoryBudget {
        /// The least that the ledger comes to, in MiB.
        smallest: u64,
        /// `train.memory_budget_mib`.
        budget: u64,
    },
    /// More ranks than a step has micro-batches.
    #[error(
        "{micro_batches} micro-batches cannot be spread over {ranks} ranks; \
         hint: raise train.micro_batches or start fewer ranks"
    )]
    TooManyRanks {
        /// Ranks of the run.
        ranks: usize,
        /// Micro-batches of a step.
        micro_batches: usize,
    },
    /// A backend that cannot yet be spread over ranks.
    #[error("only the cpu backend can be spread over ranks; hint: use --backend cpu")]
    RanksNeedCpu,
    /// A rank that the others waited for in vain.
    #[error(
        "rank {rank} did not come within {seconds} s: it died or hangs; \
         hint: go on with --resume on the ranks that are left"
    )]
    RankLost {
        /// Who is missing.
        rank: usize,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A message that is not of the kind that was due.
    #[error("rank {0} sent something else than was due; hint: all ranks must run the same build")]
    RankUnclear(usize),
    /// Ranks that no longer compute the same.
    #[error(
        "rank {} has another {what} than the others (theirs hashes to {right}...): nothing is saved; \
         hint: go on with --resume; if it happens again, that rank's machine is to be mistrusted",
        list(ranks)
    )]
    RanksDiffer {
        /// What was compared.
        what: &'static str,
        /// The ranks with something else than most.
        ranks: Vec<usize>,
        /// Beginning of the hash that most ranks have.
        right: String,
    },
    /// The MPI library failed.
    #[error("MPI: {0}")]
    Mpi(String),
    /// The thread pool could not start.
    #[error("cannot start the worker threads: {0}")]
    Threads(String),
    /// An evaluation without a result.
    #[error("cannot evaluate: {0}")]
    Eval(String),
    /// A generation that cannot begin or go on.
    #[error("cannot generate: {0}")]
    Generate(String),
    /// What was allocated is not what the ledger says: a bug of ours.
    #[error("ledger: {what} takes {allocated} bytes, the ledger says {planned}")]
    Ledger {
        /// The account.
        what: &'static str,
        /// Bytes allocated.
        allocated: u64,
        /// Bytes in the ledger.
        planned: u64,
    },
    /// An error of the voice.
    #[error(transparent)]
    Voice(#[from] crate::voice::VoiceError),
    /// An error of the kernels crate.
    #[error(transparent)]
    Kernel(#[from] primal_kernels::KernelError),
    /// An error of the tensor file.
    #[error(transparent)]
    Lut(#[from] primal_lut::LutError),
    /// An error of the optimizer crate.
    #[error(transparent)]
    Optim(#[from] primal_optim::OptimError),
}

impl ModelError {
    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> ModelError {
        ModelError::Checkpoint {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }

    /// For `map_err` on file operations: remembers what was tried on which path.
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> ModelError {
        let path = path.to_path_buf();
        move |source| ModelError::Io {
            action,
            path,
            source,
        }
    }
}

fn list(ranks: &[usize]) -> String {
    let ranks: Vec<String> = ranks.iter().map(usize::to_string).collect();
    ranks.join(", ")
}

fn nearest_hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| {
        format!("; hint: did you mean '{name}'?")
    })
}
