//! The layers of a generator, fed piece by piece: each keeps the columns that it still needs.
//!
//! A layer's `push` takes new columns and fills its output with as many as can be known by now;
//! with `last` the input ends and the rest comes out. What comes out in all does not depend on
//! how the input was cut, to the bit, because every output is one fixed chain of sums.

use primal_kernels::{Conv1d, Isa, Signal};

use crate::config::Padding;
use crate::error::VocoderError;

/// A convolution that keeps the length: half of the margin is padded on each side.
#[derive(Debug)]
pub(crate) struct SameConv {
    pub conv: Conv1d,
    pub padding: Padding,
}

impl SameConv {
    fn pad(&self) -> usize {
        self.conv.margin() / 2
    }

    pub fn state(&self) -> SameConvState {
        SameConvState {
            window: Signal::new(self.conv.c_in()),
            started: false,
        }
    }
}

/// What a [`SameConv`] keeps between two pieces.
#[derive(Debug)]
pub(crate) struct SameConvState {
    /// Input columns, activated, from the first one that the next output reads; before `started`
    /// from the first of all.
    window: Signal,
    /// Whether the padding in front was made.
    started: bool,
}

impl SameConvState {
    /// Takes the first `columns` of `x`, activated by a leaky ReLU of `slope`; adds `residual` to
    /// what comes out.
    pub fn push(
        &mut self,
        isa: Isa,
        layer: &SameConv,
        (x, columns, slope): (&Signal, usize, f32),
        last: bool,
        residual: Option<&Signal>,
        out: &mut Signal,
    ) -> Result<(), VocoderError> {
        let pad = layer.pad();
        if !self.started && layer.padding == Padding::Zeros {
            self.window.append_constant(pad, 0.0);
            self.started = true;
        }
        self.window.append_leaky_relu(isa, x, columns, slope);
        if !self.started && self.window.len() > pad {
            self.mirror_front(isa, pad);
            self.started = true;
        }
        if last {
            match layer.padding {
                Padding::Zeros => self.window.append_constant(pad, 0.0),
                Padding::Reflect if self.started => self.mirror_back(pad),
                Padding::Reflect => {
                    return Err(VocoderError::TooShort {
                        what: "columns for mirrored ends",
                        found: self.window.len(),
                        needed: pad + 1,
                    });
                }
            }
        }
        if !self.started {
            out.set_len(0);
            return Ok(());
        }
        layer.conv.run(isa, &self.window, residual, out);
        self.window.drop_front(out.len());
        Ok(())
    }

    /// Puts columns pad, .., 1 in front of column 0.
    fn mirror_front(&mut self, isa: Isa, pad: usize) {
        let mut mirrored = Signal::new(self.window.channels());
        mirrored.set_len(pad);
        for channel in 0..self.window.channels() {
            let row = self.window.row(channel)[1..=pad].iter().rev();
            for (to, &from) in mirrored.row_mut(channel).iter_mut().zip(row) {
                *to = from;
            }
        }
        mirrored.append(isa, &self.window, self.window.len());
        self.window = mirrored;
    }

    /// Appends the columns before the last one, backwards.
    fn mirror_back(&mut self, pad: usize) {
        let len = self.window.len();
        self.window.set_len(len + pad);
        for channel in 0..self.window.channels() {
            let row = self.window.row_mut(channel);
            for i in 0..pad {
                row[len + i] = row[len - 2 - i];
            }
        }
    }
}

/// A transposed convolution of stride `rate`: as a convolution that makes `rate` rows for every
/// output channel, one for each phase, which are then woven together.
#[derive(Debug)]
pub(crate) struct Upsampler {
    /// c_in → c_out · rate, row = channel · rate + phase.
    phases: Conv1d,
    c_out: usize,
    rate: usize,
    /// Columns cut off at each end: (kernel − rate) / 2.
    cut: usize,
}

impl Upsampler {
    /// From `weights` (c_in, c_out, kernel) and `bias` (c_out).
    pub fn new(weights: &[f32], bias: &[f32], kernel: usize, rate: usize) -> Upsampler {
        let c_out = bias.len();
        let c_in = weights.len() / (c_out * kernel);
        let taps = kernel.div_ceil(rate);
        let mut phases = Vec::with_capacity(c_out * rate * c_in * taps);
        for row in 0..c_out * rate {
            let (channel, phase) = (row / rate, row % rate);
            for input in 0..c_in {
                for tap in (0..taps).rev() {
                    let k = phase + tap * rate;
                    let at = (input * c_out + channel) * kernel + k;
                    phases.push(if k < kernel { weights[at] } else { 0.0 });
                }
            }
        }
        let bias: Vec<f32> = bias
            .iter()
            .flat_map(|&b| std::iter::repeat_n(b, rate))
            .collect();
        Upsampler {
            phases: Conv1d::new(&phases, &bias, taps, 1),
            c_out,
            rate,
            cut: (kernel - rate) / 2,
        }
    }

    /// Columns of input to each side that an output depends on.
    pub fn reach(&self) -> usize {
        self.phases.margin() + 1
    }

    pub fn state(&self) -> UpsamplerState {
        let mut window = Signal::new(self.phases.c_in());
        window.append_constant(self.phases.margin(), 0.0);
        UpsamplerState {
            window,
            woven: Signal::new(self.phases.c_out()),
            to_cut: self.cut,
            to_come: 0,
        }
    }
}

/// What an [`Upsampler`] keeps between two pieces.
#[derive(Debug)]
pub(crate) struct UpsamplerState {
    window: Signal,
    /// Scratch: the phases.
    woven: Signal,
    /// Columns still to be cut off in front.
    to_cut: usize,
    /// Columns that the inputs so far stand for and that did not come out yet.
    to_come: usize,
}

impl UpsamplerState {
    /// Takes the first `columns` of `x`, activated by a leaky ReLU of `slope`.
    pub fn push(
        &mut self,
        isa: Isa,
        layer: &Upsampler,
        (x, columns, slope): (&Signal, usize, f32),
        last: bool,
        out: &mut Signal,
    ) {
        self.window.append_leaky_relu(isa, x, columns, slope);
        self.to_come += columns * layer.rate;
        if last {
            self.window.append_constant(layer.phases.margin(), 0.0);
        }
        layer.phases.run(isa, &self.window, None, &mut self.woven);
        self.window.drop_front(self.woven.len());
        let ready = self.woven.len() * layer.rate;
        let cut = self.to_cut.min(ready);
        self.to_cut -= cut;
        let columns = (ready - cut).min(self.to_come);
        self.to_come -= columns;
        debug_assert_eq!(out.channels(), layer.c_out);
        out.interleave(&self.woven, cut, columns);
    }
}

/// A residual block: for every dilation, x += conv(lrelu(x)), or x += conv(lrelu(conv(lrelu(x)))).
#[derive(Debug)]
pub(crate) struct Block {
    pub units: Vec<Unit>,
}

/// The convolutions of one dilation.
#[derive(Debug)]
pub(crate) struct Unit {
    pub first: SameConv,
    pub second: Option<SameConv>,
}

impl Block {
    /// Columns of input that an output waits for.
    pub fn lag(&self) -> usize {
        self.units
            .iter()
            .map(|unit| unit.first.pad() + unit.second.as_ref().map_or(0, SameConv::pad))
            .sum()
    }

    pub fn state(&self) -> BlockState {
        let channels = self.units[0].first.conv.c_in();
        BlockState {
            units: self
                .units
                .iter()
                .map(|unit| UnitState {
                    first: unit.first.state(),
                    second: unit.second.as_ref().map(SameConv::state),
                    residual: Signal::new(channels),
                })
                .collect(),
            between: Signal::new(channels),
            input: Signal::new(channels),
        }
    }
}

/// What a [`Block`] keeps between two pieces.
#[derive(Debug)]
pub(crate) struct BlockState {
    units: Vec<UnitState>,
    /// Scratch: behind the first convolution of a unit.
    between: Signal,
    /// Scratch: the input of the unit at hand.
    input: Signal,
}

#[derive(Debug)]
struct UnitState {
    first: SameConvState,
    second: Option<SameConvState>,
    /// Inputs whose outputs did not come out yet.
    residual: Signal,
}

impl BlockState {
    pub fn push(
        &mut self,
        isa: Isa,
        block: &Block,
        x: &Signal,
        slope: f32,
        last: bool,
        out: &mut Signal,
    ) -> Result<(), VocoderError> {
        for (index, (unit, state)) in block.units.iter().zip(&mut self.units).enumerate() {
            if index > 0 {
                std::mem::swap(&mut self.input, out);
            }
            let x = if index == 0 { x } else { &self.input };
            state.residual.append(isa, x, x.len());
            let residual = Some(&state.residual);
            let input = (x, x.len(), slope);
            match (&unit.second, &mut state.second) {
                (Some(second), Some(second_state)) => {
                    let between = &mut self.between;
                    state
                        .first
                        .push(isa, &unit.first, input, last, None, between)?;
                    let input = (&*between, between.len(), slope);
                    second_state.push(isa, second, input, last, residual, out)?;
                }
                _ => state
                    .first
                    .push(isa, &unit.first, input, last, residual, out)?,
            }
            state.residual.drop_front(out.len());
        }
        Ok(())
    }
}
