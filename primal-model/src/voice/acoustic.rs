//! Ghost-TTS: symbols to a mel spectrogram, after FastSpeech (Ren et al. 2019). Blocks over symbols,
//! a predictor of durations, each symbol repeated for as long as it lasts, blocks over frames, a
//! projection to mel bands. The blocks are those of the language models with whole-sequence
//! attention, and every matrix lives on the grid.
//!
//! Sentences of a batch are packed one after the other: nothing is padded, so nothing needs a
//! mask, and a sentence does not depend on its batch.

use primal_kernels as kernels;
use primal_kernels::{AttentionShape, Isa, MatrixRows};
use primal_lut::Grid;
use primal_optim::{FloatVector, OptimError, StepContext, Weight};
use rayon::prelude::*;

use super::Symbol;
use super::config::{MEL_BANDS, VoiceConfig};
use super::data::{Batch, Sizes};
use super::length::{Lengths, PLACE_FEATURES, with_neighbours, with_neighbours_backward};
use crate::activations::TokenIndex;
use crate::block::{Attention, Block, BlockActivations, Workspace};
use crate::build::{Place, Source, block};
use crate::config::{Compute, FloatPart};
use crate::error::ModelError;
use crate::layers::{Linear, Norm, NormStats, Param, ParamMut, Pieces};
use crate::parameters::Parameters;
use crate::rope::Rope;
use crate::shape::ModelShape;

/// Symbols that a duration is predicted from: before, itself, after.
const NEIGHBOURS: usize = 3;

/// The network.
pub(crate) struct AcousticModel {
    shape: ModelShape,
    rope: Option<Rope>,
    /// (symbols, C).
    embedding: Weight,
    encoder: Vec<Block>,
    encoder_norm: Norm,
    /// (P, 3·C), (P, 3·P), (1, P): logarithms of 1 + frames.
    duration: [Linear; 3],
    /// (C, 12), of [`Lengths::places`].
    place: Linear,
    decoder: Vec<Block>,
    decoder_norm: Norm,
    /// (80, C).
    mel: Linear,
    /// (80) what the projection is multiplied by and added to: those of the corpus.
    mel_std: FloatVector,
    mel_mean: FloatVector,
}

/// Mean errors of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Losses {
    /// Absolute error of the log mel spectrogram in nats, over frames and bands.
    pub(crate) mel: f64,
    /// Squared error of log(1 + frames), over symbols.
    pub(crate) duration: f64,
}

impl AcousticModel {
    /// The network of `config` with the parameters of `source`, in the order of the forward pass.
    pub(crate) fn build(config: &VoiceConfig, source: &mut dyn Source) -> Result<Self, ModelError> {
        let decoder = config.as_decoder();
        let shape = ModelShape::new(&decoder, Symbol::COUNT)?;
        let m = &config.model;
        let grid = Grid::by_id(&m.grid)
            .ok_or_else(|| ModelError::Shape(format!("unknown grid '{}'", m.grid)))?;
        let (c, p, std) = (m.width, m.duration_width, m.init_std);
        let embedding = source.matrix(
            "embedding",
            (Symbol::COUNT, c),
            std,
            &grid,
            Place::edge(FloatPart::Embeddings),
        )?;
        let blocks = |range: std::ops::Range<usize>, source: &mut dyn Source| {
            range
                .map(|layer| block(&decoder, &shape, layer, source, &grid))
                .collect::<Result<Vec<_>, _>>()
        };
        let norm = |name: &str, source: &mut dyn Source| {
            Norm::new(&decoder.model, name, &mut |name, len, initial| {
                source.vector(name, len, initial)
            })
        };
        let linear = |name: &str, size: (usize, usize), source: &mut dyn Source| {
            Ok::<_, ModelError>(Linear {
                weight: source.matrix(name, size, std, &grid, Place::edge(FloatPart::Mlp))?,
                bias: Some(source.vector(format!("{name}.bias"), size.0, 0.0)?),
            })
        };
        let encoder = blocks(0..m.encoder_blocks, source)?;
        let encoder_norm = norm("encoder_norm", source)?;
        let duration = [
            linear("duration.0", (p, NEIGHBOURS * c), source)?,
            linear("duration.1", (p, NEIGHBOURS * p), source)?,
            linear("duration.2", (1, p), source)?,
        ];
        let place = linear("place", (c, PLACE_FEATURES), source)?;
        let last = m.encoder_blocks + m.decoder_blocks;
        let decoder_blocks = blocks(m.encoder_blocks..last, source)?;
        let decoder_norm = norm("decoder_norm", source)?;
        let mel = linear("mel", (MEL_BANDS, c), source)?;
        let mut mel_std = source.vector("mel_std".to_owned(), MEL_BANDS, 1.0)?;
        let mut mel_mean = source.vector("mel_mean".to_owned(), MEL_BANDS, 0.0)?;
        mel_std.keep_still();
        mel_mean.keep_still();
        Ok(AcousticModel {
            rope: Rope::new(&decoder.model, &shape),
            shape,
            embedding,
            encoder,
            encoder_norm,
            duration,
            place,
            decoder: decoder_blocks,
            decoder_norm,
            mel,
            mel_std,
            mel_mean,
        })
    }

    /// Sets what the projection to mel bands starts from.
    pub(crate) fn set_band_statistics(&mut self, mean: &[f32], std: &[f32]) {
        self.mel_mean.parts_mut().values.copy_from_slice(mean);
        self.mel_std.parts_mut().values.copy_from_slice(std);
    }

    /// Symbols of `batch` to what the decoder needs of them and to their log durations.
    pub(crate) fn encode(&self, isa: Isa, batch: &Batch, acts: &mut VoiceActivations) {
        let (s, c) = (batch.n_symbols(), self.shape.width);
        let embedding = &self.embedding;
        acts.encoder.inputs[0][..s * c]
            .par_chunks_mut(c)
            .zip(&batch.symbols)
            .for_each(|(row, &symbol)| embedding.fill_row(isa, symbol as usize, row));
        let attention = self.attention(&batch.symbol_lengths);
        let ws = &mut acts.workspace;
        acts.encoder
            .forward(isa, &self.encoder, one_piece(0, s), &attention, ws);
        let encoded = &mut acts.encoded[..s * c];
        let stream = &acts.encoder.output()[..s * c];
        self.encoder_norm
            .forward(isa, stream, encoded, &mut acts.encoded_stats);

        let pieces = one_piece(0, s);
        let [first, second, last] = &self.duration;
        let lengths = &batch.symbol_lengths;
        let p = first.weight.rows();
        let d = &mut acts.duration;
        let wide = &mut d.wide[0][..s * NEIGHBOURS * c];
        with_neighbours(encoded, c, lengths, wide);
        let up = &mut d.up[0][..s * p];
        first.forward(isa, pieces, wide, up, false, &mut ws.linear);
        let hidden = &mut d.hidden[0][..s * p];
        kernels::gelu(isa, up, hidden);
        let wide = &mut d.wide[1][..s * NEIGHBOURS * p];
        with_neighbours(hidden, p, lengths, wide);
        let up = &mut d.up[1][..s * p];
        second.forward(isa, pieces, wide, up, false, &mut ws.linear);
        let hidden = &mut d.hidden[1][..s * p];
        kernels::gelu(isa, up, hidden);
        let predicted = &mut d.predicted[..s];
        last.forward(isa, pieces, hidden, predicted, false, &mut ws.linear);
    }

    /// What [`AcousticModel::encode`] left, with the durations of `batch`, to the spectrogram
    /// (N, 80) in `acts`.
    pub(crate) fn decode(&self, isa: Isa, batch: &Batch, acts: &mut VoiceActivations) {
        let (s, n, c) = (batch.n_symbols(), batch.n_frames(), self.shape.width);
        let pieces = one_piece(0, n);
        let ws = &mut acts.workspace;
        acts.lengths.set(&batch.frames);
        let places = &mut acts.places[..n * PLACE_FEATURES];
        acts.lengths.places(places);
        let stream = &mut acts.decoder.inputs[0][..n * c];
        self.place
            .forward(isa, pieces, places, stream, false, &mut ws.linear);
        acts.lengths.spread(isa, &acts.encoded[..s * c], c, stream);
        let attention = self.attention(&batch.frame_lengths);
        acts.decoder
            .forward(isa, &self.decoder, pieces, &attention, ws);
        let decoded = &mut acts.decoded[..n * c];
        let stream = &acts.decoder.output()[..n * c];
        self.decoder_norm
            .forward(isa, stream, decoded, &mut acts.decoded_stats);
        let predicted = &mut acts.predicted[..n * MEL_BANDS];
        self.mel
            .forward(isa, pieces, decoded, predicted, false, &mut ws.linear);
        let (std, mean) = (self.mel_std.values(), self.mel_mean.values());
        predicted.par_chunks_mut(MEL_BANDS).for_each(|row| {
            for ((value, std), mean) in row.iter_mut().zip(std).zip(mean) {
                *value = *value * std + mean;
            }
        });
    }

    /// Errors of `batch`; no gradients.
    pub(crate) fn forward(&self, isa: Isa, batch: &Batch, acts: &mut VoiceActivations) -> Losses {
        self.encode(isa, batch, acts);
        self.decode(isa, batch, acts);
        let n = batch.n_frames();
        acts.row_losses[..n]
            .par_iter_mut()
            .zip(acts.predicted.par_chunks(MEL_BANDS))
            .zip(batch.mel.par_chunks(MEL_BANDS))
            .for_each(|((loss, predicted), target)| {
                let errors = predicted.iter().zip(target).map(|(p, t)| (p - t).abs());
                *loss = errors.sum();
            });
        let mel: f64 = acts.row_losses[..n].iter().map(|&x| f64::from(x)).sum();
        let predicted = &acts.duration.predicted[..batch.n_symbols()];
        let duration: f64 = predicted
            .iter()
            .zip(&batch.frames)
            .map(|(&p, &frames)| f64::from(p - log_duration(frames)).powi(2))
            .sum();
        Losses {
            mel: mel / (n * MEL_BANDS).max(1) as f64,
            duration: duration / batch.n_symbols().max(1) as f64,
        }
    }

    /// Forward and backward over micro-batch `micro_batch` of a step, of the loss mel +
    /// `duration_weight` · duration; votes are cast and float gradients summed. Returns `None`
    /// where something is not finite: the caller then discards the step.
    pub(crate) fn forward_backward(
        &mut self,
        ctx: &StepContext<'_>,
        micro_batch: u16,
        batch: &Batch,
        duration_weight: f32,
        acts: &mut VoiceActivations,
    ) -> Result<Option<Losses>, OptimError> {
        let losses = self.forward(ctx.isa, batch, acts);
        if !losses.mel.is_finite() || !losses.duration.is_finite() {
            return Ok(None);
        }
        let frames = one_piece(micro_batch, batch.n_frames());
        let symbols = one_piece(micro_batch, batch.n_symbols());
        let finite = self.backward_decoder(ctx, frames, batch, acts)?
            && self.backward_duration(ctx, symbols, batch, duration_weight, acts)?
            && self.backward_encoder(ctx, symbols, batch, acts)?;
        Ok(finite.then_some(losses))
    }

    /// From the mel error to the gradient of the encoded symbols, in `acts.d_encoded`.
    fn backward_decoder(
        &mut self,
        ctx: &StepContext<'_>,
        pieces: Pieces,
        batch: &Batch,
        acts: &mut VoiceActivations,
    ) -> Result<bool, OptimError> {
        let (isa, n, c) = (ctx.isa, batch.n_frames(), self.shape.width);
        let ws = &mut acts.workspace;
        // The gradient of an absolute value is a sign; it takes the place of the prediction.
        let d_mel = &mut acts.predicted[..n * MEL_BANDS];
        let (std, factor) = (self.mel_std.values(), 1.0 / (n * MEL_BANDS) as f32);
        d_mel
            .par_chunks_mut(MEL_BANDS)
            .zip(batch.mel.par_chunks(MEL_BANDS))
            .for_each(|(row, target)| {
                for ((value, target), std) in row.iter_mut().zip(target).zip(std) {
                    let error = *value - target;
                    let sign = f32::from(i8::from(error > 0.0) - i8::from(error < 0.0));
                    *value = sign * std * factor;
                }
            });
        let d_decoded = &mut acts.d_normed[..n * c];
        let decoded = &acts.decoded[..n * c];
        let mut finite =
            self.mel
                .backward(ctx, pieces, decoded, d_mel, d_decoded, &mut ws.linear)?;
        let d_stream = &mut acts.d_stream[..n * c];
        d_stream.fill(0.0);
        self.decoder_norm.backward(
            isa,
            pieces,
            d_decoded,
            &acts.decoder.output()[..n * c],
            &acts.decoded_stats,
            d_stream,
        );
        let attention = attention(&self.shape, self.rope.as_ref(), &batch.frame_lengths);
        finite &=
            acts.decoder
                .backward(ctx, &mut self.decoder, pieces, &attention, d_stream, ws)?;
        let places = &acts.places[..n * PLACE_FEATURES];
        // Nobody asks for the gradient of the places; the layer makes it all the same.
        let d_places = &mut acts.d_places[..n * PLACE_FEATURES];
        finite &= self
            .place
            .backward(ctx, pieces, places, d_stream, d_places, &mut ws.linear)?;
        let d_encoded = &mut acts.d_encoded[..batch.n_symbols() * c];
        acts.lengths.gather(isa, d_stream, c, d_encoded);
        Ok(finite)
    }

    /// From the duration error, added to the gradient of the encoded symbols.
    fn backward_duration(
        &mut self,
        ctx: &StepContext<'_>,
        pieces: Pieces,
        batch: &Batch,
        weight: f32,
        acts: &mut VoiceActivations,
    ) -> Result<bool, OptimError> {
        let (isa, s, c) = (ctx.isa, batch.n_symbols(), self.shape.width);
        let linear = &mut acts.workspace.linear;
        let [first, second, last] = &mut self.duration;
        let p = first.weight.rows();
        let lengths = &batch.symbol_lengths;
        let d = &mut acts.duration;
        let factor = 2.0 * weight / s as f32;
        for (value, &frames) in d.predicted.iter_mut().zip(&batch.frames) {
            *value = factor * (*value - log_duration(frames));
        }
        let (d_hidden, d_wide) = (&mut d.d_hidden[..s * p], &mut d.d_wide);
        let predicted = &d.predicted[..s];
        let mut finite = last.backward(
            ctx,
            pieces,
            &d.hidden[1][..s * p],
            predicted,
            d_hidden,
            linear,
        )?;
        kernels::gelu_backward(isa, &d.up[1][..s * p], d_hidden);
        let wide = s * NEIGHBOURS * p;
        let d_second = &mut d_wide[..wide];
        finite &= second.backward(ctx, pieces, &d.wide[1][..wide], d_hidden, d_second, linear)?;
        with_neighbours_backward(isa, d_second, p, lengths, d_hidden, false);
        kernels::gelu_backward(isa, &d.up[0][..s * p], d_hidden);
        let wide = s * NEIGHBOURS * c;
        let d_first = &mut d_wide[..wide];
        finite &= first.backward(ctx, pieces, &d.wide[0][..wide], d_hidden, d_first, linear)?;
        let d_encoded = &mut acts.d_encoded[..s * c];
        with_neighbours_backward(isa, d_first, c, lengths, d_encoded, true);
        Ok(finite)
    }

    /// From the gradient of the encoded symbols to votes of the encoder and the embedding.
    fn backward_encoder(
        &mut self,
        ctx: &StepContext<'_>,
        pieces: Pieces,
        batch: &Batch,
        acts: &mut VoiceActivations,
    ) -> Result<bool, OptimError> {
        let (isa, s, c) = (ctx.isa, batch.n_symbols(), self.shape.width);
        let ws = &mut acts.workspace;
        let d_stream = &mut acts.d_stream[..s * c];
        d_stream.fill(0.0);
        self.encoder_norm.backward(
            isa,
            pieces,
            &acts.d_encoded[..s * c],
            &acts.encoder.output()[..s * c],
            &acts.encoded_stats,
            d_stream,
        );
        let attention = attention(&self.shape, self.rope.as_ref(), &batch.symbol_lengths);
        let mut finite =
            acts.encoder
                .backward(ctx, &mut self.encoder, pieces, &attention, d_stream, ws)?;
        acts.index.build(&batch.symbols);
        let index = &acts.index;
        finite &=
            self.embedding
                .accumulate(ctx, pieces.first, 0..Symbol::COUNT, &|tile, grad| {
                    grad.fill(0.0);
                    for (symbol, out) in tile.zip(grad.chunks_exact_mut(c)) {
                        for row in index.rows_of(symbol) {
                            kernels::add(isa, &d_stream[row * c..][..c], out);
                        }
                    }
                })?;
        self.embedding.end_micro_batch(ctx);
        Ok(finite)
    }

    fn attention<'a>(&'a self, lengths: &'a [usize]) -> Attention<'a> {
        attention(&self.shape, self.rope.as_ref(), lengths)
    }
}

/// What the duration predictor learns.
fn log_duration(frames: u32) -> f32 {
    (1.0 + frames as f32).ln()
}

/// Every token of a sentence sees the whole of it.
fn attention<'a>(
    shape: &ModelShape,
    rope: Option<&'a Rope>,
    lengths: &'a [usize],
) -> Attention<'a> {
    Attention {
        shape: AttentionShape {
            causal: false,
            ..shape.attention(lengths.len(), 1)
        },
        rope,
        lengths,
    }
}

/// All rows as micro-batch `first`.
fn one_piece(first: u16, rows: usize) -> Pieces {
    Pieces {
        first,
        count: 1,
        piece_rows: rows,
        begins: true,
        ends: true,
    }
}

/// The residual stream through some blocks.
struct Stack {
    /// (rows, C) before every block and after the last.
    inputs: Vec<Vec<f32>>,
    kept: Vec<BlockActivations>,
}

impl Stack {
    fn new(blocks: usize, rows: usize, shape: &ModelShape) -> Self {
        Stack {
            inputs: vec![vec![0.0; rows * shape.width]; blocks + 1],
            kept: (0..blocks)
                .map(|_| BlockActivations::new(rows, shape))
                .collect(),
        }
    }

    fn output(&self) -> &[f32] {
        self.inputs.last().map_or(&[], Vec::as_slice)
    }

    fn forward(
        &mut self,
        isa: Isa,
        blocks: &[Block],
        pieces: Pieces,
        attention: &Attention<'_>,
        ws: &mut Workspace,
    ) {
        for (layer, (block, kept)) in blocks.iter().zip(&mut self.kept).enumerate() {
            let (before, after) = self.inputs.split_at_mut(layer + 1);
            let len = pieces.rows() * block.down.weight.rows();
            let (x, y) = (&before[layer][..len], &mut after[0][..len]);
            block.forward(isa, pieces, attention, x, kept, Some(y), ws);
        }
    }

    /// Turns `dx` from the gradient of the output into that of the input.
    fn backward(
        &mut self,
        ctx: &StepContext<'_>,
        blocks: &mut [Block],
        pieces: Pieces,
        attention: &Attention<'_>,
        dx: &mut [f32],
        ws: &mut Workspace,
    ) -> Result<bool, OptimError> {
        let layers = blocks.iter_mut().zip(&self.inputs).zip(&mut self.kept);
        let mut finite = true;
        for ((block, x), kept) in layers.rev() {
            ws.linear.rewind();
            let x = &x[..dx.len()];
            finite &= block.backward(ctx, pieces, attention, x, kept, dx, ws)?;
        }
        Ok(finite)
    }
}

/// The duration predictor's part of the activations; rows are symbols.
struct DurationActivations {
    /// What enters the two wide layers.
    wide: [Vec<f32>; 2],
    /// (S, P) before the activation functions, and after.
    up: [Vec<f32>; 2],
    hidden: [Vec<f32>; 2],
    /// (S) log durations, in the backward pass their gradient.
    predicted: Vec<f32>,
    d_hidden: Vec<f32>,
    d_wide: Vec<f32>,
}

/// Every buffer of a forward and backward pass.
pub(crate) struct VoiceActivations {
    encoder: Stack,
    decoder: Stack,
    workspace: Workspace,
    /// (S, C).
    encoded: Vec<f32>,
    encoded_stats: NormStats,
    duration: DurationActivations,
    lengths: Lengths,
    /// (N, 12).
    places: Vec<f32>,
    d_places: Vec<f32>,
    /// (N, C).
    decoded: Vec<f32>,
    decoded_stats: NormStats,
    /// (N, 80), in the backward pass its gradient.
    predicted: Vec<f32>,
    /// (N).
    row_losses: Vec<f32>,
    /// (N, C), (max(N, S), C), (S, C).
    d_normed: Vec<f32>,
    d_stream: Vec<f32>,
    d_encoded: Vec<f32>,
    index: TokenIndex,
}

impl VoiceActivations {
    /// Buffers for batches of up to `sizes`.
    pub(crate) fn new(
        model: &AcousticModel,
        sizes: Sizes,
        compute: Compute,
        training: bool,
    ) -> Self {
        let (s, n) = (sizes.symbols, sizes.frames);
        let shape = &model.shape;
        let (c, p) = (shape.width, model.duration[0].weight.rows());
        let rows = s.max(n);
        let back = |len: usize| vec![0.0; if training { len } else { 0 }];
        VoiceActivations {
            encoder: Stack::new(model.encoder.len(), s, shape),
            decoder: Stack::new(model.decoder.len(), n, shape),
            workspace: Workspace::new(rows, shape, compute, training, false),
            encoded: vec![0.0; s * c],
            encoded_stats: NormStats::new(s),
            duration: DurationActivations {
                wide: [vec![0.0; s * NEIGHBOURS * c], vec![0.0; s * NEIGHBOURS * p]],
                up: [vec![0.0; s * p], vec![0.0; s * p]],
                hidden: [vec![0.0; s * p], vec![0.0; s * p]],
                predicted: vec![0.0; s],
                d_hidden: back(s * p),
                d_wide: back(s * NEIGHBOURS * c.max(p)),
            },
            lengths: Lengths::default(),
            places: vec![0.0; n * PLACE_FEATURES],
            d_places: back(n * PLACE_FEATURES),
            decoded: vec![0.0; n * c],
            decoded_stats: NormStats::new(n),
            predicted: vec![0.0; n * MEL_BANDS],
            row_losses: vec![0.0; n],
            d_normed: back(n * c),
            d_stream: back(rows * c),
            d_encoded: back(s * c),
            index: TokenIndex::new(s, Symbol::COUNT),
        }
    }

    /// (S) log(1 + frames), as predicted.
    pub(crate) fn log_durations(&self, symbols: usize) -> &[f32] {
        &self.duration.predicted[..symbols]
    }

    /// (N, 80) the spectrogram.
    pub(crate) fn mel(&self, frames: usize) -> &[f32] {
        &self.predicted[..frames * MEL_BANDS]
    }
}

impl Parameters for AcousticModel {
    fn params(&self) -> Vec<Param<'_>> {
        let mut params = vec![Param::Matrix(&self.embedding)];
        self.encoder.iter().for_each(|it| it.params(&mut params));
        self.encoder_norm.params(&mut params);
        self.duration.iter().for_each(|it| it.params(&mut params));
        self.place.params(&mut params);
        self.decoder.iter().for_each(|it| it.params(&mut params));
        self.decoder_norm.params(&mut params);
        self.mel.params(&mut params);
        params.push(Param::Vector(&self.mel_std));
        params.push(Param::Vector(&self.mel_mean));
        params
    }

    fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>)) {
        each(ParamMut::Matrix(&mut self.embedding));
        self.encoder.iter_mut().for_each(|it| it.for_each_mut(each));
        self.encoder_norm.for_each_mut(each);
        self.duration
            .iter_mut()
            .for_each(|it| it.for_each_mut(each));
        self.place.for_each_mut(each);
        self.decoder.iter_mut().for_each(|it| it.for_each_mut(each));
        self.decoder_norm.for_each_mut(each);
        self.mel.for_each_mut(each);
        each(ParamMut::Vector(&mut self.mel_std));
        each(ParamMut::Vector(&mut self.mel_mean));
    }
}
