//! A convolution that learns: forward and backward of one segment, on the calling thread.
//!
//! Strides, groups, periods and transposition all come down to one convolution of stride 1: a
//! stride s makes s channels of every one, a period p makes a dilation p, and a transposed
//! convolution makes `rate` channels that are woven together. So one kernel serves the forward
//! pass, the gradient of the input (the same with the taps reversed) and that of the weights.

use std::ops::Range;

use primal_kernels::{Conv1d, Isa, Signal, conv1d_weight_gradient};

/// No weight of the parameters: a zero that rounds a kernel up to whole strides.
const NONE: u32 = u32::MAX;

/// A convolution's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConvShape {
    pub c_in: usize,
    pub c_out: usize,
    pub kernel: usize,
    /// Rows from one output to the next; 1 for a dilated and for a transposed convolution.
    pub stride: usize,
    pub dilation: usize,
    pub groups: usize,
    /// Zeros at each end, in rows.
    pub pad: usize,
    /// Columns of a row: p for a discriminator that sees samples p apart, otherwise 1.
    pub period: usize,
    /// Outputs of an input column, for a transposed convolution; otherwise 0.
    pub rate: usize,
}

impl ConvShape {
    /// One that keeps the length.
    pub fn same(c_in: usize, c_out: usize, kernel: usize, dilation: usize) -> ConvShape {
        ConvShape {
            c_in,
            c_out,
            kernel,
            stride: 1,
            dilation,
            groups: 1,
            pad: (kernel - 1) * dilation / 2,
            period: 1,
            rate: 0,
        }
    }

    /// A transposed one that makes `rate` columns of every one.
    pub fn transposed(c_in: usize, c_out: usize, kernel: usize, rate: usize) -> ConvShape {
        ConvShape {
            pad: kernel.div_ceil(rate) - 1,
            rate,
            ..ConvShape::same(c_in, c_out, kernel, 1)
        }
    }

    /// Number of weights: (c_out, c_in / groups, kernel), transposed (c_in, c_out, kernel).
    pub fn weights(&self) -> usize {
        self.c_in * self.c_out * self.kernel / self.groups
    }

    /// Phases that an output row is made of: `rate` transposed, otherwise 1.
    fn weave(&self) -> usize {
        self.rate.max(1)
    }

    /// Taps of the convolution of stride 1.
    fn taps(&self) -> usize {
        self.kernel.div_ceil(self.stride.max(self.rate))
    }

    /// Channels (out, in) of a group of the convolution of stride 1.
    fn group_channels(&self) -> (usize, usize) {
        (
            self.c_out / self.groups * self.weave(),
            self.c_in / self.groups * self.stride,
        )
    }

    /// Columns between the taps of the convolution of stride 1.
    fn spacing(&self) -> usize {
        self.dilation * self.period
    }

    /// Columns that the window of the convolution of stride 1 has more than its output.
    fn margin(&self) -> usize {
        (self.taps() - 1) * self.spacing()
    }

    /// Columns of the convolution of stride 1 for an input of `columns`.
    fn columns_inside(&self, columns: usize) -> usize {
        let reach = (self.kernel - 1) * self.dilation + 1;
        match self.rate {
            0 => {
                let rows = columns / self.period + 2 * self.pad;
                (rows.saturating_sub(reach) / self.stride + 1) * self.period
            }
            _ => columns + self.margin(),
        }
    }

    /// Place of a packed weight (group, out, in, tap) among the parameters' weights.
    fn place(&self, group: usize, out: usize, input: usize, tap: usize) -> u32 {
        let place = match self.rate {
            0 => {
                let (channel, phase) = (input / self.stride, input % self.stride);
                let k = tap * self.stride + phase;
                let row = group * (self.c_out / self.groups) + out;
                let row = row * (self.c_in / self.groups) + channel;
                (k < self.kernel).then(|| row * self.kernel + k)
            }
            rate => {
                let (channel, phase) = (out / rate, out % rate);
                let k = phase + (self.taps() - 1 - tap) * rate;
                (k < self.kernel).then(|| (input * self.c_out + channel) * self.kernel + k)
            }
        };
        place.map_or(NONE, |place| place as u32)
    }
}

/// A convolution whose weights lie among a network's parameters.
#[derive(Debug)]
pub(crate) struct Conv {
    shape: ConvShape,
    /// Where its weights and its bias lie.
    weight: Range<usize>,
    bias: Range<usize>,
    /// Places of the packed weights (groups, c_out, c_in, taps) among the weights.
    map: Vec<u32>,
    groups: Vec<Group>,
    /// Scratch of [`Conv::load`]: packed weights of a group, and the same with inputs and outputs
    /// exchanged and taps reversed.
    packed: Vec<f32>,
    reversed: Vec<f32>,
    packed_bias: Vec<f32>,
}

#[derive(Debug)]
struct Group {
    forward: Conv1d,
    /// From the gradient of the output to that of the window.
    backward: Conv1d,
}

/// What a convolution keeps from its forward pass over a segment, and scratch.
#[derive(Debug)]
pub(crate) struct Tape {
    /// The activated and padded input of every group, as the convolution of stride 1 reads it.
    windows: Vec<Signal>,
    /// Columns of the input.
    columns: usize,
    /// Outputs of a group, or of all phases.
    inside: Signal,
    /// Gradient of `inside`, padded.
    d_inside: Signal,
    d_window: Signal,
    d_packed: Vec<f32>,
}

impl Conv {
    /// Of `shape`, its weights and bias at these places.
    pub fn new(shape: ConvShape, weight: Range<usize>, bias: Range<usize>) -> Conv {
        let ((outs, ins), taps) = (shape.group_channels(), shape.taps());
        let mut map = Vec::with_capacity(shape.groups * outs * ins * taps);
        for group in 0..shape.groups {
            for out in 0..outs {
                for input in 0..ins {
                    map.extend((0..taps).map(|tap| shape.place(group, out, input, tap)));
                }
            }
        }
        let packed = vec![0.0; outs * ins * taps];
        let group = || Group {
            forward: Conv1d::new(&packed, &vec![0.0; outs], taps, shape.spacing()),
            backward: Conv1d::new(&packed, &vec![0.0; ins], taps, shape.spacing()),
        };
        Conv {
            shape,
            weight,
            bias,
            map,
            groups: (0..shape.groups).map(|_| group()).collect(),
            reversed: packed.clone(),
            packed,
            packed_bias: vec![0.0; outs],
        }
    }

    /// An empty tape.
    pub fn tape(&self) -> Tape {
        let (outs, ins) = self.shape.group_channels();
        Tape {
            windows: (0..self.shape.groups).map(|_| Signal::new(ins)).collect(),
            columns: 0,
            inside: Signal::new(outs),
            d_inside: Signal::new(outs),
            d_window: Signal::new(ins),
            d_packed: vec![0.0; self.packed.len()],
        }
    }

    /// Takes over the parameters' values.
    pub fn load(&mut self, parameters: &[f32]) {
        let weights = &parameters[self.weight.clone()];
        let bias = &parameters[self.bias.clone()];
        let ((outs, ins), taps) = (self.shape.group_channels(), self.shape.taps());
        let no_bias = vec![0.0; ins];
        let maps = self.map.chunks_exact(self.packed.len());
        for (index, (group, map)) in self.groups.iter_mut().zip(maps).enumerate() {
            for (to, &place) in self.packed.iter_mut().zip(map) {
                *to = weights.get(place as usize).copied().unwrap_or(0.0);
            }
            for (to, row) in self.packed_bias.iter_mut().zip(index * outs..) {
                *to = bias[row / self.shape.weave()];
            }
            for (at, &weight) in self.packed.iter().enumerate() {
                let (out, input, tap) = (at / taps / ins, at / taps % ins, at % taps);
                self.reversed[(input * outs + out) * taps + taps - 1 - tap] = weight;
            }
            group.forward.set(&self.packed, &self.packed_bias);
            group.backward.set(&self.reversed, &no_bias);
        }
    }

    /// `out` = convolution of the leaky ReLU of `x` (slope 1: of x itself) plus `residual`.
    pub fn forward(
        &self,
        isa: Isa,
        (x, slope): (&Signal, f32),
        tape: &mut Tape,
        residual: Option<&Signal>,
        out: &mut Signal,
    ) {
        let shape = &self.shape;
        let inside = shape.columns_inside(x.len());
        let ins = shape.c_in / shape.groups;
        tape.columns = x.len();
        for (index, window) in tape.windows.iter_mut().enumerate() {
            window.set_len(inside + shape.margin());
            for channel in 0..ins {
                let row = x.row(index * ins + channel);
                for phase in 0..shape.stride {
                    let to = window.row_mut(channel * shape.stride + phase);
                    fill_phase(shape, phase, (row, slope), to);
                }
            }
        }
        if shape.groups == 1 && shape.rate == 0 {
            let forward = &self.groups[0].forward;
            return forward.run(isa, &tape.windows[0], residual, out);
        }
        if shape.rate > 0 {
            let forward = &self.groups[0].forward;
            forward.run(isa, &tape.windows[0], None, &mut tape.inside);
            let cut = (shape.kernel - shape.rate) / 2;
            return out.interleave(&tape.inside, cut, x.len() * shape.rate);
        }
        let outs = shape.c_out / shape.groups;
        out.set_len(inside);
        for (index, (group, window)) in self.groups.iter().zip(&tape.windows).enumerate() {
            group.forward.run(isa, window, None, &mut tape.inside);
            for row in 0..outs {
                let to = out.row_mut(index * outs + row);
                to.copy_from_slice(tape.inside.row(row));
            }
        }
    }

    /// From the gradient `dy` of the output: adds that of the weights and the bias to `gradients`
    /// (which lie as the parameters do), and sets `dx` to that of the input.
    pub fn backward(
        &self,
        isa: Isa,
        dy: &Signal,
        slope: f32,
        tape: &mut Tape,
        gradients: Option<&mut [f32]>,
        mut dx: Option<&mut Signal>,
    ) {
        let shape = &self.shape;
        let (margin, inside) = (shape.margin(), shape.columns_inside(tape.columns));
        // Columns of the window whose gradient is wanted: of stride 1 only those of the input.
        let (first, count) = match shape.stride {
            1 => (shape.pad * shape.period, tape.columns),
            _ => (0, inside + margin),
        };
        let lead = margin - first;
        let outs = shape.group_channels().0;
        if let Some(dx) = &mut dx {
            dx.set_len(tape.columns);
        }
        let mut gradients = gradients;
        for (index, group) in self.groups.iter().enumerate() {
            let d_inside = &mut tape.d_inside;
            d_inside.set_len(count + margin);
            for row in 0..outs {
                let to = d_inside.row_mut(row);
                to.fill(0.0);
                let from = dy.row((index * outs + row) / shape.weave());
                match shape.rate {
                    0 => to[lead..lead + inside].copy_from_slice(from),
                    rate => {
                        let cut = (shape.kernel - rate) / 2;
                        // Column t of phase p is output t · rate + p − cut.
                        let skipped = cut.saturating_sub(row % rate).div_ceil(rate);
                        let from = &from[skipped * rate + row % rate - cut..];
                        let to = to[lead + skipped..lead + inside].iter_mut();
                        for (to, &from) in to.zip(from.iter().step_by(rate)) {
                            *to = from;
                        }
                    }
                }
            }
            let window = &tape.windows[index];
            if let Some(gradients) = &mut gradients {
                tape.d_packed.fill(0.0);
                let sizes = (shape.taps(), shape.spacing());
                let dy = (&*d_inside, lead);
                conv1d_weight_gradient(isa, dy, window, inside, sizes, &mut tape.d_packed);
                let to = &mut gradients[self.weight.clone()];
                let map = &self.map[index * self.packed.len()..];
                for (&value, &place) in tape.d_packed.iter().zip(map) {
                    if let Some(to) = to.get_mut(place as usize) {
                        *to += value;
                    }
                }
                let to = &mut gradients[self.bias.clone()];
                for row in 0..outs {
                    let sum: f32 = sum(&d_inside.row(row)[lead..lead + inside]);
                    to[(index * outs + row) / shape.weave()] += sum;
                }
            }
            if let Some(dx) = &mut dx {
                group.backward.run(isa, d_inside, None, &mut tape.d_window);
                let ins = shape.c_in / shape.groups;
                for channel in 0..ins {
                    let to = dx.row_mut(index * ins + channel);
                    for phase in 0..shape.stride {
                        let row = channel * shape.stride + phase;
                        let window = &window.row(row)[first..];
                        let from = tape.d_window.row(row);
                        spread_phase(shape, phase, (from, window, slope), to);
                    }
                }
            }
        }
    }
}

/// Fills a window's row with every `stride`-th row of the padded and activated `x`.
fn fill_phase(shape: &ConvShape, phase: usize, (x, slope): (&[f32], f32), to: &mut [f32]) {
    let period = shape.period;
    let activated = |to: &mut [f32], x: &[f32]| {
        for (to, &x) in to.iter_mut().zip(x) {
            *to = if x > 0.0 { x } else { slope * x };
        }
    };
    if shape.stride == 1 {
        let first = shape.pad * period;
        let last = (first + x.len()).min(to.len());
        to[..first].fill(0.0);
        activated(&mut to[first..last], x);
        to[last..].fill(0.0);
        return;
    }
    for (row, to) in to.chunks_exact_mut(period).enumerate() {
        let at = (row * shape.stride + phase).checked_sub(shape.pad);
        let from = at.and_then(|at| x.get(at * period..(at + 1) * period));
        match from {
            Some(from) => activated(to, from),
            None => to.fill(0.0),
        }
    }
}

/// The way back of [`fill_phase`]: the gradient of a window's row becomes that of `x`, where
/// `window` says on which side of zero it was. With stride 1, rows begin at x's own first.
fn spread_phase(
    shape: &ConvShape,
    phase: usize,
    (from, window, slope): (&[f32], &[f32], f32),
    dx: &mut [f32],
) {
    let period = shape.period;
    let through = |to: &mut [f32], from: &[f32], window: &[f32]| {
        for ((to, &from), &x) in to.iter_mut().zip(from).zip(window) {
            *to = if x > 0.0 { from } else { slope * from };
        }
    };
    if shape.stride == 1 {
        return through(dx, from, window);
    }
    // Rows behind the last that an output reads have no gradient.
    let seen = (from.len() / period) * shape.stride;
    for (row, to) in dx.chunks_exact_mut(period).enumerate() {
        let at = row + shape.pad;
        if at % shape.stride != phase {
            continue;
        }
        if at >= seen {
            to.fill(0.0);
            continue;
        }
        let at = at / shape.stride * period;
        through(to, &from[at..], &window[at..]);
    }
}

/// A sum in sixteen lanes, so that it is fast and always the same.
pub(crate) fn sum(x: &[f32]) -> f32 {
    let (chunks, tail) = x.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x;
        }
    }
    lanes.iter().sum::<f32>() + tail.iter().sum::<f32>()
}
