//! Every verb and flag of the program.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use primal_model::config::{Backend, PRESETS};
use primal_optim::Rule;

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
    /// Text to learn from: files, folders, JSONL [default: the sources of the locked
    /// dependencies].
    #[arg(long, value_name = "PATH", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub data: Vec<PathBuf>,
    /// Text to measure on [default: the last tenth of the data].
    #[arg(long, value_name = "PATH", num_args = 1.., value_hint = ValueHint::AnyPath)]
    pub val: Vec<PathBuf>,
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
    /// Pieces of a step that vote on their own.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub micro_batches: Option<usize>,
    /// Pieces computed at once; costs memory, changes no result.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub micro_batches_per_pass: Option<usize>,
    /// Longest sequence in tokens.
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

/// `primal eval`.
#[derive(Debug, ClapArgs)]
pub struct EvalArgs {
    /// Checkpoint or run folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Text to measure on: files, folders, JSONL.
    #[arg(long, value_name = "PATH", num_args = 1.., required = true, value_hint = ValueHint::AnyPath)]
    pub data: Vec<PathBuf>,
    /// Measure on at most this many tokens, in windows spread over the text [default: all].
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub tokens: Option<usize>,
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
    /// Seed of the choice.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
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
    /// How the next token is chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Print one JSON object at the end instead of the text as it comes.
    #[arg(long)]
    pub json: bool,
}

/// `primal chat`.
#[derive(Debug, ClapArgs)]
pub struct ChatArgs {
    /// Checkpoint or run folder.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Longest reply in tokens; a reply also ends at a line break.
    #[arg(short, long = "n-tokens", value_name = "N", default_value_t = 256)]
    pub n_tokens: usize,
    /// How the next token is chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Worker threads, 0 for all cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
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
    /// Pieces of a step that vote on their own.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub micro_batches: Option<usize>,
    /// What computes.
    #[arg(long, value_parser = backend_parser())]
    pub backend: Option<Backend>,
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
    /// Measure training steps.
    #[arg(long)]
    pub train: bool,
    /// Sequences in a training step.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub batch: Option<usize>,
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

/// `primal completions`.
#[derive(Debug, ClapArgs)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

fn rule_parser() -> impl TypedValueParser<Value = Rule> {
    PossibleValuesParser::new(Rule::ALL.map(Rule::name)).try_map(|name| name.parse::<Rule>())
}

fn backend_parser() -> impl TypedValueParser<Value = Backend> {
    PossibleValuesParser::new(["cpu", "cuda", "auto"]).map(|name| match name.as_str() {
        "cpu" => Backend::Cpu,
        "cuda" => Backend::Cuda,
        _ => Backend::Auto,
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
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
