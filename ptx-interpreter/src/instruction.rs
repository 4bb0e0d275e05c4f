//! Decoded instructions.

use crate::matrix::MatrixShape;
use crate::specialised::Compute;
use crate::types::{Space, Type};

/// Index of a value of a thread: first its registers, of which 0 is a sink that nobody reads, then
/// the kernel's constants. So an operand of any kind is read alike.
pub(crate) type Register = u32;

/// A value that no instruction sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Constant {
    Immediate(u64),
    Special(Special),
}

/// Registers that say where a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special {
    ThreadIndex(u8),
    BlockSize(u8),
    BlockIndex(u8),
    GridSize(u8),
    Lane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unary {
    Move,
    Negate,
    Absolute,
    Not,
    SquareRoot,
    ReciprocalSquareRoot,
    Reciprocal,
    Exp2,
    Log2,
    Sine,
    Cosine,
    CountOnes,
    LeadingZeros,
    ReverseBits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Subtract,
    Multiply,
    MultiplyHigh,
    MultiplyWide,
    Divide,
    Remainder,
    Minimum,
    Maximum,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ternary {
    MultiplyAdd,
    MultiplyAddHigh,
    MultiplyAddWide,
    FusedMultiplyAdd,
    Select,
    PermuteBytes,
    Dot4,
    ExtractBits,
    FunnelLeft,
    FunnelRight,
}

/// How a conversion rounds; `None` where no rounding can be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rounding {
    None,
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conversion {
    pub(crate) from: Type,
    pub(crate) rounding: Rounding,
    /// Whether the result is an integer, kept in the type's float format.
    pub(crate) to_integer: bool,
    pub(crate) saturate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// Both are numbers.
    Ordered,
    /// One is NaN.
    Unordered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub(crate) relation: Relation,
    /// Whether NaN makes it true.
    pub(crate) or_nan: bool,
    /// How it is joined with a further predicate, if there is one.
    pub(crate) join: Option<Binary>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Index,
    Up,
    Down,
    Butterfly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    Ballot,
    Any,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Minimum,
    Maximum,
    Exchange,
    CompareExchange,
}

/// What an instruction does with its operands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Op {
    Unary(Unary),
    Binary(Binary),
    Ternary(Ternary),
    InsertBits,
    Convert(Conversion),
    Compare(Comparison),
    /// Joins the parts, lowest first, into one register.
    Pack,
    /// Cuts the first source into the parts.
    Unpack,
    /// From the window of a space to a generic address.
    ToGeneric(Space),
    /// From a generic address into the window of a space.
    FromGeneric(Space),
    Branch(usize),
    Return,
    Barrier,
    /// `bar.warp.sync`; the mask is the first source.
    WarpBarrier,
    Fence,
    ActiveMask,
    Load(Space),
    Store(Space),
    Atomic(AtomicOp, Space),
    /// Value, lane, clamp and mask are the sources; the second destination says whether the lane
    /// existed.
    Shuffle(Shuffle),
    /// Predicate and mask are the sources.
    Vote(Vote),
    /// `mma.sync`; the parts are the registers of the result and of its three operands, in order.
    MatrixMultiply(MatrixShape),
}

/// Only where the predicate register is true (or, with the flag, false).
pub(crate) type Guard = (Register, bool);

/// One instruction.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// The operation as one function, where there is one.
    pub(crate) compute: Option<Compute>,
    pub(crate) ty: Type,
    pub(crate) guard: Option<Guard>,
    pub(crate) destination: Register,
    pub(crate) second_destination: Register,
    pub(crate) sources: [Register; 4],
    /// Elements of a vector access, of a pack or an unpack, or of matrices.
    pub(crate) parts: Vec<Register>,
    /// Added to the address in the first source.
    pub(crate) offset: i64,
    /// 1-based line of the PTX.
    pub(crate) line: u32,
}

impl Instruction {
    /// Whether all lanes of a mask must be here together.
    pub(crate) fn is_collective(&self) -> bool {
        matches!(
            self.op,
            Op::Shuffle(_) | Op::Vote(_) | Op::WarpBarrier | Op::MatrixMultiply(_)
        )
    }

    /// The mask of a collective; `None` of the whole warp.
    pub(crate) fn mask(&self) -> Option<Register> {
        match self.op {
            Op::Shuffle(_) => Some(self.sources[3]),
            Op::Vote(_) => Some(self.sources[1]),
            // `.aligned`
            Op::MatrixMultiply(_) => None,
            _ => Some(self.sources[0]),
        }
    }
}
