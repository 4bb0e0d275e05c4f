//! Attention against a plain oracle in f64, finite differences, and itself on every tier.

use super::*;
use crate::test_support::{
    assert_close, assert_close_at, differences, noise, on_one_and_two_threads,
};

const SHAPES: [AttentionShape; 14] = [
    shape(1, 1, 1, 1, 1),
    shape(2, 1, 2, 1, 3),
    shape(1, 2, 1, 1, 16),
    shape(2, 17, 2, 2, 8),
    shape(1, 63, 1, 1, 5),
    shape(2, 64, 2, 1, 32),
    shape(1, 65, 4, 2, 4),
    shape(1, 130, 2, 2, 20),
    shape(2, 150, 6, 2, 33),
    whole(shape(1, 1, 1, 1, 2)),
    whole(shape(2, 17, 2, 2, 8)),
    whole(shape(1, 64, 1, 1, 16)),
    whole(shape(1, 130, 2, 2, 20)),
    whole(shape(2, 150, 6, 2, 33)),
];

const fn shape(
    batch: usize,
    time: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> AttentionShape {
    AttentionShape {
        batch,
        time,
        heads,
        kv_heads,
        head_dim,
        causal: true,
    }
}

/// The same with every token seeing the whole sequence.
const fn whole(shape: AttentionShape) -> AttentionShape {
    AttentionShape {
        causal: false,
        ..shape
    }
}

#[derive(Debug, PartialEq, Clone)]
struct Outcome {
    out: Vec<f32>,
    lse: Vec<f32>,
    dqkv: Vec<f32>,
}

fn run(isa: Isa, shape: &AttentionShape, qkv: &[f32], dout: &[f32]) -> Outcome {
    let mut got = Outcome {
        out: vec![9.0; dout.len()],
        lse: vec![9.0; shape.tokens() * shape.heads],
        dqkv: vec![9.0; qkv.len()],
    };
    attention(isa, shape, qkv, &mut got.out, &mut got.lse);
    attention_backward(isa, shape, qkv, &got.out, &got.lse, dout, &mut got.dqkv);
    got
}

fn inputs(shape: &AttentionShape) -> (Vec<f32>, Vec<f32>) {
    let qkv = noise(shape.tokens() * shape.qkv_width(), 1)
        .iter()
        .map(|x| 2.0 * x)
        .collect();
    (qkv, noise(shape.tokens() * shape.width(), 2))
}

/// (out, lse), one score at a time.
fn oracle(shape: &AttentionShape, qkv: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let &AttentionShape {
        batch,
        time,
        heads,
        kv_heads,
        head_dim,
        causal,
    } = shape;
    let part = |b: usize, t: usize, slot: usize| {
        &qkv[(b * time + t) * shape.qkv_width() + slot * head_dim..][..head_dim]
    };
    let mut out = vec![0.0; shape.tokens() * shape.width()];
    let mut lse = Vec::new();
    for b in 0..batch {
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            for t in 0..time {
                let score = |s: usize| {
                    let (q, k) = (part(b, t, h), part(b, s, heads + kv));
                    q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (head_dim as f64).sqrt()
                };
                let weights: Vec<f64> = (0..if causal { t + 1 } else { time })
                    .map(|s| score(s).exp())
                    .collect();
                let sum: f64 = weights.iter().sum();
                lse.push(sum.ln());
                let out = &mut out[(b * time + t) * shape.width() + h * head_dim..][..head_dim];
                for (s, weight) in weights.iter().enumerate() {
                    for (out, v) in out.iter_mut().zip(part(b, s, heads + kv_heads + kv)) {
                        *out += weight / sum * v;
                    }
                }
            }
        }
    }
    (out, lse)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn equals_the_formula_and_finite_differences() {
    for shape in &SHAPES {
        let (qkv, dout) = inputs(shape);
        let got = run(Isa::best(), shape, &qkv, &dout);
        let what = format!("{shape:?}");
        let (out, lse) = oracle(shape, &wide(&qkv));
        assert_close(&got.out, &out, 2e-6, &what);
        assert_close(&got.lse, &lse, 2e-6, &what);

        let loss = |qkv: &[f64]| -> f64 {
            oracle(shape, qkv)
                .0
                .iter()
                .zip(&dout)
                .map(|(out, &d)| out * f64::from(d))
                .sum()
        };
        let want = differences(&qkv, 1 + qkv.len() / 61, loss);
        assert_close_at(&got.dqkv, &want, 1e-5, &what);
    }
}

#[test]
fn tiers_and_threads_give_equal_bits() {
    for shape in &SHAPES {
        let (qkv, dout) = inputs(shape);
        let want = run(Isa::best(), shape, &qkv, &dout);
        for isa in Isa::available() {
            let got = on_one_and_two_threads(|| run(isa, shape, &qkv, &dout));
            assert!(
                got.iter().all(|got| *got == want),
                "{} at {shape:?}",
                isa.name()
            );
        }
    }
}

#[test]
fn sequences_give_the_same_bits_alone_and_together() {
    let four = shape(4, 70, 2, 1, 24);
    let (qkv, dout) = inputs(&four);
    let together = run(Isa::best(), &four, &qkv, &dout);
    let one = AttentionShape { batch: 1, ..four };
    let mut alone = Outcome {
        out: vec![],
        lse: vec![],
        dqkv: vec![],
    };
    let pieces = qkv
        .chunks(one.time * one.qkv_width())
        .zip(dout.chunks(one.time * one.width()));
    for (qkv, dout) in pieces {
        let piece = run(Isa::best(), &one, qkv, dout);
        alone.out.extend(piece.out);
        alone.lse.extend(piece.lse);
        alone.dqkv.extend(piece.dqkv);
    }
    assert_eq!(together, alone);
}

#[test]
fn a_token_sees_nothing_after_it() {
    let shape = shape(1, 100, 1, 1, 16);
    let (mut qkv, _) = inputs(&shape);
    let (mut before, mut after) = (vec![0.0; 1600], vec![0.0; 1600]);
    let mut lse = vec![0.0; 100];
    attention(Isa::best(), &shape, &qkv, &mut before, &mut lse);
    qkv[80 * 48..].iter_mut().for_each(|x| *x = 1.0 - *x);
    attention(Isa::best(), &shape, &qkv, &mut after, &mut lse);
    assert_eq!(before[..80 * 16], after[..80 * 16]);
    assert_ne!(before[80 * 16..81 * 16], after[80 * 16..81 * 16]);
}

#[test]
fn large_scores_stay_finite() {
    let shape = shape(1, 130, 1, 1, 16);
    let (mut qkv, dout) = inputs(&shape);
    qkv.iter_mut().for_each(|x| *x *= 100.0);
    let got = run(Isa::best(), &shape, &qkv, &dout);
    assert!(
        got.out
            .iter()
            .chain(&got.lse)
            .chain(&got.dqkv)
            .all(|x| x.is_finite())
    );
}

#[test]
fn a_bad_number_stays_visible() {
    let shape = shape(1, 70, 1, 1, 4);
    let (mut qkv, dout) = inputs(&shape);
    qkv[30 * 12] = f32::NAN;
    let got = run(Isa::best(), &shape, &qkv, &dout);
    assert!(got.out[30 * 4].is_nan() && got.lse[30].is_nan());
    assert!(got.out[29 * 4].is_finite());
}

/// The cached attention of all tokens, `step` of them at a time.
fn cached(isa: Isa, kind: CacheKind, shape: &AttentionShape, qkv: &[f32], step: usize) -> Vec<f32> {
    let &AttentionShape {
        time,
        heads,
        kv_heads,
        head_dim,
        ..
    } = shape;
    let (width, out_width) = (shape.qkv_width(), shape.width());
    let mut cache = KvCache::new(kind, kv_heads, head_dim, time + 3);
    // What a forgotten conversation left behind must not matter.
    let stale = vec![f32::NAN; (time + 3) * width];
    cache.store(0, &stale, width);
    let mut out = vec![9.0; time * out_width];
    for (i, rows) in qkv.chunks(step * width).enumerate() {
        let first = i * step;
        let out = &mut out[first * out_width..][..rows.len() / width * out_width];
        cache.store(first, rows, width);
        attention_cached(isa, &cache, heads, first, rows, width, out);
    }
    out
}

#[test]
fn a_cache_gives_the_formula_and_the_same_bits_for_any_step() {
    // What comes later is not in a cache yet.
    for shape in SHAPES.into_iter().filter(|shape| shape.causal) {
        let shape = AttentionShape { batch: 1, ..shape };
        let (qkv, _) = inputs(&shape);
        for kind in [CacheKind::F32, CacheKind::F16, CacheKind::Int8] {
            let what = format!("{kind:?} {shape:?}");
            let best = cached(Isa::best(), kind, &shape, &qkv, shape.time);
            let (want, _) = oracle(&shape, &wide(&rounded(kind, &shape, &qkv)));
            assert_close(&best, &want, 3e-6, &what);
            for isa in Isa::available() {
                for step in [1, 3, 64, shape.time] {
                    for got in on_one_and_two_threads(|| cached(isa, kind, &shape, &qkv, step)) {
                        assert_eq!(got, best, "{} by {step}, {what}", isa.name());
                    }
                }
            }
        }
    }
}

/// `qkv` with keys and values as a cache of this kind gives them back.
fn rounded(kind: CacheKind, shape: &AttentionShape, qkv: &[f32]) -> Vec<f32> {
    let mut rounded = qkv.to_vec();
    for row in rounded.chunks_exact_mut(shape.qkv_width()) {
        for head in row[shape.width()..].chunks_exact_mut(shape.head_dim) {
            let scale = head.iter().fold(0.0f32, |max, x| max.max(x.abs())) / 127.0;
            for x in head {
                *x = match kind {
                    CacheKind::F32 => *x,
                    CacheKind::F16 => half::f16::from_f32(*x).to_f32(),
                    CacheKind::Int8 => (*x / scale).round_ties_even() * scale,
                };
            }
        }
    }
    rounded
}

#[test]
fn a_cache_keeps_bad_numbers_and_saturates_large_ones() {
    let shape = shape(1, 5, 2, 1, 4);
    let (mut qkv, _) = inputs(&shape);
    let value = 3 * shape.qkv_width() + 3 * shape.head_dim;
    for kind in [CacheKind::F32, CacheKind::F16, CacheKind::Int8] {
        qkv[value] = 1e30;
        let out = cached(Isa::best(), kind, &shape, &qkv, 5);
        assert!(out.iter().all(|x| x.is_finite()), "{kind:?}: {out:?}");
        qkv[value] = f32::NAN;
        let out = cached(Isa::best(), kind, &shape, &qkv, 1);
        let (before, after) = out.split_at(3 * shape.width());
        assert!(before.iter().all(|x| x.is_finite()), "{kind:?}: {out:?}");
        assert!(after[0].is_nan(), "{kind:?}: {out:?}");
    }
}

#[test]
fn a_cache_takes_what_it_says() {
    for (kind, bytes) in [
        (CacheKind::F32, 4),
        (CacheKind::F16, 2),
        (CacheKind::Int8, 1),
    ] {
        let scales = if kind == CacheKind::Int8 {
            2 * 4 * 3 * 128
        } else {
            0
        };
        let want = 3 * 128 * (20 + 32) * bytes + scales;
        assert_eq!(KvCache::bytes(kind, 3, 20, 65), want);
        let cache = KvCache::new(kind, 3, 20, 65);
        assert_eq!(cache.tokens(), 65);
        assert_eq!(cache.allocated_bytes(), want);
    }
}
