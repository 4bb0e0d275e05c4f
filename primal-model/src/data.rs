//! Text files to token streams, and token streams to training and evaluation windows.

mod stream;

use std::fs;
use std::path::{Path, PathBuf};

use primal_kernels::philox4x32;
pub use stream::TokenStream;
use walkdir::WalkDir;

use crate::ModelError;
use crate::config::DataConfig;
use crate::corpus::Corpus;
use crate::instructions::Conversations;
use crate::tokenizer::Tokenizer;

/// Random stream of the window offsets; the optimizer uses streams 0 to 2, the initial weights 3.
const DATA_STREAM: u32 = 4;

/// Files of a folder with these extensions must be text; other files are taken where they are
/// text and passed over where they are not.
const TEXT_EXTENSIONS: [&str; 5] = ["txt", "text", "md", "jsonl", "ndjson"];

/// What some editors write before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The tokens of a run and how they were made.
#[derive(Debug)]
pub struct Dataset {
    /// Maps the text to `train` and `val`.
    pub tokenizer: Tokenizer,
    /// What the model learns from.
    pub train: TokenStream,
    /// What it is measured on.
    pub val: TokenStream,
}

impl Dataset {
    /// Reads and tokenises the data of a config. `tokenizer` is a checkpoint's; without one the
    /// config's is made, where `chars` takes the characters of all the text given.
    ///
    /// # Errors
    /// Missing, empty or binary files; a tokenizer that refuses the text.
    pub fn load(config: &DataConfig, tokenizer: Option<Tokenizer>) -> Result<Dataset, ModelError> {
        if config.instructions {
            return Dataset::load_instructions(config, tokenizer);
        }
        let (mut train, mut val) = if config.train.is_empty() {
            let corpus = Corpus::load()?;
            (corpus.train, corpus.val)
        } else {
            (
                Documents::read(&config.train, &config.text_key)?,
                Documents::default(),
            )
        };
        if !config.val.is_empty() {
            val = Documents::read(&config.val, &config.text_key)?;
        } else if !config.train.is_empty() {
            val = train.split_off_tail(config.val_fraction);
        }
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => Tokenizer::from_spec(&config.tokenizer, [train.text(), val.text()])?,
        };
        let val = TokenStream::encode(&val, &tokenizer)?;
        let train = TokenStream::encode(&train, &tokenizer)?;
        Ok(Dataset {
            tokenizer,
            train,
            val,
        })
    }
}

impl Dataset {
    /// Conversations whose answers carry loss.
    fn load_instructions(
        config: &DataConfig,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Dataset, ModelError> {
        let mut train = Conversations::read(&config.train)?;
        let val = if config.val.is_empty() {
            train.split_off_tail(config.val_fraction)
        } else {
            Conversations::read(&config.val)?
        };
        if train.is_empty() {
            let reason = "the only conversation is held out to measure on, and none is left to \
                          learn; hint: give at least two, or --val FILE";
            return Err(ModelError::Instructions(reason.to_owned()));
        }
        let tokenizer = match tokenizer {
            Some(tokenizer) => tokenizer,
            None => Tokenizer::from_spec(&config.tokenizer, [])?,
        };
        Ok(Dataset {
            val: val.encode(&tokenizer)?,
            train: train.encode(&tokenizer)?,
            tokenizer,
        })
    }
}

/// Texts in a fixed order, held as one allocation so that dropping them gives the memory back.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    text: String,
    /// End of each document in `text`.
    ends: Vec<usize>,
    /// Source file and its first document.
    sources: Vec<(usize, String)>,
}

impl Documents {
    /// Reads files and folders in the order given; a folder's files come sorted by path, hidden
    /// ones left out. `.jsonl` and `.ndjson` hold one object a line whose `text_key` is the text,
    /// every other file is one document.
    ///
    /// # Errors
    /// A missing path, a file or folder without text, a file that is not UTF-8 (with the offset),
    /// a bad JSON line (with its number).
    pub fn read(paths: &[PathBuf], text_key: &str) -> Result<Documents, ModelError> {
        let mut documents = Documents::default();
        for path in paths {
            let metadata = fs::metadata(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => ModelError::MissingData { path: path.clone() },
                _ => ModelError::io("read", path)(error),
            })?;
            let before = documents.text.len();
            if metadata.is_dir() {
                documents.read_folder(path, text_key)?;
            } else {
                documents.read_file(path, text_key)?;
            }
            if documents.text.len() == before {
                return Err(ModelError::EmptyData { path: path.clone() });
            }
        }
        Ok(documents)
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All the text, the documents one after the other without anything between them.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// One document.
    ///
    /// # Panics
    /// When `index` is not below [`Documents::len`].
    pub fn document(&self, index: usize) -> &str {
        &self.text[self.start(index)..self.ends[index]]
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// The file that a document came from.
    fn source(&self, index: usize) -> &str {
        self.source_index(index)
            .map_or("", |at| &self.sources[at].1)
    }

    fn source_index(&self, index: usize) -> Option<usize> {
        self.sources
            .partition_point(|(first, _)| *first <= index)
            .checked_sub(1)
    }

    /// Appends the documents of one source; empty ones are left out.
    pub(crate) fn push<'a>(&mut self, source: String, texts: impl IntoIterator<Item = &'a str>) {
        self.sources.push((self.ends.len(), source));
        for text in texts.into_iter().filter(|text| !text.is_empty()) {
            self.text.push_str(text);
            self.ends.push(self.text.len());
        }
    }

    fn read_folder(&mut self, folder: &Path, text_key: &str) -> Result<(), ModelError> {
        let hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
        let walk = WalkDir::new(folder)
            .follow_links(true)
            .sort_by_file_name()
            .into_iter()
            .filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name()));
        for entry in walk {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if leads_nowhere(&error) => {
                    let path = error.path().unwrap_or(folder);
                    tracing::warn!(path = %path.display(), "a link that leads nowhere, passed over");
                    continue;
                }
                Err(error) => return Err(ModelError::io("read", folder)(error.into())),
            };
            if !entry.file_type().is_file() {
                continue;
            }
            match self.read_file(entry.path(), text_key) {
                Err(ModelError::NotText { path, .. }) if !has_text_extension(&path) => {
                    tracing::debug!(path = %path.display(), "not text, passed over");
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, text_key: &str) -> Result<(), ModelError> {
        let text = read_text(path)?;
        let source = path.display().to_string();
        if extension(path).is_some_and(|it| it == "jsonl" || it == "ndjson") {
            let texts = read_json_lines(path, &text, text_key)?;
            self.push(source, texts.iter().map(String::as_str));
        } else {
            self.push(source, [text.as_str()]);
        }
        Ok(())
    }

    /// Moves the last `fraction` of the text, by bytes, into a collection of its own. The cut falls
    /// where it falls, moved back to the start of a character, so it may divide a document.
    pub fn split_off_tail(&mut self, fraction: f32) -> Documents {
        // As the decimal that was written: the f32 nearest to 0.1 is a little more than that.
        let fraction = (f64::from(fraction) * 1e6).round() / 1e6;
        let mut cut = (self.text.len() as f64 * (1.0 - fraction)) as usize;
        while !self.text.is_char_boundary(cut) {
            cut -= 1;
        }
        let kept = self.ends.partition_point(|end| *end <= cut);
        let is_divided = kept < self.len() && self.start(kept) < cut;
        let first_source = self.source_index(kept).unwrap_or(0);
        let tail = Documents {
            text: self.text[cut..].to_string(),
            ends: self.ends[kept..].iter().map(|end| end - cut).collect(),
            sources: self.sources[first_source..]
                .iter()
                .map(|(first, source)| (first.saturating_sub(kept), source.clone()))
                .collect(),
        };
        self.text.truncate(cut);
        self.text.shrink_to_fit();
        self.ends.truncate(kept);
        if is_divided {
            self.ends.push(cut);
        }
        tail
    }
}

/// Draws training windows. Where a window starts is a pure function of the seed, the step and
/// the sequence's place in the step, so the position in the data is the step number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampler {
    seed: u64,
    n_starts: u64,
}

impl Sampler {
    /// A sampler over a stream of `n_tokens` for windows of `context` inputs.
    ///
    /// # Errors
    /// [`ModelError::TooShort`] when not even one window fits.
    pub fn new(seed: u64, n_tokens: usize, context: usize) -> Result<Sampler, ModelError> {
        check_length("training", n_tokens, context)?;
        Ok(Sampler {
            seed,
            n_starts: (n_tokens - context) as u64,
        })
    }

    /// First token of the window of sequence `sequence` of step `step`; every start is equally
    /// likely.
    pub fn start(&self, step: u32, sequence: u32) -> usize {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let [low, high, ..] = philox4x32([sequence, 0, step, DATA_STREAM << 28], key);
        let random = u64::from(high) << 32 | u64::from(low);
        // Multiply-shift (Lemire 2019) without its rejection: the bias is below n_starts / 2^64.
        ((u128::from(random) * u128::from(self.n_starts)) >> 64) as usize
    }
}

/// The fixed windows of an evaluation: starts of at most `eval_tokens / context` windows, evenly
/// spaced over the stream, whose targets do not overlap.
///
/// # Errors
/// [`ModelError::TooShort`] when not even one window fits.
pub fn eval_windows(
    n_tokens: usize,
    context: usize,
    eval_tokens: usize,
) -> Result<Vec<usize>, ModelError> {
    check_length("validation", n_tokens, context)?;
    let n_slots = (n_tokens - 1) / context;
    let n_windows = (eval_tokens / context).clamp(1, n_slots);
    Ok((0..n_windows)
        .map(|window| window * n_slots / n_windows * context)
        .collect())
}

fn check_length(what: &'static str, tokens: usize, context: usize) -> Result<(), ModelError> {
    let needed = context + 1;
    if tokens < needed {
        Err(ModelError::TooShort {
            what,
            tokens,
            needed,
        })
    } else {
        Ok(())
    }
}

/// Whether the walk met a link to a folder that it is in, or to nothing.
fn leads_nowhere(error: &walkdir::Error) -> bool {
    let is_link = error
        .path()
        .is_some_and(|path| fs::symlink_metadata(path).is_ok_and(|it| it.file_type().is_symlink()));
    let unreadable = |error: &std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    let is_gone = error.io_error().is_some_and(|error| !unreadable(error));
    error.loop_ancestor().is_some() || (is_link && is_gone)
}

/// Reads a file that must be UTF-8 without NUL bytes; a byte order mark is no part of its text.
pub(crate) fn read_text(path: &Path) -> Result<String, ModelError> {
    let bytes = read_unchanged(path, || fs::read(path))?;
    let not_text = |bytes: &[u8], offset: usize| ModelError::NotText {
        path: path.to_path_buf(),
        offset,
        byte: bytes[offset],
    };
    if let Some(offset) = bytes.iter().position(|byte| *byte == 0) {
        return Err(not_text(&bytes, offset));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        not_text(error.as_bytes(), offset)
    })?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// Reads a file of which nobody changes length or time meanwhile: half of an old text and half of
/// a new one is not what anyone meant to train on.
fn read_unchanged(
    path: &Path,
    read: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> Result<Vec<u8>, ModelError> {
    let stamp = || -> std::io::Result<_> {
        let metadata = fs::metadata(path)?;
        // A pipe has no fixed length.
        Ok((metadata.is_file(), metadata.len(), metadata.modified().ok()))
    };
    let before = stamp().map_err(ModelError::io("read", path))?;
    let bytes = read().map_err(ModelError::io("read", path))?;
    let after = stamp().map_err(ModelError::io("read", path))?;
    let changed = before != after || bytes.len() as u64 != after.1;
    if after.0 && changed {
        let path = path.to_path_buf();
        return Err(ModelError::ChangingData { path });
    }
    Ok(bytes)
}

fn read_json_lines(path: &Path, content: &str, text_key: &str) -> Result<Vec<String>, ModelError> {
    let lines = content
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let read_line = |(index, line): (usize, &str)| {
        let bad = |reason| ModelError::BadJsonLine {
            path: path.to_path_buf(),
            line: index + 1,
            reason,
        };
        let mut object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        match object.remove(text_key) {
            Some(serde_json::Value::String(text)) => Ok(text),
            Some(_) => Err(bad(format!("'{text_key}' is not a string"))),
            None => {
                let keys: Vec<_> = object.keys().map(String::as_str).collect();
                Err(bad(format!(
                    "no key '{text_key}' among: {}; hint: set data.text_key",
                    keys.join(", ")
                )))
            }
        }
    };
    lines.map(read_line).collect()
}

fn has_text_extension(path: &Path) -> bool {
    extension(path).is_some_and(|it| TEXT_EXTENSIONS.contains(&it.as_str()))
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }

    fn read(folder: &tempfile::TempDir, name: &str) -> Result<Documents, ModelError> {
        Documents::read(&[folder.path().join(name)], "text")
    }

    fn texts(documents: &Documents) -> Vec<&str> {
        (0..documents.len())
            .map(|index| documents.document(index))
            .collect()
    }

    #[test]
    fn folders_come_sorted_without_hidden_and_binary_files() {
        let folder = folder(&[
            ("b.txt", b"bee"),
            ("a/z.rs", b"zed"),
            ("a/b.bin", &[0xff, 0xfe]),
            ("a/empty.rs", b""),
            (
                "a/q.jsonl",
                b"{\"text\": \"one\"}\n\n{\"text\": \"two\", \"n\": 2}\n",
            ),
            (".git/x.txt", b"hidden"),
        ]);
        let documents = read(&folder, "").unwrap();
        assert_eq!(texts(&documents), ["one", "two", "zed", "bee"]);
        assert_eq!(documents.text(), "onetwozedbee");
        assert!(documents.source(1).ends_with("q.jsonl"));
        assert!(documents.source(3).ends_with("b.txt"));
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        let folder = folder(&[
            ("a.txt", "\u{feff}a\u{feff}b".as_bytes()),
            ("b.jsonl", "\u{feff}{\"text\": \"one\"}\r\n".as_bytes()),
            ("c.txt", "\u{feff}".as_bytes()),
        ]);
        assert_eq!(texts(&read(&folder, "a.txt").unwrap()), ["a\u{feff}b"]);
        assert_eq!(texts(&read(&folder, "b.jsonl").unwrap()), ["one"]);
        assert!(read(&folder, "c.txt").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_nowhere_are_passed_over() {
        use std::os::unix::fs::symlink;
        let folder = folder(&[("a.txt", b"here"), ("sub/b.txt", b"there")]);
        let at = |name: &str| folder.path().join(name);
        symlink(".", at("loop")).unwrap();
        symlink("..", at("sub/up")).unwrap();
        symlink("/nonexistent", at("x")).unwrap();
        symlink(at("self"), at("self")).unwrap();
        symlink("a.txt", at("link.txt")).unwrap();
        let found = read(&folder, "").unwrap();
        assert_eq!(texts(&found), ["here", "here", "there"]);
        // One that is named is an error.
        assert!(read(&folder, "x").is_err());
    }

    #[test]
    fn a_file_that_changes_or_vanishes_while_it_is_read_is_named() {
        let folder = folder(&[("a.txt", b"the old text")]);
        let path = folder.path().join("a.txt");
        let while_read = |change: &dyn Fn()| {
            let read = read_unchanged(&path, || {
                let bytes = fs::read(&path);
                change();
                bytes
            });
            read.map_err(|error| error.to_string())
        };
        assert_eq!(while_read(&|| {}).unwrap(), b"the old text");
        let error = while_read(&|| fs::write(&path, "a longer new text").unwrap()).unwrap_err();
        assert!(error.contains("a.txt changed while it was read"), "{error}");
        let error = while_read(&|| fs::write(&path, "cut").unwrap()).unwrap_err();
        assert!(error.contains("a.txt changed while it was read"), "{error}");
        let error = while_read(&|| fs::remove_file(&path).unwrap()).unwrap_err();
        assert!(
            error.contains("cannot read") && error.contains("a.txt"),
            "{error}"
        );
    }

    #[test]
    fn bad_files_are_named_with_the_place() {
        let folder = folder(&[
            ("empty.txt", b""),
            ("latin1.txt", b"caf\xe9 au lait"),
            ("nul.txt", b"abc\0def"),
            ("none/a.bin", &[0xff]),
            ("bad.jsonl", b"{\"text\": \"fine\"}\nnot json\n"),
            ("other.jsonl", b"{\"body\": \"x\", \"id\": 1}\n"),
            ("number.jsonl", b"{\"text\": 1}\n"),
        ]);
        for (name, parts) in [
            ("missing.txt", ["missing.txt", "no such file"]),
            ("empty.txt", ["empty.txt", "holds no text"]),
            ("latin1.txt", ["latin1.txt", "byte 0xe9 at offset 3"]),
            ("nul.txt", ["nul.txt", "byte 0x00 at offset 3"]),
            ("none", ["none", "holds no text"]),
            ("bad.jsonl", ["bad.jsonl line 2", "expected"]),
            ("other.jsonl", ["line 1", "no key 'text' among: body, id"]),
            ("number.jsonl", ["line 1", "'text' is not a string"]),
        ] {
            let error = read(&folder, name).unwrap_err().to_string();
            assert!(
                parts.iter().all(|part| error.contains(part)),
                "{name}: {error}"
            );
        }
        // A broken text file inside a folder is an error, not passed over.
        let error = read(&folder, "").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_tail_is_cut_like_nanogpt_cuts_it() {
        let mut documents = Documents::default();
        documents.push("file".to_string(), ["x".repeat(1_115_394).as_str()]);
        let tail = documents.split_off_tail(0.1);
        assert_eq!(
            (documents.text().len(), tail.text().len()),
            (1_003_854, 111_540)
        );
    }

    #[test]
    fn load_takes_the_vocabulary_from_all_text() {
        let folder = folder(&[("a.txt", b"aaaaaaaaab"), ("b.txt", b"bc")]);
        let mut config = DataConfig {
            train: vec![folder.path().join("a.txt")],
            tokenizer: "chars".to_string(),
            ..Default::default()
        };
        let dataset = Dataset::load(&config, None).unwrap();
        assert_eq!((dataset.train.len(), dataset.val.len()), (9, 1));
        assert_eq!(dataset.tokenizer.vocab_size(), 2);
        config.val = vec![folder.path().join("b.txt")];
        let error = Dataset::load(&config, Some(dataset.tokenizer))
            .unwrap_err()
            .to_string();
        assert!(error.contains("b.txt: character 'c' at byte 1"), "{error}");
        assert_eq!(
            Dataset::load(&config, None).unwrap().tokenizer.vocab_size(),
            3
        );
    }

    #[test]
    fn documents_are_separated_and_bytes_are_accounted() {
        let mut documents = Documents::default();
        documents.push("file".to_string(), ["Hello world", "", "Hello"]);
        let stream = TokenStream::encode(&documents, &Tokenizer::Gpt2).unwrap();
        let mut ids = [0; 4];
        stream.copy_tokens(0, &mut ids);
        assert_eq!((ids, stream.len()), ([15496, 995, 50_256, 15496], 4));
        assert_eq!((stream.text_bytes(), stream.bytes_per_token()), (16, 4.0));
        let stream = TokenStream::encode(&documents, &Tokenizer::Bytes).unwrap();
        assert_eq!(
            (stream.len(), stream.text_bytes(), stream.memory_bytes()),
            (17, 17, 34)
        );
        let chars = Tokenizer::from_spec("chars", [documents.text()]).unwrap();
        let stream = TokenStream::encode(&documents, &chars).unwrap();
        assert_eq!((stream.len(), stream.text_bytes()), (16, 16));
    }

    #[test]
    fn starts_are_a_function_of_the_step_and_cover_the_data() {
        let sampler = Sampler::new(7, 110, 10).unwrap();
        let mut seen = [0; 100];
        for step in 0..100 {
            for sequence in 0..100 {
                seen[sampler.start(step, sequence)] += 1;
            }
        }
        // 100 expected each, standard deviation 10.
        assert!(seen.iter().all(|n| (50..150).contains(n)), "{seen:?}");
        let starts = |seed| {
            (0..20)
                .map(|n| Sampler::new(seed, 110, 10).unwrap().start(3, n))
                .collect::<Vec<_>>()
        };
        assert_eq!(starts(7), starts(7));
        assert_ne!(starts(7), starts(7 << 32));
        assert_ne!(starts(7), starts(8));
    }

    #[test]
    fn too_short_data_says_what_it_needs() {
        let error = Sampler::new(1, 10, 10).unwrap_err().to_string();
        assert!(
            error.contains("training data has 10 tokens, one window needs 11"),
            "{error}"
        );
        assert!(
            eval_windows(10, 10, 100)
                .unwrap_err()
                .to_string()
                .contains("validation")
        );
        assert_eq!(Sampler::new(1, 11, 10).unwrap().start(5, 5), 0);
        assert_eq!(eval_windows(11, 10, 100).unwrap(), [0]);
    }

    proptest! {
        #[test]
        fn splitting_loses_nothing(texts in prop::collection::vec("[aé🦀]{0,6}", 0..6), fraction in 0.01f32..0.99) {
            let mut documents = Documents::default();
            for (index, text) in texts.iter().enumerate() {
                documents.push(index.to_string(), [text.as_str()]);
            }
            let whole = documents.clone();
            let tail = documents.split_off_tail(fraction);
            prop_assert_eq!(format!("{}{}", documents.text(), tail.text()), whole.text());
            let pieces = |documents: &Documents| {
                (0..documents.len()).map(|n| documents.document(n).to_string()).collect::<Vec<_>>()
            };
            prop_assert_eq!(pieces(&documents).concat(), documents.text());
            prop_assert_eq!(pieces(&tail).concat(), tail.text());
            prop_assert!(pieces(&tail).iter().chain(&pieces(&documents)).all(|piece| !piece.is_empty()));
            for index in 0..tail.len() {
                let source: usize = tail.source(index).parse().unwrap();
                prop_assert!(texts[source].ends_with(tail.document(index)));
            }
        }

        #[test]
        fn evaluation_windows_are_disjoint_and_inside(n_tokens in 11usize..5000, context in 1usize..10, eval_tokens in 0usize..6000) {
            let starts = eval_windows(n_tokens, context, eval_tokens).unwrap();
            prop_assert!(!starts.is_empty());
            prop_assert!(starts.windows(2).all(|pair| pair[0] + context <= pair[1]));
            prop_assert!(starts[starts.len() - 1] + context < n_tokens);
            prop_assert!(starts.len() == 1 || starts.len() * context <= eval_tokens);
        }
    }
}
