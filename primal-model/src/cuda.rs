//! A whole model on a GPU, to train it, and in [`generate`] to read and write text.
//!
//! In training no weight, ballot or activation crosses the bus in a step. Up go tokens and their
//! index, down come a loss a micro-batch, sums of squared gradients and counts of flips.
//!
//! The order of every operation is that of the processor's model, so that votes and flips are the
//! same ones. Products in int8 have the bits of the processor's; gradients of weights are float32,
//! as those of the processor with `train.compute = "int8-float-gradients"`.

mod generate;
#[cfg(feature = "nccl")]
mod group;
mod layers;
mod matrix;
mod pass;
mod state;

use std::ops::Range;
use std::sync::Arc;

use primal_kernels::cuda::{
    Buffer, CudaError, Device, FloatProducts, ImageChoice, OpenOptions, VoteSums,
};
use primal_optim::{FlipStats, StepContext};

use crate::config::{Backend, Compute, Config};
use crate::engine::{Engine, GpuUse, Opened};
use crate::error::ModelError;
use crate::ledger::Ledger;
use crate::model::{Model, Pass};
use crate::shape::ModelShape;

pub use generate::CudaInferenceModel;
pub(crate) use generate::CudaReader;
#[cfg(feature = "nccl")]
pub(crate) use group::CudaGroup;
use matrix::Matrix;
use pass::{PassBuffers, Piece};
use state::{FloatArena, Layout};

impl From<CudaError> for ModelError {
    fn from(error: CudaError) -> Self {
        ModelError::Cuda(error.to_string())
    }
}

/// A GPU by its number, with the kernels that suit it best.
fn open_device(ordinal: usize) -> Result<Device, CudaError> {
    let image = match std::env::var_os("PRIMAL_KERNELS") {
        Some(choice) if choice == "checked-in" => ImageChoice::CheckedIn,
        _ => ImageChoice::Auto,
    };
    let float_products = match std::env::var_os("PRIMAL_CUBLAS") {
        Some(choice) if choice == "on" => FloatProducts::Cublas,
        _ => FloatProducts::Kernels,
    };
    let is_off = |variable| std::env::var_os(variable).is_some_and(|it| it == "off");
    let device = Device::open(OpenOptions {
        ordinal,
        image,
        separate_buffers: is_off("PRIMAL_GPU_POOL"),
        without_tensor_cores: is_off("PRIMAL_TENSOR_CORES"),
        float_products,
    })?;
    if let Some(notice) = device.notice() {
        tracing::warn!(
            device = device.name(),
            notice,
            "kernels are not compiled for this GPU"
        );
    }
    Ok(device)
}

/// The device with the memory of a ledger.
fn with_pool(device: &Device, ledger: &Ledger) -> Result<Device, CudaError> {
    /// Drivers round up to 2 MiB, and describe the memory somewhere.
    const USUAL_BYTES: u64 = 8 << 20;
    let device = device.with_pool(ledger.total())?;
    let planned = ledger.total();
    if let Some(taken) = device.taken_bytes()
        && taken.abs_diff(planned) > USUAL_BYTES
    {
        // No error: other programs take and return memory too.
        tracing::warn!(
            planned,
            taken,
            "the free memory of the GPU fell by something else than the bytes of the ledger"
        );
    }
    Ok(device)
}

fn gpu_use(device: &Device) -> GpuUse {
    GpuUse {
        architecture: format!("sm_{}", device.capability()),
        allocated_bytes: device.allocated_bytes(),
    }
}

/// A model and its training state on a GPU.
pub(crate) struct CudaModel {
    device: Device,
    shape: ModelShape,
    layout: Layout,
    matrices: Vec<Matrix>,
    arena: FloatArena,
    sums: Arc<VoteSums>,
    /// Set by a gradient that is not finite.
    bad: Buffer<u32>,
    buffers: PassBuffers,
}

impl CudaModel {
    /// Copies `model` to the GPU of a run of `config`; returns its ledger too.
    pub(crate) fn open(config: &Config, model: &mut Model) -> Result<Opened, ModelError> {
        CudaModel::check(config)?;
        let ledger = Ledger::for_gpu_training(config, model.shape());
        let opened = CudaModel::on(&open_device(0)?, config, model, &ledger)?;
        opened.check_placed(&ledger)?;
        Ok((Box::new(opened), ledger))
    }

    /// Refuses what a GPU does not train.
    fn check(config: &Config) -> Result<(), ModelError> {
        let rule = config.optim.rule;
        if !Backend::Cuda.trains(rule) {
            return Err(ModelError::Cuda(format!(
                "a GPU does not train by rule {rule} yet; hint: --rule consensus"
            )));
        }
        if config.resolved_compute() == Compute::Int8Blocks {
            return Err(ModelError::Cuda(
                "a GPU does not compute in int8-blocks; hint: --set train.compute=int8".into(),
            ));
        }
        Ok(())
    }

    /// Copies `model` to a GPU, which gives the memory of `ledger` to the run.
    fn on(
        device: &Device,
        config: &Config,
        model: &mut Model,
        ledger: &Ledger,
    ) -> Result<CudaModel, ModelError> {
        let (free, total) = device.memory()?;
        if ledger.total() > free && !config.train.ignore_memory_limit {
            return Err(CudaError::OutOfMemory {
                what: "the run, by its ledger,".into(),
                bytes: ledger.total(),
                free,
                total,
            }
            .into());
        }
        let device = with_pool(device, ledger)?;
        let layout = Layout::of(model);
        let sums = Arc::new(VoteSums::new(&device, layout.matrices(), layout.lines)?);
        let arena = FloatArena::upload(&device, &layout, model)?;
        let many = config.train.micro_batches > 1;
        let matrices = state::upload_matrices(&device, &layout, &arena, model, many, &sums)?;
        Ok(CudaModel {
            bad: Buffer::zeros(&device, 1, "flag")?,
            buffers: PassBuffers::new(&device, config, &layout, model)?,
            device,
            shape: *model.shape(),
            layout,
            matrices,
            arena,
            sums,
        })
    }

    /// Whether the buffers are those of the ledger.
    fn check_placed(&self, ledger: &Ledger) -> Result<(), ModelError> {
        let planned = ledger.total() - ledger.alignment;
        let allocated = self.device.placed_bytes();
        if allocated == planned {
            return Ok(());
        }
        Err(ModelError::Ledger {
            what: "GPU memory",
            allocated,
            planned,
        })
    }

    /// What kernels have set in `bad`.
    fn flag(&self) -> Result<u32, CudaError> {
        Ok(self.bad.to_vec()?[0])
    }

    fn pieces(&self, pass: &Pass<'_>) -> Vec<Piece> {
        let count = pass.micro_batches.max(1);
        let rows = pass.tokens.len() / count;
        (0..count)
            .map(|i| {
                let rows = i * rows..(i + 1) * rows;
                let targets = &pass.targets[rows.clone()];
                Piece {
                    micro_batch: pass.first_micro_batch + i as u16,
                    counted: targets.iter().filter(|&&target| target != u32::MAX).count(),
                    rows,
                }
            })
            .collect()
    }
}

impl Engine for CudaModel {
    fn gpu(&self) -> GpuUse {
        gpu_use(&self.device)
    }

    fn begin_step(&mut self, ctx: &StepContext<'_>) -> Result<(), ModelError> {
        for matrix in &self.matrices {
            matrix.begin_step(ctx)?;
        }
        self.sums.counted.view(..).clear()?;
        Ok(self.bad.clear()?)
    }

    fn forward_backward(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        losses: &mut [f64],
    ) -> Result<bool, ModelError> {
        let pieces = self.pieces(pass);
        self.forward(pass)?;
        self.losses_of(&pieces, losses)?;
        for (loss, piece) in losses.iter_mut().zip(&pieces) {
            *loss /= piece.counted.max(1) as f64;
        }
        if !losses.iter().all(|loss| loss.is_finite()) {
            return Ok(false);
        }
        self.backward(ctx, pass, &pieces)?;
        Ok(true)
    }

    fn grad_norm(&mut self, ctx: &StepContext<'_>) -> Result<f64, ModelError> {
        if self.flag()? != 0 {
            return Ok(f64::NAN);
        }
        let sum = self.arena.sum_squares()?;
        Ok(sum.sqrt() / f64::from(ctx.micro_batches))
    }

    fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) -> Result<FlipStats, ModelError> {
        let mut stats = FlipStats::default();
        for matrix in &mut self.matrices {
            matrix.count(ctx)?;
            stats.weights += matrix.grid_weights();
        }
        self.arena.step(ctx, grad_factor)?;
        for matrix in &self.matrices {
            matrix.follow(&self.arena)?;
        }
        let counted = self.sums.counted.to_vec()?;
        stats.flips = counted.chunks_exact(2).map(|pair| pair[0]).sum();
        Ok(stats)
    }

    fn discard(&mut self) -> Result<(), ModelError> {
        for matrix in &mut self.matrices {
            matrix.discard()?;
        }
        Ok(self.arena.discard()?)
    }

    fn sum_of_losses(&mut self, pass: &Pass<'_>) -> Result<f64, ModelError> {
        self.forward(pass)?;
        let whole = Piece {
            micro_batch: 0,
            counted: 0,
            rows: 0..pass.tokens.len(),
        };
        let mut sum = [0.0];
        self.losses_of(&[whole], &mut sum)?;
        Ok(sum[0])
    }

    fn rows(&self) -> usize {
        self.buffers.rows
    }

    fn download(&mut self, model: &mut Model) -> Result<(), ModelError> {
        state::download(&self.layout, &self.matrices, &self.arena, model)
    }
}

/// A range of the float arena.
type Part = Range<usize>;
