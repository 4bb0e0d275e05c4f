//! Rule `shadow`: a float32 latent weight behind the grid, straight-through estimator, AdamW. For
//! comparison only.

use primal_kernels::{Isa, root_mean_square};
use primal_lut::{QuantMatrix, TensorFile};
use rayon::prelude::*;

use super::codes::Codes;
use crate::float::AdamState;
use crate::rows::sum_gradient;
use crate::rule::{
    Counted, LearningRule, MakeRows, MatrixPlan, NewMatrix, Place, Values, ValuesMut, ValuesRef,
};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// A matrix under this rule.
#[derive(Clone, Debug)]
struct Shadow {
    matrix: QuantMatrix,
    /// (rows, cols) f32.
    latent: Vec<f32>,
    adam: AdamState,
    scale_per_std: f32,
}

pub(crate) fn begin(matrix: NewMatrix<'_>) -> Result<Box<dyn LearningRule>, OptimError> {
    let mut codes = Codes::nearest(&matrix)?.matrix;
    snap_latent(
        Isa::best(),
        &matrix.initial,
        matrix.scale_per_std,
        &mut codes,
    );
    Ok(Box::new(Shadow {
        matrix: codes,
        adam: AdamState::new(matrix.initial.len()),
        latent: matrix.initial,
        scale_per_std: matrix.scale_per_std,
    }))
}

pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
    let elements = (matrix.size.0 * matrix.size.1) as u64;
    let codes = Codes::plan(matrix);
    WeightBytes {
        // Scales follow the latent weights: they have no gradient and no moments.
        float_state: codes.float_state / 4 + 16 * elements,
        ..codes
    }
}

impl LearningRule for Shadow {
    fn values(&self) -> ValuesRef<'_> {
        ValuesRef::Grid(&self.matrix)
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        ValuesMut::Grid(&mut self.matrix)
    }

    fn into_values(self: Box<Self>) -> Values {
        Values::Grid(self.matrix)
    }

    fn accumulate(&mut self, ctx: &StepContext<'_>, at: Place, make: MakeRows<'_>) -> u32 {
        let cols = self.matrix.cols();
        sum_gradient(ctx.isa, at.rows, cols, make, &mut self.adam.grad)
    }

    fn finish_step(&mut self, ctx: &StepContext<'_>, grad_factor: f32, _counted: Counted) -> u64 {
        let rate = ctx.config.lr * ctx.rate;
        let decay = ctx.config.weight_decay;
        self.adam
            .step(ctx, &mut self.latent, grad_factor, rate, decay);
        snap_latent(ctx.isa, &self.latent, self.scale_per_std, &mut self.matrix)
    }

    fn discard(&mut self) {
        self.adam.grad.fill(0.0);
    }

    fn float_gradient(&self) -> &[f32] {
        &self.adam.grad
    }

    fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.adam.grad);
    }

    fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>) {
        let shape = [self.matrix.rows(), self.matrix.cols()];
        to.f32(&format!("{name}.latent"), &shape, &self.latent);
        self.adam.visit(name, &shape, to);
    }

    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        let shape = [self.matrix.rows(), self.matrix.cols()];
        self.latent = file.f32(&format!("{name}.latent"), &shape)?;
        self.adam.load(name, &shape, file)
    }

    fn bytes(&self) -> WeightBytes {
        let scales = 4 * self.matrix.scales().len() as u64;
        let latent = 4 * self.latent.len() as u64;
        WeightBytes {
            float_state: scales + latent + self.adam.allocated_bytes(),
            ..Default::default()
        }
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        (4 * self.latent.len() as u64 + self.adam.bytes(), 0)
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        WeightParts::Shadow {
            matrix: &mut self.matrix,
            latent: self.adam.parts(&mut self.latent),
            scale_per_std: self.scale_per_std,
        }
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}

/// Quantises a latent matrix with scale = `scale_per_std` · rms of its columns; returns moved weights.
fn snap_latent(isa: Isa, latent: &[f32], scale_per_std: f32, matrix: &mut QuantMatrix) -> u64 {
    let cols = matrix.cols();
    let grid = matrix.grid().clone();
    let scales: Vec<f32> = latent
        .par_chunks(cols)
        .flat_map_iter(|row| row.chunks(matrix.group()))
        .map(|part| (scale_per_std * root_mean_square(isa, part)).max(f32::MIN_POSITIVE))
        .collect();
    let before = matrix.nibbles().to_vec();
    let (rows, group) = (matrix.rows(), matrix.group());
    if let Ok(snapped) = QuantMatrix::quantise(&grid, rows, cols, group, latent, scales) {
        *matrix = snapped;
    }
    let moved = |(a, b): (&u8, &u8)| u64::from(a & 15 != b & 15) + u64::from(a >> 4 != b >> 4);
    before.iter().zip(matrix.nibbles()).map(moved).sum()
}
