//! The gate's table of times, and the one that is committed, against which growth is seen.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bench::{commit, machine};

/// The committed table: of a fresh clone, whose dependencies were downloaded before.
const COMMITTED: &str = "benches/gate.json";

/// Points of the whole by which a part's share must have grown to be marked.
const GROWN: f64 = 5.0;

/// What a part took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The part's name.
    pub part: String,
    /// Whether it passed; only those that did are committed.
    #[serde(skip, default = "passed")]
    pub passed: bool,
    /// Time on the clock.
    pub seconds: f64,
    /// Time of all processors.
    pub processor_seconds: f64,
}

fn passed() -> bool {
    true
}

/// The times of one run of the gate.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    commit: Option<String>,
    machine: Value,
    parts: Vec<Measured>,
    #[serde(skip)]
    not_run: Vec<&'static str>,
    /// Whether everything was compiled from nothing.
    #[serde(skip)]
    is_fresh: bool,
}

impl Table {
    /// A table without rows.
    pub fn new(is_fresh: bool) -> Self {
        Table {
            commit: commit().map(|(date, commit)| format!("{date} {commit}")),
            machine: machine(),
            parts: Vec::new(),
            not_run: Vec::new(),
            is_fresh,
        }
    }

    /// The committed one; `None` where there is none yet.
    pub fn committed() -> Result<Option<Self>> {
        match fs::read_to_string(COMMITTED) {
            Ok(text) => Ok(Some(
                serde_json::from_str(&text).with_context(|| format!("{COMMITTED} is damaged"))?,
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(COMMITTED),
        }
    }

    /// Adds a part that ran.
    pub fn add(&mut self, measured: Measured) {
        self.parts.push(measured);
    }

    /// Adds a part that did not.
    pub fn not_run(&mut self, part: &'static str) {
        self.not_run.push(part);
    }

    /// Makes this the committed table.
    pub fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(COMMITTED, text).context(COMMITTED)
    }

    /// The rows as text: verdict, seconds, share of the whole, and the share that is committed.
    pub fn against(&self, committed: Option<&Table>) -> String {
        let mut text = format!(
            "  {:<8} {:>7} {:>10} {:>6} {:>10}\n",
            "", "seconds", "processors", "share", "committed"
        );
        let mut grown = Vec::new();
        for row in &self.parts {
            let share = self.share(&row.part);
            let before = committed.and_then(|table| table.share(&row.part));
            let verdict = if row.passed { "ok" } else { "FAILED" };
            let _ = writeln!(
                text,
                "  {verdict:<8} {:>7.1} {:>10.1} {:>6} {:>10}  {}",
                row.seconds,
                row.processor_seconds,
                percent(share),
                percent(before),
                row.part,
            );
            if let (Some(now), Some(before)) = (share, before)
                && now > before + GROWN
            {
                grown.push(row.part.as_str());
            }
        }
        for part in &self.not_run {
            let _ = writeln!(text, "  {:<8} {:>36}  {part}", "not run", "");
        }
        let [seconds, processors] = self.totals();
        let _ = write!(text, "  {:<8} {seconds:>7.1} {processors:>10.1}", "all");
        if let Some(committed) = committed {
            let [seconds, processors] = committed.totals();
            let cpu = committed.machine["cpu"]
                .as_str()
                .unwrap_or("another machine");
            let _ = write!(
                text,
                "; committed, of a fresh clone on {cpu}: {seconds:.1} and {processors:.1}"
            );
            if !self.is_fresh {
                text.push_str(";\n  here things were compiled before, so shares differ");
            } else if !grown.is_empty() {
                let _ = write!(text, ";\n  grown against the rest: {}", grown.join(", "));
            }
        }
        text
    }

    fn totals(&self) -> [f64; 2] {
        let sum = |of: fn(&Measured) -> f64| self.parts.iter().map(of).sum();
        [sum(|row| row.seconds), sum(|row| row.processor_seconds)]
    }

    /// A part's share of the time on the clock, in percent.
    fn share(&self, part: &str) -> Option<f64> {
        let row = self.parts.iter().find(|row| row.part == part)?;
        Some(100.0 * row.seconds / self.totals()[0])
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".into(), |share| format!("{share:.0} %"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(parts: &[(&str, f64)]) -> Table {
        let measured = |&(part, seconds): &(&str, f64)| Measured {
            part: part.into(),
            passed: true,
            seconds,
            processor_seconds: 2.0 * seconds,
        };
        Table {
            commit: None,
            machine: serde_json::json!({ "cpu": "Abacus" }),
            parts: parts.iter().map(measured).collect(),
            not_run: Vec::new(),
            is_fresh: true,
        }
    }

    #[test]
    fn growth_of_a_share_is_seen() {
        let committed = table(&[("lints", 50.0), ("tests", 50.0)]);
        let same = table(&[("lints", 7.0), ("tests", 7.5)]).against(Some(&committed));
        assert!(!same.contains("grown"), "{same}");
        let now = table(&[("lints", 50.0), ("tests", 80.0)]).against(Some(&committed));
        assert!(now.ends_with("grown against the rest: tests"), "{now}");
        assert!(now.contains("62 %       50 %  tests"), "{now}");
        assert!(now.contains("Abacus: 100.0 and 200.0"), "{now}");
    }

    #[test]
    fn what_did_not_run_is_listed() {
        let mut failed = table(&[("lints", 1.0)]);
        failed.parts[0].passed = false;
        failed.not_run("tests");
        let text = failed.against(None);
        assert!(
            text.contains("FAILED") && text.contains("not run"),
            "{text}"
        );
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let text = serde_json::to_string(&table(&[("lints", 1.5)])).unwrap();
        let read: Table = serde_json::from_str(&text).unwrap();
        assert_eq!(read.totals(), [1.5, 3.0]);
        assert!(read.parts[0].passed);
    }
}
