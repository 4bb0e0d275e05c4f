//! Every verb and flag of the program.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use primal_model::config::{Backend, Compute, FloatPart, KvCacheKind, PRESETS};
use primal_optim::Rule;

/// Grids that come with the program.
const GRIDS: [&str; 4] = ["prime15", "prime25", "normal15", "linear15"];

/// Trains and runs language models whose weights live on a 4-bit grid of prime reciprocals.
#[derive(Debug, Parser)]
#[command(
    name = "primal",
    version,
    max_term_width = 100,
    subcommand_required = true
)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trains a model on text.
    Train(Box<TrainArgs>),
    /// Puts a model of another tool on the grid.
    Import(ImportArgs),
    /// Writes a model in the files of other tools.
    Export(ExportArgs),
    /// Measures a model's loss on text.
    Eval(EvalArgs),
    /// Continues a text.
    Generate(GenerateArgs),
    /// Talks with a model, line by line.
    Chat(ChatArgs),
    /// Lists every buffer of a run before it is made.
    Plan(PlanArgs),
    /// Shows what a checkpoint holds and how it uses its grids.
    Inspect(InspectArgs),
    /// Says what this machine offers and tests the kernels on it.
    Doctor(DoctorArgs),
    /// Measures tokens per second.
    Bench(BenchArgs),
    /// Shows a run while it trains.
    Watch(WatchArgs),
    /// Writes a run's plots into one HTML page.
    Report(ReportArgs),
    /// Turns a mel spectrogram, or a sound by way of one, into a WAV file.
    Vocode(VocodeArgs),
    /// Says a text into a WAV file.
    Speak(SpeakArgs),
    /// Says a few sentences, each into a WAV file of its own.
    VoiceTest(VoiceTestArgs),
    /// Trains a voice on an aligned speech corpus.
    VoiceTrain(VoiceTrainArgs),
    /// Shows the phonemes that a text is read as.
    Phonemes(PhonemesArgs),
    /// Trains a vocoder on a folder of WAV files.
    VocoderTrain(Box<VocoderTrainArgs>),
    /// Prints the completion script of a shell.
    Completions(CompletionsArgs),
}

/// Where a configuration starts from.
#[derive(Debug, ClapArgs)]
pub struct BaseArgs {
    /// Start from a named configuration [default: small].
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS))]
    pub preset: Option<String>,
    /// Start from a TOML file; missing keys have their defaults.
    #[arg(long, value_name = "FILE", conflicts_with = "preset", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
}

/// `primal train`. Each flag overrides a key of the configuration, `--set` comes last.
#[derive(Debug, ClapArgs)]
pub struct TrainArgs {
    /// Where the configuration starts from.
    #[command(flatten)]
    pub base: BaseArgs,
    /// Start from the weights of this model, checkpoint or run folder, such as an imported one.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["preset", "resume", "tokenizer"], value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
    /// Text to learn from: files, folders, JSONL [default: the sources of the locked
    /// dependencies].
    #[arg(long, value_name = "PATH", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub data: Vec<PathBuf>,
    /// Text to measure on [default: the last tenth of the data].
    #[arg(long, value_name = "PATH", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub val: Vec<PathBuf>,
    /// The data are JSONL files of conversations, whose answers alone carry loss.
    #[arg(long)]
    pub instructions: bool,
    /// Blocks that learn, counted from 0 [default: everything learns].
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub only_blocks: Vec<usize>,
    /// bytes, chars, gpt2 or a tokenizer.json.
    #[arg(long, value_name = "NAME|FILE")]
    pub tokenizer: Option<String>,
    /// Folder for metrics and checkpoints.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run: Option<PathBuf>,
    /// How the weights learn.
    #[arg(long, value_parser = rule_parser())]
    pub rule: Option<Rule>,
    /// Optimizer steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: Option<u32>,
    /// Sequences in a step.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub batch: Option<usize>,
    /// Pieces of a step that vote on their own [default: as configured, or of as many sequences
    /// with another --batch].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub micro_batches: Option<usize>,
    /// Pieces computed at once; costs memory, changes no result.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub micro_batches_per_pass: Option<usize>,
    /// Tokens of a training window. A new model sees as many when it writes; one that is trained on
    /// with --from keeps its own context.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub context: Option<usize>,
    /// Seed of every random number.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// What computes.
    #[arg(long, value_parser = backend_parser())]
    pub backend: Option<Backend>,
    /// GPUs that share the micro-batches of a step; changes no result.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub gpus: Option<usize>,
    /// Go on from the newest checkpoint of the run folder.
    #[arg(long)]
    pub resume: bool,
    /// Steps between evaluations, 0 for the end only.
    #[arg(long, value_name = "N")]
    pub eval_every: Option<u32>,
    /// Steps between checkpoints, 0 for the end only.
    #[arg(long, value_name = "N")]
    pub save_every: Option<u32>,
    /// Memory that the run may take, in MiB: keeps or recomputes activations to fit.
    #[arg(long, value_name = "MIB")]
    pub memory_budget: Option<u64>,
    /// Begin even if the ledger says that the memory will not do.
    #[arg(long)]
    pub ignore_memory_limit: bool,
    /// Override any key, e.g. optim.eta=0.03; can be given many times.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the last row of the metrics as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal import`.
#[derive(Debug, ClapArgs)]
pub struct ImportArgs {
    /// Hugging Face folder (config.json, safetensors, tokenizer.json) or GGUF file.
    #[arg(long, value_name = "DIR|FILE", value_hint = ValueHint::AnyPath)]
    pub from: PathBuf,
    /// Folder for the model.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,
    /// Columns that share a scale.
    #[arg(long, value_name = "row|128|64|32", default_value = "row", value_parser = group)]
    pub group: usize,
    /// The values that weights can have.
    #[arg(long, default_value = "prime15", value_parser = PossibleValuesParser::new(GRIDS))]
    pub grid: String,
    /// How weights become values of the grid [default: compensated with --calibrate, else nearest].
    #[arg(long, value_parser = PossibleValuesParser::new(["nearest", "compensated"]))]
    pub rounding: Option<String>,
    /// Text whose activations say which errors matter: files, folders, JSONL.
    #[arg(long, value_name = "PATH", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub calibrate: Vec<PathBuf>,
    /// Tokens of it that are used, at most; takes memory: the residual stream of all of them.
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = at_least_one)]
    pub calibrate_tokens: usize,
    /// Parts that keep their float values: embeddings, attention, mlp, head.
    #[arg(long, value_name = "PART,..", value_delimiter = ',', value_parser = float_part_parser())]
    pub keep_float: Vec<FloatPart>,
    /// Keep every float value, to check an import.
    #[arg(long, conflicts_with = "keep_float")]
    pub float: bool,
    /// A shorter context than the model's, in tokens.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub context: Option<usize>,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print the report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal export`.
#[derive(Debug, ClapArgs)]
pub struct ExportArgs {
    /// Checkpoint or run folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// A Hugging Face folder or a GGUF file.
    #[arg(long, value_parser = PossibleValuesParser::new(["hf", "gguf"]))]
    pub to: String,
    /// New folder or file.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub out: PathBuf,
    /// Type of the matrices: f32 (exact), f16 or bf16 for hf, f32, f16 or q8_0 for gguf.
    #[arg(long = "type", default_value = "f16", value_parser = PossibleValuesParser::new(["f32", "f16", "bf16", "q8_0"]))]
    pub tensor_type: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal eval`.
#[derive(Debug, ClapArgs)]
pub struct EvalArgs {
    /// Checkpoint or run folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Text to measure on: files, folders, JSONL.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true, value_hint = ValueHint::AnyPath)]
    pub data: Vec<PathBuf>,
    /// Measure on about this many tokens, in windows spread over the text [default: all].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub tokens: Option<usize>,
    /// Tokens of a window [default: the model's context, at most 1024].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub window: Option<usize>,
    /// Tokens from one window to the next; a prediction is counted once, by the first window that
    /// holds it [default: the window].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub stride: Option<usize>,
    /// How matrices on the grid are multiplied [default: as in the model's training].
    #[arg(long, value_parser = compute_parser())]
    pub compute: Option<Compute>,
    /// Also measure the KL divergence from this model, checkpoint or run folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub reference: Option<PathBuf>,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How the next token is chosen.
#[derive(Debug, ClapArgs)]
pub struct SamplingArgs {
    /// Randomness; 0 always takes the likeliest token.
    #[arg(long, value_name = "F", default_value_t = 0.8)]
    pub temperature: f32,
    /// Choose among the N likeliest tokens; 0 for all.
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub top_k: usize,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, value_name = "F", default_value_t = 0.95)]
    pub top_p: f32,
    /// Leave out tokens less likely than this fraction of the likeliest.
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    pub min_p: f32,
    /// Make tokens that were written lately less likely; 1 for no change.
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Seed of every choice [default: 1; a chat takes a new one each time and says it].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// `primal generate`.
#[derive(Debug, ClapArgs)]
pub struct GenerateArgs {
    /// Checkpoint or run folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Text to go on from.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub prompt: String,
    /// Tokens to write.
    #[arg(short, long = "n-tokens", value_name = "N", default_value_t = 128)]
    pub n_tokens: usize,
    /// How the text is computed.
    #[command(flatten)]
    pub writer: WriterArgs,
    /// Print one JSON object at the end instead of the text as it comes.
    #[arg(long)]
    pub json: bool,
}

/// How text is computed, by `generate` and `chat`.
#[derive(Debug, ClapArgs)]
pub struct WriterArgs {
    /// How the next token is chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What computes; auto: a GPU where there is one, else the processor.
    #[arg(long, value_parser = backend_parser(), default_value = "auto")]
    pub backend: Backend,
    /// How keys and values of past tokens are kept [default: as configured, f16].
    #[arg(long, value_parser = kv_cache_parser())]
    pub kv_cache: Option<KvCacheKind>,
    /// How matrices on the grid are multiplied: in int8, or, slower, in float as exports are.
    #[arg(long, value_parser = compute_parser(), default_value = "int8")]
    pub compute: Compute,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// `primal chat`.
#[derive(Debug, ClapArgs)]
pub struct ChatArgs {
    /// Checkpoint or run folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// What the model is told before the conversation, where it has a chat template.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Longest reply in tokens; without a chat template a reply also ends at a line break.
    #[arg(short, long = "n-tokens", value_name = "N", default_value_t = 256)]
    pub n_tokens: usize,
    /// How the text is computed.
    #[command(flatten)]
    pub writer: WriterArgs,
}

/// `primal plan`.
#[derive(Debug, ClapArgs)]
pub struct PlanArgs {
    /// Where the configuration starts from.
    #[command(flatten)]
    pub base: BaseArgs,
    /// Sequences in a step.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub batch: Option<usize>,
    /// Pieces of a step that vote on their own [default: as configured, or of as many sequences
    /// with another --batch].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub micro_batches: Option<usize>,
    /// What computes.
    #[arg(long, value_parser = backend_parser())]
    pub backend: Option<Backend>,
    /// GPUs that share the micro-batches of a step.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub gpus: Option<usize>,
    /// Memory that the run may take, in MiB: keeps or recomputes activations to fit.
    #[arg(long, value_name = "MIB")]
    pub memory_budget: Option<u64>,
    /// Override any key, e.g. train.recompute=1; can be given many times.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal inspect`.
#[derive(Debug, ClapArgs)]
pub struct InspectArgs {
    /// Checkpoint or run folder.
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Also read the complete training state: every code, ballot and moment.
    #[arg(long)]
    pub verify: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal doctor`.
#[derive(Debug, ClapArgs)]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal bench`.
#[derive(Debug, ClapArgs)]
pub struct BenchArgs {
    /// A named configuration with random weights [default: small].
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(PRESETS))]
    pub preset: Option<String>,
    /// Checkpoint or run folder.
    #[arg(long, value_name = "DIR", conflicts_with = "preset", value_hint = ValueHint::DirPath)]
    pub model: Option<PathBuf>,
    /// Prompt lengths to measure reading of.
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = at_least_one)]
    pub pp: Vec<usize>,
    /// Lengths to measure writing of, one token at a time.
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = at_least_one)]
    pub tg: Vec<usize>,
    /// How keys and values of past tokens are kept [default: as configured, f16].
    #[arg(long, value_parser = kv_cache_parser())]
    pub kv_cache: Option<KvCacheKind>,
    /// What computes; auto: a GPU where there is one, else the processor.
    #[arg(long, value_parser = backend_parser(), default_value = "auto")]
    pub backend: Backend,
    /// Measure vocoders instead: v1, v2, v3 with random weights, or folders.
    #[arg(long, value_name = "NAME|DIR,..", value_delimiter = ',', conflicts_with_all = ["preset", "model", "pp", "tg", "train", "set", "backend"])]
    pub vocoder: Vec<String>,
    /// Measure training steps.
    #[arg(long)]
    pub train: bool,
    /// Sequences in a training step.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub batch: Option<usize>,
    /// Pieces of a training step that vote on their own [default: as configured, or of as many
    /// sequences with another --batch].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub micro_batches: Option<usize>,
    /// Override any key of the preset, e.g. model.width=512; can be given many times.
    #[arg(long, value_name = "SECTION.KEY=VALUE", conflicts_with = "model")]
    pub set: Vec<String>,
    /// Worker threads, 0 for all cores.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Repetitions; the median is reported.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub reps: usize,
    /// Print one JSON object a line.
    #[arg(long)]
    pub json: bool,
}

/// `primal watch`.
#[derive(Debug, ClapArgs)]
pub struct WatchArgs {
    /// Run folder; need not exist yet.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run: PathBuf,
    /// Print one picture as text and end; always so where stdout is no terminal.
    #[arg(long)]
    pub once: bool,
}

/// `primal report`.
#[derive(Debug, ClapArgs)]
pub struct ReportArgs {
    /// Run folder.
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run: PathBuf,
    /// The page to write [default: DIR/report.html].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal vocode`.
#[derive(Debug, ClapArgs)]
#[command(group = clap::ArgGroup::new("source").required(true))]
pub struct VocodeArgs {
    /// Mel spectrogram: a safetensors file with a tensor `mel` (bands, frames), natural logarithm
    /// of magnitudes.
    #[arg(long, value_name = "FILE", group = "source", value_hint = ValueHint::FilePath)]
    pub mel: Option<PathBuf>,
    /// Sound whose mel spectrogram is taken, at any sampling rate.
    #[arg(long, value_name = "FILE", group = "source", value_hint = ValueHint::FilePath)]
    pub wav: Option<PathBuf>,
    /// Folder of a HiFi-GAN checkpoint, or griffin-lim, which needs no weights.
    #[arg(long, value_name = "DIR|griffin-lim", default_value = "griffin-lim", value_hint = ValueHint::DirPath)]
    pub vocoder: PathBuf,
    /// WAV file to write; - for stdout.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// PNG picture of the mel spectrogram to write.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub spectrogram: Option<PathBuf>,
    /// Seed of griffin-lim's first phases.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print length and speed as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Who speaks, and how.
#[derive(Debug, ClapArgs)]
pub struct VoiceArgs {
    /// Voice: a run folder of `primal voice-train` or a checkpoint [default: the built-in voice].
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub checkpoint: Option<PathBuf>,
    /// Folder of a HiFi-GAN checkpoint, or griffin-lim, which needs no weights.
    #[arg(long, value_name = "DIR|griffin-lim", default_value = "griffin-lim", value_hint = ValueHint::DirPath)]
    pub vocoder: PathBuf,
    /// How long everything takes, 1 being as the voice learned it, 0.1 to 10.
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    pub length_scale: f32,
    /// Seed of griffin-lim's first phases.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

/// A text, with or without its flag.
#[derive(Debug, ClapArgs)]
#[group(id = "any_text", required = true, multiple = false)]
pub struct TextArgs {
    /// Text; - for stdin, line by line.
    #[arg(value_name = "TEXT")]
    pub words: Option<String>,
    /// The same, also where it begins with a hyphen.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub text: Option<String>,
}

impl TextArgs {
    /// The text, `-` for stdin.
    pub fn get(&self) -> &str {
        let text = self.text.as_ref().or(self.words.as_ref());
        text.map_or("", String::as_str)
    }
}

/// `primal speak`.
#[derive(Debug, ClapArgs)]
pub struct SpeakArgs {
    /// Who speaks, and how.
    #[command(flatten)]
    pub voice: VoiceArgs,
    /// Text to say, and how to read it.
    #[command(flatten)]
    pub input: TextArgs,
    /// WAV file to write, sentence by sentence; - for stdout, at the end.
    #[arg(short, long, value_name = "FILE", required_unless_present = "output_raw", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Write samples to stdout as soon as a sentence is sound: 16 bits, little-endian, mono.
    #[arg(long, conflicts_with = "output")]
    pub output_raw: bool,
    /// Silence between two sentences, in seconds.
    #[arg(long, value_name = "S", default_value_t = 0.15)]
    pub sentence_silence: f64,
    /// Report when each phoneme begins and ends; needs --json.
    #[arg(long, requires = "json")]
    pub timestamps: bool,
    /// Print length, speed and phonemes as JSON; to stderr where stdout takes the sound.
    #[arg(long)]
    pub json: bool,
}

/// `primal voice-test`.
#[derive(Debug, ClapArgs)]
pub struct VoiceTestArgs {
    /// Who speaks, and how.
    #[command(flatten)]
    pub voice: VoiceArgs,
    /// File with a sentence a line [default: four sentences of ours].
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub sentences: Option<PathBuf>,
    /// Folder of the files sample_1.wav, sample_2.wav, ...
    #[arg(long, value_name = "DIR", default_value = "voice-test", value_hint = ValueHint::DirPath)]
    pub out_dir: PathBuf,
    /// Print a JSON object a file.
    #[arg(long)]
    pub json: bool,
}

/// `primal voice-train`. Each flag overrides a key of the configuration, `--set` comes last.
#[derive(Debug, ClapArgs)]
pub struct VoiceTrainArgs {
    /// Corpus: metadata.csv, wavs/ and alignment.jsonl, as `cargo xtask voice-corpus` makes it.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub corpus: PathBuf,
    /// Start from a TOML file; missing keys have their defaults.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Folder for metrics and checkpoints.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run: Option<PathBuf>,
    /// How the weights learn.
    #[arg(long, value_parser = rule_parser())]
    pub rule: Option<Rule>,
    /// Optimizer steps.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: Option<u32>,
    /// Sentences in a step.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub batch: Option<usize>,
    /// Seed of every random number.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Go on from the newest checkpoint of the run folder.
    #[arg(long)]
    pub resume: bool,
    /// Steps between evaluations.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub eval_every: Option<u32>,
    /// Steps between checkpoints, 0 for the end only.
    #[arg(long, value_name = "N")]
    pub save_every: Option<u32>,
    /// Set any key of the configuration.
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the last row of the metrics as JSON.
    #[arg(long)]
    pub json: bool,
}

/// `primal phonemes`.
#[derive(Debug, ClapArgs)]
pub struct PhonemesArgs {
    /// Text to read.
    #[command(flatten)]
    pub input: TextArgs,
    /// Print what each part of the text was taken for, its words and its phonemes.
    #[arg(long)]
    pub explain: bool,
    /// Print a JSON object a text.
    #[arg(long)]
    pub json: bool,
}

/// `primal vocoder-train`.
#[derive(Debug, ClapArgs)]
pub struct VocoderTrainArgs {
    /// Folder that is searched for WAV files, at any sampling rate.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub data: PathBuf,
    /// Run folder: metrics.jsonl, step_NNNNNN/, and best/, a folder for --vocoder.
    #[arg(long, value_name = "DIR", default_value = "runs/vocoder", value_hint = ValueHint::DirPath)]
    pub run: PathBuf,
    /// Go on where the run stopped, with the options that it began with.
    #[arg(long, conflicts_with_all = ["from", "preset", "config", "steps", "batch", "segment", "rate", "warmup", "mel_weight", "stft_weight", "adversarial_from", "discriminator_width", "held_out", "seed"])]
    pub resume: bool,
    /// Start from the weights of this folder; its shape is taken too.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["preset", "config"], value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
    /// Generator of HiFi-GAN.
    #[arg(long, value_parser = ["v1", "v2", "v3"], default_value = "v3")]
    pub preset: String,
    /// Generator's shape with HiFi-GAN's keys, TOML or JSON.
    #[arg(long, value_name = "FILE", conflicts_with = "preset", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Steps in all; the rate falls over them [default: 10000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: Option<u64>,
    /// Segments of a step [default: 8].
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Samples of a segment, whole frames [default: 8192].
    #[arg(long, value_name = "N")]
    pub segment: Option<usize>,
    /// Learning rate [default: 0.0002].
    #[arg(long, value_name = "F")]
    pub rate: Option<f32>,
    /// Steps over which the rate rises [default: 100].
    #[arg(long, value_name = "N")]
    pub warmup: Option<u64>,
    /// Weight of the mel loss [default: 45].
    #[arg(long, value_name = "F")]
    pub mel_weight: Option<f32>,
    /// Weight of the multi-resolution STFT loss [default: 1].
    #[arg(long, value_name = "F")]
    pub stft_weight: Option<f32>,
    /// First step with discriminators and feature matching; without it there are none.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub adversarial_from: Option<u64>,
    /// Channels of the discriminators' widest layers, a power of two; official: 1024 [default: 128].
    #[arg(long, value_name = "N")]
    pub discriminator_width: Option<usize>,
    /// Sounds that are held out for evaluation [default: 16].
    #[arg(long, value_name = "N")]
    pub held_out: Option<usize>,
    /// Steps between evaluations.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    pub eval_every: u64,
    /// Steps between checkpoints.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: u64,
    /// Seed of first weights and segments.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print the rows of metrics.jsonl on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `primal completions`.
#[derive(Debug, ClapArgs)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

fn rule_parser() -> impl TypedValueParser<Value = Rule> {
    let names = Rule::ALL.iter().map(|rule| rule.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Rule>())
}

fn backend_parser() -> impl TypedValueParser<Value = Backend> {
    PossibleValuesParser::new(["cpu", "cuda", "auto"]).map(|name| match name.as_str() {
        "cpu" => Backend::Cpu,
        "cuda" => Backend::Cuda,
        _ => Backend::Auto,
    })
}

fn float_part_parser() -> impl TypedValueParser<Value = FloatPart> {
    let names = ["embeddings", "attention", "mlp", "head"];
    PossibleValuesParser::new(names).map(|name| match name.as_str() {
        "embeddings" => FloatPart::Embeddings,
        "attention" => FloatPart::Attention,
        "mlp" => FloatPart::Mlp,
        _ => FloatPart::Head,
    })
}

fn group(text: &str) -> Result<usize, String> {
    match text {
        "row" => Ok(0),
        _ => at_least_one(text).map_err(|error| format!("neither 'row' nor a number: {error}")),
    }
}

fn compute_parser() -> impl TypedValueParser<Value = Compute> {
    PossibleValuesParser::new(["int8", "float"]).map(|name| match name.as_str() {
        "float" => Compute::Float,
        _ => Compute::Int8,
    })
}

fn kv_cache_parser() -> impl TypedValueParser<Value = KvCacheKind> {
    PossibleValuesParser::new(["f16", "int8", "f32"]).map(|name| match name.as_str() {
        "int8" => KvCacheKind::Int8,
        "f32" => KvCacheKind::F32,
        _ => KvCacheKind::F16,
    })
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_string()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

#[cfg(test)]
mod tests;
