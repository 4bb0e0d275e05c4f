//! NVIDIA's library for float32 products, where it is installed and the user asks for it.
//!
//! It is one of the two ways of [`gemm`](super::gemm): faster on most cards, with sums in an order
//! that only NVIDIA knows, so with other last bits than the kernels'.

use super::error::CudaError;
use super::gemm::Product;

#[cfg(feature = "cublas")]
mod library {
    use std::ffi::c_int;

    use cudarc::cublas::{result, sys};

    use super::{CudaError, Product};

    /// The library, ready for the context that was bound when it was opened.
    #[derive(Debug)]
    pub(crate) struct Cublas {
        handle: sys::cublasHandle_t,
    }

    /// Version of the installed library, such as "12.4".
    pub(crate) fn version() -> Result<String, CudaError> {
        // SAFETY: opening a library by name, which runs nothing of consequence. cudarc is asked
        // nothing else before it is known to find the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoCublas(
                "libcublas.so was not found; hint: pip install nvidia-cublas-cu12, with its lib folder on LD_LIBRARY_PATH, or leave PRIMAL_CUBLAS out",
            ));
        }
        let part = |property| {
            let mut value = 0;
            // SAFETY: one int is written.
            let status = unsafe { sys::cublasGetProperty(property, &raw mut value) };
            checked("cublasGetProperty", status.result()).map(|()| value)
        };
        let major = part(sys::libraryPropertyType_t::MAJOR_VERSION)?;
        let minor = part(sys::libraryPropertyType_t::MINOR_VERSION)?;
        Ok(format!("{major}.{minor}"))
    }

    impl Cublas {
        /// Opens it for the context bound to this thread.
        pub(crate) fn open() -> Result<Cublas, CudaError> {
            version()?;
            let cublas = Cublas {
                handle: checked("cublasCreate", result::create_handle())?,
            };
            // No TF32: at least the digits of float32 everywhere. Atomics are off by default, so
            // that the same card and version always give the same bits.
            let mode = sys::cublasMath_t::CUBLAS_DEFAULT_MATH;
            // SAFETY: the handle was just made.
            let status = unsafe { sys::cublasSetMathMode(cublas.handle, mode) };
            checked("cublasSetMathMode", status.result())?;
            Ok(cublas)
        }

        /// Queues a product, on the stream of the kernels.
        ///
        /// # Safety
        /// The operands must lie on the device that was bound when this was opened, bound now too,
        /// and be as large as `product` says.
        pub(crate) unsafe fn multiply(
            &self,
            product: &Product,
            [a, b, c]: [u64; 3],
        ) -> Result<(), CudaError> {
            // Matrices here are row-major, which is the transpose to cuBLAS: it computes
            // cᵀ (cols, rows) = bᵀ aᵀ. An operand whose summands lie together in a row has them
            // together in a column there, where the first operand must be turned for it, and the
            // second must be for the contrary.
            let (a_together, b_together) = product.form.summands_together();
            let turned = |turned| match turned {
                true => sys::cublasOperation_t::CUBLAS_OP_T,
                false => sys::cublasOperation_t::CUBLAS_OP_N,
            };
            let sizes = [product.cols, product.rows, product.depth].map(|size| size as c_int);
            let strides = product.strides.map(|stride| stride as c_int);
            let (one, before) = (1.0, if product.accumulate { 1.0 } else { 0.0 });
            // SAFETY: the caller's promise; both scalars lie in host memory, which is the default.
            let done = unsafe {
                result::sgemm(
                    self.handle,
                    turned(b_together),
                    turned(!a_together),
                    sizes[0],
                    sizes[1],
                    sizes[2],
                    &raw const one,
                    b as *const f32,
                    strides[1],
                    a as *const f32,
                    strides[0],
                    &raw const before,
                    c as *mut f32,
                    strides[2],
                )
            };
            checked("cublasSgemm", done)
        }
    }

    impl Drop for Cublas {
        fn drop(&mut self) {
            // SAFETY: nobody has the handle any more.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }

    fn checked<T>(call: &str, result: Result<T, result::CublasError>) -> Result<T, CudaError> {
        result.map_err(|error| CudaError::Call {
            call: call.into(),
            code: format!("{:?}", error.0),
            detail: String::new(),
        })
    }
}

#[cfg(not(feature = "cublas"))]
mod library {
    use super::{CudaError, Product};

    /// Nothing: this build is without it.
    #[derive(Debug)]
    pub(crate) enum Cublas {}

    impl Cublas {
        pub(crate) fn open() -> Result<Cublas, CudaError> {
            Err(CudaError::NoCublas(
                "it is not part of this build; hint: build with --features cublas, or leave PRIMAL_CUBLAS out",
            ))
        }

        /// Never called: there is no `Cublas`.
        ///
        /// # Safety
        /// None is needed.
        pub(crate) unsafe fn multiply(&self, _: &Product, _: [u64; 3]) -> Result<(), CudaError> {
            match *self {}
        }
    }
}

pub(crate) use library::Cublas;
#[cfg(feature = "cublas")]
pub(crate) use library::version;
