//! The product of a matrix and one token: bound by the memory that the codes come from.

use rayon::prelude::*;

use super::packed::{BLOCK_ROWS, Block, step_value};
use super::{Int8Grid, PackedWeights, Path, QuantisedRows};
use crate::isa::Isa;

/// Weights that one task reads, at least a block of rows: 64 KiB of codes.
const TASK_WEIGHTS: usize = 1 << 17;

/// One token as the kernels take it.
#[derive(Clone, Copy)]
pub(super) struct Token<'a> {
    /// Steps of eight columns, at least as many as the weights have.
    pub(super) values: &'a [[i8; 8]],
    /// Σ q, one a group of the weights.
    sums: &'a [i32],
    /// One a group of the weights.
    scales: &'a [f32],
    unit_value: f32,
}

impl<'a> Token<'a> {
    /// The one row of `x`, for weights in units of `unit_value`.
    pub(super) fn new(x: &'a QuantisedRows, unit_value: f32) -> Self {
        Token {
            values: x.row(0).as_chunks().0,
            sums: x.sums(0),
            scales: x.scales(0),
            unit_value,
        }
    }

    /// 128 · Σ q over group `group`: what the unsigned form of the weights adds.
    #[inline(always)]
    pub(super) fn offset(&self, group: usize) -> i32 {
        128 * self.sums[group]
    }

    /// Of group `group`, the unit of the table in it.
    #[inline(always)]
    pub(super) fn scale(&self, group: usize) -> f32 {
        self.scales[group] * self.unit_value
    }
}

/// y = W x for one quantised token, `y` (rows) f32; as exact as [`QuantisedRows`] says.
///
/// # Panics
/// If `x` does not hold one row of `weights.cols()` with scales by `weights.group()`, or `y` has
/// another length than its rows.
pub fn int8_matvec(isa: Isa, weights: &PackedWeights, x: &QuantisedRows, y: &mut [f32]) {
    assert_eq!((x.rows(), x.cols()), (1, weights.cols()), "one token");
    assert_eq!(x.group(), weights.group(), "scales by the same groups");
    assert_eq!(y.len(), weights.rows(), "output of a matrix-vector product");
    let token = Token::new(x, weights.table().unit_value);
    let path = Path::of(isa);
    for_each_block(y, TASK_WEIGHTS / weights.cols(), |block, out| {
        block_product(isa, path, weights.table(), weights.block(block), token, out);
    });
}

/// Lets `product` compute each block of sixteen rows of `y`, in tasks of some `task_rows` rows.
pub(super) fn for_each_block(
    y: &mut [f32],
    task_rows: usize,
    product: impl Fn(usize, &mut [f32; BLOCK_ROWS]) + Sync,
) {
    let task_blocks = (task_rows / BLOCK_ROWS).max(1);
    y.par_chunks_mut(task_blocks * BLOCK_ROWS)
        .enumerate()
        .for_each(|(task, y)| {
            for (i, y) in y.chunks_mut(BLOCK_ROWS).enumerate() {
                let mut out = [0.0; BLOCK_ROWS];
                product(task * task_blocks + i, &mut out);
                y.copy_from_slice(&out[..y.len()]);
            }
        });
}

fn block_product(
    isa: Isa,
    path: Path,
    table: &Int8Grid,
    block: Block<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 | Path::AvxVnni | Path::Avx512Vnni => {
            super::x86::block_product(isa, table, block, token, out);
        }
        _ => block_product_scalar(table, block, token, out),
    }
}

/// The specification.
fn block_product_scalar(
    table: &Int8Grid,
    block: Block<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    out.fill(0.0);
    let groups = block.codes.chunks(block.group_steps).enumerate();
    for ((group, codes), scales) in groups.zip(block.scales) {
        let start = group * block.group_steps;
        let mut sums = [0i32; BLOCK_ROWS];
        for (i, codes) in codes.iter().enumerate() {
            let high = block.high.get(start + i);
            for (half, values) in token.values[start + i]
                .as_chunks::<4>()
                .0
                .iter()
                .enumerate()
            {
                for (r, sum) in sums.iter_mut().enumerate() {
                    for (q, &value) in values.iter().enumerate() {
                        let weight = step_value(table, codes, high, half, 4 * r + q);
                        *sum += i32::from(weight) * i32::from(value);
                    }
                }
            }
        }
        fold_group(&sums, scales, token.scale(group), out);
    }
}

/// Adds the products of a group: its sums, in the units of the rows and of the token.
pub(super) fn fold_group(
    sums: &[i32; BLOCK_ROWS],
    scales: &[f32; BLOCK_ROWS],
    token_scale: f32,
    out: &mut [f32; BLOCK_ROWS],
) {
    for ((out, &sum), scale) in out.iter_mut().zip(sums).zip(scales) {
        *out += sum as f32 * scale * token_scale;
    }
}
