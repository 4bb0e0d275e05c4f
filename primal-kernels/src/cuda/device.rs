//! One GPU: its context, its kernels, its memory.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, result, sys};

use super::cublas::Cublas;
use super::error::CudaError;
use super::image::{Image, ImageChoice};
use super::pool::Pool;
use super::probe::{device_count, driver_version};
use super::source::Unit;

/// What multiplies matrices of float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FloatProducts {
    /// PRIMAL's own kernels: the same bits on every card.
    #[default]
    Kernels,
    /// cuBLAS: bits of its own, which depend on the card and on its version.
    Cublas,
}

/// Which GPU, and which form of the kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Number of the GPU, as the driver counts.
    pub ordinal: usize,
    /// Where the kernels come from.
    pub image: ImageChoice,
    /// Whether buffers are allocations of their own also where there is a pool, so that a tool that
    /// watches memory sees the end of each.
    pub separate_buffers: bool,
    /// Whether products in int8 go by dp4a also on a card with tensor cores. The bits are the same.
    pub without_tensor_cores: bool,
    /// What multiplies matrices of float32.
    pub float_products: FloatProducts,
}

/// An open GPU. Clones are the same device.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
    /// Where buffers come from, if not each from the driver.
    pool: Option<Arc<Pool>>,
}

struct Inner {
    context: Arc<CudaContext>,
    /// That of every card, and that for tensor cores if they are used.
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<&'static str, sys::CUfunction>>,
    name: String,
    capability: i32,
    image: (String, String),
    /// Why the kernels were not compiled for this very card.
    notice: Option<String>,
    separate_buffers: bool,
    /// Multiplies matrices of float32, if asked to.
    cublas: Option<Cublas>,
    /// Bytes of all pools, and of buffers outside of them.
    allocated: AtomicU64,
}

// SAFETY: handles of the driver may be used from any thread once the context is bound to it,
// which `bind` does before every call.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver synchronises its own state.
unsafe impl Sync for Inner {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Device({}, sm_{})",
            self.inner.name, self.inner.capability
        )
    }
}

impl Device {
    /// Opens a GPU and loads the kernels.
    pub fn open(options: OpenOptions) -> Result<Device, CudaError> {
        let driver = driver_version()?;
        let count = device_count()?;
        if options.ordinal >= count {
            return Err(CudaError::NoSuchDevice {
                ordinal: options.ordinal,
                count,
            });
        }
        let context = CudaContext::new(options.ordinal)
            .map_err(|error| CudaError::of("cuDevicePrimaryCtxRetain", error.0))?;
        let name = context
            .name()
            .map_err(|error| CudaError::of("cuDeviceGetName", error.0))?;
        let capability = capability_of(context.cu_device())?;
        if capability < Unit::Kernels.oldest() {
            return Err(CudaError::TooOld { name, capability });
        }
        // The context is bound since it came.
        let cublas = match options.float_products {
            FloatProducts::Kernels => None,
            FloatProducts::Cublas => Some(Cublas::open()?),
        };
        let choice = options.image;
        let (candidates, missing) = Image::candidates(Unit::Kernels, choice, capability)?;
        let mut tried = Vec::new();
        let Some((module, image)) = load_first(candidates, &mut tried) else {
            return Err(CudaError::NoImage {
                driver,
                tried: tried.join("; "),
            });
        };
        let mut modules = vec![module];
        if capability >= Unit::Tensor.oldest() && !options.without_tensor_cores {
            let (candidates, _) = Image::candidates(Unit::Tensor, choice, capability)?;
            // Where none is loaded, dp4a serves.
            modules.extend(load_first(candidates, &mut tried).map(|(module, _)| module));
        }
        let notices = missing.iter().map(ToString::to_string).chain(tried);
        let notice = notices.collect::<Vec<_>>().join("; ");
        Ok(Device {
            inner: Arc::new(Inner {
                context,
                modules,
                functions: Mutex::default(),
                name,
                capability,
                image: (image.architecture, image.origin),
                notice: Some(notice).filter(|it| !it.is_empty()),
                separate_buffers: options.separate_buffers,
                cublas,
                allocated: AtomicU64::new(0),
            }),
            pool: None,
        })
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Compute capability times ten.
    pub fn capability(&self) -> i32 {
        self.inner.capability
    }

    /// Whether products of matrices in int8 go by tensor cores.
    pub fn uses_tensor_cores(&self) -> bool {
        self.inner.modules.len() > 1
    }

    /// What multiplies matrices of float32, with the device bound; `None` for the kernels.
    pub(crate) fn cublas(&self) -> Result<Option<&Cublas>, CudaError> {
        let Some(cublas) = &self.inner.cublas else {
            return Ok(None);
        };
        self.bind()?;
        Ok(Some(cublas))
    }

    /// Architecture and origin of the kernels.
    pub fn image(&self) -> (&str, &str) {
        (&self.inner.image.0, &self.inner.image.1)
    }

    /// Why the kernels are not compiled for this very card, if they are not.
    pub fn notice(&self) -> Option<&str> {
        self.inner.notice.as_deref()
    }

    /// The device with memory for buffers of `bytes` in all, each of which begins at a multiple of
    /// 32. They come out of it, none goes back before all are gone.
    ///
    /// # Errors
    /// [`CudaError::OutOfMemory`].
    pub fn with_pool(&self, bytes: u64) -> Result<Device, CudaError> {
        let outside = Device {
            inner: Arc::clone(&self.inner),
            pool: None,
        };
        let pool = Pool::new(&outside, bytes, self.inner.separate_buffers)?;
        Ok(Device {
            pool: Some(Arc::new(pool)),
            ..outside
        })
    }

    /// Number of the GPU, as the driver counts.
    pub fn ordinal(&self) -> usize {
        self.inner.context.ordinal()
    }

    /// Bytes of the buffers that were placed in the pool.
    pub fn placed_bytes(&self) -> u64 {
        self.pool.as_ref().map_or(0, |pool| pool.placed())
    }

    /// By how much the free memory fell when the pool came, if it is one allocation.
    pub fn taken_bytes(&self) -> Option<u64> {
        self.pool.as_ref()?.taken()
    }

    /// Bytes of all pools on this device, and of buffers outside of them.
    pub fn allocated_bytes(&self) -> u64 {
        self.inner.allocated.load(Ordering::Relaxed)
    }

    /// Accounts for memory that comes (or, negative, goes).
    pub(crate) fn account(&self, bytes: i64) {
        let allocated = &self.inner.allocated;
        allocated.fetch_add(bytes.cast_unsigned(), Ordering::Relaxed);
    }

    /// The same for a buffer, which a pool has accounted for.
    pub(crate) fn account_buffer(&self, bytes: i64) {
        if self.pool.is_none() {
            self.account(bytes);
        }
    }

    /// The address of a buffer in the pool; `None` where it is to be an allocation of its own.
    pub(crate) fn place(&self, bytes: u64, what: &str) -> Result<Option<u64>, CudaError> {
        let pool = self.pool.as_ref();
        pool.map_or(Ok(None), |pool| pool.place(bytes, what))
    }

    /// (free, total) bytes of the GPU's memory, other programs' included.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (free, total) =
            result::mem_get_info().map_err(|error| CudaError::of("cuMemGetInfo", error.0))?;
        Ok((free as u64, total as u64))
    }

    /// Waits until everything queued has run; a fault of any kernel before surfaces here.
    pub fn synchronise(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the context is bound.
        let code = unsafe { sys::cuCtxSynchronize() };
        check("cuCtxSynchronize", code)
    }

    /// Whether everything queued has run, without waiting for it; a fault surfaces here too.
    #[cfg(feature = "nccl")]
    pub(crate) fn is_idle(&self) -> Result<bool, CudaError> {
        self.bind()?;
        // SAFETY: the context is bound; the null stream is where everything is queued.
        match unsafe { sys::cuStreamQuery(std::ptr::null_mut()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check("cuStreamQuery", code).map(|()| true),
        }
    }

    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.inner
            .context
            .bind_to_thread()
            .map_err(|error| CudaError::of("cuCtxSetCurrent", error.0))
    }

    /// Queues a kernel of `grid` blocks of `threads` threads.
    ///
    /// # Safety
    /// `args` must point to values of the types of the kernel's parameters, in order, and buffers
    /// among them must be as large as the kernel takes them to be.
    pub(crate) unsafe fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        threads: u32,
        args: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.bind()?;
        let function = self.function(kernel)?;
        let [x, y, z] = grid.map(|size| u32::try_from(size).unwrap_or(u32::MAX));
        // SAFETY: the caller's promise.
        let code = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                threads,
                1,
                1,
                0,
                std::ptr::null_mut(),
                args.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(kernel, code)
    }

    fn function(&self, kernel: &'static str) -> Result<sys::CUfunction, CudaError> {
        let functions = self.inner.functions.lock();
        let mut functions = functions.unwrap_or_else(PoisonError::into_inner);
        if let Some(&function) = functions.get(kernel) {
            return Ok(function);
        }
        let name = CString::new(kernel).unwrap_or_default();
        // SAFETY: the modules are loaded, and live as long as the device.
        let of = |&module| unsafe { result::module::get_function(module, name.clone()) };
        let mut function = Err(result::DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND));
        for module in &self.inner.modules {
            function = function.or_else(|_| of(module));
        }
        let function = function.map_err(|error| CudaError::of(kernel, error.0))?;
        functions.insert(kernel, function);
        Ok(function)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // Before its context goes.
            self.cublas = None;
            for &module in &self.modules {
                // SAFETY: nobody has the module's functions any more. A context that crashed
                // cannot unload it, and needs not.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

pub(crate) fn check(call: &str, code: sys::CUresult) -> Result<(), CudaError> {
    if code == sys::CUresult::CUDA_SUCCESS {
        Ok(())
    } else {
        Err(CudaError::of(call, code))
    }
}

/// Compute capability times ten.
pub(crate) fn capability_of(device: sys::CUdevice) -> Result<i32, CudaError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: the device is the driver's own.
    let get = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let wrong = |error: result::DriverError| CudaError::of("cuDeviceGetAttribute", error.0);
    Ok(get(MAJOR).map_err(wrong)? * 10 + get(MINOR).map_err(wrong)?)
}

/// The first image that the driver takes; in `tried`, why it refused those before.
fn load_first(images: Vec<Image>, tried: &mut Vec<String>) -> Option<(sys::CUmodule, Image)> {
    images.into_iter().find_map(|image| match load(&image) {
        Ok(module) => Some((module, image)),
        Err(error) => {
            let Image {
                architecture,
                origin,
                ..
            } = image;
            tried.push(format!("{architecture} by {origin}: {error}"));
            None
        }
    })
}

fn load(image: &Image) -> Result<sys::CUmodule, CudaError> {
    // PTX ends in a zero for the driver; one more byte does not hurt a CUBIN.
    let mut bytes = image.bytes.clone();
    bytes.push(0);
    // SAFETY: a whole image that ends in a zero; a context is bound to this thread.
    unsafe { result::module::load_data(bytes.as_ptr().cast()) }
        .map_err(|error| CudaError::of("cuModuleLoadData", error.0))
}

/// Queues a kernel: device, name, grid, threads, arguments.
///
/// Every use stands in a wrapper that has checked the lengths of the buffers, and the stand-in
/// driver checks number and sizes of the arguments in the tests.
macro_rules! launch {
    ($device:expr, $kernel:expr, $grid:expr, $threads:expr, $($arg:expr),+ $(,)?) => {{
        // SAFETY: the arguments have the types of the kernel's parameters, and the buffers the
        // sizes that the wrapper around this checked.
        unsafe {
            $device.launch(
                $kernel,
                $grid,
                $threads,
                &mut [$(std::ptr::from_ref(&$arg).cast_mut().cast()),+],
            )
        }
    }};
}
pub(crate) use launch;

/// Threads of a block of most kernels.
pub(crate) const THREADS: u32 = 256;

/// Blocks for one thread an element, at most what a grid-stride loop needs.
pub(crate) fn blocks_for(elements: usize) -> [usize; 3] {
    [elements.div_ceil(THREADS as usize).min(1 << 16), 1, 1]
}

/// Blocks for half a warp a row.
pub(crate) fn blocks_for_rows(rows: usize) -> [usize; 3] {
    [rows.div_ceil(THREADS as usize / 16), 1, 1]
}
