//! Votes in few bits and without loss: most are 0, many of the rest ±1.
//!
//! A vote is written as Golomb and Rice would (Rice and Plaunt 1971): with a shift k of its chunk,
//! as many ones as its magnitude / 2^k, a zero, the k low bits of the magnitude and, where it is
//! not 0, its sign. With k = 0 a 0 takes one bit and ±m takes m + 2: the sizes of nested bit
//! planes. Rare large votes are [`ESCAPE`] ones and then plain 16 bits.
//!
//! A message is one chunk after the other: k and the length in bytes, each a little-endian u32,
//! then the bits, lowest first, padded to whole words.
//!
//! Tables make it fast, since a rank codes what others of its cores could compute: two small votes
//! are written at once, and all that end within [`WINDOW`] bits are read at once.

use std::sync::OnceLock;

use rayon::prelude::*;

/// Votes of a chunk; chunks are coded in parallel.
const CHUNK: usize = 8 * 1024;

/// Ones that announce a plain vote; bounds a code to 32 bits.
const ESCAPE: u32 = 16;

/// Largest shift; a vote's code is then at most 15 ones, a zero, 14 bits and a sign.
const MAX_SHIFT: u32 = 14;

/// Magnitudes up to this are coded by table.
const SMALL: i16 = 8;

/// Bits that are read at once.
const WINDOW: u32 = 10;

/// Most votes that are read at once.
const RUN: usize = 8;

/// Appends the coded `votes`.
pub(super) fn encode(votes: &[i16], to: &mut Vec<u8>) {
    let chunks: Vec<(u32, Vec<u8>)> = votes
        .par_chunks(CHUNK)
        .map(|votes| {
            let shift = best_shift(votes);
            (shift, encode_chunk(votes, shift))
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
        let mut votes = [0; CHUNK];
        let votes = &mut votes[..sums.len()];
        let sound = decode_chunk(bits, shift, votes);
        for (sum, vote) in sums.iter_mut().zip(votes) {
            *sum = sum.saturating_add(*vote);
        }
        sound
    });
    (sound && message.is_empty()).then_some(())
}

/// Takes a little-endian word off the front.
fn word(bytes: &mut &[u8]) -> Option<u32> {
    let (word, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*word))
}

/// The shift with the shortest code of a chunk; the length falls and then rises with it.
fn best_shift(votes: &[i16]) -> u32 {
    let ones = |shift: u32| -> usize {
        // The magnitudes of a chunk sum up to less than 2^32.
        let ones = |vote: &i16| u32::from(vote.unsigned_abs() >> shift);
        votes.iter().map(ones).sum::<u32>() as usize
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

/// The vote whose code `bits` begin with and its length in bits: the opposite of [`code`].
fn vote(bits: u64, shift: u32) -> (i16, u32) {
    let ones = bits.trailing_ones();
    if ones >= ESCAPE {
        return ((bits >> ESCAPE) as i16, ESCAPE + 16);
    }
    let low = bits >> (ones + 1) & ((1 << shift) - 1);
    let magnitude = (u64::from(ones) << shift | low) as i32;
    let len = ones + 1 + shift;
    let sign = -((bits >> len & 1) as i32) & -i32::from(magnitude != 0);
    (
        ((magnitude ^ sign) - sign) as i16,
        len + u32::from(magnitude != 0),
    )
}

/// What is known of a shift.
struct Tables {
    /// By (second, first) vote from -SMALL to SMALL - 1: the codes of both and their length.
    pairs: Vec<(u32, u32)>,
    /// By the next [`WINDOW`] bits.
    runs: Vec<Run>,
}

/// The votes whose codes end within a window, and zeros.
#[derive(Clone, Copy, Default)]
struct Run {
    votes: [i16; RUN],
    count: u8,
    bits: u8,
}

/// One table is 8 KiB of pairs and 20 KiB of runs; few shifts ever occur.
fn tables(shift: u32) -> &'static Tables {
    static TABLES: [OnceLock<Tables>; MAX_SHIFT as usize + 1] =
        [const { OnceLock::new() }; MAX_SHIFT as usize + 1];
    TABLES[shift as usize].get_or_init(|| {
        let small = -SMALL..SMALL;
        let pair = |(second, first)| {
            let ((first, len), (second, more)) = (code(first, shift), code(second, shift));
            ((first | second << len) as u32, len + more)
        };
        let pairs = small
            .clone()
            .flat_map(|second| small.clone().map(move |first| (second, first)));
        let run = |window: u64| {
            let mut run = Run::default();
            for place in &mut run.votes {
                let (vote, len) = vote(window >> run.bits, shift);
                if u32::from(run.bits) + len > WINDOW {
                    break;
                }
                *place = vote;
                run.count += 1;
                run.bits += len as u8;
            }
            run
        };
        Tables {
            pairs: pairs.map(pair).collect(),
            runs: (0..1 << WINDOW).map(run).collect(),
        }
    })
}

fn encode_chunk(votes: &[i16], shift: u32) -> Vec<u8> {
    let pairs = &tables(shift).pairs;
    let mut bits = BitWriter {
        // No code is longer than 32 bits.
        bytes: vec![0; 4 * votes.len() + 8],
        ..BitWriter::default()
    };
    let (twos, last) = votes.as_chunks::<2>();
    for &[first, second] in twos {
        let place = |vote: i16| vote.wrapping_add(SMALL) as u16 as usize;
        let (low, high) = (place(first), place(second));
        if (low | high) < 2 * SMALL as usize {
            let (codes, len) = pairs[high * 2 * SMALL as usize + low];
            bits.push(u64::from(codes), len);
        } else {
            bits.vote(first, shift);
            bits.vote(second, shift);
        }
    }
    for &vote in last {
        bits.vote(vote, shift);
    }
    bits.finish()
}

#[derive(Default)]
struct BitWriter {
    /// As long as the bits can get, and 8 more.
    bytes: Vec<u8>,
    at: usize,
    /// Fewer than 8 bits that are not in `bytes` yet.
    waiting: u64,
    n_waiting: u32,
}

impl BitWriter {
    /// At most 32 bits.
    fn push(&mut self, code: u64, len: u32) {
        self.waiting |= code << self.n_waiting;
        self.n_waiting += len;
        if let Some(place) = self.bytes[self.at..].first_chunk_mut() {
            *place = self.waiting.to_le_bytes();
        }
        let whole = self.n_waiting / 8;
        self.at += whole as usize;
        self.waiting >>= 8 * whole;
        self.n_waiting %= 8;
    }

    fn vote(&mut self, vote: i16, shift: u32) {
        let (code, len) = code(vote, shift);
        self.push(code, len);
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.at + usize::from(self.n_waiting > 0);
        self.bytes.truncate(len.next_multiple_of(4));
        self.bytes.shrink_to_fit();
        self.bytes
    }
}

/// Fills `votes`; whether `bytes` are the code of that many.
fn decode_chunk(bytes: &[u8], shift: u32, votes: &mut [i16]) -> bool {
    let runs = &tables(shift).runs;
    let (mut at, mut done) = (0, 0);
    while done < votes.len() {
        let mut bits = peek(bytes, at);
        // At least 57 bits are known: windows enough, or any one vote.
        for _ in 0..57 / WINDOW {
            let run = &runs[(bits & ((1 << WINDOW) - 1)) as usize];
            let Some(place) = votes[done..].first_chunk_mut() else {
                break;
            };
            *place = run.votes;
            done += usize::from(run.count);
            at += usize::from(run.bits);
            bits >>= run.bits;
        }
        if let Some(place) = votes.get_mut(done) {
            let (next, len) = vote(peek(bytes, at), shift);
            *place = next;
            done += 1;
            at += len as usize;
        }
    }
    // All that was read was there, and nothing is left.
    at.div_ceil(32) * 4 == bytes.len()
}

/// The bits from `at` on, at least 57 of them; zeros beyond the end.
fn peek(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at / 8..).unwrap_or_default();
    let word = match rest.first_chunk() {
        Some(word) => *word,
        None => {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            word
        }
    };
    u64::from_le_bytes(word) >> (at % 8)
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
