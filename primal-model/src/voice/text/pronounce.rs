//! Words to phonemes: the CMU dictionary, its words with endings and in compounds, and for the
//! rest rules learned from it. Files and rules are made by `tools/voice/make_pronunciations.py`.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;

use super::symbol::Symbol;

const DICTIONARY: &[u8] = include_bytes!("../../../assets/cmudict.gz");
const RULES: &[u8] = include_bytes!("../../../assets/letter_to_sound.gz");

/// Letters to the left and right of a letter that rules look at, the largest first.
const CONTEXTS: [(usize, usize); 9] = [
    (4, 4),
    (3, 4),
    (3, 3),
    (2, 3),
    (2, 2),
    (1, 2),
    (1, 1),
    (0, 1),
    (0, 0),
];

/// Names of the letters.
const LETTERS: [&str; 26] = [
    "EY1",
    "B IY1",
    "S IY1",
    "D IY1",
    "IY1",
    "EH1 F",
    "JH IY1",
    "EY1 CH",
    "AY1",
    "JH EY1",
    "K EY1",
    "EH1 L",
    "EH1 M",
    "EH1 N",
    "OW1",
    "P IY1",
    "K Y UW1",
    "AA1 R",
    "EH1 S",
    "T IY1",
    "Y UW1",
    "V IY1",
    "D AH1 B AH0 L Y UW0",
    "EH1 K S",
    "W AY1",
    "Z IY1",
];

/// Words that are not said as the dictionary has them: most are weak in running speech.
const WEAK: [(&str, &str); 15] = [
    // Words that the dictionary has otherwise, or not at all.
    ("re", "R IY0"),
    ("wi", "W AY1"),
    ("askee", "AE1 S K IY0"),
    ("i", "AY1"),
    ("mew", "M Y UW1"),
    ("eta", "EY1 T AH0"),
    ("xi", "Z AY1"),
    ("nguyen", "W IH1 N"),
    ("a", "AH0"),
    ("the", "DH AH0"),
    ("to", "T AH0"),
    ("of", "AH0 V"),
    ("and", "AH0 N D"),
    ("was", "W AH0 Z"),
    ("for", "F ER0"),
];

/// Shortest part of a compound.
const MIN_PART: usize = 3;

/// Longest word that is looked for in parts; longer ones are no words.
const MAX_WORD: usize = 40;

/// The dictionary and the rules, unpacked.
pub(super) struct Pronouncer {
    /// Lines `word TAB codes`, sorted.
    dictionary: String,
    /// Where each line begins.
    lines: Vec<u32>,
    rules: HashMap<String, Vec<Symbol>>,
}

impl Pronouncer {
    /// Unpacks what is embedded: some hundredths of a second.
    pub fn new() -> std::io::Result<Pronouncer> {
        let mut dictionary = String::new();
        GzDecoder::new(DICTIONARY).read_to_string(&mut dictionary)?;
        let ends = dictionary
            .bytes()
            .enumerate()
            .filter(|&(_, byte)| byte == b'\n');
        let mut lines: Vec<u32> = std::iter::once(0)
            .chain(ends.map(|(at, _)| at as u32 + 1))
            .collect();
        lines.pop();
        let mut text = String::new();
        GzDecoder::new(RULES).read_to_string(&mut text)?;
        let rule = |line: &str| {
            let (context, codes) = line.split_once('\t')?;
            Some((
                context.to_owned(),
                codes.bytes().filter_map(Symbol::from_code).collect(),
            ))
        };
        Ok(Pronouncer {
            rules: text.lines().filter_map(rule).collect(),
            dictionary,
            lines,
        })
    }

    /// The phonemes of a word in small letters and apostrophes.
    pub fn word(&self, word: &str) -> Vec<Symbol> {
        if let Some((_, weak)) = WEAK.iter().find(|(it, _)| *it == word) {
            return named(weak);
        }
        let found = self.known(word).or_else(|| self.compound(word));
        let phonemes = found.unwrap_or_else(|| self.by_rules(word));
        if phonemes.iter().any(|it| it.is_vowel()) {
            return phonemes;
        }
        // "hmm" has a sound of its own; "xkcd" has only letters.
        if !phonemes.is_empty() && word.len() <= 3 && self.known(word).is_some() {
            return phonemes;
        }
        let letters = word.chars().filter(char::is_ascii_alphabetic);
        letters.flat_map(|letter| self.letter(letter)).collect()
    }

    /// The name of a small letter; nothing for other characters.
    pub fn letter(&self, letter: char) -> Vec<Symbol> {
        let index = (letter as usize).checked_sub('a' as usize);
        index
            .and_then(|index| LETTERS.get(index))
            .map_or(Vec::new(), |name| named(name))
    }

    fn entry(&self, word: &str) -> Option<Vec<Symbol>> {
        let line = |start: u32| {
            let line = &self.dictionary[start as usize..];
            let line = line.split_once('\n').map_or(line, |(line, _)| line);
            line.split_once('\t').unwrap_or((line, ""))
        };
        let found = self
            .lines
            .binary_search_by(|&start| line(start).0.cmp(word))
            .ok()?;
        let (_, codes) = line(self.lines[found]);
        Some(codes.bytes().filter_map(Symbol::from_code).collect())
    }

    /// A word of the dictionary, also with an ending that the dictionary left out.
    fn known(&self, word: &str) -> Option<Vec<Symbol>> {
        if let Some(phonemes) = self.entry(word) {
            return Some(phonemes);
        }
        if let Some(stem) = word.strip_suffix("'s").or_else(|| word.strip_suffix("s'")) {
            return Some(plural_of(self.known(stem)?));
        }
        if let Some(stem) = word.strip_suffix("in'") {
            return self.known(&format!("{stem}ing"));
        }
        self.inflected(word)
    }

    fn inflected(&self, word: &str) -> Option<Vec<Symbol>> {
        let stem_of = |ending: &str| {
            word.strip_suffix(ending)
                .filter(|stem| stem.len() >= MIN_PART)
        };
        // hope + ing, hop + p + ing, carry: carri + ed.
        let stems = |stem: &str| {
            let mut stems = vec![stem.to_owned(), format!("{stem}e")];
            if let [.., a, b] = stem.as_bytes()
                && a == b
            {
                stems.insert(0, stem[..stem.len() - 1].to_owned());
            }
            if let Some(front) = stem.strip_suffix('i') {
                stems.insert(0, format!("{front}y"));
            }
            stems
        };
        let find = |stem: &str| stems(stem).iter().find_map(|stem| self.entry(stem));
        if let Some(base) = stem_of("s").and_then(|stem| self.entry(stem)) {
            return Some(plural_of(base));
        }
        if let Some(base) = stem_of("es").and_then(find) {
            return Some(plural_of(base));
        }
        if let Some(base) = stem_of("ed").and_then(find) {
            let last = base.last().map_or("", |it| it.name());
            let ending = match last {
                "T" | "D" => "AH0 D",
                "P" | "K" | "F" | "TH" | "S" | "SH" | "CH" => "T",
                _ => "D",
            };
            return Some(joined(base, &named(ending)));
        }
        for (ending, sound) in [
            ("ing", "IH0 NG"),
            ("ings", "IH0 NG Z"),
            ("ly", "L IY0"),
            ("er", "ER0"),
            ("ers", "ER0 Z"),
            ("est", "AH0 S T"),
            ("ness", "N AH0 S"),
            ("less", "L AH0 S"),
            ("ful", "F AH0 L"),
            ("able", "AH0 B AH0 L"),
            ("ish", "IH0 SH"),
            ("ism", "IH2 Z AH0 M"),
            ("ist", "AH0 S T"),
            ("ment", "M AH0 N T"),
        ] {
            if let Some(base) = stem_of(ending).and_then(find) {
                return Some(joined(base, &named(sound)));
            }
        }
        for (prefix, sound) in [
            ("un", "AH0 N"),
            ("re", "R IY0"),
            ("non", "N AA2 N"),
            ("pre", "P R IY0"),
            ("mis", "M IH0 S"),
            ("dis", "D IH0 S"),
            ("over", "OW2 V ER0"),
            ("under", "AH2 N D ER0"),
            ("anti", "AE2 N T IY0"),
            ("multi", "M AH2 L T IY0"),
            ("micro", "M AY2 K R OW0"),
            ("hyper", "HH AY2 P ER0"),
        ] {
            let rest = word
                .strip_prefix(prefix)
                .filter(|rest| rest.len() > MIN_PART);
            if let Some(base) = rest.and_then(|rest| self.entry(rest)) {
                return Some(joined(named(sound), &base));
            }
        }
        None
    }

    /// Two words written as one; the second loses its primary stress.
    fn compound(&self, word: &str) -> Option<Vec<Symbol>> {
        if word.len() > MAX_WORD || !word.is_ascii() || word.len() < 2 * MIN_PART {
            return None;
        }
        // The most even cut first: long parts are seldom there by chance.
        let mut cuts: Vec<usize> = (MIN_PART..=word.len() - MIN_PART).collect();
        cuts.sort_by_key(|&cut| (2 * cut).abs_diff(word.len()));
        cuts.into_iter().find_map(|cut| {
            let (first, second) = word.split_at(cut);
            // Parts of three letters match by accident; one of the two may be that short.
            if first.len().max(second.len()) < MIN_PART + 1 {
                return None;
            }
            let (first, second) = (self.entry(first)?, self.known(second)?);
            let second: Vec<Symbol> = second
                .into_iter()
                .map(|it| {
                    if it.stress() == 1 {
                        it.with_stress(2)
                    } else {
                        it
                    }
                })
                .collect();
            Some(joined(first, &second))
        })
    }

    /// Letter by letter, each by the rule with the largest context.
    fn by_rules(&self, word: &str) -> Vec<Symbol> {
        let letters: Vec<char> = word.chars().filter(char::is_ascii_lowercase).collect();
        let at = |index: usize, offset: isize| {
            let place = index.checked_add_signed(offset);
            place
                .and_then(|place| letters.get(place))
                .copied()
                .unwrap_or('#')
        };
        let mut phonemes = Vec::new();
        for (index, &letter) in letters.iter().enumerate() {
            let rule = CONTEXTS.iter().find_map(|&(left, right)| {
                let mut key = String::from(letter);
                key.extend((1..=left as isize).map(|offset| at(index, -offset)));
                key.push('|');
                key.extend((1..=right as isize).map(|offset| at(index, offset)));
                self.rules.get(&key)
            });
            phonemes.extend(rule.into_iter().flatten());
        }
        stressed(phonemes)
    }
}

/// Rules see letters, not the word: exactly one vowel gets the primary stress, the first where
/// they gave none.
fn stressed(mut phonemes: Vec<Symbol>) -> Vec<Symbol> {
    let mut seen = false;
    for phoneme in &mut phonemes {
        if phoneme.stress() == 1 {
            if seen {
                *phoneme = phoneme.with_stress(2);
            }
            seen = true;
        }
    }
    if !seen && let Some(vowel) = phonemes.iter_mut().find(|it| it.is_vowel()) {
        *vowel = vowel.with_stress(1);
    }
    phonemes
}

/// The plural, the possessive or the third person.
pub(super) fn plural_of(base: Vec<Symbol>) -> Vec<Symbol> {
    let ending = match base.last().map_or("", |it| it.name()) {
        "S" | "Z" | "SH" | "ZH" | "CH" | "JH" => "AH0 Z",
        "P" | "T" | "K" | "F" | "TH" => "S",
        _ => "Z",
    };
    joined(base, &named(ending))
}

fn joined(mut front: Vec<Symbol>, back: &[Symbol]) -> Vec<Symbol> {
    front.extend_from_slice(back);
    front
}

pub(super) fn named(names: &str) -> Vec<Symbol> {
    names.split(' ').filter_map(Symbol::from_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pronouncer: &Pronouncer, word: &str) -> String {
        let names: Vec<&str> = pronouncer.word(word).iter().map(|it| it.name()).collect();
        names.join(" ")
    }

    #[test]
    fn words_of_the_dictionary_and_around_it() {
        let pronouncer = Pronouncer::new().unwrap();
        assert_eq!(pronouncer.lines.len(), 124_926);
        for (word, want) in [
            ("hello", "HH AH0 L OW1"),
            ("aaa", "T R IH2 P AH0 L EY1"),
            ("the", "DH AH0"),
            ("don't", "D OW1 N T"),
            ("xylophone's", "Z AY1 L AH0 F OW2 N Z"),
            ("quizzed", "K W IH1 Z D"),
            ("vocoders", "V OW1 K OW2 D ER0 Z"),
        ] {
            let got = said(&pronouncer, word);
            if word == "vocoders" {
                // By rules: only that it is one stressed word.
                assert!(
                    got.starts_with('V') && got.matches('1').count() == 1,
                    "{got}"
                );
            } else {
                assert_eq!(got, want, "{word}");
            }
        }
        assert_eq!(said(&pronouncer, "keyboardist"), "K IY1 B AO2 R D AH0 S T");
        assert_eq!(
            said(&pronouncer, "catfoodbowl").split(' ').next(),
            Some("K")
        );
        assert_eq!(said(&pronouncer, "moonbase"), "M UW1 N B EY2 S");
    }

    #[test]
    fn every_word_gets_sounds() {
        let pronouncer = Pronouncer::new().unwrap();
        for word in [
            "zxcv",
            "brillig",
            "slithy",
            "b",
            "ghoti",
            "aaaaaaaaaaaaaaaaaaaa",
            "q",
            "'",
        ] {
            let phonemes = pronouncer.word(word);
            assert_eq!(
                phonemes.iter().any(|it| it.is_vowel()),
                word != "'",
                "{word}: {phonemes:?}"
            );
        }
        // What is no letter has no sound, and nothing of it panics.
        assert!(pronouncer.word("").is_empty() && pronouncer.word("ü").is_empty());
        assert!(!pronouncer.word(&"ab".repeat(10_000)).is_empty());
        assert_eq!(pronouncer.letter('w').len(), 9 - 2);
        assert!(pronouncer.letter('é').is_empty());
    }
}
