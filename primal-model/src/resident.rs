//! A model that reads and writes text, where it runs: on the processor or on a GPU.

use primal_kernels::{CacheKind, Isa};

use crate::checkpoint::Checkpoint;
use crate::config::{Backend, Compute, Config};
#[cfg(feature = "cuda")]
use crate::cuda::CudaInferenceModel;
use crate::engine::GpuUse;
use crate::error::ModelError;
use crate::generate::Generator;
use crate::inference::{InferenceModel, Random, Weights};
use crate::shape::ModelShape;

/// A model in the memory of what computes it.
pub enum ResidentModel {
    /// On the processor.
    Cpu(Box<InferenceModel>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<CudaInferenceModel>),
}

impl ResidentModel {
    /// Loads a model for `backend`, to multiply by matrices on the grid as `compute` says. Where
    /// the choice is free it goes to a GPU if there is one that takes it.
    ///
    /// # Errors
    /// What is wrong with the files, or with the GPU that was asked for.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: Backend,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let vocab = checkpoint.position.vocab;
        let file = checkpoint.weights()?;
        let config = checkpoint.config.in_use();
        ResidentModel::open(&config, vocab, &file, backend, compute)
    }

    /// A model with random weights, to be measured, as [`ResidentModel::load`] would have it in
    /// int8.
    ///
    /// # Errors
    /// Sizes that make no model, or what is wrong with the GPU that was asked for.
    pub fn random(config: &Config, vocab: usize, backend: Backend) -> Result<Self, ModelError> {
        let random = Random { config };
        ResidentModel::open(config, vocab, &random, backend, Compute::Int8)
    }

    fn open(
        config: &Config,
        vocab: usize,
        from: &dyn Weights,
        backend: Backend,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        if backend != Backend::Cpu {
            match ResidentModel::on_gpu(config, vocab, from, compute) {
                Err(error) if backend == Backend::Auto => {
                    tracing::debug!(%error, "runs on the processor");
                }
                opened => return opened,
            }
        }
        let model = InferenceModel::packed(config, vocab, from, compute)?;
        Ok(ResidentModel::Cpu(model.into()))
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(
        config: &Config,
        vocab: usize,
        from: &dyn Weights,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        if let Some(what) = config.model.only_on_cpu() {
            return Err(ModelError::OnlyOnCpu(what));
        }
        let model = CudaInferenceModel::open(config, vocab, from, compute)?;
        Ok(ResidentModel::Cuda(model.into()))
    }

    #[cfg(not(feature = "cuda"))]
    fn on_gpu(
        _config: &Config,
        _vocab: usize,
        _from: &dyn Weights,
        _compute: Compute,
    ) -> Result<Self, ModelError> {
        Err(ModelError::NoCuda)
    }

    /// Bytes of all matrices.
    pub fn weight_bytes(&self) -> u64 {
        match self {
            ResidentModel::Cpu(model) => model.weight_bytes(),
            #[cfg(feature = "cuda")]
            ResidentModel::Cuda(model) => model.weight_bytes(),
        }
    }

    /// The packed codes and bytes that the processor reads for every token; none on a GPU.
    pub fn codes(&self) -> Vec<&[u8]> {
        match self {
            ResidentModel::Cpu(model) => model.codes(),
            #[cfg(feature = "cuda")]
            ResidentModel::Cuda(_) => Vec::new(),
        }
    }

    /// The GPU that it is on, if it is on one.
    pub fn gpu(&self) -> Option<GpuUse> {
        match self {
            ResidentModel::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            ResidentModel::Cuda(model) => Some(model.gpu()),
        }
    }

    /// The sizes.
    pub fn shape(&self) -> &ModelShape {
        match self {
            ResidentModel::Cpu(model) => model.shape(),
            #[cfg(feature = "cuda")]
            ResidentModel::Cuda(model) => model.shape(),
        }
    }

    /// An empty memory for the model. `isa` is for the processor.
    ///
    /// # Errors
    /// Too little memory on a GPU.
    pub fn generator(&self, isa: Isa, kind: CacheKind) -> Result<Generator<'_>, ModelError> {
        match self {
            ResidentModel::Cpu(model) => Ok(Generator::new(model, isa, kind)),
            #[cfg(feature = "cuda")]
            ResidentModel::Cuda(model) => Generator::on_gpu(model, kind),
        }
    }
}
