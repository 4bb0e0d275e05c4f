//! `primal vocoder-train` as a user runs it: a short run, a resume, and ways to get it wrong.
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::fs;
use std::process::Command;

use crate::common::{Workplace, json, refused};
use primal_vocoder::wav_bytes;
use serde_json::Value;

const TINY: &str = "upsample_rates = [16, 16]
upsample_kernel_sizes = [32, 32]
upsample_initial_channel = 4
resblock = '2'
resblock_kernel_sizes = [3]
resblock_dilation_sizes = [[1]]
";

/// A folder `wavs` with three short sounds and the configuration of a tiny generator.
fn workplace() -> Workplace {
    let place = Workplace::new();
    fs::create_dir(place.path("wavs")).unwrap();
    for pitch in [100_u8, 150, 200] {
        let tone = |t: i32| 0.4 * (f32::from(pitch) * 2.8e-4 * t as f32).sin();
        let samples: Vec<f32> = (0..6000).map(tone).collect();
        place.write(
            &format!("wavs/{pitch}.wav"),
            wav_bytes(&samples, 22_050).unwrap(),
        );
    }
    place.write("tiny.toml", TINY);
    place
}

fn train(place: &Workplace, more: &[&str]) -> Command {
    let mut command = place.primal("vocoder-train");
    command.args(["--data", "wavs", "--run", "run"]).args(more);
    command
}

const FRESH: [&str; 14] = [
    "--config",
    "tiny.toml",
    "--steps",
    "4",
    "--batch",
    "2",
    "--segment",
    "2048",
    "--held-out",
    "1",
    "--eval-every",
    "2",
    "--save-every",
    "2",
];

#[test]
fn a_run_leaves_a_vocoder_and_goes_on() {
    let place = workplace();
    let done = train(&place, &FRESH).output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(done.stdout.is_empty());
    let metrics = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let rows: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 4 + 2 + 1);
    assert!(rows[0]["mel_loss"].as_f64().unwrap() > 0.0 && rows[0]["adversarial_loss"].is_null());
    let last = &rows[6];
    assert_eq!(
        (&last["event"], &last["steps"]),
        (&"done".into(), &4.into())
    );
    assert!(last["griffin_lim_mel_l1"].as_f64().unwrap() > 0.0);

    let mut vocode = place.primal("vocode");
    vocode.args(["--wav", "wavs/100.wav", "--vocoder", "run/best"]);
    assert_eq!(
        json(vocode.args(["--output", "out.wav", "--json"]))["frames"],
        23
    );

    refused(&mut train(&place, &FRESH), 2, &["holds a run", "--resume"]);
    refused(
        &mut train(&place, &["--resume", "--steps", "9"]),
        2,
        &["cannot be used with"],
    );
    // A finished run has nothing left to do; a lost row is not missed.
    let again = train(&place, &["--resume"]).output().unwrap();
    assert!(
        again.status.success(),
        "{}",
        String::from_utf8_lossy(&again.stderr)
    );
    // From the best of that run, with discriminators.
    let mut fine = place.primal("vocoder-train");
    fine.args([
        "--data", "wavs", "--run", "fine", "--from", "run/best", "--steps", "1", "--json",
    ]);
    fine.args([
        "--adversarial-from",
        "1",
        "--batch",
        "1",
        "--segment",
        "2048",
        "--held-out",
        "1",
    ]);
    let done = fine.output().unwrap();
    let first = String::from_utf8(done.stdout).unwrap();
    let row: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert!(row["discriminator_loss"].as_f64().unwrap() > 0.0, "{row}");
}

#[test]
fn wrong_runs_are_explained() {
    let place = workplace();
    refused(
        &mut train(&place, &["--batch", "0"]),
        2,
        &["batch 1 to 256"],
    );
    refused(
        &mut train(&place, &["--segment", "1000"]),
        2,
        &["multiple of 256"],
    );
    refused(
        &mut train(&place, &["--held-out", "3"]),
        1,
        &["3 WAV files are too few"],
    );
    refused(
        &mut train(&place, &["--resume"]),
        1,
        &["no complete checkpoint"],
    );
    refused(&mut train(&place, &["--preset", "v4"]), 2, &["v4"]);
    place.write("tiny.toml", "hop_sise = 1");
    refused(&mut train(&place, &FRESH), 1, &["tiny.toml", "hop_size"]);
    place.write("wavs/100.wav", [0; 10]);
    place.write("wavs/150.wav", [0; 10]);
    place.write("wavs/200.wav", [0; 10]);
    place.write("tiny.toml", TINY);
    refused(&mut train(&place, &FRESH), 1, &["not a readable WAV file"]);
}
