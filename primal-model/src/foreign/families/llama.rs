//! Llama, Mistral and what is Llama under other names.

use super::{Described, decoder_gguf, decoder_json, window_json};
use crate::ModelError;
use crate::foreign::keys::{GgufKeys, JsonKeys, Keys};
use crate::foreign::names::HeadRows;

pub(super) fn json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("attention_bias", keys.flag("attention_bias", false))?;
    decoder_json(keys)
}

pub(super) fn mistral_json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    let mut described = json(keys)?;
    window_json(keys, &mut described)?;
    Ok(described)
}

pub(super) fn gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    for (key, neutral) in [
        ("logit_scale", 1.0),
        ("embedding_scale", 1.0),
        ("residual_scale", 1.0),
    ] {
        keys.only(key, neutral)?;
    }
    decoder_gguf(keys, HeadRows::Pairs)
}
