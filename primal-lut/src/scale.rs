//! The scale that suits given weights best.

use crate::grid::Grid;

/// Coarse scan: from twice to 1/32 of the scale that maps the largest weight to the largest
/// value, in quarter octaves. Gaussian weights end near 2/3 of it, a lone outlier further down.
const COARSE: std::ops::RangeInclusive<i32> = -4..=20;
const COARSE_STEPS_PER_OCTAVE: f32 = 4.0;
/// Fine scan on both sides of the best coarse scale, an eighth of a coarse step each.
const FINE: std::ops::RangeInclusive<i32> = -7..=7;
const FINE_STEPS_PER_OCTAVE: f32 = 32.0;

/// The scale that minimises Σ (w − scale · grid\[nearest(w / scale)\])² over a scan of candidates,
/// then the least-squares scale of the codes found. Weights of any length: a row or a group.
///
/// Weights that are not finite are left out; 1.0 if no weight is left that is not zero.
pub fn fit_scale(grid: &Grid, weights: &[f32]) -> f32 {
    let sizes = weights
        .iter()
        .map(|weight| weight.abs())
        .filter(|size| size.is_finite());
    let largest_value = grid.values()[grid.len() - 1];
    let widest = sizes.fold(0.0, f32::max) / largest_value;
    if !(widest.is_normal() && (widest * 2.0).is_finite()) {
        // Nothing to fit, or weights at the very ends of f32 where a scan would leave its range.
        return if widest > 0.0 && widest.is_finite() {
            widest
        } else {
            1.0
        };
    }
    let best_of = |candidates: &mut dyn Iterator<Item = f32>| {
        let fits = candidates.map(|scale| Fit::new(grid, weights, scale));
        fits.min_by(|a, b| a.error.total_cmp(&b.error))
    };
    let coarse = COARSE.map(|step| widest * (-step as f32 / COARSE_STEPS_PER_OCTAVE).exp2());
    let Some(coarse) = best_of(&mut coarse.into_iter()) else {
        return widest;
    };
    let fine = FINE.map(|step| coarse.scale * (step as f32 / FINE_STEPS_PER_OCTAVE).exp2());
    let best = best_of(&mut fine.into_iter()).unwrap_or(coarse);
    // Least squares for the same codes: never worse, whatever the scan's resolution.
    let polished = (best.weight_dot_value / best.value_sq) as f32;
    if polished.is_normal() {
        polished
    } else {
        best.scale
    }
}

/// The sums of one candidate scale, in units of the weights.
struct Fit {
    scale: f32,
    error: f64,
    weight_dot_value: f64,
    value_sq: f64,
}

impl Fit {
    fn new(grid: &Grid, weights: &[f32], scale: f32) -> Fit {
        let mut fit = Fit {
            scale,
            error: 0.0,
            weight_dot_value: 0.0,
            value_sq: 0.0,
        };
        for &weight in weights.iter().filter(|weight| weight.is_finite()) {
            let code = grid.nearest(weight / scale);
            let value = f64::from(grid.table()[usize::from(code)]);
            let weight = f64::from(weight);
            let difference = weight - f64::from(scale) * value;
            fit.error += difference * difference;
            fit.weight_dot_value += weight * value;
            fit.value_sq += value * value;
        }
        fit
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
        Fit::new(grid, weights, scale).error
    }

    fn snr_db(grid: &Grid, weights: &[f32]) -> (f32, f64) {
        let scale = fit_scale(grid, weights);
        let signal: f64 = weights.iter().map(|&w| f64::from(w).powi(2)).sum();
        (scale, 10.0 * (signal / error(grid, weights, scale)).log10())
    }

    #[test]
    fn gaussian_weights_reach_the_known_signal_to_noise() {
        let weights = gaussian(50_000, 1.0);
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
                assert!(excess < 2e-3, "{id}, {n} weights: {excess} of the signal");
            }
        }
    }

    #[test]
    fn an_outlier_does_not_drown_the_rest() {
        let mut weights = gaussian(1000, 1.0);
        weights[7] = 30.0;
        let scale = fit_scale(&Grid::prime(), &weights);
        assert!(scale < 15.0, "{scale}");
        // A weight that is not finite takes no part.
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
            // One unit anchor makes the intended scale one of the candidates.
            let codes = codes.into_iter().chain([14]);
            let weights: Vec<f32> =
                codes.map(|code| scale * grid.table()[usize::from(code)]).collect();
            let found = fit_scale(&grid, &weights);
            prop_assert!((found / scale - 1.0).abs() < 1e-5, "{} for {}", found, scale);
        }
    }
}
