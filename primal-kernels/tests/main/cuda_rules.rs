//! The rules beside `consensus` on a device: the bits of the CPU.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use crate::common::{assert_bits, device, isa, noise, report, up, zeros};
use primal_kernels::cuda::{self, Buffer, ClassicVotes, DeviceWeights, Snap};
use primal_kernels::{
    GradientSizes, VoteRng, cast_classic, count_classic_row, decode_values, dot, root_mean_square,
};
use primal_lut::{Grid, QuantMatrix};

const SIZES: [(usize, usize); 5] = [(1, 1), (3, 15), (300, 33), (70, 128), (5, 301)];

fn matrix(grid: &Grid, rows: usize, cols: usize) -> QuantMatrix {
    // Scales at which flips have probabilities between the limits, and beyond them.
    let scales = noise(rows, 9).iter().map(|s| 0.03 + s * s * s).collect();
    QuantMatrix::quantise(grid, rows, cols, cols, &noise(rows * cols, 8), scales).unwrap()
}

/// dL/ds of each row.
fn scale_gradients(matrix: &QuantMatrix, grad: &[f32]) -> Vec<f32> {
    let (cols, bytes, high_bytes) = (matrix.cols(), matrix.row_bytes(), matrix.high_row_bytes());
    let mut values = vec![0.0; cols];
    let mut gradient = |(row, grad)| {
        let high = matrix
            .high()
            .map(|high| &high[row * high_bytes..][..high_bytes]);
        let nibbles = &matrix.nibbles()[row * bytes..][..bytes];
        decode_values(isa(), matrix.grid().table(), high, nibbles, &mut values);
        dot(isa(), grad, &values)
    };
    grad.chunks_exact(cols)
        .enumerate()
        .map(&mut gradient)
        .collect()
}

/// The codes on the device.
fn assert_codes(what: &str, weights: &DeviceWeights, want: &QuantMatrix) {
    assert_eq!(
        weights.nibbles.to_vec().unwrap(),
        want.nibbles(),
        "codes, {what}"
    );
    let high = weights.high.to_vec().unwrap();
    assert_eq!(high, want.high().unwrap_or_default(), "high bits, {what}");
}

fn classic_agrees(grid: &Grid, (rows, cols): (usize, usize)) {
    let device = device();
    let mut want = matrix(grid, rows, cols);
    let weights = DeviceWeights::upload(&device, &want, "weights").unwrap();
    let flips = Arc::new(Buffer::<u64>::zeros(&device, 3, "flips").unwrap());
    let counter = (Arc::clone(&flips), 1);
    let classic = ClassicVotes::new(&device, &want, counter, "votes").unwrap();
    let what = format!("{} {rows}x{cols}", grid.id());
    let mut votes = vec![0; rows * cols];
    let mut all_flips = 0;
    for step in 0..3 {
        let d_scale = zeros(&device, rows);
        let mut want_d_scale = vec![0.0; rows];
        for micro_batch in 0..2 {
            let grad: Vec<f32> = noise(rows * cols, 30 + 2 * step + micro_batch)
                .iter()
                .map(|g| g * g * g)
                .collect();
            let on_device = up(&device, &grad);
            // In two parts, as tiles come.
            let first = (rows / 64).min(1) * 64;
            for (start, end) in [(0, first), (first, rows)] {
                if start < end {
                    let part = on_device.view(start * cols..end * cols);
                    let place = (start, end - start);
                    cuda::keep_gradient(&classic, &weights, part, place, d_scale.view(..)).unwrap();
                }
            }
            cuda::cast_classic(&classic, 0.7).unwrap();
            let gradients = scale_gradients(&want, &grad);
            want_d_scale
                .iter_mut()
                .zip(gradients)
                .for_each(|(sum, g)| *sum += g);
            let mut sizes = GradientSizes::default();
            for row in grad.chunks_exact(cols) {
                sizes.add_row(isa(), row);
            }
            cast_classic(&grad, sizes.threshold(0.7), &mut votes);
        }
        let mut on_device = vec![0; rows * cols];
        classic.votes().download(&mut on_device).unwrap();
        assert_eq!(on_device, votes, "votes, {what}");
        assert_bits(
            "scale_gradient",
            &what,
            &d_scale.to_vec().unwrap(),
            &want_d_scale,
        );

        let rng = VoteRng {
            seed: 0x1234_5678_9abc_def0,
            stream: 2,
            step,
            tensor: 77,
            micro_batch: 0,
        };
        flips.view(..).clear().unwrap();
        cuda::count_classic(&classic, &weights, 0.002, &rng).unwrap();
        let last_code = grid.len() as u8 - 1;
        let (bytes, high_bytes) = (want.row_bytes(), want.high_row_bytes());
        let (nibbles, mut high, scales) = want.planes_mut();
        let mut want_flips = 0;
        for row in 0..rows {
            let probability = (0.002 / scales[row].abs()).clamp(1e-4, 0.05);
            let high = high.as_deref_mut();
            want_flips += u64::from(count_classic_row(
                &mut nibbles[row * bytes..][..bytes],
                high.map(|high| &mut high[row * high_bytes..][..high_bytes]),
                &mut votes[row * cols..][..cols],
                last_code,
                (probability * 65536.0).round() as u32,
                &rng,
                row as u32,
            ));
        }
        assert_eq!(flips.to_vec().unwrap(), [0, want_flips, 0], "flips, {what}");
        assert_codes(&what, &weights, &want);
        all_flips += want_flips;
    }
    assert!(
        rows * cols < 1000 || all_flips > 10,
        "{all_flips} flips, {what}"
    );
    report(
        "keep_gradient, cast_classic, count_classic",
        &what,
        "bit-equal",
    );
}

#[test]
fn votes_and_flips_of_classic() {
    for size in SIZES {
        classic_agrees(&Grid::prime(), size);
        classic_agrees(&Grid::fine(), size);
    }
}

#[test]
fn gradients_of_scales_alone() {
    let device = device();
    for (rows, cols) in SIZES {
        let matrix = matrix(&Grid::prime(), rows, cols);
        let weights = DeviceWeights::upload(&device, &matrix, "weights").unwrap();
        let mut grad = noise(rows * cols, 4);
        let d_scale = up(&device, &noise(rows, 5));
        let add = |grad: &[f32]| {
            let grad = up(&device, grad);
            cuda::scale_gradient(&weights, grad.view(..), (0, rows), d_scale.view(..)).unwrap();
        };
        add(&grad);
        let mut want = noise(rows, 5);
        let gradients = scale_gradients(&matrix, &grad);
        want.iter_mut()
            .zip(gradients)
            .for_each(|(sum, g)| *sum += g);
        let what = format!("{rows}x{cols}");
        assert_bits("scale_gradient", &what, &d_scale.to_vec().unwrap(), &want);
        // Whatever is not finite is found in the sum of squares.
        grad[rows * cols - 1] = f32::INFINITY;
        add(&grad);
        assert!(!d_scale.to_vec().unwrap()[rows - 1].is_finite(), "{what}");
    }
}

#[test]
fn codes_that_follow_float_values() {
    let device = device();
    for grid in [Grid::prime(), Grid::fine(), Grid::linear()] {
        for (rows, cols) in SIZES.into_iter().chain([(2, 9001)]) {
            let what = format!("{} {rows}x{cols}", grid.id());
            let mut latent = noise(rows * cols, 6);
            let start = matrix(&grid, rows, cols);
            let weights = DeviceWeights::upload(&device, &start, "weights").unwrap();
            let moved = Arc::new(Buffer::<u64>::zeros(&device, 1, "moved").unwrap());
            let snap = Snap::new(&grid, 3.5, (Arc::clone(&moved), 0));
            let scale_of =
                |row: &[f32]| (3.5 * root_mean_square(isa(), row)).max(f32::MIN_POSITIVE);
            if rows > 3 {
                latent[cols..2 * cols].fill(0.0);
            }
            let scales: Vec<f32> = latent.chunks_exact(cols).map(scale_of).collect();
            let want = QuantMatrix::quantise(&grid, rows, cols, cols, &latent, scales).unwrap();
            cuda::snap_rows(&snap, up(&device, &latent).view(..), &weights).unwrap();
            assert_codes(&what, &weights, &want);
            let mut scales = vec![0.0; rows];
            weights.scales(0..rows).download(&mut scales).unwrap();
            assert_bits("snap_rows", &what, &scales, want.scales());
            let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
            let changed = places.filter(|&(row, col)| start.code(row, col) != want.code(row, col));
            assert_eq!(moved.to_vec().unwrap(), [changed.count() as u64], "{what}");
        }
    }
}

#[test]
fn ties_and_numbers_that_are_none() {
    let device = device();
    let cols = 128;
    for grid in [Grid::prime(), Grid::fine(), Grid::normal(), Grid::linear()] {
        // Around every midpoint, of both signs; two numbers that the rest is nothing beside make
        // the root mean square 2^17, and the scale 1.
        let large = f32::from_bits((127 + 20) << 23);
        let around = grid.midpoints().iter().map(|&midpoint| midpoint as f32);
        let mut latent: Vec<f32> = around
            .flat_map(|x| [x.next_down(), x, x.next_up()])
            .flat_map(|x| [x, -x])
            .chain([large, -large])
            .collect();
        latent.resize(cols, 0.0);
        latent.extend([f32::NAN, 1.0, -1.0, f32::INFINITY]);
        latent.resize(2 * cols, -0.0);
        // Too large for a scale: stays as it is.
        latent.resize(3 * cols, 1e30);
        let start = QuantMatrix::zeros(&grid, 3, cols, cols).unwrap();
        let weights = DeviceWeights::upload(&device, &start, "weights").unwrap();
        let moved = Arc::new(Buffer::<u64>::zeros(&device, 1, "moved").unwrap());
        let snap = Snap::new(&grid, 1.0 / 131_072.0, (moved, 0));
        cuda::snap_rows(&snap, up(&device, &latent).view(..), &weights).unwrap();
        let scales = vec![1.0, f32::MIN_POSITIVE, 1.0];
        let mut on_device = vec![0.0; 3];
        weights.scales(0..3).download(&mut on_device).unwrap();
        assert_eq!(on_device, scales, "{}", grid.id());
        latent[2 * cols..].fill(0.0);
        let want = QuantMatrix::quantise(&grid, 3, cols, cols, &latent, scales).unwrap();
        assert_codes(grid.id(), &weights, &want);
    }
}
