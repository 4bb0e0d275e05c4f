//! Words, abbreviations, initials and Roman numerals.

use regex::Captures;

use super::super::numbers::{cardinal, ordinal};
use super::super::tables::{
    A_BEHIND, ABBREVIATIONS, ALSO_WORDS, BEFORE_NUMBER, FIXED, IT_BEFORE, LETTERED, MAY_END,
    MONTHS, NUMBERED, RULERS, SPOKEN_AS, SPOKEN_CAPITALS,
};
use super::super::token::Kind;
use super::{Here, Rule, glued, look_up, part, rule, small, spelled};

/// Tried before all others.
pub(super) const FIXED_RULES: &[Rule] = &[glued(Kind::Abbreviation, "a.d", r"(?i:<FIXED>)", fixed)];

pub(super) const RULES: &[Rule] = &[
    glued(
        Kind::Abbreviation,
        "a",
        r"([A-Za-z]{1,4})\. ?",
        before_number,
    ),
    rule(
        Kind::Date,
        "A",
        r"(?:Mon|Tues|Tue|Wed|Thurs|Thur|Thu|Fri)",
        day,
    ),
    rule(Kind::Initials, "a", r"([AaPp])\.[Mm]\.", half_of_day),
    rule(
        Kind::Initials,
        "a",
        r"((?:[A-Za-z]\.){2,}[A-Za-z]?)('s)?",
        points,
    ),
    rule(Kind::Initials, "A", r"([A-Z])\.", initial),
    glued(Kind::Abbreviation, "a", r"([A-Za-z]+)\.", abbreviation),
    rule(Kind::Roman, "A", r"[IVXLCDM]+", roman),
    rule(Kind::Initials, "A", r"([A-Z])&([A-Z])", and),
    rule(Kind::Initials, "A", r"([A-Z]{2,})('s|s)?", capitals),
    rule(
        Kind::Abbreviation,
        "a",
        r"[A-Za-z]+(?:'[A-Za-z]+)?",
        spoken_as,
    ),
    rule(Kind::Initials, "a", r"([A-Za-z])('s)?", letter),
    // A prefix before a hyphen has a sound of its own.
    glued(Kind::Word, "a'", r"'?[A-Za-z]+(?:'[A-Za-z]+)*'?", word),
];

fn fixed(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let text = part(captures, 0);
    let starts = here.text[..here.at].ends_with(char::is_alphanumeric);
    let ends = here.after.starts_with(char::is_alphanumeric);
    // A sign at the end needs no room behind it: `w/cheese`.
    if starts
        || ends && !text.ends_with('/')
        || text.starts_with('.') && here.text[..here.at].ends_with(|c: char| !c.is_whitespace())
    {
        return None;
    }
    let is_case = |it: &str| {
        it == text
            || it.len() > 3 && it.eq_ignore_ascii_case(text)
            || it.contains('.') && it.eq_ignore_ascii_case(text)
    };
    let words = FIXED
        .iter()
        .find(|(it, _)| is_case(it))
        .map(|(_, words)| *words)?;
    // `9/11/2001` and `24/75` are something else.
    if text.starts_with(|c: char| c.is_ascii_digit())
        && here.after.starts_with(['/', '.', ','])
        && here.after[1..].starts_with(|c: char| c.is_ascii_digit())
    {
        return None;
    }
    if text.starts_with("A+") || text.starts_with("B+") || text.starts_with("C+") && text.len() == 2
    {
        // `A+B`
        if ends {
            return None;
        }
    }
    Some(match text.ends_with("D.") {
        true => here.end(words, true),
        false => words.to_owned(),
    })
}

/// No. 5, p. 12, Ch. IV, Apt. 4B.
fn before_number(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    if here.text[..here.at].ends_with(char::is_alphanumeric) {
        return None;
    }
    let short = small(part(captures, 1));
    let long = look_up(BEFORE_NUMBER, &short)?;
    let next = here.after.chars().next()?;
    let is_number = next.is_ascii_digit() || next == '#';
    let is_label = ["apt", "rm", "fig", "ch", "vol", "sec", "art", "eq"].contains(&short.as_str())
        && next.is_ascii_uppercase()
        && !here
            .after
            .chars()
            .nth(1)
            .is_some_and(|c| c.is_ascii_lowercase());
    (is_number || is_label).then(|| long.to_owned())
}

/// A day without its point, before a comma or a date: `Tue, Feb 29`.
fn day(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let next = small(here.word_behind());
    let is_date = MONTHS
        .iter()
        .any(|month| next.len() > 2 && month.starts_with(&next));
    let is_day = here.after.starts_with(',')
        || is_date
        || here
            .after
            .trim_start()
            .starts_with(|c: char| c.is_ascii_digit());
    let long = look_up(ABBREVIATIONS, &small(part(captures, 0)))?;
    is_day.then(|| long.to_owned())
}

fn half_of_day(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(here.end(
        &format!("{} M", part(captures, 1).to_ascii_uppercase()),
        true,
    ))
}

/// U.S.A., U.S.'s, D.C., J.R.R.
fn points(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let letters = part(captures, 1);
    // `a.b.c` in small letters may be anything; two letters at least are capitals.
    if letters.starts_with(|c: char| c.is_ascii_lowercase()) && !letters.ends_with('.') {
        return None;
    }
    let words = spelled(letters) + part(captures, 2);
    Some(
        match letters.ends_with('.') && part(captures, 2).is_empty() {
            true => here.end(&words, true),
            false => words,
        },
    )
}

/// One letter alone must be followed by a name, or else its point ends the sentence.
fn initial(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let letter = part(captures, 1);
    let next = here.after.trim_start_matches(' ');
    let is_name = next.starts_with(|c: char| c.is_ascii_uppercase());
    let before = here.word_before();
    // "So am I. Then" and "Vitamin C. It".
    let is_sentence = letter == "I" || here.is_last(true) || A_BEHIND.contains(&before.as_str());
    // `221 W. 46th St.`
    let is_address =
        before.parse::<u32>().is_ok() && next.starts_with(|c: char| c.is_ascii_digit());
    (is_name && !is_sentence || is_address).then(|| letter.to_owned())
}

fn abbreviation(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    if here.text[..here.at].ends_with(|c: char| c.is_alphanumeric())
        || here.after.starts_with(char::is_alphanumeric)
    {
        return None;
    }
    let word = part(captures, 1);
    let short = small(word);
    let long = look_up(ABBREVIATIONS, &short)?;
    let is_capital = word.starts_with(|c: char| c.is_ascii_uppercase());
    let is_upper = word.len() > 1 && word.bytes().all(|byte| byte.is_ascii_uppercase());
    if !is_capital && ALSO_WORDS.contains(&short.as_str())
        || is_upper && short != "st" && short != "dr" && short != "mr"
    {
        return None;
    }
    let next = here.after.trim_start_matches([' ', '\n']);
    let name_follows = next.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit());
    let is_title = name_follows && !here.is_last(true);
    // `Al. He` and `Max. He` are people at the end of a sentence.
    if short == "al" && here.word_before() != "et"
        || short == "max" && is_capital && !next.starts_with(|c: char| c.is_ascii_lowercase())
    {
        return None;
    }
    let is_title_only = [
        "hon", "rep", "gen", "sen", "col", "gov", "pres", "maj", "adm", "cpl", "rev", "ft", "fig",
    ];
    if is_title_only.contains(&short.as_str()) && !name_follows {
        return None;
    }
    // "The temp. is", "max. speed", but also "Ask the temp."
    if ["min", "max", "temp"].contains(&short.as_str())
        && !next.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
    {
        return None;
    }
    let long = match short.as_str() {
        "st" if !is_title => "street",
        "dr" if !is_title
            && !["his", "her", "my", "the", "a", "your", "our"]
                .contains(&here.word_before().as_str()) =>
        {
            "drive"
        }
        // A street after its name, before a town: `Elm St., Boston`.
        _ => long,
    };
    let may_end = MAY_END.contains(&short.as_str())
        || ["street", "drive", "avenue", "road", "boulevard", "lane"].contains(&long);
    Some(here.end(long, may_end))
}

fn value(numeral: &str) -> Option<u64> {
    let digit = |byte| match byte {
        b'I' => 1,
        b'V' => 5,
        b'X' => 10,
        b'L' => 50,
        b'C' => 100,
        b'D' => 500,
        _ => 1000,
    };
    let bytes = numeral.as_bytes();
    let mut sum: u64 = 0;
    for (index, &byte) in bytes.iter().enumerate().take(15) {
        let is_taken_off = bytes
            .get(index + 1)
            .is_some_and(|&next| digit(next) > digit(byte));
        sum = match is_taken_off {
            true => sum
                .checked_sub(digit(byte))
                .or(Some(0).filter(|_| false))
                .unwrap_or_else(|| sum.wrapping_sub(digit(byte))),
            false => sum.wrapping_add(digit(byte)),
        };
    }
    (written(sum) == numeral).then_some(sum)
}

/// The one way in which a number is written; longer than any numeral where there is none.
fn written(mut number: u64) -> String {
    let mut numeral = String::new();
    if number > 3999 {
        return numeral;
    }
    for (worth, letters) in [
        (1000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ] {
        while number >= worth {
            numeral.push_str(letters);
            number -= worth;
        }
    }
    numeral
}

/// Henry VIII, World War II, Chapter IV, the XIX century.
fn roman(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let numeral = part(captures, 0);
    let number = value(numeral)?;
    let next = small(here.word_behind());
    if ["century", "centuries"].contains(&next.as_str()) {
        return Some(ordinal(number));
    }
    let before_text = here.text[..here.at].trim_end_matches([' ', '.']);
    if before_text.len() == here.at || before_text.ends_with(|c: char| !c.is_alphanumeric()) {
        return None;
    }
    let before = here.word_before();
    let start = before_text.len() - before.len().min(before_text.len());
    let is_name = before_text
        .get(start..)
        .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_uppercase()));
    let speaks = [
        "am", "was", "think", "have", "know", "saw", "love", "will", "would", "can", "had", "do",
        "did", "could", "want", "said", "met", "need", "like", "must", "went", "read", "wrote",
        "liked", "found", "don't", "feel", "see",
    ];
    // "Elizabeth I think": the word, not the numeral.
    if numeral == "I"
        && speaks.contains(&next.as_str())
        && !(is_name
            && ["was", "had", "did"].contains(&next.as_str())
            && RULERS.contains(&before.as_str()))
    {
        return None;
    }
    if is_name
        && RULERS.contains(&before.as_str())
        && numeral != "C"
        && numeral != "D"
        && numeral != "M"
        && numeral != "L"
    {
        return Some(format!("the {}", ordinal(number)));
    }
    if ["ch", "vol", "sec", "art", "no", "pt"].contains(&before.as_str())
        || NUMBERED.contains(&before.as_str()) && (is_name || numeral.len() > 1)
    {
        return Some(cardinal(number));
    }
    let is_plain = numeral.len() > 1 && numeral.bytes().all(|byte| b"IVX".contains(&byte));
    (is_plain && is_name && !here.shouts()).then(|| cardinal(number))
}

fn and(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    Some(format!("{} and {}", part(captures, 1), part(captures, 2)))
}

/// FBI, CEOs, NASA's; a text all in capitals has words.
fn capitals(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let word = part(captures, 1);
    let lower = small(word);
    let suffix = part(captures, 2);
    let vowels = lower
        .bytes()
        .filter(|byte| b"aeiouy".contains(byte))
        .count();
    let is_short = word.len() <= 3 && !SPOKEN_CAPITALS.contains(&lower.as_str());
    let before = here.word_before();
    let is_known = LETTERED.contains(&lower.as_str());
    let is_it = lower == "it"
        && !here.shouts()
        && (IT_BEFORE.contains(&here.word_behind())
            || ["in", "our", "the", "an", "your"].contains(&before.as_str()));
    let is_am = lower == "am" && before.parse::<u64>().is_ok();
    let spoken =
        look_up(SPOKEN_AS, &lower).filter(|_| !is_short || lower == "vs" || lower == "ios");
    if let Some(spoken) = spoken.filter(|_| suffix.is_empty()) {
        return Some(spoken.to_owned());
    }
    let is_spelt = vowels == 0
        || !is_sayable(&lower) && !here.shouts()
        || !is_sayable(&lower) && !here.shouts()
        || is_known
        || is_it
        || is_am
        || is_short && !here.shouts();
    if !is_spelt {
        return None;
    }
    let letters = spelled(&lower);
    Some(if suffix.is_empty() {
        letters
    } else {
        format!("{letters}'s")
    })
}

/// Whether a word begins and ends as English words do: NATO and OPEC, but not HVAC and LAPD.
fn is_sayable(word: &str) -> bool {
    const ONSETS: &str = "bl br ch cl cr dr dw fl fr gl gr gn kl kn kr ph pl pr ps qu sc sh sk \
        sl sm sn sp sq st sw th tr tw wh wr";
    const CODAS: &str = "ch ck ct ds ff ft gh gn gs ks lb ld lf lk ll lm lp ls lt mb mn mp ms nd \
        ng nk nn ns nt ps pt rb rc rd rf rg rk rl rm rn rp rs rt sh sk sm sp ss st th ts tt wn ws xt zz";
    let sounds = |pair: Option<&str>, all: &str| {
        pair.is_none_or(|pair| {
            pair.contains(['a', 'e', 'i', 'o', 'u', 'y'])
                || all.split_ascii_whitespace().any(|it| it == pair)
        })
    };
    sounds(word.get(..2), ONSETS) && sounds(word.get(word.len().saturating_sub(2)..), CODAS)
}

fn spoken_as(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    look_up(SPOKEN_AS, &small(part(captures, 0))).map(str::to_owned)
}

/// A letter alone is called by its name, but for `a` and `I`.
fn letter(here: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let letter = part(captures, 1);
    let suffix = part(captures, 2);
    let rest = here.after;
    // O'Brien, o'clock.
    if rest.starts_with('\'') && rest[1..].starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let named_a = (letter == "A")
        && (A_BEHIND.contains(&here.word_before().as_str())
            || [
                " to Z", " or B", " and B", " & ", "-side", "-list", " minus", ", B",
            ]
            .iter()
            .any(|it| rest.starts_with(it))
            || suffix == "'s"
            || here.text[..here.at].trim_end().ends_with(['=', '+']));
    if suffix.is_empty()
        && (letter == "a" || letter == "A" && !named_a || letter.eq_ignore_ascii_case("i"))
    {
        return None;
    }
    Some(format!("{}{suffix}", letter.to_ascii_uppercase()))
}

fn word(_: &Here<'_>, captures: &Captures<'_>) -> Option<String> {
    let word = small(part(captures, 0));
    let word = word.trim_matches('\'');
    Some(word.to_owned())
}
