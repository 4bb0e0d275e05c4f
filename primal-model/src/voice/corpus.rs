//! Speech corpora: LJSpeech's layout (`metadata.csv`, `wavs/`) with an alignment beside it.
//!
//! `alignment.jsonl` has a line an utterance: `{"id", "symbols": [..], "frames": [..]}` with the
//! names of [`Symbol`] and the frames of each at the vocoder's hop, silences at both ends included.
//! `metadata.csv` has lines `id|text|normalised text`; the last is what is spoken.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Symbol;
use super::VoiceError;

/// Most frames of an utterance: three minutes; more is a damaged file.
const MAX_FRAMES: u64 = 16_384;

/// One recorded sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utterance {
    /// The name, as in `wavs/ID.wav`.
    pub id: String,
    /// What is spoken, numbers written out.
    pub text: String,
    /// The recording.
    pub wav: PathBuf,
    /// Symbols and their frames, where an alignment is there.
    pub alignment: Option<Alignment>,
}

/// The symbols of an utterance and how long each lasts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Alignment {
    /// The symbols, from [`Symbol::BEGIN`] to [`Symbol::END`].
    pub symbols: Vec<Symbol>,
    /// Frames of each symbol.
    pub frames: Vec<u32>,
}

#[derive(Deserialize)]
struct AlignmentRow {
    id: String,
    symbols: Vec<String>,
    frames: Vec<u32>,
}

/// Reads the lists of a corpus folder, in the order of `metadata.csv`. Recordings are not opened.
///
/// # Errors
/// [`VoiceError::Io`] for files that cannot be read, [`VoiceError::Corpus`] for lines that say
/// something impossible, with file and line.
pub fn read_corpus(folder: &Path) -> Result<Vec<Utterance>, VoiceError> {
    let metadata = folder.join("metadata.csv");
    let text = read(&metadata)?;
    let mut alignments = read_alignments(&folder.join("alignment.jsonl"))?;
    let mut utterances = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fail = |reason: String| corpus_error(&metadata, index, reason);
        let mut fields = line.split('|');
        let (Some(id), Some(written)) = (fields.next(), fields.next()) else {
            return Err(fail(
                "is not `id|text` or `id|text|normalised text`".to_owned(),
            ));
        };
        // The name becomes a path: nothing that leaves the folder.
        if id.is_empty() || id.contains(['/', '\\']) || id.starts_with('.') {
            return Err(fail(format!("`{id}` cannot be the name of a recording")));
        }
        let spoken = fields.next().filter(|it| !it.is_empty()).unwrap_or(written);
        utterances.push(Utterance {
            id: id.to_owned(),
            text: spoken.to_owned(),
            wav: folder.join("wavs").join(format!("{id}.wav")),
            alignment: alignments.remove(id),
        });
    }
    if let Some(id) = alignments.keys().min() {
        let reason = format!("`{id}` is not in metadata.csv");
        return Err(corpus_error(&folder.join("alignment.jsonl"), 0, reason));
    }
    Ok(utterances)
}

/// The alignments by id; none where the file is absent.
fn read_alignments(path: &Path) -> Result<HashMap<String, Alignment>, VoiceError> {
    let mut alignments = HashMap::new();
    if !path.exists() {
        return Ok(alignments);
    }
    for (index, line) in read(path)?.lines().enumerate() {
        let fail = |reason: String| corpus_error(path, index, reason);
        let row: AlignmentRow =
            serde_json::from_str(line).map_err(|error| fail(error.to_string()))?;
        let symbols: Vec<Symbol> = row
            .symbols
            .iter()
            .map(|name| {
                Symbol::from_name(name).ok_or_else(|| fail(format!("`{name}` is no symbol")))
            })
            .collect::<Result<_, _>>()?;
        let total: u64 = row.frames.iter().map(|&frames| u64::from(frames)).sum();
        if symbols.len() != row.frames.len() || symbols.is_empty() {
            let (symbols, frames) = (symbols.len(), row.frames.len());
            return Err(fail(format!(
                "has {symbols} symbols and {frames} numbers of frames"
            )));
        }
        if !(1..=MAX_FRAMES).contains(&total) {
            return Err(fail(format!("{total} frames are not 1 to {MAX_FRAMES}")));
        }
        let frames = row.frames;
        if alignments
            .insert(row.id.clone(), Alignment { symbols, frames })
            .is_some()
        {
            return Err(fail(format!("`{}` is there twice", row.id)));
        }
    }
    Ok(alignments)
}

fn read(path: &Path) -> Result<String, VoiceError> {
    fs::read_to_string(path).map_err(|source| VoiceError::Io {
        path: path.to_owned(),
        source,
    })
}

fn corpus_error(path: &Path, index: usize, reason: String) -> VoiceError {
    VoiceError::Corpus {
        path: path.to_owned(),
        line: index + 1,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(metadata: &str, alignment: Option<&str>) -> Result<Vec<Utterance>, VoiceError> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metadata.csv"), metadata).unwrap();
        if let Some(alignment) = alignment {
            fs::write(folder.path().join("alignment.jsonl"), alignment).unwrap();
        }
        read_corpus(folder.path())
    }

    #[test]
    fn both_layouts_are_read() {
        let lj = corpus(
            "LJ001-0001|Printing, in 1440|Printing, in fourteen forty\nLJ2|so\n",
            None,
        );
        let lj = lj.unwrap();
        assert_eq!(
            (lj.len(), &*lj[0].text, &*lj[1].text),
            (2, "Printing, in fourteen forty", "so")
        );
        assert!(lj[0].wav.ends_with("wavs/LJ001-0001.wav") && lj[0].alignment.is_none());

        let row = r#"{"id": "1", "symbols": ["<bos>", "S", "OW1", ".", "<eos>"], "frames": [3, 9, 14, 0, 20]}"#;
        let ours = corpus("1|so|so\n", Some(row)).unwrap();
        let alignment = ours[0].alignment.as_ref().unwrap();
        assert_eq!(alignment.symbols[0], Symbol::BEGIN);
        assert_eq!(alignment.frames, [3, 9, 14, 0, 20]);
    }

    #[test]
    fn damaged_lists_are_explained() {
        for (metadata, alignment, words) in [
            ("only an id\n", None, "line 1 is not `id|text`"),
            ("../../x|text\n", None, "`../../x` cannot be"),
            ("1|a\n", Some("{"), "alignment.jsonl: line 1 "),
            (
                "1|a\n",
                Some(r#"{"id": "1", "symbols": ["QQ"], "frames": [1]}"#),
                "`QQ` is no symbol",
            ),
            (
                "1|a\n",
                Some(r#"{"id": "1", "symbols": ["B"], "frames": [1, 2]}"#),
                "1 symbols and 2",
            ),
            (
                "1|a\n",
                Some(r#"{"id": "1", "symbols": ["B"], "frames": [4000000000]}"#),
                "4000000000 frames",
            ),
            (
                "1|a\n",
                Some(r#"{"id": "2", "symbols": ["B"], "frames": [1]}"#),
                "`2` is not in",
            ),
        ] {
            let error = corpus(metadata, alignment).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(matches!(
            read_corpus(Path::new("/nowhere")),
            Err(VoiceError::Io { .. })
        ));
    }
}
