//! The float part of the training state on the GPU, where each parameter lies in it, and the way
//! of all parameters there and back.

use std::collections::HashMap;
use std::sync::Arc;

use primal_kernels::cuda::{self, Buffer, CudaError, Device, VoteSlot, VoteSums};
use primal_optim::{CodeRule, FloatParts, StepContext, Weight, WeightParts, adam_step};

use super::Part;
use super::matrix::Matrix;
use crate::device_ledger::ARENA_ALIGNMENT;
use crate::error::ModelError;
use crate::layers::ParamMut;
use crate::model::Model;
use crate::parameters::Parameters;

/// Elements of one launch: kernels count in i32.
const LAUNCH: usize = 1 << 30;

/// Pieces of the squared gradient that the processor adds up together: 2^20 elements.
const SQUARES_CHUNK: usize = 256;

/// What AdamW treats alike, in the order of the arena.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Float matrices, and those behind codes.
    Matrix,
    /// Scales of codes.
    Scales,
    /// Norms and biases.
    Vector,
    /// Those that stay as they are; gradients are taken and never looked at.
    StillVector,
}

/// Where each parameter lies in the arena.
pub(super) struct Layout {
    /// Number of each matrix, by name.
    index: HashMap<String, usize>,
    /// Part of the arena, by name: a matrix's values or scales, a vector's values.
    parts: HashMap<String, Part>,
    /// The parts that learn in the order of the parameters, which is that of the gradient's norm.
    order: Vec<Part>,
    /// Matrices, scales, vectors.
    regions: [Part; 3],
    /// Rows and columns of all matrices that vote by rule `consensus`.
    pub(super) lines: usize,
    /// Elements of the arena.
    pub(super) floats: usize,
}

impl Layout {
    pub(super) fn of(model: &mut Model) -> Layout {
        let mut index = HashMap::new();
        let mut floats = Vec::new();
        let mut lines = 0;
        model.for_each_mut(&mut |mut param| {
            let name = name_of(&param);
            if let ParamMut::Matrix(weight) = &mut param {
                index.insert(name.clone(), index.len());
                lines += voting_lines(weight);
            }
            if let Some((kind, parts)) = float_parts(param) {
                floats.push((name, kind, parts.values.len()));
            }
        });
        let mut parts = HashMap::new();
        let mut end = 0;
        let mut place = |kind: Kind| {
            let start = end;
            for (name, _, len) in floats.iter().filter(|(_, it, _)| *it == kind) {
                parts.insert(name.clone(), end..end + len);
                end += len;
                if kind == Kind::Matrix {
                    end = end.next_multiple_of(ARENA_ALIGNMENT);
                }
            }
            start..end
        };
        let regions = [Kind::Matrix, Kind::Scales, Kind::Vector].map(&mut place);
        let floats_end = place(Kind::StillVector).end;
        let order = floats
            .iter()
            .filter(|(_, kind, _)| *kind != Kind::StillVector)
            .filter_map(|(name, _, _)| parts.get(name).cloned())
            .collect();
        Layout {
            index,
            order,
            regions,
            lines,
            floats: floats_end,
            parts,
        }
    }

    pub(super) fn matrices(&self) -> usize {
        self.index.len()
    }

    /// Number of the matrix.
    pub(super) fn matrix(&self, weight: &Weight) -> usize {
        self.index.get(weight.name()).copied().unwrap_or_default()
    }

    /// Its part of the arena; empty where there is none.
    pub(super) fn part(&self, name: &str) -> Part {
        self.parts.get(name).cloned().unwrap_or_default()
    }
}

/// Rows and columns of a matrix that votes by rule `consensus`, else 0.
fn voting_lines(weight: &mut Weight) -> usize {
    let lines = weight.rows() + weight.cols();
    match weight.parts_mut() {
        WeightParts::Codes {
            rule: CodeRule::Consensus(_),
            ..
        } => lines,
        _ => 0,
    }
}

fn name_of(param: &ParamMut<'_>) -> String {
    match param {
        ParamMut::Matrix(weight) => weight.name().to_string(),
        ParamMut::Vector(vector) => vector.name().to_string(),
    }
}

/// What AdamW moves of a parameter.
fn float_parts(param: ParamMut<'_>) -> Option<(Kind, FloatParts<'_>)> {
    match param {
        ParamMut::Vector(vector) if vector.is_still() => {
            Some((Kind::StillVector, vector.parts_mut()))
        }
        ParamMut::Vector(vector) => Some((Kind::Vector, vector.parts_mut())),
        ParamMut::Matrix(weight) => match weight.parts_mut() {
            WeightParts::Still | WeightParts::OnlyHere => None,
            WeightParts::Dense(parts) | WeightParts::Shadow { latent: parts, .. } => {
                Some((Kind::Matrix, parts))
            }
            WeightParts::Codes {
                matrix,
                scale_moments: (m, v),
                ..
            } => {
                let values = matrix.scales_mut();
                Some((Kind::Scales, FloatParts { values, m, v }))
            }
        },
    }
}

/// All float parameters with gradients and moments.
pub(super) struct FloatArena {
    pub(super) values: Arc<Buffer<f32>>,
    pub(super) grad: Buffer<f32>,
    m: Buffer<f32>,
    v: Buffer<f32>,
    /// Matrices, scales, vectors.
    regions: [Part; 3],
    /// Pieces of parameters whose squares are added up in f32, in the order of the parameters.
    starts: Buffer<u32>,
    lengths: Buffer<u32>,
    sums: Buffer<f32>,
    /// How many pieces each parameter has.
    pieces: Vec<usize>,
}

impl FloatArena {
    pub(super) fn upload(
        device: &Device,
        layout: &Layout,
        model: &mut Model,
    ) -> Result<Self, CudaError> {
        let what = "float parameters";
        if layout.floats > u32::MAX as usize {
            return Err(CudaError::Unsupported(format!(
                "{} float parameters; a GPU trains at most 2^32; hint: more matrices on the grid",
                layout.floats
            )));
        }
        let mut pieces = Vec::new();
        let (mut starts, mut lengths) = (Vec::new(), Vec::new());
        for part in &layout.order {
            let before = starts.len();
            for (start, length) in cuda::square_pieces(part.start, part.len()) {
                starts.push(start);
                lengths.push(length);
            }
            pieces.push(starts.len() - before);
        }
        let zeros = || Buffer::zeros(device, layout.floats, what);
        let arena = FloatArena {
            values: Arc::new(zeros()?),
            grad: zeros()?,
            m: zeros()?,
            v: zeros()?,
            regions: layout.regions.clone(),
            starts: Buffer::from_slice(device, &starts, what)?,
            lengths: Buffer::from_slice(device, &lengths, what)?,
            sums: Buffer::zeros(device, starts.len(), what)?,
            pieces,
        };
        for_each(model, &mut |param| {
            let part = layout.part(&name_of(&param));
            let Some((_, FloatParts { values, m, v })) = float_parts(param) else {
                return Ok(());
            };
            arena.values.view(part.clone()).upload(values)?;
            arena.m.view(part.clone()).upload(m)?;
            arena.v.view(part).upload(v)
        })?;
        Ok(arena)
    }

    fn download(&self, part: Part, to: FloatParts<'_>) -> Result<(), CudaError> {
        self.values.view(part.clone()).download(to.values)?;
        self.m.view(part.clone()).download(to.m)?;
        self.v.view(part).download(to.v)
    }

    /// The sum of the squared gradient, added up parameter by parameter as on the processor.
    pub(super) fn sum_squares(&self) -> Result<f64, CudaError> {
        cuda::sum_squares(
            self.grad.view(..),
            self.starts.view(..),
            self.lengths.view(..),
            self.sums.view(..),
        )?;
        let sums = self.sums.to_vec()?;
        let mut rest = sums.as_slice();
        let mut total = 0.0;
        for &count in &self.pieces {
            let (own, after) = rest.split_at(count);
            let chunks = own.chunks(SQUARES_CHUNK);
            total += chunks
                .map(|chunk| chunk.iter().map(|&sum| f64::from(sum)).sum::<f64>())
                .sum::<f64>();
            rest = after;
        }
        Ok(total)
    }

    /// One AdamW step of everything that learns; clears its gradient.
    pub(super) fn step(&self, ctx: &StepContext<'_>, grad_factor: f32) -> Result<(), CudaError> {
        let config = ctx.config;
        let lr = config.lr * ctx.rate;
        let numbers = [
            (lr, config.weight_decay),
            (lr * config.scale_lr_ratio, 0.0),
            (lr, 0.0),
        ];
        for (region, (rate, decay)) in self.regions.iter().zip(numbers) {
            let step = adam_step(ctx, rate, decay);
            for start in region.clone().step_by(LAUNCH) {
                let part = start..region.end.min(start + LAUNCH);
                cuda::adamw(
                    self.values.view(part.clone()),
                    self.grad.view(part.clone()),
                    (self.m.view(part.clone()), self.v.view(part)),
                    grad_factor,
                    &step,
                )?;
            }
        }
        Ok(())
    }

    pub(super) fn discard(&mut self) -> Result<(), CudaError> {
        self.grad.clear()
    }
}

/// Hands every parameter to `each` until one fails.
fn for_each(
    model: &mut Model,
    each: &mut dyn FnMut(ParamMut<'_>) -> Result<(), CudaError>,
) -> Result<(), CudaError> {
    let mut result = Ok(());
    model.for_each_mut(&mut |param| {
        if result.is_ok() {
            result = each(param);
        }
    });
    result
}

/// Copies every matrix to the GPU.
pub(super) fn upload_matrices(
    device: &Device,
    layout: &Layout,
    arena: &FloatArena,
    model: &mut Model,
    many_micro_batches: bool,
    sums: &Arc<VoteSums>,
) -> Result<Vec<Matrix>, CudaError> {
    let mut matrices = Vec::with_capacity(layout.matrices());
    let mut first_line = 0;
    for_each(model, &mut |param| {
        if let ParamMut::Matrix(weight) = param {
            let slot = VoteSlot {
                sums: Arc::clone(sums),
                matrix: matrices.len(),
                first_line,
            };
            first_line += voting_lines(weight);
            let many = many_micro_batches;
            matrices.push(Matrix::upload(device, layout, arena, weight, many, slot)?);
        }
        Ok(())
    })?;
    Ok(matrices)
}

/// Copies the whole state back to `model`.
pub(super) fn download(
    layout: &Layout,
    matrices: &[Matrix],
    arena: &FloatArena,
    model: &mut Model,
) -> Result<(), ModelError> {
    for_each(model, &mut |mut param| {
        let part = layout.part(&name_of(&param));
        if let ParamMut::Matrix(weight) = &mut param {
            matrices[layout.matrix(weight)].download(weight)?;
        }
        match float_parts(param) {
            Some((_, parts)) => arena.download(part, parts),
            None => Ok(()),
        }
    })?;
    Ok(())
}
