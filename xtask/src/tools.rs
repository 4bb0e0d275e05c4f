//! Running other programs from the repository root.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Makes the repository root the working directory, wherever the command was given.
pub fn enter_repository() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the xtask crate has no parent folder")?;
    std::env::set_current_dir(root).with_context(|| format!("cannot enter {}", root.display()))
}

/// The cargo that started us.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs a command with our own input and output; a failure names the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let line = command_line(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it wrote to its standard output.
pub fn capture(command: &mut Command) -> Result<String> {
    let line = command_line(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` wrote what is not text"))
}

/// A command as one would type it.
pub fn command_line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        if word.is_empty() || word.contains([' ', '"', '\n', '$', '(']) {
            format!("{word:?}")
        } else {
            word.into_owned()
        }
    };
    words.map(quote).collect::<Vec<_>>().join(" ")
}

/// Builds a binary of the workspace in release mode and returns its path.
pub fn build_release(package: &str, binary: &str) -> Result<PathBuf> {
    let mut build = cargo();
    build.args([
        "build",
        "--release",
        "--locked",
        "--package",
        package,
        "--bin",
        binary,
    ]);
    build.arg("--message-format=json-render-diagnostics");
    let messages = capture(&mut build)?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message["target"]["name"] == binary && message["executable"].is_string();
        is_ours.then(|| PathBuf::from(message["executable"].as_str().unwrap_or_default()))
    });
    executables
        .next_back()
        .with_context(|| format!("cargo built no program named {binary}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_read_as_typed() {
        let mut command = Command::new("/usr/bin/primal");
        command.args(["generate", "-p", "fn main() {"]);
        assert_eq!(command_line(&command), "primal generate -p \"fn main() {\"");
    }

    #[test]
    fn a_failing_command_is_named() {
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert!(
            format!("{error:#}").contains("cannot start `program`"),
            "{error:#}"
        );
    }
}
