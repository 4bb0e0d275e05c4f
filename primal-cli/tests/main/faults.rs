//! Runs that are killed, starved and damaged: what was saved is never lost, and what goes on from
//! it ends in the bits of a run that nothing happened to.
//!
//! `cargo xtask faults` runs the same test with hundreds of injections and prints their table.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{PRIMAL, Workplace, finish, json, train_arguments, without_mpi};

/// Steps of a run, and between two of its checkpoints.
const STEPS: u32 = 60;
const SAVE_EVERY: u32 = 6;

/// A number that `cargo xtask faults` sets.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |number| number.parse().unwrap())
}

/// Random numbers from a seed (SplitMix64, Steele and others 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

/// A line of the table.
#[derive(Default)]
struct Tally {
    injected: usize,
    survived: usize,
    most_steps_lost: u32,
}

/// A workplace with the run that nothing happened to.
struct Campaign {
    place: Workplace,
    whole: serde_json::Value,
    /// How long it took.
    duration: Duration,
    random: Random,
    runs: usize,
}

impl Campaign {
    fn new(seed: u64) -> Self {
        let place = Workplace::new();
        let started = Instant::now();
        let whole = json(&mut train(&place, "whole"));
        Campaign {
            place,
            whole,
            duration: started.elapsed(),
            random: Random(seed),
            runs: 0,
        }
    }

    fn new_run(&mut self) -> String {
        self.runs += 1;
        format!("run-{}", self.runs)
    }

    fn random_moment(&mut self) -> Duration {
        let nanoseconds = self.duration.as_nanos() as u64;
        Duration::from_nanos(self.random.below(nanoseconds))
    }

    /// Goes on with a run from what it left, and compares the end. The run is removed.
    fn check(&mut self, run: &str, tally: &mut Tally) {
        let folder = self.place.path(run);
        let lost = steps_recorded(&folder).saturating_sub(steps_saved(&folder));
        let mut command = train(&self.place, run);
        if steps_saved(&folder) > 0 {
            command.arg("--resume");
        }
        let end = json(&mut command);
        tally.injected += 1;
        assert_eq!(end["state_hash"], self.whole["state_hash"], "{run}");
        assert_eq!(end["val_loss"], self.whole["val_loss"], "{run}");
        assert!(lost <= SAVE_EVERY, "{run} lost {lost} steps");
        let hidden: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().starts_with(".step_"))
            .collect();
        assert!(hidden.is_empty(), "{run} keeps {hidden:?}");
        tally.survived += 1;
        tally.most_steps_lost = tally.most_steps_lost.max(lost);
        fs::remove_dir_all(folder).unwrap();
    }
}

fn train(place: &Workplace, run: &str) -> Command {
    let mut command = place.train(run, STEPS);
    let save_every = SAVE_EVERY.to_string();
    command.args(["--save-every", &save_every, "--eval-every", &save_every]);
    command
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Newest step in the metrics.
fn steps_recorded(run: &Path) -> u32 {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let step = |line| {
        let row: serde_json::Value = serde_json::from_str(line).ok()?;
        row["train_loss"].as_f64().and(row["step"].as_u64())
    };
    text.lines().filter_map(step).max().unwrap_or(0) as u32
}

/// Step of the newest complete checkpoint, 0 without one.
fn steps_saved(run: &Path) -> u32 {
    let entries = fs::read_dir(run).into_iter().flatten();
    entries
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name()?.to_str()?;
            let name = name.trim_start_matches('.').trim_end_matches(".replaced");
            let step = name.strip_prefix("step_")?.parse().ok()?;
            path.join("DONE").exists().then_some(step)
        })
        .max()
        .unwrap_or(0)
}

/// Waits until the run stands at its fault point; false when it ended without reaching it.
fn reaches_fault_point(child: &mut Child) -> bool {
    use std::io::{BufRead, BufReader};
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines
        .map(Result::unwrap)
        .any(|line| line.contains("fault point"))
}

fn kills_at_random_moments(campaign: &mut Campaign, most: usize) -> Tally {
    let mut tally = Tally::default();
    while tally.injected < most {
        let run = campaign.new_run();
        let mut child = start(&mut train(&campaign.place, &run));
        std::thread::sleep(campaign.random_moment());
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            fs::remove_dir_all(campaign.place.path(&run)).unwrap();
            continue;
        }
        fs::create_dir_all(campaign.place.path(&run)).unwrap();
        campaign.check(&run, &mut tally);
    }
    tally
}

/// Between any two operations of a save; what was being written is cut at a random length, as a
/// machine that loses its power leaves it.
fn kills_inside_a_save(campaign: &mut Campaign, most: usize) -> Tally {
    let mut tally = Tally::default();
    let mut point = 0;
    let step = if most < 20 { 3 } else { 1 };
    while tally.injected < most {
        point += step;
        let run = campaign.new_run();
        let mut command = train(&campaign.place, &run);
        command.env("PRIMAL_FAULT_POINT", point.to_string());
        let mut child = start(&mut command);
        let reached = reaches_fault_point(&mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        let folder = campaign.place.path(&run);
        if !reached {
            // Beyond the last save: once more from the first point, with other cuts.
            fs::remove_dir_all(folder).unwrap();
            point = 0;
            continue;
        }
        if let Some(partial) = hidden_folder(&folder, ".partial") {
            cut_a_file(&partial, &mut campaign.random);
        }
        campaign.check(&run, &mut tally);
    }
    tally
}

fn hidden_folder(run: &Path, end: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(run)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries.find(|path| path.is_dir() && path.to_string_lossy().ends_with(end))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn cut_a_file(folder: &Path, random: &mut Random) {
    let files = files(folder);
    if files.is_empty() {
        return;
    }
    let path = &files[random.below(files.len() as u64) as usize];
    let length = fs::metadata(path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(random.below(length)).unwrap();
}

/// One byte flipped, or a file cut, in the newest checkpoint: found, and the one before it offered.
fn damaged_checkpoints(campaign: &mut Campaign, most: usize) -> Tally {
    let mut tally = Tally::default();
    let whole = campaign.place.path("whole");
    let newest = format!("step_{STEPS:06}");
    let before = format!("step_{:06}", STEPS - SAVE_EVERY);
    while tally.injected < most {
        let run = campaign.new_run();
        let folder = campaign.place.path(&run);
        for step in [&newest, &before] {
            fs::create_dir_all(folder.join(step)).unwrap();
            for path in files(&whole.join(step)) {
                fs::copy(&path, folder.join(step).join(path.file_name().unwrap())).unwrap();
            }
        }
        fs::copy(whole.join("metrics.jsonl"), folder.join("metrics.jsonl")).unwrap();
        let damaged = folder.join(&newest);
        let candidates: Vec<_> = files(&damaged);
        let path = &candidates[campaign.random.below(candidates.len() as u64) as usize];
        let mut bytes = fs::read(path).unwrap();
        let at = campaign.random.below(bytes.len() as u64) as usize;
        if campaign.random.below(2) == 0 && !path.ends_with("DONE") {
            bytes.truncate(at);
        } else {
            bytes[at] ^= 1 << campaign.random.below(8);
        }
        fs::write(path, &bytes).unwrap();
        let refused = finish(train(&campaign.place, &run).arg("--resume"));
        assert_eq!(
            refused.code,
            Some(1),
            "{path:?} at {at}: {}",
            refused.stderr
        );
        assert!(
            refused
                .stderr
                .contains(&format!("earlier checkpoint is complete: {run}/{before}"))
                && !refused.stderr.contains("panicked"),
            "{path:?} at {at}: {}",
            refused.stderr
        );
        fs::remove_dir_all(&damaged).unwrap();
        campaign.check(&run, &mut tally);
    }
    tally
}

/// A disk that is full at a random file size: the write returns an error, the run says so and ends.
fn full_disks(campaign: &mut Campaign, most: usize) -> Tally {
    let mut tally = Tally::default();
    let save_every = SAVE_EVERY.to_string();
    while tally.injected < most {
        let run = campaign.new_run();
        let mut arguments = train_arguments("text.txt", &run, STEPS);
        let more = ["--save-every", &save_every, "--eval-every", &save_every];
        arguments.extend(more.map(String::from));
        let quoted: String = arguments.iter().map(|it| format!(" '{it}'")).collect();
        let kib = 1 + campaign.random.below(110);
        let line = format!("trap '' XFSZ; ulimit -f {kib}; exec {PRIMAL} train{quoted}");
        let mut command = Command::new("bash");
        command
            .args(["-c", &line])
            .current_dir(campaign.place.path(""));
        without_mpi(&mut command);
        let done = finish(&mut command);
        if done.code == Some(0) {
            fs::remove_dir_all(campaign.place.path(&run)).unwrap();
            continue;
        }
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        assert!(done.stderr.contains("cannot write"), "{}", done.stderr);
        campaign.check(&run, &mut tally);
    }
    tally
}

/// Ctrl-C and a polite end: saved at the very step, code 130.
fn interrupts(campaign: &mut Campaign, most: usize) -> Tally {
    let mut tally = Tally::default();
    while tally.injected < most {
        let run = campaign.new_run();
        let mut child = start(&mut train(&campaign.place, &run));
        // Before the first row the handler may not be there yet, and nothing is to be lost.
        while steps_recorded(&campaign.place.path(&run)) == 0 && child.try_wait().unwrap().is_none()
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(campaign.random_moment() / 2);
        let signal = ["-INT", "-TERM"][campaign.random.below(2) as usize];
        let pid = child.id().to_string();
        let sent = Command::new("kill")
            .args([signal, &pid])
            .stderr(Stdio::null())
            .status();
        assert!(sent.is_ok());
        let done = child.wait_with_output().unwrap();
        let folder = campaign.place.path(&run);
        if done.status.success() {
            fs::remove_dir_all(folder).unwrap();
            continue;
        }
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert_eq!(done.status.code(), Some(130), "{stderr}");
        let saved = steps_saved(&folder);
        assert_eq!(saved, steps_recorded(&folder), "nothing at all is lost");
        assert!(stderr.contains(&format!("step_{saved:06}")), "{stderr}");
        campaign.check(&run, &mut tally);
    }
    tally
}

/// The record of a run that is cut anywhere, or ends in rubbish.
fn damaged_metrics(campaign: &mut Campaign, most: usize) -> Tally {
    let mut tally = Tally::default();
    while tally.injected < most {
        let run = campaign.new_run();
        let mut command = train(&campaign.place, &run);
        // In the middle of the fifth save.
        command.env("PRIMAL_FAULT_POINT", "50");
        let mut child = start(&mut command);
        assert!(reaches_fault_point(&mut child));
        child.kill().unwrap();
        child.wait().unwrap();
        let path = campaign.place.path(&run).join("metrics.jsonl");
        let mut bytes = fs::read(&path).unwrap();
        let at = campaign.random.below(bytes.len() as u64) as usize;
        if campaign.random.below(2) == 0 {
            bytes.truncate(at);
        } else {
            bytes[at] = campaign.random.below(256) as u8;
        }
        fs::write(&path, bytes).unwrap();
        for arguments in [["watch", &run], ["report", &run]] {
            let mut command = Command::new(PRIMAL);
            let done = finish(command.args(arguments).current_dir(campaign.place.path("")));
            assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
        }
        campaign.check(&run, &mut tally);
    }
    tally
}

#[test]
fn every_fault_is_survived() {
    let most = setting("PRIMAL_FAULT_INJECTIONS", 4) as usize;
    let mut campaign = Campaign::new(setting("PRIMAL_FAULT_SEED", 1));
    type Injection = fn(&mut Campaign, usize) -> Tally;
    let kinds: [(&str, Injection); 6] = [
        ("kill -9 at a random moment", kills_at_random_moments),
        ("kill -9 inside a save", kills_inside_a_save),
        ("checkpoint damaged on disk", damaged_checkpoints),
        ("disk full", full_disks),
        ("Ctrl-C, SIGTERM", interrupts),
        ("metrics damaged on disk", damaged_metrics),
    ];
    println!("| fault | injected | survived | most steps lost (interval {SAVE_EVERY}) |");
    println!("|---|---|---|---|");
    let mut all = Tally::default();
    for (name, inject) in kinds {
        let tally = inject(&mut campaign, most);
        println!(
            "| {name} | {} | {} | {} |",
            tally.injected, tally.survived, tally.most_steps_lost
        );
        all.injected += tally.injected;
        all.survived += tally.survived;
        all.most_steps_lost = all.most_steps_lost.max(tally.most_steps_lost);
    }
    println!(
        "| all | {} | {} | {} |",
        all.injected, all.survived, all.most_steps_lost
    );
    assert_eq!(all.injected, all.survived);
}
