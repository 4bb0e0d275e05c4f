//! `primal bench --vocoder`: seconds of sound that HiFi-GAN makes in a second.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use primal_kernels::Isa;
use primal_model::process::peak_rss_bytes;
use primal_vocoder::{FRAMES_PER_PIECE, Generator, Signal, VocoderConfig, Weights};
use serde::Serialize;

use crate::args::BenchArgs;
use crate::output;

/// Seconds of sound of a repetition.
const SECONDS: f64 = 10.0;

#[derive(Serialize)]
struct Row<'a> {
    model: &'a str,
    backend: &'static str,
    isa: &'static str,
    threads: usize,
    test: &'static str,
    /// Median, least and most over the repetitions.
    times_real_time: f64,
    min: f64,
    max: f64,
    /// Multiply-adds a second at the median.
    multiply_adds_per_s: f64,
    peak_rss_bytes: u64,
}

/// Measures and prints a row for each of the vocoders: `v1`, `v2`, `v3` with random weights, or a
/// folder.
pub fn run(args: &BenchArgs, isa: Isa) -> Result<()> {
    let mut generators = Vec::new();
    for name in &args.vocoder {
        let preset = match name.as_str() {
            "v1" => Some(VocoderConfig::v1()),
            "v2" => Some(VocoderConfig::v2()),
            "v3" => Some(VocoderConfig::v3()),
            _ => None,
        };
        generators.push(match preset {
            Some(config) => Generator::new(config.clone(), &Weights::random(&config, 1)?)?,
            None => Generator::open(Path::new(name))?,
        });
    }
    if !args.json {
        output::line(format_args!(
            "{:<18} {:<8} {:>7} {:>12} {:>12} {:>12}",
            "vocoder", "isa", "threads", "x real time", "min", "max"
        ))?;
    }
    for (name, generator) in args.vocoder.iter().zip(&generators) {
        let mut speeds = measure(generator, isa, args.reps)?;
        speeds.sort_by(f64::total_cmp);
        let median = speeds[speeds.len() / 2];
        let row = Row {
            model: name,
            backend: "cpu",
            isa: isa.name(),
            threads: rayon::current_num_threads(),
            test: "vocode",
            times_real_time: median,
            min: speeds[0],
            max: speeds[speeds.len() - 1],
            multiply_adds_per_s: median * generator.multiplications_per_second(),
            peak_rss_bytes: peak_rss_bytes().unwrap_or(0),
        };
        match args.json {
            true => output::json(&row)?,
            false => output::line(format_args!(
                "{:<18} {:<8} {:>7} {:>12.1} {:>12.1} {:>12.1}",
                row.model, row.isa, row.threads, row.times_real_time, row.min, row.max
            ))?,
        }
    }
    Ok(())
}

/// Times real time of every repetition, after one that does not count.
fn measure(generator: &Generator, isa: Isa, reps: usize) -> Result<Vec<f64>> {
    let config = generator.config();
    let frames = SECONDS * f64::from(config.sampling_rate) / config.hop_size as f64;
    let mut mel = Signal::new(config.num_mels);
    mel.append_constant(frames as usize, -4.0);
    let mut speeds = Vec::with_capacity(reps);
    for rep in 0..=reps {
        let started = Instant::now();
        let samples = generator.generate(isa, &mel, FRAMES_PER_PIECE)?;
        let seconds = started.elapsed().as_secs_f64();
        if rep > 0 {
            speeds.push(samples.len() as f64 / f64::from(config.sampling_rate) / seconds);
        }
    }
    Ok(speeds)
}
