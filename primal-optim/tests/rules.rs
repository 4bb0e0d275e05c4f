//! The rules through their public interface: accounting, determinism, resume, and learning.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use primal_kernels::{Isa, philox4x32};
use primal_lut::{Grid, QuantMatrix, TensorFile, TensorFileWriter};
use primal_optim::{
    MatrixPlan, OptimConfig, OptimError, Role, Rule, StatePart, StateVisitor, StepContext, Weight,
    WeightBytes, WeightSpec,
};
use proptest::prelude::*;

fn spec(rule: Rule, grid: Option<&Grid>, many: bool) -> WeightSpec<'_> {
    WeightSpec {
        rule,
        grid,
        std: 0.1,
        scale_per_std: 3.5,
        group: 0,
        many_micro_batches: many,
        role: Role::Hidden(&[]),
    }
}

/// Deterministic noise in [-1, 1).
fn noise(a: u32, b: u32, i: usize) -> f32 {
    philox4x32([i as u32, a, b, 7 << 28], [9, 9])[0] as f32 / 2_147_483_648.0 - 1.0
}

fn weight(rule: Rule, (rows, cols): (usize, usize), grid: Option<&Grid>, many: bool) -> Weight {
    let initial = (0..rows * cols).map(|i| 0.1 * noise(0, 0, i)).collect();
    Weight::new("w", 3, (rows, cols), initial, &spec(rule, grid, many)).unwrap()
}

struct Run<'a> {
    config: &'a OptimConfig,
    micro_batches: u16,
}

impl Run<'_> {
    /// One step on a gradient that pulls every weight towards `target`, with noise.
    fn step(&self, weight: &mut Weight, step: u32, noise_size: f32) -> u64 {
        let ctx = StepContext {
            isa: Isa::best(),
            config: self.config,
            seed: 5,
            step,
            rate: 1.0,
            micro_batches: self.micro_batches,
        };
        let (rows, cols) = (weight.rows(), weight.cols());
        let mut now = vec![0.0; rows * cols];
        primal_kernels::fill_rows(ctx.isa, &*weight, 0..rows, &mut now);
        weight.begin_step(&ctx).unwrap();
        for micro_batch in 0..self.micro_batches {
            let finite = weight.accumulate(&ctx, micro_batch, 0..rows, &|tile, grad| {
                for (i, g) in (tile.start * cols..tile.end * cols).zip(grad) {
                    let spread = noise_size * f32::from(self.micro_batches).sqrt();
                    *g = now[i] - target(i) + spread * noise(step + 1, u32::from(micro_batch), i);
                }
            });
            assert!(finite.unwrap());
            weight.end_micro_batch(&ctx);
        }
        weight.step(&ctx, 1.0 / f32::from(self.micro_batches)).flips
    }
}

fn target(i: usize) -> f32 {
    0.25 * noise(77, 0, i)
}

fn error(weight: &Weight) -> f32 {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut now = vec![0.0; rows * cols];
    primal_kernels::fill_rows(Isa::best(), weight, 0..rows, &mut now);
    let sum: f32 = now
        .iter()
        .enumerate()
        .map(|(i, w)| (w - target(i)).powi(2))
        .sum();
    (sum / now.len() as f32).sqrt()
}

#[derive(Default)]
struct Collect<'a>(TensorFileWriter<'a>);

impl<'a> StateVisitor<'a> for Collect<'a> {
    fn quant(&mut self, name: &str, matrix: &'a QuantMatrix) {
        self.0.quant(name, matrix);
    }
    fn f32(&mut self, name: &str, shape: &[usize], values: &'a [f32]) {
        self.0.f32(name, shape, values);
    }
    fn i8(&mut self, name: &str, shape: &[usize], values: &'a [i8]) {
        self.0.i8(name, shape, values);
    }
}

fn state(weight: &Weight) -> Vec<u8> {
    let mut all = Collect::default();
    weight.visit(StatePart::Model, &mut all);
    weight.visit(StatePart::Optimizer, &mut all);
    all.0.to_bytes().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn memory_is_what_the_plan_says(rows in 1usize..200, cols in 1usize..80, group in 0usize..99, many: bool, hidden: bool, rule in 0..Rule::ALL.len(), kind in 0usize..3) {
        let rule = Rule::ALL[rule];
        let grid = [Some(Grid::prime()), Some(Grid::fine()), None][kind].clone();
        let (a, b) = (rows / 3, rows / 2 - rows / 3);
        let stack = [a, b, rows - a - b].map(|it| it.max(1));
        let stack = if stack.iter().sum::<usize>() == rows { &stack[..] } else { &[] };
        let role = if hidden { Role::Hidden(stack) } else { Role::Edge };
        let spec = WeightSpec { group, role, ..spec(rule, grid.as_ref(), many) };
        let weight = Weight::new("w", 0, (rows, cols), vec![0.1; rows * cols], &spec).unwrap();
        let plan = WeightBytes::plan(rule, &MatrixPlan {
            size: (rows, cols),
            grid: grid.as_ref(),
            group,
            many_micro_batches: many,
            role,
        });
        prop_assert_eq!(weight.allocated_bytes(), plan);
    }
}

#[test]
fn a_discrete_weight_takes_one_and_a_half_bytes() {
    let grid = Grid::prime();
    for rule in [Rule::Spectral, Rule::Consensus] {
        let weight = weight(rule, (64, 64), Some(&grid), true);
        assert_eq!(weight.footprint().bytes_per_weight(), 1.5);
    }
}

#[test]
fn scales_of_groups_get_the_gradients_of_their_columns() {
    let grid = Grid::prime();
    let (rows, cols, group) = (70, 37, 16);
    let initial: Vec<f32> = (0..rows * cols).map(|i| 0.1 * noise(0, 0, i)).collect();
    for rule in [Rule::Frozen, Rule::Consensus, Rule::Spectral] {
        let spec = WeightSpec {
            group,
            ..spec(rule, Some(&grid), false)
        };
        let mut weight = Weight::new("w", 0, (rows, cols), initial.clone(), &spec).unwrap();
        let config = OptimConfig {
            rule,
            ..Default::default()
        };
        let ctx = StepContext {
            isa: Isa::best(),
            config: &config,
            seed: 5,
            step: 0,
            rate: 1.0,
            micro_batches: 1,
        };
        weight.begin_step(&ctx).unwrap();
        let finite = weight.accumulate(&ctx, 0, 0..rows, &|tile, grad| {
            for (i, g) in (tile.start * cols..tile.end * cols).zip(grad) {
                *g = noise(1, 0, i);
            }
        });
        assert!(finite.unwrap());
        let matrix = weight.quant().unwrap();
        for row in 0..rows {
            for part in 0..3 {
                let columns = part * group..((part + 1) * group).min(cols);
                let expected: f32 = columns
                    .map(|col| {
                        let value = grid.value(matrix.code(row, col)).unwrap();
                        noise(1, 0, row * cols + col) * value
                    })
                    .sum();
                let found = weight.float_gradient()[row * 3 + part];
                assert!(
                    (found - expected).abs() < 1e-4,
                    "{row} {part}: {found} {expected}"
                );
            }
        }
        let before = matrix.clone();
        weight.step(&ctx, 1.0);
        assert_ne!(weight.quant().unwrap().scales(), before.scales());
    }
}

#[test]
fn equal_scales_in_groups_vote_like_one_scale_a_row() {
    let grid = Grid::prime();
    let size = (70, 64);
    let initial: Vec<f32> = (0..size.0 * size.1).map(|i| 0.1 * noise(0, 0, i)).collect();
    let config = OptimConfig {
        rule: Rule::Consensus,
        scale_lr_ratio: 0.0,
        ..Default::default()
    };
    let run = Run {
        config: &config,
        micro_batches: 2,
    };
    let codes = [0, 32].map(|group| {
        let spec = WeightSpec {
            group,
            ..spec(Rule::Consensus, Some(&grid), true)
        };
        let mut weight = Weight::new("w", 0, size, initial.clone(), &spec).unwrap();
        let flips: u64 = (0..30).map(|step| run.step(&mut weight, step, 0.5)).sum();
        assert!(flips > 100, "{flips}");
        weight.quant().unwrap().nibbles().to_vec()
    });
    // The scale enters before or after a rounding: a few votes may differ.
    let same = codes[0]
        .iter()
        .zip(&codes[1])
        .filter(|(a, b)| a == b)
        .count();
    assert!(
        same * 100 >= codes[0].len() * 95,
        "{same} of {}",
        codes[0].len()
    );
}

#[test]
fn one_and_two_threads_reach_the_same_state() {
    for &rule in Rule::ALL {
        for grid in [Grid::prime(), Grid::fine()] {
            for micro_batches in [1, 3] {
                let states = [1, 2, 3].map(|threads| {
                    let pool = rayon::ThreadPoolBuilder::new()
                        .num_threads(threads)
                        .build()
                        .unwrap();
                    pool.install(|| {
                        let config = OptimConfig {
                            rule,
                            ..Default::default()
                        };
                        let run = Run {
                            config: &config,
                            micro_batches,
                        };
                        let mut weight = weight(rule, (200, 37), Some(&grid), micro_batches > 1);
                        for step in 0..8 {
                            run.step(&mut weight, step, 0.5);
                        }
                        state(&weight)
                    })
                });
                assert!(
                    states[0] == states[1] && states[0] == states[2],
                    "{rule} {} {micro_batches}",
                    grid.id()
                );
            }
        }
    }
}

#[test]
fn a_reloaded_state_goes_on_bit_for_bit() {
    for &rule in Rule::ALL {
        let grid = Grid::prime();
        let config = OptimConfig {
            rule,
            ..Default::default()
        };
        let run = Run {
            config: &config,
            micro_batches: 2,
        };
        let mut first = weight(rule, (70, 33), Some(&grid), true);
        for step in 0..5 {
            run.step(&mut first, step, 0.5);
        }
        let file = TensorFile::from_bytes(state(&first)).unwrap();
        let mut second = weight(rule, (70, 33), Some(&grid), true);
        second.load(StatePart::Model, &file).unwrap();
        second.load(StatePart::Optimizer, &file).unwrap();
        for step in 5..9 {
            run.step(&mut first, step, 0.5);
            run.step(&mut second, step, 0.5);
        }
        assert!(state(&first) == state(&second), "{rule}");
        let mut other = weight(rule, (71, 33), Some(&grid), true);
        assert!(other.load(StatePart::Model, &file).is_err());
    }
}

#[test]
fn a_gradient_that_is_not_finite_casts_no_vote() {
    for (rule, bad) in [
        (Rule::Consensus, f32::NAN),
        (Rule::Consensus, f32::INFINITY),
        (Rule::Consensus, 1e30),
        (Rule::Spectral, f32::NAN),
        (Rule::Spectral, f32::INFINITY),
        (Rule::Spectral, 1e30),
        (Rule::Muon, f32::NAN),
        (Rule::Adamw, f32::NAN),
    ] {
        let grid = Grid::prime();
        let config = OptimConfig {
            rule,
            ..Default::default()
        };
        let ctx = StepContext {
            isa: Isa::best(),
            config: &config,
            seed: 1,
            step: 0,
            rate: 1.0,
            micro_batches: 2,
        };
        let mut weight = weight(rule, (70, 8), Some(&grid), true);
        let before = state(&weight);
        weight.begin_step(&ctx).unwrap();
        let finite = weight.accumulate(&ctx, 0, 0..70, &|tile, grad| {
            grad.fill(1.0);
            if tile.contains(&66) {
                grad[(66 - tile.start) * 8 + 3] = bad;
            }
        });
        assert!(!finite.unwrap());
        weight.end_micro_batch(&ctx);
        weight.discard();
        assert!(state(&weight) == before, "{rule}");
    }
}

#[test]
fn votes_learn_and_frozen_codes_do_not() {
    let grid = Grid::prime();
    let reached = |rule| {
        let config = OptimConfig {
            rule,
            eta: 0.02,
            ..Default::default()
        };
        let run = Run {
            config: &config,
            micro_batches: 1,
        };
        let mut weight = weight(rule, (64, 64), Some(&grid), false);
        let flips: u64 = (0..300).map(|step| run.step(&mut weight, step, 0.3)).sum();
        (error(&weight), flips)
    };
    let (start, _) = (
        error(&weight(Rule::Consensus, (64, 64), Some(&grid), false)),
        (),
    );
    let (consensus, flips) = reached(Rule::Consensus);
    let (frozen, no_flips) = reached(Rule::Frozen);
    assert!(consensus < 0.4 * start, "{consensus} from {start}");
    assert!(
        flips > 0 && no_flips == 0 && frozen > 2.0 * consensus,
        "{frozen} {flips} {no_flips}"
    );
    assert!(reached(Rule::Classic).1 > 0);
    assert!(reached(Rule::Shadow).0 < 0.5 * start);
    assert!(reached(Rule::Spectral).0 < 0.5 * start);
    assert!(reached(Rule::Muon).0 < 0.5 * start);
}

#[test]
fn the_step_does_not_depend_on_how_a_batch_is_cut() {
    // Pure noise of the same variance per batch, as one piece and as eight: what the votes add up
    // to must have the same size.
    let grid = Grid::prime();
    let config = OptimConfig {
        rule: Rule::Consensus,
        tau: 1e6,
        ..Default::default()
    };
    let spread = |micro_batches: u16| {
        let run = Run {
            config: &config,
            micro_batches,
        };
        let mut weight = weight(Rule::Consensus, (64, 64), Some(&grid), micro_batches > 1);
        let flips: u64 = (0..60).map(|step| run.step(&mut weight, step, 30.0)).sum();
        flips as f64
    };
    let (whole, cut) = (spread(1), spread(8));
    assert!(
        (cut / whole - 1.0).abs() < 0.1,
        "{whole} flips in one piece, {cut} in eight"
    );
}

#[test]
fn misuse_is_an_error() {
    let grid = Grid::prime();
    let config = OptimConfig::default();
    let ctx = StepContext {
        isa: Isa::best(),
        config: &config,
        seed: 1,
        step: 4,
        rate: 1.0,
        micro_batches: 2,
    };
    let fill = |_: std::ops::Range<usize>, grad: &mut [f32]| grad.fill(1.0);
    for &rule in Rule::ALL {
        let mut weight = weight(rule, (130, 8), Some(&grid), true);
        let error = weight.accumulate(&ctx, 0, 0..64, &fill).unwrap_err();
        assert!(
            matches!(error, OptimError::NotBegun { step: 4, .. }),
            "{rule}"
        );
        weight.begin_step(&ctx).unwrap();
        for rows in [32..96, 64..131, 0..0] {
            let error = weight.accumulate(&ctx, 0, rows, &fill).unwrap_err();
            assert!(
                matches!(error, OptimError::Tiles { rows: 130, .. }),
                "{rule}: {error}"
            );
        }
        assert!(weight.accumulate(&ctx, 0, 64..130, &fill).unwrap());
        weight.step(&ctx, 1.0);
        assert!(
            weight.accumulate(&ctx, 0, 0..64, &fill).is_err(),
            "{rule}: the step is over"
        );
    }
    let mut undeclared = weight(Rule::Consensus, (64, 8), Some(&grid), false);
    let error = undeclared.begin_step(&ctx).unwrap_err();
    assert!(matches!(error, OptimError::MicroBatches(2)), "{error}");
    let role = Role::Hidden(&[64, 32]);
    let spec = WeightSpec {
        role,
        ..spec(Rule::Spectral, Some(&grid), true)
    };
    assert!(Weight::new("w", 0, (64, 8), vec![0.0; 512], &spec).is_err());
}

#[test]
fn a_spectral_step_is_the_same_however_its_batch_is_cut() {
    // The same noisy gradient, whole or as the mean of eight: nearly the same flips.
    let grid = Grid::prime();
    let config = OptimConfig {
        scale_lr_ratio: 0.0,
        ..Default::default()
    };
    let codes = [1, 8].map(|micro_batches: u16| {
        let mut weight = weight(Rule::Spectral, (64, 48), Some(&grid), true);
        for step in 0..6 {
            let ctx = StepContext {
                isa: Isa::best(),
                config: &config,
                seed: 5,
                step,
                rate: 1.0,
                micro_batches,
            };
            weight.begin_step(&ctx).unwrap();
            for micro_batch in 0..micro_batches {
                let piece = 8 / micro_batches;
                let finite = weight.accumulate(&ctx, micro_batch, 0..64, &|tile, grad| {
                    for (i, g) in (tile.start * 48..tile.end * 48).zip(grad) {
                        let parts =
                            u32::from(micro_batch * piece)..u32::from((micro_batch + 1) * piece);
                        let sum: f32 = parts.map(|part| noise(step + 1, part, i)).sum();
                        *g = sum / f32::from(piece);
                    }
                });
                assert!(finite.unwrap());
                weight.end_micro_batch(&ctx);
            }
            weight.step(&ctx, 1.0);
        }
        let matrix = weight.quant().unwrap();
        (0..64)
            .flat_map(|row| (0..48).map(move |col| (row, col)))
            .map(|(row, col)| matrix.code(row, col))
            .collect::<Vec<_>>()
    });
    let start = weight(Rule::Spectral, (64, 48), Some(&grid), true);
    let moved = codes[0]
        .iter()
        .enumerate()
        .filter(|(i, code)| **code != start.quant().unwrap().code(i / 48, i % 48))
        .count();
    let differ = codes[0]
        .iter()
        .zip(&codes[1])
        .filter(|(a, b)| a != b)
        .count();
    assert!(
        moved > 1000 && differ * 5 < moved,
        "{differ} of {moved} moved"
    );
}
