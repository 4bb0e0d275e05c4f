//! The families of models that are read, a file and a row each: what they call the numbers of our
//! `[model]` section, how their tensors lie, and what is worked into the weights on the way.

mod ernie;
mod gpt2;
mod granite;
mod llama;
mod phi3;
mod positions;
mod qwen;
mod seed_oss;
mod smollm3;

use serde_json::{Map, Value as Json};

use super::gguf::{GgufFile, Value};
use super::keys::{GgufKeys, JsonKeys, Keys};
use super::names::{Convention, HeadRows};
use crate::ModelError;
use crate::config::{FeedForward, ModelConfig, NormKind, PositionKind};

/// By what frequencies are divided in contexts longer than the first one, in GGUF.
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";

/// A family of models.
struct Family {
    /// `model_type` of its `config.json`.
    model_type: Option<&'static str>,
    json: fn(&JsonKeys<'_>) -> Result<Described, ModelError>,
    /// `general.architecture` of its GGUF files.
    architecture: Option<&'static str>,
    gguf: fn(&GgufKeys<'_>) -> Result<Described, ModelError>,
}

const fn family(
    model_type: &'static str,
    json: fn(&JsonKeys<'_>) -> Result<Described, ModelError>,
    architecture: &'static str,
    gguf: fn(&GgufKeys<'_>) -> Result<Described, ModelError>,
) -> Family {
    Family {
        model_type: Some(model_type),
        json,
        architecture: Some(architecture),
        gguf,
    }
}

/// Every family; what has no GGUF of its own lies in one of `llama`.
const FAMILIES: [Family; 12] = [
    family("llama", llama::json, "llama", llama::gguf),
    family("mistral", llama::mistral_json, "llama", llama::gguf),
    family("ministral", llama::mistral_json, "llama", llama::gguf),
    family("qwen2", qwen::qwen2_json, "qwen2", qwen::qwen2_gguf),
    family("qwen3", qwen::qwen3_json, "qwen3", qwen::qwen3_gguf),
    family("gpt2", gpt2::json, "gpt2", gpt2::gguf),
    family("granite", granite::json, "granite", granite::gguf),
    family("ernie4_5", ernie::json, "ernie4_5", ernie::gguf),
    family("helium", ernie::helium_json, "llama", llama::gguf),
    family("seed_oss", seed_oss::json, "seed_oss", seed_oss::gguf),
    family("phi3", phi3::json, "phi3", phi3::gguf),
    family("smollm3", smollm3::json, "smollm3", smollm3::gguf),
];

/// What a file says of its model.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) model: ModelConfig,
    pub(super) convention: Convention,
    pub(super) fold: Fold,
    /// Whether the head is the embedding; `None` where the tensors say it.
    pub(super) tied: Option<bool>,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// Numbers that a model multiplies by and ours has no place for: they go into the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fold {
    /// What attention scores are multiplied by, where it is not 1/√D.
    pub(super) attention: Option<f32>,
    /// What the halves of a block are multiplied by before they are added to the stream.
    pub(super) residual: f32,
    /// What rows of the embedding are multiplied by when they are looked up.
    pub(super) embedding: f32,
    /// What logits are divided by.
    pub(super) logits: f32,
}

impl Default for Fold {
    fn default() -> Self {
        Fold {
            attention: None,
            residual: 1.0,
            embedding: 1.0,
            logits: 1.0,
        }
    }
}

impl Fold {
    /// What rows `0..rows` of our parameter `name` are multiplied by, and `rows`: all of them
    /// where it is `None`.
    pub(super) fn factor(&self, name: &str, model: &ModelConfig) -> Option<(f32, Option<usize>)> {
        let dim = model.resolved_head_dim();
        let part = name
            .strip_prefix("blocks.")
            .and_then(|it| it.split_once('.'));
        let part = part.map_or(name, |(_, part)| part);
        let part = part.strip_suffix(".bias").unwrap_or(part);
        let (factor, rows) = match part {
            "qkv" => {
                let factor = self.attention? * (dim as f32).sqrt();
                (factor, Some(model.n_head * dim))
            }
            "attention_out" | "down" => (self.residual, None),
            "tok_embedding" => (self.embedding, None),
            // A tied head was multiplied with the embedding.
            "norm.weight" | "norm" if model.tie_head => {
                (1.0 / (self.logits * self.embedding), None)
            }
            "norm.weight" | "norm" => (1.0 / self.logits, None),
            _ => return None,
        };
        (factor != 1.0).then_some((factor, rows))
    }
}

/// The model that a `config.json` describes.
pub(super) fn from_json(values: &Map<String, Json>, file: &str) -> Result<Described, ModelError> {
    let keys = JsonKeys { values, file };
    let model_type = keys.text("model_type");
    let found = FAMILIES
        .iter()
        .find(|family| family.model_type == model_type && model_type.is_some());
    match found {
        Some(family) => (family.json)(&keys),
        None => {
            let known: Vec<_> = FAMILIES.iter().filter_map(|it| it.model_type).collect();
            let found = model_type.unwrap_or("missing");
            let reason = format!("is {found}; this build reads {}", known.join(", "));
            Err(keys.error("model_type", reason))
        }
    }
}

/// The model that a GGUF file describes.
pub(super) fn from_gguf(file: &GgufFile) -> Result<Described, ModelError> {
    const ARCHITECTURE: &str = "general.architecture";
    const SPLIT: &str = "split.count";
    if let Some(parts) = file
        .metadata(SPLIT)
        .and_then(Value::as_u64)
        .filter(|it| *it > 1)
    {
        let reason = format!(
            "is {parts}: one of several files; hint: put them together with llama-gguf-split --merge"
        );
        return Err(file.error(SPLIT, reason));
    }
    let architecture = file.metadata(ARCHITECTURE).and_then(Value::as_str);
    let architecture = architecture.ok_or_else(|| file.error(ARCHITECTURE, "is missing"))?;
    let found = FAMILIES
        .iter()
        .find(|family| family.architecture == Some(architecture));
    let Some(family) = found else {
        let mut known: Vec<_> = FAMILIES.iter().filter_map(|it| it.architecture).collect();
        known.dedup();
        let reason = format!("is {architecture}; this build reads {}", known.join(", "));
        return Err(file.error(ARCHITECTURE, reason));
    };
    let keys = GgufKeys::new(file, architecture);
    let described = (family.gguf)(&keys)?;
    keys.refuse_unknown()?;
    Ok(described)
}

/// What a model of ours is called when it leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExportFamily {
    /// `model_type` of `config.json`.
    pub(crate) model_type: &'static str,
    /// The class of `transformers`.
    pub(crate) class: &'static str,
    /// `general.architecture` in GGUF; `None` where it has no form there.
    pub(crate) architecture: Option<&'static str>,
    /// Names and layouts in a Hugging Face folder.
    pub(crate) folder: Convention,
    /// Names and layouts in GGUF.
    pub(crate) gguf: Convention,
}

/// The family that has a model's mix of norms, positions and layers.
pub(crate) fn for_export(model: &ModelConfig) -> Option<ExportFamily> {
    let like = |model_type, class, architecture, heads| ExportFamily {
        model_type,
        class,
        architecture: Some(architecture),
        folder: Convention::LLAMA,
        gguf: Convention::gguf(heads),
    };
    let kinds = (model.norm, model.position, model.feed_forward);
    if kinds == (NormKind::Layer, PositionKind::Learned, FeedForward::Gelu) {
        return Some(ExportFamily {
            folder: Convention::GPT2,
            ..like("gpt2", "GPT2LMHeadModel", "gpt2", HeadRows::Halves)
        });
    }
    let llama = (NormKind::Rms, PositionKind::Rope, FeedForward::Swiglu);
    if kinds != llama || model.biases {
        return None;
    }
    let (halves, pairs) = (HeadRows::Halves, HeadRows::Pairs);
    let has = (
        model.qkv_bias,
        model.qk_norm,
        !model.rope_free_layers.is_empty(),
        model.rope_dim > 0,
    );
    Some(match has {
        (false, false, false, false) => like("llama", "LlamaForCausalLM", "llama", pairs),
        (true, false, false, false) => like("qwen2", "Qwen2ForCausalLM", "qwen2", halves),
        (false, true, false, false) => like("qwen3", "Qwen3ForCausalLM", "qwen3", halves),
        (false, false, true, false) => {
            let usual = model.rope_free_layers == smollm3::still_layers(model.n_layer, 4);
            let family = like("smollm3", "SmolLM3ForCausalLM", "smollm3", pairs);
            ExportFamily {
                architecture: family.architecture.filter(|_| usual),
                ..family
            }
        }
        (false, false, false, true) => {
            let family = like("phi3", "Phi3ForCausalLM", "phi3", halves);
            let fused = |convention| Convention {
                fused: true,
                heads: HeadRows::Part(model.rope_dim),
                ..convention
            };
            ExportFamily {
                folder: fused(family.folder),
                gguf: fused(family.gguf),
                ..family
            }
        }
        _ => return None,
    })
}

/// What all of the Llama family share.
fn llama_like() -> ModelConfig {
    ModelConfig {
        norm: NormKind::Rms,
        position: PositionKind::Rope,
        feed_forward: FeedForward::Swiglu,
        ..ModelConfig::default()
    }
}

/// A decoder of the Llama family by its `config.json`: sizes, positions and what is refused
/// everywhere.
fn decoder_json(keys: &JsonKeys<'_>) -> Result<Described, ModelError> {
    let act = keys.text("hidden_act").unwrap_or("silu");
    keys.refuse("hidden_act", act != "silu" && act != "swish")?;
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
        ..llama_like()
    };
    positions::json(keys, &mut model)?;
    match (keys.text("model_type"), positions::turned_share(keys)?) {
        (Some("phi3"), share) => {
            let dim = model.resolved_head_dim();
            let turned = (share * dim as f64) as usize;
            model.rope_dim = if turned < dim { turned } else { 0 };
        }
        (_, share) if share < 1.0 => {
            let reason = format!("is {share}, which this build does not have for this model");
            return Err(keys.error("partial_rotary_factor", reason));
        }
        _ => {}
    }
    let mut described = Described {
        model,
        convention: Convention::LLAMA,
        fold: Fold::default(),
        tied: keys.optional_flag("tie_word_embeddings"),
        notes: Vec::new(),
    };
    positions::long_json(keys, &mut described)?;
    Ok(described)
}

/// A decoder of the Llama family by the keys of its architecture.
fn decoder_gguf(keys: &GgufKeys<'_>, heads: HeadRows) -> Result<Described, ModelError> {
    let mut model = ModelConfig {
        n_kv_head: keys.optional_size("attention.head_count_kv")?.unwrap_or(0),
        head_dim: keys.optional_size("attention.key_length")?.unwrap_or(0),
        norm_eps: keys
            .float("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6),
        qkv_bias: keys.file.tensors().contains_key("blk.0.attn_q.bias"),
        norm: NormKind::Rms,
        position: PositionKind::Rope,
        feed_forward: FeedForward::Swiglu,
        ..sizes_gguf(keys)?
    };
    keys.only("attention.value_length", model.resolved_head_dim() as f64)?;
    let scale = (model.resolved_head_dim() as f64).sqrt().recip();
    if keys.number("attention.scale")? != Some(0.0) && !keys.architecture.starts_with("granite") {
        keys.only("attention.scale", scale)?;
    }
    positions::gguf(keys, &mut model)?;
    let mut described = Described {
        model,
        convention: Convention::gguf(heads),
        fold: Fold::default(),
        tied: None,
        notes: Vec::new(),
    };
    if keys.file.tensors().contains_key(LONG_FACTORS) {
        let original = keys.size("rope.scaling.original_context_length")?;
        cut_to_original(&mut described, original);
    }
    if let Some(window) = keys.optional_size("attention.sliding_window")? {
        cut_to_window(&mut described, window);
    }
    Ok(described)
}

/// What every architecture says.
fn sizes_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig, ModelError> {
    let file = keys.file;
    let vocab_size = match file.tensors().get("token_embd.weight") {
        Some(info) => info.shape[0],
        None => return Err(file.error("token_embd.weight", "the file has no such tensor")),
    };
    keys.pass_over(&["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"]);
    for (key, neutral) in [
        ("expert_count", 0.0),
        ("expert_used_count", 0.0),
        ("attention.causal", 1.0),
        ("use_parallel_residual", 0.0),
    ] {
        keys.only(key, neutral)?;
    }
    Ok(ModelConfig {
        vocab_size,
        context: keys.size("context_length")?,
        n_layer: keys.layers("block_count")?,
        n_head: keys.size("attention.head_count")?,
        width: keys.size("embedding_length")?,
        ff_width: keys.size("feed_forward_length")?,
        ..ModelConfig::default()
    })
}

/// A window that slides over a longer context is not there: the context ends where it would.
fn cut_to_window(described: &mut Described, window: usize) {
    let context = described.model.context;
    if window < context {
        described.notes.push(format!(
            "sliding windows are not in this build: the context ends with the first window, \
             after {window} of {context} tokens"
        ));
        described.model.context = window;
    }
}

/// Ends the context where the model was first trained to: positions beyond it are stretched by
/// other factors.
fn cut_to_original(described: &mut Described, original: usize) {
    let context = described.model.context;
    if original < context {
        described.notes.push(format!(
            "positions beyond the first {original} are stretched by other factors, which this \
             build does not switch to: the context ends there, not after {context} tokens"
        ));
        described.model.context = original;
    }
}

/// The window of `sliding_window`, where any layer slides.
fn window_json(keys: &JsonKeys<'_>, described: &mut Described) -> Result<(), ModelError> {
    let Some(window) = keys.optional_size("sliding_window")? else {
        return Ok(());
    };
    let slides = match keys.list("layer_types") {
        Some(types) => types.iter().any(|kind| kind == "sliding_attention"),
        None => true,
    };
    if slides {
        cut_to_window(described, window);
    }
    Ok(())
}
