//! The default corpus: Rust sources of the project's own locked dependencies, which every machine
//! that built the project has, and which are the same for everyone with the same `Cargo.lock`.
//!
//! What is in it, in this order, so that everyone gets the same text:
//! - every package of `Cargo.lock` that comes from a registry, by name; where several versions are
//!   locked, the newest alone, since the others are nearly the same text;
//! - without crates that hold mostly generated bindings to one platform (`BINDINGS` in the source);
//! - their `src/**/*.rs` by path, without files and folders whose name contains `test`, `tables` or
//!   `generated`, or is `gen`, and without files that are not UTF-8.
//!
//! Held out for validation are whole families of crates, chosen by a hash of the family's name,
//! which is the crate's name up to the first `-` or `_`: `serde_json` beside `serde_core` in the
//! two halves would leak text from one to the other.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::ModelError;
use crate::data::{Documents, read_text};

/// The lock file that this program was built with.
const LOCK_FILE: &str = include_str!("../../Cargo.lock");

/// Names, or beginnings of names before a `-` or `_`, of crates that are mostly generated bindings.
const BINDINGS: [&str; 13] = [
    "block2",
    "dispatch2",
    "js-sys",
    "libc",
    "linux-raw-sys",
    "objc2",
    "r-efi",
    "wasi",
    "wasip2",
    "wasm-bindgen",
    "web-sys",
    "winapi",
    "windows",
];

/// One family in this many is held out.
const HOLD_OUT_ONE_IN: u64 = 10;

/// The default corpus, one document per file.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// What the model learns from.
    pub train: Documents,
    /// The crates that are held out.
    pub val: Documents,
    /// Names of the crates in `train`.
    pub train_crates: Vec<String>,
    /// Names of the crates in `val`.
    pub val_crates: Vec<String>,
}

impl Corpus {
    /// Reads the corpus from Cargo's registry: `$CARGO_HOME`, else `.cargo` in the home folder.
    ///
    /// # Errors
    /// [`ModelError::MissingCrate`] when a locked crate has not been fetched.
    pub fn load() -> Result<Corpus, ModelError> {
        let cargo_home = std::env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(std::env::home_dir()?.join(".cargo")))
            .unwrap_or_default();
        let corpus = Corpus::load_from(LOCK_FILE, &cargo_home.join("registry").join("src"))?;
        tracing::info!(
            train_crates = corpus.train_crates.len(),
            train_bytes = corpus.train.text().len(),
            val_crates = corpus.val_crates.len(),
            val_bytes = corpus.val.text().len(),
            "default corpus: sources of the locked dependencies"
        );
        Ok(corpus)
    }

    /// Reads the corpus of a lock file from `registry/*/NAME-VERSION`.
    fn load_from(lock_file: &str, registry: &Path) -> Result<Corpus, ModelError> {
        let mut indices: Vec<PathBuf> = fs::read_dir(registry)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        indices.sort();
        let mut corpus = Corpus::default();
        for (name, version) in locked_crates(lock_file)? {
            let folder = format!("{name}-{version}");
            let sources = indices
                .iter()
                .map(|index| index.join(&folder))
                .find(|folder| folder.is_dir())
                .ok_or_else(|| ModelError::MissingCrate {
                    name: folder.clone(),
                    registry: registry.to_path_buf(),
                })?;
            let (documents, crates) = if is_held_out(&name) {
                (&mut corpus.val, &mut corpus.val_crates)
            } else {
                (&mut corpus.train, &mut corpus.train_crates)
            };
            read_crate(&sources, &folder, documents)?;
            crates.push(name);
        }
        Ok(corpus)
    }
}

/// The crates of the corpus with their versions, by name.
fn locked_crates(lock_file: &str) -> Result<BTreeMap<String, String>, ModelError> {
    #[derive(Deserialize)]
    struct LockFile {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        source: Option<String>,
    }
    let lock: LockFile = toml::from_str(lock_file)
        .map_err(|error| ModelError::ConfigSyntax(format!("Cargo.lock: {error}")))?;
    let wanted = |package: &Package| {
        package
            .source
            .as_ref()
            .is_some_and(|source| source.starts_with("registry+"))
            && !is_bindings(&package.name)
    };
    // Cargo sorts by name and version, so the newest of a name comes last and stays.
    let crates = lock.package.into_iter().filter(wanted);
    Ok(crates
        .map(|package| (package.name, package.version))
        .collect())
}

fn is_bindings(name: &str) -> bool {
    BINDINGS.iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
    })
}

/// Whether a crate's family is held out: one in [`HOLD_OUT_ONE_IN`], by SHA-256 of its name.
fn is_held_out(name: &str) -> bool {
    let family = name.split(['-', '_']).next().unwrap_or(name);
    let hash = Sha256::digest(family);
    let number = hash
        .iter()
        .take(8)
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    number % HOLD_OUT_ONE_IN == 0
}

/// Whether a path below `src` is neither a test nor a table nor generated, going by its name.
fn is_written_by_hand(path: &Path) -> bool {
    path.components().all(|component| {
        let Component::Normal(name) = component else {
            return true;
        };
        let name = name.to_string_lossy();
        name != "gen"
            && !["test", "tables", "generated"]
                .iter()
                .any(|part| name.contains(part))
    })
}

/// Appends the sources of a crate, one document a file; a file that is not UTF-8 is left out.
fn read_crate(folder: &Path, name: &str, documents: &mut Documents) -> Result<(), ModelError> {
    let source_folder = folder.join("src");
    if !source_folder.is_dir() {
        return Ok(());
    }
    let mut paths = Vec::new();
    for entry in WalkDir::new(&source_folder) {
        let entry = entry.map_err(|error| ModelError::io("read", &source_folder)(error.into()))?;
        let path = entry
            .path()
            .strip_prefix(&source_folder)
            .unwrap_or(entry.path());
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        if entry.file_type().is_file() && is_rust && is_written_by_hand(path) {
            paths.push(path.to_path_buf());
        }
    }
    paths.sort();
    for path in paths {
        match read_text(&source_folder.join(&path)) {
            Ok(text) => documents.push(format!("{name}/src/{}", path.display()), [text.as_str()]),
            Err(ModelError::NotText { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
        version = 4
        [[package]]
        name = "own"
        version = "0.1.0"
        [[package]]
        name = "alpha"
        version = "1.0.0"
        source = "registry+somewhere"
        [[package]]
        name = "alpha"
        version = "2.0.0"
        source = "registry+somewhere"
        [[package]]
        name = "beta_core"
        version = "0.1.0"
        source = "registry+somewhere"
        [[package]]
        name = "windows-sys"
        version = "0.1.0"
        source = "registry+somewhere"
    "#;

    fn registry(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let registry = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = registry.path().join("index").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        registry
    }

    #[test]
    fn takes_the_newest_sources_in_order() {
        let registry = registry(&[
            ("alpha-1.0.0/src/lib.rs", b"old"),
            ("alpha-2.0.0/src/lib.rs", b"L"),
            ("alpha-2.0.0/src/a/b.rs", b"AB"),
            ("alpha-2.0.0/src/a.rs", b"A"),
            ("alpha-2.0.0/src/latin1.rs", b"\xe9"),
            ("alpha-2.0.0/src/tests/x.rs", b"test"),
            ("alpha-2.0.0/src/unicode_tables/x.rs", b"tables"),
            ("alpha-2.0.0/src/gen/x.rs", b"generated"),
            ("alpha-2.0.0/src/notes.md", b"notes"),
            ("alpha-2.0.0/build.rs", b"build"),
            ("beta_core-0.1.0/README", b"no sources"),
        ]);
        let corpus = Corpus::load_from(LOCK, registry.path()).unwrap();
        let mut crates = [corpus.train_crates, corpus.val_crates].concat();
        crates.sort();
        assert_eq!(crates, ["alpha", "beta_core"]);
        assert_eq!(
            format!("{}{}", corpus.train.text(), corpus.val.text()),
            "ABAL"
        );
    }

    #[test]
    fn a_missing_crate_says_what_to_run() {
        let registry = registry(&[("alpha-2.0.0/src/lib.rs", b"L")]);
        let error = Corpus::load_from(LOCK, registry.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("beta_core-0.1.0"), "{error}");
        assert!(error.contains("hint: run cargo fetch --locked"), "{error}");
        assert!(Corpus::load_from(LOCK, Path::new("/no/such/folder")).is_err());
    }

    #[test]
    fn bindings_and_families_go_by_whole_words() {
        for (name, expected) in [
            ("libc", true),
            ("windows-sys", true),
            ("winapi_util", true),
            ("libm", false),
            ("objc2-encode", true),
        ] {
            assert_eq!(is_bindings(name), expected, "{name}");
        }
        let (held_out, kept): (Vec<_>, Vec<_>) = (0..2000)
            .map(|n| format!("crate{n}-x"))
            .partition(|name| is_held_out(name));
        assert!((150..250).contains(&held_out.len()), "{}", held_out.len());
        assert!(
            held_out
                .iter()
                .all(|name| is_held_out(&name.replace("-x", "_other")))
        );
        assert!(
            kept.iter()
                .all(|name| !is_held_out(&name.replace("-x", "")))
        );
    }

    /// The real thing, where the machine has it: what the documentation says about its size holds.
    #[test]
    fn the_corpus_of_this_project_is_large_and_split() {
        match Corpus::load() {
            Ok(corpus) => {
                let (train, val) = (corpus.train.text().len(), corpus.val.text().len());
                let share = val as f64 / (train + val) as f64;
                assert!(train > 20_000_000, "{train} bytes");
                assert!(
                    (0.05..0.2).contains(&share),
                    "{val} of {train} bytes held out"
                );
            }
            Err(error) => assert!(matches!(error, ModelError::MissingCrate { .. }), "{error}"),
        }
    }
}
