//! Which lines of the kernels were executed, for whoever names a folder in
//! `CUDA_STANDIN_COVERAGE`: every device leaves a file there.
//!
//! A line of a file is the kernel's target, its name, `executed` or `passed-over` (a guard held the
//! instruction back), and ranges of PTX lines where that first happened, such as `17-40 44-44`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use ptx_interpreter::{Kernel, Profile};

/// The lines that one device has executed so far.
pub(crate) struct Coverage {
    path: PathBuf,
    seen: HashMap<(String, String), Profile>,
}

impl Coverage {
    /// Into a file of its own in the folder that the environment names, if it names one.
    pub(crate) fn from_environment() -> Option<Coverage> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let folder = PathBuf::from(std::env::var_os("CUDA_STANDIN_COVERAGE")?);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Some(Coverage {
            path: folder.join(format!("{}-{number}.txt", std::process::id())),
            seen: HashMap::new(),
        })
    }

    /// Adds a launch, and notes what was executed for the first time.
    pub(crate) fn add(&mut self, kernel: &Kernel, profile: &Profile) {
        let name = (kernel.target.clone(), kernel.name.clone());
        let seen = self.seen.entry(name).or_default();
        let before = seen.clone();
        *seen += profile;
        let mut text = String::new();
        for (what, count) in [
            ("executed", Profile::executed as fn(&Profile) -> &[u64]),
            ("passed-over", Profile::passed_over),
        ] {
            let before = count(&before).iter().copied().chain(std::iter::repeat(0));
            let new = count(seen).iter().zip(before);
            let new = new.map(|(now, before)| *now > 0 && before == 0);
            let lines = kernel.lines().zip(new).filter(|(_, new)| *new);
            let ranges = ranges(lines.map(|(line, _)| line));
            if !ranges.is_empty() {
                let _ = writeln!(text, "{} {} {what}{ranges}", kernel.target, kernel.name);
            }
        }
        if !text.is_empty() {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path);
            // What cannot be written is missed by whoever asked for it.
            let _ = file.and_then(|mut file| file.write_all(text.as_bytes()));
        }
    }
}

/// Ascending lines as ranges, a blank before each.
fn ranges(lines: impl Iterator<Item = u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for line in lines {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == line => *last = line,
            _ => ranges.push((line, line)),
        }
    }
    let text = ranges
        .iter()
        .map(|(first, last)| format!(" {first}-{last}"));
    text.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_range() {
        assert_eq!(ranges([3, 4, 5, 9].into_iter()), " 3-5 9-9");
        assert_eq!(ranges(std::iter::empty()), "");
    }
}
