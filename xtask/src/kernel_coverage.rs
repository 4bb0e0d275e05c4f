//! What the tests execute of the kernels' PTX: every instruction, and both sides of every guard.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::gpu::KERNELS_PTX;

/// The variable in which the stand-in device finds the folder.
pub const VARIABLE: &str = "CUDA_STANDIN_COVERAGE";

/// Where it writes what it executed.
pub const FOLDER: &str = "target/kernel-coverage";

/// Makes the folder anew and empty.
pub fn begin() -> Result<()> {
    match fs::remove_dir_all(FOLDER) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(FOLDER),
    }
    .context(FOLDER)
}

/// A kernel of a target.
type Name = (String, String);

/// Lines of one kernel.
#[derive(Default)]
struct Lines {
    all: BTreeSet<u32>,
    /// Those with a guard: a branch, or an instruction for some threads alone.
    guarded: BTreeSet<u32>,
    executed: BTreeSet<u32>,
    passed_over: BTreeSet<u32>,
}

/// What was executed since [`begin`]: a line for the whole, and a table of the kernels of which
/// something was not.
pub fn report() -> Result<(String, String)> {
    let mut kernels: BTreeMap<Name, Lines> = BTreeMap::new();
    for file in KERNELS_PTX {
        let text = fs::read_to_string(file).context(file)?;
        kernels.extend(instructions(&text));
    }
    for entry in fs::read_dir(FOLDER).context(FOLDER)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        text.lines().for_each(|line| add(&mut kernels, line));
    }
    Ok((summary(&kernels), table(&kernels)))
}

/// The instructions of the kernels in a file of PTX.
fn instructions(ptx: &str) -> BTreeMap<Name, Lines> {
    let mut kernels: BTreeMap<Name, Lines> = BTreeMap::new();
    let (mut target, mut name, mut is_in_body) = ("", "", false);
    for (number, line) in (1..).zip(ptx.lines()) {
        let line = line.split("//").next().unwrap_or_default().trim();
        if let Some(rest) = line.strip_prefix(".target ") {
            target = rest;
        } else if let Some((_, rest)) = line.split_once(".entry ") {
            name = rest.split(['(', ' ']).next().unwrap_or_default();
        } else if line == "{" || line == "}" {
            is_in_body = line == "{";
        } else if is_in_body && !line.is_empty() && !line.starts_with('.') && !line.ends_with(':') {
            let lines = kernels.entry((target.into(), name.into())).or_default();
            lines.all.insert(number);
            if line.starts_with('@') {
                lines.guarded.insert(number);
            }
        }
    }
    kernels
}

/// Adds a line of a device's file; kernels of tests are none of ours.
fn add(kernels: &mut BTreeMap<Name, Lines>, line: &str) {
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_default().to_string();
    let (target, name, what) = (word(), word(), word());
    let Some(kernel) = kernels.get_mut(&(target, name)) else {
        return;
    };
    let lines = match what.as_str() {
        "executed" => &mut kernel.executed,
        _ => &mut kernel.passed_over,
    };
    for range in words {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse()) {
            lines.extend(first..=last);
        }
    }
}

impl Lines {
    fn executed(&self) -> usize {
        self.all.len() - self.not_executed().len()
    }

    fn not_executed(&self) -> Vec<u32> {
        self.all.difference(&self.executed).copied().collect()
    }

    /// Guards that let some threads through and held others back.
    fn both_ways(&self) -> usize {
        self.guarded.len() - self.one_way().len()
    }

    fn one_way(&self) -> Vec<u32> {
        let one_way =
            |line: &&u32| !self.executed.contains(line) || !self.passed_over.contains(line);
        self.guarded.iter().filter(one_way).copied().collect()
    }
}

fn summary(kernels: &BTreeMap<Name, Lines>) -> String {
    let sum = |of: fn(&Lines) -> usize| kernels.values().map(of).sum::<usize>();
    format!(
        "PTX of {} kernels: {} of {} instructions executed, {} of {} guards both ways",
        kernels.len(),
        sum(Lines::executed),
        sum(|it| it.all.len()),
        sum(Lines::both_ways),
        sum(|it| it.guarded.len()),
    )
}

fn table(kernels: &BTreeMap<Name, Lines>) -> String {
    let mut text = String::from(
        "| target | kernel | instructions | not executed | guards | one way only |\n\
         |---|---|---|---|---|---|\n",
    );
    for ((target, name), lines) in kernels {
        let (missed, one_way) = (lines.not_executed(), lines.one_way());
        if missed.is_empty() && one_way.is_empty() {
            continue;
        }
        let _ = writeln!(
            text,
            "| {target} | {name} | {} | {} | {} | {} |",
            lines.all.len(),
            listed(&missed),
            lines.guarded.len(),
            listed(&one_way)
        );
    }
    text
}

/// How many, and the first of them by their lines.
fn listed(lines: &[u32]) -> String {
    const FEW: usize = 6;
    let few: Vec<String> = lines.iter().take(FEW).map(u32::to_string).collect();
    let more = if lines.len() > FEW { " ..." } else { "" };
    match lines.len() {
        0 => "0".into(),
        n => format!("{n}: {}{more}", few.join(" ")),
    }
}

/// Prints what the tests on the stand-in device executed the last time.
pub fn print() -> Result<()> {
    anyhow::ensure!(
        Path::new(FOLDER).is_dir(),
        "no test ran yet; hint: cargo xtask ci --only tests"
    );
    let (summary, table) = report()?;
    println!("{table}\n{summary}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = ".version 7.8\n.target sm_61\n.visible .entry k(\n.param .u64 k_0\n)\n{\n\
        .reg .b32 %r<4>;\nld.param.u64 %rd1, [k_0]; // a pointer\n@%p1 bra $L;\nadd.s32 %r1, %r2, 1;\n\
        $L:\nret;\n}\n";

    #[test]
    fn what_no_thread_reached_is_named() {
        let mut kernels = instructions(PTX);
        assert_eq!(
            summary(&kernels),
            "PTX of 1 kernels: 0 of 4 instructions executed, 0 of 1 guards both ways"
        );
        add(&mut kernels, "sm_61 k executed 8-9 12-12");
        add(&mut kernels, "sm_61 somebody_elses executed 1-99");
        assert!(table(&kernels).contains("| sm_61 | k | 4 | 1: 10 | 1 | 1: 9 |"));
        add(&mut kernels, "sm_61 k executed 10-10");
        add(&mut kernels, "sm_61 k passed-over 9-9");
        assert_eq!(
            summary(&kernels),
            "PTX of 1 kernels: 4 of 4 instructions executed, 1 of 1 guards both ways"
        );
        assert!(!table(&kernels).contains("sm_61"));
    }
}
