//! `primal phonemes`: what the voice would be told to say.

use std::io::{self, BufRead};
use std::process::ExitCode;

use anyhow::{Context, Result};
use primal_model::voice::{FrontEnd, Sentence};
use serde::Serialize;

use crate::args::PhonemesArgs;
use crate::output;

#[derive(Serialize)]
struct Row<'t> {
    text: &'t str,
    /// Names of the symbols of each sentence; a space is the gap between words.
    sentences: Vec<Vec<&'static str>>,
}

/// Reads the text, or every line of stdin, and prints its symbols.
pub fn run(args: &PhonemesArgs) -> Result<ExitCode> {
    let front_end = FrontEnd::new()?;
    if args.text != "-" {
        print(&front_end, &args.text, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    for line in io::stdin().lock().lines() {
        print(&front_end, &line.context("cannot read stdin")?, args.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(front_end: &FrontEnd, text: &str, json: bool) -> Result<()> {
    let sentences = front_end.sentences(text)?;
    if !json {
        return sentences.iter().try_for_each(output::line);
    }
    let names = |sentence: &Sentence| sentence.symbols.iter().map(|it| it.name()).collect();
    output::json(&Row {
        text,
        sentences: sentences.iter().map(names).collect(),
    })
}
