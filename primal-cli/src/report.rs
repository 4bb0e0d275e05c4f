//! How failures reach the user: the chain of causes, hints on lines of their own, the exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// Exit code of a run that the user stopped: 128 + SIGINT, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// Marks an error as wrong usage of the command line: exit code 2 instead of 1.
#[derive(Debug)]
pub struct WrongUsage(pub String);

impl fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

/// Prints an error and returns the exit code that goes with it. A reader that closed our output
/// early (`primal inspect ... | head`) is no failure and gets no message.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    let pipe_closed = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(pipe_closed) {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", message(error));
    ExitCode::from(if error.is::<WrongUsage>() { 2 } else { 1 })
}

/// The error as lines: `error: ...`, `  caused by: ...` for each cause, `hint: ...` for each hint.
fn message(error: &anyhow::Error) -> String {
    let mut lines = String::new();
    let mut hints = String::new();
    let mut said = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // Library errors repeat their source's text inside their own; once is enough.
        if said.contains(&text) {
            continue;
        }
        let mut parts = text.split("hint: ");
        let what = parts
            .next()
            .unwrap_or_default()
            .trim_end_matches([';', ' ']);
        let prefix = if lines.is_empty() {
            "error"
        } else {
            "  caused by"
        };
        if !what.is_empty() {
            lines += &format!("{prefix}: {what}\n");
        }
        for hint in parts {
            hints += &format!("hint: {}\n", hint.trim_end_matches([';', ' ']));
        }
        said += &text;
    }
    lines + &hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn causes_and_hints_get_their_own_lines() {
        let error = anyhow!("unknown key 'a'; hint: did you mean 'b'?").context("cannot train");
        let expected =
            "error: cannot train\n  caused by: unknown key 'a'\nhint: did you mean 'b'?\n";
        assert_eq!(message(&error), expected);
    }

    #[test]
    fn a_source_inside_the_message_is_said_once() {
        let inner = io::Error::other("disk full");
        let error = Err::<(), _>(inner)
            .context("cannot write x: disk full")
            .unwrap_err();
        assert_eq!(message(&error), "error: cannot write x: disk full\n");
    }
}
