//! Orthogonalising: the nearest matrix all of whose singular values are near 1.
//!
//! Newton-Schulz iterations X ← (a I + b A + c A²) X with A = X Xᵀ, from X = G / ‖G‖, on the
//! shorter side (Jordan et al. 2024, "Muon"). Each is a polynomial of the first A times G: so all
//! of them are made of symmetric matrices of the shorter side, of which half is computed, and G is
//! multiplied once, at the end. Everything is float32 products of fixed cuts: the result does not
//! depend on the number of threads.

use std::cell::RefCell;

use primal_kernels::{matmul_nn, symmetric_nt, symmetric_tn};

use crate::OptimError;

/// (a, b, c) of each iteration.
const ITERATIONS: [[f32; 3]; 5] = [[3.4445, -4.7750, 2.0315]; 5];

/// Rows of a product that one thread computes.
const PIECE_ROWS: usize = 64;

/// The matrices that are stacked in one.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    cols: usize,
    /// Rows of each.
    rows: Vec<usize>,
}

impl Parts {
    /// # Errors
    /// [`OptimError::Stack`] where the rows do not add up to the matrix.
    pub(crate) fn new((rows, cols): (usize, usize), stack: &[usize]) -> Result<Self, OptimError> {
        let parts = match stack {
            [] => vec![rows],
            stack => stack.to_vec(),
        };
        if parts.iter().sum::<usize>() != rows {
            return Err(OptimError::Stack { rows, parts });
        }
        Ok(Parts { cols, rows: parts })
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.iter().sum()
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }
}

thread_local! {
    /// The buffers of one matrix after the other: they only grow.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Elements of the buffers: the matrix, a product of its size and four of the shorter side's.
fn scratch_len(rows: usize, cols: usize) -> usize {
    let short = rows.min(cols);
    2 * rows * cols + 4 * short * short
}

/// Bytes that the thread which takes steps comes to hold for a matrix (rows, cols) whose gradient
/// is orthogonalised.
pub(crate) fn orthogonal_bytes((rows, cols): (usize, usize)) -> u64 {
    4 * scratch_len(rows, cols) as u64
}

/// Lends a matrix that can be orthogonalised, with what is left in it from before.
pub(crate) fn with_matrix(parts: &Parts, body: impl FnOnce(Stacked<'_>)) {
    let (rows, cols) = (parts.rows(), parts.cols);
    let len = scratch_len(rows, cols);
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        let (values, work) = scratch.split_at_mut(rows * cols);
        body(Stacked {
            parts,
            values,
            work,
        });
    });
}

/// Matrices stacked in one.
pub(crate) struct Stacked<'a> {
    parts: &'a Parts,
    /// (rows, cols), row-major.
    pub(crate) values: &'a mut [f32],
    work: &'a mut [f32],
}

impl Stacked<'_> {
    /// Brings the singular values of each matrix close to each other, and the root mean square of
    /// its elements to about 1. A matrix of zeros stays one.
    pub(crate) fn orthogonalise(&mut self) {
        let cols = self.parts.cols;
        let mut rest = &mut *self.values;
        for &rows in &self.parts.rows {
            let (part, others) = rest.split_at_mut(rows * cols);
            orthogonalise(part, (rows, cols), self.work);
            rest = others;
        }
    }
}

fn orthogonalise(x: &mut [f32], (rows, cols): (usize, usize), work: &mut [f32]) {
    let (short, long) = (rows.min(cols), rows.max(cols));
    let (y, work) = work.split_at_mut(rows * cols);
    let mut buffers = work.chunks_exact_mut(short * short);
    let mut buffer = || buffers.next().unwrap_or_default();
    let (gram, step, product, spare) = (buffer(), buffer(), buffer(), buffer());
    let is_tall = rows > cols;

    let sum_sq: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    if sum_sq == 0.0 {
        return;
    }
    let scale = sum_sq.sqrt().recip() as f32;
    x.iter_mut().for_each(|value| *value *= scale);
    if is_tall {
        symmetric_tn(x, gram, long, short);
    } else {
        symmetric_nt(x, x, gram, short, long);
    }
    for (i, [a, b, c]) in ITERATIONS.into_iter().enumerate() {
        symmetric_nt(gram, gram, step, short, short);
        for (row, (step, gram)) in step
            .chunks_exact_mut(short)
            .zip(gram.chunks_exact(short))
            .enumerate()
        {
            for (step, gram) in step.iter_mut().zip(gram) {
                *step = b * gram + c * *step;
            }
            step[row] += a;
        }
        if i == 0 {
            product.copy_from_slice(step);
        } else {
            symmetric_nt(step, product, spare, short, short);
            product.copy_from_slice(spare);
        }
        if i + 1 < ITERATIONS.len() {
            symmetric_nt(step, gram, spare, short, short);
            symmetric_nt(spare, step, gram, short, short);
        }
    }
    if is_tall {
        matmul_nn(x, product, y, long, short, short, PIECE_ROWS, false);
    } else {
        matmul_nn(product, x, y, short, short, long, PIECE_ROWS, false);
    }
    let unit = (long as f32).sqrt();
    for (x, y) in x.iter_mut().zip(&*y) {
        *x = unit * y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use primal_kernels::philox4x32;

    fn noise(i: usize) -> f32 {
        philox4x32([i as u32, 1, 2, 3], [4, 5])[0] as f32 / 2_147_483_648.0 - 1.0
    }

    fn orthogonal(size: (usize, usize), stack: &[usize], values: &[f32]) -> Vec<f32> {
        let parts = Parts::new(size, stack).unwrap();
        let mut out = vec![f32::NAN; values.len()];
        with_matrix(&parts, |mut matrix| {
            matrix.values.copy_from_slice(values);
            matrix.orthogonalise();
            out.copy_from_slice(matrix.values);
        });
        out
    }

    /// The largest and the smallest singular value, by the entries of X Xᵀ on the shorter side:
    /// Gershgorin's circles around them.
    fn singular_bounds((rows, cols): (usize, usize), x: &[f32]) -> (f64, f64) {
        let (short, at): (usize, Box<dyn Fn(usize, usize) -> f64>) = if rows <= cols {
            (rows, Box::new(|i, k| f64::from(x[i * cols + k])))
        } else {
            (cols, Box::new(|i, k| f64::from(x[k * cols + i])))
        };
        let long = rows.max(cols);
        let gram = |i, j| (0..long).map(|k| at(i, k) * at(j, k)).sum::<f64>() / long as f64;
        let (mut low, mut high) = (f64::MAX, 0.0f64);
        for i in 0..short {
            let others: f64 = (0..short)
                .filter(|&j| j != i)
                .map(|j| gram(i, j).abs())
                .sum();
            low = low.min(gram(i, i) - others);
            high = high.max(gram(i, i) + others);
        }
        (low, high)
    }

    #[test]
    fn all_singular_values_come_near_one() {
        for size in [(1, 1), (1, 7), (7, 1), (6, 70), (70, 6)] {
            let values: Vec<f32> = (0..size.0 * size.1).map(|i| 1e-3 * noise(i)).collect();
            let (low, high) = singular_bounds(size, &orthogonal(size, &[], &values));
            assert!(low > 0.3 && high < 2.0, "{size:?}: {low} {high}");
        }
    }

    #[test]
    fn directions_stay() {
        // Orthogonal rows of different sizes only change their sizes.
        let values = [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, -0.6, 0.8];
        let found: Vec<f32> = orthogonal((2, 4), &[], &values)
            .iter()
            .map(|x| x / 2.0)
            .collect();
        let (a, b) = (found[0] / 0.6, found[6] / -0.6);
        for (found, right) in
            found
                .iter()
                .zip([0.6 * a, 0.8 * a, 0.0, 0.0, 0.0, 0.0, -0.6 * b, 0.8 * b])
        {
            assert!((found - right).abs() < 1e-5);
        }
        assert!(a > 0.6 && a < 1.3 && b > 0.6 && b < 1.3, "{a} {b}");
    }

    #[test]
    fn stacked_matrices_are_apart_and_tall_ones_turned() {
        let values: Vec<f32> = (0..30 * 5).map(noise).collect();
        let stacked = orthogonal((30, 5), &[2, 12, 16], &values);
        let (a, rest) = values.split_at(2 * 5);
        let (b, c) = rest.split_at(12 * 5);
        let apart = [(2, a), (12, b), (16, c)].map(|(rows, part)| orthogonal((rows, 5), &[], part));
        assert_eq!(stacked, apart.concat());

        let turned: Vec<f32> = (0..5 * 30).map(|i| values[i % 30 * 5 + i / 30]).collect();
        let (tall, wide) = (
            orthogonal((30, 5), &[], &values),
            orthogonal((5, 30), &[], &turned),
        );
        for (i, tall) in tall.iter().enumerate() {
            assert!((tall - wide[i % 5 * 30 + i / 5]).abs() < 1e-4);
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        assert_eq!(orthogonal((3, 4), &[], &[0.0; 12]), [0.0; 12]);
        assert!(Parts::new((10, 4), &[4, 4]).is_err());
    }
}
