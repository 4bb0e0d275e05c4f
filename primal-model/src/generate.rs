//! Feeding tokens to a model, many at once or one at a time, with a cache of keys and values.

use std::sync::atomic::{AtomicBool, Ordering};

use primal_kernels as kernels;
use primal_kernels::{CacheKind, Isa, KvCache, MatrixRows, QuantisedRows};
use rayon::Yield;
use rayon::prelude::*;

use crate::block::activate;
#[cfg(feature = "cuda")]
use crate::cuda::{CudaInferenceModel, CudaReader};
use crate::error::ModelError;
use crate::inference::InferenceModel;
use crate::layers::NormStats;
use crate::sampling::TokenSampler;
use crate::shape::ModelShape;

/// Tokens that go through the model together: enough for the products to be bound by arithmetic,
/// few enough for the buffers to be small beside the weights.
pub const CHUNK_TOKENS: usize = 96;

/// Whether threads are kept awake already: two that do so could wait for each other, each below
/// the other on a thread's stack.
static AWAKE: AtomicBool = AtomicBool::new(false);

/// Feeds tokens to a model and holds what it remembers of them.
///
/// Tokens fed together give the same bits as one after the other, where every matrix is on a grid.
pub struct Generator<'m> {
    shape: ModelShape,
    reader: Box<dyn Reader + 'm>,
    /// The tokens that were read, in order.
    history: Vec<u32>,
}

/// A model that takes tokens in, with its memory of keys and values.
pub(crate) trait Reader: Send {
    /// Reads tokens that stand at the positions from `first` on and fit the context; those before
    /// them were read. Computes the logits (V) of what follows the last one, if they are wanted.
    fn read(&mut self, first: usize, tokens: &[u32], with_logits: bool) -> Result<(), ModelError>;

    /// The newest logits (V).
    fn logits(&mut self) -> Result<&[f32], ModelError>;

    /// As [`TokenSampler::sample`], of the first `known` of the newest logits.
    fn choose(
        &mut self,
        sampler: &mut TokenSampler,
        known: usize,
        text: &[u32],
    ) -> Result<u32, ModelError> {
        sampler.sample(&self.logits()?[..known], text, text.len())
    }
}

/// The processor's reader.
struct CpuReader<'m> {
    model: &'m InferenceModel,
    isa: Isa,
    /// One a block.
    caches: Vec<KvCache>,
    buffers: Buffers,
    /// (V).
    logits: Vec<f32>,
}

/// Buffers of a chunk of n tokens.
struct Buffers {
    /// (n, C), the residual stream.
    stream: Vec<f32>,
    /// (n, C), what a norm gives to a layer and what the layer adds to the stream.
    normed: Vec<f32>,
    /// (n, (H + 2·KV)·D) and (n, H·D) in one half of a block, (n, U) and (n, F) in the other.
    wide: Vec<f32>,
    stats: NormStats,
    /// (H, D) of one token, and their statistics, where heads have norms.
    heads: Vec<f32>,
    head_stats: NormStats,
    quantised: QuantisedRows,
    /// Row of the last token read.
    last: usize,
}

impl Buffers {
    fn new(shape: &ModelShape) -> Self {
        let n = chunk_tokens(shape);
        Buffers {
            stream: vec![0.0; n * shape.width],
            normed: vec![0.0; n * shape.width],
            wide: vec![0.0; n * wide(shape)],
            stats: NormStats::new(n),
            heads: vec![0.0; normed_heads(shape) * shape.head_dim],
            head_stats: NormStats::new(normed_heads(shape)),
            quantised: QuantisedRows::new(n, shape.widest()),
            last: 0,
        }
    }

    fn bytes(shape: &ModelShape) -> u64 {
        let n = chunk_tokens(shape);
        let heads = normed_heads(shape) * (shape.head_dim + 2);
        4 * (n * (2 * shape.width + wide(shape) + 2) + heads) as u64
            + QuantisedRows::bytes(n, shape.widest())
    }
}

/// Heads of a token that are normalised at a time.
fn normed_heads(shape: &ModelShape) -> usize {
    if shape.qk_norm { shape.n_head } else { 0 }
}

fn chunk_tokens(shape: &ModelShape) -> usize {
    CHUNK_TOKENS.min(shape.context)
}

/// Elements that a half of a block keeps of a token between its layers: one half is computed at a
/// time.
pub(crate) fn wide(shape: &ModelShape) -> usize {
    let attention = shape.qkv_width() + shape.attention_width();
    attention.max(shape.up_width() + shape.ff_width)
}

impl<'m> Generator<'m> {
    /// An empty memory for `model`.
    pub fn new(model: &'m InferenceModel, isa: Isa, cache: CacheKind) -> Self {
        let shape = model.shape();
        let new_cache = |_| KvCache::new(cache, shape.n_kv_head, shape.head_dim, shape.context);
        let reader = CpuReader {
            model,
            isa,
            caches: (0..shape.n_layer).map(new_cache).collect(),
            buffers: Buffers::new(shape),
            logits: vec![0.0; shape.vocab],
        };
        Generator::of(shape, Box::new(reader))
    }

    /// An empty memory beside `model` on its GPU.
    ///
    /// # Errors
    /// Too little memory on the GPU.
    #[cfg(feature = "cuda")]
    pub fn on_gpu(model: &'m CudaInferenceModel, cache: CacheKind) -> Result<Self, ModelError> {
        let reader = CudaReader::new(model, cache)?;
        Ok(Generator::of(model.shape(), Box::new(reader)))
    }

    fn of(shape: &ModelShape, reader: Box<dyn Reader + 'm>) -> Self {
        Generator {
            shape: *shape,
            reader,
            history: Vec::with_capacity(shape.context),
        }
    }

    /// Bytes of the key and value cache for a model of this shape.
    pub fn cache_bytes(shape: &ModelShape, cache: CacheKind) -> u64 {
        let layer = KvCache::bytes(cache, shape.n_kv_head, shape.head_dim, shape.context);
        shape.n_layer as u64 * layer
    }

    /// Bytes of all buffers but the cache.
    pub fn buffer_bytes(shape: &ModelShape) -> u64 {
        Buffers::bytes(shape) + 4 * (shape.vocab + shape.context) as u64
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

    /// Reads tokens and returns the logits (V) of what follows the last one.
    ///
    /// # Errors
    /// See [`Generator::read`].
    pub fn feed(&mut self, tokens: &[u32]) -> Result<&[f32], ModelError> {
        self.read(tokens)?;
        self.logits()
    }

    /// Reads tokens. When the context is full the older half of it is forgotten and the rest read
    /// again: what a token was seen to mean depends on where it stood.
    ///
    /// # Errors
    /// No tokens, or one beyond the vocabulary; a fault of a GPU.
    pub fn read(&mut self, tokens: &[u32]) -> Result<(), ModelError> {
        let shape = self.shape;
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
        let mut rest = tokens;
        while !rest.is_empty() {
            if self.history.len() == shape.context {
                self.forget_half()?;
            }
            let first = self.history.len();
            let (now, later) = rest.split_at(rest.len().min(shape.context - first));
            self.reader.read(first, now, later.is_empty())?;
            self.history.extend(now);
            rest = later;
        }
        Ok(())
    }

    /// The logits (V) of what follows the last token read; a GPU's are copied down.
    ///
    /// # Errors
    /// A fault of a GPU.
    pub fn logits(&mut self) -> Result<&[f32], ModelError> {
        self.reader.logits()
    }

    /// The token that follows the last one read, drawn from the first `known` of the vocabulary to
    /// continue `text`; chosen where the logits lie, the same on a GPU.
    ///
    /// # Errors
    /// See [`TokenSampler::sample`]; a fault of a GPU.
    pub fn choose(
        &mut self,
        sampler: &mut TokenSampler,
        known: usize,
        text: &[u32],
    ) -> Result<u32, ModelError> {
        let known = known.min(self.shape.vocab);
        self.reader.choose(sampler, known, text)
    }

    fn forget_half(&mut self) -> Result<(), ModelError> {
        let kept = (self.shape.context / 2).max(1) - 1;
        self.history.drain(..self.history.len() - kept);
        self.reader.read(0, &self.history, false)
    }
}

impl Reader for CpuReader<'_> {
    fn read(&mut self, first: usize, tokens: &[u32], with_logits: bool) -> Result<(), ModelError> {
        let chunk = chunk_tokens(self.model.shape());
        with_threads_awake(|| {
            for (i, tokens) in tokens.chunks(chunk).enumerate() {
                self.read_chunk(first + i * chunk, tokens);
            }
            if with_logits {
                self.output();
            }
        });
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32], ModelError> {
        Ok(&self.logits)
    }
}

impl CpuReader<'_> {
    /// Leaves the residual stream of the tokens in the buffers.
    fn read_chunk(&mut self, first: usize, tokens: &[u32]) {
        let (isa, model) = (self.isa, self.model);
        let shape = *model.shape();
        let (n, c) = (tokens.len(), shape.width);
        let Buffers {
            stream,
            normed,
            wide,
            stats,
            heads,
            head_stats,
            quantised,
            last,
        } = &mut self.buffers;
        *last = n - 1;
        let stream = &mut stream[..n * c];
        let normed = &mut normed[..n * c];

        let embed = |embedding: &dyn MatrixRows,
                     rows: &(dyn Fn(usize) -> usize + Sync),
                     out: &mut [f32]| {
            out.par_chunks_mut(c).enumerate().for_each(|(i, row)| {
                embedding.fill_row(isa, rows(i), row);
            });
        };
        embed(&model.tok_embedding, &|i| tokens[i] as usize, stream);
        if let Some(positions) = &model.pos_embedding {
            embed(positions, &|i| first + i, normed);
            kernels::add(isa, normed, stream);
        }
        for (block, cache) in model.blocks.iter().zip(&mut self.caches) {
            let (qkv, rest) = wide.split_at_mut(n * shape.qkv_width());
            let attention = &mut rest[..n * shape.attention_width()];
            block.norm1.forward(isa, stream, normed, stats);
            block.qkv.forward(isa, normed, qkv, quantised);
            if let Some(norms) = &block.head_norms {
                norms.forward(isa, shape.attention(1, n), qkv, heads, head_stats);
            }
            if let Some(rope) = model.rope.as_ref().filter(|_| block.turned) {
                rope.forward(isa, first, n, qkv);
            }
            cache.store(first, qkv, shape.qkv_width());
            kernels::attention_cached(
                isa,
                cache,
                shape.n_head,
                first,
                qkv,
                shape.qkv_width(),
                attention,
            );
            block
                .attention_out
                .forward(isa, attention, normed, quantised);
            kernels::add(isa, normed, stream);

            let (up, rest) = wide.split_at_mut(n * shape.up_width());
            let hidden = &mut rest[..n * shape.ff_width];
            block.norm2.forward(isa, stream, normed, stats);
            block.up.forward(isa, normed, up, quantised);
            activate(isa, block.feed_forward, up, shape.ff_width, hidden);
            block.down.forward(isa, hidden, normed, quantised);
            kernels::add(isa, normed, stream);
        }
    }

    /// Computes the logits of what follows the last token read.
    fn output(&mut self) {
        let model = self.model;
        let c = model.shape().width;
        let buffers = &mut self.buffers;
        let stream = &buffers.stream[buffers.last * c..][..c];
        let normed = &mut buffers.normed[..c];
        model
            .norm
            .forward(self.isa, stream, normed, &mut buffers.stats);
        let head = model.head.as_ref().unwrap_or(&model.tok_embedding);
        let logits = &mut self.logits;
        head.multiply(self.isa, normed, logits, &mut buffers.quantised);
    }
}

/// Does `work` on a thread of the pool while the others look for its parallel steps without rest.
/// A token has some two hundred steps, each shorter than it takes to wake a thread.
fn with_threads_awake(work: impl FnOnce() + Send) {
    /// Lets the others go, also when `work` panics.
    struct Release<'a>(&'a AtomicBool);
    impl Drop for Release<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
            AWAKE.store(false, Ordering::Release);
        }
    }
    if rayon::current_num_threads() == 1 || AWAKE.swap(true, Ordering::Acquire) {
        return rayon::scope(|_| work());
    }
    let done = AtomicBool::new(false);
    rayon::scope(|scope| {
        let release = Release(&done);
        let here = rayon::current_thread_index();
        let done = &done;
        scope.spawn_broadcast(move |_, context| {
            let elsewhere = here != Some(context.index());
            while elsewhere && !done.load(Ordering::Acquire) {
                if rayon::yield_now() != Some(Yield::Executed) {
                    std::thread::yield_now();
                }
            }
        });
        work();
        drop(release);
    });
}
