//! The integer kernels on AVX2, AVX-VNNI and AVX-512 VNNI.
//!
//! Every entry takes the [`Isa`] token, which proves the features of its [`Path`].

use std::arch::x86_64::*;

use super::bytes::{ByteBlock, GROUP_STEPS};
use super::gemm::{Sums, TOKENS};
use super::gemv::Token;
use super::packed::{BLOCK_ROWS, Block, HighStep, Step};
use super::panel::{FLIP, Quad};
use super::{Int8Grid, Path};
use crate::isa::Isa;
use crate::prefetch::prefetch;

/// How far ahead of its use a code is asked for, in bytes: more than the latency of memory at
/// full speed. Into the second-level cache, which waits for more lines at a time than the first.
const PREFETCH: usize = 8192;

#[inline(always)]
fn ask_ahead(codes: &[u8; 64]) {
    prefetch::<_MM_HINT_T1>(codes.as_ptr().wrapping_add(PREFETCH).cast());
}

/// Two tables of sixteen bytes, turned over if `flip` is [`FLIP`].
#[target_feature(enable = "avx2")]
fn tables(table: &Int8Grid, flip: u8) -> [__m128i; 2] {
    let (halves, _) = table.values.as_chunks::<16>();
    let flip = _mm_set1_epi8(flip.cast_signed());
    // SAFETY: each half holds the 16 bytes read.
    let load = |half: &[i8; 16]| unsafe { _mm_loadu_si128(half.as_ptr().cast()) };
    [
        _mm_xor_si128(load(&halves[0]), flip),
        _mm_xor_si128(load(&halves[1]), flip),
    ]
}

/// The bytes of four rows over 32 columns; `OF_COLUMNS` asks for [quad][row][column], else
/// [column][row].
pub(super) fn quads<const OF_COLUMNS: bool>(
    isa: Isa,
    table: &Int8Grid,
    nibbles: &[[u8; 16]; 4],
    high: [u32; 4],
) -> [[u8; 16]; 8] {
    debug_assert!(Path::of(isa) != Path::Scalar);
    // SAFETY: every path but the scalar one is of a tier that has AVX2.
    unsafe { quads_avx2::<OF_COLUMNS>(table, nibbles, high) }
}

#[target_feature(enable = "avx2")]
fn quads_avx2<const OF_COLUMNS: bool>(
    table: &Int8Grid,
    nibbles: &[[u8; 16]; 4],
    high: [u32; 4],
) -> [[u8; 16]; 8] {
    let tables = tables(table, FLIP);
    let low = _mm_set1_epi8(15);
    let mut rows = [[_mm_setzero_si128(); 2]; 4];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: the array holds the 16 bytes read.
        let codes = unsafe { _mm_loadu_si128(nibbles[i].as_ptr().cast()) };
        let even = _mm_and_si128(codes, low);
        let odd = _mm_and_si128(_mm_srli_epi16::<4>(codes), low);
        let index = [_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)];
        for (half, index) in index.into_iter().enumerate() {
            let mut bytes = _mm_shuffle_epi8(tables[0], index);
            if table.wide {
                let bits = (high[i] >> (16 * half)) as i16;
                let chosen = bit_mask(_mm_set1_epi16(bits));
                bytes = _mm_blendv_epi8(bytes, _mm_shuffle_epi8(tables[1], index), chosen);
            }
            row[half] = bytes;
        }
    }
    let mut out = [[0; 16]; 8];
    for half in 0..2 {
        let [a, b, c, d] = rows.map(|row| row[half]);
        let parts = if OF_COLUMNS {
            let ab = [_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b)];
            let cd = [_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d)];
            [
                _mm_unpacklo_epi64(ab[0], cd[0]),
                _mm_unpackhi_epi64(ab[0], cd[0]),
                _mm_unpacklo_epi64(ab[1], cd[1]),
                _mm_unpackhi_epi64(ab[1], cd[1]),
            ]
        } else {
            let ab = [_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)];
            let cd = [_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d)];
            [
                _mm_unpacklo_epi16(ab[0], cd[0]),
                _mm_unpackhi_epi16(ab[0], cd[0]),
                _mm_unpacklo_epi16(ab[1], cd[1]),
                _mm_unpackhi_epi16(ab[1], cd[1]),
            ]
        };
        for (out, part) in out[4 * half..].iter_mut().zip(parts) {
            // SAFETY: the array holds the 16 bytes written.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), part) };
        }
    }
    out
}

/// All ones in byte i where bit i of the (repeated) 16-bit words is set.
#[target_feature(enable = "avx2")]
fn bit_mask(words: __m128i) -> __m128i {
    let spread = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    let bit = _mm_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let bytes = _mm_and_si128(_mm_shuffle_epi8(words, spread), bit);
    _mm_cmpeq_epi8(bytes, bit)
}

/// The same for 32 bits.
#[target_feature(enable = "avx2")]
fn bit_mask_256(bits: u32) -> __m256i {
    let spread = _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3,
        3, 3,
    );
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
    let words = _mm256_set1_epi32(bits.cast_signed());
    let bytes = _mm256_and_si256(_mm256_shuffle_epi8(words, spread), bit);
    _mm256_cmpeq_epi8(bytes, bit)
}

/// 32 codes' table bytes; `bits` are bits 4 of the codes.
#[target_feature(enable = "avx2")]
fn look_up_256(tables: [__m256i; 2], index: __m256i, bits: Option<u32>) -> __m256i {
    let bytes = _mm256_shuffle_epi8(tables[0], index);
    match bits {
        Some(bits) => {
            let other = _mm256_shuffle_epi8(tables[1], index);
            _mm256_blendv_epi8(bytes, other, bit_mask_256(bits))
        }
        None => bytes,
    }
}

/// See [`super::packed`]'s `fill_block`.
pub(super) fn fill_block(
    isa: Isa,
    table: &Int8Grid,
    block: Block<'_>,
    panel: &mut [Quad],
    part: usize,
) {
    // SAFETY: the path follows from features that the token proves.
    unsafe {
        match (Path::of(isa), block.high.is_empty()) {
            (Path::Avx512Vnni, true) => fill_block_512::<false>(table, block, panel, part),
            (Path::Avx512Vnni, false) => fill_block_512::<true>(table, block, panel, part),
            (Path::AvxVnni | Path::Avx2, _) => fill_block_256(table, block, panel, part),
            (Path::Scalar, _) => unreachable!("the scalar path has a kernel of its own"),
        }
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn fill_block_512<const WIDE: bool>(
    table: &Int8Grid,
    block: Block<'_>,
    panel: &mut [Quad],
    part: usize,
) {
    let tables = tables(table, FLIP).map(|table| _mm512_broadcast_i32x4(table));
    for (i, (codes, quads)) in block.codes.iter().zip(panel.chunks_mut(2)).enumerate() {
        ask_ahead(codes);
        let index = nibbles_512(codes);
        for (half, (quad, index)) in quads.iter_mut().zip(index).enumerate() {
            let bits = if WIDE { Some(&block.high[i]) } else { None };
            let bytes = look_up_512(tables, index, bits, half);
            let to = &mut quad.as_chunks_mut::<64>().0[part];
            // SAFETY: the array holds the 64 bytes written.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) };
        }
    }
}

#[target_feature(enable = "avx2")]
fn fill_block_256(table: &Int8Grid, block: Block<'_>, panel: &mut [Quad], part: usize) {
    let tables = tables(table, FLIP).map(|table| _mm256_broadcastsi128_si256(table));
    for (i, (codes, quads)) in block.codes.iter().zip(panel.chunks_mut(2)).enumerate() {
        let high = block.high.get(i);
        for rows in 0..2 {
            let index = nibbles_256(codes, rows);
            for (half, (quad, index)) in quads.iter_mut().zip(index).enumerate() {
                let bits = high.map(|high| step_bits(high, half, rows));
                let bytes = look_up_256(tables, index, bits);
                let to = &mut quad.as_chunks_mut::<32>().0[2 * part + rows];
                // SAFETY: the array holds the 32 bytes written.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) };
            }
        }
    }
}

/// The low and the high nibbles of a step.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn nibbles_512(codes: &Step) -> [__m512i; 2] {
    let low = _mm512_set1_epi8(15);
    // SAFETY: the array holds the 64 bytes read.
    let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
    [
        _mm512_and_si512(codes, low),
        _mm512_and_si512(_mm512_srli_epi16::<4>(codes), low),
    ]
}

/// 64 codes' table bytes; `high` has bits 4 of quad `half` of a step.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn look_up_512(
    tables: [__m512i; 2],
    index: __m512i,
    high: Option<&HighStep>,
    half: usize,
) -> __m512i {
    let bytes = _mm512_shuffle_epi8(tables[0], index);
    match high {
        Some(high) => {
            let bits = u64::from_le_bytes(high.as_chunks::<8>().0[half]);
            let other = _mm512_shuffle_epi8(tables[1], index);
            _mm512_mask_blend_epi8(bits, bytes, other)
        }
        None => bytes,
    }
}

/// The low and the high nibbles of rows 8 `part`.. of a step.
#[target_feature(enable = "avx2")]
fn nibbles_256(codes: &Step, part: usize) -> [__m256i; 2] {
    let low = _mm256_set1_epi8(15);
    // SAFETY: the half of the array holds the 32 bytes read.
    let codes = unsafe { _mm256_loadu_si256(codes[32 * part..][..32].as_ptr().cast()) };
    [
        _mm256_and_si256(codes, low),
        _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low),
    ]
}

/// Bits 4 of quad `half`, rows 8 `part`.. of a step.
fn step_bits(high: &HighStep, half: usize, part: usize) -> u32 {
    let at = 8 * half + 4 * part;
    u32::from_le_bytes([high[at], high[at + 1], high[at + 2], high[at + 3]])
}

/// Adds Σ weight · x over quads: `weights` signed without `VNNI`, turned over with it.
#[target_feature(enable = "avx2")]
fn add_products<const VNNI: bool>(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    if VNNI {
        // SAFETY: callers with `VNNI` come from a path that has AVX-VNNI.
        unsafe { dpbusd_256(sum, weights, x) }
    } else {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
        _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn dpbusd_256(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, weights, x)
}

/// [`super::gemv`]'s product of sixteen rows and one token.
pub(super) fn block_product(
    isa: Isa,
    table: &Int8Grid,
    block: Block<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    // SAFETY: the path follows from features that the token proves.
    unsafe {
        match (Path::of(isa), table.wide) {
            (Path::Avx512Vnni, false) => block_512::<false>(table, block, token, out),
            (Path::Avx512Vnni, true) => block_512::<true>(table, block, token, out),
            (Path::AvxVnni, _) => block_256_vnni(table, block, token, out),
            (Path::Avx2, _) => block_256_plain(table, block, token, out),
            (Path::Scalar, _) => unreachable!("the scalar path has a kernel of its own"),
        }
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn block_512<const WIDE: bool>(
    table: &Int8Grid,
    block: Block<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    let tables = tables(table, FLIP).map(|table| _mm512_broadcast_i32x4(table));
    let mut total = _mm512_setzero_ps();
    let mut start = 0;
    for (group, scales) in block.scales.iter().enumerate() {
        let end = (start + block.group_steps).min(block.codes.len());
        let codes = &block.codes[start..end];
        let values = &token.values[start..end];
        let high = if WIDE { &block.high[start..end] } else { &[] };
        // Two chains an operand: a dot product takes five cycles, the rest of two steps seven.
        let mut sums = [_mm512_setzero_si512(); 4];
        let step = |sums: &mut [__m512i], i: usize| {
            ask_ahead(&codes[i]);
            let index = nibbles_512(&codes[i]);
            let (quads, _) = values[i].as_chunks::<4>();
            for half in 0..2 {
                let bits = if WIDE { Some(&high[i]) } else { None };
                let bytes = look_up_512(tables, index[half], bits, half);
                let x = i32::from_le_bytes(quads[half].map(i8::cast_unsigned));
                sums[half] = _mm512_dpbusd_epi32(sums[half], bytes, _mm512_set1_epi32(x));
            }
        };
        let whole = codes.len() / 2 * 2;
        for i in (0..whole).step_by(2) {
            step(&mut sums[..2], i);
            step(&mut sums[2..], i + 1);
        }
        if whole < codes.len() {
            step(&mut sums[..2], whole);
        }
        total = fold_512(total, sums, scales, token, group);
        start = end;
    }
    // SAFETY: the array holds the 64 bytes written.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), total) };
}

/// Adds the products of `group`: sums of weights that are turned over.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn fold_512<const N: usize>(
    total: __m512,
    sums: [__m512i; N],
    scales: &[f32; BLOCK_ROWS],
    token: Token<'_>,
    group: usize,
) -> __m512 {
    let mut sum = _mm512_set1_epi32(token.offset(group).wrapping_neg());
    for part in sums {
        sum = _mm512_add_epi32(sum, part);
    }
    // SAFETY: the array holds the 64 bytes read.
    let scales = unsafe { _mm512_loadu_ps(scales.as_ptr()) };
    let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales);
    let scale = _mm512_set1_ps(token.scale(group));
    _mm512_add_ps(total, _mm512_mul_ps(product, scale))
}

/// [`super::bytes`]'s product of sixteen rows and one token.
pub(super) fn byte_block_product(
    isa: Isa,
    block: ByteBlock<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    // SAFETY: the path follows from features that the token proves.
    unsafe {
        match Path::of(isa) {
            Path::Avx512Vnni => byte_block_512(block, token, out),
            Path::AvxVnni => byte_block_256_vnni(block, token, out),
            Path::Avx2 => byte_block_256_plain(block, token, out),
            Path::Scalar => unreachable!("the scalar path has a kernel of its own"),
        }
    }
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn byte_block_512(block: ByteBlock<'_>, token: Token<'_>, out: &mut [f32; BLOCK_ROWS]) {
    let mut total = _mm512_setzero_ps();
    let groups = block.steps.chunks(GROUP_STEPS);
    let groups = groups.zip(token.values.chunks(GROUP_STEPS));
    for (group, ((steps, values), scales)) in groups.zip(block.scales).enumerate() {
        let mut sums = [_mm512_setzero_si512(); 4];
        for (i, (step, values)) in steps.iter().zip(values).enumerate() {
            let (quads, _) = values.as_chunks::<4>();
            for half in 0..2 {
                ask_ahead(&step[half]);
                // SAFETY: the array holds the 64 bytes read.
                let bytes = unsafe { _mm512_loadu_si512(step[half].as_ptr().cast()) };
                let x = i32::from_le_bytes(quads[half].map(i8::cast_unsigned));
                let sum = &mut sums[2 * (i % 2) + half];
                *sum = _mm512_dpbusd_epi32(*sum, bytes, _mm512_set1_epi32(x));
            }
        }
        total = fold_512(total, sums, scales, token, group);
    }
    // SAFETY: the array holds the 64 bytes written.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), total) };
}

#[target_feature(enable = "avx2,avxvnni")]
fn byte_block_256_vnni(block: ByteBlock<'_>, token: Token<'_>, out: &mut [f32; BLOCK_ROWS]) {
    byte_block_256::<true>(block, token, out);
}

#[target_feature(enable = "avx2")]
fn byte_block_256_plain(block: ByteBlock<'_>, token: Token<'_>, out: &mut [f32; BLOCK_ROWS]) {
    byte_block_256::<false>(block, token, out);
}

#[inline]
#[target_feature(enable = "avx2")]
fn byte_block_256<const VNNI: bool>(
    block: ByteBlock<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    let flip = _mm256_set1_epi8(if VNNI { 0 } else { FLIP.cast_signed() });
    let mut totals = [_mm256_setzero_ps(); 2];
    let groups = block.steps.chunks(GROUP_STEPS);
    let groups = groups.zip(token.values.chunks(GROUP_STEPS));
    for (group, ((steps, values), scales)) in groups.zip(block.scales).enumerate() {
        let mut sums = [[_mm256_setzero_si256(); 2]; 2];
        for (step, values) in steps.iter().zip(values) {
            let (quads, _) = values.as_chunks::<4>();
            for half in 0..2 {
                ask_ahead(&step[half]);
                let x = i32::from_le_bytes(quads[half].map(i8::cast_unsigned));
                let x = _mm256_set1_epi32(x);
                for (part, bytes) in step[half].as_chunks::<32>().0.iter().enumerate() {
                    // SAFETY: the array holds the 32 bytes read.
                    let bytes = unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) };
                    let weights = _mm256_xor_si256(bytes, flip);
                    sums[part][half] = add_products::<VNNI>(sums[part][half], weights, x);
                }
            }
        }
        totals = fold_256::<VNNI>(totals, sums, scales, token, group);
    }
    store_256(totals, out);
}

/// Adds the products of `group`: sums of [rows 0..8, rows 8..16] × [low quads, high quads].
#[inline]
#[target_feature(enable = "avx2")]
fn fold_256<const VNNI: bool>(
    mut totals: [__m256; 2],
    sums: [[__m256i; 2]; 2],
    scales: &[f32; BLOCK_ROWS],
    token: Token<'_>,
    group: usize,
) -> [__m256; 2] {
    let offset = if VNNI { token.offset(group) } else { 0 };
    let (scales, _) = scales.as_chunks::<8>();
    for (part, total) in totals.iter_mut().enumerate() {
        let sum = _mm256_add_epi32(sums[part][0], sums[part][1]);
        let sum = _mm256_sub_epi32(sum, _mm256_set1_epi32(offset));
        // SAFETY: the array holds the 32 bytes read.
        let scales = unsafe { _mm256_loadu_ps(scales[part].as_ptr()) };
        let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scales);
        let scale = _mm256_set1_ps(token.scale(group));
        *total = _mm256_add_ps(*total, _mm256_mul_ps(product, scale));
    }
    totals
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_256(totals: [__m256; 2], out: &mut [f32; BLOCK_ROWS]) {
    let (out, _) = out.as_chunks_mut::<8>();
    for (out, total) in out.iter_mut().zip(totals) {
        // SAFETY: the array holds the 32 bytes written.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), total) };
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn block_256_vnni(
    table: &Int8Grid,
    block: Block<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    block_256::<true>(table, block, token, out);
}

#[target_feature(enable = "avx2")]
fn block_256_plain(
    table: &Int8Grid,
    block: Block<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    block_256::<false>(table, block, token, out);
}

#[inline]
#[target_feature(enable = "avx2")]
fn block_256<const VNNI: bool>(
    table: &Int8Grid,
    block: Block<'_>,
    token: Token<'_>,
    out: &mut [f32; BLOCK_ROWS],
) {
    let tables = tables(table, if VNNI { FLIP } else { 0 });
    let tables = tables.map(|table| _mm256_broadcastsi128_si256(table));
    let mut totals = [_mm256_setzero_ps(); 2];
    let mut start = 0;
    for (group, scales) in block.scales.iter().enumerate() {
        let end = (start + block.group_steps).min(block.codes.len());
        let mut sums = [[_mm256_setzero_si256(); 2]; 2];
        for i in start..end {
            let codes = &block.codes[i];
            ask_ahead(codes);
            let (quads, _) = token.values[i].as_chunks::<4>();
            for (part, sums) in sums.iter_mut().enumerate() {
                let index = nibbles_256(codes, part);
                for half in 0..2 {
                    let bits = table.wide.then(|| step_bits(&block.high[i], half, part));
                    let weights = look_up_256(tables, index[half], bits);
                    let x = i32::from_le_bytes(quads[half].map(i8::cast_unsigned));
                    sums[half] = add_products::<VNNI>(sums[half], weights, _mm256_set1_epi32(x));
                }
            }
        }
        totals = fold_256::<VNNI>(totals, sums, scales, token, group);
        start = end;
    }
    store_256(totals, out);
}

/// [`super::gemm`]'s sums of up to six tokens against a panel.
pub(super) fn panel_sums(
    isa: Isa,
    quads: &[Quad],
    x: &[&[[i8; 4]]; TOKENS],
    count: usize,
    sums: &mut Sums,
) {
    let x = x.map(|x| &x[..quads.len()]);
    // SAFETY: the path follows from features that the token proves.
    unsafe {
        match Path::of(isa) {
            Path::Avx512Vnni => match count {
                1 => panel_512::<1>(quads, &x, sums),
                2 => panel_512::<2>(quads, &x, sums),
                3 => panel_512::<3>(quads, &x, sums),
                4 => panel_512::<4>(quads, &x, sums),
                5 => panel_512::<5>(quads, &x, sums),
                _ => panel_512::<TOKENS>(quads, &x, sums),
            },
            Path::AvxVnni => panel_256_vnni(quads, &x, count, sums),
            Path::Avx2 => panel_256_plain(quads, &x, count, sums),
            Path::Scalar => unreachable!("the scalar path has a kernel of its own"),
        }
    }
}

/// `T` tokens × 64 columns in 4 T registers.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn panel_512<const T: usize>(quads: &[Quad], x: &[&[[i8; 4]]; TOKENS], out: &mut Sums) {
    let mut sums = [[_mm512_setzero_si512(); 4]; T];
    for (i, quad) in quads.iter().enumerate() {
        let (vectors, _) = quad.as_chunks::<64>();
        let mut weights = [_mm512_setzero_si512(); 4];
        for (weights, vector) in weights.iter_mut().zip(vectors) {
            // SAFETY: the array holds the 64 bytes read.
            *weights = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
        }
        for t in 0..T {
            // SAFETY: every x is as long as `quads`, see `panel_sums`.
            let x = unsafe { *x[t].get_unchecked(i) };
            let x = _mm512_set1_epi32(i32::from_le_bytes(x.map(i8::cast_unsigned)));
            for v in 0..4 {
                sums[t][v] = _mm512_dpbusd_epi32(sums[t][v], weights[v], x);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        for (sum, out) in sums.iter().zip(out.as_chunks_mut::<16>().0) {
            // SAFETY: the array holds the 64 bytes written.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *sum) };
        }
    }
}

#[target_feature(enable = "avx2,avxvnni")]
fn panel_256_vnni(quads: &[Quad], x: &[&[[i8; 4]]; TOKENS], count: usize, out: &mut Sums) {
    panel_256::<true>(quads, x, count, out);
}

#[target_feature(enable = "avx2")]
fn panel_256_plain(quads: &[Quad], x: &[&[[i8; 4]]; TOKENS], count: usize, out: &mut Sums) {
    panel_256::<false>(quads, x, count, out);
}

/// Two tokens × 32 columns at a time: eight sums in sixteen registers.
#[inline]
#[target_feature(enable = "avx2")]
fn panel_256<const VNNI: bool>(
    quads: &[Quad],
    x: &[&[[i8; 4]]; TOKENS],
    count: usize,
    out: &mut Sums,
) {
    let flip = _mm256_set1_epi8(FLIP.cast_signed());
    for part in 0..2 {
        for first in (0..count).step_by(2) {
            let tokens = [x[first], x[(first + 1).min(count - 1)]];
            let mut sums = [[_mm256_setzero_si256(); 4]; 2];
            for (i, quad) in quads.iter().enumerate() {
                let (vectors, _) = quad.as_chunks::<32>();
                // SAFETY: every x is as long as `quads`, see `panel_sums`.
                let x = tokens.map(|x| unsafe { *x.get_unchecked(i) });
                let x = x.map(|x| i32::from_le_bytes(x.map(i8::cast_unsigned)));
                for v in 0..4 {
                    // SAFETY: the array holds the 32 bytes read.
                    let mut weights =
                        unsafe { _mm256_loadu_si256(vectors[4 * part + v].as_ptr().cast()) };
                    if !VNNI {
                        weights = _mm256_xor_si256(weights, flip);
                    }
                    for t in 0..2 {
                        let x = _mm256_set1_epi32(x[t]);
                        sums[t][v] = add_products::<VNNI>(sums[t][v], weights, x);
                    }
                }
            }
            for (t, sums) in sums.iter().enumerate().take(count - first) {
                // Without `VNNI` the sum is of signed weights: what the others subtract comes on.
                let offset = if VNNI {
                    0
                } else {
                    tokens[t]
                        .as_flattened()
                        .iter()
                        .map(|&x| i32::from(x))
                        .sum::<i32>()
                        * 128
                };
                let (vectors, _) = out[first + t].as_chunks_mut::<8>();
                for (v, sum) in sums.iter().enumerate() {
                    let sum = _mm256_add_epi32(*sum, _mm256_set1_epi32(offset));
                    // SAFETY: the array holds the 32 bytes written.
                    unsafe {
                        _mm256_storeu_si256(vectors[4 * part + v].as_mut_ptr().cast(), sum);
                    }
                }
            }
        }
    }
}
