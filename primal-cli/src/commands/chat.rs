//! `primal chat`: line by line with a model that remembers what was said, in the words of its own
//! template where it has one.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use primal_model::chat::{ChatTemplate, Message};

use crate::args::ChatArgs;
use crate::commands::Writer;
use crate::output;
use crate::progress::note;
use crate::report::INTERRUPTED;

/// Reads lines and writes replies until `/exit` or the end of the input.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let seed = new_seed();
    let sampler = args.writer.sampling.sampler(seed)?;
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
    talk.check(&writer)?;
    if args.writer.sampling.seed.is_none() && args.writer.sampling.temperature > 0.0 {
        note(format_args!("--seed {seed} says all of it again"));
    }
    note("/help lists the commands, /exit ends, Ctrl-C ends a reply");
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
        match said.split_once(' ').unwrap_or((said, "")) {
            ("/exit", "") => break,
            ("/help", "") => note(HELP),
            ("/clear", "") => talk.clear(&mut writer),
            ("/system", text) => talk.begin_anew(&mut writer, text.trim()),
            _ if said.is_empty() => {}
            _ => {
                turn.begin();
                let reply = talk.reply(&mut writer, said, args.n_tokens, &turn);
                turn.end();
                output::line("")?;
                // A line that cannot be answered is no reason to lose the conversation.
                if let Err(error) = reply {
                    if error.chain().any(|cause| cause.is::<io::Error>()) {
                        return Err(error);
                    }
                    note(format_args!("error: {error:#}"));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A number that is another one each time, short enough to be typed.
fn new_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::from(now.subsec_nanos()) / 100)
}

/// What `/help` says.
const HELP: &str = "\
/clear         forgets the conversation, not the system message
/system TEXT   begins anew with this system message; without a text, with none
/exit          ends, as the end of the input does";

/// A conversation.
struct Talk {
    template: Option<ChatTemplate>,
    messages: Vec<Message>,
    /// Tokens that the model can see.
    context: usize,
}

impl Talk {
    /// A template that fails for the plainest conversation fails for all.
    fn check(&self, writer: &Writer<'_>) -> Result<()> {
        if let Some(template) = &self.template {
            let mut messages = self.messages.clone();
            messages.push(Message::user("hi"));
            template.encode(writer.tokenizer, &messages, true)?;
        }
        Ok(())
    }

    fn clear(&mut self, writer: &mut Writer<'_>) {
        self.messages.truncate(self.first());
        writer.forget();
    }

    fn begin_anew(&mut self, writer: &mut Writer<'_>, system: &str) {
        self.messages.clear();
        if !system.is_empty() {
            self.messages.push(Message::system(system));
        }
        writer.forget();
    }

    /// The first message that may make room.
    fn first(&self) -> usize {
        let system = |message: &Message| message.role == "system";
        usize::from(self.messages.first().is_some_and(system))
    }

    /// A turn that fails is as if it had not been.
    fn reply(
        &mut self,
        writer: &mut Writer<'_>,
        said: &str,
        n_tokens: usize,
        turn: &Turn,
    ) -> Result<()> {
        if self.template.is_none() {
            return continue_text(writer, said, n_tokens, turn);
        }
        self.messages.push(Message::user(said));
        let reply = self.written(writer, n_tokens, turn);
        match reply {
            Ok(reply) => self.messages.push(Message::assistant(reply)),
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    /// What the model writes after the messages.
    fn written(&mut self, writer: &mut Writer<'_>, n_tokens: usize, turn: &Turn) -> Result<String> {
        let Some(template) = &self.template else {
            return Ok(String::new());
        };
        let encode = |messages: &[Message]| template.encode(writer.tokenizer, messages, true);
        let mut messages = self.messages.clone();
        let mut tokens = encode(&messages)?;
        // The oldest turns make room for the reply; what a system message says stays.
        let room = self.context - n_tokens.min(self.context / LEAST_HISTORY);
        let first = self.first();
        while tokens.len() > room && messages.len() > first + 2 {
            messages.drain(first..first + 2);
            tokens = encode(&messages)?;
        }
        if tokens.len() > self.context {
            bail!(
                "the message and what must stand before it have {} tokens, the model sees {}",
                tokens.len(),
                self.context
            );
        }
        let dropped = self.messages.len() - messages.len();
        if dropped > 0 {
            note(format_args!(
                "the context of {} tokens is full: the oldest {dropped} messages are forgotten",
                self.context
            ));
        }
        writer.read_from_start(&tokens)?;
        self.messages = messages;
        let mut reply = String::new();
        writer.write(n_tokens, |piece| {
            reply += piece;
            output::stream(piece)?;
            Ok(!turn.stopped())
        })?;
        Ok(reply)
    }
}

/// A reply has one part in so many of the context to itself, at most.
const LEAST_HISTORY: usize = 4;

/// For models that know no roles: the line is text like any other, and the reply is how it goes
/// on, up to the next line break.
fn continue_text(writer: &mut Writer<'_>, said: &str, n_tokens: usize, turn: &Turn) -> Result<()> {
    writer.read_spoken(&format!("{said}\n"))?;
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
