//! The discriminators of HiFi-GAN: five that look at every p-th sample (multi-period) and three
//! that look at the sound and its averages (multi-scale), with least-squares losses (Mao et al.
//! 2017) and feature matching. Beside the official ones, weights are not normalised.

use primal_kernels::{Isa, Signal};

use super::conv::{Conv, ConvShape, Tape, sum};
use super::parameters::Parameters;
use crate::generator::SLOPE;
use crate::mel::mirrored;
use crate::weights::random_values;

/// Periods of the multi-period discriminators.
const PERIODS: [usize; 5] = [2, 3, 5, 7, 11];

/// Multi-scale discriminators; each sees half the sampling rate of the one before.
const SCALES: usize = 3;

/// Channels of the official layers, as parts of their widest.
const PERIOD_CHANNELS: [usize; 5] = [32, 8, 2, 1, 1];

/// (part of the widest, kernel, stride, groups) of the layers of a multi-scale discriminator.
const SCALE_LAYERS: [(usize, usize, usize, usize); 7] = [
    (8, 15, 1, 1),
    (8, 41, 2, 4),
    (4, 41, 2, 16),
    (2, 41, 4, 16),
    (1, 41, 4, 16),
    (1, 41, 1, 16),
    (1, 5, 1, 1),
];

/// Narrowest discriminators: every group of the multi-scale ones still holds a channel.
pub(crate) const MIN_WIDTH: usize = 128;

/// Weight of feature matching beside the adversarial loss.
const FEATURE_WEIGHT: f32 = 2.0;

/// All discriminators and their parameters.
#[derive(Debug)]
pub(crate) struct Discriminators {
    pub parameters: Parameters,
    judges: Vec<Judge>,
}

/// One discriminator.
#[derive(Debug)]
struct Judge {
    period: usize,
    /// Times that the sound is halved before.
    halvings: usize,
    convs: Vec<Conv>,
    channels: Vec<usize>,
}

/// What a sound's way through all discriminators leaves.
#[derive(Debug)]
pub(crate) struct JudgeTape {
    judges: Vec<SingleTape>,
    /// The sound, halved 0, 1, .. times, and gradients of these.
    scales: Vec<Signal>,
    d_scales: Vec<Signal>,
}

#[derive(Debug)]
struct SingleTape {
    tapes: Vec<Tape>,
    /// The input, of whole periods.
    input: Signal,
    /// Behind every layer, before its leaky ReLU; the last one is the judgement.
    outputs: Vec<Signal>,
    gradients: Vec<Signal>,
    d_input: Signal,
}

impl Discriminators {
    /// Random ones whose widest layers have `width` channels (official: 1024), a power of two.
    pub fn new(width: usize, seed: u64) -> Discriminators {
        let mut parameters = Parameters::default();
        let mut judges = Vec::new();
        let mut judge = |name: String, period, halvings, shapes: Vec<ConvShape>| {
            let mut convs = Vec::new();
            for (index, shape) in shapes.iter().enumerate() {
                let row = shape.c_in / shape.groups * shape.kernel;
                let scale = (row as f32).sqrt().recip();
                let stream = parameters.layers.len() as u32;
                let weights = random_values(seed, stream, shape.weights(), scale);
                let sizes = vec![shape.c_out, shape.c_in / shape.groups, shape.kernel];
                let bias = vec![0.0; shape.c_out];
                parameters.push(format!("{name}.convs.{index}"), sizes, &weights, &bias);
                if let Some(layer) = parameters.layers.last() {
                    convs.push(Conv::new(*shape, layer.weight.clone(), layer.bias.clone()));
                }
            }
            judges.push(Judge {
                period,
                halvings,
                convs,
                channels: shapes.iter().map(|shape| shape.c_out).collect(),
            });
        };
        for period in PERIODS {
            judge(
                format!("mpd.{period}"),
                period,
                0,
                period_shapes(width, period),
            );
        }
        for scale in 0..SCALES {
            judge(format!("msd.{scale}"), 1, scale, scale_shapes(width));
        }
        let mut discriminators = Discriminators { parameters, judges };
        discriminators.load();
        discriminators
    }

    /// Takes the parameters' values over into the layers, after they changed.
    pub fn load(&mut self) {
        for conv in self.judges.iter_mut().flat_map(|judge| &mut judge.convs) {
            conv.load(&self.parameters.values);
        }
    }

    /// An empty tape.
    pub fn tape(&self) -> JudgeTape {
        let single = |judge: &Judge| {
            let signals = || judge.channels.iter().map(|&n| Signal::new(n)).collect();
            SingleTape {
                tapes: judge.convs.iter().map(Conv::tape).collect(),
                input: Signal::new(1),
                outputs: signals(),
                gradients: signals(),
                d_input: Signal::new(1),
            }
        };
        let scales = || (0..SCALES).map(|_| Signal::new(1)).collect();
        JudgeTape {
            judges: self.judges.iter().map(single).collect(),
            scales: scales(),
            d_scales: scales(),
        }
    }

    /// Sends `sound` through all discriminators.
    pub fn forward(&self, isa: Isa, sound: &[f32], tape: &mut JudgeTape) {
        tape.scales[0].set_len(sound.len());
        tape.scales[0].row_mut(0).copy_from_slice(sound);
        for scale in 1..SCALES {
            let (before, rest) = tape.scales.split_at_mut(scale);
            halve(before[scale - 1].row(0), &mut rest[0]);
        }
        for (judge, single) in self.judges.iter().zip(&mut tape.judges) {
            let sound = tape.scales[judge.halvings].row(0);
            let len = sound.len().next_multiple_of(judge.period);
            single.input.set_len(len);
            for (at, to) in single.input.row_mut(0).iter_mut().enumerate() {
                *to = mirrored(sound, at as isize);
            }
            for (index, conv) in judge.convs.iter().enumerate() {
                let (before, rest) = single.outputs.split_at_mut(index);
                let input = match before.last() {
                    Some(x) => (x, SLOPE),
                    None => (&single.input, 1.0),
                };
                conv.forward(isa, input, &mut single.tapes[index], None, &mut rest[0]);
            }
        }
    }

    /// The loss of the discriminators themselves, mean (1 − D)² where `real`, otherwise mean D²,
    /// summed over them, for the sound of the last forward pass. Adds its gradients times `scale`.
    pub fn judge(
        &self,
        isa: Isa,
        real: bool,
        scale: f32,
        tape: &mut JudgeTape,
        gradients: &mut [f32],
    ) -> f64 {
        let mut loss = 0.0;
        for (judge, single) in self.judges.iter().zip(&mut tape.judges) {
            let wanted = if real { 1.0 } else { 0.0 };
            loss += single.judgement(wanted, scale);
            let mut gradients = Some(&mut *gradients);
            for index in (0..judge.convs.len()).rev() {
                let gradients = gradients.as_deref_mut();
                single.back(isa, judge, index, gradients, index > 0);
            }
        }
        loss
    }

    /// The generator's losses from its sound's tape and the real sound's: adversarial mean
    /// (1 − D)², and feature matching mean |features − real features|, both summed, the latter
    /// unweighted. Adds the gradient of adversarial + 2 · features, times `scale`, to `d_sound`.
    pub fn deceive(
        &self,
        isa: Isa,
        real: &JudgeTape,
        scale: f32,
        tape: &mut JudgeTape,
        d_sound: &mut [f32],
    ) -> (f64, f64) {
        let (mut adversarial, mut features) = (0.0, 0.0);
        for (d, x) in tape.d_scales.iter_mut().zip(&tape.scales) {
            d.set_len(x.len());
            d.row_mut(0).fill(0.0);
        }
        for ((judge, single), real) in self.judges.iter().zip(&mut tape.judges).zip(&real.judges) {
            let last = judge.convs.len() - 1;
            adversarial += single.judgement(1.0, scale);
            features += single.match_features(last, real, scale);
            for index in (0..=last).rev() {
                single.back(isa, judge, index, None, true);
                if index > 0 {
                    features += single.match_features(index - 1, real, scale);
                }
            }
            let to = tape.d_scales[judge.halvings].row_mut(0);
            let end = to.len() - 1;
            for (at, d) in single.d_input.row(0).iter().enumerate() {
                // What was mirrored at the end comes back to where it was taken from.
                to[if at > end { 2 * end - at } else { at }] += d;
            }
        }
        for scale in (1..SCALES).rev() {
            let (before, rest) = tape.d_scales.split_at_mut(scale);
            halve_back(rest[0].row(0), before[scale - 1].row_mut(0));
        }
        for (to, d) in d_sound.iter_mut().zip(tape.d_scales[0].row(0)) {
            *to += d;
        }
        (adversarial, features)
    }
}

impl SingleTape {
    /// Mean (wanted − D)², and its gradient times `scale` in the last place.
    fn judgement(&mut self, wanted: f32, scale: f32) -> f64 {
        let last = self.outputs.len() - 1;
        let (output, gradient) = (self.outputs[last].row(0), &mut self.gradients[last]);
        gradient.set_len(output.len());
        let share = scale / output.len() as f32;
        let mut loss = 0.0;
        for (to, &x) in gradient.row_mut(0).iter_mut().zip(output) {
            let off = x - wanted;
            loss += f64::from(off * off);
            *to = 2.0 * off * share;
        }
        loss / output.len() as f64
    }

    /// Mean |a − b| of a layer's activated outputs, whose gradient is added to the layer's.
    fn match_features(&mut self, index: usize, real: &SingleTape, scale: f32) -> f64 {
        let (fake, real) = (&self.outputs[index], &real.outputs[index]);
        let gradient = &mut self.gradients[index];
        // The judgement is a feature too, without a leaky ReLU.
        let slope = if index + 1 == self.outputs.len() {
            1.0
        } else {
            SLOPE
        };
        let activated = |x: f32| if x > 0.0 { x } else { slope * x };
        let count = fake.channels() * fake.len();
        let share = FEATURE_WEIGHT * scale / count as f32;
        let mut loss = 0.0;
        let mut differences = vec![0.0; fake.len()];
        for channel in 0..fake.channels() {
            let rows = fake.row(channel).iter().zip(real.row(channel));
            let to = gradient.row_mut(channel).iter_mut().zip(&mut differences);
            for ((to, difference), (&x, &y)) in to.zip(rows) {
                let off = activated(x) - activated(y);
                *difference = off.abs();
                if off != 0.0 {
                    *to += share * off.signum() * if x > 0.0 { 1.0 } else { slope };
                }
            }
            loss += f64::from(sum(&differences));
        }
        loss / count as f64
    }

    /// A layer's backward pass: from its output's gradient to its input's, if `below` is wanted.
    fn back(
        &mut self,
        isa: Isa,
        judge: &Judge,
        index: usize,
        gradients: Option<&mut [f32]>,
        below: bool,
    ) {
        let (before, rest) = self.gradients.split_at_mut(index);
        let (slope, dx) = match before.last_mut() {
            Some(dx) => (SLOPE, dx),
            None => (1.0, &mut self.d_input),
        };
        let dx = below.then_some(dx);
        judge.convs[index].backward(isa, &rest[0], slope, &mut self.tapes[index], gradients, dx);
    }
}

fn period_shapes(width: usize, period: usize) -> Vec<ConvShape> {
    let mut shapes = Vec::new();
    let mut c_in = 1;
    for (index, part) in PERIOD_CHANNELS.into_iter().enumerate() {
        shapes.push(ConvShape {
            stride: if index < 4 { 3 } else { 1 },
            period,
            ..ConvShape::same(c_in, width / part, 5, 1)
        });
        c_in = width / part;
    }
    shapes.push(ConvShape {
        period,
        ..ConvShape::same(c_in, 1, 3, 1)
    });
    shapes
}

fn scale_shapes(width: usize) -> Vec<ConvShape> {
    let mut shapes = Vec::new();
    let mut c_in = 1;
    for (part, kernel, stride, groups) in SCALE_LAYERS {
        shapes.push(ConvShape {
            stride,
            groups,
            ..ConvShape::same(c_in, width / part, kernel, 1)
        });
        c_in = width / part;
    }
    shapes.push(ConvShape::same(c_in, 1, 3, 1));
    shapes
}

/// Means of four samples, two apart, with two zeros at each end.
fn halve(x: &[f32], out: &mut Signal) {
    out.set_len(x.len() / 2 + 1);
    for (at, to) in out.row_mut(0).iter_mut().enumerate() {
        let first = (2 * at).saturating_sub(2);
        let last = (2 * at + 2).min(x.len());
        *to = x[first..last].iter().sum::<f32>() / 4.0;
    }
}

/// The way back of [`halve`].
fn halve_back(d_out: &[f32], dx: &mut [f32]) {
    let len = dx.len();
    for (at, d) in d_out.iter().enumerate() {
        for to in &mut dx[(2 * at).saturating_sub(2)..(2 * at + 2).min(len)] {
            *to += d / 4.0;
        }
    }
}
