//! The scale that suits given weights best.

use crate::grid::Grid;

/// Candidates: from four times to 1/32 of the scale that maps the largest weight to the largest
/// value, in eighths of an octave. Gaussian weights end near that scale, a lone outlier below it.
const CANDIDATES: usize = 57;
const FIRST_OCTAVE: f32 = 2.0;
const STEPS_PER_OCTAVE: f32 = 8.0;

/// The scale that minimises Σ (w − scale · grid\[nearest(w / scale)\])² over a scan of candidates,
/// the best of which is improved to the least-squares scale of its codes. Weights: a row or a
/// group.
///
/// Weights that are not finite are left out; 1.0 if no weight is left that is not zero.
pub fn fit_scale(grid: &Grid, weights: &[f32]) -> f32 {
    fit(grid, weights, |_| 1.0)
}

/// [`fit_scale`] where the squared error of weight i counts `importance[i]` times.
///
/// # Panics
/// If the lengths differ.
pub fn fit_scale_weighted(grid: &Grid, weights: &[f32], importance: &[f32]) -> f32 {
    assert_eq!(weights.len(), importance.len(), "one importance a weight");
    fit(grid, weights, |index| importance[index])
}

fn fit(grid: &Grid, weights: &[f32], importance: impl Fn(usize) -> f32 + Copy) -> f32 {
    let top = grid.values()[grid.len() - 1];
    // The grid is symmetric: sizes are enough.
    let sizes = || weights.iter().map(|weight| weight.abs());
    let largest = sizes().filter(|size| size.is_finite()).fold(0.0, f32::max);
    let widest = largest / top;
    // What underflows has no scale that is told from zero.
    if widest < f32::MIN_POSITIVE {
        return 1.0;
    }
    let steps = Steps::new(grid);
    let known = || {
        let all = sizes().enumerate();
        let finite = all.filter(|(_, size)| size.is_finite());
        finite.map(|(index, size)| (size, importance(index)))
    };
    let scanned = steps.scan(known(), widest);
    // Weights that are on the grid already find their scale exactly.
    let positive = &grid.values()[grid.len() / 2 + 1..];
    let exact = positive.iter().map(|value| widest * (top / value));
    exact
        .chain(scanned)
        .map(|candidate| steps.fit(known(), candidate))
        .filter(|fit| fit.scale.is_finite() && fit.scale > 0.0)
        .max_by(|a, b| a.explained.total_cmp(&b.explained))
        .map_or(1.0, |fit| fit.scale)
}

/// Least squares with the codes that one candidate scale gives. Products are weighted by the
/// importance.
struct Fit {
    /// (w·g) / (g·g); not finite where every code is zero.
    scale: f32,
    /// (w·g)² / (g·g), what the fit takes from Σ w²: the squared error is the rest.
    explained: f64,
}

impl Fit {
    fn new(dot: f64, value_sq: f64) -> Fit {
        Fit {
            scale: (dot / value_sq) as f32,
            explained: dot * dot / value_sq,
        }
    }
}

/// The positive half of a grid as steps: the value nearest to a size is the sum of the gaps whose
/// midpoints lie below it.
struct Steps {
    steps: Vec<Step>,
}

struct Step {
    midpoint: f32,
    gap: f32,
    /// By how much the square of the value grows.
    square: f32,
    /// log2 of the midpoint, in steps of the scan.
    place: f32,
}

impl Steps {
    fn new(grid: &Grid) -> Steps {
        let half = &grid.values()[grid.len() / 2..];
        let step = |pair: &[f32]| {
            let midpoint = pair[0] + (pair[1] - pair[0]) / 2.0;
            Step {
                midpoint,
                gap: pair[1] - pair[0],
                square: pair[1] * pair[1] - pair[0] * pair[0],
                place: STEPS_PER_OCTAVE * midpoint.log2(),
            }
        };
        Steps {
            steps: half.windows(2).map(step).collect(),
        }
    }

    /// The best candidate of the scan. As the candidates fall, a size passes one midpoint after
    /// the other; what that adds to the sums is entered where it happens, and running sums over
    /// the candidates are then those of [`Steps::fit`], but for rounding at the borders.
    fn scan(&self, known: impl Iterator<Item = (f32, f32)>, widest: f32) -> Option<f32> {
        let (mut dots, mut squares) = ([0.0f64; CANDIDATES], [0.0f64; CANDIDATES]);
        let origin = STEPS_PER_OCTAVE * (FIRST_OCTAVE + widest.log2()) + 1.0;
        for (size, importance) in known {
            let from = origin - STEPS_PER_OCTAVE * size.log2();
            for step in &self.steps {
                // Saturates: below zero is passed by all, a size of zero passes nothing.
                let Some(index) = Some((from + step.place) as usize).filter(|&i| i < CANDIDATES)
                else {
                    break;
                };
                dots[index] += f64::from(importance * size * step.gap);
                squares[index] += f64::from(importance * step.square);
            }
        }
        let (mut dot, mut value_sq) = (0.0, 0.0);
        let running = dots.iter().zip(&squares).map(|(more, square)| {
            (dot, value_sq) = (dot + more, value_sq + square);
            Fit::new(dot, value_sq).explained
        });
        let best = running
            .enumerate()
            .filter(|(_, explained)| explained.is_finite())
            .max_by(|a, b| a.1.total_cmp(&b.1));
        best.map(|(step, _)| widest * (FIRST_OCTAVE - step as f32 / STEPS_PER_OCTAVE).exp2())
    }

    fn fit(&self, known: impl Iterator<Item = (f32, f32)>, candidate: f32) -> Fit {
        let inverse = 1.0 / candidate;
        let (mut dot, mut value_sq) = (0.0, 0.0);
        for (size, importance) in known {
            let scaled = size * inverse;
            let gap = |step: &Step| {
                if scaled > step.midpoint {
                    step.gap
                } else {
                    0.0
                }
            };
            let value: f32 = self.steps.iter().map(gap).sum();
            let weighted = f64::from(importance * value);
            dot += f64::from(size) * weighted;
            value_sq += f64::from(value) * weighted;
        }
        Fit::new(dot, value_sq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Box–Muller over SplitMix64: fixed Gaussian weights without a dependency.
    fn gaussian(n: usize, std: f64) -> Vec<f32> {
        let mut state = 13u64;
        let mut uniform = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
        };
        let sample = |_| {
            let radius = (-2.0 * (1.0 - uniform()).ln()).sqrt();
            (std * radius * (std::f64::consts::TAU * uniform()).cos()) as f32
        };
        (0..n).map(sample).collect()
    }

    fn error(grid: &Grid, weights: &[f32], scale: f32) -> f64 {
        let value = |weight: f32| scale * grid.table()[usize::from(grid.nearest(weight / scale))];
        weights
            .iter()
            .map(|&weight| f64::from(weight - value(weight)).powi(2))
            .sum()
    }

    fn snr_db(grid: &Grid, weights: &[f32]) -> (f32, f64) {
        let scale = fit_scale(grid, weights);
        let signal: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
        (scale, 10.0 * (signal / error(grid, weights, scale)).log10())
    }

    #[test]
    fn gaussian_weights_reach_the_known_signal_to_noise() {
        let weights = gaussian(100_000, 1.0);
        let measured = [Grid::prime(), Grid::fine(), Grid::normal(), Grid::linear()].map(|grid| {
            let (scale, snr) = snr_db(&grid, &weights);
            println!("{}: scale {scale:.3} std, {snr:.2} dB", grid.id());
            snr
        });
        let [prime, fine, normal, linear] = measured;
        assert!((prime - 16.9).abs() < 0.15, "prime15 reaches {prime:.2} dB");
        assert!(
            fine > prime && normal > linear && linear > prime,
            "{measured:?}"
        );
    }

    #[test]
    fn the_scan_is_close_to_a_dense_one() {
        for grid in [Grid::prime(), Grid::fine(), Grid::normal(), Grid::linear()] {
            for n in [1, 2, 3, 16, 32, 128, 1000] {
                let weights = gaussian(n, 0.05);
                let found = error(&grid, &weights, fit_scale(&grid, &weights));
                let signal: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
                let dense = (1..3000)
                    .map(|step| error(&grid, &weights, step as f32 * 1e-4))
                    .fold(f64::INFINITY, f64::min);
                let (id, excess) = (grid.id(), (found - dense) / signal);
                assert!(excess < 4e-3, "{id}, {n} weights: {excess} of the signal");
            }
        }
    }

    #[test]
    fn weights_that_are_not_finite_take_no_part() {
        let mut weights = gaussian(100, 1.0);
        let clean = fit_scale(&Grid::prime(), &weights);
        weights.extend([f32::NAN, f32::INFINITY]);
        assert_eq!(fit_scale(&Grid::prime(), &weights), clean);
    }

    #[test]
    fn important_weights_pull_the_scale() {
        let grid = Grid::prime();
        let weights = gaussian(64, 1.0);
        let equal = [4.0; 64];
        assert_eq!(
            fit_scale_weighted(&grid, &weights, &equal),
            fit_scale(&grid, &weights)
        );
        // Only the first eight count: no other scale does better on them.
        let mut importance = [0.0; 64];
        importance[..8].fill(1.0);
        let of_eight = |scale| error(&grid, &weights[..8], scale);
        let weighted = of_eight(fit_scale_weighted(&grid, &weights, &importance));
        assert!(weighted <= of_eight(fit_scale(&grid, &weights)));
    }

    #[test]
    fn nothing_to_fit_gives_one() {
        for weights in [vec![], vec![0.0; 5], vec![f32::NAN, f32::INFINITY, -0.0]] {
            assert_eq!(fit_scale(&Grid::prime(), &weights), 1.0);
        }
    }

    proptest! {
        #[test]
        fn any_weights_give_a_positive_finite_scale(
            bits in prop::collection::vec(any::<u32>(), 0..20)
        ) {
            let weights: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            for grid in [Grid::prime(), Grid::fine()] {
                let scale = fit_scale(&grid, &weights);
                prop_assert!(scale.is_finite() && scale > 0.0, "{}", scale);
            }
        }

        #[test]
        fn weights_on_the_grid_are_fitted_exactly(
            codes in prop::collection::vec(0u8..15, 1..40),
            scale in 1e-6f32..1e6,
        ) {
            let grid = Grid::prime();
            // With a unit anchor the intended scale is one of the candidates; another one may
            // fit as well.
            let codes = codes.into_iter().chain([14]);
            let weights: Vec<f32> =
                codes.map(|code| scale * grid.table()[usize::from(code)]).collect();
            let found = error(&grid, &weights, fit_scale(&grid, &weights));
            let signal: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
            prop_assert!(found < 1e-12 * signal, "{} of {}", found, signal);
        }
    }
}
