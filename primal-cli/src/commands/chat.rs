//! `primal chat`: line by line with a model that remembers what was said, in the words of its own
//! template where it has one.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use primal_model::chat::{ChatTemplate, Message};

use crate::args::ChatArgs;
use crate::commands::Writer;
use crate::output;
use crate::progress::note;
use crate::report::INTERRUPTED;

/// Reads lines and writes replies until `/exit` or the end of the input.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let sampler = args.writer.sampling.sampler()?;
    let loaded = args.writer.load(&args.model)?;
    let mut writer = Writer::new(&loaded, sampler, args.writer.kv_cache)?;
    let turn = Turn::watch_signals()?;
    let template = match loaded.tokenizer.settings() {
        Some(settings) => ChatTemplate::new(settings)?,
        None => None,
    };
    let mut talk = Talk {
        template,
        messages: args.system.iter().map(Message::system).collect(),
        context: loaded.model.shape().context,
    };
    note("/exit ends, Ctrl-C ends a reply");
    let mut line = String::new();
    loop {
        prompt();
        line.clear();
        if io::stdin()
            .lock()
            .read_line(&mut line)
            .context("cannot read the input")?
            == 0
        {
            break;
        }
        let said = line.trim_end_matches(['\n', '\r']);
        if said == "/exit" {
            break;
        }
        if said.is_empty() {
            continue;
        }
        turn.begin();
        let reply = talk.reply(&mut writer, said, args.n_tokens, &turn);
        turn.end();
        output::line("")?;
        // A line that the tokenizer cannot read is no reason to lose the conversation.
        if let Err(error) = reply {
            if error.chain().any(|cause| cause.is::<io::Error>()) {
                return Err(error);
            }
            note(format_args!("error: {error:#}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A conversation.
struct Talk {
    template: Option<ChatTemplate>,
    messages: Vec<Message>,
    /// Tokens that the model can see.
    context: usize,
}

impl Talk {
    fn reply(
        &mut self,
        writer: &mut Writer<'_>,
        said: &str,
        n_tokens: usize,
        turn: &Turn,
    ) -> Result<()> {
        let Some(template) = &self.template else {
            return continue_text(writer, said, n_tokens, turn);
        };
        self.messages.push(Message::user(said));
        let mut tokens = writer
            .tokenizer
            .encode(&template.render(&self.messages, true)?)?;
        // The oldest turns make room; what a system message says stays.
        let first = usize::from(self.messages[0].role == "system");
        while tokens.len() + n_tokens > self.context && self.messages.len() > first + 2 {
            self.messages.drain(first..first + 2);
            tokens = writer
                .tokenizer
                .encode(&template.render(&self.messages, true)?)?;
        }
        writer.read_from_start(&tokens)?;
        let mut reply = String::new();
        writer.write(n_tokens, |piece| {
            reply += piece;
            output::stream(piece)?;
            Ok(!turn.stopped())
        })?;
        self.messages.push(Message::assistant(reply));
        Ok(())
    }
}

/// For models that know no roles: the line is text like any other, and the reply is how it goes
/// on, up to the next line break.
fn continue_text(writer: &mut Writer<'_>, said: &str, n_tokens: usize, turn: &Turn) -> Result<()> {
    writer.read(&format!("{said}\n"))?;
    let mut started = false;
    writer.write(n_tokens, |piece| {
        // Leading line breaks belong to no reply; the first one after it ends it.
        let piece = if started {
            piece
        } else {
            piece.trim_start_matches('\n')
        };
        started |= !piece.is_empty();
        let (shown, ended) = match piece.split_once('\n') {
            Some((shown, _)) => (shown, true),
            None => (piece, false),
        };
        output::stream(shown)?;
        Ok(!ended && !turn.stopped())
    })?;
    Ok(())
}

fn prompt() {
    if io::stdin().is_terminal() {
        let mut terminal = io::stderr().lock();
        // A prompt that cannot be shown is no reason not to listen.
        let _ = terminal.write_all(b"> ").and_then(|()| terminal.flush());
    }
}

/// Whether a reply is being written, and whether the user wants it to end.
struct Turn {
    writing: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Turn {
    /// Ctrl-C ends a reply that is being written; at the prompt it ends the program.
    fn watch_signals() -> Result<Turn> {
        let turn = Turn {
            writing: Arc::default(),
            stop: Arc::default(),
        };
        let (writing, stop) = (Arc::clone(&turn.writing), Arc::clone(&turn.stop));
        ctrlc::set_handler(move || {
            if writing.load(Ordering::Relaxed) {
                stop.store(true, Ordering::Relaxed);
            } else {
                std::process::exit(i32::from(INTERRUPTED));
            }
        })
        .context("cannot watch for Ctrl-C")?;
        Ok(turn)
    }

    fn begin(&self) {
        self.stop.store(false, Ordering::Relaxed);
        self.writing.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.writing.store(false, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
