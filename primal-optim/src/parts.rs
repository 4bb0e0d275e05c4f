//! What another device needs to train in place of this crate: the parts of the state, to be
//! copied out and back, and the numbers of a step.

use primal_kernels::{AdamStep, FlipTable};
use primal_lut::QuantMatrix;

use crate::StepContext;

/// The state of a matrix under rule `consensus`.
#[derive(Debug)]
pub struct ConsensusParts<'a> {
    /// Codes and row scales.
    pub matrix: &'a mut QuantMatrix,
    /// (rows, cols) i8.
    pub ballot: &'a mut [i8],
    /// (rows) running means of g² by row.
    pub row_mean: &'a mut [f32],
    /// (cols) the same by column.
    pub col_mean: &'a mut [f32],
    /// Running A and B, updates made.
    pub moments: &'a mut [f32; 3],
    /// (rows) moments of the row scales.
    pub scale_m: &'a mut [f32],
    /// See `scale_m`.
    pub scale_v: &'a mut [f32],
    /// Votes that it takes to leave a code.
    pub table: &'a FlipTable,
    /// Vote value q in units of the grid.
    pub quantum: f32,
}

/// The numbers of one step of rule `consensus` for one matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConsensusStep {
    /// Votes that one unit of normalised gradient casts in a micro-batch: η·ρ / (q·M).
    pub votes_per_unit: f32,
    /// Weight of the old mean and of the new value, both divided by the bias correction.
    pub blend: [f32; 2],
    /// The fraction of a ballot entry that leaks, 2^24 being all.
    pub leak_q24: u32,
}

impl ConsensusStep {
    /// Of a matrix whose vote is worth `quantum` and whose statistics were updated `updates`
    /// times.
    pub fn new(ctx: &StepContext<'_>, quantum: f32, updates: f32) -> Self {
        let decay = ctx.config.stat_decay;
        let bias = 1.0 - decay.powi(updates as i32 + 1);
        let all = f64::from(1u32 << 24);
        let leak = (f64::from(ctx.rate) / f64::from(ctx.config.tau) * all).round();
        ConsensusStep {
            votes_per_unit: ctx.config.eta * ctx.rate / (quantum * f32::from(ctx.micro_batches)),
            blend: [decay / bias, (1.0 - decay) / bias],
            leak_q24: leak.clamp(0.0, all) as u32,
        }
    }
}

/// The numbers of one AdamW step at `rate` with weight decay `decay`.
pub fn adam_step(ctx: &StepContext<'_>, rate: f32, decay: f32) -> AdamStep {
    let config = ctx.config;
    let power = ctx.step as i32 + 1;
    AdamStep {
        rate,
        beta1: config.beta1,
        beta2: config.beta2,
        eps: 1e-8,
        decay,
        bias1: 1.0 - config.beta1.powi(power),
        bias2: 1.0 - config.beta2.powi(power),
    }
}
