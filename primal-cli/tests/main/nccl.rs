//! `primal train --gpus N` on stand-in GPUs with the stand-in's NCCL, and where something is missing.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use crate::common::{Workplace, finish, json, metrics, refused, with_gpu};

/// `primal train --backend cuda` with eight micro-batches, on `gpus` of four GPUs.
fn train(place: &Workplace, run: &str, gpus: &str) -> Command {
    let mut command = place.train(run, 2);
    command.args(["--backend", "cuda", "--gpus", gpus]);
    command.args(["--set", "train.eval_tokens=32"]);
    with_gpu(place, &mut command, &[("CUDA_STANDIN_DEVICES", "4")]);
    command
}

#[test]
fn any_number_of_gpus_ends_with_the_same_state() {
    let place = Workplace::new();
    let one = json(&mut train(&place, "one", "1"));
    for gpus in ["2", "4"] {
        let several = json(&mut train(&place, gpus, gpus));
        assert_eq!(several["state_hash"], one["state_hash"], "{gpus} GPUs");
        assert_eq!(several["val_loss"], one["val_loss"], "{gpus} GPUs");
        assert_eq!(
            metrics(&place.path(gpus)).len(),
            metrics(&place.path("one")).len()
        );
    }
    // The processor goes on with such a run if told that it is no GPU.
    let mut resume = place.primal("train");
    resume.args(["--resume", "--run", "2", "--backend", "cpu"]);
    refused(&mut resume, 1, &["train.gpus = 2"]);
    let done = finish(resume.args(["--gpus", "1"]));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let place = Workplace::new();
    for (gpus, settings, words) in [
        (
            "4",
            ("CUDA_STANDIN_DEVICES", "3"),
            &["4 GPUs", "finds 3", "--gpus 3"][..],
        ),
        (
            "2",
            ("CUDA_STANDIN_SM", "61,86"),
            &["GPU 1 is sm_86", "sm_61", "CUDA_VISIBLE_DEVICES"],
        ),
        (
            "2",
            ("PRIMAL_NCCL", "/nowhere/libnccl.so.2"),
            &["no NCCL", "nvidia-nccl-cu12"],
        ),
        (
            "2",
            ("CUDA_STANDIN_NCCL", "2304"),
            &["NCCL 2.3.4", "older than 2.4", "hint:"],
        ),
        (
            "2",
            ("CUDA_STANDIN_FAIL_COLLECTIVE", "5"),
            &["NCCL call", "NCCL_DEBUG"],
        ),
        (
            "2",
            ("CUDA_STANDIN_FAIL_LAUNCH", "40"),
            &["CUDA_ERROR_ILLEGAL_ADDRESS"],
        ),
    ] {
        let mut command = train(&place, "run", gpus);
        refused(command.env(settings.0, settings.1), 1, words);
        let _ = std::fs::remove_dir_all(place.path("run"));
    }
    let mut command = train(&place, "run", "3");
    refused(&mut command, 1, &["train.gpus", "train.micro_batches = 8"]);
    let mut command = train(&place, "run", "2");
    refused(
        command.args(["--set", "train.backend=\"cpu\""]),
        1,
        &["--backend cuda"],
    );
}

#[test]
fn doctor_finds_nccl_or_says_how_to_get_it() {
    let place = Workplace::new();
    let doctor = |settings: &[(&str, &str)]| {
        let mut command = place.primal("doctor");
        json(with_gpu(&place, command.arg("--json"), settings))
    };
    let report = doctor(&[("CUDA_STANDIN_DEVICES", "2")]);
    let nccl = report["cuda"]["nccl"].as_str().unwrap();
    assert!(
        nccl.starts_with("2.21.5, ") && nccl.ends_with("libnccl.so.2"),
        "{nccl}"
    );
    assert_eq!(report["cuda"]["devices"].as_array().unwrap().len(), 2);
    let report = doctor(&[("PRIMAL_NCCL", "/nowhere")]);
    assert!(report["cuda"]["nccl"].is_null());
    let missing = report["cuda"]["missing"].to_string();
    assert!(
        missing.contains("no NCCL") && missing.contains("nvidia-nccl-cu12"),
        "{missing}"
    );
}

#[test]
fn plan_shows_the_memory_of_each_gpu() {
    let place = Workplace::new();
    let plan = |more: &[&str]| {
        let mut command = place.primal("plan");
        command
            .args(["--preset", "ghost-0.1b", "--json"])
            .args(more);
        json(&mut command)
    };
    let one = plan(&["--backend", "cuda"]);
    let four = plan(&["--gpus", "4"]);
    assert_eq!((&one["gpus"], &four["gpus"]), (&1.into(), &4.into()));
    let rows = |plan: &serde_json::Value| plan["training"]["rows"].as_array().unwrap().len();
    assert_eq!(rows(&four), rows(&one) + 1);
    let mut command = place.primal("plan");
    let done = finish(command.args(["--preset", "ghost-0.1b", "--gpus", "4"]));
    for words in ["training, each of 4 GPUs", "exchange between GPUs"] {
        assert!(done.stdout.contains(words), "{}", done.stdout);
    }
    assert!(plan(&["--backend", "cpu"])["gpus"].is_null());
}
