//! Attention of new tokens over a cache of keys and values, in f32, f16 or int8.
//!
//! A task takes a few query rows that share a key/value head and goes over the cache in tiles of
//! 64 tokens with a running softmax. Keys lie transposed within a tile, so that both products run
//! along the cache in whole vectors. What a row computes depends on nothing but its query and the
//! cache: tokens fed one at a time or many at once get the same bits.

use std::cell::RefCell;

use half::f16;
use rayon::prelude::*;

use super::{SharedRows, Softmax, TILE, scale_row, softmax_tile};
use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Query rows that share what is loaded of the cache.
const ROWS: usize = 4;

/// Vectors of a tile of tokens.
const TILE_VECTORS: usize = TILE / LANES;

/// Multiplications that a task makes at least: fewer are done sooner than handed over.
const TASK_PRODUCTS: usize = 1 << 18;

/// The largest finite f16.
const F16_MAX: f32 = 65_504.0;

/// How a cache holds a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// Four bytes.
    F32,
    /// Two bytes, to nearest; numbers beyond ±65504 become that.
    F16,
    /// One byte, and a scale for each token's keys and values of a head: largest magnitude / 127.
    Int8,
}

/// Keys and values of the tokens that one layer has seen.
#[derive(Clone, Debug)]
pub struct KvCache {
    kv_heads: usize,
    head_dim: usize,
    tokens: usize,
    planes: Planes,
}

#[derive(Clone, Debug)]
enum Planes {
    F32(Plane<f32>),
    /// Bits of f16: zeroed vectors of plain integers are not touched before they are used.
    F16(Plane<u16>),
    Int8(Plane<i8>),
}

/// With S = tokens rounded up to 64 and W = D rounded up to 16.
#[derive(Clone, Debug)]
struct Plane<E> {
    /// (KV, S / 64, D, 64).
    keys: Vec<E>,
    /// (KV, S, W), zeros past D.
    values: Vec<E>,
    /// (KV, S) f32 each; empty where numbers need no scale.
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
}

/// A number in a cache.
trait Element: Copy + Default + Send + Sync {
    /// Whether a token's numbers have a scale.
    const SCALED: bool;
    /// The scale of a head's numbers of a token.
    fn scale(of: &[f32]) -> f32;
    fn encode(x: f32, scale: f32) -> Self;
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F;
}

impl Element for f32 {
    const SCALED: bool = false;
    fn scale(_of: &[f32]) -> f32 {
        1.0
    }
    fn encode(x: f32, _scale: f32) -> Self {
        x
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F {
        lanes.load(from)
    }
}

impl Element for u16 {
    const SCALED: bool = false;
    fn scale(_of: &[f32]) -> f32 {
        1.0
    }
    fn encode(x: f32, _scale: f32) -> Self {
        // An infinite value times a probability of zero would be seen by tokens before it.
        f16::from_f32(x.clamp(-F16_MAX, F16_MAX)).to_bits()
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F {
        lanes.load_f16(from)
    }
}

impl Element for i8 {
    const SCALED: bool = true;
    fn scale(of: &[f32]) -> f32 {
        // A NaN is lost in `max`; it must not be lost to the reader.
        if of.iter().any(|x| !x.is_finite()) {
            return f32::NAN;
        }
        of.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0
    }
    fn encode(x: f32, scale: f32) -> Self {
        // Saturates; a NaN, as of zero by zero, becomes zero.
        (x / scale).round_ties_even() as i8
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self; LANES]) -> L::F {
        lanes.convert(lanes.load_i8(from))
    }
}

impl KvCache {
    /// Room for `tokens` tokens of `kv_heads` heads of `head_dim`. Memory becomes resident as
    /// tokens are stored.
    pub fn new(kind: CacheKind, kv_heads: usize, head_dim: usize, tokens: usize) -> KvCache {
        let planes = match kind {
            CacheKind::F32 => Planes::F32(Plane::new(kv_heads, head_dim, tokens)),
            CacheKind::F16 => Planes::F16(Plane::new(kv_heads, head_dim, tokens)),
            CacheKind::Int8 => Planes::Int8(Plane::new(kv_heads, head_dim, tokens)),
        };
        KvCache {
            kv_heads,
            head_dim,
            tokens,
            planes,
        }
    }

    /// Bytes of [`KvCache::new`].
    pub fn bytes(kind: CacheKind, kv_heads: usize, head_dim: usize, tokens: usize) -> u64 {
        let stored = kv_heads * tokens.next_multiple_of(TILE);
        let numbers = stored * (head_dim + head_dim.next_multiple_of(LANES));
        let bytes = match kind {
            CacheKind::F32 => 4 * numbers,
            CacheKind::F16 => 2 * numbers,
            CacheKind::Int8 => numbers + 2 * 4 * stored,
        };
        bytes as u64
    }

    /// Bytes held.
    pub fn allocated_bytes(&self) -> u64 {
        match &self.planes {
            Planes::F32(plane) => plane.allocated_bytes(),
            Planes::F16(plane) => plane.allocated_bytes(),
            Planes::Int8(plane) => plane.allocated_bytes(),
        }
    }

    /// Tokens that fit.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Stores keys and values of the tokens from `first` on: the last 2·KV·D columns of the rows
    /// of `qkv` (n, `qkv_width`), [.. | key heads | value heads].
    ///
    /// # Panics
    /// If they do not fit or a length does not match.
    pub fn store(&mut self, first: usize, qkv: &[f32], qkv_width: usize) {
        let kv = self.kv_heads * self.head_dim;
        assert!(
            qkv_width >= 2 * kv && qkv.len().is_multiple_of(qkv_width),
            "{} elements in rows of {qkv_width}",
            qkv.len()
        );
        let n = qkv.len() / qkv_width;
        assert!(
            first + n <= self.tokens,
            "{n} tokens after {first} of {}",
            self.tokens
        );
        let rows = qkv
            .chunks_exact(qkv_width)
            .map(|row| &row[qkv_width - 2 * kv..]);
        match &mut self.planes {
            Planes::F32(plane) => plane.store(first, rows, kv, self.head_dim),
            Planes::F16(plane) => plane.store(first, rows, kv, self.head_dim),
            Planes::Int8(plane) => plane.store(first, rows, kv, self.head_dim),
        }
    }
}

impl<E: Element> Plane<E> {
    fn new(kv_heads: usize, head_dim: usize, tokens: usize) -> Self {
        let stored = kv_heads * tokens.next_multiple_of(TILE);
        let scales = if E::SCALED { stored } else { 0 };
        Plane {
            keys: vec![E::default(); stored * head_dim],
            values: vec![E::default(); stored * head_dim.next_multiple_of(LANES)],
            key_scales: vec![0.0; scales],
            value_scales: vec![0.0; scales],
        }
    }

    fn allocated_bytes(&self) -> u64 {
        let numbers = size_of_val(&self.keys[..]) + size_of_val(&self.values[..]);
        (numbers + 4 * (self.key_scales.len() + self.value_scales.len())) as u64
    }

    /// `rows` are [key heads | value heads] of `kv` = KV·D numbers each.
    fn store<'a>(
        &mut self,
        first: usize,
        rows: impl Iterator<Item = &'a [f32]>,
        kv: usize,
        dim: usize,
    ) {
        let width = dim.next_multiple_of(LANES);
        let stored = self.keys.len() / kv;
        for (token, row) in (first..).zip(rows) {
            let (keys, values) = row.split_at(kv);
            let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
            for (head, (key, value)) in heads.enumerate() {
                let slot = head * stored + token;
                let (key_scale, value_scale) = (E::scale(key), E::scale(value));
                let column = &mut self.keys[slot / TILE * TILE * dim + slot % TILE..];
                for (to, &x) in column.iter_mut().step_by(TILE).zip(key) {
                    *to = E::encode(x, key_scale);
                }
                for (to, &x) in self.values[slot * width..].iter_mut().zip(value) {
                    *to = E::encode(x, value_scale);
                }
                if E::SCALED {
                    self.key_scales[slot] = key_scale;
                    self.value_scales[slot] = value_scale;
                }
            }
        }
    }
}

/// out = softmax(mask(q kᵀ / √D)) v for new tokens: token i stands at position `first` + i and
/// sees the cache up to itself, which is stored already.
///
/// `heads` is the number H of query heads, a multiple of those of the cache. `qkv` is (n,
/// `qkv_width`) with the H·D queries first in a row, `out` (n, H·D).
///
/// # Panics
/// If a length does not match.
pub fn attention_cached(
    isa: Isa,
    cache: &KvCache,
    heads: usize,
    first: usize,
    qkv: &[f32],
    qkv_width: usize,
    out: &mut [f32],
) {
    let width = heads * cache.head_dim;
    assert!(
        heads.is_multiple_of(cache.kv_heads) && width <= qkv_width,
        "{heads} heads over {} in rows of {qkv_width}",
        cache.kv_heads
    );
    assert!(qkv.len().is_multiple_of(qkv_width), "whole rows of queries");
    let n = qkv.len() / qkv_width;
    assert_eq!(out.len(), n * width, "out is (n, H D)");
    assert!(
        first + n <= cache.tokens,
        "{n} tokens after {first} of {}",
        cache.tokens
    );
    let queries = Queries {
        isa,
        group: heads / cache.kv_heads,
        dim: cache.head_dim,
        first,
        qkv,
        qkv_width,
    };
    match &cache.planes {
        Planes::F32(plane) => attend(&queries, cache.kv_heads, plane, out),
        Planes::F16(plane) => attend(&queries, cache.kv_heads, plane, out),
        Planes::Int8(plane) => attend(&queries, cache.kv_heads, plane, out),
    }
}

/// The new tokens.
#[derive(Clone, Copy)]
struct Queries<'a> {
    isa: Isa,
    /// Query heads that share a key/value head.
    group: usize,
    dim: usize,
    first: usize,
    qkv: &'a [f32],
    qkv_width: usize,
}

/// The part of a plane that a query sees.
#[derive(Clone, Copy)]
struct Seen<'a, E> {
    /// (tiles, D, 64).
    keys: &'a [[E; TILE]],
    /// (tokens, W).
    values: &'a [E],
    /// (S) each, or empty.
    scales: (&'a [f32], &'a [f32]),
}

thread_local! {
    /// (ROWS, W) f32 of sums of values.
    static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn attend<E: Element>(queries: &Queries<'_>, kv_heads: usize, plane: &Plane<E>, out: &mut [f32]) {
    let Queries {
        isa,
        group,
        dim,
        first,
        ..
    } = *queries;
    let width = dim.next_multiple_of(LANES);
    let stored = plane.keys.len() / (kv_heads * dim);
    let out_width = kv_heads * group * dim;
    let rows = out.len() / out_width * group;
    let out = SharedRows::new(out, out_width);
    let blocks = rows.div_ceil(ROWS);
    let products = ROWS * (first + rows / group) * dim;
    (0..kv_heads * blocks)
        .into_par_iter()
        .with_min_len((TASK_PRODUCTS / products.max(1)).max(1))
        .for_each(|task| {
            let (head, block) = (task / blocks, task % blocks);
            let scales = |all: &'_ [f32]| -> std::ops::Range<usize> {
                if all.is_empty() {
                    0..0
                } else {
                    head * stored..(head + 1) * stored
                }
            };
            let seen = Seen {
                keys: &plane.keys.as_chunks().0[head * stored / TILE * dim..],
                values: &plane.values[head * stored * width..][..stored * width],
                scales: (
                    &plane.key_scales[scales(&plane.key_scales)],
                    &plane.value_scales[scales(&plane.value_scales)],
                ),
            };
            let rows = block * ROWS..((block + 1) * ROWS).min(rows);
            SUMS.with_borrow_mut(|sums| {
                if sums.len() < ROWS * width {
                    sums.resize(ROWS * width, 0.0);
                }
                let mut row = rows.start;
                while row < rows.end {
                    // Rows share loads; how many of them changes no result.
                    let taken = if rows.end - row == ROWS { ROWS } else { 1 };
                    let sums = &mut sums[..taken * width];
                    if taken == ROWS {
                        dispatch!(isa, attend_rows::<E, ROWS>(queries, head, row, seen, sums));
                    } else {
                        dispatch!(isa, attend_rows::<E, 1>(queries, head, row, seen, sums));
                    }
                    for (row, sums) in (row..).zip(sums.chunks_exact(width)) {
                        let column = (head * group + row % group) * dim;
                        // SAFETY: a task alone writes its heads of its tokens.
                        let to = unsafe { out.row(row / group, column, dim) };
                        to.copy_from_slice(&sums[..dim]);
                    }
                    row += taken;
                }
            });
        });
}

/// Rows `row..row + R` of the queries of key/value head `head`, a row being a token and one of
/// the group's heads: their outputs, (R, W), into `sums`.
#[inline(always)]
fn attend_rows<L: Lanes, E: Element, const R: usize>(
    lanes: L,
    queries: &Queries<'_>,
    head: usize,
    row: usize,
    seen: Seen<'_, E>,
    sums: &mut [f32],
) {
    let &Queries {
        group,
        dim,
        first,
        qkv,
        qkv_width,
        ..
    } = queries;
    let query = |r: usize| {
        let column = (head * group + (row + r) % group) * dim;
        &qkv[(row + r) / group * qkv_width + column..][..dim]
    };
    let q: [&[f32]; R] = std::array::from_fn(query);
    let positions: [usize; R] = std::array::from_fn(|r| first + (row + r) / group);
    let scale = 1.0 / (dim as f32).sqrt();
    let mut softmax = Softmax::new();
    let mut scores = [[0.0; TILE]; R];
    let width = sums.len() / R;
    sums.fill(0.0);
    for (tile, keys) in seen.keys.chunks_exact(dim).enumerate() {
        let start = tile * TILE;
        let visible = |r: usize| (positions[r] + 1).saturating_sub(start).min(TILE);
        let longest = visible(R - 1);
        if longest == 0 {
            break;
        }
        score_tile(lanes, &q, keys, &mut scores);
        if E::SCALED {
            scale_columns(lanes, &mut scores, &seen.scales.0[start..][..TILE]);
        }
        softmax_tile(lanes, &mut scores, visible, scale, &mut softmax);
        if start > 0 {
            for (sums, &factor) in sums.chunks_exact_mut(width).zip(&softmax.rescale) {
                scale_row(lanes, sums, factor);
            }
        }
        if E::SCALED {
            scale_columns(lanes, &mut scores, &seen.scales.1[start..][..TILE]);
        }
        let values = &seen.values[start * width..][..longest * width];
        add_values(lanes, &scores, values, width, sums);
    }
    for (sums, &sum) in sums.chunks_exact_mut(width).zip(&softmax.sum) {
        scale_row(lanes, sums, 1.0 / sum);
    }
}

/// scores[r][t] = q[r] · key t.
#[inline(always)]
fn score_tile<L: Lanes, E: Element, const R: usize>(
    lanes: L,
    q: &[&[f32]; R],
    keys: &[[E; TILE]],
    scores: &mut [[f32; TILE]; R],
) {
    let mut sums = [[lanes.zero(); TILE_VECTORS]; R];
    for (d, keys) in keys.iter().enumerate() {
        let vectors = keys.as_chunks::<LANES>().0;
        let mut loaded = [lanes.zero(); TILE_VECTORS];
        for (to, from) in loaded.iter_mut().zip(vectors) {
            *to = E::load(lanes, from);
        }
        for r in 0..R {
            let by = lanes.splat(q[r][d]);
            for v in 0..TILE_VECTORS {
                sums[r][v] = lanes.mul_then_add(loaded[v], by, sums[r][v]);
            }
        }
    }
    for (row, sums) in scores.iter_mut().zip(sums) {
        for (to, sum) in row.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
            lanes.store(sum, to);
        }
    }
}

/// Multiplies column t of every row by factor t.
#[inline(always)]
fn scale_columns<L: Lanes>(lanes: L, rows: &mut [[f32; TILE]], factors: &[f32]) {
    for row in rows {
        let vectors = row.as_chunks_mut::<LANES>().0.iter_mut();
        for (x, factor) in vectors.zip(factors.as_chunks::<LANES>().0) {
            lanes.store(lanes.mul(lanes.load(x), lanes.load(factor)), x);
        }
    }
}

/// sums[r] += Σ_t p[r][t] · value t.
#[inline(always)]
fn add_values<L: Lanes, E: Element, const R: usize>(
    lanes: L,
    p: &[[f32; TILE]; R],
    values: &[E],
    width: usize,
    sums: &mut [f32],
) {
    let mut column = 0;
    while column + 4 * LANES <= width {
        add_columns::<L, E, R, 4>(lanes, p, values, width, column, sums);
        column += 4 * LANES;
    }
    while column < width {
        add_columns::<L, E, R, 1>(lanes, p, values, width, column, sums);
        column += LANES;
    }
}

/// [`add_values`] for V vectors of columns from `column` on.
#[inline(always)]
fn add_columns<L: Lanes, E: Element, const R: usize, const V: usize>(
    lanes: L,
    p: &[[f32; TILE]; R],
    values: &[E],
    width: usize,
    column: usize,
    sums: &mut [f32],
) {
    let mut totals = [[lanes.zero(); V]; R];
    for (totals, sums) in totals.iter_mut().zip(sums.chunks_exact(width)) {
        for (total, sum) in totals.iter_mut().zip(sums[column..].as_chunks::<LANES>().0) {
            *total = lanes.load(sum);
        }
    }
    for (t, value) in values.chunks_exact(width).enumerate() {
        let vectors = &value[column..].as_chunks::<LANES>().0[..V];
        for (v, vector) in vectors.iter().enumerate() {
            let loaded = E::load(lanes, vector);
            for r in 0..R {
                totals[r][v] = lanes.mul_then_add(lanes.splat(p[r][t]), loaded, totals[r][v]);
            }
        }
    }
    for (totals, sums) in totals.iter().zip(sums.chunks_exact_mut(width)) {
        let vectors = sums[column..].as_chunks_mut::<LANES>().0.iter_mut();
        for (&total, sum) in totals.iter().zip(vectors) {
            lanes.store(total, sum);
        }
    }
}
