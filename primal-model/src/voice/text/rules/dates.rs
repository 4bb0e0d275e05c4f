//! Dates, days, years and times of day.

use regex::Captures;

use super::super::numbers::{cardinal, decade, ordinal, plural, year};
use super::super::tables::{COUNTED, DAYS, MONTHS};
use super::super::token::Kind;
use super::{Here, Rule, part, rule, small, year_or_number};

pub(super) const RULES: &[Rule] = &[
    rule(
        Kind::Date,
        "d",
        r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4}|[0-9]{2})",
        month_first,
    ),
    rule(
        Kind::Date,
        "d",
        r"([0-9]{1,2})-([0-9]{1,2})-([0-9]{4})",
        month_first,
    ),
    rule(
        Kind::Date,
        "d",
        r"([0-9]{4})([-/.])([0-9]{1,2})[-/.]([0-9]{1,2})(?:T([0-9]{1,2}):([0-9]{2})(?::[0-9]{2})?Z?)?",
        year_first,
    ),
    rule(
        Kind::Date,
        "d",
        r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})",
        day_first,
    ),
    rule(Kind::Date, "d", r"([0-9]{1,2})/([0-9]{1,2})", month_and_day),
    rule(
        Kind::Date,
        "A",
        r"(<MONTH>) ([0-9]{1,2})(?:st|nd|rd|th)?(?:( ?[-—] ?| and | or | to )([0-9]{1,2})(?:st|nd|rd|th)?)?(?:,? ([0-9]{4}))?",
        named_month,
    ),
    rule(
        Kind::Date,
        "A",
        r"(<MONTH>) ([0-9]{1,2})(?:st|nd|rd|th)?",
        named_month,
    ),
    rule(
        Kind::Date,
        "d",
        r"([0-9]{1,2})(st|nd|rd|th)?(?: of)? (<MONTH>)(?:,? ([0-9]{4}))?",
        day_and_month,
    ),
    rule(
        Kind::Date,
        "d",
        r"([0-9]{1,2})(st|nd|rd|th)?(?: of)? (<MONTH>)",
        day_and_month,
    ),
    rule(
        Kind::Date,
        "A",
        r"(Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)[ /-]([0-9]{4})",
        short_month,
    ),
    rule(Kind::Date, "A", r"(<DAY>) ?[-—] ?(<DAY>)", days),
    rule(
        Kind::Date,
        "A",
        r"(?:Sat|Sun)\.?,? (<MONTH>) ([0-9]{1,2})",
        weekend,
    ),
    rule(
        Kind::Date,
        "A",
        r"(?:Jan|Feb|Apr|Aug|Sept|Sep|Oct|Nov|Dec)[-—](?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\.?",
        months,
    ),
    rule(
        Kind::Time,
        "d",
        r"([0-9]{1,2}):([0-9]{2}):([0-9]{2})()",
        time,
    ),
    rule(
        Kind::Time,
        "d",
        r"([0-9]{1,2}):([0-9]{2})()(?: ?([AaPp])(?:\.[Mm]\.|[Mm]))?",
        time,
    ),
    rule(
        Kind::Time,
        "d",
        r"([0-9]{1,2})()() ?([AaPp])(?:\.[Mm]\.|[Mm])",
        time,
    ),
    rule(
        Kind::Time,
        "d",
        r"([0-9]{1,2})() ?([-—]) ?([0-9]{1,2})() ?([AaPp])(?:\.[Mm]\.|[Mm])",
        hours,
    ),
    rule(Kind::Year, "d'", r"'?([0-9]{2,4})'?s", decades),
    rule(Kind::Year, "'", r"'([0-9]{2})", short_year),
    rule(
        Kind::Year,
        "d",
        r"([0-9]{4})([-—])([0-9]{2})",
        span_of_years,
    ),
    rule(Kind::Year, "A", r"(FY|AD|A\.D\.) ?([0-9]{1,4})", era),
    rule(Kind::Year, "d", r"[0-9]{4}", four_digits),
];

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(u64::MAX)
}

fn is_day(day: u64) -> bool {
    (1..=31).contains(&day)
}

/// `month` and `day` as numbers; `None` where they are none.
fn date(month: u64, day: u64) -> Option<String> {
    let name = MONTHS.get((month as usize).checked_sub(1)?)?;
    is_day(day).then(|| format!("{name} {}", ordinal(day)))
}

/// A year with two digits or four.
fn any_year(text: &str) -> String {
    match (text.len(), number(text)) {
        (2, value @ 0..10) => format!("oh {}", cardinal(value)),
        (2, value) => cardinal(value),
        (_, value) => year(value),
    }
}

/// 12/25/2024; the day first where it can be no other way.
fn month_first(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let (first, second) = (number(part(captures, 1)), number(part(captures, 2)));
    let date = date(first, second).or_else(|| date(second, first))?;
    Some(format!("{date} , {}", any_year(part(captures, 3))))
}

fn day_first(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let (first, second) = (number(part(captures, 1)), number(part(captures, 2)));
    let date = date(second, first).or_else(|| date(first, second))?;
    Some(format!("{date} , {}", any_year(part(captures, 3))))
}

fn year_first(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let date = date(number(part(captures, 3)), number(part(captures, 4)))?;
    let at = match part(captures, 5) {
        "" => String::new(),
        hour => format!(" , {}", clock(number(hour), number(part(captures, 6)))?),
    };
    Some(format!("{date} , {}{at}", year(number(part(captures, 1)))))
}

/// 7/4 is a date behind "on" and the like, half of the time a fraction elsewhere.
fn month_and_day(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let before = here.word_before();
    let is_date =
        ["on", "by", "until", "since", "due", "before", "dated"].contains(&before.as_str());
    let date = date(number(part(captures, 1)), number(part(captures, 2)))?;
    (is_date && !here.after.starts_with('/')).then_some(date)
}

fn full_month(text: &str) -> Option<&'static str> {
    let name = small(text.trim_end_matches('.'));
    MONTHS
        .iter()
        .find(|month| month.starts_with(name.get(..3).unwrap_or(&name)))
        .copied()
}

fn full_day(text: &str) -> Option<&'static str> {
    let name = small(text);
    DAYS.iter()
        .find(|(short, _)| name.starts_with(short))
        .map(|(_, long)| *long)
}

/// July 4, July 4-6, Jan. 3, 2024.
fn named_month(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let month = full_month(part(captures, 1))?;
    let day = number(part(captures, 2));
    // "May 5 people": who knows; but "March 10 miles" is a walk.
    let next = here.word_behind();
    let is_counted = [
        "miles", "people", "times", "percent", "million", "km", "hours", "minutes",
    ]
    .contains(&next);
    let is_more = here.after.starts_with([':', '%', '/', ','])
        && here.after[1..].starts_with(|c: char| c.is_ascii_digit());
    if !is_day(day) || is_counted || is_more {
        return None;
    }
    let mut words = format!("{month} {}", ordinal(day));
    if !part(captures, 4).is_empty() {
        let second = number(part(captures, 4));
        if !is_day(second) {
            return None;
        }
        let between = match part(captures, 3).trim() {
            "and" => "and",
            "or" => "or",
            _ => "to",
        };
        words += &format!(" {between} {}", ordinal(second));
    }
    if !part(captures, 5).is_empty() {
        words += &format!(" , {}", year_or_number(part(captures, 5)));
    }
    Some(words)
}

/// 4 July 1776, the 4th of July, 3rd May.
fn day_and_month(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let month = full_month(part(captures, 3))?;
    let day = number(part(captures, 1));
    let text = part(captures, 0);
    // "In 10 May I go": no; the month of a number without an ending must not be a verb.
    let is_verb = part(captures, 2).is_empty()
        && ["May", "March"].contains(&part(captures, 3))
        && here
            .word_behind()
            .starts_with(|c: char| c.is_ascii_lowercase())
        && part(captures, 4).is_empty()
        && !["and", "at", "in", "for", "to", "is", "was"].contains(&here.word_behind());
    if !is_day(day)
        || is_verb
        || here
            .after
            .trim_start()
            .starts_with(|c: char| c.is_ascii_digit())
            && part(captures, 4).is_empty()
    {
        return None;
    }
    let has_article =
        ["the", "of", "a", "her", "his", "my", "our"].contains(&here.word_before().as_str());
    let has_of = text.contains(" of ");
    let article = if has_article { "" } else { "the " };
    let of = if has_article && !has_of && !part(captures, 2).is_empty() {
        ""
    } else {
        "of "
    };
    let mut words = format!("{article}{} {of}{month}", ordinal(day));
    if !part(captures, 4).is_empty() {
        words += &format!(" , {}", year_or_number(part(captures, 4)));
    }
    Some(words)
}

fn short_month(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(format!(
        "{} {}",
        full_month(part(captures, 1))?,
        year_or_number(part(captures, 2))
    ))
}

fn days(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(format!(
        "{} to {}",
        full_day(part(captures, 1))?,
        full_day(part(captures, 2))?
    ))
}

fn months(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let (first, last) = part(captures, 0).split_once(['-', '—'])?;
    Some(format!("{} to {}", full_month(first)?, full_month(last)?))
}

/// `Sat.` and `Sun.` are words elsewhere.
fn weekend(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let day = full_day(part(captures, 0))?;
    let month = full_month(part(captures, 1))?;
    let number = number(part(captures, 2));
    is_day(number).then(|| format!("{day} , {month} {}", ordinal(number)))
}

fn clock(hour: u64, minute: u64) -> Option<String> {
    if hour > 24 || minute > 59 {
        return None;
    }
    Some(match minute {
        0 => cardinal(hour),
        1..10 => format!("{} oh {}", cardinal(hour), cardinal(minute)),
        _ => format!("{} {}", cardinal(hour), cardinal(minute)),
    })
}

/// 3:30 pm, 12:00, 9am, 2:03:15.
fn time(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let hour = number(part(captures, 1));
    let half = part(captures, 4);
    if part(captures, 2).is_empty() {
        // "I am": 9 am stands alone.
        return (1..=12)
            .contains(&hour)
            .then(|| half_of_day(here, captures, &cardinal(hour)));
    }
    let minute = number(part(captures, 2));
    if ["ratio", "odds", "scale"].contains(&here.word_behind()) {
        return None;
    }
    let seconds = part(captures, 3);
    let words = clock(hour, minute)?;
    if !seconds.is_empty() {
        let second = number(seconds);
        return (second < 60).then(|| match second {
            0..10 => format!("{words} oh {}", cardinal(second)),
            _ => format!("{words} {}", cardinal(second)),
        });
    }
    match (half, minute) {
        ("", 0) => Some(format!("{words} o'clock")),
        ("", _) => Some(words),
        _ => Some(half_of_day(here, captures, &words)),
    }
}

/// A or P, M; the point of `p.m.` may end the sentence too.
fn half_of_day(here: &Here<'_>, captures: &Captures<'_>, words: &str) -> String {
    let half = part(captures, 4).to_ascii_uppercase();
    let words = format!("{words} {half} M");
    match part(captures, 0).ends_with('.') {
        true => here.end(&words, true),
        false => words,
    }
}

fn hours(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let (first, last) = (number(part(captures, 1)), number(part(captures, 4)));
    let half = part(captures, 6).to_ascii_uppercase();
    (first <= 12 && last <= 12)
        .then(|| format!("{} to {} {half} M", cardinal(first), cardinal(last)))
}

/// 1990s, '90s, 20s.
fn decades(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let digits = part(captures, 1);
    let value = number(digits);
    if !digits.ends_with('0') {
        return None;
    }
    Some(match digits.len() {
        4 => decade(value),
        _ if value == 0 => "two thousands".to_owned(),
        _ => plural(&cardinal(value)),
    })
}

fn short_year(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let is_quote = here.after.starts_with('\'');
    (!is_quote).then(|| any_year(part(captures, 1)))
}

/// 1914-18, 2024-25.
fn span_of_years(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let (first, last) = (number(part(captures, 1)), number(part(captures, 3)));
    let is_span = (1100..2100).contains(&first) && last > first % 100;
    is_span.then(|| format!("{} to {}", year(first), any_year(part(captures, 3))))
}

fn era(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let letters = if part(captures, 1) == "FY" {
        "F Y"
    } else {
        "A D"
    };
    let digits = part(captures, 2);
    let value = number(digits);
    Some(format!(
        "{letters} {}",
        if digits.len() == 2 {
            any_year(digits)
        } else {
            year(value)
        }
    ))
}

/// Four digits are a year unless something is counted.
fn four_digits(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let value = number(part(captures, 0));
    let next = here.word_behind();
    let before = here.word_before();
    let is_more = here
        .after
        .starts_with(['.', ',', ':', '/', '%', '°', '*', '^'])
        && here.after[1..].starts_with(|c: char| c.is_ascii_digit())
        || here.after.starts_with(['%', '°', '^', '/', '*', '×']);
    let is_dated = [
        "in", "since", "by", "until", "till", "from", "year", "before", "after", "during",
        "summer", "winter", "spring", "fall", "autumn",
    ]
    .contains(&before.as_str())
        || MONTHS.contains(&before.as_str());
    let no_plurals = [
        "is", "was", "has", "its", "this", "as", "us", "saw", "does", "his", "always", "perhaps",
    ];
    let follows = here.after.starts_with([' ', '-']);
    let is_counted = follows
        && (COUNTED.contains(&next)
            || next.ends_with('s')
                && next.starts_with(|c: char| c.is_ascii_lowercase())
                && !no_plurals.contains(&next));
    let is_count = before.parse::<u64>().is_ok()
        || [
            "about",
            "over",
            "nearly",
            "almost",
            "than",
            "approximately",
            "roughly",
            "exactly",
            "every",
            "times",
            "minus",
            "plus",
        ]
        .contains(&before.as_str());
    let is_year = (1100..2100).contains(&value) | (is_dated && (1000..1100).contains(&value))
        && !is_more
        && (is_dated || !(is_counted || is_count));
    is_year.then(|| year(value))
}
