//! The parts a transformer is made of: norms and linear layers, forward and backward.

use std::ops::Range;

use primal_kernels as kernels;
use primal_kernels::{Isa, NormKind};
use primal_lut::TensorFile;
use primal_optim::{
    FloatVector, Footprint, OptimError, StatePart, StateVisitor, StepContext, Weight,
};

use crate::config::{self, ModelConfig};
use crate::error::ModelError;
use crate::scratch::LinearScratch;

/// The micro-batches of one pass: `pieces` of `piece_rows` token rows each, the first of them
/// being micro-batch `first` of the step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    pub(crate) first: u16,
    pub(crate) count: usize,
    pub(crate) piece_rows: usize,
    /// Whether the gradients of these rows are the first, and the last, of their micro-batches:
    /// a micro-batch may come in parts, which are then passes of one piece each.
    pub(crate) begins: bool,
    pub(crate) ends: bool,
}

impl Pieces {
    /// Token rows of the pass.
    pub(crate) fn rows(&self) -> usize {
        self.count * self.piece_rows
    }

    /// (micro-batch number, its token rows) in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, Range<usize>)> + use<> {
        let Pieces {
            first,
            count,
            piece_rows,
            ..
        } = *self;
        (0..count).map(move |i| (first + i as u16, i * piece_rows..(i + 1) * piece_rows))
    }
}

/// Layer or root-mean-square normalisation with a weight and an optional bias.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) kind: NormKind,
    pub(crate) eps: f32,
    pub(crate) weight: FloatVector,
    pub(crate) bias: Option<FloatVector>,
}

/// Mean and reciprocal standard deviation of each row, (n) f32 each.
pub(crate) struct NormStats {
    pub(crate) mean: Vec<f32>,
    pub(crate) rstd: Vec<f32>,
}

impl NormStats {
    pub(crate) fn new(rows: usize) -> Self {
        NormStats {
            mean: vec![0.0; rows],
            rstd: vec![0.0; rows],
        }
    }
}

impl Norm {
    /// The norm that `vector(name, elements, initial value)` fills, of the kind of `config`.
    pub(crate) fn new(
        config: &ModelConfig,
        name: &str,
        vector: &mut dyn FnMut(String, usize, f32) -> Result<FloatVector, ModelError>,
    ) -> Result<Self, ModelError> {
        let bias = config.biases && config.norm == config::NormKind::Layer;
        Norm::of_width(config, name, config.width, bias, vector)
    }

    /// The same for rows of `width`.
    pub(crate) fn of_width(
        config: &ModelConfig,
        name: &str,
        width: usize,
        has_bias: bool,
        vector: &mut dyn FnMut(String, usize, f32) -> Result<FloatVector, ModelError>,
    ) -> Result<Self, ModelError> {
        let kind = match config.norm {
            config::NormKind::Layer => NormKind::Layer,
            config::NormKind::Rms => NormKind::Rms,
        };
        let bias = has_bias.then(|| vector(format!("{name}.bias"), width, 0.0));
        Ok(Norm {
            kind,
            eps: config.norm_eps,
            weight: vector(format!("{name}.weight"), width, 1.0)?,
            bias: bias.transpose()?,
        })
    }

    /// y = norm(x); x and y are (n, C).
    pub(crate) fn forward(&self, isa: Isa, x: &[f32], y: &mut [f32], stats: &mut NormStats) {
        let width = self.weight.values().len();
        let rows = x.len() / width;
        let bias = self.bias.as_ref().map(FloatVector::values);
        let (mean, rstd) = (&mut stats.mean[..rows], &mut stats.rstd[..rows]);
        kernels::norm(
            isa,
            self.kind,
            x,
            self.weight.values(),
            bias,
            self.eps,
            width,
            y,
            mean,
            rstd,
        );
    }

    /// Adds the gradient of the norm's input to `dx`, and its own parameters' gradients.
    pub(crate) fn backward(
        &mut self,
        isa: Isa,
        pieces: Pieces,
        dy: &[f32],
        x: &[f32],
        stats: &NormStats,
        dx: &mut [f32],
    ) {
        let width = self.weight.values().len();
        for (_, rows) in pieces.iter() {
            let part = rows.start * width..rows.end * width;
            let (weight, dweight) = self.weight.values_and_grad_mut();
            kernels::norm_backward(
                isa,
                self.kind,
                &dy[part.clone()],
                &x[part.clone()],
                weight,
                &stats.mean[rows.clone()],
                &stats.rstd[rows],
                width,
                &mut dx[part],
                dweight,
                self.bias.as_mut().map(FloatVector::grad_mut),
            );
            if pieces.ends {
                self.weight.end_micro_batch(isa);
                if let Some(bias) = &mut self.bias {
                    bias.end_micro_batch(isa);
                }
            }
        }
    }
}

/// y = x Wᵀ + b with W (out, in) on the grid or float.
#[derive(Clone, Debug)]
pub(crate) struct Linear<W = Weight> {
    pub(crate) weight: W,
    pub(crate) bias: Option<FloatVector>,
}

impl Linear {
    /// y (n, out) = x (n, in) Wᵀ + b, or y += … when `accumulate`.
    pub(crate) fn forward(
        &self,
        isa: Isa,
        pieces: Pieces,
        x: &[f32],
        y: &mut [f32],
        accumulate: bool,
        scratch: &mut LinearScratch,
    ) {
        scratch.forward(isa, &self.weight, pieces.piece_rows, x, y, accumulate);
        if let Some(bias) = &self.bias {
            kernels::add_bias(isa, y, bias.values());
        }
    }

    /// dx (n, in) = dy (n, out) W, then votes or gradients of W and b, micro-batch by
    /// micro-batch; a part that does not end its micro-batch only adds to the sums. Returns false
    /// if a gradient was not finite.
    ///
    /// # Errors
    /// Of [`Weight::accumulate`].
    pub(crate) fn backward(
        &mut self,
        ctx: &StepContext<'_>,
        pieces: Pieces,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        scratch: &mut LinearScratch,
    ) -> Result<bool, OptimError> {
        let (out, input) = (self.weight.rows(), self.weight.cols());
        let Pieces { begins, ends, .. } = pieces;
        scratch.input_gradient(ctx.isa, &self.weight, pieces.piece_rows, dy, dx);

        let mut finite = true;
        for (micro_batch, rows) in pieces.iter() {
            let x = &x[rows.start * input..rows.end * input];
            let dy = &dy[rows.start * out..rows.end * out];
            let operands = (dy, x);
            let (gradient, sums) =
                scratch.weight_gradient(ctx.isa, &self.weight, operands, begins, ends);
            if ends {
                let sums = &*sums;
                finite &= self
                    .weight
                    .accumulate(ctx, micro_batch, 0..out, &|tile, grad| {
                        if !begins {
                            grad.copy_from_slice(&sums[tile.start * input..tile.end * input]);
                        }
                        gradient.tile(tile, grad, !begins);
                    })?;
                self.weight.end_micro_batch(ctx);
            } else {
                gradient.all(input, sums, !begins);
            }
            if let Some(bias) = &mut self.bias {
                kernels::sum_rows(ctx.isa, dy, out, bias.grad_mut());
                if ends {
                    bias.end_micro_batch(ctx.isa);
                }
            }
        }
        Ok(finite)
    }
}

/// Any trainable tensor, so that one walk over the model serves every purpose.
pub(crate) enum Param<'a> {
    Matrix(&'a Weight),
    Vector(&'a FloatVector),
}

/// The same, mutable.
pub(crate) enum ParamMut<'a> {
    Matrix(&'a mut Weight),
    Vector(&'a mut FloatVector),
}

impl<'a> Param<'a> {
    pub(crate) fn visit(self, part: StatePart, to: &mut dyn StateVisitor<'a>) {
        match self {
            Param::Matrix(weight) => weight.visit(part, to),
            Param::Vector(vector) => vector.visit(part, to),
        }
    }

    pub(crate) fn footprint(self) -> Footprint {
        match self {
            Param::Matrix(weight) => weight.footprint(),
            Param::Vector(vector) => vector.footprint(),
        }
    }
}

impl ParamMut<'_> {
    pub(crate) fn grad_sum_squares(self, isa: Isa) -> f64 {
        match self {
            ParamMut::Matrix(weight) => weight.grad_sum_squares(isa),
            ParamMut::Vector(vector) => vector.grad_sum_squares(isa),
        }
    }

    pub(crate) fn load(self, part: StatePart, file: &TensorFile) -> Result<(), OptimError> {
        match self {
            ParamMut::Matrix(weight) => weight.load(part, file),
            ParamMut::Vector(vector) => vector.load(part, file),
        }
    }

    pub(crate) fn discard(self) {
        match self {
            ParamMut::Matrix(weight) => weight.discard(),
            ParamMut::Vector(vector) => vector.discard(),
        }
    }
}

impl Norm {
    pub(crate) fn params<'a>(&'a self, to: &mut Vec<Param<'a>>) {
        to.push(Param::Vector(&self.weight));
        to.extend(self.bias.as_ref().map(Param::Vector));
    }

    pub(crate) fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>)) {
        each(ParamMut::Vector(&mut self.weight));
        if let Some(bias) = &mut self.bias {
            each(ParamMut::Vector(bias));
        }
    }
}

impl Linear {
    pub(crate) fn params<'a>(&'a self, to: &mut Vec<Param<'a>>) {
        to.push(Param::Matrix(&self.weight));
        to.extend(self.bias.as_ref().map(Param::Vector));
    }

    pub(crate) fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>)) {
        each(ParamMut::Matrix(&mut self.weight));
        if let Some(bias) = &mut self.bias {
            each(ParamMut::Vector(bias));
        }
    }
}
