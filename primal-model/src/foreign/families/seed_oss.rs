//! Seed-OSS: Llama with biases on queries, keys and values.

use super::{Described, decoder_gguf, decoder_json};
use crate::ModelError;
use crate::foreign::keys::{GgufKeys, JsonKeys};
use crate::foreign::names::HeadRows;

pub(super) fn json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("attention_out_bias", keys.flag("attention_out_bias", false))?;
    let mut described = decoder_json(keys)?;
    described.model.qkv_bias = keys.flag("attention_bias", true);
    Ok(described)
}

pub(super) fn gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    let mut described = decoder_gguf(keys, HeadRows::Halves)?;
    described.convention.gguf_norm2 = "post_attention_norm";
    Ok(described)
}
