//! Dense float32 products over the `gemm` crate: the one place that calls it.
//!
//! Parallelism is ours: rows are cut into fixed chunks that restart at every piece (the rows of
//! a micro-batch), so a product has the same bits for any number of threads and for any number
//! of pieces in a call. What `gemm` adds up in which order depends on the size of a chunk alone.

use std::cell::Cell;
use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

/// Rows of a chunk: small enough to give two cores even work at 768 rows, large enough to pay
/// for packing the weights anew in every chunk (128 rows reach 0.85 of this speed, 256 1.05).
const CHUNK_ROWS: usize = 192;

/// Summands of one pass of a weight gradient: longer ones run out of the cache.
const CHUNK_DEPTH: usize = 256;

/// Memory that the `gemm` crate takes on a thread that multiplies: a slab of the size of the L2
/// cache and packed operands. Measured with 2 MiB of L2 and widths up to 3072.
pub const GEMM_BYTES_PER_THREAD: u64 = 5 << 19;

thread_local! {
    static GEMM_DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether the calling thread is inside the `gemm` crate, which allocates its packing buffers:
/// lets a counting allocator tell them from ours.
pub fn inside_gemm() -> bool {
    GEMM_DEPTH.get() > 0
}

/// y = x wᵀ, or y += x wᵀ when `accumulate`: x (n, k), w (m, k), y (n, m), all row-major.
///
/// Pieces of `piece_rows` rows give the same bits alone or together.
///
/// # Panics
/// If a length does not match its shape or a size is 0 (n may be).
pub fn matmul_nt(
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    n: usize,
    m: usize,
    k: usize,
    piece_rows: usize,
    accumulate: bool,
) {
    assert_eq!(w.len(), m * k, "w is (m, k)");
    let w = View::rows(w, k).transposed();
    multiply_chunks(x, w, y, (n, m, k), piece_rows, accumulate);
}

/// dx = dy w, or dx += dy w when `accumulate`: dy (n, m), w (m, k), dx (n, k), all row-major.
///
/// Pieces of `piece_rows` rows give the same bits alone or together.
///
/// # Panics
/// If a length does not match its shape or a size is 0 (n may be).
pub fn matmul_nn(
    dy: &[f32],
    w: &[f32],
    dx: &mut [f32],
    n: usize,
    m: usize,
    k: usize,
    piece_rows: usize,
    accumulate: bool,
) {
    assert_eq!(w.len(), m * k, "w is (m, k)");
    multiply_chunks(dy, View::rows(w, k), dx, (n, k, m), piece_rows, accumulate);
}

/// A tile of a weight gradient, on the calling thread: out = dy[:, rows]ᵀ x, or out += … when
/// `accumulate`, with dy (n, m), x (n, k), out (rows.len(), k), all row-major. Pieces of a
/// multiple of 256 tokens that accumulate give the bits of the whole.
///
/// # Panics
/// If a length does not match its shape or `rows` is not within 0..m.
pub fn matmul_tn_tile(
    dy: &[f32],
    x: &[f32],
    n: usize,
    m: usize,
    k: usize,
    rows: Range<usize>,
    out: &mut [f32],
    accumulate: bool,
) {
    assert_eq!(dy.len(), n * m, "dy is (n, m)");
    assert_eq!(x.len(), n * k, "x is (n, k)");
    assert!(rows.end <= m, "rows {rows:?} of {m}");
    assert_eq!(out.len(), rows.len() * k, "out is (rows, k)");
    if n == 0 && !accumulate {
        out.fill(0.0);
    }
    for start in (0..n).step_by(CHUNK_DEPTH) {
        let depth = CHUNK_DEPTH.min(n - start);
        let dy = View::rows(&dy[start * m + rows.start..], m).transposed();
        let x = View::rows(&x[start * k..], k);
        let add = accumulate || start > 0;
        multiply((rows.len(), k, depth), dy, x, out, k, add);
    }
}

/// Rows of a block of a symmetric product.
const BLOCK: usize = 64;

/// C (m, m) = A Bᵀ of A and B (m, k), where the product is known to be symmetric: A = B, or both
/// symmetric and commuting. Only blocks on and below the diagonal are computed, the others are
/// copies of them, so that C is symmetric to the bit.
///
/// # Panics
/// If the lengths do not agree or a size is 0.
pub fn symmetric_nt(a: &[f32], b: &[f32], c: &mut [f32], m: usize, k: usize) {
    assert_eq!([a.len(), b.len()], [m * k; 2], "a and b are (m, k)");
    symmetric(c, m, |rows, cols, c| {
        let a = View::rows(&a[rows.start * k..rows.end * k], k);
        let b = View::rows(&b[..cols * k], k).transposed();
        multiply((rows.len(), cols, k), a, b, c, m, false);
    });
}

/// C (m, m) = Xᵀ X of X (n, m), symmetric to the bit.
///
/// # Panics
/// If the lengths do not agree or a size is 0.
pub fn symmetric_tn(x: &[f32], c: &mut [f32], n: usize, m: usize) {
    assert_eq!(x.len(), n * m, "x is (n, m)");
    symmetric(c, m, |rows, cols, c| {
        for start in (0..n).step_by(CHUNK_DEPTH) {
            let depth = CHUNK_DEPTH.min(n - start);
            let x = &x[start * m..];
            let a = View::rows(&x[rows.start..], m).transposed();
            let b = View::rows(x, m);
            multiply((rows.len(), cols, depth), a, b, c, m, start > 0);
        }
    });
}

/// Lets `block(rows, cols, out)` compute the first `cols` columns of some rows, as many as reach
/// the diagonal, and mirrors them.
fn symmetric(c: &mut [f32], m: usize, block: impl Fn(Range<usize>, usize, &mut [f32]) + Sync) {
    assert!(m > 0 && c.len() == m * m, "c is (m, m)");
    c.par_chunks_mut(BLOCK * m).enumerate().for_each(|(i, c)| {
        let rows = i * BLOCK..i * BLOCK + c.len() / m;
        block(rows.clone(), rows.end, c);
    });
    for row in 0..m {
        // A block on the diagonal is computed whole; its lower half counts.
        for col in 0..row {
            c[col * m + row] = c[row * m + col];
        }
    }
}

/// y (n, cols) (+)= a (n, depth) b (depth, cols), chunk by chunk in parallel.
fn multiply_chunks(
    a: &[f32],
    b: View<'_>,
    y: &mut [f32],
    (n, cols, depth): (usize, usize, usize),
    piece_rows: usize,
    accumulate: bool,
) {
    assert!(cols > 0 && depth > 0 && piece_rows > 0, "sizes are not 0");
    assert_eq!(a.len(), n * depth, "the left operand has n rows");
    assert_eq!(y.len(), n * cols, "the result has n rows");
    y.par_chunks_mut(piece_rows * cols)
        .zip(a.par_chunks(piece_rows * depth))
        .for_each(|(y, a)| {
            y.par_chunks_mut(CHUNK_ROWS * cols)
                .zip(a.par_chunks(CHUNK_ROWS * depth))
                .for_each(|(y, a)| {
                    let rows = y.len() / cols;
                    multiply(
                        (rows, cols, depth),
                        View::rows(a, depth),
                        b,
                        y,
                        cols,
                        accumulate,
                    );
                });
        });
}

/// A matrix to read: element (r, c) is `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f32],
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// Row-major rows that start every `stride` elements.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        View {
            data,
            row_stride: stride,
            col_stride: 1,
        }
    }

    pub(crate) fn transposed(self) -> Self {
        View {
            data: self.data,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    fn assert_holds(&self, rows: usize, cols: usize) {
        let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
        assert!(
            last < self.data.len(),
            "({rows}, {cols}) of {} elements",
            self.data.len()
        );
    }
}

/// out (rows, cols), whose rows start every `stride` elements, (+)= a (rows, depth) b (depth, cols).
pub(crate) fn multiply(
    shape: (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    out: &mut [f32],
    stride: usize,
    accumulate: bool,
) {
    let (rows, cols, _) = shape;
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(
        cols <= stride && (rows - 1) * stride + cols <= out.len(),
        "out holds its rows"
    );
    // SAFETY: `out` is exclusively ours and holds every (row, column), as just checked.
    unsafe { multiply_into(shape, a, b, out.as_mut_ptr(), stride, accumulate) }
}

/// [`multiply`] into rows that lie `stride` elements apart in a buffer shared with other threads.
///
/// # Safety
/// For the time of the call, `out[r * stride..][..cols]` must be valid and written or read by
/// nobody else, for every r < rows.
pub(crate) unsafe fn multiply_into(
    (rows, cols, depth): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    out: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(depth > 0, "a product has summands");
    a.assert_holds(rows, depth);
    b.assert_holds(depth, cols);
    let guard = GemmGuard::enter();
    // SAFETY: the operands were just checked, `out` is the caller's promise.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            depth,
            out,
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    drop(guard);
}

struct GemmGuard;

impl GemmGuard {
    fn enter() -> Self {
        GEMM_DEPTH.set(GEMM_DEPTH.get() + 1);
        GemmGuard
    }
}

impl Drop for GemmGuard {
    fn drop(&mut self) {
        GEMM_DEPTH.set(GEMM_DEPTH.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, noise};

    /// (n, m, k) with chunk and piece remainders.
    const SHAPES: [(usize, usize, usize); 6] = [
        (1, 1, 1),
        (3, 5, 7),
        (64, 65, 32),
        (200, 17, 33),
        (385, 40, 64),
        (130, 96, 300),
    ];

    #[test]
    fn symmetric_products_equal_whole_ones() {
        for (m, k) in [(1, 1), (5, 3), (64, 70), (65, 300), (130, 64)] {
            let x = noise(m * k, 1);
            let mut found = vec![f32::NAN; m * m];
            symmetric_nt(&x, &x, &mut found, m, k);
            let at =
                |r: usize, c: usize, d: usize| f64::from(x[r * k + d]) * f64::from(x[c * k + d]);
            assert_close(&found, &oracle(m, m, k, at), 1e-5, "nt");
            assert!((0..m * m).all(|i| found[i] == found[i % m * m + i / m]));

            let turned: Vec<f32> = (0..k * m).map(|i| x[i % m * k + i / m]).collect();
            let mut found = vec![f32::NAN; m * m];
            symmetric_tn(&turned, &mut found, k, m);
            assert_close(&found, &oracle(m, m, k, at), 1e-5, "tn");
            assert!((0..m * m).all(|i| found[i] == found[i % m * m + i / m]));
        }
    }

    fn oracle(
        n: usize,
        cols: usize,
        depth: usize,
        at: impl Fn(usize, usize, usize) -> f64,
    ) -> Vec<f64> {
        let sum = |r, c| (0..depth).map(|d| at(r, c, d)).sum();
        (0..n)
            .flat_map(|r| (0..cols).map(move |c| (r, c)))
            .map(|(r, c)| sum(r, c))
            .collect()
    }

    #[test]
    fn products_equal_plain_sums() {
        for (n, m, k) in SHAPES {
            let (x, w, dy) = (noise(n * k, 1), noise(m * k, 2), noise(n * m, 3));
            let f = f64::from;

            let mut y = noise(n * m, 4);
            let before = y.clone();
            matmul_nt(&x, &w, &mut y, n, m, k, 96, true);
            let xw = oracle(n, m, k, |r, c, d| f(x[r * k + d]) * f(w[c * k + d]));
            let sum: Vec<f64> = xw.iter().zip(&before).map(|(a, &b)| a + f(b)).collect();
            assert_close(&y, &sum, 1e-5, "nt, accumulated");
            matmul_nt(&x, &w, &mut y, n, m, k, 96, false);
            assert_close(&y, &xw, 1e-5, "nt");

            let mut dx = noise(n * k, 5);
            matmul_nn(&dy, &w, &mut dx, n, m, k, 96, false);
            let dyw = oracle(n, k, m, |r, c, d| f(dy[r * m + d]) * f(w[d * k + c]));
            assert_close(&dx, &dyw, 1e-5, "nn");

            let rows = m / 3..m;
            let mut dw = noise(rows.len() * k, 6);
            matmul_tn_tile(&dy, &x, n, m, k, rows.clone(), &mut dw, false);
            let tile = oracle(rows.len(), k, n, |r, c, d| {
                f(dy[d * m + rows.start + r]) * f(x[d * k + c])
            });
            assert_close(&dw, &tile, 1e-5, "tn");
        }
    }

    #[test]
    fn pieces_give_the_same_bits_alone_and_together() {
        for piece_rows in [1, 50, 64, 192, 200, 300] {
            let (m, k, n) = (70, 48, 4 * piece_rows);
            let (x, w, dy) = (noise(n * k, 1), noise(m * k, 2), noise(n * m, 3));
            let (mut y, mut dx) = (vec![0.0; n * m], vec![0.0; n * k]);
            matmul_nt(&x, &w, &mut y, n, m, k, piece_rows, false);
            matmul_nn(&dy, &w, &mut dx, n, m, k, piece_rows, false);
            let (mut y1, mut dx1) = (vec![0.0; n * m], vec![0.0; n * k]);
            for p in 0..4 {
                let rows = p * piece_rows..(p + 1) * piece_rows;
                let of = |width: usize| rows.start * width..rows.end * width;
                matmul_nt(
                    &x[of(k)],
                    &w,
                    &mut y1[of(m)],
                    piece_rows,
                    m,
                    k,
                    piece_rows,
                    false,
                );
                matmul_nn(
                    &dy[of(m)],
                    &w,
                    &mut dx1[of(k)],
                    piece_rows,
                    m,
                    k,
                    piece_rows,
                    false,
                );
            }
            assert!(y == y1 && dx == dx1, "piece_rows {piece_rows}");
        }
    }

    #[test]
    fn thread_count_changes_no_bit() {
        let (n, m, k, piece_rows) = (900, 80, 72, 450);
        let (x, w) = (noise(n * k, 1), noise(m * k, 2));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let mut y = vec![0.0; n * m];
            pool.install(|| matmul_nt(&x, &w, &mut y, n, m, k, piece_rows, false));
            y
        };
        assert_eq!(run(1), run(2));
    }

    #[test]
    fn guard_is_off_outside() {
        matmul_nt(&[1.0], &[2.0], &mut [0.0], 1, 1, 1, 1, false);
        assert!(!inside_gemm());
        let guard = GemmGuard::enter();
        assert!(inside_gemm());
        drop(guard);
        assert!(!inside_gemm());
    }
}
