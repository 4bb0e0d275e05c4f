//! What the stretches of a text are taken for, and what they are made of when they are read aloud.

use super::symbol::Symbol;

/// What a stretch of text was taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A word as it stands.
    Word,
    /// A word that is written like another one and sounds different.
    Homograph,
    /// Letters that are called by their names.
    Initials,
    /// A short form of a word.
    Abbreviation,
    /// Letters and digits together: a model, a flight, a room.
    Code,
    /// A number that counts.
    Cardinal,
    /// A number that tells a place in a row.
    Ordinal,
    /// Parts of a whole.
    Fraction,
    /// A year or a decade.
    Year,
    /// A day, a month, or both.
    Date,
    /// The time of a day.
    Time,
    /// A telephone number, a postal code, or any other row of digits.
    Digits,
    /// The address of a computer.
    IpAddress,
    /// The number of a release.
    Version,
    /// An amount of money.
    Money,
    /// A number with its unit, or a percentage.
    Measure,
    /// From one number to another, a score.
    Range,
    /// Two numbers compared.
    Ratio,
    /// A Roman numeral.
    Roman,
    /// The address of a page.
    Url,
    /// The address of a mailbox.
    Email,
    /// The name of a file, a folder or a person on a network.
    Name,
    /// A sign that has a name.
    Sign,
    /// Phonemes in braces.
    Phonemes,
    /// A sign that is heard as a pause.
    Pause,
}

impl Kind {
    /// Its name, as `primal phonemes --explain` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Word => "word",
            Kind::Homograph => "homograph",
            Kind::Initials => "initials",
            Kind::Abbreviation => "abbreviation",
            Kind::Code => "code",
            Kind::Cardinal => "cardinal",
            Kind::Ordinal => "ordinal",
            Kind::Fraction => "fraction",
            Kind::Year => "year",
            Kind::Date => "date",
            Kind::Time => "time",
            Kind::Digits => "digits",
            Kind::IpAddress => "ip address",
            Kind::Version => "version",
            Kind::Money => "money",
            Kind::Measure => "measure",
            Kind::Range => "range",
            Kind::Ratio => "ratio",
            Kind::Roman => "roman numeral",
            Kind::Url => "url",
            Kind::Email => "email",
            Kind::Name => "name",
            Kind::Sign => "sign",
            Kind::Phonemes => "phonemes",
            Kind::Pause => "pause",
        }
    }

    /// Whether it ends in a number, so that a dash and a number behind it make a range.
    pub(super) fn is_number(self) -> bool {
        use Kind::{Cardinal, Date, Fraction, Measure, Money, Ordinal, Time, Year};
        matches!(
            self,
            Cardinal | Date | Fraction | Measure | Money | Ordinal | Time | Year
        )
    }
}

/// What a text is made of when it is read aloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// A word in small letters and apostrophes.
    Word(String),
    /// One of the readings of a word.
    Reading {
        /// The word in small letters.
        word: String,
        /// Which reading.
        tag: &'static str,
        /// Its sounds, names in a row.
        phonemes: &'static str,
    },
    /// A single letter that is called by its name.
    Letter(char),
    /// Several of it, or what belongs to it: `CEOs`, `FBI's`.
    Letters(char),
    /// Phonemes that the text gives itself, in braces.
    Phonemes(Vec<Symbol>),
    /// A pause.
    Pause(Symbol),
}

impl Piece {
    /// As rules write it: letters in capitals, pauses as they are.
    pub(super) fn written(&self) -> String {
        match self {
            Piece::Word(word) => word.clone(),
            Piece::Reading { word, tag, .. } => format!("{word}/{tag}"),
            Piece::Letter(letter) => letter.to_ascii_uppercase().to_string(),
            Piece::Letters(letter) => format!("{}'s", letter.to_ascii_uppercase()),
            Piece::Phonemes(symbols) => {
                let names: Vec<&str> = symbols.iter().map(|it| it.name()).collect();
                format!("{{{}}}", names.join(" "))
            }
            Piece::Pause(symbol) => symbol.to_string(),
        }
    }

    /// The pieces that rules write in a row: words in small letters, letters in capitals, `,`, `.`.
    pub(super) fn row(words: &str) -> Vec<Piece> {
        let piece = |word: &str| {
            if let Some(pause) = Symbol::from_name(word).filter(|it| !it.is_phoneme()) {
                return Piece::Pause(pause);
            }
            let bytes = word.as_bytes();
            match (bytes.first(), &bytes[1..]) {
                (Some(first), b"") if first.is_ascii_uppercase() => {
                    Piece::Letter(char::from(first.to_ascii_lowercase()))
                }
                (Some(first), b"'s") if first.is_ascii_uppercase() => {
                    Piece::Letters(char::from(first.to_ascii_lowercase()))
                }
                _ => Piece::Word(word.to_ascii_lowercase()),
            }
        };
        words.split_ascii_whitespace().map(piece).collect()
    }
}

/// A stretch of the folded text with what it is read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: Kind,
    /// Bytes of the folded text.
    pub start: usize,
    pub end: usize,
    pub pieces: Vec<Piece>,
}
