//! Every verb does what the documentation says, through the binary.
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::io::Write;
use std::process::Stdio;
use std::sync::LazyLock;

use crate::common::{self, Workplace, finish, json, metrics};
use serde_json::Value;

/// A trained model that the read-only tests share, and the last row of its training.
static TRAINED: LazyLock<(Workplace, Value)> = LazyLock::new(|| {
    let place = Workplace::new();
    let mut train = place.train("run", 60);
    let row = json(train.args(["--eval-every", "20", "--save-every", "30"]));
    (place, row)
});

fn keys(row: &Value) -> Vec<&str> {
    row.as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn training_learns_and_leaves_a_complete_run_folder() {
    let (place, row) = &*TRAINED;
    assert_eq!(row["event"], "done");
    assert_eq!(row["steps"], 60);
    assert!(row["val_loss"].as_f64().unwrap() < 3.3, "{row}");
    assert!(
        row["state_bytes_per_weight"].as_f64().unwrap() <= 1.5,
        "{row}"
    );
    let run = place.path("run");
    let rows = metrics(&run);
    for key in [
        "step",
        "tokens",
        "train_loss",
        "tokens_per_s",
        "flip_rate",
        "lr",
        "peak_rss_bytes",
    ] {
        assert!(keys(&rows[0]).contains(&key), "{}", rows[0]);
    }
    let losses: Vec<f64> = rows
        .iter()
        .filter_map(|row| row["train_loss"].as_f64())
        .collect();
    assert!(losses.len() == 60 && losses[0] > losses[59]);
    let layers: Vec<&Value> = rows.iter().filter(|row| row["event"] == "layer").collect();
    // Two embeddings, two blocks and the head, at each evaluation.
    assert_eq!(layers.len() % 5, 0);
    let weights = |key: &str| -> u64 {
        let counts = layers[2][key].as_array().unwrap();
        counts.iter().map(|count| count.as_u64().unwrap()).sum()
    };
    assert_eq!(layers[2]["layer"], "blocks.0");
    assert_eq!(weights("code_counts"), layers[2]["weights"]);
    assert_eq!(weights("ballot_counts"), layers[2]["weights"]);
    let evaluations: Vec<&Value> = rows
        .iter()
        .filter(|row| keys(row).contains(&"bits_per_byte"))
        .collect();
    assert_eq!(evaluations.len(), 4, "steps 20, 40, 60 and the last row");
    assert_eq!(rows.last().unwrap(), row);
    assert_eq!(
        std::fs::read_to_string(run.join("latest")).unwrap().trim(),
        "step_000060"
    );
    for file in [
        "model.safetensors",
        "optim.safetensors",
        "state.json",
        "config.resolved.toml",
        "DONE",
    ] {
        assert!(run.join("step_000060").join(file).exists(), "{file}");
    }
    assert!(run.join("step_000030/DONE").exists() && run.join("tb").exists());
}

#[test]
fn flags_override_the_file_and_set_comes_last() {
    let place = Workplace::new();
    let config = place.write("config.toml", "[train]\nsteps = 9\nseed = 5\nbatch = 24\n");
    let mut train = place.primal("train");
    train
        .arg("--config")
        .arg(config)
        .args(["--data", "text.txt", "--run", "run", "--steps", "7"]);
    train.args([
        "--tokenizer",
        "chars",
        "--context",
        "8",
        "--rule",
        "frozen",
        "--json",
    ]);
    train.args(
        common::TINY
            .iter()
            .flat_map(|assignment| ["--set", assignment]),
    );
    let row = json(train.args(["--set", "train.steps=3"]));
    assert_eq!(row["steps"], 3);
    let config = json(place.primal("inspect").args(["run", "--json"]))["config"].clone();
    assert_eq!(config["train"]["seed"], 5);
    assert_eq!(config["train"]["batch"], 8);
    assert_eq!(config["model"]["context"], 16);
    assert_eq!(config["optim"]["rule"], "frozen");
    assert_eq!(config["data"]["tokenizer"], "chars");
}

#[test]
fn every_rule_trains() {
    let place = Workplace::new();
    for rule in [
        "spectral",
        "consensus",
        "classic",
        "frozen",
        "shadow",
        "adamw",
        "muon",
    ] {
        let row = json(place.train(rule, 3).args(["--rule", rule]));
        assert!(
            row["val_loss"].as_f64().unwrap().is_finite(),
            "{rule}: {row}"
        );
    }
}

#[test]
fn eval_measures_what_training_measured() {
    let (place, trained) = &*TRAINED;
    // The held-out tail of the text, as training cut it off.
    let text = std::fs::read_to_string(place.path("text.txt")).unwrap();
    let tail = place.write("tail.txt", &text[(text.len() as f64 * 0.9) as usize..]);
    let mut eval = place.primal("eval");
    let row = json(
        eval.args(["--model", "run", "--tokens", "256", "--json", "--data"])
            .arg(tail),
    );
    assert_eq!(
        keys(&row),
        [
            "bits_per_byte",
            "loss",
            "perplexity",
            "stride",
            "tokens",
            "window"
        ]
    );
    let (loss, expected) = (
        row["loss"].as_f64().unwrap(),
        trained["val_loss"].as_f64().unwrap(),
    );
    assert!((loss - expected).abs() < 1e-6, "{loss} {expected}");
    assert!((row["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-9);
    let short = place.write("tiny.txt", "The fox");
    let row = json(
        place
            .primal("eval")
            .args(["--model", "run", "--json", "--data"])
            .arg(short),
    );
    assert_eq!(row["tokens"], 6);
}

#[test]
fn generation_is_reproducible_and_streams_its_prompt() {
    let (place, _) = &*TRAINED;
    let generate = |arguments: &[&str]| {
        let mut command = place.primal("generate");
        command
            .args(["--model", "run", "-p", "The quick", "-n", "20"])
            .args(arguments);
        command
    };
    let greedy = json(generate(&["--temperature", "0", "--json"]).args(["--threads", "1"]));
    let again =
        json(generate(&["--temperature", "0", "--json", "--seed", "9"]).args(["--threads", "2"]));
    assert_eq!(greedy["text"], again["text"]);
    assert_eq!(greedy["tokens"], 20);
    assert_eq!(greedy["text"].as_str().unwrap().chars().count(), 20);
    let shown = finish(&mut generate(&["--temperature", "0"]));
    assert_eq!(
        shown.stdout,
        format!("The quick{}\n", greedy["text"].as_str().unwrap())
    );
    let drawn = |seed: &str| {
        json(&mut generate(&[
            "--temperature",
            "2",
            "--top-k",
            "0",
            "--top-p",
            "1",
            "--json",
            "--seed",
            seed,
        ]))
    };
    assert_eq!(drawn("3")["text"], drawn("3")["text"]);
    assert_ne!(drawn("3")["text"], drawn("4")["text"]);
    // Longer than the context of 16, and from nothing at all.
    let long = json(
        place
            .primal("generate")
            .args(["--model", "run", "-n", "50", "--json"]),
    );
    assert_eq!(long["tokens"], 50);
    let unknown = finish(
        place
            .primal("generate")
            .args(["--model", "run", "-p", "\u{1F980}"]),
    );
    assert_eq!(unknown.code, Some(1));
    assert!(
        unknown.stderr.contains("not among the tokenizer's"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn chat_answers_each_line_and_ends() {
    let (place, _) = &*TRAINED;
    let mut command = place.primal("chat");
    command.args(["--model", "run", "-n", "8", "--temperature", "0"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input
        .write_all("The quick\n\n\u{1F980}\nThe dog\n/exit\nnever read\n".as_bytes())
        .unwrap();
    drop(input);
    let done = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{stderr}");
    assert!(
        stderr.contains("error: character"),
        "the unreadable line is reported: {stderr}"
    );
    assert_eq!(String::from_utf8(done.stdout).unwrap().lines().count(), 3);
}

#[test]
fn plan_adds_up_for_every_preset() {
    let place = Workplace::new();
    for preset in ["shakespeare-char", "small", "ghost-0.1b"] {
        let plan = json(place.primal("plan").args(["--preset", preset, "--json"]));
        for part in ["training", "inference"] {
            let rows = plan[part]["rows"].as_array().unwrap();
            let sum: u64 = rows.iter().map(|row| row["bytes"].as_u64().unwrap()).sum();
            assert_eq!(plan[part]["total_bytes"], sum, "{preset} {part}");
            assert!(rows.iter().all(|row| row["what"].is_string()));
        }
    }
    let total = |batch: &str| {
        let mut plan = place.primal("plan");
        json(plan.args(["--micro-batches", "1", "--batch", batch, "--json"]))["training"]["total_bytes"].as_u64()
    };
    assert!(total("4") < total("8"));
    assert!(finish(&mut place.primal("plan")).stdout.contains("total"));
}

#[test]
fn inspect_counts_every_weight_once() {
    let (place, trained) = &*TRAINED;
    let report = json(place.primal("inspect").args(["run", "--verify", "--json"]));
    assert_eq!(report["step"], trained["steps"]);
    assert!(
        report["verified"]["tensors"].as_u64().unwrap() > 10,
        "{}",
        report["verified"]
    );
    assert_eq!(report["grids"]["prime15"].as_array().unwrap().len(), 15);
    let mut on_grid = 0;
    for tensor in report["tensors"].as_array().unwrap() {
        let Some(counts) = tensor["counts"].as_array() else {
            continue;
        };
        let sum: u64 = counts.iter().map(|count| count.as_u64().unwrap()).sum();
        let shape = tensor["shape"].as_array().unwrap();
        let weights: u64 = shape.iter().map(|size| size.as_u64().unwrap()).product();
        assert_eq!(sum, weights, "{}", tensor["name"]);
        on_grid += weights;
    }
    assert_eq!(report["grid_weights"], on_grid);
    assert!(
        finish(place.primal("inspect").arg("run"))
            .stdout
            .contains("blocks.1.qkv")
    );
}

#[test]
fn doctor_finds_the_kernels_in_agreement() {
    let place = Workplace::new();
    let report = json(place.primal("doctor").arg("--json"));
    for test in report["self_test"].as_array().unwrap() {
        for part in ["decode", "matvec", "cast", "count"] {
            assert_eq!(test[part], true, "{test}");
        }
    }
    let forced = json(
        place
            .primal("doctor")
            .arg("--json")
            .env("PRIMAL_ISA", "scalar"),
    );
    assert_eq!(forced["isa"], "scalar");
    assert!(
        finish(&mut place.primal("doctor"))
            .stdout
            .contains("self-test")
    );
}

#[test]
fn bench_prints_a_row_a_test() {
    let (place, _) = &*TRAINED;
    let mut command = place.primal("bench");
    command.args([
        "--model", "run", "--pp", "8,16", "--tg", "4", "--train", "--reps", "2", "--json",
    ]);
    let done = finish(command.args(["--threads", "1"]));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let rows: Vec<Value> = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let tests: Vec<&str> = rows
        .iter()
        .map(|row| row["test"].as_str().unwrap())
        .collect();
    assert_eq!(tests, ["pp8", "pp16", "tg4", "train"]);
    for row in &rows {
        let speed = |key: &str| row[key].as_f64().unwrap();
        assert!(
            0.0 < speed("min") && speed("min") <= speed("tokens_per_s"),
            "{row}"
        );
        assert!(speed("tokens_per_s") <= speed("max"), "{row}");
        assert_eq!(
            (row["backend"].as_str(), row["threads"].as_u64()),
            (Some("cpu"), Some(1))
        );
    }
}

#[test]
fn completions_name_the_verbs() {
    let place = Workplace::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = finish(place.primal("completions").arg(shell)).stdout;
        for verb in ["train", "generate", "doctor"] {
            assert!(script.contains(verb), "{shell} {verb}");
        }
    }
}
