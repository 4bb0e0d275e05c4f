//! Addresses of pages and mailboxes, names of files, paths, handles and tags.

use regex::Captures;

use super::super::tables::{ENDINGS, LETTERED, SPOKEN_AS, SPOKEN_CAPITALS};
use super::super::token::Kind;
use super::{Here, Rule, integer, look_up, part, rule, small, spelled};

pub(super) const RULES: &[Rule] = &[
    rule(
        Kind::Url,
        "a",
        r#"(?i)(?:https?|ftp|file)://[^\s<>"'()]*[a-z0-9/=#&_-]"#,
        address,
    ),
    rule(
        Kind::Url,
        "a",
        r#"(?i)www\.[^\s<>"'()]*[a-z0-9/=#&_-]"#,
        address,
    ),
    rule(
        Kind::Email,
        "ad",
        r"[A-Za-z0-9][A-Za-z0-9._+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
        address,
    ),
    rule(Kind::Name, "@", r"@[A-Za-z][A-Za-z0-9_]*", address),
    rule(Kind::Name, "#", r"#[A-Za-z][A-Za-z0-9_]*", tag),
    rule(
        Kind::Name,
        "ad",
        r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.<END>(?:/[A-Za-z0-9._/?=&#-]*[A-Za-z0-9/])?",
        file,
    ),
    rule(
        Kind::Name,
        "~/",
        r"~?(?:/[A-Za-z0-9._-]*[A-Za-z0-9_-])+/?",
        path,
    ),
    rule(
        Kind::Name,
        "A",
        r"[A-Z]:\\[A-Za-z0-9_.\\-]*[A-Za-z0-9]",
        path,
    ),
    rule(Kind::Name, ".", r"\.<END>", ending),
];

fn address(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(said(part(captures, 0)))
}

/// A name with a known ending is one; `Hello.me` between sentences is not.
fn file(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let name = part(captures, 0);
    let is_number = name.starts_with(|c: char| c.is_ascii_digit())
        && !name.contains(|c: char| c.is_ascii_alphabetic());
    (!is_number).then(|| said(name))
}

/// A path has a folder in a folder, or begins at home; `/` alone stands between words.
fn path(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let path = part(captures, 0);
    let is_path = path.starts_with(['~', '/']) || path.contains('\\');
    let is_free = here.at == 0 || here.text[..here.at].ends_with([' ', '\n', '\t', '(', '"', '\'']);
    (is_path && is_free).then(|| said(path))
}

fn ending(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let is_free = here.at == 0 || here.text[..here.at].ends_with([' ', '(', '"']);
    is_free.then(|| said(part(captures, 0)))
}

fn tag(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(format!("hashtag {}", said(&part(captures, 0)[1..])))
}

/// The runs of letters and digits as words, the signs between them by name.
fn said(text: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let len = match c {
            'a'..='z' | 'A'..='Z' => run_of_letters(rest),
            '0'..='9' => rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len()),
            _ => c.len_utf8(),
        };
        let (run, tail) = rest.split_at(len);
        let before = text[..text.len() - rest.len()].chars().next_back();
        let after = tail.chars().next();
        let word = match c {
            '.' => "dot".to_owned(),
            '/' => "slash".to_owned(),
            '\\' => "backslash".to_owned(),
            ':' => "colon".to_owned(),
            '-' => "dash".to_owned(),
            '_' => "underscore".to_owned(),
            '@' => "at".to_owned(),
            '?' => "question mark".to_owned(),
            '=' => "equals".to_owned(),
            '&' => "and".to_owned(),
            '#' => "hash".to_owned(),
            '%' => "percent".to_owned(),
            '+' => "plus".to_owned(),
            '~' => "tilde".to_owned(),
            '0'..='9' => integer(run),
            _ if before == Some('.') && !after.is_some_and(|c| c.is_ascii_alphanumeric()) => {
                look_up(ENDINGS, &small(run)).map_or_else(|| run_said(run), str::to_owned)
            }
            _ => run_said(run),
        };
        words.push(word);
        rest = tail;
    }
    words.join(" ")
}

/// Up to where a capital begins another word: `ReadMe`, `HTTPServer`.
fn run_of_letters(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at].is_ascii_alphabetic() {
        let is_new = bytes[at].is_ascii_uppercase()
            && (bytes[at - 1].is_ascii_lowercase()
                || bytes.get(at + 1).is_some_and(u8::is_ascii_lowercase));
        if is_new {
            break;
        }
        at += 1;
    }
    at
}

/// A word where it can be one, its letters otherwise.
fn run_said(run: &str) -> String {
    let word = small(run);
    if let Some(words) = look_up(SPOKEN_AS, &word) {
        return words.to_owned();
    }
    let vowels = word.bytes().filter(|b| b"aeiouy".contains(b)).count();
    let is_short = word.len() < 3 && !SPOKEN_CAPITALS.contains(&word.as_str());
    if vowels == 0 || is_short || LETTERED.contains(&word.as_str()) || word.len() == 1 {
        return spelled(&word);
    }
    word
}
