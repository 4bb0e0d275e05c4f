//! Element by element: GELU, biases, sums. Parallel over fixed chunks.

use rayon::prelude::*;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes, exp};

/// Elements of a task.
const CHUNK: usize = 16 * 1024;

/// Columns of a task that sums over rows: tasks take columns, so that no partial sums of whole
/// rows are stored.
pub(crate) const CHUNK_COLUMNS: usize = 64;

/// Rows that a column sum adds up before adding to the total, for the sake of precision.
pub(crate) const BLOCK_ROWS: usize = 64;

// GELU in its tanh form, as in GPT-2: x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
pub(crate) const GELU_SLOPE: f32 = 0.797_884_6;
pub(crate) const GELU_CUBE: f32 = 0.044_715;

/// y = gelu(x), the tanh approximation (Hendrycks & Gimpel 2016); any equal lengths.
///
/// # Panics
/// If the lengths differ.
pub fn gelu(isa: Isa, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "as many results as inputs");
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| {
            dispatch!(isa, gelu_chunk(x, y));
        });
}

/// x = gelu(x).
pub fn gelu_in_place(isa: Isa, x: &mut [f32]) {
    x.par_chunks_mut(CHUNK).for_each(|x| {
        dispatch!(isa, gelu_chunk_in_place(x));
    });
}

/// Turns `dy`, the gradient of gelu(x), into the gradient of `x`, in place.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_backward(isa: Isa, x: &[f32], dy: &mut [f32]) {
    assert_eq!(x.len(), dy.len(), "as many gradients as inputs");
    dy.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(dy, x)| {
            dispatch!(isa, gelu_backward_chunk(x, dy));
        });
}

/// y += x.
///
/// # Panics
/// If the lengths differ.
pub fn add(isa: Isa, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "as many sums as summands");
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| {
            dispatch!(isa, add_chunk(x, y));
        });
}

/// Adds `bias` (C) to every row of `y` (n, C).
///
/// # Panics
/// If `y` is not whole rows.
pub fn add_bias(isa: Isa, y: &mut [f32], bias: &[f32]) {
    let width = bias.len();
    assert!(
        width > 0 && y.len().is_multiple_of(width),
        "{} elements in rows of {width}",
        y.len()
    );
    let rows = CHUNK.div_ceil(width);
    y.par_chunks_mut(rows * width).for_each(|rows| {
        for row in rows.chunks_exact_mut(width) {
            dispatch!(isa, add_chunk(bias, row));
        }
    });
}

/// Adds the sum of the rows of `dy` (n, `width`) to `out` (`width`): the gradient of a bias.
///
/// # Panics
/// If a length does not match.
pub fn sum_rows(isa: Isa, dy: &[f32], width: usize, out: &mut [f32]) {
    assert_eq!(out.len(), width, "a sum a column");
    assert!(
        width > 0 && dy.len().is_multiple_of(width),
        "{} elements in rows of {width}",
        dy.len()
    );
    out.par_chunks_mut(CHUNK_COLUMNS)
        .enumerate()
        .for_each(|(i, out)| {
            dispatch!(isa, sum_columns(dy, width, i * CHUNK_COLUMNS, out));
        });
}

/// y = f(x) for every vector; the lanes beyond the end are zero.
#[inline(always)]
fn map<L: Lanes>(lanes: L, x: &[f32], y: &mut [f32], f: impl Fn(L::F, L::F) -> L::F) {
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (x, y) in x.iter().zip(y) {
        lanes.store(f(lanes.load(x), lanes.load(y)), y);
    }
    if !x_tail.is_empty() {
        lanes.store_tail(f(lanes.load_tail(x_tail), lanes.load_tail(y_tail)), y_tail);
    }
}

#[inline(always)]
pub(crate) fn add_chunk<L: Lanes>(lanes: L, x: &[f32], y: &mut [f32]) {
    map(
        lanes,
        x,
        y,
        #[inline(always)]
        |x, y| lanes.add(y, x),
    );
}

#[inline(always)]
fn gelu_chunk<L: Lanes>(lanes: L, x: &[f32], y: &mut [f32]) {
    map(
        lanes,
        x,
        y,
        #[inline(always)]
        |x, _| gelu_vector(lanes, x),
    );
}

#[inline(always)]
fn gelu_chunk_in_place<L: Lanes>(lanes: L, x: &mut [f32]) {
    let (vectors, tail) = x.as_chunks_mut::<LANES>();
    for x in vectors {
        lanes.store(gelu_vector(lanes, lanes.load(x)), x);
    }
    lanes.store_tail(gelu_vector(lanes, lanes.load_tail(tail)), tail);
}

#[inline(always)]
fn gelu_backward_chunk<L: Lanes>(lanes: L, x: &[f32], dy: &mut [f32]) {
    map(
        lanes,
        x,
        dy,
        #[inline(always)]
        |x, dy| lanes.mul(dy, gelu_slope(lanes, x)),
    );
}

/// Half of 1 + tanh u, written 1 / (1 + e^(−2u)), with u = √(2/π) · (x + 0.044715 x³); and x².
#[inline(always)]
fn gelu_gate<L: Lanes>(lanes: L, x: L::F) -> (L::F, L::F) {
    let squared = lanes.mul(x, x);
    let one = lanes.splat(1.0);
    let factor = lanes.mul_then_add(squared, lanes.splat(GELU_CUBE), one);
    let exponent = lanes.mul(lanes.mul(x, lanes.splat(-2.0 * GELU_SLOPE)), factor);
    (
        lanes.div(one, lanes.add(one, exp(lanes, exponent))),
        squared,
    )
}

#[inline(always)]
fn gelu_vector<L: Lanes>(lanes: L, x: L::F) -> L::F {
    lanes.mul(x, gelu_gate(lanes, x).0)
}

/// d gelu / dx = s + x · s · (1 − s) · 2u' with the gate s and u' = √(2/π) · (1 + 3 · 0.044715 x²).
#[inline(always)]
fn gelu_slope<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let one = lanes.splat(1.0);
    let (s, squared) = gelu_gate(lanes, x);
    let inner = lanes.mul_then_add(squared, lanes.splat(3.0 * GELU_CUBE), one);
    let inner = lanes.mul(lanes.mul(x, lanes.splat(2.0 * GELU_SLOPE)), inner);
    lanes.mul_then_add(lanes.mul(s, lanes.sub(one, s)), inner, s)
}

/// out += the sums of the columns from `first` on of the rows of `dy`.
#[inline(always)]
fn sum_columns<L: Lanes>(lanes: L, dy: &[f32], width: usize, first: usize, out: &mut [f32]) {
    for block in dy.chunks(BLOCK_ROWS * width) {
        let mut sum = [0.0; CHUNK_COLUMNS];
        let sum = &mut sum[..out.len()];
        for row in block.chunks_exact(width) {
            add_chunk(lanes, &row[first..first + sum.len()], sum);
        }
        add_chunk(lanes, sum, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{assert_close, differences, noise, on_one_and_two_threads};

    const LENGTHS: [usize; 8] = [0, 1, 15, 16, 17, 63, 1000, 40_000];

    fn gelu_oracle(x: f64) -> f64 {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        0.5 * x * (1.0 + inner.tanh())
    }

    fn inputs(len: usize, seed: u64) -> Vec<f32> {
        noise(len, seed).iter().map(|x| 5.0 * x).collect()
    }

    #[test]
    fn gelu_equals_the_formula_and_its_slope() {
        for isa in Isa::available() {
            for len in LENGTHS {
                let x = inputs(len, 1);
                let mut y = vec![9.0; len];
                gelu(isa, &x, &mut y);
                let want: Vec<f64> = x.iter().map(|&x| gelu_oracle(f64::from(x))).collect();
                assert_close(&y, &want, 1e-6, isa.name());
                let mut in_place = x.clone();
                gelu_in_place(isa, &mut in_place);
                assert_eq!(y, in_place, "{}", isa.name());

                let dy = noise(len, 2);
                let mut dx = dy.clone();
                gelu_backward(isa, &x, &mut dx);
                let slope = |i: usize| {
                    let f = |x: &[f64]| gelu_oracle(x[0]) * f64::from(dy[i]);
                    differences(&x[i..=i], 1, f)[0].1
                };
                let want: Vec<f64> = (0..len).map(slope).collect();
                assert_close(&dx, &want, 4e-6, isa.name());
            }
        }
    }

    #[test]
    fn gelu_at_the_ends() {
        for isa in Isa::available() {
            let mut y = [f32::NAN, 1e30, -1e30, -0.0, f32::INFINITY];
            gelu_in_place(isa, &mut y);
            assert!(y[0].is_nan() && y[4] == f32::INFINITY);
            assert_eq!(y[1..4], [1e30, 0.0, 0.0], "{}", isa.name());
        }
    }

    #[test]
    fn biases_add_and_their_gradients_sum() {
        for isa in Isa::available() {
            for (n, width) in [(1, 1), (3, 15), (70, 16), (129, 65), (1000, 130)] {
                let (bias, y) = (noise(width, 1), noise(n * width, 2));
                let mut sum = y.clone();
                add_bias(isa, &mut sum, &bias);
                let want: Vec<f32> = y
                    .iter()
                    .zip(bias.iter().cycle())
                    .map(|(y, b)| y + b)
                    .collect();
                assert_eq!(sum, want, "{}", isa.name());

                let mut columns = bias.clone();
                sum_rows(isa, &y, width, &mut columns);
                let column = |c: usize| -> f64 {
                    y.iter().skip(c).step_by(width).map(|&y| f64::from(y)).sum()
                };
                let want: Vec<f64> = (0..width).map(|c| f64::from(bias[c]) + column(c)).collect();
                assert_close(&columns, &want, 1e-5, isa.name());

                let mut total = y.clone();
                add(isa, &sum, &mut total);
                let want: Vec<f32> = y.iter().zip(&sum).map(|(y, s)| y + s).collect();
                assert_eq!(total, want, "{}", isa.name());
            }
        }
    }

    #[test]
    fn tiers_and_threads_give_equal_bits() {
        for len in LENGTHS {
            let (x, dy) = (inputs(len, 1), noise(len, 2));
            let run = |isa| {
                let (mut y, mut dx, mut sums) = (vec![0.0; len], dy.clone(), vec![0.5; 1]);
                gelu(isa, &x, &mut y);
                gelu_backward(isa, &x, &mut dx);
                sum_rows(isa, &x, 1, &mut sums);
                [y, dx, sums]
            };
            let want = run(Isa::best());
            for isa in Isa::available() {
                let got = on_one_and_two_threads(|| run(isa));
                assert!(
                    got.iter().all(|got| *got == want),
                    "{} at {len}",
                    isa.name()
                );
            }
        }
    }
}
