//! From a folded text to tokens: phonemes in braces, what the rules know, signs and pauses.

use super::Unreadable;
use super::fold::fold;
use super::rules::{Here, Rules};
use super::symbol::Symbol;
use super::tables::{SIGN_NAMES, SILENT};
use super::token::{Kind, Piece, Token};

/// A text taken apart.
pub(super) struct Scanned {
    /// The text as the rules saw it.
    pub text: String,
    pub tokens: Vec<Token>,
    /// What has no sound here, in the order of the text, each once.
    pub unspoken: Vec<String>,
}

/// Takes a text apart.
///
/// # Errors
/// [`Unreadable`]: braces that are meant as phonemes and are none.
pub(super) fn scan(rules: &Rules, text: &str) -> Result<Scanned, Unreadable> {
    let text = fold(text);
    let mut scanner = Scanner {
        text: &text,
        at: 0,
        tokens: Vec::new(),
        unspoken: Vec::new(),
    };
    while let Some(c) = scanner.rest().chars().next() {
        scanner.step(rules, c)?;
    }
    let (tokens, unspoken) = (scanner.tokens, scanner.unspoken);
    Ok(Scanned {
        tokens,
        unspoken,
        text,
    })
}

impl Here<'_> {
    /// Whether the text is in capitals throughout.
    pub fn shouts(&self) -> bool {
        let (mut capitals, mut small) = (0, 0);
        // A long text is judged by what stands around.
        let from = self.text[..self.at]
            .char_indices()
            .rev()
            .nth(200)
            .map_or(0, |(at, _)| at);
        for c in self.text[from..]
            .chars()
            .take(400)
            .filter(char::is_ascii_alphabetic)
        {
            match c.is_ascii_uppercase() {
                true => capitals += 1,
                false => small += 1,
            }
        }
        capitals > 2 * small + 4
    }
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
    tokens: Vec<Token>,
    unspoken: Vec<String>,
}

impl<'t> Scanner<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn before(&self) -> Option<char> {
        self.text[..self.at].chars().next_back()
    }

    fn push(&mut self, kind: Kind, len: usize, pieces: Vec<Piece>) {
        let start = self.at;
        self.at += len;
        self.tokens.push(Token {
            kind,
            start,
            end: self.at,
            pieces,
        });
    }

    fn step(&mut self, rules: &Rules, c: char) -> Result<(), Unreadable> {
        if c.is_whitespace() {
            self.space(c);
        } else if c == '{' {
            self.braces()?;
        } else if self.range(c) {
            self.push(Kind::Range, c.len_utf8(), Piece::row("to"));
        } else if let Some(token) = rules.read(self.text, self.at, &self.tokens) {
            self.at = token.end;
            self.tokens.push(token);
        } else {
            self.sign(c);
        }
        Ok(())
    }

    /// A blank line ends what has no point: a heading, a list.
    fn space(&mut self, c: char) {
        let rest = &self.rest()[c.len_utf8()..];
        let is_blank = c == '\n' && rest.trim_start_matches([' ', '\t', '\r']).starts_with('\n');
        match is_blank {
            true => self.push(Kind::Pause, 1, vec![Piece::Pause(Symbol::STOP)]),
            false => self.at += c.len_utf8(),
        }
    }

    /// A dash between two numbers: 5-10, 1914–1918, 9am-5pm.
    fn range(&self, c: char) -> bool {
        let rest = &self.rest()[c.len_utf8()..];
        let number_next = rest
            .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '£' | '€'))
            || rest.starts_with('.') && rest[1..].starts_with(|c: char| c.is_ascii_digit());
        let last = self.tokens.last();
        let behind_number = last.is_some_and(|last| {
            let is_second =
                self.tokens.len() > 1 && self.tokens[self.tokens.len() - 2].kind == Kind::Range;
            last.kind.is_number() && last.end == self.at && !is_second
        });
        matches!(c, '-' | '—') && number_next && behind_number
    }

    /// `{HH AH0 L OW1}`: phonemes as they are; `|` or `_` is a gap between words. Braces around
    /// anything else are passed over, and what they hold is text.
    fn braces(&mut self) -> Result<(), Unreadable> {
        let inside = &self.rest()[1..];
        let len = inside.find('}').unwrap_or(inside.len());
        let names: Vec<&str> = inside[..len].split_whitespace().collect();
        if !names.iter().all(|name| looks_like_phoneme(name)) {
            self.at += 1;
            return Ok(());
        }
        if len == inside.len() {
            // Nothing but a brace is no attempt.
            if names.is_empty() {
                self.at += 1;
                return Ok(());
            }
            return Err(Unreadable::OpenBrace {
                text: inside.chars().take(20).collect(),
            });
        }
        let mut symbols = Vec::new();
        for name in names {
            let upper = name.to_ascii_uppercase();
            let symbol = match name {
                "|" | "_" => Some(Symbol::GAP),
                // A vowel without its stress is stressed.
                _ => Symbol::from_name(&upper).or_else(|| Symbol::from_name(&format!("{upper}1"))),
            };
            let symbol = symbol.filter(|it| it.is_phoneme() || *it == Symbol::GAP);
            symbols.push(symbol.ok_or_else(|| Unreadable::UnknownPhoneme {
                name: name.chars().take(20).collect(),
            })?);
        }
        let pieces = match symbols.is_empty() {
            true => Vec::new(),
            false => vec![Piece::Phonemes(symbols)],
        };
        self.push(Kind::Phonemes, len + 2, pieces);
        Ok(())
    }

    fn sign(&mut self, c: char) {
        let len = c.len_utf8();
        let next = self.rest()[len..].chars().next();
        let is_free = |side: Option<char>| side.is_none_or(char::is_whitespace);
        let pause = match c {
            // A point within a word, as in `a.b`, ends nothing; behind a bracket or a quote it does.
            '.' => Some(Symbol::STOP),
            '?' => Some(Symbol::QUESTION),
            '!' => Some(Symbol::EXCLAMATION),
            ',' | ';' | ':' | '(' | ')' | '[' | ']' | '—' => Some(Symbol::COMMA),
            '-' if is_free(self.before()) && is_free(next) => Some(Symbol::COMMA),
            '。' => Some(Symbol::STOP),
            '、' => Some(Symbol::COMMA),
            _ => None,
        };
        if let Some(pause) = pause {
            self.push(Kind::Pause, len, vec![Piece::Pause(pause)]);
        } else if let Some((_, name)) = SIGN_NAMES.iter().find(|(sign, _)| *sign == c) {
            self.push(Kind::Sign, len, Piece::row(name));
        } else if SILENT.contains(c) || c.is_control() {
            self.at += len;
        } else {
            self.unspoken();
        }
    }

    /// Takes what cannot be said, up to the next space or ASCII, and keeps it for the warning.
    fn unspoken(&mut self) {
        let rest = self.rest();
        let len = rest
            .find(|c: char| c.is_ascii() || c.is_whitespace())
            .unwrap_or(rest.len())
            .max(rest.chars().next().map_or(1, char::len_utf8));
        let word: String = rest[..len].chars().take(40).collect();
        if !self.unspoken.contains(&word) {
            self.unspoken.push(word);
        }
        self.at += len;
    }
}

/// ARPAbet in small letters or capitals: at most three characters, `HH`, `ow1`, `|`. Prose is
/// hardly ever made of such words alone.
fn looks_like_phoneme(name: &str) -> bool {
    let letters = name.trim_end_matches(['0', '1', '2']);
    let is_known = Symbol::from_name(&name.to_ascii_uppercase()).is_some()
        || Symbol::from_name(&format!("{}1", name.to_ascii_uppercase())).is_some();
    is_known
        || matches!(name, "|" | "_" | ",")
        || (1..=2).contains(&letters.len()) && letters.bytes().all(|byte| byte.is_ascii_uppercase())
}
