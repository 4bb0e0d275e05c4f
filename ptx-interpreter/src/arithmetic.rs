//! What each instruction computes, as functions of values alone.
//!
//! add, sub, mul, fma, div, sqrt and the conversions round as IEEE 754 says, as a GPU does.
//! ex2, lg2, sin, cos, rcp and rsqrt in their `approx` forms are computed through f64 and rounded
//! once: closer to the true value than a GPU, so results that depend on them want a tolerance.

use half::f16;

use crate::error::Fault;
use crate::instruction::{
    AtomicOp, Binary, Comparison, Conversion, Relation, Rounding, Ternary, Unary,
};
use crate::types::{Kind, Type};

fn f32_of(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

fn bits32(value: f32) -> u64 {
    value.to_bits().into()
}

fn bits64(value: f64) -> u64 {
    value.to_bits()
}

/// Applies `narrow` or `wide` by the width of a float type.
#[inline(always)]
fn by_width(
    ty: Type,
    [a, b, c]: [u64; 3],
    narrow: impl Fn(f32, f32, f32) -> f32,
    wide: impl Fn(f64, f64, f64) -> f64,
) -> u64 {
    match ty.bits {
        16 => {
            let half = |x: u64| f16::from_bits(x as u16).to_f32();
            f16::from_f32(narrow(half(a), half(b), half(c)))
                .to_bits()
                .into()
        }
        32 => bits32(narrow(f32_of(a), f32_of(b), f32_of(c))),
        _ => bits64(wide(
            f64::from_bits(a),
            f64::from_bits(b),
            f64::from_bits(c),
        )),
    }
}

#[inline(always)]
pub(crate) fn unary(op: Unary, ty: Type, x: u64) -> u64 {
    // Correctly rounded in f32 because f64 holds more than twice the digits.
    let through_f64 =
        |f: fn(f64) -> f64| by_width(ty, [x, 0, 0], |x, _, _| f(x.into()) as f32, |x, _, _| f(x));
    let result = match op {
        Unary::Move => x,
        Unary::Negate if ty.is_float() => x ^ 1 << (ty.bits - 1),
        Unary::Negate => x.wrapping_neg(),
        Unary::Absolute if ty.is_float() => x & !(1 << (ty.bits - 1)),
        Unary::Absolute => ty.sign_extend(x).unsigned_abs(),
        Unary::Not => !x,
        Unary::SquareRoot => by_width(ty, [x, 0, 0], |x, _, _| x.sqrt(), |x, _, _| x.sqrt()),
        Unary::Reciprocal => by_width(ty, [x, 0, 0], |x, _, _| 1.0 / x, |x, _, _| 1.0 / x),
        Unary::ReciprocalSquareRoot => through_f64(|x| 1.0 / x.sqrt()),
        Unary::Exp2 => through_f64(f64::exp2),
        Unary::Log2 => through_f64(f64::log2),
        Unary::Sine => through_f64(f64::sin),
        Unary::Cosine => through_f64(f64::cos),
        Unary::CountOnes => ty.truncate(x).count_ones().into(),
        Unary::LeadingZeros => (ty.truncate(x).leading_zeros() - (64 - ty.bits)).into(),
        Unary::ReverseBits => x.reverse_bits() >> (64 - ty.bits),
    };
    ty.truncate(result)
}

pub(crate) fn binary(op: Binary, ty: Type, a: u64, b: u64) -> Result<u64, Fault> {
    let divides = matches!(op, Binary::Divide | Binary::Remainder);
    if divides && !ty.is_float() && ty.truncate(b) == 0 {
        return Err(Fault::DivisionByZero);
    }
    Ok(total_binary(op, ty, a, b))
}

/// [`binary`] of what is no division by zero.
#[inline(always)]
pub(crate) fn total_binary(op: Binary, ty: Type, a: u64, b: u64) -> u64 {
    if ty.is_float() {
        return float_binary(op, ty, a, b);
    }
    let (x, y) = (ty.widen(a), ty.widen(b));
    let result = match op {
        Binary::Add => a.wrapping_add(b),
        Binary::Subtract => a.wrapping_sub(b),
        Binary::Multiply => a.wrapping_mul(b),
        Binary::MultiplyHigh => ((x * y) >> ty.bits) as u64,
        // The result has twice the width, which the destination's type does not say.
        Binary::MultiplyWide => return double(ty).truncate((x * y) as u64),
        Binary::Divide => (x / y) as u64,
        Binary::Remainder => (x % y) as u64,
        Binary::Minimum => x.min(y) as u64,
        Binary::Maximum => x.max(y) as u64,
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::ShiftLeft => {
            let by = b as u32;
            if by >= ty.bits { 0 } else { a << by }
        }
        Binary::ShiftRight => (x >> (b as u32).min(ty.bits)) as u64,
    };
    ty.truncate(result)
}

#[inline(always)]
fn float_binary(op: Binary, ty: Type, a: u64, b: u64) -> u64 {
    let args = [a, b, 0];
    match op {
        Binary::Subtract => by_width(ty, args, |a, b, _| a - b, |a, b, _| a - b),
        Binary::Multiply => by_width(ty, args, |a, b, _| a * b, |a, b, _| a * b),
        Binary::Divide => by_width(ty, args, |a, b, _| a / b, |a, b, _| a / b),
        Binary::Minimum => by_width(ty, args, |a, b, _| a.min(b), |a, b, _| a.min(b)),
        Binary::Maximum => by_width(ty, args, |a, b, _| a.max(b), |a, b, _| a.max(b)),
        // The decoder gives float types to these operations only.
        _ => by_width(ty, args, |a, b, _| a + b, |a, b, _| a + b),
    }
}

fn double(ty: Type) -> Type {
    Type {
        bits: ty.bits * 2,
        ..ty
    }
}

#[inline(always)]
pub(crate) fn ternary(op: Ternary, ty: Type, [a, b, c]: [u64; 3]) -> u64 {
    let result = match op {
        Ternary::MultiplyAdd => a.wrapping_mul(b).wrapping_add(c),
        Ternary::MultiplyAddHigh => {
            let high = (ty.widen(a) * ty.widen(b)) >> ty.bits;
            (high as u64).wrapping_add(c)
        }
        Ternary::MultiplyAddWide => {
            let product = (ty.widen(a) * ty.widen(b)) as u64;
            return double(ty).truncate(product.wrapping_add(c));
        }
        Ternary::FusedMultiplyAdd => by_width(
            ty,
            [a, b, c],
            |a, b, c| a.mul_add(b, c),
            |a, b, c| a.mul_add(b, c),
        ),
        Ternary::Select => {
            if c & 1 != 0 {
                a
            } else {
                b
            }
        }
        Ternary::PermuteBytes => permute_bytes(a, b, c),
        Ternary::Dot4 => dot4(ty, a, b, c),
        Ternary::ExtractBits => extract_bits(ty, a, b as u32 & 255, c as u32 & 255),
        Ternary::FunnelLeft => ((b << 32 | a & 0xffff_ffff) << (c & 31)) >> 32,
        Ternary::FunnelRight => (b << 32 | a & 0xffff_ffff) >> (c & 31),
    };
    ty.truncate(result)
}

fn permute_bytes(a: u64, b: u64, selectors: u64) -> u64 {
    let bytes = a & 0xffff_ffff | b << 32;
    (0..4).fold(0, |result, i| {
        let selector = selectors >> (4 * i) & 15;
        let byte = bytes >> (8 * (selector & 7)) & 0xff;
        let byte = match (selector & 8 != 0, byte & 0x80 != 0) {
            (false, _) => byte,
            (true, sign) => u64::from(sign) * 0xff,
        };
        result | byte << (8 * i)
    })
}

fn dot4(ty: Type, a: u64, b: u64, c: u64) -> u64 {
    let byte = Type { bits: 8, ..ty };
    (0..4).fold(c, |sum, i| {
        let product = byte
            .extend(a >> (8 * i))
            .wrapping_mul(byte.extend(b >> (8 * i)));
        sum.wrapping_add(product)
    })
}

fn extract_bits(ty: Type, value: u64, position: u32, length: u32) -> u64 {
    if length == 0 {
        return 0;
    }
    let field = ty.truncate(value).checked_shr(position).unwrap_or(0);
    let available = ty.bits.saturating_sub(position);
    let field_type = Type {
        bits: length.min(available).max(1),
        ..ty
    };
    if available == 0 {
        return if ty.is_signed() && ty.sign_extend(value) < 0 {
            u64::MAX
        } else {
            0
        };
    }
    field_type.widen(field) as u64
}

/// `bfi`: the low `length` bits of `a` at `position` of `b`.
pub(crate) fn insert_bits(ty: Type, a: u64, b: u64, position: u64, length: u64) -> u64 {
    let (position, length) = (position as u32 & 255, length as u32 & 255);
    let mask = if length >= 64 {
        u64::MAX
    } else {
        (1 << length) - 1
    };
    let mask = mask.checked_shl(position).unwrap_or(0);
    let moved = a.checked_shl(position).unwrap_or(0);
    ty.truncate(b & !mask | moved & mask)
}

pub(crate) fn compare(comparison: Comparison, ty: Type, a: u64, b: u64) -> bool {
    if ty.is_float() {
        let (a, b) = (float_value(ty, a), float_value(ty, b));
        let unordered = a.is_nan() || b.is_nan();
        let holds = match comparison.relation {
            Relation::Equal => a == b,
            Relation::NotEqual => !unordered && a != b,
            Relation::Less => a < b,
            Relation::LessEqual => a <= b,
            Relation::Greater => a > b,
            Relation::GreaterEqual => a >= b,
            Relation::Ordered => !unordered,
            Relation::Unordered => unordered,
        };
        return holds || comparison.or_nan && unordered;
    }
    let order = if ty.is_signed() {
        ty.sign_extend(a).cmp(&ty.sign_extend(b))
    } else {
        ty.truncate(a).cmp(&ty.truncate(b))
    };
    match comparison.relation {
        Relation::Equal => order.is_eq(),
        Relation::NotEqual => order.is_ne(),
        Relation::Less => order.is_lt(),
        Relation::LessEqual => order.is_le(),
        Relation::Greater => order.is_gt(),
        Relation::GreaterEqual => order.is_ge(),
        Relation::Ordered => true,
        Relation::Unordered => false,
    }
}

/// A float of any width, exactly.
fn float_value(ty: Type, bits: u64) -> f64 {
    match ty.bits {
        16 => f16::from_bits(bits as u16).to_f64(),
        32 => f32_of(bits).into(),
        _ => f64::from_bits(bits),
    }
}

fn round(x: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::None => x,
        Rounding::Nearest => x.round_ties_even(),
        Rounding::Zero => x.trunc(),
        Rounding::Down => x.floor(),
        Rounding::Up => x.ceil(),
    }
}

pub(crate) fn convert(conversion: Conversion, to: Type, bits: u64) -> u64 {
    let Conversion {
        from,
        rounding,
        to_integer,
        saturate,
    } = conversion;
    let result = match (from.is_float(), to.is_float()) {
        (true, true) => {
            let mut x = float_value(from, bits);
            if to_integer {
                x = round(x, rounding);
            }
            if saturate {
                x = if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) };
            }
            float_bits(to, x)
        }
        (true, false) => float_to_integer(round(float_value(from, bits), rounding), to),
        (false, true) => integer_to_float(from.widen(bits), rounding, to),
        (false, false) if saturate => {
            let (least, most) = limits(to);
            from.widen(bits).clamp(least, most) as u64
        }
        (false, false) => from.extend(bits),
    };
    to.truncate(result)
}

fn limits(ty: Type) -> (i128, i128) {
    if ty.is_signed() {
        (-(1 << (ty.bits - 1)), (1 << (ty.bits - 1)) - 1)
    } else {
        (0, (1 << ty.bits) - 1)
    }
}

/// Out of range saturates and NaN is zero, as on every GPU since Fermi.
fn float_to_integer(x: f64, to: Type) -> u64 {
    let (least, most) = limits(to);
    (x as i128).clamp(least, most) as u64
}

fn integer_to_float(x: i128, rounding: Rounding, to: Type) -> u64 {
    match (to.bits, rounding) {
        (32, Rounding::Zero | Rounding::Down | Rounding::Up) => {
            let nearest = x as f32;
            let wrong_side = match rounding {
                Rounding::Down => nearest as i128 > x,
                Rounding::Up => (nearest as i128) < x,
                _ => (nearest as i128).abs() > x.abs(),
            };
            // The neighbour on the other side, for magnitudes as well as for signed directions.
            let step = match (wrong_side, rounding) {
                (false, _) => nearest,
                (true, Rounding::Down) => nearest.next_down(),
                (true, Rounding::Up) => nearest.next_up(),
                (true, _) if nearest > 0.0 => nearest.next_down(),
                (true, _) => nearest.next_up(),
            };
            bits32(step)
        }
        (32, _) => bits32(x as f32),
        (16, _) => f16::from_f64(x as f64).to_bits().into(),
        _ => bits64(x as f64),
    }
}

fn float_bits(ty: Type, x: f64) -> u64 {
    match ty.bits {
        16 => f16::from_f64(x).to_bits().into(),
        32 => bits32(x as f32),
        _ => bits64(x),
    }
}

/// What an atomic leaves in memory.
pub(crate) fn atomic(
    op: AtomicOp,
    ty: Type,
    old: u64,
    value: u64,
    swap: u64,
) -> Result<u64, Fault> {
    Ok(match op {
        AtomicOp::Add => binary(Binary::Add, ty, old, value)?,
        AtomicOp::And => old & value,
        AtomicOp::Or => old | value,
        AtomicOp::Xor => old ^ value,
        AtomicOp::Minimum => binary(Binary::Minimum, ty, old, value)?,
        AtomicOp::Maximum => binary(Binary::Maximum, ty, old, value)?,
        AtomicOp::Exchange => ty.truncate(value),
        AtomicOp::CompareExchange => {
            if ty.truncate(old) == ty.truncate(value) {
                ty.truncate(swap)
            } else {
                old
            }
        }
    })
}

/// Joins two predicates.
pub(crate) fn join(op: Option<Binary>, a: bool, b: bool) -> bool {
    match op {
        None => a,
        Some(Binary::And) => a && b,
        Some(Binary::Or) => a || b,
        Some(_) => a ^ b,
    }
}

/// Whether values of the type are predicates.
pub(crate) fn is_predicate(ty: Type) -> bool {
    ty.kind == Kind::Predicate
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ty(name: &str) -> Type {
        Type::parse(name).unwrap()
    }

    fn f(x: f32) -> u64 {
        x.to_bits().into()
    }

    #[test]
    fn integers_wrap_widen_and_shift() {
        let (s32, u32) = (ty("s32"), ty("u32"));
        let minus = |x: i32| u64::from(x.cast_unsigned());
        assert_eq!(
            binary(Binary::Multiply, u32, 0xffff_ffff, 3).unwrap(),
            0xffff_fffd
        );
        assert_eq!(
            binary(Binary::MultiplyWide, s32, minus(-2), 3).unwrap() as i64,
            -6
        );
        assert_eq!(
            binary(Binary::MultiplyHigh, u32, 0x8000_0000, 4).unwrap(),
            2
        );
        assert_eq!(
            binary(Binary::ShiftRight, s32, minus(-8), 40).unwrap(),
            minus(-1)
        );
        assert_eq!(binary(Binary::ShiftRight, u32, minus(-8), 32).unwrap(), 0);
        assert_eq!(binary(Binary::ShiftLeft, u32, 1, 32).unwrap(), 0);
        assert_eq!(
            binary(Binary::Divide, s32, 1, 0),
            Err(Fault::DivisionByZero)
        );
        assert_eq!(
            binary(Binary::Divide, s32, minus(-7), 2).unwrap(),
            minus(-3)
        );
    }

    #[test]
    fn bytes_are_permuted_and_multiplied() {
        assert_eq!(
            ternary(
                Ternary::PermuteBytes,
                Type::U32,
                [0x4433_2211, 0x8877_6655, 0x7531]
            ),
            0x8866_4422
        );
        assert_eq!(
            ternary(Ternary::PermuteBytes, Type::U32, [0x0000_0080, 0, 0x8888]),
            0xffff_ffff
        );
        // -1·1 + 2·2 + 3·3 + 4·4 + 10
        assert_eq!(
            ternary(Ternary::Dot4, ty("s32"), [0x0403_02ff, 0x0403_0201, 10]),
            38
        );
        assert_eq!(
            ternary(Ternary::FunnelLeft, Type::U32, [0x8000_0000, 1, 1]),
            3
        );
        assert_eq!(
            ternary(Ternary::ExtractBits, ty("s32"), [0xf0, 4, 4]),
            0xffff_ffff
        );
        assert_eq!(insert_bits(Type::U32, 0xff, 0, 4, 4), 0xf0);
    }

    #[test]
    fn floats_round_once() {
        let f32 = ty("f32");
        let third = 1.0_f32 / 3.0;
        assert_eq!(
            ternary(Ternary::FusedMultiplyAdd, f32, [f(third), f(3.0), f(-1.0)]),
            f(third.mul_add(3.0, -1.0))
        );
        assert_eq!(unary(Unary::Negate, f32, f(0.0)), f(-0.0));
        assert_eq!(
            binary(Binary::Maximum, f32, f(f32::NAN), f(2.0)).unwrap(),
            f(2.0)
        );
    }

    #[test]
    fn conversions_saturate_and_round_in_every_direction() {
        let to = |name: &str, rounding, x: f32| {
            let conversion = Conversion {
                from: ty("f32"),
                rounding,
                to_integer: true,
                saturate: false,
            };
            ty(name).widen(convert(conversion, ty(name), f(x)))
        };
        assert_eq!(to("s32", Rounding::Nearest, 2.5), 2);
        assert_eq!(to("s32", Rounding::Zero, -2.5), -2);
        assert_eq!(to("s32", Rounding::Down, -2.5), -3);
        assert_eq!(to("s32", Rounding::Up, 2.1), 3);
        assert_eq!(to("s32", Rounding::Zero, 1e20), i128::from(i32::MAX));
        assert_eq!(to("u32", Rounding::Zero, -1.0), 0);
        assert_eq!(to("s32", Rounding::Zero, f32::NAN), 0);
        // Above 2^24 not every integer is an f32.
        let big = (1 << 24) + 1;
        assert_eq!(
            integer_to_float(big, Rounding::Zero, ty("f32")),
            f(16_777_216.0)
        );
        assert_eq!(
            integer_to_float(big, Rounding::Up, ty("f32")),
            f(16_777_218.0)
        );
    }

    #[test]
    fn every_half_survives_a_round_trip() {
        let widen = Conversion {
            from: ty("f16"),
            rounding: Rounding::None,
            to_integer: false,
            saturate: false,
        };
        let narrow = Conversion {
            from: ty("f32"),
            rounding: Rounding::Nearest,
            ..widen
        };
        for bits in (0..=u64::from(u16::MAX)).filter(|&h| h & 0x7c00 != 0x7c00) {
            let wide = convert(widen, ty("f32"), bits);
            assert_eq!(convert(narrow, ty("f16"), wide), bits);
        }
    }
}
