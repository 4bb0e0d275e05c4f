//! Token ids of a text, end to end, and the windows that are cut from them.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Documents;
use crate::ModelError;
use crate::tokenizer::Tokenizer;

/// The token ids of a text, 2 bytes each where the vocabulary allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenStream {
    ids: Ids,
    text_bytes: u64,
    /// Which tokens carry loss; `None`: all of them.
    is_answer: Option<Vec<bool>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ids {
    Narrow(Vec<u16>),
    Wide(Vec<u32>),
}

impl TokenStream {
    /// Tokenises documents in order. Between two of them stands the tokenizer's end-of-text
    /// token, or a line break where it has none.
    ///
    /// # Errors
    /// [`ModelError::Document`] with the file whose text the tokenizer refuses.
    pub fn encode(documents: &Documents, tokenizer: &Tokenizer) -> Result<TokenStream, ModelError> {
        /// Documents that are tokenised at once; bounds the memory of the 4-byte ids.
        const AT_ONCE: usize = 32;
        let mut ids = Ids::new(tokenizer.vocab_size());
        let (separator, separator_bytes) = match tokenizer.end_of_text() {
            Some(token) => (vec![token], 0),
            // A character vocabulary without line breaks has nothing to put between documents.
            None => tokenizer
                .encode("\n")
                .map_or((Vec::new(), 0), |ids| (ids, 1)),
        };
        let mut text_bytes = documents.text.len() as u64;
        for first in (0..documents.len()).step_by(AT_ONCE) {
            let chunk = first..(first + AT_ONCE).min(documents.len());
            let encode = |index| tokenizer.encode(documents.document(index));
            let encoded: Vec<_> = chunk.clone().into_par_iter().map(encode).collect();
            for (index, tokens) in chunk.zip(encoded) {
                let tokens = tokens.map_err(|error| ModelError::Document {
                    document: documents.source(index).to_string(),
                    source: Box::new(error),
                })?;
                if index > 0 {
                    ids.extend(&separator);
                    text_bytes += separator_bytes;
                }
                ids.extend(&tokens);
            }
        }
        ids.shrink_to_fit();
        Ok(TokenStream {
            ids,
            text_bytes,
            is_answer: None,
        })
    }

    /// Tokens of which some, by their marks, carry loss.
    pub(crate) fn with_answers(
        tokens: &[u32],
        is_answer: Vec<bool>,
        text_bytes: u64,
        vocab_size: usize,
    ) -> TokenStream {
        let mut ids = Ids::new(vocab_size);
        ids.extend(tokens);
        TokenStream {
            ids,
            text_bytes,
            is_answer: Some(is_answer),
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        match &self.ids {
            Ids::Narrow(ids) => ids.len(),
            Ids::Wide(ids) => ids.len(),
        }
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of UTF-8 that the tokens stand for.
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// Mean bytes of UTF-8 behind a token: bits per byte = nats per token / (ln 2 · this).
    pub fn bytes_per_token(&self) -> f64 {
        self.text_bytes as f64 / self.len().max(1) as f64
    }

    /// Memory of the ids.
    pub fn memory_bytes(&self) -> u64 {
        let marks = self.is_answer.as_ref().map_or(0, Vec::capacity) as u64;
        marks
            + match &self.ids {
                Ids::Narrow(ids) => 2 * ids.capacity() as u64,
                Ids::Wide(ids) => 4 * ids.capacity() as u64,
            }
    }

    /// Copies the `out.len()` tokens that start at `start`.
    ///
    /// # Panics
    /// When they reach beyond the end of the stream.
    pub fn copy_tokens(&self, start: usize, out: &mut [u32]) {
        let range = start..start + out.len();
        match &self.ids {
            Ids::Narrow(ids) => {
                for (out, id) in out.iter_mut().zip(&ids[range]) {
                    *out = u32::from(*id);
                }
            }
            Ids::Wide(ids) => out.copy_from_slice(&ids[range]),
        }
    }

    /// Copies one window: `inputs` are the tokens from `start`, `targets` those one later,
    /// `u32::MAX` where they carry no loss.
    ///
    /// # Panics
    /// When the lengths differ or the window reaches beyond the end of the stream.
    pub fn copy_window(&self, start: usize, inputs: &mut [u32], targets: &mut [u32]) {
        assert_eq!(
            inputs.len(),
            targets.len(),
            "a window has one target per input"
        );
        self.copy_tokens(start, inputs);
        self.copy_tokens(start + 1, targets);
        if let Some(is_answer) = &self.is_answer {
            for (target, is_answer) in targets.iter_mut().zip(&is_answer[start + 1..]) {
                if !is_answer {
                    *target = u32::MAX;
                }
            }
        }
    }

    /// SHA-256 over the ids, and over what carries loss where not all do, in hexadecimal: equal exactly for equal streams. A resumed run
    /// compares it.
    pub fn fingerprint(&self) -> String {
        const AT_ONCE: usize = 4096;
        let mut hasher = Sha256::new();
        let mut bytes = [0u8; 4 * AT_ONCE];
        let mut tokens = [0u32; AT_ONCE];
        for start in (0..self.len()).step_by(AT_ONCE) {
            let tokens = &mut tokens[..AT_ONCE.min(self.len() - start)];
            self.copy_tokens(start, tokens);
            for (out, token) in bytes.chunks_exact_mut(4).zip(tokens.iter()) {
                out.copy_from_slice(&token.to_le_bytes());
            }
            hasher.update(&bytes[..4 * tokens.len()]);
        }
        for marks in self
            .is_answer
            .iter()
            .flat_map(|marks| marks.chunks(AT_ONCE))
        {
            for (out, mark) in bytes.iter_mut().zip(marks) {
                *out = u8::from(*mark);
            }
            hasher.update(&bytes[..marks.len()]);
        }
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl Ids {
    fn new(vocab_size: usize) -> Ids {
        if vocab_size <= usize::from(u16::MAX) + 1 {
            Ids::Narrow(Vec::new())
        } else {
            Ids::Wide(Vec::new())
        }
    }

    fn extend(&mut self, tokens: &[u32]) {
        match self {
            // The vocabulary was checked to fit, and every id is below it.
            Ids::Narrow(ids) => ids.extend(tokens.iter().map(|token| *token as u16)),
            Ids::Wide(ids) => ids.extend(tokens),
        }
    }

    fn shrink_to_fit(&mut self) {
        match self {
            Ids::Narrow(ids) => ids.shrink_to_fit(),
            Ids::Wide(ids) => ids.shrink_to_fit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_copy_windows_and_have_fingerprints() {
        let narrow = TokenStream {
            ids: Ids::Narrow((0..9000).collect()),
            text_bytes: 9000,
            is_answer: None,
        };
        let wide = TokenStream {
            ids: Ids::Wide((0..9000).collect()),
            text_bytes: 9000,
            is_answer: None,
        };
        for stream in [&narrow, &wide] {
            let (mut inputs, mut targets) = ([0; 3], [0; 3]);
            stream.copy_window(8996, &mut inputs, &mut targets);
            assert_eq!((inputs, targets), ([8996, 8997, 8998], [8997, 8998, 8999]));
        }
        assert_eq!(narrow.fingerprint(), wide.fingerprint());
        let mut other = narrow.clone();
        if let Ids::Narrow(ids) = &mut other.ids {
            ids[8999] = 0;
        }
        assert_ne!(other.fingerprint(), narrow.fingerprint());
        let mut marked = narrow.clone();
        marked.is_answer = Some((0..9000).map(|n| n % 2 == 0).collect());
        let (mut inputs, mut targets) = ([0; 3], [0; 3]);
        marked.copy_window(0, &mut inputs, &mut targets);
        assert_eq!(targets, [u32::MAX, 2, u32::MAX]);
        assert_ne!(marked.fingerprint(), narrow.fingerprint());
        let empty = TokenStream {
            ids: Ids::Narrow(Vec::new()),
            text_bytes: 0,
            is_answer: None,
        };
        // The SHA-256 of nothing, as published.
        assert!(empty.fingerprint().starts_with("e3b0c44298fc1c14"));
    }
}
