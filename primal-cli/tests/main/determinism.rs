//! One run is bit-identical however it is cut: by a kill, over threads, over passes.
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Workplace, json, metrics};

/// Steps of a run that is long enough to be stopped in the middle.
const LONG: u32 = 400;

fn start_long_run(place: &Workplace, run: &str) -> Child {
    let mut command = place.train(run, LONG);
    command
        .args(["--save-every", "10"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits until a run has saved step 20, or gives up.
fn wait_for_a_checkpoint(place: &Workplace, run: &str) {
    let started = Instant::now();
    while !place.path(run).join("step_000020/DONE").exists() {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "no checkpoint after a minute"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let place = Workplace::new();
    let whole = json(&mut place.train("whole", LONG));
    let mut child = start_long_run(&place, "killed");
    wait_for_a_checkpoint(&place, "killed");
    // SIGKILL on Unix: nothing of the program runs after it.
    child.kill().unwrap();
    assert_eq!(
        child.wait().unwrap().code(),
        None,
        "the run ended before it was killed"
    );
    let resumed = json(place.train("killed", LONG).arg("--resume"));
    assert_eq!(resumed["state_hash"], whole["state_hash"]);
    assert_eq!(resumed["val_loss"], whole["val_loss"]);
    let steps: Vec<u64> = metrics(&place.path("killed"))
        .iter()
        .filter_map(|row| row["train_loss"].as_f64().and(row["step"].as_u64()))
        .collect();
    assert_eq!(
        steps,
        (1..=u64::from(LONG)).collect::<Vec<_>>(),
        "each step is recorded once"
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_says_where_and_resumes_to_the_same_bits() {
    let place = Workplace::new();
    let whole = json(&mut place.train("whole", LONG));
    let child = start_long_run(&place, "stopped");
    wait_for_a_checkpoint(&place, "stopped");
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    let done = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(130), "{stderr}");
    assert!(
        stderr.contains("hint: go on with: primal train --resume --run stopped"),
        "{stderr}"
    );
    let row: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(row["event"], "interrupted");
    // The hint as given: everything else comes from the checkpoint's own configuration.
    let mut resume = place.primal("train");
    let resumed = json(resume.args(["--resume", "--run", "stopped", "--json"]));
    assert_eq!(resumed["state_hash"], whole["state_hash"]);
}

#[test]
fn threads_change_nothing() {
    let place = Workplace::new();
    let hashes: Vec<_> = ["1", "2", "3"]
        .map(|threads| {
            let mut train = place.train(threads, 12);
            train.args(["--set", &format!("train.threads={threads}")]);
            json(&mut train)["state_hash"].clone()
        })
        .into();
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(hashes[0], hashes[2]);
}

#[test]
fn passes_change_nothing() {
    let place = Workplace::new();
    for rule in ["spectral", "consensus", "adamw"] {
        let [one, all] = ["1", "8"].map(|per_pass| {
            let mut train = place.train(&format!("{rule}-{per_pass}"), 12);
            train.args(["--rule", rule, "--micro-batches-per-pass", per_pass]);
            json(&mut train)["state_hash"].clone()
        });
        assert_eq!(one, all, "{rule}");
    }
}

#[test]
fn seeds_change_everything() {
    let place = Workplace::new();
    let [one, two] = ["1", "2"]
        .map(|seed| json(place.train(seed, 2).args(["--seed", seed]))["state_hash"].clone());
    assert_ne!(one, two);
}
