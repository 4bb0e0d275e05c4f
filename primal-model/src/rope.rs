//! The angles of rotary positions, with the scalings that published models use.

use std::f64::consts::TAU;

use primal_kernels as kernels;
use primal_kernels::Isa;

use crate::config::{ModelConfig, PositionKind, RopeScaling};
use crate::shape::ModelShape;

/// Cosines and sines of every position of a context.
#[derive(Clone, Debug)]
pub(crate) struct Rope {
    /// (T, D / 2) each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// Heads of a row that are turned: queries, then keys.
    heads: usize,
    head_dim: usize,
    row_width: usize,
}

impl Rope {
    /// The angles of `config`, or `None` where positions are learned.
    pub(crate) fn new(config: &ModelConfig, shape: &ModelShape) -> Option<Rope> {
        if shape.position != PositionKind::Rope {
            return None;
        }
        let half = shape.head_dim / 2;
        let frequencies = frequencies(config, shape);
        let sharpness = f64::from(sharpness(config));
        let turned = config.resolved_rope_dim() / 2;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        cos.reserve_exact(shape.context * half);
        sin.reserve_exact(shape.context * half);
        for position in 0..shape.context {
            for (pair, frequency) in frequencies.iter().enumerate() {
                let angle = position as f64 * frequency;
                // What is not turned is not made sharper either.
                let sharpness = if pair < turned { sharpness } else { 1.0 };
                cos.push((sharpness * angle.cos()) as f32);
                sin.push((sharpness * angle.sin()) as f32);
            }
        }
        Some(Rope {
            cos,
            sin,
            half,
            heads: shape.n_head + shape.n_kv_head,
            head_dim: shape.head_dim,
            row_width: shape.qkv_width(),
        })
    }

    /// Cosines and sines, (T, D / 2) each.
    #[cfg(feature = "cuda")]
    pub(crate) fn angles(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Bytes of [`Rope::new`].
    pub(crate) fn bytes(shape: &ModelShape) -> u64 {
        match shape.position {
            PositionKind::Learned => 0,
            PositionKind::Rope => 2 * 4 * (shape.context * (shape.head_dim / 2)) as u64,
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        4 * (self.cos.len() + self.sin.len()) as u64
    }

    /// Turns queries and keys of the rows of `qkv` (n, (H + 2·KV)·D); the rows are sequences of
    /// `time` tokens that stand at the positions from `first` on.
    pub(crate) fn forward(&self, isa: Isa, first: usize, time: usize, qkv: &mut [f32]) {
        self.rotate(isa, first, time, qkv, false);
    }

    /// Turns the gradient of queries and keys back.
    pub(crate) fn backward(&self, isa: Isa, time: usize, d_qkv: &mut [f32]) {
        self.rotate(isa, 0, time, d_qkv, true);
    }

    fn rotate(&self, isa: Isa, first: usize, time: usize, rows: &mut [f32], back: bool) {
        let part = first * self.half..(first + time) * self.half;
        let angles = (&self.cos[part.clone()], &self.sin[part]);
        kernels::rotate(
            isa,
            rows,
            self.row_width,
            self.heads,
            self.head_dim,
            angles,
            back,
        );
    }
}

/// What turned queries and keys are multiplied by.
pub(crate) fn sharpness(config: &ModelConfig) -> f32 {
    if config.rope_attention_factor > 0.0 {
        return config.rope_attention_factor;
    }
    match config.rope_scaling {
        RopeScaling::Yarn => 0.1 * config.rope_factor.ln() + 1.0,
        _ => 1.0,
    }
}

/// Sets what the frequency of each pair is divided by; factors that are those of Llama 3.1's
/// published scalings become the scaling itself.
pub(crate) fn take_factors(config: &mut ModelConfig, factors: Vec<f32>) {
    let largest = factors
        .iter()
        .fold(1.0f32, |most, factor| most.max(*factor));
    let scaled = ModelConfig {
        rope_scaling: RopeScaling::Llama3,
        rope_factor: largest,
        rope_original_context: 8192,
        rope_low_freq_factor: 1.0,
        rope_high_freq_factor: 4.0,
        ..config.clone()
    };
    let close = |(plain, (scaled, factor)): (f64, (f64, &f32))| {
        (plain / scaled / f64::from(*factor) - 1.0).abs() < 1e-5
    };
    let scaled_too = pair_frequencies(&scaled, scaled.context);
    let plain = pair_frequencies(config, config.context);
    let is_llama3 = config.rope_scaling == RopeScaling::None
        && plain
            .into_iter()
            .zip(scaled_too.into_iter().zip(&factors))
            .all(close);
    if is_llama3 {
        *config = scaled;
    } else {
        config.rope_factors = factors;
    }
}

/// Radians a token of each pair of a head, (D / 2), as in the `transformers` library; 0 for pairs
/// that are not turned.
pub(crate) fn frequencies(config: &ModelConfig, shape: &ModelShape) -> Vec<f64> {
    let mut all = pair_frequencies(config, shape.context);
    all.resize(shape.head_dim / 2, 0.0);
    all
}

/// Those of the pairs that are turned, for a model of `context`.
fn pair_frequencies(config: &ModelConfig, context: usize) -> Vec<f64> {
    let turned = config.resolved_rope_dim();
    let dim = turned as f64;
    let (theta, factor) = (f64::from(config.rope_theta), f64::from(config.rope_factor));
    let original = match config.rope_original_context {
        0 => context as f64,
        context => context as f64,
    };
    let ramp = match config.rope_scaling {
        // The pair that turns `turns` times in the original context.
        RopeScaling::Yarn => {
            let pair =
                |turns: f32| dim * (original / (f64::from(turns) * TAU)).ln() / (2.0 * theta.ln());
            let (mut low, mut high) = (pair(config.rope_beta_fast), pair(config.rope_beta_slow));
            if config.rope_truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, high) = (low.max(0.0), high.min(dim - 1.0));
            (low, if high > low { high } else { low + 0.001 })
        }
        _ => (0.0, 1.0),
    };
    let scaled = |pair: usize| {
        let frequency = theta.powf(-2.0 * pair as f64 / dim);
        // The share of the frequency that stays undivided.
        let kept = match config.rope_scaling {
            RopeScaling::None => 1.0,
            RopeScaling::Linear => 0.0,
            RopeScaling::Llama3 => {
                let low = f64::from(config.rope_low_freq_factor);
                let high = f64::from(config.rope_high_freq_factor);
                ((original * frequency / TAU - low) / (high - low)).clamp(0.0, 1.0)
            }
            RopeScaling::Yarn => 1.0 - ((pair as f64 - ramp.0) / (ramp.1 - ramp.0)).clamp(0.0, 1.0),
        };
        let divisor = config.rope_factors.get(pair).copied().unwrap_or(1.0);
        frequency * (kept + (1.0 - kept) / factor) / f64::from(divisor)
    };
    (0..turned / 2).map(scaled).collect()
}
