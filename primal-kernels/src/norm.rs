//! Layer and root-mean-square normalisation, forward and backward.

use rayon::prelude::*;

use crate::act::{BLOCK_ROWS, CHUNK_COLUMNS, add_chunk, sum_rows};
use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Rows of a task.
const CHUNK_ROWS: usize = 32;

/// What a row is normalised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and standard deviation (Ba et al. 2016).
    Layer,
    /// Root mean square alone (Zhang & Sennrich 2019): the mean counts as zero.
    Rms,
}

/// y = (x − mean) · rstd · weight + bias for every row, rstd = 1 / √(variance + eps).
///
/// `x` and `y` are (n, `width`), `weight` and `bias` (`width`); `mean` and `rstd` (n) are kept for
/// the backward pass. The variance is that of the row's elements (divided by `width`); for
/// [`NormKind::Rms`] it is their mean square, and the mean is 0.
///
/// # Panics
/// If a length does not match.
pub fn norm(
    isa: Isa,
    kind: NormKind,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    width: usize,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    assert_rows(width, x.len(), mean.len());
    assert_eq!(y.len(), x.len(), "y is like x");
    assert_eq!(rstd.len(), mean.len(), "rstd is like mean");
    assert_eq!(weight.len(), width, "a weight a column");
    assert_eq!(bias.map_or(width, <[f32]>::len), width, "a bias a column");
    let chunk = CHUNK_ROWS * width;
    y.par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk))
        .zip(
            mean.par_chunks_mut(CHUNK_ROWS)
                .zip(rstd.par_chunks_mut(CHUNK_ROWS)),
        )
        .for_each(|((y, x), (mean, rstd))| {
            let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
            for ((x, y), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
                (*mean, *rstd) = dispatch!(isa, normalise_row(kind, x, weight, bias, eps, y));
            }
        });
}

/// The gradient of [`norm()`], **added** to `dx` (n, `width`), `dweight` and `dbias`
/// (`width`).
///
/// `dy` (n, `width`) is the gradient of y; `x`, `weight`, `mean`, `rstd` as in the forward pass.
///
/// # Panics
/// If a length does not match.
pub fn norm_backward(
    isa: Isa,
    kind: NormKind,
    dy: &[f32],
    x: &[f32],
    weight: &[f32],
    mean: &[f32],
    rstd: &[f32],
    width: usize,
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
) {
    assert_rows(width, x.len(), mean.len());
    assert_eq!(dy.len(), x.len(), "dy is like x");
    assert_eq!(dx.len(), x.len(), "dx is like x");
    assert_eq!(rstd.len(), mean.len(), "rstd is like mean");
    assert_eq!(weight.len(), width, "a weight a column");
    assert_eq!(dweight.len(), width, "a weight's gradient a column");

    let chunk = CHUNK_ROWS * width;
    dx.par_chunks_mut(chunk)
        .zip(x.par_chunks(chunk).zip(dy.par_chunks(chunk)))
        .zip(mean.par_chunks(CHUNK_ROWS).zip(rstd.par_chunks(CHUNK_ROWS)))
        .for_each(|((dx, (x, dy)), (mean, rstd))| {
            let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
            let rows = rows.zip(dx.chunks_exact_mut(width));
            for (((x, dy), dx), (&mean, &rstd)) in rows.zip(mean.iter().zip(rstd)) {
                dispatch!(isa, backward_row(kind, x, dy, weight, (mean, rstd), dx));
            }
        });

    let rows = Rows {
        x,
        dy,
        mean,
        rstd,
        width,
    };
    dweight
        .par_chunks_mut(CHUNK_COLUMNS)
        .enumerate()
        .for_each(|(i, dweight)| {
            dispatch!(isa, sum_weight(rows, i * CHUNK_COLUMNS, dweight));
        });
    if let Some(dbias) = dbias {
        sum_rows(isa, dy, width, dbias);
    }
}

fn assert_rows(width: usize, elements: usize, rows: usize) {
    assert!(width > 0, "a norm has a width");
    assert_eq!(elements, rows * width, "x is (n, width)");
}

/// Returns the row's mean and rstd.
#[inline(always)]
fn normalise_row<L: Lanes>(
    lanes: L,
    kind: NormKind,
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
) -> (f32, f32) {
    let width = x.len() as f32;
    let (vectors, tail) = x.as_chunks::<LANES>();
    let mean = match kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => {
            let mut sum = lanes.zero();
            for x in vectors {
                sum = lanes.add(sum, lanes.load(x));
            }
            sum = lanes.add(sum, lanes.load_tail(tail));
            lanes.sum(sum) / width
        }
    };

    let by_mean = lanes.splat(mean);
    let mut squares = lanes.zero();
    for x in vectors {
        let centred = lanes.sub(lanes.load(x), by_mean);
        squares = lanes.mul_then_add(centred, centred, squares);
    }
    if !tail.is_empty() {
        // The lanes beyond the row must not count: zero minus zero there.
        let centred = lanes.sub(
            lanes.load_tail(tail),
            lanes.load_tail(&[mean; LANES][..tail.len()]),
        );
        squares = lanes.mul_then_add(centred, centred, squares);
    }
    let rstd = 1.0 / (lanes.sum(squares) / width + eps).sqrt();

    let by = (by_mean, lanes.splat(rstd));
    let (weights, weight_tail) = weight.as_chunks::<LANES>();
    let (outs, out_tail) = y.as_chunks_mut::<LANES>();
    match bias {
        Some(bias) => {
            let (biases, bias_tail) = bias.as_chunks::<LANES>();
            for (((x, w), b), y) in vectors.iter().zip(weights).zip(biases).zip(outs) {
                let scaled = lanes.mul(normal(lanes, lanes.load(x), by), lanes.load(w));
                lanes.store(lanes.add(scaled, lanes.load(b)), y);
            }
            let last = normal(lanes, lanes.load_tail(tail), by);
            let last = lanes.mul(last, lanes.load_tail(weight_tail));
            lanes.store_tail(lanes.add(last, lanes.load_tail(bias_tail)), out_tail);
        }
        None => {
            for ((x, w), y) in vectors.iter().zip(weights).zip(outs) {
                lanes.store(
                    lanes.mul(normal(lanes, lanes.load(x), by), lanes.load(w)),
                    y,
                );
            }
            let last = normal(lanes, lanes.load_tail(tail), by);
            lanes.store_tail(lanes.mul(last, lanes.load_tail(weight_tail)), out_tail);
        }
    }
    (mean, rstd)
}

/// dx += rstd · (g − mean(g) − x̂ · mean(g x̂)) with g = dy · weight, x̂ = (x − mean) · rstd;
/// without mean(g) where the mean was not taken off.
#[inline(always)]
fn backward_row<L: Lanes>(
    lanes: L,
    kind: NormKind,
    x: &[f32],
    dy: &[f32],
    weight: &[f32],
    (mean, rstd): (f32, f32),
    dx: &mut [f32],
) {
    let width = x.len() as f32;
    let by = (lanes.splat(mean), lanes.splat(rstd));
    let (xs, x_tail) = x.as_chunks::<LANES>();
    let (dys, dy_tail) = dy.as_chunks::<LANES>();
    let (weights, weight_tail) = weight.as_chunks::<LANES>();
    let (dxs, dx_tail) = dx.as_chunks_mut::<LANES>();

    let (mut sum, mut dot) = (lanes.zero(), lanes.zero());
    for ((x, dy), w) in xs.iter().zip(dys).zip(weights) {
        let g = lanes.mul(lanes.load(dy), lanes.load(w));
        sum = lanes.add(sum, g);
        dot = lanes.mul_then_add(g, normal(lanes, lanes.load(x), by), dot);
    }
    let last_g = lanes.mul(lanes.load_tail(dy_tail), lanes.load_tail(weight_tail));
    let last_normal = normal(lanes, lanes.load_tail(x_tail), by);
    sum = lanes.add(sum, last_g);
    dot = lanes.mul_then_add(last_g, last_normal, dot);
    let mean_g = match kind {
        NormKind::Layer => lanes.sum(sum) / width,
        NormKind::Rms => 0.0,
    };
    let means = (lanes.splat(mean_g), lanes.splat(lanes.sum(dot) / width));

    for (((x, dy), w), dx) in xs.iter().zip(dys).zip(weights).zip(dxs) {
        let g = lanes.mul(lanes.load(dy), lanes.load(w));
        let straight = straighten(lanes, g, normal(lanes, lanes.load(x), by), means);
        lanes.store(lanes.mul_then_add(straight, by.1, lanes.load(dx)), dx);
    }
    let straight = straighten(lanes, last_g, last_normal, means);
    lanes.store_tail(
        lanes.mul_then_add(straight, by.1, lanes.load_tail(dx_tail)),
        dx_tail,
    );
}

/// x̂ = (x − mean) · rstd.
#[inline(always)]
fn normal<L: Lanes>(lanes: L, x: L::F, (mean, rstd): (L::F, L::F)) -> L::F {
    lanes.mul(lanes.sub(x, mean), rstd)
}

/// g − mean(g) − x̂ · mean(g x̂).
#[inline(always)]
fn straighten<L: Lanes>(lanes: L, g: L::F, normal: L::F, (sum, dot): (L::F, L::F)) -> L::F {
    lanes.sub(lanes.sub(g, sum), lanes.mul(normal, dot))
}

/// What the gradient of the weight sums over.
#[derive(Clone, Copy)]
struct Rows<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    width: usize,
}

/// dweight += Σ dy · x̂ for the columns from `first` on.
#[inline(always)]
fn sum_weight<L: Lanes>(lanes: L, rows: Rows<'_>, first: usize, dweight: &mut [f32]) {
    let n = rows.mean.len();
    for block in (0..n).step_by(BLOCK_ROWS) {
        let mut sum = [0.0; CHUNK_COLUMNS];
        let sum = &mut sum[..dweight.len()];
        for row in block..(block + BLOCK_ROWS).min(n) {
            let part = row * rows.width + first..row * rows.width + first + sum.len();
            let by = (lanes.splat(rows.mean[row]), lanes.splat(rows.rstd[row]));
            let (xs, x_tail) = rows.x[part.clone()].as_chunks::<LANES>();
            let (dys, dy_tail) = rows.dy[part].as_chunks::<LANES>();
            let (sums, sum_tail) = sum.as_chunks_mut::<LANES>();
            for ((x, dy), sum) in xs.iter().zip(dys).zip(sums) {
                let normal = normal(lanes, lanes.load(x), by);
                lanes.store(
                    lanes.mul_then_add(lanes.load(dy), normal, lanes.load(sum)),
                    sum,
                );
            }
            if !sum_tail.is_empty() {
                let normal = normal(lanes, lanes.load_tail(x_tail), by);
                let dy = lanes.load_tail(dy_tail);
                let total = lanes.mul_then_add(dy, normal, lanes.load_tail(sum_tail));
                lanes.store_tail(total, sum_tail);
            }
        }
        add_chunk(lanes, sum, dweight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{
        assert_close, assert_close_at, differences, noise, on_one_and_two_threads,
    };

    const EPS: f32 = 1e-5;
    const SHAPES: [(usize, usize); 6] = [(1, 1), (2, 15), (3, 16), (5, 33), (70, 128), (130, 65)];

    const KINDS: [NormKind; 2] = [NormKind::Layer, NormKind::Rms];

    fn oracle(kind: NormKind, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let width = weight.len() as f64;
        let mut y = Vec::new();
        for row in x.chunks_exact(weight.len()) {
            let mean = match kind {
                NormKind::Layer => row.iter().sum::<f64>() / width,
                NormKind::Rms => 0.0,
            };
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width;
            let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
            let columns = row.iter().zip(weight.iter().zip(bias));
            y.extend(columns.map(|(x, (w, b))| (x - mean) * rstd * w + b));
        }
        y
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    struct Case {
        kind: NormKind,
        width: usize,
        x: Vec<f32>,
        dy: Vec<f32>,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    }

    #[derive(Debug, PartialEq)]
    struct Outcome {
        y: Vec<f32>,
        mean: Vec<f32>,
        rstd: Vec<f32>,
        dx: Vec<f32>,
        dweight: Vec<f32>,
        dbias: Option<Vec<f32>>,
    }

    impl Case {
        fn new(kind: NormKind, n: usize, width: usize, bias: bool) -> Self {
            Case {
                kind,
                width,
                x: noise(n * width, 1).iter().map(|x| 3.0 * x + 0.7).collect(),
                dy: noise(n * width, 2),
                weight: noise(width, 3),
                bias: bias.then(|| noise(width, 4)),
            }
        }

        /// Gradients start from 0.25.
        fn run(&self, isa: Isa) -> Outcome {
            let n = self.x.len() / self.width;
            let mut out = Outcome {
                y: vec![9.0; n * self.width],
                mean: vec![9.0; n],
                rstd: vec![9.0; n],
                dx: vec![0.25; n * self.width],
                dweight: vec![0.25; self.width],
                dbias: self.bias.as_ref().map(|bias| vec![0.25; bias.len()]),
            };
            let bias = self.bias.as_deref();
            norm(
                isa,
                self.kind,
                &self.x,
                &self.weight,
                bias,
                EPS,
                self.width,
                &mut out.y,
                &mut out.mean,
                &mut out.rstd,
            );
            norm_backward(
                isa,
                self.kind,
                &self.dy,
                &self.x,
                &self.weight,
                &out.mean,
                &out.rstd,
                self.width,
                &mut out.dx,
                &mut out.dweight,
                out.dbias.as_deref_mut(),
            );
            out
        }
    }

    #[test]
    fn equals_the_formula_and_finite_differences() {
        for (n, width) in SHAPES {
            for (kind, has_bias) in KINDS
                .into_iter()
                .flat_map(|kind| [(kind, false), (kind, true)])
            {
                let case = Case::new(kind, n, width, has_bias);
                let what = format!("{kind:?} ({n}, {width}), bias {has_bias}");
                let oracle = |x: &[f64], w: &[f64], b: &[f64]| oracle(kind, x, w, b);
                let got = case.run(Isa::best());
                let (x, weight) = (wide(&case.x), wide(&case.weight));
                let bias = case.bias.as_deref().map_or(vec![0.0; width], wide);
                assert_close(&got.y, &oracle(&x, &weight, &bias), 1e-5, &what);

                let loss = |y: Vec<f64>| -> f64 {
                    y.iter()
                        .zip(&case.dy)
                        .map(|(y, &dy)| y * f64::from(dy))
                        .sum()
                };
                let plus = |mut slopes: Vec<(usize, f64)>| {
                    slopes.iter_mut().for_each(|(_, slope)| *slope += 0.25);
                    slopes
                };
                let step = 1 + n * width / 50;
                let dx = plus(differences(&case.x, step, |x| {
                    loss(oracle(x, &weight, &bias))
                }));
                assert_close_at(&got.dx, &dx, 1e-4, &what);
                let dw = plus(differences(&case.weight, 1, |w| loss(oracle(&x, w, &bias))));
                assert_close_at(&got.dweight, &dw, 1e-5, &what);
                if let Some(dbias) = &got.dbias {
                    let b = case.bias.as_deref().unwrap();
                    let want = plus(differences(b, 1, |b| loss(oracle(&x, &weight, b))));
                    assert_close_at(dbias, &want, 1e-5, &what);
                }
            }
        }
    }

    #[test]
    fn tiers_and_threads_give_equal_bits() {
        for (kind, (n, width)) in KINDS
            .into_iter()
            .flat_map(|kind| SHAPES.map(|size| (kind, size)))
        {
            let case = Case::new(kind, n, width, true);
            let want = case.run(Isa::best());
            for isa in Isa::available() {
                let got = on_one_and_two_threads(|| case.run(isa));
                assert!(
                    got.iter().all(|got| *got == want),
                    "{} {kind:?} at ({n}, {width})",
                    isa.name()
                );
            }
        }
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours() {
        let (n, width) = (130, 65);
        let whole = Case::new(NormKind::Rms, n, width, true);
        let want = whole.run(Isa::best());
        for rows in [0..50, 50..n] {
            let part = rows.start * width..rows.end * width;
            let case = Case {
                kind: whole.kind,
                x: whole.x[part.clone()].to_vec(),
                dy: whole.dy[part.clone()].to_vec(),
                weight: whole.weight.clone(),
                bias: whole.bias.clone(),
                width,
            };
            let got = case.run(Isa::best());
            assert_eq!(got.y, want.y[part.clone()]);
            assert_eq!(got.dx, want.dx[part]);
        }
    }

    #[test]
    fn a_bad_number_stays_visible() {
        let mut case = Case::new(NormKind::Layer, 2, 20, false);
        case.x[3] = f32::NAN;
        let got = case.run(Isa::best());
        assert!(got.y[..20].iter().all(|y| y.is_nan()));
        assert!(got.y[20..].iter().all(|y| y.is_finite()));
    }
}
