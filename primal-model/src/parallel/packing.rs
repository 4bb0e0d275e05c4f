//! Votes in as few bits as their largest needs: -1, 0 and 1 take two bits, as two bit planes would.
//!
//! Eight votes of b bits fill b bytes, little-endian: vote + largest, lowest bits first.

use rayon::prelude::*;

/// Votes of a group.
const GROUP: usize = 8;

/// Votes that one task packs.
const TASK: usize = 16 * 1024;

/// Largest magnitude.
pub(super) fn largest(votes: &[i16]) -> u16 {
    let largest = |votes: &[i16]| votes.iter().map(|vote| vote.unsigned_abs()).max();
    votes
        .par_chunks(TASK)
        .filter_map(largest)
        .max()
        .unwrap_or(0)
        .min(i16::MAX as u16)
}

/// Bits of a vote in -largest..=largest.
pub(super) fn bits(largest: u16) -> usize {
    (u32::BITS - (2 * u32::from(largest)).leading_zeros()) as usize
}

/// Bytes of `len` votes.
pub(super) fn bytes(len: usize, largest: u16) -> usize {
    len.div_ceil(GROUP) * bits(largest)
}

/// Votes of one of `ranks` pieces: whole groups, the last piece shorter or empty.
pub(super) fn piece(len: usize, ranks: usize) -> usize {
    len.div_ceil(ranks).next_multiple_of(GROUP)
}

/// Packs votes in -largest..=largest into the first [`bytes`] of `to`.
pub(super) fn pack(votes: &[i16], largest: u16, to: &mut [u8]) {
    let bits = bits(largest);
    let offset = i32::from(largest);
    to.par_chunks_mut(TASK / GROUP * bits)
        .zip(votes.par_chunks(TASK))
        .for_each(|(to, votes)| {
            for (to, votes) in to.chunks_exact_mut(bits).zip(votes.chunks(GROUP)) {
                let mut group = 0u128;
                for (index, &vote) in votes.iter().enumerate() {
                    group |= ((i32::from(vote) + offset) as u128) << (index * bits);
                }
                to.copy_from_slice(&group.to_le_bytes()[..bits]);
            }
        });
}

/// Adds packed votes to `sums`, with saturation.
pub(super) fn add(packed: &[u8], largest: u16, sums: &mut [i16]) {
    let bits = bits(largest);
    let offset = i32::from(largest);
    let mask = (1u128 << bits) - 1;
    sums.par_chunks_mut(TASK)
        .zip(packed.par_chunks(TASK / GROUP * bits))
        .for_each(|(sums, packed)| {
            for (sums, packed) in sums.chunks_mut(GROUP).zip(packed.chunks_exact(bits)) {
                let mut bytes = [0; 16];
                bytes[..bits].copy_from_slice(packed);
                let group = u128::from_le_bytes(bytes);
                for (index, sum) in sums.iter_mut().enumerate() {
                    let vote = (group >> (index * bits) & mask) as i32 - offset;
                    *sum = sum.saturating_add(vote as i16);
                }
            }
        });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn widths_are_the_smallest() {
        for (largest, expected) in [
            (1, 2),
            (2, 3),
            (3, 3),
            (4, 4),
            (7, 4),
            (127, 8),
            (32767, 16),
        ] {
            assert_eq!(bits(largest), expected, "{largest}");
        }
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(
            votes in prop::collection::vec(any::<i16>(), 0..40),
            limit in 1..=i16::MAX,
            ranks in 1..6usize,
        ) {
            let votes: Vec<i16> = votes.iter().map(|vote| (*vote).clamp(-limit, limit)).collect();
            let limit = limit as u16;
            prop_assert!(largest(&votes) <= limit);
            let mut packed = vec![0; bytes(votes.len(), limit)];
            pack(&votes, limit, &mut packed);
            let mut sums = vec![0; votes.len()];
            add(&packed, limit, &mut sums);
            prop_assert_eq!(&sums, &votes);
            prop_assert!(piece(votes.len(), ranks) * ranks >= votes.len());
        }

        #[test]
        fn long_rows_cross_the_tasks(len in TASK - 9..TASK + 9) {
            let votes: Vec<i16> = (0..len).map(|i| (i % 7) as i16 - 3).collect();
            let mut packed = vec![0; bytes(len, 3)];
            pack(&votes, 3, &mut packed);
            let mut sums = vec![1; len];
            add(&packed, 3, &mut sums);
            prop_assert!(sums.iter().zip(&votes).all(|(sum, vote)| *sum == vote + 1));
        }
    }
}
