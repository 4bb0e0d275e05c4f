//! `primal completions`: the completion script of a shell.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Args, CompletionsArgs};

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    // Into memory first: the generator would panic on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "primal", &mut script);
    io::stdout()
        .lock()
        .write_all(&script)
        .context("cannot write the script")?;
    Ok(ExitCode::SUCCESS)
}
