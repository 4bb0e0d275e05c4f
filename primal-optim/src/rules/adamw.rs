//! Rule `adamw`: float weights under AdamW, no grid. For comparison, and for the matrices that a
//! configuration keeps float.

use primal_lut::TensorFile;

use crate::float::AdamState;
use crate::rows::sum_gradient;
use crate::rule::{
    Counted, LearningRule, MakeRows, MatrixPlan, NewMatrix, Place, Values, ValuesMut, ValuesRef,
};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// A matrix under this rule.
#[derive(Clone, Debug)]
struct Adamw {
    size: (usize, usize),
    /// (rows, cols) f32.
    values: Vec<f32>,
    adam: AdamState,
}

pub(crate) fn begin(matrix: NewMatrix<'_>) -> Result<Box<dyn LearningRule>, OptimError> {
    Ok(Box::new(Adamw {
        size: matrix.size,
        adam: AdamState::new(matrix.initial.len()),
        values: matrix.initial,
    }))
}

pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
    let elements = (matrix.size.0 * matrix.size.1) as u64;
    WeightBytes {
        values: 4 * elements,
        float_state: 12 * elements,
        ..Default::default()
    }
}

impl LearningRule for Adamw {
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
        sum_gradient(ctx.isa, at.rows, self.size.1, make, &mut self.adam.grad)
    }

    fn finish_step(&mut self, ctx: &StepContext<'_>, grad_factor: f32, _counted: Counted) -> u64 {
        let rate = ctx.config.lr * ctx.rate;
        let decay = ctx.config.weight_decay;
        self.adam
            .step(ctx, &mut self.values, grad_factor, rate, decay);
        0
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
        self.adam.visit(name, &[self.size.0, self.size.1], to);
    }

    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        self.adam.load(name, &[self.size.0, self.size.1], file)
    }

    fn bytes(&self) -> WeightBytes {
        WeightBytes {
            float_state: self.adam.allocated_bytes(),
            ..Default::default()
        }
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        (0, self.adam.bytes())
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        WeightParts::Dense(self.adam.parts(&mut self.values))
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}
