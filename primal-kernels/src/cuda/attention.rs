//! Tiled causal attention, forward, backward and for new tokens over a cache.

use super::buffer::{Buffer, View};
use super::device::{Device, THREADS, blocks_for, blocks_for_rows, launch};
use super::error::CudaError;
use crate::attention::{AttentionShape, CacheKind, TILE};
use crate::lanes::LANES;

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
    check_head(shape.head_dim)?;
    Ok(match shape.head_dim {
        ..=64 => &UP_TO_64,
        _ => &UP_TO_128,
    })
}

fn check_head(head_dim: usize) -> Result<(), CudaError> {
    if head_dim > 128 {
        return Err(CudaError::Unsupported(format!(
            "heads of {head_dim} elements: the GPU's attention takes up to 128"
        )));
    }
    Ok(())
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

/// Keys and values of the tokens that one layer has seen: laid out and rounded as the CPU's
/// `KvCache` of that kind.
#[derive(Debug)]
pub struct KvCache {
    kind: CacheKind,
    keys: Buffer<u8>,
    values: Buffer<u8>,
    /// (KV, S) each, or empty.
    key_scales: Buffer<f32>,
    value_scales: Buffer<f32>,
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
}

impl KvCache {
    /// Room for `tokens` tokens of `kv_heads` heads of `head_dim`.
    ///
    /// # Errors
    /// Too little memory, or heads of more than 128 elements.
    pub fn new(
        device: &Device,
        kind: CacheKind,
        kv_heads: usize,
        head_dim: usize,
        tokens: usize,
    ) -> Result<KvCache, CudaError> {
        check_head(head_dim)?;
        let (slots, what) = (kv_heads * tokens.next_multiple_of(TILE), "keys and values");
        let (bytes, scales) = match kind {
            CacheKind::F32 => (4, 0),
            CacheKind::F16 => (2, 0),
            CacheKind::Int8 => (1, slots),
        };
        let padded = head_dim.next_multiple_of(LANES);
        Ok(KvCache {
            kind,
            keys: Buffer::zeros(device, bytes * slots * head_dim, what)?,
            values: Buffer::zeros(device, bytes * slots * padded, what)?,
            key_scales: Buffer::zeros(device, scales, what)?,
            value_scales: Buffer::zeros(device, scales, what)?,
            kv_heads,
            head_dim,
            tokens,
        })
    }

    /// Stores keys and values of n tokens from position `first` on, each of which attends to
    /// itself and all before: `qkv` (n, (H + 2·KV)·D), turned already, `out` (n, H·D) for H =
    /// `heads`. The bits of the CPU's `attention_cached`.
    ///
    /// # Panics
    /// If the tokens do not fit or a length does not match.
    pub fn attend(
        &self,
        heads: usize,
        first: usize,
        qkv: View<'_, f32>,
        out: View<'_, f32>,
    ) -> Result<(), CudaError> {
        let n = out.len() / (heads * self.head_dim);
        assert!(
            first + n <= self.tokens,
            "{n} tokens from {first} on of {}",
            self.tokens
        );
        let shape = AttentionShape {
            batch: 1,
            time: first + 1,
            heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            causal: true,
        };
        let qkv_at = qkv.of(n * shape.qkv_width(), "qkv is (n, (H + 2 KV) D)");
        let (keys, values) = (self.keys.view(..).address, self.values.view(..).address);
        let key_scales = self.key_scales.view(..).address;
        let value_scales = self.value_scales.view(..).address;
        let stored = self.tokens.next_multiple_of(TILE) as i32;
        let element_blocks = blocks_for(self.kv_heads * self.head_dim);
        let (store, attend, [blocks, ..]) = match self.kind {
            CacheKind::F32 => ("store_token_f32", "attention_cached_f32", element_blocks),
            CacheKind::F16 => ("store_token", "attention_cached", element_blocks),
            CacheKind::Int8 => (
                "store_token_i8",
                "attention_cached_i8",
                blocks_for_rows(2 * self.kv_heads),
            ),
        };
        launch!(
            out.device,
            store,
            [blocks, n, 1],
            THREADS,
            qkv_at,
            keys,
            values,
            key_scales,
            value_scales,
            raw(&shape),
            stored,
        )?;
        launch!(
            out.device,
            attend,
            [heads, n, 1],
            TILE as u32,
            qkv_at,
            keys,
            values,
            key_scales,
            value_scales,
            out.of(n * shape.width(), "out is (n, H D)"),
            raw(&shape),
            stored,
        )
    }
}
