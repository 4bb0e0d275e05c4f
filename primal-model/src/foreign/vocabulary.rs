//! The tokenizer inside a GGUF file, as a Hugging Face `tokenizer.json`.
//!
//! Two models occur: `gpt2`, byte-level BPE with a list of merges, and `llama`, SentencePiece BPE
//! whose merges follow from the scores of its tokens. How text is cut before merging is not in
//! the file but behind the name in `tokenizer.ggml.pre`.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::gguf::{GgufFile, Value};
use crate::ModelError;
use crate::tokenizer::{Tokenizer, TokenizerSettings};

/// `tokenizer.ggml.token_type`: what a token is.
const NORMAL: f64 = 1.0;
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const UNUSED: f64 = 5.0;
const BYTE: f64 = 6.0;
/// Tokens that end a text, a turn, and a turn that calls a tool.
const END_KEYS: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];
/// Control tokens that end a turn whatever the keys say, as llama.cpp has it.
const END_NAMES: [&str; 5] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|eom_id|>",
];
/// How SentencePiece shows a space.
const VISIBLE_SPACE: &str = "▁";

/// The tokenizer of a file, with what its chat needs.
///
/// # Errors
/// [`ModelError::Foreign`] names the metadata key that is missing, of the wrong type, or says
/// something that this build does not know.
pub fn tokenizer(file: &GgufFile) -> Result<Tokenizer, ModelError> {
    let vocabulary = Vocabulary::read(file)?;
    let model = string(file, "tokenizer.ggml.model")?;
    let json = match model {
        "gpt2" => vocabulary.byte_level(file)?,
        "llama" => vocabulary.sentence_piece(file)?,
        other => {
            let reason = format!("is {other}; this build knows gpt2 and llama");
            return Err(file.error("tokenizer.ggml.model", reason));
        }
    };
    let settings = TokenizerSettings {
        chat_template: optional_string(file, "tokenizer.chat_template").map(str::to_owned),
        bos_token: vocabulary.named(file, "tokenizer.ggml.bos_token_id")?,
        eos_token: vocabulary.named(file, END_KEYS[0])?,
        bos_token_id: None,
        eos_token_ids: vocabulary.ends(file)?,
    };
    Tokenizer::hugging_face(json.to_string().into_bytes(), settings, file.origin())
}

/// Tokens in the order of their ids.
struct Vocabulary<'a> {
    tokens: &'a [String],
    /// One a token, or empty where the file gives none.
    types: Vec<f64>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self, ModelError> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let tokens = file.metadata(TOKENS).and_then(Value::as_strings);
        let tokens = tokens.ok_or_else(|| file.error(TOKENS, "is missing or no list of texts"))?;
        let types = match file.metadata(TYPES) {
            None => Vec::new(),
            Some(types) => types
                .as_numbers()
                .filter(|types| types.len() == tokens.len())
                .ok_or_else(|| file.error(TYPES, "is not one number a token"))?,
        };
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token, id) {
                let reason = format!("tokens {other} and {id} are the same text");
                return Err(file.error(TOKENS, reason));
            }
        }
        Ok(Vocabulary { tokens, types })
    }

    /// The text of the token that a key names by its id.
    fn named(&self, file: &GgufFile, key: &str) -> Result<Option<String>, ModelError> {
        let Some(value) = file.metadata(key) else {
            return Ok(None);
        };
        let id = value.as_u64().and_then(|id| usize::try_from(id).ok());
        match id.and_then(|id| self.tokens.get(id)) {
            Some(token) => Ok(Some(token.clone())),
            None => Err(file.error(key, "is not the id of a token")),
        }
    }

    /// Every token that ends what the model writes.
    fn ends(&self, file: &GgufFile) -> Result<Vec<u32>, ModelError> {
        let mut ends = Vec::new();
        for key in END_KEYS {
            self.named(file, key)?;
            let id = file.metadata(key).and_then(Value::as_u64);
            ends.extend(id.and_then(|id| u32::try_from(id).ok()));
        }
        for (id, (token, kind)) in (0u32..).zip(self.tokens.iter().zip(&self.types)) {
            if *kind == CONTROL && END_NAMES.contains(&token.as_str()) {
                ends.push(id);
            }
        }
        Ok(ends)
    }

    fn byte_level(&self, file: &GgufFile) -> Result<Json, ModelError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        let merges = file.metadata(MERGES).and_then(Value::as_strings);
        let merges = merges.ok_or_else(|| file.error(MERGES, "is missing or no list of texts"))?;
        let pairs: Option<Vec<_>> = merges.iter().map(|merge| merge.split_once(' ')).collect();
        let pairs = pairs.ok_or_else(|| file.error(MERGES, "holds a merge without a space"))?;
        let pre = optional_string(file, "tokenizer.ggml.pre").unwrap_or("gpt-2");
        let rule = Cut::named(pre).ok_or_else(|| {
            let known: Vec<_> = PRE_TOKENIZERS
                .iter()
                .flat_map(|it| it.0.iter().copied())
                .collect();
            let reason = format!(
                "is {pre}, a rule that this build does not have; it has {}; hint: import the \
                 Hugging Face folder of the model",
                known.join(", ")
            );
            file.error("tokenizer.ggml.pre", reason)
        })?;
        let is_llama3 = rule == Cut::Llama3;
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added(),
            "normalizer": null,
            "pre_tokenizer": rule.json(),
            "post_processor": self.start_token(file, is_llama3)?,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": is_llama3,
                "vocab": self.ids(),
                "merges": pairs,
            },
        }))
    }

    /// SentencePiece merges the pair whose joined token has the highest score; the same follows
    /// from a list of merges in the order of that score.
    fn sentence_piece(&self, file: &GgufFile) -> Result<Json, ModelError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = file.metadata(SCORES).and_then(Value::as_numbers);
        let scores = scores
            .filter(|scores| scores.len() == self.tokens.len())
            .ok_or_else(|| file.error(SCORES, "is not one number a token"))?;
        let known: HashMap<&str, usize> = self.texts().zip(0..).collect();
        let mut merges = Vec::new();
        for (id, token) in self.texts().enumerate() {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(l), Some(r)) = (known.get(left), known.get(right)) {
                    merges.push((scores[id], *l, *r, left, right));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let pairs: Vec<_> = merges
            .iter()
            .map(|(.., left, right)| [left, right])
            .collect();
        let unknown = self.types.iter().position(|kind| *kind == UNKNOWN);
        let unknown = unknown.map(|id| self.tokens[id].as_str());
        let prefix = file.metadata("tokenizer.ggml.add_space_prefix");
        let prefix = prefix.and_then(Value::as_bool).unwrap_or(true);
        let replace =
            json!({ "type": "Replace", "pattern": { "String": " " }, "content": VISIBLE_SPACE });
        let normalizers = if prefix {
            vec![
                json!({ "type": "Prepend", "prepend": VISIBLE_SPACE }),
                replace,
            ]
        } else {
            vec![replace]
        };
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": VISIBLE_SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if prefix {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added(),
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "post_processor": self.start_token(file, true)?,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": true,
                "ignore_merges": false,
                "vocab": self.ids(),
                "merges": pairs,
            },
        }))
    }

    fn texts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.tokens.iter().map(String::as_str)
    }

    fn ids(&self) -> Map<String, Json> {
        let tokens = self.tokens.iter().enumerate();
        tokens
            .map(|(id, token)| (token.clone(), json!(id)))
            .collect()
    }

    /// Tokens that stand for themselves in a text instead of being merged.
    fn added(&self) -> Vec<Json> {
        let tokens = self.tokens.iter().zip(&self.types).enumerate();
        tokens
            .filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": *kind != USER_DEFINED,
                })
            })
            .collect()
    }

    /// The rule that puts the start token before a text, where the file asks for one.
    fn start_token(&self, file: &GgufFile, default: bool) -> Result<Json, ModelError> {
        let wanted = file.metadata("tokenizer.ggml.add_bos_token");
        let wanted = wanted.and_then(Value::as_bool).unwrap_or(default);
        let Some(token) = self
            .named(file, "tokenizer.ggml.bos_token_id")?
            .filter(|_| wanted)
        else {
            return Ok(Json::Null);
        };
        let id = self.tokens.iter().position(|text| *text == token);
        let start = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let sequence = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
        Ok(json!({
            "type": "TemplateProcessing",
            "single": [start, sequence("A")],
            "pair": [start, sequence("A"), sequence("B")],
            "special_tokens": { &token: { "id": token, "ids": [id], "tokens": [token] } },
        }))
    }
}

/// How text is cut before merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Gpt2,
    /// GPT-2's with digits one by one.
    Digits,
    /// Numbers of up to three digits. Such texts begin with the start token, and words that are
    /// tokens are not put together by merges.
    Llama3,
    Qwen2,
}

/// llama.cpp's names of the rules; the first one of each is written.
const PRE_TOKENIZERS: [(&[&str], Cut); 4] = [
    (
        &[
            "gpt-2",
            "gpt2",
            "phi-2",
            "exaone4",
            "mellum",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
        ],
        Cut::Gpt2,
    ),
    (
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        Cut::Digits,
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        Cut::Llama3,
    ),
    (
        &["qwen2", "deepseek-r1-qwen", "megrez", "kormo"],
        Cut::Qwen2,
    ),
];

impl Cut {
    fn named(name: &str) -> Option<Cut> {
        let found = PRE_TOKENIZERS
            .iter()
            .find(|(names, _)| names.contains(&name));
        found.map(|(_, cut)| *cut)
    }

    /// The rule of a `tokenizer.json`.
    fn json(self) -> Json {
        let byte_level = |cuts_words: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": cuts_words,
            })
        };
        // Words with an optional leading sign, numbers of up to `digits` digits, signs with the
        // line breaks after them, white space.
        let split = |digits: &str| {
            let pattern = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            let split = json!({
                "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated",
                "invert": false,
            });
            json!({ "type": "Sequence", "pretokenizers": [split, byte_level(false)] })
        };
        match self {
            Cut::Gpt2 => byte_level(true),
            Cut::Digits => json!({
                "type": "Sequence",
                "pretokenizers": [
                    { "type": "Digits", "individual_digits": true }, byte_level(true),
                ],
            }),
            Cut::Llama3 => split("{1,3}"),
            Cut::Qwen2 => split(""),
        }
    }
}

/// The metadata that describes a tokenizer to llama.cpp, for a model of `vocab` tokens.
///
/// # Errors
/// [`ModelError::Export`] for a tokenizer that the format cannot hold.
pub(crate) fn metadata(
    tokenizer: &Tokenizer,
    vocab: usize,
) -> Result<Vec<(String, Value)>, ModelError> {
    let refuse = |reason: &str| ModelError::Export(format!("the tokenizer {reason}"));
    let Some(json) = tokenizer.hugging_face_json() else {
        let reason = format!("'{}' has no form in GGUF", tokenizer.name());
        return Err(refuse(&reason));
    };
    let json: Json = serde_json::from_slice(json).map_err(|error| refuse(&error.to_string()))?;
    let model = &json["model"];
    let ids = model["vocab"]
        .as_object()
        .filter(|_| model["type"] == "BPE");
    let ids = ids.ok_or_else(|| refuse("is no byte-pair encoding"))?;
    let merges = model["merges"]
        .as_array()
        .ok_or_else(|| refuse("has no merges"))?;
    let merges: Option<Vec<(&str, &str)>> = merges.iter().map(merge).collect();
    let merges = merges.ok_or_else(|| refuse("has a merge that is no pair"))?;

    // Ids that no token has stand for nothing.
    let mut tokens: Vec<String> = (0..vocab).map(|id| format!("[unused{id}]")).collect();
    let mut types = vec![UNUSED as i32; vocab];
    let mut set = |id: Option<u64>, text: &str, kind: f64| {
        let id = id
            .and_then(|id| usize::try_from(id).ok())
            .filter(|id| *id < vocab);
        if let Some(id) = id {
            tokens[id] = text.to_owned();
            types[id] = kind as i32;
        }
        id.map(|_| ())
            .ok_or_else(|| refuse("has an id beyond the model's"))
    };
    let sentence_piece = model["byte_fallback"] == true;
    for (text, id) in ids {
        let is_byte = sentence_piece && text.len() == 6 && text.starts_with("<0x");
        set(id.as_u64(), text, if is_byte { BYTE } else { NORMAL })?;
    }
    for token in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if token["special"] == true {
            CONTROL
        } else {
            USER_DEFINED
        };
        set(
            token["id"].as_u64(),
            token["content"].as_str().unwrap_or_default(),
            kind,
        )?;
    }
    let id_of = |text: &str| tokens.iter().position(|token| token == text);
    let unknown = model["unk_token"].as_str().and_then(id_of);
    if let Some(id) = unknown {
        types[id] = UNKNOWN as i32;
    }

    let mut all = Vec::new();
    let mut add = |key: &str, value: Value| all.push((format!("tokenizer.{key}"), value));
    let text = |text: &str| Value::String(text.to_owned());
    if sentence_piece {
        // Earlier merges have higher scores.
        let mut scores = vec![0.0; vocab];
        let joined: HashMap<String, usize> = merges
            .iter()
            .rev()
            .zip((0..merges.len()).rev())
            .map(|((l, r), rank)| (format!("{l}{r}"), rank))
            .collect();
        for (token, score) in tokens.iter().zip(&mut scores) {
            *score = joined.get(token).map_or(0.0, |rank| -(*rank as f32));
        }
        add("ggml.model", text("llama"));
        add("ggml.scores", Value::f32s(&scores));
        let prefix = json["normalizer"].to_string().contains("Prepend");
        add("ggml.add_space_prefix", Value::bool(prefix));
    } else {
        let pre = pre_tokenizer_name(&json["pre_tokenizer"])
            .ok_or_else(|| refuse("cuts text in a way that GGUF has no name for here"))?;
        add("ggml.model", text("gpt2"));
        add("ggml.pre", text(pre));
        let merges = merges.iter().map(|(left, right)| format!("{left} {right}"));
        add("ggml.merges", Value::strings(merges.collect()));
    }
    let mut ends = tokenizer.ends().into_iter();
    for (key, id) in [
        ("ggml.bos_token_id", tokenizer.bos_token()),
        ("ggml.eos_token_id", ends.next()),
        ("ggml.eot_token_id", ends.next()),
        ("ggml.eom_token_id", ends.next()),
        (
            "ggml.unknown_token_id",
            unknown.and_then(|id| u32::try_from(id).ok()),
        ),
    ] {
        if let Some(id) = id {
            add(key, Value::u32(id));
        }
    }
    add(
        "ggml.add_bos_token",
        Value::bool(tokenizer.start_of_text().is_some()),
    );
    add("ggml.token_type", Value::i32s(&types));
    add("ggml.tokens", Value::strings(tokens));
    if let Some(template) = tokenizer
        .settings()
        .and_then(|it| it.chat_template.as_deref())
    {
        add("chat_template", text(template));
    }
    Ok(all)
}

/// A merge is a list of two texts, or one with a space between them.
fn merge(value: &Json) -> Option<(&str, &str)> {
    match value.as_array() {
        Some(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        None => value.as_str()?.split_once(' '),
    }
}

/// The name of the rule of a `tokenizer.json`.
fn pre_tokenizer_name(json: &Json) -> Option<&'static str> {
    let found = PRE_TOKENIZERS.iter().find(|(_, cut)| cut.json() == *json);
    found.and_then(|(names, _)| names.first().copied())
}

fn string<'a>(file: &'a GgufFile, key: &str) -> Result<&'a str, ModelError> {
    optional_string(file, key).ok_or_else(|| file.error(key, "is missing or no text"))
}

fn optional_string<'a>(file: &'a GgufFile, key: &str) -> Option<&'a str> {
    file.metadata(key).and_then(Value::as_str)
}
