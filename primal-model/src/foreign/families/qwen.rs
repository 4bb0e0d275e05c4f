//! Qwen2, with biases on queries, keys and values, and Qwen3, with a norm of each head's queries
//! and keys instead.

use super::{Described, decoder_gguf, decoder_json, window_json};
use crate::ModelError;
use crate::foreign::keys::{GgufKeys, JsonKeys, Keys};
use crate::foreign::names::HeadRows;

pub(super) fn qwen2_json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    let mut described = decoder_json(keys)?;
    described.model.qkv_bias = true;
    slide(keys, &mut described)?;
    Ok(described)
}

pub(super) fn qwen2_gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    decoder_gguf(keys, HeadRows::Halves)
}

pub(super) fn qwen3_json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("attention_bias", keys.flag("attention_bias", false))?;
    let mut described = decoder_json(keys)?;
    described.model.qk_norm = true;
    // Its heads are 128 wide where the file does not say it.
    if described.model.head_dim == 0 {
        described.model.head_dim = 128;
    }
    slide(keys, &mut described)?;
    Ok(described)
}

pub(super) fn qwen3_gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    let mut described = decoder_gguf(keys, HeadRows::Halves)?;
    described.model.qk_norm = true;
    Ok(described)
}

/// The windows of the upper layers, which slide only where the file asks for it.
fn slide(keys: &JsonKeys<'_>, described: &mut Described) -> Result<(), ModelError> {
    let from = keys.number("max_window_layers")?.unwrap_or(28.0);
    let none_slides = from >= described.model.n_layer as f64 && keys.list("layer_types").is_none();
    if keys.flag("use_sliding_window", false) && !none_slides {
        window_json(keys, described)?;
    }
    Ok(())
}
