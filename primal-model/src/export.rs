//! Export: a model of ours in the files that other tools load.
//!
//! Weights are decoded to plain numbers, since no other tool knows the prime grid: a Hugging Face
//! folder or a GGUF file, in float32, as exact as our own `Compute::Float`, or in half precision,
//! which rounds each value by at most 2⁻¹¹ (F16) or 2⁻⁸ (BF16) of itself; Q8_0 is a second
//! quantisation with 8 bits. Codes are found again by an import with the same grid and group.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, PositionKind, RopeScaling};
use crate::error::ModelError;
use crate::foreign::families::{self, ExportFamily};
use crate::foreign::gguf::{GgufWriter, TensorType, Value};
use crate::foreign::names::{Convention, Layout, Piece, Style, parameters, pieces};
use crate::foreign::safetensors::{FloatType, SafetensorsWriter};
use crate::foreign::vocabulary;
use crate::layers::Param;
use crate::model::Model;
use crate::parameters::Parameters;
use crate::rope;
use crate::shape::ModelShape;
use crate::tokenizer::Tokenizer;

/// What a model becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// A folder with `config.json`, `model.safetensors` and the tokenizer.
    HuggingFace(FloatType),
    /// One file, matrices in F32, F16 or Q8_0.
    Gguf(TensorType),
}

/// Writes the model of a checkpoint to `out`, a new folder or file. Needs one matrix in float
/// besides the packed model.
///
/// # Errors
/// [`ModelError::Export`] for a model or tokenizer that the format cannot hold, and where there is
/// something at `out` already.
pub fn export(checkpoint: &Checkpoint, format: ExportFormat, out: &Path) -> Result<(), ModelError> {
    if out.exists() {
        let reason = format!("{} exists already", out.display());
        return Err(ModelError::Export(reason));
    }
    let model = checkpoint.load_model()?;
    let tokenizer = checkpoint.load_tokenizer()?;
    let config = checkpoint.config.in_use().model;
    let Some(family) = families::for_export(&config) else {
        let reason = "no family of other tools has this mix of norms, positions and layers";
        return Err(ModelError::Export(reason.to_owned()));
    };
    // GPT-2 has all its biases elsewhere; where we have none they are zeros.
    let gpt2 = family.folder.style == Style::Gpt2;
    let shape = ModelShape {
        biases: model.shape().biases || gpt2,
        qkv_bias: model.shape().qkv_bias || gpt2,
        ..*model.shape()
    };
    let source = Values::new(&model);
    match format {
        ExportFormat::HuggingFace(kind) => {
            fs::create_dir_all(out).map_err(ModelError::io("create", out))?;
            hugging_face(&config, &shape, family, &source, &tokenizer, kind, out)
        }
        ExportFormat::Gguf(kind) => gguf(&config, &shape, family, &source, &tokenizer, kind, out),
    }
}

/// The parameters of a model as plain numbers.
struct Values<'m>(HashMap<&'m str, Param<'m>>);

impl<'m> Values<'m> {
    fn new(model: &'m Model) -> Self {
        let named = model.params().into_iter().map(|param| match param {
            Param::Matrix(weight) => (weight.name(), Param::Matrix(weight)),
            Param::Vector(vector) => (vector.name(), Param::Vector(vector)),
        });
        Values(named.collect())
    }

    /// Row-major; zeros where the model has no such parameter.
    fn get(&self, name: &str, len: usize) -> Vec<f32> {
        match self.0.get(name) {
            Some(Param::Vector(vector)) => vector.values().to_vec(),
            Some(Param::Matrix(weight)) => match (weight.quant(), weight.dense()) {
                (Some(matrix), _) => matrix.dequantise(),
                (None, dense) => dense.unwrap_or_default().to_vec(),
            },
            None => vec![0.0; len],
        }
    }
}

/// What takes a piece and its values in the layout of the other tool.
type Sink<'a> = dyn FnMut(&Piece, &[f32]) -> Result<(), ModelError> + 'a;

/// Every tensor of the other tool: what it is called, and the rows of ours that it holds.
struct Planned {
    ours: String,
    /// Rows of our parameter, columns (`None` for a vector).
    size: (usize, Option<usize>),
    pieces: Vec<Piece>,
}

fn plan(shape: &ModelShape, convention: Convention) -> Vec<Planned> {
    let all = parameters(shape).into_iter();
    all.map(|parameter| Planned {
        pieces: pieces(convention, shape, &parameter.name),
        size: (parameter.rows, parameter.cols),
        ours: parameter.name,
    })
    .collect()
}

impl Planned {
    fn stored_shape(&self, piece: &Piece) -> Vec<usize> {
        match self.size.1 {
            Some(cols) => piece.layout.stored_shape(piece.rows, cols).to_vec(),
            None => vec![piece.rows],
        }
    }

    /// Hands over each piece in the layout of the other tool.
    fn write(&self, source: &Values<'_>, to: &mut Sink<'_>) -> Result<(), ModelError> {
        let (rows, cols) = (self.size.0, self.size.1.unwrap_or(1));
        let values = source.get(&self.ours, rows * cols);
        let mut rest = values.as_slice();
        for piece in &self.pieces {
            let (part, after) = rest.split_at(piece.rows * cols);
            rest = after;
            match piece.layout {
                Layout::Rows => to(piece, part)?,
                layout => to(piece, &layout.to_theirs(part, piece.rows, cols))?,
            }
        }
        Ok(())
    }
}

fn hugging_face(
    model: &ModelConfig,
    shape: &ModelShape,
    family: ExportFamily,
    source: &Values<'_>,
    tokenizer: &Tokenizer,
    kind: FloatType,
    out: &Path,
) -> Result<(), ModelError> {
    let planned = plan(shape, family.folder);
    let full_name = |piece: &Piece| match family.folder.style {
        Style::Gpt2 if piece.name != "lm_head.weight" => {
            format!("transformer.{}", piece.name)
        }
        _ => piece.name.clone(),
    };
    let tensors: Vec<_> = planned
        .iter()
        .flat_map(|it| it.pieces.iter().map(|p| (full_name(p), it.stored_shape(p))))
        .collect();
    let mut writer = SafetensorsWriter::create(&out.join("model.safetensors"), kind, &tensors)?;
    for parameter in &planned {
        parameter.write(source, &mut |piece, values| {
            writer.tensor(&full_name(piece), values)
        })?;
    }
    writer.finish()?;
    tokenizer.save_hugging_face(out)?;
    let mut json = hf_config(model, shape, family);
    json["torch_dtype"] = json!(kind.torch_name());
    json["bos_token_id"] = tokenizer.bos_token().map_or(Json::Null, |id| json!(id));
    json["eos_token_id"] = match tokenizer.ends().as_slice() {
        [] => Json::Null,
        [id] => json!(id),
        ids => json!(ids),
    };
    let path = out.join("config.json");
    let text =
        serde_json::to_vec_pretty(&json).map_err(|error| ModelError::Export(error.to_string()))?;
    fs::write(&path, text).map_err(ModelError::io("write", &path))
}

fn hf_config(model: &ModelConfig, shape: &ModelShape, family: ExportFamily) -> Json {
    if family.folder.style == Style::Gpt2 {
        return json!({
            "architectures": [family.class],
            "model_type": family.model_type,
            "vocab_size": shape.vocab,
            "n_positions": shape.context,
            "n_embd": shape.width,
            "n_layer": shape.n_layer,
            "n_head": shape.n_head,
            "n_inner": shape.ff_width,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": model.norm_eps,
            "tie_word_embeddings": shape.tie_head,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        });
    }
    let mut json = json!({
        "architectures": [family.class],
        "model_type": family.model_type,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_kv_head,
        "head_dim": shape.head_dim,
        "hidden_size": shape.width,
        "intermediate_size": shape.ff_width,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": shape.tie_head,
        "attention_bias": false,
        "mlp_bias": false,
        "use_sliding_window": false,
        // Where the file names none some families take one that is beyond small vocabularies.
        "pad_token_id": null,
    });
    json["rope_scaling"] = hf_scaling(model, shape);
    if model.rope_dim > 0 {
        json["partial_rotary_factor"] = json!(model.rope_dim as f64 / shape.head_dim as f64);
    }
    if !model.rope_free_layers.is_empty() {
        let turns = |layer| u8::from(!model.rope_free_layers.contains(&layer));
        json["no_rope_layers"] = (0..shape.n_layer).map(turns).collect();
    }
    json
}

fn hf_scaling(model: &ModelConfig, shape: &ModelShape) -> Json {
    let (factor, context) = (model.rope_factor, original_context(model, shape));
    let of_yarn = model.rope_scaling == RopeScaling::Yarn;
    let own_sharpness = model.rope_attention_factor > 0.0;
    // What no named scaling says is said pair by pair.
    if !model.rope_factors.is_empty() || (own_sharpness && !of_yarn) {
        let factors = divisors(model, shape);
        return json!({
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": rope::sharpness(model),
            "original_max_position_embeddings": shape.context,
        });
    }
    match model.rope_scaling {
        RopeScaling::None => Json::Null,
        RopeScaling::Linear => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 => json!({
            "rope_type": "llama3",
            "factor": factor,
            "original_max_position_embeddings": context,
            "low_freq_factor": model.rope_low_freq_factor,
            "high_freq_factor": model.rope_high_freq_factor,
        }),
        RopeScaling::Yarn => {
            let mut json = json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": context,
                "beta_fast": model.rope_beta_fast,
                "beta_slow": model.rope_beta_slow,
                "truncate": model.rope_truncate,
            });
            if own_sharpness {
                json["attention_factor"] = json!(model.rope_attention_factor);
            }
            json
        }
    }
}

/// By what all of a model's scaling divides the frequency of each pair that is turned.
fn divisors(model: &ModelConfig, shape: &ModelShape) -> Vec<f32> {
    let plain = ModelConfig {
        rope_scaling: RopeScaling::None,
        rope_factors: Vec::new(),
        ..model.clone()
    };
    let pairs = rope::frequencies(&plain, shape)
        .into_iter()
        .zip(rope::frequencies(model, shape));
    let turned = pairs.take(model.resolved_rope_dim() / 2);
    turned.map(|(plain, ours)| (plain / ours) as f32).collect()
}

fn original_context(model: &ModelConfig, shape: &ModelShape) -> usize {
    match model.rope_original_context {
        0 => shape.context,
        original => original,
    }
}

fn gguf(
    model: &ModelConfig,
    shape: &ModelShape,
    family: ExportFamily,
    source: &Values<'_>,
    tokenizer: &Tokenizer,
    kind: TensorType,
    out: &Path,
) -> Result<(), ModelError> {
    let Some(architecture) = family.architecture else {
        let reason = "GGUF has no form for the layers of this model that have no positions";
        return Err(ModelError::Export(reason.to_owned()));
    };
    let convention = family.gguf;
    let mut writer = GgufWriter::new();
    let text = |text: &str| Value::String(text.to_owned());
    writer
        .set("general.architecture", text(architecture))
        .set("general.name", text("exported by primal"))
        .set("general.quantization_version", Value::u32(2));
    // llama.cpp's numbers for files that are mostly of one type.
    let file_type = match kind {
        TensorType::F32 => 0,
        TensorType::Q8_0 => 7,
        _ => 1,
    };
    writer.set("general.file_type", Value::u32(file_type));
    let mut size = |key: &str, value: usize| {
        // Sizes above 2³² do not exist in memory as matrices.
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        writer.set(&format!("{architecture}.{key}"), Value::u32(value));
    };
    size("context_length", shape.context);
    size("embedding_length", shape.width);
    size("block_count", shape.n_layer);
    size("feed_forward_length", shape.ff_width);
    size("attention.head_count", shape.n_head);
    size("attention.head_count_kv", shape.n_kv_head);
    size("vocab_size", shape.vocab);
    if shape.position == PositionKind::Rope {
        size("attention.key_length", shape.head_dim);
        size("attention.value_length", shape.head_dim);
        size("rope.dimension_count", model.resolved_rope_dim());
    }
    let mut number = |key: &str, value: f32| {
        writer.set(&format!("{architecture}.{key}"), Value::f32(value));
    };
    let rope_factors = if shape.position == PositionKind::Rope {
        number("attention.layer_norm_rms_epsilon", model.norm_eps);
        number("rope.freq_base", model.rope_theta);
        rope_metadata(architecture, model, shape, &mut writer)?
    } else {
        number("attention.layer_norm_epsilon", model.norm_eps);
        None
    };
    for (key, value) in vocabulary::metadata(tokenizer, shape.vocab)? {
        writer.set(&key, value);
    }
    if let Some(factors) = &rope_factors {
        writer.plan("rope_freqs.weight", &[factors.len()], TensorType::F32);
    }
    let planned = plan(shape, convention);
    for parameter in &planned {
        for piece in &parameter.pieces {
            let shape = parameter.stored_shape(piece);
            let kind = match shape.as_slice() {
                // Norms and biases stay float32 everywhere in that format.
                [_] => TensorType::F32,
                [.., cols] if cols.is_multiple_of(kind.block_values()) => kind,
                _ => TensorType::F16,
            };
            writer.plan(&piece.name, &shape, kind);
        }
    }
    let mut started = writer.start(out)?;
    if let Some(factors) = &rope_factors {
        started.tensor("rope_freqs.weight", factors)?;
    }
    for parameter in &planned {
        parameter.write(source, &mut |piece, values| {
            started.tensor(&piece.name, values)
        })?;
    }
    started.finish()
}

/// The keys of scaled rotary positions. What Llama 3.1's scaling, or a list of factors, divides
/// the frequency of each pair by is a tensor there, which is returned.
fn rope_metadata(
    architecture: &str,
    model: &ModelConfig,
    shape: &ModelShape,
    writer: &mut GgufWriter,
) -> Result<Option<Vec<f32>>, ModelError> {
    let refuse = |what: &str| {
        let reason = format!("GGUF has no form for {what} in the architecture {architecture}");
        Err(ModelError::Export(reason))
    };
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let in_tensor = model.rope_scaling == RopeScaling::Llama3 || !model.rope_factors.is_empty();
    if model.rope_scaling == RopeScaling::Yarn && (in_tensor || !model.rope_truncate) {
        return refuse("this form of scaling yarn");
    }
    if model.rope_attention_factor > 0.0 {
        let own = ModelConfig {
            rope_attention_factor: 0.0,
            ..model.clone()
        };
        let factor = model.rope_attention_factor / rope::sharpness(&own);
        writer.set(&key("attn_factor"), Value::f32(factor));
    }
    if in_tensor {
        if architecture != "llama" {
            return refuse("positions scaled pair by pair");
        }
        return Ok(Some(divisors(model, shape)));
    }
    let kind = match model.rope_scaling {
        RopeScaling::None | RopeScaling::Llama3 => return Ok(None),
        RopeScaling::Linear => "linear",
        RopeScaling::Yarn => "yarn",
    };
    let original = u32::try_from(original_context(model, shape)).unwrap_or(u32::MAX);
    writer
        .set(&key("type"), Value::String(kind.to_owned()))
        .set(&key("factor"), Value::f32(model.rope_factor))
        .set(&key("original_context_length"), Value::u32(original));
    if model.rope_scaling == RopeScaling::Yarn {
        writer
            .set(&key("yarn_beta_fast"), Value::f32(model.rope_beta_fast))
            .set(&key("yarn_beta_slow"), Value::f32(model.rope_beta_slow));
    }
    Ok(None)
}
