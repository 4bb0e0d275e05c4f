//! Generation, one token at a time, with a key and value cache.

use primal_kernels as kernels;
use primal_kernels::{Isa, MatrixRows};

use crate::error::ModelError;
use crate::layers::{Norm, NormStats, weight_matvec};
use crate::model::Model;
use crate::shape::ModelShape;

/// Feeds tokens to a model and holds what it remembers of them.
pub struct Generator<'m> {
    model: &'m Model,
    isa: Isa,
    /// One a block: (context, KV·D) each.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// The tokens in the cache, in order.
    history: Vec<u32>,
    /// (C) residual stream, normed stream; (H·D) attention output; ((H + 2·KV)·D) qkv; (U) up;
    /// (F) hidden; (C) what a layer adds; (V) logits.
    stream: Vec<f32>,
    normed: Vec<f32>,
    attention: Vec<f32>,
    qkv: Vec<f32>,
    up: Vec<f32>,
    hidden: Vec<f32>,
    part: Vec<f32>,
    logits: Vec<f32>,
    stats: NormStats,
}

impl<'m> Generator<'m> {
    /// An empty memory for `model`.
    pub fn new(model: &'m Model, isa: Isa) -> Self {
        let shape = model.shape();
        let cache = || vec![vec![0.0; shape.context * shape.kv_width()]; shape.n_layer];
        Generator {
            model,
            isa,
            keys: cache(),
            values: cache(),
            history: Vec::with_capacity(shape.context),
            stream: vec![0.0; shape.width],
            normed: vec![0.0; shape.width],
            attention: vec![0.0; shape.attention_width()],
            qkv: vec![0.0; shape.qkv_width()],
            up: vec![0.0; shape.up_width()],
            hidden: vec![0.0; shape.ff_width],
            part: vec![0.0; shape.width],
            logits: vec![0.0; shape.vocab],
            stats: NormStats::new(1),
        }
    }

    /// Bytes of the key and value cache and the buffers, for a model of this shape.
    pub fn bytes(shape: &ModelShape) -> u64 {
        let cache = 2 * shape.n_layer * shape.context * shape.kv_width();
        let buffers = 3 * shape.width
            + shape.attention_width()
            + shape.qkv_width()
            + shape.up_width()
            + shape.ff_width
            + shape.vocab;
        4 * (cache + buffers + shape.context) as u64
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

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.history.truncate(len);
    }

    /// The tokens in memory, the oldest first.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Feeds tokens and returns the logits (V) of what follows the last one. When the context is
    /// full the older half of it is forgotten and the rest read again: what a token was seen to
    /// mean depends on where it stood.
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
        let (isa, model) = (self.isa, self.model);
        let shape = *model.shape();
        let position = self.history.len();
        self.history.push(token);
        model
            .tok_embedding
            .fill_row(isa, token as usize, &mut self.stream);
        if let Some(embedding) = &model.pos_embedding {
            embedding.fill_row(isa, position, &mut self.part);
            kernels::add(isa, &self.part, &mut self.stream);
        }
        let time = position + 1;
        let attention = shape.attention(1, time);
        let (queries, kv) = (shape.attention_width(), shape.kv_width());
        for (layer, block) in model.blocks.iter().enumerate() {
            self.norm(&block.norm1);
            block.qkv.forward_one(isa, &self.normed, &mut self.qkv);
            if let Some(rope) = &model.rope {
                rope.forward(isa, position, 1, &mut self.qkv);
            }
            let (keys, values) = (&mut self.keys[layer], &mut self.values[layer]);
            let new = position * kv..time * kv;
            keys[new.clone()].copy_from_slice(&self.qkv[queries..queries + kv]);
            values[new].copy_from_slice(&self.qkv[queries + kv..]);
            kernels::attention_decode(
                isa,
                &attention,
                &self.qkv[..queries],
                &keys[..time * kv],
                &values[..time * kv],
                &mut self.attention,
            );
            block
                .attention_out
                .forward_one(isa, &self.attention, &mut self.part);
            kernels::add(isa, &self.part, &mut self.stream);

            self.norm(&block.norm2);
            block.up.forward_one(isa, &self.normed, &mut self.up);
            block.activate(isa, &self.up, &mut self.hidden);
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
