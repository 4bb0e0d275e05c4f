//! SwiGLU: one half of a row, through a sigmoid, gates the other (Shazeer 2020).

use rayon::prelude::*;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes, exp};

/// Rows of a task.
const CHUNK_ROWS: usize = 8;

/// y = gate / (1 + e^−gate) · up, for `x` (n, 2 F) with rows [gate | up] and `y` (n, F), F =
/// `width`.
///
/// # Panics
/// If a length does not match.
pub fn swiglu(isa: Isa, x: &[f32], width: usize, y: &mut [f32]) {
    assert_rows(width, x.len(), y.len());
    y.par_chunks_mut(CHUNK_ROWS * width)
        .zip(x.par_chunks(CHUNK_ROWS * 2 * width))
        .for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                let (gate, up) = x.split_at(width);
                dispatch!(isa, forward_row(gate, up, y));
            }
        });
}

/// Turns `x`, the input of [`swiglu`], into its gradient, in place; `dy` (n, F) is that of y.
///
/// # Panics
/// If a length does not match.
pub fn swiglu_backward(isa: Isa, x: &mut [f32], width: usize, dy: &[f32]) {
    assert_rows(width, x.len(), dy.len());
    x.par_chunks_mut(CHUNK_ROWS * 2 * width)
        .zip(dy.par_chunks(CHUNK_ROWS * width))
        .for_each(|(x, dy)| {
            for (x, dy) in x.chunks_exact_mut(2 * width).zip(dy.chunks_exact(width)) {
                let (gate, up) = x.split_at_mut(width);
                dispatch!(isa, backward_row(gate, up, dy));
            }
        });
}

fn assert_rows(width: usize, inputs: usize, outputs: usize) {
    assert!(
        width > 0 && outputs.is_multiple_of(width),
        "{outputs} outputs in rows of {width}"
    );
    assert_eq!(inputs, 2 * outputs, "a gate and an up an output");
}

#[inline(always)]
fn forward_row<L: Lanes>(lanes: L, gate: &[f32], up: &[f32], y: &mut [f32]) {
    let (gate, gate_tail) = gate.as_chunks::<LANES>();
    let (up, up_tail) = up.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for ((gate, up), y) in gate.iter().zip(up).zip(y) {
        lanes.store(gated(lanes, lanes.load(gate), lanes.load(up)), y);
    }
    if !y_tail.is_empty() {
        lanes.store_tail(
            gated(lanes, lanes.load_tail(gate_tail), lanes.load_tail(up_tail)),
            y_tail,
        );
    }
}

#[inline(always)]
fn backward_row<L: Lanes>(lanes: L, gate: &mut [f32], up: &mut [f32], dy: &[f32]) {
    let (gate, gate_tail) = gate.as_chunks_mut::<LANES>();
    let (up, up_tail) = up.as_chunks_mut::<LANES>();
    let (dy, dy_tail) = dy.as_chunks::<LANES>();
    for ((gate, up), dy) in gate.iter_mut().zip(up).zip(dy) {
        let (dgate, dup) = slopes(lanes, lanes.load(gate), lanes.load(up), lanes.load(dy));
        lanes.store(dgate, gate);
        lanes.store(dup, up);
    }
    if !dy_tail.is_empty() {
        let inputs = (lanes.load_tail(gate_tail), lanes.load_tail(up_tail));
        let (dgate, dup) = slopes(lanes, inputs.0, inputs.1, lanes.load_tail(dy_tail));
        lanes.store_tail(dgate, gate_tail);
        lanes.store_tail(dup, up_tail);
    }
}

#[inline(always)]
fn gated<L: Lanes>(lanes: L, gate: L::F, up: L::F) -> L::F {
    lanes.mul(lanes.mul(gate, sigmoid(lanes, gate)), up)
}

/// With the sigmoid s: d gate = dy · up · s · (1 + gate · (1 − s)), d up = dy · gate · s.
#[inline(always)]
fn slopes<L: Lanes>(lanes: L, gate: L::F, up: L::F, dy: L::F) -> (L::F, L::F) {
    let one = lanes.splat(1.0);
    let s = sigmoid(lanes, gate);
    let inner = lanes.mul_then_add(gate, lanes.sub(one, s), one);
    let dy_s = lanes.mul(dy, s);
    (lanes.mul(lanes.mul(dy_s, up), inner), lanes.mul(dy_s, gate))
}

/// 1 / (1 + e^−x).
#[inline(always)]
fn sigmoid<L: Lanes>(lanes: L, x: L::F) -> L::F {
    let one = lanes.splat(1.0);
    let power = exp(lanes, lanes.sub(lanes.zero(), x));
    lanes.div(one, lanes.add(one, power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, assert_close_at, differences, noise, on_one_and_two_threads,
    };

    /// (n, F).
    const SHAPES: [(usize, usize); 7] = [
        (0, 3),
        (1, 1),
        (2, 15),
        (3, 16),
        (9, 17),
        (20, 64),
        (17, 130),
    ];

    fn inputs(n: usize, width: usize) -> Vec<f32> {
        noise(2 * n * width, 1).iter().map(|x| 6.0 * x).collect()
    }

    fn oracle(x: &[f64], width: usize) -> Vec<f64> {
        let rows = x.chunks_exact(2 * width);
        let row = |x: &[f64]| -> Vec<f64> {
            (0..width)
                .map(|i| x[i] / (1.0 + (-x[i]).exp()) * x[width + i])
                .collect()
        };
        rows.flat_map(row).collect()
    }

    fn run(isa: Isa, x: &[f32], width: usize, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (mut y, mut dx) = (vec![9.0; dy.len()], x.to_vec());
        swiglu(isa, x, width, &mut y);
        swiglu_backward(isa, &mut dx, width, dy);
        (y, dx)
    }

    #[test]
    fn equals_the_formula_and_finite_differences() {
        for (n, width) in SHAPES {
            let (x, dy) = (inputs(n, width), noise(n * width, 2));
            let what = format!("({n}, {width})");
            let (y, dx) = run(Isa::best(), &x, width, &dy);
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            assert_close(&y, &oracle(&wide, width), 1e-6, &what);
            let slopes = differences(&x, 1 + x.len() / 200, |x| {
                let y = oracle(x, width);
                y.iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum()
            });
            assert_close_at(&dx, &slopes, 1e-5, &what);
        }
    }

    #[test]
    fn the_ends_of_the_gate() {
        for isa in Isa::available() {
            let mut x = [f32::NAN, 1e30, -1e30, 0.0, 2.0, 2.0, 2.0, 2.0];
            let mut y = [9.0; 4];
            swiglu(isa, &x, 4, &mut y);
            assert!(y[0].is_nan());
            assert_eq!(y[1..], [2e30, 0.0, 0.0], "{}", isa.name());
            swiglu_backward(isa, &mut x, 4, &[1.0; 4]);
            assert!(
                x[0].is_nan() && x[1..4] == [2.0, 0.0, 1.0],
                "{}: {x:?}",
                isa.name()
            );
        }
    }

    #[test]
    fn tiers_and_threads_give_equal_bits() {
        for (n, width) in SHAPES {
            let (x, dy) = (inputs(n, width), noise(n * width, 2));
            let want = run(Isa::best(), &x, width, &dy);
            for isa in Isa::available() {
                for got in on_one_and_two_threads(|| run(isa, &x, width, &dy)) {
                    assert_eq!(got, want, "{} at ({n}, {width})", isa.name());
                }
            }
        }
    }
}
