//! The product of a matrix and many tokens: panels of 64 output columns are turned into bytes
//! once and multiplied with every token.

use std::cell::RefCell;
use std::ops::Range;

use primal_lut::QuantMatrix;
use rayon::prelude::*;

use super::panel::{FLIP, PANEL_COLS, Quad, fill_panel_transposed};
use super::{INT8_MAX_COLS, Int8Grid, Int8Rows, Path, QuantisedRows};
use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};
use crate::prefetch::ask_for;

/// Tokens that are multiplied with a panel while its columns stay in registers.
pub(super) const TOKENS: usize = 6;

/// Tokens of one task, which decodes its panel itself.
const TASK_TOKENS: usize = 1536;

/// Integer sums of a few tokens against a panel.
pub(super) type Sums = [[i32; PANEL_COLS]; TOKENS];

/// What a task turns its columns of the right operand into; only grows.
struct Panel {
    quads: Vec<Quad>,
    /// One row a group of summands.
    scales: Vec<[f32; PANEL_COLS]>,
}

thread_local! {
    static PANEL: RefCell<Panel> = const {
        RefCell::new(Panel { quads: Vec::new(), scales: Vec::new() })
    };
}

/// Bytes of the panel that one thread comes to hold for products of up to `depth` summands with
/// one scale a row.
pub fn int8_panel_bytes(depth: usize) -> u64 {
    (depth.div_ceil(4) * size_of::<Quad>() + size_of::<[f32; PANEL_COLS]>()) as u64
}

/// y = x wᵀ, or y += x wᵀ when `accumulate`, over rows `rows` of `w`: x (n, K) **quantised for
/// `w`**, w (M, K), y (n, rows.len()) f32; as exact as [`QuantisedRows`] says.
///
/// # Panics
/// If a length does not match, `x` has other groups than `w` or was not quantised for it, or
/// `rows.start` is no multiple of 64.
pub fn int8_matmul_nt(
    isa: Isa,
    x: &QuantisedRows,
    w: &dyn Int8Rows,
    rows: Range<usize>,
    y: &mut [f32],
    accumulate: bool,
) {
    let (m, k, n) = (rows.len(), w.cols(), x.rows());
    assert!(
        rows.end <= w.rows() && rows.start.is_multiple_of(PANEL_COLS),
        "rows {rows:?}"
    );
    assert_eq!((x.cols(), x.group()), (k, w.group()), "x is (n, {k})");
    assert_eq!(y.len(), n * m, "y is (n, {m})");
    let table = w.int8_grid().expect("x was quantised for w");
    let source = Source {
        depth: k,
        group: w.group(),
        unit_value: table.unit_value,
        fill: &|first, panel| w.fill_panel(isa, &table, rows.start + first, rows.end, panel),
        scale: &|col, group| w.scale(rows.start + col, group),
    };
    multiply(isa, x, &source, y, m, accumulate);
}

/// dx = dy w, or dx += dy w when `accumulate`, over rows `rows` of `w`: dy (n, rows.len())
/// quantised **with the scales of those rows multiplied in**, w (M, K) with one scale a row, dx
/// (n, K) f32. Returns false, with nothing done, where `w` has group scales, more than 65,536
/// rows or no integer form.
///
/// # Panics
/// If a length does not match.
pub fn int8_matmul_nn(
    isa: Isa,
    dy: &QuantisedRows,
    w: &QuantMatrix,
    rows: Range<usize>,
    dx: &mut [f32],
    accumulate: bool,
) -> bool {
    let (m, k, n) = (rows.len(), w.cols(), dy.rows());
    assert!(rows.end <= w.rows(), "rows {rows:?} of {}", w.rows());
    assert_eq!(dy.cols(), m, "dy is (n, {m})");
    assert_eq!(dx.len(), n * k, "dx is (n, {k})");
    if w.group() != k || m > INT8_MAX_COLS {
        return false;
    }
    let Some(table) = Int8Grid::new(w.grid()) else {
        return false;
    };
    let source = Source {
        depth: m,
        group: m,
        unit_value: table.unit_value,
        fill: &|first, panel| fill_panel_transposed(isa, w, &table, rows.clone(), first, panel),
        scale: &|_, _| 1.0,
    };
    multiply(isa, dy, &source, dx, k, accumulate);
    true
}

/// The right operand of a product.
struct Source<'a> {
    /// Summands.
    depth: usize,
    /// Summands that share a scale.
    group: usize,
    unit_value: f32,
    /// Fills the panel of the output columns from one on, a multiple of 64.
    fill: &'a (dyn Fn(usize, &mut [Quad]) + Sync),
    /// The scale of an output column for a group of summands.
    scale: &'a (dyn Fn(usize, usize) -> f32 + Sync),
}

/// The result, written by tasks that share no element.
#[derive(Clone, Copy)]
struct Output {
    start: *mut f32,
    cols: usize,
    accumulate: bool,
}

// SAFETY: tasks write disjoint elements, see `multiply`.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

fn multiply(
    isa: Isa,
    x: &QuantisedRows,
    source: &Source<'_>,
    y: &mut [f32],
    cols: usize,
    accumulate: bool,
) {
    let n = x.rows();
    assert_eq!(y.len(), n * cols, "the result is (n, cols)");
    let output = Output {
        start: y.as_mut_ptr(),
        cols,
        accumulate,
    };
    let panels = cols.div_ceil(PANEL_COLS);
    let token_tasks = n.div_ceil(TASK_TOKENS);
    // Tasks of one panel follow each other, so that its codes are still in the cache.
    (0..panels * token_tasks).into_par_iter().for_each(|task| {
        let first_col = task / token_tasks * PANEL_COLS;
        let first_token = task % token_tasks * TASK_TOKENS;
        let tokens = first_token..(first_token + TASK_TOKENS).min(n);
        PANEL.with_borrow_mut(|panel| {
            panel.fill(source, first_col, cols);
            // SAFETY: `y` is borrowed for this call, holds `n` rows of `cols`, and this task
            // alone writes its tokens × columns.
            unsafe { multiply_panel(isa, x, source, panel, tokens, first_col, output) };
        });
    });
}

impl Panel {
    fn fill(&mut self, source: &Source<'_>, first_col: usize, cols: usize) {
        // Both only grow in capacity.
        self.quads
            .resize(source.depth.div_ceil(4), [FLIP; 4 * PANEL_COLS]);
        (source.fill)(first_col, &mut self.quads);
        self.scales
            .resize(source.depth.div_ceil(source.group), [0.0; PANEL_COLS]);
        let width = PANEL_COLS.min(cols - first_col);
        for (group, scales) in self.scales.iter_mut().enumerate() {
            for (col, scale) in scales[..width].iter_mut().enumerate() {
                *scale = (source.scale)(first_col + col, group);
            }
        }
    }
}

/// # Safety
/// `output` must be valid for writes of `tokens` × the columns of the panel at `first_col`, by
/// nobody else for the time of the call.
unsafe fn multiply_panel(
    isa: Isa,
    x: &QuantisedRows,
    source: &Source<'_>,
    panel: &Panel,
    tokens: Range<usize>,
    first_col: usize,
    output: Output,
) {
    let width = PANEL_COLS.min(output.cols - first_col);
    let group_quads = source.group.div_ceil(4);
    let mut sums = [[0; PANEL_COLS]; TOKENS];
    for first in tokens.clone().step_by(TOKENS) {
        let count = TOKENS.min(tokens.end - first);
        let rows: [&[i8]; TOKENS] = std::array::from_fn(|t| x.row(first + t.min(count - 1)));
        let row_of_y = |t: usize| {
            let at = (first + t) * output.cols + first_col;
            // SAFETY: the caller's promise covers row `first + t`, columns from `first_col` on,
            // and one row is in use at a time.
            unsafe { std::slice::from_raw_parts_mut(output.start.add(at), width) }
        };
        for t in 0..count {
            ask_for(row_of_y(t));
        }
        if let [scales] = panel.scales.as_slice() {
            let values = rows.map(|row| &row.as_chunks::<4>().0[..panel.quads.len()]);
            panel_sums(isa, &panel.quads, &values, count, &mut sums);
            for t in 0..count {
                let offset = 128 * x.sums(first + t)[0];
                let scale = x.scales(first + t)[0] * source.unit_value;
                let (sums, y) = (&sums[t], row_of_y(t));
                dispatch!(
                    isa,
                    finish_group(sums, offset, scales, scale, output.accumulate, y)
                );
            }
            continue;
        }
        let mut totals = [[0.0; PANEL_COLS]; TOKENS];
        let groups = panel.quads.chunks(group_quads).zip(&panel.scales);
        for (group, (quads, scales)) in groups.enumerate() {
            let start = group * group_quads;
            let values = rows.map(|row| &row.as_chunks::<4>().0[start..start + quads.len()]);
            panel_sums(isa, quads, &values, count, &mut sums);
            for t in 0..count {
                let offset = 128 * x.sums(first + t)[group];
                let scale = x.scales(first + t)[group] * source.unit_value;
                dispatch!(
                    isa,
                    fold_group(&sums[t], offset, scales, scale, &mut totals[t])
                );
            }
        }
        for (t, total) in totals[..count].iter().enumerate() {
            dispatch!(isa, finish(&total[..width], output.accumulate, row_of_y(t)));
        }
    }
}

/// totals += (sums − offset) as f32 · scales · scale.
#[inline(always)]
fn fold_group<L: Lanes>(
    lanes: L,
    sums: &[i32; PANEL_COLS],
    offset: i32,
    scales: &[f32; PANEL_COLS],
    scale: f32,
    totals: &mut [f32; PANEL_COLS],
) {
    let (offset, scale) = (lanes.splat_i(offset), lanes.splat(scale));
    let totals = totals.as_chunks_mut::<LANES>().0;
    let parts = sums.as_chunks().0.iter().zip(scales.as_chunks().0);
    for ((sums, scales), total) in parts.zip(totals) {
        let sum = lanes.convert(lanes.sub_i(lanes.load_i(sums), offset));
        let scaled = lanes.mul(sum, lanes.load(scales));
        let new = lanes.mul_then_add(scaled, scale, lanes.load(total));
        lanes.store(new, total);
    }
}

/// y (+)= (sums − offset) as f32 · scales · scale: what [`fold_group`] and [`finish`] make of a
/// single group.
#[inline(always)]
fn finish_group<L: Lanes>(
    lanes: L,
    sums: &[i32; PANEL_COLS],
    offset: i32,
    scales: &[f32; PANEL_COLS],
    scale: f32,
    accumulate: bool,
    y: &mut [f32],
) {
    let (offset, scale) = (lanes.splat_i(offset), lanes.splat(scale));
    let parts = sums.as_chunks().0.iter().zip(scales.as_chunks().0);
    let (whole, tail) = y.as_chunks_mut::<LANES>();
    for (v, (sums, scales)) in parts.enumerate() {
        let sum = lanes.convert(lanes.sub_i(lanes.load_i(sums), offset));
        let total = lanes.mul_then_add(lanes.mul(sum, lanes.load(scales)), scale, lanes.zero());
        if let Some(y) = whole.get_mut(v) {
            let before = if accumulate {
                lanes.load(y)
            } else {
                lanes.zero()
            };
            lanes.store(lanes.add(before, total), y);
        } else {
            let before = if accumulate {
                lanes.load_tail(tail)
            } else {
                lanes.zero()
            };
            lanes.store_tail(lanes.add(before, total), tail);
            return;
        }
    }
}

/// y (+)= totals.
#[inline(always)]
fn finish<L: Lanes>(lanes: L, totals: &[f32], accumulate: bool, y: &mut [f32]) {
    if !accumulate {
        y.copy_from_slice(totals);
        return;
    }
    let (totals, total_tail) = totals.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (total, y) in totals.iter().zip(y) {
        lanes.store(lanes.add(lanes.load(y), lanes.load(total)), y);
    }
    for (total, y) in total_tail.iter().zip(y_tail) {
        *y += total;
    }
}

/// sums[t][col] = Σ panel byte (value + 128) · x[t], over all quads, for the first `count` tokens.
fn panel_sums(isa: Isa, quads: &[Quad], x: &[&[[i8; 4]]; TOKENS], count: usize, sums: &mut Sums) {
    match Path::of(isa) {
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 | Path::AvxVnni | Path::Avx512Vnni => {
            super::x86::panel_sums(isa, quads, x, count, sums);
        }
        _ => panel_sums_scalar(quads, x, count, sums),
    }
}

/// The specification.
fn panel_sums_scalar(quads: &[Quad], x: &[&[[i8; 4]]; TOKENS], count: usize, sums: &mut Sums) {
    for (x, sums) in x.iter().zip(sums).take(count) {
        sums.fill(0);
        for (quad, x) in quads.iter().zip(*x) {
            for (sum, bytes) in sums.iter_mut().zip(quad.as_chunks::<4>().0) {
                for (&byte, &x) in bytes.iter().zip(x) {
                    *sum += i32::from(byte) * i32::from(x);
                }
            }
        }
    }
}
