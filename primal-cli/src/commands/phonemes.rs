//! `primal phonemes`: what the voice would be told to say, and why.

use std::io::{self, BufRead};
use std::process::ExitCode;

use anyhow::{Context, Result};
use primal_model::voice::{Explained, FrontEnd, Reading, Sentence, Symbol};
use serde::Serialize;

use crate::args::PhonemesArgs;
use crate::output;
use crate::progress::note;

#[derive(Serialize)]
struct Row<'t> {
    text: &'t str,
    /// Names of the symbols of each sentence; a space is the gap between words.
    sentences: Vec<Vec<&'static str>>,
    /// With `--explain`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tokens: Vec<TokenRow<'t>>,
    /// What cannot be said and is left out.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    unspoken: &'t [String],
}

/// What a stretch of the text was taken for.
#[derive(Serialize)]
struct TokenRow<'t> {
    text: &'t str,
    kind: &'static str,
    words: &'t [String],
    /// Names of the sounds of each word.
    phonemes: Vec<String>,
}

/// Reads the text, or every line of stdin, and prints its symbols.
pub fn run(args: &PhonemesArgs) -> Result<ExitCode> {
    let front_end = FrontEnd::new()?;
    if args.input.get() != "-" {
        let text = args.input.get();
        print(&front_end.read(text)?, text, args)?;
        return Ok(ExitCode::SUCCESS);
    }
    for (index, line) in io::stdin().lock().lines().enumerate() {
        let line = line.context("cannot read stdin")?;
        match front_end.read(&line) {
            Ok(reading) => print(&reading, &line, args)?,
            Err(error) => note(format_args!("warning: line {}: {error}", index + 1)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(reading: &Reading, text: &str, args: &PhonemesArgs) -> Result<()> {
    warn_of_unspoken("", &reading.unspoken);
    let explained = if args.explain { &*reading.tokens } else { &[] };
    if args.json {
        let names = |sentence: &Sentence| sentence.symbols.iter().map(|it| it.name()).collect();
        return output::json(&Row {
            text,
            sentences: reading.sentences.iter().map(names).collect(),
            tokens: explained.iter().map(row).collect(),
            unspoken: &reading.unspoken,
        });
    }
    if !args.explain {
        return reading.sentences.iter().try_for_each(output::line);
    }
    let rows: Vec<TokenRow<'_>> = explained.iter().map(row).collect();
    let width = |of: fn(&TokenRow<'_>) -> usize| rows.iter().map(of).max().unwrap_or(0).min(40);
    let (texts, kinds) = (
        width(|it| it.text.chars().count()),
        width(|it| it.kind.len()),
    );
    let words = width(|it| it.words.join(" ").chars().count());
    rows.iter().try_for_each(|it| {
        output::line(format_args!(
            "{:texts$}  {:kinds$}  {:words$}  {}",
            it.text.replace('\n', "\\n"),
            it.kind,
            it.words.join(" "),
            it.phonemes.join(" | ")
        ))
    })
}

fn row(token: &Explained) -> TokenRow<'_> {
    let sounds = |symbols: &Vec<Symbol>| {
        let names: Vec<&str> = symbols.iter().map(|it| it.name()).collect();
        names.join(" ")
    };
    TokenRow {
        text: &token.text,
        kind: token.kind.name(),
        words: &token.words,
        phonemes: token.phonemes.iter().map(sounds).collect(),
    }
}

/// Names what is left out, where anything is; `place` stands before it.
pub fn warn_of_unspoken(place: &str, unspoken: &[String]) {
    /// Most of them that are named.
    const NAMED: usize = 20;
    if unspoken.is_empty() {
        return;
    }
    let names = unspoken.iter().take(NAMED).map(|it| format!("`{it}`"));
    let names = names.collect::<Vec<_>>().join(", ");
    let more = match unspoken.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    note(format_args!(
        "warning: {place}cannot be said and is left out: {names}{more}"
    ));
}
