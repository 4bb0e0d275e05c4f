//! Training on something other than the processor: what the training loop asks of it.

use primal_optim::{FlipStats, StepContext};

use crate::config::{Backend, Config};
use crate::error::ModelError;
use crate::ledger::Ledger;
use crate::metrics::ExchangeRow;
use crate::model::{Model, Pass};
#[cfg(doc)]
use crate::parameters::Parameters;

/// A device that holds the whole training state and computes passes and steps; the methods are
/// those of [`Model`]. The model of the training loop is then a copy that
/// [`Engine::download`] brings up to date.
pub(crate) trait Engine: Send {
    /// Prepares the parameters for a step.
    fn begin_step(&mut self, ctx: &StepContext<'_>) -> Result<(), ModelError>;

    /// As [`Model::forward_backward`].
    fn forward_backward(
        &mut self,
        ctx: &StepContext<'_>,
        pass: &Pass<'_>,
        losses: &mut [f64],
    ) -> Result<bool, ModelError>;

    /// As [`Parameters::grad_norm`].
    fn grad_norm(&mut self, ctx: &StepContext<'_>) -> Result<f64, ModelError>;

    /// As [`Parameters::step`].
    fn step(&mut self, ctx: &StepContext<'_>, grad_factor: f32) -> Result<FlipStats, ModelError>;

    /// As [`Parameters::discard`].
    fn discard(&mut self) -> Result<(), ModelError>;

    /// The sum of the losses in nats of the tokens of a pass; no gradients.
    fn sum_of_losses(&mut self, pass: &Pass<'_>) -> Result<f64, ModelError>;

    /// Token rows of the largest pass.
    fn rows(&self) -> usize;

    /// Copies the training state to `model`.
    fn download(&mut self, model: &mut Model) -> Result<(), ModelError>;

    /// What it computes on, the first of several.
    fn gpu(&self) -> GpuUse;

    /// What its GPUs exchanged in the last step, if there are several.
    fn exchange(&self) -> Option<ExchangeRow> {
        None
    }
}

/// A GPU in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuUse {
    /// Compute capability, such as `sm_61`.
    pub architecture: String,
    /// Bytes of all buffers on it; none comes or goes while a model computes.
    pub allocated_bytes: u64,
}

/// An engine that holds a model, and the ledger of its memory.
pub(crate) type Opened = (Box<dyn Engine>, Ledger);

/// Whether a run of `config` trains on a GPU: asked for, or present and able to where the choice
/// is free. Several GPUs are always asked for.
#[cfg(feature = "cuda")]
pub(crate) fn open(config: &Config, model: &mut Model) -> Result<Option<Opened>, ModelError> {
    use crate::cuda::CudaModel;
    if let Some(what) = config.model.only_on_cpu() {
        return match (config.train.backend, config.train.gpus) {
            (Backend::Cuda, _) | (_, 2..) => Err(ModelError::OnlyOnCpu(what)),
            (Backend::Cpu | Backend::Auto, _) => Ok(None),
        };
    }
    match (config.train.backend, config.train.gpus) {
        (Backend::Cpu, _) => Ok(None),
        (_, 2..) => open_group(config, model).map(Some),
        (Backend::Cuda, _) => Ok(Some(CudaModel::open(config, model)?)),
        (Backend::Auto, _) => match CudaModel::open(config, model) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => {
                tracing::info!(%error, "trains on the processor");
                Ok(None)
            }
        },
    }
}

#[cfg(feature = "nccl")]
fn open_group(config: &Config, model: &mut Model) -> Result<Opened, ModelError> {
    crate::cuda::CudaGroup::open(config, model)
}

#[cfg(all(feature = "cuda", not(feature = "nccl")))]
fn open_group(_config: &Config, _model: &mut Model) -> Result<Opened, ModelError> {
    Err(ModelError::NoNccl)
}

/// Whether a run of `config` trains on a GPU: this build has none.
#[cfg(not(feature = "cuda"))]
pub(crate) fn open(config: &Config, _model: &mut Model) -> Result<Option<Opened>, ModelError> {
    match (config.train.backend, config.train.gpus) {
        (Backend::Cuda, _) | (_, 2..) => Err(ModelError::NoCuda),
        (Backend::Cpu | Backend::Auto, _) => Ok(None),
    }
}
