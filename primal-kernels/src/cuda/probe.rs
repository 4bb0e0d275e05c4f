//! What `primal doctor` says of GPUs: driver, devices, compiler; what is missing and how to get it.

use cudarc::driver::{result, sys};

use super::cache;
use super::device::capability_of;
use super::error::CudaError;
#[cfg(feature = "nccl")]
use super::nccl::Nccl;
use super::nvrtc::Nvrtc;

/// What was found of CUDA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaReport {
    /// CUDA version of the driver, such as "11.8".
    pub driver: Option<String>,
    /// Each GPU: name, compute capability times ten, bytes.
    pub devices: Vec<(String, i32, u64)>,
    /// Version and file of NVRTC.
    pub nvrtc: Option<(String, String)>,
    /// Version and file of NCCL, in a build that knows several GPUs.
    pub nccl: Option<(String, String)>,
    /// Version of cuBLAS, in a build that can use it.
    pub cublas: Option<String>,
    /// Where compiled kernels are kept.
    pub cache: Option<String>,
    /// What is missing, each with what to do.
    pub missing: Vec<String>,
}

/// Looks at everything, without a panic, whatever there is.
pub fn report() -> CudaReport {
    let mut report = CudaReport {
        cache: cache::folder().map(|folder| folder.display().to_string()),
        ..CudaReport::default()
    };
    match driver_version() {
        Ok(version) => {
            report.driver = Some(version);
            let count = result::device::get_count().unwrap_or(0);
            report.devices = (0..count).filter_map(device).collect();
        }
        Err(error) => report.missing.push(error.to_string()),
    }
    // Without a GPU, the oldest that the kernels run on.
    let capability = report.devices.first().map_or(61, |device| device.1);
    match Nvrtc::find(capability) {
        Ok(nvrtc) => {
            report.nvrtc = Some((nvrtc.version_name(), nvrtc.path.display().to_string()));
        }
        Err(error) => report.missing.push(format!(
            "{error} (the PTX that is part of the program serves meanwhile)"
        )),
    }
    #[cfg(feature = "nccl")]
    match Nccl::find() {
        Ok(nccl) => report.nccl = Some((nccl.version_name(), nccl.path.display().to_string())),
        Err(error) => report.missing.push(error.to_string()),
    }
    #[cfg(feature = "cublas")]
    match super::cublas::version() {
        Ok(version) => report.cublas = Some(version),
        Err(error) => report.missing.push(error.to_string()),
    }
    report
}

/// How many GPUs the driver finds.
pub fn device_count() -> Result<usize, CudaError> {
    driver_version()?;
    match result::device::get_count() {
        Ok(count) if count > 0 => Ok(count as usize),
        _ => Err(CudaError::NoDevice),
    }
}

/// Starts the driver: cudarc is asked nothing before it is known to find its library.
pub(crate) fn driver_version() -> Result<String, CudaError> {
    // SAFETY: opening a library by name; libcuda runs nothing of consequence when it is loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    match result::init() {
        Ok(()) => {}
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            return Err(CudaError::NoDevice);
        }
        Err(error) => return Err(CudaError::DriverFails(format!("{:?}", error.0))),
    }
    let mut version = 0;
    // SAFETY: one int is written.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    if code != sys::CUresult::CUDA_SUCCESS {
        return Err(CudaError::DriverFails(format!("{code:?}")));
    }
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

fn device(ordinal: i32) -> Option<(String, i32, u64)> {
    let device = result::device::get(ordinal).ok()?;
    let name = result::device::get_name(device).ok()?;
    // SAFETY: the device is the driver's own.
    let bytes = unsafe { result::device::total_mem(device) }.ok()?;
    Some((name, capability_of(device).ok()?, bytes as u64))
}
