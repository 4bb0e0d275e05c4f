//! Text to token ids and back: bytes, characters, GPT-2's BPE, any Hugging Face `tokenizer.json`.

mod hugging_face;
mod stream;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

pub use hugging_face::{HuggingFace, TokenizerSettings};
use serde::{Deserialize, Serialize};
pub use stream::StreamDecoder;

use crate::ModelError;

/// The file of a checkpoint that says which tokenizer the model was trained with.
const TOKENIZER_FILE: &str = "primal_tokenizer.json";
const FORMAT_VERSION: u32 = 1;
/// Stands inside the spelling of a control token that is not meant as one; no character of any
/// text.
const MARK: char = '\u{fdd0}';

/// GPT-2's `<|endoftext|>`, the last of its 50,257 tokens.
const GPT2_END_OF_TEXT: u32 = 50_256;
/// Maps text to ids in `0..vocab_size` and back. Cheap to share by reference across threads.
#[derive(Clone, Debug)]
pub enum Tokenizer {
    /// One token per byte of UTF-8: 256 tokens, the ids are the bytes.
    Bytes,
    /// One token per character of the training text.
    Chars(CharVocabulary),
    /// GPT-2's byte-pair encoding, 50,257 tokens, embedded in the program.
    Gpt2,
    /// A Hugging Face `tokenizer.json`.
    HuggingFace(Box<HuggingFace>),
}

impl Tokenizer {
    /// The tokenizer that a config names: `bytes`, `chars`, `gpt2` or the path of a
    /// `tokenizer.json`. Only `chars` looks at `texts`, which must be all the text of the run.
    ///
    /// # Errors
    /// [`ModelError::BadTokenizer`] for anything else, `chars` without any text included.
    pub fn from_spec<'a>(
        spec: &str,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Tokenizer, ModelError> {
        match spec {
            "bytes" => Ok(Tokenizer::Bytes),
            "chars" => Ok(Tokenizer::Chars(CharVocabulary::from_texts(texts)?)),
            "gpt2" => Ok(Tokenizer::Gpt2),
            path => Ok(Tokenizer::HuggingFace(Box::new(HuggingFace::open_file(
                path.as_ref(),
            )?))),
        }
    }

    /// A Hugging Face tokenizer from the content of a `tokenizer.json`; `origin` is what errors
    /// call it.
    ///
    /// # Errors
    /// [`ModelError::BadTokenizer`] for content that is none.
    pub fn hugging_face(
        json: Vec<u8>,
        settings: TokenizerSettings,
        origin: &str,
    ) -> Result<Tokenizer, ModelError> {
        let tokenizer = HuggingFace::new(json, settings, Path::new(origin))?;
        Ok(Tokenizer::HuggingFace(Box::new(tokenizer)))
    }

    /// Writes the tokenizer into a checkpoint folder.
    ///
    /// # Errors
    /// [`ModelError::Io`] when the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let kind = match self {
            Tokenizer::Bytes => StoredKind::Bytes,
            Tokenizer::Chars(vocabulary) => StoredKind::Chars {
                characters: vocabulary.characters.iter().collect(),
            },
            Tokenizer::Gpt2 => StoredKind::Gpt2,
            Tokenizer::HuggingFace(inner) => {
                inner.save(folder)?;
                StoredKind::HuggingFace
            }
        };
        let stored = Stored {
            format_version: FORMAT_VERSION,
            kind,
        };
        let path = folder.join(TOKENIZER_FILE);
        let json = serde_json::to_vec_pretty(&stored).map_err(|error| bad(&path, error))?;
        fs::write(&path, json).map_err(ModelError::io("write", &path))
    }

    /// Reads what [`Tokenizer::save`] wrote, or the `tokenizer.json` of a Hugging Face folder.
    ///
    /// # Errors
    /// A missing or damaged file, or a `format_version` that this program does not know.
    pub fn load(folder: &Path) -> Result<Tokenizer, ModelError> {
        let path = folder.join(TOKENIZER_FILE);
        let hugging_face = || HuggingFace::open_folder(folder).map(Box::new);
        if !path.exists() && HuggingFace::is_in(folder) {
            return Ok(Tokenizer::HuggingFace(hugging_face()?));
        }
        let json = fs::read(&path).map_err(ModelError::io("read", &path))?;
        let stored: Stored = serde_json::from_slice(&json).map_err(|error| bad(&path, error))?;
        if stored.format_version != FORMAT_VERSION {
            let version = stored.format_version;
            return Err(bad(
                &path,
                format!("unknown format_version {version}, expected {FORMAT_VERSION}"),
            ));
        }
        match stored.kind {
            StoredKind::Bytes => Ok(Tokenizer::Bytes),
            StoredKind::Chars { characters } => {
                Ok(Tokenizer::Chars(CharVocabulary::from_texts([
                    characters.as_str()
                ])?))
            }
            StoredKind::Gpt2 => Ok(Tokenizer::Gpt2),
            StoredKind::HuggingFace => Ok(Tokenizer::HuggingFace(hugging_face()?)),
        }
    }

    /// What the tokenizer is, for tables and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Tokenizer::Bytes => "bytes",
            Tokenizer::Chars(_) => "chars",
            Tokenizer::Gpt2 => "gpt2",
            Tokenizer::HuggingFace(_) => "tokenizer.json",
        }
    }

    /// Number of ids; every id that [`Tokenizer::encode`] returns is below it.
    pub fn vocab_size(&self) -> usize {
        match self {
            Tokenizer::Bytes => 256,
            Tokenizer::Chars(vocabulary) => vocabulary.characters.len(),
            Tokenizer::Gpt2 => GPT2_END_OF_TEXT as usize + 1,
            Tokenizer::HuggingFace(inner) => inner.vocab_size,
        }
    }

    /// The token between documents, where the vocabulary has one.
    pub fn end_of_text(&self) -> Option<u32> {
        match self {
            Tokenizer::Bytes | Tokenizer::Chars(_) => None,
            Tokenizer::Gpt2 => Some(GPT2_END_OF_TEXT),
            Tokenizer::HuggingFace(inner) => inner.end_of_text,
        }
    }

    /// The token that the tokenizer wants before every text, as Llama's do.
    pub fn start_of_text(&self) -> Option<u32> {
        match self {
            Tokenizer::HuggingFace(inner) => inner.start_of_text,
            _ => None,
        }
    }

    /// Whether a token ends what a model writes: the end of a text, or of a turn in a chat.
    pub fn is_end(&self, token: u32) -> bool {
        let named = match self {
            Tokenizer::HuggingFace(inner) => inner.ends.contains(&token),
            _ => false,
        };
        named || self.end_of_text() == Some(token)
    }

    /// Every token that ends what a model writes, by its files, the chief one first; where they
    /// name none, the end of a text.
    pub fn ends(&self) -> Vec<u32> {
        match self {
            Tokenizer::HuggingFace(inner) if !inner.ends.is_empty() => inner.ends.clone(),
            _ => self.end_of_text().into_iter().collect(),
        }
    }

    /// The token that a Hugging Face tokenizer calls the start of a text.
    pub fn bos_token(&self) -> Option<u32> {
        match self {
            Tokenizer::HuggingFace(inner) => inner.bos,
            _ => None,
        }
    }

    /// The token that ends what a model writes: that of a turn where there is one.
    pub fn eos_token(&self) -> Option<u32> {
        self.ends().first().copied()
    }

    /// The content of its `tokenizer.json`, if it has one.
    pub(crate) fn hugging_face_json(&self) -> Option<&[u8]> {
        match self {
            Tokenizer::HuggingFace(inner) => Some(&inner.json),
            _ => None,
        }
    }

    /// Writes the files that other tools read; nothing for the tokenizers that have none.
    pub(crate) fn save_hugging_face(&self, folder: &Path) -> Result<(), ModelError> {
        match self {
            Tokenizer::HuggingFace(inner) => inner.save(folder),
            _ => Ok(()),
        }
    }

    /// What a Hugging Face folder says beside the vocabulary.
    pub fn settings(&self) -> Option<&TokenizerSettings> {
        match self {
            Tokenizer::HuggingFace(inner) => Some(&inner.settings),
            _ => None,
        }
    }

    /// Token ids of a text. No start or end token is added, and the spelling of a special token
    /// inside the text is ordinary text to `bytes`, `chars` and `gpt2`.
    ///
    /// # Errors
    /// [`ModelError::UnknownCharacter`] under `chars`; an error of the tokenizer's own rules.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        match self {
            Tokenizer::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Tokenizer::Chars(vocabulary) => vocabulary.encode(text),
            Tokenizer::Gpt2 => Ok(encode_gpt2(text)),
            Tokenizer::HuggingFace(inner) => {
                let encoding = inner.tokenizer.encode_fast(text, false).map_err(foreign)?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// A text in which no control token is spelled any more: a mark stands inside each spelling,
    /// where [`Tokenizer::encode_marked`] cuts.
    pub(crate) fn mark_control_tokens<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let Tokenizer::HuggingFace(inner) = self else {
            return Cow::Borrowed(text);
        };
        let spelled = |rest: &str| inner.control.iter().any(|token| rest.starts_with(token));
        let clean =
            !text.contains(MARK) && !text.char_indices().any(|(at, _)| spelled(&text[at..]));
        if clean {
            return Cow::Borrowed(text);
        }
        let mut marked = String::with_capacity(text.len() + 8);
        for (at, character) in text.char_indices() {
            marked.push(if character == MARK {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            });
            if spelled(&text[at..]) {
                marked.push(MARK);
            }
        }
        Cow::Owned(marked)
    }

    /// Token ids of a text with marks: what lies before one and what lies behind it make no token
    /// together.
    pub(crate) fn encode_marked(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        if !matches!(self, Tokenizer::HuggingFace(_)) {
            return self.encode(text);
        }
        let mut ids = Vec::new();
        for part in text.split(MARK).filter(|part| !part.is_empty()) {
            ids.extend(self.encode(part)?);
        }
        Ok(ids)
    }

    /// Token ids of a text that somebody wrote: the spelling of a control token is letters.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_spoken(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_marked(&self.mark_control_tokens(text))
    }

    /// The text of some ids. Bytes that are not UTF-8, which a model can produce, become U+FFFD.
    ///
    /// # Errors
    /// [`ModelError::UnknownToken`] for an id outside the vocabulary.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        if let Tokenizer::HuggingFace(inner) = self {
            self.check(tokens)?;
            return inner.tokenizer.decode(tokens, false).map_err(foreign);
        }
        let mut bytes = Vec::with_capacity(2 * tokens.len());
        for token in tokens {
            self.push_bytes(*token, &mut bytes)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A decoder that takes ids one at a time and never splits a character.
    pub fn stream_decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Appends the bytes that a token stands for; not for Hugging Face tokenizers, whose tokens
    /// have no bytes of their own.
    fn push_bytes(&self, token: u32, bytes: &mut Vec<u8>) -> Result<(), ModelError> {
        let unknown = || ModelError::UnknownToken {
            token,
            vocab_size: self.vocab_size(),
        };
        match self {
            Tokenizer::Bytes => bytes.push(u8::try_from(token).map_err(|_| unknown())?),
            Tokenizer::Chars(vocabulary) => {
                let character = vocabulary
                    .characters
                    .get(token as usize)
                    .ok_or_else(unknown)?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            Tokenizer::Gpt2 => {
                let piece = tiktoken_rs::r50k_base_singleton().decode_bytes(&[token]);
                bytes.extend(piece.map_err(|_| unknown())?);
            }
            Tokenizer::HuggingFace(_) => {
                return Err(ModelError::Tokenizer(
                    "tokens have no bytes of their own".to_string(),
                ));
            }
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), ModelError> {
        let vocab_size = self.vocab_size();
        match tokens.iter().find(|token| **token as usize >= vocab_size) {
            Some(&token) => Err(ModelError::UnknownToken { token, vocab_size }),
            None => Ok(()),
        }
    }
}

/// The characters of a text in code point order; a character's id is its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CharVocabulary {
    characters: Vec<char>,
    ids: HashMap<char, u32>,
}

impl CharVocabulary {
    /// Every character that occurs in `texts`.
    ///
    /// # Errors
    /// [`ModelError::BadTokenizer`] when there is no character at all.
    pub fn from_texts<'a>(
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<CharVocabulary, ModelError> {
        let characters: BTreeSet<char> = texts.into_iter().flat_map(str::chars).collect();
        if characters.is_empty() {
            let (spec, reason) = (
                "chars".to_string(),
                "there is no text to build it from".to_string(),
            );
            return Err(ModelError::BadTokenizer { spec, reason });
        }
        let characters: Vec<char> = characters.into_iter().collect();
        let ids = characters.iter().copied().zip(0..).collect();
        Ok(CharVocabulary { characters, ids })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let id_of = |(offset, character): (usize, char)| {
            self.ids
                .get(&character)
                .copied()
                .ok_or(ModelError::UnknownCharacter {
                    character,
                    offset,
                    known: self.characters.len(),
                })
        };
        text.char_indices().map(id_of).collect()
    }
}

/// GPT-2's ids. Its splitting rule backtracks over white space, and its library gives up (with a
/// panic) on a run of about a million; such runs are cut into pieces that are encoded alone.
fn encode_gpt2(text: &str) -> Vec<u32> {
    const LONGEST_RUN_BYTES: usize = 64 * 1024;
    let bpe = tiktoken_rs::r50k_base_singleton();
    let mut ids = Vec::with_capacity(text.len() / 3);
    let (mut start, mut run) = (0, 0);
    for (at, character) in text.char_indices() {
        run = if character.is_whitespace() {
            run + character.len_utf8()
        } else {
            0
        };
        if run >= LONGEST_RUN_BYTES {
            ids.extend(bpe.encode_ordinary(&text[start..at]));
            (start, run) = (at, 0);
        }
    }
    ids.extend(bpe.encode_ordinary(&text[start..]));
    ids
}

/// The content of [`TOKENIZER_FILE`].
#[derive(Serialize, Deserialize)]
struct Stored {
    format_version: u32,
    kind: StoredKind,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StoredKind {
    Bytes,
    Chars { characters: String },
    Gpt2,
    HuggingFace,
}

fn bad(path: &Path, reason: impl ToString) -> ModelError {
    ModelError::BadTokenizer {
        spec: path.display().to_string(),
        reason: reason.to_string(),
    }
}

fn foreign(error: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(error.to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "To be, or not to be: naïve 日本語 🦀!\n\tfn main() {}\r\n";

    /// A byte-level BPE of all 256 bytes, two merges and two special tokens.
    fn hugging_face_json() -> String {
        let mut printable: Vec<u32> = (33..127).chain(161..173).chain(174..256).collect();
        let missing: Vec<u32> = (0..256).filter(|byte| !printable.contains(byte)).collect();
        printable.extend((0..missing.len() as u32).map(|n| 256 + n));
        let mut vocab: Vec<String> = printable
            .iter()
            .filter_map(|c| char::from_u32(*c))
            .map(String::from)
            .collect();
        vocab.extend(["to".to_string(), "be".to_string()]);
        let vocab: serde_json::Map<String, serde_json::Value> = vocab
            .into_iter()
            .zip(0..)
            .map(|(piece, id)| (piece, id.into()))
            .collect();
        serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": null,
            "added_tokens": [{"id": 258, "content": "<|endoftext|>", "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": vocab, "merges": [["t", "o"], ["b", "e"]]}
        })
        .to_string()
    }

    /// That tokenizer.
    pub(super) fn byte_level() -> Tokenizer {
        let settings = TokenizerSettings::default();
        Tokenizer::hugging_face(hugging_face_json().into_bytes(), settings, "test").unwrap()
    }

    #[test]
    fn what_people_write_is_no_control_token() {
        let tokenizer = byte_level();
        for text in [
            "<|endoftext|>",
            "a<|endoftext|><|endoftext|>b",
            "<|endof<|endoftext|>text|>",
            "<<|endoftext|>",
            "x\u{fdd0}<|endoftext|>",
        ] {
            assert!(tokenizer.encode(text).unwrap().contains(&258), "{text}");
            let spoken = tokenizer.encode_spoken(text).unwrap();
            assert!(!spoken.contains(&258), "{text}");
            let shown = text.replace('\u{fdd0}', "\u{fffd}");
            assert_eq!(tokenizer.decode(&spoken).unwrap(), shown);
        }
        let plain = "to be <|or|> not";
        assert_eq!(
            tokenizer.encode_spoken(plain).unwrap(),
            tokenizer.encode(plain).unwrap()
        );
    }

    #[test]
    fn every_end_that_the_files_name_ends_a_reply_and_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("tokenizer.json", &hugging_face_json());
        write("tokenizer_config.json", r#"{"eos_token": "to"}"#);
        write("config.json", r#"{"eos_token_id": 3, "bos_token_id": 7}"#);
        write(
            "generation_config.json",
            r#"{"eos_token_id": [3, 5, 258, 9999, -1]}"#,
        );
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(tokenizer.ends(), [256, 3, 5, 258]);
        assert_eq!(
            (tokenizer.bos_token(), tokenizer.eos_token()),
            (Some(7), Some(256))
        );
        let ends = |tokenizer: &Tokenizer| -> Vec<u32> {
            (0..259).filter(|id| tokenizer.is_end(*id)).collect()
        };
        assert_eq!(ends(&tokenizer), [3, 5, 256, 258]);
        let again = tempfile::tempdir().unwrap();
        tokenizer.save(again.path()).unwrap();
        let loaded = Tokenizer::load(again.path()).unwrap();
        assert_eq!(loaded.ends(), tokenizer.ends());
        assert_eq!(loaded.bos_token(), Some(7));
        // Without a name in the settings, the number of the model's file.
        write("tokenizer_config.json", "{}");
        write("generation_config.json", r#"{"eos_token_id": null}"#);
        assert_eq!(Tokenizer::load(folder.path()).unwrap().ends(), [3]);
        write("generation_config.json", "[");
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json"), "{error}");
    }

    fn every_tokenizer() -> Vec<Tokenizer> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        fs::write(&path, hugging_face_json()).unwrap();
        ["bytes", "chars", "gpt2", path.to_str().unwrap()]
            .map(|spec| Tokenizer::from_spec(spec, [TEXT]).unwrap())
            .to_vec()
    }

    #[test]
    fn a_merge_shorter_than_the_prefix_of_continued_words_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let named = |prefix: &str, merges: &str| {
            let json = hugging_face_json();
            let prefix = format!("\"continuing_subword_prefix\":\"{prefix}\"");
            let json = json.replace("\"continuing_subword_prefix\":null", &prefix);
            let json = json.replace(r#"[["t","o"],["b","e"]]"#, merges);
            fs::write(&path, json).unwrap();
            Tokenizer::from_spec(path.to_str().unwrap(), [TEXT])
        };
        for (prefix, merges) in [
            ("##", r#"[["t","o"]]"#),
            ("##", r#"["t o"]"#),
            ("#", r#"[["t","é"]]"#),
        ] {
            let error = named(prefix, merges).unwrap_err().to_string();
            assert!(error.contains("prefix of a continued word"), "{error}");
        }
        assert!(named("", r#"["t o"]"#).is_ok());
    }

    #[test]
    fn every_tokenizer_round_trips_and_streams_the_same() {
        for tokenizer in every_tokenizer() {
            let name = tokenizer.name();
            let ids = tokenizer.encode(TEXT).unwrap();
            assert!(
                ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()),
                "{name}"
            );
            assert_eq!(tokenizer.decode(&ids).unwrap(), TEXT, "{name}");
            let mut stream = tokenizer.stream_decoder();
            let mut text = String::new();
            for id in ids {
                text.push_str(&stream.push(id).unwrap());
            }
            text.push_str(&stream.finish());
            assert_eq!(text, TEXT, "{name}");
            assert!(tokenizer.encode("").unwrap().is_empty(), "{name}");
            assert_eq!(tokenizer.decode(&[]).unwrap(), "", "{name}");
        }
    }

    #[test]
    fn saved_tokenizers_load_as_they_were() {
        for tokenizer in every_tokenizer() {
            let folder = tempfile::tempdir().unwrap();
            tokenizer.save(folder.path()).unwrap();
            let loaded = Tokenizer::load(folder.path()).unwrap();
            assert_eq!(loaded.name(), tokenizer.name());
            assert_eq!(loaded.vocab_size(), tokenizer.vocab_size());
            assert_eq!(loaded.end_of_text(), tokenizer.end_of_text());
            assert_eq!(
                loaded.encode(TEXT).unwrap(),
                tokenizer.encode(TEXT).unwrap()
            );
        }
    }

    #[test]
    fn gpt2_gives_the_published_ids() {
        let gpt2 = Tokenizer::Gpt2;
        assert_eq!(gpt2.vocab_size(), 50_257);
        assert_eq!(gpt2.encode("Hello world").unwrap(), [15496, 995]);
        assert_eq!(gpt2.decode(&[GPT2_END_OF_TEXT]).unwrap(), "<|endoftext|>");
        // The spelling of a special token in a text must not end a document.
        assert!(
            !gpt2
                .encode("<|endoftext|>")
                .unwrap()
                .contains(&GPT2_END_OF_TEXT)
        );
    }

    #[test]
    fn gpt2_survives_endless_white_space() {
        let text = format!("a{}b", " ".repeat(3_000_000));
        let ids = Tokenizer::Gpt2.encode(&text).unwrap();
        assert_eq!(Tokenizer::Gpt2.decode(&ids).unwrap(), text);
    }

    #[test]
    fn hugging_face_keeps_long_texts_and_finds_its_special_token() {
        let tokenizer = every_tokenizer().pop().unwrap();
        assert_eq!(tokenizer.vocab_size(), 259);
        assert_eq!(tokenizer.end_of_text(), Some(258));
        assert_eq!(tokenizer.encode("tobe or not").unwrap().len(), 9);
    }

    #[test]
    fn foreign_input_is_named() {
        let chars = Tokenizer::from_spec("chars", ["abc"]).unwrap();
        assert_eq!(chars.encode("cab").unwrap(), [2, 0, 1]);
        let error = chars.encode("abéa").unwrap_err().to_string();
        assert!(error.contains("'é' at byte 2"), "{error}");
        for tokenizer in every_tokenizer() {
            let token = tokenizer.vocab_size() as u32;
            let error = tokenizer.decode(&[token]).unwrap_err().to_string();
            assert!(error.contains(&token.to_string()), "{error}");
            assert!(tokenizer.stream_decoder().push(token).is_err());
        }
    }

    #[test]
    fn bad_files_are_named() {
        let error = Tokenizer::from_spec("byte", [""]).unwrap_err().to_string();
        assert!(
            error.contains("'byte'") && error.contains("hint:"),
            "{error}"
        );
        assert!(Tokenizer::from_spec("chars", [""]).is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(Tokenizer::load(folder.path()).is_err());
        for content in ["", "{}", r#"{"format_version": 9, "kind": "bytes"}"#] {
            fs::write(folder.path().join(TOKENIZER_FILE), content).unwrap();
            let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(TOKENIZER_FILE), "{error}");
        }
        let broken = folder.path().join("broken.json");
        fs::write(&broken, "{\"model\": 3}").unwrap();
        let error = Tokenizer::from_spec(broken.to_str().unwrap(), [""])
            .unwrap_err()
            .to_string();
        assert!(error.contains("broken.json"), "{error}");
    }

    proptest! {
        #[test]
        fn streaming_bytes_equals_decoding_them_at_once(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let ids: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
            let mut stream = Tokenizer::Bytes.stream_decoder();
            let mut text = String::new();
            for id in &ids {
                text.push_str(&stream.push(*id).unwrap());
            }
            text.push_str(&stream.finish());
            prop_assert_eq!(text, Tokenizer::Bytes.decode(&ids).unwrap());
        }

        #[test]
        fn any_text_round_trips(text in "\\PC{0,40}") {
            for tokenizer in [Tokenizer::Bytes, Tokenizer::Gpt2] {
                let ids = tokenizer.encode(&text).unwrap();
                prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.as_str());
            }
        }
    }
}
