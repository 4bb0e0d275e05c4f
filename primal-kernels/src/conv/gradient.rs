//! The gradient of a convolution's weights: a sum of products over time for every weight.

use crate::isa::{Isa, Tier, dispatch};
use crate::lanes::{LANES, Lanes};
use crate::signal::Signal;

/// Columns of a pass: those of a tile's rows stay in the L1 cache while the inputs go by.
const BLOCK_COLUMNS: usize = 2048;

/// Adds the gradient of the weights (c_out, c_in, kernel) of a [`Conv1d`](crate::Conv1d):
/// `dw[o][i][k] += Σ dy[o][dy_first + t] · x[i][t + k · dilation]` over `columns` t.
///
/// Runs on the calling thread. A weight's sum is kept in sixteen lanes for 2048 columns at a time
/// and ends in the fixed tree, so it has the same bits on every tier.
///
/// # Panics
/// If `dw` is not (c_out, c_in, kernel) or a signal has too few columns.
pub fn conv1d_weight_gradient(
    isa: Isa,
    (dy, dy_first): (&Signal, usize),
    x: &Signal,
    columns: usize,
    (kernel, dilation): (usize, usize),
    dw: &mut [f32],
) {
    assert!(kernel > 0 && dilation > 0, "sizes are not 0");
    assert_eq!(
        dw.len(),
        dy.channels() * x.channels() * kernel,
        "dw is (c_out, c_in, kernel)"
    );
    assert!(dy_first + columns <= dy.len(), "columns of dy");
    assert!(
        columns + (kernel - 1) * dilation <= x.len(),
        "columns of the input"
    );
    let sizes = (kernel, dilation);
    for first in (0..columns).step_by(BLOCK_COLUMNS) {
        let block = (first, BLOCK_COLUMNS.min(columns - first));
        match isa.tier() {
            Tier::Avx512 => dispatch!(
                isa,
                add_block::<4, 6>((dy, dy_first), x, block, sizes, &mut *dw)
            ),
            _ => dispatch!(
                isa,
                add_block::<2, 2>((dy, dy_first), x, block, sizes, &mut *dw)
            ),
        }
    }
}

/// Adds a block of columns, in tiles of `R` output channels by `P` pairs of input channel and tap.
#[inline(always)]
fn add_block<L: Lanes, const R: usize, const P: usize>(
    lanes: L,
    (dy, dy_first): (&Signal, usize),
    x: &Signal,
    (first, columns): (usize, usize),
    (kernel, dilation): (usize, usize),
    dw: &mut [f32],
) {
    let pairs = x.channels() * kernel;
    let dy_row = |row: usize| &dy.row(row)[dy_first + first..][..columns];
    let x_row = |pair: usize| &x.row(pair / kernel)[first + pair % kernel * dilation..][..columns];
    let mut row = 0;
    while row < dy.channels() {
        let height = R.min(dy.channels() - row);
        // Rows and pairs beyond the last are computed again and dropped: one body for all tiles.
        let rows: [&[f32]; R] = std::array::from_fn(|r| dy_row(row + r.min(height - 1)));
        let mut pair = 0;
        while pair < pairs {
            let width = P.min(pairs - pair);
            let inputs: [&[f32]; P] = std::array::from_fn(|p| x_row(pair + p.min(width - 1)));
            let sums = tile(lanes, rows, inputs);
            for (r, sums) in sums.iter().enumerate().take(height) {
                let to = &mut dw[(row + r) * pairs + pair..][..width];
                for (to, &sum) in to.iter_mut().zip(sums) {
                    *to += lanes.sum(sum);
                }
            }
            pair += width;
        }
        row += height;
    }
}

// Loops over constant ranges are unrolled, and then the tile lives in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn tile<L: Lanes, const R: usize, const P: usize>(
    lanes: L,
    rows: [&[f32]; R],
    inputs: [&[f32]; P],
) -> [[L::F; P]; R] {
    let mut sums = [[lanes.zero(); P]; R];
    let columns = rows[0].len();
    let whole = columns / LANES * LANES;
    let mut at = 0;
    while at < whole {
        let mut x = [lanes.zero(); P];
        for p in 0..P {
            x[p] = load(lanes, inputs[p], at);
        }
        for r in 0..R {
            let dy = load(lanes, rows[r], at);
            for p in 0..P {
                sums[r][p] = lanes.fma(dy, x[p], sums[r][p]);
            }
        }
        at += LANES;
    }
    if whole < columns {
        for r in 0..R {
            let dy = lanes.load_tail(&rows[r][whole..]);
            for p in 0..P {
                let x = lanes.load_tail(&inputs[p][whole..]);
                sums[r][p] = lanes.fma(dy, x, sums[r][p]);
            }
        }
    }
    sums
}

/// Sixteen elements from `at` on.
#[inline(always)]
fn load<L: Lanes>(lanes: L, from: &[f32], at: usize) -> L::F {
    debug_assert!(at + LANES <= from.len());
    // SAFETY: `tile` is given slices of equal lengths and stops before their last whole vector
    // ends.
    lanes.load(unsafe { &*from.as_ptr().add(at).cast::<[f32; LANES]>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::noise;

    #[test]
    fn sums_equal_the_plain_ones() {
        for (c_out, c_in, kernel, dilation, columns) in [
            (1, 1, 1, 1, 1),
            (4, 2, 3, 2, 15),
            (5, 3, 7, 1, 16),
            (9, 5, 2, 3, 65),
            (3, 1, 5, 12, 4100),
        ] {
            let (x_len, first) = (columns + (kernel - 1) * dilation, 3);
            let x = noise(c_in * x_len, 1);
            let dy = noise(c_out * (columns + first), 2);
            let before = noise(c_out * c_in * kernel, 3);
            let mut bits = Vec::new();
            for isa in Isa::available() {
                let mut dw = before.clone();
                let dy_signal = Signal::from_rows(c_out, &dy);
                let x_signal = Signal::from_rows(c_in, &x);
                let sizes = (kernel, dilation);
                let dy_signal = (&dy_signal, first);
                conv1d_weight_gradient(isa, dy_signal, &x_signal, columns, sizes, &mut dw);
                for (index, &got) in dw.iter().enumerate() {
                    let (o, i, k) = (index / kernel / c_in, index / kernel % c_in, index % kernel);
                    let product = |t: usize| {
                        let dy = dy[o * (columns + first) + first + t];
                        f64::from(dy) * f64::from(x[i * x_len + t + k * dilation])
                    };
                    let want = f64::from(before[index]) + (0..columns).map(product).sum::<f64>();
                    let error = (f64::from(got) - want).abs();
                    assert!(error < 1e-4, "{}: {got} instead of {want}", isa.name());
                }
                bits.push(dw);
            }
            assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "tiers");
        }
    }
}
