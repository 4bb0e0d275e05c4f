//! `primal vocode`: a mel spectrogram, or a sound by way of one, to a WAV file.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use primal_kernels::Isa;
use primal_vocoder::{
    FRAMES_PER_PIECE, Generator, GriffinLim, GriffinLimOptions, MelExtractor, Signal,
    VocoderConfig, read_mel, read_wav, resample, wav_bytes, write_spectrogram, write_wav,
};
use serde::Serialize;

use crate::args::VocodeArgs;
use crate::commands::speak::refuse_other_formats;
use crate::commands::start_threads;
use crate::output;
use crate::progress::note;

/// Name of the vocoder without weights.
const GRIFFIN_LIM: &str = "griffin-lim";

#[derive(Serialize)]
struct Report {
    frames: usize,
    seconds_audio: f64,
    seconds: f64,
    /// Seconds of work for a second of sound.
    real_time_factor: f64,
    /// Seconds of sound in a second of work.
    times_real_time: f64,
}

/// A vocoder as the command line names it.
pub enum Vocoder {
    /// It needs no weights.
    GriffinLim(Box<(VocoderConfig, GriffinLim)>),
    /// A trained network.
    Generator(Box<Generator>, Isa),
}

impl Vocoder {
    /// `griffin-lim`, whose first phases are a function of `seed`, or the folder of a checkpoint.
    pub fn open(name: &Path, seed: u64) -> Result<Vocoder> {
        if name.to_str() != Some(GRIFFIN_LIM) {
            let generator = Generator::open(name)?;
            return Ok(Vocoder::Generator(Box::new(generator), Isa::from_env()?));
        }
        let config = VocoderConfig::v1();
        let options = GriffinLimOptions {
            seed,
            ..GriffinLimOptions::default()
        };
        let griffin_lim = GriffinLim::new(&config, options)?;
        Ok(Vocoder::GriffinLim(Box::new((config, griffin_lim))))
    }

    /// Sampling rate, hop and bands.
    pub fn config(&self) -> &VocoderConfig {
        match self {
            Vocoder::GriffinLim(griffin_lim) => &griffin_lim.0,
            Vocoder::Generator(generator, _) => generator.config(),
        }
    }

    /// The sound of a mel spectrogram.
    pub fn sound(&self, mel: &Signal) -> Result<Vec<f32>> {
        Ok(match self {
            Vocoder::GriffinLim(griffin_lim) => griffin_lim.1.generate(mel)?,
            Vocoder::Generator(generator, isa) => {
                generator.generate(*isa, mel, FRAMES_PER_PIECE)?
            }
        })
    }
}

/// Reads, vocodes, writes.
pub fn run(args: &VocodeArgs) -> Result<ExitCode> {
    refuse_other_formats(&args.output)?;
    start_threads(args.threads)?;
    let vocoder = Vocoder::open(&args.vocoder, args.seed)?;
    let mel = match (&args.mel, &args.wav) {
        (Some(path), _) => read_mel(path)?,
        (None, Some(path)) => mel_of(path, vocoder.config())?,
        // The parser asks for one of the two.
        (None, None) => Signal::new(1),
    };
    if let Some(path) = &args.spectrogram {
        write_spectrogram(path, &mel)?;
    }
    let started = Instant::now();
    let samples = vocoder.sound(&mel)?;
    let seconds = started.elapsed().as_secs_f64();
    let rate_hz = vocoder.config().sampling_rate;
    if args.output == Path::new("-") {
        let bytes = wav_bytes(&samples, rate_hz)?;
        io::stdout()
            .lock()
            .write_all(&bytes)
            .context("cannot write the sound")?;
    } else {
        write_wav(&args.output, &samples, rate_hz)?;
    }
    let seconds_audio = samples.len() as f64 / f64::from(rate_hz);
    let report = Report {
        frames: mel.len(),
        seconds_audio,
        seconds,
        real_time_factor: seconds / seconds_audio.max(f64::MIN_POSITIVE),
        times_real_time: seconds_audio / seconds.max(f64::MIN_POSITIVE),
    };
    if args.json {
        output::json(&report)?;
    } else {
        note(format_args!(
            "{:.2} s of sound in {:.2} s, {:.1} x real time",
            report.seconds_audio, report.seconds, report.times_real_time
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The mel spectrogram of a sound file at the vocoder's sampling rate.
fn mel_of(path: &Path, config: &VocoderConfig) -> Result<Signal> {
    let sound = read_wav(path)?;
    if sound.missing_bytes > 0 {
        note(format_args!(
            "note: {} is cut off, {} bytes of samples are missing; what is there is used",
            path.display(),
            sound.missing_bytes
        ));
    }
    let samples = resample(&sound.samples, sound.rate_hz, config.sampling_rate)?;
    let mel = MelExtractor::new(config)?.extract(&samples);
    mel.with_context(|| format!("cannot take the mel spectrogram of {}", path.display()))
}
