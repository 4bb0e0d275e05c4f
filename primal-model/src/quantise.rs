//! From float matrices to the grid: nearest values, or rounding that makes up for its errors.
//!
//! Both minimise the error of the *output*, Σ over calibration inputs x of |(W − Q) x|², as far as
//! they know the inputs. That error is tr((W − Q) H (W − Q)ᵀ) with H = Σ x xᵀ.
//!
//! **Nearest** takes the diagonal of H: each scale minimises the squared error weighted by the
//! second moment of each input, and each weight goes to its nearest value. Without calibration
//! every input counts the same.
//!
//! **Compensated** takes all of H (Frantar et al. 2022; in the form of Chee et al. 2023, whose
//! theorem 6 shows it equal). With H = R Rᵀ, R upper triangular, the error is Σ_j R_jj² · (sum of
//! squares of column j of (W − Q) R / R_jj). Going through the columns in order, weight j is first
//! moved by the part of the earlier errors that input j can make up for, Σ_{k<j} (w_k − q_k) ·
//! R_kj / R_jj, and then rounded: no more than its own rounding error is left.

use primal_kernels::{Isa, dot};
use primal_lut::{Code, Grid, QuantMatrix, fit_scale, fit_scale_weighted};
use rayon::prelude::*;
use serde::Serialize;

use crate::error::ModelError;

/// Added to the diagonal of H, as a fraction of its mean: inputs that hardly occur are not
/// followed. The value of Frantar et al. is 0.01.
const DAMPING: f64 = 0.01;

/// Multiples of the best-fitting scale that compensated rounding tries for each row; what suits
/// rounding to the nearest is often not what suits compensation.
const SCALE_FACTORS: [f32; 5] = [1.0, 0.85, 0.92, 1.08, 1.16];

/// How weights become values of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// Each to its nearest value.
    Nearest,
    /// Each so that it makes up for the errors before it; needs calibration inputs.
    Compensated,
}

/// What became of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// The parameter's name.
    pub name: String,
    /// Its (rows, cols).
    pub shape: [usize; 2],
    /// Grid id, `float32` for a matrix that was kept.
    pub grid: String,
    /// Columns that share a scale.
    pub group: usize,
    /// How it was rounded.
    pub rounding: Rounding,
    /// √(Σ (w − q)² / Σ w²).
    pub relative_error: f64,
    /// Signal to noise, 10 · log10(Σ w² / Σ (w − q)²) dB.
    pub snr_db: f64,
    /// The same of the outputs on the calibration inputs, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_snr_db: Option<f64>,
}

/// The second moments of a matrix's inputs: H = Σ x xᵀ over the calibration tokens.
#[derive(Clone, Debug)]
pub struct InputMoments {
    /// (n, n) f32, row-major.
    h: Vec<f32>,
    n: usize,
}

impl InputMoments {
    /// No inputs of width `n` yet.
    pub fn new(n: usize) -> InputMoments {
        InputMoments {
            h: vec![0.0; n * n],
            n,
        }
    }

    /// Adds inputs (tokens, n). Rows of H are tiles of the work, so the sums have one order.
    pub fn add(&mut self, inputs: &[f32]) {
        const TILE: usize = 64;
        let n = self.n;
        let tokens = inputs.len() / n;
        self.h.par_chunks_mut(TILE * n).enumerate().for_each_init(
            || vec![0.0; TILE * n],
            |sum, (tile, h)| {
                let rows = tile * TILE..tile * TILE + h.len() / n;
                let sum = &mut sum[..h.len()];
                primal_kernels::matmul_tn_tile(inputs, inputs, tokens, n, n, rows, sum, false);
                for (h, sum) in h.iter_mut().zip(sum) {
                    *h += *sum;
                }
            },
        );
    }

    fn diagonal(&self) -> Vec<f32> {
        self.h.iter().step_by(self.n + 1).copied().collect()
    }

    /// The factors that compensated rounding works with.
    ///
    /// # Errors
    /// [`ModelError::Quantise`] when H is not finite.
    pub fn factors(&self) -> Result<Factors, ModelError> {
        Factors::new(self)
    }
}

/// H = R Rᵀ, taken apart for rounding column after column.
#[derive(Clone, Debug)]
pub struct Factors {
    /// (n, n) f32: row j holds R_kj / R_jj for k < j; the rest is unused.
    feedback: Vec<f32>,
    /// (n) R_jj²: how much an error that is left in column j costs.
    cost: Vec<f32>,
    n: usize,
}

impl Factors {
    fn new(moments: &InputMoments) -> Result<Factors, ModelError> {
        let n = moments.n;
        let diagonal = moments.diagonal();
        let mean = diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / n as f64;
        if !mean.is_finite() {
            return Err(ModelError::Quantise(
                "the calibration inputs are not finite".into(),
            ));
        }
        // Inputs that are all zero: any rounding will do.
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        let mut r: Vec<f64> = moments.h.iter().map(|&h| f64::from(h)).collect();
        for j in 0..n {
            r[j * n + j] += damping;
        }
        // Cholesky from the last column backwards, in place: the columns behind j are done.
        for j in (0..n).rev() {
            let (above, rest) = r.split_at_mut(j * n);
            let row_j = &mut rest[..n];
            let tail: f64 = row_j[j + 1..].iter().map(|r| r * r).sum();
            // The damping keeps this above zero but for rounding.
            let pivot = (row_j[j] - tail).max(1e-9 * damping).sqrt();
            row_j[j] = pivot;
            let row_j = &*row_j;
            above.par_chunks_mut(n).with_min_len(32).for_each(|row| {
                let done: f64 = sum_products(&row[j + 1..], &row_j[j + 1..]);
                row[j] = (row[j] - done) / pivot;
            });
        }
        let mut feedback = vec![0.0; n * n];
        feedback.par_chunks_mut(n).enumerate().for_each(|(j, row)| {
            for (k, out) in row[..j].iter_mut().enumerate() {
                *out = (r[k * n + j] / r[j * n + j]) as f32;
            }
        });
        let cost = (0..n).map(|j| r[j * n + j].powi(2) as f32).collect();
        Ok(Factors { feedback, cost, n })
    }
}

/// Σ a·b in eight lanes.
fn sum_products(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (a, a_tail) = a.as_chunks::<8>();
    let (b, b_tail) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let tail: f64 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + tail
}

/// What is known of a matrix's inputs.
#[derive(Clone, Copy, Debug)]
pub enum Inputs<'a> {
    /// Nothing.
    Unknown,
    /// Their second moments, for nearest rounding.
    Moments(&'a InputMoments),
    /// The factors of their second moments, for compensated rounding.
    Factors(&'a Factors),
}

/// Quantises a matrix `weights` (rows, cols), row-major, to `grid` with a scale per `group`
/// columns (0: per row; a group wider than the matrix is a row).
///
/// # Errors
/// [`ModelError::Lut`] for an empty matrix.
pub fn quantise(
    isa: Isa,
    name: &str,
    (rows, cols): (usize, usize),
    weights: &[f32],
    grid: &Grid,
    group: usize,
    inputs: Inputs<'_>,
) -> Result<(QuantMatrix, TensorReport), ModelError> {
    let group = if group == 0 { cols } else { group.min(cols) };
    let groups = cols.div_ceil(group);
    let mut scales = vec![0.0; rows * groups];
    // Weights moved to where they round to the wanted codes by themselves.
    let mut values = weights.to_vec();
    let importance = match inputs {
        Inputs::Moments(moments) => Some(moments.diagonal()),
        _ => None,
    };
    let work = scales
        .par_chunks_mut(groups)
        .zip(values.par_chunks_mut(cols));
    let lost: Vec<f64> = work
        .map(|(scales, values)| match inputs {
            Inputs::Factors(factors) => compensate(isa, grid, group, factors, values, scales),
            _ => {
                let parts = values.chunks(group).zip(scales);
                for (index, (weights, scale)) in parts.enumerate() {
                    *scale = match &importance {
                        None => fit_scale(grid, weights),
                        Some(all) => {
                            let part = &all[index * group..][..weights.len()];
                            fit_scale_weighted(grid, weights, part)
                        }
                    };
                }
                0.0
            }
        })
        .collect();
    let matrix = QuantMatrix::quantise(grid, rows, cols, group, &values, scales)?;
    let (mut signal, mut noise) = (0.0f64, 0.0f64);
    let mut row_values = vec![0.0; cols];
    for (row, weights) in weights.chunks_exact(cols).enumerate() {
        primal_kernels::decode_row(isa, &matrix, row, &mut row_values);
        for (&weight, value) in weights.iter().zip(&row_values) {
            signal += f64::from(weight).powi(2);
            noise += f64::from(weight - value).powi(2);
        }
    }
    let output_snr_db = match inputs {
        Inputs::Factors(factors) => {
            let all: f64 = weights
                .par_chunks_exact(cols)
                .map(|row| factors.energy(row))
                .sum();
            Some(decibels(all, lost.iter().sum()))
        }
        _ => None,
    };
    let report = TensorReport {
        name: name.to_owned(),
        shape: [rows, cols],
        grid: grid.id().to_owned(),
        group,
        rounding: match inputs {
            Inputs::Factors(_) => Rounding::Compensated,
            _ => Rounding::Nearest,
        },
        relative_error: (noise / signal.max(f64::MIN_POSITIVE)).sqrt(),
        snr_db: decibels(signal, noise),
        output_snr_db,
    };
    Ok((matrix, report))
}

fn decibels(signal: f64, noise: f64) -> f64 {
    // A tensor that is all zero, or on the grid already, has no noise: a large finite number.
    10.0 * (signal / noise.max(1e-30 * signal).max(f64::MIN_POSITIVE))
        .max(1e-30)
        .log10()
}

impl Factors {
    /// xᵀ H x of a row.
    fn energy(&self, row: &[f32]) -> f64 {
        let column = |(j, &w): (usize, &f32)| {
            let feedback = &self.feedback[j * self.n..][..j];
            let before: f64 = row[..j]
                .iter()
                .zip(feedback)
                .map(|(w, f)| f64::from(w * f))
                .sum();
            f64::from(self.cost[j]) * (f64::from(w) + before).powi(2)
        };
        row.iter().enumerate().map(column).sum()
    }
}

/// One row: writes its scales, replaces each weight by the value that it is rounded to, and
/// returns the error of the outputs.
fn compensate(
    isa: Isa,
    grid: &Grid,
    group: usize,
    factors: &Factors,
    row: &mut [f32],
    scales: &mut [f32],
) -> f64 {
    if scales.len() > 1 {
        return compensate_once(isa, grid, group, factors, row, scales, None);
    }
    // One scale for all columns: the row is rounded with a few, and the best one is kept.
    let fitted = fit_scale_weighted(grid, row, &factors.cost);
    let mut best: Option<(f64, f32, Vec<f32>)> = None;
    for factor in SCALE_FACTORS {
        let mut values = row.to_vec();
        let scale = fitted * factor;
        let lost = compensate_once(isa, grid, group, factors, &mut values, scales, Some(scale));
        if best.as_ref().is_none_or(|(least, ..)| lost < *least) {
            best = Some((lost, scale, values));
        }
    }
    let Some((lost, scale, values)) = best else {
        return 0.0;
    };
    row.copy_from_slice(&values);
    scales[0] = scale;
    lost
}

/// The same with the scales that suit the weights as they stand when their group begins, or with
/// the one scale given.
fn compensate_once(
    isa: Isa,
    grid: &Grid,
    group: usize,
    factors: &Factors,
    row: &mut [f32],
    scales: &mut [f32],
    given: Option<f32>,
) -> f64 {
    let n = factors.n;
    let mut errors = vec![0.0f32; n];
    let mut moved = vec![0.0f32; group];
    let mut lost = 0.0;
    for (index, scale) in scales.iter_mut().enumerate() {
        let columns = index * group..((index + 1) * group).min(n);
        let start = columns.start;
        *scale = given.unwrap_or_else(|| {
            let moved = &mut moved[..columns.len()];
            for (moved, j) in moved.iter_mut().zip(columns.clone()) {
                *moved = row[j] + dot(isa, &errors[..start], &factors.feedback[j * n..][..start]);
            }
            fit_scale_weighted(grid, moved, &factors.cost[columns.clone()])
        });
        for j in columns {
            let made_up = dot(isa, &errors[..j], &factors.feedback[j * n..][..j]);
            let wanted = row[j] + made_up;
            let code: Code = grid.nearest(wanted / *scale);
            let value = *scale * grid.table()[usize::from(code)];
            errors[j] = row[j] - value;
            lost += f64::from(factors.cost[j]) * f64::from(wanted - value).powi(2);
            row[j] = value;
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar() -> Isa {
        Isa::by_name("scalar").unwrap()
    }

    /// Correlated inputs: (tokens, n), each column a mix of its neighbours.
    fn inputs(tokens: usize, n: usize) -> Vec<f32> {
        let noise = |i: usize| {
            let mut z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((z ^ (z >> 27)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let mut x = vec![0.0; tokens * n];
        for t in 0..tokens {
            let mut state = 0.0;
            for c in 0..n {
                state = 0.8 * state + noise(t * n + c);
                x[t * n + c] = state * (1.0 + (c % 5) as f32);
            }
        }
        x
    }

    fn weights(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols)
            .map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3))
            .collect()
    }

    /// Σ |(W − Q) x|² over the inputs.
    fn output_error(matrix: &QuantMatrix, weights: &[f32], x: &[f32]) -> f64 {
        let cols = matrix.cols();
        let values = matrix.dequantise();
        let rows = values.chunks_exact(cols).zip(weights.chunks_exact(cols));
        let mut sum = 0.0;
        for (q, w) in rows {
            for x in x.chunks_exact(cols) {
                let error: f64 = q
                    .iter()
                    .zip(w)
                    .zip(x)
                    .map(|((q, w), x)| f64::from((w - q) * x))
                    .sum();
                sum += error * error;
            }
        }
        sum
    }

    #[test]
    fn the_factors_are_those_of_the_moments() {
        let n = 37;
        let x = inputs(200, n);
        let mut moments = InputMoments::new(n);
        moments.add(&x[..100 * n]);
        moments.add(&x[100 * n..]);
        let factors = moments.factors().unwrap();
        // R R ᵀ = H + damping, row by row.
        let r = |k: usize, j: usize| match k.cmp(&j) {
            std::cmp::Ordering::Greater => 0.0,
            std::cmp::Ordering::Equal => f64::from(factors.cost[j]).sqrt(),
            std::cmp::Ordering::Less => {
                f64::from(factors.feedback[j * n + k]) * f64::from(factors.cost[j]).sqrt()
            }
        };
        let mean = moments.diagonal().iter().sum::<f32>() / n as f32;
        for a in 0..n {
            for b in 0..n {
                let product: f64 = (0..n).map(|j| r(a, j) * r(b, j)).sum();
                let expected: f64 = x.chunks_exact(n).map(|x| f64::from(x[a] * x[b])).sum();
                let damping = if a == b { 0.01 * f64::from(mean) } else { 0.0 };
                assert!(
                    (product - expected - damping).abs() < 1e-3 * f64::from(mean),
                    "{a} {b}"
                );
            }
        }
    }

    #[test]
    fn knowing_more_of_the_inputs_loses_less() {
        let (rows, cols) = (12, 96);
        let (x, w) = (inputs(400, cols), weights(rows, cols));
        let mut moments = InputMoments::new(cols);
        moments.add(&x);
        let factors = moments.factors().unwrap();
        for grid in [Grid::prime(), Grid::normal(), Grid::linear(), Grid::fine()] {
            for group in [0, 32, 40] {
                let error = |inputs| {
                    let isa = scalar();
                    let found = quantise(isa, "w", (rows, cols), &w, &grid, group, inputs);
                    let (matrix, report) = found.unwrap();
                    assert!(
                        report.snr_db > 10.0 && report.relative_error < 0.3,
                        "{report:?}"
                    );
                    output_error(&matrix, &w, &x)
                };
                let (blind, weighted, compensated) = (
                    error(Inputs::Unknown),
                    error(Inputs::Moments(&moments)),
                    error(Inputs::Factors(&factors)),
                );
                let id = grid.id();
                assert!(
                    compensated < 0.7 * weighted,
                    "{id} {group}: {compensated} {weighted}"
                );
                assert!(weighted < 1.05 * blind, "{id} {group}: {weighted} {blind}");
            }
        }
    }

    #[test]
    fn the_report_says_what_the_outputs_lose() {
        let (rows, cols) = (5, 64);
        let (x, w) = (inputs(300, cols), weights(rows, cols));
        let mut moments = InputMoments::new(cols);
        moments.add(&x);
        let factors = moments.factors().unwrap();
        let isa = scalar();
        let inputs = Inputs::Factors(&factors);
        let grid = Grid::prime();
        let (matrix, report) = quantise(isa, "w", (rows, cols), &w, &grid, 0, inputs).unwrap();
        let signal: f64 = w
            .chunks_exact(cols)
            .flat_map(|w| {
                x.chunks_exact(cols)
                    .map(move |x| f64::from(dot(isa, w, x)).powi(2))
            })
            .sum();
        let expected = 10.0 * (signal / output_error(&matrix, &w, &x)).log10();
        let found = report.output_snr_db.unwrap();
        assert!(
            (found - expected).abs() < 1.0,
            "{found} dB, measured {expected}"
        );
    }

    #[test]
    fn matrices_on_the_grid_stay_as_they_are() {
        let grid = Grid::prime();
        let codes: Vec<f32> = (0..64).map(|i| grid.table()[i * 5 % 15] * 0.3).collect();
        let (matrix, report) =
            quantise(scalar(), "w", (1, 64), &codes, &grid, 32, Inputs::Unknown).unwrap();
        assert!(report.snr_db > 100.0, "{report:?}");
        assert_eq!(matrix.group(), 32);
        let zero = vec![0.0; 64];
        let (matrix, _) =
            quantise(scalar(), "w", (2, 32), &zero, &grid, 0, Inputs::Unknown).unwrap();
        assert_eq!(matrix.dequantise(), zero);
        assert!(quantise(scalar(), "w", (0, 3), &[], &grid, 0, Inputs::Unknown).is_err());
    }

    #[test]
    fn threads_change_nothing() {
        let (rows, cols) = (40, 128);
        let (x, w) = (inputs(300, cols), weights(rows, cols));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut moments = InputMoments::new(cols);
                moments.add(&x);
                let factors = moments.factors().unwrap();
                let inputs = Inputs::Factors(&factors);
                quantise(scalar(), "w", (rows, cols), &w, &Grid::prime(), 32, inputs)
                    .unwrap()
                    .0
            })
        };
        assert_eq!(run(1), run(3));
    }
}
