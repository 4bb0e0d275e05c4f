//! SmolLM3: Llama of which some layers do not turn queries and keys.

use serde_json::Value as Json;

use super::{Described, decoder_gguf, decoder_json, window_json};
use crate::ModelError;
use crate::foreign::keys::{GgufKeys, JsonKeys, Keys};
use crate::foreign::names::HeadRows;

/// Every so many layers one does not turn, where nothing else is said.
const INTERVAL: usize = 4;

pub(super) fn json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    keys.refuse("attention_bias", keys.flag("attention_bias", false))?;
    let mut described = decoder_json(keys)?;
    let layers = described.model.n_layer;
    described.model.rope_free_layers = match keys.list("no_rope_layers") {
        // Ones stand for layers that turn, whatever the key says.
        Some(list) if list.len() == layers => {
            let still = |(layer, value): (usize, &Json)| (value == &Json::from(0)).then_some(layer);
            list.iter().enumerate().filter_map(still).collect()
        }
        Some(list) => {
            let reason = format!("has {} entries for {layers} layers", list.len());
            return Err(keys.error("no_rope_layers", reason));
        }
        None => still_layers(
            layers,
            keys.optional_size("no_rope_layer_interval")?
                .unwrap_or(INTERVAL),
        ),
    };
    if keys.flag("use_sliding_window", false) {
        window_json(keys, &mut described)?;
    }
    Ok(described)
}

pub(super) fn gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    let mut described = decoder_gguf(keys, HeadRows::Pairs)?;
    described.model.rope_free_layers = still_layers(described.model.n_layer, INTERVAL);
    Ok(described)
}

/// The last layer of every `interval`.
pub(in crate::foreign) fn still_layers(layers: usize, interval: usize) -> Vec<usize> {
    (0..layers)
        .filter(|layer| (layer + 1).is_multiple_of(interval))
        .collect()
}
