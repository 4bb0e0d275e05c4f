//! Counting: from votes and ballots to flips of codes.

use primal_lut::Grid;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

use super::rng::{BLOCK_VECTORS, Draws, VoteRng};
use super::{BALLOT_LIMIT, clamp};

/// The whole of a ballot entry in [`count_row`]'s leak.
const LEAK_ALL: u32 = 1 << 24;

/// Votes that it takes to leave a code, upwards and downwards; 0 where there is no neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlipTable {
    /// Votes to the next larger value.
    pub up: [i16; 32],
    /// Votes to the next smaller value.
    pub down: [i16; 32],
    /// Whether a weight flips when its ballot has passed half of them, and still spends all: code
    /// and ballot then stand for a value to which the code is the nearest.
    pub at_half: bool,
}

impl FlipTable {
    /// The widest gap takes `max_votes` (1..=127), the others in proportion, at least one.
    ///
    /// # Panics
    /// If `max_votes` is out of range.
    pub fn new(grid: &Grid, max_votes: i16) -> FlipTable {
        assert!(
            (1..=127).contains(&max_votes),
            "{max_votes} votes do not fit a ballot"
        );
        let codes = 0..grid.len() as u8;
        let widest = codes
            .clone()
            .filter_map(|code| grid.gap_up(code))
            .fold(0.0, f32::max);
        let votes = |gap: Option<f32>| {
            gap.map_or(0, |gap| {
                let votes = f64::from(gap) / f64::from(widest) * f64::from(max_votes);
                (votes.round() as i16).clamp(1, max_votes)
            })
        };
        let mut table = FlipTable {
            up: [0; 32],
            down: [0; 32],
            at_half: false,
        };
        for code in codes {
            table.up[usize::from(code)] = votes(grid.gap_up(code));
            table.down[usize::from(code)] = votes(grid.gap_down(code));
        }
        table
    }

    /// The same gaps, left when half of one is passed.
    pub fn at_half_a_gap(self) -> FlipTable {
        FlipTable {
            at_half: true,
            ..self
        }
    }
}

/// What counting sums over a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CountStats {
    /// Weights that moved.
    pub flips: u32,
    /// Sum of the squares of `votes`; 0 without them.
    pub sum_votes_sq: i64,
}

/// Counts a row: votes go into the ballot, the ballot leaks, and where it reaches the threshold
/// the weight moves one rank and spends it. For every weight, in integers:
/// b = clamp(b + votes, +-127); b -= sign(b) * ((|b| * leak_q24 + (uniform16 << 8)) >> 24);
/// t = up\[code\] if b > 0 else down\[code\]; if t > 0 and |b| >= t, or 2 |b| > t where the table is
/// [`FlipTable::at_half`], then code += sign(b) and b -= sign(b) * t.
///
/// `nibbles` is (cols.div_ceil(2)) u8 and `high` (cols.div_ceil(8)) u8 for a wide grid, packed
/// as in [`crate::decode_values`]; `ballot` is (cols) i8; `votes` is (cols) i16 and is cleared.
/// `leak_q24` is the fraction lost, 2^24 being all of it.
///
/// # Panics
/// If the lengths do not agree, `leak_q24` is above 2^24 or a field of `rng` is out of its range.
pub fn count_row(
    isa: Isa,
    nibbles: &mut [u8],
    high: Option<&mut [u8]>,
    cols: usize,
    ballot: &mut [i8],
    votes: Option<&mut [i16]>,
    table: &FlipTable,
    leak_q24: u32,
    rng: &VoteRng,
    row: u32,
) -> CountStats {
    check_planes(nibbles, high.as_deref(), cols);
    assert_eq!(ballot.len(), cols, "ballot of {cols} columns");
    assert!(
        votes.as_ref().is_none_or(|votes| votes.len() == cols),
        "votes of {cols} columns"
    );
    assert!(leak_q24 <= LEAK_ALL, "a leak of {leak_q24} / 2^24");
    let (is_wide, has_votes) = (high.is_some(), votes.is_some());
    let row_state = CountRow {
        nibbles,
        high: high.unwrap_or_default(),
        ballot,
        votes: votes.unwrap_or_default(),
    };
    macro_rules! count_as {
        ($wide:literal, $votes:literal, $half:literal) => {
            dispatch!(
                isa,
                count::<$wide, $votes, $half>(row_state, table, leak_q24, rng, row)
            )
        };
    }
    match (is_wide, has_votes, table.at_half) {
        (false, false, false) => count_as!(false, false, false),
        (false, false, true) => count_as!(false, false, true),
        (false, true, false) => count_as!(false, true, false),
        (false, true, true) => count_as!(false, true, true),
        (true, false, false) => count_as!(true, false, false),
        (true, false, true) => count_as!(true, false, true),
        (true, true, false) => count_as!(true, true, false),
        (true, true, true) => count_as!(true, true, true),
    }
}

pub(super) fn check_planes(nibbles: &[u8], high: Option<&[u8]>, cols: usize) {
    assert_eq!(nibbles.len(), cols.div_ceil(2), "nibbles of {cols} columns");
    if let Some(high) = high {
        assert_eq!(high.len(), cols.div_ceil(8), "high bits of {cols} columns");
    }
}

pub(super) fn code_at(nibbles: &[u8], high: Option<&[u8]>, col: usize) -> u8 {
    let low = nibbles[col / 2] >> (col % 2 * 4) & 15;
    high.map_or(low, |high| low | (high[col / 8] >> (col % 8) & 1) << 4)
}

pub(super) fn set_code(nibbles: &mut [u8], high: Option<&mut [u8]>, col: usize, code: u8) {
    let shift = col % 2 * 4;
    nibbles[col / 2] = nibbles[col / 2] & !(15 << shift) | (code & 15) << shift;
    if let Some(high) = high {
        let bit = col % 8;
        high[col / 8] = high[col / 8] & !(1 << bit) | (code >> 4) << bit;
    }
}

/// A row's planes; `high` and `votes` are empty where there are none.
struct CountRow<'a> {
    nibbles: &'a mut [u8],
    high: &'a mut [u8],
    ballot: &'a mut [i8],
    votes: &'a mut [i16],
}

#[inline(always)]
fn count<L: Lanes, const WIDE: bool, const VOTES: bool, const HALF: bool>(
    lanes: L,
    row_state: CountRow<'_>,
    table: &FlipTable,
    leak_q24: u32,
    rng: &VoteRng,
    row: u32,
) -> CountStats {
    let draws = Draws::new(rng, row);
    let mut counter = Counter::<L, WIDE, VOTES, HALF>::new(lanes, table, leak_q24);
    let (ballot, ballot_tail) = row_state.ballot.as_chunks_mut::<LANES>();
    let n_vectors = ballot.len();
    let (nibbles, nibble_tail) = row_state.nibbles.split_at_mut(n_vectors * 8);
    let nibbles = nibbles.as_chunks_mut::<8>().0;
    let (high, high_tail) = row_state
        .high
        .split_at_mut(if WIDE { n_vectors * 2 } else { 0 });
    let high = high.as_chunks_mut::<2>().0;
    let (votes, votes_tail) = row_state.votes.as_chunks_mut::<LANES>();

    let blocks = ballot
        .chunks_mut(BLOCK_VECTORS)
        .zip(nibbles.chunks_mut(BLOCK_VECTORS));
    for (block, (ballot, nibbles)) in blocks.enumerate() {
        let uniforms = draws.block(lanes, block);
        let first = block * BLOCK_VECTORS;
        let high = if WIDE {
            &mut high[first..][..ballot.len()]
        } else {
            &mut []
        };
        let votes = if VOTES {
            &mut votes[first..][..ballot.len()]
        } else {
            &mut []
        };
        let vectors = ballot.iter_mut().zip(nibbles).zip(uniforms).enumerate();
        for (i, ((ballot, nibbles), uniform)) in vectors {
            let (mut no_high, mut no_votes) = ([0; 2], [0; LANES]);
            let high = if WIDE { &mut high[i] } else { &mut no_high };
            let votes = if VOTES { &mut votes[i] } else { &mut no_votes };
            counter.vector(lanes, nibbles, high, ballot, votes, uniform);
        }
    }
    if !ballot_tail.is_empty() {
        let uniform = draws.block(lanes, n_vectors / BLOCK_VECTORS)[n_vectors % BLOCK_VECTORS];
        // Lanes beyond the row have an empty ballot and no votes: nothing moves there.
        let (mut nibbles, mut high, mut ballot, mut votes) =
            ([0; 8], [0; 2], [0; LANES], [0; LANES]);
        nibbles[..nibble_tail.len()].copy_from_slice(nibble_tail);
        high[..high_tail.len()].copy_from_slice(high_tail);
        ballot[..ballot_tail.len()].copy_from_slice(ballot_tail);
        votes[..votes_tail.len()].copy_from_slice(votes_tail);
        counter.vector(
            lanes,
            &mut nibbles,
            &mut high,
            &mut ballot,
            &mut votes,
            uniform,
        );
        nibble_tail.copy_from_slice(&nibbles[..nibble_tail.len()]);
        high_tail.copy_from_slice(&high[..high_tail.len()]);
        ballot_tail.copy_from_slice(&ballot[..ballot_tail.len()]);
        votes_tail.fill(0);
    }
    counter.stats(lanes)
}

/// The state of counting one row.
struct Counter<L: Lanes, const WIDE: bool, const VOTES: bool, const HALF: bool> {
    /// Narrow: thresholds down, then up, 16 each. Wide: thresholds down.
    down: L::T,
    /// Wide: thresholds up.
    up: L::T,
    leak_q24: L::I,
    flips: u32,
    /// Sums of squares in eight 64-bit lanes.
    sum_votes_sq: L::I,
}

impl<L: Lanes, const WIDE: bool, const VOTES: bool, const HALF: bool>
    Counter<L, WIDE, VOTES, HALF>
{
    #[inline(always)]
    fn new(lanes: L, table: &FlipTable, leak_q24: u32) -> Self {
        // No neighbour is a threshold that no ballot reaches.
        let bits = |t: i16| {
            f32::from_bits(if t > 0 {
                t.cast_unsigned().into()
            } else {
                0x7fff_ffff
            })
        };
        let up = table.up.map(bits);
        let mut down = table.down.map(bits);
        if !WIDE {
            down[16..].copy_from_slice(&up[..16]);
        }
        Counter {
            down: lanes.table(&down),
            up: lanes.table(&up),
            leak_q24: lanes.splat_i(leak_q24.cast_signed()),
            flips: 0,
            sum_votes_sq: lanes.splat_i(0),
        }
    }

    #[inline(always)]
    fn vector(
        &mut self,
        lanes: L,
        nibbles: &mut [u8; 8],
        high: &mut [u8; 2],
        ballot: &mut [i8; LANES],
        votes: &mut [i16; LANES],
        uniform: L::I,
    ) {
        let mut code = lanes.load_nibbles(nibbles);
        if WIDE {
            code = lanes.or(code, lanes.spread_bit4(u16::from_le_bytes(*high)));
        }
        let mut b = lanes.load_i8(ballot);
        if VOTES {
            let v = lanes.load_i16(votes);
            lanes.store_i16(lanes.splat_i(0), votes);
            b = lanes.add_i(b, v);
            let size = lanes.abs_i(v);
            let odd = lanes.high_halves(size);
            let squares = lanes.add_u64(lanes.mul_even(size, size), lanes.mul_even(odd, odd));
            self.sum_votes_sq = lanes.add_u64(self.sum_votes_sq, squares);
        }
        let b = clamp(lanes, b, BALLOT_LIMIT);
        let s = lanes.shr_signed(b, 31);
        let size = lanes.abs_i(b);

        // At most 127 * 2^24 + 2^24 - 256: below 2^31.
        let lost = lanes.add_i(lanes.mul_i(size, self.leak_q24), lanes.shl(uniform, 8));
        let size = lanes.sub_i(size, lanes.shr(lost, 24));

        let threshold = self.threshold(lanes, code, s);
        let reach = if HALF {
            // More than half: what is left over cannot turn the weight back at once.
            lanes.add_i(lanes.shr(threshold, 1), lanes.splat_i(1))
        } else {
            threshold
        };
        let stays = lanes.gt_i(reach, size);
        self.flips += 16 - lanes.mask_bits(stays).count_ones();
        let size = lanes.select_i(stays, size, lanes.sub_i(size, threshold));
        let rank = lanes.or(s, lanes.splat_i(1));
        code = lanes.select_i(stays, code, lanes.add_i(code, rank));

        lanes.store_i8(lanes.sub_i(lanes.xor(size, s), s), ballot);
        lanes.store_nibbles(code, nibbles);
        if WIDE {
            *high = lanes.gather_bit4(code).to_le_bytes();
        }
    }

    /// The threshold of each code in the direction of `s`, -1 for down and 0 for up.
    #[inline(always)]
    fn threshold(&self, lanes: L, code: L::I, s: L::I) -> L::I {
        if WIDE {
            let up = lanes.to_bits(lanes.lookup32(self.up, code));
            let down = lanes.to_bits(lanes.lookup32(self.down, code));
            lanes.xor(up, lanes.and(lanes.xor(up, down), s))
        } else {
            let upward = lanes.and(lanes.xor(s, lanes.splat_i(-1)), lanes.splat_i(16));
            lanes.to_bits(lanes.lookup32(self.down, lanes.or(code, upward)))
        }
    }

    #[inline(always)]
    fn stats(&self, lanes: L) -> CountStats {
        let mut halves = [0; LANES];
        lanes.store_i(self.sum_votes_sq, &mut halves);
        let sum_votes_sq = halves
            .as_chunks::<2>()
            .0
            .iter()
            .fold(0, |sum: i64, [low, high]| {
                sum + (i64::from(low.cast_unsigned()) | i64::from(*high) << 32)
            });
        CountStats {
            flips: self.flips,
            sum_votes_sq,
        }
    }
}
