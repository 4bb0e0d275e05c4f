//! The generator in training: the forward pass that keeps what the backward pass needs.

use primal_kernels::{Isa, Signal};

use super::conv::{Conv, ConvShape, Tape};
use super::parameters::Parameters;
use crate::config::{Padding, VocoderConfig};
use crate::error::VocoderError;
use crate::generator::{LAST_SLOPE, SLOPE};
use crate::weights::{Weights, layers};

/// A generator's parameters and its layers in the order of computation.
#[derive(Debug)]
pub(crate) struct TrainedGenerator {
    config: VocoderConfig,
    pub parameters: Parameters,
    convs: Vec<Conv>,
}

/// What a segment's forward pass leaves for its backward pass, and scratch.
#[derive(Debug)]
pub(crate) struct GeneratorTape {
    tapes: Vec<Tape>,
    /// Signals of a stage's width: behind the upsampling, at hand, behind a unit, within it, and
    /// the sum of the blocks.
    stages: Vec<[Signal; 5]>,
    /// Behind the first convolution.
    first: Signal,
    /// (1, samples): the sound, and its gradient before the tanh.
    pub samples: Signal,
    d_samples: Signal,
}

impl TrainedGenerator {
    /// Starts from `weights`.
    ///
    /// # Errors
    /// [`VocoderError::Config`] for a generator that cannot be trained; those of a checkpoint that
    /// lacks a tensor.
    pub fn new(config: &VocoderConfig, weights: &Weights) -> Result<Self, VocoderError> {
        config.check()?;
        if config.padding != Padding::Zeros || config.edge_frames != 0 {
            return Err(VocoderError::config(
                "only generators with padding \"zeros\" and no edge_frames are trained",
            ));
        }
        let mut parameters = Parameters::default();
        let mut shapes = Vec::new();
        for layer in layers(config) {
            let values = weights.weight(&layer.name, &layer.shape)?;
            let bias = weights.bias(&layer.name, layer.bias, layer.name == "conv_post")?;
            let [a, b, kernel] = layer.shape;
            shapes.push(match layer.name.starts_with("ups.") {
                true => ConvShape::transposed(a, b, kernel, layer.rate),
                false => ConvShape::same(b, a, kernel, layer.dilation),
            });
            parameters.push(layer.name, layer.shape.to_vec(), &values, &bias);
        }
        let convs = shapes.into_iter().zip(&parameters.layers);
        let convs = convs.map(|(shape, at)| Conv::new(shape, at.weight.clone(), at.bias.clone()));
        let mut generator = TrainedGenerator {
            config: config.clone(),
            convs: convs.collect(),
            parameters,
        };
        generator.load();
        Ok(generator)
    }

    /// Takes the parameters' values over into the layers, after they changed.
    pub fn load(&mut self) {
        for conv in &mut self.convs {
            conv.load(&self.parameters.values);
        }
    }

    /// The parameters as a checkpoint.
    pub fn weights(&self) -> Result<Weights, VocoderError> {
        let values = &self.parameters.values;
        let tensors = self.parameters.layers.iter().flat_map(|layer| {
            let (weight, bias) = (&values[layer.weight.clone()], &values[layer.bias.clone()]);
            [
                (
                    format!("{}.weight", layer.name),
                    layer.shape.clone(),
                    weight.to_vec(),
                ),
                (
                    format!("{}.bias", layer.name),
                    vec![bias.len()],
                    bias.to_vec(),
                ),
            ]
        });
        Weights::new("trained generator", tensors)
    }

    /// An empty tape.
    pub fn tape(&self) -> GeneratorTape {
        let stage = |stage: usize| {
            let channels = self.config.channels(stage);
            std::array::from_fn(|_| Signal::new(channels))
        };
        GeneratorTape {
            tapes: self.convs.iter().map(Conv::tape).collect(),
            stages: (0..self.config.upsample_rates.len()).map(stage).collect(),
            first: Signal::new(self.config.upsample_initial_channel),
            samples: Signal::new(1),
            d_samples: Signal::new(1),
        }
    }

    /// Whether the units of a block have two convolutions.
    fn two(&self) -> bool {
        self.config.resblock == "1"
    }

    /// Fills `tape.samples` with the sound of `mel` (bands, frames).
    pub fn forward(&self, isa: Isa, mel: &Signal, tape: &mut GeneratorTape) {
        let GeneratorTape {
            tapes,
            stages,
            first,
            samples,
            ..
        } = tape;
        let mut layers = self.convs.iter().zip(tapes);
        let mut next = |input: (&Signal, f32), residual: Option<&Signal>, out: &mut Signal| {
            if let Some((conv, tape)) = layers.next() {
                conv.forward(isa, input, tape, residual, out);
            }
        };
        next((mel, 1.0), None, first);
        let blocks = &self.config.resblock_dilation_sizes;
        let mut x: &Signal = first;
        for [upsampled, at_hand, behind, within, sum] in stages {
            next((x, SLOPE), None, upsampled);
            sum.set_len(0);
            for (index, dilations) in blocks.iter().enumerate() {
                at_hand.set_len(0);
                at_hand.append(isa, upsampled, upsampled.len());
                for _ in dilations {
                    if self.two() {
                        next((at_hand, SLOPE), None, within);
                        next((within, SLOPE), Some(at_hand), behind);
                    } else {
                        next((at_hand, SLOPE), Some(at_hand), behind);
                    }
                    std::mem::swap(at_hand, behind);
                }
                match index {
                    0 => sum.append(isa, at_hand, at_hand.len()),
                    _ => sum.add_scaled(isa, 0, at_hand, 1.0),
                }
            }
            scale(sum, 1.0 / blocks.len() as f32);
            x = sum;
        }
        next((x, LAST_SLOPE), None, samples);
        samples.row_mut(0).iter_mut().for_each(|x| *x = x.tanh());
    }

    /// Adds the gradients of the parameters to `gradients`, given that of the sound of the last
    /// forward pass.
    pub fn backward(
        &self,
        isa: Isa,
        d_samples: &[f32],
        tape: &mut GeneratorTape,
        gradients: &mut [f32],
    ) {
        let GeneratorTape {
            tapes,
            stages,
            first,
            samples,
            d_samples: d_out,
        } = tape;
        d_out.set_len(d_samples.len());
        let row = d_out.row_mut(0).iter_mut();
        for ((to, &d), &y) in row.zip(d_samples).zip(samples.row(0)) {
            *to = d * (1.0 - y * y);
        }
        let mut layers = self.convs.iter().zip(tapes).rev();
        let mut previous = |dy: &Signal, slope: f32, dx: Option<&mut Signal>| {
            if let Some((conv, tape)) = layers.next() {
                conv.backward(isa, dy, slope, tape, Some(&mut *gradients), dx);
            }
        };
        let blocks = &self.config.resblock_dilation_sizes;
        let n = stages.len();
        for index in (0..n).rev() {
            let (before, rest) = stages.split_at_mut(index);
            let [d_upsampled, at_hand, behind, within, sum] = &mut rest[0];
            if index + 1 == n {
                previous(d_out, LAST_SLOPE, Some(sum));
            }
            // `sum` holds the gradient of the mean of the blocks; it becomes that of each.
            scale(sum, 1.0 / blocks.len() as f32);
            d_upsampled.set_len(0);
            for (block, dilations) in blocks.iter().rev().enumerate() {
                at_hand.set_len(0);
                at_hand.append(isa, sum, sum.len());
                for _ in dilations {
                    if self.two() {
                        previous(at_hand, SLOPE, Some(within));
                        previous(within, SLOPE, Some(behind));
                    } else {
                        previous(at_hand, SLOPE, Some(behind));
                    }
                    at_hand.add_scaled(isa, 0, behind, 1.0);
                }
                match block {
                    0 => d_upsampled.append(isa, at_hand, at_hand.len()),
                    _ => d_upsampled.add_scaled(isa, 0, at_hand, 1.0),
                }
            }
            let dx = before.last_mut().map_or(&mut *first, |stage| &mut stage[4]);
            previous(d_upsampled, SLOPE, Some(dx));
        }
        previous(first, 1.0, None);
    }
}

fn scale(signal: &mut Signal, factor: f32) {
    for channel in 0..signal.channels() {
        signal
            .row_mut(channel)
            .iter_mut()
            .for_each(|x| *x *= factor);
    }
}
