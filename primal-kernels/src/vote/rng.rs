//! Random numbers that are a function of their place: Philox4x32-10 (Salmon et al., "Parallel
//! random numbers: as easy as 1, 2, 3", SC11), 16 bits a weight. [`uniform16`] is the definition.

use crate::lanes::{LANES, Lanes};

/// Columns served by one block of counters: 16 counters of four words of two halves.
pub(super) const BLOCK_COLS: usize = 128;

/// Vectors of such a block.
pub(super) const BLOCK_VECTORS: usize = BLOCK_COLS / LANES;

pub(crate) const PHILOX_MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
pub(crate) const PHILOX_KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

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
    pub(crate) fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// Counter words 1 to 3; word 0 is `column block * 16 + lane`.
    pub(crate) fn counter_words(&self, row: u32) -> [u32; 3] {
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

/// [`uniform16`] of the 128 columns of a block.
pub(super) fn uniform_block(rng: &VoteRng, row: u32, block: u32) -> [u16; BLOCK_COLS] {
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
pub(super) struct Draws {
    key: [u32; 2],
    counter: [u32; 3],
}

impl Draws {
    pub(super) fn new(rng: &VoteRng, row: u32) -> Self {
        Draws {
            key: rng.key(),
            counter: rng.counter_words(row),
        }
    }

    /// [`uniform16`] of the eight vectors of a block, as 0..65536.
    #[inline(always)]
    pub(super) fn block<L: Lanes>(&self, lanes: L, block: usize) -> [L::I; BLOCK_VECTORS] {
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
