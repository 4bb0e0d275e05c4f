//! Written English to ARPAbet phonemes, word gaps and pauses. Nothing here knows about networks or
//! sound: a text is folded to plain characters, taken apart into tokens that say what they were
//! taken for, those become words, and words become phonemes.

mod fold;
mod homograph;
mod numbers;
mod pronounce;
mod rules;
mod scan;
mod symbol;
mod tables;
#[cfg(test)]
mod tests;
mod token;

use std::fmt;

pub use symbol::Symbol;
pub use token::Kind;

use pronounce::Pronouncer;
use rules::Rules;
use token::{Piece, Token};

/// Symbols after which a sentence is cut at the next pause, and twice as many at the next gap:
/// longer ones wear a voice out.
const LONG_SENTENCE: usize = 160;

/// Why a text cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
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

/// A stretch of a text, what it was taken for and how it is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// The stretch, in plain characters.
    pub text: String,
    /// What it was taken for.
    pub kind: Kind,
    /// Its words: letters that are called by their names in capitals, a reading behind `/`, pauses
    /// by their signs.
    pub words: Vec<String>,
    /// The sounds of each word.
    pub phonemes: Vec<Vec<Symbol>>,
}

/// A text as it will be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its sentences; none where nothing in it has a sound.
    pub sentences: Vec<Sentence>,
    /// What was taken for what.
    pub tokens: Vec<Explained>,
    /// What cannot be said and is left out: other scripts, pictures; each once.
    pub unspoken: Vec<String>,
}

/// Turns text into symbols.
pub struct FrontEnd {
    pronouncer: Pronouncer,
    rules: Rules,
}

impl FrontEnd {
    /// Unpacks the dictionary.
    ///
    /// # Errors
    /// [`Unreadable::Dictionary`]: a broken build.
    pub fn new() -> Result<FrontEnd, Unreadable> {
        Ok(FrontEnd {
            pronouncer: Pronouncer::new().map_err(Unreadable::Dictionary)?,
            rules: Rules::new(),
        })
    }

    /// The sentences of a text; none where nothing in it has a sound. Very long sentences are cut
    /// at a pause or between words.
    ///
    /// # Errors
    /// [`Unreadable::UnknownPhoneme`], [`Unreadable::OpenBrace`]: braces that are meant as
    /// phonemes. Other braces are passed over.
    pub fn sentences(&self, text: &str) -> Result<Vec<Sentence>, Unreadable> {
        Ok(self.read(text)?.sentences)
    }

    /// The sentences of a text, what each part of it was taken for, and what is left out.
    ///
    /// # Errors
    /// As [`FrontEnd::sentences`].
    pub fn read(&self, text: &str) -> Result<Reading, Unreadable> {
        let mut scanned = scan::scan(&self.rules, text)?;
        homograph::resolve(&mut scanned.tokens);
        let mut sentences = Builder::default();
        let mut tokens = Vec::new();
        for Token {
            kind,
            start,
            end,
            pieces,
        } in scanned.tokens
        {
            let mut explained = Explained {
                text: scanned.text[start..end].to_owned(),
                kind,
                words: Vec::new(),
                phonemes: Vec::new(),
            };
            for piece in pieces {
                explained.words.push(piece.written());
                let sounds = self.sounds(piece);
                sentences.add(&sounds);
                explained.phonemes.push(sounds);
            }
            tokens.push(explained);
        }
        Ok(Reading {
            sentences: sentences.done(),
            tokens,
            unspoken: scanned.unspoken,
        })
    }

    fn sounds(&self, piece: Piece) -> Vec<Symbol> {
        match piece {
            Piece::Word(word) => self.pronouncer.word(&word),
            Piece::Reading { phonemes, .. } => pronounce::named(phonemes),
            Piece::Letter(letter) => self.pronouncer.letter(letter),
            Piece::Letters(letter) => pronounce::plural_of(self.pronouncer.letter(letter)),
            Piece::Phonemes(phonemes) => phonemes,
            Piece::Pause(pause) => vec![pause],
        }
    }
}

/// Puts the sounds of words and pauses together.
#[derive(Default)]
struct Builder {
    sentences: Vec<Sentence>,
    symbols: Vec<Symbol>,
}

impl Builder {
    fn cut(&mut self) {
        let symbols = std::mem::take(&mut self.symbols);
        self.sentences.push(Sentence { symbols });
    }

    /// A pause; of several in a row the first that ends a sentence stays, or else the last.
    fn pause(&mut self, pause: Symbol) {
        let Some(last) = self.symbols.last_mut() else {
            return;
        };
        match last.is_phoneme() {
            true => self.symbols.push(pause),
            false => *last = pause,
        }
        if pause.ends_sentence() {
            self.cut();
        }
    }

    fn add(&mut self, sounds: &[Symbol]) {
        if let [pause] = sounds
            && !pause.is_phoneme()
            && *pause != Symbol::GAP
        {
            return self.pause(*pause);
        }
        if sounds.is_empty() {
            return;
        }
        let behind_pause = self.symbols.last().is_some_and(|last| !last.is_phoneme());
        if behind_pause && self.symbols.len() > LONG_SENTENCE {
            self.cut();
        }
        if self.symbols.len() + sounds.len() > 2 * LONG_SENTENCE && !self.symbols.is_empty() {
            if !behind_pause || self.symbols.is_empty() {
                self.symbols.push(Symbol::COMMA);
            }
            if self.symbols.len() > 1 {
                self.cut();
            }
        }
        if self.symbols.last().is_some_and(|last| last.is_phoneme()) {
            self.symbols.push(Symbol::GAP);
        }
        self.symbols.extend(sounds);
    }

    fn done(mut self) -> Vec<Sentence> {
        if self.symbols.last().is_some_and(|last| last.is_phoneme()) {
            self.symbols.push(Symbol::STOP);
        }
        if !self.symbols.is_empty() {
            self.cut();
        }
        self.sentences
    }
}
