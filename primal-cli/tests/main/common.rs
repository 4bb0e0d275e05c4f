//! Running the `primal` binary on a tiny model, for the end-to-end tests.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, which may fail loudly"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The binary under test.
pub const PRIMAL: &str = env!("CARGO_BIN_EXE_primal");

/// A model that trains in a second, in all its keys.
pub const TINY: [&str; 9] = [
    "model.n_layer=2",
    "model.n_head=2",
    "model.width=32",
    "model.context=16",
    "train.batch=8",
    "train.micro_batches=8",
    "train.eval_tokens=256",
    "train.threads=1",
    "optim.warmup_steps=4",
];

/// A folder with a text to learn and room for runs; gone at the end of the test.
pub struct Workplace {
    folder: TempDir,
}

impl Workplace {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sentence = "The quick brown fox jumps over the lazy dog; five boxing wizards see it. ";
        let text: String = (0..60)
            .map(|number| format!("{number} {sentence}\n"))
            .collect();
        std::fs::write(folder.path().join("text.txt"), text).unwrap();
        Workplace { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    /// `primal VERB`, working in the folder, with no environment that changes what it says.
    pub fn primal(&self, verb: &str) -> Command {
        let mut command = Command::new(PRIMAL);
        command
            .arg(verb)
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command.env_remove("RUST_LOG").env_remove("PRIMAL_ISA");
        without_mpi(&mut command);
        command
    }

    /// `primal train` of the tiny model on the text, into the run folder `run`.
    pub fn train(&self, run: &str, steps: u32) -> Command {
        let mut command = self.primal("train");
        command.args(train_arguments("text.txt", run, steps));
        command
    }
}

/// A single process that does not ask a library for others, which takes longer than most tests and
/// needs room for files.
pub fn without_mpi(command: &mut Command) -> &mut Command {
    command.env("PRIMAL_MPI", "off")
}

/// What follows `primal train` for the tiny model on the text `data`.
pub fn train_arguments(data: &str, run: &str, steps: u32) -> Vec<String> {
    let steps = steps.to_string();
    let mut arguments = vec!["--preset", "shakespeare-char", "--data", data, "--json"];
    arguments.extend(["--run", run, "--steps", &steps]);
    arguments.extend(TINY.iter().flat_map(|assignment| ["--set", assignment]));
    arguments.into_iter().map(String::from).collect()
}

/// Gives `command` the stand-in driver, with `settings` of it.
#[cfg(feature = "cuda")]
pub fn with_gpu<'c>(
    place: &Workplace,
    command: &'c mut Command,
    settings: &[(&str, &str)],
) -> &'c mut Command {
    let folder = cuda_standin::library_folder(&place.path("")).unwrap();
    command.env("LD_LIBRARY_PATH", folder);
    command.env("PRIMAL_KERNELS", "checked-in");
    command.env("PRIMAL_KERNEL_CACHE", "off");
    command.envs(settings.iter().copied())
}

/// What a command did, in words for assertions.
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end.
pub fn finish(command: &mut Command) -> Finished {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Finished {
        code: status.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Runs a command that must succeed, and reads its only line of JSON.
pub fn json(command: &mut Command) -> Value {
    let done = finish(command);
    assert_eq!(done.code, Some(0), "{command:?}\n{}", done.stderr);
    assert_eq!(done.stdout.lines().count(), 1, "{}", done.stdout);
    serde_json::from_str(&done.stdout).unwrap()
}

/// Runs a command that must fail with `code` and say each of `words` on stderr, nothing on stdout.
pub fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let done = finish(command);
    assert_eq!(done.code, Some(code), "{command:?}\n{}", done.stderr);
    for word in words {
        assert!(
            done.stderr.contains(word),
            "no '{word}' in: {}",
            done.stderr
        );
    }
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    assert_eq!(done.stdout, "");
}

/// The rows of a run's metrics.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
