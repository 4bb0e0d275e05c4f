//! The voice as a user meets it: a tiny corpus, a run, speech, and ways to get it wrong.
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::common::{Workplace, finish, json, metrics, refused};
use primal_vocoder::{read_wav, wav_bytes};

const SYMBOLS: [&str; 8] = ["<bos>", "W", "EH1", "L", " ", "S", "OW1", "<eos>"];

/// Ten sentences of half a second, each symbol a tone of its own.
fn corpus(place: &Workplace) {
    fs::create_dir_all(place.path("corpus/wavs")).unwrap();
    let (mut metadata, mut alignment) = (String::new(), String::new());
    for number in 0..10 {
        let frames: Vec<usize> = (0..8).map(|at| 4 + (number + at) % 4).collect();
        let mut samples = Vec::new();
        for (at, &count) in frames.iter().enumerate() {
            let tone = |t: usize| 0.3 * (0.02 * (at + 1) as f32 * t as f32).sin();
            samples.extend((0..256 * count).map(tone));
        }
        let wav = wav_bytes(&samples, 22_050).unwrap();
        place.write(&format!("corpus/wavs/{number}.wav"), wav);
        metadata += &format!("{number}|Well so|Well so\n");
        let row =
            serde_json::json!({"id": number.to_string(), "symbols": SYMBOLS, "frames": frames});
        alignment += &format!("{row}\n");
    }
    place.write("corpus/metadata.csv", metadata);
    place.write("corpus/alignment.jsonl", alignment);
}

fn voice_train(place: &Workplace, steps: &str) -> Command {
    let mut command = place.primal("voice-train");
    command.args(["--corpus", "corpus", "--run", "run", "--steps", steps]);
    command.args(["--eval-every", "2", "--threads", "1", "--json"]);
    for key in [
        "model.width=16",
        "model.ff_width=24",
        "model.n_head=2",
        "train.val_fraction=0.2",
        "train.batch=4",
    ] {
        command.args(["--set", key]);
    }
    command
}

fn speak(place: &Workplace, text: &str) -> Command {
    let mut command = place.primal("speak");
    command.args(["--text", text, "--output", "out.wav"]);
    command
}

#[test]
fn a_corpus_becomes_a_voice_that_speaks() {
    let place = Workplace::new();
    corpus(&place);
    let done = json(&mut voice_train(&place, "4"));
    assert_eq!(
        (&done["event"], &done["steps"]),
        (&"done".into(), &4.into())
    );
    assert!(done["best_val_loss"].as_f64().unwrap() > 0.0);
    let rows = metrics(&place.path("run"));
    assert_eq!(rows.iter().filter(|it| it["val_loss"].is_f64()).count(), 3);
    assert!(place.path("run/tb").is_dir() && place.path("run/best/DONE").exists());
    refused(
        &mut voice_train(&place, "4"),
        1,
        &["already holds", "--resume"],
    );
    let mut resumed = voice_train(&place, "4");
    let again = json(resumed.arg("--resume"));
    assert_eq!(again["state_hash"], done["state_hash"]);

    let mut command = speak(&place, "Well, so. {W EH1 L}!");
    command.args(["--checkpoint", "run", "--json", "--timestamps"]);
    let report = json(&mut command);
    assert_eq!(report["phonemes"], "W EH1 L , S OW1 . W EH1 L !");
    let sound = read_wav(&place.path("out.wav")).unwrap();
    let seconds = sound.samples.len() as f64 / 22_050.0;
    assert!((report["seconds_audio"].as_f64().unwrap() - seconds).abs() < 1e-9);
    let timestamps = report["timestamps"].as_array().unwrap();
    assert!(timestamps.last().unwrap()["end_s"].as_f64().unwrap() <= seconds);
    assert_eq!(timestamps[0]["symbol"], "W");

    fs::write(place.path("run/best/model.safetensors"), "broken").unwrap();
    let mut broken = speak(&place, "so");
    broken.args(["--checkpoint", "run"]);
    refused(&mut broken, 1, &["model.safetensors", "damaged"]);
}

#[test]
fn a_corpus_that_lies_is_explained() {
    let place = Workplace::new();
    refused(&mut voice_train(&place, "4"), 1, &["metadata.csv"]);
    corpus(&place);
    let mut wrong = voice_train(&place, "4");
    refused(wrong.args(["--set", "model.widht=3"]), 2, &["model.width"]);
    let wav = wav_bytes(&[0.1; 256 * 9], 22_050).unwrap();
    place.write("corpus/wavs/7.wav", wav);
    refused(&mut voice_train(&place, "4"), 1, &["`7` has 9 frames"]);
    fs::remove_file(place.path("corpus/alignment.jsonl")).unwrap();
    let words = ["none of the 10", "alignment.jsonl"];
    refused(&mut voice_train(&place, "4"), 1, &words);
}

#[test]
fn the_built_in_voice_speaks_and_says_what_it_cannot() {
    let place = Workplace::new();
    let report = json(speak(&place, "Hello, world.").arg("--json"));
    let seconds = report["seconds_audio"].as_f64().unwrap();
    assert!((0.5..3.0).contains(&seconds), "{report}");
    let sound = read_wav(&place.path("out.wav")).unwrap();
    assert!(sound.samples.iter().any(|sample| sample.abs() > 0.05));
    let first = fs::read(place.path("out.wav")).unwrap();
    let mut to_stdout = place.primal("speak");
    to_stdout.args(["--text", "Hello, world.", "--output", "-", "--threads", "1"]);
    assert_eq!(to_stdout.output().unwrap().stdout, first);

    let mut slow = speak(&place, "Hello, world.");
    let slow = json(slow.args(["--length-scale", "2", "--json"]));
    assert!(slow["seconds_audio"].as_f64().unwrap() > 1.7 * seconds);

    for text in ["", "...?!", "\u{1f600}\u{1f680}", "\u{4f60}\u{597d}", "   "] {
        let mut silent = speak(&place, text);
        refused(&mut silent, 1, &["nothing to say"]);
    }
    refused(&mut speak(&place, "{QQ}"), 1, &["QQ", "ARPAbet"]);
    let mut endless = speak(&place, "so");
    refused(endless.args(["--length-scale", "0"]), 2, &["0.1"]);
    let mut nowhere = speak(&place, "so");
    refused(nowhere.args(["--checkpoint", "nowhere"]), 1, &["nowhere"]);
    let mut nowhere = speak(&place, "so");
    refused(nowhere.args(["--vocoder", "nowhere"]), 1, &["nowhere"]);
    let mut nowhere = place.primal("speak");
    nowhere.args(["--text", "so", "--output", "no/such/folder.wav"]);
    refused(&mut nowhere, 1, &["no/such/folder.wav"]);

    // Lines of stdin; what has no sound among them is passed over.
    let mut from_stdin = speak(&place, "-");
    let mut child = from_stdin
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all("One.\n\n{QQ}\nUse {braces} here.\nTwo \u{1f600} \u{1f600}.\n".as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let warnings = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{warnings}");
    assert!(
        warnings.contains("line 3") && warnings.contains("QQ"),
        "{warnings}"
    );
    assert_eq!(warnings.matches('\u{1f600}').count(), 1, "{warnings}");
}

#[test]
fn every_sentence_of_a_test_gets_a_file() {
    let place = Workplace::new();
    place.write("sentences.txt", "One.\n\nTwo.\n");
    let mut command = place.primal("voice-test");
    command.args(["--sentences", "sentences.txt", "--out-dir", "out", "--json"]);
    let done = finish(&mut command);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let rows: Vec<serde_json::Value> = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1]["text"], "Two.");
    for number in 1..=2 {
        read_wav(&place.path(&format!("out/sample_{number}.wav"))).unwrap();
    }
    place.write("sentences.txt", "One.\n?!\n");
    let mut command = place.primal("voice-test");
    command.args(["--sentences", "sentences.txt", "--out-dir", "out"]);
    let done = finish(&mut command);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("line 2"), "{}", done.stderr);
    place.write("sentences.txt", "?!\n{QQ}\n");
    refused(&mut command, 1, &["line 1", "line 2", "nothing to say"]);
}

#[test]
fn texts_come_with_or_without_a_flag_and_go_where_they_are_sent() {
    let place = Workplace::new();
    let mut command = place.primal("speak");
    let done = finish(command.args(["Hello.", "-o", "short.wav", "--sentence-silence", "0"]));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let sound = read_wav(&place.path("short.wav")).unwrap();
    let mut command = place.primal("speak");
    let raw = command
        .args(["--text", "Hello.", "--output-raw"])
        .output()
        .unwrap();
    assert_eq!(raw.stdout.len(), 2 * sound.samples.len());
    for name in ["e.mp3", "e.FLAC", "e.ogg"] {
        let mut command = place.primal("speak");
        refused(command.args(["so", "-o", name]), 2, &[name, "no encoder"]);
        assert!(!place.path(name).exists());
    }
    let mut command = place.primal("speak");
    refused(
        command.args(["so", "--text", "so", "-o", "a.wav"]),
        2,
        &["cannot be used with"],
    );
    if cfg!(target_os = "linux") {
        let mut command = place.primal("speak");
        refused(
            command.args(["so", "-o", "/dev/full"]),
            1,
            &["cannot write /dev/full"],
        );
    }
}

#[test]
fn a_text_is_explained() {
    let place = Workplace::new();
    let mut command = place.primal("phonemes");
    let done = finish(command.args(["--explain", "Call 555-0134, Dr. Li \u{1f600}!"]));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for words in [
        "555-0134",
        "digits",
        "five five five , zero one three four",
        "abbreviation",
        "doctor",
        "F AY1 V",
    ] {
        assert!(done.stdout.contains(words), "{words}: {}", done.stdout);
    }
    assert!(done.stderr.contains('\u{1f600}'), "{}", done.stderr);
    let mut command = place.primal("phonemes");
    let row = json(command.args(["--explain", "--json", "I wind 2"]));
    assert_eq!(row["tokens"][1]["kind"], "homograph");
    assert_eq!(row["tokens"][1]["words"][0], "wind/turn");
    assert_eq!(row["tokens"][1]["phonemes"][0], "W AY1 N D");
}
