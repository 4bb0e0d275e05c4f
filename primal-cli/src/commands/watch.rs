//! `primal watch`: a run as it goes, in a terminal. It only reads the run's folder, so it works
//! beside a run on another machine that shares the folder, or over ssh.

mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::DefaultTerminal;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::args::WatchArgs;
use crate::output;
use crate::run_status::RunStatus;

/// Time between two looks at the folder.
const REFRESH: Duration = Duration::from_secs(1);

/// Size of the picture that goes to something other than a terminal.
const TEXT_SIZE: (u16, u16) = (100, 40);

/// Shows a run until the user leaves.
pub fn run(args: &WatchArgs) -> Result<ExitCode> {
    let mut status = RunStatus::new(&args.run)?;
    if args.once || !io::stdout().is_terminal() {
        picture(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Restores the terminal on a panic, too.
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let result = follow(&mut terminal, &mut status);
    ratatui::restore();
    result.map(|()| ExitCode::SUCCESS)
}

fn follow(terminal: &mut DefaultTerminal, status: &mut RunStatus) -> Result<()> {
    let mut scroll = 0usize;
    loop {
        terminal
            .draw(|frame| view::draw(frame, status, scroll))
            .context("cannot draw")?;
        let drawn = Instant::now();
        while drawn.elapsed() < REFRESH {
            let left = REFRESH.saturating_sub(drawn.elapsed());
            if !event::poll(left).context("cannot read the keyboard")? {
                break;
            }
            let key = match event::read().context("cannot read the keyboard")? {
                Event::Key(key) if key.kind != KeyEventKind::Release => key,
                Event::Resize(..) => break,
                _ => continue,
            };
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            let last = status.record().newest_layers().len().saturating_sub(1);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if control => return Ok(()),
                KeyCode::Down | KeyCode::Char('j') => scroll = (scroll + 1).min(last),
                KeyCode::Up | KeyCode::Char('k') => scroll = scroll.saturating_sub(1),
                _ => continue,
            }
            break;
        }
        status.refresh()?;
    }
}

/// One picture as lines of text.
fn picture(status: &RunStatus) -> Result<()> {
    for line in render(status, TEXT_SIZE)? {
        output::line(line.trim_end())?;
    }
    Ok(())
}

/// The lines of a picture of `(columns, rows)`, without colour; empty ones at the end left out.
fn render(status: &RunStatus, (columns, rows): (u16, u16)) -> Result<Vec<String>> {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, rows));
    let Ok(_) = terminal.draw(|frame| view::draw(frame, status, 0));
    let buffer = terminal.backend().buffer();
    let mut lines: Vec<String> = buffer
        .content()
        .chunks(usize::from(columns.max(1)))
        .map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect())
        .collect();
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    Ok(lines)
}

/// What a path is called in a narrow place.
fn short(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_status::tests::example_run;

    fn text(folder: &Path, size: (u16, u16)) -> String {
        render(&RunStatus::new(folder).unwrap(), size)
            .unwrap()
            .join("\n")
    }

    #[test]
    fn a_run_that_has_not_begun() {
        let folder = tempfile::tempdir().unwrap();
        let shown = text(&folder.path().join("none"), (80, 24));
        assert!(
            shown.contains("none") && shown.contains("has not begun"),
            "{shown}"
        );
    }

    #[test]
    fn a_run_in_the_middle() {
        let folder = tempfile::tempdir().unwrap();
        example_run(folder.path(), 40, false);
        let shown = text(folder.path(), (100, 32));
        for part in [
            "running",
            "step 40 of 100",
            "1536 tokens/s",
            "0:30 left",
            "held-out loss",
            "1.2500",
            "step_000020",
            "tok_embedding",
            "blocks.0",
            "26.7",
            "25.0",
            "█",
        ] {
            assert!(shown.contains(part), "no {part} in\n{shown}");
        }
    }

    #[test]
    fn a_finished_run_and_a_line_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        example_run(folder.path(), 100, true);
        let path = folder.path().join("metrics.jsonl");
        let mut bytes = std::fs::read(&path).unwrap();
        let shown = text(folder.path(), (100, 32));
        assert!(
            shown.contains("finished") && shown.contains("1.2000"),
            "{shown}"
        );
        bytes.truncate(bytes.len() - 10);
        std::fs::write(&path, &bytes).unwrap();
        let shown = text(folder.path(), (100, 32));
        assert!(
            shown.contains("running") && shown.contains("step 100"),
            "{shown}"
        );
    }

    #[test]
    fn every_size_of_terminal_is_survived() {
        let folder = tempfile::tempdir().unwrap();
        example_run(folder.path(), 40, false);
        for columns in [1, 2, 10, 39, 40, 59, 60, 80, 200] {
            for rows in [1, 2, 5, 11, 12, 15, 20, 24, 60] {
                text(folder.path(), (columns, rows));
            }
        }
        let small = text(folder.path(), (40, 8));
        assert!(
            small.contains("loss") && small.contains("40 of 100"),
            "{small}"
        );
    }
}
