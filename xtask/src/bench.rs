//! The table of speed and memory: whole models through the release binary, kernels one by one.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::tools::{build_release, capture, command_line};

/// Arguments of `primal bench` for each model of the full table.
const FULL: [&[&str]; 4] = [
    &["--preset", "shakespeare-char", "--train", "--reps", "5"],
    &[
        "--preset", "small", "--train", "--pp", "256", "--tg", "128", "--reps", "5",
    ],
    &[
        "--preset",
        "ghost-0.1b",
        "--pp",
        "512",
        "--tg",
        "64",
        "--reps",
        "3",
    ],
    &[
        "--preset",
        "ghost-0.1b",
        "--train",
        "--batch",
        "8",
        "--reps",
        "1",
    ],
];

/// The same for `--quick`.
const QUICK: [&[&str]; 2] = [
    &["--preset", "shakespeare-char", "--train", "--reps", "3"],
    &[
        "--preset", "small", "--pp", "256", "--tg", "32", "--reps", "3",
    ],
];

/// Measures, prints the table and, where asked, writes the raw rows.
pub fn run(quick: bool, to: Option<&Path>) -> Result<()> {
    let primal = build_release("primal-cli", "primal")?;
    let kernels = build_release("primal-benches", "kernels")?;
    let models: &[&[&str]] = if quick { &QUICK } else { &FULL };
    let mut model_rows = Vec::new();
    for arguments in models {
        let mut command = Command::new(&primal);
        command.arg("bench").args(*arguments).arg("--json");
        model_rows.extend(rows(&mut command)?);
    }
    let mut command = Command::new(&kernels);
    if quick {
        command.arg("--quick");
    }
    let kernel_rows = rows(&mut command)?;
    print_models(&model_rows);
    print_kernels(&kernel_rows);
    if let Some(path) = to {
        let report = json!({
            "command": format!("cargo xtask bench{}", if quick { " --quick" } else { "" }),
            "unix_time_s": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            "machine": machine(),
            "rustc": capture(Command::new("rustc").arg("--version"))?.trim(),
            "models": model_rows,
            "kernels": kernel_rows,
        });
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Runs a program that writes one JSON object a line; each row remembers its command.
fn rows(command: &mut Command) -> Result<Vec<Value>> {
    let line = command_line(command);
    eprintln!("== {line}");
    let text = capture(command)?;
    let parse = |row: &str| -> Result<Value> {
        let mut row: Value =
            serde_json::from_str(row).with_context(|| format!("`{line}`: {row}"))?;
        row["command"] = line.clone().into();
        Ok(row)
    };
    text.lines().map(parse).collect()
}

fn print_models(rows: &[Value]) {
    println!(
        "\n{:<18} {:<8} {:>7} {:>8} {:>12} {:>12} {:>12}",
        "model", "isa", "threads", "test", "tokens/s", "weights MiB", "peak MiB"
    );
    for row in rows {
        println!(
            "{:<18} {:<8} {:>7} {:>8} {:>12.1} {:>12.1} {:>12.1}",
            text(&row["model"]),
            text(&row["isa"]),
            row["threads"].as_u64().unwrap_or(0),
            text(&row["test"]),
            row["tokens_per_s"].as_f64().unwrap_or(f64::NAN),
            mib(&row["weight_bytes"]),
            mib(&row["peak_rss_bytes"]),
        );
    }
}

fn print_kernels(rows: &[Value]) {
    println!(
        "\n{:<28} {:<8} {:>12} {:>10} {:>10}",
        "kernel", "isa", "median us", "GB/s", "GFLOP/s"
    );
    for row in rows {
        let rate = |key: &str| match row[key].as_f64() {
            Some(rate) => format!("{rate:.1}"),
            None => String::from("-"),
        };
        println!(
            "{:<28} {:<8} {:>12.1} {:>10} {:>10}",
            text(&row["workload"]),
            text(&row["isa"]),
            row["median_us"].as_f64().unwrap_or(f64::NAN),
            rate("gb_per_s"),
            rate("gflop_per_s"),
        );
    }
}

/// What the operating system says of the machine, where it does.
fn machine() -> Value {
    let line = |path: &str, key: &str| {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    json!({
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "cpu": line("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "memory": line("/proc/meminfo", "MemTotal"),
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn mib(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20)
}
