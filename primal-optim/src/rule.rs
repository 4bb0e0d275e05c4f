//! Which rule moves the weights, and the numbers that the rules take.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::OptimError;

/// How a weight matrix learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Stochastic integer votes into a persistent ballot; a weight flips when they agree.
    #[default]
    Consensus,
    /// The original project's rule: votes above mean + k·std, random flips, no memory.
    Classic,
    /// No flips at all: what the float parts reach alone.
    Frozen,
    /// A float32 latent weight, straight-through estimator, AdamW: for comparison only.
    Shadow,
    /// Float weights under AdamW, no grid: for comparison only.
    Adamw,
}

impl Rule {
    /// Every rule, in the order of the documentation.
    pub const ALL: [Rule; 5] = [
        Rule::Consensus,
        Rule::Classic,
        Rule::Frozen,
        Rule::Shadow,
        Rule::Adamw,
    ];

    /// The name used on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Consensus => "consensus",
            Rule::Classic => "classic",
            Rule::Frozen => "frozen",
            Rule::Shadow => "shadow",
            Rule::Adamw => "adamw",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rule {
    type Err = OptimError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Rule::ALL
            .into_iter()
            .find(|rule| rule.name() == text)
            .ok_or_else(|| OptimError::UnknownRule(text.to_string()))
    }
}

/// Every number of the learning rules. TOML section `[optim]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimConfig {
    /// The rule for matrices that live on the grid.
    pub rule: Rule,
    /// `consensus`: step of one unit of normalised gradient, in units of the row scale.
    pub eta: f32,
    /// `consensus`: memory of the ballot in steps at full rate.
    pub tau: f32,
    /// `consensus`: largest normalised gradient that votes in full, in standard deviations.
    pub vote_clip: f32,
    /// `consensus`: decay of the running means of g² by row and by column.
    pub stat_decay: f32,
    /// Steps of linear warm-up of the schedule.
    pub warmup_steps: u32,
    /// Where the cosine part of the schedule ends, as a fraction of the peak.
    pub final_rate: f32,
    /// Fraction of the run, at its end, over which the rate falls linearly from there to zero.
    pub cooldown: f32,
    /// AdamW rate of the float parts (every parameter under rule `adamw`).
    pub lr: f32,
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
            rule: Rule::Consensus,
            eta: 0.01,
            tau: 1000.0,
            vote_clip: 3.0,
            stat_decay: 0.95,
            warmup_steps: 100,
            final_rate: 0.1,
            cooldown: 0.0,
            lr: 3e-3,
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

impl OptimConfig {
    /// Checks that every number is finite and inside its range.
    pub fn validate(&self) -> Result<(), OptimError> {
        let fraction = 0.0..1.0;
        let checks = [
            ("eta", self.eta, self.eta > 0.0),
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
    fn names_round_trip() {
        for rule in Rule::ALL {
            assert_eq!(rule.name().parse::<Rule>().unwrap(), rule);
            assert_eq!(serde_json::to_string(&rule).unwrap(), format!("\"{rule}\""));
        }
        let error = "consensu".parse::<Rule>().unwrap_err().to_string();
        assert!(error.contains("consensus"), "{error}");
    }

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
