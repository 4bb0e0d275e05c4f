//! `primal speak` and `primal voice-test`: text to symbols, symbols to mel spectrograms, those to
//! sound, a sentence at a time.

use std::fs;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use primal_model::voice::{FrontEnd, MEL_BANDS, Reading, Sentence, Symbol, Voice};
use primal_vocoder::{Signal, VocoderConfig, WavStream};
use serde::Serialize;

use crate::args::{SpeakArgs, VoiceArgs, VoiceTestArgs};
use crate::commands::phonemes::warn_of_unspoken;
use crate::commands::start_threads;
use crate::commands::vocode::Vocoder;
use crate::output;
use crate::progress::{CountProgress, note};
use crate::report::WrongUsage;

/// What `primal voice-test` says without `--sentences`.
const SENTENCES: [&str; 4] = [
    "The quick brown fox jumps over the lazy dog.",
    "Every weight of this voice lives on a grid of prime reciprocals.",
    "In 1999, Dr. Smith paid $5 for the 3rd ticket.",
    "Can you hear what a machine has learned by counting votes?",
];

/// Silence between two sentences of `primal voice-test`.
const PAUSE_SECONDS: f64 = 0.15;

/// Ends of names that promise another format than the one that is written.
const OTHER_FORMATS: [&str; 11] = [
    "mp3", "ogg", "oga", "opus", "flac", "m4a", "aac", "wma", "aiff", "aif", "webm",
];

#[derive(Serialize)]
struct Report {
    seconds_audio: f64,
    seconds: f64,
    /// Seconds of work for a second of sound.
    real_time_factor: f64,
    /// As `primal phonemes` prints them, a sentence after the other.
    phonemes: String,
    /// When each symbol begins and ends; with `--timestamps`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timestamps: Vec<Timestamp>,
}

#[derive(Serialize)]
struct Timestamp {
    symbol: &'static str,
    start_s: f64,
    end_s: f64,
}

/// One row of `primal voice-test`.
#[derive(Serialize)]
struct SampleRow<'a> {
    file: String,
    text: &'a str,
    #[serde(flatten)]
    report: Report,
}

/// Everything that speaks.
struct Speaker {
    front_end: FrontEnd,
    voice: Voice,
    vocoder: Vocoder,
    length_scale: f32,
    pause_seconds: f64,
}

/// Texts that were read.
#[derive(Default)]
struct Readings {
    sentences: Vec<Sentence>,
    /// What has no sound, each once.
    unspoken: Vec<String>,
}

impl Readings {
    fn add(&mut self, reading: Reading) {
        self.sentences.extend(reading.sentences);
        for word in reading.unspoken {
            if !self.unspoken.contains(&word) {
                self.unspoken.push(word);
            }
        }
    }

    /// The sentences, and an error where nothing in the texts has a sound.
    fn done(self) -> Result<Vec<Sentence>> {
        warn_of_unspoken("", &self.unspoken);
        if self.sentences.is_empty() {
            bail!("there is nothing to say: the text has no letter, number or phoneme");
        }
        Ok(self.sentences)
    }
}

impl Speaker {
    fn open(args: &VoiceArgs) -> Result<Speaker> {
        start_threads(args.threads)?;
        let (least, most) = (0.1, 10.0);
        if !(least..=most).contains(&args.length_scale) {
            let scale = args.length_scale;
            let reason = format!("--length-scale {scale} is not between {least} and {most}");
            return Err(WrongUsage(reason).into());
        }
        let voice = match &args.checkpoint {
            Some(path) => Voice::open(path)
                .with_context(|| format!("cannot open the voice {}", path.display()))?,
            None => Voice::builtin()?,
        };
        let vocoder = Vocoder::open(&args.vocoder, args.seed)?;
        let mel = |it: &VocoderConfig| (it.num_mels, it.sampling_rate, it.hop_size);
        let (learned, taken) = (mel(&VocoderConfig::v1()), mel(vocoder.config()));
        if learned != taken {
            bail!(
                "the voice makes {} bands at {} Hz with a hop of {}, the vocoder takes {}, {} and {}",
                learned.0,
                learned.1,
                learned.2,
                taken.0,
                taken.1,
                taken.2
            );
        }
        Ok(Speaker {
            front_end: FrontEnd::new()?,
            voice,
            vocoder,
            length_scale: args.length_scale,
            pause_seconds: PAUSE_SECONDS,
        })
    }

    /// The sentences of every line of stdin; a line that cannot be read costs itself alone.
    fn lines_of_stdin(&self) -> Result<Vec<Sentence>> {
        let mut readings = Readings::default();
        for (index, line) in io::stdin().lock().lines().enumerate() {
            match self.front_end.read(&line.context("cannot read stdin")?) {
                Ok(reading) => readings.add(reading),
                Err(error) => note(format_args!(
                    "warning: line {} is left out: {error}",
                    index + 1
                )),
            }
        }
        readings.done()
    }

    /// Speaks the sentences one by one; each goes to `sink` as soon as it is sound.
    fn speak(
        &self,
        sentences: &[Sentence],
        timestamps: bool,
        progress: &CountProgress,
        sink: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<Report> {
        let started = Instant::now();
        let config = self.vocoder.config();
        let rate_hz = f64::from(config.sampling_rate);
        let pause = vec![0.0; (self.pause_seconds * rate_hz) as usize];
        let mut report = Report {
            seconds_audio: 0.0,
            seconds: 0.0,
            real_time_factor: 0.0,
            phonemes: String::new(),
            timestamps: Vec::new(),
        };
        let mut samples_so_far = 0;
        for (index, sentence) in sentences.iter().enumerate() {
            if index > 0 {
                report.phonemes.push(' ');
                sink(&pause)?;
                samples_so_far += pause.len();
            }
            report.phonemes.push_str(&sentence.to_string());
            for part in self.voice.speak(sentence, self.length_scale)? {
                let mut at = samples_so_far as f64 / rate_hz;
                let named = part.symbols.iter().zip(&part.frames);
                for (symbol, &frames) in named.filter(|_| timestamps) {
                    let end_s = at + f64::from(frames) * config.hop_size as f64 / rate_hz;
                    let is_edge = [Symbol::BEGIN, Symbol::END].contains(symbol);
                    if !is_edge && frames > 0 {
                        report.timestamps.push(Timestamp {
                            symbol: symbol.name(),
                            start_s: at,
                            end_s,
                        });
                    }
                    at = end_s;
                }
                let mel = Signal::from_rows(MEL_BANDS, &part.mel);
                let samples = self.vocoder.sound(&mel)?;
                sink(&samples)?;
                samples_so_far += samples.len();
            }
            progress.advance();
        }
        report.seconds_audio = samples_so_far as f64 / rate_hz;
        report.seconds = started.elapsed().as_secs_f64();
        report.real_time_factor = report.seconds / report.seconds_audio.max(f64::MIN_POSITIVE);
        Ok(report)
    }
}

/// Says a text, or every line of stdin.
pub fn run(args: &SpeakArgs) -> Result<ExitCode> {
    if !(0.0..=60.0).contains(&args.sentence_silence) {
        let reason = format!(
            "--sentence-silence {} is not between 0 and 60",
            args.sentence_silence
        );
        return Err(WrongUsage(reason).into());
    }
    let output = args.output.as_deref().unwrap_or(Path::new("-"));
    refuse_other_formats(output)?;
    let mut speaker = Speaker::open(&args.voice)?;
    speaker.pause_seconds = args.sentence_silence;
    let sentences = match args.input.get() {
        "-" => speaker.lines_of_stdin()?,
        text => {
            let mut readings = Readings::default();
            readings.add(speaker.front_end.read(text)?);
            readings.done()?
        }
    };
    let progress = CountProgress::new("sentences", sentences.len());
    let rate_hz = speaker.vocoder.config().sampling_rate;
    let to_stdout = output == Path::new("-");
    let report = if args.output_raw {
        let mut out = io::stdout().lock();
        speaker.speak(&sentences, args.timestamps, &progress, &mut |piece| {
            let value = |sample: &f32| (sample.clamp(-1.0, 1.0) * 32_767.0).round() as i16;
            let bytes: Vec<u8> = piece
                .iter()
                .flat_map(|it| value(it).to_le_bytes())
                .collect();
            let written = out.write_all(&bytes).and_then(|()| out.flush());
            written.context("cannot write the sound")
        })?
    } else if to_stdout {
        let mut out = BufWriter::new(io::stdout().lock());
        let mut samples = Vec::new();
        let report = speaker.speak(&sentences, args.timestamps, &progress, &mut |piece| {
            samples.extend_from_slice(piece);
            Ok(())
        })?;
        let bytes = primal_vocoder::wav_bytes(&samples, rate_hz)?;
        out.write_all(&bytes)
            .and_then(|()| out.flush())
            .context("cannot write the sound")?;
        report
    } else {
        let mut file = WavStream::create(output, rate_hz)?;
        let report = speaker.speak(&sentences, args.timestamps, &progress, &mut |piece| {
            Ok(file.write(piece)?)
        })?;
        file.finish()?;
        report
    };
    progress.finish();
    match args.json {
        // Stdout is taken by the sound.
        true if to_stdout => note(serde_json::to_string(&report)?),
        true => output::json(&report)?,
        false => note(format_args!(
            "{:.2} s of sound in {:.2} s, {:.1} x real time",
            report.seconds_audio,
            report.seconds,
            1.0 / report.real_time_factor.max(f64::MIN_POSITIVE)
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// What is written is WAV: a name that ends otherwise would lie.
pub fn refuse_other_formats(path: &Path) -> Result<()> {
    let ending = path
        .extension()
        .and_then(|it| it.to_str())
        .unwrap_or("")
        .to_ascii_lowercase();
    if OTHER_FORMATS.contains(&ending.as_str()) {
        let reason = format!(
            "{}: there is no encoder for .{ending}; hint: write a .wav file and convert it",
            path.display()
        );
        return Err(WrongUsage(reason).into());
    }
    Ok(())
}

/// Says every sentence into a file of its own; one that cannot be said costs itself alone.
pub fn test(args: &VoiceTestArgs) -> Result<ExitCode> {
    // With the numbers of their lines.
    let texts: Vec<(usize, String)> = match &args.sentences {
        None => (1..).zip(SENTENCES.map(str::to_owned)).collect(),
        Some(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("cannot read the sentences {}", path.display()))?;
            let lines = (1..).zip(text.lines().map(|it| it.trim().to_owned()));
            lines.filter(|(_, it)| !it.is_empty()).collect()
        }
    };
    if texts.is_empty() {
        bail!("there are no sentences to say");
    }
    let speaker = Speaker::open(&args.voice)?;
    fs::create_dir_all(&args.out_dir)
        .with_context(|| format!("cannot create {}", args.out_dir.display()))?;
    let progress = CountProgress::new("files", texts.len());
    let mut said = 0;
    for (index, (line, text)) in texts.iter().enumerate() {
        let name = format!("sample_{}.wav", index + 1);
        let path: PathBuf = args.out_dir.join(&name);
        let sentences = match speaker.front_end.read(text) {
            Ok(reading) => {
                warn_of_unspoken(&format!("line {line}: "), &reading.unspoken);
                reading.sentences
            }
            Err(error) => {
                note(format_args!("warning: line {line} is left out: {error}"));
                progress.advance();
                continue;
            }
        };
        if sentences.is_empty() {
            note(format_args!(
                "warning: line {line} is left out: there is nothing to say"
            ));
            progress.advance();
            continue;
        }
        said += 1;
        let mut file = WavStream::create(&path, speaker.vocoder.config().sampling_rate)?;
        let silent = CountProgress::hidden();
        let report = speaker.speak(&sentences, false, &silent, &mut |piece| {
            Ok(file.write(piece)?)
        })?;
        file.finish()?;
        progress.advance();
        let row = SampleRow {
            file: path.display().to_string(),
            text,
            report,
        };
        if args.json {
            output::json(&row)?;
        } else {
            output::line(format_args!(
                "{name}  {:.2} s, {:.1} x real time  {text}",
                row.report.seconds_audio,
                1.0 / row.report.real_time_factor.max(f64::MIN_POSITIVE)
            ))?;
        }
    }
    progress.finish();
    if said == 0 {
        bail!(
            "there is nothing to say in any of the {} lines",
            texts.len()
        );
    }
    Ok(ExitCode::SUCCESS)
}
