//! The record of a run: `metrics.jsonl`, one object a line, and the same numbers for TensorBoard.

mod reader;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ModelError;
use crate::tensorboard::EventFile;
use crate::voice::VoiceDoneRow;

pub use reader::{MetricsReader, RunRecord};

/// Name of the record in a run folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// A training step, `metrics.jsonl`'s most frequent row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Steps made, this one included.
    pub step: u32,
    /// Tokens, or frames of a voice, trained on so far.
    pub tokens: u64,
    /// Mean loss of the step's batch in nats per token, or error of the log mel spectrogram.
    pub train_loss: f64,
    /// Speed of this step.
    pub tokens_per_s: f64,
    /// Fraction of the grid weights that flipped in this step.
    pub flip_rate: f64,
    /// AdamW rate of the float part in this step.
    pub lr: f64,
    /// Peak resident memory so far.
    pub peak_rss_bytes: u64,
    /// What spreading the step over ranks, or GPUs, took; absent on a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange: Option<ExchangeRow>,
}

/// The exchange between ranks, or GPUs, in one step, as the first of them saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExchangeRow {
    /// Ranks or GPUs that took part.
    pub ranks: usize,
    /// Bytes that this rank sent; a GPU, if they form a ring.
    pub sent_bytes: u64,
    /// Seconds from when all ranks were ready until all had the sums.
    pub seconds: f64,
}

/// An evaluation on the held-out windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRow {
    /// Steps made before it.
    pub step: u32,
    /// Mean loss in nats per token.
    pub val_loss: f64,
    /// The same in bits per byte of text.
    pub bits_per_byte: f64,
    /// Resident memory at that moment, 0 where the system does not tell.
    #[serde(default)]
    pub rss_bytes: u64,
    /// Open files and sockets at that moment, 0 where the system does not tell.
    #[serde(default)]
    pub open_descriptors: u64,
}

/// An evaluation of a voice on the held-out sentences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VoiceEvalRow {
    /// Steps made before it.
    pub step: u32,
    /// Mean absolute error of the log mel spectrogram in nats.
    pub val_loss: f64,
    /// Mean squared error of log(1 + frames) of a symbol.
    pub duration_loss: f64,
    /// Whether no earlier one was as good.
    pub is_best: bool,
}

/// How one layer used its grid, recorded with every evaluation. A block of the transformer is one
/// layer, an embedding or a head another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerRow {
    /// Steps made before it.
    pub step: u32,
    /// `blocks.N`, or the matrix's own name.
    pub layer: String,
    /// Id of the grid.
    pub grid: String,
    /// Weights on it.
    pub weights: u64,
    /// Mean fraction of them that flipped in a step since the rows before.
    pub flip_rate: f64,
    /// Weights on each code of the grid, lowest value first.
    pub code_counts: Vec<u64>,
    /// Ballots by vote count in [`BALLOT_BINS`] bins of 16 votes, the middle one around zero; empty
    /// under a rule that keeps no ballot.
    pub ballot_counts: Vec<u64>,
    /// Fraction of the ballots that can take no more votes in their direction.
    pub ballot_saturated: f64,
}

/// Bins of [`LayerRow::ballot_counts`]: votes -127..=127, rounded to multiples of 16.
pub const BALLOT_BINS: usize = 17;

/// The end of a finished run, the last row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoneRow {
    /// Steps made.
    pub steps: u32,
    /// Final held-out loss in nats per token.
    pub val_loss: f64,
    /// The same in bits per byte of text.
    pub bits_per_byte: f64,
    /// Time spent in training steps.
    pub seconds: f64,
    /// Mean training speed.
    pub tokens_per_s: f64,
    /// Peak resident memory.
    pub peak_rss_bytes: u64,
    /// Persistent state of a grid weight, codes and ballots, without the float part.
    pub state_bytes_per_weight: f64,
    /// Persistent state of the float part.
    pub float_bytes: u64,
    /// What the ledger said the run would take.
    pub ledger_bytes: u64,
    /// Steps skipped because a loss or gradient was not finite.
    pub skipped_steps: u32,
    /// Hash over the complete training state: equal hash, equal state.
    pub state_hash: String,
}

/// A row that says what happened instead of what was measured.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum EventRow<'a> {
    Done(&'a DoneRow),
    #[serde(rename = "done")]
    VoiceDone(&'a VoiceDoneRow),
    Layer(&'a LayerRow),
    Skipped {
        step: u32,
        total: u32,
    },
}

/// Writes the rows of a run. Every row is on disk when its call returns.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    board: EventFile,
    /// One row; only grows, so that a steady run does not allocate.
    line: Vec<u8>,
}

impl MetricsLog {
    /// Opens `run/metrics.jsonl` and `run/tb` for a run that stands at `step`, 0 for a fresh one.
    /// Rows of later steps, of an earlier end or of a write that was cut short are dropped.
    ///
    /// # Errors
    /// [`ModelError::Io`] when a file cannot be read or written.
    pub fn open(run: &Path, step: u32) -> Result<MetricsLog, ModelError> {
        let path = run.join(METRICS_FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(ModelError::io("open", &path))?;
        let kept_bytes = if step == 0 {
            0
        } else {
            rows_up_to(&file, step).map_err(ModelError::io("read", &path))?
        };
        file.set_len(kept_bytes)
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(ModelError::io("write", &path))?;
        let board = EventFile::create(&run.join("tb"), step + 1)?;
        Ok(MetricsLog {
            file,
            path,
            board,
            line: Vec::new(),
        })
    }

    /// Records a training step.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn step(&mut self, row: &StepRow) -> Result<(), ModelError> {
        self.write(row)?;
        let scalars = [
            ("loss/train", row.train_loss),
            ("rate/flips", row.flip_rate),
            ("rate/lr", row.lr),
            ("speed/tokens_per_s", row.tokens_per_s),
        ];
        self.board.scalars(row.step, &scalars)
    }

    /// Records that step `step` was not taken, the `total`-th of this run.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn skipped(&mut self, step: u32, total: u32) -> Result<(), ModelError> {
        self.write(&EventRow::Skipped { step, total })
    }

    /// Records an evaluation.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn eval(&mut self, row: &EvalRow) -> Result<(), ModelError> {
        self.write(row)?;
        let scalars = [
            ("loss/validation", row.val_loss),
            ("bits_per_byte/validation", row.bits_per_byte),
        ];
        self.board.scalars(row.step, &scalars)
    }

    /// Records an evaluation of a voice.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn voice_eval(&mut self, row: &VoiceEvalRow) -> Result<(), ModelError> {
        self.write(row)?;
        let scalars = [
            ("loss/validation", row.val_loss),
            ("loss/duration", row.duration_loss),
        ];
        self.board.scalars(row.step, &scalars)
    }

    /// Records the end of a voice's run.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn voice_done(&mut self, row: &VoiceDoneRow) -> Result<(), ModelError> {
        self.write(&EventRow::VoiceDone(row))
    }

    /// Records how a layer used its grid.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn layer(&mut self, row: &LayerRow) -> Result<(), ModelError> {
        self.write(&EventRow::Layer(row))
    }

    /// Records the end of the run.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the disk is full or gone.
    pub fn done(&mut self, row: &DoneRow) -> Result<(), ModelError> {
        self.write(&EventRow::Done(row))
    }

    fn write(&mut self, row: &impl Serialize) -> Result<(), ModelError> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, row)
            .map_err(|error| ModelError::io("write", &self.path)(error.into()))?;
        self.line.push(b'\n');
        self.file
            .write_all(&self.line)
            .map_err(ModelError::io("write", &self.path))
    }
}

/// Bytes of the leading rows that belong to steps up to `step`.
fn rows_up_to(file: &File, step: u32) -> std::io::Result<u64> {
    #[derive(Deserialize)]
    struct Step {
        step: u32,
    }
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut kept_bytes = 0;
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        let row = serde_json::from_slice::<Step>(&line).ok();
        if !line.ends_with(b"\n") || row.is_none_or(|row| row.step > step) {
            return Ok(kept_bytes);
        }
        kept_bytes += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn step_row(step: u32) -> StepRow {
        StepRow {
            step,
            tokens: 768 * u64::from(step),
            train_loss: 2.5,
            tokens_per_s: 1e4,
            flip_rate: 0.001,
            lr: 3e-3,
            peak_rss_bytes: 1 << 20,
            exchange: None,
        }
    }

    fn done_row() -> DoneRow {
        DoneRow {
            steps: 3,
            val_loss: 1.75,
            bits_per_byte: 2.5,
            seconds: 1.0,
            tokens_per_s: 1e4,
            peak_rss_bytes: 1 << 20,
            state_bytes_per_weight: 1.5,
            float_bytes: 100,
            ledger_bytes: 1 << 19,
            skipped_steps: 1,
            state_hash: "ab".to_string(),
        }
    }

    fn rows(run: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn rows_are_what_the_command_line_promises() {
        let run = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(run.path(), 0).unwrap();
        log.step(&step_row(1)).unwrap();
        log.skipped(2, 1).unwrap();
        log.eval(&EvalRow {
            step: 2,
            val_loss: 1.75,
            bits_per_byte: 2.5,
            rss_bytes: 4096,
            open_descriptors: 9,
        })
        .unwrap();
        log.layer(&LayerRow {
            step: 2,
            layer: "blocks.0".to_string(),
            grid: "prime15".to_string(),
            weights: 8,
            flip_rate: 0.5,
            code_counts: vec![8],
            ballot_counts: Vec::new(),
            ballot_saturated: 0.0,
        })
        .unwrap();
        log.done(&done_row()).unwrap();
        let rows = rows(run.path());
        assert_eq!(
            rows[0],
            json!({"step": 1, "tokens": 768, "train_loss": 2.5, "tokens_per_s": 1e4,
                   "flip_rate": 0.001, "lr": 0.003, "peak_rss_bytes": 1048576})
        );
        assert_eq!(rows[1], json!({"event": "skipped", "step": 2, "total": 1}));
        assert_eq!(
            rows[2],
            json!({"step": 2, "val_loss": 1.75, "bits_per_byte": 2.5, "rss_bytes": 4096,
                   "open_descriptors": 9})
        );
        assert_eq!(
            rows[3],
            json!({"event": "layer", "step": 2, "layer": "blocks.0", "grid": "prime15",
                   "weights": 8, "flip_rate": 0.5, "code_counts": [8], "ballot_counts": [],
                   "ballot_saturated": 0.0})
        );
        assert_eq!(rows[4]["event"], "done");
        let done = rows[4].as_object().unwrap();
        for key in [
            "steps",
            "val_loss",
            "seconds",
            "tokens_per_s",
            "peak_rss_bytes",
            "state_bytes_per_weight",
            "state_hash",
        ] {
            assert!(done.contains_key(key), "{key}");
        }
        assert_eq!(std::fs::read_dir(run.path().join("tb")).unwrap().count(), 1);
    }

    #[test]
    fn resuming_drops_what_came_after_the_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(run.path(), 0).unwrap();
        for step in 1..=4 {
            log.step(&step_row(step)).unwrap();
            log.eval(&EvalRow {
                step,
                val_loss: 1.0,
                bits_per_byte: 1.0,
                rss_bytes: 0,
                open_descriptors: 0,
            })
            .unwrap();
        }
        log.done(&done_row()).unwrap();
        log.file.write_all(b"{\"step\": 1, \"tok").unwrap();

        let mut log = MetricsLog::open(run.path(), 4).unwrap();
        assert_eq!(rows(run.path()).len(), 8);
        log.step(&step_row(5)).unwrap();
        let steps = |run| {
            rows(run)
                .iter()
                .map(|row| row["step"].as_u64().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(run.path()), [1, 1, 2, 2, 3, 3, 4, 4, 5]);

        let mut log = MetricsLog::open(run.path(), 2).unwrap();
        log.step(&step_row(3)).unwrap();
        assert_eq!(steps(run.path()), [1, 1, 2, 2, 3]);
        MetricsLog::open(run.path(), 0).unwrap();
        assert!(rows(run.path()).is_empty());
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let run = tempfile::tempdir().unwrap();
        let error = MetricsLog::open(&run.path().join("none"), 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("metrics.jsonl"), "{error}");
    }
}
