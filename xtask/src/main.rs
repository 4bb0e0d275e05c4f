//! Automation of the repository: `cargo xtask ci`, `bench`, `demo`, `faults`, `voice-corpus` and more.

mod bench;
mod ci;
mod demo;
mod dependencies;
mod gpu;
mod plots;
mod tidy;
mod tools;
mod voice_corpus;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Automation of the PRIMAL repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs every gate, the cheapest first, and stops at the first that fails.
    Ci,
    /// Measures tokens per second, memory and the kernels; prints a table.
    Bench {
        /// Small models and few repetitions: about two minutes. Leaves nothing in benches/runs.
        #[arg(long)]
        quick: bool,
        /// Also writes machine, command, versions and the raw rows to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Trains a small model on the default corpus, measures it, lets it write, draws plots.
    Demo {
        /// Run folder; must not hold a run yet.
        #[arg(long, value_name = "DIR", default_value = "runs/demo")]
        run: PathBuf,
    },
    /// Kills, starves and damages hundreds of short runs; prints the table of what was lost.
    Faults {
        /// Injections of each of the six kinds.
        #[arg(long, value_name = "N", default_value_t = 90)]
        injections: u32,
        /// Seed of the moments and places.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// Makes the PTX of the CUDA kernels that is part of the program anew.
    Ptx,
    /// Prints registers, spills, occupancy and shared memory of the CUDA kernels.
    KernelTable,
    /// On a machine with a GPU: compares every kernel with the processor's, trains, reports.
    GpuCheck {
        /// Where the report goes.
        #[arg(long, value_name = "FILE", default_value = "gpu-check.md")]
        report: PathBuf,
    },
    /// Makes a speech corpus of one voice with exact durations; needs Python 3 and its registry.
    VoiceCorpus(voice_corpus::Args),
    /// Feeds every reader of files with damaged ones; prints cases and panics.
    Fuzz {
        /// Seconds for each kind of file.
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    let result = tools::enter_repository().and_then(|()| match Args::parse().command {
        Command::Ci => ci::run(),
        Command::Ptx => gpu::regenerate(),
        Command::KernelTable => gpu::table(),
        Command::GpuCheck { report } => gpu::check(&report),
        Command::Bench { quick, json } => bench::run(quick, json.as_deref()),
        Command::Demo { run } => demo::run(&run),
        Command::Faults { injections, seed } => faults(injections, seed),
        Command::VoiceCorpus(args) => voice_corpus::run(&args),
        Command::Fuzz { seconds } => fuzz(seconds),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The fault test of the command line with as many injections as asked for.
fn faults(injections: u32, seed: u64) -> anyhow::Result<()> {
    let mut test = tools::cargo();
    test.args([
        "test",
        "--locked",
        "--package",
        "primal-cli",
        "--test",
        "faults",
    ])
    .args(["--", "--nocapture"])
    .env("PRIMAL_FAULT_INJECTIONS", injections.to_string())
    .env("PRIMAL_FAULT_SEED", seed.to_string());
    tools::run(&mut test)
}

/// The fuzzing test of all readers for as long as asked for.
fn fuzz(seconds: u64) -> anyhow::Result<()> {
    let mut test = tools::cargo();
    test.args([
        "test",
        "--locked",
        "--package",
        "primal-cli",
        "--test",
        "fuzz",
    ])
    .args(["--", "--nocapture"])
    .env("PRIMAL_FUZZ_SECONDS", seconds.to_string());
    tools::run(&mut test)
}
