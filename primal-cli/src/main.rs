//! The `primal` program: parse, dispatch, report. Results go to stdout, everything else to stderr.

mod args;
mod commands;
mod output;
mod progress;
mod report;
mod run_status;

use std::process::ExitCode;

use clap::Parser;
use primal_kernels::LargePages;

use crate::args::{Args, Command};

/// Activations and gradients are megabytes each; on small pages their addresses cost time.
#[global_allocator]
static ALLOCATOR: LargePages = LargePages;

fn main() -> ExitCode {
    let args = Args::parse();
    progress::init_tracing();
    let result = match args.command {
        Command::Train(args) => commands::train::run(&args),
        Command::Import(args) => commands::import::run(&args),
        Command::Export(args) => commands::export::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Chat(args) => commands::chat::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Watch(args) => commands::watch::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Vocode(args) => commands::vocode::run(&args),
        Command::Speak(args) => commands::speak::run(&args),
        Command::VoiceTest(args) => commands::speak::test(&args),
        Command::VoiceTrain(args) => commands::voice_train::run(&args),
        Command::Phonemes(args) => commands::phonemes::run(&args),
        Command::VocoderTrain(args) => commands::vocoder_train::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
    };
    result.unwrap_or_else(|error| report::failure(&error))
}
