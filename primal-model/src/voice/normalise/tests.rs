//! Whole sentences as they should be spoken.

use super::*;

/// Words with letters in capitals and pauses as they are.
fn read(text: &str) -> String {
    let pieces = normalise(text).unwrap();
    let words = pieces.iter().map(|piece| match piece {
        Piece::Word(word) => word.clone(),
        Piece::Letter(letter) => letter.to_ascii_uppercase().to_string(),
        Piece::Phonemes(symbols) => format!("{{{}}}", symbols.len()),
        Piece::Pause(symbol) => symbol.to_string(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn real_sentences_are_read() {
    for (text, want) in [
        ("Hello, world!", "hello , world !"),
        ("It cost $5.", "it cost five dollars ."),
        (
            "It cost $1,250.50!",
            "it cost one thousand two hundred fifty dollars and fifty cents !",
        ),
        (
            "They raised £3.2 million.",
            "they raised three point two million pounds .",
        ),
        (
            "That's $0.99 or €1.",
            "that's ninety nine cents or one euro .",
        ),
        (
            "In 1984, George Orwell...",
            "in nineteen eighty four , george orwell .",
        ),
        (
            "From 1914-1918 and 1939–1945",
            "from nineteen fourteen to nineteen eighteen and nineteen thirty nine to nineteen forty five",
        ),
        (
            "the 1990s and the '90s",
            "the nineteen nineties and the nineties",
        ),
        (
            "the 21st of May, the 3rd, 100th",
            "the twenty first of may , the third , one hundredth",
        ),
        (
            "Dr. Smith lives on Elm St. near Mt. Hood.",
            "doctor smith lives on elm street near mount hood .",
        ),
        (
            "St. Paul met Mrs. Jones vs. Mr. Brown.",
            "saint paul met missus jones versus mister brown .",
        ),
        (
            "J. R. R. Tolkien and the U.S.A. won",
            "J R R tolkien and the U S A won",
        ),
        (
            "The FBI, NASA and the BBC.",
            "the F B I , nasa and the B B C .",
        ),
        (
            "At 3:30 pm, 3:05 a.m. and 12:00.",
            "at three thirty pm , three oh five A M and twelve o'clock .",
        ),
        (
            "Pi is 3.14159, not 3.",
            "pi is three point one four one five nine , not three .",
        ),
        (
            "-5 degrees, 20°C, 50%",
            "minus five degrees , twenty degrees celsius , fifty percent",
        ),
        (
            "He ran 5 km in 20 min at 10mph.",
            "he ran five kilometers in twenty min at ten miles per hour .",
        ),
        (
            "1/2 of it, 3/4 cup, 2 1/2 miles",
            "one half of it , three quarters cup , two and one half miles",
        ),
        ("No. 10 and #7", "number ten and number seven"),
        (
            "e.g. this, i.e. that, etc.",
            "for example this , that is that , et cetera .",
        ),
        (
            "well-known (very) re-use -- yes",
            "well known , very , re use yes",
        ),
        (
            "Rock & roll @ home + 1 = fun",
            "rock and roll at home plus one equals fun",
        ),
        ("Café naïve “quoted” it’s", "cafe naive quoted it's"),
        (
            "Version 1.2.3 of 007",
            "version one point two point three of zero zero seven",
        ),
        (
            "Call 12345678901234567890123.",
            "call one two three four five six seven eight nine zero one two three four five six seven eight nine zero one two three .",
        ),
        (
            "1500 people in 1500",
            "one thousand five hundred people in fifteen hundred",
        ),
        ("Wait... what?! No!!", "wait . what ? no !"),
        ("THIS IS SO VERY LOUD", "this is so very loud"),
        ("I am. So am I.", "i am . so am i ."),
    ] {
        assert_eq!(read(text), want, "{text}");
    }
}

#[test]
fn what_has_no_sound_is_passed_over() {
    for text in [
        "",
        "   ",
        "\u{1f600}\u{1f601}",
        "日本語",
        "...",
        "?!,",
        "***",
        "{}",
        "\u{0}\u{7}",
    ] {
        assert_eq!(read(text), "", "{text:?}");
    }
    assert_eq!(read("hi \u{1f600} there"), "hi there");
}

#[test]
fn phonemes_in_braces_are_taken_as_they_are() {
    let pieces = normalise("say {HH AH0 l ow1 | Z ey}.").unwrap();
    let Piece::Phonemes(symbols) = &pieces[1] else {
        panic!("{pieces:?}");
    };
    let names: Vec<&str> = symbols.iter().map(|it| it.name()).collect();
    assert_eq!(names, ["HH", "AH0", "L", "OW1", " ", "Z", "EY1"]);
    assert!(
        matches!(normalise("{HH QQ}"), Err(VoiceError::UnknownPhoneme { name }) if name == "QQ")
    );
    assert!(matches!(
        normalise("{HH ,}"),
        Err(VoiceError::UnknownPhoneme { .. })
    ));
    assert!(matches!(
        normalise("a {HH AH0"),
        Err(VoiceError::OpenBrace { .. })
    ));
}

#[test]
fn no_text_is_too_odd() {
    let signs = [
        "$", "1", ",", ".", "/", ":", "-", "s", "'", "#", "é", "½", "—", "°C", "A.", " ", "e.g",
        "0",
    ];
    for a in signs {
        for b in signs {
            for c in signs {
                for d in signs {
                    assert!(normalise(&format!("{a}{b}{c}{d}")).is_ok());
                }
            }
        }
    }
}
