//! Hugging Face tokenizers: `tokenizer.json`, and the parts of `tokenizer_config.json` that a
//! chat needs.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::bad;
use crate::ModelError;

/// The vocabulary and its rules.
const FILE: &str = "tokenizer.json";
/// Start and end token, and the template of a chat.
const SETTINGS_FILE: &str = "tokenizer_config.json";
/// Which tokens begin and end what a model writes: a token, or a list of them.
const GENERATION_FILE: &str = "generation_config.json";
/// The same, in folders of models.
const MODEL_CONFIG_FILE: &str = "config.json";
/// Where newer folders keep the template.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// How these tokenizers spell the end of a text, most specific first.
const END_OF_TEXT_NAMES: [&str; 5] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|eos|>",
];

/// A Hugging Face tokenizer with its file, which checkpoints keep unchanged.
#[derive(Clone, Debug)]
pub struct HuggingFace {
    pub(super) tokenizer: tokenizers::Tokenizer,
    pub(super) json: Vec<u8>,
    pub(super) settings: TokenizerSettings,
    pub(super) vocab_size: usize,
    pub(super) start_of_text: Option<u32>,
    /// The start token of the settings, whether or not it is put before a text.
    pub(super) bos: Option<u32>,
    pub(super) end_of_text: Option<u32>,
    /// The tokens that end what the model writes, the one of the settings first: that of a turn
    /// in models made for chat.
    pub(super) ends: Vec<u32>,
    /// The spelling of every control token.
    pub(super) control: Vec<String>,
    /// Which token stands for which byte, where some do.
    bytes: HashMap<u32, u8>,
    /// The token of the byte of the letter A, where there is one.
    pub(super) letter: Option<u32>,
}

/// What a folder says of its tokenizer beside the vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenizerSettings {
    /// How a conversation becomes text, in Jinja.
    pub chat_template: Option<String>,
    /// The token that begins a text.
    pub bos_token: Option<String>,
    /// The token that ends what the model writes.
    pub eos_token: Option<String>,
    /// The number of the token that begins a text, where nothing else names it.
    pub bos_token_id: Option<u32>,
    /// The numbers of all tokens that end what the model writes.
    pub eos_token_ids: Vec<u32>,
}

impl HuggingFace {
    /// Whether a folder holds one.
    pub(super) fn is_in(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    /// The tokenizer of a folder with its settings.
    pub(super) fn open_folder(folder: &Path) -> Result<HuggingFace, ModelError> {
        let path = folder.join(FILE);
        let json = fs::read(&path).map_err(|error| bad(&path, error))?;
        HuggingFace::new(json, TokenizerSettings::read(folder)?, &path)
    }

    /// A `tokenizer.json` alone.
    pub(super) fn open_file(path: &Path) -> Result<HuggingFace, ModelError> {
        let json = fs::read(path).map_err(|error| bad(path, error))?;
        HuggingFace::new(json, TokenizerSettings::default(), path)
    }

    pub(super) fn new(
        json: Vec<u8>,
        settings: TokenizerSettings,
        origin: &Path,
    ) -> Result<HuggingFace, ModelError> {
        let bad = |reason: String| bad(origin, reason);
        // The library panics where the JSON of a decoder breaks off, and over such merges.
        let value: Value = serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
        if let Some(merge) = merge_without_prefix(&value["model"]) {
            return Err(bad(format!(
                "the merge {merge} has no room for the prefix of a continued word"
            )));
        }
        let mut tokenizer =
            tokenizers::Tokenizer::from_bytes(&json).map_err(|error| bad(error.to_string()))?;
        // Cutting and padding is the sampler's task, not the tokenizer's.
        tokenizer
            .with_truncation(None)
            .map_err(|error| bad(error.to_string()))?;
        tokenizer.with_padding(None);
        // Ids may have holes, so the count of tokens is not enough.
        let vocabulary = tokenizer.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        if vocab_size == 0 {
            return Err(bad("the vocabulary is empty".to_string()));
        }
        let known = |id: &u32| (*id as usize) < vocab_size;
        let id_of = |name: &str| vocabulary.get(name).copied();
        let named = |name: &Option<String>| name.as_deref().and_then(id_of);
        let end_of_text = END_OF_TEXT_NAMES.iter().find_map(|name| id_of(name));
        // What a text of nothing becomes with all that the tokenizer adds: the start token first,
        // where there is one.
        let added = tokenizer.encode_fast("", true);
        let added = added.map_err(|error| bad(error.to_string()))?;
        let bos = named(&settings.bos_token).or(settings.bos_token_id.filter(known));
        let mut ends: Vec<u32> = named(&settings.eos_token).into_iter().collect();
        for id in settings.eos_token_ids.iter().filter(|id| known(id)) {
            if !ends.contains(id) {
                ends.push(*id);
            }
        }
        let start_of_text = added.get_ids().first().copied();
        let control = tokenizer.get_added_tokens_decoder().into_values();
        let control =
            control.filter(|token| token.special && token.content.chars().nth(1).is_some());
        let control = control.map(|token| token.content).collect();
        let mut bytes = HashMap::new();
        if value["model"]["byte_fallback"] == true {
            let tokens = (0..=255).map(|byte: u8| (id_of(&format!("<0x{byte:02X}>")), byte));
            bytes.extend(tokens.filter_map(|(id, byte)| Some((id?, byte))));
        }
        let letter = id_of("<0x41>").filter(|_| !bytes.is_empty());
        let mut settings = settings;
        settings.bos_token_id = bos;
        settings.eos_token_ids.clone_from(&ends);
        Ok(HuggingFace {
            start_of_text: start_of_text.filter(|id| bos.is_none_or(|bos| bos == *id)),
            bos,
            end_of_text,
            ends,
            control,
            bytes,
            letter,
            vocab_size,
            tokenizer,
            json,
            settings,
        })
    }

    /// The byte that a token stands for, if it does.
    pub(super) fn byte(&self, token: u32) -> Option<u8> {
        self.bytes.get(&token).copied()
    }

    pub(super) fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let path = folder.join(FILE);
        fs::write(&path, &self.json).map_err(ModelError::io("write", &path))?;
        self.settings.write(folder)
    }
}

/// The first merge whose right side is too short for the prefix that would be cut from it.
fn merge_without_prefix(model: &Value) -> Option<&Value> {
    let prefix = model["continuing_subword_prefix"].as_str()?.len();
    let fits = |merge: &Value| {
        let right = match merge {
            Value::String(pair) => pair.split(' ').nth(1),
            pair => pair[1].as_str(),
        };
        right.is_none_or(|right| right.get(prefix..).is_some())
    };
    model["merges"].as_array()?.iter().find(|it| !fits(it))
}

impl TokenizerSettings {
    /// The settings of a folder; none of them has to be there.
    pub(crate) fn read(folder: &Path) -> Result<TokenizerSettings, ModelError> {
        let path = folder.join(SETTINGS_FILE);
        let mut settings = TokenizerSettings::default();
        if path.exists() {
            let text = fs::read(&path).map_err(ModelError::io("read", &path))?;
            let values: Map<String, Value> =
                serde_json::from_slice(&text).map_err(|error| bad(&path, error))?;
            settings = TokenizerSettings {
                chat_template: values.get("chat_template").and_then(template_text),
                bos_token: values.get("bos_token").and_then(token_text),
                eos_token: values.get("eos_token").and_then(token_text),
                ..TokenizerSettings::default()
            };
        }
        for name in [MODEL_CONFIG_FILE, GENERATION_FILE] {
            let path = folder.join(name);
            if path.exists() {
                let text = fs::read(&path).map_err(ModelError::io("read", &path))?;
                let values: Map<String, Value> =
                    serde_json::from_slice(&text).map_err(|error| bad(&path, error))?;
                settings.bos_token_id = settings.bos_token_id.or(id(values.get("bos_token_id")));
                for id in ids(values.get("eos_token_id")) {
                    if !settings.eos_token_ids.contains(&id) {
                        settings.eos_token_ids.push(id);
                    }
                }
            }
        }
        let path = folder.join(TEMPLATE_FILE);
        if path.exists() {
            let text = fs::read_to_string(&path).map_err(ModelError::io("read", &path))?;
            settings.chat_template = Some(text);
        }
        Ok(settings)
    }

    fn write(&self, folder: &Path) -> Result<(), ModelError> {
        let mut values = Map::new();
        // The class that reads any tokenizer.json.
        values.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        for (key, value) in [
            ("chat_template", &self.chat_template),
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
        ] {
            values.extend(
                value
                    .clone()
                    .map(|text| (key.to_owned(), Value::String(text))),
            );
        }
        write_json(folder, SETTINGS_FILE, values)?;
        let mut values = Map::new();
        values.extend(
            self.bos_token_id
                .map(|id| ("bos_token_id".to_owned(), json!(id))),
        );
        match self.eos_token_ids.as_slice() {
            [] => {}
            [id] => drop(values.insert("eos_token_id".into(), json!(id))),
            ids => drop(values.insert("eos_token_id".into(), json!(ids))),
        }
        if values.is_empty() {
            return Ok(());
        }
        write_json(folder, GENERATION_FILE, values)
    }
}

fn write_json(folder: &Path, name: &str, values: Map<String, Value>) -> Result<(), ModelError> {
    let path = folder.join(name);
    let text = serde_json::to_vec_pretty(&values).map_err(|error| bad(&path, error))?;
    fs::write(&path, text).map_err(ModelError::io("write", &path))
}

/// The number of a token; what is none is passed over, -1 included.
fn id(value: Option<&Value>) -> Option<u32> {
    value?.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// One number, or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(|value| id(Some(value))).collect(),
        value => id(value).into_iter().collect(),
    }
}

/// A template is a text, or a list of named ones of which the default counts.
fn template_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => {
            let of_name = |name: &str| named.iter().find(|it| it["name"] == name);
            let chosen = of_name("default").or(named.first())?;
            Some(chosen["template"].as_str()?.to_owned())
        }
        _ => None,
    }
}

/// A token is a text, or an object with one.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.map(str::to_owned)
}
