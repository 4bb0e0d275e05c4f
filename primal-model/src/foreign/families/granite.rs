//! Granite 3: Llama with multipliers, which go into the weights.

use super::{Described, Fold, decoder_gguf, decoder_json};
use crate::ModelError;
use crate::foreign::keys::{GgufKeys, JsonKeys, Keys};
use crate::foreign::names::HeadRows;

pub(super) fn json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("attention_bias", keys.flag("attention_bias", false))?;
    let mut described = decoder_json(keys)?;
    described.fold = fold(
        keys,
        [
            "attention_multiplier",
            "residual_multiplier",
            "embedding_multiplier",
            "logits_scaling",
        ],
    )?;
    described.fold.attention = described.fold.attention.or(Some(1.0));
    Ok(described)
}

pub(super) fn gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    let mut described = decoder_gguf(keys, HeadRows::Pairs)?;
    described.fold = fold(
        keys,
        [
            "attention.scale",
            "residual_scale",
            "embedding_scale",
            "logit_scale",
        ],
    )?;
    Ok(described)
}

/// The multipliers by their names: of scores, of halves of a block, of the embedding, and what
/// logits are divided by.
fn fold(keys: &impl Keys, names: [&str; 4]) -> Result<Fold, ModelError> {
    let [attention, residual, embedding, logits] = names;
    let number = |key: &str| match keys.float(key)? {
        Some(value) if !value.is_normal() => {
            Err(keys.error(key, format!("is {value}, which no model has")))
        }
        value => Ok(value),
    };
    Ok(Fold {
        attention: number(attention)?,
        residual: number(residual)?.unwrap_or(1.0),
        embedding: number(embedding)?.unwrap_or(1.0),
        logits: number(logits)?.unwrap_or(1.0),
    })
}
