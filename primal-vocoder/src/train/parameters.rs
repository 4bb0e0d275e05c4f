//! The weights of a network in one row, and AdamW over them.

use std::ops::Range;

use primal_kernels::{AdamStep, Isa, adamw, all_finite};
use rayon::prelude::*;

/// Values that a thread updates at once.
const CHUNK: usize = 1 << 16;

/// A network's weights and biases, layer after layer, and the moments of AdamW beside them.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    pub layers: Vec<Layer>,
    pub values: Vec<f32>,
    /// Running mean of the gradients.
    pub mean: Vec<f32>,
    /// Running mean of their squares.
    pub square: Vec<f32>,
}

/// A layer's place.
#[derive(Debug)]
pub(crate) struct Layer {
    pub name: String,
    /// As PyTorch has it.
    pub shape: Vec<usize>,
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

/// What an update needs to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Update {
    pub isa: Isa,
    pub rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub decay: f32,
    /// Number of the update, from 1.
    pub number: u64,
}

impl Parameters {
    /// Appends a layer.
    pub fn push(&mut self, name: String, shape: Vec<usize>, weights: &[f32], bias: &[f32]) {
        let first = self.values.len();
        self.values.extend_from_slice(weights);
        let middle = self.values.len();
        self.values.extend_from_slice(bias);
        self.layers.push(Layer {
            name,
            shape,
            weight: first..middle,
            bias: middle..self.values.len(),
        });
        self.mean.resize(self.values.len(), 0.0);
        self.square.resize(self.values.len(), 0.0);
    }

    /// Adds up the gradients of the segments in their order, wherever threads end first, and makes
    /// one step of AdamW. Changes nothing and gives false if a gradient is not finite.
    pub fn update(&mut self, gradients: &mut [Vec<f32>], update: Update) -> bool {
        let Some((total, others)) = gradients.split_first_mut() else {
            return true;
        };
        let others: &[Vec<f32>] = others;
        let finite = total
            .par_chunks_mut(CHUNK)
            .enumerate()
            .map(|(index, total)| {
                for other in others {
                    let other = &other[index * CHUNK..][..total.len()];
                    for (to, &from) in total.iter_mut().zip(other) {
                        *to += from;
                    }
                }
                all_finite(update.isa, total)
            })
            .reduce(|| true, |a, b| a && b);
        if !finite {
            return false;
        }
        let power = |beta: f32| 1.0 - f64::from(beta).powf(update.number as f64);
        let step = AdamStep {
            rate: update.rate,
            beta1: update.beta1,
            beta2: update.beta2,
            eps: 1e-8,
            decay: update.decay,
            bias1: power(update.beta1) as f32,
            bias2: power(update.beta2) as f32,
        };
        self.values
            .par_chunks_mut(CHUNK)
            .zip(total.par_chunks(CHUNK))
            .zip(self.mean.par_chunks_mut(CHUNK))
            .zip(self.square.par_chunks_mut(CHUNK))
            .for_each(|(((value, gradient), mean), square)| {
                adamw(update.isa, value, gradient, mean, square, &step);
            });
        true
    }
}
