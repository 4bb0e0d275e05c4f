//! The gate: what must hold of every change, in parts, the cheapest first, each named and timed.
//!
//! All parts compile one and the same build: every feature at once, because what links to CUDA,
//! NCCL and cuBLAS finds them when it runs. The feature `mpi` joins in where an MPI library is.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::gate_table::{Measured, Table};
use crate::relay::{Failed, relay};
use crate::tools::cargo;
use crate::{dependencies, gpu, runner, tidy};

/// One part of the gate.
struct Part {
    name: &'static str,
    /// Why it does not run every day; empty if it does.
    why_not_daily: &'static str,
    check: fn() -> Result<Outcome>,
}

/// What a part that passed has to say at the end, if anything.
type Outcome = Option<String>;

const fn daily(name: &'static str, check: fn() -> Result<Outcome>) -> Part {
    Part {
        name,
        why_not_daily: "",
        check,
    }
}

const PARTS: [Part; 14] = [
    daily("formatting", formatting),
    daily("dependency direction", || {
        dependencies::check().map(|()| None)
    }),
    daily("tidy", || tidy::check().map(|()| None)),
    daily("lints", lints),
    daily("lints of smaller builds", lints_of_smaller_builds),
    daily("documentation", documentation),
    daily("compiling the tests", compile_tests),
    daily("doctests", doctests),
    daily("tests of the plain build", tests_of_the_plain_build),
    daily("tests", tests),
    Part {
        name: "CUDA compile matrix",
        why_not_daily: "two versions of NVRTC are downloaded and compile for seven architectures. A \
            change to a kernel needs `cargo xtask ptx`, which holds it to its budgets; that the \
            PTX is of these sources, and what it computes, is tested daily",
        check: || gpu::matrix().map(|()| None),
    },
    Part {
        name: "long runs on GPUs",
        why_not_daily: "twenty steps, where the daily tests take the fewest in which weights move",
        check: long_runs,
    },
    Part {
        name: "fuzzing",
        why_not_daily: "ten seconds for every reader of files; 300 cases of each are tested daily",
        check: || fuzz(10),
    },
    Part {
        name: "faults",
        why_not_daily: "thirty faults of every kind; four of each are tested daily",
        check: || faults(30, 1),
    },
];

/// Lines of a failed command that are shown again at the end.
const SHOWN_OF_A_FAILURE: usize = 40;

/// Which parts run, and what becomes of their times.
pub struct Options {
    /// Also those that are not daily.
    pub all: bool,
    /// This one alone.
    pub only: Option<String>,
    /// Write the table of times.
    pub record: bool,
}

/// The parts, for `--help`.
pub fn help() -> String {
    let mut text = String::from("Parts, in order:\n");
    for part in &PARTS {
        let _ = match part.why_not_daily {
            "" => writeln!(text, "  {}", part.name),
            why => writeln!(text, "  {} (with --all alone: {why})", part.name),
        };
    }
    text
}

/// Runs the parts up to the first that fails; prints the table of times, and a failure last.
pub fn run(options: &Options) -> Result<()> {
    let parts = chosen(options)?;
    let is_fresh = !runner::has_built();
    let committed = Table::committed()?;
    let mut table = Table::new(is_fresh);
    let mut said = Vec::new();
    let mut failure = None;
    for part in parts {
        if failure.is_some() {
            table.not_run(part.name);
            continue;
        }
        eprintln!("== {}", part.name);
        let (started, processor) = (Instant::now(), processor_seconds());
        let result = (part.check)();
        table.add(Measured {
            part: part.name.into(),
            passed: result.is_ok(),
            seconds: started.elapsed().as_secs_f64(),
            processor_seconds: processor_seconds() - processor,
        });
        match result {
            Ok(outcome) => said.extend(outcome),
            Err(error) => failure = Some((part.name, error)),
        }
    }
    println!("\ncargo xtask ci\n{}", table.against(committed.as_ref()));
    if let Some((name, error)) = failure {
        return Err(explained(name, error));
    }
    if options.record {
        table.write()?;
    }
    for line in said {
        println!("{line}");
    }
    Ok(())
}

fn chosen(options: &Options) -> Result<Vec<&'static Part>> {
    if let Some(only) = &options.only {
        let part = PARTS.iter().find(|part| part.name == only);
        let names = || PARTS.map(|part| part.name).join("', '");
        return Ok(vec![part.with_context(|| {
            format!("no part '{only}'; there are '{}'", names())
        })?]);
    }
    let chosen = PARTS.iter();
    Ok(chosen
        .filter(|part| options.all || part.why_not_daily.is_empty())
        .collect())
}

/// The failure as the last thing on the screen: what was said, and what repeats it.
fn explained(part: &str, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Failed>() {
        Ok(failed) => {
            let start = failed.lines.len().saturating_sub(SHOWN_OF_A_FAILURE);
            let lines = failed.lines[start..].join("\n");
            anyhow::anyhow!(
                "part '{part}' failed:\n\n{lines}\n\nto repeat it alone:\n  {}",
                failed.repeat
            )
        }
        Err(error) => anyhow::anyhow!(
            "part '{part}' failed:\n\n{error:#}\n\nto repeat it alone:\n  cargo xtask ci --only '{part}'"
        ),
    }
}

/// Processor time of all commands so far, where the system tells (Linux: proc_pid_stat(5)).
fn processor_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in brackets, may hold spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let of_children = fields.split_whitespace().skip(13).take(2);
    let ticks = of_children.filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

fn formatting() -> Result<Outcome> {
    relay(cargo().args(["fmt", "--all", "--check"]))?;
    Ok(None)
}

fn lints() -> Result<Outcome> {
    let mut clippy = cargo();
    clippy.args(["clippy", "--workspace", "--all-targets", "--locked"]);
    relay(runner::with_features(&mut clippy).args(["--", "-D", "warnings"]))?;
    Ok(None)
}

/// What is compiled out of the one build: without GPUs, with one GPU alone, without MPI.
fn lints_of_smaller_builds() -> Result<Outcome> {
    for features in ["", "primal-cli/cuda"] {
        let mut clippy = cargo();
        clippy.args(["clippy", "--workspace", "--locked", "--features", features]);
        relay(clippy.args(["--", "-D", "warnings"]))?;
    }
    Ok(None)
}

fn documentation() -> Result<Outcome> {
    let mut doc = cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--locked"]);
    relay(runner::with_features(&mut doc).env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(None)
}

fn compile_tests() -> Result<Outcome> {
    runner::compile().map(|()| None)
}

/// The program as most build it, without features: what it says of what it lacks. Nothing here
/// computes, so none of it is optimised.
fn tests_of_the_plain_build() -> Result<Outcome> {
    let mut test = cargo();
    test.args([
        "test",
        "--locked",
        "--package",
        "primal-cli",
        "--test",
        "main",
    ]);
    for package in dependencies::metadata()?.packages {
        test.arg("--config");
        test.arg(format!("profile.dev.package.{}.opt-level=0", package.name));
    }
    relay(test.args(["--", "plain::"]))?;
    Ok(None)
}

fn doctests() -> Result<Outcome> {
    let mut test = cargo();
    test.args(["test", "--workspace", "--locked", "--doc"]);
    relay(runner::with_features(&mut test))?;
    Ok(None)
}

fn tests() -> Result<Outcome> {
    runner::run().map(Some)
}

/// The tests of the model at the length at which they were first shown.
fn long_runs() -> Result<Outcome> {
    let mut test = cargo();
    test.args(["test", "--workspace", "--locked", "--test", "main"]);
    runner::with_features(&mut test).env("PRIMAL_TESTS", "all");
    relay(test.args(["--", "cuda_training::"]))?;
    Ok(None)
}

/// The fault test of the command line with as many injections of every kind as asked for.
pub fn faults(injections: u32, seed: u64) -> Result<Outcome> {
    let mut test = cargo();
    test.args(["test", "--locked", "--package", "primal-cli"]);
    test.args(["--test", "main", "--", "faults::", "--nocapture"]);
    test.env("PRIMAL_FAULT_INJECTIONS", injections.to_string());
    relay(test.env("PRIMAL_FAULT_SEED", seed.to_string()))?;
    Ok(None)
}

/// The fuzzing test of all readers for as many seconds a reader as asked for.
pub fn fuzz(seconds: u64) -> Result<Outcome> {
    let mut test = cargo();
    test.args(["test", "--locked", "--package", "primal-cli"]);
    test.args(["--test", "fuzz", "--", "--nocapture"]);
    relay(test.env("PRIMAL_FUZZ_SECONDS", seconds.to_string()))?;
    Ok(None)
}
