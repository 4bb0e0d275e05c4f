//! Float parameters and their AdamW state.

use primal_kernels::{Isa, VoteRng, adamw, add, scale, sum_squares};
use primal_lut::TensorFile;
use rayon::prelude::*;

use crate::parts::{FloatParts, adam_step};
use crate::{Footprint, OptimConfig, OptimError, StatePart, StateVisitor, StepSums};

/// Elements that one task updates; fixed, so results do not depend on the thread count.
const CHUNK: usize = 16 * 1024;

/// Everything a step needs to know beside the gradients.
#[derive(Clone, Copy, Debug)]
pub struct StepContext<'a> {
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// Hyperparameters.
    pub config: &'a OptimConfig,
    /// Seed of the run; all random numbers are functions of it.
    pub seed: u64,
    /// 0-based optimizer step.
    pub step: u32,
    /// Rate of this step as a fraction of the peak.
    pub rate: f32,
    /// Micro-batches that make up this step.
    pub micro_batches: u16,
}

impl StepContext<'_> {
    /// The random numbers of one matrix in this step.
    pub fn rng(&self, stream: u8, tensor: u16, micro_batch: u16) -> VoteRng {
        VoteRng {
            seed: self.seed,
            stream,
            step: self.step,
            tensor,
            micro_batch,
        }
    }
}

/// Gradient and moments of a float tensor.
#[derive(Clone, Debug)]
pub(crate) struct AdamState {
    /// Sum over the micro-batches of this step of the gradient of the mean loss.
    pub(crate) grad: Vec<f32>,
    m: Vec<f32>,
    v: Vec<f32>,
}

impl AdamState {
    pub(crate) fn new(len: usize) -> Self {
        AdamState {
            grad: vec![0.0; len],
            m: vec![0.0; len],
            v: vec![0.0; len],
        }
    }

    /// One AdamW step (Loshchilov & Hutter 2019, algorithm 2) on `values`; clears the gradient.
    pub(crate) fn step(
        &mut self,
        ctx: &StepContext<'_>,
        values: &mut [f32],
        grad_factor: f32,
        rate: f32,
        decay: f32,
    ) {
        let step = adam_step(ctx, rate, decay);
        values
            .par_chunks_mut(CHUNK)
            .zip(self.grad.par_chunks_mut(CHUNK))
            .zip(self.m.par_chunks_mut(CHUNK))
            .zip(self.v.par_chunks_mut(CHUNK))
            .for_each(|(((value, grad), m), v)| {
                scale(ctx.isa, grad, grad_factor);
                adamw(ctx.isa, value, grad, m, v, &step);
                grad.fill(0.0);
            });
    }

    /// The two moments.
    pub(crate) fn moments_mut(&mut self) -> (&mut [f32], &mut [f32]) {
        (&mut self.m, &mut self.v)
    }

    /// Both with the values that they belong to.
    pub(crate) fn parts<'a>(&'a mut self, values: &'a mut [f32]) -> FloatParts<'a> {
        FloatParts {
            values,
            m: &mut self.m,
            v: &mut self.v,
        }
    }

    pub(crate) fn visit<'a>(&'a self, name: &str, shape: &[usize], to: &mut dyn StateVisitor<'a>) {
        to.f32(&format!("{name}.adam_m"), shape, &self.m);
        to.f32(&format!("{name}.adam_v"), shape, &self.v);
    }

    pub(crate) fn load(
        &mut self,
        name: &str,
        shape: &[usize],
        file: &TensorFile,
    ) -> Result<(), OptimError> {
        self.m = file.f32(&format!("{name}.adam_m"), shape)?;
        self.v = file.f32(&format!("{name}.adam_v"), shape)?;
        Ok(())
    }

    /// Bytes of the gradient and the moments.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        4 * self.grad.len() as u64 + self.bytes()
    }

    /// Bytes of the two moments.
    pub(crate) fn bytes(&self) -> u64 {
        4 * (self.m.len() + self.v.len()) as u64
    }
}

/// A float vector: norm weight, bias. Trained by AdamW without weight decay.
#[derive(Clone, Debug)]
pub struct FloatVector {
    name: String,
    values: Vec<f32>,
    adam: Option<AdamState>,
    /// Gradient of the micro-batch at hand. Each is summed on its own, so that ranks can compute
    /// theirs apart from each other; empty when the vector is not trainable.
    piece: Vec<f32>,
    /// Gradients are taken and dropped.
    is_still: bool,
}

impl FloatVector {
    /// A trainable vector that starts as `values`.
    pub fn new(name: impl Into<String>, values: Vec<f32>) -> Self {
        let adam = Some(AdamState::new(values.len()));
        FloatVector {
            piece: vec![0.0; values.len()],
            name: name.into(),
            values,
            adam,
            is_still: false,
        }
    }

    /// Drops what only training needs.
    pub fn without_training(mut self) -> Self {
        self.adam = None;
        self.piece = Vec::new();
        self
    }

    /// Keeps the values as they are in a model whose other parts learn.
    pub fn keep_still(&mut self) {
        self.is_still = true;
    }

    /// The parameter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Current values.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The gradient of the micro-batch at hand, to add that of its mean loss to. Empty when the
    /// vector is not trainable.
    pub fn grad_mut(&mut self) -> &mut [f32] {
        &mut self.piece
    }

    /// Ends a micro-batch: adds its gradient to that of the step.
    pub fn end_micro_batch(&mut self, isa: Isa) {
        if let Some(adam) = &mut self.adam {
            add(isa, &self.piece, &mut adam.grad);
            self.piece.fill(0.0);
        }
    }

    /// The gradient of the micro-batches so far; empty when the vector is not trainable.
    pub fn grad(&self) -> &[f32] {
        self.adam.as_ref().map_or(&[], |adam| &adam.grad)
    }

    /// The values and [`FloatVector::grad_mut`] at once.
    pub fn values_and_grad_mut(&mut self) -> (&[f32], &mut [f32]) {
        (&self.values, &mut self.piece)
    }

    /// Values and moments, for another device to take and give back.
    pub fn parts_mut(&mut self) -> FloatParts<'_> {
        match &mut self.adam {
            Some(adam) => adam.parts(&mut self.values),
            None => FloatParts {
                values: &mut self.values,
                m: &mut [],
                v: &mut [],
            },
        }
    }

    /// Whether its gradients are taken and dropped.
    pub fn is_still(&self) -> bool {
        self.is_still
    }

    /// Sum of the squared gradient; not finite when a gradient is not.
    pub fn grad_sum_squares(&self, isa: Isa) -> f64 {
        self.adam
            .as_ref()
            .filter(|_| !self.is_still)
            .map_or(0.0, |adam| sum_squares(isa, &adam.grad))
    }

    /// Walks over what the step has summed so far.
    pub fn step_sums(&mut self, to: &mut dyn StepSums) {
        if let Some(adam) = &mut self.adam {
            to.f32(&mut adam.grad);
        }
    }

    /// Takes the step; `grad_factor` holds 1 / micro-batches and the clip.
    pub fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) {
        if self.is_still {
            self.discard();
        } else if let Some(adam) = &mut self.adam {
            adam.step(
                ctx,
                &mut self.values,
                grad_factor,
                ctx.config.lr * ctx.rate,
                0.0,
            );
        }
    }

    /// Drops the gradients of a step that is not taken.
    pub fn discard(&mut self) {
        self.piece.fill(0.0);
        if let Some(adam) = &mut self.adam {
            adam.grad.fill(0.0);
        }
    }

    /// Walks over the state.
    pub fn visit<'a>(&'a self, part: StatePart, to: &mut dyn StateVisitor<'a>) {
        let shape = [self.values.len()];
        match (part, &self.adam) {
            (StatePart::Model, _) => to.f32(&self.name, &shape, &self.values),
            (StatePart::Optimizer, Some(adam)) => adam.visit(&self.name, &shape, to),
            (StatePart::Optimizer, None) => {}
        }
    }

    /// Reads one half of the state back.
    pub fn load(&mut self, part: StatePart, file: &TensorFile) -> Result<(), OptimError> {
        let shape = [self.values.len()];
        match (part, &mut self.adam) {
            (StatePart::Model, _) => self.values = file.f32(&self.name, &shape)?,
            (StatePart::Optimizer, Some(adam)) => adam.load(&self.name, &shape, file)?,
            (StatePart::Optimizer, None) => {}
        }
        Ok(())
    }

    /// Bytes of values, gradient and moments in memory.
    pub fn allocated_bytes(&self) -> u64 {
        4 * (self.values.len() + self.piece.len()) as u64
            + self.adam.as_ref().map_or(0, AdamState::allocated_bytes)
    }

    /// Bytes of the persistent state.
    pub fn footprint(&self) -> Footprint {
        Footprint {
            float_weights: self.values.len() as u64,
            float_bytes: 4 * self.values.len() as u64
                + self.adam.as_ref().map_or(0, AdamState::bytes),
            ..Default::default()
        }
    }
}
