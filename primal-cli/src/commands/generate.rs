//! `primal generate`: goes on from a text, streaming as it writes.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::args::GenerateArgs;
use crate::commands::Writer;
use crate::output;

/// The same prompt gives the same text.
const DEFAULT_SEED: u64 = 1;

#[derive(Serialize)]
struct Report<'a> {
    prompt: &'a str,
    text: &'a str,
    prompt_tokens: usize,
    tokens: usize,
    tokens_per_s: f64,
    seed: u64,
}

/// Prints prompt and continuation as they come, or one JSON object at the end.
pub fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let sampler = args.writer.sampling.sampler(DEFAULT_SEED)?;
    let loaded = args.writer.load(&args.model)?;
    let mut writer = Writer::new(&loaded, sampler, args.writer.kv_cache)?;
    let prompt_tokens = writer.read(&args.prompt)?;
    if !args.json {
        output::stream(&args.prompt)?;
    }
    let started = Instant::now();
    let mut text = String::new();
    let tokens = writer.write(args.n_tokens, |piece| {
        if args.json {
            text += piece;
        } else {
            output::stream(piece)?;
        }
        Ok(true)
    })?;
    if args.json {
        output::json(&Report {
            prompt: &args.prompt,
            text: &text,
            prompt_tokens,
            tokens,
            tokens_per_s: tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
            seed: args.writer.sampling.seed.unwrap_or(DEFAULT_SEED),
        })?;
    } else {
        output::line("")?;
    }
    Ok(ExitCode::SUCCESS)
}
