//! A model that reads and writes text, where it runs: on the processor or on a GPU.

use primal_kernels::{CacheKind, Isa};

use crate::checkpoint::Checkpoint;
use crate::config::{Backend, Compute};
#[cfg(feature = "cuda")]
use crate::cuda::CudaInferenceModel;
use crate::error::ModelError;
use crate::generate::Generator;
use crate::inference::InferenceModel;
use crate::shape::ModelShape;

/// The model of a checkpoint in the memory of what computes it.
pub enum ResidentModel {
    /// On the processor.
    Cpu(Box<InferenceModel>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaInferenceModel>),
}

impl ResidentModel {
    /// Loads a model for `backend`, to remember tokens in a cache of `kind` and to multiply by
    /// matrices on the grid as `compute` says. Where the choice is free it goes to a GPU if there
    /// is one that takes it.
    ///
    /// # Errors
    /// What is wrong with the files, or with the GPU that was asked for.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Backend,
        kind: CacheKind,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        match backend {
            Backend::Cpu => {}
            Backend::Cuda => return ResidentModel::on_gpu(checkpoint, kind, compute),
            Backend::Auto => match ResidentModel::on_gpu(checkpoint, kind, compute) {
                Ok(model) => return Ok(model),
                Err(error) => tracing::debug!(%error, "runs on the processor"),
            },
        }
        let model = checkpoint.load_for_inference(compute)?;
        Ok(ResidentModel::Cpu(model.into()))
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(
        checkpoint: &Checkpoint,
        kind: CacheKind,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        if kind != CacheKind::F16 {
            return Err(ModelError::Cuda(
                "a GPU keeps keys and values in f16; hint: --kv-cache f16, or --backend cpu".into(),
            ));
        }
        Ok(ResidentModel::Cuda(checkpoint.load_on_gpu(compute)?.into()))
    }

    #[cfg(not(feature = "cuda"))]
    fn on_gpu(
        _checkpoint: &Checkpoint,
        _kind: CacheKind,
        _compute: Compute,
    ) -> Result<Self, ModelError> {
        Err(ModelError::NoCuda)
    }

    /// The sizes.
    pub fn shape(&self) -> &ModelShape {
        match self {
            ResidentModel::Cpu(model) => model.shape(),
            #[cfg(feature = "cuda")]
            ResidentModel::Cuda(model) => model.shape(),
        }
    }

    /// An empty memory for the model, of the kind that it was loaded for. `isa` is for the
    /// processor.
    ///
    /// # Errors
    /// Too little memory on a GPU.
    pub fn generator(&self, isa: Isa, kind: CacheKind) -> Result<Generator<'_>, ModelError> {
        match self {
            ResidentModel::Cpu(model) => Ok(Generator::new(model, isa, kind)),
            #[cfg(feature = "cuda")]
            ResidentModel::Cuda(model) => Generator::on_gpu(model),
        }
    }
}
