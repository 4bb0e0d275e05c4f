//! Digits that are no quantities: telephones, codes, addresses of computers, releases.

use regex::Captures;

use super::super::tables::LETTERED;
use super::super::token::Kind;
use super::{Here, Rule, digits, integer, part, rule, small, spelled};

pub(super) const RULES: &[Rule] = &[
    rule(
        Kind::Digits,
        "+",
        r"\+[0-9]{1,3}(?:[ .-]?\([0-9]{1,4}\))?(?:[ .-][0-9]{2,8}){1,5}",
        telephone,
    ),
    rule(Kind::Digits, "+", r"\+[0-9]{7,15}", telephone),
    rule(
        Kind::Digits,
        "(",
        r"\([0-9]{3}\) ?[0-9]{3}[ .-][0-9]{4}",
        telephone,
    ),
    rule(
        Kind::Digits,
        "d",
        r"(?:1[ .-])?\([0-9]{3}\) ?[0-9]{3}[ .-][0-9]{4}",
        telephone,
    ),
    rule(
        Kind::Digits,
        "d",
        r"(?:1[ .-])?[0-9]{3}[-. ][0-9]{3}[-. ][0-9]{4}",
        telephone,
    ),
    rule(Kind::Digits, "d", r"[0-9]{3}-[0-9]{4}", telephone),
    rule(
        Kind::Digits,
        "d",
        r"0[0-9]{2,4} [0-9]{3,4} [0-9]{3,4}",
        telephone,
    ),
    // Social security numbers and cards.
    rule(Kind::Digits, "d", r"[0-9]{3}-[0-9]{2}-[0-9]{4}", telephone),
    rule(Kind::Digits, "d", r"[0-9]{4}(?:[ -][0-9]{4}){3}", telephone),
    rule(Kind::Digits, "d", r"9-1-1", telephone),
    rule(Kind::Digits, "d", r"(?:911|411|311|112|999)", emergency),
    rule(
        Kind::Digits,
        "A",
        r"(ISBN|ISSN)(-1[03])?:? ?([0-9][0-9-]{6,16}[0-9X])",
        isbn,
    ),
    rule(
        Kind::Digits,
        "A",
        r"([A-Z]{2}) ([0-9]{5})(-[0-9]{4})?",
        postal,
    ),
    rule(
        Kind::IpAddress,
        "d",
        r"([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})(?::([0-9]{1,5}))?",
        ip_address,
    ),
    rule(Kind::Version, "a", r"[vV]([0-9]+(?:\.[0-9]+)*)", version),
    rule(Kind::Version, "d", r"()([0-9]+(?:\.[0-9]+){2,})", release),
    rule(Kind::Version, "d", r"[0-9]+\.[0-9]+", release_of),
    // Behind words for them, digits stand one by one.
    rule(Kind::Digits, "d", r"[0-9]{3,}(?:-[0-9]+)*", code_number),
    rule(
        Kind::Code,
        "a",
        r"[A-Za-z]{1,5}(?:-?[0-9]+[A-Za-z]{1,3})+[0-9]*|[A-Za-z]{1,5}-?[0-9]+",
        code,
    ),
    rule(Kind::Code, "d", r"[0-9]+(?:[A-Z]{1,3}[0-9]*)+", code),
    rule(
        Kind::Code,
        "d",
        r"[0-9]+(?:-?[a-z]{1,3}[0-9]+)[a-z0-9]*",
        code,
    ),
];

fn groups(text: &str) -> String {
    let groups = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|group| !group.is_empty());
    groups.map(digits).collect::<Vec<_>>().join(" , ")
}

fn telephone(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 0);
    if text.bytes().filter(u8::is_ascii_digit).count() < 7 && text != "9-1-1" {
        return None;
    }
    Some(match text.starts_with('+') {
        true => format!("plus {}", groups(text)),
        false => groups(text),
    })
}

/// Nobody says these as numbers, but things can be counted.
fn emergency(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let next = here.word_behind();
    let is_counted = next.ends_with('s')
        && !["is", "was", "has", "operators", "calls", "dispatchers"].contains(&next);
    let is_part = here.after.starts_with([',', '.', '-', ':', '%', '/'])
        && here.after[1..].starts_with(|c: char| c.is_ascii_digit())
        || here.after.starts_with('%');
    let is_money = here.text[..here.at].ends_with(['$', '£', '€']);
    (!is_counted && !is_part && !is_money && next != "people").then(|| digits(part(captures, 0)))
}

fn isbn(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let number = part(captures, 3);
    let last = if number.ends_with('X') { " X" } else { "" };
    Some(format!(
        "{} , {}{last}",
        spelled(part(captures, 1)),
        groups(number)
    ))
}

fn postal(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let more = part(captures, 3);
    let more = if more.is_empty() {
        String::new()
    } else {
        format!(" , {}", digits(more))
    };
    Some(format!(
        "{} {}{more}",
        spelled(part(captures, 1)),
        digits(part(captures, 2))
    ))
}

fn ip_address(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let groups: Vec<&str> = (1..5).map(|index| part(captures, index)).collect();
    if groups
        .iter()
        .any(|group| group.parse::<u32>().map_or(true, |value| value > 255))
    {
        return None;
    }
    let mut words = groups
        .iter()
        .map(|group| digits(group))
        .collect::<Vec<_>>()
        .join(" dot ");
    if !part(captures, 5).is_empty() {
        words += &format!(" colon {}", digits(part(captures, 5)));
    }
    Some(words)
}

fn points(text: &str) -> String {
    text.split('.')
        .map(integer)
        .collect::<Vec<_>>()
        .join(" point ")
}

fn version(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(format!("version {}", points(part(captures, 1))))
}

/// Two points or more; where they could be a date, they are one.
fn release(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 2);
    let parts: Vec<&str> = text.split('.').collect();
    let is_date = parts.len() == 3 && parts[2].len() == 4 && here.word_before() != "version";
    (!is_date).then(|| points(text))
}

/// Programs have releases: Python 3.12.
fn release_of(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let programs = [
        "version", "python", "ubuntu", "ios", "android", "windows", "linux", "java", "php", "ruby",
        "rust", "kernel", "cuda", "release", "macos", "debian", "postgres", "node",
    ];
    programs
        .contains(&here.word_before().as_str())
        .then(|| points(part(captures, 0)))
}

fn code_number(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 0);
    let codes = [
        "code",
        "pin",
        "extension",
        "ext",
        "zip",
        "password",
        "account",
        "serial",
        "passcode",
        "dial",
    ];
    let before = here.word_before();
    let said = |index: usize| {
        here.tokens.iter().rev().nth(index).map_or("", |token| {
            here.text.get(token.start..token.end).unwrap_or("")
        })
    };
    // "The code is 4821."
    let is_code = codes.contains(&before.as_str()) || before == "is" && codes.contains(&said(1));
    let is_number = here.after.starts_with(['.', ',', ':', '/', '%'])
        && here.after[1..].starts_with(|c: char| c.is_ascii_digit());
    (is_code && !is_number).then(|| groups(text))
}

/// `A1`, `MP3`, `COVID-19`, `EL9568719`, `4B`, `B2B`.
fn code(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 0);
    let letters = text.chars().take_while(char::is_ascii_alphabetic).count();
    let has_capitals = text.contains(|c: char| c.is_ascii_uppercase());
    // What is small is a word or a unit: `km2`, `top-10`.
    if letters > 1 && !has_capitals && text.contains('-') {
        return None;
    }
    if letters == 0 {
        return code_behind_digits(here, text);
    }
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let is_digit = c.is_ascii_digit();
        let len = rest
            .find(|it: char| it.is_ascii_digit() != is_digit || it == '-' && c != '-')
            .unwrap_or(rest.len())
            .max(1);
        let (run, tail) = rest.split_at(len);
        rest = tail;
        if is_digit {
            words.push(if run.len() > 3 {
                digits(run)
            } else {
                integer(run)
            });
        } else if run != "-" {
            let word = small(run.trim_matches('-'));
            let vowels = word.bytes().filter(|b| b"aeiouy".contains(b)).count();
            let is_word = word.len() > 3 && vowels > 0 && !LETTERED.contains(&word.as_str())
                || word.len() > 2
                    && vowels > 0
                    && run.chars().nth(1).is_some_and(|c| c.is_ascii_lowercase());
            words.push(if is_word { word } else { spelled(&word) });
        }
    }
    Some(words.join(" "))
}

/// `4B`, `3D`, `737MAX`; but amounts are not codes: `5M`, `10K`, `20GB`, `5V`.
fn code_behind_digits(here: &Here<'_>, text: &str) -> Option<String> {
    let count = text.chars().take_while(char::is_ascii_digit).count();
    let (number, letters) = text.split_at(count);
    let next = here.word_behind();
    let is_label = [
        "apartment",
        "apt",
        "room",
        "seat",
        "gate",
        "suite",
        "unit",
        "row",
        "flat",
        "form",
        "exit",
    ]
    .contains(&here.word_before().as_str());
    let is_screen = ["4K", "8K", "2K", "5K"].contains(&text)
        && !next.ends_with('s')
        && ([
            "tv",
            "video",
            "monitor",
            "display",
            "resolution",
            "screen",
            "run",
            "race",
            "television",
            "camera",
        ]
        .contains(&small(next).as_str()));
    let is_known = ["2D", "3D", "4D", "2G", "3G", "4G", "5G", "6G", "221B"].contains(&text);
    let is_mixed = letters.contains(|c: char| c.is_ascii_digit());
    // 10x12, 2e6.
    if letters.starts_with(['x', 'e']) && letters[1..].bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if !(is_label || is_screen || is_known || is_mixed) {
        return None;
    }
    let mut words = if number.len() > 3 {
        digits(number)
    } else {
        integer(number)
    };
    let letters_said = spelled(letters);
    words.push(' ');
    words += &letters_said;
    Some(words)
}
