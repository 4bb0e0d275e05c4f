//! Multiply-adds of a token, by the arithmetic that does them: what bounds reading and training.

use primal_kernels::MultiplyRates;

use crate::activations::PassPlan;
use crate::config::{Compute, Config, FloatPart};
use crate::error::ModelError;
use crate::shape::ModelShape;

/// Multiply-adds a token. Embeddings, norms, activations and the votes are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Bytes into 32-bit sums.
    pub int8: f64,
    /// Words of two bytes into 32-bit sums.
    pub int16: f64,
    /// float32.
    pub f32: f64,
}

impl Work {
    /// Reading a prompt of `tokens` tokens at once, of which the last alone needs the head.
    ///
    /// # Errors
    /// Sizes that make no model.
    pub fn of_reading(config: &Config, vocab: usize, tokens: usize) -> Result<Work, ModelError> {
        let parts = Parts::new(config, vocab)?;
        let head = 1.0 / tokens.max(1) as f64;
        Ok(Work {
            int8: parts.grid + head * parts.grid_head,
            int16: 0.0,
            f32: parts.float + head * parts.float_head + parts.attention(tokens),
        })
    }

    /// A training step, whose tokens come in sequences of the whole context.
    ///
    /// # Errors
    /// Sizes that make no model.
    pub fn of_training(config: &Config, vocab: usize) -> Result<Work, ModelError> {
        let parts = Parts::new(config, vocab)?;
        let plan = PassPlan::for_training(config);
        let forward = if plan.recompute == Some(0) { 1.0 } else { 2.0 };
        // Forward, perhaps once more, and the gradient of the input. The backward pass of the
        // cross-entropy computes its logits anew.
        let grid = (forward + 1.0) * parts.grid + 3.0 * parts.grid_head;
        let float = (forward + 2.0) * parts.float + 4.0 * parts.float_head;
        // Two products forward; five backward, which computes the scores anew.
        let attention = (forward + 2.5) * parts.attention(config.model.context);
        let weights = parts.grid + parts.grid_head;
        Ok(match plan.compute {
            Compute::Int8 | Compute::Int8Blocks => Work {
                int8: grid,
                int16: weights,
                f32: float + attention,
            },
            Compute::Int8FloatGradients => Work {
                int8: grid,
                int16: 0.0,
                f32: weights + float + attention,
            },
            Compute::Float => Work {
                int8: 0.0,
                int16: 0.0,
                f32: grid + weights + float + attention,
            },
        })
    }

    /// The least time of a token at those rates.
    pub fn seconds(&self, rates: &MultiplyRates) -> f64 {
        self.int8 / rates.int8 + self.int16 / rates.int16 + self.f32 / rates.f32
    }
}

/// Multiply-adds of one forward product with every matrix, on the grid and float.
struct Parts {
    shape: ModelShape,
    grid: f64,
    float: f64,
    grid_head: f64,
    float_head: f64,
}

impl Parts {
    fn new(config: &Config, vocab: usize) -> Result<Parts, ModelError> {
        let shape = ModelShape::new(config, vocab)?;
        let all_float = !config.optim.rule.is_on_grid();
        let is_float = |part| all_float || config.model.float_parts.contains(&part);
        let mut parts = Parts {
            shape,
            grid: 0.0,
            float: 0.0,
            grid_head: 0.0,
            float_head: 0.0,
        };
        let size = |(rows, cols): (usize, usize)| (shape.n_layer * rows * cols) as f64;
        let [qkv, attention_out, up, down] = shape.block_matrices().map(size);
        for (size, part) in [
            (qkv + attention_out, FloatPart::Attention),
            (up + down, FloatPart::Mlp),
        ] {
            if is_float(part) {
                parts.float += size;
            } else {
                parts.grid += size;
            }
        }
        let head = (shape.vocab * shape.width) as f64;
        let head_part = if shape.tie_head {
            FloatPart::Embeddings
        } else {
            FloatPart::Head
        };
        if is_float(head_part) {
            parts.float_head = head;
        } else {
            parts.grid_head = head;
        }
        Ok(parts)
    }

    /// Scores and sums of values of all blocks: a token sees half of the others in the mean.
    fn attention(&self, tokens: usize) -> f64 {
        let width = self.shape.n_layer * self.shape.attention_width();
        width as f64 * (tokens as f64 + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_where_it_is_done() {
        let mut config = Config::preset("ghost-0.1b").unwrap();
        let work = Work::of_training(&config, 50_257).unwrap();
        let (blocks, head) = (13.0 * 12.0 * 768.0 * 768.0, 50_257.0 * 768.0);
        assert_eq!(work.int8, 3.0 * (blocks + head));
        assert_eq!(work.int16, blocks + head);
        assert_eq!(work.f32, 4.5 * 13.0 * 768.0 * 513.0);

        let rates = MultiplyRates {
            f32: 1.0,
            int8: 4.0,
            int16: 2.0,
        };
        assert_eq!(
            work.seconds(&rates),
            work.int8 / 4.0 + work.int16 / 2.0 + work.f32
        );

        config.model.float_parts = vec![FloatPart::Attention, FloatPart::Embeddings];
        let work = Work::of_training(&config, 50_257).unwrap();
        let mlp = blocks * 8.0 / 12.0;
        assert_eq!((work.int8, work.int16), (3.0 * mlp, mlp));

        config.train.compute = Compute::Float;
        config.train.recompute = 0;
        let work = Work::of_training(&config, 50_257).unwrap();
        assert_eq!((work.int8, work.int16), (0.0, 0.0));
        let attention = 3.5 * 13.0 * 768.0 * 513.0;
        assert_eq!(work.f32, 3.0 * blocks + 4.0 * head + attention);
    }

    #[test]
    fn a_prompt_needs_the_head_once() {
        let config = Config::preset("llama-1.1b").unwrap();
        let one = Work::of_reading(&config, 32_000, 1).unwrap();
        let many = Work::of_reading(&config, 32_000, 512).unwrap();
        let head = 32_000.0 * 2048.0;
        assert!((one.int8 - many.int8 - head * 511.0 / 512.0).abs() < 1.0);
        assert_eq!(one.f32, 22.0 * 2048.0 * 2.0);
    }
}
