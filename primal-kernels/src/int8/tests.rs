//! Every form of the integer products against the plain sums that they stand for.

use primal_lut::{Grid, QuantMatrix};
use proptest::prelude::*;

use super::*;
use crate::huge::HugeArena;
use crate::rows::MatrixRows;
use crate::test_support::{noise, on_one_and_two_threads};

fn matrix(grid: &Grid, rows: usize, cols: usize, group: usize, seed: u64) -> QuantMatrix {
    let weights = noise(rows * cols, seed);
    let scales = noise(rows * cols.div_ceil(group), seed + 1);
    let scales = scales.iter().map(|scale| 1.1 + scale).collect();
    QuantMatrix::quantise(grid, rows, cols, group, &weights, scales).unwrap()
}

fn quantised(isa: Isa, x: &[f32], cols: usize) -> QuantisedRows {
    let mut rows = QuantisedRows::new(x.len() / cols, cols);
    rows.quantise(isa, x, cols, None);
    rows
}

fn quantised_for(isa: Isa, x: &[f32], w: &QuantMatrix) -> QuantisedRows {
    let mut rows = QuantisedRows::new(x.len() / w.cols(), w.cols());
    assert!(rows.quantise_for(isa, x, w));
    rows
}

fn pack(matrix: &QuantMatrix) -> PackedWeights {
    let wide = matrix.grid().is_wide();
    let bytes = PackedWeights::arena_bytes(matrix.rows(), matrix.cols(), wide);
    let mut arena = HugeArena::new(bytes).unwrap();
    PackedWeights::new(matrix, &mut arena).unwrap()
}

/// The result as the module states it, straight from the codes: x (n, K) against rows of w.
fn oracle(x: &QuantisedRows, w: &QuantMatrix) -> Vec<f32> {
    let table = Int8Grid::new(w.grid()).unwrap();
    let mut out = Vec::new();
    for t in 0..x.rows() {
        for r in 0..w.rows() {
            let mut total = 0.0;
            for g in 0..w.groups_per_row() {
                let cols = g * w.group()..((g + 1) * w.group()).min(w.cols());
                let sum: i32 = cols
                    .map(|c| {
                        i32::from(table.values[usize::from(w.code(r, c))]) * i32::from(x.row(t)[c])
                    })
                    .sum();
                let scale = w.scales()[r * w.groups_per_row() + g];
                total += sum as f32 * scale * (x.scales(t)[g] * table.unit_value);
            }
            out.push(total);
        }
    }
    out
}

fn grids() -> [Grid; 4] {
    [Grid::prime(), Grid::fine(), Grid::normal(), Grid::linear()]
}

#[test]
fn the_prime_grid_has_the_unit_of_the_design() {
    for grid in [Grid::prime(), Grid::fine()] {
        let table = Int8Grid::new(&grid).unwrap();
        assert_eq!(table.unit_value, 1.0 / 119.0);
        assert!(table.max_relative_error() < 0.017);
    }
    let small = Grid::new("small", &[-2.0, -0.5, 0.0, 0.5, 2.0]).unwrap();
    let table = Int8Grid::new(&small).unwrap();
    assert_eq!(table.max_relative_error(), 0.0);
    let huge = Grid::new("huge", &[-200.0, 0.0, 200.0]).unwrap();
    assert_eq!(Int8Grid::new(&huge), None);
}

#[test]
fn quantising_is_round_to_nearest_with_ties_to_even() {
    let x = [127.0, 0.5, 1.5, -2.5, -126.6, 3.49, 0.0];
    for isa in Isa::variants() {
        let rows = quantised(isa, &x, 7);
        assert_eq!(rows.row(0)[..7], [127, 0, 2, -2, -127, 3, 0]);
        assert!(rows.row(0)[7..].iter().all(|&q| q == 0));
        assert_eq!(rows.scales(0)[0], 1.0);
        assert_eq!(rows.sums(0), [3]);
    }
}

#[test]
fn each_group_of_the_weights_scales_its_activations() {
    let w = matrix(&Grid::prime(), 1, 72, 32, 1);
    let mut x = vec![1.0; 72];
    x[..32].fill(-254.0);
    x[64..].fill(0.0);
    for isa in Isa::variants() {
        let rows = quantised_for(isa, &x, &w);
        assert_eq!(rows.scales(0), [2.0, 1.0 / 127.0, 0.0]);
        assert_eq!(rows.row(0)[31..33], [-127, 127]);
        assert_eq!(rows.sums(0), [-127 * 32, 127 * 32, 0]);
    }
}

#[test]
fn a_matrix_packed_in_parts_is_the_same() {
    for (grid, rows, cols, group) in [
        (Grid::prime(), 83, 40, 40),
        (Grid::fine(), 50, 72, 32),
        (Grid::prime(), 16, 7, 7),
    ] {
        let w = matrix(&grid, rows, cols, group, 3);
        let arena =
            || HugeArena::new(PackedWeights::arena_bytes(rows, cols, grid.is_wide())).unwrap();
        let whole = PackedWeights::new(&w, &mut arena()).unwrap();
        let mut parts = PackedWeights::zeros(&grid, (rows, cols), group, &mut arena()).unwrap();
        for start in (0..rows).step_by(32) {
            let part = start..(start + 32).min(rows);
            let bytes = w.row_bytes();
            let high = w.high_row_bytes();
            let groups = w.groups_per_row();
            let part = QuantMatrix::from_planes(
                &grid,
                part.len(),
                cols,
                group,
                w.nibbles()[part.start * bytes..part.end * bytes].to_vec(),
                w.high()
                    .map(|h| h[part.start * high..part.end * high].to_vec()),
                w.scales()[part.start * groups..part.end * groups].to_vec(),
                "part",
            );
            parts.set_rows(start, &part.unwrap());
        }
        assert_eq!(parts.codes(), whole.codes());
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..rows {
            parts.fill_row(Isa::best(), row, &mut a);
            whole.fill_row(Isa::best(), row, &mut b);
            assert_eq!(a, b, "row {row}");
        }
    }
}

#[test]
fn rows_that_are_not_finite_poison_their_products_alone() {
    let w = matrix(&Grid::prime(), 3, 40, 40, 1);
    for isa in Isa::variants() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = noise(3 * 40, 2);
            x[47] = bad;
            x[80..].fill(0.0);
            let x = quantised(isa, &x, 40);
            let mut y = vec![1.0; 9];
            int8_matmul_nt(isa, &x, &w, 0..3, &mut y, false);
            assert!(
                y[..3].iter().all(|y| y.is_finite() && *y != 0.0),
                "{}",
                isa.name()
            );
            assert!(y[3..6].iter().all(|y| y.is_nan()), "{}", isa.name());
            assert_eq!(y[6..], [0.0; 3], "{}", isa.name());
        }
        // Too small to invert: zero, not infinity.
        let tiny = quantised(isa, &[1e-39, -1e-40], 2);
        assert_eq!(
            (tiny.scales(0)[0], &tiny.row(0)[..2]),
            (0.0, [0, 0].as_slice())
        );
    }
}

#[test]
fn column_scales_go_in_first() {
    let (x, scale) = (noise(5 * 37, 3), noise(37, 4));
    let scaled: Vec<f32> = x
        .iter()
        .enumerate()
        .map(|(i, x)| x * scale[i % 37])
        .collect();
    for isa in Isa::variants() {
        let mut rows = QuantisedRows::new(5, 37);
        rows.quantise(isa, &x, 37, Some(&scale));
        let want = quantised(Isa::available()[0], &scaled, 37);
        for t in 0..5 {
            assert_eq!(rows.row(t), want.row(t));
            assert_eq!(rows.scales(t)[0].to_bits(), want.scales(t)[0].to_bits());
        }
    }
}

#[test]
fn ledger_bytes_are_those_allocated() {
    for (rows, cols) in [(1, 1), (3, 64), (5, 100)] {
        let held = QuantisedRows::new(rows, cols);
        assert_eq!(held.allocated_bytes(), QuantisedRows::bytes(rows, cols));
    }
    let w = matrix(&Grid::fine(), 33, 96, 64, 1);
    let packed = pack(&w);
    let arena = PackedWeights::arena_bytes(33, 96, true);
    assert_eq!(
        packed.bytes(),
        arena + PackedWeights::scale_bytes(33, 96, 64)
    );
}

/// The extremes: no pair of products may saturate, no sum may overflow.
#[test]
fn the_largest_sums_are_exact() {
    let grid = Grid::new("edge", &[-127.0 / 119.0, 0.0, 127.0 / 119.0]).unwrap();
    let cols = 4096;
    let w =
        QuantMatrix::quantise(&grid, 2, cols, cols, &vec![9.0; 2 * cols], vec![1.0; 2]).unwrap();
    for isa in Isa::variants() {
        for sign in [1.0, -1.0] {
            let x = quantised(isa, &vec![sign * 127.0; cols], cols);
            let want = oracle(&x, &w);
            let mut y = vec![0.0; 2];
            int8_matvec(isa, &pack(&w), &x, &mut y);
            assert_eq!(y, want, "{}", isa.name());
            int8_matmul_nt(isa, &x, &w, 0..2, &mut y, false);
            assert_eq!(y, want, "{}", isa.name());
        }
    }
}

/// A float matrix as bytes: what is stored, its products as stated on every tier, and how far both
/// are from the floats.
#[test]
fn bytes_stand_for_floats() {
    for (rows, cols) in [(1, 1), (17, 7), (16, 64), (35, 101), (130, 200)] {
        let values = noise(rows * cols, 21);
        let mut arena = HugeArena::new(ByteWeights::arena_bytes(rows, cols)).unwrap();
        let mut w = ByteWeights::zeros((rows, cols), &mut arena).unwrap();
        let split = rows / 2 / 16 * 16;
        w.set_rows(split, &values[split * cols..]);
        w.set_rows(0, &values[..split * cols]);
        let held = ByteWeights::arena_bytes(rows, cols) + ByteWeights::scale_bytes(rows, cols);
        assert_eq!(w.bytes(), held);

        let mut stored = vec![0.0; rows * cols];
        for (row, to) in stored.chunks_exact_mut(cols).enumerate() {
            w.fill_row(Isa::best(), row, to);
            let from = &values[row * cols..][..cols];
            for (from, to) in from.chunks(w.group()).zip(to.chunks(w.group())) {
                let largest = from.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                for (from, to) in from.iter().zip(to) {
                    assert!((from - *to).abs() <= largest * (0.5 / 127.0 + 1e-6));
                }
            }
        }
        let x = noise(cols, 22);
        let mut bits = None;
        for isa in Isa::variants() {
            let mut q = QuantisedRows::new(1, cols);
            q.quantise_for_bytes(isa, &x, &w);
            let mut y = vec![0.0; rows];
            byte_matvec(isa, &w, &q, &mut y);
            for (row, &y) in stored.chunks_exact(cols).zip(&y) {
                let groups = row.chunks(w.group()).zip(q.row(0).chunks(w.group()));
                let exact: f64 = groups
                    .zip(q.scales(0))
                    .map(|((w, q), &scale)| {
                        let products = w.iter().zip(q).map(|(w, &q)| f64::from(*w) * f64::from(q));
                        products.sum::<f64>() * f64::from(scale)
                    })
                    .sum();
                let near = (f64::from(y) - exact).abs() < 1e-4;
                assert!(near, "{} {y} {exact}", isa.name());
            }
            assert_eq!(&y, bits.get_or_insert(y.clone()), "{}", isa.name());
        }
    }
}

#[test]
fn bytes_keep_extremes_and_what_is_not_finite() {
    let cols = 130;
    let mut values = vec![0.0; 4 * cols];
    values[..cols].fill(-3.0);
    values[cols..2 * cols].fill(1e-41);
    values[2 * cols + 70] = f32::NAN;
    values[3 * cols] = f32::INFINITY;
    let mut arena = HugeArena::new(ByteWeights::arena_bytes(4, cols)).unwrap();
    let mut w = ByteWeights::zeros((4, cols), &mut arena).unwrap();
    w.set_rows(0, &values);
    for isa in Isa::variants() {
        for sign in [1.0, -1.0] {
            let mut q = QuantisedRows::new(1, cols);
            q.quantise_for_bytes(isa, &vec![sign; cols], &w);
            let mut y = [0.0; 4];
            byte_matvec(isa, &w, &q, &mut y);
            assert!((y[0] + sign * 390.0).abs() < 1e-3, "{} {y:?}", isa.name());
            assert_eq!(y[1], 0.0);
            assert!(y[2].is_nan() && y[3].is_nan(), "{} {y:?}", isa.name());
        }
    }
    assert!(ByteWeights::zeros((1, 0), &mut arena).is_none());
    assert!(ByteWeights::zeros((1, INT8_MAX_COLS + 1), &mut arena).is_none());
    assert!(ByteWeights::zeros((1 << 20, 64), &mut arena).is_none());
}

#[test]
fn packed_rows_read_back() {
    for grid in grids() {
        let w = matrix(&grid, 35, 101, 32, 5);
        let packed = pack(&w);
        for (row, want) in w.dequantise().chunks_exact(101).enumerate() {
            let mut got = vec![0.0; 101];
            packed.fill_row(Isa::best(), row, &mut got);
            assert_eq!(got, want);
        }
    }
}

#[test]
fn what_has_no_integer_form_is_refused() {
    let mut x = quantised(Isa::best(), &noise(48, 1), 48);
    let odd = matrix(&Grid::prime(), 4, 48, 20, 1);
    assert!(!x.quantise_for(Isa::best(), &noise(48, 1), &odd));
    let mut arena = HugeArena::new(1 << 20).unwrap();
    assert!(PackedWeights::new(&odd, &mut arena).is_none());
    let grouped = matrix(&Grid::prime(), 48, 64, 32, 1);
    assert!(!int8_matmul_nn(
        Isa::best(),
        &x,
        &grouped,
        0..48,
        &mut [0.0; 64],
        false
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_are_the_stated_ones_on_every_tier(
        grid in 0..4usize,
        rows in prop::sample::select(vec![1usize, 15, 16, 17, 63, 64, 65, 130]),
        cols in prop::sample::select(vec![1usize, 7, 8, 31, 32, 33, 63, 64, 65, 96, 200, 257]),
        group in prop::sample::select(vec![0usize, 32, 64, 128]),
        n in 1..14usize,
        accumulate: bool,
        seed in 0..1000u64,
    ) {
        let group = if group == 0 { cols } else { group.min(cols) };
        let w = matrix(&grids()[grid], rows, cols, group, seed);
        let x_values = noise(n * cols, seed + 9);
        let before = if accumulate { noise(n * rows, seed + 7) } else { vec![0.0; n * rows] };
        let packed = pack(&w);
        for isa in Isa::variants() {
            let name = format!("{} {:?}", isa.name(), isa.extras());
            let x = quantised_for(isa, &x_values, &w);
            let product = oracle(&x, &w);
            let want: Vec<f32> = product.iter().zip(&before).map(|(p, b)| if accumulate { b + p } else { *p }).collect();
            for source in [&w as &dyn Int8Rows, &packed] {
                let mut y = before.clone();
                int8_matmul_nt(isa, &x, source, 0..rows, &mut y, accumulate);
                prop_assert_eq!(&y, &want, "{}", name);
            }
            if rows > 64 {
                let mut y = vec![0.0; n * (rows - 64)];
                int8_matmul_nt(isa, &x, &packed, 64..rows, &mut y, false);
                let part: Vec<f32> = product.chunks_exact(rows).flat_map(|row| row[64..].to_vec()).collect();
                prop_assert_eq!(&y, &part, "{}", name);
            }
            let one = quantised_for(isa, &x_values[..cols], &w);
            let mut y = vec![0.0; rows];
            int8_matvec(isa, &packed, &one, &mut y);
            prop_assert_eq!(&y[..], &product[..rows], "{}", name);
        }
    }

    #[test]
    fn input_gradients_are_the_stated_ones_on_every_tier(
        grid in 0..4usize,
        rows in prop::sample::select(vec![1usize, 3, 4, 17, 64, 66, 130]),
        cols in prop::sample::select(vec![1usize, 31, 33, 63, 64, 65, 96, 200]),
        n in 1..9usize,
        accumulate: bool,
        seed in 0..1000u64,
    ) {
        let w = matrix(&grids()[grid], rows, cols, cols, seed);
        let used = rows / 4..rows;
        let table = Int8Grid::new(w.grid()).unwrap();
        let dy = noise(n * used.len(), seed + 9);
        let before = noise(n * cols, seed + 7);
        for isa in Isa::variants() {
            let mut q = QuantisedRows::new(n, used.len());
            q.quantise(isa, &dy, used.len(), Some(&w.scales()[used.clone()]));
            let mut want = before.clone();
            for t in 0..n {
                for c in 0..cols {
                    let sum: i32 = used.clone().enumerate()
                        .map(|(i, r)| i32::from(q.row(t)[i]) * i32::from(table.values[usize::from(w.code(r, c))]))
                        .sum();
                    let product = sum as f32 * (q.scales(t)[0] * table.unit_value);
                    let at = &mut want[t * cols + c];
                    *at = if accumulate { *at + product } else { product };
                }
            }
            let mut dx = before.clone();
            prop_assert!(int8_matmul_nn(isa, &q, &w, used.clone(), &mut dx, accumulate));
            prop_assert_eq!(&dx, &want, "{} {:?}", isa.name(), isa.extras());
        }
    }
}

#[test]
fn thread_count_changes_no_bit() {
    let w = matrix(&Grid::prime(), 300, 200, 200, 1);
    let packed = pack(&w);
    let x = quantised(Isa::best(), &noise(1600 * 200, 2), 200);
    let one = quantised(Isa::best(), &noise(200, 3), 200);
    let [a, b] = on_one_and_two_threads(|| {
        let (mut y, mut y1) = (vec![0.0; 1600 * 300], vec![0.0; 300]);
        int8_matmul_nt(Isa::best(), &x, &w, 0..300, &mut y, false);
        int8_matvec(Isa::best(), &packed, &one, &mut y1);
        (y, y1)
    });
    assert_eq!(a, b);
}

/// How far the integer form is from the float product of the same weights.
#[test]
fn the_error_against_float_is_small() {
    let (rows, cols, n) = (64, 768, 8);
    let w = matrix(&Grid::prime(), rows, cols, cols, 11);
    let (values, x) = (w.dequantise(), noise(n * cols, 12));
    let isa = Isa::best();
    let mut y = vec![0.0; n * rows];
    int8_matmul_nt(isa, &quantised(isa, &x, cols), &w, 0..rows, &mut y, false);
    let (mut error, mut size) = (0.0, 0.0);
    for t in 0..n {
        for r in 0..rows {
            let exact: f64 = (0..cols)
                .map(|c| f64::from(x[t * cols + c]) * f64::from(values[r * cols + c]))
                .sum();
            error += (f64::from(y[t * rows + r]) - exact).powi(2);
            size += exact.powi(2);
        }
    }
    let relative = (error / size).sqrt();
    assert!(relative < 0.012, "{relative}");
}
