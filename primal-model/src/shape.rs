//! The sizes of a model, resolved from a configuration and a tokenizer.

use primal_kernels::AttentionShape;

use crate::config::{Config, FeedForward, NormKind, PositionKind};
use crate::error::ModelError;

/// Most blocks, and the largest other size: far above every model there is, and so small that no
/// count of weights overflows and a file that lies takes little memory before it is found out.
const MAX_LAYERS: usize = 1 << 12;
const MAX_SIZE: usize = 1 << 21;

/// The sizes of a decoder, resolved from a config and a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Vocabulary V.
    pub vocab: usize,
    /// Longest sequence T.
    pub context: usize,
    /// Blocks L.
    pub n_layer: usize,
    /// Attention heads H.
    pub n_head: usize,
    /// Key and value heads KV; divides H.
    pub n_kv_head: usize,
    /// Width D of a head.
    pub head_dim: usize,
    /// Width C of the residual stream.
    pub width: usize,
    /// Width F of the feed-forward layer.
    pub ff_width: usize,
    /// What rows are normalised by.
    pub norm: NormKind,
    /// How the model knows where a token stands.
    pub position: PositionKind,
    /// The feed-forward layer.
    pub feed_forward: FeedForward,
    /// Whether the head is the token embedding.
    pub tie_head: bool,
    /// Whether linear layers have biases.
    pub biases: bool,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether each head's queries and keys have a norm.
    pub qk_norm: bool,
}

impl ModelShape {
    /// Resolves the sizes; `vocab` is the tokenizer's and stands in where the config says 0.
    pub fn new(config: &Config, vocab: usize) -> Result<Self, ModelError> {
        let m = &config.model;
        let given = [
            vocab,
            m.vocab_size,
            m.context,
            m.n_head,
            m.n_kv_head,
            m.head_dim,
            m.width,
            m.ff_width,
        ];
        let beyond = m.n_layer > MAX_LAYERS
            || given.iter().any(|size| *size > MAX_SIZE)
            || m.n_head * m.head_dim > MAX_SIZE;
        if beyond {
            return Err(ModelError::Shape(format!(
                "sizes may be at most {MAX_SIZE} and model.n_layer {MAX_LAYERS}, found {m:?} and \
                 {vocab} tokens"
            )));
        }
        let shape = ModelShape {
            vocab: if m.vocab_size == 0 {
                vocab
            } else {
                m.vocab_size
            },
            context: m.context,
            n_layer: m.n_layer,
            n_head: m.n_head,
            n_kv_head: m.resolved_kv_heads(),
            head_dim: m.resolved_head_dim(),
            width: m.width,
            ff_width: m.resolved_ff_width(),
            norm: m.norm,
            position: m.position,
            feed_forward: m.feed_forward,
            tie_head: m.tie_head,
            biases: m.biases,
            qkv_bias: m.biases || m.qkv_bias,
            qk_norm: m.qk_norm,
        };
        if shape.vocab < vocab {
            return Err(ModelError::Shape(format!(
                "model.vocab_size = {} is smaller than the tokenizer's {vocab}",
                shape.vocab
            )));
        }
        let sizes = [
            shape.vocab,
            shape.context,
            shape.n_layer,
            shape.n_head,
            shape.n_kv_head,
            shape.head_dim,
            shape.width,
        ];
        if sizes.contains(&0) || !shape.n_head.is_multiple_of(shape.n_kv_head) {
            return Err(ModelError::Shape(format!(
                "sizes must be positive and n_head a multiple of n_kv_head, found {shape:?}"
            )));
        }
        Ok(shape)
    }

    /// H·D: elements of a row of the attention's output.
    pub fn attention_width(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// KV·D: elements of a token's keys, and of its values.
    pub fn kv_width(&self) -> usize {
        self.n_kv_head * self.head_dim
    }

    /// (H + 2·KV)·D: rows of the matrix of queries, keys and values.
    pub fn qkv_width(&self) -> usize {
        self.attention_width() + 2 * self.kv_width()
    }

    /// Rows of the matrix `up`: F, or 2·F with the gate before it.
    pub fn up_width(&self) -> usize {
        match self.feed_forward {
            FeedForward::Gelu => self.ff_width,
            FeedForward::Swiglu => 2 * self.ff_width,
        }
    }

    /// Columns of the widest matrix.
    pub fn widest(&self) -> usize {
        let blocks = self.block_matrices().map(|(_, cols)| cols);
        blocks.into_iter().fold(self.width, usize::max)
    }

    /// Heads whose queries or keys a norm of their own has: H + KV, or none.
    pub(crate) fn normed_heads(&self) -> usize {
        if self.qk_norm {
            self.n_head + self.n_kv_head
        } else {
            0
        }
    }

    /// Whether norms have biases.
    pub fn norm_bias(&self) -> bool {
        self.biases && self.norm == NormKind::Layer
    }

    /// Whether there is an embedding of positions.
    pub fn learned_positions(&self) -> bool {
        self.position == PositionKind::Learned
    }

    /// The (rows, cols) of a block's matrices: qkv, attention_out, up, down.
    pub fn block_matrices(&self) -> [(usize, usize); 4] {
        let c = self.width;
        [
            (self.qkv_width(), c),
            (c, self.attention_width()),
            (self.up_width(), c),
            (c, self.ff_width),
        ]
    }

    /// The rows of the matrices that are stacked in each of them: queries, keys and values; gate
    /// and up.
    pub fn block_stacks(&self) -> [Vec<usize>; 4] {
        let keys = self.n_kv_head * self.head_dim;
        let up = self.up_width();
        [
            vec![self.attention_width(), keys, keys],
            vec![self.width],
            vec![self.ff_width; up / self.ff_width],
            vec![self.width],
        ]
    }

    /// Weights of all matrices.
    pub fn matrix_weights(&self) -> u64 {
        let heads = if self.tie_head { 1 } else { 2 };
        let positions = if self.learned_positions() {
            self.context
        } else {
            0
        };
        let block = |(rows, cols)| rows * cols;
        let blocks: usize = self.block_matrices().map(block).iter().sum();
        ((heads * self.vocab + positions) * self.width + self.n_layer * blocks) as u64
    }

    /// The attention of `sequences` sequences of `time` tokens.
    pub(crate) fn attention(&self, sequences: usize, time: usize) -> AttentionShape {
        AttentionShape {
            batch: sequences,
            time,
            heads: self.n_head,
            kv_heads: self.n_kv_head,
            head_dim: self.head_dim,
            causal: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_no_model_has_are_refused_before_memory_is_taken() {
        for change in [
            "model.n_layer=4294967295",
            "model.width=9223372036854775807",
            "model.ff_width=4294967295",
            "model.vocab_size=1000000000000",
            "model.head_dim=2097152",
        ] {
            let mut config = Config::preset("small").unwrap();
            config.set(change).unwrap();
            let error = ModelShape::new(&config, 256).unwrap_err().to_string();
            assert!(error.contains("at most 2097152"), "{change}: {error}");
        }
        let config = Config::preset("small").unwrap();
        assert!(ModelShape::new(&config, usize::MAX).is_err());
    }
}
