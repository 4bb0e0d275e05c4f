//! What another device needs to train in place of this crate: the parts of the state, to be
//! copied out and back, and the numbers of a step.

use primal_kernels::{AdamStep, FlipTable};
use primal_lut::QuantMatrix;

use crate::StepContext;

/// Float values with their running means.
#[derive(Debug)]
pub struct FloatParts<'a> {
    /// The values.
    pub values: &'a mut [f32],
    /// As many means of gradients; none where nothing is trained.
    pub m: &'a mut [f32],
    /// As many means of squared gradients; none where nothing is trained.
    pub v: &'a mut [f32],
}

/// The state of a matrix by what learns in it.
#[derive(Debug)]
pub enum WeightParts<'a> {
    /// Nothing.
    Still,
    /// Codes by a rule, and their scales by AdamW.
    Codes {
        /// Codes and scales.
        matrix: &'a mut QuantMatrix,
        /// (rows, groups) each: running means of the scales' gradients and of their squares.
        scale_moments: (&'a mut [f32], &'a mut [f32]),
        /// The rule.
        rule: CodeRule<'a>,
    },
    /// Float values (rows, cols) behind codes that follow them: rule `shadow`.
    Shadow {
        /// Codes and scales.
        matrix: &'a mut QuantMatrix,
        /// The float values.
        latent: FloatParts<'a>,
        /// A scale is this times the root mean square of its columns.
        scale_per_std: f32,
    },
    /// The matrix itself, (rows, cols) float.
    Dense(FloatParts<'a>),
    /// The state of a rule that no other device can take yet.
    OnlyHere,
}

/// What moves codes.
#[derive(Debug)]
pub enum CodeRule<'a> {
    /// Nothing does.
    Frozen,
    /// Rule `classic`, which remembers nothing from step to step.
    Classic,
    /// Rule `consensus`.
    Consensus(ConsensusParts<'a>),
}

/// What rule `consensus` keeps of a matrix.
#[derive(Debug)]
pub struct ConsensusParts<'a> {
    /// (rows, cols) i8.
    pub ballot: &'a mut [i8],
    /// (rows) running means of g² by row.
    pub row_mean: &'a mut [f32],
    /// (cols) the same by column.
    pub col_mean: &'a mut [f32],
    /// Running A and B, updates made.
    pub moments: &'a mut [f32; 3],
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
            votes_per_unit: ctx.config.elementwise_eta() * ctx.rate
                / (quantum * f32::from(ctx.micro_batches)),
            blend: [decay / bias, (1.0 - decay) / bias],
            leak_q24: leak.clamp(0.0, all) as u32,
        }
    }
}

/// The numbers of one step of rule `spectral` for one matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpectralStep {
    /// Votes of an element of an orthogonal step whose root mean square is 1: η·ρ / q.
    pub votes_per_unit: f32,
    /// Units of a gradient that is as large as the root mean square of its row, and the most that
    /// one micro-batch can add: all of them together fit 16 bits.
    pub units_per_rms: f32,
    /// See `units_per_rms`.
    pub most_units: f32,
    /// What makes a running mean that began at zero one without bias.
    pub bias: f32,
}

impl SpectralStep {
    /// Of a matrix whose vote is worth `quantum` and whose statistics were updated `updates`
    /// times.
    pub fn new(ctx: &StepContext<'_>, quantum: f32, updates: f32) -> Self {
        let most_units = (f32::from(i16::MAX) / f32::from(ctx.micro_batches)).floor();
        let bias = 1.0 - ctx.config.stat_decay.powi(updates as i32);
        SpectralStep {
            votes_per_unit: ctx.config.spectral_eta() * ctx.rate / quantum,
            units_per_rms: (most_units / LARGEST_GRADIENT).min(MOST_UNITS_PER_RMS),
            most_units,
            bias: if bias > 0.0 { bias.recip() } else { 0.0 },
        }
    }
}

/// Root mean squares of a row that a gradient may measure before it is cut off.
const LARGEST_GRADIENT: f32 = 20.0;

/// Units of a root mean square beyond which finer ones are of no use: rounding is then an error
/// of two percent, and a sum takes six bits on its way between ranks.
const MOST_UNITS_PER_RMS: f32 = 16.0;

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
