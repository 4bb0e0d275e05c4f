//! Buffers that linear layers multiply in, and how they multiply: in int8 or in float.

use primal_kernels as kernels;
use primal_kernels::{Int16Panels, Isa, QuantisedRows};
use primal_optim::{TILE_ROWS, Weight};
use rayon::prelude::*;
use std::ops::Range;

use crate::config::Compute;
use crate::shape::ModelShape;

/// The scratch of every linear layer in turn.
pub(crate) struct LinearScratch {
    compute: Compute,
    /// The decoded values of one matrix, where a product is computed in float.
    decoded: Vec<f32>,
    /// (n, widest) activations or gradients in int8.
    quantised: QuantisedRows,
    /// (n, widest) each, for the weight gradient.
    x_pairs: Int16Panels,
    dy_pairs: Int16Panels,
    /// Unfinished weight gradients of a block's matrices, in the order of its backward pass;
    /// empty where a micro-batch is not cut.
    sums: Vec<f32>,
    next_sum: usize,
}

/// Elements of the buffers for passes of `rows` token rows.
struct Sizes {
    decoded: usize,
    quantised: (usize, usize),
    pairs: (usize, usize),
    sums: usize,
}

impl Sizes {
    fn new(shape: &ModelShape, rows: usize, compute: Compute, training: bool, cut: bool) -> Self {
        let matrices = shape.block_matrices();
        let elements = matrices.map(|(rows, cols)| rows * cols);
        let widest_in = matrices.iter().fold(0, |w, &(_, cols)| w.max(cols));
        let widest = matrices.iter().fold(widest_in, |w, &(rows, _)| w.max(rows));
        let int8 = compute.is_int8();
        Sizes {
            decoded: if int8 {
                0
            } else {
                elements.into_iter().fold(0, usize::max)
            },
            quantised: match (int8, training) {
                (false, _) => (0, 0),
                (true, false) => (rows, widest_in),
                (true, true) => (rows, widest),
            },
            pairs: if training && compute.gradient_units().is_some() {
                (rows, widest)
            } else {
                (0, 0)
            },
            sums: if cut { elements.iter().sum() } else { 0 },
        }
    }
}

impl LinearScratch {
    /// `cut`: whether weight gradients are summed over several passes.
    pub(crate) fn new(
        shape: &ModelShape,
        rows: usize,
        compute: Compute,
        training: bool,
        cut: bool,
    ) -> Self {
        let sizes = Sizes::new(shape, rows, compute, training, cut);
        let pairs = || Int16Panels::new(sizes.pairs.0, sizes.pairs.1);
        LinearScratch {
            compute,
            decoded: vec![0.0; sizes.decoded],
            quantised: QuantisedRows::new(sizes.quantised.0, sizes.quantised.1),
            x_pairs: pairs(),
            dy_pairs: pairs(),
            sums: vec![0.0; sizes.sums],
            next_sum: 0,
        }
    }

    /// Bytes of [`LinearScratch::new`].
    pub(crate) fn bytes(
        shape: &ModelShape,
        rows: usize,
        compute: Compute,
        training: bool,
        cut: bool,
    ) -> u64 {
        let sizes = Sizes::new(shape, rows, compute, training, cut);
        4 * (sizes.decoded + sizes.sums) as u64
            + QuantisedRows::bytes(sizes.quantised.0, sizes.quantised.1)
            + 2 * Int16Panels::bytes(sizes.pairs.0, sizes.pairs.1)
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        4 * (self.decoded.len() + self.sums.len()) as u64
            + self.quantised.allocated_bytes()
            + self.x_pairs.allocated_bytes()
            + self.dy_pairs.allocated_bytes()
    }

    /// Begins a block's backward pass: its first matrix takes the first unfinished sum.
    pub(crate) fn rewind(&mut self) {
        self.next_sum = 0;
    }

    /// y (n, out) = x (n, in) Wᵀ, or y += … when `accumulate`.
    pub(crate) fn forward(
        &mut self,
        isa: Isa,
        weight: &Weight,
        piece_rows: usize,
        x: &[f32],
        y: &mut [f32],
        accumulate: bool,
    ) {
        let (out, input) = (weight.rows(), weight.cols());
        if let (true, Some(matrix)) = (self.compute.is_int8(), weight.quant())
            && self.quantised.quantise_for(isa, x, matrix)
        {
            kernels::int8_matmul_nt(isa, &self.quantised, matrix, 0..out, y, accumulate);
            return;
        }
        let w = values(isa, weight, &mut self.decoded);
        kernels::matmul_nt(x, w, y, x.len() / input, out, input, piece_rows, accumulate);
    }

    /// dx (n, in) = dy (n, out) W.
    pub(crate) fn input_gradient(
        &mut self,
        isa: Isa,
        weight: &Weight,
        piece_rows: usize,
        dy: &[f32],
        dx: &mut [f32],
    ) {
        let (out, input) = (weight.rows(), weight.cols());
        if let (true, Some(matrix)) = (self.compute.is_int8(), weight.quant())
            && matrix.group() == input
        {
            self.quantised.quantise(isa, dy, out, Some(matrix.scales()));
            if kernels::int8_matmul_nn(isa, &self.quantised, matrix, 0..out, dx, false) {
                return;
            }
        }
        let w = values(isa, weight, &mut self.decoded);
        kernels::matmul_nn(dy, w, dx, dy.len() / out, out, input, piece_rows, false);
    }

    /// The weight gradient dyᵀ x of (n, out) and (n, in), ready to be computed tile by tile on
    /// top of what earlier parts of the micro-batch summed.
    pub(crate) fn weight_gradient<'a>(
        &'a mut self,
        isa: Isa,
        weight: &Weight,
        (dy, x): (&'a [f32], &'a [f32]),
        begins: bool,
        ends: bool,
    ) -> (WeightGradient<'a>, &'a mut [f32]) {
        let (out, input) = (weight.rows(), weight.cols());
        let sums = if begins && ends {
            &mut []
        } else {
            let start = self.next_sum;
            self.next_sum += out * input;
            &mut self.sums[start..self.next_sum]
        };
        let units = self.compute.gradient_units();
        let gradient = if let (Some(units), Some(_)) = (units, weight.quant()) {
            self.dy_pairs.fill(isa, dy, out, units);
            self.x_pairs.fill(isa, x, input, units);
            WeightGradient::Int16 {
                isa,
                dy: &self.dy_pairs,
                x: &self.x_pairs,
            }
        } else {
            WeightGradient::Float { dy, x, out, input }
        };
        (gradient, sums)
    }
}

/// The values (out, in) of a matrix: its own if it is float, else decoded into `scratch`.
fn values<'a>(isa: Isa, weight: &'a Weight, scratch: &'a mut Vec<f32>) -> &'a [f32] {
    if let Some(values) = weight.dense() {
        return values;
    }
    let len = weight.rows() * weight.cols();
    if scratch.len() < len {
        // Only where the integer kernels cannot take a matrix: groups of an odd size.
        scratch.resize(len, 0.0);
    }
    kernels::fill_rows(isa, weight, 0..weight.rows(), &mut scratch[..len]);
    &scratch[..len]
}

/// dW (out, in) = dyᵀ x, computed a tile at a time.
pub(crate) enum WeightGradient<'a> {
    Float {
        /// (n, out).
        dy: &'a [f32],
        /// (n, in).
        x: &'a [f32],
        out: usize,
        input: usize,
    },
    Int16 {
        isa: Isa,
        dy: &'a Int16Panels,
        x: &'a Int16Panels,
    },
}

impl WeightGradient<'_> {
    /// Rows `rows` of dW into `grad`, or added to it.
    pub(crate) fn tile(&self, rows: Range<usize>, grad: &mut [f32], accumulate: bool) {
        match *self {
            WeightGradient::Float { dy, x, out, input } => {
                let n = x.len() / input;
                kernels::matmul_tn_tile(dy, x, n, out, input, rows, grad, accumulate);
            }
            WeightGradient::Int16 { isa, dy, x } => {
                kernels::int16_tn_tile(isa, dy, x, rows, grad, accumulate);
            }
        }
    }

    /// All of dW into `sums`, or added to it.
    pub(crate) fn all(&self, cols: usize, sums: &mut [f32], accumulate: bool) {
        sums.par_chunks_mut(TILE_ROWS * cols)
            .enumerate()
            .for_each(|(tile, sums)| {
                let first = tile * TILE_ROWS;
                self.tile(first..first + sums.len() / cols, sums, accumulate);
            });
    }
}
