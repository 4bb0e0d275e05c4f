//! What the voice is told to say: ARPAbet phonemes, the gap between words, pauses.

use std::fmt;

/// Every symbol, by id. Vowels carry their stress: 0 none, 1 primary, 2 secondary. `cmudict.gz` has
/// the phonemes in the same order, from the character `0` on.
const NAMES: [&str; 76] = [
    "B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG", "P", "R", "S", "SH", "T",
    "TH", "V", "W", "Y", "Z", "ZH", "AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2",
    "AO0", "AO1", "AO2", "AW0", "AW1", "AW2", "AY0", "AY1", "AY2", "EH0", "EH1", "EH2", "ER0",
    "ER1", "ER2", "EY0", "EY1", "EY2", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "OW0", "OW1",
    "OW2", "OY0", "OY1", "OY2", "UH0", "UH1", "UH2", "UW0", "UW1", "UW2", " ", ",", ".", "?", "!",
    "<bos>", "<eos>",
];

/// Phonemes without stress.
const CONSONANTS: u8 = 24;

/// Phonemes with all stresses.
const PHONEMES: u8 = 69;

/// A phoneme, the gap between words, or a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(u8);

impl Symbol {
    /// Number of symbols: ids are below it.
    pub const COUNT: usize = NAMES.len();
    /// The gap between two words.
    pub const GAP: Symbol = Symbol(69);
    /// A short pause.
    pub const COMMA: Symbol = Symbol(70);
    /// The end of a statement.
    pub const STOP: Symbol = Symbol(71);
    /// The end of a question.
    pub const QUESTION: Symbol = Symbol(72);
    /// The end of an exclamation.
    pub const EXCLAMATION: Symbol = Symbol(73);
    /// The silence in front of an utterance.
    pub const BEGIN: Symbol = Symbol(74);
    /// The silence behind an utterance.
    pub const END: Symbol = Symbol(75);

    /// The symbol of that id.
    pub fn from_id(id: usize) -> Option<Symbol> {
        (id < NAMES.len()).then_some(Symbol(id as u8))
    }

    /// The symbol's number, below [`Symbol::COUNT`].
    pub fn id(self) -> usize {
        usize::from(self.0)
    }

    /// The symbol of that name: ARPAbet in capitals, vowels with their stress, or a pause.
    pub fn from_name(name: &str) -> Option<Symbol> {
        let id = NAMES.iter().position(|&it| it == name)?;
        Some(Symbol(id as u8))
    }

    /// The name.
    pub fn name(self) -> &'static str {
        NAMES[self.id()]
    }

    /// Whether it is a vowel.
    pub fn is_vowel(self) -> bool {
        (CONSONANTS..PHONEMES).contains(&self.0)
    }

    /// Whether it is a phoneme.
    pub fn is_phoneme(self) -> bool {
        self.0 < PHONEMES
    }

    /// Whether it ends a sentence.
    pub fn ends_sentence(self) -> bool {
        [Symbol::STOP, Symbol::QUESTION, Symbol::EXCLAMATION].contains(&self)
    }

    /// The same vowel with another stress; consonants as they are.
    pub fn with_stress(self, stress: u8) -> Symbol {
        if !self.is_vowel() {
            return self;
        }
        let vowel = (self.0 - CONSONANTS) / 3;
        Symbol(CONSONANTS + 3 * vowel + stress.min(2))
    }

    /// A vowel's stress, 0 for everything else.
    pub fn stress(self) -> u8 {
        match self.is_vowel() {
            true => (self.0 - CONSONANTS) % 3,
            false => 0,
        }
    }

    /// The phoneme that a character of the embedded files stands for.
    pub(super) fn from_code(code: u8) -> Option<Symbol> {
        let id = code.checked_sub(b'0')?;
        (id < PHONEMES).then_some(Symbol(id))
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_agree() {
        for id in 0..Symbol::COUNT {
            let symbol = Symbol::from_id(id).unwrap();
            assert_eq!(
                (symbol.id(), Symbol::from_name(symbol.name())),
                (id, Some(symbol))
            );
        }
        assert_eq!(Symbol::from_id(Symbol::COUNT), None);
        for (symbol, name) in [
            (Symbol::GAP, " "),
            (Symbol::COMMA, ","),
            (Symbol::STOP, "."),
            (Symbol::QUESTION, "?"),
            (Symbol::EXCLAMATION, "!"),
            (Symbol::BEGIN, "<bos>"),
            (Symbol::END, "<eos>"),
        ] {
            assert_eq!(symbol.name(), name);
            assert!(!symbol.is_phoneme());
        }
    }

    #[test]
    fn stress_is_a_property_of_vowels() {
        let name = |name| Symbol::from_name(name).unwrap();
        assert_eq!(name("AH1").with_stress(0), name("AH0"));
        assert_eq!(name("UW0").with_stress(2), name("UW2"));
        assert_eq!(name("ZH").with_stress(1), name("ZH"));
        assert_eq!((name("OY2").stress(), name("B").stress()), (2, 0));
        assert!(name("AA0").is_vowel() && name("UW2").is_vowel() && !name("ZH").is_vowel());
    }
}
