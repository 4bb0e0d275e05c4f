//! A matrix that does not learn: inference, or a part of a model that others learn around.

use primal_lut::TensorFile;

use crate::rule::{Counted, LearningRule, MakeRows, Place, Values, ValuesMut, ValuesRef};
use crate::{OptimError, StateVisitor, StepContext, StepSums, WeightBytes, WeightParts};

/// The values alone.
#[derive(Clone, Debug)]
pub(crate) struct Still(pub(crate) Values);

impl LearningRule for Still {
    fn values(&self) -> ValuesRef<'_> {
        match &self.0 {
            Values::Grid(matrix) => ValuesRef::Grid(matrix),
            Values::Dense(values) => ValuesRef::Dense(values),
        }
    }

    fn values_mut(&mut self) -> ValuesMut<'_> {
        match &mut self.0 {
            Values::Grid(matrix) => ValuesMut::Grid(matrix),
            Values::Dense(values) => ValuesMut::Dense(values),
        }
    }

    fn into_values(self: Box<Self>) -> Values {
        self.0
    }

    fn accumulate(&mut self, _ctx: &StepContext<'_>, _at: Place, _make: MakeRows<'_>) -> u32 {
        0
    }

    fn finish_step(&mut self, _ctx: &StepContext<'_>, _factor: f32, _counted: Counted) -> u64 {
        0
    }

    fn discard(&mut self) {}

    fn float_gradient(&self) -> &[f32] {
        &[]
    }

    fn step_sums(&mut self, _to: &mut dyn StepSums) {}

    fn visit<'a>(&'a self, _name: &str, _to: &mut dyn StateVisitor<'a>) {}

    fn load(&mut self, _name: &str, _file: &TensorFile) -> Result<(), OptimError> {
        Ok(())
    }

    fn bytes(&self) -> WeightBytes {
        let scales = match &self.0 {
            Values::Grid(matrix) => matrix.scales().len() as u64,
            Values::Dense(_) => 0,
        };
        WeightBytes {
            float_state: 4 * scales,
            ..Default::default()
        }
    }

    fn persistent_bytes(&self) -> (u64, u64) {
        (0, 0)
    }

    fn parts_mut(&mut self) -> WeightParts<'_> {
        WeightParts::Still
    }

    fn boxed(&self) -> Box<dyn LearningRule> {
        Box::new(self.clone())
    }
}
