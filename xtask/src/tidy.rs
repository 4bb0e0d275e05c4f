//! Rules of the house that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::dependencies::metadata;

/// A file longer than this wants to be two.
const MAX_LINES: usize = 800;

/// Crates that may hold `unsafe`: the kernels, and the stand-in driver with its C functions.
const UNSAFE_CRATES: [&str; 3] = ["primal-kernels", "cuda-standin", "cublas-standin"];

/// Marks of unfinished work, cut in two so that this file does not carry them.
const UNFINISHED: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("dbg", "!("),
];

/// Checks every Rust file, every crate's folder, and the links of every document.
pub fn check() -> Result<()> {
    let mut problems = crate_problems()?;
    for path in files(Path::new("."), ".rs")? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        problems.extend(file_problems(&path, &text));
    }
    for path in files(Path::new("."), ".md")? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        problems.extend(link_problems(&path, &text));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        bail!("{}", problems.join("\n       "))
    }
}

/// Folders are named as their crates, and every crate takes the shared lints or forbids less in
/// one known place.
fn crate_problems() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for package in metadata()?.packages {
        let manifest = Path::new(&package.manifest_path);
        let folder = manifest
            .parent()
            .and_then(|it| it.file_name())
            .unwrap_or_default();
        let folder = folder.to_string_lossy();
        if package.name != folder && package.name != format!("primal-{folder}") {
            problems.push(format!("crate {} lives in folder {folder}", package.name));
        }
        let text = fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?;
        let unsafe_is_known = UNSAFE_CRATES.contains(&package.name.as_str());
        if !text.contains("[lints]\nworkspace = true") && !unsafe_is_known {
            problems.push(format!(
                "{folder}/Cargo.toml does not take the workspace's lints"
            ));
        }
    }
    Ok(problems)
}

fn file_problems(path: &Path, text: &str) -> Vec<String> {
    let name = path.strip_prefix(".").unwrap_or(path).display();
    let mut problems = Vec::new();
    if !text.starts_with("//! ") {
        problems.push(format!(
            "{name}: the first line must say what the file is for (`//! ...`)"
        ));
    }
    let n_lines = text.lines().count();
    if n_lines > MAX_LINES {
        problems.push(format!("{name}: {n_lines} lines, at most {MAX_LINES}"));
    }
    for (index, line) in text.lines().enumerate() {
        if let Some(mark) = UNFINISHED.iter().find(|mark| line.contains(**mark)) {
            problems.push(format!("{name}:{}: {mark}", index + 1));
        }
    }
    problems
}

/// Links of a document to files and headings of the repository that are not there.
fn link_problems(path: &Path, text: &str) -> Vec<String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.strip_prefix(".").unwrap_or(path).display();
    let mut problems = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let targets = line
            .split("](")
            .skip(1)
            .filter_map(|it| it.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let linked = folder.join(file);
            let there = match (file, heading) {
                ("", heading) => has_heading(text, heading),
                (_, "") => linked.exists(),
                _ => fs::read_to_string(&linked).is_ok_and(|it| has_heading(&it, heading)),
            };
            if !there {
                problems.push(format!("{name}:{}: nothing at {target}", index + 1));
            }
        }
    }
    problems
}

/// Whether a document has the heading that is linked to as `anchor`: its words in lower case, with
/// hyphens for blanks and without other signs.
fn has_heading(text: &str, anchor: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor_of = |heading: &str| -> String {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    };
    headings
        .into_iter()
        .any(|heading| anchor_of(heading) == anchor)
}

/// Every file of the working tree whose name ends so, build output and hidden folders left out.
fn files(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries = fs::read_dir(folder)
        .with_context(|| folder.display().to_string())?
        .collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "runs" {
                found.extend(files(&path, end)?);
            }
        } else if name.ends_with(end) {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_passes() {
        assert!(file_problems(Path::new("a.rs"), "//! Why.\n\nfn main() {}\n").is_empty());
    }

    #[test]
    fn each_rule_is_reported_with_its_place() {
        let long = format!(
            "fn a() {{}}\n// {}\n{}",
            UNFINISHED[0],
            "\n".repeat(MAX_LINES)
        );
        let problems = file_problems(Path::new("./b/c.rs"), &long);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems[0].starts_with("b/c.rs: the first line"),
            "{problems:?}"
        );
        assert!(problems[2].starts_with("b/c.rs:2:"), "{problems:?}");
    }

    #[test]
    fn links_to_nothing_are_reported() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("b.md"), "# Two words, and more\n").unwrap();
        let text = "[good](b.md) [good](b.md#two-words-and-more) [far](https://a.org/x)\n\
            [bad](c.md) [bad](b.md#two) [here](#here)\n## Here\n";
        let problems = link_problems(&root.path().join("a.md"), text);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].ends_with("a.md:2: nothing at c.md"),
            "{problems:?}"
        );
        assert!(problems[1].ends_with("nothing at b.md#two"), "{problems:?}");
    }

    #[test]
    fn build_output_and_hidden_folders_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        for path in ["src/a.rs", "target/b.rs", ".git/c.rs", "src/note.txt"] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        assert_eq!(
            files(root.path(), ".rs").unwrap(),
            [root.path().join("src/a.rs")]
        );
    }
}
