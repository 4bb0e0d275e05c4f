//! Element by element, and the float part's update.

use super::buffer::View;
use super::device::{THREADS, blocks_for, blocks_for_rows, launch};
use super::error::CudaError;
use super::source::SUM_SQUARES_BLOCK;
use crate::adamw::AdamStep;

/// y += x.
///
/// # Panics
/// If the lengths differ.
pub fn add(x: View<'_, f32>, y: View<'_, f32>) -> Result<(), CudaError> {
    let n = y.len();
    let x_at = x.of(n, "as many sums as summands");
    launch!(
        y.device,
        "add",
        blocks_for(n),
        THREADS,
        x_at,
        y.address,
        n as i32
    )
}

/// Adds `bias` (C) to every row of `y` (n, C).
///
/// # Panics
/// If `y` is not whole rows.
pub fn add_bias(bias: View<'_, f32>, y: View<'_, f32>) -> Result<(), CudaError> {
    let (n, width) = (y.len(), bias.len());
    assert!(width > 0 && n.is_multiple_of(width), "rows of {width}");
    launch!(
        y.device,
        "add_bias",
        blocks_for(n),
        THREADS,
        bias.address,
        y.address,
        n as i32,
        width as i32,
    )
}

/// y = gelu(x), the tanh form.
///
/// # Panics
/// If the lengths differ.
pub fn gelu(x: View<'_, f32>, y: View<'_, f32>) -> Result<(), CudaError> {
    let n = y.len();
    let x_at = x.of(n, "as many results as inputs");
    launch!(
        y.device,
        "gelu",
        blocks_for(n),
        THREADS,
        x_at,
        y.address,
        n as i32
    )
}

/// Turns `dy`, the gradient of gelu(x), into that of x.
///
/// # Panics
/// If the lengths differ.
pub fn gelu_backward(x: View<'_, f32>, dy: View<'_, f32>) -> Result<(), CudaError> {
    let n = dy.len();
    let x_at = x.of(n, "as many gradients as inputs");
    launch!(
        dy.device,
        "gelu_backward",
        blocks_for(n),
        THREADS,
        x_at,
        dy.address,
        n as i32,
    )
}

/// y (n, F) = gate · sigmoid(gate) · up for x (n, 2 F) with rows [gate | up], F = `width`.
///
/// # Panics
/// If a length does not match.
pub fn swiglu(x: View<'_, f32>, width: usize, y: View<'_, f32>) -> Result<(), CudaError> {
    let rows = y.len() / width;
    let x_at = x.of(2 * rows * width, "a gate and an up an output");
    launch!(
        y.device,
        "swiglu",
        blocks_for(y.len()),
        THREADS,
        x_at,
        y.address,
        rows as i32,
        width as i32,
    )
}

/// Turns `x`, the input of [`swiglu`], into its gradient; `dy` (n, F) is that of y.
///
/// # Panics
/// If a length does not match.
pub fn swiglu_backward(x: View<'_, f32>, width: usize, dy: View<'_, f32>) -> Result<(), CudaError> {
    let rows = dy.len() / width;
    let x_at = x.of(2 * rows * width, "a gate and an up an output");
    launch!(
        dy.device,
        "swiglu_backward",
        blocks_for(dy.len()),
        THREADS,
        x_at,
        dy.address,
        rows as i32,
        width as i32,
    )
}

/// Turns the first `heads` heads of `head_dim` elements of every row of `x` (n, `row_width`) by
/// the angles of position (`first_position` + row) % T; `cos` and `sin` are (T, head_dim / 2).
/// `back` turns the other way.
///
/// # Panics
/// If a length does not match or `head_dim` is odd.
pub fn rotate(
    x: View<'_, f32>,
    row_width: usize,
    (heads, head_dim): (usize, usize),
    (cos, sin): (View<'_, f32>, View<'_, f32>),
    first_position: usize,
    back: bool,
) -> Result<(), CudaError> {
    let half = head_dim / 2;
    assert!(half > 0 && head_dim.is_multiple_of(2), "a head has halves");
    assert!(heads * head_dim <= row_width, "heads fit a row");
    assert!(x.len().is_multiple_of(row_width), "whole rows");
    let (rows, positions) = (x.len() / row_width, cos.len() / half);
    launch!(
        x.device,
        "rotate",
        blocks_for(rows * heads * half),
        THREADS,
        x.address,
        rows as i32,
        row_width as i32,
        heads as i32,
        head_dim as i32,
        cos.of(positions * half, "angles of whole positions"),
        sin.of(positions * half, "a sine a cosine"),
        positions as i32,
        first_position as i32,
        i32::from(back),
    )
}

/// One AdamW step that takes in grad · `grad_factor` and clears `grad`; all (n) f32.
///
/// # Panics
/// If the lengths differ.
pub fn adamw(
    value: View<'_, f32>,
    grad: View<'_, f32>,
    (m, v): (View<'_, f32>, View<'_, f32>),
    grad_factor: f32,
    step: &AdamStep,
) -> Result<(), CudaError> {
    let n = value.len();
    launch!(
        value.device,
        "adamw",
        blocks_for(n),
        THREADS,
        value.address,
        grad.of(n, "a gradient a value"),
        m.of(n, "moments of every value"),
        v.of(n, "moments of every value"),
        n as i32,
        grad_factor,
        step.rate,
        step.beta1,
        step.beta2,
        step.eps,
        step.decay,
        step.bias1,
        step.bias2,
    )
}

/// Sums of squares of pieces of `x`: `starts` and `lengths` (at most 4096 each) name them, `sums`
/// receives one f32 each. Added up in f64, in order, the pieces of a vector make what the CPU's
/// `sum_squares` returns.
///
/// # Panics
/// If the lengths differ.
pub fn sum_squares(
    x: View<'_, f32>,
    starts: View<'_, u32>,
    lengths: View<'_, u32>,
    sums: View<'_, f32>,
) -> Result<(), CudaError> {
    let blocks = sums.len();
    launch!(
        x.device,
        "sum_squares",
        blocks_for_rows(blocks),
        THREADS,
        x.address,
        starts.of(blocks, "a start a piece"),
        lengths.of(blocks, "a length a piece"),
        blocks as i32,
        sums.address,
    )
}

/// The pieces of [`sum_squares`] that cover a vector of `len` elements from `start` on.
pub fn square_pieces(start: usize, len: usize) -> impl Iterator<Item = (u32, u32)> {
    (0..len).step_by(SUM_SQUARES_BLOCK).map(move |at| {
        let length = SUM_SQUARES_BLOCK.min(len - at);
        ((start + at) as u32, length as u32)
    })
}
