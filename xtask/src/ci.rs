//! The gates of the project, cheapest first, each named and timed.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::tools::{cargo, run as execute};
use crate::{dependencies, gpu, tidy};

/// One gate: what it is called and what it runs.
struct Gate {
    name: &'static str,
    check: fn() -> Result<()>,
}

const GATES: [Gate; 11] = [
    Gate {
        name: "formatting",
        check: formatting,
    },
    Gate {
        name: "dependency direction",
        check: dependencies::check,
    },
    Gate {
        name: "tidy",
        check: tidy::check,
    },
    Gate {
        name: "clippy",
        check: clippy,
    },
    Gate {
        name: "documentation",
        check: documentation,
    },
    Gate {
        name: "tests",
        check: tests,
    },
    Gate {
        name: "doctests",
        check: doctests,
    },
    Gate {
        name: "clippy with cuda",
        check: clippy_cuda,
    },
    Gate {
        name: "CUDA on the stand-in",
        check: gpu::stand_in,
    },
    Gate {
        name: "CUDA compile matrix",
        check: gpu::matrix,
    },
    Gate {
        name: "mpi",
        check: mpi,
    },
];

/// Runs the gates up to the first that fails and prints a summary.
pub fn run() -> Result<()> {
    let mut lines = Vec::new();
    let mut failed = None;
    for gate in &GATES {
        if failed.is_some() {
            lines.push(format!("  not run  {:>7}  {}", "", gate.name));
            continue;
        }
        eprintln!("== {}", gate.name);
        let started = Instant::now();
        let result = (gate.check)();
        let seconds = started.elapsed().as_secs_f64();
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        lines.push(format!("  {verdict:<7}  {seconds:>6.1}s  {}", gate.name));
        if let Err(error) = result {
            eprintln!("error: {error:#}");
            failed = Some(gate.name);
        }
    }
    println!("\ncargo xtask ci");
    println!("{}", lines.join("\n"));
    match failed {
        None => Ok(()),
        Some(name) => bail!("gate '{name}' failed"),
    }
}

fn formatting() -> Result<()> {
    execute(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let arguments = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    execute(cargo().args(arguments))
}

fn clippy_cuda() -> Result<()> {
    // What a GPU takes alone, then all that it can have.
    for chosen in [&["cuda"] as &[&str], &["nccl", "cublas"]] {
        let packages = ["primal-cli", "primal-model", "primal-kernels"];
        let features = chosen.iter();
        let features = features.flat_map(|it| packages.map(|package| format!("{package}/{it}")));
        let features: Vec<String> = features.collect();
        let mut command = cargo();
        command.args(["clippy", "--all-targets", "--locked"]);
        for package in packages {
            command.args(["--package", package]);
        }
        command.args(["--features", &features.join(",")]);
        execute(command.args(["--", "-D", "warnings"]))?;
    }
    Ok(())
}

fn documentation() -> Result<()> {
    let arguments = ["doc", "--workspace", "--no-deps", "--locked"];
    execute(cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

fn tests() -> Result<()> {
    let targets = ["--lib", "--bins", "--tests"];
    execute(
        cargo()
            .args(["test", "--workspace", "--locked"])
            .args(targets),
    )
}

fn doctests() -> Result<()> {
    execute(cargo().args(["test", "--workspace", "--locked", "--doc"]))
}

/// Training over processes, where there is an MPI library to build and run it with.
fn mpi() -> Result<()> {
    let missing: Vec<&str> = ["mpicc", "mpirun"]
        .into_iter()
        .filter(|program| which(program).is_none())
        .collect();
    if !missing.is_empty() {
        println!(
            "SKIPPED: no {}; the tests of training over processes did not run; \
             hint: apt-get install libopenmpi-dev openmpi-bin libclang-14-dev",
            missing.join(" and no ")
        );
        return Ok(());
    }
    let feature = ["-p", "primal-cli", "--features", "mpi", "--locked"];
    let lint = ["clippy", "--all-targets"];
    execute(
        cargo()
            .args(lint)
            .args(feature)
            .args(["--", "-D", "warnings"]),
    )?;
    execute(cargo().arg("test").args(feature).args(["--test", "mpi"]))
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
