//! The GPU's kernels: their compile matrix, their PTX, and the check on a card.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::tools::{capture, cargo};

/// NVRTC versions of the matrix: name, Python package, the library's file.
const COMPILERS: [(&str, &str, &str); 2] = [
    (
        "11.8",
        "nvidia-cuda-nvrtc-cu11==11.8.89",
        "libnvrtc.so.11.2",
    ),
    ("12.9", "nvidia-cuda-nvrtc-cu12==12.9.86", "libnvrtc.so.12"),
];

/// Pascal to Hopper. A GTX 1080 Ti is sm_61, an RTX 3060 sm_86.
const ARCHITECTURES: [&str; 7] = [
    "sm_61", "sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90",
];

/// The checked-in PTX of the program's kernels.
pub const KERNELS_PTX: [&str; 3] = [PTX[0][0], PTX[1][0], PTX[2][0]];

/// The checked-in PTX: file, what it is made of, architecture. The last holds the deliberate bugs
/// of the interpreter's tests.
const PTX: [[&str; 3]; 4] = [
    ["primal-kernels/cuda/kernels.ptx", "kernels", "compute_61"],
    ["primal-kernels/cuda/tensor_75.ptx", "tensor", "compute_75"],
    ["primal-kernels/cuda/tensor_80.ptx", "tensor", "compute_80"],
    [
        "ptx-interpreter/tests/main/bugs.ptx",
        "ptx-interpreter/tests/main/bugs.cu",
        "compute_61",
    ],
];

/// Registers that a thread may take, for kernels beyond [`DEFAULT_REGISTERS`]; with the threads
/// of its blocks each leaves room for two blocks a multiprocessor (65,536 registers).
const REGISTERS: [(&str, u32); 14] = [
    ("attention_backward_keys_64", 192),
    ("attention_backward_keys_128", 192),
    ("attention_backward_queries_64", 128),
    ("attention_backward_queries_128", 128),
    ("attention_forward_64", 128),
    ("attention_forward_128", 128),
    ("gemm_nt_128", 128),
    ("gemm_nn_128", 128),
    ("gemm_tn_128", 128),
    ("gemm_nt_64", 85),
    ("gemm_nn_64", 85),
    ("int8_mma_nt_128", 128),
    ("int8_mma_nn_128", 128),
    // One block of up to 1024 threads.
    ("sample", 64),
];
const DEFAULT_REGISTERS: u32 = 80;

/// Shared memory of a block: two blocks fit the 96 KiB of a Pascal multiprocessor.
const SHARED_BYTES: u32 = 48 * 1024;

/// What the assembler says of one kernel on one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Usage {
    kernel: String,
    registers: u32,
    shared_bytes: u32,
    spilled_bytes: u32,
}

/// Compiles the kernels with every NVRTC for every architecture and holds them to their budgets.
/// Skipped, loudly, where the compilers cannot be had.
pub fn matrix() -> Result<()> {
    for (version, package, file) in COMPILERS {
        let Some(library) = compiler(version, package, file)? else {
            continue;
        };
        check_budgets(version, &library)?;
        if version == "11.8" {
            check_drift(&library)?;
        }
    }
    Ok(())
}

/// Compiles the kernels with one NVRTC for every architecture and holds them to their budgets.
fn check_budgets(version: &str, library: &Path) -> Result<()> {
    let report = capture(example().arg("matrix").arg(library).args(ARCHITECTURES))?;
    let sections = sections(&report);
    ensure!(
        sections.len() == ARCHITECTURES.len(),
        "NVRTC {version} reported {} of {} architectures",
        sections.len(),
        ARCHITECTURES.len()
    );
    let mut problems = Vec::new();
    for (architecture, usages) in &sections {
        ensure!(!usages.is_empty(), "no report for {architecture}");
        problems.extend(usages.iter().filter_map(|usage| {
            let what = over_budget(usage)?;
            Some(format!("NVRTC {version}, {architecture}: {what}"))
        }));
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n       "));
    let kernels: Vec<String> = sections
        .iter()
        .map(|(architecture, usages)| format!("{architecture} {}", usages.len()))
        .collect();
    println!("NVRTC {version}: kernels {}, no spills", kernels.join(", "));
    Ok(())
}

/// Prints the table of docs/cuda.md: registers, shared memory and occupancy of every kernel on two
/// cards.
pub fn table() -> Result<()> {
    let (version, package, file) = COMPILERS[0];
    let library = compiler(version, package, file)?.context("NVRTC 11.8 is needed")?;
    let cards = ["sm_61", "sm_86"];
    let report = capture(example().arg("matrix").arg(&library).args(cards))?;
    let sections = sections(&report);
    let [(_, old), (_, new)] = &sections[..] else {
        bail!("two architectures were asked for");
    };
    // The newer card has every kernel, the older one none for tensor cores.
    let mut usages: Vec<&Usage> = new.iter().collect();
    usages.sort_by_key(|usage| &usage.kernel);
    println!("| kernel | registers | spills | occupancy | shared |\n|---|---|---|---|---|");
    for usage in usages {
        let old = old.iter().find(|it| it.kernel == usage.kernel);
        let both = |of: fn(&Usage, &str) -> String| {
            let first = old.map_or_else(|| "-".into(), |old| of(old, cards[0]));
            format!("{first} / {}", of(usage, cards[1]))
        };
        println!(
            "| `{}` | {} | {} | {} | {} |",
            usage.kernel,
            both(|usage, _| usage.registers.to_string()),
            both(|usage, _| usage.spilled_bytes.to_string()),
            both(occupancy),
            usage.shared_bytes,
        );
    }
    Ok(())
}

/// Makes the checked-in PTX anew with NVRTC 11.8, and holds the kernels to their budgets: every
/// change of a kernel passes here.
pub fn regenerate() -> Result<()> {
    let (version, package, file) = COMPILERS[0];
    let Some(library) = compiler(version, package, file)? else {
        bail!("NVRTC 11.8 is needed; hint: pip must reach a registry");
    };
    // All before the first is written: the compiling program holds these files.
    let made = PTX
        .iter()
        .map(|[_, of, architecture]| ptx(&library, of, architecture))
        .collect::<Result<Vec<_>>>()?;
    for ([file, ..], text) in PTX.iter().zip(made) {
        fs::write(file, text)?;
        println!("{file} is of these sources");
    }
    check_budgets(version, &library)
}

/// On a machine with a GPU: all parity tests on it, then speed and memory; a report in `file`.
pub fn check(file: &Path) -> Result<()> {
    let doctor = capture(primal().args(["doctor"]))?;
    println!("{doctor}");
    ensure!(
        !doctor.contains("no NVIDIA driver") && doctor.contains("sm_"),
        "no GPU was found; hint: `primal doctor` says what is missing"
    );
    let mut test = cargo();
    test.args(["test", "--release", "--locked", "--features", "cuda"]);
    test.args(["-p", "primal-kernels", "--test", "main", "--"]);
    test.args(["cuda_layers::", "cuda_rules::", "cuda_votes::"]);
    test.args(["--nocapture", "--test-threads", "1"]);
    let parity = capture(test.env("PRIMAL_CUDA_TESTS", "gpu"))?;
    let parity: Vec<&str> = parity
        .lines()
        .filter(|line| line.starts_with("parity"))
        .collect();

    // One GPU, then as many as can share the preset's micro-batches, with the same state in the end.
    let gpus = doctor.lines().filter(|line| line.contains(", sm_")).count();
    let several = [8, 4, 2].into_iter().find(|several| *several <= gpus);
    let trained: String = [1].into_iter().chain(several).map(train_on).collect();
    let smi = Command::new("nvidia-smi").output();
    let smi = smi.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    let measured = [
        ["--preset=ghost-0.1b", "--train", "--reps=5"],
        ["--preset=llama-1.1b", "--pp=512", "--tg=128"],
    ]
    .map(|tests| {
        let mut bench = primal();
        bench
            .args(["bench", "--backend=cuda", "--json"])
            .args(tests);
        capture(&mut bench).unwrap_or_else(|error| format!("failed: {error:#}"))
    })
    .join("");
    let report = format!(
        "# GPU check\n\n## Doctor\n\n```\n{doctor}\n```\n\n## nvidia-smi\n\n```\n{smi}\n```\n\n\
         ## Parity with the processor ({} comparisons)\n\n```\n{}\n```\n\n\
         ## Speed and memory\n\n```\n{measured}\n```\n\n\
         ## Training ghost-0.1b, 20 steps; `state_hash` is the same on any number of GPUs\n\n\
         ```\n{trained}```\n",
        parity.len(),
        parity.join("\n"),
    );
    fs::write(file, report).with_context(|| file.display().to_string())?;
    println!("the report is in {}", file.display());
    Ok(())
}

/// What a short run of `ghost-0.1b` on `gpus` GPUs says in the end.
fn train_on(gpus: usize) -> String {
    let run = std::env::temp_dir().join(format!("primal-gpu-check-{}", std::process::id()));
    let mut command = primal();
    command.args(["train", "--preset", "ghost-0.1b", "--backend", "cuda"]);
    command.args(["--gpus", &gpus.to_string(), "--steps", "20", "--json"]);
    let said = capture(command.arg("--run").arg(&run));
    let _ = fs::remove_dir_all(&run);
    match said {
        Ok(rows) => format!("{gpus} GPU: {rows}"),
        Err(error) => format!("{gpus} GPU: failed: {error:#}\n"),
    }
}

fn primal() -> Command {
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--locked",
        "--quiet",
        "-p",
        "primal-cli",
    ]);
    command.args(["--features", "nccl", "--"]);
    command
}

fn example() -> Command {
    let mut command = cargo();
    command.args(["run", "--quiet", "--locked", "-p", "primal-kernels"]);
    command.args(["--features", "cuda", "--example", "kernels", "--"]);
    command
}

/// The library of an NVRTC, installed into a virtual environment in `target/nvrtc`; `None`, with
/// a notice, where that is not possible.
fn compiler(version: &str, package: &str, file: &str) -> Result<Option<PathBuf>> {
    let folder = Path::new("target/nvrtc").join(version);
    if let Some(library) = find(&folder, file) {
        return Ok(Some(library));
    }
    let made = Command::new("python3")
        .args(["-m", "venv"])
        .arg(&folder)
        .status();
    let installed = made.is_ok_and(|status| status.success())
        && Command::new(folder.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", package])
            .status()
            .is_ok_and(|status| status.success());
    let library = find(&folder, file).filter(|_| installed);
    if library.is_none() {
        println!(
            "SKIPPED: NVRTC {version} could not be installed ({package}): no compile matrix for it"
        );
    }
    Ok(library)
}

/// The file anywhere below `folder`.
fn find(folder: &Path, file: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()? {
        let path = entry.ok()?.path();
        if path.is_dir() && !path.is_symlink() {
            if let Some(found) = find(&path, file) {
                return Some(found);
            }
        } else if path.file_name().is_some_and(|name| name == file) {
            return path.canonicalize().ok();
        }
    }
    None
}

fn ptx(library: &Path, of: &str, architecture: &str) -> Result<String> {
    capture(example().arg("ptx").arg(library).args([of, architecture]))
}

fn check_drift(library: &Path) -> Result<()> {
    for [file, of, architecture] in PTX {
        let made = ptx(library, of, architecture)?;
        let kept = fs::read_to_string(file).with_context(|| file.to_string())?;
        ensure!(
            kept.trim_end() == made.trim_end(),
            "{file} is not what NVRTC 11.8 makes of its sources; hint: cargo xtask ptx"
        );
    }
    Ok(())
}

/// What each architecture's report says, in order.
fn sections(report: &str) -> Vec<(String, Vec<Usage>)> {
    let mut sections: Vec<(String, Vec<Usage>)> = Vec::new();
    let mut kernel = String::new();
    let mut spilled_bytes = 0;
    for line in report.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with("sm_") {
            sections.push((words[0].to_string(), Vec::new()));
        } else if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_string();
        } else if line.contains("bytes spill stores") {
            spilled_bytes = number_before(&words, "spill") + number_before(&words, "stack");
        } else if let (Some(at), Some((_, usages))) = (
            words.iter().position(|word| *word == "Used"),
            sections.last_mut(),
        ) {
            usages.push(Usage {
                kernel: kernel.clone(),
                registers: words
                    .get(at + 1)
                    .and_then(|it| it.parse().ok())
                    .unwrap_or(0),
                shared_bytes: number_before(&words, "smem"),
                spilled_bytes,
            });
        }
    }
    sections
}

/// N of "N bytes WORD".
fn number_before(words: &[&str], word: &str) -> u32 {
    let at = words.iter().position(|it| it.trim_end_matches(',') == word);
    let number = at.and_then(|at| words.get(at.checked_sub(2)?));
    number.and_then(|it| it.parse().ok()).unwrap_or(0)
}

fn over_budget(usage: &Usage) -> Option<String> {
    let Usage {
        kernel,
        registers,
        shared_bytes,
        spilled_bytes,
    } = usage;
    let budget = REGISTERS.iter().find(|(name, _)| name == kernel);
    let budget = budget.map_or(DEFAULT_REGISTERS, |(_, registers)| *registers);
    if *spilled_bytes > 0 {
        return Some(format!(
            "{kernel} spills or keeps {spilled_bytes} bytes in local memory"
        ));
    }
    if *registers > budget {
        return Some(format!(
            "{kernel} takes {registers} registers, its budget is {budget}"
        ));
    }
    (*shared_bytes > SHARED_BYTES)
        .then(|| format!("{kernel} takes {shared_bytes} bytes of shared memory"))
}

/// Threads of the kernel's blocks that a multiprocessor holds, in percent of what it could.
fn occupancy(usage: &Usage, architecture: &str) -> String {
    let threads = match usage.kernel.as_str() {
        "sample" => 1024,
        kernel if kernel.starts_with("attention_cached") => 64,
        kernel if kernel.starts_with("attention_backward_keys") => 128,
        kernel if kernel.starts_with("attention") && kernel.ends_with("_128") => 128,
        _ => 256,
    };
    let (most, shared) = if architecture == "sm_61" {
        (2048, 96 * 1024)
    } else {
        (1536, 100 * 1024)
    };
    // Registers are given to warps in units of 256.
    let per_warp = (usage.registers * 32).next_multiple_of(256);
    let by_registers = 65536 / per_warp.max(1) / (threads / 32);
    let by_shared = shared / usage.shared_bytes.max(1);
    let blocks = by_registers.min(by_shared).min(most / threads);
    format!("{} %", 100 * blocks * threads / most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "sm_61 100 bytes\n\
        ptxas info    : Compiling entry function 'argmax' for 'sm_61'\n\
        ptxas info    : Function properties for argmax\n\
        \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 27 registers, 2048 bytes smem, 348 bytes cmem[0]\n\
        sm_86 90 bytes\n\
        ptxas info    : Compiling entry function 'matvec' for 'sm_86'\n\
        ptxas info    : Function properties for matvec\n\
        \x20   8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : Used 200 registers, used 1 barriers, 348 bytes cmem[0]\n";

    #[test]
    fn the_assemblers_report_is_read_and_judged() {
        let sections = sections(REPORT);
        assert_eq!(sections.len(), 2);
        let argmax = &sections[0].1[0];
        assert_eq!((argmax.registers, argmax.shared_bytes), (27, 2048));
        assert_eq!(over_budget(argmax), None);
        assert_eq!(occupancy(argmax, "sm_61"), "100 %");
        let matvec = &sections[1].1[0];
        assert!(matvec.spilled_bytes > 0);
        assert!(over_budget(matvec).is_some_and(|what| what.contains("spills")));
        let hungry = Usage {
            spilled_bytes: 0,
            ..matvec.clone()
        };
        assert!(over_budget(&hungry).is_some_and(|what| what.contains("200 registers")));
    }
}
