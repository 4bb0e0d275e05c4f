//! Words that are written alike and spoken differently, told apart by the words around them.

use super::token::{Kind, Piece, Token};

/// One reading of a word.
type Reading = (&'static str, &'static str);

/// Behind these a verb stands.
const BEFORE_VERB: &str = "to will would can could should must may might shall don't doesn't didn't won't can't \
     cannot couldn't wouldn't shouldn't not i you we they who please let's let i'll \
     you'll we'll they'll he'll she'll it'll i'd you'd we'd they'd always never often \
     usually also then help do does did strongly rarely sometimes people him them me us";

/// Behind these a noun or an adjective stands.
const BEFORE_NOUN: &str = "the a an this that these those my your his her its our their no some any every each \
     of in on by for with without from at new old good best first last little much more \
     great small large another one two three whose into under single what strange daily \
     public own world criminal medical broken full further personal common heavy foreign \
     vinyl";

/// Behind these the third person stands.
const BEFORE_THIRD: &str = "he she it who which that nobody everyone everybody someone always often never also \
     usually sometimes";

/// When a reading is the right one: all that is not empty must hold, but `before` or `behind` is enough.
struct Case {
    reading: Reading,
    /// Words right before.
    before: &'static str,
    /// Words right behind.
    behind: &'static str,
    /// Words before which rule it out.
    not_before: &'static str,
}

const fn case(reading: Reading, before: &'static str, behind: &'static str) -> Case {
    Case {
        reading,
        before,
        behind,
        not_before: "",
    }
}

const fn unless(
    reading: Reading,
    before: &'static str,
    behind: &'static str,
    not_before: &'static str,
) -> Case {
    Case {
        reading,
        before,
        behind,
        not_before,
    }
}

/// A word, its cases in order, and its reading elsewhere.
struct Homograph {
    word: &'static str,
    cases: &'static [Case],
    otherwise: Reading,
}

const AIR: Reading = ("air", "W IH1 N D");
const TURN: Reading = ("turn", "W AY1 N D");
const EYE: Reading = ("eye", "T IH1 R");
const RIP: Reading = ("rip", "T EH1 R");
const REED: Reading = ("reed", "R IY1 D");
const RED: Reading = ("red", "R EH1 D");
const LIV: Reading = ("liv", "L IH1 V");
const LYVE: Reading = ("lyve", "L AY1 V");
const LEED: Reading = ("leed", "L IY1 D");
const LED: Reading = ("led", "L EH1 D");
const NEAR: Reading = ("near", "K L OW1 S");
const SHUT: Reading = ("shut", "K L OW1 Z");
const USE_NOUN: Reading = ("noun", "Y UW1 S");
const USE_VERB: Reading = ("verb", "Y UW1 Z");
const BEND: Reading = ("bend", "B AW1");
const ARC: Reading = ("arc", "B OW1");
const TIME: Reading = ("time", "M IH1 N AH0 T");
const TINY: Reading = ("tiny", "M AY0 N UW1 T");

const HOMOGRAPHS: &[Homograph] = &[
    Homograph {
        word: "wind",
        cases: &[
            case(
                AIR,
                BEFORE_NOUN,
                "turbine turbines farm farms power speed chill energy blew blows is was howled and",
            ),
            case(TURN, BEFORE_VERB, "up down around through back its your"),
        ],
        otherwise: AIR,
    },
    Homograph {
        word: "winds",
        cases: &[
            case(AIR, BEFORE_NOUN, "of are were blew blow"),
            unless(
                TURN,
                BEFORE_THIRD,
                "through around along its up down across past between into",
                "strong high gusty cold",
            ),
        ],
        otherwise: AIR,
    },
    Homograph {
        word: "tear",
        cases: &[
            case(
                EYE,
                "single shed salty",
                "gas drop drops stained duct ducts rolled ran fell slid trickled",
            ),
            case(
                RIP,
                BEFORE_VERB,
                "in up down apart off open out through into along it the your this that here",
            ),
            case(RIP, "and muscle ligament big small", ""),
        ],
        otherwise: EYE,
    },
    Homograph {
        word: "tears",
        cases: &[case(
            RIP,
            "he she it which muscle easily",
            "up down apart off open through easily the it a pages",
        )],
        otherwise: EYE,
    },
    Homograph {
        word: "lives",
        cases: &[
            case(LIV, BEFORE_THIRD, ""),
            case(
                LYVE,
                "the their our your many save saved saves of lost two three nine people's human daily \
     lead led own those these my innocent countless million thousand hundred cost past no \
     more saving change changed were whose private few several",
                "were are lost matter saved have",
            ),
        ],
        otherwise: LIV,
    },
    Homograph {
        word: "live",
        cases: &[case(
            LYVE,
            "a broadcast streamed streaming is going go goes went performed recorded shown some \
     it's we're was aired first are",
            "music broadcast show shows concert concerts tv television stream performance \
     performances audience wire wires band bands coverage chat event events feed \
     recording album animals bait oak video updates session sports report from ammunition \
     on version",
        )],
        otherwise: LIV,
    },
    Homograph {
        word: "lead",
        cases: &[case(
            LED,
            "molten contains contain contained containing liquid toxic",
            "pipe pipes paint paints poisoning pencil acid weight weights shot bullet bullets \
     free glass ore mine mines level levels exposure is melts roof",
        )],
        otherwise: LEED,
    },
    Homograph {
        word: "close",
        cases: &[case(
            NEAR,
            "so too very how as is are was were be been got get stay stayed came come comes \
     pretty really quite keep hold draw a sit sat stand stood getting live lives lived my \
     his her we're they're that remain remained it's extremely moved kept stick \
     dangerously uncomfortably i'm you're no not some their",
            "to by friend friends enough call second relationship relationships family proximity \
     attention contact quarters ups range together look race relative relatives tie ties \
     knit behind associates match game",
        )],
        otherwise: SHUT,
    },
    Homograph {
        word: "use",
        cases: &[
            case(USE_NOUN, BEFORE_NOUN, "of is was case cases"),
            case(
                USE_NOUN,
                "'s water energy land drug phone heavy regular commercial home fair make made makes \
     making internal official limited immediate everyday household intended frequent \
     power of such wide widespread proper",
                "",
            ),
        ],
        otherwise: USE_VERB,
    },
    Homograph {
        word: "uses",
        cases: &[case(
            ("noun", "Y UW1 S AH0 Z"),
            "many the its of other several various different new two three more practical medical \
     common these multiple possible few",
            "of for include are",
        )],
        otherwise: ("verb", "Y UW1 Z AH0 Z"),
    },
    Homograph {
        word: "bow",
        cases: &[
            case(
                ARC,
                "long cross violin cello red pink blue pretty silk her hunting wooden yellow big \
     white",
                "and tie ties string hunter hunting in",
            ),
            unless(
                BEND,
                BEFORE_VERB,
                "to before down out deeply politely of your their wow",
                "",
            ),
            case(
                BEND,
                "take took takes deep low ship's boat's final polite and slight",
                "",
            ),
        ],
        otherwise: ARC,
    },
    Homograph {
        word: "minute",
        cases: &[case(
            TINY,
            "very extremely incredibly most tiny so too almost these were are",
            "detail details amount amounts quantities quantity particles traces trace difference \
     differences change changes fraction fractions crack cracks inspection creatures \
     crystals examination",
        )],
        otherwise: TIME,
    },
    Homograph {
        word: "wound",
        cases: &[case(
            ("turned", "W AW1 N D"),
            "i he she they we road river path was tightly",
            "up down around through its the tightly along",
        )],
        otherwise: ("hurt", "W UW1 N D"),
    },
    Homograph {
        word: "bass",
        cases: &[case(
            ("fish", "B AE1 S"),
            "caught sea largemouth smallmouth striped grilled",
            "fishing swam boat pond",
        )],
        otherwise: ("deep", "B EY1 S"),
    },
    Homograph {
        word: "sow",
        cases: &[case(("pig", "S AW1"), "the a", "")],
        otherwise: ("seed", "S OW1"),
    },
    Homograph {
        word: "dove",
        cases: &[case(
            ("jumped", "D OW1 V"),
            "he she they i we",
            "into in off under down head",
        )],
        otherwise: ("bird", "D AH1 V"),
    },
    Homograph {
        word: "house",
        cases: &[case(
            ("verb", "HH AW1 Z"),
            "to will can could would they",
            "",
        )],
        otherwise: ("noun", "HH AW1 S"),
    },
    Homograph {
        word: "excuse",
        cases: &[case(
            ("verb", "IH0 K S K Y UW1 Z"),
            BEFORE_VERB,
            "me my the us him her",
        )],
        otherwise: ("noun", "IH0 K S K Y UW1 S"),
    },
    Homograph {
        word: "abuse",
        cases: &[case(
            ("verb", "AH0 B Y UW1 Z"),
            BEFORE_VERB,
            "their the his",
        )],
        otherwise: ("noun", "AH0 B Y UW1 S"),
    },
    Homograph {
        word: "separate",
        cases: &[case(("verb", "S EH1 P ER0 EY2 T"), BEFORE_VERB, "the")],
        otherwise: ("adjective", "S EH1 P R AH0 T"),
    },
    Homograph {
        word: "estimate",
        cases: &[case(
            ("verb", "EH1 S T AH0 M EY2 T"),
            BEFORE_VERB,
            "that the",
        )],
        otherwise: ("noun", "EH1 S T AH0 M AH0 T"),
    },
    Homograph {
        word: "graduate",
        cases: &[case(
            ("verb", "G R AE1 JH AH0 W EY2 T"),
            BEFORE_VERB,
            "from in next",
        )],
        otherwise: ("noun", "G R AE1 JH AH0 W AH0 T"),
    },
];

/// Words whose verb has another stress than the noun or the adjective: word, noun, verb.
const STRESSED: &[(&str, &str, &str)] = &[
    ("record", "R EH1 K ER0 D", "R AH0 K AO1 R D"),
    ("object", "AA1 B JH EH0 K T", "AH0 B JH EH1 K T"),
    ("present", "P R EH1 Z AH0 N T", "P R IY0 Z EH1 N T"),
    ("permit", "P ER1 M IH2 T", "P ER0 M IH1 T"),
    ("conduct", "K AA1 N D AH0 K T", "K AH0 N D AH1 K T"),
    ("contract", "K AA1 N T R AE2 K T", "K AH0 N T R AE1 K T"),
    ("increase", "IH1 N K R IY2 S", "IH2 N K R IY1 S"),
    ("produce", "P R OW1 D UW0 S", "P R AH0 D UW1 S"),
    ("project", "P R AA1 JH EH0 K T", "P R AH0 JH EH1 K T"),
    ("refuse", "R EH1 F Y UW2 Z", "R AH0 F Y UW1 Z"),
    ("desert", "D EH1 Z ER0 T", "D IH0 Z ER1 T"),
    ("conflict", "K AA1 N F L IH0 K T", "K AH0 N F L IH1 K T"),
    ("contest", "K AA1 N T EH0 S T", "K AH0 N T EH1 S T"),
    ("rebel", "R EH1 B AH0 L", "R IH0 B EH1 L"),
    ("suspect", "S AH1 S P EH2 K T", "S AH0 S P EH1 K T"),
    ("import", "IH1 M P AO2 R T", "IH2 M P AO1 R T"),
    ("export", "EH1 K S P AO0 R T", "IH0 K S P AO1 R T"),
    ("insult", "IH1 N S AH2 L T", "IH2 N S AH1 L T"),
];

/// Gives homographs their reading.
pub(super) fn resolve(tokens: &mut [Token]) {
    // Words with their places; a pause stands for itself, so that nothing is a neighbour across it.
    let mut words: Vec<(String, usize, usize)> = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        for (piece_index, piece) in token.pieces.iter().enumerate() {
            words.push((piece.written(), index, piece_index));
        }
    }
    for at in 0..words.len() {
        let (word, token, piece) = &words[at];
        if !matches!(tokens[*token].pieces[*piece], Piece::Word(_)) {
            continue;
        }
        let Some((tag, phonemes)) = reading(&words, at) else {
            continue;
        };
        tokens[*token].pieces[*piece] = Piece::Reading {
            word: word.clone(),
            tag,
            phonemes,
        };
        if tokens[*token].kind == Kind::Word {
            tokens[*token].kind = Kind::Homograph;
        }
    }
}

/// Whether a list of words has this one.
fn has(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace().any(|it| it == word)
}

fn reading(words: &[(String, usize, usize)], at: usize) -> Option<Reading> {
    let word = words[at].0.as_str();
    let near = |offset: isize| {
        let place = at.checked_add_signed(offset);
        place
            .and_then(|place| words.get(place))
            .map_or("", |it| it.0.as_str())
    };
    let (before, behind) = (near(-1), near(1));
    if word == "read" {
        return Some(read(words, at));
    }
    if let Some(found) = HOMOGRAPHS.iter().find(|it| it.word == word) {
        if let Some(special) = special(word, [near(-3), near(-2), before], [behind, near(2)]) {
            return Some(special);
        }
        let case = found.cases.iter().find(|case| {
            (has(case.before, before) || has(case.behind, behind)) && !has(case.not_before, before)
        });
        return Some(case.map_or(found.otherwise, |case| case.reading));
    }
    let stem = word
        .strip_suffix('s')
        .filter(|stem| STRESSED.iter().any(|it| it.0 == *stem));
    if let Some(stem) = stem {
        return third_person(stem, before, behind);
    }
    let &(_, noun, verb) = STRESSED.iter().find(|it| it.0 == word)?;
    Some(match is_verb(word, near(-2), before, behind) {
        true => ("verb", verb),
        false => ("noun", noun),
    })
}

/// What the word before the neighbour decides.
fn special(
    word: &str,
    [third, second, before]: [&str; 3],
    [behind, next]: [&str; 2],
) -> Option<Reading> {
    let is_article = has("the a an this his her my our their", before);
    match word {
        "close"
            if has(
                "to will please can must we they i you don't didn't stores shops",
                before,
            ) =>
        {
            Some(SHUT)
        }
        "close" if has("to by", behind) && !has("the", before) => Some(NEAR),
        "close"
            if has("a the", before)
                && (behind == "of" || behind == "." || has("to at", second)) =>
        {
            Some(SHUT)
        }
        "live" if has("to will we they you i who can people", before) => Some(LIV),
        "lead"
            if has(
                "made full out amount amounts traces pound tons levels kilograms piece sheet sheets \
     lump",
                second,
            ) && before == "of" =>
        {
            Some(LED)
        }
        "lead"
            if second == "heavy" && before == "as"
                || has("iron zinc copper mercury tin silver", second) && has("and or", before) =>
        {
            Some(LED)
        }
        "lead"
            if has("the a to will can in", before)
                && !has(
                    "pipe pipes paint acid pencil weight shot bullet mine roof poisoning ore glass",
                    behind,
                ) =>
        {
            Some(LEED)
        }
        "tear" if before == "a" && has("in along", behind) && has("eye her his", next) => Some(EYE),
        "wind" if before == "to" && has("due according owing exposed resistant", second) => {
            Some(AIR)
        }
        "wind" if is_article && !has("up down", behind) => Some(AIR),
        "wind"
            if (before.is_empty() || before == ".")
                && has("the it your", behind)
                && next != "of" =>
        {
            Some(TURN)
        }
        "bass" if has("caught catch eat ate cooked grilled", second) => Some(("fish", "B AE1 S")),
        "bow" if is_article && has("and tie", behind) => Some(ARC),
        "bow"
            if has("take took takes taking gave made", second)
                && has("a his her their", before) =>
        {
            Some(BEND)
        }
        "bow" if behind == "of" && next == "the" => Some(BEND),
        "bow" if before == "a" || before == "the" && behind != "of" => Some(ARC),
        "use" if before == "to" && has("used access due", third) => Some(USE_NOUN),
        "use" if before == "to" && has("put right", second) => Some(USE_NOUN),
        "minute"
            if has("a one this every last per any each the next second", before)
                && !has(
                    "detail amount quantity fraction crack trace inspection change difference examination",
                    behind,
                ) =>
        {
            Some(TIME)
        }
        _ => None,
    }
}

fn is_verb(word: &str, second: &str, before: &str, behind: &str) -> bool {
    let article_behind = has(
        "the a an it them him his her my your our their this that to these us",
        behind,
    );
    if before == "to" {
        let noun = has(
            "up due thanks prior according compared back addition",
            second,
        );
        return !(noun || word == "present" && has("day times", behind));
    }
    if has(BEFORE_NOUN, before) {
        return false;
    }
    if has(BEFORE_VERB, before) {
        return true;
    }
    // "Record it", "and produce the", at the beginning of a clause.
    let begins = before.is_empty() || has(", . ! ? and or but", before);
    let mostly_verb = has("refuse produce increase suspect permit", word);
    article_behind && (begins || mostly_verb)
        || mostly_verb && before.ends_with('s') && word != "permit"
}

/// `he records`, but `the records`.
fn third_person(stem: &str, before: &str, behind: &str) -> Option<Reading> {
    let &(_, noun, verb) = STRESSED.iter().find(|it| it.0 == stem)?;
    let is_verb = has(BEFORE_THIRD, before)
        || !has(BEFORE_NOUN, before)
            && !before.is_empty()
            && has("the a an it its them his her to", behind)
            && !has("and or , .", before);
    let plural = |sounds: &'static str| {
        PLURALS
            .iter()
            .find(|(it, _)| *it == sounds)
            .map(|(_, plural)| *plural)
    };
    Some(match is_verb {
        true => ("verb", plural(verb)?),
        false => ("noun", plural(noun)?),
    })
}

/// The forms in -s of the words that are told apart in it.
const PLURALS: &[(&str, &str)] = &[
    ("R EH1 K ER0 D", "R EH1 K ER0 D Z"),
    ("R AH0 K AO1 R D", "R AH0 K AO1 R D Z"),
    ("AA1 B JH EH0 K T", "AA1 B JH EH0 K T S"),
    ("AH0 B JH EH1 K T", "AH0 B JH EH1 K T S"),
    ("P R EH1 Z AH0 N T", "P R EH1 Z AH0 N T S"),
    ("P R IY0 Z EH1 N T", "P R IY0 Z EH1 N T S"),
    ("P ER1 M IH2 T", "P ER1 M IH2 T S"),
    ("P ER0 M IH1 T", "P ER0 M IH1 T S"),
    ("K AA1 N D AH0 K T", "K AA1 N D AH0 K T S"),
    ("K AH0 N D AH1 K T", "K AH0 N D AH1 K T S"),
    ("IH1 N K R IY2 S", "IH1 N K R IY2 S AH0 Z"),
    ("IH2 N K R IY1 S", "IH2 N K R IY1 S AH0 Z"),
    ("P R AA1 JH EH0 K T", "P R AA1 JH EH0 K T S"),
    ("P R AH0 JH EH1 K T", "P R AH0 JH EH1 K T S"),
    ("S AH1 S P EH2 K T", "S AH1 S P EH2 K T S"),
    ("S AH0 S P EH1 K T", "S AH0 S P EH1 K T S"),
    ("R EH1 B AH0 L", "R EH1 B AH0 L Z"),
    ("R IH0 B EH1 L", "R IH0 B EH1 L Z"),
];

/// The past of "read" is spoken "red": behind a helping verb, behind he and she, and where the
/// sentence says when.
fn read(words: &[(String, usize, usize)], at: usize) -> Reading {
    let is_end = |word: &str| matches!(word, "." | "!" | "?");
    let from = words[..at]
        .iter()
        .rposition(|it| is_end(&it.0))
        .map_or(0, |end| end + 1);
    let to = words[at..]
        .iter()
        .position(|it| is_end(&it.0))
        .map_or(words.len(), |end| at + end);
    let before: Vec<&str> = words[from..at].iter().map(|it| it.0.as_str()).collect();
    let behind: Vec<&str> = words[(at + 1).min(to)..to]
        .iter()
        .map(|it| it.0.as_str())
        .collect();
    let last = before.last().copied().unwrap_or("");
    let near = before.iter().rev().take(4);
    let helpers = "have has had was were been be i've we've you've they've he'd haven't hasn't hadn't \
     having is being well widely get got";
    let modals = "to will would can could should must may might don't doesn't didn't did do does i'll \
     you'll we'll let's please cannot can't won't couldn't";
    let past =
        "yesterday ago last already once when earlier then before was were told said morning";
    // The nearest helper decides.
    for word in near {
        if has(modals, word) {
            return REED;
        }
        if has(helpers, word) {
            return RED;
        }
        if matches!(*word, "," | ";") {
            break;
        }
    }
    let third = has(
        "he she nobody everyone it who teacher mother father john mary judge sign letter",
        last,
    );
    let has_past = before
        .iter()
        .chain(&behind)
        .any(|word| has(past, word) && *word != "when")
        && !before.is_empty();
    match third || has_past {
        true => RED,
        false => REED,
    }
}
