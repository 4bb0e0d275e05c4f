//! Reading tokens on a GPU, where the whole model and its cache of keys and values lie: up go
//! tokens, down comes the one that is chosen to follow the last.
//!
//! A prompt goes through in chunks of [`chunk_rows`] tokens, which read a matrix on a grid once for
//! every eight of them. Where every matrix is on a grid the logits have the bits of the processor's.

use std::ops::Range;

use primal_kernels::CacheKind;
use primal_kernels::cuda::{self, Buffer, CudaError, Device, DeviceWeights, KvCache, View};
use primal_lut::Grid;
use primal_optim::FloatVector;

use super::layers::{Angles, NormAt, upload_angles};
use crate::block::Block;
use crate::build::{Place, Source, build};
use crate::config::{Compute, Config, FeedForward};
use crate::device_ledger::{chunk_rows, matrix_bytes, widest_token};
use crate::engine::GpuUse;
use crate::error::ModelError;
use crate::generate::{Reader, wide};
use crate::inference::Weights;
use crate::layers::Linear;
use crate::ledger::Ledger;
use crate::model::Model;
use crate::sampling::{REPEAT_WINDOW, TokenSampler, bad_logits, recent};
use crate::shape::ModelShape;

/// A model in the memory of a GPU, to read and write text.
pub struct CudaInferenceModel {
    device: Device,
    shape: ModelShape,
    compute: Compute,
    weight_bytes: u64,
    tok_embedding: DeviceWeights,
    pos_embedding: Option<DeviceWeights>,
    angles: Option<Angles>,
    blocks: Vec<DeviceBlock>,
    norm: NormAt,
    head: Option<DeviceWeights>,
    /// All norms and biases.
    vectors: Buffer<f32>,
}

struct DeviceBlock {
    norm1: NormAt,
    qkv: DeviceLinear,
    attention_out: DeviceLinear,
    norm2: NormAt,
    up: DeviceLinear,
    down: DeviceLinear,
}

struct DeviceLinear {
    weights: DeviceWeights,
    bias: Option<Range<usize>>,
}

impl CudaInferenceModel {
    /// Copies weights to the GPU, matrix by matrix, to multiply as `compute` says.
    pub(crate) fn open(
        config: &Config,
        vocab: usize,
        from: &dyn Weights,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let shape = ModelShape::new(config, vocab)?;
        let mut measure = Measure {
            config,
            from,
            bytes: Vec::new(),
        };
        let _: Model<()> = build(config, vocab, &mut measure)?;
        let planned = Ledger::for_gpu_weights(&shape, measure.bytes.into_iter());
        let device = super::with_pool(&super::open_device(0)?, &planned)?;
        let upload = &mut Upload {
            device: &device,
            config,
            from,
        };
        let model: Model<DeviceWeights> = build(config, vocab, upload)?;
        let weight_bytes = device.placed_bytes();
        let mut values = Vec::new();
        let mut place = |vector: &FloatVector| {
            let start = values.len();
            values.extend(vector.values());
            start..values.len()
        };
        let norm = NormAt::new(&model.norm, &mut place);
        let blocks = model.blocks.into_iter();
        Ok(CudaInferenceModel {
            shape: model.shape,
            compute,
            weight_bytes,
            tok_embedding: model.tok_embedding,
            pos_embedding: model.pos_embedding,
            angles: upload_angles(&device, model.rope.as_ref())?,
            blocks: blocks.map(|it| DeviceBlock::new(it, &mut place)).collect(),
            norm,
            head: model.head,
            vectors: Buffer::from_slice(&device, &values, "norms and biases")?,
            device,
        })
    }

    /// The sizes.
    pub(crate) fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Bytes of all matrices.
    pub(crate) fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// The GPU, with the buffers of the model and of its readers.
    pub fn gpu(&self) -> GpuUse {
        super::gpu_use(&self.device)
    }

    fn vector(&self, place: &Range<usize>) -> View<'_, f32> {
        self.vectors.view(place.clone())
    }
}

impl DeviceBlock {
    fn new(
        block: Block<DeviceWeights>,
        place: &mut dyn FnMut(&FloatVector) -> Range<usize>,
    ) -> Self {
        DeviceBlock {
            norm1: NormAt::new(&block.norm1, place),
            norm2: NormAt::new(&block.norm2, place),
            qkv: DeviceLinear::new(block.qkv, place),
            attention_out: DeviceLinear::new(block.attention_out, place),
            up: DeviceLinear::new(block.up, place),
            down: DeviceLinear::new(block.down, place),
        }
    }
}

impl DeviceLinear {
    fn new(
        linear: Linear<DeviceWeights>,
        place: &mut dyn FnMut(&FloatVector) -> Range<usize>,
    ) -> Self {
        DeviceLinear {
            weights: linear.weight,
            bias: linear.bias.as_ref().map(place),
        }
    }
}

/// Lists the bytes of matrices as their source has them, which may be another form than the
/// configuration's: a model that was trained in float has no codes.
struct Measure<'a> {
    config: &'a Config,
    from: &'a dyn Weights,
    bytes: Vec<u64>,
}

impl Source<()> for Measure<'_> {
    fn matrix(
        &mut self,
        name: &str,
        size: (usize, usize),
        _std: f32,
        grid: &Grid,
        place: Place<'_>,
    ) -> Result<(), ModelError> {
        let planned = (!self.config.model.is_float(place.part)).then_some(grid);
        let info = self.from.checked_info(name, size, planned)?;
        let grid = info.as_ref().map(|info| (&info.grid, info.group));
        self.bytes.push(matrix_bytes(size, grid));
        Ok(())
    }

    fn vector(
        &mut self,
        name: String,
        len: usize,
        initial: f32,
    ) -> Result<FloatVector, ModelError> {
        Ok(FloatVector::new(name, vec![initial; len]).without_training())
    }
}

/// Weights, their matrices on a device.
struct Upload<'a> {
    device: &'a Device,
    config: &'a Config,
    from: &'a dyn Weights,
}

impl Source<DeviceWeights> for Upload<'_> {
    fn matrix(
        &mut self,
        name: &str,
        size: (usize, usize),
        std: f32,
        grid: &Grid,
        place: Place<'_>,
    ) -> Result<DeviceWeights, ModelError> {
        let (device, rows) = (self.device, 0..size.0);
        let planned = (!self.config.model.is_float(place.part)).then_some(grid);
        Ok(match self.from.checked_info(name, size, planned)? {
            Some(info) => {
                let matrix = self.from.quant_rows(name, rows, &info, std)?;
                DeviceWeights::upload(device, &matrix, name)?
            }
            None => {
                let values = self.from.dense_rows(name, size, rows, std)?;
                DeviceWeights::upload_dense(device, &values, size, name)?
            }
        })
    }

    fn vector(
        &mut self,
        name: String,
        len: usize,
        initial: f32,
    ) -> Result<FloatVector, ModelError> {
        let values = self.from.vector(&name, len, initial)?;
        Ok(FloatVector::new(name, values).without_training())
    }
}

/// Reads tokens into a cache of its own.
pub(crate) struct CudaReader<'m> {
    model: &'m CudaInferenceModel,
    /// One a block.
    caches: Vec<KvCache>,
    /// (n), as all buffers for the tokens of a chunk.
    tokens: Buffer<u32>,
    /// (n, C), the residual stream.
    stream: Buffer<f32>,
    /// (n, C), what a norm gives to a layer and what the layer adds to the stream.
    normed: Buffer<f32>,
    /// (n, (H + 2·KV)·D) and (n, H·D) in one half of a block, (n, U) and (n, F) in the other.
    wide: Buffer<f32>,
    /// (2, n), means and reciprocal standard deviations of the newest norm.
    stats: Buffer<f32>,
    quantised: cuda::QuantisedRows,
    /// (V).
    logits: Buffer<f32>,
    sampler: cuda::Sampler,
    /// (V), a copy of the logits for whom they are wanted by.
    copied: Vec<f32>,
}

impl<'m> CudaReader<'m> {
    pub(crate) fn new(model: &'m CudaInferenceModel, kind: CacheKind) -> Result<Self, ModelError> {
        let shape = &model.shape;
        let planned = Ledger::for_gpu_reader(shape, kind);
        let device = &super::with_pool(&model.device, &planned)?;
        let rows = chunk_rows(shape);
        let floats = |len: usize| Buffer::zeros(device, rows * len, "buffers of tokens");
        let cache = |_| KvCache::new(device, kind, shape.n_kv_head, shape.head_dim, shape.context);
        Ok(CudaReader {
            model,
            caches: (0..shape.n_layer).map(cache).collect::<Result<_, _>>()?,
            tokens: Buffer::zeros(device, rows, "tokens")?,
            stream: floats(shape.width)?,
            normed: floats(shape.width)?,
            wide: floats(wide(shape))?,
            stats: floats(2)?,
            quantised: {
                let (cols, groups) = widest_token(shape);
                cuda::QuantisedRows::new(device, rows, cols, groups)?
            },
            logits: Buffer::zeros(device, shape.vocab, "logits")?,
            sampler: cuda::Sampler::new(device, shape.vocab, REPEAT_WINDOW)?,
            copied: Vec::new(),
        })
    }

    /// Takes a chunk of tokens from position `first` on through all blocks.
    fn read_chunk(&mut self, first: usize, tokens: &[u32]) -> Result<(), CudaError> {
        let (model, shape, n) = (self.model, &self.model.shape, tokens.len());
        self.tokens.upload(tokens)?;
        let stream = self.stream.view(..n * shape.width);
        let normed = self.normed.view(..n * shape.width);
        let halves = |first: usize, second: usize| {
            let first = n * first;
            let all = self.wide.view(..first + n * second);
            (all.part(0..first), all.part(first..all.len()))
        };
        let (qkv, attention) = halves(shape.qkv_width(), shape.attention_width());
        let (up, hidden) = halves(shape.up_width(), shape.ff_width);
        cuda::embed(
            &model.tok_embedding,
            model.pos_embedding.as_ref(),
            self.tokens.view(..n),
            shape.context,
            first,
            stream,
        )?;
        for (block, cache) in model.blocks.iter().zip(&self.caches) {
            self.normalise(&block.norm1, stream, normed)?;
            self.linear(&block.qkv, normed, qkv)?;
            if let Some((cos, sin)) = &model.angles {
                let heads = (shape.n_head + shape.n_kv_head, shape.head_dim);
                let angles = (cos.view(..), sin.view(..));
                cuda::rotate(qkv, shape.qkv_width(), heads, angles, first, false)?;
            }
            cache.attend(shape.n_head, first, qkv, attention)?;
            self.linear(&block.attention_out, attention, normed)?;
            cuda::add(normed, stream)?;

            self.normalise(&block.norm2, stream, normed)?;
            self.linear(&block.up, normed, up)?;
            match shape.feed_forward {
                FeedForward::Gelu => cuda::gelu(up, hidden)?,
                FeedForward::Swiglu => cuda::swiglu(up, shape.ff_width, hidden)?,
            }
            self.linear(&block.down, hidden, normed)?;
            cuda::add(normed, stream)?;
        }
        Ok(())
    }

    /// `to` = norm of the rows of `from`.
    fn normalise(
        &self,
        norm: &NormAt,
        from: View<'_, f32>,
        to: View<'_, f32>,
    ) -> Result<(), CudaError> {
        let width = self.model.shape.width;
        let n = from.len() / width;
        cuda::norm_forward(
            norm.sizes(n, width),
            from,
            self.model.vector(&norm.weight),
            norm.bias.as_ref().map(|bias| self.model.vector(bias)),
            to,
            self.stats.view(..n),
            self.stats.view(n..2 * n),
        )
    }

    fn linear(
        &self,
        layer: &DeviceLinear,
        x: View<'_, f32>,
        y: View<'_, f32>,
    ) -> Result<(), CudaError> {
        self.multiply(&layer.weights, x, y)?;
        match &layer.bias {
            Some(bias) => cuda::add_bias(self.model.vector(bias), y),
            None => Ok(()),
        }
    }

    /// y (n, rows) = x (n, cols) Wᵀ, in integers where the processor does so.
    fn multiply(
        &self,
        weights: &DeviceWeights,
        x: View<'_, f32>,
        y: View<'_, f32>,
    ) -> Result<(), CudaError> {
        if self.model.compute == Compute::Float || !weights.has_int8_matvec() {
            let (rows, cols) = (weights.rows(), weights.cols());
            return (0..x.len() / cols).try_for_each(|t| {
                let x = x.part(t * cols..(t + 1) * cols);
                cuda::matvec(weights, x, y.part(t * rows..(t + 1) * rows))
            });
        }
        let x = self.quantised.quantise_for(x, weights)?;
        cuda::int8_matvec(x, weights, y)
    }
}

impl Reader for CudaReader<'_> {
    fn read(&mut self, first: usize, tokens: &[u32], with_logits: bool) -> Result<(), ModelError> {
        let (model, width) = (self.model, self.model.shape.width);
        let (mut first, mut last) = (first, 0);
        for chunk in tokens.chunks(chunk_rows(&model.shape)) {
            self.read_chunk(first, chunk)?;
            first += chunk.len();
            last = chunk.len() - 1;
        }
        if with_logits {
            let newest = self.stream.view(last * width..(last + 1) * width);
            let normed = self.normed.view(..width);
            self.normalise(&model.norm, newest, normed)?;
            let head = model.head.as_ref().unwrap_or(&model.tok_embedding);
            self.multiply(head, normed, self.logits.view(..))?;
        }
        Ok(())
    }

    fn logits(&mut self) -> Result<&[f32], ModelError> {
        self.copied.resize(self.logits.len(), 0.0);
        self.logits.download(&mut self.copied)?;
        Ok(&self.copied)
    }

    fn choose(
        &mut self,
        sampler: &mut TokenSampler,
        known: usize,
        text: &[u32],
    ) -> Result<u32, ModelError> {
        let (logits, choice) = (self.logits.view(..known), sampler.choice(text.len()));
        match self.sampler.choose(logits, recent(text), &choice)? {
            Ok(token) => Ok(token),
            Err(why) => Err(bad_logits(why, self.logits()?)),
        }
    }
}
