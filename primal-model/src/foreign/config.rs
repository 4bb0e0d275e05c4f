//! What other tools call the numbers of our `[model]` section: Hugging Face's `config.json` and
//! GGUF's metadata.

use serde_json::{Map, Value as Json};

use super::bytes::foreign;
use super::gguf::{GgufFile, Value};
use super::names::Convention;
use crate::ModelError;
use crate::config::{FeedForward, ModelConfig, NormKind, PositionKind, RopeScaling};

/// Larger sizes than any model has; products of two of them fit.
const MAX_SIZE: u64 = 1 << 28;
const MAX_LAYERS: usize = 10_000;

/// Named values of a model file. Errors name the key.
trait Keys {
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
}

/// An object of a `config.json`.
struct JsonKeys<'a> {
    values: &'a Map<String, Json>,
    file: &'a str,
}

impl Keys for JsonKeys<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.values.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(value) => Ok(Some(value)),
                None => Err(self.error(key, "is not a number".to_owned())),
            },
        }
    }

    fn error(&self, key: &str, reason: String) -> ModelError {
        foreign(self.file, key, reason)
    }
}

impl JsonKeys<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.as_str()
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.values
            .get(key)
            .and_then(Json::as_bool)
            .unwrap_or(default)
    }

    fn object(&self, key: &str) -> Option<JsonKeys<'_>> {
        let values = self.values.get(key)?.as_object()?;
        let file = self.file;
        Some(JsonKeys { values, file })
    }

    /// Refuses a feature that is turned on and that we do not have.
    fn refuse(&self, key: &str, is_on: bool) -> Result<(), ModelError> {
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

/// The model that a `config.json` describes.
pub(super) fn from_json(
    values: &Map<String, Json>,
    file: &str,
) -> Result<(ModelConfig, Convention), ModelError> {
    let keys = JsonKeys { values, file };
    match keys.text("model_type") {
        Some(family @ ("llama" | "mistral" | "qwen2")) => {
            Ok((llama_json(&keys, family)?, Convention::HfLlama))
        }
        Some("gpt2") => Ok((gpt2_json(&keys)?, Convention::HfGpt2)),
        other => {
            let found = other.unwrap_or("missing");
            let reason = format!("is {found}; this build reads llama, mistral, qwen2, gpt2");
            Err(keys.error("model_type", reason))
        }
    }
}

fn llama_json(keys: &JsonKeys<'_>, family: &str) -> Result<ModelConfig, ModelError> {
    let act = keys.text("hidden_act").unwrap_or("silu");
    keys.refuse("hidden_act", act != "silu" && act != "swish")?;
    keys.refuse("attention_bias", keys.flag("attention_bias", false))?;
    keys.refuse("mlp_bias", keys.flag("mlp_bias", false))?;
    let mut model = ModelConfig {
        vocab_size: keys.size("vocab_size")?,
        context: keys
            .optional_size("max_position_embeddings")?
            .unwrap_or(2048),
        n_layer: keys.layers("num_hidden_layers")?,
        n_head: keys.size("num_attention_heads")?,
        n_kv_head: keys.optional_size("num_key_value_heads")?.unwrap_or(0),
        head_dim: keys.optional_size("head_dim")?.unwrap_or(0),
        width: keys.size("hidden_size")?,
        ff_width: keys.size("intermediate_size")?,
        norm_eps: keys.float("rms_norm_eps")?.unwrap_or(1e-6),
        tie_head: keys.flag("tie_word_embeddings", false),
        qkv_bias: family == "qwen2",
        ..llama_family()
    };
    // A window that slides over a longer context is not there: the context ends where it would.
    let slides = family == "mistral" || keys.flag("use_sliding_window", false);
    if let Some(window) = keys.optional_size("sliding_window")?.filter(|_| slides) {
        model.context = model.context.min(window);
    }
    // Newer files keep all of it in one object, older ones the base beside the scaling.
    let parameters = keys.object("rope_parameters");
    let scaling = parameters.or(keys.object("rope_scaling"));
    let theta = match &scaling {
        Some(scaling) => scaling.float("rope_theta")?,
        None => None,
    };
    let theta = match theta {
        Some(theta) => Some(theta),
        None => keys.float("rope_theta")?,
    };
    model.rope_theta = theta.unwrap_or(10_000.0);
    if let Some(scaling) = scaling {
        rope_scaling(&scaling, &mut model)?;
    }
    Ok(model)
}

fn rope_scaling(keys: &JsonKeys<'_>, model: &mut ModelConfig) -> Result<(), ModelError> {
    let kind = keys
        .text("rope_type")
        .or(keys.text("type"))
        .unwrap_or("default");
    model.rope_scaling = match kind {
        "default" => return Ok(()),
        "linear" => RopeScaling::Linear,
        "llama3" => RopeScaling::Llama3,
        "yarn" => RopeScaling::Yarn,
        other => {
            let reason = format!("is {other}; this build has default, linear, llama3, yarn");
            return Err(keys.error("rope_scaling", reason));
        }
    };
    keys.refuse("mscale", keys.number("mscale")?.is_some())?;
    keys.refuse(
        "attention_factor",
        keys.number("attention_factor")?.is_some(),
    )?;
    model.rope_factor = keys.float("factor")?.unwrap_or(1.0);
    let original = keys.optional_size("original_max_position_embeddings")?;
    model.rope_original_context = original.unwrap_or(model.context);
    model.rope_low_freq_factor = keys.float("low_freq_factor")?.unwrap_or(1.0);
    model.rope_high_freq_factor = keys.float("high_freq_factor")?.unwrap_or(4.0);
    model.rope_beta_fast = keys.float("beta_fast")?.unwrap_or(32.0);
    model.rope_beta_slow = keys.float("beta_slow")?.unwrap_or(1.0);
    Ok(())
}

fn gpt2_json(keys: &JsonKeys<'_>) -> Result<ModelConfig, ModelError> {
    let act = keys.text("activation_function").unwrap_or("gelu_new");
    keys.refuse(
        "activation_function",
        act != "gelu_new" && act != "gelu_pytorch_tanh",
    )?;
    for key in ["scale_attn_by_inverse_layer_idx", "add_cross_attention"] {
        keys.refuse(key, keys.flag(key, false))?;
    }
    keys.refuse("scale_attn_weights", !keys.flag("scale_attn_weights", true))?;
    Ok(ModelConfig {
        vocab_size: keys.size("vocab_size")?,
        context: keys.optional_size("n_positions")?.unwrap_or(1024),
        n_layer: keys.layers("n_layer")?,
        n_head: keys.size("n_head")?,
        width: keys.size("n_embd")?,
        ff_width: keys.optional_size("n_inner")?.unwrap_or(0),
        norm_eps: keys.float("layer_norm_epsilon")?.unwrap_or(1e-5),
        tie_head: keys.flag("tie_word_embeddings", true),
        biases: true,
        ..ModelConfig::default()
    })
}

/// What all of the Llama family share.
fn llama_family() -> ModelConfig {
    ModelConfig {
        norm: NormKind::Rms,
        position: PositionKind::Rope,
        feed_forward: FeedForward::Swiglu,
        ..ModelConfig::default()
    }
}

/// The keys of an architecture, `llama.block_count` and so on.
struct GgufKeys<'a> {
    file: &'a GgufFile,
    architecture: &'a str,
}

impl Keys for GgufKeys<'_> {
    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let key = format!("{}.{key}", self.architecture);
        match self.file.metadata(&key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(value) => Ok(Some(value)),
                None => Err(self.file.error(&key, "is not a number")),
            },
        }
    }

    fn error(&self, key: &str, reason: String) -> ModelError {
        self.file
            .error(&format!("{}.{key}", self.architecture), reason)
    }
}

/// The model that a GGUF file describes.
pub(super) fn from_gguf(file: &GgufFile) -> Result<(ModelConfig, Convention), ModelError> {
    const ARCHITECTURE: &str = "general.architecture";
    let architecture = file.metadata(ARCHITECTURE).and_then(Value::as_str);
    let architecture = architecture.ok_or_else(|| file.error(ARCHITECTURE, "is missing"))?;
    let keys = GgufKeys { file, architecture };
    let vocab_size = match file.tensors().get("token_embd.weight") {
        Some(info) => info.shape[0],
        None => return Err(file.error("token_embd.weight", "the file has no such tensor")),
    };
    let common = ModelConfig {
        vocab_size,
        context: keys.size("context_length")?,
        n_layer: keys.layers("block_count")?,
        n_head: keys.size("attention.head_count")?,
        width: keys.size("embedding_length")?,
        ff_width: keys.size("feed_forward_length")?,
        tie_head: !file.tensors().contains_key("output.weight"),
        ..ModelConfig::default()
    };
    let interleaved = match architecture {
        "gpt2" => {
            let epsilon = keys.float("attention.layer_norm_epsilon")?;
            let model = ModelConfig {
                norm_eps: epsilon.unwrap_or(1e-5),
                biases: true,
                ..common
            };
            return Ok((model, Convention::Gguf { interleaved: false }));
        }
        "llama" => true,
        "qwen2" => false,
        other => {
            let reason = format!("is {other}; this build reads llama, qwen2, gpt2");
            return Err(file.error(ARCHITECTURE, reason));
        }
    };
    if keys.number("expert_count")?.unwrap_or(0.0) > 0.0 {
        let reason = "is above 0, which this build does not have".to_owned();
        return Err(keys.error("expert_count", reason));
    }
    let mut model = ModelConfig {
        n_kv_head: keys.optional_size("attention.head_count_kv")?.unwrap_or(0),
        head_dim: keys.optional_size("attention.key_length")?.unwrap_or(0),
        norm_eps: keys
            .float("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6),
        rope_theta: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
        qkv_bias: file.tensors().contains_key("blk.0.attn_q.bias"),
        norm: NormKind::Rms,
        position: PositionKind::Rope,
        feed_forward: FeedForward::Swiglu,
        ..common
    };
    if let Some(window) = keys.optional_size("attention.sliding_window")? {
        model.context = model.context.min(window);
    }
    let turned = keys.optional_size("rope.dimension_count")?;
    if let Some(turned) = turned.filter(|turned| *turned != model.resolved_head_dim()) {
        let reason = format!("is {turned}: heads that are turned in part are not in this build");
        return Err(keys.error("rope.dimension_count", reason));
    }
    let scaling = format!("{architecture}.rope.scaling.type");
    match file.metadata(&scaling).and_then(Value::as_str) {
        None | Some("none") => {}
        Some(kind @ ("linear" | "yarn")) => {
            let linear = kind == "linear";
            model.rope_scaling = if linear {
                RopeScaling::Linear
            } else {
                RopeScaling::Yarn
            };
            model.rope_factor = keys.float("rope.scaling.factor")?.unwrap_or(1.0);
            let original = keys.optional_size("rope.scaling.original_context_length")?;
            model.rope_original_context = original.unwrap_or(model.context);
        }
        Some(other) => return Err(file.error(&scaling, format!("is {other}, which is unknown"))),
    }
    Ok((model, Convention::Gguf { interleaved }))
}
