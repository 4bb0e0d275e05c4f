//! A `libcublas.so` for tests: the functions that PRIMAL calls, on the memory of `cuda-standin`.
//!
//! Like the real one it reaches the device by the driver alone, whose library must be loaded. An
//! operand is copied column by column, by its leading dimension, so a wrong one leaves its buffer
//! or reads what nobody wrote, which the driver reports.
//!
//! Sums are in f64 and rounded once: near those of any cuBLAS, equal to those of none. Tests load
//! it with `cuda_standin::preload("libcublas_standin.so")`.

#![allow(non_snake_case, reason = "the names of cuBLAS")]

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// `cublasStatus_t`.
mod status {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const NOT_INITIALIZED: i32 = 1;
    pub(crate) const INVALID_VALUE: i32 = 7;
    pub(crate) const MAPPING_ERROR: i32 = 11;
}

/// What a handle points to, so that a wrong one is seen.
static HANDLE: u32 = 0x63_75_62_6c;

type CopyToHost = unsafe extern "C" fn(*mut c_void, u64, usize, *mut c_void) -> c_int;
type CopyToDevice = unsafe extern "C" fn(u64, *const c_void, usize, *mut c_void) -> c_int;

/// The driver's copies between device and host.
struct Driver {
    to_host: CopyToHost,
    to_device: CopyToDevice,
    _library: Library,
}

fn driver() -> Option<&'static Driver> {
    static DRIVER: OnceLock<Option<Driver>> = OnceLock::new();
    // SAFETY: the driver's library is loaded already, and its functions have these types.
    let open = || unsafe {
        let library = Library::open(Some("libcuda.so"), RTLD_NOW | RTLD_LOCAL).ok()?;
        Some(Driver {
            to_host: *library.get(b"cuMemcpyDtoHAsync_v2").ok()?,
            to_device: *library.get(b"cuMemcpyHtoDAsync_v2").ok()?,
            _library: library,
        })
    };
    DRIVER.get_or_init(open).as_ref()
}

/// A column-major matrix in device memory.
#[derive(Clone, Copy)]
struct Matrix {
    address: u64,
    rows: usize,
    cols: usize,
    leading: usize,
}

impl Matrix {
    /// The address of a column.
    fn column(&self, col: usize) -> u64 {
        self.address + 4 * (col * self.leading) as u64
    }

    /// The elements, columns one after the other.
    fn read(&self, driver: &Driver) -> Result<Vec<f32>, i32> {
        let mut values = vec![0.0_f32; self.rows * self.cols];
        for (col, values) in values.chunks_exact_mut(self.rows).enumerate() {
            let to = values.as_mut_ptr().cast();
            // SAFETY: a column of `rows` floats.
            let code = unsafe {
                (driver.to_host)(to, self.column(col), 4 * self.rows, std::ptr::null_mut())
            };
            if code != 0 {
                return Err(status::MAPPING_ERROR);
            }
        }
        Ok(values)
    }

    fn write(&self, driver: &Driver, values: &[f32]) -> Result<(), i32> {
        for (col, values) in values.chunks_exact(self.rows).enumerate() {
            let from = values.as_ptr().cast();
            // SAFETY: a column of `rows` floats.
            let code = unsafe {
                (driver.to_device)(self.column(col), from, 4 * self.rows, std::ptr::null_mut())
            };
            if code != 0 {
                return Err(status::MAPPING_ERROR);
            }
        }
        Ok(())
    }
}

/// c = alpha op(a) op(b) + beta c, where an operand is transposed if its flag says so. With beta 0,
/// c is not read.
fn multiply(
    (a, a_transposed): (Matrix, bool),
    (b, b_transposed): (Matrix, bool),
    c: Matrix,
    depth: usize,
    (alpha, beta): (f32, f32),
) -> Result<(), i32> {
    let driver = driver().ok_or(status::NOT_INITIALIZED)?;
    let (a_values, b_values) = (a.read(driver)?, b.read(driver)?);
    let mut c_values = match beta {
        0.0 => vec![0.0; c.rows * c.cols],
        _ => c.read(driver)?,
    };
    let a_at = |row: usize, k: usize| match a_transposed {
        true => a_values[row * a.rows + k],
        false => a_values[k * a.rows + row],
    };
    let b_at = |k: usize, col: usize| match b_transposed {
        true => b_values[k * b.rows + col],
        false => b_values[col * b.rows + k],
    };
    for (i, value) in c_values.iter_mut().enumerate() {
        let (row, col) = (i % c.rows, i / c.rows);
        let products = (0..depth).map(|k| f64::from(a_at(row, k)) * f64::from(b_at(k, col)));
        let sum = f64::from(alpha) * products.sum::<f64>();
        *value = match beta {
            0.0 => sum as f32,
            _ => (sum + f64::from(beta) * f64::from(*value)) as f32,
        };
    }
    c.write(driver, &c_values)
}

/// As in cuBLAS.
///
/// # Safety
/// `handle` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasCreate_v2(handle: *mut *const u32) -> c_int {
    if driver().is_none() {
        return status::NOT_INITIALIZED;
    }
    // SAFETY: the caller's promise.
    unsafe { handle.write(&raw const HANDLE) };
    status::SUCCESS
}

/// As in cuBLAS.
#[unsafe(no_mangle)]
pub extern "C" fn cublasDestroy_v2(handle: *const u32) -> c_int {
    check_handle(handle)
}

/// As in cuBLAS: parts of the version, here 0.1.0.
///
/// # Safety
/// `value` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGetProperty(property: c_int, value: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { value.write(c_int::from(property == 1)) };
    status::SUCCESS
}

/// As in cuBLAS. There is one way to compute here.
#[unsafe(no_mangle)]
pub extern "C" fn cublasSetMathMode(handle: *const u32, _mode: c_int) -> c_int {
    check_handle(handle)
}

fn check_handle(handle: *const u32) -> c_int {
    match handle == &raw const HANDLE {
        true => status::SUCCESS,
        false => status::NOT_INITIALIZED,
    }
}

/// As in cuBLAS, with scalars in host memory: c (m, n) = alpha op(a) (m, k) op(b) (k, n) + beta c.
///
/// # Safety
/// `alpha` and `beta` must be valid for reads; addresses of the device are checked.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the arguments of cuBLAS")]
pub unsafe extern "C" fn cublasSgemm_v2(
    handle: *const u32,
    a_operation: c_int,
    b_operation: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f32,
    a: u64,
    a_leading: c_int,
    b: u64,
    b_leading: c_int,
    beta: *const f32,
    c: u64,
    c_leading: c_int,
) -> c_int {
    if check_handle(handle) != status::SUCCESS {
        return status::NOT_INITIALIZED;
    }
    let operations = [a_operation, b_operation];
    if [m, n, k].iter().any(|&size| size < 0) || operations.iter().any(|it| !(0..=1).contains(it)) {
        return status::INVALID_VALUE;
    }
    let [a_transposed, b_transposed] = operations.map(|operation| operation == 1);
    let [m, n, k] = [m, n, k].map(|size| size as usize);
    let matrix = |address, rows: usize, cols, leading: c_int| {
        let leading = usize::try_from(leading).ok()?;
        (leading >= rows.max(1)).then_some(Matrix {
            address,
            rows,
            cols,
            leading,
        })
    };
    let stored = |transposed, rows, cols| {
        if transposed {
            (cols, rows)
        } else {
            (rows, cols)
        }
    };
    let ((a_rows, a_cols), (b_rows, b_cols)) =
        (stored(a_transposed, m, k), stored(b_transposed, k, n));
    let (Some(a), Some(b), Some(c)) = (
        matrix(a, a_rows, a_cols, a_leading),
        matrix(b, b_rows, b_cols, b_leading),
        matrix(c, m, n, c_leading),
    ) else {
        return status::INVALID_VALUE;
    };
    if m == 0 || n == 0 {
        return status::SUCCESS;
    }
    if k == 0 {
        // PRIMAL never asks for it.
        return status::INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    let scalars = unsafe { (alpha.read(), beta.read()) };
    match multiply((a, a_transposed), (b, b_transposed), c, k, scalars) {
        Ok(()) => status::SUCCESS,
        Err(status) => status,
    }
}
