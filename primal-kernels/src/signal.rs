//! Channel-major signals: what convolutions read and write.

use rayon::prelude::*;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Elements below which a pass over a signal is not worth a second thread.
const PARALLEL_ELEMENTS: usize = 1 << 20;

/// A signal of `channels` rows and `len` columns of time, f32, one row after the other.
///
/// Rows begin `stride` elements apart. Behind its `len` columns every row has room for one vector
/// more, which kernels may read and overwrite; the stride is an odd number of vectors, because
/// rows that lie a power of two apart share their places in the cache.
#[derive(Debug, Clone)]
pub struct Signal {
    channels: usize,
    len: usize,
    // Invariants: stride >= len + LANES, data.len() == channels * stride.
    stride: usize,
    data: Vec<f32>,
}

impl Signal {
    /// A signal without columns.
    ///
    /// # Panics
    /// If `channels` is 0.
    pub fn new(channels: usize) -> Signal {
        assert!(channels > 0, "a signal has channels");
        Signal {
            channels,
            len: 0,
            stride: LANES,
            data: vec![0.0; channels * LANES],
        }
    }

    /// A signal from `rows` (channels, len), row-major.
    ///
    /// # Panics
    /// If `channels` is 0 or `rows` is not whole rows.
    pub fn from_rows(channels: usize, rows: &[f32]) -> Signal {
        let mut signal = Signal::new(channels);
        assert!(rows.len().is_multiple_of(channels), "whole rows");
        signal.set_len(rows.len() / channels);
        if signal.len > 0 {
            for (c, row) in rows.chunks_exact(signal.len).enumerate() {
                signal.row_mut(c).copy_from_slice(row);
            }
        }
        signal
    }

    /// Number of rows.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Elements from one row's start to the next one's.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// All rows with what lies between them.
    pub(crate) fn data(&self) -> &[f32] {
        &self.data
    }

    /// All rows with what lies between them.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// A row's `len` columns.
    pub fn row(&self, channel: usize) -> &[f32] {
        &self.data[channel * self.stride..][..self.len]
    }

    /// A row's `len` columns.
    pub fn row_mut(&mut self, channel: usize) -> &mut [f32] {
        &mut self.data[channel * self.stride..][..self.len]
    }

    /// The rows, top to bottom, as a parallel iterator.
    pub fn par_rows_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [f32]> {
        let len = self.len;
        self.data
            .par_chunks_exact_mut(self.stride)
            .map(move |row| &mut row[..len])
    }

    /// Sets the number of columns; those that were there keep their values, new ones hold
    /// anything. Allocates only for more columns than there ever were.
    pub fn set_len(&mut self, len: usize) {
        if len + LANES > self.stride {
            let stride = ((len.div_ceil(LANES) + 1) | 1) * LANES;
            let mut data = vec![0.0; self.channels * stride];
            let rows = data.chunks_exact_mut(stride);
            for (to, from) in rows.zip(self.data.chunks_exact(self.stride)) {
                to[..self.len].copy_from_slice(&from[..self.len]);
            }
            (self.stride, self.data) = (stride, data);
        }
        self.len = len;
    }

    /// Appends columns that hold `value`.
    pub fn append_constant(&mut self, columns: usize, value: f32) {
        let start = self.len;
        self.set_len(start + columns);
        for channel in 0..self.channels {
            self.row_mut(channel)[start..].fill(value);
        }
    }

    /// Appends the first `columns` of `other`.
    ///
    /// # Panics
    /// If the numbers of channels differ or there are fewer columns.
    pub fn append(&mut self, isa: Isa, other: &Signal, columns: usize) {
        self.append_leaky_relu(isa, other, columns, 1.0);
    }

    /// Appends max(x, slope · x) of the first `columns` of `other`: the leaky ReLU for a slope in
    /// 0..1, a copy for 1.
    ///
    /// # Panics
    /// If the numbers of channels differ or there are fewer columns.
    pub fn append_leaky_relu(&mut self, isa: Isa, other: &Signal, columns: usize, slope: f32) {
        assert!(columns <= other.len, "{columns} of {} columns", other.len);
        let start = self.len;
        self.set_len(start + columns);
        self.zip_rows(other, columns, move |to, from| {
            dispatch!(isa, leaky_relu(&from[..columns], &mut to[start..], slope));
        });
    }

    /// Adds `other` to the columns from `first` on and scales them: x = (x + other) · scale.
    ///
    /// # Panics
    /// If the numbers of channels differ or `other` ends behind this signal.
    pub fn add_scaled(&mut self, isa: Isa, first: usize, other: &Signal, scale: f32) {
        let columns = first..first + other.len;
        assert!(columns.end <= self.len, "{columns:?} of {}", self.len);
        self.zip_rows(other, other.len, move |to, from| {
            dispatch!(isa, add_scaled(from, &mut to[columns.clone()], scale));
        });
    }

    /// Sets this signal to `phases` with its rows woven together: of (channels · n, len) it makes
    /// (channels, len · n), where column t · n + p of row c is column t of row c · n + p. Of these
    /// it takes `columns` from `first` on.
    ///
    /// # Panics
    /// If `phases` has no multiple of this signal's channels, or too few columns.
    pub fn interleave(&mut self, phases: &Signal, first: usize, columns: usize) {
        let n = phases.channels / self.channels;
        assert_eq!(phases.channels, n * self.channels, "n rows a channel");
        assert!(first + columns <= n * phases.len, "columns within the rows");
        self.set_len(columns);
        let body = |(channel, to): (usize, &mut [f32])| {
            let to = &mut to[..columns];
            for phase in 0..n {
                // The first column of the phase that is not before `first`.
                let skipped = first.saturating_sub(phase).div_ceil(n);
                let from = &phases.row(channel * n + phase)[skipped..];
                let at = (skipped * n + phase - first).min(columns);
                for (to, &from) in to[at..].iter_mut().step_by(n).zip(from) {
                    *to = from;
                }
            }
        };
        if self.channels * columns < PARALLEL_ELEMENTS {
            self.data
                .chunks_exact_mut(self.stride)
                .enumerate()
                .for_each(body);
        } else {
            self.data
                .par_chunks_exact_mut(self.stride)
                .enumerate()
                .for_each(body);
        }
    }

    /// Removes the first `columns`.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn drop_front(&mut self, columns: usize) {
        assert!(columns <= self.len, "{columns} of {} columns", self.len);
        if columns > 0 {
            for row in self.data.chunks_exact_mut(self.stride) {
                row.copy_within(columns..self.len, 0);
            }
            self.len -= columns;
        }
    }

    /// Calls `body(row of self, row of other)` for every channel, on many threads if it is worth it.
    fn zip_rows(
        &mut self,
        other: &Signal,
        columns: usize,
        body: impl Fn(&mut [f32], &[f32]) + Sync + Send,
    ) {
        assert_eq!(self.channels, other.channels, "as many channels");
        let (len, other_len) = (self.len, other.len);
        let body = |to: &mut [f32], from: &[f32]| body(&mut to[..len], &from[..other_len]);
        if self.channels * columns < PARALLEL_ELEMENTS {
            let rows = self.data.chunks_exact_mut(self.stride);
            for (to, from) in rows.zip(other.data.chunks_exact(other.stride)) {
                body(to, from);
            }
        } else {
            self.data
                .par_chunks_exact_mut(self.stride)
                .zip(other.data.par_chunks_exact(other.stride))
                .for_each(|(to, from)| body(to, from));
        }
    }
}

#[inline(always)]
fn leaky_relu<L: Lanes>(lanes: L, x: &[f32], y: &mut [f32], slope: f32) {
    let slope = lanes.splat(slope);
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (x, y) in x.iter().zip(y) {
        let x = lanes.load(x);
        // The order of the operands makes NaN come out as NaN.
        lanes.store(lanes.max(lanes.mul(x, slope), x), y);
    }
    let x = lanes.load_tail(x_tail);
    lanes.store_tail(lanes.max(lanes.mul(x, slope), x), y_tail);
}

#[inline(always)]
fn add_scaled<L: Lanes>(lanes: L, x: &[f32], y: &mut [f32], scale: f32) {
    let scale = lanes.splat(scale);
    let (x, x_tail) = x.as_chunks::<LANES>();
    let (y, y_tail) = y.as_chunks_mut::<LANES>();
    for (x, y) in x.iter().zip(y) {
        let sum = lanes.add(lanes.load(y), lanes.load(x));
        lanes.store(lanes.mul(sum, scale), y);
    }
    let sum = lanes.add(lanes.load_tail(y_tail), lanes.load_tail(x_tail));
    lanes.store_tail(lanes.mul(sum, scale), y_tail);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::noise;

    #[test]
    fn columns_come_and_go() {
        for isa in Isa::available() {
            let mut signal = Signal::new(3);
            assert!(signal.is_empty());
            let mut want: Vec<Vec<f32>> = vec![Vec::new(); 3];
            for (seed, len) in [0, 1, 15, 16, 17, 40, 3].into_iter().enumerate() {
                let rows = noise(3 * len, seed as u64);
                let other = Signal::from_rows(3, &rows);
                signal.append_leaky_relu(isa, &other, len, 0.1);
                signal.append_constant(2, 7.0);
                let dropped = signal.len() / 3;
                signal.drop_front(dropped);
                for (c, want) in want.iter_mut().enumerate() {
                    let row = &rows[c * len..][..len];
                    want.extend(row.iter().map(|&x| if x > 0.0 { x } else { 0.1 * x }));
                    want.extend([7.0, 7.0]);
                    want.drain(..dropped);
                    assert_eq!(signal.row(c), want, "{}", isa.name());
                }
            }
        }
    }

    #[test]
    fn sums_scale_and_nan_stays() {
        for isa in Isa::available() {
            let (a, b) = (noise(2 * 37, 1), noise(2 * 37, 2));
            let mut sum = Signal::from_rows(2, &a);
            sum.add_scaled(isa, 0, &Signal::from_rows(2, &b), 0.5);
            let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| (a + b) * 0.5).collect();
            assert_eq!([sum.row(0), sum.row(1)].concat(), want, "{}", isa.name());

            let mut copy = Signal::new(1);
            copy.append_leaky_relu(isa, &Signal::from_rows(1, &[f32::NAN, -1.0]), 2, 0.1);
            assert!(copy.row(0)[0].is_nan() && copy.row(0)[1] == -0.1);
        }
    }

    #[test]
    fn rows_are_woven() {
        for n in [1, 2, 3, 8] {
            let rows = noise(2 * n * 10, n as u64);
            let phases = Signal::from_rows(2 * n, &rows);
            for (first, columns) in [(0, 10 * n), (1, 5), (n / 2, 9 * n), (10 * n, 0)] {
                let mut woven = Signal::new(2);
                woven.interleave(&phases, first, columns);
                for channel in 0..2 {
                    let at = |q: usize| phases.row(channel * n + q % n)[q / n];
                    let want: Vec<f32> = (first..first + columns).map(at).collect();
                    assert_eq!(woven.row(channel), want, "{n} rows from {first}");
                }
            }
        }
    }
}
