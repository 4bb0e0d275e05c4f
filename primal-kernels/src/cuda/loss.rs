//! Cross-entropy in tiles of the vocabulary, gradients of embeddings.

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for, blocks_for_rows, launch};
use super::error::CudaError;
use crate::loss::VOCAB_TILE;

/// Buffers of the cross-entropy of up to `rows` rows.
#[derive(Debug)]
pub struct CrossEntropy {
    /// (rows, tile) logits, then their gradients.
    pub logits: Buffer<f32>,
    /// (rows, 2) running maximum and sum of exponentials.
    running: Buffer<f32>,
}

impl CrossEntropy {
    /// For `rows` rows against `vocab` tokens.
    pub fn new(device: &Device, rows: usize, vocab: usize) -> Result<Self, CudaError> {
        let tile = vocab.min(VOCAB_TILE);
        Ok(CrossEntropy {
            logits: Buffer::zeros(device, rows * tile, "logits of a tile")?,
            running: Buffer::zeros(device, 2 * rows, "running softmaxes")?,
        })
    }
}

/// Before the first tile.
pub fn loss_begin(scratch: &CrossEntropy, losses: View<'_, f32>) -> Result<(), CudaError> {
    let n = losses.len();
    launch!(
        losses.device,
        "loss_begin",
        blocks_for(n),
        THREADS,
        scratch.running.view(..2 * n).address,
        losses.address,
        n as i32,
    )
}

/// Takes in the logits (n, width) of vocabulary rows `start`.. in `scratch`.
pub fn loss_tile(
    scratch: &CrossEntropy,
    targets: View<'_, u32>,
    (start, width): (usize, usize),
    losses: View<'_, f32>,
) -> Result<(), CudaError> {
    let n = losses.len();
    launch!(
        losses.device,
        "loss_tile",
        blocks_for_rows(n),
        THREADS,
        scratch.logits.view(..n * width).address,
        targets.of(n, "a target a row"),
        n as i32,
        width as i32,
        start as i32,
        scratch.running.view(..2 * n).address,
        losses.address,
    )
}

/// After the last tile: losses in nats, 0 where there is no target, and `lse` (n).
pub fn loss_end(
    scratch: &CrossEntropy,
    targets: View<'_, u32>,
    losses: View<'_, f32>,
    lse: View<'_, f32>,
) -> Result<(), CudaError> {
    let n = losses.len();
    launch!(
        losses.device,
        "loss_end",
        blocks_for(n),
        THREADS,
        scratch.running.view(..2 * n).address,
        targets.of(n, "a target a row"),
        n as i32,
        losses.address,
        lse.of(n, "an lse a row"),
    )
}

/// Turns the logits (n, width) of vocabulary rows `start`.. in `scratch` into their gradients.
pub fn loss_gradient(
    scratch: &CrossEntropy,
    targets: View<'_, u32>,
    lse: View<'_, f32>,
    (start, width): (usize, usize),
    grad_scale: f32,
) -> Result<(), CudaError> {
    let n = targets.len();
    launch!(
        targets.device,
        "loss_gradient",
        blocks_for(n * width),
        THREADS,
        scratch.logits.view(..n * width).address,
        targets.address,
        lse.of(n, "an lse a row"),
        n as i32,
        width as i32,
        start as i32,
        grad_scale,
    )
}

/// sums (pieces) f64 = the losses of each piece of `piece_rows` rows, added up in order.
pub fn sum_losses(
    losses: View<'_, f32>,
    piece_rows: usize,
    sums: View<'_, f64>,
) -> Result<(), CudaError> {
    launch!(
        losses.device,
        "sum_losses",
        [sums.len(), 1, 1],
        THREADS,
        losses.of(sums.len() * piece_rows, "pieces of rows"),
        piece_rows as i32,
        sums.address,
    )
}

/// grad (rows, C), of the embeddings of tokens `first`.., += the rows of `d_stream` (n, C) that
/// hold each token (or =, with `overwrite`). `order` lists row numbers by token, in order;
/// `starts` (V + 1) says where each token's begin.
pub fn embedding_gradient(
    d_stream: View<'_, f32>,
    starts: View<'_, u32>,
    order: View<'_, u32>,
    (first, rows): (usize, usize),
    overwrite: bool,
    grad: View<'_, f32>,
) -> Result<(), CudaError> {
    assert!(first + rows < starts.len(), "a start a token");
    let width = grad.len() / rows;
    assert_eq!(d_stream.len(), order.len() * width, "a row a token");
    launch!(
        grad.device,
        "embedding_gradient",
        blocks_for(grad.len()),
        THREADS,
        d_stream.address,
        starts.address,
        order.address,
        first as i32,
        rows as i32,
        width as i32,
        i32::from(overwrite),
        grad.address,
    )
}

/// grad (rows, C), of positions `first`.., = the sums over sequences of d_stream
/// (sequences, time, C).
pub fn position_gradient(
    d_stream: View<'_, f32>,
    (sequences, time): (usize, usize),
    (first, rows): (usize, usize),
    grad: View<'_, f32>,
) -> Result<(), CudaError> {
    let width = grad.len() / rows;
    assert!(first + rows <= time, "positions of {time}");
    launch!(
        grad.device,
        "position_gradient",
        blocks_for(grad.len()),
        THREADS,
        d_stream.of(sequences * time * width, "d_stream is (B, T, C)"),
        sequences as i32,
        time as i32,
        first as i32,
        rows as i32,
        width as i32,
        grad.address,
    )
}
