//! The layers' kernels on a device against the CPU's, over awkward sizes.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeSet;

use crate::common::{assert_bits, assert_close, device, isa, noise, report, up, zeros};
use primal_kernels::cuda::{self, DeviceWeights, NormSizes};
use primal_kernels::{
    AdamStep, AttentionShape, CacheKind, CrossEntropyScratch, DenseRows, IGNORED, KvCache,
    NormKind, TokenChoice, TokenChooser, attention_cached, vocab_tiles,
};
use primal_lut::{Grid, QuantMatrix};

const LENGTHS: [usize; 6] = [1, 15, 16, 17, 63, 1000];

#[test]
fn decoding_embedding_and_matrix_times_vector() {
    let device = device();
    for (grid, group) in [
        (Grid::prime(), 0),
        (Grid::fine(), 0),
        (Grid::normal(), 32),
        (Grid::prime(), 20),
    ] {
        for (rows, cols) in [(1_usize, 1_usize), (3, 15), (37, 64), (20, 301)] {
            let group = if group == 0 || group > cols {
                cols
            } else {
                group
            };
            let scales = noise(rows * cols.div_ceil(group), 2);
            let matrix =
                QuantMatrix::quantise(&grid, rows, cols, group, &noise(rows * cols, 1), scales);
            let matrix = matrix.unwrap();
            let what = format!("{} {rows}x{cols}/{group}", grid.id());
            let weights = DeviceWeights::upload(&device, &matrix, "weights").unwrap();

            let first = rows / 3;
            let out = zeros(&device, (rows - first) * cols);
            cuda::decode_rows(&weights, first, rows - first, out.view(..)).unwrap();
            let want = &matrix.dequantise()[first * cols..];
            assert_bits("decode_rows", &what, &out.to_vec().unwrap(), want);

            let x = noise(cols, 3);
            let mut want = vec![0.0; rows];
            primal_kernels::matvec(isa(), &matrix, &x, &mut want);
            let y = zeros(&device, rows);
            cuda::matvec(&weights, up(&device, &x).view(..), y.view(..)).unwrap();
            assert_bits("matvec", &what, &y.to_vec().unwrap(), &want);

            let tokens: Vec<u32> = (0..7).map(|i| (i * 5) % rows as u32).collect();
            let positions = noise(3 * cols, 4);
            let dense = DeviceWeights::upload_dense(&device, &positions, (3, cols), "positions");
            let out = zeros(&device, 7 * cols);
            let token_buffer = up(&device, &tokens);
            cuda::embed(
                &weights,
                Some(&dense.unwrap()),
                token_buffer.view(..),
                3,
                1,
                out.view(..),
            )
            .unwrap();
            let values = matrix.dequantise();
            let want: Vec<f32> = (0..7 * cols)
                .map(|i| {
                    let (row, col) = (i / cols, i % cols);
                    values[tokens[row] as usize * cols + col]
                        + positions[(row + 1) % 3 * cols + col]
                })
                .collect();
            assert_bits("embed", &what, &out.to_vec().unwrap(), &want);
        }
    }
}

/// One chain of fused multiply-adds an element: what the kernels promise.
fn chains(
    (rows, cols, depth): (usize, usize, usize),
    chunk: usize,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let element = |r: usize, c: usize| {
        let parts = (0..depth).step_by(chunk).map(|start| {
            (start..(start + chunk).min(depth))
                .fold(0.0_f32, |sum, k| a(r, k).mul_add(b(k, c), sum))
        });
        parts.reduce(|total, part| total + part).unwrap_or(0.0)
    };
    (0..rows * cols)
        .map(|i| element(i / cols, i % cols))
        .collect()
}

#[test]
fn products_of_matrices() {
    let device = device();
    // The last one is large enough for the large tiles.
    for (n, m, k) in [
        (1, 1, 1),
        (3, 70, 7),
        (65, 64, 33),
        (130, 17, 300),
        (1021, 890, 9),
    ] {
        let (x, w, dy) = (noise(n * k, 1), noise(m * k, 2), noise(n * m, 3));
        let [dx_at, dw_at, dy_at] = [&x, &w, &dy].map(|values| up(&device, values));
        let what = format!("{n}x{m}x{k}");

        let y = up(&device, &dy);
        cuda::matmul_nt(dx_at.view(..), dw_at.view(..), y.view(..), (n, m, k), false).unwrap();
        let want = chains((n, m, k), k, |r, d| x[r * k + d], |d, c| w[c * k + d]);
        assert_bits("gemm_nt", &what, &y.to_vec().unwrap(), &want);
        cuda::matmul_nt(dx_at.view(..), dw_at.view(..), y.view(..), (n, m, k), true).unwrap();
        let twice: Vec<f32> = want.iter().map(|y| y + y).collect();
        assert_bits("gemm_nt +=", &what, &y.to_vec().unwrap(), &twice);
        let mut cpu = vec![0.0; n * m];
        primal_kernels::matmul_nt(&x, &w, &mut cpu, n, m, k, n, false);
        assert_close("gemm_nt, CPU", &what, &want, &cpu, 2e-6);

        let dx = zeros(&device, n * k);
        cuda::matmul_nn(
            dy_at.view(..),
            dw_at.view(..),
            dx.view(..),
            (n, m, k),
            false,
        )
        .unwrap();
        let want = chains((n, k, m), m, |r, d| dy[r * m + d], |d, c| w[d * k + c]);
        assert_bits("gemm_nn", &what, &dx.to_vec().unwrap(), &want);

        let (first, rows) = (m / 3, m - m / 3);
        let dw = zeros(&device, rows * k);
        cuda::matmul_tn(
            dy_at.view(..),
            dx_at.view(..),
            dw.view(..),
            (n, m, k),
            first,
            rows,
        )
        .unwrap();
        let want = chains(
            (rows, k, n),
            256,
            |r, d| dy[d * m + first + r],
            |d, c| x[d * k + c],
        );
        assert_bits("gemm_tn", &what, &dw.to_vec().unwrap(), &want);
        let mut cpu = vec![0.0; rows * k];
        primal_kernels::matmul_tn_tile(&dy, &x, n, m, k, first..m, &mut cpu, false);
        assert_close("gemm_tn, CPU", &what, &want, &cpu, 2e-6);
    }
}

/// The large tiles of the other two forms: results of 56 of them, from short chains.
#[test]
fn large_products_of_gradients() {
    let device = device();
    let (n, m, k) = (1021, 9, 890);
    let (w, dy) = (noise(m * k, 2), noise(n * m, 3));
    let dx = zeros(&device, n * k);
    let [w_at, dy_at] = [&w, &dy].map(|values| up(&device, values));
    cuda::matmul_nn(dy_at.view(..), w_at.view(..), dx.view(..), (n, m, k), false).unwrap();
    let want = chains((n, k, m), m, |r, d| dy[r * m + d], |d, c| w[d * k + c]);
    assert_bits("gemm_nn", "1021x9x890", &dx.to_vec().unwrap(), &want);

    let (n, m) = (m, n);
    let (x, dy) = (noise(n * k, 1), noise(n * m, 3));
    let [x_at, dy_at] = [&x, &dy].map(|values| up(&device, values));
    let dw = zeros(&device, m * k);
    let shape = (n, m, k);
    cuda::matmul_tn(dy_at.view(..), x_at.view(..), dw.view(..), shape, 0, m).unwrap();
    let want = chains((m, k, n), 256, |r, d| dy[d * m + r], |d, c| x[d * k + c]);
    assert_bits("gemm_tn", "9x1021x890", &dw.to_vec().unwrap(), &want);
}

#[test]
fn norms_and_column_sums() {
    let device = device();
    for (n, width) in [(1, 1), (3, 15), (5, 33), (70, 128), (130, 65)] {
        for (kind, has_bias) in [
            (NormKind::Layer, true),
            (NormKind::Layer, false),
            (NormKind::Rms, false),
        ] {
            let what = format!("{kind:?} {n}x{width}");
            let x: Vec<f32> = noise(n * width, 1).iter().map(|x| 3.0 * x + 0.7).collect();
            let (dy, weight, bias) = (noise(n * width, 2), noise(width, 3), noise(width, 4));
            let bias = has_bias.then_some(bias);
            let (mut y, mut mean, mut rstd) = (vec![0.0; n * width], vec![0.0; n], vec![0.0; n]);
            primal_kernels::norm(
                isa(),
                kind,
                &x,
                &weight,
                bias.as_deref(),
                1e-5,
                width,
                &mut y,
                &mut mean,
                &mut rstd,
            );
            let (mut dx, mut dw, mut db) =
                (vec![0.25; n * width], vec![0.0; width], vec![0.0; width]);
            primal_kernels::norm_backward(
                isa(),
                kind,
                &dy,
                &x,
                &weight,
                &mean,
                &rstd,
                width,
                &mut dx,
                &mut dw,
                has_bias.then_some(&mut db[..]),
            );

            // On the GPU a micro-batch is summed on its own and then added.
            for sum in dw.iter_mut().chain(&mut db) {
                *sum += 0.25;
            }

            let sizes = NormSizes {
                n,
                width,
                eps: 1e-5,
                rms: kind == NormKind::Rms,
            };
            let [x_at, dy_at, weight_at] = [&x, &dy, &weight].map(|it| up(&device, it));
            let bias_at = bias.as_ref().map(|bias| up(&device, bias));
            let (y_at, mean_at, rstd_at) = (
                zeros(&device, n * width),
                zeros(&device, n),
                zeros(&device, n),
            );
            cuda::norm_forward(
                sizes,
                x_at.view(..),
                weight_at.view(..),
                bias_at.as_ref().map(|it| it.view(..)),
                y_at.view(..),
                mean_at.view(..),
                rstd_at.view(..),
            )
            .unwrap();
            assert_bits("norm_forward", &what, &y_at.to_vec().unwrap(), &y);
            assert_bits("norm_forward", &what, &mean_at.to_vec().unwrap(), &mean);
            assert_bits("norm_forward", &what, &rstd_at.to_vec().unwrap(), &rstd);

            let quarter = |len| up(&device, &vec![0.25_f32; len]);
            let (dx_at, dw_at, db_at) = (quarter(n * width), quarter(width), quarter(width));
            let scratch = zeros(&device, n.div_ceil(64) * width);
            cuda::norm_backward(
                sizes,
                dy_at.view(..),
                x_at.view(..),
                weight_at.view(..),
                (mean_at.view(..), rstd_at.view(..)),
                dx_at.view(..),
                dw_at.view(..),
                has_bias.then_some(db_at.view(..)),
                scratch.view(..),
            )
            .unwrap();
            assert_bits("norm_backward", &what, &dx_at.to_vec().unwrap(), &dx);
            assert_bits("column_partials", &what, &dw_at.to_vec().unwrap(), &dw);
            assert_bits("fold_columns", &what, &db_at.to_vec().unwrap(), &db);

            let mut sums = vec![0.0; width];
            primal_kernels::sum_rows(isa(), &dy, width, &mut sums);
            for (sum, before) in sums.iter_mut().zip(&weight) {
                *sum += before;
            }
            cuda::fold_column_sums(n, dy_at.view(..), weight_at.view(..), scratch.view(..))
                .unwrap();
            assert_bits("fold_columns", &what, &weight_at.to_vec().unwrap(), &sums);
        }
    }
}

#[test]
fn element_by_element() {
    let device = device();
    for len in LENGTHS {
        let what = len.to_string();
        let mut x: Vec<f32> = noise(len, 1).iter().map(|x| 6.0 * x).collect();
        if len > 60 {
            x[..4].copy_from_slice(&[f32::NAN, -0.0, 1e30, -1e30]);
        }
        let dy = noise(len, 2);
        let [x_at, dy_at] = [&x, &dy].map(|it| up(&device, it));
        let (mut y, y_at) = (vec![0.0; len], zeros(&device, len));
        primal_kernels::gelu(isa(), &x, &mut y);
        cuda::gelu(x_at.view(..), y_at.view(..)).unwrap();
        assert_bits("gelu", &what, &y_at.to_vec().unwrap(), &y);
        let mut dx = dy.clone();
        primal_kernels::gelu_backward(isa(), &x, &mut dx);
        cuda::gelu_backward(x_at.view(..), dy_at.view(..)).unwrap();
        assert_bits("gelu_backward", &what, &dy_at.to_vec().unwrap(), &dx);

        primal_kernels::add(isa(), &dx, &mut y);
        cuda::add(dy_at.view(..), y_at.view(..)).unwrap();
        assert_bits("add", &what, &y_at.to_vec().unwrap(), &y);
        let bias = noise(len, 3);
        let (mut rows, rows_at) = ([y.clone(), dx.clone()].concat(), zeros(&device, 2 * len));
        let mut rows_at = rows_at;
        rows_at.upload(&rows).unwrap();
        primal_kernels::add_bias(isa(), &mut rows, &bias);
        cuda::add_bias(up(&device, &bias).view(..), rows_at.view(..)).unwrap();
        assert_bits("add_bias", &what, &rows_at.to_vec().unwrap(), &rows);

        // Rows of two elements a half.
        let width = len.div_ceil(2);
        let mut gates: Vec<f32> = noise(6 * width, 4).iter().map(|x| 4.0 * x).collect();
        let gates_at = up(&device, &gates);
        let (mut y, y_at) = (vec![0.0; 3 * width], zeros(&device, 3 * width));
        primal_kernels::swiglu(isa(), &gates, width, &mut y);
        cuda::swiglu(gates_at.view(..), width, y_at.view(..)).unwrap();
        assert_bits("swiglu", &what, &y_at.to_vec().unwrap(), &y);
        primal_kernels::swiglu_backward(isa(), &mut gates, width, &y);
        cuda::swiglu_backward(gates_at.view(..), width, y_at.view(..)).unwrap();
        assert_bits(
            "swiglu_backward",
            &what,
            &gates_at.to_vec().unwrap(),
            &gates,
        );
    }
}

#[test]
fn rotary_positions() {
    let device = device();
    for (rows, heads, head_dim, positions) in [(1, 1, 2, 1), (7, 3, 10, 3), (9, 2, 64, 9)] {
        let row_width = (heads + 2) * head_dim;
        let half = head_dim / 2;
        let (cos, sin) = (noise(positions * half, 1), noise(positions * half, 2));
        let [cos_at, sin_at] = [&cos, &sin].map(|it| up(&device, it));
        for back in [false, true] {
            let mut x = noise(rows * row_width, 3);
            let x_at = up(&device, &x);
            primal_kernels::rotate(
                isa(),
                &mut x,
                row_width,
                heads,
                head_dim,
                (&cos, &sin),
                back,
            );
            cuda::rotate(
                x_at.view(..),
                row_width,
                (heads, head_dim),
                (cos_at.view(..), sin_at.view(..)),
                0,
                back,
            )
            .unwrap();
            let what = format!("{rows}x{heads}x{head_dim}");
            assert_bits("rotate", &what, &x_at.to_vec().unwrap(), &x);
        }
    }
}

#[test]
fn attention_forward_backward_and_of_one_token() {
    let device = device();
    for (batch, time, heads, kv_heads, head_dim) in [
        (1, 1, 1, 1, 1),
        (2, 5, 2, 1, 15),
        (1, 64, 1, 1, 32),
        (1, 131, 2, 1, 24),
        (1, 70, 1, 1, 64),
        (1, 67, 2, 2, 80),
    ] {
        let shape = AttentionShape {
            batch,
            time,
            heads,
            kv_heads,
            head_dim,
            causal: true,
        };
        let tokens = batch * time;
        let what = format!("{batch}x{time}x{heads}/{kv_heads}x{head_dim}");
        let qkv: Vec<f32> = noise(tokens * shape.qkv_width(), 1)
            .iter()
            .map(|x| 2.0 * x)
            .collect();
        let (mut out, mut lse) = (vec![0.0; tokens * shape.width()], vec![0.0; tokens * heads]);
        primal_kernels::attention(isa(), &shape, &qkv, &mut out, &mut lse);
        let qkv_at = up(&device, &qkv);
        let (out_at, lse_at) = (zeros(&device, out.len()), zeros(&device, lse.len()));
        cuda::attention(&shape, qkv_at.view(..), out_at.view(..), lse_at.view(..)).unwrap();
        assert_close(
            "attention_forward",
            &what,
            &out_at.to_vec().unwrap(),
            &out,
            2e-6,
        );
        assert_close(
            "attention_forward lse",
            &what,
            &lse_at.to_vec().unwrap(),
            &lse,
            1e-6,
        );

        let dout = noise(out.len(), 2);
        let mut dqkv = vec![0.0; qkv.len()];
        primal_kernels::attention_backward(isa(), &shape, &qkv, &out, &lse, &dout, &mut dqkv);
        let (dqkv_at, dots) = (zeros(&device, qkv.len()), zeros(&device, lse.len()));
        let [out_at, lse_at, dout_at] = [&out, &lse, &dout].map(|it| up(&device, it));
        cuda::attention_backward(
            &shape,
            qkv_at.view(..),
            out_at.view(..),
            lse_at.view(..),
            dout_at.view(..),
            dqkv_at.view(..),
            dots.view(..),
        )
        .unwrap();
        assert_close(
            "attention_backward",
            &what,
            &dqkv_at.to_vec().unwrap(),
            &dqkv,
            4e-6,
        );

        // One token, two, three and so on, on the first sequence.
        let (width, out_width) = (shape.qkv_width(), shape.width());
        let kinds = [CacheKind::F16, CacheKind::F32, CacheKind::Int8];
        let all = kinds.map(|kind| {
            let on_device = cuda::KvCache::new(&device, kind, kv_heads, head_dim, time).unwrap();
            (KvCache::new(kind, kv_heads, head_dim, time), on_device)
        });
        for (kind, (mut cache, on_device)) in kinds.into_iter().zip(all) {
            let (mut first, mut n) = (0, 1);
            while first < time {
                let rows = &qkv[first * width..(first + n) * width];
                let mut want = vec![0.0; n * out_width];
                for (i, (row, want)) in rows
                    .chunks(width)
                    .zip(want.chunks_mut(out_width))
                    .enumerate()
                {
                    cache.store(first + i, row, width);
                    attention_cached(isa(), &cache, heads, first + i, row, width, want);
                }
                let got = zeros(&device, n * out_width);
                let rows = qkv_at.view(first * width..(first + n) * width);
                on_device.attend(heads, first, rows, got.view(..)).unwrap();
                let what = format!("{what}, {kind:?}, {n} tokens from {first} on");
                assert_bits("attention_cached", &what, &got.to_vec().unwrap(), &want);
                first += n;
                n = (n + 1).min(time - first);
            }
        }
    }
}

#[test]
fn cross_entropy_in_tiles() {
    let device = device();
    for (n, vocab, width) in [(1, 2, 3), (19, 515, 8), (33, 100, 17)] {
        let what = format!("{n}x{vocab}x{width}");
        let x: Vec<f32> = noise(n * width, 1).iter().map(|x| 3.0 * x).collect();
        let head = noise(vocab * width, 2);
        let rows = DenseRows {
            rows: vocab,
            cols: width,
            values: &head,
        };
        let targets: Vec<u32> = (0..n as u32)
            .map(|i| {
                if i % 5 == 4 {
                    IGNORED
                } else {
                    i * 131 % vocab as u32
                }
            })
            .collect();
        let mut scratch = CrossEntropyScratch::new(n, vocab, width, false);
        let (mut losses, mut lse) = (vec![0.0; n], vec![0.0; n]);
        primal_kernels::cross_entropy_forward(
            isa(),
            &x,
            &rows,
            &targets,
            n,
            &mut losses,
            &mut lse,
            &mut scratch,
        );

        let ce = cuda::CrossEntropy::new(&device, n, vocab).unwrap();
        let head_at = zeros(&device, vocab.min(primal_kernels::VOCAB_TILE) * width);
        let (x_at, targets_at) = (up(&device, &x), up(&device, &targets));
        let weights = DeviceWeights::upload_dense(&device, &head, (vocab, width), "head").unwrap();
        let (losses_at, lse_at) = (zeros(&device, n), zeros(&device, n));
        let logits = |tile: &std::ops::Range<usize>| {
            let head = head_at.view(..tile.len() * width);
            cuda::decode_rows(&weights, tile.start, tile.len(), head).unwrap();
            let logits = ce.logits.view(..n * tile.len());
            cuda::matmul_nt(x_at.view(..), head, logits, (n, tile.len(), width), false).unwrap();
        };
        cuda::loss_begin(&ce, losses_at.view(..)).unwrap();
        for tile in vocab_tiles(vocab) {
            logits(&tile);
            let place = (tile.start, tile.len());
            cuda::loss_tile(&ce, targets_at.view(..), place, losses_at.view(..)).unwrap();
        }
        cuda::loss_end(
            &ce,
            targets_at.view(..),
            losses_at.view(..),
            lse_at.view(..),
        )
        .unwrap();
        assert_close(
            "loss_tile",
            &what,
            &losses_at.to_vec().unwrap(),
            &losses,
            1e-6,
        );
        assert_close("loss_end", &what, &lse_at.to_vec().unwrap(), &lse, 1e-6);
        let sums = cuda::Buffer::<f64>::zeros(&device, 1, "sums").unwrap();
        cuda::sum_losses(losses_at.view(..), n, sums.view(..)).unwrap();
        let want: f64 = losses_at
            .to_vec()
            .unwrap()
            .iter()
            .map(|&x| f64::from(x))
            .sum();
        assert_eq!(sums.to_vec().unwrap(), [want]);

        let lse_at = up(&device, &lse);
        for tile in vocab_tiles(vocab) {
            let want = primal_kernels::cross_entropy_backward_tile(
                isa(),
                &x,
                &rows,
                tile.clone(),
                &targets,
                &lse,
                0.25,
                n,
                None,
                &mut scratch,
            );
            logits(&tile);
            let place = (tile.start, tile.len());
            cuda::loss_gradient(&ce, targets_at.view(..), lse_at.view(..), place, 0.25).unwrap();
            let mut got = vec![0.0; n * tile.len()];
            ce.logits.download(&mut got).unwrap();
            assert_close("loss_gradient", &what, &got, want, 2e-6);
        }
    }
}

#[test]
fn gradients_of_embeddings() {
    let device = device();
    let (sequences, time, vocab, width) = (3, 5, 9, 7);
    let tokens: Vec<usize> = (0..15).map(|i| i * i % vocab).collect();
    let d_stream = noise(15 * width, 1);
    let order: Vec<u32> = (0..vocab)
        .flat_map(|token| (0..15).filter(move |&row| row * row % 9 == token))
        .map(|row| row as u32)
        .collect();
    let starts: Vec<u32> = (0..=vocab)
        .map(|token| tokens.iter().filter(|&&it| it < token).count() as u32)
        .collect();
    let (first, rows) = (2, 6);
    let start = noise(rows * width, 2);
    let d_at = up(&device, &d_stream);
    for overwrite in [false, true] {
        let grad = up(&device, &start);
        cuda::embedding_gradient(
            d_at.view(..),
            up(&device, &starts).view(..),
            up(&device, &order).view(..),
            (first, rows),
            overwrite,
            grad.view(..),
        )
        .unwrap();
        let mut want = if overwrite {
            vec![0.0; rows * width]
        } else {
            start.clone()
        };
        for (row, &token) in tokens.iter().enumerate() {
            if (first..first + rows).contains(&token) {
                for c in 0..width {
                    want[(token - first) * width + c] += d_stream[row * width + c];
                }
            }
        }
        assert_bits(
            "embedding_gradient",
            "15x9x7",
            &grad.to_vec().unwrap(),
            &want,
        );
    }
    let grad = zeros(&device, 3 * width);
    cuda::position_gradient(d_at.view(..), (sequences, time), (1, 3), grad.view(..)).unwrap();
    let want: Vec<f32> = (0..3 * width)
        .map(|i| {
            let (t, c) = (1 + i / width, i % width);
            (0..sequences).fold(0.0, |sum, b| sum + d_stream[(b * time + t) * width + c])
        })
        .collect();
    assert_bits("position_gradient", "3x5x7", &grad.to_vec().unwrap(), &want);
}

#[test]
fn the_float_part() {
    let device = device();
    for len in [1, 17, 4096, 9001] {
        let what = len.to_string();
        let (mut value, mut grad) = (noise(len, 1), noise(len, 2));
        let mut m = noise(len, 3);
        let mut v: Vec<f32> = noise(len, 4).iter().map(|v| v * v).collect();
        let [value_at, grad_at, m_at, v_at] = [&value, &grad, &m, &v].map(|it| up(&device, it));

        let pieces: Vec<(u32, u32)> = cuda::square_pieces(0, len).collect();
        let (starts, lengths): (Vec<u32>, Vec<u32>) = pieces.into_iter().unzip();
        let sums = zeros(&device, starts.len());
        cuda::sum_squares(
            grad_at.view(..),
            up(&device, &starts).view(..),
            up(&device, &lengths).view(..),
            sums.view(..),
        )
        .unwrap();
        let sum: f64 = sums.to_vec().unwrap().iter().map(|&x| f64::from(x)).sum();
        assert_eq!(sum, primal_kernels::sum_squares(isa(), &grad), "{len}");

        let step = AdamStep {
            rate: 3e-3,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            decay: 0.1,
            bias1: 0.19,
            bias2: 0.0199,
        };
        primal_kernels::scale(isa(), &mut grad, 0.3);
        primal_kernels::adamw(isa(), &mut value, &grad, &mut m, &mut v, &step);
        cuda::adamw(
            value_at.view(..),
            grad_at.view(..),
            (m_at.view(..), v_at.view(..)),
            0.3,
            &step,
        )
        .unwrap();
        assert_bits("adamw", &what, &value_at.to_vec().unwrap(), &value);
        assert_bits("adamw", &what, &m_at.to_vec().unwrap(), &m);
        assert_bits("adamw", &what, &v_at.to_vec().unwrap(), &v);
        assert!(grad_at.to_vec().unwrap().iter().all(|&g| g == 0.0));
    }
}

/// Every combination of options, on logits with ties and barred tokens.
#[test]
fn choosing_a_token() {
    let device = device();
    let mut chooser = TokenChooser::default();
    for (vocab, every) in [
        (1_usize, 1),
        (2, 1),
        (65, 1),
        (300, 4),
        (1000, 13),
        (9000, 37),
    ] {
        let mut sampler = cuda::Sampler::new(&device, vocab, 64).unwrap();
        let mut logits: Vec<f32> = noise(vocab, 1).iter().map(|x| 6.0 * x).collect();
        for i in (3..vocab).step_by(7) {
            logits[i] = logits[i / 2];
        }
        for i in (5..vocab).step_by(11) {
            logits[i] = f32::NEG_INFINITY;
        }
        let recent: Vec<u32> = (0..64).map(|i| i * i % (vocab as u32 + 9)).collect();
        let logits_at = up(&device, &logits);
        let mut seen = BTreeSet::new();
        for (i, (temperature, top_k, top_p, min_p, repeat_penalty)) in
            options().enumerate().step_by(every)
        {
            let random = primal_kernels::philox4x32([i as u32, 0, 0, 0], [vocab as u32, 0]);
            let choice = TokenChoice {
                repeat_penalty,
                temperature,
                top_k,
                top_p,
                min_p,
                random: u64::from(random[0]) << 32 | u64::from(random[1]),
            };
            let want = chooser.choose(&logits, &recent, &choice);
            let got = sampler.choose(logits_at.view(..), &recent, &choice);
            assert_eq!(got.unwrap(), want, "{vocab} tokens, {choice:?}");
            seen.insert(want.unwrap());
        }
        assert!(vocab < 65 || seen.len() * every > 9, "{vocab}: {seen:?}");
        report("sample", &format!("{vocab} tokens"), "same tokens");
    }
}

fn options() -> impl Iterator<Item = (f32, usize, f32, f32, f32)> {
    [0.0, 0.3, 2.0].into_iter().flat_map(|temperature| {
        [0, 1, 7, 40, 2000].into_iter().flat_map(move |top_k| {
            [(1.0, 0.0), (0.5, 0.0), (0.0, 0.0), (1.0, 0.2), (0.98, 0.01)]
                .into_iter()
                .zip([1.0, 1.3, 0.8, 1.0, 1.3])
                .map(move |((top_p, min_p), penalty)| (temperature, top_k, top_p, min_p, penalty))
        })
    })
}

#[test]
fn tokens_at_the_corners() {
    let device = device();
    let mut chooser = TokenChooser::default();
    let mut sampler = cuda::Sampler::new(&device, 300, 64).unwrap();
    let same = vec![0.25_f32; 300];
    let with = |at: usize, value: f32| {
        let mut logits = same.clone();
        logits[at] = value;
        logits
    };
    let nan = f32::from_bits(0xffc0_0000);
    let mut two_bad = with(299, f32::NAN);
    two_bad[31] = f32::INFINITY;
    let cases = [
        same.clone(),
        with(299, nan),
        two_bad,
        with(7, 3e38),
        with(7, -3e38),
        with(0, -0.0),
        vec![-0.0, 0.0],
        vec![f32::NEG_INFINITY; 300],
        vec![f32::NEG_INFINITY, -9.0],
        vec![f32::MAX, f32::MIN, f32::MIN_POSITIVE / 8.0],
        vec![f32::NAN],
        vec![],
    ];
    for (i, logits) in cases.iter().enumerate() {
        let logits_at = up(&device, logits);
        for (j, (random, top_k, temperature)) in [
            (0, 0, 1.0),
            (u64::MAX, 0, 1.0),
            (u64::MAX, 40, 1e-40),
            (1 << 63, 40, 1e30),
            (1 << 63, 30, 0.0),
        ]
        .into_iter()
        .enumerate()
        {
            let choice = TokenChoice {
                repeat_penalty: [1.0, 1e-30, 1e30][(i + j) % 3],
                temperature,
                top_k,
                top_p: 0.9,
                min_p: 0.1,
                random,
            };
            let recent = [7, 1, 7, 4000];
            let want = chooser.choose(logits, &recent, &choice);
            let got = sampler.choose(logits_at.view(..), &recent, &choice);
            assert_eq!(got.unwrap(), want, "case {i}, {choice:?}");
        }
    }
}
