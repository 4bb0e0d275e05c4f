//! Dense float32 products. An element is one chain of fused multiply-adds over the depth in
//! ascending order: the bits do not depend on the tile, and equal the CPU's where its own product
//! runs the same chain. With cuBLAS, where a device was opened so, they are what that makes them.

use super::buffer::View;
use super::device::{Device, THREADS, launch};
use super::error::CudaError;

/// Summands of one chain of a weight gradient, as on the CPU.
const CHUNK_DEPTH: i32 = 256;

/// Blocks that keep a card busy: two on each of 28 multiprocessors.
const ENOUGH_BLOCKS: usize = 56;

/// Rows and columns that a block makes of a result: the large tile reads each operand half as
/// often.
pub(crate) const LARGE_TILE: usize = 128;
const SMALL_TILE: usize = 64;

/// The tile for a result (rows, cols): the large one where there are enough of them.
pub(crate) fn tile(rows: usize, cols: usize) -> usize {
    if rows.div_ceil(LARGE_TILE) * cols.div_ceil(LARGE_TILE) >= ENOUGH_BLOCKS {
        LARGE_TILE
    } else {
        SMALL_TILE
    }
}

/// Which operand of a product is transposed, in row-major terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// a bᵀ.
    Nt,
    /// a b.
    Nn,
    /// aᵀ b.
    Tn,
}

impl Form {
    /// Names of the kernels: of the small tile, of the large one.
    fn kernels(self) -> [&'static str; 2] {
        match self {
            Form::Nt => ["gemm_nt_64", "gemm_nt_128"],
            Form::Nn => ["gemm_nn_64", "gemm_nn_128"],
            Form::Tn => ["gemm_tn_64", "gemm_tn_128"],
        }
    }

    /// Whether the summands of an element lie together in a row of a, and of b.
    #[cfg(feature = "cublas")]
    pub(crate) fn summands_together(self) -> (bool, bool) {
        match self {
            Form::Nt => (true, true),
            Form::Nn => (true, false),
            Form::Tn => (false, false),
        }
    }
}

/// Form, sizes, strides and mode of a product c (rows, cols) (+)= a (rows, depth) b (depth, cols).
pub(crate) struct Product {
    pub(crate) form: Form,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) depth: usize,
    /// Elements from row to row of a, b and c as they are stored.
    pub(crate) strides: [usize; 3],
    /// Summands of one chain, 0 for all.
    pub(crate) chunk: i32,
    pub(crate) accumulate: bool,
}

impl Product {
    fn run(&self, device: &Device, [a, b, c]: [u64; 3]) -> Result<(), CudaError> {
        if let Some(cublas) = device.cublas()? {
            // SAFETY: the callers check the lengths of the buffers, and the device is bound.
            return unsafe { cublas.multiply(self, [a, b, c]) };
        }
        let tile = tile(self.rows, self.cols);
        let [small, large] = self.form.kernels();
        let kernel = if tile == LARGE_TILE { large } else { small };
        let [a_stride, b_stride, c_stride] = self.strides.map(|stride| stride as i32);
        launch!(
            device,
            kernel,
            [self.cols.div_ceil(tile), self.rows.div_ceil(tile), 1],
            THREADS,
            a,
            b,
            c,
            self.rows as i32,
            self.cols as i32,
            self.depth as i32,
            a_stride,
            b_stride,
            c_stride,
            self.chunk,
            i32::from(self.accumulate),
        )
    }
}

/// y = x wᵀ, or y += x wᵀ: x (n, k), w (m, k), y (n, m).
///
/// # Panics
/// If a length does not match, or m or k is 0.
pub fn matmul_nt(
    x: View<'_, f32>,
    w: View<'_, f32>,
    y: View<'_, f32>,
    (n, m, k): (usize, usize, usize),
    accumulate: bool,
) -> Result<(), CudaError> {
    assert!(m > 0 && k > 0, "sizes are not 0");
    let product = Product {
        form: Form::Nt,
        rows: n,
        cols: m,
        depth: k,
        strides: [k, k, m],
        chunk: 0,
        accumulate,
    };
    let operands = [
        x.of(n * k, "x is (n, k)"),
        w.of(m * k, "w is (m, k)"),
        y.of(n * m, "y is (n, m)"),
    ];
    product.run(y.device, operands)
}

/// dx = dy w, or dx += dy w: dy (n, m), w (m, k), dx (n, k).
///
/// # Panics
/// If a length does not match, or m or k is 0.
pub fn matmul_nn(
    dy: View<'_, f32>,
    w: View<'_, f32>,
    dx: View<'_, f32>,
    (n, m, k): (usize, usize, usize),
    accumulate: bool,
) -> Result<(), CudaError> {
    assert!(m > 0 && k > 0, "sizes are not 0");
    let product = Product {
        form: Form::Nn,
        rows: n,
        cols: k,
        depth: m,
        strides: [m, k, k],
        chunk: 0,
        accumulate,
    };
    let operands = [
        dy.of(n * m, "dy is (n, m)"),
        w.of(m * k, "w is (m, k)"),
        dx.of(n * k, "dx is (n, k)"),
    ];
    product.run(dx.device, operands)
}

/// A tile of a weight gradient: out (rows, k) = dy[:, first..first + rows]ᵀ x with dy (n, m),
/// x (n, k); n above 0.
///
/// # Panics
/// If a length does not match.
pub fn matmul_tn(
    dy: View<'_, f32>,
    x: View<'_, f32>,
    out: View<'_, f32>,
    (n, m, k): (usize, usize, usize),
    first: usize,
    rows: usize,
) -> Result<(), CudaError> {
    assert!(n > 0 && first + rows <= m, "rows of {m}");
    let product = Product {
        form: Form::Tn,
        rows,
        cols: k,
        depth: n,
        strides: [m, k, k],
        chunk: CHUNK_DEPTH,
        accumulate: false,
    };
    let operands = [
        dy.of(n * m, "dy is (n, m)") + 4 * first as u64,
        x.of(n * k, "x is (n, k)"),
        out.of(rows * k, "out is (rows, k)"),
    ];
    product.run(out.device, operands)
}
