//! The table of speed and memory: whole models through the release binary, kernels one by one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::tools::{build_release, capture, command_line};

/// Rows of the table: what it is called and the arguments of `primal bench`.
type Model = (&'static str, &'static str);

/// What the project is known for.
const FULL: [Model; 11] = [
    (
        "shakespeare-char",
        "--preset shakespeare-char --train --reps 50",
    ),
    ("small", "--preset small --train --pp 256 --tg 128"),
    ("ghost-0.1b", "--preset ghost-0.1b --train --batch 16"),
    (
        "ghost-0.1b, 1 thread",
        "--preset ghost-0.1b --train --batch 16 --threads 1 --reps 3",
    ),
    (
        "ghost-0.1b, one pass",
        "--preset ghost-0.1b --train --batch 16 --micro-batches 1 --reps 3",
    ),
    (
        "ghost-0.1b, nothing computed twice",
        "--preset ghost-0.1b --train --batch 16 --micro-batches 8 --set train.recompute=0 --reps 3",
    ),
    // As the original keeps them.
    (
        "ghost-0.1b, float parts",
        "--preset ghost-0.1b --train --batch 16 --reps 3 \
         --set model.tie_head=false --set model.float_parts=[\"attention\",\"embeddings\"]",
    ),
    (
        "ghost-0.1b, adamw",
        "--preset ghost-0.1b --train --batch 16 --reps 1 --set optim.rule=adamw --set train.recompute=0",
    ),
    ("ghost-0.1b", "--preset ghost-0.1b --pp 512 --tg 128"),
    ("llama-1.1b", "--preset llama-1.1b --pp 512 --tg 128"),
    (
        "llama-1.1b, 1 thread",
        "--preset llama-1.1b --pp 512 --tg 128 --threads 1 --reps 3",
    ),
];

/// The same for `--quick`.
const QUICK: [Model; 2] = [
    (
        "shakespeare-char",
        "--preset shakespeare-char --train --reps 10",
    ),
    ("small", "--preset small --pp 256 --tg 32 --reps 3"),
];

/// Widths at 256 tokens, then contexts at a width of 512; four blocks, 4096 tokens a step.
const WIDTHS: [usize; 4] = [256, 512, 1024, 2048];
const CONTEXTS: [usize; 6] = [128, 256, 512, 1024, 2048, 4096];

/// Measures and prints the table. A full run leaves its raw rows in a folder of `benches/runs`;
/// `to` receives them too.
pub fn run(quick: bool, to: Option<&Path>) -> Result<()> {
    let primal = build_release("primal-cli", "primal")?;
    let kernels = build_release("primal-benches", "kernels")?;
    let models: &[Model] = if quick { &QUICK } else { &FULL };
    let mut model_rows = Vec::new();
    for &(label, arguments) in models {
        model_rows.extend(model_rows_of(&primal, label, arguments)?);
    }
    if !quick {
        for width in WIDTHS {
            model_rows.extend(scaling_row(&primal, width, 256)?);
        }
        for context in CONTEXTS {
            model_rows.extend(scaling_row(&primal, 512, context)?);
        }
    }
    let vocoders = if quick { "v3" } else { "v3,v2,v1" };
    let vocoder_rows = model_rows_of(&primal, "HiFi-GAN", &format!("--vocoder {vocoders}"))?;
    let mut command = Command::new(&kernels);
    if quick {
        command.arg("--quick");
    }
    let kernel_rows = rows(&mut command)?;
    let tables = [
        model_table(&model_rows),
        vocoder_table(&vocoder_rows),
        kernel_table(&kernel_rows),
    ];
    let table = tables.join("\n");
    print!("\n{table}");
    let commit = commit();
    let report = json!({
        "command": format!("cargo xtask bench{}", if quick { " --quick" } else { "" }),
        "unix_time_s": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        "commit": commit.as_ref().map(|(_, commit)| commit),
        "machine": machine(),
        "rustc": capture(Command::new("rustc").arg("--version"))?.trim(),
        "models": model_rows,
        "vocoders": vocoder_rows,
        "kernels": kernel_rows,
    });
    let text = serde_json::to_string_pretty(&report)? + "\n";
    let mut files: Vec<(PathBuf, &str)> = Vec::new();
    if !quick && let Some((date, commit)) = commit {
        let cpu = text_of(&report["machine"]["cpu"]).to_lowercase();
        let cpu: Vec<&str> = cpu
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        let name = format!("{date}-{}-{commit}", cpu.join("-"));
        let folder = Path::new("benches/runs").join(name);
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        files.push((folder.join("rows.json"), &text));
        files.push((folder.join("table.txt"), &table));
    }
    files.extend(to.map(|path| (path.to_path_buf(), text.as_str())));
    for (path, text) in files {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

fn scaling_row(primal: &Path, width: usize, context: usize) -> Result<Vec<Value>> {
    let (heads, batch) = (width / 64, 4096 / context);
    let label = format!("width {width}, context {context}");
    let arguments = format!(
        "--preset small --train --batch {batch} --micro-batches 1 --reps 3 \
         --set model.n_layer=4 --set model.width={width} --set model.n_head={heads} \
         --set model.context={context}"
    );
    model_rows_of(primal, &label, &arguments)
}

fn model_rows_of(primal: &Path, label: &str, arguments: &str) -> Result<Vec<Value>> {
    let mut command = Command::new(primal);
    command.arg("bench").args(arguments.split_whitespace());
    let mut rows = rows(command.arg("--json"))?;
    for row in &mut rows {
        row["label"] = label.into();
    }
    Ok(rows)
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

fn model_table(rows: &[Value]) -> String {
    let mut table = format!(
        "{:<26} {:<7} {:>7} {:>6} {:>10} {:>10} {:>10} {:>9} {:>10} {:>9}\n",
        "model",
        "isa",
        "threads",
        "test",
        "tokens/s",
        "min",
        "max",
        "peak MiB",
        "ledger MiB",
        "floor"
    );
    for row in rows {
        let floor = [&row["bandwidth_fraction"], &row["peak_fraction"]];
        table += &format!(
            "{:<26} {:<7} {:>7} {:>6} {:>10.1} {:>10.1} {:>10.1} {:>9.1} {:>10} {:>9}\n",
            text_of(&row["label"]),
            text_of(&row["isa"]),
            row["threads"].as_u64().unwrap_or(0),
            text_of(&row["test"]),
            row["tokens_per_s"].as_f64().unwrap_or(f64::NAN),
            row["min"].as_f64().unwrap_or(f64::NAN),
            row["max"].as_f64().unwrap_or(f64::NAN),
            mib(&row["peak_rss_bytes"]).unwrap_or(f64::NAN),
            or_dash(mib(&row["ledger_bytes"]).map(|mib| format!("{mib:.1}"))),
            percent(floor.into_iter().find_map(Value::as_f64)),
        );
    }
    table
}

fn vocoder_table(rows: &[Value]) -> String {
    let mut table = format!(
        "{:<26} {:<7} {:>7} {:>12} {:>10} {:>10} {:>10}\n",
        "vocoder", "isa", "threads", "x real time", "min", "max", "peak MiB"
    );
    for row in rows {
        table += &format!(
            "{:<26} {:<7} {:>7} {:>12.1} {:>10.1} {:>10.1} {:>10.1}\n",
            format!("{} {}", text_of(&row["label"]), text_of(&row["model"])),
            text_of(&row["isa"]),
            row["threads"].as_u64().unwrap_or(0),
            row["times_real_time"].as_f64().unwrap_or(f64::NAN),
            row["min"].as_f64().unwrap_or(f64::NAN),
            row["max"].as_f64().unwrap_or(f64::NAN),
            mib(&row["peak_rss_bytes"]).unwrap_or(f64::NAN),
        );
    }
    table
}

fn kernel_table(rows: &[Value]) -> String {
    let mut table = format!(
        "{:<42} {:<7} {:>11} {:>8} {:>8} {:>9} {:>8}\n",
        "kernel", "isa", "median us", "GB/s", "GOP/s", "of read", "of peak"
    );
    for row in rows {
        let rate = |key: &str| or_dash(row[key].as_f64().map(|rate| format!("{rate:.1}")));
        table += &format!(
            "{:<42} {:<7} {:>11.1} {:>8} {:>8} {:>9} {:>8}\n",
            text_of(&row["workload"]),
            text_of(&row["isa"]),
            row["median_us"].as_f64().unwrap_or(f64::NAN),
            rate("gb_per_s"),
            rate("gflop_per_s"),
            percent(row["of_read_bandwidth"].as_f64()),
            percent(row["of_peak"].as_f64()),
        );
    }
    table
}

/// What the operating system says of the machine, where it does.
pub fn machine() -> Value {
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

/// Date and short hash of the commit, where git knows them; a changed tree is said to be one.
pub fn commit() -> Option<(String, String)> {
    let git = |arguments: &[&str]| capture(Command::new("git").args(arguments)).ok();
    let shown = git(&["show", "-s", "--format=%cs %h", "HEAD"])?;
    let (date, hash) = shown.trim().split_once(' ')?;
    let clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    let hash = format!("{hash}{}", if clean { "" } else { "-changed" });
    Some((date.to_string(), hash))
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn mib(value: &Value) -> Option<f64> {
    Some(value.as_f64()? / f64::from(1 << 20))
}

fn percent(fraction: Option<f64>) -> String {
    or_dash(fraction.map(|fraction| format!("{:.0} %", 100.0 * fraction)))
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_string())
}
