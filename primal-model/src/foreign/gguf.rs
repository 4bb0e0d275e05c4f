//! GGUF, the model file of llama.cpp: reader and writer.
//!
//! All numbers are little-endian. A file is, end to end:
//!
//! | part | content |
//! |---|---|
//! | magic | the bytes `GGUF` |
//! | version | u32, 2 or 3; both have 64-bit counts |
//! | counts | u64 tensors, u64 metadata pairs |
//! | pairs | key (string), u32 type of the value, value |
//! | tensors | name (string), u32 dimensions, u64 each, u32 type, u64 offset into the data |
//! | padding | zeros up to a multiple of `general.alignment` (32 where it is not given) |
//! | data | each tensor at its offset, which is a multiple of the alignment |
//!
//! A string is a u64 length and UTF-8. An array is a u32 type of its elements, a u64 count and
//! the elements. Dimensions count from the fastest: a matrix of (rows, cols) is stored as
//! `[cols, rows]`. What a type of tensor stores in a block is in the `blocks` module. Source: the
//! specification in the ggml repository, `docs/gguf.md`.

mod blocks;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use blocks::TensorType;
pub use read::{GgufFile, TensorInfo};
pub use write::{GgufWriter, Started};

const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;

/// The value of a metadata key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number or truth value.
    Scalar(Scalar),
    /// Text.
    String(String),
    /// A list.
    Array(Array),
}

/// A number or truth value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    /// Any of the integer types; all of them fit.
    Integer(ScalarType, i128),
    /// f32 or f64.
    Float(ScalarType, f64),
    /// A truth value.
    Bool(bool),
}

/// A list of equal types. Numbers stay in the bytes of the file, so that a list takes no more
/// memory than it takes there.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Numbers or truth values, little-endian, end to end.
    Scalars(ScalarType, Vec<u8>),
    /// Texts.
    Strings(Vec<String>),
    /// Lists.
    Arrays(Vec<Array>),
}

/// The types of a [`Scalar`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarType {
    /// 8 bits, unsigned.
    U8,
    /// 8 bits, signed.
    I8,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    I16,
    /// 32 bits, unsigned.
    U32,
    /// 32 bits, signed.
    I32,
    /// 32 bits, floating.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// 64 bits, unsigned.
    U64,
    /// 64 bits, signed.
    I64,
    /// 64 bits, floating.
    F64,
}

const STRING_TYPE: u32 = 8;
const ARRAY_TYPE: u32 = 9;

impl ScalarType {
    /// Every type with its number in the file.
    const ALL: [(u32, ScalarType); 11] = [
        (0, ScalarType::U8),
        (1, ScalarType::I8),
        (2, ScalarType::U16),
        (3, ScalarType::I16),
        (4, ScalarType::U32),
        (5, ScalarType::I32),
        (6, ScalarType::F32),
        (7, ScalarType::Bool),
        (10, ScalarType::U64),
        (11, ScalarType::I64),
        (12, ScalarType::F64),
    ];

    fn from_id(id: u32) -> Option<ScalarType> {
        let found = ScalarType::ALL.iter().find(|(known, _)| *known == id);
        found.map(|(_, scalar)| *scalar)
    }

    fn id(self) -> u32 {
        let found = ScalarType::ALL.iter().find(|(_, scalar)| *scalar == self);
        found.map_or(0, |(id, _)| *id)
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            ScalarType::U8 | ScalarType::I8 | ScalarType::Bool => 1,
            ScalarType::U16 | ScalarType::I16 => 2,
            ScalarType::U32 | ScalarType::I32 | ScalarType::F32 => 4,
            ScalarType::U64 | ScalarType::I64 | ScalarType::F64 => 8,
        }
    }

    /// The value of exactly `self.bytes()` bytes; `None` for a truth value that is neither 0 nor 1.
    fn decode(self, bytes: &[u8]) -> Option<Scalar> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        let integer = |value: i128| Some(Scalar::Integer(self, value));
        match self {
            ScalarType::U8 | ScalarType::U16 | ScalarType::U32 | ScalarType::U64 => {
                integer(bits.into())
            }
            ScalarType::I8 => integer((bits as u8).cast_signed().into()),
            ScalarType::I16 => integer((bits as u16).cast_signed().into()),
            ScalarType::I32 => integer((bits as u32).cast_signed().into()),
            ScalarType::I64 => integer(bits.cast_signed().into()),
            ScalarType::F32 => Some(Scalar::Float(self, f32::from_bits(bits as u32).into())),
            ScalarType::F64 => Some(Scalar::Float(self, f64::from_bits(bits))),
            ScalarType::Bool => (bits <= 1).then_some(Scalar::Bool(bits == 1)),
        }
    }
}

impl Scalar {
    fn scalar_type(self) -> ScalarType {
        match self {
            Scalar::Integer(kind, _) | Scalar::Float(kind, _) => kind,
            Scalar::Bool(_) => ScalarType::Bool,
        }
    }

    /// The bytes of the file.
    fn encode(self, to: &mut Vec<u8>) {
        let bytes = match self {
            Scalar::Integer(_, value) => (value as u64).to_le_bytes(),
            Scalar::Float(ScalarType::F32, value) => {
                u64::from((value as f32).to_bits()).to_le_bytes()
            }
            Scalar::Float(_, value) => value.to_bits().to_le_bytes(),
            Scalar::Bool(value) => u64::from(value).to_le_bytes(),
        };
        to.extend(&bytes[..self.scalar_type().bytes()]);
    }
}

impl Value {
    /// A whole number of 32 bits, the usual type of sizes.
    pub fn u32(value: u32) -> Value {
        Value::Scalar(Scalar::Integer(ScalarType::U32, value.into()))
    }

    /// A number of 32 bits.
    pub fn f32(value: f32) -> Value {
        Value::Scalar(Scalar::Float(ScalarType::F32, value.into()))
    }

    /// A truth value.
    pub fn bool(value: bool) -> Value {
        Value::Scalar(Scalar::Bool(value))
    }

    /// A list of i32.
    pub fn i32s(values: &[i32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Value::Array(Array::Scalars(ScalarType::I32, bytes.collect()))
    }

    /// A list of f32.
    pub fn f32s(values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Value::Array(Array::Scalars(ScalarType::F32, bytes.collect()))
    }

    /// A list of texts.
    pub fn strings(values: Vec<String>) -> Value {
        Value::Array(Array::Strings(values))
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number, if it is one that is whole and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Scalar(Scalar::Integer(_, value)) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Scalar(Scalar::Integer(_, value)) => Some(*value as f64),
            Value::Scalar(Scalar::Float(_, value)) => Some(*value),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Scalar(Scalar::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// The texts, if it is a list of them.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::Strings(texts)) => Some(texts),
            _ => None,
        }
    }

    /// The numbers, if it is a list of them.
    pub fn as_numbers(&self) -> Option<Vec<f64>> {
        let Value::Array(Array::Scalars(kind, bytes)) = self else {
            return None;
        };
        bytes
            .chunks_exact(kind.bytes())
            .map(|bytes| match kind.decode(bytes)? {
                Scalar::Integer(_, value) => Some(value as f64),
                Scalar::Float(_, value) => Some(value),
                Scalar::Bool(_) => None,
            })
            .collect()
    }
}
