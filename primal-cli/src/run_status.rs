//! Where a run stands, told from its folder alone: what `watch` shows and `report` draws.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use primal_model::checkpoint;
use primal_model::config::Config;
use primal_model::metrics::{LayerRow, METRICS_FILE, MetricsReader, RunRecord};

/// Steps over which displayed numbers are averaged.
const SMOOTHING_STEPS: usize = 20;

/// A run that says nothing for this long, or for this many of its steps, is called silent.
const SILENT_AFTER: Duration = Duration::from_secs(60);
const SILENT_STEPS: f64 = 20.0;

/// What the folder of a run tells, brought up to date by [`RunStatus::refresh`].
pub struct RunStatus {
    run: PathBuf,
    reader: MetricsReader,
    /// The run's configuration, once it has begun.
    pub config: Option<Config>,
    /// Step and folder of the complete checkpoints, oldest first.
    pub checkpoints: Vec<(u32, PathBuf)>,
    /// Time since the newest row when `seen` was taken.
    age: Duration,
    seen: Instant,
}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is recorded yet.
    NotBegun,
    /// Rows come in.
    Running,
    /// No row came for a while: stopped, killed, or a very long step.
    Silent(Duration),
    /// The last step was made.
    Finished,
}

impl RunStatus {
    /// Looks at a run folder, which need not exist yet.
    pub fn new(run: &Path) -> Result<Self> {
        let mut status = RunStatus {
            run: run.to_path_buf(),
            reader: MetricsReader::new(run),
            config: None,
            checkpoints: Vec::new(),
            age: Duration::ZERO,
            seen: Instant::now(),
        };
        status.refresh()?;
        // Before the first look only the file's own time tells; a clock that was set back tells
        // nothing, and then the run counts as alive.
        status.age = fs::metadata(run.join(METRICS_FILE))
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|modified| modified.elapsed().ok())
            .unwrap_or_default();
        Ok(status)
    }

    /// Reads what is new.
    pub fn refresh(&mut self) -> Result<()> {
        if self.reader.poll()? {
            self.age = Duration::ZERO;
            self.seen = Instant::now();
        }
        // Written once, but a resume may have changed the number of steps.
        self.config = fs::read_to_string(self.run.join(checkpoint::CONFIG_FILE))
            .ok()
            .and_then(|text| Config::from_toml(&text).ok());
        self.checkpoints = checkpoint::list(&self.run).unwrap_or_default();
        Ok(())
    }

    /// The run folder.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Every row so far.
    pub fn record(&self) -> &RunRecord {
        self.reader.record()
    }

    /// What the run is doing now.
    pub fn phase(&self) -> Phase {
        let record = self.record();
        if record.done.is_some() {
            return Phase::Finished;
        }
        if record.steps.is_empty() {
            return Phase::NotBegun;
        }
        let quiet = self.age.saturating_add(self.seen.elapsed());
        let patience = (SILENT_STEPS * self.step_seconds()).max(SILENT_AFTER.as_secs_f64());
        if quiet.as_secs_f64() > patience {
            Phase::Silent(quiet)
        } else {
            Phase::Running
        }
    }

    /// Steps made.
    pub fn step(&self) -> u32 {
        self.record().steps.last().map_or(0, |row| row.step)
    }

    /// Steps of the whole run, 0 while unknown.
    pub fn steps(&self) -> u32 {
        let planned = self.config.as_ref().map_or(0, |config| config.train.steps);
        let done = self.record().done.as_ref().map(|done| done.steps);
        done.unwrap_or(planned)
    }

    /// Speed over the last steps; 0 before the first.
    pub fn tokens_per_s(&self) -> f64 {
        let (tokens, seconds) = self.recent();
        if seconds > 0.0 { tokens / seconds } else { 0.0 }
    }

    /// Duration of a step lately.
    fn step_seconds(&self) -> f64 {
        let steps = self.record().steps.len().min(SMOOTHING_STEPS);
        self.recent().1 / steps.max(1) as f64
    }

    /// Tokens and seconds of the last steps.
    fn recent(&self) -> (f64, f64) {
        let steps = &self.record().steps;
        let first = steps.len().saturating_sub(SMOOTHING_STEPS);
        durations(steps, first).fold((0.0, 0.0), |sum, (tokens, seconds)| {
            (sum.0 + tokens, sum.1 + seconds)
        })
    }

    /// Seconds spent in training steps, by the run's own measure and not by any clock here.
    pub fn seconds(&self) -> f64 {
        let measured = || {
            durations(&self.record().steps, 0)
                .map(|(_, seconds)| seconds)
                .sum()
        };
        let done = self.record().done.as_ref().map(|done| done.seconds);
        done.unwrap_or_else(measured)
    }

    /// Seconds to the last step at the speed of the last steps.
    pub fn seconds_left(&self) -> Option<f64> {
        let left = self.steps().checked_sub(self.step())?;
        let known = self.steps() > 0 && self.step() > 0;
        known.then(|| f64::from(left) * self.step_seconds())
    }

    /// Mean training loss of the last steps.
    pub fn train_loss(&self) -> Option<f64> {
        self.mean(|row| row.train_loss)
    }

    /// Mean flip rate of the last steps.
    pub fn flip_rate(&self) -> Option<f64> {
        self.mean(|row| row.flip_rate)
    }

    fn mean(&self, of: impl Fn(&primal_model::metrics::StepRow) -> f64) -> Option<f64> {
        let steps = &self.record().steps;
        let recent = &steps[steps.len().saturating_sub(SMOOTHING_STEPS)..];
        let sum: f64 = recent.iter().map(of).sum();
        (!recent.is_empty()).then(|| sum / recent.len() as f64)
    }
}

/// Tokens and seconds of each step from `first` on.
fn durations(
    steps: &[primal_model::metrics::StepRow],
    first: usize,
) -> impl Iterator<Item = (f64, f64)> {
    (first..steps.len()).map(|index| {
        let row = &steps[index];
        let per_step = match index.checked_sub(1).map(|before| &steps[before]) {
            Some(before) => {
                let steps = row.step.saturating_sub(before.step).max(1);
                row.tokens.saturating_sub(before.tokens) as f64 / f64::from(steps)
            }
            None => row.tokens as f64 / f64::from(row.step.max(1)),
        };
        (per_step, per_step / row.tokens_per_s.max(1e-9))
    })
}

/// Shares of a layer's weights: (on zero, on the two end values).
pub fn zero_and_end_share(layer: &LayerRow) -> (f64, f64) {
    let counts = &layer.code_counts;
    let share = |count: u64| count as f64 / layer.weights.max(1) as f64;
    let at = |index: usize| counts.get(index).copied().unwrap_or(0);
    let last = counts.len().saturating_sub(1);
    (share(at(counts.len() / 2)), share(at(0) + at(last)))
}

/// At most `most` points: the mean of each of as many equal pieces.
pub fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most {
        return points.to_vec();
    }
    let piece = points.len().div_ceil(most.max(1));
    let mean = |points: &[(f64, f64)]| {
        let n = points.len() as f64;
        let sum = points
            .iter()
            .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / n, sum.1 / n)
    };
    points.chunks(piece).map(mean).collect()
}

/// Exponential mean over about as many points as displayed numbers, unbiased at the start.
pub fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / SMOOTHING_STEPS as f64;
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut mean = |&(step, value): &(f64, f64)| {
        sum = keep * sum + value;
        weight = keep * weight + 1.0;
        (step, sum / weight)
    };
    points.iter().map(&mut mean).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A run folder with `n` steps of 0.5 s, two evaluations of two layers and perhaps an end.
    pub fn example_run(folder: &Path, n: u32, finished: bool) {
        let mut config = Config::preset("shakespeare-char").unwrap();
        config.train.steps = 100;
        fs::write(
            folder.join(checkpoint::CONFIG_FILE),
            config.to_toml().unwrap(),
        )
        .unwrap();
        let mut text = String::new();
        for step in 1..=n {
            let row = json!({"step": step, "tokens": 768 * step, "train_loss": 1.0 + 3.0 / f64::from(step),
                "tokens_per_s": 1536.0, "flip_rate": 0.002, "lr": 0.003, "peak_rss_bytes": 50 << 20});
            text += &format!("{row}\n");
            if step % 20 == 0 {
                let row =
                    json!({"step": step, "val_loss": 1.25, "bits_per_byte": 1.8, "rss_bytes": 1});
                text += &format!("{row}\n");
                for layer in ["tok_embedding", "blocks.0"] {
                    let row = json!({"event": "layer", "step": step, "layer": layer,
                        "grid": "prime15", "weights": 150, "flip_rate": 0.001,
                        "code_counts": [5, 5, 5, 10, 10, 10, 10, 40, 10, 10, 10, 10, 5, 5, 5],
                        "ballot_counts": vec![10; 15].into_iter().chain([0, 0]).collect::<Vec<_>>(),
                        "ballot_saturated": 0.25});
                    text += &format!("{row}\n");
                }
            }
        }
        if finished {
            let row = json!({"event": "done", "steps": n, "val_loss": 1.2, "bits_per_byte": 1.7,
                "seconds": 50.0, "tokens_per_s": 1500.0, "peak_rss_bytes": 50 << 20,
                "state_bytes_per_weight": 1.5, "float_bytes": 9, "ledger_bytes": 10,
                "skipped_steps": 0, "state_hash": "cafe"});
            text += &format!("{row}\n");
        }
        fs::write(folder.join(METRICS_FILE), text).unwrap();
        if n >= 20 {
            let saved = folder.join("step_000020");
            fs::create_dir_all(&saved).unwrap();
            fs::write(saved.join("DONE"), "").unwrap();
        }
    }

    #[test]
    fn a_running_run_is_read() {
        let folder = tempfile::tempdir().unwrap();
        example_run(folder.path(), 40, false);
        let status = RunStatus::new(folder.path()).unwrap();
        assert_eq!(
            (status.phase(), status.step(), status.steps()),
            (Phase::Running, 40, 100)
        );
        assert!((status.tokens_per_s() - 1536.0).abs() < 1e-6);
        assert!((status.seconds() - 20.0).abs() < 1e-6);
        assert!((status.seconds_left().unwrap() - 30.0).abs() < 1e-6);
        assert_eq!(status.checkpoints.len(), 1);
        assert_eq!(status.record().newest_layers().len(), 2);
        let (zero, ends) = zero_and_end_share(&status.record().newest_layers()[0]);
        assert!((zero - 40.0 / 150.0).abs() < 1e-9 && (ends - 10.0 / 150.0).abs() < 1e-9);
    }

    #[test]
    fn the_phases_of_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let missing = RunStatus::new(&folder.path().join("later")).unwrap();
        assert_eq!(missing.phase(), Phase::NotBegun);
        assert_eq!(missing.seconds_left(), None);
        example_run(folder.path(), 40, false);
        let mut status = RunStatus::new(folder.path()).unwrap();
        status.age = Duration::from_secs(100);
        assert!(matches!(status.phase(), Phase::Silent(_)));
        example_run(folder.path(), 100, true);
        status.refresh().unwrap();
        assert_eq!(status.phase(), Phase::Finished);
    }

    #[test]
    fn thinning_keeps_ends_and_means() {
        let line: Vec<_> = (0..1000).map(|x| (f64::from(x), f64::from(x))).collect();
        let thin = thinned(&line, 100);
        assert_eq!(thin.len(), 100);
        assert!((thin[0].0 - 4.5).abs() < 1e-9 && (thin[99].1 - 994.5).abs() < 1e-9);
        assert!(smoothed(&line).iter().all(|(x, y)| y <= x));
    }
}
