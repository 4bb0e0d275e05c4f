//! The section `[model]`: one description for GPT-2 and the Llama family.

use primal_lut::Grid;
use serde::{Deserialize, Serialize};

use super::{at_least_one, check};
use crate::ModelError;

/// Shape of the transformer and how its weights are stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// Tokens that the model knows; 0 takes the tokenizer's.
    pub vocab_size: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Transformer blocks.
    pub n_layer: usize,
    /// Attention heads.
    pub n_head: usize,
    /// Heads of keys and values, each shared by as many attention heads; 0 means `n_head`.
    pub n_kv_head: usize,
    /// Width of an attention head; 0 means `width` / `n_head`.
    pub head_dim: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward layer; 0 means 4 × `width`.
    pub ff_width: usize,
    /// What rows are normalised by.
    pub norm: NormKind,
    /// Added to the variance (or mean square) of a norm.
    pub norm_eps: f32,
    /// How the model knows where a token stands.
    pub position: PositionKind,
    /// Base of the wavelengths of `position = "rope"`.
    pub rope_theta: f32,
    /// How a context beyond `rope_original_context` is reached.
    pub rope_scaling: RopeScaling,
    /// By how much `rope_scaling` stretches the context.
    pub rope_factor: f32,
    /// Context before `rope_scaling`; 0 means `context`.
    pub rope_original_context: usize,
    /// Scaling `llama3` divides the frequency of waves longer than original context / this.
    pub rope_low_freq_factor: f32,
    /// Scaling `llama3` keeps waves shorter than original context / this.
    pub rope_high_freq_factor: f32,
    /// Scaling `yarn` keeps waves that turn more often than this in the original context.
    pub rope_beta_fast: f32,
    /// Scaling `yarn` divides the frequency of waves that turn less often than this in it.
    pub rope_beta_slow: f32,
    /// Whether the ramp of scaling `yarn` begins and ends at whole pairs.
    pub rope_truncate: bool,
    /// What turned queries and keys are multiplied by; 0 takes what `rope_scaling` says.
    pub rope_attention_factor: f32,
    /// By what the frequency of each pair of a head is divided, beside `rope_scaling`; empty: by 1.
    pub rope_factors: Vec<f32>,
    /// Elements of a head that are turned, an even number; 0 turns all of them.
    pub rope_dim: usize,
    /// Numbers of the blocks whose queries and keys are not turned.
    pub rope_free_layers: Vec<usize>,
    /// Whether each head's queries and keys go through a norm of their own before they are turned.
    pub qk_norm: bool,
    /// Context of the model when it is used, where training runs with a shorter `context`; 0: the
    /// same.
    pub full_context: usize,
    /// The feed-forward layer.
    pub feed_forward: FeedForward,
    /// Whether the output head is the token embedding.
    pub tie_head: bool,
    /// Whether linear layers and layer norms have biases.
    pub biases: bool,
    /// Whether queries, keys and values have biases even where `biases` is false.
    pub qkv_bias: bool,
    /// Grid id of the weights, see [`primal_lut::Grid::by_id`].
    pub grid: String,
    /// Columns of a matrix that share a scale; 0 is one scale a row.
    pub group: usize,
    /// Whether the last block lives on the fine grid.
    pub fine_last_block: bool,
    /// Parts that stay float32 matrices under AdamW instead of living on the grid.
    pub float_parts: Vec<FloatPart>,
    /// Standard deviation of the blocks' weights at the start.
    pub init_std: f32,
    /// Standard deviation of the embeddings at the start.
    pub embedding_std: f32,
    /// Row scale at the start, in standard deviations of the row.
    pub scale_per_std: f32,
}

/// What rows are normalised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// Mean and standard deviation, as in GPT-2.
    Layer,
    /// Root mean square, as in Llama; without bias.
    Rms,
}

/// How the model knows where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionKind {
    /// A learned embedding a position, added to the token's.
    Learned,
    /// Queries and keys are turned by their position.
    Rope,
}

/// How rotary positions reach beyond the context that a model was first trained with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided by the factor.
    Linear,
    /// Low frequencies are divided, high ones kept, with a ramp between them (Llama 3.1).
    Llama3,
    /// The same with a ramp over dimensions, and scores made sharper (Peng et al. 2023).
    Yarn,
}

/// The feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedForward {
    /// down(gelu(up(x))), with the tanh form of GELU.
    Gelu,
    /// down(silu(gate(x)) · up(x)).
    Swiglu,
}

/// A group of matrices that a config can keep in float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FloatPart {
    /// Token and position embeddings.
    Embeddings,
    /// The attention's projections.
    Attention,
    /// The feed-forward layers.
    Mlp,
    /// The output head, where it is not tied to the embedding.
    Head,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            vocab_size: 0,
            context: 256,
            n_layer: 6,
            n_head: 6,
            n_kv_head: 0,
            head_dim: 0,
            width: 384,
            ff_width: 0,
            norm: NormKind::Layer,
            norm_eps: 1e-5,
            position: PositionKind::Learned,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            rope_factor: 1.0,
            rope_original_context: 0,
            rope_low_freq_factor: 1.0,
            rope_high_freq_factor: 4.0,
            rope_beta_fast: 32.0,
            rope_beta_slow: 1.0,
            rope_truncate: true,
            rope_attention_factor: 0.0,
            rope_factors: Vec::new(),
            rope_dim: 0,
            rope_free_layers: Vec::new(),
            qk_norm: false,
            full_context: 0,
            feed_forward: FeedForward::Gelu,
            tie_head: false,
            biases: false,
            qkv_bias: false,
            grid: "prime15".to_string(),
            group: 0,
            fine_last_block: false,
            float_parts: Vec::new(),
            init_std: 0.05,
            embedding_std: 0.02,
            scale_per_std: 3.5,
        }
    }
}

impl ModelConfig {
    /// Heads of keys and values with the default filled in.
    pub fn resolved_kv_heads(&self) -> usize {
        or_default(self.n_kv_head, self.n_head)
    }

    /// Width of one attention head with the default filled in.
    pub fn resolved_head_dim(&self) -> usize {
        or_default(self.head_dim, self.width / self.n_head.max(1))
    }

    /// Width of the feed-forward layer with the default filled in.
    pub fn resolved_ff_width(&self) -> usize {
        or_default(self.ff_width, 4 * self.width)
    }

    /// Elements of a head that are turned, with the default filled in.
    pub fn resolved_rope_dim(&self) -> usize {
        or_default(self.rope_dim, self.resolved_head_dim())
    }

    /// What of it only the processor computes, in words; `None` where a GPU does too.
    #[cfg_attr(
        not(feature = "cuda"),
        allow(dead_code, reason = "asked by the GPU alone")
    )]
    pub(crate) fn only_on_cpu(&self) -> Option<&'static str> {
        if self.qk_norm {
            return Some("norms of queries and keys");
        }
        (!self.rope_free_layers.is_empty()).then_some("layers without rotary positions")
    }

    /// Whether a part stays float32; a tied head is the embedding.
    pub fn is_float(&self, part: FloatPart) -> bool {
        let part = if part == FloatPart::Head && self.tie_head {
            FloatPart::Embeddings
        } else {
            part
        };
        self.float_parts.contains(&part)
    }

    pub(super) fn validate(&self) -> Result<(), ModelError> {
        at_least_one("model.context", self.context)?;
        at_least_one("model.n_layer", self.n_layer)?;
        at_least_one("model.n_head", self.n_head)?;
        at_least_one("model.width", self.width)?;
        check(
            "model.n_head",
            self.n_head,
            self.head_dim > 0 || self.width.is_multiple_of(self.n_head),
            || {
                format!(
                    "must divide model.width = {}; hint: or set model.head_dim",
                    self.width
                )
            },
        )?;
        check(
            "model.n_kv_head",
            self.n_kv_head,
            self.n_head.is_multiple_of(self.resolved_kv_heads()),
            || format!("must divide model.n_head = {}", self.n_head),
        )?;
        check(
            "model.head_dim",
            self.resolved_head_dim(),
            self.position == PositionKind::Learned || self.resolved_head_dim().is_multiple_of(2),
            || "must be even under model.position = rope".to_string(),
        )?;
        self.validate_rope()?;
        check(
            "model.full_context",
            self.full_context,
            self.full_context == 0 || self.full_context >= self.context,
            || format!("must be 0 or at least model.context = {}", self.context),
        )?;
        check(
            "model.grid",
            &self.grid,
            Grid::by_id(&self.grid).is_some(),
            || "known are prime15, prime25, normal15, linear15".to_string(),
        )?;
        for (key, value) in [
            ("model.norm_eps", self.norm_eps),
            ("model.init_std", self.init_std),
            ("model.embedding_std", self.embedding_std),
            ("model.scale_per_std", self.scale_per_std),
        ] {
            above_zero(key, value)?;
        }
        let head_alone = self.float_parts.contains(&FloatPart::Head)
            && !self.float_parts.contains(&FloatPart::Embeddings);
        check(
            "model.float_parts",
            "[\"head\"]",
            !(self.tie_head && head_alone),
            || {
                "the head is the embedding; hint: list 'embeddings' too or set model.tie_head=false"
                    .to_string()
            },
        )
    }

    fn validate_rope(&self) -> Result<(), ModelError> {
        for (key, value) in [
            ("model.rope_low_freq_factor", self.rope_low_freq_factor),
            ("model.rope_high_freq_factor", self.rope_high_freq_factor),
            ("model.rope_beta_fast", self.rope_beta_fast),
            ("model.rope_beta_slow", self.rope_beta_slow),
        ] {
            above_zero(key, value)?;
        }
        let theta = self.rope_theta;
        check(
            "model.rope_theta",
            theta,
            theta.is_finite() && theta > 1.0,
            || "must be above 1".to_string(),
        )?;
        let factor = self.rope_factor;
        check(
            "model.rope_factor",
            factor,
            factor.is_finite() && factor >= 1.0,
            || "must be at least 1".to_string(),
        )?;
        let sharpness = self.rope_attention_factor;
        check(
            "model.rope_attention_factor",
            sharpness,
            sharpness.is_finite() && sharpness >= 0.0,
            || "must be 0 or above".to_string(),
        )?;
        let (turned, head_dim) = (self.resolved_rope_dim(), self.resolved_head_dim());
        check(
            "model.rope_dim",
            turned,
            self.rope_dim == 0 || (turned.is_multiple_of(2) && turned <= head_dim),
            || format!("must be even and at most a head's {head_dim}"),
        )?;
        let factors = &self.rope_factors;
        let fits = factors.is_empty() || factors.len() == turned / 2;
        check("model.rope_factors", factors.len(), fits, || {
            format!("must hold a number for each of {} pairs", turned / 2)
        })?;
        for factor in factors {
            above_zero("model.rope_factors", *factor)?;
        }
        let layers = &self.rope_free_layers;
        let outside = layers.iter().find(|layer| **layer >= self.n_layer);
        check(
            "model.rope_free_layers",
            outside.copied().unwrap_or_default(),
            outside.is_none(),
            || format!("must be below model.n_layer = {}", self.n_layer),
        )?;
        check(
            "model.rope_high_freq_factor",
            self.rope_high_freq_factor,
            self.rope_high_freq_factor > self.rope_low_freq_factor,
            || "must be above model.rope_low_freq_factor".to_string(),
        )?;
        check(
            "model.rope_beta_fast",
            self.rope_beta_fast,
            self.rope_beta_fast > self.rope_beta_slow,
            || "must be above model.rope_beta_slow".to_string(),
        )
    }
}

fn or_default(value: usize, default: usize) -> usize {
    if value == 0 { default } else { value }
}

fn above_zero(key: &'static str, value: f32) -> Result<(), ModelError> {
    check(key, value, value.is_finite() && value > 0.0, || {
        "must be above zero".to_string()
    })
}
