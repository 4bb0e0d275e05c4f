//! The scale that suits given weights best.

use crate::grid::Grid;

/// Candidates: from four times to 1/32 of the scale that maps the largest weight to the largest
/// value, in eighths of an octave. Gaussian weights end near that scale, a lone outlier below it.
const STEPS: std::ops::RangeInclusive<i32> = -16..=40;
const STEPS_PER_OCTAVE: f32 = 8.0;

/// The scale that minimises Σ (w − scale · grid\[nearest(w / scale)\])² over a scan of candidates,
/// each of them improved to the least-squares scale of its codes. Weights: a row or a group.
///
/// Weights that are not finite are left out; 1.0 if no weight is left that is not zero.
pub fn fit_scale(grid: &Grid, weights: &[f32]) -> f32 {
    let sizes = weights
        .iter()
        .map(|weight| weight.abs())
        .filter(|size| size.is_finite());
    let widest = sizes.fold(0.0, f32::max) / grid.values()[grid.len() - 1];
    STEPS
        .map(|step| {
            Fit::new(
                grid,
                weights,
                widest * (-step as f32 / STEPS_PER_OCTAVE).exp2(),
            )
        })
        .filter(|fit| fit.scale.is_finite() && fit.scale > 0.0)
        .max_by(|a, b| a.explained.total_cmp(&b.explained))
        .map_or(1.0, |fit| fit.scale)
}

/// Least squares with the codes that one candidate scale gives.
struct Fit {
    /// (w·g) / (g·g); not finite where every code is zero.
    scale: f32,
    /// (w·g)² / (g·g), what the fit takes from Σ w²: the squared error is the rest.
    explained: f64,
}

impl Fit {
    fn new(grid: &Grid, weights: &[f32], candidate: f32) -> Fit {
        let (mut dot, mut value_sq) = (0.0, 0.0);
        for &weight in weights.iter().filter(|weight| weight.is_finite()) {
            let code = grid.nearest(weight / candidate);
            let value = f64::from(grid.table()[usize::from(code)]);
            dot += f64::from(weight) * value;
            value_sq += value * value;
        }
        Fit {
            scale: (dot / value_sq) as f32,
            explained: dot * dot / value_sq,
        }
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
