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
