//! The training state on the GPU, and its way there and back.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use primal_kernels::AdamStep;
use primal_kernels::cuda::{
    self, BallotSizes, Ballots, Buffer, CudaError, Device, DeviceWeights, VoteSlot, VoteSums,
};
use primal_optim::Weight;

use super::Part;
use crate::error::ModelError;
use crate::layers::{Param, ParamMut};
use crate::model::Model;
use crate::parameters::Parameters;

/// Where each parameter lies. Scales of all matrices come first in the float arena, in the order
/// of the parameters, then norms and biases.
pub(super) struct Layout {
    /// Number of each matrix, by name.
    index: HashMap<String, usize>,
    /// Part of the arena: a matrix's scales, a vector's values.
    parts: HashMap<String, Part>,
    /// Names in the order of the parameters, which is that of the gradient's norm.
    order: Vec<String>,
    /// Rows and columns of all matrices.
    pub(super) lines: usize,
    /// Elements of the arena that are scales.
    pub(super) scales: usize,
    /// Elements of the arena.
    pub(super) floats: usize,
}

impl Layout {
    pub(super) fn of(model: &Model) -> Layout {
        let mut layout = Layout {
            index: HashMap::new(),
            parts: HashMap::new(),
            order: Vec::new(),
            lines: 0,
            scales: 0,
            floats: 0,
        };
        let params = model.params();
        for param in &params {
            if let Param::Matrix(weight) = param {
                let number = layout.index.len();
                layout.index.insert(weight.name().into(), number);
                layout.add(weight.name(), weight.rows());
                layout.lines += weight.rows() + weight.cols();
            }
        }
        layout.scales = layout.floats;
        for param in &params {
            if let Param::Vector(vector) = param {
                layout.add(vector.name(), vector.values().len());
            }
        }
        layout.order = params
            .iter()
            .map(|param| match param {
                Param::Matrix(weight) => weight.name().to_string(),
                Param::Vector(vector) => vector.name().to_string(),
            })
            .collect();
        layout
    }

    fn add(&mut self, name: &str, len: usize) {
        self.parts
            .insert(name.into(), self.floats..self.floats + len);
        self.floats += len;
    }

    pub(super) fn matrices(&self) -> usize {
        self.index.len()
    }

    /// Number of the matrix.
    pub(super) fn matrix(&self, weight: &Weight) -> usize {
        self.index.get(weight.name()).copied().unwrap_or_default()
    }

    /// Its part of the arena.
    pub(super) fn part(&self, name: &str) -> Part {
        self.parts.get(name).cloned().unwrap_or_default()
    }
}

/// One matrix with what trains it.
pub(super) struct Matrix {
    pub(super) weights: DeviceWeights,
    pub(super) ballots: Ballots,
    /// Its scales in the arena.
    pub(super) scales: Part,
    pub(super) tensor: u16,
    pub(super) quantum: f32,
    /// Updates of its statistics when it was copied.
    pub(super) updates: f32,
}

/// All float parameters with gradients and moments.
pub(super) struct FloatArena {
    pub(super) values: Arc<Buffer<f32>>,
    pub(super) grad: Buffer<f32>,
    m: Buffer<f32>,
    v: Buffer<f32>,
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
        let zeros = || vec![0.0_f32; layout.floats];
        let (mut values, mut m, mut v) = (zeros(), zeros(), zeros());
        model.for_each_mut(&mut |param| match param {
            ParamMut::Matrix(weight) => {
                let part = layout.part(weight.name());
                if let Some(parts) = weight.consensus_parts()
                    && parts.matrix.scales().len() == part.len()
                {
                    values[part.clone()].copy_from_slice(parts.matrix.scales());
                    m[part.clone()].copy_from_slice(parts.scale_m);
                    v[part].copy_from_slice(parts.scale_v);
                }
            }
            ParamMut::Vector(vector) => {
                let part = layout.part(vector.name());
                let (vector_values, vector_m, vector_v) = vector.parts_mut();
                values[part.clone()].copy_from_slice(vector_values);
                m[part.clone()].copy_from_slice(vector_m);
                v[part].copy_from_slice(vector_v);
            }
        });
        let mut pieces = Vec::new();
        let (mut starts, mut lengths) = (Vec::new(), Vec::new());
        for name in &layout.order {
            let part = layout.part(name);
            let before = starts.len();
            for (start, length) in cuda::square_pieces(part.start, part.len()) {
                starts.push(start);
                lengths.push(length);
            }
            pieces.push(starts.len() - before);
        }
        Ok(FloatArena {
            values: Arc::new(Buffer::from_slice(device, &values, what)?),
            grad: Buffer::zeros(device, layout.floats, what)?,
            m: Buffer::from_slice(device, &m, what)?,
            v: Buffer::from_slice(device, &v, what)?,
            starts: Buffer::from_slice(device, &starts, what)?,
            lengths: Buffer::from_slice(device, &lengths, what)?,
            sums: Buffer::zeros(device, starts.len(), what)?,
            pieces,
        })
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
            total += own.iter().map(|&sum| f64::from(sum)).sum::<f64>();
            rest = after;
        }
        Ok(total)
    }

    /// One AdamW step of a part; clears its gradient.
    pub(super) fn step(
        &self,
        part: Range<usize>,
        grad_factor: f32,
        step: &AdamStep,
    ) -> Result<(), CudaError> {
        cuda::adamw(
            self.values.view(part.clone()),
            self.grad.view(part.clone()),
            (self.m.view(part.clone()), self.v.view(part)),
            grad_factor,
            step,
        )
    }

    pub(super) fn discard(&mut self) -> Result<(), CudaError> {
        self.grad.clear()
    }
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
    let mut result = Ok(());
    model.for_each_mut(&mut |param| {
        if let (ParamMut::Matrix(weight), Ok(())) = (param, &result) {
            let slot = VoteSlot {
                sums: Arc::clone(sums),
                matrix: matrices.len(),
                first_line,
            };
            first_line += weight.rows() + weight.cols();
            match upload_matrix(device, layout, arena, weight, many_micro_batches, slot) {
                Ok(matrix) => matrices.extend(matrix),
                Err(error) => result = Err(error),
            }
        }
    });
    result.map(|()| matrices)
}

fn upload_matrix(
    device: &Device,
    layout: &Layout,
    arena: &FloatArena,
    weight: &mut Weight,
    many_micro_batches: bool,
    slot: VoteSlot,
) -> Result<Option<Matrix>, CudaError> {
    let name = weight.name().to_string();
    let scales = layout.part(&name);
    let (rows, cols, tensor) = (weight.rows(), weight.cols(), weight.tensor());
    let Some(parts) = weight.consensus_parts() else {
        return Ok(None);
    };
    if parts.matrix.groups_per_row() != 1 {
        return Err(CudaError::Unsupported(format!(
            "{name} has scales by group; a GPU trains one scale a row"
        )));
    }
    let values = Arc::clone(&arena.values);
    let weights = DeviceWeights::with_scales(device, parts.matrix, values, scales.start, &name)?;
    let sizes = BallotSizes {
        rows,
        cols,
        many_micro_batches,
    };
    let mut ballots = Ballots::new(device, sizes, parts.table, slot, &name)?;
    ballots.ballot.upload(parts.ballot)?;
    ballots.row_mean.upload(parts.row_mean)?;
    ballots.col_mean.upload(parts.col_mean)?;
    ballots.moments.upload(&parts.moments[..])?;
    Ok(Some(Matrix {
        weights,
        ballots,
        scales,
        tensor,
        quantum: parts.quantum,
        updates: parts.moments[2],
    }))
}

/// Copies the whole state back to `model`.
pub(super) fn download(
    layout: &Layout,
    matrices: &[Matrix],
    arena: &FloatArena,
    model: &mut Model,
) -> Result<(), ModelError> {
    let values = arena.values.to_vec()?;
    let (m, v) = (arena.m.to_vec()?, arena.v.to_vec()?);
    let mut result = Ok(());
    model.for_each_mut(&mut |param| match param {
        ParamMut::Matrix(weight) => {
            let part = layout.part(weight.name());
            let matrix = &matrices[layout.matrix(weight)];
            if let Some(parts) = weight.consensus_parts() {
                parts.scale_m.copy_from_slice(&m[part.clone()]);
                parts.scale_v.copy_from_slice(&v[part.clone()]);
                let ballots = &matrix.ballots;
                let mut copy = || {
                    let (nibbles, high, _) = parts.matrix.planes_mut();
                    matrix.weights.nibbles.download(nibbles)?;
                    if let Some(high) = high {
                        matrix.weights.high.download(high)?;
                    }
                    parts
                        .matrix
                        .scales_mut()
                        .copy_from_slice(&values[part.clone()]);
                    ballots.ballot.download(parts.ballot)?;
                    ballots.row_mean.download(parts.row_mean)?;
                    ballots.col_mean.download(parts.col_mean)?;
                    ballots.moments.download(&mut parts.moments[..])
                };
                if result.is_ok() {
                    result = copy();
                }
            }
        }
        ParamMut::Vector(vector) => {
            let part = layout.part(vector.name());
            let (vector_values, vector_m, vector_v) = vector.parts_mut();
            vector_values.copy_from_slice(&values[part.clone()]);
            vector_m.copy_from_slice(&m[part.clone()]);
            vector_v.copy_from_slice(&v[part]);
        }
    });
    Ok(result?)
}
