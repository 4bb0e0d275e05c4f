//! Every tier against the plain sum, bit by bit: one chain of fused multiply-adds an output.

use super::*;
use crate::test_support::{noise, on_one_and_two_threads};

/// (c_out, c_in, kernel, dilation, output columns).
const SHAPES: [(usize, usize, usize, usize, usize); 9] = [
    (1, 1, 1, 1, 1),
    (1, 32, 7, 1, 100),
    (3, 2, 3, 1, 15),
    (8, 3, 3, 2, 16),
    (13, 5, 7, 12, 17),
    (16, 8, 2, 1, 48),
    (10, 4, 11, 5, 65),
    (24, 16, 3, 6, 193),
    (7, 1, 5, 3, 400),
];

struct Case {
    conv: Conv1d,
    input: Signal,
    residual: Signal,
    want: Vec<f32>,
}

fn case((c_out, c_in, kernel, dilation, columns): (usize, usize, usize, usize, usize)) -> Case {
    let weights = noise(c_out * c_in * kernel, 1);
    let bias = noise(c_out, 2);
    let len = columns + (kernel - 1) * dilation;
    let x = noise(c_in * len, 3);
    let residual = noise(c_out * columns, 4);
    let mut want = Vec::new();
    for o in 0..c_out {
        for t in 0..columns {
            let mut sum = bias[o];
            for i in 0..c_in {
                for k in 0..kernel {
                    let w = weights[(o * c_in + i) * kernel + k];
                    sum = w.mul_add(x[i * len + t + k * dilation], sum);
                }
            }
            want.push(sum + residual[o * columns + t]);
        }
    }
    Case {
        conv: Conv1d::new(&weights, &bias, kernel, dilation),
        input: Signal::from_rows(c_in, &x),
        residual: Signal::from_rows(c_out, &residual),
        want,
    }
}

fn rows(signal: &Signal) -> Vec<f32> {
    (0..signal.channels())
        .flat_map(|c| signal.row(c).to_vec())
        .collect()
}

#[test]
fn convolutions_equal_the_plain_sum_to_the_bit() {
    for isa in Isa::available() {
        for shape in SHAPES {
            let case = case(shape);
            let [one, two] = on_one_and_two_threads(|| {
                let mut output = Signal::new(shape.0);
                case.conv
                    .run(isa, &case.input, Some(&case.residual), &mut output);
                rows(&output)
            });
            assert_eq!(one, case.want, "{} at {shape:?}", isa.name());
            assert_eq!(one, two, "{} at {shape:?}", isa.name());
        }
    }
}

#[test]
fn large_ones_are_equal_on_threads_too() {
    let case = case((64, 64, 5, 2, 1000));
    let [one, two] = on_one_and_two_threads(|| {
        let mut output = Signal::new(64);
        case.conv
            .run(Isa::best(), &case.input, Some(&case.residual), &mut output);
        rows(&output)
    });
    assert!(one == case.want && one == two);
}

#[test]
fn an_input_shorter_than_the_kernel_gives_nothing() {
    let conv = Conv1d::new(&[1.0; 6], &[0.0; 2], 3, 4);
    assert_eq!((conv.c_out(), conv.c_in(), conv.margin()), (2, 1, 8));
    let mut output = Signal::new(2);
    output.set_len(5);
    conv.run(
        Isa::best(),
        &Signal::from_rows(1, &[1.0; 8]),
        None,
        &mut output,
    );
    assert!(output.is_empty());
}
