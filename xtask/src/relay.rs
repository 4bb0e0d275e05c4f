//! Runs a command, shows what it says as it says it, and keeps it: so that a failure can be shown
//! once more at the end, and a long silence is no riddle.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::tools::command_line;

/// A silence that is longer than this is broken by a line.
const SILENCE: Duration = Duration::from_secs(60);

/// A command that failed.
#[derive(Debug)]
pub struct Failed {
    /// What it said.
    pub lines: Vec<String>,
    /// What repeats it alone.
    pub repeat: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` failed", self.repeat)
    }
}

impl std::error::Error for Failed {}

/// Runs a command that must succeed; returns the lines that it wrote, of both streams.
pub fn relay(command: &mut Command) -> Result<Vec<String>> {
    let (succeeded, lines) = watch(command, SILENCE)?;
    if succeeded {
        return Ok(lines);
    }
    let repeat = with_environment(command);
    Err(Failed { lines, repeat }.into())
}

/// Runs a command; whether it succeeded, and the lines that it wrote.
pub fn watch(command: &mut Command, silence: Duration) -> Result<(bool, Vec<String>)> {
    let line = command_line(command);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let (heard, said) = channel();
    let out = child.stdout.take();
    let out = out.map(|out| reader(out, Stream::Out, heard.clone()));
    let err = child.stderr.take();
    let err = err.map(|err| reader(err, Stream::Err, heard));
    let mut lines = Vec::new();
    loop {
        match said.recv_timeout(silence) {
            Ok((stream, line)) => {
                // Whoever reads us may be gone: then there is nobody to tell.
                let _ = match stream {
                    Stream::Out => writeln!(std::io::stdout(), "{line}"),
                    Stream::Err => writeln!(std::io::stderr(), "{line}"),
                };
                lines.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {
                let seconds = started.elapsed().as_secs();
                eprintln!("   ... {seconds} s: `{line}`");
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for reader in [out, err].into_iter().flatten() {
        // A reader that panicked has shown what it read.
        let _ = reader.join();
    }
    let status = child.wait().with_context(|| format!("`{line}` is lost"))?;
    Ok((status.success(), lines))
}

#[derive(Clone, Copy)]
enum Stream {
    Out,
    Err,
}

fn reader(
    from: impl Read + Send + 'static,
    stream: Stream,
    heard: Sender<(Stream, String)>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from
            .read_until(b'\n', &mut line)
            .is_ok_and(|bytes| bytes > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if heard.send((stream, text.trim_end().to_string())).is_err() {
                return;
            }
            line.clear();
        }
    })
}

/// The command as one would type it, with the variables that it was given.
fn with_environment(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| {
        let value = value?.to_string_lossy();
        let quote = if value.contains(' ') { "'" } else { "" };
        Some(format!("{}={quote}{value}{quote} ", name.to_string_lossy()))
    });
    variables.collect::<String>() + &command_line(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn both_streams_are_kept() {
        let mut lines = relay(&mut shell("echo one; echo two >&2; printf three")).unwrap();
        lines.sort();
        assert_eq!(lines, ["one", "three", "two"]);
    }

    #[test]
    fn a_failure_has_its_lines_and_what_repeats_it() {
        let script = "seq 100; exit 3";
        let error = relay(shell(script).env("FLAGS", "-D warnings")).unwrap_err();
        let failed = error.downcast::<Failed>().unwrap();
        assert_eq!(
            (failed.lines.len(), failed.lines[99].as_str()),
            (100, "100")
        );
        assert_eq!(
            failed.repeat,
            format!("FLAGS='-D warnings' sh -c \"{script}\"")
        );
    }

    #[test]
    fn silence_does_not_end_a_command() {
        let silence = Duration::from_millis(10);
        let (succeeded, lines) = watch(&mut shell("sleep 0.1; echo done"), silence).unwrap();
        assert!(succeeded);
        assert_eq!(lines, ["done"]);
    }
}
