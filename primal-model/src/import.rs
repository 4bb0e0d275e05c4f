//! Import: a model of another tool becomes a checkpoint of ours, tensor by tensor.
//!
//! Without calibration one tensor is in memory at a time, beside the result. With calibration the
//! blocks are built in order: a block's float weights are read, the calibration tokens run through
//! it, what enters each matrix is summed up, the matrices are quantised, and the tokens run on
//! through the quantised block: later blocks are calibrated on what they will really see. That
//! takes the residual stream of the calibration tokens and one float block besides.

use std::path::{Path, PathBuf};

use primal_kernels::{Isa, add, add_scaled, fill_rows, scale, sum_squares};
use primal_lut::Grid;
use primal_optim::{FloatVector, Weight};
use serde::Serialize;

use crate::block::{Attention, Block, BlockActivations, Half, Workspace};
use crate::build::{self, Place, Source};
use crate::checkpoint::{Checkpoint, Position};
use crate::config::{Compute, Config, FloatPart};
use crate::error::ModelError;
use crate::foreign::ForeignModel;
use crate::layers::{Norm, NormStats, Pieces};
use crate::quantise::{Compensation, Factors, Inputs, Products, Rounding, TensorReport, quantise};
use crate::rope::Rope;
use crate::shape::ModelShape;
use crate::tokenizer::Tokenizer;

/// Tokens of a calibration sequence, at most the context.
const CALIBRATION_TIME: usize = 512;
/// Tokens that run through a block at once.
const PASS_TOKENS: usize = 4096;

/// How a model is imported.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// The grid of every matrix.
    pub grid: Grid,
    /// Columns that share a scale; 0 is a row.
    pub group: usize,
    /// How weights are rounded; `None` is compensated where there is a calibration text.
    pub rounding: Option<Rounding>,
    /// Text whose activations say which errors matter.
    pub calibration: Option<String>,
    /// Tokens taken of it, at most.
    pub calibration_tokens: usize,
    /// Parts that keep their float values.
    pub float_parts: Vec<FloatPart>,
    /// A shorter context than the model's.
    pub context: Option<usize>,
}

/// What an import did.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// Weights of all matrices.
    pub weights: u64,
    /// Bytes of the model for inference.
    pub model_bytes: u64,
    /// Tokens that it was calibrated on.
    pub calibration_tokens: usize,
    /// What the file says and is read otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Every matrix that was quantised.
    pub tensors: Vec<TensorReport>,
}

/// Imports the model at `from` into the folder `out`; `on_tensor` hears of each matrix.
///
/// # Errors
/// What [`ForeignModel::open`] refuses; [`ModelError::RunExists`] for a folder that holds a model;
/// [`ModelError::Quantise`] for compensated rounding without a calibration text.
pub fn import(
    isa: Isa,
    from: &Path,
    out: &Path,
    options: &ImportOptions,
    on_tensor: &mut dyn FnMut(&TensorReport),
) -> Result<ImportReport, ModelError> {
    if out.is_dir() && Checkpoint::exists(out) {
        return Err(ModelError::RunExists(out.to_path_buf()));
    }
    let mut foreign = ForeignModel::open(from, options.context)?;
    let tokenizer = foreign.tokenizer()?;
    let mut config = Config::default();
    config.model = foreign.config().clone();
    config.model.grid = options.grid.id().to_owned();
    config.model.group = options.group;
    config.model.float_parts.clone_from(&options.float_parts);
    config.data.tokenizer = "tokenizer.json".to_owned();
    config.train.run = out.to_path_buf();
    config.hold_one_window();
    config.validate()?;
    let shape = ModelShape::new(&config, tokenizer.vocab_size())?;

    let calibration = calibration(isa, &config, &shape, &tokenizer, options)?;
    let calibration_tokens = calibration.as_ref().map_or(0, |it| it.tokens.len());
    let mut importer = Importer {
        isa,
        foreign: &mut foreign,
        config: &config,
        calibration,
        pair: None,
        tensors: Vec::new(),
        on_tensor,
    };
    let model = build::build(&config, tokenizer.vocab_size(), &mut importer)?;
    let tensors = importer.tensors;
    let position = Position {
        vocab: shape.vocab,
        ..Position::default()
    };
    std::fs::create_dir_all(out).map_err(ModelError::io("create", out))?;
    let checkpoint = Checkpoint::save(out, &model, &tokenizer, &config, &position)?;
    Ok(ImportReport {
        checkpoint,
        weights: shape.matrix_weights(),
        model_bytes: model.allocated_bytes(),
        calibration_tokens,
        notes: foreign.notes().to_vec(),
        tensors,
    })
}

/// The start of a calibration, if there is a text.
fn calibration(
    isa: Isa,
    config: &Config,
    shape: &ModelShape,
    tokenizer: &Tokenizer,
    options: &ImportOptions,
) -> Result<Option<Calibration>, ModelError> {
    let rounding = match (&options.calibration, options.rounding) {
        (None, Some(Rounding::Compensated)) => {
            let reason = "compensated rounding needs a calibration text; hint: --calibrate FILE";
            return Err(ModelError::Quantise(reason.to_owned()));
        }
        (None, _) => return Ok(None),
        (Some(_), rounding) => rounding.unwrap_or(Rounding::Compensated),
    };
    let text = options.calibration.as_deref().unwrap_or_default();
    let mut tokens = tokenizer.encode(text)?;
    let time = CALIBRATION_TIME.min(shape.context).min(tokens.len());
    if time == 0 {
        return Err(ModelError::Quantise(
            "the calibration text holds no token".to_owned(),
        ));
    }
    let sequences = (tokens.len() / time).min((options.calibration_tokens / time).max(1));
    tokens.truncate(sequences * time);
    let pass_rows = (PASS_TOKENS / time).clamp(1, sequences) * time;
    let stream = vec![0.0; tokens.len() * shape.width];
    Ok(Some(Calibration {
        isa,
        rounding,
        shape: *shape,
        rope: Rope::new(&config.model, shape),
        time,
        exact: stream.clone(),
        rounded: stream,
        tokens,
        pass_rows,
        buffers: [(); 2].map(|()| PassBuffers::new(pass_rows, shape)),
    }))
}

/// The calibration tokens on their way through the model, as it was and as it is rounded.
struct Calibration {
    isa: Isa,
    rounding: Rounding,
    shape: ModelShape,
    rope: Option<Rope>,
    /// Tokens of a sequence.
    time: usize,
    /// (sequences, time).
    tokens: Vec<u32>,
    /// (sequences · time, C), the residual stream before the next half of a block, in float.
    exact: Vec<f32>,
    /// The same of the rounded model.
    rounded: Vec<f32>,
    /// Rows of a stream that run through a block at once.
    pass_rows: usize,
    /// Of the exact stream and of the rounded one.
    buffers: [PassBuffers; 2],
}

/// What a pass through half a block needs.
struct PassBuffers {
    /// (rows, C).
    normed: Vec<f32>,
    stats: NormStats,
    /// (rows, widest input of a matrix).
    inputs: Vec<f32>,
    kept: BlockActivations,
    workspace: Workspace,
}

impl PassBuffers {
    fn new(rows: usize, shape: &ModelShape) -> PassBuffers {
        let widest = shape.block_matrices().iter().fold(0, |w, m| w.max(m.1));
        PassBuffers {
            normed: vec![0.0; rows * shape.width],
            stats: NormStats::new(rows),
            inputs: vec![0.0; rows * widest],
            kept: BlockActivations::new(rows, shape),
            workspace: Workspace::new(rows, shape, Compute::Float, false, false),
        }
    }
}

/// A block at hand: as it was, and with the matrices that are rounded already.
struct Pair {
    exact: Block,
    rounded: Block,
}

/// What enters a matrix, in the form that the rounding takes.
enum Known {
    Moments(Products),
    Compensate(Compensation),
}

impl Known {
    fn inputs(&self) -> Inputs<'_> {
        match self {
            Known::Moments(moments) => Inputs::Moments(moments),
            Known::Compensate(compensation) => Inputs::Compensate(compensation),
        }
    }
}

impl Calibration {
    /// Adds the rows of `table` (…, C) that the tokens, or their places, look up to a stream.
    fn embed(&mut self, table: &Weight, of_places: bool, exact: bool) {
        let c = self.shape.width;
        let stream = if exact {
            &mut self.exact
        } else {
            &mut self.rounded
        };
        let mut found = vec![0.0; c];
        for (index, row) in stream.chunks_exact_mut(c).enumerate() {
            let place = match of_places {
                true => index % self.time,
                false => self.tokens[index] as usize,
            };
            fill_rows(self.isa, table, place..place + 1, &mut found);
            add(self.isa, &found, row);
        }
    }

    /// What is known of the first matrix behind a norm.
    fn first(&mut self, norm: &Norm) -> Result<Known, ModelError> {
        let c = self.shape.width;
        let (mut moments, mut shift) = (Products::new(c, c), Products::new(c, c));
        let pass = self.pass_rows * c;
        for (exact, rounded) in self.exact.chunks(pass).zip(self.rounded.chunks(pass)) {
            let [e, r] = &mut self.buffers;
            let (x, y) = (&mut e.normed[..exact.len()], &mut r.normed[..exact.len()]);
            norm.forward(self.isa, exact, x, &mut e.stats);
            norm.forward(self.isa, rounded, y, &mut r.stats);
            moments.add(y, y);
            if self.rounding == Rounding::Compensated {
                add_scaled(self.isa, -1.0, y, x);
                shift.add(x, y);
            }
        }
        self.known(moments, shift, None)
    }

    /// What is known of the second matrix of a half. Errors count relative to the stream that they
    /// are added to, which the next norm scales.
    fn second(&mut self, pair: &Pair, half: Half) -> Result<Known, ModelError> {
        let (isa, c) = (self.isa, self.shape.width);
        let k = pair.exact.second(half).weight.cols();
        let (mut moments, mut shift) = (Products::new(k, k), Products::new(k, k));
        let mut outputs = Products::new(c, k);
        let pass_len = self.pass_rows * c;
        let streams = self
            .exact
            .chunks(pass_len)
            .zip(self.rounded.chunks(pass_len));
        for (exact, rounded) in streams {
            let rows = exact.len() / c;
            let (pieces, attention) = pass(&self.shape, self.rope.as_ref(), self.time, exact.len());
            let [e, r] = &mut self.buffers;
            for (block, stream, to) in [(&pair.exact, exact, &mut *e), (&pair.rounded, rounded, r)]
            {
                let (kept, workspace) = (&mut to.kept, &mut to.workspace);
                let inputs =
                    block.second_input(isa, half, pieces, &attention, stream, kept, workspace);
                to.inputs[..inputs.len()].copy_from_slice(inputs);
            }
            let (x, y) = (&mut e.inputs[..rows * k], &mut r.inputs[..rows * k]);
            let (sum, difference) = (&mut e.normed[..rows * c], &mut r.normed[..rows * c]);
            sum.copy_from_slice(exact);
            let second = pair.exact.second(half);
            second.forward(isa, pieces, x, sum, true, &mut e.workspace.linear);
            difference.copy_from_slice(exact);
            add_scaled(isa, -1.0, rounded, difference);
            add_scaled(isa, -1.0, y, x);
            for (row, sum) in sum.chunks_exact(c).enumerate() {
                let weight = 1.0 / root_mean_square(isa, sum);
                scale(isa, &mut x[row * k..][..k], weight);
                scale(isa, &mut y[row * k..][..k], weight);
                scale(isa, &mut difference[row * c..][..c], weight);
            }
            moments.add(y, y);
            if self.rounding == Rounding::Compensated {
                shift.add(x, y);
                outputs.add(difference, y);
            }
        }
        self.known(moments, shift, Some(outputs))
    }

    fn known(
        &self,
        moments: Products,
        inputs: Products,
        outputs: Option<Products>,
    ) -> Result<Known, ModelError> {
        Ok(match self.rounding {
            Rounding::Nearest => Known::Moments(moments),
            Rounding::Compensated => Known::Compensate(Compensation {
                factors: Factors::new(moments)?,
                inputs: Some(inputs),
                outputs,
            }),
        })
    }

    /// Runs both streams through half a block.
    fn advance(&mut self, pair: &Pair, half: Half) {
        let (isa, pass_len) = (self.isa, self.pass_rows * self.shape.width);
        let streams = [
            (&pair.exact, &mut self.exact),
            (&pair.rounded, &mut self.rounded),
        ];
        for ((block, stream), buffers) in streams.into_iter().zip(&mut self.buffers) {
            for stream in stream.chunks_mut(pass_len) {
                let (pieces, attention) =
                    pass(&self.shape, self.rope.as_ref(), self.time, stream.len());
                let (kept, workspace) = (&mut buffers.kept, &mut buffers.workspace);
                let inputs =
                    block.second_input(isa, half, pieces, &attention, stream, kept, workspace);
                let inputs_kept = &mut buffers.inputs[..inputs.len()];
                inputs_kept.copy_from_slice(inputs);
                let linear = &mut buffers.workspace.linear;
                let second = block.second(half);
                second.forward(isa, pieces, inputs_kept, stream, true, linear);
            }
        }
    }
}

fn root_mean_square(isa: Isa, x: &[f32]) -> f32 {
    let mean = sum_squares(isa, x) / x.len() as f64;
    (mean as f32).max(f32::MIN_POSITIVE).sqrt()
}

/// A pass over `len` elements of the stream.
fn pass<'a>(
    shape: &ModelShape,
    rope: Option<&'a Rope>,
    time: usize,
    len: usize,
) -> (Pieces, Attention<'a>) {
    let rows = len / shape.width;
    let pieces = Pieces {
        first: 0,
        count: 1,
        piece_rows: rows,
        begins: true,
        ends: true,
    };
    let attention = Attention {
        shape: shape.attention(rows / time, time),
        rope,
        lengths: &[],
    };
    (pieces, attention)
}

/// The foreign parameters, quantised on the way.
struct Importer<'a> {
    isa: Isa,
    foreign: &'a mut ForeignModel,
    config: &'a Config,
    calibration: Option<Calibration>,
    /// The block at hand.
    pair: Option<Pair>,
    tensors: Vec<TensorReport>,
    on_tensor: &'a mut dyn FnMut(&TensorReport),
}

impl Importer<'_> {
    /// What is known of the inputs of the matrix `name`, the next one in the order of the model.
    fn known(&mut self, name: &str) -> Result<Option<Known>, ModelError> {
        let shape = *self.foreign.shape();
        let Some(calibration) = &mut self.calibration else {
            return Ok(None);
        };
        let mut floats = Floats(self.foreign);
        if name == "head" {
            let norm = Norm::new(&self.config.model, "norm", &mut |name, len, initial| {
                floats.vector(name, len, initial)
            })?;
            return calibration.first(&norm).map(Some);
        }
        let Some((layer, part)) = block_matrix(name) else {
            return Ok(None);
        };
        if part == "qkv" {
            let block = build::block(self.config, &shape, layer, &mut floats, &Grid::prime())?;
            self.pair = Some(Pair {
                rounded: block.clone(),
                exact: block,
            });
        }
        let Some(pair) = &self.pair else {
            return Ok(None);
        };
        let known = match part {
            "qkv" => calibration.first(pair.exact.norm(Half::Attention)),
            "attention_out" => calibration.second(pair, Half::Attention),
            "up" => calibration.first(pair.exact.norm(Half::FeedForward)),
            _ => calibration.second(pair, Half::FeedForward),
        };
        known.map(Some)
    }

    /// Hears of a matrix as it is kept, before the next one.
    fn made(&mut self, name: &str, weight: &Weight) {
        let Some(calibration) = &mut self.calibration else {
            return;
        };
        match name {
            "tok_embedding" => return calibration.embed(weight, false, false),
            "pos_embedding" => return calibration.embed(weight, true, false),
            _ => {}
        }
        let (Some(pair), Some((_, part))) = (&mut self.pair, block_matrix(name)) else {
            return;
        };
        let place = match part {
            "qkv" => &mut pair.rounded.qkv,
            "attention_out" => &mut pair.rounded.attention_out,
            "up" => &mut pair.rounded.up,
            _ => &mut pair.rounded.down,
        };
        place.weight = weight.clone();
        match part {
            "attention_out" => calibration.advance(pair, Half::Attention),
            "down" => calibration.advance(pair, Half::FeedForward),
            _ => {}
        }
    }
}

/// The layer and the part of a matrix `blocks.LAYER.PART`.
fn block_matrix(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blocks.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

impl Source for Importer<'_> {
    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        _std: f32,
        grid: &Grid,
        place: Place<'_>,
    ) -> Result<Weight, ModelError> {
        let values = self.foreign.parameter(name, rows, Some(cols))?;
        let known = self.known(name)?;
        let is_embedding = place.part == FloatPart::Embeddings;
        if let (true, Some(calibration)) = (is_embedding, &mut self.calibration) {
            let table = Weight::from_dense(name, rows, cols, values.clone());
            calibration.embed(&table, name == "pos_embedding", true);
        }
        let weight = if self.config.model.is_float(place.part) {
            Weight::from_dense(name, rows, cols, values)
        } else {
            let inputs = known.as_ref().map_or(Inputs::Unknown, Known::inputs);
            let group = self.config.model.group;
            let (matrix, report) =
                quantise(self.isa, name, (rows, cols), &values, grid, group, inputs)?;
            (self.on_tensor)(&report);
            self.tensors.push(report);
            Weight::from_quant(name, matrix)
        };
        self.made(name, &weight);
        Ok(weight)
    }

    fn vector(
        &mut self,
        name: String,
        len: usize,
        _initial: f32,
    ) -> Result<FloatVector, ModelError> {
        let values = self.foreign.parameter(&name, len, None)?;
        Ok(FloatVector::new(name, values).without_training())
    }
}

/// The foreign parameters as they are.
struct Floats<'a>(&'a mut ForeignModel);

impl Source for Floats<'_> {
    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        _std: f32,
        _grid: &Grid,
        _place: Place<'_>,
    ) -> Result<Weight, ModelError> {
        let values = self.0.parameter(name, rows, Some(cols))?;
        Ok(Weight::from_dense(name, rows, cols, values))
    }

    fn vector(
        &mut self,
        name: String,
        len: usize,
        _initial: f32,
    ) -> Result<FloatVector, ModelError> {
        let values = self.0.parameter(&name, len, None)?;
        Ok(FloatVector::new(name, values).without_training())
    }
}
