//! GPT-2: learned positions, layer norms, biases everywhere.

use super::{Described, Fold, sizes_gguf};
use crate::ModelError;
use crate::config::ModelConfig;
use crate::foreign::keys::{GgufKeys, JsonKeys, Keys};
use crate::foreign::names::{Convention, HeadRows};

pub(super) fn json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    let act = keys.text("activation_function").unwrap_or("gelu_new");
    keys.refuse(
        "activation_function",
        act != "gelu_new" && act != "gelu_pytorch_tanh",
    )?;
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        keys.refuse(key, keys.flag(key, false))?;
    }
    keys.refuse("scale_attn_weights", !keys.flag("scale_attn_weights", true))?;
    let model = ModelConfig {
        vocab_size: keys.size("vocab_size")?,
        context: keys.optional_size("n_positions")?.unwrap_or(1024),
        n_layer: keys.layers("n_layer")?,
        n_head: keys.size("n_head")?,
        width: keys.size("n_embd")?,
        ff_width: keys.optional_size("n_inner")?.unwrap_or(0),
        norm_eps: keys.float("layer_norm_epsilon")?.unwrap_or(1e-5),
        biases: true,
        ..ModelConfig::default()
    };
    Ok(described(
        model,
        Convention::GPT2,
        keys.optional_flag("tie_word_embeddings"),
    ))
}

pub(super) fn gguf(keys: &GgufKeys<'_>) -> Result<Described, ModelError> {
    let epsilon = keys.float("attention.layer_norm_epsilon")?;
    let sizes = sizes_gguf(keys)?;
    keys.only("attention.head_count_kv", sizes.n_head as f64)?;
    let model = ModelConfig {
        norm_eps: epsilon.unwrap_or(1e-5),
        biases: true,
        ..sizes
    };
    Ok(described(model, Convention::gguf(HeadRows::Halves), None))
}

fn described(model: ModelConfig, convention: Convention, tied: Option<bool>) -> Described {
    Described {
        model,
        convention,
        fold: Fold::default(),
        tied,
        notes: Vec::new(),
    }
}
