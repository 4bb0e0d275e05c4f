//! Named values of model files, `config.json` and GGUF's metadata, read alike. Errors name the key.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::bytes::foreign;
use super::gguf::{GgufFile, Value};
use crate::ModelError;

/// Larger sizes than any model has; products of two of them fit.
const MAX_SIZE: u64 = 1 << 28;
const MAX_LAYERS: usize = 10_000;

/// Named values of a model file.
pub(super) trait Keys {
    /// A number, or a list of equal ones.
    fn number(&self, key: &str) -> Result<Option<f64>, ModelError>;
    fn error(&self, key: &str, reason: String) -> ModelError;

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        let value = self.optional_size(key)?;
        value.ok_or_else(|| self.error(key, "is missing".to_owned()))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.number(key)? else {
            return Ok(None);
        };
        let fits = value.fract() == 0.0 && (1.0..=MAX_SIZE as f64).contains(&value);
        if !fits {
            return Err(self.error(key, format!("is {value}, expected a size")));
        }
        Ok(Some(value as usize))
    }

    fn layers(&self, key: &str) -> Result<usize, ModelError> {
        let layers = self.size(key)?;
        if layers > MAX_LAYERS {
            return Err(self.error(key, format!("is {layers}, at most {MAX_LAYERS} are read")));
        }
        Ok(layers)
    }

    fn float(&self, key: &str) -> Result<Option<f32>, ModelError> {
        Ok(self.number(key)?.map(|value| value as f32))
    }

    /// Refuses a number that is there and is not `neutral`.
    fn only(&self, key: &str, neutral: f64) -> Result<(), ModelError> {
        match self.number(key)? {
            Some(value) if (value - neutral).abs() > 1e-6 * neutral.abs().max(1.0) => {
                let reason = format!("is {value}, which this build does not have for this model");
                Err(self.error(key, reason))
            }
            _ => Ok(()),
        }
    }
}

/// The number that all values of a list are.
fn one_of_all(values: &[f64]) -> Result<f64, String> {
    match values {
        [first, rest @ ..] if rest.iter().all(|value| value == first) => Ok(*first),
        [] => Err("is an empty list".to_owned()),
        _ => Err("differs from layer to layer, which this build does not have".to_owned()),
    }
}

/// An object of a `config.json`.
pub(super) struct JsonKeys<'a> {
    pub(super) values: &'a Map<String, Json>,
    pub(super) file: &'a str,
}

impl Keys for JsonKeys<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let value = match self.values.get(key) {
            None | Some(Json::Null) => return Ok(None),
            Some(Json::Array(list)) => {
                let numbers: Option<Vec<f64>> = list.iter().map(Json::as_f64).collect();
                let numbers = numbers.ok_or_else(|| "is not a number".to_owned());
                numbers.and_then(|numbers| one_of_all(&numbers))
            }
            Some(value) => value.as_f64().ok_or_else(|| "is not a number".to_owned()),
        };
        value.map(Some).map_err(|reason| self.error(key, reason))
    }

    fn error(&self, key: &str, reason: String) -> ModelError {
        foreign(self.file, key, reason)
    }
}

impl<'a> JsonKeys<'a> {
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.values.get(key)?.as_str()
    }

    pub(super) fn optional_flag(&self, key: &str) -> Option<bool> {
        self.values.get(key).and_then(Json::as_bool)
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> bool {
        self.optional_flag(key).unwrap_or(default)
    }

    pub(super) fn list(&self, key: &str) -> Option<&'a [Json]> {
        self.values.get(key)?.as_array().map(Vec::as_slice)
    }

    pub(super) fn object(&self, key: &str) -> Option<JsonKeys<'a>> {
        let values = self.values.get(key)?.as_object()?;
        let file = self.file;
        Some(JsonKeys { values, file })
    }

    /// Refuses a feature that is turned on and that we do not have.
    pub(super) fn refuse(&self, key: &str, is_on: bool) -> Result<(), ModelError> {
        if is_on {
            let value = self
                .values
                .get(key)
                .map(Json::to_string)
                .unwrap_or_default();
            return Err(self.error(key, format!("is {value}, which this build does not have")));
        }
        Ok(())
    }
}

/// The keys of an architecture, `llama.block_count` and so on. It remembers which were asked for:
/// what nobody asked for is not understood.
pub(super) struct GgufKeys<'a> {
    pub(super) file: &'a GgufFile,
    pub(super) architecture: &'a str,
    asked: RefCell<BTreeSet<String>>,
}

impl Keys for GgufKeys<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let value = match self.value(key) {
            None => return Ok(None),
            Some(value) => match (value.as_f64(), value.as_bool(), value.as_numbers()) {
                (Some(number), ..) => Ok(number),
                (_, Some(flag), _) => Ok(f64::from(u8::from(flag))),
                (.., Some(numbers)) => one_of_all(&numbers),
                _ => Err("is not a number".to_owned()),
            },
        };
        value.map(Some).map_err(|reason| self.error(key, reason))
    }

    fn error(&self, key: &str, reason: String) -> ModelError {
        self.file.error(&self.full(key), reason)
    }
}

impl<'a> GgufKeys<'a> {
    pub(super) fn new(file: &'a GgufFile, architecture: &'a str) -> Self {
        GgufKeys {
            file,
            architecture,
            asked: RefCell::default(),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn value(&self, key: &str) -> Option<&'a Value> {
        let key = self.full(key);
        let value = self.file.metadata(&key);
        self.asked.borrow_mut().insert(key);
        value
    }

    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        self.value(key)?.as_str()
    }

    /// Takes note of keys that change no result.
    pub(super) fn pass_over(&self, keys: &[&str]) {
        for key in keys {
            self.value(key);
        }
    }

    /// Refuses keys of the architecture that nobody asked for.
    pub(super) fn refuse_unknown(&self) -> Result<(), ModelError> {
        let (prefix, asked) = (self.full(""), self.asked.borrow());
        let mut keys = self.file.all_metadata().keys();
        match keys.find(|key| key.starts_with(&prefix) && !asked.contains(*key)) {
            Some(key) => Err(self
                .file
                .error(key, "is no key of this architecture that this build knows")),
            None => Ok(()),
        }
    }
}
