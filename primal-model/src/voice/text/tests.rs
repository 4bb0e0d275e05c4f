//! Whole sentences as they should be spoken, and texts of any kind that must do no harm.

use super::*;

/// A thousand sentences, each with the words that a person would say for it, written by hand:
/// `text | words`. Letters called by their names are capitals, readings stand behind `/`, `.` is
/// the end of a sentence within the text.
const SENTENCES: &str = include_str!("../../../tests/speech/sentences.txt");

fn front_end() -> FrontEnd {
    FrontEnd::new().unwrap()
}

/// The words of a text, commas left out, one point for what ends a sentence within it.
fn words(front_end: &FrontEnd, text: &str) -> String {
    let reading = front_end.read(text).unwrap();
    let mut words: Vec<String> = Vec::new();
    for word in reading.tokens.into_iter().flat_map(|token| token.words) {
        match word.as_str() {
            "," => {}
            "." | "?" | "!" if words.last().is_none_or(|last| last == ".") => {}
            "." | "?" | "!" => words.push(".".to_owned()),
            // The letter and the word sound alike.
            "I" => words.push("i".to_owned()),
            _ => words.push(word),
        }
    }
    while words.last().is_some_and(|last| last == ".") {
        words.pop();
    }
    words.join(" ")
}

#[test]
fn a_thousand_sentences_are_read() {
    let front_end = front_end();
    let lines = SENTENCES.lines().filter(|line| !line.starts_with('#'));
    let (mut count, mut wrong) = (0, Vec::new());
    for line in lines {
        let (text, want) = line.split_once(" | ").unwrap();
        let want = want.replace(" I ", " i ");
        let want = want
            .strip_prefix("I ")
            .map_or(want.clone(), |rest| format!("i {rest}"));
        let got = words(&front_end, text);
        count += 1;
        if got != want {
            wrong.push(format!("{text}\n  want {want}\n  got  {got}"));
        }
    }
    assert!(count >= 1000, "{count}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_right_before_stays_right() {
    let front_end = front_end();
    for (text, want) in [
        (
            "That's $0.99 or €1.",
            "that's ninety nine cents or one euro",
        ),
        (
            "In 1984, George Orwell...",
            "in nineteen eighty four george orwell",
        ),
        (
            "St. Paul met Mrs. Jones vs. Mr. Brown.",
            "saint paul met missus jones versus mister brown",
        ),
        (
            "He ran 5 km in 20 min at 10mph.",
            "he ran five kilometers in twenty minutes at ten miles per hour",
        ),
        (
            "well-known (very) re-use -- yes",
            "well known very re use/verb yes",
        ),
        (
            "Version 1.2.3 of 007",
            "version one point two point three of zero zero seven",
        ),
        ("Wait... what?! No!!", "wait . what . no"),
    ] {
        assert_eq!(words(&front_end, text), want, "{text}");
    }
}

#[test]
fn what_cannot_be_said_is_named_once() {
    let front_end = front_end();
    let reading = front_end
        .read("First. Привет. Third, Привет 😀 καλός.")
        .unwrap();
    assert_eq!(reading.unspoken, ["Привет", "😀", "καλός"]);
    assert_eq!(reading.sentences.len(), 2);
    for text in ["", "   ", "日本語", "...", "?!,", "***", "{}", "\u{0}\u{7}"] {
        assert!(
            front_end.read(text).unwrap().sentences.is_empty(),
            "{text:?}"
        );
    }
    for text in [
        "\"Quoted\" *text* (with) [signs] - it's fine; e.g. π, ①, ＡＢＣ, © & √2 ± 5!",
        "50 % «ja» #7 a_b {x} ~ | \\",
    ] {
        assert!(front_end.read(text).unwrap().unspoken.is_empty(), "{text}");
    }
}

#[test]
fn phonemes_in_braces_are_taken_as_they_are() {
    let front_end = front_end();
    let said = |text: &str| front_end.sentences(text).unwrap()[0].to_string();
    assert_eq!(said("{HH AH0 L ow1 | Z ey}."), "HH AH0 L OW1 | Z EY1 .");
    assert_eq!(said("a {braces} b"), said("a braces b"));
    assert_eq!(said("open { brace"), said("open brace"));
    assert!(
        matches!(front_end.read("{HH QQ}"), Err(Unreadable::UnknownPhoneme { name }) if name == "QQ")
    );
    assert!(matches!(
        front_end.read("{HH ,}"),
        Err(Unreadable::UnknownPhoneme { .. })
    ));
    assert!(matches!(
        front_end.read("a {HH AH0"),
        Err(Unreadable::OpenBrace { .. })
    ));
}

#[test]
fn tokens_say_what_they_were_taken_for() {
    let front_end = front_end();
    let kinds = |text: &str| -> Vec<&str> {
        let tokens = front_end.read(text).unwrap().tokens;
        tokens.iter().map(|token| token.kind.name()).collect()
    };
    assert_eq!(kinds("Call 555-0134."), ["word", "digits", "pause"]);
    assert_eq!(
        kinds("Dr. Li read 12/25/2024"),
        ["abbreviation", "word", "homograph", "date"]
    );
    assert_eq!(
        kinds("Henry VIII a@b.org $5 10 km/h"),
        ["word", "roman numeral", "email", "money", "measure"]
    );
    assert_eq!(
        kinds("3rd 1984 U.S. 192.168.0.1"),
        ["ordinal", "year", "initials", "ip address"]
    );
    let reading = front_end.read("I wind 2").unwrap();
    let sounds: Vec<String> = reading
        .tokens
        .iter()
        .map(|token| {
            let names: Vec<&str> = token
                .phonemes
                .iter()
                .flatten()
                .map(|it| it.name())
                .collect();
            names.join(" ")
        })
        .collect();
    assert_eq!(sounds, ["AY1", "W AY1 N D", "T UW1"]);
}

#[test]
fn sentences_end_in_a_pause() {
    let front_end = front_end();
    let read = |text: &str| -> Vec<String> {
        let sentences = front_end.sentences(text).unwrap();
        sentences.iter().map(Sentence::to_string).collect()
    };
    assert_eq!(
        read("Yes, we can! Is it 3rd"),
        ["Y EH1 S , W IY1 | K AE1 N !", "IH1 Z | IH1 T | TH ER1 D ."]
    );
    assert_eq!(read("so,"), ["S OW1 ,"]);
    assert_eq!(
        read("Heading\n\nText"),
        ["HH EH1 D IH0 NG .", "T EH1 K S T ."]
    );
    assert!(read("?! \u{1f600} ... , ").is_empty());
}

#[test]
fn long_texts_are_cut() {
    let front_end = front_end();
    for text in ["well ".repeat(4000), "well, ".repeat(4000)] {
        let sentences = front_end.sentences(&text).unwrap();
        let vowels = sentences
            .iter()
            .flat_map(|it| &it.symbols)
            .filter(|it| it.is_vowel());
        assert_eq!(vowels.count(), 4000);
        for sentence in &sentences {
            assert!(sentence.symbols.len() <= 2 * LONG_SENTENCE + 1);
            assert!(!sentence.symbols.last().unwrap().is_phoneme());
        }
    }
}

#[test]
fn no_text_is_too_odd() {
    let front_end = front_end();
    let parts = [
        "$", "1", ",", ".", "/", ":", "-", "s", "'", "#", "é", "½", "—", "°C", "A.", " ", "e.g",
        "0", "{", "}", "@", "%", "<=", "km", "XIV", "π", "²", "\u{ad}", "日", "😀", "Jan ", "am",
        "€", "\n", "^", "~", "St.", "999", "\u{301}",
    ];
    // Random rows of parts and of any characters (SplitMix64).
    let mut state = 7_u64;
    let mut random = |limit: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    };
    for _ in 0..3000 {
        let mut text = String::new();
        for _ in 0..random(12) {
            match random(4) {
                0 => text.extend(char::from_u32(random(0x11_0000) as u32)),
                1 => text.extend(char::from_u32(random(0x3000) as u32)),
                _ => text.push_str(parts[random(parts.len())]),
            }
        }
        if let Ok(reading) = front_end.read(&text) {
            for sentence in reading.sentences {
                assert!(!sentence.symbols.is_empty(), "{text:?}");
            }
        }
    }
}
