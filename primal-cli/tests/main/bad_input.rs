//! What the program says, and with which exit code, when something is wrong.
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{PRIMAL, TINY, Workplace, finish, json, refused, without_mpi};

/// `primal train` of the preset on one file.
fn train_on(place: &Workplace, data: &Path) -> Command {
    let mut command = place.primal("train");
    command
        .args(["--preset", "shakespeare-char", "--run", "run", "--data"])
        .arg(data);
    command
}

#[test]
fn data_that_cannot_be_learned_from() {
    let place = Workplace::new();
    let empty = place.write("empty.txt", "");
    refused(
        &mut train_on(&place, &empty),
        1,
        &["empty.txt holds no text"],
    );
    let binary = place.write("binary.txt", b"ab\0\xff");
    refused(
        &mut train_on(&place, &binary),
        1,
        &["binary.txt is not text", "0x00 at offset 2"],
    );
    let missing = place.path("missing.txt");
    refused(
        &mut train_on(&place, &missing),
        1,
        &["missing.txt: no such file or folder"],
    );
    let short = place.write("short.txt", "too short");
    refused(
        &mut train_on(&place, &short),
        1,
        &["tokens, one window needs", "hint:"],
    );
    let jsonl = place.write("rows.jsonl", "{\"body\": \"text\"}\n");
    refused(
        &mut train_on(&place, &jsonl),
        1,
        &["rows.jsonl line 1", "hint: set data.text_key"],
    );
    assert!(
        !place.path("run").exists(),
        "a refused run leaves nothing behind"
    );
}

#[test]
fn a_configuration_that_does_not_fit() {
    let place = Workplace::new();
    let unknown = place.write("unknown.toml", "[train]\nsteps = 3\nbatchs = 4\n");
    let train = |file: &Path| {
        let mut command = place.primal("train");
        command.arg("--config").arg(file);
        command
    };
    refused(
        &mut train(&unknown),
        1,
        &[
            "unknown.toml",
            "unknown key 'train.batchs'",
            "hint: did you mean 'train.batch'?",
        ],
    );
    let broken = place.write("broken.toml", "[train\n");
    refused(&mut train(&broken), 1, &["broken.toml"]);
    let wrong_type = place.write("type.toml", "[train]\nsteps = \"many\"\n");
    refused(&mut train(&wrong_type), 1, &["type.toml"]);
    refused(
        &mut train(&place.path("none.toml")),
        1,
        &["cannot read the configuration", "none.toml"],
    );
    let impossible = place.write("heads.toml", "[model]\nwidth = 30\nn_head = 4\n");
    refused(
        &mut train(&impossible),
        1,
        &["model.n_head", "must divide model.width = 30"],
    );
}

#[test]
fn wrong_usage_has_its_own_code() {
    let place = Workplace::new();
    let with = |arguments: &[&str]| {
        let mut command = place.primal("train");
        command.args(arguments);
        command
    };
    refused(&mut with(&["--stepz", "3"]), 2, &["--stepz", "--steps"]);
    refused(&mut with(&["--steps", "0"]), 2, &["--steps"]);
    refused(&mut with(&["--preset", "smal"]), 2, &["small"]);
    refused(&mut with(&["--rule", "consensu"]), 2, &["consensus"]);
    refused(
        &mut with(&["--set", "optim.etta=1"]),
        2,
        &["hint: did you mean 'optim.eta'?"],
    );
    refused(
        &mut with(&["--set", "optim.eta"]),
        2,
        &["section.key=value"],
    );
    refused(&mut with(&["--set", "optim.eta=much"]), 2, &["optim.eta"]);
    refused(&mut place.primal("no-such-verb"), 2, &["no-such-verb"]);
    let mut none = Command::new(PRIMAL);
    assert_eq!(finish(&mut none).code, Some(2));
}

#[test]
fn an_instruction_set_that_is_not_there() {
    let place = Workplace::new();
    refused(
        place.train("run", 2).env("PRIMAL_ISA", "sse9"),
        1,
        &["'sse9'", "hint:"],
    );
    refused(
        place.train("run", 2).env("PRIMAL_ISA", "neon"),
        1,
        &["neon"],
    );
}

#[test]
fn a_run_folder_is_not_overwritten() {
    let place = Workplace::new();
    json(&mut place.train("run", 2));
    refused(&mut place.train("run", 2), 1, &["run", "hint:"]);
    refused(place.train("other", 2).arg("--resume"), 1, &["other"]);
    // Other text in the same characters: a resumed run must see the data it was begun on.
    let text = fs::read_to_string(place.path("text.txt")).unwrap();
    place.write("text.txt", text.replace("quick brown", "brown quick"));
    refused(place.train("run", 4).arg("--resume"), 1, &["data"]);
}

#[test]
fn damaged_checkpoints_are_refused_and_an_earlier_one_is_named() {
    let place = Workplace::new();
    json(place.train("run", 4).args(["--save-every", "2"]));
    let run = place.path("run");
    let generate = |folder: &str| {
        let mut command = place.primal("generate");
        command.args(["--model", folder, "-p", "The", "-n", "4"]);
        command
    };
    let model = run.join("step_000004/model.safetensors");
    let sound = fs::read(&model).unwrap();

    fs::write(&model, &sound[..sound.len() / 2]).unwrap();
    refused(
        &mut generate("run"),
        1,
        &["model.safetensors", "checksum", "step_000002"],
    );
    let mut flipped = sound.clone();
    flipped[sound.len() - 9] ^= 0x10;
    fs::write(&model, &flipped).unwrap();
    refused(
        &mut generate("run"),
        1,
        &["model.safetensors", "checksum", "step_000002"],
    );
    refused(
        place.primal("inspect").args(["run", "--verify"]),
        1,
        &["model.safetensors"],
    );
    refused(
        place.train("run", 6).arg("--resume"),
        1,
        &["model.safetensors"],
    );
    assert_eq!(finish(&mut generate("run/step_000002")).code, Some(0));

    fs::write(&model, &sound).unwrap();
    assert_eq!(finish(&mut generate("run")).code, Some(0));
    let state = run.join("step_000004/state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, &text[..text.len() / 2]).unwrap();
    refused(&mut generate("run/step_000004"), 1, &["state.json"]);
    fs::write(
        &state,
        text.replace("\"format_version\": 1", "\"format_version\": 99"),
    )
    .unwrap();
    refused(
        &mut generate("run/step_000004"),
        1,
        &["format_version", "99"],
    );
    fs::write(&state, text).unwrap();
    fs::remove_file(run.join("step_000004/DONE")).unwrap();
    refused(&mut generate("run/step_000004"), 1, &["DONE"]);
    // A run folder passes over a checkpoint that was never completed.
    assert_eq!(finish(&mut generate("run")).code, Some(0));
    refused(&mut generate("nowhere"), 1, &["nowhere"]);
}

/// A save that does not fit fails like one on a full disk does: a limit on the size of files,
/// with the signal for it ignored, makes the write return an error.
#[cfg(unix)]
#[test]
fn a_save_that_does_not_fit_keeps_the_checkpoint_before() {
    let place = Workplace::new();
    let whole = json(&mut place.train("whole", 6));
    // The schedule depends on the length of the run, so the first part is a stopped longer run.
    let limited = |kib: u32, arguments: &[&str]| {
        let mut line = format!("trap '' XFSZ; ulimit -f {kib}; exec {PRIMAL} train");
        for argument in arguments {
            line += &format!(" '{argument}'");
        }
        let mut command = Command::new("bash");
        command.args(["-c", &line]).current_dir(place.path(""));
        without_mpi(&mut command);
        command
    };
    let mut arguments = vec![
        "--preset",
        "shakespeare-char",
        "--data",
        "text.txt",
        "--run",
        "run",
    ];
    arguments.extend(["--steps", "6", "--save-every", "2", "--json"]);
    arguments.extend(TINY.iter().flat_map(|assignment| ["--set", assignment]));

    // Everything is too large from the start: no checkpoint, and the reason.
    refused(
        &mut limited(8, &arguments),
        1,
        &["cannot write", "too large"],
    );
    let leftovers = fs::read_dir(place.path("run")).unwrap();
    let leftovers: Vec<_> = leftovers.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        !leftovers
            .iter()
            .any(|name| name.to_string_lossy().contains("step_")),
        "{leftovers:?}"
    );

    // A run that has a checkpoint keeps it when the next save fails.
    fs::remove_dir_all(place.path("run")).unwrap();
    json(place.primal("train").args(&arguments));
    fs::remove_dir_all(place.path("run/step_000006")).unwrap();
    arguments.push("--resume");
    refused(
        &mut limited(8, &arguments),
        1,
        &["cannot write", "too large"],
    );
    let inspected = json(place.primal("inspect").args(["run", "--verify", "--json"]));
    assert_eq!(inspected["step"], 4);
    let resumed = json(place.primal("train").args(&arguments));
    assert_eq!(resumed["state_hash"], whole["state_hash"]);
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let place = Workplace::new();
    for arguments in ["completions bash", "plan --preset ghost-0.1b"] {
        let line = format!("set -o pipefail; {PRIMAL} {arguments} | true");
        let done = finish(
            Command::new("bash")
                .args(["-c", &line])
                .current_dir(place.path("")),
        );
        assert_eq!(
            (done.code, done.stderr.as_str()),
            (Some(0), ""),
            "{arguments}"
        );
    }
}

#[test]
fn numbers_of_sampling_outside_their_range_are_wrong_usage() {
    let place = Workplace::new();
    for (flag, value) in [
        ("--temperature", "-1"),
        ("--top-p", "2"),
        ("--repeat-penalty", "0"),
    ] {
        let mut command = place.primal("generate");
        command.args(["--model", "run", &format!("{flag}={value}")]);
        refused(&mut command, 2, &[&flag[2..]]);
    }
}
