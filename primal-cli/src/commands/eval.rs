//! `primal eval`: the loss of a model on text.

use std::process::ExitCode;

use anyhow::Result;
use primal_model::data::{Documents, TokenStream, eval_windows};
use primal_model::eval::evaluate;
use serde::Serialize;

use crate::args::EvalArgs;
use crate::commands::Loaded;
use crate::output;

#[derive(Serialize)]
struct Report {
    tokens: u64,
    loss: f64,
    perplexity: f64,
    bits_per_byte: f64,
}

/// Measures and prints.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    let loaded = Loaded::open(&args.model, args.threads)?;
    let documents = Documents::read(&args.data, &loaded.checkpoint.config.data.text_key)?;
    let tokens = TokenStream::encode(&documents, &loaded.tokenizer)?;
    let context = loaded.model.shape().context;
    let windows = if tokens.len() > context {
        eval_windows(tokens.len(), context, args.tokens.unwrap_or(tokens.len()))?
    } else {
        // A text shorter than the context is one short window.
        vec![0]
    };
    let loss = evaluate(&loaded.model, loaded.isa, &tokens, &windows)?;
    let report = Report {
        tokens: loss.tokens,
        loss: loss.loss,
        perplexity: loss.perplexity(),
        bits_per_byte: loss.bits_per_byte,
    };
    if args.json {
        output::json(&report)?;
    } else {
        output::line(format_args!("tokens         {}", report.tokens))?;
        output::line(format_args!(
            "loss           {:.4} nats a token",
            report.loss
        ))?;
        output::line(format_args!("perplexity     {:.3}", report.perplexity))?;
        output::line(format_args!("bits per byte  {:.4}", report.bits_per_byte))?;
    }
    Ok(ExitCode::SUCCESS)
}
