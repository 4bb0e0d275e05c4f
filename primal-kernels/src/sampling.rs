//! The choice of the next token by its logit: one specification for processor and GPU.
//!
//! Tokens stand in the order of their logits, the likeliest first and the smaller id first among
//! equals. A token weighs ⌊2⁴⁰ e^((logit − best) / temperature)⌋, an integer: sums are exact in any order,
//! so a GPU's threads find what a loop over sorted tokens does. Vocabularies stay below 2²⁴.

use crate::lanes::scalar::Scalar;
use crate::lanes::{LANES, Lanes, exp};

/// The weight of the likeliest token, a power of two.
pub(crate) const WEIGHT: f32 = (1_u64 << 40) as f32;

/// How one token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenChoice {
    /// Divides positive and multiplies negative logits of recent tokens.
    pub repeat_penalty: f32,
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens that reach this part of the weight at temperature 1; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the likeliest, at temperature 1.
    pub min_p: f32,
    /// Uniform over all u64: which part of the weight is drawn.
    pub random: u64,
}

/// Why no token can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoToken {
    /// The logit of this token, the first such, is NaN or plus infinity.
    BadLogit(u32),
    /// Every token is barred, or there are none.
    AllBarred,
}

/// Chooses tokens on the processor; holds scratch space, no state.
#[derive(Clone, Debug, Default)]
pub struct TokenChooser {
    /// Of the tokens that are still in.
    keys: Vec<u64>,
    /// e^((logit − best) / temperature) of each.
    powers: Vec<f32>,
}

impl TokenChooser {
    /// The token that `choice` takes of `logits` (V), after the penalty for tokens among `recent`;
    /// minus infinity bars a token.
    ///
    /// # Errors
    /// See [`NoToken`].
    pub fn choose(
        &mut self,
        logits: &[f32],
        recent: &[u32],
        choice: &TokenChoice,
    ) -> Result<u32, NoToken> {
        let is_bad = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
        if let Some(token) = logits.iter().position(is_bad) {
            return Err(NoToken::BadLogit(token as u32));
        }
        let keys = &mut self.keys;
        keys.clear();
        keys.extend((0..).zip(logits).map(|(token, logit)| key(*logit, token)));
        if choice.repeat_penalty != 1.0 {
            for &token in recent {
                if let Some(logit) = logits.get(token as usize) {
                    keys[token as usize] = key(penalised(*logit, choice.repeat_penalty), token);
                }
            }
        }
        keys.retain(|key| logit_of(*key) > f32::NEG_INFINITY);
        let best = *keys.iter().max().ok_or(NoToken::AllBarred)?;
        if choice.temperature == 0.0 {
            return Ok(token_of(best));
        }

        let likeliest_first = |a: &u64, b: &u64| b.cmp(a);
        if (1..keys.len()).contains(&choice.top_k) {
            keys.select_nth_unstable_by(choice.top_k - 1, likeliest_first);
            keys.truncate(choice.top_k);
        }
        keys.sort_unstable_by(likeliest_first);
        self.raise(logit_of(best), 1.0);
        if choice.top_p < 1.0 {
            let wanted = part(self.weight(), (choice.top_p * 2_f32.powi(64)) as u64);
            self.keys.truncate(self.place(wanted.saturating_sub(1)) + 1);
        }
        // One by one: in its last bit the polynomial need not rise with the logit.
        let mut powers = self.powers.iter();
        self.keys
            .retain(|_| powers.next().is_some_and(|power| *power >= choice.min_p));
        self.raise(logit_of(best), choice.temperature);
        let place = self.place(part(self.weight(), choice.random));
        Ok(token_of(self.keys[place]))
    }

    /// Computes the powers.
    fn raise(&mut self, best: f32, temperature: f32) {
        self.powers.clear();
        let keys = self.keys.iter();
        self.powers
            .extend(keys.map(|key| (logit_of(*key) - best) / temperature));
        for chunk in self.powers.chunks_mut(LANES) {
            let powers = exp(Scalar, Scalar.load_tail(chunk));
            Scalar.store_tail(powers, chunk);
        }
    }

    /// What all tokens weigh.
    fn weight(&self) -> u64 {
        self.powers.iter().map(|power| weight_of(*power)).sum()
    }

    /// Place of the token at which weights, added up, first exceed `target`, which is below their sum.
    fn place(&self, target: u64) -> usize {
        let mut sum = 0;
        let exceeds = |power: &f32| {
            sum += weight_of(*power);
            sum > target
        };
        self.powers.iter().position(exceeds).unwrap_or(0)
    }
}

fn weight_of(power: f32) -> u64 {
    (power * WEIGHT) as u64
}

/// `fraction` / 2⁶⁴ of a weight, rounded down.
fn part(weight: u64, fraction: u64) -> u64 {
    ((u128::from(weight) * u128::from(fraction)) >> 64) as u64
}

/// A quotient beyond the largest number becomes that.
fn penalised(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 {
        (logit / penalty).min(f32::MAX)
    } else {
        logit * penalty
    }
}

/// Logit and token as one number that is larger the likelier the token.
fn key(logit: f32, token: u32) -> u64 {
    let bits = logit.to_bits();
    let sign = 1 << 31;
    let ordered = if bits & sign == 0 { bits | sign } else { !bits };
    u64::from(ordered) << 32 | u64::from(!token)
}

fn logit_of(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    let sign = 1 << 31;
    f32::from_bits(if ordered & sign == 0 {
        !ordered
    } else {
        ordered ^ sign
    })
}

fn token_of(key: u64) -> u32 {
    !(key as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the textbook: sorted probabilities in float64.
        #[test]
        fn the_kept_and_their_odds_are_the_textbooks(
            logits in prop::collection::vec(-9_f32..9.0, 1..40),
            top_k in 0_usize..45, top_p in 0_f32..=1.0, min_p in 0_f32..0.5, temperature in 0.2_f32..3.0,
        ) {
            let mut sorted: Vec<(f64, u32)> =
                (0..).zip(&logits).map(|(token, x)| (f64::from(*x), token)).collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            if top_k > 0 {
                sorted.truncate(top_k);
            }
            let best = sorted[0].0;
            let total: f64 = sorted.iter().map(|(x, _)| (x - best).exp()).sum();
            let mut sum = 0.0;
            let mut before = Vec::new();
            for (x, _) in &sorted {
                before.push(sum);
                sum += (x - best).exp() / total;
            }
            let margin = 1e-5;
            let unsure = before[1..].iter().any(|sum| (sum - f64::from(top_p)).abs() < margin)
                || sorted.iter().any(|(x, _)| ((x - best).exp() - f64::from(min_p)).abs() < margin);
            prop_assume!(!unsure);
            let is_kept = |place: &usize| {
                *place == 0 || before[*place] < f64::from(top_p)
                    && (sorted[*place].0 - best).exp() >= f64::from(min_p)
            };
            let kept = (0..sorted.len()).take_while(is_kept).count();
            let odds = |x: f64| ((x - best) / f64::from(temperature)).exp();
            let total: f64 = sorted[..kept].iter().map(|(x, _)| odds(*x)).sum();
            let mut chooser = TokenChooser::default();
            let mut start = 0.0;
            for (x, token) in &sorted[..kept] {
                // The middle of the part of [0, 1) that is this token's.
                let part = odds(*x) / total;
                let random = ((start + part / 2.0) * 2_f64.powi(64)) as u64;
                start += part;
                let choice =
                    TokenChoice { repeat_penalty: 1.0, temperature, top_k, top_p, min_p, random };
                prop_assert!(part < margin || chooser.choose(&logits, &[], &choice) == Ok(*token));
            }
        }

        #[test]
        fn keys_have_the_order_of_numbers(a: f32, b: f32) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(key(a, 3).cmp(&key(b, 3)), a.total_cmp(&b));
            prop_assert_eq!(logit_of(key(a, 3)).to_bits(), a.to_bits());
            prop_assert!(key(a, 3) > key(a, 4) && token_of(key(a, 4)) == 4);
        }
    }

    #[test]
    fn a_penalty_overflows_to_the_largest_number() {
        let mut choice = TokenChoice {
            repeat_penalty: 1e-30,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            random: u64::MAX,
        };
        let mut chooser = TokenChooser::default();
        assert_eq!(chooser.choose(&[1e30, 1.0], &[0], &choice), Ok(0));
        choice.repeat_penalty = 1e30;
        let barred = chooser.choose(&[-1e30, f32::NEG_INFINITY], &[0, 0, 7], &choice);
        assert_eq!(barred, Err(NoToken::AllBarred));
    }
}
