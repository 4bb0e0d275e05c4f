//! Dilated 1-D convolution in float32, blocked for registers and caches.
//!
//! Every output is one chain of fused multiply-adds: bias, then input channels in order, and
//! within a channel the taps in order. So it has the same bits on every tier, for any number of
//! threads and wherever a signal is cut; blocking only decides which chains run side by side.

mod gradient;

use rayon::prelude::*;

use crate::isa::{Isa, Tier, dispatch};
use crate::lanes::{LANES, Lanes};
use crate::signal::Signal;

pub use gradient::conv1d_weight_gradient;

/// Output channels whose weights lie together.
const PANEL: usize = 8;

/// Columns of a task: their inputs stay in the L2 cache while the panels pass.
const BLOCK_COLUMNS: usize = 192;

/// Tasks to cut a convolution into, so that threads end at about the same time.
const TASKS: usize = 16;

/// Multiplications below which waking a second thread costs more than it saves.
const PARALLEL_WORK: usize = 1 << 24;

/// The weights of a convolution, packed: `y[o][t] = b[o] + Σ w[o][i][k] · x[i][t + k · dilation]`.
///
/// Nothing is padded: `len` input columns make `len - (kernel - 1) * dilation` output columns.
/// (This is what neural networks call a convolution: the taps are not reversed.)
#[derive(Debug, Clone)]
pub struct Conv1d {
    c_out: usize,
    c_in: usize,
    kernel: usize,
    dilation: usize,
    /// Panel after panel (c_in, kernel, up to PANEL output channels).
    weights: Vec<f32>,
    /// (c_out).
    bias: Vec<f32>,
}

impl Conv1d {
    /// Packs `weights` (c_out, c_in, kernel), row-major, and `bias` (c_out).
    ///
    /// # Panics
    /// If a length does not match or a size is 0.
    pub fn new(weights: &[f32], bias: &[f32], kernel: usize, dilation: usize) -> Conv1d {
        let c_out = bias.len();
        assert!(c_out > 0 && kernel > 0 && dilation > 0, "sizes are not 0");
        let depth = weights.len() / c_out;
        assert_eq!(
            weights.len(),
            c_out * depth,
            "weights are (c_out, c_in, kernel)"
        );
        assert!(depth > 0 && depth.is_multiple_of(kernel), "(c_in, kernel)");
        let mut conv = Conv1d {
            c_out,
            c_in: depth / kernel,
            kernel,
            dilation,
            weights: vec![0.0; weights.len()],
            bias: bias.to_vec(),
        };
        conv.set(weights, bias);
        conv
    }

    /// Packs other weights and another bias of the same shapes.
    ///
    /// # Panics
    /// If a length differs.
    pub fn set(&mut self, weights: &[f32], bias: &[f32]) {
        assert_eq!(weights.len(), self.weights.len(), "as many weights");
        self.bias.copy_from_slice(bias);
        let depth = self.c_in * self.kernel;
        let panels = weights.chunks(PANEL * depth);
        for (to, panel) in self.weights.chunks_mut(PANEL * depth).zip(panels) {
            let height = panel.len() / depth;
            for (d, to) in to.chunks_exact_mut(height).enumerate() {
                for (to, from) in to.iter_mut().zip(panel.iter().skip(d).step_by(depth)) {
                    *to = *from;
                }
            }
        }
    }

    /// Channels of the output.
    pub fn c_out(&self) -> usize {
        self.c_out
    }

    /// Channels of the input.
    pub fn c_in(&self) -> usize {
        self.c_in
    }

    /// Columns that the input has more than the output: (kernel − 1) · dilation.
    pub fn margin(&self) -> usize {
        (self.kernel - 1) * self.dilation
    }

    /// Fills `output` with the convolution of all of `input`, plus the first columns of
    /// `residual` if there is one.
    ///
    /// # Panics
    /// If channels do not match or `residual` has fewer columns than the output.
    pub fn run(&self, isa: Isa, input: &Signal, residual: Option<&Signal>, output: &mut Signal) {
        assert_eq!(input.channels(), self.c_in, "input channels");
        assert_eq!(output.channels(), self.c_out, "output channels");
        let columns = input.len().saturating_sub(self.margin());
        output.set_len(columns);
        if let Some(residual) = residual {
            assert_eq!(residual.channels(), self.c_out, "residual channels");
            assert!(residual.len() >= columns, "a residual for every column");
        }
        if columns == 0 {
            return;
        }
        let (to_stride, to) = (output.stride(), Shared(output.data_mut().as_mut_ptr()));
        let panels = self.c_out.div_ceil(PANEL);
        let blocks = columns.div_ceil(BLOCK_COLUMNS);
        let groups = TASKS.div_ceil(blocks).min(panels);
        let task = |index: usize| {
            let (block, group) = (index / groups, index % groups);
            let first = block * BLOCK_COLUMNS;
            let task = Task {
                conv: self,
                input,
                residual,
                to,
                to_stride,
                first,
                columns: BLOCK_COLUMNS.min(columns - first),
            };
            let panels = group * panels / groups..(group + 1) * panels / groups;
            // SAFETY: tasks differ in their panels or in their block of columns, blocks start at
            // whole vectors, and behind the last one `output` has room for a vector: no other
            // task touches what this one writes. Channels and columns were checked above.
            match isa.tier() {
                Tier::Avx512 => dispatch!(isa, run_task::<8, 3>(task, panels)),
                _ => dispatch!(isa, run_task::<4, 1>(task, panels)),
            }
        };
        let tasks = blocks * groups;
        let work = columns * self.weights.len();
        if work < PARALLEL_WORK || rayon::current_num_threads() == 1 {
            (0..tasks).for_each(task);
        } else {
            (0..tasks).into_par_iter().for_each(task);
        }
    }
}

/// The output, written by many threads in places of their own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: tasks write to disjoint elements, see `Conv1d::run`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A block of columns.
#[derive(Clone, Copy)]
struct Task<'a> {
    conv: &'a Conv1d,
    input: &'a Signal,
    residual: Option<&'a Signal>,
    to: Shared,
    to_stride: usize,
    first: usize,
    columns: usize,
}

/// Computes some panels of a block, in tiles of `R` channels by `V` vectors.
#[inline(always)]
fn run_task<L: Lanes, const R: usize, const V: usize>(
    lanes: L,
    task: Task<'_>,
    panels: std::ops::Range<usize>,
) {
    for panel in panels {
        let first_row = panel * PANEL;
        let height = PANEL.min(task.conv.c_out - first_row);
        let mut done = 0;
        while done < height {
            let place = (first_row, height, done);
            let left = height - done;
            done += if left >= R {
                run_rows::<L, R, V>(lanes, task, place);
                R
            } else if left >= 4 {
                run_rows::<L, 4, V>(lanes, task, place);
                4
            } else if left >= 2 {
                run_rows::<L, 2, V>(lanes, task, place);
                2
            } else {
                run_rows::<L, 1, V>(lanes, task, place);
                1
            };
        }
    }
}

/// Computes `R` channels of a block: those that begin at row `done` of the panel of `height` rows
/// at `first_row`.
#[inline(always)]
fn run_rows<L: Lanes, const R: usize, const V: usize>(
    lanes: L,
    task: Task<'_>,
    place: (usize, usize, usize),
) {
    let mut column = 0;
    while column < task.columns {
        match (task.columns - column).div_ceil(LANES) {
            1 => run_tile::<L, R, 1>(lanes, task, place, column),
            2 if V > 1 => run_tile::<L, R, 2>(lanes, task, place, column),
            _ => run_tile::<L, R, V>(lanes, task, place, column),
        }
        column += V * LANES;
    }
}

// Loops over constant ranges are unrolled, and then the tile lives in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn run_tile<L: Lanes, const R: usize, const V: usize>(
    lanes: L,
    task: Task<'_>,
    (first_row, height, done): (usize, usize, usize),
    column: usize,
) {
    let conv = task.conv;
    let depth = conv.c_in * conv.kernel;
    let column = task.first + column;
    let row = first_row + done;
    let stride = task.input.stride();
    let mut sums = [[lanes.zero(); V]; R];
    for r in 0..R {
        sums[r] = [lanes.splat(conv.bias[row + r]); V];
    }
    // SAFETY: `weights` holds (c_in, kernel, height) behind `first_row * depth`, and
    // done + R <= height. The last vector begins before the end of the output's columns, so that
    // reading it `margin` columns later ends within a vector behind the input's columns, which
    // every row of a `Signal` has.
    unsafe {
        let mut weight = conv.weights.as_ptr().add(first_row * depth + done);
        for channel in 0..conv.c_in {
            let mut x = task.input.data().as_ptr().add(channel * stride + column);
            for _ in 0..conv.kernel {
                let mut inputs = [lanes.zero(); V];
                for v in 0..V {
                    inputs[v] = lanes.load(&*x.add(v * LANES).cast::<[f32; LANES]>());
                }
                for r in 0..R {
                    let w = lanes.splat(*weight.add(r));
                    for v in 0..V {
                        sums[r][v] = lanes.fma(w, inputs[v], sums[r][v]);
                    }
                }
                weight = weight.add(height);
                x = x.add(conv.dilation);
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            let column = column + v * LANES;
            let mut sum = sums[r][v];
            if let Some(residual) = task.residual {
                let at = (row + r) * residual.stride() + column;
                // SAFETY: a vector that begins within the columns ends within the row's room.
                let x = unsafe { &*residual.data().as_ptr().add(at).cast::<[f32; LANES]>() };
                sum = lanes.add(sum, lanes.load(x));
            }
            let at = (row + r) * task.to_stride + column;
            // SAFETY: as above, and these elements are this task's alone.
            let to = unsafe { &mut *task.to.0.add(at).cast::<[f32; LANES]>() };
            lanes.store(sum, to);
        }
    }
}

#[cfg(test)]
mod tests;
