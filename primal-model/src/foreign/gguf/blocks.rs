//! The tensor types of GGUF: how many values a block holds and what its bytes mean.
//!
//! f16 is IEEE half precision; q(i) is the i-th stored integer. Layouts are those of ggml's
//! `ggml-common.h`; the oracle of the tests is the Python package `gguf`.
//!
//! | type | values | bytes of a block, in order | value |
//! |---|---|---|---|
//! | Q4_0 | 32 | f16 d, 16 × two nibbles | d · (q − 8) |
//! | Q4_1 | 32 | f16 d, f16 m, 16 × two nibbles | d · q + m |
//! | Q5_0 | 32 | f16 d, u32 fifth bits, 16 × two nibbles | d · (q − 16) |
//! | Q5_1 | 32 | f16 d, f16 m, u32 fifth bits, 16 × two nibbles | d · q + m |
//! | Q8_0 | 32 | f16 d, 32 × i8 | d · q |
//! | Q4_K | 256 | f16 d, f16 m, 12 bytes of scales, 128 × two nibbles | d · s · q − m · t |
//! | Q5_K | 256 | the same with 32 bytes of fifth bits before the nibbles | d · s · q − m · t |
//! | Q6_K | 256 | 128 × two nibbles, 64 × four bit pairs, 16 × i8 s, f16 d | d · s · (q − 32) |
//! | Q2_K | 256 | 16 × two nibbles s and t, 64 × four bit pairs, f16 d, f16 m | d · s · q − m · t |
//! | Q3_K | 256 | 32 bytes of third bits, 64 × four bit pairs, 12 bytes of scales, f16 d | d · s · (q − 4) |
//! | Q8_K | 256 | f32 d, 256 × i8, 16 × i16 sums | d · q |
//! | IQ4_NL | 32 | f16 d, 16 × two nibbles | d · table(q) |
//! | IQ4_XS | 256 | f16 d, 6 bytes of scales, 128 × two nibbles | d · s · table(q) |
//! | MXFP4 | 32 | u8 exponent, 16 × two nibbles | 2^e · float(q) |
//! | TQ1_0 | 256 | 48 × five digits to the base 3, 4 × four, f16 d | d · (q − 1) |
//! | TQ2_0 | 256 | 64 × four bit pairs, f16 d | d · (q − 1) |
//!
//! In blocks of 32 the low nibbles are values 0..16, the high ones 16..32. In the K types a
//! scale s (and offset t) of 6 bits serves 32 values, in Q6_K one of 8 bits serves 16.

mod low_bits;

use half::{bf16, f16};

/// The type of a tensor's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the names are the format's own, the module documents them"
)]
#[allow(non_camel_case_types, reason = "the names are the format's own")]
pub enum TensorType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
    Q2_K,
    Q3_K,
    Q8_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    TQ1_0,
    TQ2_0,
}

/// Types that are not read, by their number in the file.
const UNREAD: [(u32, &str); 17] = [
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (4, "Q4_2, long gone from the format"),
    (5, "Q4_3, long gone from the format"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

struct Layout {
    tensor_type: TensorType,
    id: u32,
    name: &'static str,
    block_values: usize,
    block_bytes: usize,
}

const fn layout(
    tensor_type: TensorType,
    id: u32,
    name: &'static str,
    block_values: usize,
    block_bytes: usize,
) -> Layout {
    Layout {
        tensor_type,
        id,
        name,
        block_values,
        block_bytes,
    }
}

const LAYOUTS: [Layout; 19] = [
    layout(TensorType::F32, 0, "F32", 1, 4),
    layout(TensorType::F16, 1, "F16", 1, 2),
    layout(TensorType::Q4_0, 2, "Q4_0", 32, 18),
    layout(TensorType::Q4_1, 3, "Q4_1", 32, 20),
    layout(TensorType::Q5_0, 6, "Q5_0", 32, 22),
    layout(TensorType::Q5_1, 7, "Q5_1", 32, 24),
    layout(TensorType::Q8_0, 8, "Q8_0", 32, 34),
    layout(TensorType::Q4_K, 12, "Q4_K", 256, 144),
    layout(TensorType::Q5_K, 13, "Q5_K", 256, 176),
    layout(TensorType::Q6_K, 14, "Q6_K", 256, 210),
    layout(TensorType::BF16, 30, "BF16", 1, 2),
    layout(TensorType::Q2_K, 10, "Q2_K", 256, 84),
    layout(TensorType::Q3_K, 11, "Q3_K", 256, 110),
    layout(TensorType::Q8_K, 15, "Q8_K", 256, 292),
    layout(TensorType::IQ4_NL, 20, "IQ4_NL", 32, 18),
    layout(TensorType::IQ4_XS, 23, "IQ4_XS", 256, 136),
    layout(TensorType::TQ1_0, 34, "TQ1_0", 256, 54),
    layout(TensorType::TQ2_0, 35, "TQ2_0", 256, 66),
    layout(TensorType::MXFP4, 39, "MXFP4", 32, 17),
];

impl TensorType {
    /// Every type that is read.
    pub fn all() -> impl Iterator<Item = TensorType> {
        LAYOUTS.iter().map(|layout| layout.tensor_type)
    }

    pub(super) fn from_id(id: u32) -> Option<TensorType> {
        let found = LAYOUTS.iter().find(|layout| layout.id == id);
        found.map(|layout| layout.tensor_type)
    }

    /// What a type is called, read or not; its number where nobody knows it.
    pub(super) fn describe(id: u32) -> String {
        let unread = UNREAD.iter().find(|(known, _)| *known == id);
        match (TensorType::from_id(id), unread) {
            (Some(known), _) => known.name().to_owned(),
            (None, Some((_, name))) => (*name).to_owned(),
            (None, None) => id.to_string(),
        }
    }

    pub(super) fn id(self) -> u32 {
        self.layout().id
    }

    /// The format's name of the type, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.layout().name
    }

    /// Values of a block: rows hold a multiple of it.
    pub fn block_values(self) -> usize {
        self.layout().block_values
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.layout().block_bytes
    }

    fn layout(self) -> &'static Layout {
        // Every type is in the table; a test looks each of them up.
        let found = LAYOUTS.iter().find(|layout| layout.tensor_type == self);
        found.unwrap_or(&LAYOUTS[0])
    }

    /// Values of whole blocks: `out` holds `bytes.len() / block_bytes` blocks of values.
    pub(super) fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        let blocks = bytes.chunks_exact(self.block_bytes());
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(self.block_values())) {
            self.block(bytes, out);
        }
    }

    /// One block: `bytes` and `out` have the lengths of the table.
    fn block(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            TensorType::F32 => out[0] = f32::from_bits(u32_at(bytes, 0)),
            TensorType::F16 => out[0] = half_at(bytes, 0),
            TensorType::BF16 => out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            TensorType::Q4_0 => {
                let d = half_at(bytes, 0);
                nibbles(&bytes[2..], 0, out, |q| d * (q as f32 - 8.0));
            }
            TensorType::Q4_1 => {
                let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
                nibbles(&bytes[4..], 0, out, |q| d * q as f32 + m);
            }
            TensorType::Q5_0 => {
                let (d, fifth) = (half_at(bytes, 0), u32_at(bytes, 2));
                nibbles(&bytes[6..], fifth, out, |q| d * (q as f32 - 16.0));
            }
            TensorType::Q5_1 => {
                let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
                let fifth = u32_at(bytes, 4);
                nibbles(&bytes[8..], fifth, out, |q| d * q as f32 + m);
            }
            TensorType::Q8_0 => {
                let d = half_at(bytes, 0);
                for (out, q) in out.iter_mut().zip(&bytes[2..]) {
                    *out = d * f32::from(q.cast_signed());
                }
            }
            TensorType::Q4_K => k_block(bytes, &[0; 32], &bytes[16..], out),
            TensorType::Q5_K => k_block(bytes, &bytes[16..48], &bytes[48..], out),
            TensorType::Q6_K => q6_block(bytes, out),
            TensorType::Q2_K => low_bits::q2_k(bytes, out),
            TensorType::Q3_K => low_bits::q3_k(bytes, out),
            TensorType::Q8_K => low_bits::q8_k(bytes, out),
            TensorType::IQ4_NL => low_bits::iq4_nl(bytes, out),
            TensorType::IQ4_XS => low_bits::iq4_xs(bytes, out),
            TensorType::MXFP4 => low_bits::mxfp4(bytes, out),
            TensorType::TQ1_0 => low_bits::tq1_0(bytes, out),
            TensorType::TQ2_0 => low_bits::tq2_0(bytes, out),
        }
    }

    /// Packs `values` (whole blocks) into `out`. Only the types that are written are here.
    ///
    /// Returns false for the others.
    pub(super) fn quantise(self, values: &[f32], out: &mut Vec<u8>) -> bool {
        match self {
            TensorType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            TensorType::F16 => {
                out.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
            }
            TensorType::BF16 => {
                out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
            }
            TensorType::Q8_0 => {
                for block in values.chunks_exact(32) {
                    let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let d = f16::from_f32(largest / 127.0);
                    // The stored step is the rounded one: values are divided by what is read back.
                    let step = d.to_f32();
                    out.extend(d.to_le_bytes());
                    out.extend(block.iter().map(|v| {
                        let q = if step > 0.0 { v / step } else { 0.0 };
                        (q.round().clamp(-127.0, 127.0) as i8).cast_unsigned()
                    }));
                }
            }
            _ => return false,
        }
        true
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A block of 32: `value` of each integer, a nibble and its bit of `fifth`.
fn nibbles(packed: &[u8], fifth: u32, out: &mut [f32], value: impl Fn(u32) -> f32) {
    for (i, byte) in packed.iter().take(16).enumerate() {
        let high = |at: usize| (fifth >> at & 1) << 4;
        out[i] = value(u32::from(byte & 15) | high(i));
        out[i + 16] = value(u32::from(byte >> 4) | high(i + 16));
    }
}

/// A block of Q4_K or Q5_K. Bytes of nibbles come in fours of 32 values: low nibbles are the
/// even group of 32, high ones the odd; bit g of a byte of `fifth` belongs to group g.
fn k_block(bytes: &[u8], fifth: &[u8], packed: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(bytes, 0), half_at(bytes, 2));
    let scales = &bytes[4..16];
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = six_bits(scales, group);
        let (scale, offset) = (d * f32::from(scale), m * f32::from(offset));
        let packed = &packed[group / 2 * 32..][..32];
        for ((out, byte), fifth) in out.iter_mut().zip(packed).zip(fifth) {
            let nibble = byte >> (4 * (group % 2)) & 15;
            let q = nibble | (fifth >> group & 1) << 4;
            *out = scale * f32::from(q) - offset;
        }
    }
}

/// Scale and offset of a group: groups 0..4 have six whole bits in bytes 0..4 and 4..8, groups
/// 4..8 four bits in bytes 8..12 and their top two bits above those of groups 0..4.
fn six_bits(scales: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let (low, high) = (scales[group + 4] & 15, scales[group + 4] >> 4);
        (
            low | scales[group - 4] >> 6 << 4,
            high | scales[group] >> 6 << 4,
        )
    }
}

/// A block of Q6_K: two halves of 128 values. In a half of 64 bytes of nibbles and 32 of bit
/// pairs, value 32k + i has nibble k / 2 of byte 32 (k % 2) + i and pair k of byte i.
fn q6_block(bytes: &[u8], out: &mut [f32]) {
    let d = half_at(bytes, 208);
    for (part, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &bytes[64 * part..][..64];
        let pairs = &bytes[128 + 32 * part..][..32];
        let scales = &bytes[192 + 8 * part..][..8];
        for (k, out) in out.chunks_exact_mut(32).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let nibble = low[32 * (k % 2) + i] >> (4 * (k / 2)) & 15;
                let q = nibble | (pairs[i] >> (2 * k) & 3) << 4;
                let scale = f32::from(scales[2 * k + i / 16].cast_signed());
                *out = d * scale * (f32::from(q) - 32.0);
            }
        }
    }
}
