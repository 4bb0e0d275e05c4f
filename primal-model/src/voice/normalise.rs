//! Written text to words and pauses: numbers, money, years, times, units, abbreviations, initials.

use super::VoiceError;
use super::numbers::{cardinal, decade, digits, ordinal, plural, year};
use super::symbol::Symbol;

/// What a text is made of when it is read aloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// A word in small letters and apostrophes.
    Word(String),
    /// A single letter that is called by its name.
    Letter(char),
    /// Phonemes that the text gives itself, in braces.
    Phonemes(Vec<Symbol>),
    /// A pause.
    Pause(Symbol),
}

/// Abbreviations that end in a point, the point left out, and what they are read as.
const ABBREVIATIONS: [(&str, &str); 48] = [
    ("mr", "mister"),
    ("mrs", "missus"),
    ("ms", "miz"),
    ("dr", "doctor"),
    ("prof", "professor"),
    ("rev", "reverend"),
    ("gen", "general"),
    ("sen", "senator"),
    ("rep", "representative"),
    ("gov", "governor"),
    ("pres", "president"),
    ("capt", "captain"),
    ("lt", "lieutenant"),
    ("col", "colonel"),
    ("sgt", "sergeant"),
    ("jr", "junior"),
    ("sr", "senior"),
    ("st", "saint"),
    ("mt", "mount"),
    ("ave", "avenue"),
    ("blvd", "boulevard"),
    ("rd", "road"),
    ("hwy", "highway"),
    ("inc", "incorporated"),
    ("ltd", "limited"),
    ("corp", "corporation"),
    ("co", "company"),
    ("dept", "department"),
    ("est", "established"),
    ("etc", "et cetera"),
    ("vs", "versus"),
    ("approx", "approximately"),
    ("vol", "volume"),
    ("fig", "figure"),
    ("ed", "edition"),
    ("eds", "editors"),
    ("jan", "january"),
    ("feb", "february"),
    ("mar", "march"),
    ("apr", "april"),
    ("jun", "june"),
    ("jul", "july"),
    ("aug", "august"),
    ("sept", "september"),
    ("sep", "september"),
    ("oct", "october"),
    ("nov", "november"),
    ("dec", "december"),
];

/// Units behind a number: written, one, many.
const UNITS: [(&str, &str, &str); 26] = [
    ("km", "kilometer", "kilometers"),
    ("m", "meter", "meters"),
    ("cm", "centimeter", "centimeters"),
    ("mm", "millimeter", "millimeters"),
    ("nm", "nanometer", "nanometers"),
    ("ft", "foot", "feet"),
    ("mi", "mile", "miles"),
    ("kg", "kilogram", "kilograms"),
    ("g", "gram", "grams"),
    ("mg", "milligram", "milligrams"),
    ("lb", "pound", "pounds"),
    ("lbs", "pound", "pounds"),
    ("oz", "ounce", "ounces"),
    ("l", "liter", "liters"),
    ("ml", "milliliter", "milliliters"),
    ("s", "second", "seconds"),
    ("ms", "millisecond", "milliseconds"),
    ("hz", "hertz", "hertz"),
    ("khz", "kilohertz", "kilohertz"),
    ("mhz", "megahertz", "megahertz"),
    ("ghz", "gigahertz", "gigahertz"),
    ("kb", "kilobyte", "kilobytes"),
    ("mb", "megabyte", "megabytes"),
    ("gb", "gigabyte", "gigabytes"),
    ("tb", "terabyte", "terabytes"),
    ("mph", "mile per hour", "miles per hour"),
];

/// Signs of money: sign, one, many, one hundredth, many of these.
const MONEY: [(char, &str, &str, &str, &str); 4] = [
    ('$', "dollar", "dollars", "cent", "cents"),
    ('£', "pound", "pounds", "penny", "pence"),
    ('€', "euro", "euros", "cent", "cents"),
    ('¥', "yen", "yen", "sen", "sen"),
];

/// Words that stand between a number and its currency: `$3 million`.
const LARGE: [&str; 5] = ["hundred", "thousand", "million", "billion", "trillion"];

/// Words behind which four digits are no year.
const COUNTED: [&str; 8] = [
    "people", "men", "women", "times", "points", "votes", "words", "miles",
];

/// Words before which `St.` is a saint; anywhere else it is a street.
fn before_name(reader: &Reader<'_>) -> bool {
    let mut rest = reader.rest().chars().skip_while(|c| c.is_whitespace());
    rest.next().is_some_and(char::is_uppercase)
}

/// Reads `text` into words and pauses.
pub(super) fn normalise(text: &str) -> Result<Vec<Piece>, VoiceError> {
    let text: String = text.chars().flat_map(fold).collect();
    let mut reader = Reader {
        text: &text,
        at: 0,
        pieces: Vec::new(),
    };
    while let Some(c) = reader.peek() {
        reader.step(c)?;
    }
    Ok(reader.pieces)
}

/// Letters with marks to plain ones, typographic signs to ASCII.
fn fold(c: char) -> Vec<char> {
    let plain = match c {
        '’' | '‘' | 'ʼ' | '`' => "'",
        '“' | '”' | '«' | '»' | '„' => "\"",
        '–' | '—' | '―' | '−' => return if c == '−' { vec!['-'] } else { vec!['—'] },
        '…' => "...",
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ā' | 'ă' | 'ą' => "a",
        'À' | 'Á' | 'Â' | 'Ã' | 'Ä' | 'Å' => "A",
        'ç' | 'ć' | 'č' => "c",
        'Ç' | 'Č' => "C",
        'è' | 'é' | 'ê' | 'ë' | 'ē' | 'ę' | 'ě' => "e",
        'È' | 'É' | 'Ê' | 'Ë' => "E",
        'ì' | 'í' | 'î' | 'ï' | 'ī' => "i",
        'Í' | 'Î' => "I",
        'ñ' | 'ń' | 'ň' => "n",
        'Ñ' => "N",
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' | 'ō' | 'ő' => "o",
        'Ó' | 'Ö' | 'Ø' => "O",
        'ù' | 'ú' | 'û' | 'ü' | 'ū' | 'ű' | 'ů' => "u",
        'Ú' | 'Ü' => "U",
        'ý' | 'ÿ' => "y",
        'ß' => "ss",
        'æ' => "ae",
        'Æ' => "Ae",
        'œ' => "oe",
        'š' | 'ś' => "s",
        'Š' => "S",
        'ž' | 'ź' | 'ż' => "z",
        'Ž' => "Z",
        'ł' => "l",
        'Ł' => "L",
        '½' => " 1/2",
        '¼' => " 1/4",
        '¾' => " 3/4",
        '×' => " times ",
        '÷' => " divided by ",
        _ => return vec![c],
    };
    plain.chars().collect()
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    pieces: Vec<Piece>,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// The character before the one at hand.
    fn before(&self) -> Option<char> {
        self.text[..self.at].chars().next_back()
    }

    /// Takes the longest run of characters that `accept`.
    fn take(&mut self, accept: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let len = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// Takes `prefix` if it comes next.
    fn take_if(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    fn say(&mut self, words: &str) {
        for word in words.split_whitespace() {
            self.pieces.push(Piece::Word(word.to_owned()));
        }
    }

    /// A pause; of several in a row the one that ends a sentence stays.
    fn pause(&mut self, symbol: Symbol) {
        match self.pieces.last_mut() {
            None => {}
            Some(Piece::Pause(last)) if last.ends_sentence() => {}
            Some(Piece::Pause(last)) => *last = symbol,
            Some(_) => self.pieces.push(Piece::Pause(symbol)),
        }
    }

    fn step(&mut self, c: char) -> Result<(), VoiceError> {
        if c == '{' {
            return self.braces();
        }
        let next = self.rest()[c.len_utf8()..].chars().next();
        let digit_next = next.is_some_and(|c| c.is_ascii_digit());
        if c.is_ascii_digit() || c == '.' && digit_next {
            self.number(false);
        } else if MONEY.iter().any(|money| money.0 == c) && digit_next {
            self.money(c);
        } else if c == '-' && digit_next && !self.before().is_some_and(char::is_alphanumeric) {
            self.at += 1;
            self.say("minus");
            self.number(false);
        } else if c == '#' && digit_next {
            self.at += 1;
            self.say("number");
        } else if c.is_ascii_alphabetic()
            || c == '\'' && next.is_some_and(|c| c.is_ascii_alphabetic())
        {
            self.word();
        } else {
            self.at += c.len_utf8();
            self.sign(c);
        }
        Ok(())
    }

    fn sign(&mut self, c: char) {
        match c {
            '.' => self.pause(Symbol::STOP),
            '?' => self.pause(Symbol::QUESTION),
            '!' => self.pause(Symbol::EXCLAMATION),
            ',' | ';' | ':' | '(' | ')' | '[' | ']' | '—' => self.pause(Symbol::COMMA),
            '-' if self.before_and_after_space() => self.pause(Symbol::COMMA),
            // A blank line ends what has no point: a heading, a list.
            '\n' if self.rest().starts_with('\n') => self.pause(Symbol::STOP),
            '&' => self.say("and"),
            '@' => self.say("at"),
            '%' => self.say("percent"),
            '+' => self.say("plus"),
            '=' => self.say("equals"),
            '°' => self.say("degrees"),
            '$' => self.say("dollar"),
            '£' => self.say("pound"),
            '€' => self.say("euro"),
            // Everything else, emoji and other scripts among it, has no sound.
            _ => {}
        }
    }

    /// Whether the sign just taken stands between spaces.
    fn before_and_after_space(&self) -> bool {
        let mut before = self.text[..self.at].chars().rev().skip(1);
        before.next().is_some_and(char::is_whitespace)
            && self.peek().is_some_and(char::is_whitespace)
    }

    /// `{HH AH0 L OW1}`: phonemes as they are; `|` or `_` is a gap between words.
    fn braces(&mut self) -> Result<(), VoiceError> {
        let inside = &self.rest()[1..];
        let Some(len) = inside.find('}') else {
            return Err(VoiceError::OpenBrace {
                text: inside.chars().take(20).collect(),
            });
        };
        let mut symbols = Vec::new();
        for name in inside[..len].split_whitespace() {
            let upper = name.to_ascii_uppercase();
            let symbol = match name {
                "|" | "_" => Some(Symbol::GAP),
                // A vowel without its stress is stressed.
                _ => Symbol::from_name(&upper).or_else(|| Symbol::from_name(&format!("{upper}1"))),
            };
            let symbol = symbol.filter(|it| it.is_phoneme() || *it == Symbol::GAP);
            symbols.push(symbol.ok_or_else(|| VoiceError::UnknownPhoneme {
                name: name.chars().take(20).collect(),
            })?);
        }
        self.at += len + 2;
        if !symbols.is_empty() {
            self.pieces.push(Piece::Phonemes(symbols));
        }
        Ok(())
    }

    fn word(&mut self) {
        if self.initials() {
            return;
        }
        let word = self.take(|c| c.is_ascii_alphabetic() || c == '\'');
        let word = word.trim_matches('\'');
        let lower = word.to_ascii_lowercase();
        let capital = word.starts_with(|c: char| c.is_ascii_uppercase());
        if self.peek() == Some('.') {
            let found = ABBREVIATIONS.iter().find(|(short, _)| *short == lower);
            // Some are words too: only with a capital or before more text are they short for one.
            let also_a_word = [
                "mar", "jun", "dec", "ed", "co", "fig", "est", "rep", "gen", "col",
            ];
            let sound = capital || !also_a_word.contains(&lower.as_str());
            if let Some((_, long)) = found.filter(|_| sound) {
                self.at += 1;
                let long = match lower.as_str() {
                    "st" if !before_name(self) => "street",
                    "dr" if !before_name(self) => "drive",
                    _ => long,
                };
                self.say(long);
                // The point of an abbreviation also ends the text.
                if self.rest().trim().is_empty() {
                    self.pause(Symbol::STOP);
                }
                return;
            }
            if lower == "no"
                && self.rest()[1..]
                    .trim_start()
                    .starts_with(|c: char| c.is_ascii_digit())
            {
                self.at += 1;
                self.say("number");
                return;
            }
        }
        let all_capitals = word.len() > 1 && word.bytes().all(|b| b.is_ascii_uppercase());
        let vowels = lower.bytes().filter(|b| b"aeiouy".contains(b)).count();
        if all_capitals && (vowels == 0 || word.len() <= 3 && !SPOKEN_CAPITALS.contains(&&*lower)) {
            // In a text all in capitals short words are words.
            if vowels == 0 || !self.shouts() {
                lower
                    .chars()
                    .for_each(|letter| self.pieces.push(Piece::Letter(letter)));
                return;
            }
        }
        if word.len() == 1 && lower != "a" && lower != "i" {
            self.pieces
                .push(Piece::Letter(lower.chars().next().unwrap_or('x')));
        } else if !lower.is_empty() {
            self.pieces.push(Piece::Word(lower));
        }
    }

    /// Whether the words around are in capitals too.
    fn shouts(&self) -> bool {
        let letters = self.text.chars().filter(char::is_ascii_alphabetic);
        let (mut capitals, mut small) = (0, 0);
        letters.for_each(|c| match c.is_ascii_uppercase() {
            true => capitals += 1,
            false => small += 1,
        });
        capitals > 2 * small + 4
    }

    /// `J. R. R. Tolkien`, `U.S.A.`, `e.g.`: letters with a point behind each.
    fn initials(&mut self) -> bool {
        let rest = self.rest();
        for (short, long) in [
            ("e.g.", "for example"),
            ("i.e.", "that is"),
            ("a.m.", "a m"),
            ("p.m.", "p m"),
        ] {
            if rest.len() >= short.len()
                && rest.is_char_boundary(short.len())
                && rest[..short.len()].eq_ignore_ascii_case(short)
                && !self.before().is_some_and(|c| c.is_ascii_alphabetic())
            {
                self.at += short.len();
                match long.len() {
                    3 => long
                        .split(' ')
                        .for_each(|it| self.pieces.extend(it.chars().map(Piece::Letter))),
                    _ => self.say(long),
                }
                return true;
            }
        }
        let bytes = rest.as_bytes();
        let point = |at: usize| bytes.get(at) == Some(&b'.');
        let capital = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_uppercase);
        if !capital(0) || !point(1) || self.before().is_some_and(|c| c.is_ascii_alphabetic()) {
            return false;
        }
        // One letter alone must be followed by a name, or else its point ends the sentence.
        let alone = !(capital(2) && point(3));
        if alone
            && !rest[2..]
                .trim_start_matches(' ')
                .starts_with(|c: char| c.is_ascii_uppercase())
        {
            return false;
        }
        if alone && rest.starts_with("I.") {
            return false;
        }
        let mut at = 0;
        while capital(at) && point(at + 1) {
            self.pieces
                .push(Piece::Letter(char::from(bytes[at].to_ascii_lowercase())));
            at += 2;
        }
        self.at += at;
        if self.rest().trim().is_empty() {
            self.pause(Symbol::STOP);
        }
        true
    }

    fn money(&mut self, sign: char) {
        self.at += sign.len_utf8();
        let Some(&(_, one, many, cent, cents)) = MONEY.iter().find(|money| money.0 == sign) else {
            return;
        };
        let (whole, fraction) = self.digits_and_fraction();
        let before = self.at;
        self.take(|c| c == ' ');
        let large = LARGE.iter().find(|word| {
            let rest = self.rest();
            rest.len() >= word.len()
                && rest.is_char_boundary(word.len())
                && rest[..word.len()].eq_ignore_ascii_case(word)
                && !rest[word.len()..].starts_with(|c: char| c.is_ascii_alphabetic())
        });
        if let Some(large) = large {
            self.at += large.len();
            self.say(&decimal(&whole, &fraction));
            self.say(large);
            self.say(many);
            return;
        }
        self.at = before;
        if fraction.len() != 2 {
            self.say(&decimal(&whole, &fraction));
            self.say(if whole == "1" && fraction.is_empty() {
                one
            } else {
                many
            });
            return;
        }
        let hundredths: u64 = fraction.parse().unwrap_or(0);
        let zero = whole.bytes().all(|digit| digit == b'0');
        if !zero || hundredths == 0 {
            self.say(&integer(&whole));
            self.say(if whole == "1" { one } else { many });
        }
        if hundredths > 0 {
            if !zero {
                self.say("and");
            }
            self.say(&cardinal(hundredths));
            self.say(if hundredths == 1 { cent } else { cents });
        }
    }

    /// `1,234.50` as ("1234", "50").
    fn digits_and_fraction(&mut self) -> (String, String) {
        let mut whole = self.take(|c| c.is_ascii_digit()).to_owned();
        while whole.len() <= 24 {
            let rest = self.rest().as_bytes();
            let group = rest.first() == Some(&b',')
                && rest.len() >= 4
                && rest[1..4].iter().all(u8::is_ascii_digit)
                && !rest.get(4).is_some_and(u8::is_ascii_digit);
            if !group {
                break;
            }
            whole += &self.rest()[1..4];
            self.at += 4;
        }
        let mut fraction = String::new();
        let rest = self.rest().as_bytes();
        if rest.first() == Some(&b'.') && rest.get(1).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
            fraction = self.take(|c| c.is_ascii_digit()).to_owned();
        }
        (whole, fraction)
    }

    fn number(&mut self, second_of_range: bool) {
        let start = self.at;
        let (whole, fraction) = self.digits_and_fraction();
        let grouped = self.text[start..self.at].contains(',');
        if fraction.is_empty() {
            if self.time(&whole) || self.suffix(&whole) || self.fraction(&whole) {
                return;
            }
            // 1990s and the like are done; what else is glued to letters is read digit by digit.
            if self.plural_digits(&whole) {
                return;
            }
        } else if self.rest().starts_with('.')
            && self.rest()[1..].starts_with(|c: char| c.is_ascii_digit())
        {
            // Versions and addresses: 1.2.3
            self.say(&decimal(&whole, &fraction));
            while self.rest().starts_with('.')
                && self.rest()[1..].starts_with(|c: char| c.is_ascii_digit())
            {
                self.at += 1;
                let part = self.take(|c| c.is_ascii_digit());
                self.say("point");
                self.say(&integer(part));
            }
            return;
        }
        let value: Option<u64> = whole.parse().ok();
        let year_like = fraction.is_empty()
            && !grouped
            && whole.len() == 4
            && value.is_some_and(|value| (1100..2100).contains(&value))
            && !self.next_word_is(&COUNTED);
        if year_like {
            self.say(&year(value.unwrap_or(0)));
        } else {
            self.say(&decimal(&whole, &fraction));
        }
        if self.unit(&whole, &fraction) {
            return;
        }
        // Ranges: 5-10, 1914–1918.
        let mut rest = self.rest().chars();
        let dash = rest.next();
        if !second_of_range
            && matches!(dash, Some('-' | '—'))
            && rest.next().is_some_and(|c| c.is_ascii_digit())
        {
            self.at += dash.map_or(0, char::len_utf8);
            self.say("to");
            self.number(true);
        }
    }

    fn next_word_is(&self, words: &[&str]) -> bool {
        let rest = self.rest().trim_start();
        let len = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        words.contains(&rest[..len].to_ascii_lowercase().as_str())
    }

    /// 3:30, 3:05, 12:00.
    fn time(&mut self, hours: &str) -> bool {
        let rest = self.rest().as_bytes();
        let is_digit = |at: usize| rest.get(at).is_some_and(u8::is_ascii_digit);
        if rest.first() != Some(&b':') || !is_digit(1) || !is_digit(2) || is_digit(3) {
            return false;
        }
        let minutes = &self.rest()[1..3];
        let (Ok(hour), Ok(minute)) = (hours.parse::<u64>(), minutes.parse::<u64>()) else {
            return false;
        };
        if hour > 24 || minute > 59 {
            return false;
        }
        self.at += 3;
        self.say(&cardinal(hour));
        match minute {
            0 if self.half_of_day() => {}
            0 => self.say("o'clock"),
            1..10 => {
                self.say("oh");
                self.say(&cardinal(minute));
            }
            _ => self.say(&cardinal(minute)),
        }
        true
    }

    /// Whether am or pm comes next.
    fn half_of_day(&self) -> bool {
        let rest = self.rest().trim_start().to_ascii_lowercase();
        ["am", "pm", "a.m", "p.m"]
            .iter()
            .any(|it| rest.starts_with(it))
    }

    /// 1st, 2nd, 3rd, 4th.
    fn suffix(&mut self, whole: &str) -> bool {
        let rest = self.rest();
        let found = rest.get(..2).is_some_and(|it| {
            ["st", "nd", "rd", "th"]
                .iter()
                .any(|suffix| it.eq_ignore_ascii_case(suffix))
        });
        if !found || rest[2..].starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return false;
        }
        let Ok(value) = whole.parse() else {
            return false;
        };
        self.at += 2;
        self.say(&ordinal(value));
        true
    }

    /// 1990s, '90s, 20s.
    fn plural_digits(&mut self, whole: &str) -> bool {
        let rest = self.rest();
        let len = if rest.starts_with("'s") { 2 } else { 1 };
        if !(rest.starts_with('s') || rest.starts_with("'s"))
            || rest[len..].starts_with(|c: char| c.is_ascii_alphanumeric())
            || !whole.ends_with('0')
        {
            return false;
        }
        let Ok(value) = whole.parse() else {
            return false;
        };
        self.at += len;
        match whole.len() {
            4 => self.say(&decade(value)),
            _ => self.say(&plural(&cardinal(value))),
        }
        true
    }

    /// 1/2, 3/4, 2/3; larger ones are read with "over".
    fn fraction(&mut self, top: &str) -> bool {
        let rest = self.rest();
        if !rest.starts_with('/') || !rest[1..].starts_with(|c: char| c.is_ascii_digit()) {
            return false;
        }
        let len = rest[1..]
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len() - 1);
        let bottom = &rest[1..1 + len];
        let (Ok(over), Ok(under)) = (top.parse::<u64>(), bottom.parse::<u64>()) else {
            return false;
        };
        // A date, not a fraction.
        if rest[1 + len..].starts_with('/') {
            return false;
        }
        self.at += 1 + len;
        if matches!(self.pieces.last(), Some(Piece::Word(last)) if last != "and") && over < under {
            let number = |piece: &Piece| matches!(piece, Piece::Word(word) if !word.is_empty());
            if self.before_digits(top.len() + 1 + len) && self.pieces.last().is_some_and(number) {
                self.say("and");
            }
        }
        self.say(&cardinal(over));
        let part = match under {
            2 => "half".to_owned(),
            4 => "quarter".to_owned(),
            3 | 5..=20 | 100 | 1000 => ordinal(under),
            _ => {
                self.say("over");
                self.say(&cardinal(under));
                return true;
            }
        };
        match over {
            1 => self.say(&part),
            _ if under == 2 => self.say("halves"),
            _ => self.say(&plural(&part)),
        }
        true
    }

    /// Whether the `len` bytes just taken follow a number and a space: 2 1/2.
    fn before_digits(&self, len: usize) -> bool {
        let before = self.text[..self.at - len].trim_end_matches(' ');
        before.len() < self.at - len && before.ends_with(|c: char| c.is_ascii_digit())
    }

    /// `5 km`, `20%`, `20 °C`.
    fn unit(&mut self, whole: &str, fraction: &str) -> bool {
        let start = self.at;
        self.take(|c| c == ' ');
        let rest = self.rest();
        if rest.starts_with('°') {
            self.at += '°'.len_utf8();
            self.say("degrees");
            if self.take_if("C") {
                self.say("celsius");
            } else if self.take_if("F") {
                self.say("fahrenheit");
            }
            return true;
        }
        let len = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let word = rest[..len].to_ascii_lowercase();
        let found = UNITS.iter().find(|(short, _, _)| *short == word);
        // A single letter is a unit only right behind the digits.
        let glued = self.at == start;
        match found.filter(|_| len > 1 || glued) {
            Some((_, one, many)) => {
                self.at += len;
                self.say(if whole == "1" && fraction.is_empty() {
                    one
                } else {
                    many
                });
                true
            }
            None => {
                self.at = start;
                false
            }
        }
    }
}

/// Short words in capitals that are read as words.
const SPOKEN_CAPITALS: [&str; 37] = [
    "a", "i", "am", "an", "as", "at", "be", "by", "do", "go", "he", "if", "in", "is", "it", "me",
    "my", "no", "of", "on", "or", "so", "to", "up", "we", "the", "and", "not", "you", "for", "but",
    "all", "new", "old", "yes", "aids", "ok",
];

/// An integer of any length: long ones and those that begin with zero digit by digit.
fn integer(text: &str) -> String {
    match text.parse() {
        Ok(value) if text.len() == 1 || !text.starts_with('0') => cardinal(value),
        _ => digits(text),
    }
}

fn decimal(whole: &str, fraction: &str) -> String {
    match (whole.is_empty(), fraction.is_empty()) {
        (_, true) => integer(whole),
        (true, false) => format!("point {}", digits(fraction)),
        (false, false) => format!("{} point {}", integer(whole), digits(fraction)),
    }
}

#[cfg(test)]
mod tests;
