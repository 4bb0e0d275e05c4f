//! Every tier against the rules written plainly, one weight at a time.

use primal_lut::{Grid, QuantMatrix};
use proptest::prelude::*;

use super::count::{code_at, set_code};
use super::rng::{Draws, uniform_block};
use super::*;
use crate::isa::{Isa, dispatch};
use crate::test_support::noise;

const LENGTHS: [usize; 14] = [0, 1, 15, 16, 17, 31, 33, 64, 65, 127, 128, 129, 143, 300];

fn rng() -> VoteRng {
    VoteRng {
        seed: 0x0123_4567_89ab_cdef,
        stream: 3,
        step: 77,
        tensor: 12,
        micro_batch: 5,
    }
}

#[test]
fn philox_gives_the_known_answers_of_random123() {
    // kat_vectors of Random123, lines "philox4x32 10".
    let cases = [
        (
            [0; 4],
            [0; 2],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        ),
        (
            [u32::MAX; 4],
            [u32::MAX; 2],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, want) in cases {
        assert_eq!(philox4x32(counter, key), want, "counter {counter:x?}");
    }
}

#[inline(always)]
fn draw_block<L: Lanes>(lanes: L, draws: Draws, block: usize) -> [[i32; 16]; 8] {
    let mut out = [[0; 16]; 8];
    for (uniform, out) in draws.block(lanes, block).into_iter().zip(&mut out) {
        lanes.store_i(uniform, out);
    }
    out
}

#[test]
fn lanes_draw_what_uniform16_defines() {
    let (rng, row) = (rng(), u32::MAX - 4);
    for isa in Isa::available() {
        for block in [0, 1, 9] {
            let got = dispatch!(isa, draw_block(Draws::new(&rng, row), block));
            let plain = uniform_block(&rng, row, block as u32);
            for (i, &got) in got.as_flattened().iter().enumerate() {
                let column = (block * 128 + i) as u32;
                let want = uniform16(&rng, row, column);
                assert_eq!(got, i32::from(want), "{}: column {column}", isa.name());
                assert_eq!(plain[i], want, "the plain block, column {column}");
            }
        }
    }
}

#[test]
fn every_field_of_the_rng_matters() {
    let base = rng();
    let first: Vec<u16> = (0..64).map(|c| uniform16(&base, 1, c)).collect();
    let changed = [
        VoteRng {
            seed: base.seed ^ 1 << 40,
            ..base
        },
        VoteRng { stream: 4, ..base },
        VoteRng { step: 78, ..base },
        VoteRng { tensor: 13, ..base },
        VoteRng {
            micro_batch: 6,
            ..base
        },
    ];
    for other in changed {
        assert_ne!(
            first,
            (0..64).map(|c| uniform16(&other, 1, c)).collect::<Vec<_>>()
        );
    }
    assert_ne!(
        first,
        (0..64).map(|c| uniform16(&base, 2, c)).collect::<Vec<_>>()
    );
}

#[test]
#[should_panic(expected = "tensor 16384 of 16384")]
fn a_tensor_out_of_range_is_refused() {
    uniform16(
        &VoteRng {
            tensor: 1 << 14,
            ..rng()
        },
        0,
        0,
    );
}

fn fold(mut sums: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            sums[l] += sums[l + half];
        }
    }
    sums[0]
}

#[test]
fn row_stats_equal_plain_sums() {
    for cols in LENGTHS {
        let (grad, values) = (noise(cols + 1, 1), noise(cols + 1, 2));
        let (grad, values) = (&grad[1..], &values[1..]);
        let start = noise(cols, 3);
        let (mut squares, mut dots) = ([0.0_f32; 16], [0.0_f32; 16]);
        let mut column_sq = start.clone();
        for c in 0..cols {
            let g = grad[c] * 0.37;
            squares[c % 16] += g * g;
            dots[c % 16] += grad[c] * values[c];
            column_sq[c] += g * g;
        }
        let want = RowStats {
            sum_sq: fold(squares),
            dot: fold(dots),
        };
        for isa in Isa::available() {
            let mut got_sq = start.clone();
            let got = gradient_row_stats(isa, grad, values, 0.37, &mut got_sq);
            assert_eq!(got, want, "{}: {cols} columns", isa.name());
            assert_eq!(got_sq, column_sq, "{}: {cols} columns", isa.name());
        }
    }
}

/// The vote of one weight, in exact f64 arithmetic after u itself.
fn plain_vote(grad: f32, row_factor: f32, column_factor: f32, uniform: u16, limit: f32) -> i32 {
    let u = -(grad * row_factor) * column_factor;
    if u.is_nan() {
        return 0;
    }
    let size = f64::from(u.abs().min(limit)) + f64::from(uniform) / 65536.0;
    if u < 0.0 {
        -(size.floor() as i32)
    } else {
        size.floor() as i32
    }
}

fn plain_cast_stats(grad: &[f32], row_factor: f32, column_factor: &[f32], limit: f32) -> CastStats {
    let (mut squares, mut variances) = ([0.0_f32; 16], [0.0_f32; 16]);
    for c in 0..grad.len() {
        let u = (-(grad[c] * row_factor) * column_factor[c]).abs();
        let u = if u.is_nan() { 0.0 } else { u.min(limit) };
        squares[c % 16] += u * u;
        let fraction = ((f64::from(u) * 65536.0).floor() % 65536.0) as f32;
        variances[c % 16] += fraction * (65536.0 - fraction);
    }
    CastStats {
        sum_u_sq: fold(squares),
        sum_rounding_var: fold(variances) / (65536.0 * 65536.0),
    }
}

/// Gradients of all sizes, NaN and infinities among them.
fn gradients(cols: usize, seed: u64) -> Vec<f32> {
    let mut grad = noise(cols, seed);
    for (c, g) in grad.iter_mut().enumerate() {
        *g *= [1.0, 30.0, 1e-6, 500.0, 4e4, 0.0][c % 6];
        match c % 41 {
            13 => *g = f32::NAN,
            17 => *g = f32::INFINITY,
            29 => *g = f32::NEG_INFINITY,
            _ => {}
        }
    }
    grad
}

#[test]
fn casting_equals_the_plain_rule() {
    for cols in LENGTHS.into_iter().chain(32..65) {
        let grad = gradients(cols + 1, 21);
        let grad = &grad[1..];
        let factor: Vec<f32> = noise(cols, 22).iter().map(|f| f.abs() + 0.1).collect();
        let (rng, row, row_factor) = (rng(), 40, 1.7);
        let limit = [32767.0, 2.6][cols % 2];
        let start: Vec<i16> = noise(cols, 23).iter().map(|x| (x * 127.0) as i16).collect();
        let sums: Vec<i32> = (0..cols)
            .map(|c| {
                let uniform = uniform16(&rng, row, c as u32);
                i32::from(start[c]) + plain_vote(grad[c], row_factor, factor[c], uniform, limit)
            })
            .collect();
        let stats = plain_cast_stats(grad, row_factor, &factor, limit);
        for isa in Isa::available() {
            let what = format!("{}: {cols} columns", isa.name());
            let mut ballot: Vec<i8> = start.iter().map(|&x| x as i8).collect();
            let got = cast_votes_i8(
                isa,
                grad,
                row_factor,
                &factor,
                limit,
                &rng,
                row,
                &mut ballot,
            );
            let want: Vec<i8> = sums.iter().map(|x| (*x).clamp(-127, 127) as i8).collect();
            assert_eq!(ballot, want, "{what}, i8");
            assert_eq!(got, stats, "{what}, i8");

            let mut votes = start.clone();
            let got = cast_votes_i16(isa, grad, row_factor, &factor, limit, &rng, row, &mut votes);
            let want: Vec<i16> = sums
                .iter()
                .map(|x| (*x).clamp(-32767, 32767) as i16)
                .collect();
            assert_eq!(votes, want, "{what}, i16");
            assert_eq!(got, stats, "{what}, i16");
        }
    }
}

#[test]
fn votes_are_unbiased_and_their_variance_is_as_told() {
    let cols = 1 << 16;
    for isa in Isa::available() {
        for (step, u) in [0.003_f32, 0.25, -0.5, -1.75, 3.9].into_iter().enumerate() {
            let grad = vec![-u; cols];
            let ones = vec![1.0; cols];
            let mut votes = vec![0_i16; cols];
            let rng = VoteRng {
                step: step as u32,
                ..rng()
            };
            let stats = cast_votes_i16(isa, &grad, 1.0, &ones, 32767.0, &rng, 9, &mut votes);
            let n = cols as f64;
            let mean = votes.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let fraction = f64::from(u.abs().fract());
            let variance = fraction * (1.0 - fraction);
            let off = (mean - f64::from(u)).abs() / (variance / n).sqrt();
            assert!(
                off < 5.0,
                "{}: u {u}, mean {mean}, {off:.1} sigma",
                isa.name()
            );
            let told = f64::from(stats.sum_rounding_var) / n;
            assert!(
                (told / variance - 1.0).abs() < 0.01,
                "{}: {told}",
                isa.name()
            );
            let size = f64::from(stats.sum_u_sq) / n;
            assert!(
                (size / f64::from(u * u) - 1.0).abs() < 1e-3,
                "{}: {size}",
                isa.name()
            );
        }
    }
}

#[test]
fn flip_thresholds_follow_the_gaps() {
    let grid = Grid::prime();
    let table = FlipTable::new(&grid, 127);
    // Half a unit from 1/2 to 1 is the widest gap; 1/13 to 1/11 the narrowest.
    assert_eq!(table.up[7..15], [20, 4, 13, 15, 34, 42, 127, 0]);
    for code in 0..15 {
        assert_eq!(
            table.up[code],
            table.down[14 - code],
            "symmetric at code {code}"
        );
    }
    assert_eq!((table.down[0], table.up[15], table.down[31]), (0, 0, 0));
    assert!(
        FlipTable::new(&Grid::fine(), 7).up[..24]
            .iter()
            .all(|t| (1..=7).contains(t))
    );
}

/// A row of a matrix with its ballot and votes.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    nibbles: Vec<u8>,
    high: Option<Vec<u8>>,
    ballot: Vec<i8>,
    votes: Vec<i16>,
}

impl Row {
    fn new(grid: &Grid, cols: usize, seed: u64) -> Row {
        let weights = noise(cols.max(1), seed);
        let matrix =
            QuantMatrix::quantise(grid, 1, cols.max(1), cols.max(1), &weights, vec![0.9]).unwrap();
        let ballot = noise(cols, seed + 1)
            .iter()
            .map(|x| (x * 127.9) as i8)
            .collect();
        let votes = noise(cols, seed + 2)
            .iter()
            .enumerate()
            .map(|(c, x)| (x * [0.4, 3.0, 90.0, 32767.9][c % 4]) as i16)
            .collect();
        Row {
            nibbles: matrix.nibbles()[..cols.div_ceil(2)].to_vec(),
            high: matrix.high().map(|high| high[..cols.div_ceil(8)].to_vec()),
            ballot,
            votes,
        }
    }

    fn plain_count(
        &mut self,
        with_votes: bool,
        table: &FlipTable,
        leak_q24: u32,
        rng: &VoteRng,
        row: u32,
    ) -> CountStats {
        let mut stats = CountStats::default();
        for c in 0..self.ballot.len() {
            let mut b = i64::from(self.ballot[c]);
            if with_votes {
                let vote = i64::from(std::mem::take(&mut self.votes[c]));
                stats.sum_votes_sq += vote * vote;
                b = (b + vote).clamp(-127, 127);
            }
            let uniform = i64::from(uniform16(rng, row, c as u32));
            b -= b.signum() * ((b.abs() * i64::from(leak_q24) + uniform * 256) / (1 << 24));
            let code = code_at(&self.nibbles, self.high.as_deref(), c);
            let thresholds = if b > 0 { &table.up } else { &table.down };
            let t = i64::from(thresholds[usize::from(code)]);
            let reached = if table.at_half {
                2 * b.abs() > t
            } else {
                b.abs() >= t
            };
            if t > 0 && reached {
                let moved = if b > 0 { code + 1 } else { code - 1 };
                set_code(&mut self.nibbles, self.high.as_deref_mut(), c, moved);
                b -= b.signum() * t;
                stats.flips += 1;
            }
            self.ballot[c] = b as i8;
        }
        stats
    }

    fn count(
        &mut self,
        isa: Isa,
        with_votes: bool,
        table: &FlipTable,
        leak_q24: u32,
        rng: &VoteRng,
        row: u32,
    ) -> CountStats {
        let cols = self.ballot.len();
        let (ballot, high) = (&mut self.ballot, self.high.as_deref_mut());
        let votes = with_votes.then_some(&mut self.votes[..]);
        count_row(
            isa,
            &mut self.nibbles,
            high,
            cols,
            ballot,
            votes,
            table,
            leak_q24,
            rng,
            row,
        )
    }
}

#[test]
fn counting_equals_the_plain_rule() {
    let rng = rng();
    for grid in [Grid::prime(), Grid::fine(), Grid::linear()] {
        for (max_votes, at_half) in [(127, false), (9, false), (127, true), (9, true)] {
            let table = FlipTable {
                at_half,
                ..FlipTable::new(&grid, max_votes)
            };
            for (i, cols) in LENGTHS.into_iter().enumerate() {
                let with_votes = i % 2 == 0 || max_votes == 9;
                for leak in [0, 16_777, 1 << 22, 1 << 24] {
                    let start = Row::new(&grid, cols, 100 + i as u64);
                    let mut want = start.clone();
                    let want_stats = want.plain_count(with_votes, &table, leak, &rng, 6);
                    for isa in Isa::available() {
                        let what = format!("{}: {} {cols} leak {leak}", isa.name(), grid.id());
                        let mut got = start.clone();
                        let stats = got.count(isa, with_votes, &table, leak, &rng, 6);
                        assert_eq!(got, want, "{what}");
                        assert_eq!(stats, want_stats, "{what}");
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_row_counts_alike_in_every_tier(
        cols in 1_usize..300,
        seed in 0_u64..1 << 40,
        leak in 0_u32..=1 << 24,
        row: u32,
        wide: bool,
        steps in 1_u32..4,
    ) {
        let grid = if wide { Grid::fine() } else { Grid::prime() };
        let table = FlipTable::new(&grid, 127);
        let mut want = Row::new(&grid, cols, seed);
        let mut rows: Vec<(Isa, Row)> =
            Isa::available().into_iter().map(|isa| (isa, want.clone())).collect();
        for step in 0..steps {
            let rng = VoteRng { step, seed, ..rng() };
            let stats = want.plain_count(step == 0, &table, leak, &rng, row);
            for (isa, got) in &mut rows {
                let got_stats = got.count(*isa, step == 0, &table, leak, &rng, row);
                prop_assert_eq!(got_stats, stats, "{}", isa.name());
                prop_assert_eq!(&*got, &want, "{}", isa.name());
            }
        }
    }
}

/// One weight of the prime grid after one count.
fn count_one(isa: Isa, code: u8, ballot: i8, vote: i16, leak_q24: u32) -> (u8, i8, u32) {
    let table = FlipTable::new(&Grid::prime(), 127);
    let (mut nibbles, mut ballot, mut votes) = ([code | 7 << 4], [ballot], [vote]);
    let votes_ref = Some(&mut votes[..]);
    let stats = count_row(
        isa,
        &mut nibbles,
        None,
        1,
        &mut ballot,
        votes_ref,
        &table,
        leak_q24,
        &rng(),
        0,
    );
    assert_eq!(nibbles[0] >> 4, 7, "{}: the padding stays", isa.name());
    assert_eq!(
        (votes[0], stats.sum_votes_sq),
        (0, i64::from(vote).pow(2)),
        "{}",
        isa.name()
    );
    (nibbles[0] & 15, ballot[0], stats.flips)
}

#[test]
fn counting_at_the_corners() {
    for isa in Isa::available() {
        let name = isa.name();
        assert_eq!(
            count_one(isa, 7, 19, 0, 0),
            (7, 19, 0),
            "{name}: below the threshold"
        );
        assert_eq!(
            count_one(isa, 7, 19, 1, 0),
            (8, 0, 1),
            "{name}: at it, spent"
        );
        assert_eq!(
            count_one(isa, 7, -19, -4, 0),
            (6, -3, 1),
            "{name}: downwards"
        );
        assert_eq!(
            count_one(isa, 14, 100, 90, 0),
            (14, 127, 0),
            "{name}: the top end stays"
        );
        assert_eq!(
            count_one(isa, 0, -100, -90, 0),
            (0, -127, 0),
            "{name}: the low end stays"
        );
        assert_eq!(
            count_one(isa, 14, -127, 0, 0),
            (13, 0, 1),
            "{name}: back from the end"
        );
        assert_eq!(
            count_one(isa, 13, 127, 32767, 0),
            (14, 0, 1),
            "{name}: saturates, then flips"
        );
        assert_eq!(
            count_one(isa, 13, 5, -32768, 0),
            (12, -85, 1),
            "{name}: i16's end"
        );
        assert_eq!(
            count_one(isa, 7, -128, 0, 0),
            (6, -107, 1),
            "{name}: -128 counts as -127"
        );
        assert_eq!(
            count_one(isa, 7, 127, 0, 1 << 24),
            (7, 0, 0),
            "{name}: all leaks"
        );
        assert_eq!(
            count_one(isa, 15, 127, 127, 0),
            (15, 127, 0),
            "{name}: no code, no move"
        );
    }
}

#[test]
fn the_leak_is_unbiased() {
    let cols = 1 << 16;
    let table = FlipTable::new(&Grid::prime(), 127);
    for isa in Isa::available() {
        for (size, leak) in [(1_i8, 1 << 16), (100, 16_777), (-60, 1 << 20)] {
            // Code 14 upwards and 0 downwards: nothing flips.
            let mut nibbles = vec![if size > 0 { 0xee } else { 0 }; cols / 2];
            let mut ballot = vec![size; cols];
            count_row(
                isa,
                &mut nibbles,
                None,
                cols,
                &mut ballot,
                None,
                &table,
                leak,
                &rng(),
                1,
            );
            let mean = ballot.iter().map(|&b| f64::from(b)).sum::<f64>() / cols as f64;
            let lost = f64::from(size) * f64::from(leak) / f64::from(1 << 24);
            let fraction = lost.abs().fract();
            let sigma = (fraction * (1.0 - fraction) / cols as f64).sqrt();
            let off = (mean - (f64::from(size) - lost)).abs() / sigma;
            assert!(
                off < 5.0,
                "{}: {size} leaks {leak}: {off:.1} sigma",
                isa.name()
            );
        }
    }
}

#[test]
fn classic_flips_by_the_sign_at_its_rate() {
    for (grid, last) in [(Grid::prime(), 14), (Grid::fine(), 24)] {
        for cols in LENGTHS {
            let start = Row::new(&grid, cols, 500);
            let mut row = start.clone();
            let high = row.high.as_deref_mut();
            let flips = count_classic_row(
                &mut row.nibbles,
                high,
                &mut row.votes,
                last,
                20_000,
                &rng(),
                2,
            );
            let mut want = 0;
            for c in 0..cols {
                let old = i32::from(code_at(&start.nibbles, start.high.as_deref(), c));
                let new = i32::from(code_at(&row.nibbles, row.high.as_deref(), c));
                let drawn = uniform16(&rng(), 2, c as u32) < 20_000;
                let by = if drawn {
                    i32::from(start.votes[c]).signum()
                } else {
                    0
                };
                assert_eq!(
                    new,
                    (old + by).clamp(0, i32::from(last)),
                    "{cols}: column {c}"
                );
                want += u32::from(new != old);
            }
            assert_eq!(flips, want);
            assert!(row.votes.iter().all(|&v| v == 0));
        }
    }
}

#[test]
fn classic_votes_against_what_stands_out() {
    for cols in LENGTHS {
        let grad = noise(3 * cols, 8);
        let mut sizes = GradientSizes::default();
        for row in grad.chunks(cols.max(1)) {
            sizes.add_row(Isa::available()[0], row);
        }
        for isa in Isa::available() {
            let mut other = GradientSizes::default();
            for row in grad.chunks(cols.max(1)) {
                other.add_row(isa, row);
            }
            assert_eq!(sizes, other, "{}: {cols}", isa.name());
        }
        let n = grad.len().max(1) as f64;
        let mean = grad.iter().map(|g| f64::from(g.abs())).sum::<f64>() / n;
        let mean_sq = grad
            .iter()
            .map(|&g| f64::from(g) * f64::from(g))
            .sum::<f64>()
            / n;
        let exact = mean + 0.5 * (mean_sq - mean * mean).max(0.0).sqrt();
        let threshold = sizes.threshold(0.5);
        // A spread of nothing is the square root of what rounding leaves.
        assert!(
            (f64::from(threshold) - exact).abs() < 1e-3,
            "{cols}: {threshold} and {exact}"
        );

        let start: Vec<i16> = (0..grad.len())
            .map(|i| [0, i16::MAX, i16::MIN][i % 3])
            .collect();
        let mut votes = start.clone();
        cast_classic(&grad, threshold, &mut votes);
        for ((vote, start), g) in votes.iter().zip(start).zip(&grad) {
            let cast = if g.abs() <= threshold {
                0
            } else {
                -g.signum() as i16
            };
            assert_eq!(*vote, start.saturating_add(cast));
        }
    }
}

#[test]
#[should_panic(expected = "high bits of 20 columns")]
fn short_planes_are_refused() {
    let table = FlipTable::new(&Grid::fine(), 127);
    let (mut high, mut ballot) = ([0; 2], [0; 20]);
    let high = Some(&mut high[..]);
    count_row(
        Isa::best(),
        &mut [0; 10],
        high,
        20,
        &mut ballot,
        None,
        &table,
        0,
        &rng(),
        0,
    );
}
