//! What a stretch of text is taken for: patterns in the order in which they are tried, each with
//! the function that puts it into words. A rule that reads nothing leaves the text to the next.

mod amounts;
mod dates;
mod digits;
mod signs;
mod web;
mod words;

use regex::{Captures, Regex};

use super::numbers::{cardinal, digits, year};
use super::tables;
use super::token::{Kind, Piece, Token};

/// Puts what a pattern found into words, letters in capitals; `None`: it is something else.
type Read = fn(&Here<'_>, &Captures<'_>) -> Option<String>;

/// A pattern and its reading.
struct Rule {
    kind: Kind,
    /// What it begins with: `d` a digit, `a` a letter, `A` a capital, signs as they are.
    first: &'static str,
    /// Anchored where the text is read; `<NUM>`, `<MONTH>`, `<DAY>`, `<UNIT>` and `<END>` are filled in.
    pattern: &'static str,
    /// Whether a letter or a digit may stand right before or behind it.
    is_glued: bool,
    read: Read,
}

const fn rule(kind: Kind, first: &'static str, pattern: &'static str, read: Read) -> Rule {
    Rule {
        kind,
        first,
        pattern,
        is_glued: false,
        read,
    }
}

const fn glued(kind: Kind, first: &'static str, pattern: &'static str, read: Read) -> Rule {
    Rule {
        kind,
        first,
        pattern,
        is_glued: true,
        read,
    }
}

/// Where a rule reads.
pub(super) struct Here<'t> {
    /// The whole text, folded.
    pub text: &'t str,
    /// Where the match begins.
    pub at: usize,
    /// What follows the match.
    pub after: &'t str,
    /// What was read before it.
    pub tokens: &'t [Token],
}

impl<'t> Here<'t> {
    /// The word before, in small letters; nothing behind a pause or a number's end.
    pub fn word_before(&self) -> String {
        let before = self.text[..self.at].trim_end_matches([' ', '\t', '\n', '"', '(', '.']);
        let start = before
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '\''))
            .map_or(0, |at| {
                at + before[at..].chars().next().map_or(1, char::len_utf8)
            });
        before[start..].to_ascii_lowercase()
    }

    /// The word behind, as it is written; nothing where a sign comes first.
    pub fn word_behind(&self) -> &'t str {
        let rest = self.after.trim_start_matches([' ', '\t', '\n', '-']);
        let len = rest
            .find(|c: char| !(c.is_ascii_alphabetic() || c == '\''))
            .unwrap_or(rest.len());
        &rest[..len]
    }

    /// Whether a noun in small letters follows an article and what was found: `a $5 lunch`.
    pub fn is_attribute(&self) -> bool {
        let next = self.word_behind();
        let no_nouns = [
            "a", "an", "and", "are", "as", "at", "away", "but", "by", "each", "every", "extra",
            "for", "from", "if", "in", "into", "is", "less", "more", "of", "on", "or", "out",
            "over", "per", "that", "the", "to", "was", "were", "when", "which", "with",
        ];
        ["a", "an"].contains(&self.word_before().as_str())
            && next.starts_with(|c: char| c.is_ascii_lowercase())
            && !no_nouns.contains(&next)
    }

    /// Whether the text ends here, or a new sentence begins behind what may end one.
    pub fn is_last(&self, may_end: bool) -> bool {
        let rest = self.after.trim_start_matches(['"', '\'', ')']);
        rest.trim().is_empty()
            || rest.starts_with('\n')
            || may_end
                && rest.starts_with(char::is_whitespace)
                && self
                    .word_behind()
                    .starts_with(|c: char| c.is_ascii_uppercase())
                && tables::STARTERS.contains(&self.word_behind().to_ascii_lowercase().as_str())
    }

    /// The point that an abbreviation shares with the sentence.
    fn end(&self, words: &str, may_end: bool) -> String {
        match self.is_last(may_end) {
            true => format!("{words} ."),
            false => words.to_owned(),
        }
    }
}

/// The patterns, ready to be searched.
pub(super) struct Rules {
    rules: Vec<(&'static Rule, Regex)>,
}

impl Rules {
    /// Builds all patterns.
    pub fn new() -> Rules {
        let lists = [
            words::FIXED_RULES,
            web::RULES,
            digits::RULES,
            dates::RULES,
            amounts::RULES,
            signs::RULES,
            words::RULES,
        ];
        let rules = lists.into_iter().flatten();
        // A pattern of ours that cannot be built is found by a test.
        let built =
            rules.filter_map(|rule| Some((rule, Regex::new(&filled_in(rule.pattern)).ok()?)));
        Rules {
            rules: built.collect(),
        }
    }

    /// What stands at `at`.
    pub fn read(&self, text: &str, at: usize, tokens: &[Token]) -> Option<Token> {
        let rest = &text[at..];
        let first = rest.chars().next()?;
        let is_inside = text[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
        self.rules.iter().find_map(|(rule, regex)| {
            let begins = rule.first.chars().any(|class| match class {
                'd' => first.is_ascii_digit(),
                'a' => first.is_ascii_alphabetic(),
                'A' => first.is_ascii_uppercase(),
                sign => sign == first,
            });
            if !begins || is_inside && !rule.is_glued {
                return None;
            }
            let captures = regex.captures(rest)?;
            let len = captures.get(0)?.end();
            let after = &rest[len..];
            if len == 0 || !rule.is_glued && after.starts_with(char::is_alphanumeric) {
                return None;
            }
            let here = Here {
                text,
                at,
                after,
                tokens,
            };
            let words = (rule.read)(&here, &captures)?;
            Some(Token {
                kind: rule.kind,
                start: at,
                end: at + len,
                pieces: Piece::row(&words),
            })
        })
    }
}

fn filled_in(pattern: &str) -> String {
    let alternatives = |words: &mut Vec<&str>| {
        words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        words.join("|")
    };
    let mut units: Vec<&str> = tables::UNITS.iter().map(|unit| unit.0).collect();
    let mut ends: Vec<&str> = tables::ENDINGS.iter().map(|end| end.0).collect();
    let mut fixed: Vec<String> = tables::FIXED
        .iter()
        .map(|(it, _)| regex::escape(it))
        .collect();
    fixed.sort_by_key(|it| std::cmp::Reverse(it.len()));
    let number = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)";
    let month = "(?:January|February|March|April|May|June|July|August|September|October|November|December\
        |(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\\.?)";
    let day = "(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:Mon|Tues|Tue|Wed|Thurs|Thur|Thu|Fri|Sat|Sun)\\.?)";
    let filled = pattern
        .replace("<NUM>", number)
        .replace("<MONTH>", month)
        .replace("<FIXED>", &fixed.join("|"))
        .replace("<DAY>", day)
        .replace("<UNIT>", &format!("(?:{})", alternatives(&mut units)))
        .replace("<END>", &format!("(?:{})", alternatives(&mut ends)));
    format!("^(?:{filled})")
}

/// A group of a match, empty where it took no part.
fn part<'c>(captures: &'c Captures<'_>, index: usize) -> &'c str {
    captures.get(index).map_or("", |it| it.as_str())
}

fn look_up<'t>(table: &[(&'t str, &'t str)], key: &str) -> Option<&'t str> {
    table
        .iter()
        .find(|(it, _)| *it == key)
        .map(|(_, found)| *found)
}

/// An integer of any length: long ones and those that begin with zero digit by digit.
fn integer(text: &str) -> String {
    match text.parse() {
        Ok(value) if text.len() == 1 || !text.starts_with('0') => cardinal(value),
        _ => digits(text),
    }
}

/// `1,234.5`, `.5`, `007`.
fn decimal(number: &str) -> String {
    let number: String = number.chars().filter(|c| !matches!(c, ',' | ' ')).collect();
    match number.split_once('.') {
        None => integer(&number),
        Some(("", fraction)) => format!("point {}", digits(fraction)),
        Some((whole, fraction)) => format!("{} point {}", integer(whole), digits(fraction)),
    }
}

/// A year where four digits can be one.
fn year_or_number(number: &str) -> String {
    match number.parse() {
        Ok(value) if number.len() == 4 && (1100..2100).contains(&value) => year(value),
        _ => decimal(number),
    }
}

/// Letters by their names, digits by theirs.
fn spelled(text: &str) -> String {
    let names = text.chars().filter_map(|c| match c {
        '0'..='9' => Some(digits(&c.to_string())),
        _ if c.is_ascii_alphabetic() => Some(c.to_ascii_uppercase().to_string()),
        _ => None,
    });
    names.collect::<Vec<_>>().join(" ")
}

/// `words` in small letters, so that none is taken for a letter.
fn small(word: &str) -> String {
    word.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_pattern_can_be_built() {
        let lists = [
            super::words::FIXED_RULES,
            super::web::RULES,
            super::digits::RULES,
            super::dates::RULES,
            super::amounts::RULES,
            super::signs::RULES,
            super::words::RULES,
        ];
        let count: usize = lists.iter().map(|list| list.len()).sum();
        assert_eq!(super::Rules::new().rules.len(), count);
    }
}
