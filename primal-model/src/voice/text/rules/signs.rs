//! Signs of mathematics, law and lists.

use regex::Captures;

use super::super::tables::GREEK;
use super::super::token::Kind;
use super::{Here, Rule, glued, part};

pub(super) const RULES: &[Rule] = &[
    glued(
        Kind::Sign,
        "<>=!≤≥≠",
        r"(<=|>=|==|!=|=>|->|<|>|≤|≥|≠)",
        comparison,
    ),
    glued(Kind::Sign, "-<", r"(->|<-|-->)", arrow),
    glued(Kind::Sign, "~≈", r"[~≈]", about),
    glued(Kind::Sign, "-", r"-", minus),
    glued(Kind::Sign, "*·", r" ?[*·] ?", times),
    glued(Kind::Sign, "/", r"/", over),
    glued(Kind::Sign, "§¶", r"(§§?|¶)", section),
    glued(Kind::Sign, "√", r"√", root),
    glued(Kind::Sign, "#", r"#", number),
    glued(Kind::Sign, "%", r"%", |_, _| Some("percent".to_owned())),
    glued(
        Kind::Sign,
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩς",
        r"[α-ωΓΔΘΛΞΠΣΦΨΩ]",
        greek,
    ),
];

/// What stands before the sign, spaces left out, and whether one stands there.
fn before(here: &Here<'_>) -> (Option<char>, bool) {
    let text = &here.text[..here.at];
    (
        text.trim_end_matches(' ').chars().next_back(),
        text.ends_with(' ') || text.is_empty(),
    )
}

fn operand(c: Option<char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || matches!(c, ')' | '%' | '²' | '$'))
}

fn comparison(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let sign = part(captures, 1);
    let (left, is_free) = before(here);
    let right = here.after.trim_start_matches(' ').chars().next();
    let right_is_number =
        right.is_some_and(|c| c.is_ascii_digit() || matches!(c, '$' | '.' | '-' | '£' | '€'));
    let has_left = operand(left);
    let is_even = is_free == here.after.starts_with(' ');
    let words = match sign {
        "<=" | "≤" => "less than or equal to",
        ">=" | "≥" => "greater than or equal to",
        "!=" | "≠" => "not equal to",
        "==" => "equal to",
        "=>" => return Some("implies".to_owned()),
        "->" => return Some("to".to_owned()),
        "<" => "less than",
        _ => "greater than",
    };
    let single = matches!(sign, "<" | ">");
    // `<b>` is no comparison, nor is a quoted line of a mail.
    if single
        && !right_is_number
        && !(has_left
            && is_even
            && operand(right)
            && (is_free || here.after.len() > 1 && !here.after.contains('>')))
    {
        return None;
    }
    if single && !has_left && !right_is_number {
        return None;
    }
    // `if x > 20` has a subject, `costs <10` has none.
    Some(match has_left && is_even {
        true => format!("is {words}"),
        false => words.to_owned(),
    })
}

fn arrow(_: &Here<'_>, _: &Captures<'_>) -> Option<String> {
    Some("to".to_owned())
}

/// ~5; `a ≈ b` is a comparison, and `~` alone is not said.
fn about(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let (left, _) = before(here);
    let is_number = here
        .after
        .trim_start_matches(' ')
        .starts_with(|c: char| c.is_ascii_digit() || matches!(c, '$' | '£' | '€' | '.'));
    let is_free = part(captures, 0) == "~" || !operand(left);
    (is_number && is_free).then(|| "about".to_owned())
}

/// A minus before a number, or between numbers with spaces.
fn minus(here: &Here<'_>, _: &Captures<'_>) -> Option<String> {
    let (left, is_free) = before(here);
    let next = here.after.chars().next();
    let money = next.is_some_and(|c| matches!(c, '$' | '£' | '€' | '¥'));
    let digit = |c: char| c.is_ascii_digit() || c == '.';
    let has_number =
        next.is_some_and(digit) && here.after.contains(|c: char| c.is_ascii_digit()) || money;
    let stands_first = here.text[..here.at]
        .chars()
        .next_back()
        .is_none_or(|c| !c.is_alphanumeric() && c != '-' && c != '.');
    if has_number && stands_first {
        return Some("minus".to_owned());
    }
    let right = here.after.trim_start_matches(' ').chars().next();
    let is_between = is_free
        && here.after.starts_with(' ')
        && left.is_some_and(|c| c.is_ascii_digit())
        && right.is_some_and(|c| c.is_ascii_digit());
    is_between.then(|| "minus".to_owned())
}

/// 3*4, a * b; elsewhere an asterisk emphasises.
fn times(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let (left, is_free) = before(here);
    let right = here.after.chars().next();
    let spaced = part(captures, 0).ends_with(' ');
    let numbers =
        left.is_some_and(|c| c.is_ascii_digit()) && right.is_some_and(|c| c.is_ascii_digit());
    let letters =
        operand(left) && operand(right) && is_free && spaced && part(captures, 0).contains('*');
    (numbers || letters).then(|| "times".to_owned())
}

/// 10 / 2; between words it is not said.
fn over(here: &Here<'_>, _: &Captures<'_>) -> Option<String> {
    let (left, is_free) = before(here);
    let right = here.after.trim_start_matches(' ').chars().next();
    let numbers =
        left.is_some_and(|c| c.is_ascii_digit()) && right.is_some_and(|c| c.is_ascii_digit());
    (numbers && is_free).then(|| "divided by".to_owned())
}

fn section(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(
        match part(captures, 1) {
            "§" => "section",
            "¶" => "paragraph",
            _ => "sections",
        }
        .to_owned(),
    )
}

fn root(_: &Here<'_>, _: &Captures<'_>) -> Option<String> {
    Some("square root of".to_owned())
}

fn number(here: &Here<'_>, _: &Captures<'_>) -> Option<String> {
    here.after
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| "number".to_owned())
}

/// A Greek letter alone; words in Greek cannot be said.
fn greek(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let letter = part(captures, 0).chars().next()?;
    // `πr²` is a product.
    let is_greek = |c: char| c.is_alphabetic() && !c.is_ascii();
    let is_word =
        here.text[..here.at].ends_with(char::is_alphabetic) || here.after.starts_with(is_greek);
    let name = GREEK.iter().find(|(it, _)| *it == letter)?.1;
    (!is_word).then(|| name.to_owned())
}
