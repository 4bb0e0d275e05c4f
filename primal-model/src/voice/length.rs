//! From symbols to frames and back: neighbours of a symbol, and each symbol as long as it lasts.

use primal_kernels::{Isa, add};
use rayon::prelude::*;

/// What a frame knows of its place in its symbol, see [`places`].
pub(crate) const PLACE_FEATURES: usize = 12;

/// Cosines among them.
const COSINES: usize = 8;

/// Each row beside its neighbours: `wide` (n, 3·C) = [before | itself | after] of `rows` (n, C),
/// zeros beyond the ends of a sequence.
pub(crate) fn with_neighbours(rows: &[f32], width: usize, lengths: &[usize], wide: &mut [f32]) {
    for_each_row(lengths, wide, 3 * width, |row, place, wide| {
        let (before, rest) = wide.split_at_mut(width);
        let (itself, after) = rest.split_at_mut(width);
        itself.copy_from_slice(&rows[row * width..][..width]);
        match place.has_before {
            true => before.copy_from_slice(&rows[(row - 1) * width..][..width]),
            false => before.fill(0.0),
        }
        match place.has_after {
            true => after.copy_from_slice(&rows[(row + 1) * width..][..width]),
            false => after.fill(0.0),
        }
    });
}

/// The gradient of [`with_neighbours`], written to `rows` (n, C), or added to it.
pub(crate) fn with_neighbours_backward(
    isa: Isa,
    wide: &[f32],
    width: usize,
    lengths: &[usize],
    rows: &mut [f32],
    accumulate: bool,
) {
    let part = |row: usize, slot: usize| &wide[(3 * row + slot) * width..][..width];
    for_each_row(lengths, rows, width, |row, place, out| {
        if accumulate {
            add(isa, part(row, 1), out);
        } else {
            out.copy_from_slice(part(row, 1));
        }
        if place.has_before {
            add(isa, part(row - 1, 2), out);
        }
        if place.has_after {
            add(isa, part(row + 1, 0), out);
        }
    });
}

/// Whether a row has neighbours in its sequence.
struct Place {
    has_before: bool,
    has_after: bool,
}

/// Hands every row of `out` to `work`, sequence by sequence.
fn for_each_row(
    lengths: &[usize],
    out: &mut [f32],
    width: usize,
    work: impl Fn(usize, Place, &mut [f32]) + Sync,
) {
    let mut first = 0;
    let mut rest = out;
    for &length in lengths {
        let (rows, after) = rest.split_at_mut(length * width);
        rest = after;
        rows.par_chunks_mut(width)
            .enumerate()
            .with_min_len(64)
            .for_each(|(index, out)| {
                let place = Place {
                    has_before: index > 0,
                    has_after: index + 1 < length,
                };
                work(first + index, place, out);
            });
        first += length;
    }
}

/// Which symbol each frame belongs to, and where each symbol's frames begin.
#[derive(Default)]
pub(crate) struct Lengths {
    /// (N) number of the symbol.
    symbol: Vec<u32>,
    /// (S + 1) first frame.
    start: Vec<u32>,
}

impl Lengths {
    /// `frames` (S) of each symbol.
    pub(crate) fn set(&mut self, frames: &[u32]) {
        self.symbol.clear();
        self.start.clear();
        self.start.push(0);
        for (index, &count) in (0..).zip(frames) {
            self.symbol.extend((0..count).map(|_| index));
            self.start.push(self.symbol.len() as u32);
        }
    }

    /// (N, [`PLACE_FEATURES`]) what each frame knows of its place in its symbol: half waves over
    /// the symbol, the symbol's length, and how near its two ends are.
    pub(crate) fn places(&self, out: &mut [f32]) {
        out.par_chunks_mut(PLACE_FEATURES)
            .zip(&self.symbol)
            .enumerate()
            .with_min_len(64)
            .for_each(|(frame, (out, &symbol))| {
                let [start, end] = [0, 1].map(|next| self.start[symbol as usize + next]);
                let (at, count) = ((frame as u32 - start) as f32, (end - start) as f32);
                let phase = std::f32::consts::PI * (at + 0.5) / count;
                let (cosines, rest) = out.split_at_mut(COSINES);
                for (wave, cosine) in cosines.iter_mut().enumerate() {
                    *cosine = (wave as f32 * phase).cos();
                }
                rest.copy_from_slice(&[
                    count.ln() / 3.0,
                    1.0 / count,
                    (-at / 3.0).exp(),
                    (-(count - 1.0 - at) / 3.0).exp(),
                ]);
            });
    }

    /// Adds to each frame of `frames` (N, C) its symbol of `symbols` (S, C).
    pub(crate) fn spread(&self, isa: Isa, symbols: &[f32], width: usize, frames: &mut [f32]) {
        frames
            .par_chunks_mut(width)
            .zip(&self.symbol)
            .with_min_len(64)
            .for_each(|(out, &symbol)| add(isa, &symbols[symbol as usize * width..][..width], out));
    }

    /// The gradient of [`Lengths::spread`]: `symbols` (S, C) = sums over the frames of each.
    pub(crate) fn gather(&self, isa: Isa, frames: &[f32], width: usize, symbols: &mut [f32]) {
        symbols
            .par_chunks_mut(width)
            .zip(self.start.par_windows(2))
            .with_min_len(16)
            .for_each(|(out, range)| {
                out.fill(0.0);
                for frame in range[0] as usize..range[1] as usize {
                    add(isa, &frames[frame * width..][..width], out);
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_end_with_their_sequence() {
        let rows = [1.0, 2.0, 3.0, 4.0, 5.0];
        let mut wide = [9.0; 15];
        with_neighbours(&rows, 1, &[2, 3], &mut wide);
        assert_eq!(
            wide,
            [
                0.0, 1.0, 2.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 3.0, 4.0, 5.0, 4.0, 5.0, 0.0
            ]
        );
        // The transpose: <wide, A rows> = <Aᵀ wide, rows>.
        let weights: Vec<f32> = (1..=15).map(|x| x as f32).collect();
        let mut back = [0.0; 5];
        with_neighbours_backward(Isa::best(), &weights, 1, &[2, 3], &mut back, false);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(dot(&weights, &wide), dot(&back, &rows));
    }

    #[test]
    fn symbols_last_as_long_as_they_do() {
        let mut lengths = Lengths::default();
        lengths.set(&[2, 0, 3]);
        let mut frames = [0.0; 5];
        lengths.spread(Isa::best(), &[1.0, 2.0, 3.0], 1, &mut frames);
        assert_eq!(frames, [1.0, 1.0, 3.0, 3.0, 3.0]);
        let mut symbols = [9.0; 3];
        lengths.gather(Isa::best(), &[1.0, 2.0, 3.0, 4.0, 5.0], 1, &mut symbols);
        assert_eq!(symbols, [3.0, 0.0, 12.0]);
        let mut places = [0.0; 5 * PLACE_FEATURES];
        lengths.places(&mut places);
        // The middle frame of three: the first half wave is at its zero.
        assert!(places[3 * PLACE_FEATURES + 1].abs() < 1e-6);
        assert_eq!(places[3 * PLACE_FEATURES], 1.0);
        assert!(places.iter().all(|x| x.is_finite()));
    }
}
