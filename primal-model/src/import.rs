//! Import: a model of another tool becomes a checkpoint of ours, tensor by tensor.
//!
//! Without calibration one tensor is in memory at a time, beside the result. With calibration the
//! blocks are built in order: a block's float weights are read, the calibration tokens run through
//! it, what enters each matrix is summed up, the matrices are quantised, and the tokens run on
//! through the quantised block: later blocks are calibrated on what they will really see. That
//! takes the residual stream of the calibration tokens and one float block besides.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use primal_kernels::{Isa, add, fill_rows};
use primal_lut::Grid;
use primal_optim::{FloatVector, Weight};
use serde::Serialize;

use crate::block::{Attention, Block, BlockActivations, Workspace};
use crate::build::{self, Built, Source};
use crate::checkpoint::{Checkpoint, Position};
use crate::config::{Compute, Config, FloatPart};
use crate::error::ModelError;
use crate::foreign::ForeignModel;
use crate::layers::{Norm, NormStats, Pieces};
use crate::quantise::{Factors, InputMoments, Inputs, Rounding, TensorReport, quantise};
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
    config.validate()?;
    let shape = ModelShape::new(&config, tokenizer.vocab_size())?;

    let calibration = calibration(isa, &config, &shape, &tokenizer, options)?;
    let calibration_tokens = calibration.as_ref().map_or(0, |it| it.tokens.len());
    let mut importer = Importer {
        isa,
        foreign: &mut foreign,
        config: &config,
        calibration,
        inputs: HashMap::new(),
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
    let per_pass = (PASS_TOKENS / time).clamp(1, sequences);
    Ok(Some(Calibration {
        isa,
        rounding,
        shape: *shape,
        rope: Rope::new(&config.model, shape),
        time,
        stream: vec![0.0; tokens.len() * shape.width],
        tokens,
        kept: BlockActivations::new(per_pass * time, shape),
        workspace: Workspace::new(per_pass * time, shape, Compute::Float, false, false),
        pass_rows: per_pass * time,
    }))
}

/// The calibration tokens on their way through the model.
struct Calibration {
    isa: Isa,
    rounding: Rounding,
    shape: ModelShape,
    rope: Option<Rope>,
    /// Tokens of a sequence.
    time: usize,
    /// (sequences, time).
    tokens: Vec<u32>,
    /// (sequences · time, C), the residual stream before the next block.
    stream: Vec<f32>,
    kept: BlockActivations,
    workspace: Workspace,
    /// Rows of the stream that run through a block at once.
    pass_rows: usize,
}

/// What enters a matrix, in the form that the rounding takes.
enum Known {
    Moments(InputMoments),
    Factors(Factors),
}

impl Known {
    fn new(moments: InputMoments, rounding: Rounding) -> Result<Known, ModelError> {
        Ok(match rounding {
            Rounding::Nearest => Known::Moments(moments),
            Rounding::Compensated => Known::Factors(moments.factors()?),
        })
    }

    fn inputs(&self) -> Inputs<'_> {
        match self {
            Known::Moments(moments) => Inputs::Moments(moments),
            Known::Factors(factors) => Inputs::Factors(factors),
        }
    }
}

impl Calibration {
    /// The stream of the embedded tokens.
    fn embed(&mut self, tokens: &Weight, positions: Option<&Weight>) {
        let c = self.shape.width;
        let mut place = vec![0.0; c];
        for (index, row) in self.stream.chunks_exact_mut(c).enumerate() {
            let token = self.tokens[index] as usize;
            fill_rows(self.isa, tokens, token..token + 1, row);
            if let Some(positions) = positions {
                let at = index % self.time;
                fill_rows(self.isa, positions, at..at + 1, &mut place);
                add(self.isa, &place, row);
            }
        }
    }

    /// What enters qkv, attention_out, up and down of `block` on the stream as it stands.
    fn moments(&mut self, block: &Block) -> [InputMoments; 4] {
        let mut moments = self
            .shape
            .block_matrices()
            .map(|(_, cols)| InputMoments::new(cols));
        let (isa, width) = (self.isa, self.shape.width);
        self.for_each_pass(block, |stream, _, kept, workspace| {
            let rows = stream.len() / width;
            block.matrix_inputs(isa, rows, stream, kept, workspace, &mut |which, x| {
                moments[which].add(x);
            });
        });
        moments
    }

    /// Runs the stream through a block.
    fn advance(&mut self, block: &Block) {
        self.for_each_pass(block, |stream, out, _, _| stream.copy_from_slice(out));
    }

    /// Runs `block` over the stream, a pass at a time. `each` gets a pass of the stream, what the
    /// block made of it, and the buffers as the block left them.
    fn for_each_pass(
        &mut self,
        block: &Block,
        mut each: impl FnMut(&mut [f32], &[f32], &mut BlockActivations, &mut Workspace),
    ) {
        let pass_len = self.pass_rows * self.shape.width;
        let mut out = vec![0.0; pass_len];
        for stream in self.stream.chunks_mut(pass_len) {
            let out = &mut out[..stream.len()];
            let (pieces, attention) =
                pass(&self.shape, self.rope.as_ref(), self.time, stream.len());
            let (kept, workspace) = (&mut self.kept, &mut self.workspace);
            block.forward(
                self.isa,
                pieces,
                &attention,
                stream,
                kept,
                Some(&mut *out),
                workspace,
            );
            each(stream, out, kept, workspace);
        }
    }

    /// What enters the head.
    fn head_moments(&self, norm: &Norm) -> InputMoments {
        let mut moments = InputMoments::new(self.shape.width);
        let pass = self.pass_rows * self.shape.width;
        let mut normed = vec![0.0; pass];
        let mut stats = NormStats::new(self.pass_rows);
        for stream in self.stream.chunks(pass) {
            let normed = &mut normed[..stream.len()];
            norm.forward(self.isa, stream, normed, &mut stats);
            moments.add(normed);
        }
        moments
    }
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
    /// By the name of the matrix, for the block at hand.
    inputs: HashMap<String, Known>,
    tensors: Vec<TensorReport>,
    on_tensor: &'a mut dyn FnMut(&TensorReport),
}

impl Importer<'_> {
    /// Calibrates the matrices of the next block, or the head behind the last one.
    fn prepare(&mut self, layer: usize) -> Result<(), ModelError> {
        self.inputs.clear();
        let shape = *self.foreign.shape();
        let m = &self.config.model;
        let Some(calibration) = &mut self.calibration else {
            return Ok(());
        };
        let mut floats = Floats(self.foreign);
        if layer < shape.n_layer {
            let grid = &Grid::prime();
            let block = build::block(self.config, &shape, layer, &mut floats, grid)?;
            let names = ["qkv", "attention_out", "up", "down"];
            for (name, moments) in names.into_iter().zip(calibration.moments(&block)) {
                let known = Known::new(moments, calibration.rounding)?;
                self.inputs.insert(format!("blocks.{layer}.{name}"), known);
            }
        } else if !shape.tie_head && !m.is_float(FloatPart::Head) {
            let norm = Norm::new(m, "norm", &mut |name, len, initial| {
                floats.vector(name, len, initial)
            })?;
            let known = Known::new(calibration.head_moments(&norm), calibration.rounding)?;
            self.inputs.insert("head".to_owned(), known);
        }
        Ok(())
    }
}

impl Source for Importer<'_> {
    fn matrix(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        _std: f32,
        grid: &Grid,
        part: FloatPart,
    ) -> Result<Weight, ModelError> {
        let values = self.foreign.parameter(name, rows, Some(cols))?;
        if self.config.model.is_float(part) {
            return Ok(Weight::from_dense(name, rows, cols, values));
        }
        let known = self.inputs.remove(name);
        let inputs = known.as_ref().map_or(Inputs::Unknown, Known::inputs);
        let group = self.config.model.group;
        let (matrix, report) =
            quantise(self.isa, name, (rows, cols), &values, grid, group, inputs)?;
        (self.on_tensor)(&report);
        self.tensors.push(report);
        Ok(Weight::from_quant(name, matrix))
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

    fn built(&mut self, part: Built<'_>) -> Result<(), ModelError> {
        let Some(calibration) = &mut self.calibration else {
            return Ok(());
        };
        match part {
            Built::Embeddings(tokens, positions) => {
                calibration.embed(tokens, positions);
                self.prepare(0)
            }
            Built::Block(layer, block) => {
                calibration.advance(block);
                self.prepare(layer + 1)
            }
        }
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
        _part: FloatPart,
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
