//! The blocks of few bits: K types below four bits, tables, threes and small floats.

use super::{half_at, u32_at};

/// What the sixteen codes of IQ4_NL and IQ4_XS stand for.
const CURVE: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
/// What those of MXFP4 stand for, doubled: a sign, two bits of exponent, one of mantissa.
const SMALL_FLOATS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// 256 values of two bits, a scale and an offset of four bits for 16 of them.
pub(super) fn q2_k(bytes: &[u8], out: &mut [f32]) {
    let (scales, packed) = (&bytes[..16], &bytes[16..80]);
    let (d, m) = (half_at(bytes, 80), half_at(bytes, 82));
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[group] & 15);
        let offset = m * f32::from(scales[group] >> 4);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(pair(packed, 16 * group + i)) - offset;
        }
    }
}

/// Value `index` of pairs of bits, of which 32 bytes hold 128: the lowest pairs come first.
fn pair(packed: &[u8], index: usize) -> u8 {
    let (part, within) = (index / 128, index % 128);
    packed[32 * part + within % 32] >> (2 * (within / 32)) & 3
}

/// 256 values of three bits, the third in a mask, a scale of six bits for 16 of them.
pub(super) fn q3_k(bytes: &[u8], out: &mut [f32]) {
    let (mask, packed, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    let d = half_at(bytes, 108);
    for (group, out) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[group % 8] >> (4 * (group / 8)) & 15;
        let high = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        for (i, out) in out.iter_mut().enumerate() {
            let index = 16 * group + i;
            let is_set = mask[index % 32] >> (index / 32) & 1;
            // Values without the third bit lie four below.
            let q = f32::from(pair(packed, index)) - 4.0 * f32::from(1 - is_set);
            *out = scale * q;
        }
    }
}

/// 256 bytes with one scale.
pub(super) fn q8_k(bytes: &[u8], out: &mut [f32]) {
    let d = f32::from_bits(u32_at(bytes, 0));
    for (out, q) in out.iter_mut().zip(&bytes[4..]) {
        *out = d * f32::from(q.cast_signed());
    }
}

/// 32 values through the table, one scale.
pub(super) fn iq4_nl(bytes: &[u8], out: &mut [f32]) {
    through(&CURVE, half_at(bytes, 0), &bytes[2..], out);
}

/// 256 values through the table, a scale of six bits for 32 of them.
pub(super) fn iq4_xs(bytes: &[u8], out: &mut [f32]) {
    let d = half_at(bytes, 0);
    let highs = u16::from_le_bytes([bytes[2], bytes[3]]);
    let (lows, packed) = (&bytes[4..8], &bytes[8..]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let low = lows[group / 2] >> (4 * (group % 2)) & 15;
        let high = (highs >> (2 * group) & 3) as u8;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        through(&CURVE, scale, &packed[16 * group..], out);
    }
}

/// 32 small floats that share an exponent.
pub(super) fn mxfp4(bytes: &[u8], out: &mut [f32]) {
    // Half of 2^(e - 127), as the table is doubled; the two smallest have no normal form.
    let bits = match u32::from(bytes[0]) {
        exponent @ (0 | 1) => 0x0020_0000 << exponent,
        exponent => (exponent - 1) << 23,
    };
    through(&SMALL_FLOATS, f32::from_bits(bits), &bytes[1..], out);
}

/// 32 values: low nibbles of 16 bytes, then the high ones.
fn through(table: &[i8; 16], scale: f32, packed: &[u8], out: &mut [f32]) {
    for (i, byte) in packed.iter().take(16).enumerate() {
        out[i] = scale * f32::from(table[usize::from(byte & 15)]);
        out[i + 16] = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}

/// 256 values of −1, 0 and 1, five in most bytes: a byte is a fraction of 256, whose digits to
/// the base three they are.
pub(super) fn tq1_0(bytes: &[u8], out: &mut [f32]) {
    let d = half_at(bytes, 52);
    let mut at = 0;
    for (digits, part) in [(5, &bytes[..32]), (5, &bytes[32..48]), (4, &bytes[48..52])] {
        let mut power = 1u8;
        for _ in 0..digits {
            for byte in part {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                out[at] = d * (f32::from(digit) - 1.0);
                at += 1;
            }
            power = power.wrapping_mul(3);
        }
    }
}

/// 256 values of −1, 0 and 1 (and 2), two bits each.
pub(super) fn tq2_0(bytes: &[u8], out: &mut [f32]) {
    let d = half_at(bytes, 64);
    for (index, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(pair(&bytes[..64], index)) - 1.0);
    }
}
