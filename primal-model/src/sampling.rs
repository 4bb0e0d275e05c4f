//! From logits to the next token: temperature, top-k, top-p, min-p, repeat penalty.

use primal_kernels::{NoToken, TokenChoice, TokenChooser, philox4x32};
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// Random stream of the drawn tokens; training uses streams 0 to 4.
const SAMPLING_STREAM: u32 = 5;
/// How many of the latest tokens the repeat penalty looks at, llama.cpp's default.
pub(crate) const REPEAT_WINDOW: usize = 64;

/// How the next token is drawn. Filters apply in the order top-k, top-p, min-p, and look at the
/// probabilities before the temperature, as llama.cpp does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of recent tokens (Keskar et al. 2019,
    /// equation 2); 1 turns it off.
    pub repeat_penalty: f32,
    /// Together with the position it decides every draw.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            seed: 1,
        }
    }
}

impl Sampling {
    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// [`ModelError::OutOfRange`] with the option's name.
    pub fn validate(&self) -> Result<(), ModelError> {
        let unit = 0.0..=1.0;
        for (key, value, in_range, reason) in [
            (
                "temperature",
                self.temperature,
                self.temperature >= 0.0,
                "must be 0 or above",
            ),
            (
                "top-p",
                self.top_p,
                unit.contains(&self.top_p),
                "must lie between 0 and 1",
            ),
            (
                "min-p",
                self.min_p,
                unit.contains(&self.min_p),
                "must lie between 0 and 1",
            ),
            (
                "repeat-penalty",
                self.repeat_penalty,
                self.repeat_penalty > 0.0,
                "must be above 0",
            ),
        ] {
            if !in_range || !value.is_finite() {
                let (value, reason) = (value.to_string(), reason.to_string());
                return Err(ModelError::OutOfRange { key, value, reason });
            }
        }
        Ok(())
    }
}

/// Draws tokens by a [`Sampling`]; holds the scratch space, no state.
#[derive(Clone, Debug)]
pub struct TokenSampler {
    sampling: Sampling,
    chooser: TokenChooser,
}

impl TokenSampler {
    /// A sampler for valid settings.
    ///
    /// # Errors
    /// See [`Sampling::validate`].
    pub fn new(sampling: Sampling) -> Result<TokenSampler, ModelError> {
        sampling.validate()?;
        Ok(TokenSampler {
            sampling,
            chooser: TokenChooser::default(),
        })
    }

    /// The next token, a pure function of the settings, `logits` (V), the latest `history` and
    /// `position`, the number of tokens before this one. Minus infinity bars a token. Ties go to
    /// the smaller id.
    ///
    /// # Errors
    /// [`ModelError::BadLogits`] when a logit is NaN or plus infinity, or no token is left.
    pub fn sample(
        &mut self,
        logits: &[f32],
        history: &[u32],
        position: usize,
    ) -> Result<u32, ModelError> {
        let choice = self.choice(position);
        let chosen = self.chooser.choose(logits, recent(history), &choice);
        chosen.map_err(|why| bad_logits(why, logits))
    }

    /// How the token at `position` is chosen.
    pub(crate) fn choice(&self, position: usize) -> TokenChoice {
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            repeat_penalty,
            seed,
        } = self.sampling;
        TokenChoice {
            repeat_penalty,
            temperature,
            top_k,
            top_p,
            min_p,
            random: random(seed, position),
        }
    }
}

/// The tokens that the repeat penalty looks at.
pub(crate) fn recent(history: &[u32]) -> &[u32] {
    &history[history.len().saturating_sub(REPEAT_WINDOW)..]
}

/// The error of logits that no token was chosen of.
pub(crate) fn bad_logits(why: NoToken, logits: &[f32]) -> ModelError {
    let (token, logit) = match why {
        NoToken::BadLogit(token) => (token, logits.get(token as usize).copied()),
        NoToken::AllBarred => (0, None),
    };
    let logit = logit.unwrap_or(f32::NEG_INFINITY);
    ModelError::BadLogits { token, logit }
}

/// Uniform over all u64.
fn random(seed: u64, position: usize) -> u64 {
    let position = position as u64;
    let counter = [
        position as u32,
        (position >> 32) as u32,
        0,
        SAMPLING_STREAM << 28,
    ];
    let [low, high, ..] = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// No filter at all.
    const PLAIN: Sampling = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        seed: 3,
    };

    /// How often each of four tokens is drawn in `n` positions.
    fn counts(sampling: Sampling, logits: [f32; 4], history: &[u32], n: usize) -> [usize; 4] {
        let mut sampler = TokenSampler::new(sampling).unwrap();
        let mut counts = [0; 4];
        for position in 0..n {
            counts[sampler.sample(&logits, history, position).unwrap() as usize] += 1;
        }
        counts
    }

    /// Logits of the probabilities 0.1, 0.4, 0.2, 0.3.
    fn logits() -> [f32; 4] {
        [0.1f32, 0.4, 0.2, 0.3].map(f32::ln)
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let found = counts(PLAIN, logits(), &[], 10_000);
        for (found, expected) in found.into_iter().zip([1000usize, 4000, 2000, 3000]) {
            assert!(
                found.abs_diff(expected) < 200,
                "{found} instead of {expected}"
            );
        }
        // At temperature 1/2 the probabilities are squared: 1 16 4 9 out of 30.
        let found = counts(
            Sampling {
                temperature: 0.5,
                ..PLAIN
            },
            logits(),
            &[],
            9000,
        );
        for (found, expected) in found.into_iter().zip([300usize, 4800, 1200, 2700]) {
            assert!(
                found.abs_diff(expected) < 200,
                "{found} instead of {expected}"
            );
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        for (sampling, kept) in [
            (Sampling { top_k: 1, ..PLAIN }, [false, true, false, false]),
            (Sampling { top_k: 3, ..PLAIN }, [false, true, true, true]),
            (Sampling { top_k: 9, ..PLAIN }, [true; 4]),
            (
                Sampling {
                    top_p: 0.0,
                    ..PLAIN
                },
                [false, true, false, false],
            ),
            (
                Sampling {
                    top_p: 0.69,
                    ..PLAIN
                },
                [false, true, false, true],
            ),
            (
                Sampling {
                    top_p: 0.71,
                    ..PLAIN
                },
                [false, true, true, true],
            ),
            (
                Sampling {
                    min_p: 0.45,
                    ..PLAIN
                },
                [false, true, true, true],
            ),
            (
                Sampling {
                    min_p: 1.0,
                    ..PLAIN
                },
                [false, true, false, false],
            ),
            (
                Sampling {
                    temperature: 0.0,
                    ..PLAIN
                },
                [false, true, false, false],
            ),
        ] {
            let found = counts(sampling, logits(), &[], 500).map(|n| n > 0);
            assert_eq!(found, kept, "{sampling:?}");
        }
    }

    #[test]
    fn repeats_are_penalised_once_and_in_both_signs() {
        let greedy = Sampling {
            temperature: 0.0,
            repeat_penalty: 2.0,
            ..PLAIN
        };
        let pick = |logits: [f32; 4], history: &[u32]| {
            TokenSampler::new(greedy)
                .unwrap()
                .sample(&logits, history, 0)
                .unwrap()
        };
        assert_eq!(pick([4.0, 3.0, 0.0, 0.0], &[0, 0, 0]), 1);
        assert_eq!(pick([4.0, 1.5, 0.0, 0.0], &[0, 0, 0]), 0);
        assert_eq!(pick([-1.0, -1.5, -9.0, -9.0], &[0]), 1);
        // Tokens that are long gone, or beyond the logits, do not count.
        let mut history = vec![0];
        history.extend([9; REPEAT_WINDOW]);
        assert_eq!(pick([4.0, 3.0, 0.0, 0.0], &history), 0);
    }

    #[test]
    fn draws_are_a_function_of_seed_and_position() {
        let draw = |seed| {
            let mut sampler = TokenSampler::new(Sampling { seed, ..PLAIN }).unwrap();
            (0..50)
                .map(|position| sampler.sample(&[0.0; 100], &[], position).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(draw(1), draw(1 << 32 | 1));
    }

    #[test]
    fn bad_logits_and_settings_are_errors() {
        let mut sampler = TokenSampler::new(PLAIN).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let error = sampler.sample(&[0.0, bad], &[], 0).unwrap_err().to_string();
            assert!(error.contains("token 1"), "{error}");
        }
        assert!(sampler.sample(&[], &[], 0).is_err());
        assert!(sampler.sample(&[f32::NEG_INFINITY; 3], &[], 0).is_err());
        assert_eq!(
            sampler.sample(&[f32::NEG_INFINITY, -9.0], &[], 0).unwrap(),
            1
        );
        for (bad, key) in [
            (
                Sampling {
                    temperature: -1.0,
                    ..PLAIN
                },
                "temperature",
            ),
            (
                Sampling {
                    temperature: f32::NAN,
                    ..PLAIN
                },
                "temperature",
            ),
            (
                Sampling {
                    top_p: 1.5,
                    ..PLAIN
                },
                "top-p",
            ),
            (
                Sampling {
                    min_p: -0.1,
                    ..PLAIN
                },
                "min-p",
            ),
            (
                Sampling {
                    repeat_penalty: 0.0,
                    ..PLAIN
                },
                "repeat-penalty",
            ),
        ] {
            let error = TokenSampler::new(bad).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_draw_is_a_candidate(
            logits in prop::collection::vec(-50f32..50.0, 1..70),
            top_k in 0usize..80, top_p in 0f32..=1.0, min_p in 0f32..=1.0, position in 0usize..1000,
        ) {
            let sampling = Sampling { top_k, top_p, min_p, ..PLAIN };
            let token = TokenSampler::new(sampling).unwrap().sample(&logits, &[], position).unwrap();
            prop_assert!((token as usize) < logits.len());
            let better = logits.iter().filter(|logit| **logit > logits[token as usize]).count();
            prop_assert!(top_k == 0 || better < top_k);
        }
    }
}
