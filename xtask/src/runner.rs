//! The one build of all tests, and what runs them: cargo-nextest where it is installed, which keeps
//! every core busy to the end, else `cargo test`.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::kernel_coverage;
use crate::relay::{Failed, relay};
use crate::tools::{cargo, command_line};

/// What is built beside the default: everything that finds its libraries when it runs.
const FEATURES: [&str; 2] = ["primal-cli/nccl", "primal-cli/cublas"];

/// What an MPI library is known by.
const MPI: [&str; 2] = ["mpicc", "mpirun"];

/// Gives a command of cargo the features of the one build.
pub fn with_features(command: &mut Command) -> &mut Command {
    let mut features = FEATURES.join(",");
    if missing_mpi().is_empty() {
        features.push_str(",primal-cli/mpi");
    }
    command.args(["--features", &features])
}

/// Whether more than this program was compiled here before: then times say little.
pub fn has_built() -> bool {
    let folder = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let units = std::fs::read_dir(Path::new(&folder).join("debug/.fingerprint"));
    let is_ours = |name: OsString| name.to_string_lossy().starts_with("primal-lut-");
    units.is_ok_and(|mut units| units.any(|unit| unit.is_ok_and(|it| is_ours(it.file_name()))))
}

/// Compiles all tests.
pub fn compile() -> Result<()> {
    let mut command = test_command(has_nextest());
    relay(command.arg("--no-run")).map(drop)
}

/// Runs all tests; returns the line in which the runner sums up, and what could not be tested.
pub fn run() -> Result<String> {
    let nextest = has_nextest();
    kernel_coverage::begin()?;
    let mut command = test_command(nextest);
    command.env(
        kernel_coverage::VARIABLE,
        std::path::absolute(kernel_coverage::FOLDER)?,
    );
    if nextest {
        command.args(["--no-fail-fast", "--failure-output", "immediate-final"]);
    } else {
        command.arg("--no-fail-fast");
    }
    let lines = relay(&mut command).map_err(|error| match error.downcast::<Failed>() {
        Ok(failed) => narrowed(failed, nextest).into(),
        Err(error) => error,
    })?;
    let summary = if nextest {
        summary_of_nextest(&lines)
    } else {
        summary_of_cargo(&lines)
    };
    Ok(match &missing_mpi()[..] {
        [] => summary,
        missing => format!(
            "SKIPPED: no {}; training over processes was not tested; \
             hint: apt-get install libopenmpi-dev openmpi-bin libclang-14-dev\n{summary}",
            missing.join(" and no ")
        ),
    })
}

fn test_command(nextest: bool) -> Command {
    let mut command = cargo();
    command.args(if nextest {
        &["nextest", "run"][..]
    } else {
        &["test"]
    });
    command.args(["--workspace", "--locked", "--lib", "--bins", "--tests"]);
    with_features(&mut command);
    command
}

fn has_nextest() -> bool {
    let mut version = cargo();
    version.args(["nextest", "--version"]);
    let version = version.stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// The programs of MPI that are not on the path.
fn missing_mpi() -> Vec<&'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &str| std::env::split_paths(&path).any(|it| it.join(program).is_file());
    MPI.into_iter()
        .filter(|program| !is_there(program))
        .collect()
}

fn summary_of_nextest(lines: &[String]) -> String {
    let summary = lines
        .iter()
        .rfind(|line| line.trim_start().starts_with("Summary ["));
    summary.cloned().unwrap_or_default()
}

/// One line for all test programs, in the form in which each of them sums up.
fn summary_of_cargo(lines: &[String]) -> String {
    let counts = ["passed", "failed", "ignored", "measured", "filtered out"].map(|what| {
        let results = lines.iter().filter(|line| line.starts_with("test result:"));
        let count = |line: &String| {
            let before = line
                .split([';', '.'])
                .find_map(|part| part.trim().strip_suffix(what));
            before
                .and_then(|it| it.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        format!("{} {what}", results.map(count).sum::<u64>())
    });
    format!("test result: ok. {}", counts.join("; "))
}

/// The failed tests alone, as a command. More than a few are not named one by one.
fn narrowed(failed: Failed, nextest: bool) -> Failed {
    const FEW: usize = 4;
    let tests = if nextest {
        failed_in_nextest(&failed.lines)
    } else {
        failed_in_cargo(&failed.lines)
    };
    if tests.is_empty() || tests.len() > FEW {
        return failed;
    }
    let mut command = test_command(nextest);
    let repeat = if nextest {
        let one =
            |(program, test): &(String, String)| format!("binary_id({program}) & test(={test})");
        let filter = tests.iter().map(one).collect::<Vec<_>>().join(" | ");
        command_line(command.args(["-E", &filter]))
    } else {
        command.arg("--").args(tests.iter().map(|(_, test)| test));
        command_line(command.arg("--exact"))
    };
    Failed { repeat, ..failed }
}

/// (Program, test) of every failure that nextest names after its summary.
fn failed_in_nextest(lines: &[String]) -> Vec<(String, String)> {
    let after = lines
        .iter()
        .skip_while(|line| !line.trim_start().starts_with("Summary ["));
    let name = |line: &String| {
        // "FAIL [   0.004s] ( 1/20) primal-lut::main files::a_test", or another word for FAIL.
        let (_, rest) = line.split_once("s] ")?;
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('(') {
            Some(numbered) => numbered.split_once(')')?.1,
            None => rest,
        };
        let (program, test) = rest.trim().split_once(' ')?;
        Some((program.to_string(), test.trim().to_string()))
    };
    after.skip(1).filter_map(name).collect()
}

/// The same of cargo, which does not name the program.
fn failed_in_cargo(lines: &[String]) -> Vec<(String, String)> {
    let name = |line: &String| {
        let test = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some((String::new(), test.to_string()))
    };
    lines.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    #[test]
    fn failures_of_nextest_are_named() {
        let said = lines(
            "        FAIL [   0.004s] (1/3) a::main x::before_the_summary\n\
             ────────────\n\
             \x20    Summary [   0.007s] 3 tests run: 1 passed, 2 failed, 0 skipped\n\
             \x20       FAIL [   0.004s] (1/3) a::main x::fails\n\
             \x20    SIGABRT [   1.204s] (3/3) b::bin/b y::aborts\n\
             error: test run failed",
        );
        let named = failed_in_nextest(&said);
        let named: Vec<_> = named
            .iter()
            .map(|(p, t)| (p.as_str(), t.as_str()))
            .collect();
        assert_eq!(named, [("a::main", "x::fails"), ("b::bin/b", "y::aborts")]);
        let failed = Failed {
            lines: said.clone(),
            repeat: String::new(),
        };
        let repeat = narrowed(failed, true).repeat;
        let end =
            "-E \"binary_id(a::main) & test(=x::fails) | binary_id(b::bin/b) & test(=y::aborts)\"";
        assert!(repeat.ends_with(end), "{repeat}");
        assert!(summary_of_nextest(&said).ends_with("1 passed, 2 failed, 0 skipped"));
    }

    #[test]
    fn failures_and_sums_of_cargo_are_read() {
        let said = lines(
            "test x::passes ... ok\ntest x::fails ... FAILED\n\
             test result: FAILED. 1 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
             test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 7.25s",
        );
        assert_eq!(
            failed_in_cargo(&said),
            [(String::new(), "x::fails".to_string())]
        );
        assert_eq!(
            summary_of_cargo(&said),
            "test result: ok. 41 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out"
        );
        let failed = Failed {
            lines: said,
            repeat: String::new(),
        };
        let repeat = narrowed(failed, false).repeat;
        assert!(repeat.ends_with("-- x::fails --exact"), "{repeat}");
    }
}
