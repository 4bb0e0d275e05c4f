//! Rule `frozen`: codes stay, row scales learn. What the float parts reach alone.

use primal_lut::TensorFile;

use super::codes::Codes;
use crate::parts::CodeRule;
use crate::rows::RowCount;
use crate::rule::{
    Counted, LearningRule, MakeRows, MatrixPlan, NewMatrix, Place, Values, ValuesMut, ValuesRef,
};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// A matrix under this rule.
#[derive(Clone, Debug)]
struct Frozen {
    codes: Codes,
}

pub(crate) fn begin(matrix: NewMatrix<'_>) -> Result<Box<dyn LearningRule>, OptimError> {
    let codes = Codes::nearest(&matrix)?;
    Ok(Box::new(Frozen { codes }))
}

pub(crate) fn plan(matrix: &MatrixPlan<'_>) -> WeightBytes {
    Codes::plan(matrix)
}

impl LearningRule for Frozen {
    fn values(&self) -> ValuesRef<'_> {
        ValuesRef::Grid(&self.codes.matrix)
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        ValuesMut::Grid(&mut self.codes.matrix)
    }

    fn into_values(self: Box<Self>) -> Values {
        Values::Grid(self.codes.matrix)
    }

    fn accumulate(&mut self, ctx: &StepContext<'_>, at: Place, make: MakeRows<'_>) -> u32 {
        let none = RowCount::of(&at.rows);
        self.codes
            .accumulate(ctx, at.rows, make, none, &|_row, _none| true)
    }

    fn finish_step(&mut self, ctx: &StepContext<'_>, grad_factor: f32, _counted: Counted) -> u64 {
        self.codes.step_scales(ctx, grad_factor);
        0
    }

    fn discard(&mut self) {
        self.codes.scales.grad.fill(0.0);
    }

    fn float_gradient(&self) -> &[f32] {
        &self.codes.scales.grad
    }

    fn step_sums(&mut self, to: &mut dyn StepSums) {
        to.f32(&mut self.codes.scales.grad);
    }

    fn visit<'a>(&'a self, name: &str, to: &mut dyn StateVisitor<'a>) {
        self.codes.visit(name, to);
    }

    fn load(&mut self, name: &str, file: &TensorFile) -> Result<(), OptimError> {
        self.codes.load(name, file)
    }

    fn bytes(&self) -> WeightBytes {
        self.codes.bytes()
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        (0, self.codes.scales.bytes())
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        self.codes.parts_mut(CodeRule::Frozen)
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}
