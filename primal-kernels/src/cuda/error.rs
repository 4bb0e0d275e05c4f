//! What can go wrong between here and a GPU, with what to do about it.

use cudarc::driver::sys::CUresult;

/// Errors of the CUDA layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// No libcuda.so.
    #[error(
        "no NVIDIA driver: libcuda.so was not found; hint: install the driver (on Debian: apt install nvidia-driver), or use --backend cpu"
    )]
    NoDriver,
    /// A driver that sees no GPU.
    #[error("the NVIDIA driver finds no GPU; hint: nvidia-smi shows what it sees")]
    NoDevice,
    /// A driver that refuses to start.
    #[error("the NVIDIA driver does not start: {0}; hint: nvidia-smi says why")]
    DriverFails(String),
    /// A GPU number that does not exist.
    #[error("there is no GPU {ordinal}: the driver finds {count}")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: usize,
        /// GPUs found.
        count: usize,
    },
    /// A GPU older than the kernels.
    #[error("{name} is sm_{capability}; the kernels need sm_61 (Pascal) or newer")]
    TooOld {
        /// The GPU's name.
        name: String,
        /// Its compute capability, times ten.
        capability: i32,
    },
    /// No image of the kernels that this driver loads.
    #[error(
        "driver {driver} loads none of the kernels: {tried}; hint: the driver must be of CUDA 11.8 (520) or newer"
    )]
    NoImage {
        /// The CUDA version of the driver.
        driver: String,
        /// What was tried and why it failed.
        tried: String,
    },
    /// NVRTC could not be loaded.
    #[error(
        "no NVRTC: {0}; hint: pip install nvidia-cuda-nvrtc-cu12, or set PRIMAL_NVRTC to the library"
    )]
    NoNvrtc(String),
    /// NVRTC is too new or too old for the GPU.
    #[error("{0}")]
    WrongNvrtc(String),
    /// The sources do not compile.
    #[error("the kernels do not compile:\n{0}")]
    Compile(String),
    /// cuBLAS, which was asked for, cannot be used.
    #[error("no cuBLAS: {0}")]
    NoCublas(&'static str),
    /// The device's memory is used up.
    #[error(
        "out of GPU memory: {what} needs {bytes} bytes, {free} of {total} are free; hint: a smaller --batch, or more --micro-batches, to train; --backend cpu to generate"
    )]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes free.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// More buffers than were planned.
    #[error(
        "{what} needs {bytes} bytes of GPU memory, {left} are left of the {total} that the ledger planned"
    )]
    PoolOverdrawn {
        /// The buffer.
        what: String,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes left.
        left: u64,
        /// Bytes of the pool.
        total: u64,
    },
    /// A kernel that crashed, or any other call that failed.
    #[error("GPU call {call} failed: {code}{detail}")]
    Call {
        /// The function of the driver, or the kernel.
        call: String,
        /// The driver's name of the error.
        code: String,
        /// More, where there is more.
        detail: String,
    },
    /// NCCL could not be loaded.
    #[error(
        "no NCCL, which several GPUs need: {0}; hint: pip install nvidia-nccl-cu12 (on Debian: apt install libnccl2), or set PRIMAL_NCCL to the library"
    )]
    NoNccl(String),
    /// An NCCL without the functions that are needed.
    #[error("NCCL {version} ({path}) is older than 2.4; hint: pip install nvidia-nccl-cu12")]
    OldNccl {
        /// Its version.
        version: String,
        /// The file.
        path: String,
    },
    /// A call of NCCL that failed.
    #[error("NCCL call {call} failed: {text}; hint: NCCL_DEBUG=WARN says more")]
    Nccl {
        /// The function.
        call: &'static str,
        /// NCCL's description of the error.
        text: String,
    },
    /// A GPU that the others waited for in vain.
    #[error(
        "GPU {ordinal} did not end an exchange within {seconds} s; hint: nvidia-smi and dmesg show a GPU that failed; go on with --resume on those that are left"
    )]
    ExchangeLost {
        /// Its number, as the driver counts.
        ordinal: usize,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Fewer GPUs than asked for.
    #[error(
        "{asked} GPUs are asked for, the driver finds {found}; hint: --gpus {found}; nvidia-smi and CUDA_VISIBLE_DEVICES say which there are"
    )]
    TooFewGpus {
        /// GPUs asked for.
        asked: usize,
        /// GPUs found.
        found: usize,
    },
    /// GPUs that round differently.
    #[error(
        "GPU {ordinal} is sm_{capability} and GPU 0 is sm_{first}: the GPUs of a run must be of one architecture, or its bits would depend on who computes what; hint: CUDA_VISIBLE_DEVICES chooses GPUs"
    )]
    MixedGpus {
        /// The GPU that differs, as the driver counts.
        ordinal: usize,
        /// Its compute capability, times ten.
        capability: i32,
        /// That of the first GPU.
        first: i32,
    },
    /// A shape that a kernel does not take.
    #[error("{0}")]
    Unsupported(String),
}

impl CudaError {
    /// The failure of a call, in the driver's words.
    pub(crate) fn of(call: impl Into<String>, code: CUresult) -> CudaError {
        CudaError::Call {
            call: call.into(),
            code: format!("{code:?}"),
            detail: error_text(code).map_or_else(String::new, |text| format!(", {text}")),
        }
    }
}

/// The driver's description of an error.
fn error_text(code: CUresult) -> Option<String> {
    let error = cudarc::driver::result::DriverError(code);
    let text = error.error_string().ok()?;
    Some(text.to_string_lossy().into_owned()).filter(|text| !text.is_empty())
}
