//! Reading `metrics.jsonl` while a run writes it.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{DoneRow, EvalRow, LayerRow, METRICS_FILE, StepRow};
use crate::ModelError;

/// What a run has recorded so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRecord {
    /// Training rows by step.
    pub steps: Vec<StepRow>,
    /// Evaluations by step.
    pub evals: Vec<EvalRow>,
    /// Rows of layers by step, in the model's order within a step.
    pub layers: Vec<LayerRow>,
    /// Steps skipped because a loss or a gradient was not finite.
    pub skipped_steps: u32,
    /// The last row of a finished run.
    pub done: Option<DoneRow>,
    /// Complete lines that are no row; a damaged file has some.
    pub unreadable_lines: usize,
}

impl RunRecord {
    /// The rows of the newest evaluation's layers.
    pub fn newest_layers(&self) -> &[LayerRow] {
        let last_step = self.layers.last().map(|row| row.step);
        let first = self
            .layers
            .partition_point(|row| Some(row.step) < last_step);
        &self.layers[first..]
    }

    /// Takes one complete line.
    fn line(&mut self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let known = serde_json::from_slice(line).is_ok_and(|row: Value| self.row(row));
        self.unreadable_lines += usize::from(!known);
    }

    /// Whether it was a row. Events of a later version are passed over.
    fn row(&mut self, row: Value) -> bool {
        match row.get("event").and_then(Value::as_str) {
            Some("done") => read(row, |row| self.done = Some(row)),
            Some("layer") => read(row, |row| self.layers.push(row)),
            Some("skipped") => {
                let total = row.get("total").and_then(Value::as_u64);
                self.skipped_steps = total.unwrap_or_default().try_into().unwrap_or(u32::MAX);
                total.is_some()
            }
            Some(_) => true,
            None if row.get("val_loss").is_some() => read(row, |row| self.evals.push(row)),
            None => read(row, |row| self.steps.push(row)),
        }
    }
}

fn read<T: DeserializeOwned>(row: Value, take: impl FnOnce(T)) -> bool {
    serde_json::from_value(row).map(take).is_ok()
}

/// Follows the metrics of a run; each [`poll`](MetricsReader::poll) reads what is new.
#[derive(Debug)]
pub struct MetricsReader {
    path: PathBuf,
    record: RunRecord,
    /// Bytes of the complete lines that were read.
    read_bytes: u64,
    /// The last of them: when it is no longer there, the run was resumed and cut its record.
    last_line: Vec<u8>,
}

impl MetricsReader {
    /// A reader of `run/metrics.jsonl`, which need not exist yet.
    pub fn new(run: &Path) -> Self {
        MetricsReader {
            path: run.join(METRICS_FILE),
            record: RunRecord::default(),
            read_bytes: 0,
            last_line: Vec::new(),
        }
    }

    /// What was read so far.
    pub fn record(&self) -> &RunRecord {
        &self.record
    }

    /// Reads the lines that are complete by now; returns whether anything changed. A last line
    /// that is still being written stays for the next poll.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the file exists and cannot be read.
    pub fn poll(&mut self) -> Result<bool, ModelError> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(ModelError::io("read", &self.path)(error)),
        };
        let mut new = Vec::new();
        self.read_new(&mut file, &mut new)
            .map_err(ModelError::io("read", &self.path))?;
        let complete = new
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        for line in new[..complete].split_inclusive(|&byte| byte == b'\n') {
            self.record.line(line);
            self.last_line.clear();
            self.last_line.extend_from_slice(line);
        }
        self.read_bytes += complete as u64;
        Ok(complete > 0)
    }

    /// What lies behind the last line read, or the whole file where that line is gone.
    fn read_new(&mut self, file: &mut File, new: &mut Vec<u8>) -> std::io::Result<()> {
        let mut before = Vec::new();
        file.seek(SeekFrom::Start(
            self.read_bytes - self.last_line.len() as u64,
        ))?;
        file.by_ref()
            .take(self.last_line.len() as u64)
            .read_to_end(&mut before)?;
        if before != self.last_line {
            *self = MetricsReader {
                path: std::mem::take(&mut self.path),
                record: RunRecord::default(),
                read_bytes: 0,
                last_line: Vec::new(),
            };
            file.rewind()?;
        }
        file.read_to_end(new).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const STEP: &str = r#"{"step":1,"tokens":8,"train_loss":2.5,"tokens_per_s":9.0,"flip_rate":0.1,"lr":0.1,"peak_rss_bytes":5}"#;
    const EVAL: &str = r#"{"step":1,"val_loss":2.0,"bits_per_byte":3.0}"#;

    fn append(run: &Path, text: &str) {
        let path = run.join(METRICS_FILE);
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_growing_record_is_followed() {
        let run = tempfile::tempdir().unwrap();
        let mut reader = MetricsReader::new(run.path());
        assert!(!reader.poll().unwrap(), "nothing there yet");
        append(run.path(), &format!("{STEP}\n{}", &EVAL[..20]));
        assert!(reader.poll().unwrap());
        assert_eq!(reader.record().steps.len(), 1);
        assert!(reader.record().evals.is_empty(), "half a line is no row");
        assert!(!reader.poll().unwrap());
        append(run.path(), &format!("{}\n", &EVAL[20..]));
        assert!(reader.poll().unwrap());
        let record = reader.record();
        assert_eq!((record.evals.len(), record.unreadable_lines), (1, 0));
        append(
            run.path(),
            "{\"event\":\"later-version\"}\nnonsense\n\n{\"a\":1}\n",
        );
        reader.poll().unwrap();
        assert_eq!(reader.record().unreadable_lines, 2);
    }

    #[test]
    fn a_record_that_a_resume_cut_is_read_again() {
        let run = tempfile::tempdir().unwrap();
        let later = STEP.replace("\"step\":1", "\"step\":2");
        append(run.path(), &format!("{STEP}\n{later}\n{EVAL}\n"));
        let mut reader = MetricsReader::new(run.path());
        reader.poll().unwrap();
        std::fs::write(
            run.path().join(METRICS_FILE),
            format!("{STEP}\n{later}\n{later}\n{later}\n{later}\n"),
        )
        .unwrap();
        reader.poll().unwrap();
        assert_eq!(
            (reader.record().steps.len(), reader.record().evals.len()),
            (5, 0)
        );
        std::fs::write(run.path().join(METRICS_FILE), "").unwrap();
        reader.poll().unwrap();
        assert_eq!(reader.record(), &RunRecord::default());
    }

    proptest! {
        /// Whatever a file holds, reading it fails in no other way than by counting lines, and
        /// the result does not depend on how the writes were cut.
        #[test]
        fn any_bytes_are_survived(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..40),
                    Just(STEP.as_bytes().to_vec()),
                    Just(EVAL.as_bytes().to_vec()),
                    Just(b"\n".to_vec()),
                    "[{}\\[\\]:,\"a-z0-9\n]{0,60}".prop_map(String::into_bytes),
                ],
                0..12,
            )
        ) {
            let run = tempfile::tempdir().unwrap();
            let path = run.path().join(METRICS_FILE);
            let mut following = MetricsReader::new(run.path());
            let mut all = Vec::new();
            for piece in &pieces {
                all.extend_from_slice(piece);
                std::fs::write(&path, &all).unwrap();
                following.poll().unwrap();
            }
            let mut once = MetricsReader::new(run.path());
            once.poll().unwrap();
            prop_assert_eq!(once.record(), following.record());
        }
    }
}
