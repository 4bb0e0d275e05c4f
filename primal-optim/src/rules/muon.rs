//! Rule `muon`: float weights, those between hidden activations under Muon (Jordan et al. 2024),
//! embeddings and head under AdamW. What votes along orthogonalised gradients cost is measured
//! against it.
//!
//! M ← β M + (1 − β) G; W ← (1 − λ·lr) W − rate · 0.2 √max(rows, cols) · orthogonal(M), with
//! rate = `muon_lr_ratio` · lr. The factor gives a step the size of AdamW's (Liu et al. 2025).

use primal_kernels::Isa;
use primal_lut::TensorFile;

use super::adamw;
use crate::orthogonal::{Parts, orthogonal_bytes, with_matrix};
use crate::rows::sum_gradient;
use crate::rule::{
    Counted, LearningRule, MakeRows, MatrixPlan, NewMatrix, Place, Role, Values, ValuesMut,
    ValuesRef,
};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// Root mean square of an AdamW step at rate 1, which Muon's is made to have.
const ADAMW_STEP: f32 = 0.2;

/// A matrix under this rule.
#[derive(Clone, Debug)]
struct Muon {
    parts: Parts,
    /// (rows, cols) f32 each.
    values: Vec<f32>,
    momentum: Vec<f32>,
    grad: Vec<f32>,
}

pub(crate) fn begin(matrix: NewMatrix<'_>) -> Result<Box<dyn LearningRule>, OptimError> {
    let Role::Hidden(stack) = matrix.role else {
        return adamw::begin(matrix);
    };
    let len = matrix.initial.len();
    Ok(Box::new(Muon {
        parts: Parts::new(matrix.size, stack)?,
        values: matrix.initial,
        momentum: vec![0.0; len],
        grad: vec![0.0; len],
    }))
}

pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
    match matrix.role {
        Role::Edge => adamw::plan(matrix),
        Role::Hidden(_) => {
            let elements = (matrix.size.0 * matrix.size.1) as u64;
            WeightBytes {
                values: 4 * elements,
                float_state: 8 * elements,
                scratch: orthogonal_bytes(matrix.size),
                ..Default::default()
            }
        }
    }
}

impl LearningRule for Muon {
    fn values(&self) -> ValuesRef<'_> {
        ValuesRef::Dense(&self.values)
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        ValuesMut::Dense(&mut self.values)
    }

    fn into_values(self: Box<Self>) -> Values {
        Values::Dense(self.values)
    }

    fn accumulate(&mut self, ctx: &StepContext<'_>, at: Place, make: MakeRows<'_>) -> u32 {
        sum_gradient(ctx.isa, at.rows, self.parts.cols(), make, &mut self.grad)
    }

    fn finish_step(&mut self, ctx: &StepContext<'_>, _grad_factor: f32, _counted: Counted) -> u64 {
        let config = ctx.config;
        let (lr, beta) = (config.lr * ctx.rate, config.muon_beta);
        for (m, g) in self.momentum.iter_mut().zip(&mut self.grad) {
            *m = beta * *m + (1.0 - beta) * std::mem::take(g);
        }
        let keep = 1.0 - lr * config.weight_decay;
        let size = -lr * config.muon_lr_ratio * ADAMW_STEP;
        with_matrix(&self.parts, |mut step| {
            step.values.copy_from_slice(&self.momentum);
            step.orthogonalise();
            for (value, step) in self.values.iter_mut().zip(step.values) {
                *value = keep * *value + size * *step;
            }
        });
        0
    }

    fn discard(&mut self) {
        self.grad.fill(0.0);
    }

    fn float_gradient(&self) -> &[f32] {
        &self.grad
    }

    /// A step has one size, whatever the gradient's: the clip is for the others.
    fn grad_sum_squares(&self, _isa: Isa) -> f64 {
        0.0
    }

    fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.grad);
    }

    fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>) {
        let shape = [self.parts.rows(), self.parts.cols()];
        to.f32(&format!("{name}.momentum"), &shape, &self.momentum);
    }

    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        let shape = [self.parts.rows(), self.parts.cols()];
        self.momentum = file.f32(&format!("{name}.momentum"), &shape)?;
        Ok(())
    }

    fn bytes(&self) -> WeightBytes {
        WeightBytes {
            float_state: 4 * (self.momentum.len() + self.grad.len()) as u64,
            scratch: orthogonal_bytes((self.parts.rows(), self.parts.cols())),
            ..Default::default()
        }
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        (0, 4 * self.momentum.len() as u64)
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        WeightParts::OnlyHere
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}
