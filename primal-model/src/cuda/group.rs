//! One model trained on several GPUs of a machine: each holds all of it and works on its own
//! micro-batches, one at a time.
//!
//! The micro-batches of a step go round: in round r of N GPUs, GPU g has micro-batch r·N + g. After
//! a round, every GPU receives the **float sums** of all N micro-batches on their own and folds them
//! in the order of the micro-batches. After the last round the **votes**, integers that have no
//! order, are summed over the GPUs. Then all of them have what a single GPU would have, take the same
//! step, and no weight is sent. The bits are those of one GPU, whatever N is.

use std::time::{Duration, Instant};

use primal_kernels::cuda::{
    self, Clique, CudaError, Device, Nccl, Rounds, VOTES_TOO_LARGE, View, device_count,
};
use primal_optim::{FlipStats, Rule, StepContext};

use super::matrix::Matrix;
use super::{CudaModel, gpu_use, open_device};
use crate::checkpoint::{Position, state_hash};
use crate::config::Config;
use crate::engine::{Engine, GpuUse, Opened};
use crate::error::ModelError;
use crate::ledger::Ledger;
use crate::metrics::ExchangeRow;
use crate::model::{Model, Pass};

/// The GPUs of a run.
pub(crate) struct CudaGroup {
    /// Ends before the buffers do that it may still be reading.
    clique: Clique,
    /// By their numbers, which are also the order of their micro-batches in a round.
    members: Vec<Member>,
    /// What the step has exchanged so far, in bytes that a ring of GPUs sends.
    exchanged: ExchangeRow,
}

/// One GPU.
struct Member {
    model: CudaModel,
    /// Gradients of scales, norms and biases.
    gradients: Rounds<f32>,
    /// Sums of squares of the votes' statistics.
    squares: Rounds<f32>,
    /// Sums of the casts.
    casts: Rounds<f64>,
}

impl Member {
    fn new(
        device: &Device,
        config: &Config,
        model: &mut Model,
        ledger: &Ledger,
    ) -> Result<Member, ModelError> {
        let gpus = config.train.gpus;
        let model = CudaModel::on(device, config, model, ledger)?;
        // That has the memory of the ledger.
        let device = &model.device;
        let rounds = |len| Rounds::new(device, gpus, len);
        let member = Member {
            gradients: rounds(model.layout.floats)?,
            squares: rounds(model.layout.lines)?,
            casts: Rounds::new(device, gpus, 2 * model.layout.matrices())?,
            model,
        };
        member.model.check_placed(ledger)?;
        Ok(member)
    }

    /// Folds the sums of a round.
    fn fold(&self, is_last: bool) -> Result<(), CudaError> {
        let CudaModel { arena, sums, .. } = &self.model;
        self.gradients.fold(arena.grad.view(..), is_last)?;
        self.squares.fold(sums.squares.view(..), is_last)?;
        self.casts.fold(sums.cast.view(..), is_last)
    }
}

impl CudaGroup {
    /// Copies `model` to the first `train.gpus` GPUs; returns the ledger of each of them too.
    pub(crate) fn open(config: &Config, model: &mut Model) -> Result<Opened, ModelError> {
        let asked = config.train.gpus;
        if config.optim.rule != Rule::Consensus || !config.model.float_parts.is_empty() {
            return Err(ModelError::Cuda(
                "several GPUs train rule consensus with every matrix on the grid; hint: --gpus 1"
                    .into(),
            ));
        }
        CudaModel::check(config)?;
        let found = device_count()?;
        if asked > found {
            return Err(CudaError::TooFewGpus { asked, found }.into());
        }
        let nccl = Nccl::find()?;
        tracing::debug!(version = nccl.version_name(), path = %nccl.path.display(), "NCCL");
        let devices: Vec<Device> = (0..asked).map(open_device).collect::<Result<_, _>>()?;
        let first = devices[0].capability();
        if let Some(other) = devices.iter().find(|it| it.capability() != first) {
            return Err(CudaError::MixedGpus {
                ordinal: other.ordinal(),
                capability: other.capability(),
                first,
            }
            .into());
        }
        // Before the memory is looked at, of which NCCL takes some.
        let timeout = Duration::from_secs(config.train.rank_timeout_s);
        let clique = Clique::new(nccl, &devices, timeout)?;
        let ledger = Ledger::for_gpu_training(config, model.shape());
        let members = devices
            .iter()
            .map(|device| Member::new(device, config, model, &ledger))
            .collect::<Result<_, _>>()?;
        let opened = CudaGroup {
            clique,
            members,
            exchanged: ExchangeRow {
                ranks: asked,
                ..ExchangeRow::default()
            },
        };
        Ok((Box::new(opened), ledger))
    }

    /// Does `work` on every GPU at once, each in a thread of its own since it waits for its GPU, with
    /// one of `inputs`. Returns what they say in the order of the GPUs, or the first error.
    fn on_all<I: Send, T: Send>(
        &mut self,
        inputs: impl IntoIterator<Item = I>,
        work: impl Fn(&mut CudaModel, I) -> Result<T, ModelError> + Sync,
    ) -> Result<Vec<T>, ModelError> {
        let work = &work;
        std::thread::scope(|scope| {
            let start = |(member, input): (_, I)| {
                let Member { model, .. }: &mut Member = member;
                scope.spawn(move || work(model, input))
            };
            let threads: Vec<_> = self.members.iter_mut().zip(inputs).map(start).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            // All threads have ended before the first error is looked at.
            let results: Vec<Result<T, ModelError>> = threads.into_iter().map(join).collect();
            results.into_iter().collect()
        })
    }

    /// Gives every GPU the float sums of all, and folds them.
    fn end_round(&mut self, is_last: bool) -> Result<(), CudaError> {
        let started = Instant::now();
        self.clique.exchange(|queue| {
            for (at, member) in self.members.iter().enumerate() {
                let CudaModel { arena, sums, .. } = &member.model;
                queue.gather(at, arena.grad.view(..), member.gradients.parts())?;
                queue.gather(at, sums.squares.view(..), member.squares.parts())?;
                queue.gather(at, sums.cast.view(..), member.casts.parts())?;
            }
            Ok(())
        })?;
        let mut members = self.members.iter();
        members.try_for_each(|member| member.fold(is_last))?;
        let layout = &self.members[0].model.layout;
        let bytes = 4 * (layout.floats + layout.lines) + 16 * layout.matrices();
        self.exchanged.sent_bytes += (bytes * (self.members.len() - 1)) as u64;
        self.exchanged.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Gives every GPU the sums of all votes.
    fn sum_votes(&mut self) -> Result<(), ModelError> {
        let started = Instant::now();
        let gpus = self.members.len();
        self.each_matrix(&mut |_, model, pairs| cuda::pair_votes(pairs, gpus, model.bad.view(..)))?;
        for Member { model, .. } in &self.members {
            if model.flag()? & VOTES_TOO_LARGE != 0 {
                return Err(ModelError::Cuda(
                    "the votes of a step do not fit 16 bits; hint: lower optim.eta".into(),
                ));
            }
        }
        self.clique
            .exchange(|queue| self.each_matrix(&mut |at, _, pairs| queue.sum(at, pairs)))?;
        self.each_matrix(&mut |_, model, pairs| cuda::unpair_votes(pairs, model.bad.view(..)))?;
        let matrices = self.members[0].model.matrices.iter();
        let pairs = matrices.filter_map(Matrix::vote_pairs);
        let bytes: usize = pairs.map(|it| 4 * it.len()).sum();
        self.exchanged.sent_bytes += (2 * bytes * (gpus - 1) / gpus) as u64;
        self.exchanged.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Walks over the votes of all matrices on all GPUs.
    fn each_matrix(&self, each: &mut EachMatrix<'_>) -> Result<(), CudaError> {
        for (at, Member { model, .. }) in self.members.iter().enumerate() {
            for pairs in model.matrices.iter().filter_map(Matrix::vote_pairs) {
                each(at, model, pairs)?;
            }
        }
        Ok(())
    }
}

/// Takes the number of a GPU, its model, and the votes of one matrix there.
type EachMatrix<'a> = dyn FnMut(usize, &CudaModel, View<'_, u32>) -> Result<(), CudaError> + 'a;

impl Engine for CudaGroup {
    fn gpu(&self) -> GpuUse {
        gpu_use(&self.members[0].model.device)
    }

    fn exchange(&self) -> Option<ExchangeRow> {
        Some(self.exchanged)
    }

    fn begin_step(&mut self, ctx: &StepContext<'_>) -> Result<(), ModelError> {
        (self.exchanged.sent_bytes, self.exchanged.seconds) = (0, 0.0);
        let mut members = self.members.iter_mut();
        members.try_for_each(|member| member.model.begin_step(ctx))
    }

    /// One round: a micro-batch a GPU.
    fn forward_backward(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        losses: &mut [f64],
    ) -> Result<bool, ModelError> {
        let gpus = self.members.len();
        let rows = pass.tokens.len() / gpus;
        let tokens = pass.tokens.chunks_exact(rows);
        let parts = tokens.zip(pass.targets.chunks_exact(rows)).enumerate();
        let parts = parts.map(|(at, (tokens, targets))| Pass {
            first_micro_batch: pass.first_micro_batch + at as u16,
            micro_batches: 1,
            time: pass.time,
            tokens,
            targets,
        });
        // Whoever fails does so before the others begin to wait for it.
        let finite = self.on_all(parts.zip(losses.chunks_mut(1)), |model, (part, loss)| {
            let finite = model.forward_backward(ctx, &part, loss)?;
            model.device.synchronise()?;
            Ok(finite)
        })?;
        if finite.contains(&false) {
            return Ok(false);
        }
        let done = usize::from(pass.first_micro_batch) + gpus;
        self.end_round(done == usize::from(ctx.micro_batches))?;
        Ok(true)
    }

    fn grad_norm(&mut self, ctx: &StepContext<'_>) -> Result<f64, ModelError> {
        for member in &self.members {
            if member.model.flag()? != 0 {
                return Ok(f64::NAN);
            }
        }
        // All have the same sums.
        self.members[0].model.grad_norm(ctx)
    }

    fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) -> Result<FlipStats, ModelError> {
        self.sum_votes()?;
        let inputs = vec![(); self.members.len()];
        let stats = self.on_all(inputs, |model, ()| model.step(ctx, grad_factor))?;
        let flips: Vec<String> = stats.iter().map(|it| it.flips.to_string()).collect();
        agree("flips", &flips)?;
        Ok(stats[0])
    }

    fn discard(&mut self) -> Result<(), ModelError> {
        for member in &mut self.members {
            member.model.discard()?;
            member.gradients.discard()?;
            member.squares.discard()?;
            member.casts.discard()?;
        }
        Ok(())
    }

    fn sum_of_losses(&mut self, pass: &Pass<'_>) -> Result<f64, ModelError> {
        self.members[0].model.sum_of_losses(pass)
    }

    fn rows(&self) -> usize {
        self.members[0].model.rows()
    }

    /// From every GPU: they must all have the same.
    fn download(&mut self, model: &mut Model) -> Result<(), ModelError> {
        let mut hashes = Vec::with_capacity(self.members.len());
        for member in &mut self.members {
            member.model.download(model)?;
            hashes.push(state_hash(model, &Position::default()));
        }
        agree("training state", &hashes)
    }
}

/// Every GPU must say what the first one does.
fn agree(what: &'static str, said: &[String]) -> Result<(), ModelError> {
    match said.iter().position(|it| *it != said[0]) {
        None => Ok(()),
        Some(gpu) => Err(ModelError::GpusDiffer { what, gpu }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_that_differs_is_named() {
        let said = |words: [&str; 3]| words.map(String::from);
        assert!(agree("training state", &said(["a", "a", "a"])).is_ok());
        let error = agree("training state", &said(["a", "a", "b"])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("GPU 2 has another training state"),
            "{error}"
        );
    }
}
