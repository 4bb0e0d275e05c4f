//! Forward and backward on the GPU, operation by operation as model.rs, block.rs and layers.rs.

use std::ops::Range;

use primal_kernels::cuda::{
    self, Buffer, CrossEntropy, CudaError, Device, DeviceWeights, QuantisedRows, View,
};
use primal_kernels::{AttentionShape, vocab_tiles};
use primal_optim::{FloatVector, StepContext};

use super::layers::{Angles, NormAt, upload_angles};
use super::state::Layout;
use super::{CudaModel, Part};
use crate::activations::TokenIndex;
use crate::config::{Config, FeedForward};
use crate::device_ledger::{
    GRADIENT_ROWS, decoded_len, pass_rows, segment_len, widest_matrix, widest_operand, widest_row,
};
use crate::error::ModelError;
use crate::layers::{Linear, Norm};
use crate::model::{Model, Pass};

/// The token rows of one micro-batch.
pub(super) struct Piece {
    pub(super) micro_batch: u16,
    pub(super) rows: Range<usize>,
    /// Tokens that carry a loss.
    pub(super) counted: usize,
}

/// A linear layer: the number of its matrix, and its bias in the arena.
struct LinearAt {
    matrix: usize,
    bias: Option<Part>,
}

struct BlockAt {
    norm1: NormAt,
    qkv: LinearAt,
    attention_out: LinearAt,
    norm2: NormAt,
    up: LinearAt,
    down: LinearAt,
}

/// What the backward pass of a block needs: see `BlockActivations` of the processor.
struct Kept {
    norm1: Stats,
    qkv: Buffer<f32>,
    lse: Buffer<f32>,
    attention: Buffer<f32>,
    middle: Buffer<f32>,
    norm2: Stats,
    up: Buffer<f32>,
}

/// Mean and reciprocal standard deviation of each row.
struct Stats {
    mean: Buffer<f32>,
    rstd: Buffer<f32>,
}

/// How products with matrices on a grid are computed, and what they need for it.
enum Products {
    /// In float.
    Float {
        /// The decoded values of a matrix of a block or of a tile of the head.
        decoded: Buffer<f32>,
    },
    /// In int8.
    Int8 {
        /// What one product multiplies.
        operand: QuantisedRows,
        /// The output of the final norm, which all tiles of the head multiply.
        output: QuantisedRows,
    },
}

/// What a product multiplies.
enum Factor<'a> {
    /// The values of rows of a matrix.
    Float(View<'a, f32>),
    /// Its codes, with the buffers of [`Products::Int8`].
    Int8 {
        operand: &'a QuantisedRows,
        output: &'a QuantisedRows,
    },
}

/// Every buffer of a pass, and where the parameters of each layer lie.
pub(super) struct PassBuffers {
    /// Token rows.
    pub(super) rows: usize,
    tok_embedding: usize,
    pos_embedding: Option<usize>,
    head: Option<usize>,
    blocks: Vec<BlockAt>,
    norm: NormAt,
    angles: Option<Angles>,
    feed_forward: FeedForward,
    inputs: Vec<Buffer<f32>>,
    segment_inputs: Vec<Buffer<f32>>,
    kept: Vec<Kept>,
    normed: Buffer<f32>,
    hidden: Buffer<f32>,
    d_hidden: Buffer<f32>,
    d_normed: Buffer<f32>,
    d_qkv: Buffer<f32>,
    dots: Buffer<f32>,
    products: Products,
    output: Buffer<f32>,
    output_stats: Stats,
    d_output: Buffer<f32>,
    d_stream: Buffer<f32>,
    losses: Buffer<f32>,
    loss_lse: Buffer<f32>,
    cross_entropy: CrossEntropy,
    loss_sums: Buffer<f64>,
    /// Partial sums by column.
    column_sums: Buffer<f32>,
    /// (GRADIENT_ROWS, cols) dL/dW.
    pub(super) gradient: Buffer<f32>,
    tokens: Buffer<u32>,
    targets: Buffer<u32>,
    starts: Buffer<u32>,
    order: Buffer<u32>,
    index: TokenIndex,
}

impl PassBuffers {
    pub(super) fn new(
        device: &Device,
        config: &Config,
        layout: &Layout,
        model: &Model,
    ) -> Result<Self, CudaError> {
        let shape = *model.shape();
        let rows = pass_rows(config, &shape);
        let segment = segment_len(config, &shape);
        let floats = |what: &str, len: usize| Buffer::zeros(device, len, what);
        let stats = || -> Result<Stats, CudaError> {
            Ok(Stats {
                mean: floats("norms", rows)?,
                rstd: floats("norms", rows)?,
            })
        };
        let stream = || floats("residual stream", rows * shape.width);
        let kept = || -> Result<Kept, CudaError> {
            let of = |width: usize| floats("activations of a block", rows * width);
            Ok(Kept {
                norm1: stats()?,
                qkv: of(shape.qkv_width())?,
                lse: of(shape.n_head)?,
                attention: of(shape.attention_width())?,
                middle: of(shape.width)?,
                norm2: stats()?,
                up: of(shape.up_width())?,
            })
        };
        let mut place = |vector: &FloatVector| layout.part(vector.name());
        let mut norm = |norm: &Norm| NormAt::new(norm, &mut place);
        let linear = |linear: &Linear| LinearAt {
            matrix: layout.matrix(&linear.weight),
            bias: linear.bias.as_ref().map(|bias| layout.part(bias.name())),
        };
        let words = |len: usize| Buffer::zeros(device, len, "tokens");
        let segments = shape.n_layer.div_ceil(segment);
        let work = |width: usize| floats("workspace", rows * width);
        Ok(PassBuffers {
            rows,
            tok_embedding: layout.matrix(&model.tok_embedding),
            pos_embedding: model.pos_embedding.as_ref().map(|it| layout.matrix(it)),
            head: model.head.as_ref().map(|head| layout.matrix(head)),
            blocks: model
                .blocks
                .iter()
                .map(|block| BlockAt {
                    norm1: norm(&block.norm1),
                    qkv: linear(&block.qkv),
                    attention_out: linear(&block.attention_out),
                    norm2: norm(&block.norm2),
                    up: linear(&block.up),
                    down: linear(&block.down),
                })
                .collect(),
            norm: norm(&model.norm),
            angles: upload_angles(device, model.rope.as_ref())?,
            feed_forward: shape.feed_forward,
            inputs: (0..=segment).map(|_| stream()).collect::<Result<_, _>>()?,
            segment_inputs: (1..segments).map(|_| stream()).collect::<Result<_, _>>()?,
            kept: (0..segment).map(|_| kept()).collect::<Result<_, _>>()?,
            normed: work(shape.width.max(shape.attention_width()))?,
            hidden: work(shape.ff_width)?,
            d_hidden: work(shape.ff_width)?,
            d_normed: work(shape.width)?,
            d_qkv: work(shape.qkv_width())?,
            dots: work(shape.n_head)?,
            products: if config.resolved_compute().is_int8() {
                Products::Int8 {
                    operand: QuantisedRows::new(device, rows, widest_operand(&shape), 1)?,
                    output: QuantisedRows::new(device, rows, shape.width, 1)?,
                }
            } else {
                Products::Float {
                    decoded: floats("decoded weights", decoded_len(config, &shape))?,
                }
            },
            output: stream()?,
            output_stats: stats()?,
            d_output: stream()?,
            d_stream: stream()?,
            losses: floats("losses", rows)?,
            loss_lse: floats("losses", rows)?,
            cross_entropy: CrossEntropy::new(device, rows, shape.vocab)?,
            loss_sums: Buffer::zeros(device, config.train.micro_batches_per_pass.max(1), "losses")?,
            column_sums: floats("sums by column", rows.div_ceil(64) * widest_row(&shape))?,
            gradient: floats("gradient", GRADIENT_ROWS * widest_matrix(&shape))?,
            tokens: words(rows)?,
            targets: words(rows)?,
            starts: words(shape.vocab + 1)?,
            order: words(rows)?,
            index: TokenIndex::new(rows, shape.vocab),
        })
    }
}

impl CudaModel {
    fn parameter(&self, part: &Part) -> View<'_, f32> {
        self.arena.values.view(part.clone())
    }

    fn gradient(&self, part: &Part) -> View<'_, f32> {
        self.arena.grad.view(part.clone())
    }

    /// Rows of a matrix for a product: in float where it is float or everything is.
    fn factor<'a>(
        &'a self,
        weights: &'a DeviceWeights,
        rows: &Range<usize>,
    ) -> Result<Factor<'a>, CudaError> {
        if let Some(values) = weights.dense_rows(rows.clone()) {
            return Ok(Factor::Float(values));
        }
        match &self.buffers.products {
            Products::Float { decoded } => {
                let values = decoded.view(..rows.len() * weights.cols());
                cuda::decode_rows(weights, rows.start, rows.len(), values)?;
                Ok(Factor::Float(values))
            }
            Products::Int8 { operand, output } => Ok(Factor::Int8 { operand, output }),
        }
    }

    /// Losses of each token of a pass, left in the buffers.
    pub(super) fn forward(&mut self, pass: &Pass<'_>) -> Result<(), ModelError> {
        self.buffers.tokens.upload(pass.tokens)?;
        self.buffers.targets.upload(pass.targets)?;
        let n = pass.tokens.len();
        let c = self.shape.width;
        let b = &self.buffers;
        cuda::embed(
            &self.matrices[b.tok_embedding].weights,
            b.pos_embedding.map(|it| &self.matrices[it].weights),
            b.tokens.view(..n),
            pass.time,
            0,
            b.inputs[0].view(..n * c),
        )?;
        let segment = self.buffers.kept.len();
        for layer in 0..self.buffers.blocks.len() {
            if layer % segment == 0 {
                self.start_segment(layer / segment, n * c)?;
            }
            self.block_forward(layer, layer % segment, n, pass.time)?;
        }
        let b = &self.buffers;
        let last = (b.blocks.len() - 1) % segment + 1;
        self.normalise(&b.norm, n, &b.inputs[last], &b.output, &b.output_stats)?;
        self.loss_forward(n)
    }

    fn start_segment(&mut self, segment: usize, len: usize) -> Result<(), CudaError> {
        let b = &mut self.buffers;
        if segment > 0 {
            let full = b.kept.len();
            let (first, rest) = b.inputs.split_at_mut(1);
            first[0].copy_from(&rest[full - 1], len)?;
        }
        match b.segment_inputs.get_mut(segment) {
            Some(kept) => kept.copy_from(&b.inputs[0], len),
            None => Ok(()),
        }
    }

    fn loss_forward(&self, n: usize) -> Result<(), ModelError> {
        let (b, c) = (&self.buffers, self.shape.width);
        let (losses, targets) = (b.losses.view(..n), b.targets.view(..n));
        cuda::loss_begin(&b.cross_entropy, losses)?;
        let head = b.head.unwrap_or(b.tok_embedding);
        if let Products::Int8 { output, .. } = &b.products
            && self.matrices[head].weights.is_on_grid()
        {
            // The backward pass takes it too.
            output.quantise(b.output.view(..n * c), None, c)?;
        }
        for tile in vocab_tiles(self.matrices[head].weights.rows()) {
            self.logits(head, &tile, 0..n)?;
            let place = (tile.start, tile.len());
            cuda::loss_tile(&b.cross_entropy, targets, place, losses)?;
        }
        Ok(cuda::loss_end(
            &b.cross_entropy,
            targets,
            losses,
            b.loss_lse.view(..n),
        )?)
    }

    /// Logits of a tile of the vocabulary for some token rows, in the buffers of the loss.
    fn logits(
        &self,
        head: usize,
        tile: &Range<usize>,
        rows: Range<usize>,
    ) -> Result<(), CudaError> {
        let (b, c) = (&self.buffers, self.shape.width);
        let weights = &self.matrices[head].weights;
        let logits = b.cross_entropy.logits.view(..rows.len() * tile.len());
        match self.factor(weights, tile)? {
            Factor::Float(values) => {
                let x = b.output.view(rows.start * c..rows.end * c);
                cuda::matmul_nt(x, values, logits, (rows.len(), tile.len(), c), false)
            }
            Factor::Int8 { output, .. } => {
                let x = output.rows(rows, c);
                cuda::int8_matmul_nt(x, weights, tile.clone(), logits, false)
            }
        }
    }

    /// The summed loss of each piece.
    pub(super) fn losses_of(&self, pieces: &[Piece], sums: &mut [f64]) -> Result<(), ModelError> {
        let b = &self.buffers;
        let n = pieces.last().map_or(0, |piece| piece.rows.end);
        let on_device = b.loss_sums.view(..pieces.len());
        cuda::sum_losses(b.losses.view(..n), n / pieces.len().max(1), on_device)?;
        Ok(b.loss_sums.download(&mut sums[..pieces.len()])?)
    }

    fn normalise(
        &self,
        norm: &NormAt,
        n: usize,
        x: &Buffer<f32>,
        y: &Buffer<f32>,
        stats: &Stats,
    ) -> Result<(), CudaError> {
        let elements = n * self.shape.width;
        cuda::norm_forward(
            norm.sizes(n, self.shape.width),
            x.view(..elements),
            self.parameter(&norm.weight),
            norm.bias.as_ref().map(|bias| self.parameter(bias)),
            y.view(..elements),
            stats.mean.view(..n),
            stats.rstd.view(..n),
        )
    }

    fn normalise_backward(
        &self,
        norm: &NormAt,
        pieces: &[Piece],
        dy: &Buffer<f32>,
        x: &Buffer<f32>,
        stats: &Stats,
        dx: &Buffer<f32>,
    ) -> Result<(), CudaError> {
        let c = self.shape.width;
        for piece in pieces {
            let rows = piece.rows.clone();
            let elements = rows.start * c..rows.end * c;
            cuda::norm_backward(
                norm.sizes(rows.len(), c),
                dy.view(elements.clone()),
                x.view(elements.clone()),
                self.parameter(&norm.weight),
                (stats.mean.view(rows.clone()), stats.rstd.view(rows)),
                dx.view(elements),
                self.gradient(&norm.weight),
                norm.bias.as_ref().map(|bias| self.gradient(bias)),
                self.buffers.column_sums.view(..),
            )?;
        }
        Ok(())
    }

    /// y (n, out) = or += x (n, in) Wᵀ, plus the bias.
    fn linear(
        &self,
        layer: &LinearAt,
        n: usize,
        x: &Buffer<f32>,
        y: &Buffer<f32>,
        accumulate: bool,
    ) -> Result<(), CudaError> {
        let weights = &self.matrices[layer.matrix].weights;
        let (out, input) = (weights.rows(), weights.cols());
        let (x, y) = (x.view(..n * input), y.view(..n * out));
        match self.factor(weights, &(0..out))? {
            Factor::Float(values) => {
                cuda::matmul_nt(x, values, y, (n, out, input), accumulate)?;
            }
            Factor::Int8 { operand, .. } => {
                let x = operand.quantise(x, None, input)?;
                cuda::int8_matmul_nt(x, weights, 0..out, y, accumulate)?;
            }
        }
        match &layer.bias {
            Some(bias) => cuda::add_bias(self.parameter(bias), y),
            None => Ok(()),
        }
    }

    /// dx (n, in) = dy (n, out) W, then the gradients of W and of the bias of each micro-batch.
    fn linear_backward(
        &self,
        ctx: &StepContext<'_>,
        layer: &LinearAt,
        pieces: &[Piece],
        x: &Buffer<f32>,
        dy: &Buffer<f32>,
        dx: &Buffer<f32>,
    ) -> Result<(), CudaError> {
        let weights = &self.matrices[layer.matrix].weights;
        let (out, input) = (weights.rows(), weights.cols());
        let n = pieces.last().map_or(0, |piece| piece.rows.end);
        self.input_gradient(
            layer.matrix,
            0..out,
            dy.view(..n * out),
            dx.view(..n * input),
            false,
        )?;
        for piece in pieces {
            let rows = piece.rows.clone();
            let dy = dy.view(rows.start * out..rows.end * out);
            let x = x.view(rows.start * input..rows.end * input);
            self.weight_gradient(ctx, layer.matrix, piece, (dy, x))?;
            if let Some(bias) = &layer.bias {
                let scratch = self.buffers.column_sums.view(..);
                cuda::fold_column_sums(rows.len(), dy, self.gradient(bias), scratch)?;
            }
        }
        Ok(())
    }

    /// dx (n, in) = or += dy (n, rows.len()) times rows `rows` of a matrix.
    fn input_gradient(
        &self,
        matrix: usize,
        rows: Range<usize>,
        dy: View<'_, f32>,
        dx: View<'_, f32>,
        accumulate: bool,
    ) -> Result<(), CudaError> {
        let weights = &self.matrices[matrix].weights;
        let (out, input) = (rows.len(), weights.cols());
        match self.factor(weights, &rows)? {
            Factor::Float(values) => {
                let sizes = (dy.len() / out, out, input);
                cuda::matmul_nn(dy, values, dx, sizes, accumulate)
            }
            Factor::Int8 { operand, .. } => {
                let scales = weights.scales(rows.clone());
                let dy = operand.quantise(dy, Some(scales), out)?;
                cuda::int8_matmul_nn(dy, weights, rows, dx, accumulate)
            }
        }
    }

    fn attention_shape(&self, n: usize, time: usize) -> AttentionShape {
        self.shape.attention(n / time, time)
    }

    fn rotate(
        &self,
        qkv: &Buffer<f32>,
        n: usize,
        time: usize,
        back: bool,
    ) -> Result<(), CudaError> {
        let Some((cos, sin)) = &self.buffers.angles else {
            return Ok(());
        };
        let shape = &self.shape;
        let angles = time * (shape.head_dim / 2);
        cuda::rotate(
            qkv.view(..n * shape.qkv_width()),
            shape.qkv_width(),
            (shape.n_head + shape.n_kv_head, shape.head_dim),
            (cos.view(..angles), sin.view(..angles)),
            0,
            back,
        )
    }

    fn activate(&self, up: &Buffer<f32>, n: usize) -> Result<(), CudaError> {
        let width = self.shape.ff_width;
        let hidden = self.buffers.hidden.view(..n * width);
        let up = up.view(..n * self.shape.up_width());
        match self.buffers.feed_forward {
            FeedForward::Gelu => cuda::gelu(up, hidden),
            FeedForward::Swiglu => cuda::swiglu(up, width, hidden),
        }
    }

    fn block_forward(
        &mut self,
        layer: usize,
        slot: usize,
        n: usize,
        time: usize,
    ) -> Result<(), CudaError> {
        let c = self.shape.width;
        let b = &self.buffers;
        let (block, kept, x) = (&b.blocks[layer], &b.kept[slot], &b.inputs[slot]);
        self.normalise(&block.norm1, n, x, &b.normed, &kept.norm1)?;
        self.linear(&block.qkv, n, &b.normed, &kept.qkv, false)?;
        self.rotate(&kept.qkv, n, time, false)?;
        let shape = self.attention_shape(n, time);
        cuda::attention(
            &shape,
            kept.qkv.view(..n * self.shape.qkv_width()),
            kept.attention.view(..n * self.shape.attention_width()),
            kept.lse.view(..n * self.shape.n_head),
        )?;
        let b = &mut self.buffers;
        b.kept[slot].middle.copy_from(&b.inputs[slot], n * c)?;
        let b = &self.buffers;
        let (block, kept) = (&b.blocks[layer], &b.kept[slot]);
        self.linear(&block.attention_out, n, &kept.attention, &kept.middle, true)?;
        self.normalise(&block.norm2, n, &kept.middle, &b.normed, &kept.norm2)?;
        self.linear(&block.up, n, &b.normed, &kept.up, false)?;
        self.activate(&kept.up, n)?;
        let b = &mut self.buffers;
        b.inputs[slot + 1].copy_from(&b.kept[slot].middle, n * c)?;
        let b = &self.buffers;
        self.linear(
            &b.blocks[layer].down,
            n,
            &b.hidden,
            &b.inputs[slot + 1],
            true,
        )
    }

    pub(super) fn backward(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: &[Piece],
    ) -> Result<(), ModelError> {
        let n = pass.tokens.len();
        let c = self.shape.width;
        self.buffers.d_output.clear()?;
        self.buffers.d_stream.clear()?;
        for piece in pieces {
            match self.buffers.head {
                Some(head) => self.head_backward(ctx, head, piece, true, true)?,
                // A tied head votes together with the embedding, at the end.
                None => {
                    let head = self.buffers.tok_embedding;
                    self.head_backward(ctx, head, piece, true, false)?;
                }
            }
        }
        let segment = self.buffers.kept.len();
        let n_layer = self.buffers.blocks.len();
        let b = &self.buffers;
        let last = (n_layer - 1) % segment + 1;
        self.normalise_backward(
            &b.norm,
            pieces,
            &b.d_output,
            &b.inputs[last],
            &b.output_stats,
            &b.d_stream,
        )?;
        let last_segment = (n_layer - 1) / segment;
        for at in (0..=last_segment).rev() {
            let layers = at * segment..((at + 1) * segment).min(n_layer);
            if at != last_segment {
                let b = &mut self.buffers;
                b.inputs[0].copy_from(&b.segment_inputs[at], n * c)?;
                for (slot, layer) in layers.clone().enumerate() {
                    self.block_forward(layer, slot, n, pass.time)?;
                }
            }
            for layer in layers.rev() {
                self.block_backward(ctx, layer, layer % segment, pieces, pass.time)?;
            }
        }
        self.embeddings_backward(ctx, pass, pieces)
    }

    /// The loss's gradient, tile by tile of the vocabulary: adds that of x to `d_output` if
    /// wanted, casts the head's votes if wanted; a tied head's together with the embedding's.
    fn head_backward(
        &self,
        ctx: &StepContext<'_>,
        head: usize,
        piece: &Piece,
        input: bool,
        votes: bool,
    ) -> Result<(), ModelError> {
        let (b, c) = (&self.buffers, self.shape.width);
        let (rows, n) = (piece.rows.clone(), piece.rows.len());
        let grad_scale = 1.0 / piece.counted.max(1) as f32;
        let tied = b.head.is_none();
        let votes = votes && self.matrices[head].learns();
        for tile in vocab_tiles(self.matrices[head].weights.rows()) {
            self.logits(head, &tile, rows.clone())?;
            cuda::loss_gradient(
                &b.cross_entropy,
                b.targets.view(rows.clone()),
                b.loss_lse.view(rows.clone()),
                (tile.start, tile.len()),
                grad_scale,
            )?;
            let d_logits = b.cross_entropy.logits.view(..n * tile.len());
            let part = rows.start * c..rows.end * c;
            if input {
                let dx = b.d_output.view(part.clone());
                self.input_gradient(head, tile.clone(), d_logits, dx, true)?;
            }
            if votes {
                let grad = b.gradient.view(..tile.len() * c);
                let sizes = (n, tile.len(), c);
                cuda::matmul_tn(
                    d_logits,
                    b.output.view(part.clone()),
                    grad,
                    sizes,
                    0,
                    tile.len(),
                )?;
                let place = (tile.start, tile.len());
                if tied {
                    let d_stream = b.d_stream.view(part);
                    let order = b.order.view(..n);
                    cuda::embedding_gradient(
                        d_stream,
                        b.starts.view(..),
                        order,
                        place,
                        false,
                        grad,
                    )?;
                }
                self.accumulate(ctx, head, piece, place, grad)?;
            }
        }
        if votes {
            self.matrices[head].end_micro_batch(ctx)?;
        }
        Ok(())
    }

    fn block_backward(
        &self,
        ctx: &StepContext<'_>,
        layer: usize,
        slot: usize,
        pieces: &[Piece],
        time: usize,
    ) -> Result<(), CudaError> {
        let n = pieces.last().map_or(0, |piece| piece.rows.end);
        let (shape, b) = (&self.shape, &self.buffers);
        let (block, kept, dx) = (&b.blocks[layer], &b.kept[slot], &b.d_stream);
        let hidden = n * shape.ff_width;
        self.activate(&kept.up, n)?;
        self.linear_backward(ctx, &block.down, pieces, &b.hidden, dx, &b.d_hidden)?;
        let d_up = match b.feed_forward {
            FeedForward::Gelu => {
                cuda::gelu_backward(kept.up.view(..hidden), b.d_hidden.view(..hidden))?;
                &b.d_hidden
            }
            FeedForward::Swiglu => {
                let up = kept.up.view(..2 * hidden);
                cuda::swiglu_backward(up, shape.ff_width, b.d_hidden.view(..hidden))?;
                &kept.up
            }
        };
        self.normalise(&block.norm2, n, &kept.middle, &b.normed, &kept.norm2)?;
        self.linear_backward(ctx, &block.up, pieces, &b.normed, d_up, &b.d_normed)?;
        self.normalise_backward(
            &block.norm2,
            pieces,
            &b.d_normed,
            &kept.middle,
            &kept.norm2,
            dx,
        )?;

        let d_mixed = &b.normed;
        self.linear_backward(
            ctx,
            &block.attention_out,
            pieces,
            &kept.attention,
            dx,
            d_mixed,
        )?;
        cuda::attention_backward(
            &self.attention_shape(n, time),
            kept.qkv.view(..n * shape.qkv_width()),
            kept.attention.view(..n * shape.attention_width()),
            kept.lse.view(..n * shape.n_head),
            d_mixed.view(..n * shape.attention_width()),
            b.d_qkv.view(..n * shape.qkv_width()),
            b.dots.view(..n * shape.n_head),
        )?;
        self.rotate(&b.d_qkv, n, time, true)?;
        let x = &b.inputs[slot];
        self.normalise(&block.norm1, n, x, &b.normed, &kept.norm1)?;
        self.linear_backward(ctx, &block.qkv, pieces, &b.normed, &b.d_qkv, &b.d_normed)?;
        self.normalise_backward(&block.norm1, pieces, &b.d_normed, x, &kept.norm1, dx)
    }

    fn embeddings_backward(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        pieces: &[Piece],
    ) -> Result<(), ModelError> {
        let c = self.shape.width;
        let time = pass.time;
        for piece in pieces {
            let rows = piece.rows.clone();
            let elements = rows.start * c..rows.end * c;
            let learns = |&matrix: &usize| self.matrices[matrix].learns();
            if let Some(positions) = self.buffers.pos_embedding.filter(learns) {
                let b = &self.buffers;
                let sequences = (rows.len() / time, time);
                for first in (0..time).step_by(GRADIENT_ROWS) {
                    let count = GRADIENT_ROWS.min(time - first);
                    let grad = b.gradient.view(..count * c);
                    let d_stream = b.d_stream.view(elements.clone());
                    cuda::position_gradient(d_stream, sequences, (first, count), grad)?;
                    self.accumulate(ctx, positions, piece, (first, count), grad)?;
                }
                self.matrices[positions].end_micro_batch(ctx)?;
            }
            if !learns(&self.buffers.tok_embedding) {
                continue;
            }
            let b = &mut self.buffers;
            b.index.build(&pass.tokens[rows.clone()]);
            b.starts.upload(b.index.starts())?;
            b.order.upload(&b.index.order()[..rows.len()])?;
            let b = &self.buffers;
            let tokens = b.tok_embedding;
            if b.head.is_none() {
                self.head_backward(ctx, tokens, piece, false, true)?;
                continue;
            }
            for tile in vocab_tiles(self.shape.vocab) {
                let grad = b.gradient.view(..tile.len() * c);
                let place = (tile.start, tile.len());
                let d_stream = b.d_stream.view(elements.clone());
                let order = b.order.view(..rows.len());
                cuda::embedding_gradient(d_stream, b.starts.view(..), order, place, true, grad)?;
                self.accumulate(ctx, tokens, piece, place, grad)?;
            }
            self.matrices[tokens].end_micro_batch(ctx)?;
        }
        Ok(())
    }
}
