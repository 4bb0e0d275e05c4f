//! The program on a stand-in GPU, and on machines where something is missing.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::Command;

use crate::common::{self, Workplace, finish, json, refused, with_gpu};

/// `primal train --backend cuda` with one micro-batch of two sequences.
fn train(place: &Workplace, run: &str, steps: u32) -> Command {
    let mut command = place.train(run, steps);
    command.args(["--backend", "cuda", "--batch", "2", "--micro-batches", "1"]);
    command.args(["--set", "train.eval_tokens=32"]);
    command
}

#[test]
fn trains_and_evaluates_on_the_device() {
    let place = Workplace::new();
    let mut command = train(&place, "run", 3);
    let done = finish(with_gpu(&place, &mut command, &[]));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let rows = common::metrics(&place.path("run"));
    assert_eq!(rows.last().unwrap()["event"], "done");
    assert!(rows.last().unwrap()["val_loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn tensor_cores_change_no_bit_of_a_run() {
    let place = Workplace::new();
    let trained = |run: &str, settings: &[(&str, &str)]| {
        let done = finish(with_gpu(&place, &mut train(&place, run, 1), settings));
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let rows = common::metrics(&place.path(run));
        rows.last().unwrap()["state_hash"]
            .as_str()
            .unwrap()
            .to_string()
    };
    let pascal = trained("pascal", &[]);
    assert_eq!(trained("turing", &[("CUDA_STANDIN_SM", "75")]), pascal);
    let ampere = ("CUDA_STANDIN_SM", "86");
    assert_eq!(trained("ampere", &[ampere]), pascal);
    let off = ("PRIMAL_TENSOR_CORES", "off");
    assert_eq!(trained("dp4a", &[ampere, off]), pascal);
}

#[test]
fn generates_on_the_device_what_the_processor_does() {
    let place = Workplace::new();
    let done = finish(&mut place.train("run", 5));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let generate = |backend: &str, more: &[&str]| {
        let mut command = place.primal("generate");
        command.args(["--model", "run", "-p", "The quick", "-n", "12", "--json"]);
        command.args(["--backend", backend]).args(more);
        command
    };
    for sampling in [
        "--temperature 0",
        "--seed 7",
        "--kv-cache int8",
        "--temperature 1.7 --top-k 0 --top-p 1 --min-p 0 --repeat-penalty 1.2",
        "--top-k 3 --top-p 0.8 --repeat-penalty 1.5 --seed 2",
    ] {
        let sampling: Vec<&str> = sampling.split(' ').collect();
        let want = json(&mut generate("cpu", &sampling));
        let mut command = generate("cuda", &sampling);
        let got = json(with_gpu(&place, &mut command, &[]));
        assert_eq!(got["text"], want["text"]);
        let mut command = generate("auto", &sampling);
        let without = json(with_gpu(
            &place,
            &mut command,
            &[("CUDA_STANDIN_DEVICES", "0")],
        ));
        assert_eq!(without["text"], want["text"]);
    }
}

#[test]
fn bench_measures_the_device() {
    let place = Workplace::new();
    let tiny = ["width=32", "n_layer=1", "n_head=2", "context=16"].map(|it| format!("model.{it}"));
    let bench = |tests: &[&str]| {
        let mut command = place.primal("bench");
        command.args(["--preset", "shakespeare-char", "--reps", "1", "--json"]);
        command.args(tests).args(["--backend", "cuda"]);
        for change in &tiny {
            command.args(["--set", change]);
        }
        command
    };
    for (tests, name) in [
        (["--pp", "8"], "pp8"),
        (["--tg", "4"], "tg4"),
        (["--train", "--batch=2"], "train"),
    ] {
        let row = json(with_gpu(&place, &mut bench(&tests), &[]));
        assert_eq!(row["test"], name);
        assert_eq!(row["backend"], "cuda");
        assert_eq!(row["isa"], "sm_61");
        assert!(row["tokens_per_s"].as_f64().unwrap() > 0.0);
        assert!(row["peak_vram_bytes"].as_u64() > row["weight_bytes"].as_u64());
    }
    let gone = [("CUDA_STANDIN_DEVICES", "0")];
    refused(
        with_gpu(&place, &mut bench(&["--pp", "8"]), &gone),
        1,
        &["finds no GPU"],
    );
}

#[test]
fn doctor_says_what_there_is_and_what_is_missing() {
    let place = Workplace::new();
    let mut command = place.primal("doctor");
    let report = json(with_gpu(
        &place,
        command.arg("--json"),
        &[("CUDA_STANDIN_SM", "86")],
    ));
    assert_eq!(report["cuda"]["devices"][0]["architecture"], "sm_86");
    assert_eq!(report["cuda"]["driver"], "11.8");

    let mut command = place.primal("doctor");
    let report = json(with_gpu(
        &place,
        command.arg("--json"),
        &[("CUDA_STANDIN_DEVICES", "0")],
    ));
    let missing = report["cuda"]["missing"].to_string();
    assert!(
        missing.contains("finds no GPU") && missing.contains("nvidia-smi"),
        "{missing}"
    );
}

#[cfg(feature = "cublas")]
#[test]
fn cublas_multiplies_if_asked_and_is_missed_by_name() {
    let place = Workplace::new();
    let on = ("PRIMAL_CUBLAS", "on");
    let mut command = train(&place, "without", 1);
    refused(
        with_gpu(&place, &mut command, &[on]),
        1,
        &["no cuBLAS", "hint:"],
    );
    let doctor = || json(with_gpu(&place, place.primal("doctor").arg("--json"), &[]));
    assert!(
        doctor()["cuda"]["missing"]
            .to_string()
            .contains("no cuBLAS")
    );

    let folder = cuda_standin::library_folder(&place.path("")).unwrap();
    cuda_standin::add_library(&folder, "libcublas_standin.so", "libcublas.so").unwrap();
    assert_eq!(doctor()["cuda"]["cublas"], "0.1");
    let trained = |run: &str, settings: &[(&str, &str)]| {
        let mut command = train(&place, run, 2);
        command.args(["--set", "train.compute=float"]);
        let done = finish(with_gpu(&place, &mut command, settings));
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        let rows = common::metrics(&place.path(run));
        let last = rows.last().unwrap();
        (
            last["state_hash"].to_string(),
            last["val_loss"].as_f64().unwrap(),
        )
    };
    let (kernels, by_cublas) = (trained("kernels", &[]), trained("cublas", &[on]));
    // Other last bits, the same model for all that matters; the same bits again.
    assert_ne!(by_cublas.0, kernels.0);
    assert!(
        (by_cublas.1 - kernels.1).abs() < 1e-3,
        "{by_cublas:?}, {kernels:?}"
    );
    assert_eq!(trained("again", &[on]), by_cublas);
}

#[test]
fn what_is_wrong_with_a_gpu_is_said_with_what_to_do() {
    let place = Workplace::new();
    for (settings, words) in [
        (
            ("CUDA_STANDIN_DEVICES", "0"),
            &["finds no GPU", "hint:"][..],
        ),
        (
            ("CUDA_STANDIN_DRIVER", "11040"),
            &["loads none of the kernels", "11.8"],
        ),
        (("CUDA_STANDIN_SM", "52"), &["sm_52", "sm_61"]),
        (
            ("CUDA_STANDIN_MEMORY", "65536"),
            &["out of GPU memory", "--micro-batches"],
        ),
        (
            ("CUDA_STANDIN_FAIL_LAUNCH", "40"),
            &["CUDA_ERROR_ILLEGAL_ADDRESS"],
        ),
    ] {
        let mut command = train(&place, "run", 3);
        refused(with_gpu(&place, &mut command, &[settings]), 1, words);
        let _ = std::fs::remove_dir_all(place.path("run"));
    }
}
