//! Automation of the repository: `cargo xtask ci`, `cargo xtask bench`, `cargo xtask demo`.

mod bench;
mod ci;
mod demo;
mod dependencies;
mod plots;
mod tidy;
mod tools;

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
        /// Small models and few repetitions: about two minutes.
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
}

fn main() -> ExitCode {
    let result = tools::enter_repository().and_then(|()| match Args::parse().command {
        Command::Ci => ci::run(),
        Command::Bench { quick, json } => bench::run(quick, json.as_deref()),
        Command::Demo { run } => demo::run(&run),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
