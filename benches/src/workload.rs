//! The kernels, each with its operands, ready to run.

use anyhow::Result;
use primal_kernels::{
    AttentionShape, CrossEntropyScratch, FlipTable, Isa, VoteRng, attention, attention_backward,
    cast_votes_i8, count_row, cross_entropy_backward_tile, cross_entropy_forward, fill_rows,
    matmul_nn, matmul_nt, matmul_tn_tile, matvec, philox4x32, vocab_tiles,
};
use primal_lut::{Grid, QuantMatrix};

use crate::integers::integers;

/// Rows of a weight gradient that are computed at a time.
const TILE_ROWS: usize = 64;

/// How large the operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Those of the preset `ghost-0.1b`, with fewer tokens and a smaller vocabulary.
    Real,
    /// For tests: everything runs in milliseconds.
    Tiny,
}

/// One kernel call with its operands.
pub struct Workload {
    /// Kernel and sizes.
    pub name: String,
    /// Bytes that it must read and write at least once; 0 where arithmetic is what counts.
    pub bytes: u64,
    /// Floating-point operations, a multiply-add being two; 0 where bytes are what counts.
    pub flops: u64,
    /// What does them.
    pub units: Units,
    call: Box<dyn FnMut()>,
}

/// The arithmetic of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Units {
    /// float32.
    F32,
    /// Bytes into 32-bit sums.
    Int8,
    /// Pairs of 16-bit integers.
    Int16,
}

impl Workload {
    /// Runs it once.
    pub fn run(&mut self) {
        (self.call)();
    }

    pub(crate) fn new(
        name: String,
        bytes: usize,
        flops: usize,
        call: impl FnMut() + 'static,
    ) -> Self {
        Workload {
            name,
            bytes: bytes as u64,
            flops: flops as u64,
            units: Units::F32,
            call: Box::new(call),
        }
    }

    /// The same kernel, said to compute in these units.
    pub(crate) fn by(self, units: Units) -> Self {
        Workload { units, ..self }
    }
}

/// Every kernel workload on one tier.
///
/// # Errors
/// When a made-up matrix is refused: a bug of the library.
pub fn workloads(isa: Isa, size: Size) -> Result<Vec<Workload>> {
    let sizes = Sizes::of(size);
    let mut list = vec![decode(isa, &sizes)?];
    for rows in [sizes.ff_width, sizes.vocab] {
        list.push(matrix_vector(isa, rows, sizes.width)?);
    }
    list.push(cast(isa, &sizes));
    list.push(count(isa, &sizes)?);
    list.extend(dense(&sizes));
    list.extend(attentions(isa, &sizes));
    list.extend(cross_entropies(isa, &sizes)?);
    list.extend(integers(isa, size)?);
    Ok(list)
}

struct Sizes {
    tokens: usize,
    width: usize,
    ff_width: usize,
    vocab: usize,
    attention: AttentionShape,
}

impl Sizes {
    fn of(size: Size) -> Sizes {
        let attention = |batch, time, heads| AttentionShape {
            batch,
            time,
            heads,
            kv_heads: heads,
            head_dim: 64,
            causal: true,
        };
        match size {
            Size::Real => Sizes {
                tokens: 512,
                width: 768,
                ff_width: 3072,
                vocab: 16_384,
                attention: attention(2, 512, 12),
            },
            Size::Tiny => Sizes {
                tokens: 24,
                width: 48,
                ff_width: 96,
                vocab: 600,
                attention: attention(1, 20, 2),
            },
        }
    }
}

fn decode(isa: Isa, sizes: &Sizes) -> Result<Workload> {
    let (rows, cols) = (sizes.ff_width, sizes.width);
    let matrix = made_up_matrix(rows, cols)?;
    let mut out = vec![0.0; rows * cols];
    let bytes = matrix.bytes() + 4 * out.len();
    Ok(Workload::new(
        format!("decode {rows}x{cols}"),
        bytes,
        0,
        move || {
            fill_rows(isa, &matrix, 0..rows, &mut out);
        },
    ))
}

fn matrix_vector(isa: Isa, rows: usize, cols: usize) -> Result<Workload> {
    let matrix = made_up_matrix(rows, cols)?;
    let x = made_up_numbers(cols, 1);
    let mut y = vec![0.0; rows];
    let bytes = matrix.bytes() + 4 * (rows + cols);
    Ok(Workload::new(
        format!("matvec {rows}x{cols}"),
        bytes,
        2 * rows * cols,
        move || {
            matvec(isa, &matrix, &x, &mut y);
        },
    ))
}

/// One thread casts the votes of a whole matrix.
fn cast(isa: Isa, sizes: &Sizes) -> Workload {
    let (rows, cols) = (sizes.ff_width, sizes.width);
    let gradient = made_up_numbers(rows * cols, 2);
    let column_factor = vec![1.0; cols];
    let mut ballot = vec![0i8; rows * cols];
    let bytes = 4 * gradient.len() + 2 * ballot.len();
    Workload::new(
        format!("cast {rows}x{cols}, 1 thread"),
        bytes,
        0,
        move || {
            let rows = ballot
                .chunks_exact_mut(cols)
                .zip(gradient.chunks_exact(cols));
            for (row, (ballot, gradient)) in (0..).zip(rows) {
                cast_votes_i8(isa, gradient, 3.0, &column_factor, 30.0, &RNG, row, ballot);
            }
        },
    )
}

/// One thread counts the ballot of a whole matrix.
fn count(isa: Isa, sizes: &Sizes) -> Result<Workload> {
    let (rows, cols) = (sizes.ff_width, sizes.width);
    let mut matrix = made_up_matrix(rows, cols)?;
    let mut ballot: Vec<i8> = made_up_numbers(rows * cols, 3)
        .iter()
        .map(|it| (it * 100.0) as i8)
        .collect();
    let table = FlipTable::new(&Grid::prime(), 127);
    let row_bytes = matrix.row_bytes();
    let bytes = 2 * (matrix.nibbles().len() + ballot.len());
    Ok(Workload::new(
        format!("count {rows}x{cols}, 1 thread"),
        bytes,
        0,
        move || {
            let (nibbles, _, _) = matrix.planes_mut();
            let rows = ballot
                .chunks_exact_mut(cols)
                .zip(nibbles.chunks_exact_mut(row_bytes));
            for (row, (ballot, nibbles)) in (0..).zip(rows) {
                count_row(
                    isa,
                    nibbles,
                    None,
                    cols,
                    ballot,
                    None,
                    &table,
                    1 << 14,
                    &RNG,
                    row,
                );
            }
        },
    ))
}

/// The three dense products of a linear layer.
fn dense(sizes: &Sizes) -> [Workload; 3] {
    let (n, m, k) = (sizes.tokens, sizes.ff_width, sizes.width);
    let x = made_up_numbers(n * k, 4);
    let w = made_up_numbers(m * k, 5);
    let dy = made_up_numbers(n * m, 6);
    let (mut y, mut dx) = (vec![0.0; n * m], vec![0.0; n * k]);
    let (x2, w2, dy2) = (x.clone(), w.clone(), dy.clone());
    let mut dw = vec![0.0; TILE_ROWS * k];
    let flops = 2 * n * m * k;
    [
        Workload::new(format!("gemm forward {n}x{m}x{k}"), 0, flops, move || {
            matmul_nt(&x, &w, &mut y, n, m, k, n, false);
        }),
        Workload::new(
            format!("gemm input grad {n}x{m}x{k}"),
            0,
            flops,
            move || {
                matmul_nn(&dy, &w2, &mut dx, n, m, k, n, false);
            },
        ),
        Workload::new(
            format!("gemm weight grad tile {n}x{TILE_ROWS}x{k}, 1 thread"),
            0,
            2 * n * TILE_ROWS * k,
            move || matmul_tn_tile(&dy2, &x2, n, m, k, 0..TILE_ROWS, &mut dw, false),
        ),
    ]
}

fn attentions(isa: Isa, sizes: &Sizes) -> [Workload; 2] {
    let shape = sizes.attention;
    let AttentionShape {
        batch,
        time,
        heads,
        head_dim,
        ..
    } = shape;
    let rows = batch * time;
    let qkv = made_up_numbers(rows * shape.qkv_width(), 7);
    let dout = made_up_numbers(rows * shape.width(), 8);
    let mut out = vec![0.0; rows * shape.width()];
    let mut lse = vec![0.0; rows * heads];
    attention(isa, &shape, &qkv, &mut out, &mut lse);
    let (qkv2, out2, lse2) = (qkv.clone(), out.clone(), lse.clone());
    let mut dqkv = vec![0.0; qkv.len()];
    // Two products over the lower triangle forward, five backward.
    let product = batch * heads * time * time * head_dim;
    let sizes = format!("{batch}x{time}x{heads}x{head_dim}");
    [
        Workload::new(format!("attention {sizes}"), 0, 2 * product, move || {
            attention(isa, &shape, &qkv, &mut out, &mut lse);
        }),
        Workload::new(
            format!("attention backward {sizes}"),
            0,
            5 * product,
            move || {
                attention_backward(isa, &shape, &qkv2, &out2, &lse2, &dout, &mut dqkv);
            },
        ),
    ]
}

fn cross_entropies(isa: Isa, sizes: &Sizes) -> Result<[Workload; 2]> {
    let (n, vocab, width) = (sizes.tokens, sizes.vocab, sizes.width);
    let head = made_up_matrix(vocab, width)?;
    let head2 = head.clone();
    let x = made_up_numbers(n * width, 9);
    let x2 = x.clone();
    let targets: Vec<u32> = (0..n).map(|row| (row * 7919 % vocab) as u32).collect();
    let targets2 = targets.clone();
    let (mut losses, mut lse) = (vec![0.0; n], vec![0.0; n]);
    let mut scratch = CrossEntropyScratch::new(n, vocab, width, false);
    let mut scratch2 = CrossEntropyScratch::new(n, vocab, width, false);
    cross_entropy_forward(
        isa,
        &x,
        &head,
        &targets,
        n,
        &mut losses,
        &mut lse,
        &mut scratch,
    );
    let lse2 = lse.clone();
    let mut dx = vec![0.0; n * width];
    let flops = 2 * n * vocab * width;
    let forward = Workload::new(
        format!("cross-entropy {n}x{vocab}x{width}"),
        0,
        flops,
        move || {
            cross_entropy_forward(
                isa,
                &x,
                &head,
                &targets,
                n,
                &mut losses,
                &mut lse,
                &mut scratch,
            );
        },
    );
    let name = format!("cross-entropy backward {n}x{vocab}x{width}");
    let backward = Workload::new(name, 0, 2 * flops, move || {
        dx.fill(0.0);
        for tile in vocab_tiles(vocab) {
            cross_entropy_backward_tile(
                isa,
                &x2,
                &head2,
                tile,
                &targets2,
                &lse2,
                1.0 / n as f32,
                n,
                Some(&mut dx),
                &mut scratch2,
            );
        }
    });
    Ok([forward, backward])
}

const RNG: VoteRng = VoteRng {
    seed: 1,
    stream: 0,
    step: 1,
    tensor: 0,
    micro_batch: 0,
};

pub(crate) fn made_up_matrix(rows: usize, cols: usize) -> Result<QuantMatrix> {
    let weights = made_up_numbers(rows * cols, 10);
    Ok(QuantMatrix::quantise(
        &Grid::prime(),
        rows,
        cols,
        cols,
        &weights,
        vec![1.0; rows],
    )?)
}

/// Numbers between −1 and 1.
pub(crate) fn made_up_numbers(count: usize, stream: u32) -> Vec<f32> {
    let word = |index: usize| philox4x32([index as u32, stream, 0, 0], [1, 2])[0];
    (0..count)
        .map(|index| (f64::from(word(index)) / f64::from(1u32 << 31) - 1.0) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_runs_on_every_tier() {
        for isa in Isa::available() {
            let mut list = workloads(isa, Size::Tiny).unwrap();
            assert_eq!(list.len(), 17, "{}", isa.name());
            for workload in &mut list {
                workload.run();
                workload.run();
                assert!(workload.bytes + workload.flops > 0, "{}", workload.name);
            }
        }
    }
}
