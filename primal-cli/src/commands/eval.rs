//! `primal eval`: the loss of a model on text, and how far it is from a reference.

use std::process::ExitCode;

use anyhow::Result;
use primal_model::checkpoint::Checkpoint;
use primal_model::data::{Documents, TokenStream};
use primal_model::eval::{Divergence, Windows, compare, evaluate};
use serde::Serialize;

use crate::args::EvalArgs;
use crate::commands::Loaded;
use crate::output;

/// Longest window that is taken without being asked for.
const DEFAULT_WINDOW: usize = 1024;

#[derive(Serialize)]
struct Report {
    tokens: u64,
    loss: f64,
    perplexity: f64,
    bits_per_byte: f64,
    window: usize,
    stride: usize,
    /// Nats a token, with `--reference`.
    #[serde(skip_serializing_if = "Option::is_none")]
    kl_divergence: Option<f64>,
    /// Fraction of predictions whose likeliest token is the reference's.
    #[serde(skip_serializing_if = "Option::is_none")]
    same_top_token: Option<f64>,
}

/// Measures and prints.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    let loaded = Loaded::open(&args.model, args.threads, Checkpoint::load_model)?;
    let documents = Documents::read(&args.data, &loaded.checkpoint.config.data.text_key)?;
    let tokens = TokenStream::encode(&documents, &loaded.tokenizer)?;
    let context = loaded.model.shape().context;
    let window = args.window.unwrap_or(DEFAULT_WINDOW).min(context);
    let stride = args.stride.unwrap_or(window).min(window);
    let most = args.tokens.unwrap_or(usize::MAX);
    let windows = Windows::new(tokens.len(), window, stride, most)?;
    let (model, isa) = (&loaded.model, loaded.isa);
    let compute = args
        .compute
        .unwrap_or_else(|| loaded.checkpoint.config.resolved_compute());
    let (loss, divergence) = match &args.reference {
        None => (evaluate(model, isa, compute, &tokens, &windows)?, None),
        Some(path) => {
            let reference = Checkpoint::open(path)?.load_model()?;
            let (loss, divergence) = compare(model, &reference, isa, compute, &tokens, &windows)?;
            (loss, Some(divergence))
        }
    };
    let report = Report {
        tokens: loss.tokens,
        loss: loss.loss,
        perplexity: loss.perplexity(),
        bits_per_byte: loss.bits_per_byte,
        window: windows.time(),
        stride: stride.min(windows.time()),
        kl_divergence: divergence.map(|Divergence { kl, .. }| kl),
        same_top_token: divergence.map(|it| it.same_top),
    };
    if args.json {
        output::json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!(
        "tokens         {} in windows of {}, stride {}",
        report.tokens, report.window, report.stride
    ))?;
    output::line(format_args!(
        "loss           {:.4} nats a token",
        report.loss
    ))?;
    output::line(format_args!("perplexity     {:.3}", report.perplexity))?;
    output::line(format_args!("bits per byte  {:.4}", report.bits_per_byte))?;
    if let Some(divergence) = divergence {
        output::line(format_args!(
            "KL divergence  {:.5} nats a token from the reference",
            divergence.kl
        ))?;
        let same = 100.0 * divergence.same_top;
        output::line(format_args!("same token     {same:.2} % of predictions"))?;
    }
    Ok(ExitCode::SUCCESS)
}
