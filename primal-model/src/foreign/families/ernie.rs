//! ERNIE 4.5 (dense) and Helium: Llama whose queries and keys are turned in neighbouring pairs.

use super::{Described, decoder_gguf, decoder_json};
use crate::ModelError;
use crate::foreign::keys::{GgufKeys, JsonKeys};
use crate::foreign::names::HeadRows;

pub(super) fn json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("use_bias", keys.flag("use_bias", false))?;
    in_pairs(keys)
}

pub(super) fn helium_json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("attention_bias", keys.flag("attention_bias", false))?;
    in_pairs(keys)
}

pub(super) fn gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    decoder_gguf(keys, HeadRows::Pairs)
}

fn in_pairs(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    let mut described = decoder_json(keys)?;
    described.convention.heads = HeadRows::Pairs;
    Ok(described)
}
