//! PTX types, and how their values lie in 64-bit registers: truncated, zeros above.

/// What the bits of a value mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unsigned,
    Signed,
    Float,
    Predicate,
}

/// A fundamental type of PTX; untyped bits count as unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) kind: Kind,
    pub(crate) bits: u32,
}

impl Type {
    pub(crate) const PREDICATE: Type = Type::new(Kind::Predicate, 8);
    pub(crate) const U16: Type = Type::new(Kind::Unsigned, 16);
    pub(crate) const U32: Type = Type::new(Kind::Unsigned, 32);
    pub(crate) const U64: Type = Type::new(Kind::Unsigned, 64);
    pub(crate) const S16: Type = Type::new(Kind::Signed, 16);
    pub(crate) const S32: Type = Type::new(Kind::Signed, 32);
    pub(crate) const S64: Type = Type::new(Kind::Signed, 64);
    pub(crate) const F32: Type = Type::new(Kind::Float, 32);
    pub(crate) const F64: Type = Type::new(Kind::Float, 64);

    const fn new(kind: Kind, bits: u32) -> Type {
        Type { kind, bits }
    }

    /// The type that `name`, without its dot, names.
    pub(crate) fn parse(name: &str) -> Option<Type> {
        let (kind, bits) = match name {
            "pred" => (Kind::Predicate, 8),
            "u8" | "b8" => (Kind::Unsigned, 8),
            "u16" | "b16" => (Kind::Unsigned, 16),
            "u32" | "b32" => (Kind::Unsigned, 32),
            "u64" | "b64" => (Kind::Unsigned, 64),
            "s8" => (Kind::Signed, 8),
            "s16" => (Kind::Signed, 16),
            "s32" => (Kind::Signed, 32),
            "s64" => (Kind::Signed, 64),
            "f16" => (Kind::Float, 16),
            "f32" => (Kind::Float, 32),
            "f64" => (Kind::Float, 64),
            _ => return None,
        };
        Some(Type { kind, bits })
    }

    pub(crate) fn bytes(self) -> usize {
        self.bits as usize / 8
    }

    pub(crate) fn is_float(self) -> bool {
        self.kind == Kind::Float
    }

    pub(crate) fn is_signed(self) -> bool {
        self.kind == Kind::Signed
    }

    /// The low bits that the type has.
    pub(crate) fn truncate(self, value: u64) -> u64 {
        match (self.kind, self.bits) {
            (Kind::Predicate, _) => value & 1,
            (_, 64) => value,
            (_, bits) => value & ((1 << bits) - 1),
        }
    }

    /// The value with its sign spread to 64 bits.
    pub(crate) fn sign_extend(self, value: u64) -> i64 {
        let unused = 64 - self.bits;
        (value << unused).cast_signed() >> unused
    }

    /// The low bits that the type has, with its sign above them if it has one.
    pub(crate) fn extend(self, value: u64) -> u64 {
        if self.is_signed() {
            self.sign_extend(value).cast_unsigned()
        } else {
            self.truncate(value)
        }
    }

    /// The value as the type reads it: sign-extended or not.
    pub(crate) fn widen(self, value: u64) -> i128 {
        if self.is_signed() {
            self.sign_extend(value).into()
        } else {
            self.truncate(value).into()
        }
    }
}

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// Generic addresses of shared memory begin here; global buffers lie above both windows.
pub(crate) const SHARED_WINDOW: u64 = 1 << 32;
/// Generic addresses of a thread's local memory begin here.
pub(crate) const LOCAL_WINDOW: u64 = 2 << 32;
/// Bytes of a window.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_truncated_and_extended() {
        let s8 = Type::parse("s8").unwrap();
        assert_eq!(s8.truncate(0x1ff), 0xff);
        assert_eq!(s8.sign_extend(0x80), -128);
        assert_eq!(s8.widen(0x80), -128);
        assert_eq!(Type::parse("u8").unwrap().widen(0x80), 128);
        assert_eq!(Type::parse("b64").unwrap().truncate(u64::MAX), u64::MAX);
        assert_eq!(Type::parse("pred").unwrap().truncate(3), 1);
        assert!(Type::parse("bf16").is_none());
    }
}
