//! Training under `mpirun`: the bits of a single process on any number of ranks, and what happens
//! when one of them dies or hangs. Needs `--features mpi` and Open MPI's `mpirun`.
#![cfg(all(unix, feature = "mpi"))]
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{PRIMAL, Workplace, finish, json, metrics, refused, train_arguments};

/// Within this time a run has ended after one of its ranks died or hung for its timeout.
const SOON: Duration = Duration::from_secs(20);

/// `mpirun -n RANKS primal train` of the tiny model.
fn train(place: &Workplace, ranks: usize, run: &str, steps: u32, threads: usize) -> Command {
    let mut command = Command::new("mpirun");
    // More ranks than cores, as any user, is what a test wants and a cluster does not.
    command.args([
        "--allow-run-as-root",
        "--oversubscribe",
        "--bind-to",
        "none",
    ]);
    command.args(["--mca", "btl_vader_single_copy_mechanism", "none"]);
    command.args(["-n", &ranks.to_string(), PRIMAL, "train"]);
    command.args(train_arguments("text.txt", run, steps));
    command.args(["--threads", &threads.to_string()]);
    command
        .current_dir(place.path(""))
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

#[test]
fn ranks_and_threads_reach_the_same_bits() {
    let place = Workplace::new();
    // Without mpirun, and with a library that starts all the same.
    let whole = json(place.train("alone", 12).env_remove("PRIMAL_MPI"));
    for ranks in [1, 2, 4] {
        for threads in [1, 2] {
            let run = format!("{ranks}-{threads}");
            let end = json(&mut train(&place, ranks, &run, 12, threads));
            assert_eq!(end["state_hash"], whole["state_hash"], "{run}");
            assert_eq!(end["val_loss"], whole["val_loss"], "{run}");
            let rows = metrics(&place.path(&run));
            if ranks > 1 {
                assert_eq!(rows[0]["exchange"]["ranks"], ranks);
                assert!(rows[11]["exchange"]["sent_bytes"].as_u64().unwrap() > 0);
            }
        }
    }
}

#[test]
fn a_run_goes_on_with_other_ranks() {
    let place = Workplace::new();
    let whole = json(&mut place.train("alone", 12));
    let mut run = start_and_wait(&place, 2, "elastic", 400);
    let started = Instant::now();
    signal(&rank_pids(&run)[1..], "KILL");
    assert!(!run.wait().unwrap().success());
    let stderr = stderr_of(&mut run);
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    assert!(stderr.contains("process rank 1"), "{stderr}");
    // The length decides the schedule, so the rest is compared on a run of its own length.
    let mut first = train(&place, 2, "moved", 12, 1);
    first.args(["--save-every", "5", "--set", "train.keep_checkpoints=9"]);
    json(&mut first);
    for step in ["step_000010", "step_000012"] {
        std::fs::remove_dir_all(place.path("moved").join(step)).unwrap();
    }
    let mut rest = train(&place, 4, "moved", 12, 1);
    let end = json(rest.arg("--resume"));
    assert_eq!(end["state_hash"], whole["state_hash"]);
    // And the run whose rank died goes on alone.
    let alone = json(place.train("whole", 400).args(["--save-every", "10"]));
    let end = json(
        place
            .train("elastic", 400)
            .args(["--resume", "--save-every", "10"]),
    );
    assert_eq!(end["state_hash"], alone["state_hash"]);
}

#[test]
fn a_rank_that_hangs_is_named_and_ends_the_others() {
    let place = Workplace::new();
    let mut command = train(&place, 3, "hangs", 100_000, 1);
    command.args(["--save-every", "10", "--set", "train.rank_timeout_s=3"]);
    let mut run = start(&mut command);
    wait_for_a_checkpoint(&place, "hangs");
    let pids = rank_pids(&run);
    let started = Instant::now();
    signal(&pids[2..], "STOP");
    assert!(!run.wait().unwrap().success());
    let taken = started.elapsed();
    let stderr = stderr_of(&mut run);
    assert!(
        stderr.contains("rank 2 did not come within 3 s"),
        "{stderr}"
    );
    assert!(taken < SOON, "{taken:?}");
    let inspected = finish(place.primal("inspect").args(["hangs", "--verify"]));
    assert_eq!(inspected.code, Some(0), "{}", inspected.stderr);
}

#[test]
fn ranks_are_not_left_alone_without_the_library() {
    let place = Workplace::new();
    let mut alone = place.train("run", 2);
    refused(
        alone.env("OMPI_COMM_WORLD_SIZE", "2"),
        1,
        &["PRIMAL_MPI is off"],
    );
}

#[test]
fn ranks_that_were_given_other_data_are_refused() {
    let place = Workplace::new();
    place.write(
        "other.txt",
        "other text, in which no word is as in the first. ".repeat(60),
    );
    let mut command = train(&place, 1, "mixed", 12, 1);
    // MPMD: the second rank has a command line of its own.
    command.args([":", "-n", "1", PRIMAL, "train"]);
    command.args(train_arguments("other.txt", "mixed", 12));
    let done = finish(&mut command);
    assert_ne!(done.code, Some(0));
    assert!(
        done.stderr.contains("rank 1 has another"),
        "{}",
        done.stderr
    );
    assert!(!place.path("mixed/metrics.jsonl").exists());
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut text).unwrap();
    text
}

fn start_and_wait(place: &Workplace, ranks: usize, run: &str, steps: u32) -> Child {
    let mut command = train(place, ranks, run, steps, 1);
    command.args(["--save-every", "10"]);
    let child = start(&mut command);
    wait_for_a_checkpoint(place, run);
    child
}

fn wait_for_a_checkpoint(place: &Workplace, run: &str) {
    let started = Instant::now();
    while !place.path(run).join("latest").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The processes of the ranks, in their order.
fn rank_pids(mpirun: &Child) -> Vec<String> {
    let children = Command::new("pgrep")
        .args(["-P", &mpirun.id().to_string(), "-x", "primal"])
        .output()
        .unwrap();
    let mut pids: Vec<(usize, String)> = String::from_utf8(children.stdout)
        .unwrap()
        .lines()
        .map(|pid| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
            let environment = String::from_utf8_lossy(&environment);
            let rank = environment
                .split('\0')
                .find_map(|variable| variable.strip_prefix("OMPI_COMM_WORLD_RANK="));
            (rank.unwrap().parse().unwrap(), pid.to_string())
        })
        .collect();
    pids.sort_unstable();
    pids.into_iter().map(|(_, pid)| pid).collect()
}

fn signal(pids: &[String], name: &str) {
    assert!(!pids.is_empty());
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .args(pids)
        .status();
    assert!(status.unwrap().success());
}
