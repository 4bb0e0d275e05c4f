//! Packing of codes: two a byte in the nibble plane, the fifth bit in a bit plane.
//!
//! Every row starts at a byte of its own, so that rows can be read and changed alone.

use bitvec::order::Lsb0;
use bitvec::vec::BitVec;

/// Bytes of a row of the nibble plane.
pub(crate) fn nibble_row_bytes(cols: usize) -> usize {
    cols.div_ceil(2)
}

/// Bytes of a row of the bit plane.
pub(crate) fn bit_row_bytes(cols: usize) -> usize {
    cols.div_ceil(8)
}

/// Packs the low nibbles of one row, the even column in the low half of its byte. The free half
/// of the last byte of an odd row takes the low nibble of `pad`.
pub(crate) fn pack_nibbles(codes: &[u8], pad: u8, nibbles: &mut [u8]) {
    assert_eq!(nibbles.len(), nibble_row_bytes(codes.len()));
    for (byte, pair) in nibbles.iter_mut().zip(codes.chunks(2)) {
        let high = pair.get(1).copied().unwrap_or(pad);
        *byte = (pair[0] & 15) | (high << 4);
    }
}

/// The inverse of [`pack_nibbles`]: the low four bits of each code of a row.
pub(crate) fn unpack_nibbles(nibbles: &[u8], codes: &mut [u8]) {
    assert_eq!(nibbles.len(), nibble_row_bytes(codes.len()));
    for (&byte, pair) in nibbles.iter().zip(codes.chunks_mut(2)) {
        pair[0] = byte & 15;
        if let Some(code) = pair.get_mut(1) {
            *code = byte >> 4;
        }
    }
}

/// Bit 4 of every code: (rows, cols.div_ceil(8)) u8, bit `c % 8` of byte `c / 8`, LSB first;
/// padding bits are zero.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BitPlane {
    bits: BitVec<u8, Lsb0>,
    row_bits: usize,
}

impl BitPlane {
    /// A plane over the bytes of its rows; the caller has checked their number.
    pub(crate) fn from_bytes(bytes: Vec<u8>, cols: usize) -> BitPlane {
        BitPlane {
            bits: BitVec::from_vec(bytes),
            row_bits: 8 * bit_row_bytes(cols),
        }
    }

    pub(crate) fn get(&self, row: usize, col: usize) -> bool {
        self.bits[row * self.row_bits + col]
    }

    pub(crate) fn set(&mut self, row: usize, col: usize, bit: bool) {
        self.bits.set(row * self.row_bits + col, bit);
    }

    /// The bits of a row, padding included.
    pub(crate) fn row(&self, row: usize) -> impl Iterator<Item = bool> + '_ {
        self.bits[row * self.row_bits..][..self.row_bits]
            .iter()
            .by_vals()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bits.as_raw_slice()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bits.as_raw_mut_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_low_nibble_comes_first_and_odd_rows_are_padded() {
        let mut nibbles = [0xff; 2];
        pack_nibbles(&[1, 2, 3], 7, &mut nibbles);
        assert_eq!(nibbles, [0x21, 0x73]);
        pack_nibbles(&[0x11, 0x12, 0x13], 0x1c, &mut nibbles);
        assert_eq!(nibbles, [0x21, 0xc3]);
    }

    #[test]
    fn bits_lie_lsb_first_in_rows_of_whole_bytes() {
        let mut plane = BitPlane::from_bytes(vec![0; 4], 9);
        plane.set(0, 1, true);
        plane.set(0, 8, true);
        plane.set(1, 7, true);
        assert_eq!(plane.bytes(), [0b10, 1, 0x80, 0]);
        assert!(plane.get(1, 7) && !plane.get(0, 7));
        assert_eq!(plane.row(0).filter(|&bit| bit).count(), 2);
        plane.bytes_mut()[0] = 0;
        assert!(!plane.get(0, 1));
    }

    #[test]
    fn every_length_packs_and_unpacks() {
        for len in 0..70 {
            let codes: Vec<u8> = (0..len).map(|index| (index * 7 % 16) as u8).collect();
            let mut nibbles = vec![0; nibble_row_bytes(len)];
            pack_nibbles(&codes, 7, &mut nibbles);
            let mut back = vec![0xff; len];
            unpack_nibbles(&nibbles, &mut back);
            assert_eq!(back, codes);
            assert!(len % 2 == 0 || nibbles[len / 2] >> 4 == 7);
        }
    }

    proptest! {
        #[test]
        fn unpacking_inverts_packing(codes in prop::collection::vec(0u8..16, 0..300), pad in 0u8..32) {
            let mut nibbles = vec![0; nibble_row_bytes(codes.len())];
            pack_nibbles(&codes, pad, &mut nibbles);
            let mut back = vec![0xff; codes.len()];
            unpack_nibbles(&nibbles, &mut back);
            prop_assert_eq!(back, codes);
        }

        #[test]
        fn a_bit_plane_keeps_every_bit(
            (cols, bits) in (1usize..40).prop_flat_map(|cols| {
                (Just(cols), prop::collection::vec(any::<bool>(), cols * 3))
            })
        ) {
            let mut plane = BitPlane::from_bytes(vec![0; 3 * bit_row_bytes(cols)], cols);
            for (index, &bit) in bits.iter().enumerate() {
                plane.set(index / cols, index % cols, bit);
            }
            for (index, &bit) in bits.iter().enumerate() {
                let (row, col) = (index / cols, index % cols);
                prop_assert_eq!(plane.get(row, col), bit);
                let byte = plane.bytes()[row * bit_row_bytes(cols) + col / 8];
                prop_assert_eq!((byte >> (col % 8)) & 1 == 1, bit);
            }
        }
    }
}
