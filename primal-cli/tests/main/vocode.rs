//! `primal vocode` as a user runs it: sound in, sound out, and ways to get it wrong.
#![allow(clippy::unwrap_used, reason = "tests may fail loudly")]

use std::fs;

use crate::common::{Workplace, finish, json, refused};
use primal_vocoder::{VocoderConfig, Weights, read_wav, wav_bytes, write_mel};

/// Half a second of two tones at 16 kHz.
fn tones() -> Vec<u8> {
    let tone = |t: i32| 0.3 * (0.1 * t as f32).sin() + 0.2 * (0.31 * t as f32).sin();
    let samples: Vec<f32> = (0..8000).map(tone).collect();
    wav_bytes(&samples, 16_000).unwrap()
}

#[test]
fn a_sound_goes_through_griffin_lim() {
    let place = Workplace::new();
    place.write("in.wav", tones());
    let mut command = place.primal("vocode");
    command.args(["--wav", "in.wav", "--spectrogram", "out.png"]);
    let row = json(command.args(["--output", "out.wav", "--json"]));
    assert!(
        fs::read(place.path("out.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
    // 8,000 samples at 16 kHz are 11,025 at 22,050 Hz: 43 frames.
    assert_eq!(row["frames"], 43);
    assert!(row["times_real_time"].as_f64().unwrap() > 0.0);
    let sound = read_wav(&place.path("out.wav")).unwrap();
    assert_eq!((sound.samples.len(), sound.rate_hz), (43 * 256, 22_050));
    assert!(sound.samples.iter().any(|sample| sample.abs() > 0.05));
    let mut to_stdout = place.primal("vocode");
    let done = to_stdout
        .args(["--wav", "in.wav", "--output", "-"])
        .output()
        .unwrap();
    assert_eq!(done.stdout, fs::read(place.path("out.wav")).unwrap());
}

#[test]
fn a_checkpoint_turns_a_mel_file_into_sound() {
    let place = Workplace::new();
    fs::create_dir(place.path("tiny")).unwrap();
    let config = VocoderConfig {
        upsample_initial_channel: 16,
        ..VocoderConfig::v3()
    };
    place.write("tiny/config.toml", toml::to_string(&config).unwrap());
    let weights = Weights::random(&config, 1).unwrap();
    weights
        .write(&place.path("tiny/generator.safetensors"))
        .unwrap();
    let mel = primal_vocoder::Signal::from_rows(80, &[-4.0; 80 * 20]);
    write_mel(&place.path("mel.safetensors"), &mel).unwrap();
    let vocode = |output: &str, threads: &str| {
        let mut command = place.primal("vocode");
        command.args([
            "--mel",
            "mel.safetensors",
            "--vocoder",
            "tiny",
            "--threads",
            threads,
        ]);
        json(command.args(["--output", output, "--json"]));
        fs::read(place.path(output)).unwrap()
    };
    let sound = vocode("one.wav", "1");
    assert_eq!(sound.len(), 44 + 2 * 20 * 256);
    assert!(sound == vocode("two.wav", "2"));
}

#[test]
fn wrong_input_is_explained() {
    let place = Workplace::new();
    let vocode = |args: &[&str]| {
        let mut command = place.primal("vocode");
        command.args(args).args(["--output", "out.wav"]);
        command
    };
    refused(&mut vocode(&[]), 2, &["--mel", "--wav"]);
    refused(
        &mut vocode(&["--mel", "a", "--wav", "b"]),
        2,
        &["cannot be used with"],
    );
    refused(&mut vocode(&["--wav", "missing.wav"]), 1, &["missing.wav"]);
    let mut lying = tones();
    lying[40..44].copy_from_slice(&0x7fff_fff0_u32.to_le_bytes());
    place.write("lying.wav", &lying);
    let done = finish(&mut vocode(&["--wav", "lying.wav"]));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("cut off"), "{}", done.stderr);
    fs::remove_file(place.path("out.wav")).unwrap();
    place.write("lying.wav", &lying[..30]);
    refused(
        &mut vocode(&["--wav", "lying.wav"]),
        1,
        &["lying.wav", "not a readable WAV file"],
    );
    place.write("short.wav", wav_bytes(&[0.0; 100], 22_050).unwrap());
    refused(
        &mut vocode(&["--wav", "short.wav"]),
        1,
        &["short.wav", "too few"],
    );
    place.write("mel.safetensors", [1, 2, 3]);
    refused(
        &mut vocode(&["--mel", "mel.safetensors"]),
        1,
        &["mel.safetensors"],
    );
    let mut bad = primal_vocoder::Signal::from_rows(80, &[-4.0; 80 * 3]);
    bad.row_mut(7)[2] = f32::NAN;
    write_mel(&place.path("nan.safetensors"), &bad).unwrap();
    refused(
        &mut vocode(&["--mel", "nan.safetensors"]),
        1,
        &["not finite in band 7, frame 2"],
    );
    let narrow = primal_vocoder::Signal::from_rows(40, &[-4.0; 40 * 3]);
    write_mel(&place.path("narrow.safetensors"), &narrow).unwrap();
    refused(
        &mut vocode(&["--mel", "narrow.safetensors"]),
        1,
        &["40 bands", "takes 80"],
    );
    for source in ["--mel", "--wav"] {
        place.write("empty", []);
        refused(
            &mut vocode(&[source, "empty"]),
            1,
            &["empty", "not a readable"],
        );
    }
    place.write("in.wav", tones());
    let nowhere = ["--wav", "in.wav", "--vocoder", "nowhere"];
    refused(&mut vocode(&nowhere), 1, &["nowhere"]);
    assert_eq!(finish(&mut vocode(&nowhere)).stdout, "");
    assert!(!place.path("out.wav").exists());
}

#[test]
fn a_vocoders_speed_is_measured() {
    let place = Workplace::new();
    let mut command = place.primal("bench");
    let row = json(command.args(["--vocoder", "v2", "--reps", "1", "--json"]));
    assert_eq!(
        (&row["model"], &row["test"]),
        (&"v2".into(), &"vocode".into())
    );
    assert!(row["times_real_time"].as_f64().unwrap() > 0.0);
    let mut wrong = place.primal("bench");
    refused(
        wrong.args(["--vocoder", "v3", "--pp", "8"]),
        2,
        &["cannot be used with"],
    );
    let mut absent = place.primal("bench");
    refused(absent.args(["--vocoder", "nowhere"]), 1, &["nowhere"]);
}
