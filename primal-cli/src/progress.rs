//! What a long run says while it runs: a bar on a terminal, a line every few seconds elsewhere.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use primal_model::metrics::{EvalRow, StepRow};
use tracing_subscriber::EnvFilter;

use crate::output::clock;

/// Time between two lines where there is no terminal for a bar.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Steps over which speed and loss are averaged for display.
const DISPLAY_STEPS: f64 = 20.0;

/// The bars on screen; everything else that goes to stderr steps around them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Sends the libraries' messages to stderr: warnings and our own notices, or what `RUST_LOG` says.
pub fn init_tracing() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,primal=info,primal_model=info,primal_optim=info"));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal() && !no_color)
        .with_target(false)
        .without_time()
        .with_writer(|| AroundBars)
        .init();
}

/// Prints a line to stderr without tearing a bar.
pub fn note(text: impl std::fmt::Display) {
    // Nothing sensible is left to do when even stderr is closed.
    let _ = writeln!(AroundBars, "{text}");
}

struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        BARS.suspend(|| io::stderr().write_all(bytes))
    }

    fn write_fmt(&mut self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        self.write_all(text.to_string().as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The display of a training run.
pub struct TrainProgress {
    unit: &'static str,
    steps: u32,
    bar: ProgressBar,
    last_line: Option<Instant>,
    loss: Mean,
    step_seconds: Mean,
    last_tokens: u64,
}

impl TrainProgress {
    /// A run of `steps` that stands at `step` after `tokens`, which are called `unit`.
    pub fn new(unit: &'static str, steps: u32, step: u32, tokens: u64) -> Self {
        let bar = BARS.add(ProgressBar::new(u64::from(steps)));
        // The template is a constant; a broken one would show in the first test of a terminal.
        if let Ok(style) = ProgressStyle::with_template("{bar:28} {pos}/{len}  {msg}") {
            bar.set_style(style);
        }
        bar.set_position(u64::from(step));
        TrainProgress {
            unit,
            steps,
            bar,
            last_line: None,
            loss: Mean::default(),
            step_seconds: Mean::default(),
            last_tokens: tokens,
        }
    }

    /// Shows a step.
    pub fn step(&mut self, row: &StepRow) {
        let step_tokens = row.tokens.saturating_sub(self.last_tokens) as f64;
        self.last_tokens = row.tokens;
        self.loss.add(row.train_loss);
        self.step_seconds
            .add(step_tokens / row.tokens_per_s.max(1e-9));
        let per_step = self.step_seconds.value();
        let speed = step_tokens / per_step.max(1e-9);
        let left = f64::from(self.steps.saturating_sub(row.step)) * per_step;
        let message = format!(
            "loss {:.4}  flips {:.4} %  {speed:.0} {}/s  {} left",
            self.loss.value(),
            100.0 * row.flip_rate,
            self.unit,
            clock(left)
        );
        if !self.bar.is_hidden() {
            self.bar.set_message(message);
            self.bar.set_position(u64::from(row.step));
            return;
        }
        let due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY);
        if due || row.step == self.steps {
            self.last_line = Some(Instant::now());
            note(format_args!("step {}/{}  {message}", row.step, self.steps));
        }
    }

    /// Shows an evaluation.
    pub fn eval(&self, row: &EvalRow) {
        note(format_args!(
            "step {}/{}  held-out loss {:.4}, {:.4} bits a byte",
            row.step, self.steps, row.val_loss, row.bits_per_byte
        ));
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The display of work that is a number of like things.
pub struct CountProgress {
    unit: &'static str,
    bar: ProgressBar,
    last_line: Cell<Instant>,
}

impl CountProgress {
    /// `count` of what is called `unit`; a single one shows nothing.
    pub fn new(unit: &'static str, count: usize) -> Self {
        let bar = match count {
            0 | 1 => ProgressBar::hidden(),
            _ => BARS.add(ProgressBar::new(count as u64)),
        };
        if let Ok(style) = ProgressStyle::with_template("{bar:28} {pos}/{len} {msg}  {eta} left") {
            bar.set_style(style);
        }
        bar.set_message(unit);
        CountProgress {
            unit,
            bar,
            last_line: Cell::new(Instant::now()),
        }
    }

    /// Nothing at all.
    pub fn hidden() -> Self {
        CountProgress::new("", 0)
    }

    /// One more is done.
    pub fn advance(&self) {
        self.bar.inc(1);
        let count = self.bar.length().unwrap_or(0);
        if count > 1 && self.bar.is_hidden() && self.last_line.get().elapsed() >= LINE_EVERY {
            self.last_line.set(Instant::now());
            note(format_args!(
                "{}/{count} {}",
                self.bar.position(),
                self.unit
            ));
        }
    }

    /// Takes the bar off the screen.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Exponential mean over about [`DISPLAY_STEPS`], unbiased at the start.
#[derive(Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        let keep = 1.0 - 1.0 / DISPLAY_STEPS;
        self.sum = keep * self.sum + value;
        self.weight = keep * self.weight + 1.0;
    }

    fn value(&self) -> f64 {
        self.sum / self.weight.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_starts_unbiased_and_forgets() {
        let mut mean = Mean::default();
        mean.add(3.0);
        assert!((mean.value() - 3.0).abs() < 1e-12);
        (0..500).for_each(|_| mean.add(1.0));
        assert!((mean.value() - 1.0).abs() < 1e-6);
    }
}
