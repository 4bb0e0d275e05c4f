//! Which codes moved, and where to: the gaps between them as numbers of variable length (LEB128),
//! each with a bit for the direction.

/// Appends the moves from `before` to `after`, nibble planes of the same rows. Codes move by one
/// rank at most, so the low nibble tells every move, on the wide grid too.
pub(super) fn encode(before: &[u8], after: &[u8], to: &mut Vec<u8>) {
    let mut last = 0;
    let mut compare = |first: usize, before: &[u8], after: &[u8]| {
        for (at, (&old, &new)) in before.iter().zip(after).enumerate() {
            for half in 0..2 {
                let nibble = |byte: u8| byte >> (4 * half) & 15;
                let moved = nibble(new).wrapping_sub(nibble(old)) & 15;
                if moved == 0 {
                    continue;
                }
                let position = 2 * (first + at) + half;
                push(
                    ((position - last) << 1 | usize::from(moved == 1)) as u64,
                    to,
                );
                last = position;
            }
        }
    };
    // Most words of eight bytes have no move.
    let (before, before_rest) = before.as_chunks::<8>();
    let (after, after_rest) = after.as_chunks::<8>();
    for (word, (old, new)) in before.iter().zip(after).enumerate() {
        if old != new {
            compare(8 * word, old, new);
        }
    }
    compare(8 * before.len(), before_rest, after_rest);
}

fn push(mut number: u64, to: &mut Vec<u8>) {
    while number >= 128 {
        to.push(number as u8 | 128);
        number >>= 7;
    }
    to.push(number as u8);
}

fn pull(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(number);
        }
    }
    None
}

/// The planes of some rows of a matrix.
pub(super) struct Planes<'a> {
    /// (rows, row_bytes), low nibble first.
    pub(super) nibbles: &'a mut [u8],
    pub(super) row_bytes: usize,
    /// (rows, high_row_bytes) the high bits of a wide grid.
    pub(super) high: Option<&'a mut [u8]>,
    pub(super) high_row_bytes: usize,
}

impl Planes<'_> {
    /// Makes `count` moves; `None` when they are not moves of these rows.
    pub(super) fn apply(&mut self, count: u64, from: &mut &[u8]) -> Option<()> {
        let mut position = 0;
        for _ in 0..count {
            let number = pull(from)?;
            position += usize::try_from(number >> 1).ok()?;
            let (at, shift) = (position / 2, position % 2 * 4);
            let byte = self.nibbles.get_mut(at)?;
            let old = *byte >> shift & 15;
            let up = number & 1 == 1;
            let new = if up {
                old.wrapping_add(1)
            } else {
                old.wrapping_sub(1)
            } & 15;
            *byte = *byte & !(15 << shift) | new << shift;
            if let Some(high) = &mut self.high
                && (old, new) == if up { (15, 0) } else { (0, 15) }
            {
                let col = at % self.row_bytes * 2 + position % 2;
                let row = at / self.row_bytes;
                *high.get_mut(row * self.high_row_bytes + col / 8)? ^= 1 << (col % 8);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use primal_lut::{Code, Grid, QuantMatrix};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn moves_arrive(
            codes in prop::collection::vec(0..25u8, 3 * 37),
            moves in prop::collection::vec(-1..2i8, 3 * 37),
        ) {
            let grid = Grid::fine();
            let mut before = QuantMatrix::zeros(&grid, 3, 37, 37).unwrap();
            for (at, &code) in codes.iter().enumerate() {
                before.set_code(at / 37, at % 37, code as Code).unwrap();
            }
            let mut after = before.clone();
            for (at, (&code, &step)) in codes.iter().zip(&moves).enumerate() {
                let code = code.saturating_add_signed(step).min(24);
                after.set_code(at / 37, at % 37, code as Code).unwrap();
            }
            let count = (0..3 * 37).filter(|at| {
                before.code(at / 37, at % 37) != after.code(at / 37, at % 37)
            });
            let count = count.count() as u64;
            let mut message = Vec::new();
            encode(before.nibbles(), after.nibbles(), &mut message);
            let (row_bytes, high_row_bytes) = (before.row_bytes(), before.high_row_bytes());
            let (nibbles, high, _) = before.planes_mut();
            let mut planes = Planes { nibbles, row_bytes, high, high_row_bytes };
            let mut rest = message.as_slice();
            planes.apply(count, &mut rest).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(before.nibbles(), after.nibbles());
            prop_assert_eq!(before.high(), after.high());
        }

        #[test]
        fn what_are_no_moves_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut nibbles = [0; 8];
            let mut planes = Planes {
                nibbles: &mut nibbles,
                row_bytes: 4,
                high: None,
                high_row_bytes: 0,
            };
            let _ = planes.apply(20, &mut bytes.as_slice());
        }
    }
}
