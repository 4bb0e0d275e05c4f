//! Generation, one token at a time, with a key and value cache.

use primal_kernels as kernels;
use primal_kernels::{AttentionShape, Isa, MatrixRows};

use crate::error::ModelError;
use crate::layers::{Norm, NormStats, weight_matvec};
use crate::model::Model;

/// Feeds tokens to a model and holds what it remembers of them.
pub struct Generator<'m> {
    model: &'m Model,
    isa: Isa,
    /// One a block: (context, C) each.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// The tokens in the cache, in order.
    history: Vec<u32>,
    /// (C) residual stream, normed stream, attention output; (3C) qkv; (F) hidden; (V) logits.
    stream: Vec<f32>,
    normed: Vec<f32>,
    attention: Vec<f32>,
    qkv: Vec<f32>,
    hidden: Vec<f32>,
    part: Vec<f32>,
    logits: Vec<f32>,
    stats: NormStats,
}

impl<'m> Generator<'m> {
    /// An empty memory for `model`.
    pub fn new(model: &'m Model, isa: Isa) -> Self {
        let shape = model.shape();
        let cache = || vec![vec![0.0; shape.context * shape.width]; shape.n_layer];
        Generator {
            model,
            isa,
            keys: cache(),
            values: cache(),
            history: Vec::with_capacity(shape.context),
            stream: vec![0.0; shape.width],
            normed: vec![0.0; shape.width],
            attention: vec![0.0; shape.width],
            qkv: vec![0.0; 3 * shape.width],
            hidden: vec![0.0; shape.ff_width],
            part: vec![0.0; shape.width],
            logits: vec![0.0; shape.vocab],
            stats: NormStats::new(1),
        }
    }

    /// Bytes of the key and value cache and the buffers, for a model of this shape.
    pub fn bytes(shape: &crate::GptShape) -> u64 {
        let cache = 2 * shape.n_layer * shape.context * shape.width;
        4 * (cache + 7 * shape.width + shape.ff_width + shape.vocab + shape.context) as u64
    }

    /// Tokens in memory.
    pub fn len(&self) -> usize {
        self.history.len()
    }

    /// Whether nothing was fed yet.
    pub fn is_empty(&self) -> bool {
        self.history.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.history.clear();
    }

    /// Feeds tokens and returns the logits (V) of what follows the last one. When the context is
    /// full the older half of it is forgotten and the rest read again: positions are learned, so
    /// they cannot slide.
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&[f32], ModelError> {
        let shape = *self.model.shape();
        if tokens.is_empty() {
            return Err(ModelError::Generate(
                "nothing to continue: the prompt has no tokens".into(),
            ));
        }
        if let Some(&bad) = tokens.iter().find(|&&token| token as usize >= shape.vocab) {
            return Err(ModelError::Generate(format!(
                "token {bad} is outside the vocabulary of {}",
                shape.vocab
            )));
        }
        for &token in tokens {
            if self.history.len() == shape.context {
                let keep = self
                    .history
                    .split_off(self.history.len() - (shape.context / 2).max(1) + 1);
                self.history.clear();
                for old in keep {
                    self.advance(old);
                }
            }
            self.advance(token);
        }
        self.output();
        Ok(&self.logits)
    }

    /// The logits of the last [`Generator::feed`].
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn advance(&mut self, token: u32) {
        let (isa, shape) = (self.isa, *self.model.shape());
        let c = shape.width;
        let position = self.history.len();
        self.history.push(token);
        self.model
            .tok_embedding
            .fill_row(isa, token as usize, &mut self.stream);
        self.model
            .pos_embedding
            .fill_row(isa, position, &mut self.part);
        kernels::add(isa, &self.part, &mut self.stream);
        let time = position + 1;
        let attention = AttentionShape {
            batch: 1,
            time,
            ..shape.attention(1, time)
        };
        for (layer, block) in self.model.blocks.iter().enumerate() {
            self.norm(&block.norm1);
            block.qkv.forward_one(isa, &self.normed, &mut self.qkv);
            let (keys, values) = (&mut self.keys[layer], &mut self.values[layer]);
            keys[position * c..time * c].copy_from_slice(&self.qkv[c..2 * c]);
            values[position * c..time * c].copy_from_slice(&self.qkv[2 * c..]);
            let (keys, values) = (&keys[..time * c], &values[..time * c]);
            kernels::attention_decode(
                isa,
                &attention,
                &self.qkv[..c],
                keys,
                values,
                &mut self.attention,
            );
            block
                .attention_out
                .forward_one(isa, &self.attention, &mut self.part);
            kernels::add(isa, &self.part, &mut self.stream);

            self.norm(&block.norm2);
            block.up.forward_one(isa, &self.normed, &mut self.hidden);
            kernels::gelu_in_place(isa, &mut self.hidden);
            block.down.forward_one(isa, &self.hidden, &mut self.part);
            kernels::add(isa, &self.part, &mut self.stream);
        }
    }

    fn output(&mut self) {
        let model = self.model;
        self.norm(&model.norm);
        let head = model.head.as_ref().unwrap_or(&model.tok_embedding);
        weight_matvec(self.isa, head, &self.normed, &mut self.logits);
    }

    fn norm(&mut self, norm: &Norm) {
        norm.forward(self.isa, &self.stream, &mut self.normed, &mut self.stats);
    }
}
