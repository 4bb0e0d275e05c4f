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
//! What each part of a text is comes first (numbers, dates, money, units, addresses, abbreviations,
//! initials; [`FrontEnd::read`] says what was taken for what); words are looked up in the CMU dictionary (embedded, © Carnegie Mellon University, see
//! `assets/cmudict.LICENSE`), with endings and as compounds, and read by learned rules otherwise.
//! Words that are written alike and spoken differently ("read", "lead") are told apart by the words
//! around them.

mod acoustic;
mod checkpoint;
pub mod config;
mod corpus;
mod data;
mod length;
mod synthesis;
#[cfg(test)]
mod tests;
mod text;
mod train;

use std::path::PathBuf;

pub use config::{MEL_BANDS, VoiceConfig};
pub use corpus::{Alignment, Utterance, read_corpus};
pub use data::Example;
pub use synthesis::{Spoken, Voice};
pub use text::{Explained, FrontEnd, Kind, Reading, Sentence, Symbol, Unreadable};
pub use train::{VoiceDoneRow, VoiceEvent, VoiceSummary, VoiceTrainer};

/// An error of the voice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VoiceError {
    /// A text that cannot be read.
    #[error(transparent)]
    Text(#[from] Unreadable),
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
}
