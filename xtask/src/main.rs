//! Automation of the repository: `cargo xtask ci`, `bench`, `demo`, `faults`, `voice-corpus` and more.

mod bench;
mod ci;
mod demo;
mod dependencies;
mod gate_table;
mod gpu;
mod kernel_coverage;
mod plots;
mod relay;
mod runner;
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
    /// Runs the gate: every part, the cheapest first, up to the first that fails.
    #[command(after_help = ci::help())]
    Ci {
        /// Also what is too slow for every day: before a release.
        #[arg(long)]
        all: bool,
        /// Only the part of this name.
        #[arg(long, value_name = "PART")]
        only: Option<String>,
        /// Makes this run's times the committed table, benches/gate.json: after a fresh clone.
        #[arg(long)]
        record: bool,
    },
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
    /// Prints which lines of the CUDA kernels' PTX the last run of the tests did not execute.
    KernelCoverage,
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
        Command::Ci { all, only, record } => ci::run(&ci::Options { all, only, record }),
        Command::Ptx => gpu::regenerate(),
        Command::KernelCoverage => kernel_coverage::print(),
        Command::KernelTable => gpu::table(),
        Command::GpuCheck { report } => gpu::check(&report),
        Command::Bench { quick, json } => bench::run(quick, json.as_deref()),
        Command::Demo { run } => demo::run(&run),
        Command::Faults { injections, seed } => ci::faults(injections, seed).map(drop),
        Command::VoiceCorpus(args) => voice_corpus::run(&args),
        Command::Fuzz { seconds } => ci::fuzz(seconds).map(drop),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_shows_commands_that_exist() {
        let readme = include_str!("../../README.md");
        let commands = readme
            .lines()
            .filter(|line| line.starts_with("cargo xtask "));
        let mut n_commands = 0;
        for line in commands {
            let line = line.split('#').next().unwrap_or_default();
            let words = line.split_whitespace().skip(1);
            if let Err(error) = Args::try_parse_from(words) {
                panic!("{line}: {error}");
            }
            n_commands += 1;
        }
        assert!(n_commands > 4, "{n_commands} commands were found");
    }
}
