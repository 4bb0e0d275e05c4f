//! Device memory for many buffers in one allocation: the driver rounds each up to 2 MiB.

use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::device::Device;
use super::error::CudaError;

/// Where a buffer may begin: a sector of the L2 cache, more than any load is wide.
const ALIGNMENT: u64 = 32;

/// Buffers are placed one after the other and go together.
#[derive(Debug)]
pub(crate) struct Pool {
    device: Device,
    /// 0 where every buffer is an allocation of its own.
    address: u64,
    bytes: u64,
    /// By how much the free memory fell, by `cuMemGetInfo`.
    taken: Option<u64>,
    filled: Mutex<Filled>,
}

#[derive(Debug, Default)]
struct Filled {
    end: u64,
    /// Bytes of all buffers.
    placed: u64,
}

impl Pool {
    /// Takes `bytes` at once, or, with `separate`, only keeps count of them.
    pub(crate) fn new(device: &Device, bytes: u64, separate: bool) -> Result<Pool, CudaError> {
        let mut pool = Pool {
            device: device.clone(),
            address: 0,
            bytes,
            taken: None,
            filled: Mutex::default(),
        };
        // Before anything can fail: what is dropped then is taken off again.
        device.account(bytes as i64);
        if !separate && bytes > 0 {
            let (before, _) = device.memory()?;
            pool.address = allocate(device, bytes, "the run")?;
            let (after, _) = device.memory()?;
            pool.taken = Some(before.saturating_sub(after));
        }
        Ok(pool)
    }

    /// The address of a new buffer; `None` where it is to be an allocation of its own.
    pub(crate) fn place(&self, bytes: u64, what: &str) -> Result<Option<u64>, CudaError> {
        let mut filled = self.filled.lock().unwrap_or_else(PoisonError::into_inner);
        let start = filled.end.next_multiple_of(ALIGNMENT);
        let end = start.saturating_add(bytes);
        if end > self.bytes {
            return Err(CudaError::PoolOverdrawn {
                what: what.into(),
                bytes,
                left: self.bytes.saturating_sub(start),
                total: self.bytes,
            });
        }
        filled.end = end;
        filled.placed += bytes;
        Ok((self.address != 0).then_some(self.address + start))
    }

    /// Bytes of all buffers.
    pub(crate) fn placed(&self) -> u64 {
        let filled = self.filled.lock();
        filled.unwrap_or_else(PoisonError::into_inner).placed
    }

    pub(crate) fn taken(&self) -> Option<u64> {
        self.taken
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        free(&self.device, self.address);
        self.device.account(-(self.bytes as i64));
    }
}

/// Memory for `what`.
pub(crate) fn allocate(device: &Device, bytes: u64, what: &str) -> Result<u64, CudaError> {
    device.bind()?;
    // SAFETY: a context is bound.
    match unsafe { result::malloc_sync(bytes as usize) } {
        Ok(address) => Ok(address),
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            let (free, total) = device.memory()?;
            Err(CudaError::OutOfMemory {
                what: what.into(),
                bytes,
                free,
                total,
            })
        }
        Err(error) => Err(CudaError::of("cuMemAlloc", error.0)),
    }
}

/// Frees what [`allocate`] returned; 0 is nothing.
pub(crate) fn free(device: &Device, address: u64) {
    if address != 0 && device.bind().is_ok() {
        // SAFETY: nobody has the address any more. A context that crashed frees nothing.
        let _ = unsafe { result::free_sync(address) };
    }
}
