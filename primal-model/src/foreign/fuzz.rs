//! Damage for tests: changes of a sound file. `PRIMAL_FUZZ_CASES` sets how many are tried.

use proptest::prelude::*;

/// Cases of a property test over damaged files: few in CI, as many as wanted by hand.
pub(crate) fn cases() -> u32 {
    let wanted = std::env::var("PRIMAL_FUZZ_CASES").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(256)
}

/// One change: where, and what to do there.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Flips a bit.
    Flip(usize, u8),
    /// Overwrites with a number that lengths and counts might be.
    Number(usize, u64),
    /// Removes bytes.
    Remove(usize, usize),
    /// Repeats bytes.
    Repeat(usize, usize),
}

/// Up to four changes, most of them in the first `header` bytes.
pub(crate) fn changes(header: usize) -> impl Strategy<Value = Vec<Change>> {
    let place = prop_oneof![4 => 0..header, 1 => any::<usize>()];
    let numbers = prop_oneof![
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(1 << 31),
        Just(1 << 32),
        Just(1 << 63),
        0..4096u64
    ];
    let change = prop_oneof![
        4 => (place.clone(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => (place.clone(), numbers).prop_map(|(at, value)| Change::Number(at, value)),
        1 => (place.clone(), 1..64usize).prop_map(|(at, n)| Change::Remove(at, n)),
        1 => (place, 1..64usize).prop_map(|(at, n)| Change::Repeat(at, n)),
    ];
    prop::collection::vec(change, 0..=4)
}

/// Where a file is cut, if it is.
pub(crate) fn end() -> impl Strategy<Value = Option<usize>> {
    prop::option::weighted(0.2, any::<usize>())
}

/// A damaged copy.
pub(crate) fn mutate(sound: &[u8], changes: &[Change], end: Option<usize>) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for change in changes {
        let len = bytes.len().max(1);
        match *change {
            Change::Flip(at, bit) => {
                if let Some(byte) = bytes.get_mut(at % len) {
                    *byte ^= 1 << bit;
                }
            }
            Change::Number(at, value) => {
                for (byte, new) in bytes.iter_mut().skip(at % len).zip(value.to_le_bytes()) {
                    *byte = new;
                }
            }
            Change::Remove(at, n) => {
                let start = (at % len).min(bytes.len());
                let end = (start + n).min(bytes.len());
                bytes.drain(start..end);
            }
            Change::Repeat(at, n) => {
                let start = (at % len).min(bytes.len());
                let end = (start + n).min(bytes.len());
                let part = bytes[start..end].to_vec();
                bytes.splice(start..start, part);
            }
        }
    }
    if let Some(end) = end {
        bytes.truncate(end % (bytes.len() + 1));
    }
    bytes
}
