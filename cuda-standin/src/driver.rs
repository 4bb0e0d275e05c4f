//! The functions of libcuda that cudarc and PRIMAL call.
//!
//! Streams and events do nothing: every call has run when it returns. The names, orders and types
//! of arguments are those of the CUDA driver API.

#![allow(non_snake_case, reason = "the names of the driver API")]
#![allow(
    unused_unsafe,
    reason = "one macro wraps bodies that need it and bodies that do not"
)]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ptx_interpreter::{Kernel, Launch, Module};

use crate::DeviceCounts;
use crate::device::{Device, Settings, code};

type Handle = *mut c_void;

/// A context is a device number plus one: no null pointer.
const FIRST_CONTEXT: usize = 1;

static DEFAULT_DEVICES: OnceLock<u32> = OnceLock::new();

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

struct Driver {
    settings: Settings,
    devices: Vec<Mutex<Device>>,
}

fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let settings = Settings::from_environment(*DEFAULT_DEVICES.get_or_init(|| 1));
        let device = |ordinal| Mutex::new(Device::new(settings.of_device(ordinal)));
        Driver {
            settings,
            devices: (0..settings.devices as usize).map(device).collect(),
        }
    })
}

pub(crate) fn device(ordinal: usize) -> Option<MutexGuard<'static, Device>> {
    let device = driver().devices.get(ordinal)?;
    Some(device.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs `work` on the device of the thread's context.
fn with_current(work: impl FnOnce(&mut Device) -> c_int) -> c_int {
    let context = CURRENT.get();
    match context.checked_sub(FIRST_CONTEXT).and_then(device) {
        Some(mut device) => work(&mut device),
        None => code::INVALID_CONTEXT,
    }
}

/// Exported functions. Each trusts its pointers as the driver does.
macro_rules! export {
    ($(fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        /// As in the CUDA driver API.
        ///
        /// # Safety
        /// Pointers must be valid for what the driver API reads and writes through them.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> c_int {
            // SAFETY: the caller's promise.
            unsafe { $body }
        }
    )*};
}

/// Calls that have nothing to do: everything is synchronous.
macro_rules! nothing_to_do {
    ($($name:ident($($ty:ty),*);)*) => {$(
        /// Succeeds: every call has run when it returns.
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($(_: $ty),*) -> c_int {
            code::SUCCESS
        }
    )*};
}

nothing_to_do! {
    cuDevicePrimaryCtxRelease_v2(c_int);
    cuStreamDestroy_v2(Handle);
    cuStreamWaitEvent(Handle, Handle, c_uint);
    cuEventRecord(Handle, Handle);
    cuEventSynchronize(Handle);
    cuEventQuery(Handle);
    cuEventDestroy_v2(Handle);
    cuFuncSetAttribute(Handle, c_int, c_int);
}

export! {
    fn cuInit(_flags: c_uint) {
        if driver().settings.devices == 0 { code::NO_DEVICE } else { code::SUCCESS }
    }
    fn cuDriverGetVersion(version: *mut c_int) {
        *version = driver().settings.driver_version;
        code::SUCCESS
    }
    fn cuDeviceGetCount(count: *mut c_int) {
        *count = driver().settings.devices as c_int;
        code::SUCCESS
    }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        if ordinal < 0 || ordinal as u32 >= driver().settings.devices {
            return code::INVALID_DEVICE;
        }
        *device = ordinal;
        code::SUCCESS
    }
    fn cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) {
        let text = c"PTX interpreter (stand-in, no GPU)".to_bytes_with_nul();
        if (length as usize) < text.len() {
            return code::INVALID_VALUE;
        }
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
        code::SUCCESS
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: c_int) {
        match device(ordinal as usize) {
            Some(device) => {
                *bytes = device.memory_info().1 as usize;
                code::SUCCESS
            }
            None => code::INVALID_DEVICE,
        }
    }
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, ordinal: c_int) {
        let Some(device) = device(ordinal as usize) else { return code::INVALID_DEVICE };
        let capability = device.capability;
        *value = match attribute {
            1..=3 => 1024,
            8 | 97 => 48 * 1024,
            10 => 32,
            16 => 28,
            75 => capability / 10,
            76 => capability % 10,
            _ => 0,
        };
        code::SUCCESS
    }
    fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) {
        *context = std::ptr::without_provenance_mut(device as usize + FIRST_CONTEXT);
        code::SUCCESS
    }
    fn cuCtxSetCurrent(context: Handle) {
        CURRENT.set(context.addr());
        code::SUCCESS
    }
    fn cuCtxGetCurrent(context: *mut Handle) {
        *context = std::ptr::without_provenance_mut(CURRENT.get());
        code::SUCCESS
    }
    fn cuCtxSynchronize() {
        with_current(|device| device.state())
    }
    fn cuStreamSynchronize(_stream: Handle) {
        with_current(|device| device.state())
    }
    fn cuStreamQuery(_stream: Handle) {
        with_current(|device| device.state())
    }
    fn cuStreamCreate(stream: *mut Handle, _flags: c_uint) {
        *stream = std::ptr::without_provenance_mut(1);
        code::SUCCESS
    }
    fn cuEventCreate(event: *mut Handle, _flags: c_uint) {
        *event = std::ptr::without_provenance_mut(1);
        code::SUCCESS
    }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        with_current(|device| {
            let info = device.memory_info();
            (*free, *total) = (info.0 as usize, info.1 as usize);
            code::SUCCESS
        })
    }
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        with_current(|device| match device.allocate(bytes) {
            Ok(found) => {
                *address = found;
                code::SUCCESS
            }
            Err(code) => code,
        })
    }
    fn cuMemFree_v2(address: u64) {
        with_current(|device| device.free(address))
    }
    fn cuMemHostAlloc(address: *mut Handle, bytes: usize, _flags: c_uint) {
        // Pinned memory is freed by its address alone, so its size goes before it.
        let Ok(layout) = host_layout(bytes) else { return code::INVALID_VALUE };
        let start = std::alloc::alloc_zeroed(layout);
        if start.is_null() {
            return code::OUT_OF_MEMORY;
        }
        start.cast::<usize>().write(bytes);
        *address = start.add(HOST_HEADER).cast();
        code::SUCCESS
    }
    fn cuMemFreeHost(address: Handle) {
        let start = address.cast::<u8>().sub(HOST_HEADER);
        let Ok(layout) = host_layout(start.cast::<usize>().read()) else {
            return code::INVALID_VALUE;
        };
        std::alloc::dealloc(start, layout);
        code::SUCCESS
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: Handle) {
        let from = std::slice::from_raw_parts(from.cast(), bytes);
        with_current(|device| device.copy_in(to, from))
    }
    fn cuMemcpyDtoHAsync_v2(to: Handle, from: u64, bytes: usize, _stream: Handle) {
        let to = std::slice::from_raw_parts_mut(to.cast(), bytes);
        with_current(|device| device.copy_out(to, from))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, _stream: Handle) {
        with_current(|device| device.copy_within(to, from, bytes))
    }
    fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _stream: Handle) {
        with_current(|device| device.fill(to, value, bytes))
    }
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) {
        // A CUBIN is an ELF file: not text that ends in a zero.
        let is_elf = std::slice::from_raw_parts(image.cast::<u8>(), 4) == b"\x7fELF";
        let image = if is_elf { b"\x7fELF\xff" } else { CStr::from_ptr(image.cast()).to_bytes() };
        with_current(|device| match device.load(image) {
            Ok(loaded) => {
                *module = Box::into_raw(Box::new(loaded)).cast();
                code::SUCCESS
            }
            Err(code) => code,
        })
    }
    fn cuModuleUnload(module: Handle) {
        drop(Box::from_raw(module.cast::<Module>()));
        code::SUCCESS
    }
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        let name = CStr::from_ptr(name).to_string_lossy();
        let kernels = &(*module.cast::<Module>()).kernels;
        match kernels.get(&*name) {
            Some(kernel) => {
                // The module outlives its functions and does not move.
                *function = std::ptr::from_ref(kernel).cast_mut().cast();
                code::SUCCESS
            }
            None => with_current(|device| device.fail(code::NOT_FOUND, name)),
        }
    }
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Handle) {
        let kernel = &*function.cast::<Kernel>();
        *value = match attribute {
            0 => kernel.max_threads as c_int,
            1 => kernel.static_shared_bytes as c_int,
            3 => kernel.local_bytes as c_int,
            _ => 0,
        };
        code::SUCCESS
    }
    fn cuLaunchKernel(
        function: Handle,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        _stream: Handle,
        params: *mut Handle,
        _extra: *mut Handle,
    ) {
        let kernel = &*function.cast::<Kernel>();
        let sizes = Launch {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared_bytes: shared_bytes as usize,
        };
        let mut args = Vec::with_capacity(kernel.params.len());
        for (i, &bytes) in kernel.params.iter().enumerate() {
            args.push(std::slice::from_raw_parts((*params.add(i)).cast::<u8>(), bytes));
        }
        with_current(|device| device.launch(kernel, &sizes, &args))
    }
    fn cuGetErrorName(error: c_int, name: *mut *const c_char) {
        *name = match error {
            code::SUCCESS => c"CUDA_SUCCESS",
            code::INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
            code::OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
            code::NO_DEVICE => c"CUDA_ERROR_NO_DEVICE",
            code::INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
            code::UNSUPPORTED_PTX_VERSION => c"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            code::NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
            code::ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
            code::LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
            _ => c"another error",
        }
        .as_ptr();
        code::SUCCESS
    }
    fn cuGetErrorString(_error: c_int, text: *mut *const c_char) {
        with_current(|device| {
            // Leaked: the caller may keep it. Tests meet few errors.
            let copy = Box::leak(Box::new(device.last_error.clone()));
            *text = copy.as_ptr();
            code::SUCCESS
        })
    }
}

/// Bytes before pinned memory that hold its size; keeps the alignment.
const HOST_HEADER: usize = 64;

fn host_layout(bytes: usize) -> Result<std::alloc::Layout, std::alloc::LayoutError> {
    std::alloc::Layout::from_size_align(bytes + HOST_HEADER, HOST_HEADER)
}

/// How many devices there are, before the first call.
#[unsafe(no_mangle)]
pub extern "C" fn cuda_standin_devices(devices: u32) {
    let _ = DEFAULT_DEVICES.set(devices);
}

/// See [`crate::StandIn::inject`].
#[unsafe(no_mangle)]
pub extern "C" fn cuda_standin_inject(ordinal: u32, what: u32, value: u64) {
    if let Some(mut device) = device(ordinal as usize) {
        device.inject(what, value);
    }
}

/// See [`crate::StandIn::counts`].
///
/// # Safety
/// `counts` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuda_standin_counts(ordinal: u32, counts: *mut DeviceCounts) {
    if let Some(mut device) = device(ordinal as usize) {
        // SAFETY: the caller's promise.
        unsafe { counts.write(device.take_counts()) };
    }
}
