//! Votes in few bits and without loss: most are 0, many of the rest ±1.
//!
//! A vote is written as Golomb and Rice would (Rice and Plaunt 1971): with a shift k of its chunk,
//! as many ones as its magnitude / 2^k, a zero, the k low bits of the magnitude and, where it is
//! not 0, its sign. With k = 0 a 0 takes one bit and ±m takes m + 2: the sizes of nested bit
//! planes. Rare large votes are [`ESCAPE`] ones and then plain 16 bits.
//!
//! A message is one chunk after the other: k and the length in bytes, each a little-endian u32,
//! then the bits, lowest first, padded to whole words.

use rayon::prelude::*;

/// Votes of a chunk; chunks are coded in parallel.
const CHUNK: usize = 32 * 1024;

/// Ones that announce a plain vote; bounds a code to 32 bits.
const ESCAPE: u32 = 16;

/// Largest shift; a vote's code is then at most 15 ones, a zero, 14 bits and a sign.
const MAX_SHIFT: u32 = 14;

/// Appends the coded `votes`.
pub(super) fn encode(votes: &[i16], to: &mut Vec<u8>) {
    let chunks: Vec<(u32, Vec<u8>)> = votes
        .par_chunks(CHUNK)
        .map(|votes| {
            let shift = best_shift(votes);
            // Nearly all votes are small; looked up, they cost no branch.
            let small: [_; 16] = std::array::from_fn(|index| code(index as i16 - 8, shift));
            let mut bits = BitWriter::default();
            for &vote in votes {
                let (code, len) = match small.get(vote.wrapping_add(8) as u16 as usize) {
                    Some(small) => *small,
                    None => code(vote, shift),
                };
                bits.push(code, len);
            }
            (shift, bits.finish())
        })
        .collect();
    for (shift, bits) in chunks {
        to.extend_from_slice(&shift.to_le_bytes());
        to.extend_from_slice(&(bits.len() as u32).to_le_bytes());
        to.extend_from_slice(&bits);
    }
}

/// Adds coded votes to `sums`, with saturation; `None` when `message` is not of that many votes.
pub(super) fn add(mut message: &[u8], sums: &mut [i16]) -> Option<()> {
    let chunks = sums.chunks_mut(CHUNK).map(|sums| {
        let shift = word(&mut message)?;
        let len = word(&mut message)? as usize;
        let (bits, rest) = message.split_at_checked(len)?;
        message = rest;
        (shift <= MAX_SHIFT).then_some((sums, shift, bits))
    });
    let chunks: Option<Vec<_>> = chunks.collect();
    let sound = chunks?.into_par_iter().all(|(sums, shift, bits)| {
        let mut bits = BitReader::new(bits);
        for sum in sums {
            *sum = sum.saturating_add(bits.vote(shift));
        }
        bits.is_sound()
    });
    (sound && message.is_empty()).then_some(())
}

/// Takes a little-endian word off the front.
fn word(bytes: &mut &[u8]) -> Option<u32> {
    let (word, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*word))
}

/// The shift with the shortest code; the length falls and then rises with it.
fn best_shift(votes: &[i16]) -> u32 {
    let ones = |shift: u32| -> usize {
        let ones = |vote: &i16| usize::from(vote.unsigned_abs() >> shift);
        votes.iter().map(ones).sum()
    };
    let mut shift = 0;
    let mut length = ones(0);
    while shift < MAX_SHIFT {
        let next = ones(shift + 1) + votes.len() * (shift as usize + 1);
        if next >= length {
            break;
        }
        length = next;
        shift += 1;
    }
    shift
}

/// The code of a vote and its length in bits.
fn code(vote: i16, shift: u32) -> (u64, u32) {
    let magnitude = u64::from(vote.unsigned_abs());
    let ones = (magnitude >> shift) as u32;
    if ones >= ESCAPE {
        let plain = u64::from(vote as u16) << ESCAPE;
        return (plain | ((1 << ESCAPE) - 1), ESCAPE + 16);
    }
    let low = magnitude & ((1 << shift) - 1);
    let sign = u64::from(vote < 0) << (ones + 1 + shift);
    let len = ones + 1 + shift + u32::from(vote != 0);
    (((1 << ones) - 1) | low << (ones + 1) | sign, len)
}

#[derive(Default)]
struct BitWriter {
    bytes: Vec<u8>,
    /// Fewer than 32 bits that are not in `bytes` yet.
    waiting: u64,
    n_waiting: u32,
}

impl BitWriter {
    /// At most 32 bits.
    fn push(&mut self, code: u64, len: u32) {
        self.waiting |= code << self.n_waiting;
        self.n_waiting += len;
        if self.n_waiting >= 32 {
            self.bytes
                .extend_from_slice(&(self.waiting as u32).to_le_bytes());
            self.waiting >>= 32;
            self.n_waiting -= 32;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.n_waiting > 0 {
            self.bytes
                .extend_from_slice(&(self.waiting as u32).to_le_bytes());
        }
        self.bytes
    }
}

struct BitReader<'a> {
    bytes: &'a [u8],
    waiting: u64,
    n_waiting: u32,
    /// Words read beyond the end, as zeros.
    beyond: u32,
}

impl<'a> BitReader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        BitReader {
            bytes,
            waiting: 0,
            n_waiting: 0,
            beyond: 0,
        }
    }

    fn vote(&mut self, shift: u32) -> i16 {
        if self.n_waiting < 32 {
            let word = word(&mut self.bytes);
            self.beyond += u32::from(word.is_none());
            self.waiting |= u64::from(word.unwrap_or(0)) << self.n_waiting;
            self.n_waiting += 32;
        }
        let ones = self.waiting.trailing_ones();
        if ones >= ESCAPE {
            let plain = (self.waiting >> ESCAPE) as i16;
            self.skip(ESCAPE + 16);
            return plain;
        }
        let low = self.waiting >> (ones + 1) & ((1 << shift) - 1);
        let magnitude = (u64::from(ones) << shift | low) as i32;
        let len = ones + 1 + shift;
        // Without a branch: 0 has no sign, and what follows it changes nothing.
        let sign = -((self.waiting >> len & 1) as i32);
        self.skip(len + u32::from(magnitude != 0));
        ((magnitude ^ sign) - sign) as i16
    }

    fn skip(&mut self, len: u32) {
        self.waiting >>= len;
        self.n_waiting -= len;
    }

    /// Whether all that was read was there, and nothing is left.
    fn is_sound(&self) -> bool {
        self.bytes.is_empty() && self.n_waiting >= 32 * self.beyond
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn back(message: &[u8], len: usize) -> Vec<i16> {
        let mut sums = vec![0; len];
        add(message, &mut sums).unwrap();
        sums
    }

    proptest! {
        #[test]
        fn coding_loses_nothing(
            votes in prop::collection::vec(any::<i16>(), 0..300),
            right in 0..16u32,
        ) {
            let votes: Vec<i16> = votes.iter().map(|vote| vote >> right).collect();
            let mut message = Vec::new();
            encode(&votes, &mut message);
            prop_assert_eq!(back(&message, votes.len()), votes);
        }

        #[test]
        fn a_damaged_message_is_no_panic(
            mut votes in prop::collection::vec(-3..4i16, 1..300),
            at in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
            value: u8,
        ) {
            let mut message = Vec::new();
            encode(&votes, &mut message);
            let cut = cut.index(message.len());
            prop_assert!(add(&message[..cut], &mut votes).is_none());
            let at = at.index(message.len());
            message[at] = value;
            let _ = add(&message, &mut votes);
        }
    }

    #[test]
    fn every_shift_reaches_the_largest_votes() {
        for magnitude in [1, 15, 16, 255, 4000, i16::MAX] {
            let mut votes = vec![magnitude, -magnitude, 0];
            votes.resize(200, magnitude);
            let mut message = Vec::new();
            encode(&votes, &mut message);
            assert_eq!(back(&message, votes.len()), votes);
            // No code is longer than its plain form and the escape.
            assert!(message.len() <= 8 + 4 * votes.len());
        }
        let mut message = Vec::new();
        encode(&[i16::MIN], &mut message);
        assert_eq!(back(&message, 1), [i16::MIN]);
    }

    #[test]
    fn chunks_follow_each_other_and_sums_saturate() {
        let votes: Vec<i16> = (0..2 * CHUNK + 9).map(|i| (i % 7) as i16 - 3).collect();
        let mut message = Vec::new();
        encode(&votes, &mut message);
        let mut sums = vec![1; votes.len()];
        add(&message, &mut sums).unwrap();
        assert!(sums.iter().zip(&votes).all(|(sum, vote)| *sum == vote + 1));
        sums.fill(i16::MAX);
        add(&message, &mut sums).unwrap();
        assert_eq!(sums.iter().max(), Some(&i16::MAX));
    }

    #[test]
    fn silent_votes_take_a_bit() {
        let mut message = Vec::new();
        encode(&[0; CHUNK], &mut message);
        assert_eq!(message.len(), 8 + CHUNK / 8);
    }
}
