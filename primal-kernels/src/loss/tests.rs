//! The tiled loss against a plain oracle in f64, finite differences, and itself cut into pieces.

use primal_lut::Grid;

use super::*;
use crate::rows::DenseRows;
use crate::test_support::{
    assert_close, assert_close_at, differences, noise, on_one_and_two_threads,
};

struct Case {
    width: usize,
    vocab: usize,
    piece_rows: usize,
    x: Vec<f32>,
    head: Vec<f32>,
    targets: Vec<u32>,
}

#[derive(Debug, PartialEq)]
struct Outcome {
    losses: Vec<f32>,
    lse: Vec<f32>,
    dx: Vec<f32>,
    dhead: Vec<f32>,
}

impl Case {
    /// Every fifth row is ignored.
    fn new(n: usize, width: usize, vocab: usize) -> Self {
        let target = |i: usize| {
            if i % 5 == 3 {
                IGNORED
            } else {
                (i * 7919 % vocab) as u32
            }
        };
        Case {
            width,
            vocab,
            piece_rows: n,
            x: noise(n * width, 1),
            head: noise(vocab * width, 2).iter().map(|w| 2.0 * w).collect(),
            targets: (0..n).map(target).collect(),
        }
    }

    fn grad_scale(&self) -> f32 {
        1.0 / self
            .targets
            .iter()
            .filter(|&&t| t != IGNORED)
            .count()
            .max(1) as f32
    }

    /// Forward and backward over the rows of each piece of `pieces`, one call each.
    fn run(&self, isa: Isa, pieces: usize) -> Outcome {
        let (n, c, v) = (self.targets.len(), self.width, self.vocab);
        let head = DenseRows {
            rows: v,
            cols: c,
            values: &self.head,
        };
        let mut out = Outcome {
            losses: vec![9.0; n],
            lse: vec![9.0; n],
            dx: vec![0.0; n * c],
            dhead: vec![0.0; v * c],
        };
        let mut scratch = CrossEntropyScratch::new(n, v, c, false);
        for start in (0..n).step_by(n / pieces) {
            let rows = start..start + n / pieces;
            let part = rows.start * c..rows.end * c;
            let (x, targets) = (&self.x[part.clone()], &self.targets[rows.clone()]);
            let (losses, lse) = (&mut out.losses[rows.clone()], &mut out.lse[rows.clone()]);
            cross_entropy_forward(
                isa,
                x,
                &head,
                targets,
                self.piece_rows,
                losses,
                lse,
                &mut scratch,
            );
            for tile in vocab_tiles(v) {
                let dx = Some(&mut out.dx[part.clone()]);
                let d_logits = cross_entropy_backward_tile(
                    isa,
                    x,
                    &head,
                    tile.clone(),
                    targets,
                    lse,
                    self.grad_scale(),
                    self.piece_rows,
                    dx,
                    &mut scratch,
                );
                for (row, d_logits) in d_logits.chunks_exact(tile.len()).enumerate() {
                    for (token, d) in tile.clone().zip(d_logits) {
                        for (to, x) in out.dhead[token * c..][..c].iter_mut().zip(&x[row * c..]) {
                            *to += d * x;
                        }
                    }
                }
            }
        }
        out
    }

    fn oracle(&self, x: &[f64], head: &[f64]) -> (Vec<f64>, f64) {
        let mut losses = Vec::new();
        for (x, &target) in x.chunks_exact(self.width).zip(&self.targets) {
            let logit = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            let logits: Vec<f64> = head.chunks_exact(self.width).map(logit).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            losses.push(if target == IGNORED {
                0.0
            } else {
                sum.ln() - logits[target as usize]
            });
        }
        let mean = losses.iter().sum::<f64>() * f64::from(self.grad_scale());
        (losses, mean)
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn equals_the_formula_and_finite_differences() {
    for (n, width, vocab) in [
        (1, 1, 1),
        (5, 3, 2),
        (7, 8, 16),
        (20, 16, 65),
        (6, 5, 512),
        (9, 12, 513),
        (10, 7, 1100),
    ] {
        let case = Case::new(n, width, vocab);
        let what = format!("n {n}, width {width}, vocabulary {vocab}");
        let got = case.run(Isa::best(), 1);
        if vocab == 1 {
            assert!(got.losses == [0.0] && got.dx == [0.0] && got.dhead == [0.0]);
            continue;
        }
        let (x, head) = (wide(&case.x), wide(&case.head));
        assert_close(&got.losses, &case.oracle(&x, &head).0, 2e-6, &what);
        let dx = differences(&case.x, 1, |x| case.oracle(x, &head).1);
        assert_close_at(&got.dx, &dx, 1e-5, &what);
        let dhead = differences(&case.head, 1 + vocab * width / 100, |head| {
            case.oracle(&x, head).1
        });
        assert_close_at(&got.dhead, &dhead, 1e-5, &what);
    }
}

#[test]
fn large_logits_stay_finite() {
    let mut case = Case::new(10, 8, 700);
    case.head.iter_mut().for_each(|w| *w *= 500.0);
    let got = case.run(Isa::best(), 1);
    let max_shifted = |(x, &target): (&[f64], &u32)| {
        let head = wide(&case.head);
        let logit = |w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        let logits: Vec<f64> = head.chunks_exact(8).map(logit).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
        if target == IGNORED {
            0.0
        } else {
            max + sum.ln() - logits[target as usize]
        }
    };
    let want: Vec<f64> = wide(&case.x)
        .chunks_exact(8)
        .zip(&case.targets)
        .map(max_shifted)
        .collect();
    assert_close(&got.losses, &want, 1e-6, "logits of thousands");
    assert!(got.dx.iter().chain(&got.dhead).all(|d| d.is_finite()));
}

#[test]
fn tiers_and_threads_give_equal_bits() {
    for (n, width, vocab) in [(3, 5, 1), (50, 17, 65), (33, 20, 1030)] {
        let case = Case::new(n, width, vocab);
        let want = case.run(Isa::best(), 1);
        for isa in Isa::available() {
            let got = on_one_and_two_threads(|| case.run(isa, 1));
            assert!(
                got.iter().all(|got| *got == want),
                "{} at {n} {width} {vocab}",
                isa.name()
            );
        }
    }
}

#[test]
fn pieces_give_the_same_bits_alone_and_together() {
    let case = Case {
        piece_rows: 33,
        ..Case::new(132, 20, 700)
    };
    let (together, alone) = (case.run(Isa::best(), 1), case.run(Isa::best(), 4));
    assert_eq!(together.losses, alone.losses);
    assert_eq!(together.lse, alone.lse);
    assert_eq!(together.dx, alone.dx);
}

#[test]
fn ignored_rows_weigh_nothing() {
    let mut case = Case::new(10, 6, 40);
    case.targets.fill(IGNORED);
    let got = case.run(Isa::best(), 1);
    assert!(
        got.losses
            .iter()
            .chain(&got.dx)
            .chain(&got.dhead)
            .all(|&x| x == 0.0)
    );
}

#[test]
fn a_bad_number_stays_visible() {
    let mut case = Case::new(4, 6, 40);
    case.x[6] = f32::NAN;
    let got = case.run(Isa::best(), 1);
    let bad: Vec<bool> = got.losses.iter().map(|loss| loss.is_nan()).collect();
    assert_eq!(bad, [false, true, false, false]);
}

#[test]
fn scratch_is_what_it_says() {
    for (rows, vocab, width) in [(10, 65, 12), (3, 5000, 7)] {
        for int8 in [false, true] {
            let scratch = CrossEntropyScratch::new(rows, vocab, width, int8);
            assert_eq!(
                scratch.allocated_bytes(),
                CrossEntropyScratch::bytes(rows, vocab, width, int8)
            );
        }
    }
    assert_eq!(
        vocab_tiles(1030).collect::<Vec<_>>(),
        [0..512, 512..1024, 1024..1030]
    );
}

/// In int8 losses and gradients are those of float within a few per cent, and equal on every
/// tier and for any number of threads.
#[test]
fn int8_is_close_to_float_and_equal_everywhere() {
    let (n, width, vocab) = (70, 96, 1100);
    let case = Case::new(n, width, vocab);
    let scales = noise(vocab, 8).iter().map(|s| 0.3 + 0.1 * s).collect();
    let head =
        QuantMatrix::quantise(&Grid::prime(), vocab, width, width, &case.head, scales).unwrap();
    let run = |isa: Isa, int8: bool| {
        let mut scratch = CrossEntropyScratch::new(n, vocab, width, int8);
        let (mut losses, mut lse) = (vec![0.0; n], vec![0.0; n]);
        let mut dx = vec![0.0; n * width];
        let (x, targets) = (&case.x, &case.targets);
        cross_entropy_forward(
            isa,
            x,
            &head,
            targets,
            n,
            &mut losses,
            &mut lse,
            &mut scratch,
        );
        scratch.start(isa, x, width);
        for tile in vocab_tiles(vocab) {
            let dx = Some(&mut dx[..]);
            let _ = cross_entropy_backward_tile(
                isa,
                x,
                &head,
                tile,
                targets,
                &lse,
                0.1,
                n,
                dx,
                &mut scratch,
            );
        }
        (losses, dx)
    };
    let float = run(Isa::best(), false);
    let want = run(Isa::best(), true);
    assert_close(&want.0, &wide(&float.0), 0.01, "losses");
    assert_close(&want.1, &wide(&float.1), 0.06, "dx");
    assert_ne!(want, float);
    for isa in Isa::variants() {
        for got in on_one_and_two_threads(|| run(isa, true)) {
            assert!(got == want, "{} {:?}", isa.name(), isa.extras());
        }
    }
}
