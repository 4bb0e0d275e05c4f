//! The main job end to end: corpus, training, held-out loss, a few completions, plots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::plots;
use crate::tools::{build_release, capture, cargo, command_line, run as execute};

/// The model of the demo: the preset `small` made narrower, since a few minutes of two cores teach
/// a narrow model more than a wide one, with short steps, of which the rule wants many.
const OVERRIDES: [&str; 8] = [
    "model.n_layer=4",
    "model.n_head=4",
    "model.width=128",
    "model.context=128",
    "train.batch=8",
    "train.micro_batches=1",
    "train.eval_tokens=32768",
    "optim.eta_edges=0.02",
];

/// Steps of 8 × 128 bytes of text. A step this short costs as much again to make orthogonal, and
/// learns more than two of the rule before: the whole demo stays well below five minutes.
const STEPS: u32 = 1500;

/// Beginnings of Rust code that the trained model goes on from.
const PROMPTS: [&str; 3] = ["pub fn new(", "impl fmt::Display for ", "/// Returns "];

/// Bytes that it writes after each.
const COMPLETION_TOKENS: u32 = 160;

/// Runs the demo into `run`, or into the next free folder beside it.
pub fn run(run: &Path) -> Result<()> {
    step("fetching the locked dependencies: their sources are the corpus");
    execute(cargo().args(["fetch", "--locked"]))?;
    step("building the release binary");
    let primal = build_release("primal-cli", "primal")?;
    let started = Instant::now();
    let run = free_folder(run)?;
    train(&primal, &run)?;
    for prompt in PROMPTS {
        complete(&primal, &run, prompt)?;
    }
    draw(&primal, &run)?;
    println!(
        "\ndemo: {:.0} s after compilation",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// `run` itself if nothing is there, else the first free one of `run-2`, `run-3`, ...
fn free_folder(run: &Path) -> Result<PathBuf> {
    let name = run
        .file_name()
        .context("the run folder needs a name")?
        .to_string_lossy();
    let numbered = (2..1000).map(|number| run.with_file_name(format!("{name}-{number}")));
    std::iter::once(run.to_path_buf())
        .chain(numbered)
        .find(|path| !path.exists())
        .with_context(|| format!("{} and its numbered followers exist already", run.display()))
}

fn train(primal: &Path, run: &Path) -> Result<()> {
    let mut command = Command::new(primal);
    command
        .args(["train", "--preset", "small", "--run"])
        .arg(run);
    command.args(["--steps", &STEPS.to_string()]);
    command.args(["--eval-every", &(STEPS / 4).to_string()]);
    command.args(["--save-every", &(STEPS / 2).to_string()]);
    for assignment in OVERRIDES {
        command.args(["--set", assignment]);
    }
    step(&command_line(&command));
    execute(&mut command)
}

fn complete(primal: &Path, run: &Path, prompt: &str) -> Result<()> {
    let mut command = Command::new(primal);
    command
        .args(["generate", "--model"])
        .arg(run)
        .args(["-p", prompt]);
    command.args([
        "-n",
        &COMPLETION_TOKENS.to_string(),
        "--temperature",
        "0.7",
        "--seed",
        "1",
    ]);
    println!("\n$ {}", command_line(&command));
    execute(&mut command)
}

fn draw(primal: &Path, run: &Path) -> Result<()> {
    let mut command = Command::new(primal);
    let inspected = capture(command.arg("inspect").arg(run).arg("--json"))?;
    let (loss, grid) = (run.join("loss.svg"), run.join("grid_use.svg"));
    plots::loss(&metrics(run)?, &loss)?;
    plots::grid_use(&serde_json::from_str(&inspected)?, &grid)?;
    println!("\nplots: {} {}", loss.display(), grid.display());
    Ok(())
}

fn metrics(run: &Path) -> Result<Vec<Value>> {
    let path = run.join("metrics.jsonl");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let rows = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    ensure!(!rows.is_empty(), "{} has no rows", path.display());
    Ok(rows)
}

fn step(what: &str) {
    println!("== {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_demo_gets_its_own_folder() {
        let root = tempfile::tempdir().unwrap();
        let wanted = root.path().join("demo");
        assert_eq!(free_folder(&wanted).unwrap(), wanted);
        fs::create_dir(&wanted).unwrap();
        fs::create_dir(root.path().join("demo-2")).unwrap();
        assert_eq!(free_folder(&wanted).unwrap(), root.path().join("demo-3"));
    }
}
