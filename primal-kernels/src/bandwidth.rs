//! How fast this machine reads memory: the floor of everything that streams weights.

use std::time::Instant;

use rayon::prelude::*;

use crate::huge::HugeArena;
use crate::isa::{Isa, dispatch};
use crate::lanes::Lanes;

/// Reads a buffer of `bytes` (large pages where the system grants them) `reps` times on all
/// threads of the current pool; returns bytes per second of each time, slowest first.
///
/// Take a buffer much larger than the last-level cache, such as 1 GiB.
///
/// # Errors
/// When the system gives no memory.
pub fn read_bandwidth(isa: Isa, bytes: usize, reps: usize) -> std::io::Result<Vec<f64>> {
    let vectors = (bytes / 64).max(1);
    let mut buffer = HugeArena::new(64 * vectors)?
        .take(64 * vectors)
        .ok_or(std::io::ErrorKind::OutOfMemory)?;
    let share = vectors.div_ceil(rayon::current_num_threads());
    bytemuck::cast_slice_mut::<u8, [i32; 16]>(&mut buffer)
        .par_chunks_mut(share)
        .for_each(|words| words.fill([1; 16]));
    Ok(read_rate(isa, &[&buffer], reps))
}

/// Reads all of `parts` `reps` times on all threads of the current pool; returns bytes per second
/// of each time, slowest first. Of the weights of a model it is the floor of its decoding.
pub fn read_rate(isa: Isa, parts: &[&[u8]], reps: usize) -> Vec<f64> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let share = bytes.div_ceil(rayon::current_num_threads()).max(1);
    // Each thread reads one run of bytes, as it lies in memory.
    let mut shares = vec![Vec::new()];
    let mut room = share;
    for part in parts {
        let mut rest = *part;
        while !rest.is_empty() {
            if room == 0 {
                shares.push(Vec::new());
                room = share;
            }
            let (head, tail) = rest.split_at(rest.len().min(room));
            if let Some(last) = shares.last_mut() {
                last.push(head);
            }
            (rest, room) = (tail, room - head.len());
        }
    }
    let mut rates: Vec<f64> = (0..reps)
        .map(|_| {
            let started = Instant::now();
            let sum = shares
                .par_iter()
                .map(|parts| {
                    let read = parts.iter().map(|part| dispatch!(isa, xor_bytes(part)));
                    read.fold(0, |a, b| a ^ b)
                })
                .reduce(|| 0, |a, b| a ^ b);
            std::hint::black_box(sum);
            bytes as f64 / started.elapsed().as_secs_f64().max(1e-9)
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates
}

/// The whole vectors of `bytes`; what is not aligned at their ends is left out.
#[inline(always)]
fn xor_bytes<L: Lanes>(lanes: L, bytes: &[u8]) -> i32 {
    let ragged = bytes.as_ptr().align_offset(4).min(bytes.len());
    let words = &bytes[ragged..];
    let words = &words[..words.len() / 64 * 64];
    xor_all(lanes, bytemuck::cast_slice(words))
}

/// Touches every vector; four chains, so that additions do not wait for each other.
#[inline(always)]
fn xor_all<L: Lanes>(lanes: L, words: &[[i32; 16]]) -> i32 {
    let mut sums = [lanes.splat_i(0); 4];
    let (blocks, rest) = words.as_chunks::<4>();
    for block in blocks {
        for (sum, vector) in sums.iter_mut().zip(block) {
            *sum = lanes.xor(*sum, lanes.load_i(vector));
        }
    }
    for vector in rest {
        sums[0] = lanes.xor(sums[0], lanes.load_i(vector));
    }
    let all = lanes.xor(lanes.xor(sums[0], sums[1]), lanes.xor(sums[2], sums[3]));
    let mut out = [0; 16];
    lanes.store_i(all, &mut out);
    out.iter().fold(0, |a, b| a ^ b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_to_their_ends() {
        let bytes: Vec<u8> = (0..1000).map(|i| i as u8).collect();
        for isa in Isa::available() {
            let rates = read_rate(isa, &[&bytes, &[], &bytes[..65], &bytes[3..700]], 2);
            assert!(rates.len() == 2 && rates.iter().all(|rate| *rate > 0.0));
        }
    }

    #[test]
    fn every_tier_reads_and_says_how_fast() {
        for isa in Isa::available() {
            let rates = read_bandwidth(isa, 1 << 20, 3).unwrap();
            assert_eq!(rates.len(), 3);
            assert!(rates.iter().all(|rate| *rate > 0.0) && rates.is_sorted());
        }
    }

    #[test]
    fn every_vector_counts_once() {
        let words: Vec<[i32; 16]> = (0..7).map(|i| [1 << i; 16]).collect();
        for isa in Isa::available() {
            // Sixteen equal lanes cancel; a seventeenth bit does not.
            assert_eq!(dispatch!(isa, xor_all(&words)), 0);
            let mut odd = words.clone();
            odd[6][3] ^= 1 << 20;
            assert_eq!(dispatch!(isa, xor_all(&odd)), 1 << 20);
        }
    }
}
