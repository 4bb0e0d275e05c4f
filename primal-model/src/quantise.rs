//! From float matrices to the grid: nearest values, or rounding that makes up for its errors.
//!
//! Both minimise the error of the *output*, Σ over calibration inputs x of |(W − Q) x|², as far as
//! they know the inputs. That error is tr((W − Q) H (W − Q)ᵀ) with H = Σ x xᵀ.
//!
//! **Nearest** takes the diagonal of H: each scale minimises the squared error weighted by the
//! second moment of each input, and each weight goes to its nearest value. Without calibration
//! every input counts the same.
//!
//! **Compensated** takes all of H, in three steps.
//! 1. The matrices before this one are rounded already, so what enters it is not x but x'. The
//!    matrix that does best on x' is not W but W + (Σ (y − W x') x'ᵀ) H⁻¹, with H of x' and y what
//!    the float model has at this place: errors of earlier matrices are made up for, too.
//! 2. Column after column (Frantar et al. 2022; in the form of Chee et al. 2023, whose theorem 6
//!    shows it equal). With H = R Rᵀ, R upper triangular, the error is Σ_j R_jj² · (sum of squares
//!    of column j of (W − Q) R / R_jj). Weight j is first moved by the part of the earlier errors
//!    that input j can make up for, Σ_{k<j} (w_k − q_k) · R_kj / R_jj, and then rounded: no more
//!    than its own rounding error is left.
//! 3. Some rounds of descent from there: each weight in turn takes the value that is best as all
//!    others stand, and each scale the least-squares one. No round makes the error larger.

use primal_kernels::{Isa, add_scaled, dot, matmul_nn, matmul_nt};
use primal_lut::{Code, Grid, QuantMatrix, fit_scale, fit_scale_weighted};
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;

use crate::error::ModelError;

/// Each input's second moment grows by this fraction of itself and of the mean: correlations of
/// few tokens are not believed, and inputs that hardly occur not followed.
const DAMPING: f64 = 0.2;
const MEAN_DAMPING: f64 = 0.01;

/// Multiples of the best-fitting scale that compensated rounding tries for each row; what suits
/// rounding to the nearest is often not what suits compensation.
const SCALE_FACTORS: [f32; 5] = [1.0, 0.85, 0.92, 1.08, 1.16];

/// Rounds of descent.
const ROUNDS: usize = 3;

/// A scale that would change by a smaller fraction stays.
const LEAST_SCALE_CHANGE: f32 = 1e-3;

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

/// Σ a bᵀ over calibration tokens.
#[derive(Clone, Debug)]
pub struct Products {
    /// (rows, cols) f32, row-major.
    sum: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl Products {
    /// Nothing summed yet, for a of `rows` and b of `cols` elements.
    pub fn new(rows: usize, cols: usize) -> Products {
        Products {
            sum: vec![0.0; rows * cols],
            rows,
            cols,
        }
    }

    /// Adds `a` (tokens, rows) and `b` (tokens, cols). Rows of the sum are tiles of the work, so
    /// that it has one order.
    pub fn add(&mut self, a: &[f32], b: &[f32]) {
        const TILE: usize = 64;
        let (m, n) = (self.rows, self.cols);
        let tokens = a.len() / m;
        let tiles = self.sum.par_chunks_mut(TILE * n).enumerate();
        tiles.for_each(|(tile, sum)| {
            let rows = tile * TILE..tile * TILE + sum.len() / n;
            primal_kernels::matmul_tn_tile(a, b, tokens, m, n, rows, sum, true);
        });
    }

    fn diagonal(&self) -> Vec<f32> {
        self.sum.iter().step_by(self.cols + 1).copied().collect()
    }
}

/// H = R Rᵀ, taken apart for rounding column after column.
#[derive(Clone, Debug)]
pub struct Factors {
    /// (n, n) f32, damped.
    h: Vec<f32>,
    /// (n, n) f32: row j holds R_kj / R_jj for k < j; the rest is unused.
    feedback: Vec<f32>,
    /// (n) R_jj²: how much an error that is left in column j costs.
    cost: Vec<f32>,
    n: usize,
}

impl Factors {
    /// The factors of H = Σ x xᵀ.
    ///
    /// # Errors
    /// [`ModelError::Quantise`] when H is not finite.
    pub fn new(moments: Products) -> Result<Factors, ModelError> {
        let n = moments.cols;
        let diagonal = moments.diagonal();
        let mean = diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / n as f64;
        if !mean.is_finite() {
            return Err(ModelError::Quantise(
                "the calibration inputs are not finite".into(),
            ));
        }
        // Inputs that are all zero: any rounding will do.
        let floor = if mean > 0.0 { MEAN_DAMPING * mean } else { 1.0 };
        let mut h = moments.sum;
        for (j, diagonal) in diagonal.iter().enumerate() {
            h[j * n + j] += (DAMPING * f64::from(*diagonal) + floor) as f32;
        }
        let mut r: Vec<f64> = h.iter().map(|&h| f64::from(h)).collect();
        // Cholesky from the last column backwards, in place: the columns behind j are done.
        for j in (0..n).rev() {
            let (above, rest) = r.split_at_mut(j * n);
            let row_j = &mut rest[..n];
            let tail: f64 = row_j[j + 1..].iter().map(|r| r * r).sum();
            // The damping keeps this above zero but for rounding.
            let pivot = (row_j[j] - tail).max(1e-9 * floor).sqrt();
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
        Ok(Factors {
            h,
            feedback,
            cost,
            n,
        })
    }

    /// Replaces each row t of `rows` (any number, n) by t H⁻¹.
    fn solve(&self, isa: Isa, rows: &mut [f32]) {
        let n = self.n;
        // t = z R Rᵀ: first t R⁻ᵀ, from the last column on, then that times R⁻¹.
        rows.par_chunks_mut(n).for_each(|row| {
            for j in (0..n).rev() {
                let (before, rest) = row.split_at_mut(j);
                add_scaled(isa, -rest[0], &self.feedback[j * n..][..j], before);
                rest[0] /= self.cost[j].sqrt();
            }
            for j in 0..n {
                let (before, rest) = row.split_at_mut(j);
                let feedback = &self.feedback[j * n..][..j];
                rest[0] = rest[0] / self.cost[j].sqrt() - dot(isa, before, feedback);
            }
        });
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
    Moments(&'a Products),
    /// For compensated rounding.
    Compensate(&'a Compensation),
}

/// What compensated rounding of a matrix works with. x are the inputs that the matrix will see,
/// those of a model that is rounded up to here.
#[derive(Clone, Debug)]
pub struct Compensation {
    /// Of H = Σ x xᵀ.
    pub factors: Factors,
    /// (n, n) Σ d xᵀ, d what the float model's inputs have more than x.
    pub inputs: Option<Products>,
    /// (rows, n) Σ d xᵀ, d what the float model's sum, to which the matrix adds, has more.
    pub outputs: Option<Products>,
}

impl Compensation {
    /// The float matrix that does best in the place of `weights` (rows, n).
    fn target(&self, isa: Isa, weights: &[f32]) -> Vec<f32> {
        let n = self.factors.n;
        let rows = weights.len() / n;
        let mut shift = match &self.outputs {
            Some(outputs) => outputs.sum.clone(),
            None => vec![0.0; weights.len()],
        };
        if let Some(inputs) = &self.inputs {
            matmul_nn(weights, &inputs.sum, &mut shift, rows, n, n, rows, true);
        }
        self.factors.solve(isa, &mut shift);
        primal_kernels::add(isa, weights, &mut shift);
        shift
    }
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
    let mut output_snr_db = None;
    match inputs {
        Inputs::Compensate(compensation) => {
            let target = compensation.target(isa, weights);
            let factors = &compensation.factors;
            values.copy_from_slice(&target);
            let (all, lost) =
                compensate(isa, grid, group, factors, &target, &mut values, &mut scales);
            output_snr_db = Some(decibels(all, lost));
        }
        _ => {
            let importance = match inputs {
                Inputs::Moments(moments) => Some(moments.diagonal()),
                _ => None,
            };
            let work = scales.par_chunks_mut(groups).zip(weights.par_chunks(cols));
            work.for_each(|(scales, weights)| {
                for (index, (weights, scale)) in weights.chunks(group).zip(scales).enumerate() {
                    *scale = match &importance {
                        None => fit_scale(grid, weights),
                        Some(all) => {
                            let part = &all[index * group..][..weights.len()];
                            fit_scale_weighted(grid, weights, part)
                        }
                    };
                }
            });
        }
    }
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
    let report = TensorReport {
        name: name.to_owned(),
        shape: [rows, cols],
        grid: grid.id().to_owned(),
        group,
        rounding: match inputs {
            Inputs::Compensate(_) => Rounding::Compensated,
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

/// Rounds `target` (rows, n): writes the scales and the values that its weights are rounded to.
/// Returns Σ t H tᵀ over the rows, and the same of what is lost.
fn compensate(
    isa: Isa,
    grid: &Grid,
    group: usize,
    factors: &Factors,
    target: &[f32],
    values: &mut [f32],
    scales: &mut [f32],
) -> (f64, f64) {
    let n = factors.n;
    let rows = target.len() / n;
    let groups = scales.len() / rows;
    let work = scales.par_chunks_mut(groups).zip(values.par_chunks_mut(n));
    work.for_each(|(scales, values)| round_columns(isa, grid, group, factors, values, scales));

    // What is lost, and that times H.
    let mut lost = target.to_vec();
    add_scaled(isa, -1.0, values, &mut lost);
    let mut slope = vec![0.0; rows * n];
    matmul_nt(&lost, &factors.h, &mut slope, rows, n, n, rows, false);
    let work = scales
        .par_chunks_mut(groups)
        .zip(values.par_chunks_mut(n))
        .zip(lost.par_chunks_mut(n).zip(slope.par_chunks_mut(n)));
    let lost = work
        .map(|((scales, values), (lost, slope))| {
            let mut row = Row {
                values,
                lost,
                slope,
            };
            for _ in 0..ROUNDS {
                for (index, scale) in scales.iter_mut().enumerate() {
                    let columns = index * group..((index + 1) * group).min(n);
                    row.improve_codes(isa, grid, factors, columns.clone(), *scale);
                    row.improve_scale(isa, factors, columns, scale);
                }
            }
            product(row.lost, row.slope)
        })
        .collect::<Vec<f64>>();
    matmul_nt(target, &factors.h, &mut slope, rows, n, n, rows, false);
    (product(target, &slope), lost.iter().sum())
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

/// A row on its way to a smaller error.
struct Row<'a> {
    values: &'a mut [f32],
    /// Target less values.
    lost: &'a mut [f32],
    /// `lost` · H: minus half the slope of the error.
    slope: &'a mut [f32],
}

impl Row<'_> {
    fn change(&mut self, isa: Isa, factors: &Factors, j: usize, by: f32) {
        self.values[j] += by;
        self.lost[j] -= by;
        add_scaled(
            isa,
            -by,
            &factors.h[j * factors.n..][..factors.n],
            self.slope,
        );
    }

    /// Gives each of the columns the value that is best as the others stand.
    fn improve_codes(
        &mut self,
        isa: Isa,
        grid: &Grid,
        factors: &Factors,
        columns: Range<usize>,
        scale: f32,
    ) {
        for j in columns {
            let best = self.values[j] + self.slope[j] / factors.h[j * factors.n + j];
            let value = scale * grid.table()[usize::from(grid.nearest(best / scale))];
            // Another value, not the same one rounded otherwise.
            if (value - self.values[j]).abs() > 1e-4 * scale {
                self.change(isa, factors, j, value - self.values[j]);
            }
        }
    }

    /// Gives the columns their least-squares scale, the codes being what they are.
    fn improve_scale(
        &mut self,
        isa: Isa,
        factors: &Factors,
        columns: Range<usize>,
        scale: &mut f32,
    ) {
        let n = factors.n;
        let values = &self.values[columns.clone()];
        let toward = product(values, &self.slope[columns.clone()]);
        let curvature: f64 = values
            .iter()
            .zip(columns.clone())
            .map(|(&value, j)| {
                let h = &factors.h[j * n..][columns.clone()];
                f64::from(value) * f64::from(dot(isa, h, values))
            })
            .sum();
        let by = (toward / curvature) as f32;
        let wanted = *scale * (1.0 + by);
        if !(by.is_finite() && wanted.is_finite() && wanted > 0.0) || by.abs() < LEAST_SCALE_CHANGE
        {
            return;
        }
        *scale = wanted;
        for j in columns {
            if self.values[j] != 0.0 {
                self.change(isa, factors, j, by * self.values[j]);
            }
        }
    }
}

/// One row: writes its scales and replaces each weight by the value that it is rounded to.
fn round_columns(
    isa: Isa,
    grid: &Grid,
    group: usize,
    factors: &Factors,
    row: &mut [f32],
    scales: &mut [f32],
) {
    if scales.len() > 1 {
        round_columns_once(isa, grid, group, factors, row, scales, None);
        return;
    }
    // One scale for all columns: the row is rounded with a few, and the best one is kept.
    let fitted = fit_scale_weighted(grid, row, &factors.cost);
    let mut best: Option<(f64, f32, Vec<f32>)> = None;
    for factor in SCALE_FACTORS {
        let mut values = row.to_vec();
        let scale = fitted * factor;
        let lost = round_columns_once(isa, grid, group, factors, &mut values, scales, Some(scale));
        if best.as_ref().is_none_or(|(least, ..)| lost < *least) {
            best = Some((lost, scale, values));
        }
    }
    if let Some((_, scale, values)) = best {
        row.copy_from_slice(&values);
        scales[0] = scale;
    }
}

/// The same with the scales that suit the weights as they stand when their group begins, or with
/// the one scale given. Returns the error.
fn round_columns_once(
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
        let feedback = |j: usize| &factors.feedback[j * n..][..j];
        // What the groups before this one ask of it.
        let moved = &mut moved[..columns.len()];
        for (moved, j) in moved.iter_mut().zip(columns.clone()) {
            *moved = row[j] + dot(isa, &errors[..start], &feedback(j)[..start]);
        }
        *scale = given
            .unwrap_or_else(|| fit_scale_weighted(grid, moved, &factors.cost[columns.clone()]));
        for (j, moved) in columns.zip(moved) {
            let wanted = *moved + dot(isa, &errors[start..j], &feedback(j)[start..]);
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

    fn known(x: &[f32], cols: usize) -> (Products, Compensation) {
        let mut moments = Products::new(cols, cols);
        moments.add(x, x);
        let compensation = Compensation {
            factors: Factors::new(moments.clone()).unwrap(),
            inputs: None,
            outputs: None,
        };
        (moments, compensation)
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
        let mut moments = Products::new(n, n);
        for half in [&x[..100 * n], &x[100 * n..]] {
            moments.add(half, half);
        }
        let diagonal = moments.diagonal();
        let factors = Factors::new(moments).unwrap();
        // R R ᵀ = H + damping, row by row.
        let r = |k: usize, j: usize| match k.cmp(&j) {
            std::cmp::Ordering::Greater => 0.0,
            std::cmp::Ordering::Equal => f64::from(factors.cost[j]).sqrt(),
            std::cmp::Ordering::Less => {
                f64::from(factors.feedback[j * n + k]) * f64::from(factors.cost[j]).sqrt()
            }
        };
        let mean = diagonal.iter().sum::<f32>() / n as f32;
        for a in 0..n {
            for b in 0..n {
                let product: f64 = (0..n).map(|j| r(a, j) * r(b, j)).sum();
                let expected: f64 = x.chunks_exact(n).map(|x| f64::from(x[a] * x[b])).sum();
                let damping = match a == b {
                    true => DAMPING * f64::from(diagonal[a]) + MEAN_DAMPING * f64::from(mean),
                    false => 0.0,
                };
                assert!(
                    (product - expected - damping).abs() < 1e-3 * f64::from(mean),
                    "{a} {b}"
                );
            }
        }
    }

    #[test]
    fn the_target_makes_up_for_what_changed_before() {
        // y = W x is wanted, but x + d is what comes, d a mix of x: a matrix that undoes it exists.
        let (n, tokens, rows) = (24, 500, 4);
        let (x, w) = (inputs(tokens, n), weights(rows, n));
        let mut seen = x.clone();
        for (seen, x) in seen.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
            for c in 0..n {
                seen[c] += 0.2 * x[(c + 1) % n];
            }
        }
        let (mut moments, mut shift) = (Products::new(n, n), Products::new(n, n));
        moments.add(&seen, &seen);
        let more: Vec<f32> = x.iter().zip(&seen).map(|(x, seen)| x - seen).collect();
        shift.add(&more, &seen);
        let compensation = Compensation {
            factors: Factors::new(moments).unwrap(),
            inputs: Some(shift),
            outputs: None,
        };
        let error = |matrix: &[f32]| -> f64 {
            let pairs = x.chunks_exact(n).zip(seen.chunks_exact(n));
            let of_token = |(x, seen)| {
                let rows = matrix.chunks_exact(n).zip(w.chunks_exact(n));
                rows.map(|(m, w)| f64::from(dot(scalar(), m, seen) - dot(scalar(), w, x)).powi(2))
                    .sum::<f64>()
            };
            pairs.map(of_token).sum()
        };
        let target = compensation.target(scalar(), &w);
        assert!(
            error(&target) < 0.3 * error(&w),
            "{} {}",
            error(&target),
            error(&w)
        );
    }

    #[test]
    fn knowing_more_of_the_inputs_loses_less() {
        let (rows, cols) = (12, 96);
        let (x, w) = (inputs(400, cols), weights(rows, cols));
        let (moments, compensation) = known(&x, cols);
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
                    error(Inputs::Compensate(&compensation)),
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
        let (_, compensation) = known(&x, cols);
        let isa = scalar();
        let inputs = Inputs::Compensate(&compensation);
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
        // Damping counts inputs that never came, which are lost more than others.
        assert!(
            expected - 4.0 < found && found < expected + 0.5,
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
                let (_, compensation) = known(&x, cols);
                let inputs = Inputs::Compensate(&compensation);
                quantise(scalar(), "w", (rows, cols), &w, &Grid::prime(), 32, inputs)
                    .unwrap()
                    .0
            })
        };
        assert_eq!(run(1), run(3));
    }
}
