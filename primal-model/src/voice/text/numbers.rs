//! Numbers as English words.

const UNITS: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = [
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];
const GROUPS: [&str; 7] = [
    "",
    "thousand",
    "million",
    "billion",
    "trillion",
    "quadrillion",
    "quintillion",
];

/// 1234 → one thousand two hundred thirty four.
pub(super) fn cardinal(number: u64) -> String {
    if number == 0 {
        return UNITS[0].to_owned();
    }
    let mut words = Vec::new();
    for (index, group) in GROUPS.iter().enumerate().rev() {
        let part = number / 1000_u64.pow(index as u32) % 1000;
        if part == 0 {
            continue;
        }
        if part >= 100 {
            words.push(UNITS[(part / 100) as usize]);
            words.push("hundred");
        }
        two_digits(part % 100, &mut words);
        words.push(group);
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

fn two_digits(number: u64, words: &mut Vec<&'static str>) {
    match number {
        0 => {}
        1..20 => words.push(UNITS[number as usize]),
        _ => {
            words.push(TENS[(number / 10) as usize]);
            two_digits(number % 10, words);
        }
    }
}

/// 21 → twenty first.
pub(super) fn ordinal(number: u64) -> String {
    let words = cardinal(number);
    let (front, last) = words
        .rsplit_once(' ')
        .map_or(("", &*words), |(front, last)| (front, last));
    let last = match last {
        "one" => "first".to_owned(),
        "two" => "second".to_owned(),
        "three" => "third".to_owned(),
        "five" => "fifth".to_owned(),
        "eight" => "eighth".to_owned(),
        "nine" => "ninth".to_owned(),
        "twelve" => "twelfth".to_owned(),
        other => match other.strip_suffix('y') {
            Some(stem) => format!("{stem}ieth"),
            None => format!("{other}th"),
        },
    };
    join(front, &last)
}

/// 1984 → nineteen eighty four; below 1000 and from 10,000 on as [`cardinal`].
pub(super) fn year(number: u64) -> String {
    let (century, rest) = (number / 100, number % 100);
    if !(1000..10_000).contains(&number) || century.is_multiple_of(10) && rest < 10 {
        return cardinal(number);
    }
    let rest = match rest {
        0 => "hundred".to_owned(),
        1..10 => format!("oh {}", cardinal(rest)),
        _ => cardinal(rest),
    };
    join(&cardinal(century), &rest)
}

/// 1990 → nineteen nineties.
pub(super) fn decade(number: u64) -> String {
    plural(&year(number))
}

/// The plural of the last word.
pub(super) fn plural(words: &str) -> String {
    match words.strip_suffix('y') {
        Some(stem) if !words.ends_with("ey") && !words.ends_with("ay") => format!("{stem}ies"),
        _ if words.ends_with(['x', 's']) || words.ends_with("ch") => format!("{words}es"),
        _ => format!("{words}s"),
    }
}

/// 0042 → zero zero four two.
pub(super) fn digits(text: &str) -> String {
    let words = text.bytes().filter(u8::is_ascii_digit);
    let words: Vec<&str> = words
        .map(|digit| UNITS[usize::from(digit - b'0')])
        .collect();
    words.join(" ")
}

fn join(front: &str, last: &str) -> String {
    match front {
        "" => last.to_owned(),
        _ => format!("{front} {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        for (number, words) in [
            (0, "zero"),
            (7, "seven"),
            (13, "thirteen"),
            (40, "forty"),
            (99, "ninety nine"),
            (100, "one hundred"),
            (110, "one hundred ten"),
            (1_000, "one thousand"),
            (1_000_001, "one million one"),
            (12_345, "twelve thousand three hundred forty five"),
            (1_000_000_000_000, "one trillion"),
        ] {
            assert_eq!(cardinal(number), words);
        }
        assert!(cardinal(u64::MAX).starts_with("eighteen quintillion four hundred"));
    }

    #[test]
    fn ordinals_and_years_are_read() {
        for (number, words) in [
            (1, "first"),
            (2, "second"),
            (3, "third"),
            (5, "fifth"),
            (12, "twelfth"),
            (20, "twentieth"),
            (21, "twenty first"),
            (100, "one hundredth"),
            (108, "one hundred eighth"),
        ] {
            assert_eq!(ordinal(number), words);
        }
        for (number, words) in [
            (1066, "ten sixty six"),
            (1900, "nineteen hundred"),
            (1905, "nineteen oh five"),
            (1984, "nineteen eighty four"),
            (2000, "two thousand"),
            (2007, "two thousand seven"),
            (2026, "twenty twenty six"),
            (476, "four hundred seventy six"),
        ] {
            assert_eq!(year(number), words);
        }
        assert_eq!(decade(1990), "nineteen nineties");
        assert_eq!(decade(1900), "nineteen hundreds");
        assert_eq!(digits("007"), "zero zero seven");
        assert_eq!(
            [plural("dollar"), plural("penny"), plural("inch")],
            ["dollars", "pennies", "inches"]
        );
    }
}
