//! The numbers that the rules take.

use serde::{Deserialize, Serialize};

use crate::{OptimError, Rule};

/// Every number of the learning rules. TOML section `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// The rule for matrices that live on the grid.
    pub rule: Rule,
    /// Rate of votes, in units of the row scale. `spectral`: the root mean square of the step of a
    /// matrix; `consensus`: the step of one unit of normalised gradient. 0: what is right for the
    /// rule.
    pub eta: f32,
    /// Rate of the votes of embeddings and head under `spectral`, in the units of `consensus`,
    /// whose default it is.
    pub eta_edges: f32,
    /// Memory of the ballot in steps at full rate.
    pub tau: f32,
    /// `consensus`: largest normalised gradient that votes in full, in standard deviations.
    pub vote_clip: f32,
    /// Decay of the running means of g² by row and by column.
    pub stat_decay: f32,
    /// Steps of linear warm-up of the schedule.
    pub warmup_steps: u32,
    /// Where the cosine part of the schedule ends, as a fraction of the peak.
    pub final_rate: f32,
    /// Fraction of the run, at its end, over which the rate falls linearly from there to zero.
    pub cooldown: f32,
    /// AdamW rate of the float parts (every parameter under rule `adamw`).
    pub lr: f32,
    /// `muon`: rate of the matrices between hidden activations as a multiple of `lr`.
    pub muon_lr_ratio: f32,
    /// `muon`: decay of the momentum.
    pub muon_beta: f32,
    /// Rate of the row scales as a multiple of `lr`.
    pub scale_lr_ratio: f32,
    /// AdamW first-moment decay.
    pub beta1: f32,
    /// AdamW second-moment decay.
    pub beta2: f32,
    /// AdamW decoupled weight decay of float matrices; vectors and row scales have none.
    pub weight_decay: f32,
    /// Global gradient norm that the float part is clipped to; 0 turns clipping off.
    pub grad_clip: f32,
    /// `classic`: a gradient votes when it exceeds mean + k·std of its matrix.
    pub classic_k: f32,
    /// `classic`: flip probability at unit scale, 0.002 in the original.
    pub classic_probability: f32,
}

impl Default for OptimConfig {
    fn default() -> Self {
        OptimConfig {
            rule: Rule::default(),
            eta: 0.0,
            eta_edges: 0.01,
            tau: 1000.0,
            vote_clip: 3.0,
            stat_decay: 0.95,
            warmup_steps: 100,
            final_rate: 0.1,
            cooldown: 0.0,
            lr: 3e-3,
            muon_lr_ratio: 10.0,
            muon_beta: 0.9,
            scale_lr_ratio: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.1,
            grad_clip: 1.0,
            classic_k: 1.0,
            classic_probability: 0.002,
        }
    }
}

/// `spectral`: the best rate that was tried, for narrow models and wider ones: docs/log.md, 2026-12-01.
const SPECTRAL_ETA: f32 = 0.05;

impl OptimConfig {
    /// Rate of votes along an orthogonalised gradient.
    pub fn spectral_eta(&self) -> f32 {
        if self.eta > 0.0 {
            self.eta
        } else {
            SPECTRAL_ETA
        }
    }

    /// Rate of votes along a gradient that is normalised element by element.
    pub fn elementwise_eta(&self) -> f32 {
        if self.rule != Rule::Spectral && self.eta > 0.0 {
            self.eta
        } else {
            self.eta_edges
        }
    }

    /// Checks that every number is finite and inside its range.
    pub fn validate(&self) -> Result<(), OptimError> {
        let fraction = 0.0..1.0;
        let checks = [
            ("eta", self.eta, self.eta >= 0.0),
            ("eta_edges", self.eta_edges, self.eta_edges > 0.0),
            ("tau", self.tau, self.tau >= 1.0),
            ("vote_clip", self.vote_clip, self.vote_clip > 0.0),
            (
                "stat_decay",
                self.stat_decay,
                fraction.contains(&self.stat_decay),
            ),
            (
                "final_rate",
                self.final_rate,
                (0.0..=1.0).contains(&self.final_rate),
            ),
            (
                "cooldown",
                self.cooldown,
                (0.0..=1.0).contains(&self.cooldown),
            ),
            ("lr", self.lr, self.lr >= 0.0),
            (
                "muon_lr_ratio",
                self.muon_lr_ratio,
                self.muon_lr_ratio >= 0.0,
            ),
            (
                "muon_beta",
                self.muon_beta,
                fraction.contains(&self.muon_beta),
            ),
            (
                "scale_lr_ratio",
                self.scale_lr_ratio,
                self.scale_lr_ratio >= 0.0,
            ),
            ("beta1", self.beta1, fraction.contains(&self.beta1)),
            ("beta2", self.beta2, fraction.contains(&self.beta2)),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0.0),
            ("grad_clip", self.grad_clip, self.grad_clip >= 0.0),
            ("classic_k", self.classic_k, true),
            (
                "classic_probability",
                self.classic_probability,
                (0.0..=1.0).contains(&self.classic_probability),
            ),
        ];
        for (key, value, in_range) in checks {
            if !value.is_finite() || !in_range {
                return Err(OptimError::OutOfRange { key, value });
            }
        }
        Ok(())
    }

    /// Rate of step `step` (0-based) out of `steps`, as a fraction of the peak: linear warm-up,
    /// cosine down to `final_rate`, then linear to zero over the last `cooldown` of the run.
    pub fn rate(&self, step: u32, steps: u32) -> f32 {
        let steps = f64::from(steps.max(1));
        let step_f = f64::from(step);
        let warm = ((step_f + 1.0) / f64::from(self.warmup_steps.max(1))).min(1.0);
        let floor = f64::from(self.final_rate);
        let progress = (step_f / steps).min(1.0);
        let cosine = floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        let tail = f64::from(self.cooldown) * steps;
        let cool = if tail > 0.0 {
            ((steps - step_f) / tail).clamp(0.0, 1.0)
        } else {
            1.0
        };
        (warm * cosine * cool) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_warms_up_falls_and_ends() {
        let config = OptimConfig {
            warmup_steps: 10,
            cooldown: 0.1,
            ..Default::default()
        };
        assert!((config.rate(0, 1000) - 0.1).abs() < 1e-3);
        assert!(config.rate(10, 1000) > 0.99);
        let rates: Vec<f32> = (10..1000).map(|s| config.rate(s, 1000)).collect();
        assert!(rates.windows(2).all(|w| w[1] <= w[0]));
        assert!(rates[rates.len() - 1] < 0.002, "{}", rates[rates.len() - 1]);
        assert_eq!(config.rate(1000, 1000), 0.0);
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        for (bad, key) in [
            (
                OptimConfig {
                    eta: f32::NAN,
                    ..Default::default()
                },
                "eta",
            ),
            (
                OptimConfig {
                    tau: 0.0,
                    ..Default::default()
                },
                "tau",
            ),
            (
                OptimConfig {
                    beta1: 1.0,
                    ..Default::default()
                },
                "beta1",
            ),
        ] {
            assert!(bad.validate().unwrap_err().to_string().contains(key));
        }
        OptimConfig::default().validate().unwrap();
    }
}
