//! The command line as a whole, and against what the documentation shows.

use super::*;
use clap::CommandFactory;

#[test]
fn the_command_line_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn every_verb_and_flag_says_what_it_does() {
    for verb in Args::command().get_subcommands() {
        assert!(verb.get_about().is_some(), "primal {}", verb.get_name());
        for flag in verb.get_arguments() {
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            let place = format!("primal {} {}", verb.get_name(), flag.get_id());
            assert!(help.len() > 3, "{place} has no help");
            assert!(
                !help.ends_with(' ') && !help.contains("  "),
                "{place}: {help}"
            );
        }
    }
}

/// Every command line of the README, as a shell would cut it.
#[test]
fn the_readme_shows_commands_that_exist() {
    let readme = include_str!("../../../README.md");
    let commands = readme.lines().filter_map(|line| {
        let start = line.find("primal ")?;
        let is_command = start == 0 || line.starts_with("mpirun ");
        is_command.then(|| words(&line[start..]))
    });
    let mut n_commands = 0;
    for words in commands {
        if let Err(error) = Args::try_parse_from(&words) {
            panic!("{words:?}: {error}");
        }
        n_commands += 1;
    }
    assert!(n_commands > 20, "{n_commands} commands were found");
}

/// Words up to a comment or a redirection; double quotes keep blanks.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in line.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            '#' | '<' if !is_quoted => break,
            ' ' if !is_quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}
