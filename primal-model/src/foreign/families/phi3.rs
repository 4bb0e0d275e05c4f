//! Phi-3 and Phi-4-mini: Llama whose queries, keys and values are one tensor, and gate and up
//! another, with heads that may be turned in part and positions stretched by a factor a pair.

use super::{Described, decoder_gguf, decoder_json, window_json};
use crate::ModelError;
use crate::foreign::keys::{GgufKeys, JsonKeys};
use crate::foreign::names::HeadRows;

pub(super) fn json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("attention_bias", keys.flag("attention_bias", false))?;
    let mut described = decoder_json(keys)?;
    window_json(keys, &mut described)?;
    fuse(&mut described);
    Ok(described)
}

pub(super) fn gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    let mut described = decoder_gguf(keys, HeadRows::Halves)?;
    fuse(&mut described);
    Ok(described)
}

fn fuse(described: &mut Described) {
    described.convention.fused = true;
    let turned = described.model.rope_dim;
    if turned > 0 {
        described.convention.heads = HeadRows::Part(turned);
    }
}
