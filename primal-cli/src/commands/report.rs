//! `primal report`: the plots of a run in one HTML page that needs nothing else.

mod page;
mod plots;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::args::ReportArgs;
use crate::output;
use crate::run_status::RunStatus;

#[derive(Serialize)]
struct Written {
    report: String,
    bytes: usize,
    steps: u32,
    layers: usize,
}

/// Writes the page and says where.
pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    let status = RunStatus::new(&args.run)?;
    if status.record().steps.is_empty() {
        bail!(
            "{} has no training rows yet; hint: primal train --run {0} begins a run",
            args.run.display()
        );
    }
    let path = args
        .output
        .clone()
        .unwrap_or_else(|| args.run.join("report.html"));
    let html = page::html(&status)?;
    write(&path, &html)?;
    let written = Written {
        report: path.display().to_string(),
        bytes: html.len(),
        steps: status.step(),
        layers: status.record().newest_layers().len(),
    };
    if args.json {
        output::json(&written)?;
    } else {
        output::line(&written.report)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, html: &str) -> Result<()> {
    fs::write(path, html).with_context(|| format!("cannot write {}", path.display()))
}
