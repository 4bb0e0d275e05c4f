//! Characters to those that the rules know: compatibility forms, letters with marks, signs of
//! typography, raised and lowered digits.

use unicode_normalization::UnicodeNormalization;

/// Letters that Unicode does not take apart.
const LETTERS: [(char, &str); 16] = [
    ('ß', "ss"),
    ('ẞ', "SS"),
    ('æ', "ae"),
    ('Æ', "Ae"),
    ('œ', "oe"),
    ('Œ', "Oe"),
    ('ø', "o"),
    ('Ø', "O"),
    ('ł', "l"),
    ('Ł', "L"),
    ('đ', "d"),
    ('Đ', "D"),
    ('ð', "th"),
    ('þ', "th"),
    ('Þ', "Th"),
    ('ı', "i"),
];

/// Signs that are written in several ways, or that compatibility would turn into something else.
const SIGNS: [(&str, &str); 13] = [
    ("’‘ʼ`´", "'"),
    ("“”„«»‟″", "\""),
    ("–—―", "—"),
    ("−﹣－", "-"),
    ("‐‑‒", "-"),
    ("…", "..."),
    ("⁄", "/"),
    ("º˚", "°"),
    ("µ", "μ"),
    ("№", "number "),
    ("≠", "≠"),
    ("™", "™"),
    ("•·‣◦", " "),
];

/// Characters without a sound of their own that may stand within a word.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
        | '\u{feff}' | '\u{fe00}'..='\u{fe0f}')
}

/// What raised characters are on the line.
fn lowered(c: char) -> Option<char> {
    let raised = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ";
    let at = raised.chars().position(|it| it == c)?;
    "0123456789+-n".chars().nth(at)
}

/// Folds a text. Other scripts, emoji and signs without a plain form stay as they are.
pub(super) fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    let mut is_raised = false;
    for c in text.chars() {
        if c.is_ascii() {
            folded.push(c);
            is_raised = false;
            continue;
        }
        if is_invisible(c) {
            continue;
        }
        if let Some(plain) = lowered(c) {
            if !is_raised {
                folded.push('^');
            }
            folded.push(plain);
            is_raised = true;
            continue;
        }
        is_raised = false;
        let letter = LETTERS
            .iter()
            .find(|(it, _)| *it == c)
            .map(|(_, plain)| *plain);
        let sign = || {
            SIGNS
                .iter()
                .find(|(all, _)| all.contains(c))
                .map(|(_, plain)| *plain)
        };
        match letter.or_else(sign) {
            Some(plain) => folded.push_str(plain),
            None => decompose(c, &mut folded),
        }
    }
    folded
}

/// Takes a character apart and keeps what has a plain form: `é`, `ﬁ`, `Ａ`, `½`, `①`.
fn decompose(c: char, folded: &mut String) {
    let parts: String = std::iter::once(c).nfkd().collect();
    let is_number = matches!(c, '①'..='⓿') || parts.contains('⁄');
    if is_number && folded.ends_with(|c: char| c.is_ascii_alphanumeric()) {
        folded.push(' ');
    }
    let is_plain = |c: char| c.is_ascii() || c == '⁄' || c == '°';
    if parts.chars().next().is_some_and(is_plain) {
        let kept = parts.chars().filter(|&c| is_plain(c));
        folded.extend(kept.map(|c| if c == '⁄' { '/' } else { c }));
    } else if !unicode_normalization::char::is_combining_mark(c) {
        folded.push(c);
    } else if folded.is_empty() || folded.ends_with(|c: char| !c.is_ascii_alphabetic()) {
        // A mark behind another script belongs to it.
        folded.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn characters_become_plain() {
        for (text, want) in [
            ("ﬁne ＡＢＣ Nguyễn", "fine ABC Nguyen"),
            ("co\u{ad}operate naïve", "cooperate naive"),
            ("e\u{301}te\u{301}", "ete"),
            ("10²³ mc² x⁻⁵ H₂O", "10^23 mc^2 x^-5 H2O"),
            ("3½ ¼ 1⁄2", "3 1/2 1/4 1/2"),
            ("20 ℃ ≠ ™ №5", "20 °C ≠ ™ number 5"),
            ("Straße Łódź œuvre", "Strasse Lodz oeuvre"),
            ("Привет 日本 😀 ①", "Привет 日本 😀 1"),
        ] {
            assert_eq!(fold(text), want);
        }
    }
}
