//! Tiled causal attention, forward, backward and for one new token.

use super::buffer::View;
use super::device::{THREADS, blocks_for_rows, launch};
use super::error::CudaError;
use crate::attention::AttentionShape;

/// The `Attention` of attention.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawAttention {
    time: i32,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    scale: f32,
}

/// The kernels for heads of up to some width, and the rows of their blocks.
struct Kernels {
    forward: &'static str,
    queries: &'static str,
    keys: &'static str,
    forward_rows: usize,
    query_rows: usize,
    key_rows: usize,
    forward_threads: u32,
    key_threads: u32,
}

const UP_TO_64: Kernels = Kernels {
    forward: "attention_forward_64",
    queries: "attention_backward_queries_64",
    keys: "attention_backward_keys_64",
    forward_rows: 64,
    query_rows: 32,
    key_rows: 32,
    forward_threads: 256,
    key_threads: 128,
};

const UP_TO_128: Kernels = Kernels {
    forward: "attention_forward_128",
    queries: "attention_backward_queries_128",
    keys: "attention_backward_keys_128",
    forward_rows: 16,
    query_rows: 8,
    key_rows: 16,
    forward_threads: 128,
    key_threads: 128,
};

fn raw(shape: &AttentionShape) -> RawAttention {
    RawAttention {
        time: shape.time as i32,
        heads: shape.heads as i32,
        kv_heads: shape.kv_heads as i32,
        head_dim: shape.head_dim as i32,
        scale: shape.scale(),
    }
}

fn kernels(shape: &AttentionShape) -> Result<&'static Kernels, CudaError> {
    if !shape.causal {
        let reason = "attention over whole sequences runs on the processor alone";
        return Err(CudaError::Unsupported(reason.to_string()));
    }
    match shape.head_dim {
        1..=64 => Ok(&UP_TO_64),
        65..=128 => Ok(&UP_TO_128),
        wide => Err(CudaError::Unsupported(format!(
            "heads of {wide} elements: the GPU's attention takes up to 128"
        ))),
    }
}

/// out = softmax(mask(q kᵀ / √D)) v; `qkv` (B, T, (H + 2·KV)·D), `out` (B, T, H·D), `lse`
/// (B, H, T).
///
/// # Panics
/// If a length does not match the shape.
pub fn attention(
    shape: &AttentionShape,
    qkv: View<'_, f32>,
    out: View<'_, f32>,
    lse: View<'_, f32>,
) -> Result<(), CudaError> {
    let kernels = kernels(shape)?;
    let tokens = shape.batch * shape.time;
    launch!(
        out.device,
        kernels.forward,
        [
            shape.time.div_ceil(kernels.forward_rows),
            shape.heads,
            shape.batch
        ],
        kernels.forward_threads,
        qkv.of(tokens * shape.qkv_width(), "qkv is (B, T, (H + 2 KV) D)"),
        out.of(tokens * shape.width(), "out is (B, T, H D)"),
        lse.of(tokens * shape.heads, "lse is (B, H, T)"),
        raw(shape),
    )
}

/// The gradient of [`attention`]: `dqkv` is overwritten; `dots` (B, H, T) is scratch.
///
/// # Panics
/// If a length does not match the shape.
pub fn attention_backward(
    shape: &AttentionShape,
    qkv: View<'_, f32>,
    out: View<'_, f32>,
    lse: View<'_, f32>,
    dout: View<'_, f32>,
    dqkv: View<'_, f32>,
    dots: View<'_, f32>,
) -> Result<(), CudaError> {
    let kernels = kernels(shape)?;
    let tokens = shape.batch * shape.time;
    let qkv_at = qkv.of(tokens * shape.qkv_width(), "qkv is (B, T, (H + 2 KV) D)");
    let dqkv_at = dqkv.of(qkv.len(), "dqkv is like qkv");
    let dout_at = dout.of(tokens * shape.width(), "dout is (B, T, H D)");
    let lse_at = lse.of(tokens * shape.heads, "lse is (B, H, T)");
    let dots_at = dots.of(tokens * shape.heads, "dots are (B, H, T)");
    launch!(
        dqkv.device,
        "attention_dots",
        blocks_for_rows(tokens * shape.heads),
        THREADS,
        out.of(tokens * shape.width(), "out is (B, T, H D)"),
        dout_at,
        dots_at,
        raw(shape),
        tokens as i32,
    )?;
    launch!(
        dqkv.device,
        kernels.queries,
        [
            shape.time.div_ceil(kernels.query_rows),
            shape.heads,
            shape.batch
        ],
        kernels.forward_threads,
        qkv_at,
        lse_at,
        dots_at,
        dout_at,
        dqkv_at,
        raw(shape),
    )?;
    launch!(
        dqkv.device,
        kernels.keys,
        [
            shape.time.div_ceil(kernels.key_rows),
            shape.kv_heads,
            shape.batch
        ],
        kernels.key_threads,
        qkv_at,
        lse_at,
        dots_at,
        dout_at,
        dqkv_at,
        raw(shape),
    )
}

/// Attention of one new token's queries `q` (H·D) over `shape.time` cached `keys` and `values`
/// (time, KV·D); `out` (H·D).
///
/// # Panics
/// If a length does not match the shape.
pub fn attention_decode(
    shape: &AttentionShape,
    q: View<'_, f32>,
    keys: View<'_, f32>,
    values: View<'_, f32>,
    out: View<'_, f32>,
) -> Result<(), CudaError> {
    assert!(
        shape.batch == 1 && shape.time > 0,
        "one sequence with a token"
    );
    let cached = shape.time * shape.kv_heads * shape.head_dim;
    launch!(
        out.device,
        "attention_decode",
        blocks_for_rows(shape.heads),
        THREADS,
        q.of(shape.width(), "q is (H D)"),
        keys.of(cached, "keys are (time, KV D)"),
        values.of(cached, "values are (time, KV D)"),
        out.of(shape.width(), "out is (H D)"),
        raw(shape),
    )
}
