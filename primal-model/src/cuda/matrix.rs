//! What trains one matrix on the GPU: the rules of primal-optim's weight.rs, kernel by kernel.

use std::sync::Arc;

use primal_kernels::cuda::{
    self, BallotSizes, Ballots, CastStep, ClassicVotes, Counter, CudaError, Device, DeviceWeights,
    Snap, View, VoteSlot,
};
use primal_lut::QuantMatrix;
use primal_optim::{
    CAST_STREAM, CodeRule, ConsensusParts, ConsensusStep, FLIP_STREAM, LEAK_STREAM, StepContext,
    Weight, WeightParts,
};

use super::pass::Piece;
use super::state::{FloatArena, Layout};
use super::{CudaModel, Part};
use crate::device_ledger::GRADIENT_ROWS;

/// A matrix with what trains it.
pub(super) struct Matrix {
    pub(super) weights: DeviceWeights,
    learner: Learner,
    /// Its part of the arena: scales, or float values. Empty where nothing learns.
    part: Part,
    tensor: u16,
}

enum Learner {
    /// Nothing learns.
    Still,
    /// Scales learn.
    Frozen,
    /// Votes move codes, and scales learn.
    Classic(ClassicVotes),
    /// The same.
    Consensus {
        ballots: Box<Ballots>,
        quantum: f32,
        /// Updates of the running statistics so far.
        updates: f32,
    },
    /// Float values learn, and codes follow them.
    Shadow(Snap),
    /// Float values learn.
    Dense,
}

impl Matrix {
    /// Copies a matrix whose float part is in the arena already. `slot` is where its flips are
    /// counted and its votes summed up.
    pub(super) fn upload(
        device: &Device,
        layout: &Layout,
        arena: &FloatArena,
        weight: &mut Weight,
        many_micro_batches: bool,
        slot: VoteSlot,
    ) -> Result<Self, CudaError> {
        let name = weight.name().to_string();
        let what = name.as_str();
        let size = (weight.rows(), weight.cols());
        let (part, tensor) = (layout.part(what), weight.tensor());
        if weight.quant().is_some_and(|it| it.groups_per_row() != 1) {
            return Err(CudaError::Unsupported(format!(
                "{name} has scales by group; a GPU trains one scale a row"
            )));
        }
        let floats = Arc::clone(&arena.values);
        let counter: Counter = (Arc::clone(&slot.sums.counted), 2 * slot.matrix);
        let (weights, learner) = match weight.parts_mut() {
            WeightParts::Still => (upload_still(device, weight, what)?, Learner::Still),
            WeightParts::OnlyHere => {
                return Err(CudaError::Unsupported(format!(
                    "{name} learns by a rule that no GPU has"
                )));
            }
            WeightParts::Dense(_) => {
                let weights = DeviceWeights::dense_in(floats, part.start, size)?;
                (weights, Learner::Dense)
            }
            WeightParts::Shadow {
                matrix,
                scale_per_std,
                ..
            } => {
                let snap = Snap::new(matrix.grid(), scale_per_std, counter);
                let weights = DeviceWeights::upload(device, matrix, what)?;
                (weights, Learner::Shadow(snap))
            }
            WeightParts::Codes { matrix, rule, .. } => {
                let weights = DeviceWeights::with_scales(device, matrix, floats, part.start, what)?;
                let learner = match rule {
                    CodeRule::Frozen => Learner::Frozen,
                    CodeRule::Classic => {
                        Learner::Classic(ClassicVotes::new(device, matrix, counter, what)?)
                    }
                    CodeRule::Consensus(parts) => {
                        let sizes = BallotSizes {
                            rows: size.0,
                            cols: size.1,
                            many_micro_batches,
                        };
                        let mut ballots = Ballots::new(device, sizes, parts.table, slot, what)?;
                        ballots.ballot.upload(parts.ballot)?;
                        ballots.row_mean.upload(parts.row_mean)?;
                        ballots.col_mean.upload(parts.col_mean)?;
                        ballots.moments.upload(&parts.moments[..])?;
                        Learner::Consensus {
                            ballots: Box::new(ballots),
                            quantum: parts.quantum,
                            updates: parts.moments[2],
                        }
                    }
                };
                (weights, learner)
            }
        };
        Ok(Matrix {
            weights,
            learner,
            part,
            tensor,
        })
    }

    /// Copies codes, and what the rule remembers, to `weight`; its float part is the arena's.
    pub(super) fn download(&self, weight: &mut Weight) -> Result<(), CudaError> {
        match weight.parts_mut() {
            WeightParts::Still | WeightParts::Dense(_) | WeightParts::OnlyHere => Ok(()),
            WeightParts::Shadow { matrix, .. } => {
                self.download_codes(matrix)?;
                let scales = self.weights.scales(0..self.weights.rows());
                scales.download(matrix.scales_mut())
            }
            WeightParts::Codes { matrix, rule, .. } => {
                self.download_codes(matrix)?;
                match (rule, &self.learner) {
                    (CodeRule::Consensus(parts), Learner::Consensus { ballots, .. }) => {
                        download_ballots(ballots, parts)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    fn download_codes(&self, matrix: &mut QuantMatrix) -> Result<(), CudaError> {
        let (nibbles, high, _) = matrix.planes_mut();
        self.weights.nibbles.download(nibbles)?;
        match high {
            Some(high) => self.weights.high.download(high),
            None => Ok(()),
        }
    }

    /// Its votes of the step, two a word; none where it does not vote by rule `consensus`.
    #[cfg(feature = "nccl")]
    pub(super) fn vote_pairs(&self) -> Option<View<'_, u32>> {
        match &self.learner {
            Learner::Consensus { ballots, .. } => Some(ballots.vote_pairs()),
            _ => None,
        }
    }

    /// Whether its gradient is of use.
    pub(super) fn learns(&self) -> bool {
        !matches!(self.learner, Learner::Still)
    }

    /// Weights that a rule could move from code to code.
    pub(super) fn grid_weights(&self) -> u64 {
        match self.learner {
            Learner::Still | Learner::Dense => 0,
            _ => (self.weights.rows() * self.weights.cols()) as u64,
        }
    }

    pub(super) fn begin_step(&self, ctx: &StepContext<'_>) -> Result<(), CudaError> {
        match &self.learner {
            Learner::Consensus { ballots, .. } => cuda::begin_votes(ballots, ctx.micro_batches),
            _ => Ok(()),
        }
    }

    /// Takes `grad` (rows, cols), the gradient of one micro-batch's mean loss for `rows` rows from
    /// `first` (a multiple of 64) on. One that is not finite sets `bad`, or is found in the sum of
    /// the squared float gradient.
    pub(super) fn accumulate(
        &self,
        ctx: &StepContext<'_>,
        micro_batch: u16,
        (first, rows): (usize, usize),
        grad: View<'_, f32>,
        arena: &FloatArena,
        bad: View<'_, u32>,
    ) -> Result<(), CudaError> {
        let float_grad = arena.grad.view(self.part.clone());
        match &self.learner {
            Learner::Still => Ok(()),
            Learner::Frozen => cuda::scale_gradient(&self.weights, grad, (first, rows), float_grad),
            Learner::Classic(votes) => {
                cuda::keep_gradient(votes, &self.weights, grad, (first, rows), float_grad)
            }
            Learner::Consensus {
                ballots,
                quantum,
                updates,
            } => {
                let numbers = ConsensusStep::new(ctx, *quantum, *updates);
                let step = CastStep {
                    votes_per_unit: numbers.votes_per_unit,
                    vote_clip: ctx.config.vote_clip,
                    blend: numbers.blend,
                    rng: ctx.rng(CAST_STREAM, self.tensor, micro_batch),
                };
                let place = (first, rows);
                cuda::cast_votes(ballots, &self.weights, grad, place, &step, float_grad, bad)
            }
            Learner::Shadow(_) | Learner::Dense => {
                let cols = self.weights.cols();
                cuda::add(grad, float_grad.part(first * cols..(first + rows) * cols))
            }
        }
    }

    pub(super) fn end_micro_batch(&self, ctx: &StepContext<'_>) -> Result<(), CudaError> {
        match &self.learner {
            Learner::Classic(votes) => cuda::cast_classic(votes, ctx.config.classic_k),
            Learner::Consensus { ballots, .. } => cuda::end_votes(ballots),
            _ => Ok(()),
        }
    }

    /// Counts the votes of a step and flips; before the arena's step, which moves the scales.
    pub(super) fn count(&mut self, ctx: &StepContext<'_>) -> Result<(), CudaError> {
        match &mut self.learner {
            Learner::Classic(votes) => {
                let rng = ctx.rng(FLIP_STREAM, self.tensor, 0);
                let probability = ctx.config.classic_probability;
                cuda::count_classic(votes, &self.weights, probability, &rng)
            }
            Learner::Consensus {
                ballots,
                quantum,
                updates,
            } => {
                let numbers = ConsensusStep::new(ctx, *quantum, *updates);
                let rng = ctx.rng(LEAK_STREAM, self.tensor, 0);
                cuda::count_votes(ballots, &self.weights, numbers.leak_q24, &rng)?;
                *updates += 1.0;
                cuda::update_statistics(
                    ballots,
                    ctx.config.stat_decay,
                    ctx.micro_batches,
                    f64::from(numbers.votes_per_unit),
                )
            }
            _ => Ok(()),
        }
    }

    /// Lets codes follow float values; after the arena's step, which moves those.
    pub(super) fn follow(&self, arena: &FloatArena) -> Result<(), CudaError> {
        match &self.learner {
            Learner::Shadow(snap) => {
                cuda::snap_rows(snap, arena.values.view(self.part.clone()), &self.weights)
            }
            _ => Ok(()),
        }
    }

    /// Drops the votes of a step that is not taken.
    pub(super) fn discard(&mut self) -> Result<(), CudaError> {
        match &mut self.learner {
            Learner::Classic(votes) => votes.discard(),
            Learner::Consensus { ballots, .. } => ballots.discard(),
            _ => Ok(()),
        }
    }
}

impl CudaModel {
    /// dW (out, in) = dyᵀ x of one micro-batch, some rows at a time, to what trains the matrix.
    pub(super) fn weight_gradient(
        &self,
        ctx: &StepContext<'_>,
        matrix: usize,
        piece: &Piece,
        (dy, x): (View<'_, f32>, View<'_, f32>),
    ) -> Result<(), CudaError> {
        let Matrix { weights, .. } = &self.matrices[matrix];
        let sizes = (piece.rows.len(), weights.rows(), weights.cols());
        let (_, out, input) = sizes;
        if !self.matrices[matrix].learns() {
            return Ok(());
        }
        for first in (0..out).step_by(GRADIENT_ROWS) {
            let rows = (first, GRADIENT_ROWS.min(out - first));
            let grad = self.buffers.gradient.view(..rows.1 * input);
            cuda::matmul_tn(dy, x, grad, sizes, rows.0, rows.1)?;
            self.accumulate(ctx, matrix, piece, rows, grad)?;
        }
        self.matrices[matrix].end_micro_batch(ctx)
    }

    /// Hands the gradient of rows of a matrix to what trains it.
    pub(super) fn accumulate(
        &self,
        ctx: &StepContext<'_>,
        matrix: usize,
        piece: &Piece,
        rows: (usize, usize),
        grad: View<'_, f32>,
    ) -> Result<(), CudaError> {
        let (arena, bad) = (&self.arena, self.bad.view(..));
        self.matrices[matrix].accumulate(ctx, piece.micro_batch, rows, grad, arena, bad)
    }
}

fn upload_still(device: &Device, weight: &Weight, what: &str) -> Result<DeviceWeights, CudaError> {
    match (weight.quant(), weight.dense()) {
        (Some(matrix), _) => DeviceWeights::upload(device, matrix, what),
        (None, values) => {
            let size = (weight.rows(), weight.cols());
            DeviceWeights::upload_dense(device, values.unwrap_or_default(), size, what)
        }
    }
}

fn download_ballots(ballots: &Ballots, parts: ConsensusParts<'_>) -> Result<(), CudaError> {
    ballots.ballot.download(parts.ballot)?;
    ballots.row_mean.download(parts.row_mean)?;
    ballots.col_mean.download(parts.col_mean)?;
    ballots.moments.download(&mut parts.moments[..])
}
