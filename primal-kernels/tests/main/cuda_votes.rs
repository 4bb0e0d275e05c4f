//! Votes, flips and int8 products on a device: the integers of the CPU, bit for bit.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::Arc;

use crate::common::{assert_bits, device, device_with, isa, noise, report, up, zeros};
use primal_kernels::cuda::{
    self, BallotSizes, Ballots, Buffer, CastStep, Device, DeviceWeights, VoteSlot, VoteSums,
};
use primal_kernels::{
    FlipTable, HugeArena, Isa, PackedWeights, QuantisedRows, VoteRng, cast_votes_i8,
    cast_votes_i16, count_row, decode_values, gradient_row_stats, int8_matvec,
};
use primal_lut::{Grid, QuantMatrix};

const SIZES: [(usize, usize); 5] = [(1, 1), (3, 15), (65, 33), (70, 128), (5, 301)];

fn matrix(grid: &Grid, rows: usize, cols: usize) -> QuantMatrix {
    let scales = noise(rows, 9).iter().map(|s| 1.1 + s).collect();
    QuantMatrix::quantise(grid, rows, cols, cols, &noise(rows * cols, 8), scales).unwrap()
}

/// A place for the sums of one matrix.
fn slot(device: &Device, rows: usize, cols: usize) -> VoteSlot {
    VoteSlot {
        sums: Arc::new(VoteSums::new(device, 1, rows + cols).unwrap()),
        matrix: 0,
        first_line: 0,
    }
}

/// What one step of one matrix leaves, computed row by row with the CPU's kernels as primal-optim
/// calls them.
struct Reference {
    matrix: QuantMatrix,
    ballot: Vec<i8>,
    votes: Vec<i16>,
    row_mean: Vec<f32>,
    d_scale: Vec<f32>,
    u_sq: f64,
    rounding: f64,
}

impl Reference {
    fn row(&self, row: usize) -> (Vec<f32>, f32) {
        let mut values = vec![0.0; self.matrix.cols()];
        let (bytes, high) = (self.matrix.row_bytes(), self.matrix.high_row_bytes());
        decode_values(
            isa(),
            self.matrix.grid().table(),
            self.matrix.high().map(|plane| &plane[row * high..][..high]),
            &self.matrix.nibbles()[row * bytes..][..bytes],
            &mut values,
        );
        (values, self.matrix.scales()[row])
    }

    /// Casts `grad`, and returns the sums of squares by column and the means by row.
    fn cast(&mut self, isa: Isa, grad: &[f32], step: &CastStep) -> (Vec<f32>, Vec<f32>) {
        let cols = self.matrix.cols();
        let rows = self.matrix.rows();
        let (mut col_sum, mut row_sum) = (vec![0.0_f32; cols], vec![0.0; rows]);
        // A micro-batch is summed on its own first.
        let (mut own_u_sq, mut own_rounding) = (0.0, 0.0);
        let factor = vec![1.0; cols];
        for tile in (0..rows).step_by(64) {
            let mut tile_col = vec![0.0; cols];
            let (mut u_sq, mut rounding) = (0.0_f32, 0.0_f32);
            for row in tile..(tile + 64).min(rows) {
                let grad = &grad[row * cols..][..cols];
                let (values, scale) = self.row(row);
                let stats = gradient_row_stats(isa, grad, &values, scale, &mut tile_col);
                if !stats.sum_sq.is_finite() {
                    continue;
                }
                self.d_scale[row] += stats.dot;
                row_sum[row] += stats.sum_sq / cols as f32;
                let mean = step.blend[0] * self.row_mean[row] + step.blend[1] * row_sum[row];
                if mean <= 0.0 {
                    continue;
                }
                let row_factor = scale * step.votes_per_unit / mean.sqrt();
                let limit = step.vote_clip * step.votes_per_unit;
                let at = row * cols..(row + 1) * cols;
                let id = row as u32;
                let cast = if self.votes.is_empty() {
                    let to = &mut self.ballot[at];
                    cast_votes_i8(isa, grad, row_factor, &factor, limit, &step.rng, id, to)
                } else {
                    let to = &mut self.votes[at];
                    cast_votes_i16(isa, grad, row_factor, &factor, limit, &step.rng, id, to)
                };
                u_sq += cast.sum_u_sq;
                rounding += cast.sum_rounding_var;
            }
            col_sum
                .iter_mut()
                .zip(tile_col)
                .for_each(|(sum, part)| *sum += part);
            own_u_sq += f64::from(u_sq);
            own_rounding += f64::from(rounding);
        }
        self.u_sq += own_u_sq;
        self.rounding += own_rounding;
        (col_sum, row_sum)
    }

    fn count(&mut self, isa: Isa, table: &FlipTable, leak: u32, rng: &VoteRng) -> (u64, u64) {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let (bytes, high_bytes) = (self.matrix.row_bytes(), self.matrix.high_row_bytes());
        let (nibbles, mut high, _) = self.matrix.planes_mut();
        let (mut flips, mut squares) = (0, 0);
        for row in 0..rows {
            let votes = match self.votes.is_empty() {
                true => None,
                false => Some(&mut self.votes[row * cols..][..cols]),
            };
            let counted = count_row(
                isa,
                &mut nibbles[row * bytes..][..bytes],
                high.as_deref_mut()
                    .map(|high| &mut high[row * high_bytes..][..high_bytes]),
                cols,
                &mut self.ballot[row * cols..][..cols],
                votes,
                table,
                leak,
                rng,
                row as u32,
            );
            flips += u64::from(counted.flips);
            squares += counted.sum_votes_sq as u64;
        }
        (flips, squares)
    }
}

fn rng(stream: u8, step: u32) -> VoteRng {
    VoteRng {
        seed: 0x1234_5678_9abc_def0,
        stream,
        step,
        tensor: 77,
        micro_batch: 3,
    }
}

/// Several steps, so that ballots fill, leak and flip.
fn steps_agree(grid: &Grid, (rows, cols): (usize, usize), many: bool, reference_isa: Isa) {
    let device = device();
    let table = FlipTable::new(grid, 127);
    let matrix = matrix(grid, rows, cols);
    let weights = DeviceWeights::upload(&device, &matrix, "weights").unwrap();
    let sizes = BallotSizes {
        rows,
        cols,
        many_micro_batches: many,
    };
    let slot = slot(&device, rows, cols);
    let sums = Arc::clone(&slot.sums);
    let ballots = Ballots::new(&device, sizes, &table, slot, "ballots").unwrap();
    let elements = rows * cols;
    let mut want = Reference {
        matrix,
        ballot: vec![0; elements],
        votes: if many { vec![0; elements] } else { Vec::new() },
        row_mean: vec![0.0; rows],
        d_scale: vec![0.0; rows],
        u_sq: 0.0,
        rounding: 0.0,
    };
    let d_scale = zeros(&device, rows);
    let bad = Buffer::<u32>::zeros(&device, 1, "flag").unwrap();
    let what = format!(
        "{} {rows}x{cols}, many {many}, {}",
        grid.id(),
        reference_isa.name()
    );
    for step in 0..4 {
        let grad: Vec<f32> = noise(elements, 20 + step)
            .iter()
            .map(|g| g * g * g)
            .collect();
        let cast = CastStep {
            votes_per_unit: 9.0,
            vote_clip: 3.0,
            blend: [0.0, 1.0],
            rng: rng(0, step),
        };
        // Without running means and with one micro-batch all factors are 1.
        cuda::begin_votes(&ballots, 1).unwrap();
        let first = (rows / 64).min(1) * 64;
        let grad_at = up(&device, &grad);
        for (start, end) in [(0, first), (first, rows)] {
            if start < end {
                let part = grad_at.view(start * cols..end * cols);
                let place = (start, end - start);
                cuda::cast_votes(
                    &ballots,
                    &weights,
                    part,
                    place,
                    &cast,
                    d_scale.view(..),
                    bad.view(..),
                )
                .unwrap();
            }
        }
        cuda::end_votes(&ballots).unwrap();
        want.cast(reference_isa, &grad, &cast);
        assert_eq!(
            ballots.ballot.to_vec().unwrap(),
            want.ballot,
            "cast, {what}"
        );

        let leak = 1 << 17;
        cuda::count_votes(&ballots, &weights, leak, &rng(1, step)).unwrap();
        let counted = want.count(reference_isa, &table, leak, &rng(1, step));
        assert_eq!(
            sums.counted.to_vec().unwrap(),
            [counted.0, counted.1],
            "count, {what}"
        );
        assert_eq!(
            ballots.ballot.to_vec().unwrap(),
            want.ballot,
            "ballot, {what}"
        );
        assert_eq!(
            weights.nibbles.to_vec().unwrap(),
            want.matrix.nibbles(),
            "codes, {what}"
        );
        if let Some(high) = want.matrix.high() {
            assert_eq!(weights.high.to_vec().unwrap(), high, "high bits, {what}");
        }
    }
    assert_bits(
        "cast_votes d_scale",
        &what,
        &d_scale.to_vec().unwrap(),
        &want.d_scale,
    );
    assert_eq!(bad.to_vec().unwrap(), [0]);
    report("cast_votes, count_votes", &what, "bit-equal");
}

#[test]
fn votes_and_flips_of_one_micro_batch() {
    for size in SIZES {
        steps_agree(&Grid::prime(), size, false, Isa::best());
    }
}

#[test]
fn votes_and_flips_summed_wide() {
    for size in SIZES {
        steps_agree(&Grid::prime(), size, true, Isa::best());
    }
}

#[test]
fn votes_and_flips_on_a_wide_grid_at_every_tier() {
    for isa in Isa::available() {
        steps_agree(&Grid::fine(), (66, 47), true, isa);
        steps_agree(&Grid::fine(), (3, 130), false, isa);
    }
}

#[test]
fn a_gradient_that_is_not_finite_casts_nothing() {
    let device = device();
    let grid = Grid::prime();
    let weights = DeviceWeights::upload(&device, &matrix(&grid, 3, 20), "weights").unwrap();
    let sizes = BallotSizes {
        rows: 3,
        cols: 20,
        many_micro_batches: false,
    };
    let table = FlipTable::new(&grid, 127);
    let slot = slot(&device, 3, 20);
    let ballots = Ballots::new(&device, sizes, &table, slot, "ballots").unwrap();
    for poison in [f32::NAN, f32::INFINITY] {
        let mut grad = noise(60, 1);
        grad[27] = poison;
        let (d_scale, bad) = (zeros(&device, 3), up(&device, &[0_u32]));
        let step = CastStep {
            votes_per_unit: 30.0,
            vote_clip: 3.0,
            blend: [0.0, 1.0],
            rng: rng(0, 0),
        };
        cuda::begin_votes(&ballots, 1).unwrap();
        cuda::cast_votes(
            &ballots,
            &weights,
            up(&device, &grad).view(..),
            (0, 3),
            &step,
            d_scale.view(..),
            bad.view(..),
        )
        .unwrap();
        assert_eq!(bad.to_vec().unwrap(), [1]);
        let ballot = ballots.ballot.to_vec().unwrap();
        assert!(ballot[20..40].iter().all(|&votes| votes == 0));
        assert!(ballot[..20].iter().any(|&votes| votes != 0));
        assert_eq!(d_scale.to_vec().unwrap()[1], 0.0);
    }
}

#[test]
fn running_statistics_move_as_on_the_cpu() {
    let device = device();
    let grid = Grid::prime();
    let (rows, cols) = (70, 33);
    let matrix = matrix(&grid, rows, cols);
    let weights = DeviceWeights::upload(&device, &matrix, "weights").unwrap();
    let sizes = BallotSizes {
        rows,
        cols,
        many_micro_batches: true,
    };
    let slot = slot(&device, rows, cols);
    let sums = Arc::clone(&slot.sums);
    let table = FlipTable::new(&grid, 127);
    let ballots = Ballots::new(&device, sizes, &table, slot, "ballots").unwrap();
    let step = CastStep {
        votes_per_unit: 2.0,
        vote_clip: 3.0,
        blend: [0.0, 1.0],
        rng: rng(0, 0),
    };
    let grads = [5, 6].map(|seed| noise(rows * cols, seed));
    let (d_scale, bad) = (zeros(&device, rows), up(&device, &[0_u32]));
    cuda::begin_votes(&ballots, 2).unwrap();
    for grad in &grads {
        cuda::cast_votes(
            &ballots,
            &weights,
            up(&device, grad).view(..),
            (0, rows),
            &step,
            d_scale.view(..),
            bad.view(..),
        )
        .unwrap();
        cuda::end_votes(&ballots).unwrap();
    }
    cuda::count_votes(&ballots, &weights, 0, &rng(1, 0)).unwrap();
    let squared = sums.counted.to_vec().unwrap()[1];
    cuda::update_statistics(&ballots, 0.95, 2, 2.0).unwrap();

    let mut want = Reference {
        matrix,
        ballot: vec![0; rows * cols],
        votes: vec![0; rows * cols],
        row_mean: vec![0.0; rows],
        d_scale: vec![0.0; rows],
        u_sq: 0.0,
        rounding: 0.0,
    };
    let (mut col_sum, mut row_sum) = (vec![0.0; cols], vec![0.0; rows]);
    for grad in &grads {
        let (by_col, by_row) = want.cast(isa(), grad, &step);
        for (sum, own) in [(&mut col_sum, by_col), (&mut row_sum, by_row)] {
            sum.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
    }
    let means = |sums: &[f32], share: f32, divide: bool| -> Vec<f32> {
        let part = |sum: f32| if divide { sum / share } else { sum * share };
        sums.iter()
            .map(|&sum| 0.95 * 0.0 + (1.0 - 0.95) * part(sum))
            .collect()
    };
    let row_mean = means(&row_sum, 2.0, true);
    let col_mean = means(&col_sum, 1.0 / (2.0 * rows as f32), false);
    assert_bits(
        "update_statistics",
        "rows",
        &ballots.row_mean.to_vec().unwrap(),
        &row_mean,
    );
    assert_bits(
        "update_statistics",
        "columns",
        &ballots.col_mean.to_vec().unwrap(),
        &col_mean,
    );
    let a = ((squared as f64 - want.rounding) / 4.0) as f32;
    let moments = [
        (1.0 - 0.95) * a,
        (1.0 - 0.95) * (want.u_sq / 4.0) as f32,
        1.0,
    ];
    assert_bits(
        "update_statistics",
        "moments",
        &ballots.moments.to_vec().unwrap()[..3],
        &moments,
    );

    // The next step's factors.
    cuda::begin_votes(&ballots, 2).unwrap();
    let ratio = (moments[0] / (2.0 * moments[1])).clamp(0.5, 1.0);
    let noise_factor = ballots.moments.to_vec().unwrap()[3];
    assert_eq!(noise_factor, 1.0 / ratio.sqrt());
}

#[test]
fn int8_products_are_the_cpus_bits() {
    // Pascal, Turing and Ampere, the last also by dp4a.
    for (capability, without_tensor_cores) in [(61, false), (75, false), (86, false), (86, true)] {
        let (device, counts) = device_with(capability, without_tensor_cores);
        int8_products(&device);
        if let Some(counts) = counts() {
            let by_tensor_cores = capability >= 75 && !without_tensor_cores;
            assert_eq!(device.uses_tensor_cores(), by_tensor_cores);
            assert_eq!(
                (counts.matrix > 0, counts.dot4 > 0),
                (by_tensor_cores, !by_tensor_cores)
            );
        }
    }
}

fn int8_products(device: &Device) {
    for grid in [Grid::prime(), Grid::fine()] {
        // Around the edges of tiles, of words and of bytes of codes.
        let mut shapes = vec![
            (1, 1, 1),
            (3, 70, 7),
            (65, 64, 130),
            (17, 33, 64),
            (12, 9, 67),
            (5, 40, 72),
        ];
        if device.uses_tensor_cores() && !grid.is_wide() {
            // Large tiles, forward and backward.
            shapes.extend([(1021, 890, 9), (1021, 9, 890)]);
        }
        for (n, m, k) in shapes {
            let matrix = matrix(&grid, m, k);
            let weights = DeviceWeights::upload(device, &matrix, "weights").unwrap();
            let mut x = noise(n * k, 1);
            if n > 2 {
                x[..k].fill(0.0);
                x[k] = f32::NAN;
            }
            let what = format!("{} {n}x{m}x{k}", grid.id());
            let mut rows = QuantisedRows::new(n, k.max(m));
            rows.quantise(isa(), &x, k, None);
            let mut want = vec![0.0; n * m];
            primal_kernels::int8_matmul_nt(isa(), &rows, &matrix, 0..m, &mut want, false);
            let room = cuda::QuantisedRows::new(device, n, k.max(m), 1).unwrap();
            let on_device = room.quantise(up(device, &x).view(..), None, k).unwrap();
            let y = zeros(device, n * m);
            cuda::int8_matmul_nt(on_device, &weights, 0..m, y.view(..), false).unwrap();
            let stride = k.next_multiple_of(8);
            let values = room.values.to_vec().unwrap();
            for (row, got) in values.chunks(stride).take(n).enumerate() {
                assert_eq!(got[..k], rows.row(row)[..k], "quantise_rows, {what}");
                assert!(got[k..].iter().all(|&q| q == 0), "quantise_rows, {what}");
            }
            let scales: Vec<f32> = (0..n).map(|row| rows.scales(row)[0]).collect();
            let got = room.scales.to_vec().unwrap();
            assert_bits("quantise_rows", &what, &got, &scales);
            assert_bits("int8_gemm_nt", &what, &y.to_vec().unwrap(), &want);
            // Again on top of it, from some rows of w.
            let start = if m > 64 { 64 } else { 0 };
            let sums = up(device, &noise(n * (m - start), 4));
            let mut want = sums.to_vec().unwrap();
            primal_kernels::int8_matmul_nt(isa(), &rows, &matrix, start..m, &mut want, true);
            cuda::int8_matmul_nt(on_device, &weights, start..m, sums.view(..), true).unwrap();
            assert_bits("int8_gemm_nt", &what, &sums.to_vec().unwrap(), &want);

            let (from, m) = (start..m, m - start);
            let dy = noise(n * m, 2);
            let dx = up(device, &noise(n * k, 5));
            let mut want = dx.to_vec().unwrap();
            rows.quantise(isa(), &dy, m, Some(&matrix.scales()[from.clone()]));
            let dy = up(device, &dy);
            for add in [true, false] {
                primal_kernels::int8_matmul_nn(isa(), &rows, &matrix, from.clone(), &mut want, add);
                let scales = Some(weights.scales(from.clone()));
                let dy = room.quantise(dy.view(..), scales, m).unwrap();
                cuda::int8_matmul_nn(dy, &weights, from.clone(), dx.view(..), add).unwrap();
                assert_bits("int8_gemm_nn", &what, &dx.to_vec().unwrap(), &want);
            }
        }
    }
}

#[test]
fn a_few_tokens_in_int8_have_the_cpus_bits() {
    let device = device();
    for (grid, group) in [
        (Grid::prime(), 0),
        (Grid::fine(), 0),
        (Grid::normal(), 32),
        (Grid::prime(), 64),
    ] {
        for (rows, cols) in [
            (1_usize, 1_usize),
            (3, 15),
            (37, 64),
            (70, 128),
            (20, 301),
            (5, 1000),
        ] {
            let group = if group == 0 || group > cols {
                cols
            } else {
                group
            };
            let scales = noise(rows * cols.div_ceil(group), 2);
            let values = noise(rows * cols, 1);
            let matrix = QuantMatrix::quantise(&grid, rows, cols, group, &values, scales).unwrap();
            let weights = DeviceWeights::upload(&device, &matrix, "weights").unwrap();
            assert!(weights.has_int8_matvec());
            let mut arena = HugeArena::new(1 << 20).unwrap();
            let packed = PackedWeights::new(&matrix, &mut arena).unwrap();
            for n in [1, 2, 8, 11] {
                let x = noise(n * cols, 3);
                let mut want = vec![0.0; n * rows];
                for (x, want) in x.chunks(cols).zip(want.chunks_mut(rows)) {
                    let mut token = QuantisedRows::new(1, cols);
                    assert!(token.quantise_for(isa(), x, &matrix));
                    int8_matvec(isa(), &packed, &token, want);
                }
                let groups = cols.div_ceil(group);
                let room = cuda::QuantisedRows::new(&device, n, cols, groups).unwrap();
                let x = up(&device, &x);
                let tokens = room.quantise_for(x.view(..), &weights).unwrap();
                let y = zeros(&device, n * rows);
                cuda::int8_matvec(tokens, &weights, y.view(..)).unwrap();
                let what = format!("{n} of {} {rows}x{cols}/{group}", grid.id());
                assert_bits("int8_matvec", &what, &y.to_vec().unwrap(), &want);
            }
        }
    }
}
