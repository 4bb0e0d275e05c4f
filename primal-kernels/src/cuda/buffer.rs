//! Memory of a GPU, and pinned memory of the host that copies to it without a detour.

use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};

use bytemuck::{NoUninit, Pod};
use cudarc::driver::{result, sys};

use super::device::{Device, check};
use super::error::CudaError;
use super::pool;

/// `len` elements in the memory of a GPU.
#[derive(Debug)]
pub struct Buffer<T> {
    device: Device,
    address: u64,
    /// Whether it is a piece of the device's pool.
    in_pool: bool,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// A buffer of zeros, in the device's pool if it has one; `what` names it if there is no memory
    /// left.
    pub fn zeros(device: &Device, len: usize, what: &str) -> Result<Self, CudaError> {
        let mut buffer = Buffer {
            device: device.clone(),
            address: 0,
            in_pool: false,
            len,
            element: PhantomData,
        };
        if len == 0 {
            return Ok(buffer);
        }
        let bytes = buffer.bytes() as u64;
        if let Some(address) = device.place(bytes, what)? {
            buffer.address = address;
            buffer.in_pool = true;
        } else {
            buffer.address = pool::allocate(device, bytes, what)?;
            device.account_buffer(bytes as i64);
        }
        buffer.clear()?;
        Ok(buffer)
    }

    /// A buffer that holds `values`.
    pub fn from_slice(device: &Device, values: &[T], what: &str) -> Result<Self, CudaError> {
        let mut buffer = Buffer::zeros(device, values.len(), what)?;
        buffer.upload(values)?;
        Ok(buffer)
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// The device that it lies on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Sets every byte to zero.
    pub fn clear(&mut self) -> Result<(), CudaError> {
        self.view(..).clear()
    }

    /// Copies `values`, at most as many as fit, to the front. Returns when they may be changed.
    pub fn upload(&mut self, values: &[T]) -> Result<(), CudaError> {
        assert!(values.len() <= self.len, "{} of {}", values.len(), self.len);
        self.view(..values.len()).upload(values)
    }

    /// Queues a copy from pinned memory to the front; `from` must not change until the device
    /// was synchronised.
    pub fn upload_pinned(&mut self, from: &PinnedBuffer<T>) -> Result<(), CudaError> {
        assert!(
            from.values().len() <= self.len,
            "{} of {}",
            from.len,
            self.len
        );
        self.upload(from.values())
    }

    /// Copies the front to `values`, once everything queued has run.
    pub fn download(&self, values: &mut [T]) -> Result<(), CudaError> {
        assert!(values.len() <= self.len, "{} of {}", values.len(), self.len);
        self.view(..values.len()).download(values)
    }

    /// [`Buffer::download`] of the whole.
    pub fn to_vec(&self) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        self.download(&mut values)?;
        Ok(values)
    }

    /// Copies `count` elements from the front of `other` to the front.
    pub fn copy_from(&mut self, other: &Buffer<T>, count: usize) -> Result<(), CudaError> {
        assert!(count <= self.len && count <= other.len, "{count} elements");
        if count == 0 {
            return Ok(());
        }
        self.device.bind()?;
        // SAFETY: both are this long and are different buffers.
        let code = unsafe {
            sys::cuMemcpyDtoDAsync_v2(
                self.address,
                other.address,
                count * size_of::<T>(),
                std::ptr::null_mut(),
            )
        };
        check("cuMemcpyDtoDAsync", code)
    }

    /// A part of it, as a place for kernels to read and write.
    pub fn view(&self, range: impl RangeBounds<usize>) -> View<'_, T> {
        let start = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&at) => at + 1,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => self.len,
        };
        assert!(
            start <= end && end <= self.len,
            "elements {start}..{end} of {}",
            self.len
        );
        View {
            device: &self.device,
            address: self.address + (start * size_of::<T>()) as u64,
            len: end - start,
            element: PhantomData,
        }
    }
}

/// A place in device memory. Kernels and copies run in the order they were queued, so two views of
/// the same elements are no aliasing.
#[derive(Debug)]
pub struct View<'a, T> {
    pub(crate) device: &'a Device,
    /// For a kernel.
    pub(crate) address: u64,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T> View<'_, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of the elements.
    ///
    /// # Panics
    /// If they are not within.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "elements {range:?} of {}",
            self.len
        );
        View {
            address: self.address + (range.start * size_of::<T>()) as u64,
            len: range.len(),
            ..*self
        }
    }

    /// The address for a kernel that uses exactly `count` elements; `what` is for the panic of a
    /// wrong length, as in the CPU kernels.
    pub(crate) fn of(&self, count: usize, what: &str) -> u64 {
        assert_eq!(self.len, count, "{what}");
        self.address
    }
}

impl<'a> View<'a, i16> {
    /// The same memory as words of two elements, which is a whole number of them.
    ///
    /// # Panics
    /// If it is not.
    pub(crate) fn words(self) -> View<'a, u32> {
        assert!(
            self.len.is_multiple_of(2) && self.address.is_multiple_of(4),
            "pairs"
        );
        View {
            device: self.device,
            address: self.address,
            len: self.len / 2,
            element: PhantomData,
        }
    }
}

impl<T: Pod> View<'_, T> {
    /// Sets every byte to zero.
    pub fn clear(self) -> Result<(), CudaError> {
        if self.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        let bytes = self.len * size_of::<T>();
        // SAFETY: a view is within its buffer.
        let code = unsafe { sys::cuMemsetD8Async(self.address, 0, bytes, std::ptr::null_mut()) };
        check("cuMemsetD8Async", code)
    }

    /// Copies as many `values` as there are elements. Returns when they may be changed.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload(self, values: &[T]) -> Result<(), CudaError> {
        assert_eq!(values.len(), self.len, "a value an element");
        if values.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        let from: &[u8] = bytemuck::cast_slice(values);
        // SAFETY: both are this long; pageable memory is copied before the call returns.
        let code = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                self.address,
                from.as_ptr().cast(),
                from.len(),
                std::ptr::null_mut(),
            )
        };
        check("cuMemcpyHtoDAsync", code)
    }

    /// Copies the elements to as many `values`, once everything queued has run.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn download(self, values: &mut [T]) -> Result<(), CudaError> {
        assert_eq!(values.len(), self.len, "a value an element");
        if values.is_empty() {
            return Ok(());
        }
        self.device.bind()?;
        let to: &mut [u8] = bytemuck::cast_slice_mut(values);
        // SAFETY: both are this long, and the stream is waited for before `to` is used.
        let code = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                to.as_mut_ptr().cast(),
                self.address,
                to.len(),
                std::ptr::null_mut(),
            )
        };
        check("cuMemcpyDtoHAsync", code)?;
        self.device.synchronise()
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.address != 0 && !self.in_pool {
            pool::free(&self.device, self.address);
            let bytes = (self.len * size_of::<T>()) as i64;
            self.device.account_buffer(-bytes);
        }
    }
}

/// Page-locked memory of the host.
#[derive(Debug)]
pub struct PinnedBuffer<T> {
    device: Device,
    start: *mut T,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl<T: Send> Send for PinnedBuffer<T> {}

impl<T: Pod + NoUninit> PinnedBuffer<T> {
    /// `len` zeros, `len` above 0.
    pub fn zeros(device: &Device, len: usize) -> Result<Self, CudaError> {
        device.bind()?;
        // SAFETY: a context is bound.
        let start = unsafe { result::malloc_host(len.max(1) * size_of::<T>(), 0) }
            .map_err(|error| CudaError::of("cuMemHostAlloc", error.0))?;
        let start = start.cast::<T>();
        // SAFETY: the memory is this long; the driver aligns it to a page.
        unsafe { start.write_bytes(0, len) };
        Ok(PinnedBuffer {
            device: device.clone(),
            start,
            len,
        })
    }

    /// The elements.
    pub fn values(&self) -> &[T] {
        // SAFETY: `zeros` made `len` elements; any bytes are a T.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    /// The elements, to be changed.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: the memory is the driver's, and nobody has it any more.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}
