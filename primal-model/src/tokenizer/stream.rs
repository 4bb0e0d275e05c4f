//! Ids to text one at a time, for printing while a model writes.

use super::{HuggingFace, Tokenizer};
use crate::ModelError;

/// Tokens that may wait for the rest of a character: none has more bytes than four.
const MOST_HELD: usize = 8;

/// Turns ids into text one at a time. Bytes that make no character become U+FFFD, and the text
/// goes on behind them.
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Bytes of a character that is not complete yet.
    pending: Vec<u8>,
    words: Words,
}

/// The tokens of a Hugging Face tokenizer that stand for more than a byte.
#[derive(Default)]
struct Words {
    /// The tokens of the last piece of text, then those that are not shown yet.
    ids: Vec<u32>,
    /// How many of them are shown, and as what.
    n_shown: usize,
    shown: String,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        StreamDecoder {
            tokenizer,
            pending: Vec::new(),
            words: Words::default(),
        }
    }

    /// The text that is certain after this token: empty while a character is incomplete.
    ///
    /// # Errors
    /// [`ModelError::UnknownToken`] for an id outside the vocabulary.
    pub fn push(&mut self, token: u32) -> Result<String, ModelError> {
        let Tokenizer::HuggingFace(inner) = self.tokenizer else {
            self.tokenizer.push_bytes(token, &mut self.pending)?;
            return Ok(take_complete(&mut self.pending));
        };
        self.tokenizer.check(&[token])?;
        if let Some(byte) = inner.byte(token) {
            let mut text = self.words.rest(self.tokenizer)?;
            self.pending.push(byte);
            text += &take_complete(&mut self.pending);
            self.words.follow_bytes(inner);
            return Ok(text);
        }
        let mut text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text += &self.words.push(self.tokenizer, token)?;
        Ok(text)
    }

    /// What is left at the end: U+FFFD for a character that never became complete.
    pub fn finish(mut self) -> String {
        // An error was one of `push` before.
        let words = self.words.rest(self.tokenizer).unwrap_or_default();
        words + &String::from_utf8_lossy(&self.pending)
    }
}

impl Words {
    fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<String, ModelError> {
        self.ids.push(token);
        let text = tokenizer.decode(&self.ids)?;
        let held = self.ids.len() - self.n_shown;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && held < MOST_HELD {
            return Ok(String::new());
        }
        self.show(tokenizer, &text)
    }

    /// What is not shown yet, complete or not.
    fn rest(&mut self, tokenizer: &Tokenizer) -> Result<String, ModelError> {
        if self.n_shown == self.ids.len() {
            return Ok(String::new());
        }
        let text = tokenizer.decode(&self.ids)?;
        self.show(tokenizer, &text)
    }

    /// Takes all of `text` as shown and returns what is new in it. Its last tokens stay, since how
    /// a token reads depends on whether it begins a text.
    fn show(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<String, ModelError> {
        let pairs = text.char_indices().zip(self.shown.chars());
        let same = pairs.take_while(|((_, new), old)| new == old);
        let end = same.map(|((at, new), _)| at + new.len_utf8()).last();
        let new = text[end.unwrap_or(0)..].to_owned();
        self.ids.drain(..self.n_shown);
        self.n_shown = self.ids.len();
        self.shown = tokenizer.decode(&self.ids)?;
        Ok(new)
    }

    /// Bytes were written: what comes next does not begin the text.
    fn follow_bytes(&mut self, inner: &HuggingFace) {
        if self.ids.is_empty()
            && let Some(letter) = inner.letter
        {
            self.ids = vec![letter];
            self.n_shown = 1;
            self.shown = "A".to_owned();
        }
    }
}

/// Takes everything off the front that later bytes cannot change; invalid bytes become U+FFFD.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_the_end = taken + invalid.len() == pending.len();
        if at_the_end && may_continue(invalid) {
            break;
        }
        if !invalid.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            taken += invalid.len();
        }
    }
    pending.drain(..taken);
    text
}

/// Whether the bytes are the start of a character that more bytes can complete.
fn may_continue(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tokenizer::TokenizerSettings;

    /// A SentencePiece vocabulary of all bytes and some words.
    fn sentence_piece() -> Tokenizer {
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let words = ["▁and", "▁", "a", "é"].map(str::to_owned);
        let vocab: serde_json::Map<_, _> = bytes
            .chain(words)
            .enumerate()
            .map(|(id, text)| (text, json!(id)))
            .collect();
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": { "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": [] },
        });
        let settings = TokenizerSettings::default();
        Tokenizer::hugging_face(json.to_string().into_bytes(), settings, "test").unwrap()
    }

    fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let mut stream = tokenizer.stream_decoder();
        let mut text = String::new();
        for id in ids {
            text += &stream.push(*id).unwrap();
        }
        text + &stream.finish()
    }

    #[test]
    fn bytes_that_are_cut_off_are_replaced_and_the_text_goes_on() {
        let tokenizer = sentence_piece();
        let (and, space, a) = (256, 257, 258);
        for (ids, expected) in [
            (&[0x0a, 0xf0, 0x9f, and][..], "\n\u{fffd} and"),
            (&[and, and], "and and"),
            (&[and, 0xc3, 0xa9, and], "andé and"),
            (&[and, 0xf0], "and\u{fffd}"),
            (&[0xf0, 0x9f, 0xa6, 0x80, a], "🦀a"),
            (&[a, 0xff, 0xff, a], "a\u{fffd}\u{fffd}a"),
            (&[0x80, space, a], "\u{fffd} a"),
            (&[a, 0xe2, 0x82, 0x41], "a\u{fffd}A"),
            (&[], ""),
        ] {
            assert_eq!(stream(&tokenizer, ids), expected, "{ids:?}");
        }
    }

    #[test]
    fn a_byte_level_text_keeps_its_incomplete_end() {
        let tokenizer = crate::tokenizer::tests::byte_level();
        let crab = tokenizer.encode("a🦀").unwrap();
        assert_eq!(stream(&tokenizer, &crab), "a🦀");
        assert_eq!(stream(&tokenizer, &crab[..3]), "a\u{fffd}");
        // Bytes that never make a character, without end: they do not pile up.
        let broken = vec![crab[1]; 1000];
        let text = stream(&tokenizer, &broken);
        assert_eq!(text.chars().count(), 1000);
        let mut mixed = broken[..20].to_vec();
        mixed.extend(&crab);
        assert!(stream(&tokenizer, &mixed).ends_with("\u{fffd}a🦀"));
    }
}
