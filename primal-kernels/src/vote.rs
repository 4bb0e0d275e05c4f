//! Votes: drawing, casting, counting and flipping, in integers that every tier agrees on.
//!
//! Random numbers are Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
//! 1, 2, 3", SC11). A number is a function of its place alone; [`uniform16`] is the definition.

use primal_lut::Grid;

use crate::isa::{Isa, dispatch};
use crate::lanes::{LANES, Lanes};

/// Columns served by one block of counters: 16 counters of four words of two halves.
const BLOCK_COLS: usize = 128;

/// Vectors of such a block.
const BLOCK_VECTORS: usize = BLOCK_COLS / LANES;

/// A ballot's largest entry, either sign.
const BALLOT_LIMIT: i32 = 127;

/// The whole of a ballot entry in [`count_row`]'s leak.
const LEAK_ALL: u32 = 1 << 24;

const PHILOX_MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const PHILOX_KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// Names the random numbers of one matrix in one pass: row and column choose among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteRng {
    /// The run's seed, the Philox key.
    pub seed: u64,
    /// What the numbers are for, below 16.
    pub stream: u8,
    /// The optimizer step.
    pub step: u32,
    /// The matrix, below 16384.
    pub tensor: u16,
    /// The micro-batch of the step, below 16384.
    pub micro_batch: u16,
}

impl VoteRng {
    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// Counter words 1 to 3; word 0 is `column block * 16 + lane`.
    fn counter_words(&self, row: u32) -> [u32; 3] {
        assert!(self.stream < 16, "stream {} of 16", self.stream);
        assert!(self.tensor < 1 << 14, "tensor {} of 16384", self.tensor);
        assert!(
            self.micro_batch < 1 << 14,
            "micro-batch {} of 16384",
            self.micro_batch
        );
        let place = u32::from(self.tensor) << 14 | u32::from(self.micro_batch);
        [row, self.step, u32::from(self.stream) << 28 | place]
    }
}

/// Philox4x32 with ten rounds: four random words for a counter under a key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(c0) * u64::from(PHILOX_MULTIPLIERS[0]);
        let p1 = u64::from(c2) * u64::from(PHILOX_MULTIPLIERS[1]);
        (c0, c1) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32);
        (c2, c3) = ((p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(PHILOX_KEY_STEPS[0]);
        k1 = k1.wrapping_add(PHILOX_KEY_STEPS[1]);
    }
    [c0, c1, c2, c3]
}

/// The 16-bit number of a column. With block = column / 128, vec = column % 128 / 16 and
/// lane = column % 16 it is half of word vec / 2 of the counter (block * 16 + lane, row, step,
/// stream << 28 | tensor << 14 | micro-batch): the low half for an even vec, else the high one.
///
/// # Panics
/// If a field of `rng` is out of its range.
pub fn uniform16(rng: &VoteRng, row: u32, column: u32) -> u16 {
    let (block, vec, lane) = (column / 128, column % 128 / 16, column % 16);
    let [c1, c2, c3] = rng.counter_words(row);
    let words = philox4x32([block * 16 + lane, c1, c2, c3], rng.key());
    (words[vec as usize / 2] >> (vec % 2 * 16)) as u16
}

/// What [`gradient_row_stats`] sums over a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowStats {
    /// Sum of (grad * scale)^2.
    pub sum_sq: f32,
    /// Sum of grad * value: the gradient of the row scale.
    pub dot: f32,
}

/// Sums of one row of the gradient with respect to weights. `grad` and `values` (the row's grid
/// values, no scale) are (cols) f32; g = grad * scale is the gradient with respect to grid values
/// and `column_sq[j] += g[j]^2`.
///
/// # Panics
/// If the lengths differ.
pub fn gradient_row_stats(
    isa: Isa,
    grad: &[f32],
    values: &[f32],
    scale: f32,
    column_sq: &mut [f32],
) -> RowStats {
    let cols = grad.len();
    assert_eq!(
        [values.len(), column_sq.len()],
        [cols; 2],
        "values and sums of {cols} columns"
    );
    dispatch!(isa, row_stats_lanes(grad, values, scale, column_sq))
}

/// What casting sums over a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CastStats {
    /// Sum of u^2, the squared steps in units of a vote (after the limit of 32767).
    pub sum_u_sq: f32,
    /// Sum of f (1 - f) with f the fraction of |u|: the variance that rounding adds.
    pub sum_rounding_var: f32,
}

/// Casts a row's votes into its ballot. u = -(grad * row_factor) * column_factor in votes,
/// limited to +-32767, NaN as 0; the vote is sign(u) * floor(|u| + r) with r = [`uniform16`] /
/// 65536, exactly (fractions of |u| below 1/65536 are dropped). `ballot += vote`, saturating at
/// +-127. All slices are (cols).
///
/// # Panics
/// If the lengths differ or a field of `rng` is out of its range.
pub fn cast_votes_i8(
    isa: Isa,
    grad: &[f32],
    row_factor: f32,
    column_factor: &[f32],
    rng: &VoteRng,
    row: u32,
    ballot: &mut [i8],
) -> CastStats {
    let cols = grad.len();
    assert_eq!(
        [column_factor.len(), ballot.len()],
        [cols; 2],
        "factors, ballot of {cols} columns"
    );
    dispatch!(
        isa,
        cast_lanes(grad, row_factor, column_factor, rng, row, ballot)
    )
}

/// [`cast_votes_i8`] into a wide sum that saturates at +-32767.
///
/// # Panics
/// If the lengths differ or a field of `rng` is out of its range.
pub fn cast_votes_i16(
    isa: Isa,
    grad: &[f32],
    row_factor: f32,
    column_factor: &[f32],
    rng: &VoteRng,
    row: u32,
    votes: &mut [i16],
) -> CastStats {
    let cols = grad.len();
    assert_eq!(
        [column_factor.len(), votes.len()],
        [cols; 2],
        "factors, votes of {cols} columns"
    );
    dispatch!(
        isa,
        cast_lanes(grad, row_factor, column_factor, rng, row, votes)
    )
}

/// Votes that it takes to leave a code, upwards and downwards; 0 where there is no neighbour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlipTable {
    /// Votes to the next larger value.
    pub up: [i16; 32],
    /// Votes to the next smaller value.
    pub down: [i16; 32],
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
        };
        for code in codes {
            table.up[usize::from(code)] = votes(grid.gap_up(code));
            table.down[usize::from(code)] = votes(grid.gap_down(code));
        }
        table
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
/// t = up\[code\] if b > 0 else down\[code\]; if t > 0 and |b| >= t then code += sign(b) and
/// b -= sign(b) * t.
///
/// `nibbles` is (cols.div_ceil(2)) u8 and `high` (cols.div_ceil(8)) u8 for a wide grid, packed
/// as in [`crate::decode_values`]; `ballot` is (cols) i8; `votes` is (cols) i16 and is cleared.
/// `leak_q24` is the fraction lost, 2^24 being all of it.
///
/// # Panics
/// If the lengths do not agree, `leak_q24` is above 2^24 or a field of `rng` is out of its range.
#[allow(clippy::too_many_arguments)]
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
    match (is_wide, has_votes) {
        (false, false) => dispatch!(
            isa,
            count::<false, false>(row_state, table, leak_q24, rng, row)
        ),
        (false, true) => dispatch!(
            isa,
            count::<false, true>(row_state, table, leak_q24, rng, row)
        ),
        (true, false) => dispatch!(
            isa,
            count::<true, false>(row_state, table, leak_q24, rng, row)
        ),
        (true, true) => dispatch!(
            isa,
            count::<true, true>(row_state, table, leak_q24, rng, row)
        ),
    }
}

/// Counts a row by the rule `classic`: a weight with votes moves one rank by their sign with
/// probability `p_q16` / 65536, unless it is at the end of the grid (code 0 or `last_code`).
/// `votes` is (cols) i16 and is cleared; the planes are packed as in [`crate::decode_values`].
/// Returns the number of flips.
///
/// # Panics
/// If the lengths do not agree or a field of `rng` is out of its range.
pub fn count_classic_row(
    nibbles: &mut [u8],
    mut high: Option<&mut [u8]>,
    votes: &mut [i16],
    last_code: u8,
    p_q16: u32,
    rng: &VoteRng,
    row: u32,
) -> u32 {
    check_planes(nibbles, high.as_deref(), votes.len());
    let mut flips = 0;
    for (block, votes) in votes.chunks_mut(BLOCK_COLS).enumerate() {
        let uniforms = uniform_block(rng, row, block as u32);
        for (i, vote) in votes.iter_mut().enumerate() {
            let vote = std::mem::take(vote);
            if vote == 0 || u32::from(uniforms[i]) >= p_q16 {
                continue;
            }
            let col = block * BLOCK_COLS + i;
            let old = code_at(nibbles, high.as_deref(), col);
            let new = if vote > 0 {
                old.saturating_add(1).min(last_code)
            } else {
                old.saturating_sub(1)
            };
            flips += u32::from(new != old);
            set_code(nibbles, high.as_deref_mut(), col, new);
        }
    }
    flips
}

fn check_planes(nibbles: &[u8], high: Option<&[u8]>, cols: usize) {
    assert_eq!(nibbles.len(), cols.div_ceil(2), "nibbles of {cols} columns");
    if let Some(high) = high {
        assert_eq!(high.len(), cols.div_ceil(8), "high bits of {cols} columns");
    }
}

fn code_at(nibbles: &[u8], high: Option<&[u8]>, col: usize) -> u8 {
    let low = nibbles[col / 2] >> (col % 2 * 4) & 15;
    high.map_or(low, |high| low | (high[col / 8] >> (col % 8) & 1) << 4)
}

fn set_code(nibbles: &mut [u8], high: Option<&mut [u8]>, col: usize, code: u8) {
    let shift = col % 2 * 4;
    nibbles[col / 2] = nibbles[col / 2] & !(15 << shift) | (code & 15) << shift;
    if let Some(high) = high {
        let bit = col % 8;
        high[col / 8] = high[col / 8] & !(1 << bit) | (code >> 4) << bit;
    }
}

/// [`uniform16`] of the 128 columns of a block.
fn uniform_block(rng: &VoteRng, row: u32, block: u32) -> [u16; BLOCK_COLS] {
    let [c1, c2, c3] = rng.counter_words(row);
    let mut uniforms = [0; BLOCK_COLS];
    for lane in 0..LANES {
        let words = philox4x32([block * 16 + lane as u32, c1, c2, c3], rng.key());
        for (pair, word) in words.into_iter().enumerate() {
            uniforms[pair * 32 + lane] = word as u16;
            uniforms[pair * 32 + 16 + lane] = (word >> 16) as u16;
        }
    }
    uniforms
}

/// The random numbers of one row, 128 columns at a time.
#[derive(Clone, Copy)]
struct Draws {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Draws {
    fn new(rng: &VoteRng, row: u32) -> Self {
        Draws {
            key: rng.key(),
            counter: rng.counter_words(row),
        }
    }

    /// [`uniform16`] of the eight vectors of a block, as 0..65536.
    #[inline(always)]
    fn block<L: Lanes>(&self, lanes: L, block: usize) -> [L::I; BLOCK_VECTORS] {
        // Even and odd counters apart, each in the low half of a 64-bit lane.
        const EVEN: [i32; 16] = [0, 0, 2, 0, 4, 0, 6, 0, 8, 0, 10, 0, 12, 0, 14, 0];
        let first = lanes.splat_i((block as u32).wrapping_mul(16).cast_signed());
        let even = lanes.add_i(first, lanes.load_i(&EVEN));
        let odd = lanes.add_i(even, lanes.splat_i(1));
        let (even, odd) = (self.philox(lanes, even), self.philox(lanes, odd));
        let mut uniforms = [first; BLOCK_VECTORS];
        for word in 0..4 {
            let words = lanes.interleave(even[word], odd[word]);
            uniforms[2 * word] = lanes.and(words, lanes.splat_i(0xffff));
            uniforms[2 * word + 1] = lanes.shr(words, 16);
        }
        uniforms
    }

    /// Eight counters in the low halves of 64-bit lanes. High halves hold rubbish throughout:
    /// the multiplication ignores them and so does the end.
    #[inline(always)]
    fn philox<L: Lanes>(&self, lanes: L, c0: L::I) -> [L::I; 4] {
        let mut state = [c0, c0, c0, c0];
        for (state, word) in state[1..].iter_mut().zip(self.counter) {
            *state = lanes.splat_i(word.cast_signed());
        }
        // By hand: the compiler keeps the loop where registers are few, and then every key is
        // made anew for every block.
        state = self.philox_round(lanes, state, 0);
        state = self.philox_round(lanes, state, 1);
        state = self.philox_round(lanes, state, 2);
        state = self.philox_round(lanes, state, 3);
        state = self.philox_round(lanes, state, 4);
        state = self.philox_round(lanes, state, 5);
        state = self.philox_round(lanes, state, 6);
        state = self.philox_round(lanes, state, 7);
        state = self.philox_round(lanes, state, 8);
        self.philox_round(lanes, state, 9)
    }

    #[inline(always)]
    fn philox_round<L: Lanes>(&self, lanes: L, state: [L::I; 4], round: u32) -> [L::I; 4] {
        let key = |i: usize| {
            let key = self.key[i].wrapping_add(PHILOX_KEY_STEPS[i].wrapping_mul(round));
            lanes.splat_i(key.cast_signed())
        };
        let [c0, c1, c2, c3] = state;
        let multiplier = PHILOX_MULTIPLIERS.map(|m| lanes.splat_i(m.cast_signed()));
        let p0 = lanes.mul_even(c0, multiplier[0]);
        let p1 = lanes.mul_even(c2, multiplier[1]);
        [
            lanes.xor(lanes.high_halves(p1), lanes.xor(c1, key(0))),
            p1,
            lanes.xor(lanes.high_halves(p0), lanes.xor(c3, key(1))),
            p0,
        ]
    }
}

#[inline(always)]
fn row_stats_lanes<L: Lanes>(
    lanes: L,
    grad: &[f32],
    values: &[f32],
    scale: f32,
    column_sq: &mut [f32],
) -> RowStats {
    let scale = lanes.splat(scale);
    let (mut sum_sq, mut dot) = (lanes.zero(), lanes.zero());
    let (grad, grad_tail) = grad.as_chunks::<LANES>();
    let (values, value_tail) = values.as_chunks::<LANES>();
    let (column_sq, column_tail) = column_sq.as_chunks_mut::<LANES>();
    for ((grad, value), column) in grad.iter().zip(values).zip(column_sq) {
        let grad = lanes.load(grad);
        let scaled = lanes.mul(grad, scale);
        let squared = lanes.mul(scaled, scaled);
        sum_sq = lanes.add(sum_sq, squared);
        dot = lanes.mul_then_add(grad, lanes.load(value), dot);
        lanes.store(lanes.add(lanes.load(column), squared), column);
    }
    if !grad_tail.is_empty() {
        let grad = lanes.load_tail(grad_tail);
        let scaled = lanes.mul(grad, scale);
        let squared = lanes.mul(scaled, scaled);
        sum_sq = lanes.add(sum_sq, squared);
        dot = lanes.mul_then_add(grad, lanes.load_tail(value_tail), dot);
        lanes.store_tail(
            lanes.add(lanes.load_tail(column_tail), squared),
            column_tail,
        );
    }
    RowStats {
        sum_sq: lanes.sum(sum_sq),
        dot: lanes.sum(dot),
    }
}

/// What votes are added up in.
trait VoteSum: Copy + Default {
    const LIMIT: i32;
    fn load<L: Lanes>(lanes: L, from: &[Self; 16]) -> L::I;
    fn store<L: Lanes>(lanes: L, x: L::I, to: &mut [Self; 16]);
}

impl VoteSum for i8 {
    const LIMIT: i32 = BALLOT_LIMIT;
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[i8; 16]) -> L::I {
        lanes.load_i8(from)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::I, to: &mut [i8; 16]) {
        lanes.store_i8(x, to);
    }
}

impl VoteSum for i16 {
    const LIMIT: i32 = 32767;
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[i16; 16]) -> L::I {
        lanes.load_i16(from)
    }
    #[inline(always)]
    fn store<L: Lanes>(lanes: L, x: L::I, to: &mut [i16; 16]) {
        lanes.store_i16(x, to);
    }
}

#[inline(always)]
fn clamp<L: Lanes>(lanes: L, x: L::I, limit: i32) -> L::I {
    lanes.max_i(lanes.min_i(x, lanes.splat_i(limit)), lanes.splat_i(-limit))
}

#[inline(always)]
fn cast_lanes<L: Lanes, S: VoteSum>(
    lanes: L,
    grad: &[f32],
    row_factor: f32,
    column_factor: &[f32],
    rng: &VoteRng,
    row: u32,
    target: &mut [S],
) -> CastStats {
    let draws = Draws::new(rng, row);
    let mut caster = Caster {
        row_factor: lanes.splat(row_factor),
        sum_u_sq: lanes.zero(),
        sum_rounding_var: lanes.zero(),
    };
    let (grad, grad_tail) = grad.as_chunks::<LANES>();
    let (factor, factor_tail) = column_factor.as_chunks::<LANES>();
    let (target, target_tail) = target.as_chunks_mut::<LANES>();
    let blocks = grad
        .chunks(BLOCK_VECTORS)
        .zip(factor.chunks(BLOCK_VECTORS))
        .zip(target.chunks_mut(BLOCK_VECTORS));
    for (block, ((grad, factor), target)) in blocks.enumerate() {
        let uniforms = draws.block(lanes, block);
        for (((grad, factor), target), uniform) in grad.iter().zip(factor).zip(target).zip(uniforms)
        {
            caster.vector(lanes, lanes.load(grad), lanes.load(factor), uniform, target);
        }
    }
    if !grad_tail.is_empty() {
        let uniform = draws.block(lanes, grad.len() / BLOCK_VECTORS)[grad.len() % BLOCK_VECTORS];
        let mut padded = [S::default(); LANES];
        padded[..target_tail.len()].copy_from_slice(target_tail);
        let (grad, factor) = (lanes.load_tail(grad_tail), lanes.load_tail(factor_tail));
        caster.vector(lanes, grad, factor, uniform, &mut padded);
        target_tail.copy_from_slice(&padded[..target_tail.len()]);
    }
    // The variances were summed in units of 1 / 65536^2.
    let unit = 1.0 / (65536.0 * 65536.0);
    CastStats {
        sum_u_sq: lanes.sum(caster.sum_u_sq),
        sum_rounding_var: lanes.sum(caster.sum_rounding_var) * unit,
    }
}

/// The state of casting one row.
struct Caster<L: Lanes> {
    row_factor: L::F,
    sum_u_sq: L::F,
    sum_rounding_var: L::F,
}

impl<L: Lanes> Caster<L> {
    #[inline(always)]
    fn vector<S: VoteSum>(
        &mut self,
        lanes: L,
        grad: L::F,
        column_factor: L::F,
        uniform: L::I,
        target: &mut [S; LANES],
    ) {
        let minus_u = lanes.mul(lanes.mul(grad, self.row_factor), column_factor);
        // `max` gives its second argument for NaN: no vote.
        let size = lanes.min(
            lanes.max(lanes.abs(minus_u), lanes.zero()),
            lanes.splat(32767.0),
        );
        self.sum_u_sq = lanes.mul_then_add(size, size, self.sum_u_sq);

        // |u| in 16.16 fixed point: below 2^31 even with the uniform added.
        let fixed = lanes.truncate(lanes.mul(size, lanes.splat(65536.0)));
        let fraction = lanes.convert(lanes.and(fixed, lanes.splat_i(0xffff)));
        let rest = lanes.sub(lanes.splat(65536.0), fraction);
        self.sum_rounding_var = lanes.mul_then_add(fraction, rest, self.sum_rounding_var);

        let vote = lanes.shr(lanes.add_i(fixed, uniform), 16);
        // s - (vote ^ s) is -vote for s = 0 and vote for s = -1, where -u is negative.
        let s = lanes.shr_signed(lanes.to_bits(minus_u), 31);
        let vote = lanes.sub_i(s, lanes.xor(vote, s));
        let sum = lanes.add_i(S::load(lanes, target), vote);
        S::store(lanes, clamp(lanes, sum, S::LIMIT), target);
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
fn count<L: Lanes, const WIDE: bool, const VOTES: bool>(
    lanes: L,
    row_state: CountRow<'_>,
    table: &FlipTable,
    leak_q24: u32,
    rng: &VoteRng,
    row: u32,
) -> CountStats {
    let draws = Draws::new(rng, row);
    let mut counter = Counter::<L, WIDE, VOTES>::new(lanes, table, leak_q24);
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
struct Counter<L: Lanes, const WIDE: bool, const VOTES: bool> {
    /// Narrow: thresholds down, then up, 16 each. Wide: thresholds down.
    down: L::T,
    /// Wide: thresholds up.
    up: L::T,
    leak_q24: L::I,
    flips: u32,
    /// Sums of squares in eight 64-bit lanes.
    sum_votes_sq: L::I,
}

impl<L: Lanes, const WIDE: bool, const VOTES: bool> Counter<L, WIDE, VOTES> {
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
        let stays = lanes.gt_i(threshold, size);
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

#[cfg(test)]
mod tests;
