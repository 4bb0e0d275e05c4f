//! Money, measures, ordinals, fractions, powers, comparisons and plain numbers.

use regex::Captures;

use super::super::numbers::{cardinal, ordinal, plural};
use super::super::tables::{CURRENCIES, MONEY, SCALES, UNITS};
use super::super::token::Kind;
use super::{Here, Rule, decimal, digits, glued, integer, look_up, part, rule, small};

pub(super) const RULES: &[Rule] = &[
    rule(Kind::Fraction, "d", r"([0-9]+\.[0-9]+)/([0-9]+)", out_of),
    glued(Kind::Measure, "d", r"(<NUM>)\x22", inches),
    rule(
        Kind::Money,
        "$£€¥₹₩",
        r"([$£€¥₹₩]) ?(<NUM>)()(?: ?(-|—) ?(<NUM>))?(?: ?(hundred|thousand|million|billion|trillion|bn|mn|tn|[kKmMbBtT]))?(?:/([a-z]+))?",
        sign_first,
    ),
    rule(
        Kind::Money,
        "$£€¥₹₩",
        r"([$£€¥₹₩]) ?(<NUM>)()()()()()",
        sign_first,
    ),
    rule(
        Kind::Money,
        "A",
        r"(US|C|CA|A|AU|NZ|HK)\$ ?(<NUM>)(?: ?(hundred|thousand|million|billion|trillion|bn|mn|tn|[kKmMbBtT]))?",
        country_first,
    ),
    rule(
        Kind::Money,
        "R",
        r"(Rs\.?|INR) ?(<NUM>)(?: ?(lakh|crore|hundred|thousand|million|billion))?",
        rupees,
    ),
    glued(
        Kind::Money,
        "d.",
        r"(<NUM>)(k|K|M|m|bn|B|b)? ?([€$£¥₹¢])",
        sign_last,
    ),
    rule(
        Kind::Money,
        "d",
        r"(<NUM>)(?: ?(k|K|M|bn|B|thousand|million|billion))? ?(USD|EUR|GBP|JPY|CAD|AUD|CHF|INR|CNY|SEK|BTC)",
        code_last,
    ),
    rule(
        Kind::Measure,
        "d",
        r"([0-9]{1,2})' ?([0-9]{1,2})(?:\x22|'')",
        feet_and_inches,
    ),
    glued(
        Kind::Measure,
        "d.",
        r"(<NUM>) ?%(?: ?([-—]) ?(<NUM>) ?%)?",
        percent,
    ),
    glued(Kind::Measure, "d.", r"(<NUM>) ?°(?: ?(C|F|K)\b)?", degrees),
    // Small letters that are both: amounts of people are counted, lengths are measured.
    rule(Kind::Cardinal, "d.", r"(<NUM>) ?(bn|mn|tn|[kKMBT])", scaled),
    rule(
        Kind::Measure,
        "d.",
        r"(<NUM>)( ?|-)(<UNIT>)(?:\^([23]))?(?:/(<UNIT>|[a-z]+)(?:\^([23]))?)?\.?",
        measure,
    ),
    rule(
        Kind::Measure,
        "d.",
        r"(<NUM>)( ?|-)(<UNIT>)(?:\^([23]))?()()",
        measure,
    ),
    rule(
        Kind::Measure,
        "d",
        r"([0-9]+) ?[x×] ?([0-9]+)(?: ?[x×] ?([0-9]+))?",
        sides,
    ),
    rule(Kind::Cardinal, "d", r"([0-9]+)[x×]", fold_times),
    rule(
        Kind::Cardinal,
        "d.",
        r"(<NUM>)[eE]([+-]?)([0-9]{1,3})",
        exponent,
    ),
    rule(
        Kind::Cardinal,
        "da.",
        r"(<NUM>|[a-zA-Z]{1,3})\^\(?([+-]?)([0-9]+|[a-zA-Z])\)?",
        power,
    ),
    rule(
        Kind::Ordinal,
        "d",
        r"([0-9,]+)(?:st|nd|rd|th|ST|ND|RD|TH)",
        nth,
    ),
    rule(Kind::Fraction, "d", r"([0-9]{1,4})/([0-9]{1,4})", fraction),
    rule(Kind::Ratio, "d", r"([0-9]+) ?: ?([0-9]+)", ratio),
    rule(
        Kind::Cardinal,
        "d",
        r"[0-9]{1,3}(?: [0-9]{3})+",
        spaced_groups,
    ),
    glued(Kind::Cardinal, "d.", r"<NUM>", number),
];

fn money_names(
    sign: &str,
) -> Option<&'static (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
)> {
    MONEY.iter().find(|money| money.0 == sign)
}

/// Whole units, hundredths where two digits follow the point.
fn amount(number: &str, names: (&str, &str, &str, &str)) -> String {
    let (one, many, cent, cents) = names;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() != 2 {
        return format!(
            "{} {}",
            decimal(number),
            if number == "1" { one } else { many }
        );
    }
    let hundredths = fraction.parse::<u64>().unwrap_or(0);
    let small_part = format!(
        "{} {}",
        cardinal(hundredths),
        if hundredths == 1 { cent } else { cents }
    );
    let large_part = format!(
        "{} {}",
        decimal(whole),
        if whole == "1" { one } else { many }
    );
    match (whole.trim_matches('0').is_empty(), hundredths) {
        (true, 1..) => small_part,
        (_, 0) => format!(
            "{} {}",
            decimal(if whole.is_empty() { "0" } else { whole }),
            if whole == "1" { one } else { many }
        ),
        _ => format!("{large_part} and {small_part}"),
    }
}

fn per(unit: &str) -> String {
    let word = UNITS.iter().find(|it| it.0 == unit).map_or(unit, |it| it.1);
    format!(" per {}", small(word))
}

/// $5, $1,250.50, $1.5 million, $100k, $5-10, $3.50/hour.
fn sign_first(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let &(_, one, many, cent, cents) = money_names(part(captures, 1))?;
    let number = part(captures, 2);
    let second = part(captures, 5);
    let per = if part(captures, 7).is_empty() {
        String::new()
    } else {
        per(part(captures, 7))
    };
    let scale = part(captures, 6);
    // A single letter behind a space is a word: `$5 a day`.
    let scale = match scale.len() == 1 && part(captures, 0).contains(&format!(" {scale}")) {
        true => return None,
        false => scale,
    };
    let range = |many: &str| match second {
        "" => format!("{} {many}", decimal(number)),
        _ => format!("{} to {} {many}", decimal(number), decimal(second)),
    };
    let attribute = here.is_attribute() && per.is_empty();
    if let Some(scale) = look_up(SCALES, scale) {
        let unit = if attribute { one } else { many };
        return Some(match second {
            "" => format!("{} {scale} {unit}{per}", decimal(number)),
            _ => format!(
                "{} to {} {scale} {unit}{per}",
                decimal(number),
                decimal(second)
            ),
        });
    }
    let is_note = ["bill", "note", "bills", "notes", "coin", "gift"].contains(&here.word_behind());
    if (attribute || is_note) && second.is_empty() && !number.contains('.') {
        return Some(format!("{} {one}", decimal(number)));
    }
    if !second.is_empty() && !number.contains('.') && !second.contains('.') {
        return Some(format!("{}{per}", range(many)));
    }
    let first = amount(number, (one, many, cent, cents));
    Some(match second {
        "" => format!("{first}{per}"),
        _ => format!(
            "{first} to {}{per}",
            amount(second, (one, many, cent, cents))
        ),
    })
}

fn country_first(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let country = match part(captures, 1) {
        "US" => "U S",
        "C" | "CA" => "canadian",
        "A" | "AU" => "australian",
        "NZ" => "new zealand",
        _ => "hong kong",
    };
    let number = part(captures, 2);
    let unit = if number == "1" { "dollar" } else { "dollars" };
    Some(match look_up(SCALES, part(captures, 3)) {
        Some(scale) => format!("{} {scale} {country} {unit}", decimal(number)),
        None => format!("{} {country} {unit}", decimal(number)),
    })
}

fn rupees(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let number = decimal(part(captures, 2));
    let scale = part(captures, 3);
    let unit = if part(captures, 2) == "1" {
        "rupee"
    } else {
        "rupees"
    };
    Some(format!("{number} {scale} {unit}"))
}

/// 20€, 5 $, 25¢.
fn sign_last(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    // `5 $10 notes`: the sign belongs to what follows.
    if here
        .after
        .starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && !here.after.starts_with(". ")
        && here.after.len() > 1
    {
        return None;
    }
    let &(_, one, many, cent, cents) = money_names(part(captures, 3))?;
    let number = part(captures, 1);
    Some(match look_up(SCALES, part(captures, 2)) {
        Some(scale) => format!("{} {scale} {many}", decimal(number)),
        None => amount(number, (one, many, cent, cents)),
    })
}

fn code_last(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let name = look_up(CURRENCIES, part(captures, 3))?;
    let scale = look_up(SCALES, part(captures, 2)).unwrap_or("");
    Some(format!("{} {scale} {name}", decimal(part(captures, 1))))
}

fn feet_and_inches(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let inches = if part(captures, 2) == "1" {
        "inch"
    } else {
        "inches"
    };
    Some(format!(
        "{} feet {} {inches}",
        integer(part(captures, 1)),
        integer(part(captures, 2))
    ))
}

fn percent(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let first = format!("{} percent", decimal(part(captures, 1)));
    Some(match part(captures, 3) {
        "" => first,
        second => format!("{first} to {} percent", decimal(second)),
    })
}

fn degrees(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let scale = match part(captures, 2) {
        "C" => " celsius",
        "F" => " fahrenheit",
        "K" => " kelvin",
        _ => "",
    };
    let unit = if part(captures, 1) == "1" {
        "degree"
    } else {
        "degrees"
    };
    Some(format!("{} {unit}{scale}", decimal(part(captures, 1))))
}

/// 1.5M users, 10k, 3bn.
fn scaled(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let letter = part(captures, 2);
    if part(captures, 0).contains(' ') && (letter.len() == 1 || letter == "tn") {
        return None;
    }
    let next = here.word_behind();
    // `12B` may be a door: the others count what follows.
    if ["B", "T"].contains(&letter)
        && !(here.after.starts_with(' ') && next.starts_with(|c: char| c.is_ascii_lowercase()))
    {
        return None;
    }
    // A run of five kilometers.
    if letter.eq_ignore_ascii_case("k") && ["run", "race", "walk"].contains(&next) {
        return Some(format!("{} K", decimal(part(captures, 1))));
    }
    Some(format!(
        "{} {}",
        decimal(part(captures, 1)),
        look_up(SCALES, letter)?
    ))
}

fn squared(power: &str) -> &'static str {
    match power {
        "2" => "square ",
        "3" => "cubic ",
        _ => "",
    }
}

/// 5 km, 100 km/h, 10 m, 30 m^2, a 5 km run.
fn measure(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 0);
    let (number, between, short) = (part(captures, 1), part(captures, 2), part(captures, 3));
    let next = here.word_behind();
    let follows = here.after.starts_with(' ');
    // Behind a space these are words and letters more often than units.
    let is_word = match short {
        "in" => {
            between == " " && !text.ends_with('.') && !part(captures, 5).is_empty()
                || between == " " && !text.ends_with('.')
        }
        "A" | "N" | "J" | "K" | "ac" | "ha" | "mo" | "pt" | "cal" | "L" => {
            between == " " && follows && !next.is_empty() && next != "of"
        }
        "s" | "h" => {
            between == "-"
                || between == " "
                    && follows
                    && next.starts_with(|c: char| c.is_ascii_lowercase())
                    && next.len() > 9
        }
        // An initial: `221 W. 46th St.`
        "W" | "V" => {
            let rest = here.after.trim_start_matches([' ', '.']);
            between == " "
                && rest.starts_with(|c: char| c.is_ascii_digit() || c.is_ascii_uppercase())
        }
        "mos" | "ms" => false,
        _ => between == "-" && short.len() == 1,
    };
    if is_word {
        return None;
    }
    let &(_, one, many) = UNITS.iter().find(|unit| unit.0 == short)?;
    let is_one = number == "1" || here.is_attribute() || between == "-";
    let unit = if is_one { one } else { many };
    let mut words = format!("{} {}{unit}", decimal(number), squared(part(captures, 4)));
    let under = part(captures, 5);
    if !under.is_empty() {
        words += &per(under);
        words += match part(captures, 6) {
            "2" => " squared",
            "3" => " cubed",
            _ => "",
        };
    }
    // The point of `5 min.` is the sentence's too, where it ends.
    if text.ends_with('.') {
        return Some(here.end(&words, true));
    }
    Some(words)
}

fn sides(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    // 7 x 8 is a product, 7x8 a size.
    let sign = if part(captures, 0).contains(['×', ' ']) {
        "times"
    } else {
        "by"
    };
    let mut words = format!(
        "{} {sign} {}",
        integer(part(captures, 1)),
        integer(part(captures, 2))
    );
    if !part(captures, 3).is_empty() {
        words += &format!(" {sign} {}", integer(part(captures, 3)));
    }
    Some(words)
}

fn fold_times(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    // `2x + 1` has an unknown in it.
    let next = here.after.trim_start_matches(' ');
    let is_term = next.starts_with(['+', '-', '=', '*', '^', '/', '<', '>']);
    (!is_term).then(|| format!("{} times", integer(part(captures, 1))))
}

/// 1e-5.
fn exponent(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let minus = if part(captures, 2) == "-" {
        "minus "
    } else {
        ""
    };
    let power = part(captures, 3).trim_start_matches('0');
    let power = integer(if power.is_empty() { "0" } else { power });
    Some(format!(
        "{} times ten to the power of {minus}{power}",
        decimal(part(captures, 1))
    ))
}

/// x^2, 10^6, mc^2.
fn power(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let base = part(captures, 1);
    let base = match base.starts_with(|c: char| c.is_ascii_alphabetic()) {
        true => super::spelled(base),
        false => decimal(base),
    };
    Some(match (part(captures, 2), part(captures, 3)) {
        ("", "2") => format!("{base} squared"),
        ("", "3") => format!("{base} cubed"),
        (sign, power) => {
            let minus = if sign == "-" { "minus " } else { "" };
            let power = match power.starts_with(|c: char| c.is_ascii_digit()) {
                true => integer(power),
                false => super::spelled(power),
            };
            format!("{base} to the power of {minus}{power}")
        }
    })
}

fn nth(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let number: String = part(captures, 1)
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    Some(ordinal(number.parse().ok()?))
}

/// 1/2, 3/4; larger ones are read with "over".
fn fraction(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let over: u64 = part(captures, 1).parse().ok()?;
    let under: u64 = part(captures, 2).parse().ok()?;
    if here.after.starts_with('/') {
        return None;
    }
    // 2 1/2
    let before = &here.text[..here.at];
    let is_mixed = before.ends_with(' ')
        && before
            .trim_end_matches(' ')
            .ends_with(|c: char| c.is_ascii_digit())
        && over < under;
    let and = if is_mixed { "and " } else { "" };
    let name = match under {
        2 => "half".to_owned(),
        4 => "quarter".to_owned(),
        3 | 5..=20 | 100 | 1000 => ordinal(under),
        _ => return Some(format!("{and}{} over {}", cardinal(over), cardinal(under))),
    };
    let name = match over {
        1 => name,
        _ if under == 2 => "halves".to_owned(),
        _ => plural(&name),
    };
    Some(format!("{and}{} {name}", cardinal(over)))
}

/// 4.5/5 stars.
fn out_of(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(format!(
        "{} out of {}",
        decimal(part(captures, 1)),
        integer(part(captures, 2))
    ))
}

/// 15.6" where no quotation is open.
fn inches(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let is_open = here.text[..here.at].matches('"').count() % 2 == 1;
    let next = here.word_behind();
    let follows = here.after.starts_with(' ') && next.starts_with(|c: char| c.is_ascii_lowercase());
    let unit = if here.is_attribute() {
        "inch"
    } else {
        "inches"
    };
    (!is_open && follows).then(|| format!("{} {unit}", decimal(part(captures, 1))))
}

fn ratio(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(format!(
        "{} to {}",
        integer(part(captures, 1)),
        integer(part(captures, 2))
    ))
}

/// 1 000 000; a single group only where it is round.
fn spaced_groups(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 0);
    let is_one = text.matches(' ').count() == 1;
    (!is_one || text.ends_with(" 000")).then(|| decimal(text))
}

fn number(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 0);
    // A group too many: 1,2345.
    if text.contains(',') && here.after.starts_with(|c: char| c.is_ascii_digit()) {
        return Some(digits(text));
    }
    Some(decimal(text))
}
