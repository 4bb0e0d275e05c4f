//! The integer kernels as workloads.

use anyhow::{Context, Result};
use primal_kernels::{
    HugeArena, Int16Panels, Isa, PackedWeights, QuantisedRows, int8_matmul_nn, int8_matmul_nt,
    int8_matvec, int16_tn_tile,
};

use crate::workload::{Size, Units, Workload, made_up_matrix, made_up_numbers};

/// Sizes of a layer of the presets `llama-1.1b` (decode) and `ghost-0.1b` (the rest).
struct Sizes {
    copies: usize,
    matvec: (usize, usize),
    tokens: usize,
    width: usize,
    ff_width: usize,
}

/// Every kernel of `int8` and `int16`.
///
/// # Errors
/// When the system gives no memory.
pub(crate) fn integers(isa: Isa, size: Size) -> Result<Vec<Workload>> {
    let sizes = match size {
        // 64 matrices of 5.8 MB: more than any cache holds.
        Size::Real => Sizes {
            copies: 64,
            matvec: (5632, 2048),
            tokens: 512,
            width: 768,
            ff_width: 3072,
        },
        Size::Tiny => Sizes {
            copies: 1,
            matvec: (48, 64),
            tokens: 9,
            width: 48,
            ff_width: 96,
        },
    };
    let mut list = vec![matvecs(isa, &sizes)?];
    list.extend(products(isa, &sizes)?);
    list.push(gradient_tile(isa, &sizes));
    Ok(list)
}

fn matvecs(isa: Isa, sizes: &Sizes) -> Result<Workload> {
    let (rows, cols) = sizes.matvec;
    let matrix = made_up_matrix(rows, cols)?;
    let bytes = sizes.copies * PackedWeights::arena_bytes(rows, cols, false);
    let mut arena = HugeArena::new(bytes)?;
    let weights: Vec<PackedWeights> = (0..sizes.copies)
        .map(|_| PackedWeights::new(&matrix, &mut arena).context("the arena is used up"))
        .collect::<Result<_>>()?;
    let mut x = QuantisedRows::new(1, cols);
    x.quantise(isa, &made_up_numbers(cols, 10), cols, None);
    let mut y = vec![0.0; rows];
    let bytes = weights.iter().map(PackedWeights::bytes).sum();
    let name = format!("int8 matvec {} x {rows}x{cols}", sizes.copies);
    Ok(
        Workload::new(name, bytes, 2 * sizes.copies * rows * cols, move || {
            for weights in &weights {
                int8_matvec(isa, weights, &x, &mut y);
            }
        })
        .by(Units::Int8),
    )
}

fn products(isa: Isa, sizes: &Sizes) -> Result<[Workload; 3]> {
    let (n, m, k) = (sizes.tokens, sizes.ff_width, sizes.width);
    let matrix = made_up_matrix(m, k)?;
    let matrix2 = matrix.clone();
    let numbers = made_up_numbers(n * k, 11);
    let mut x = QuantisedRows::new(n, k);
    x.quantise(isa, &numbers, k, None);
    let mut again = x.clone();
    let mut dy = QuantisedRows::new(n, m);
    dy.quantise(isa, &made_up_numbers(n * m, 12), m, Some(matrix.scales()));
    let (mut y, mut dx) = (vec![0.0; n * m], vec![0.0; n * k]);
    let operations = 2 * n * m * k;
    Ok([
        Workload::new(format!("quantise {n}x{k}"), 5 * n * k, 0, move || {
            again.quantise(isa, &numbers, k, None);
        }),
        Workload::new(
            format!("int8 forward {n}x{m}x{k}"),
            0,
            operations,
            move || {
                int8_matmul_nt(isa, &x, &matrix, 0..m, &mut y, false);
            },
        )
        .by(Units::Int8),
        Workload::new(
            format!("int8 input grad {n}x{m}x{k}"),
            0,
            operations,
            move || {
                int8_matmul_nn(isa, &dy, &matrix2, 0..m, &mut dx, false);
            },
        )
        .by(Units::Int8),
    ])
}

fn gradient_tile(isa: Isa, sizes: &Sizes) -> Workload {
    const ROWS: usize = 64;
    let (n, m, k) = (sizes.tokens, sizes.ff_width, sizes.width);
    let (mut dy, mut x) = (Int16Panels::new(n, m), Int16Panels::new(n, k));
    dy.fill(isa, &made_up_numbers(n * m, 13), m, Int16Panels::MAX);
    x.fill(isa, &made_up_numbers(n * k, 14), k, Int16Panels::MAX);
    let mut out = vec![0.0; ROWS * k];
    let name = format!("int16 weight grad tile {n}x{ROWS}x{k}, 1 thread");
    Workload::new(name, 0, 2 * n * ROWS * k, move || {
        int16_tn_tile(isa, &dy, &x, 0..ROWS, &mut out, false);
    })
    .by(Units::Int16)
}
