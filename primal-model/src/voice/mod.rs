//! The text front end of the voice: written English to ARPAbet phonemes, word gaps and pauses.
//!
//! ```
//! use primal_model::voice::FrontEnd;
//!
//! let front_end = FrontEnd::new()?;
//! let sentences = front_end.sentences("Dr. Smith paid $5. Why {S OW1}?")?;
//! let read: Vec<String> = sentences.iter().map(|it| it.to_string()).collect();
//! assert_eq!(read[0], "D AA1 K T ER0 | S M IH1 TH | P EY1 D | F AY1 V | D AA1 L ER0 Z .");
//! assert_eq!(read[1], "W AY1 | S OW1 ?");
//! # Ok::<(), primal_model::voice::VoiceError>(())
//! ```
//!
//! Numbers, years, money, ordinals, times, units, abbreviations and initials are written out
//! first; words are looked up in the CMU dictionary (embedded, © Carnegie Mellon University, see
//! `assets/cmudict.LICENSE`), with endings and as compounds, and read by learned rules otherwise.
//! Words that are written alike and spoken differently ("read", "lead") have one reading.

mod acoustic;
mod checkpoint;
pub mod config;
mod corpus;
mod data;
mod length;
mod normalise;
mod numbers;
mod pronounce;
mod symbol;
mod synthesis;
#[cfg(test)]
mod tests;
mod train;

use std::fmt;
use std::path::PathBuf;

pub use config::{MEL_BANDS, VoiceConfig};
pub use corpus::{Alignment, Utterance, read_corpus};
pub use data::Example;
pub use symbol::Symbol;
pub use synthesis::{Spoken, Voice};
pub use train::{VoiceDoneRow, VoiceEvent, VoiceSummary, VoiceTrainer};

use normalise::{Piece, normalise};
use pronounce::Pronouncer;

/// Symbols after which a sentence is cut at the next pause, and twice as many at the next gap:
/// longer ones wear a voice out.
const LONG_SENTENCE: usize = 160;

/// An error of the voice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VoiceError {
    /// A name in braces that is no ARPAbet phoneme.
    #[error(
        "`{name}` in braces is no ARPAbet phoneme; hint: write {{HH AH0 L OW1}}, `|` between words"
    )]
    UnknownPhoneme {
        /// The name.
        name: String,
    },
    /// A brace that is not closed.
    #[error("the brace before `{text}` is not closed")]
    OpenBrace {
        /// What follows the brace.
        text: String,
    },
    /// The operating system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A corpus that says something impossible.
    #[error("{}: line {line} {reason}", path.display())]
    Corpus {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A recording that is not as long as its alignment.
    #[error(
        "`{id}` has {found} frames of sound, its alignment {expected}, or a frame is not finite"
    )]
    Frames {
        /// The recording.
        id: String,
        /// Frames of its spectrogram.
        found: usize,
        /// Frames of its symbols.
        expected: usize,
    },
    /// A sentence longer than the network can hear.
    #[error("a sentence of {length} frames or symbols is longer than model.context = {context}")]
    TooLong {
        /// Its frames, or its symbols where they are more.
        length: usize,
        /// Most of them.
        context: usize,
    },
    /// A corpus too small to learn from.
    #[error("{found} aligned sentences are too few to train on some and hold others out")]
    TooFew {
        /// Aligned sentences.
        found: usize,
    },
    /// The embedded dictionary cannot be unpacked.
    #[error("the embedded dictionary is damaged")]
    Dictionary(#[source] std::io::Error),
}

/// What is spoken in one go: phonemes, gaps between words, pauses; the last symbol is a pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    /// The symbols, without the silences around them.
    pub symbols: Vec<Symbol>,
}

impl fmt::Display for Sentence {
    /// The names, with `|` for the gap between words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, symbol) in self.symbols.iter().enumerate() {
            let name = if *symbol == Symbol::GAP {
                "|"
            } else {
                symbol.name()
            };
            write!(f, "{}{name}", if index > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

/// Turns text into symbols.
pub struct FrontEnd {
    pronouncer: Pronouncer,
}

impl FrontEnd {
    /// Unpacks the dictionary.
    ///
    /// # Errors
    /// [`VoiceError::Dictionary`]: a broken build.
    pub fn new() -> Result<FrontEnd, VoiceError> {
        Ok(FrontEnd {
            pronouncer: Pronouncer::new().map_err(VoiceError::Dictionary)?,
        })
    }

    /// The sentences of a text; none where nothing in it has a sound. Very long sentences are cut
    /// at a pause or between words.
    ///
    /// # Errors
    /// [`VoiceError::UnknownPhoneme`], [`VoiceError::OpenBrace`].
    pub fn sentences(&self, text: &str) -> Result<Vec<Sentence>, VoiceError> {
        let mut sentences = Vec::new();
        let mut symbols: Vec<Symbol> = Vec::new();
        for piece in normalise(text)? {
            let sounds = match piece {
                Piece::Word(word) => self.pronouncer.word(&word),
                Piece::Letter(letter) => self.pronouncer.letter(letter),
                Piece::Phonemes(phonemes) => phonemes,
                Piece::Pause(pause) => {
                    if symbols.is_empty() {
                        continue;
                    }
                    symbols.push(pause);
                    if pause.ends_sentence() || symbols.len() > LONG_SENTENCE {
                        let symbols = std::mem::take(&mut symbols);
                        sentences.push(Sentence { symbols });
                    }
                    continue;
                }
            };
            if sounds.is_empty() {
                continue;
            }
            if symbols.len() + sounds.len() > 2 * LONG_SENTENCE && !symbols.is_empty() {
                symbols.push(Symbol::COMMA);
                let symbols = std::mem::take(&mut symbols);
                sentences.push(Sentence { symbols });
            }
            if symbols.last().is_some_and(|last| last.is_phoneme()) {
                symbols.push(Symbol::GAP);
            }
            symbols.extend(sounds);
        }
        if !symbols.is_empty() {
            if symbols.last().is_some_and(|last| last.is_phoneme()) {
                symbols.push(Symbol::STOP);
            }
            sentences.push(Sentence { symbols });
        }
        Ok(sentences)
    }
}

#[cfg(test)]
mod front_end_tests {
    use super::*;

    fn read(text: &str) -> Vec<String> {
        let sentences = FrontEnd::new().unwrap().sentences(text).unwrap();
        sentences.iter().map(Sentence::to_string).collect()
    }

    #[test]
    fn sentences_end_in_a_pause() {
        assert_eq!(
            read("Yes, we can! Is it 3rd"),
            ["Y EH1 S , W IY1 | K AE1 N !", "IH1 Z | IH1 T | TH ER1 D ."]
        );
        assert_eq!(read("so,"), ["S OW1 ,"]);
        assert!(read("?! \u{1f600} ... , ").is_empty());
    }

    #[test]
    fn long_texts_are_cut() {
        let text = "well ".repeat(4000);
        let sentences = FrontEnd::new().unwrap().sentences(&text).unwrap();
        assert_eq!(
            sentences
                .iter()
                .flat_map(|it| &it.symbols)
                .filter(|it| it.is_vowel())
                .count(),
            4000
        );
        for sentence in &sentences {
            assert!(sentence.symbols.len() <= 2 * LONG_SENTENCE + 1);
            assert!(!sentence.symbols.last().unwrap().is_phoneme());
        }
    }
}
