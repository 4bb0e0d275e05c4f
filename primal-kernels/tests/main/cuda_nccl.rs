//! Sums over several GPUs, here of the stand-in and its NCCL.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use cuda_standin::Injection;
use primal_kernels::FlipTable;
use primal_kernels::cuda::{
    self, BallotSizes, Ballots, Buffer, Clique, CudaError, Device, ImageChoice, Nccl, OpenOptions,
    Rounds, VOTES_TOO_LARGE, VoteSlot, VoteSums,
};
use primal_lut::Grid;

use crate::common::{OF_NCCL, standin};

/// Some of the devices that are this file's. Tests that run side by side take their own.
fn open(own: Range<u32>) -> Vec<Device> {
    standin();
    let open = |own| {
        Device::open(OpenOptions {
            ordinal: (OF_NCCL + own) as usize,
            image: ImageChoice::CheckedIn,
            ..OpenOptions::default()
        })
    };
    own.map(|own| open(own).unwrap()).collect()
}

fn join(devices: &[Device]) -> Clique {
    Clique::new(Nccl::find().unwrap(), devices, Duration::from_secs(5)).unwrap()
}

fn upload<T: bytemuck::Pod>(device: &Device, values: &[T]) -> Buffer<T> {
    Buffer::from_slice(device, values, "test data").unwrap()
}

/// Numbers that look random, the same for the same `seed`.
fn noise(len: usize, seed: u32) -> Vec<u32> {
    let word = |i: usize| primal_kernels::philox4x32([i as u32, seed, 0, 0], [7, 8])[0];
    (0..len).map(word).collect()
}

#[test]
fn votes_of_sixteen_bits_are_summed_exactly() {
    let devices = open(0..4);
    let clique = join(&devices);
    for len in [1, 2, 7, 600, 1001] {
        // From one end to the other of what four may sum up, and what borrows from its neighbour.
        let most = i32::from(i16::MAX) / 4;
        let votes = |gpu: u32| -> Vec<i16> {
            let vote = |(at, word): (usize, u32)| match at % 5 {
                0 => -1,
                1 => most as i16,
                2 => -most as i16,
                _ => (word % (2 * most as u32 + 1)) as i16 - most as i16,
            };
            noise(len, gpu).into_iter().enumerate().map(vote).collect()
        };
        let even = |mut votes: Vec<i16>| -> Vec<u32> {
            votes.resize(len.next_multiple_of(2), 0);
            let pair = |pair: &[i16]| u32::from(pair[0] as u16) | u32::from(pair[1] as u16) << 16;
            votes.chunks_exact(2).map(pair).collect()
        };
        let mut want = vec![0_i16; len];
        for gpu in 0..4 {
            want.iter_mut()
                .zip(votes(gpu))
                .for_each(|(sum, vote)| *sum += vote);
        }
        let words: Vec<Buffer<u32>> = devices
            .iter()
            .zip(0..)
            .map(|(device, gpu)| upload(device, &even(votes(gpu))))
            .collect();
        let flags: Vec<Buffer<u32>> = devices.iter().map(|device| upload(device, &[0])).collect();
        for (words, flag) in words.iter().zip(&flags) {
            cuda::pair_votes(words.view(..), 4, flag.view(..)).unwrap();
        }
        clique
            .exchange(|queue| {
                let mut each = words.iter().enumerate();
                each.try_for_each(|(at, words)| queue.sum(at, words.view(..)))
            })
            .unwrap();
        for (words, flag) in words.iter().zip(&flags) {
            cuda::unpair_votes(words.view(..), flag.view(..)).unwrap();
            assert_eq!(words.to_vec().unwrap(), even(want.clone()), "{len} votes");
            assert_eq!(flag.to_vec().unwrap(), [0]);
        }
    }
    for (pair, is_large) in [
        ([8191, -8191], false),
        ([8192, 0], true),
        ([0, -8192], true),
        ([i16::MIN, 0], true),
    ] {
        let [low, high] = pair.map(|vote: i16| u32::from(vote as u16));
        let words = upload(&devices[0], &[low | high << 16]);
        let flag = upload(&devices[0], &[0]);
        cuda::pair_votes(words.view(..), 4, flag.view(..)).unwrap();
        let want = if is_large { VOTES_TOO_LARGE } else { 0 };
        assert_eq!(flag.to_vec().unwrap(), [want], "{pair:?}");
    }
}

#[test]
fn an_odd_matrix_has_whole_pairs_of_votes() {
    let devices = open(4..5);
    let sizes = BallotSizes {
        rows: 3,
        cols: 5,
        many_micro_batches: true,
    };
    let slot = VoteSlot {
        sums: Arc::new(VoteSums::new(&devices[0], 1, 8).unwrap()),
        matrix: 0,
        first_line: 0,
    };
    let table = FlipTable::new(&Grid::prime(), 127);
    let ballots = Ballots::new(&devices[0], sizes, &table, slot, "ballots").unwrap();
    assert_eq!(ballots.vote_pairs().len(), 8);
    assert_eq!(sizes.bytes().1, 32);
}

/// Folds two rounds of three GPUs, and compares with the sums in the order of the micro-batches.
fn rounds_are_folded_in_order<T>(devices: &[Device], number: impl Fn(u32) -> T)
where
    T: cuda::Sum + std::ops::Add<Output = T> + PartialEq + std::fmt::Debug,
{
    const LEN: usize = 700;
    let clique = join(devices);
    let sums = |micro_batch: u32| -> Vec<T> {
        noise(LEN, 50 + micro_batch)
            .into_iter()
            .map(&number)
            .collect()
    };
    let new = |device| Rounds::<T>::new(device, devices.len(), LEN).unwrap();
    let rounds: Vec<Rounds<T>> = devices.iter().map(new).collect();
    for step in 0..2 {
        let mut own: Vec<Buffer<T>> = Vec::new();
        for round in 0..2 {
            let first = 6 * step + 3 * round;
            own = devices
                .iter()
                .zip(first..)
                .map(|(device, micro_batch)| upload(device, &sums(micro_batch)))
                .collect();
            clique
                .exchange(|queue| {
                    let mut each = own.iter().zip(&rounds).enumerate();
                    each.try_for_each(|(at, (own, rounds))| {
                        queue.gather(at, own.view(..), rounds.parts())
                    })
                })
                .unwrap();
            for (own, rounds) in own.iter().zip(&rounds) {
                rounds.fold(own.view(..), round == 1).unwrap();
            }
            if round == 0 {
                let zero = vec![<T as bytemuck::Zeroable>::zeroed(); LEN];
                assert!(own.iter().all(|own| own.to_vec().unwrap() == zero));
            }
        }
        let mut want = vec![<T as bytemuck::Zeroable>::zeroed(); LEN];
        for micro_batch in 6 * step..6 * step + 6 {
            for (sum, own) in want.iter_mut().zip(sums(micro_batch)) {
                *sum = *sum + own;
            }
        }
        for own in own {
            assert_eq!(own.to_vec().unwrap(), want, "step {step}");
        }
    }
}

#[test]
fn float_sums_are_folded_in_the_order_of_the_micro_batches() {
    let devices = open(5..8);
    // Numbers so different in size that another order gives other bits.
    rounds_are_folded_in_order(&devices, |word| {
        f32::from_bits(word % 0x1000_0000 + 0x3800_0000)
    });
    rounds_are_folded_in_order(&devices, |word| {
        f64::from(f32::from_bits(word % 0x2000_0000 + 0x3000_0000)) * 1.1
    });
}

#[test]
fn what_would_wait_for_ever_or_fails_is_an_error() {
    let devices = open(8..10);
    let standin = standin();
    let words: Vec<Buffer<u32>> = devices.iter().map(|device| upload(device, &[1])).collect();
    let both = |clique: &Clique| {
        clique.exchange(|queue| {
            queue.sum(0, words[0].view(..))?;
            queue.sum(1, words[1].view(..))
        })
    };
    // One that does not take part.
    let clique = join(&devices);
    let alone = clique.exchange(|queue| queue.sum(0, words[0].view(..)));
    assert!(matches!(alone, Err(CudaError::Nccl { .. })), "{alone:?}");
    // The same GPU twice.
    let twice = [devices[0].clone(), devices[0].clone()];
    let twice = Clique::new(Nccl::find().unwrap(), &twice, Duration::from_secs(5));
    assert!(twice.is_err());

    let clique = join(&devices);
    both(&clique).unwrap();
    assert_eq!(words[1].to_vec().unwrap(), [2]);
    standin.inject(OF_NCCL + 9, Injection::FailCollective, 1);
    let error = both(&clique).unwrap_err().to_string();
    assert!(error.contains("NCCL call ncclGroupEnd failed"), "{error}");
    drop(clique);
    standin.inject(OF_NCCL + 9, Injection::FailCollective, 0);
    // A GPU that had crashed before.
    let clique = join(&devices);
    standin.inject(OF_NCCL + 8, Injection::FailLaunch, 1);
    let flag = upload(&devices[0], &[0]);
    assert!(cuda::pair_votes(words[0].view(..), 2, flag.view(..)).is_err());
    assert!(both(&clique).is_err());
    standin.inject(OF_NCCL + 8, Injection::FailLaunch, 0);
}
