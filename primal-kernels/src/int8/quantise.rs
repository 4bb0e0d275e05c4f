//! Activations as int8, one scale a token or a group of its columns.

use rayon::prelude::*;

use super::{ByteWeights, GROUP_UNIT, INT8_MAX_COLS, Int8Rows, has_int8_form};
use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Rows start at multiples of this, so that every kernel reads whole vectors.
const ROW_ALIGNMENT: usize = 64;

/// Values that one task quantises, at least a row: a narrow model's pass should have many tasks.
const TASK_VALUES: usize = 1 << 13;

/// Token rows as int8: value = scale · q, q = round(x · 127 / max |x|), ties to even, the maximum
/// over a group of columns: those that share a scale of the weights.
///
/// Products with weights sum q · table value in i32, exactly, and scale the sum once a group. So
/// they are off by what rounding to q and to the i8 table loses (half of 1/127 of the group's
/// largest value, 1.7 % of a prime grid value), and by f32 rounding.
///
/// The buffers are allocated once, for the largest product they are used in.
#[derive(Debug, Clone)]
pub struct QuantisedRows {
    /// (rows, stride) i8, zeros past the columns.
    values: Vec<i8>,
    /// (rows, groups) f32: max |x| / 127; NaN for a group that is not finite.
    scales: Vec<f32>,
    /// (rows, groups): Σ q of a group.
    sums: Vec<i32>,
    rows: usize,
    cols: usize,
    group: usize,
}

impl QuantisedRows {
    /// Room for `rows` rows of `cols` columns, or any product of the two that is no larger.
    pub fn new(rows: usize, cols: usize) -> Self {
        let stride = cols.next_multiple_of(ROW_ALIGNMENT);
        QuantisedRows {
            values: vec![0; rows * stride],
            scales: vec![0.0; rows * stride / GROUP_UNIT],
            sums: vec![0; rows * stride / GROUP_UNIT],
            rows: 0,
            cols: 0,
            group: 0,
        }
    }

    /// Bytes of [`QuantisedRows::new`].
    pub fn bytes(rows: usize, cols: usize) -> u64 {
        let stride = cols.next_multiple_of(ROW_ALIGNMENT);
        (rows * (stride + 8 * stride / GROUP_UNIT)) as u64
    }

    /// Bytes held.
    pub fn allocated_bytes(&self) -> u64 {
        (self.values.len() + 4 * self.scales.len() + 4 * self.sums.len()) as u64
    }

    /// Quantises `x` (rows, cols) f32 with a scale a row, each column times `col_scale` (cols)
    /// first if there is one: the gradient of a layer's output takes the row scales of the layer's
    /// weights that way.
    ///
    /// # Panics
    /// If the rows do not fit, or `cols` is 0 or beyond [`INT8_MAX_COLS`].
    pub fn quantise(&mut self, isa: Isa, x: &[f32], cols: usize, col_scale: Option<&[f32]>) {
        self.quantise_groups(isa, x, (cols, cols), col_scale);
    }

    /// Quantises `x` (rows, K) f32 for a product with `w` (M, K), with a scale for each group of
    /// columns for which `w` has one. Returns false, with nothing done, where `w` has no integer
    /// form: groups that are neither the whole row nor a multiple of 32, more than
    /// [`INT8_MAX_COLS`] columns or a grid without an i8 view.
    ///
    /// # Panics
    /// If the rows do not fit.
    pub fn quantise_for(&mut self, isa: Isa, x: &[f32], w: &dyn Int8Rows) -> bool {
        let (cols, group) = (w.cols(), w.group());
        if !has_int8_form(cols, group) || w.int8_grid().is_none() {
            return false;
        }
        self.quantise_groups(isa, x, (cols, group), None);
        true
    }

    /// Quantises `x` (rows, K) f32 for a product with `w` (M, K).
    ///
    /// # Panics
    /// If the rows do not fit.
    pub fn quantise_for_bytes(&mut self, isa: Isa, x: &[f32], w: &ByteWeights) {
        self.quantise_groups(isa, x, (w.cols(), w.group()), None);
    }

    fn quantise_groups(
        &mut self,
        isa: Isa,
        x: &[f32],
        (cols, group): (usize, usize),
        col_scale: Option<&[f32]>,
    ) {
        assert!((1..=INT8_MAX_COLS).contains(&cols), "{cols} columns");
        assert!(x.len().is_multiple_of(cols), "whole rows");
        if let Some(scale) = col_scale {
            assert_eq!(scale.len(), cols, "a scale a column");
        }
        let rows = x.len() / cols;
        let stride = cols.next_multiple_of(ROW_ALIGNMENT);
        let groups = cols.div_ceil(group);
        assert!(
            rows * stride <= self.values.len() && rows * groups <= self.scales.len(),
            "room for {rows} rows of {cols} columns"
        );
        (self.rows, self.cols, self.group) = (rows, cols, group);
        let task_rows = (TASK_VALUES / stride).max(1);
        self.values[..rows * stride]
            .par_chunks_mut(task_rows * stride)
            .zip(self.sums[..rows * groups].par_chunks_mut(task_rows * groups))
            .zip(
                self.scales[..rows * groups]
                    .par_chunks_mut(task_rows * groups)
                    .zip(x.par_chunks(task_rows * cols)),
            )
            .for_each(|((values, sums), (scales, x))| {
                let rows = values
                    .chunks_exact_mut(stride)
                    .zip(sums.chunks_exact_mut(groups))
                    .zip(scales.chunks_exact_mut(groups).zip(x.chunks_exact(cols)));
                for ((values, sums), (scales, x)) in rows {
                    dispatch!(isa, quantise_row(x, group, col_scale, values, sums, scales));
                }
            });
    }

    /// Rows of the last [`QuantisedRows::quantise`].
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the last [`QuantisedRows::quantise`].
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// One row: (stride) values, zeros past the columns.
    pub fn row(&self, row: usize) -> &[i8] {
        let stride = self.cols.next_multiple_of(ROW_ALIGNMENT);
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.values[row * stride..][..stride]
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }

    /// The value of one unit in each group of a row.
    pub fn scales(&self, row: usize) -> &[f32] {
        let groups = self.cols.div_ceil(self.group);
        &self.scales[row * groups..][..groups]
    }

    /// Σ q of each group of a row.
    pub(super) fn sums(&self, row: usize) -> &[i32] {
        let groups = self.cols.div_ceil(self.group);
        &self.sums[row * groups..][..groups]
    }
}

/// Quantises a row group by group. `values` are padded.
#[inline(always)]
fn quantise_row<L: Lanes>(
    lanes: L,
    x: &[f32],
    group: usize,
    col_scale: Option<&[f32]>,
    values: &mut [i8],
    sums: &mut [i32],
    scales: &mut [f32],
) {
    let last = scales.len() - 1;
    let mut values = values;
    for (g, ((x, scale), sum)) in x.chunks(group).zip(scales).zip(sums).enumerate() {
        // The last group takes the padding.
        let width = if g == last { values.len() } else { group };
        let (group_values, rest) = values.split_at_mut(width);
        values = rest;
        let col_scale = col_scale.map(|scales| &scales[g * group..][..x.len()]);
        (*scale, *sum) = quantise_group(lanes, x, col_scale, group_values);
    }
}

/// Quantises a group of columns, returns its scale and Σ q. `values` are padded.
#[inline(always)]
fn quantise_group<L: Lanes>(
    lanes: L,
    x: &[f32],
    col_scale: Option<&[f32]>,
    values: &mut [i8],
) -> (f32, i32) {
    // Whole vectors first; the rest is padded, in x and in its scale, with zeros.
    let n_vectors = x.len() / LANES;
    let mut last = [0.0; LANES];
    last[..x.len() % LANES].copy_from_slice(&x[n_vectors * LANES..]);
    let mut last_scale = [0.0; LANES];
    if let Some(scale) = col_scale {
        last_scale[..x.len() % LANES].copy_from_slice(&scale[n_vectors * LANES..]);
    }
    let x = x.as_chunks::<LANES>().0.iter().chain([&last]);
    match col_scale {
        Some(scale) => {
            let scale = scale.as_chunks::<LANES>().0.iter().chain([&last_scale]);
            let scaled = x
                .zip(scale)
                .map(|(x, scale)| lanes.mul(lanes.load(x), lanes.load(scale)));
            quantise_vectors(lanes, scaled, values)
        }
        None => quantise_vectors(lanes, x.map(|x| lanes.load(x)), values),
    }
}

/// [`quantise_group`] of vectors that may be more than `values` has room for: those are zeros.
#[inline(always)]
fn quantise_vectors<L: Lanes>(
    lanes: L,
    x: impl Iterator<Item = L::F> + Clone,
    values: &mut [i8],
) -> (f32, i32) {
    let mut largest = lanes.zero();
    // x · 0 is NaN for what is not finite, and any NaN in a sum stays.
    let mut poison = lanes.zero();
    for x in x.clone() {
        largest = lanes.max(lanes.abs(x), largest);
        poison = lanes.mul_then_add(x, lanes.zero(), poison);
    }
    let largest = lanes.max_lane(largest);
    let finite = lanes.sum(poison).is_finite();
    let inverse = 127.0 / largest;
    if !finite || !inverse.is_finite() {
        values.fill(0);
        // A group of zeros, or of numbers too small to invert, is zero; anything else poisons.
        return (if finite { 0.0 } else { f32::NAN }, 0);
    }
    let inverse = lanes.splat(inverse);
    let limit = lanes.splat_i(127);
    let mut x = x;
    let mut sum = lanes.splat_i(0);
    for block in values.as_chunks_mut::<LANES>().0 {
        let q = match x.next() {
            Some(x) => lanes.round(lanes.mul(x, inverse)),
            None => lanes.splat_i(0),
        };
        let q = lanes.max_i(lanes.min_i(q, limit), lanes.splat_i(-127));
        sum = lanes.add_i(sum, q);
        lanes.store_i8(q, block);
    }
    let mut parts = [0; LANES];
    lanes.store_i(sum, &mut parts);
    (largest / 127.0, parts.iter().sum())
}
