//! What every trainable model does with its parameters: steps, state, accounts.

use primal_kernels::Isa;
use primal_lut::TensorFile;
use primal_optim::{FlipStats, Footprint, OptimError, StatePart, StateVisitor, StepContext};

use crate::error::ModelError;
use crate::layers::{Param, ParamMut};

/// A model as a list of parameters in a fixed order.
pub(crate) trait Parameters {
    /// Every parameter.
    fn params(&self) -> Vec<Param<'_>>;

    /// Hands every parameter to `each`, in the order of [`Parameters::params`].
    fn for_each_mut(&mut self, each: &mut dyn FnMut(ParamMut<'_>));

    /// Prepares the parameters for a step.
    ///
    /// # Errors
    /// Of [`Weight::begin_step`](primal_optim::Weight::begin_step).
    fn begin_step(&mut self, ctx: &StepContext<'_>) -> Result<(), OptimError> {
        let mut result = Ok(());
        self.for_each_mut(&mut |param| {
            if let (Ok(()), ParamMut::Matrix(weight)) = (&result, param) {
                result = weight.begin_step(ctx);
            }
        });
        result
    }

    /// Global norm of the float gradient of the step, averaged over its micro-batches.
    fn grad_norm(&mut self, isa: Isa, micro_batches: u16) -> f64 {
        let mut sum = 0.0;
        self.for_each_mut(&mut |param| sum += param.grad_sum_squares(isa));
        sum.sqrt() / f64::from(micro_batches)
    }

    /// Takes the step. `grad_factor` is 1 / micro-batches times the clip.
    fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) -> FlipStats {
        let mut total = FlipStats::default();
        self.for_each_mut(&mut |param| match param {
            ParamMut::Matrix(weight) => {
                let stats = weight.step(ctx, grad_factor);
                total.flips += stats.flips;
                total.weights += stats.weights;
            }
            ParamMut::Vector(vector) => vector.step(ctx, grad_factor),
        });
        total
    }

    /// Drops the gradients and votes of a step that is not taken.
    fn discard(&mut self) {
        self.for_each_mut(&mut |param| param.discard());
    }

    /// Walks over one half of the state in a fixed order.
    fn visit<'a>(&'a self, part: StatePart, to: &mut dyn StateVisitor<'a>) {
        for param in self.params() {
            param.visit(part, to);
        }
    }

    /// Reads one half of the state from a tensor file.
    fn load_state(&mut self, part: StatePart, file: &TensorFile) -> Result<(), ModelError> {
        let mut result = Ok(());
        self.for_each_mut(&mut |param| {
            if result.is_ok() {
                result = param.load(part, file);
            }
        });
        Ok(result?)
    }

    /// Bytes of the persistent state.
    fn footprint(&self) -> Footprint {
        let mut total = Footprint::default();
        for param in self.params() {
            total.add(param.footprint());
        }
        total
    }
}

/// What the float gradient of `norm` is multiplied by: 1 / micro-batches and the clip, 0 being none.
pub(crate) fn grad_factor(clip: f32, norm: f64, micro_batches: u16) -> f32 {
    let clip = f64::from(clip);
    let factor = if clip > 0.0 && norm > clip {
        clip / norm
    } else {
        1.0
    };
    (factor / f64::from(micro_batches)) as f32
}
