//! Every tier against plain loops over the codes, all tiers bit-equal.

use primal_lut::{Grid, QuantMatrix};
use proptest::prelude::*;

use super::*;
use crate::test_support::noise;

/// Lengths around the vector, its multiples and a Philox block.
const LENGTHS: [usize; 13] = [1, 2, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 300];

fn grids() -> [Grid; 4] {
    [Grid::prime(), Grid::fine(), Grid::normal(), Grid::linear()]
}

fn matrix(grid: &Grid, rows: usize, cols: usize, group: usize) -> QuantMatrix {
    let weights = noise(rows * cols, cols as u64);
    let scales = noise(rows * cols.div_ceil(group), 99);
    QuantMatrix::quantise(grid, rows, cols, group, &weights, scales).unwrap()
}

#[test]
fn decoding_equals_a_plain_loop() {
    for grid in grids() {
        for cols in LENGTHS.into_iter().chain(32..65) {
            for group in [cols, 16.min(cols), 7.min(cols)] {
                let matrix = matrix(&grid, 3, cols, group);
                for isa in Isa::available() {
                    let what = format!("{}, {}, {cols} by {group}", isa.name(), grid.id());
                    for row in 0..3 {
                        let mut codes = vec![0; cols];
                        matrix.row_codes(row, &mut codes);
                        let value = |c: usize| grid.value(codes[c]).unwrap();
                        let scale =
                            |c: usize| matrix.scales()[row * matrix.groups_per_row() + c / group];
                        // One element off, so that starts are not aligned.
                        let mut out = vec![7.0; cols + 2];
                        decode_row(isa, &matrix, row, &mut out[1..=cols]);
                        let want: Vec<f32> = (0..cols).map(|c| value(c) * scale(c)).collect();
                        assert_eq!(out[1..=cols], want, "{what}, row {row}");
                        assert_eq!((out[0], out[cols + 1]), (7.0, 7.0), "{what}: stays inside");

                        let bytes = &matrix.nibbles()[row * matrix.row_bytes()..];
                        let high = matrix.high().map(|high| {
                            &high[row * matrix.high_row_bytes()..][..matrix.high_row_bytes()]
                        });
                        let nibbles = &bytes[..matrix.row_bytes()];
                        decode_values(isa, grid.table(), high, nibbles, &mut out[1..=cols]);
                        let want: Vec<f32> = (0..cols).map(value).collect();
                        assert_eq!(out[1..=cols], want, "{what}, row {row}: values");
                    }
                }
            }
        }
    }
}

/// [`matvec`]'s stated order in plain loops.
fn plain_matvec(matrix: &QuantMatrix, x: &[f32]) -> Vec<f32> {
    let (cols, group) = (matrix.cols(), matrix.group());
    let weights = matrix.dequantise();
    (0..matrix.rows())
        .map(|row| {
            let mut totals = [0.0_f32; 16];
            if group != cols && !group.is_multiple_of(16) {
                for c in 0..cols {
                    totals[c % 16] += weights[row * cols + c] * x[c];
                }
            } else {
                let mut codes = vec![0; cols];
                matrix.row_codes(row, &mut codes);
                for (g, start) in (0..cols).step_by(group).enumerate() {
                    let mut sums = [0.0_f32; 16];
                    for c in start..(start + group).min(cols) {
                        sums[c % 16] += matrix.grid().value(codes[c]).unwrap() * x[c];
                    }
                    let scale = matrix.scales()[row * matrix.groups_per_row() + g];
                    for l in 0..16 {
                        totals[l] += sums[l] * scale;
                    }
                }
            }
            for half in [8, 4, 2, 1] {
                for l in 0..half {
                    totals[l] += totals[l + half];
                }
            }
            totals[0]
        })
        .collect()
}

#[test]
fn matvec_equals_its_stated_order() {
    for grid in grids() {
        for cols in LENGTHS {
            for group in [cols, 32.min(cols), 9.min(cols)] {
                let matrix = matrix(&grid, 7, cols, group);
                let x = noise(cols + 1, 3);
                let want = plain_matvec(&matrix, &x[1..]);
                for isa in Isa::available() {
                    let mut y = vec![9.0; 7];
                    matvec(isa, &matrix, &x[1..], &mut y);
                    let what = format!("{}, {}, {cols} by {group}", isa.name(), grid.id());
                    assert_eq!(y, want, "{what}");
                }
            }
        }
    }
}

#[test]
fn matvec_is_close_to_a_sum_in_f64() {
    let matrix = matrix(&Grid::prime(), 300, 513, 513);
    let x = noise(513, 8);
    let weights = matrix.dequantise();
    for isa in Isa::available() {
        let mut y = vec![0.0; 300];
        matvec(isa, &matrix, &x, &mut y);
        for (row, y) in y.iter().enumerate() {
            let products = weights[row * 513..][..513].iter().zip(&x);
            let exact: f64 = products.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
            assert!(
                (f64::from(*y) - exact).abs() < 1e-4,
                "{}: row {row}",
                isa.name()
            );
        }
    }
}

proptest! {
    #[test]
    fn dot_follows_the_canonical_order(len in 0_usize..400, start in 0_usize..4, seed: u64) {
        let (a, b) = (noise(len + start, seed), noise(len + start, seed ^ 1));
        let (a, b) = (&a[start..], &b[start..]);
        let mut sums = [0.0_f32; 16];
        for i in 0..len {
            sums[i % 16] += a[i] * b[i];
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                sums[l] += sums[l + half];
            }
        }
        for isa in Isa::available() {
            prop_assert_eq!(dot(isa, a, b), sums[0], "{}", isa.name());
        }
    }
}

#[test]
#[should_panic(expected = "row 3 of 3")]
fn a_row_beyond_the_matrix_is_refused() {
    decode_row(
        Isa::best(),
        &matrix(&Grid::prime(), 3, 4, 4),
        3,
        &mut [0.0; 4],
    );
}

#[test]
#[should_panic(expected = "nibbles of 5 columns")]
fn short_planes_are_refused() {
    decode_values(
        Isa::best(),
        Grid::prime().table(),
        None,
        &[0; 2],
        &mut [0.0; 5],
    );
}

#[test]
fn adding_a_multiple_equals_a_plain_loop() {
    for len in LENGTHS {
        let (x, y) = (noise(len, 1), noise(len, 2));
        let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 0.3 * x + y).collect();
        for isa in Isa::available() {
            let mut found = y.clone();
            add_scaled(isa, 0.3, &x, &mut found);
            assert_eq!(found, want, "{}, {len}", isa.name());
        }
    }
}
