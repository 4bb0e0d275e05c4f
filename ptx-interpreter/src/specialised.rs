//! The operations that kernels are mostly made of, each as a function of its own: with operation and
//! type known to the compiler, `arithmetic`'s functions shrink to a few instructions.

use crate::arithmetic::{ternary, total_binary, unary};
use crate::instruction::{Binary, Op, Ternary, Unary};
use crate::types::Type;

/// From the values of the first three sources to the value of the destination.
pub(crate) type Compute = fn(u64, u64, u64) -> u64;

/// The function of an operation on a type, for the common ones.
pub(crate) fn specialised(op: &Op, ty: Type) -> Option<Compute> {
    macro_rules! table {
        ($($kind:ident::$name:ident: $($ty:ident)*;)*) => {
            $($(
                if *op == Op::$kind($kind::$name) && ty == Type::$ty {
                    return Some(|a, b, c| table!(@$kind $name, $ty, a, b, c));
                }
            )*)*
        };
        (@Unary $name:ident, $ty:ident, $a:ident, $b:ident, $c:ident) => {{
            let _ = ($b, $c);
            unary(Unary::$name, Type::$ty, $a)
        }};
        (@Binary $name:ident, $ty:ident, $a:ident, $b:ident, $c:ident) => {{
            let _ = $c;
            total_binary(Binary::$name, Type::$ty, $a, $b)
        }};
        (@Ternary $name:ident, $ty:ident, $a:ident, $b:ident, $c:ident) => {
            ternary(Ternary::$name, Type::$ty, [$a, $b, $c])
        };
    }
    table! {
        Unary::Move: PREDICATE U16 U32 S32 U64 S64 F32 F64;
        Unary::Negate: S32 S64 F32 F64;
        Unary::Absolute: S32 F32 F64;
        Unary::Not: PREDICATE U32 U64;
        Unary::CountOnes: U32;
        Binary::Add: U16 S16 U32 S32 U64 S64 F32 F64;
        Binary::Subtract: U16 S16 U32 S32 U64 S64 F32 F64;
        Binary::Multiply: U16 S16 U32 S32 U64 S64 F32 F64;
        Binary::MultiplyWide: U16 S16 U32 S32;
        Binary::MultiplyHigh: U32 S32;
        Binary::Minimum: U32 S32 S64 F32;
        Binary::Maximum: U32 S32 S64 F32;
        Binary::And: PREDICATE U16 U32 U64;
        Binary::Or: PREDICATE U16 U32 U64;
        Binary::Xor: PREDICATE U16 U32 U64;
        Binary::ShiftLeft: U16 U32 U64;
        Binary::ShiftRight: U16 S16 U32 S32 U64 S64;
        Ternary::MultiplyAdd: U32 S32 U64 S64;
        Ternary::MultiplyAddWide: U32 S32;
        Ternary::FusedMultiplyAdd: F32 F64;
        Ternary::Select: U16 U32 S32 U64 F32 F64;
        Ternary::PermuteBytes: U32;
        Ternary::Dot4: U32 S32;
        Ternary::ExtractBits: U32 S32;
        Ternary::FunnelLeft: U32;
        Ternary::FunnelRight: U32;
    }
    None
}
