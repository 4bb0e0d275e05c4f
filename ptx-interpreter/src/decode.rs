//! One line of PTX to an instruction.

use std::collections::HashMap;

use crate::instruction::{
    AtomicOp, Binary, Comparison, Constant, Conversion, Guard, Instruction, Op, Register, Relation,
    Rounding, Shuffle, Special, Ternary, Unary, Vote,
};
use crate::matrix::MatrixShape;
use crate::specialised::specialised;
use crate::types::{Space, Type};

/// Turns the lines of one kernel into instructions, numbering registers as they appear.
pub(crate) struct Decoder<'a> {
    symbols: &'a HashMap<String, u64>,
    labels: &'a HashMap<String, usize>,
    registers: HashMap<String, Register>,
    constants: Vec<Constant>,
}

/// Marks the number of a constant until all registers are known, behind which it lies.
const CONSTANT: Register = 1 << 31;

/// The parts of an opcode between its dots, and the operands as text.
struct Line<'t> {
    parts: Vec<&'t str>,
    args: Vec<&'t str>,
}

impl Line<'_> {
    fn has(&self, part: &str) -> bool {
        self.parts[1..].contains(&part)
    }

    fn types(&self) -> impl Iterator<Item = Type> + '_ {
        self.parts[1..].iter().filter_map(|part| Type::parse(part))
    }

    fn space(&self) -> Space {
        for part in &self.parts[1..] {
            // A qualifier such as `shared::cta` names the same memory.
            match part.split(':').next() {
                Some("global") => return Space::Global,
                Some("shared") => return Space::Shared,
                Some("local") => return Space::Local,
                Some("param") => return Space::Param,
                _ => {}
            }
        }
        Space::Generic
    }

    fn arg(&self, index: usize) -> Result<&str, String> {
        self.args
            .get(index)
            .copied()
            .ok_or_else(|| format!("operand {index} is missing"))
    }
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(
        symbols: &'a HashMap<String, u64>,
        labels: &'a HashMap<String, usize>,
    ) -> Self {
        Decoder {
            symbols,
            labels,
            registers: HashMap::new(),
            constants: Vec::new(),
        }
    }

    /// Ends a kernel, whose instructions get their constants behind its registers: the number of
    /// registers, the sink included, and the constants.
    pub(crate) fn finish(self, code: &mut [Instruction]) -> (usize, Vec<Constant>) {
        let registers = self.registers.len() + 1;
        for instruction in code {
            for operand in instruction.sources.iter_mut().chain(&mut instruction.parts) {
                if *operand & CONSTANT != 0 {
                    *operand = registers as Register + (*operand - CONSTANT);
                }
            }
        }
        (registers, self.constants)
    }

    fn constant(&mut self, constant: Constant) -> Register {
        let known = self.constants.iter().position(|it| *it == constant);
        let index = known.unwrap_or_else(|| {
            self.constants.push(constant);
            self.constants.len() - 1
        });
        CONSTANT + index as Register
    }

    pub(crate) fn decode(&mut self, text: &str, line_number: u32) -> Result<Instruction, String> {
        let (guard, text) = self.guard(text)?;
        let (opcode, args) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let line = Line {
            parts: opcode.split('.').collect(),
            args: split_arguments(args),
        };
        let mut instruction = Instruction {
            op: Op::Fence,
            compute: None,
            ty: line.types().next().unwrap_or(Type::U32),
            guard,
            destination: 0,
            second_destination: 0,
            sources: [0; 4],
            parts: Vec::new(),
            offset: 0,
            line: line_number,
        };
        self.fill(&line, &mut instruction)?;
        instruction.compute = specialised(&instruction.op, instruction.ty);
        Ok(instruction)
    }

    fn guard<'t>(&mut self, text: &'t str) -> Result<(Option<Guard>, &'t str), String> {
        let Some(rest) = text.strip_prefix('@') else {
            return Ok((None, text));
        };
        let (predicate, rest) = rest
            .split_once(char::is_whitespace)
            .ok_or("a guard without an instruction")?;
        let (negated, name) = match predicate.strip_prefix('!') {
            Some(name) => (true, name),
            None => (false, predicate),
        };
        Ok((Some((self.register(name), negated)), rest.trim()))
    }

    fn register(&mut self, name: &str) -> Register {
        let next = self.registers.len() as Register + 1;
        *self.registers.entry(name.to_string()).or_insert(next)
    }

    fn operand(&mut self, text: &str) -> Result<Register, String> {
        let axis = |rest: &str| match rest {
            "x" => Ok(0),
            "y" => Ok(1),
            "z" => Ok(2),
            _ => Err(format!("unknown axis {rest}")),
        };
        if let Some(name) = text.strip_prefix('%') {
            let special = match name.split_once('.') {
                Some(("tid", rest)) => Special::ThreadIndex(axis(rest)?),
                Some(("ntid", rest)) => Special::BlockSize(axis(rest)?),
                Some(("ctaid", rest)) => Special::BlockIndex(axis(rest)?),
                Some(("nctaid", rest)) => Special::GridSize(axis(rest)?),
                _ if name == "laneid" => Special::Lane,
                _ => return Ok(self.register(text)),
            };
            return Ok(self.constant(Constant::Special(special)));
        }
        // `_` is a destination that nobody wants.
        if text == "_" {
            return Ok(0);
        }
        let value = immediate(text).or_else(|| self.symbols.get(text).copied());
        let value = value.ok_or_else(|| format!("unknown operand {text}"))?;
        Ok(self.constant(Constant::Immediate(value)))
    }

    fn destination(&mut self, text: &str) -> Result<Register, String> {
        match self.operand(text)? {
            constant if constant & CONSTANT != 0 => Err(format!("{text} cannot be written")),
            register => Ok(register),
        }
    }

    /// The members of `{a, b}`, or the one operand, that are written.
    fn destinations(&mut self, text: &str) -> Result<Vec<Register>, String> {
        let vector = self.vector(text)?;
        if vector.iter().any(|operand| operand & CONSTANT != 0) {
            return Err(format!("{text} cannot be written"));
        }
        Ok(vector)
    }

    /// The members of `{a, b}`, or the one operand.
    fn vector(&mut self, text: &str) -> Result<Vec<Register>, String> {
        let inner = text.trim_start_matches('{').trim_end_matches('}');
        inner
            .split(',')
            .map(|part| self.operand(part.trim()))
            .collect()
    }

    /// Destination first, then sources.
    fn plain(&mut self, op: Op, line: &Line<'_>, to: &mut Instruction) -> Result<(), String> {
        to.op = op;
        to.destination = self.destination(line.arg(0)?)?;
        let sources = line.args.get(1..).unwrap_or_default();
        if sources.len() > to.sources.len() {
            return Err("too many operands".into());
        }
        for (slot, text) in to.sources.iter_mut().zip(sources) {
            *slot = self.operand(text)?;
        }
        Ok(())
    }

    /// `[base + offset]` into the first source and the offset.
    fn address(&mut self, text: &str, to: &mut Instruction) -> Result<(), String> {
        let inner = text.trim_start_matches('[').trim_end_matches(']');
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        to.sources[0] = self.operand(base.trim())?;
        to.offset = offset
            .trim()
            .parse()
            .map_err(|_| format!("offset {offset}"))?;
        Ok(())
    }

    fn fill(&mut self, line: &Line<'_>, to: &mut Instruction) -> Result<(), String> {
        let wide = line.has("wide");
        let high = line.has("hi");
        let name = line.parts[0];
        if let Some(op) = unary(name) {
            let is_vector = |index: usize| line.args.get(index).is_some_and(|a| a.starts_with('{'));
            if name == "mov" && is_vector(1) {
                to.op = Op::Pack;
                to.destination = self.destination(line.arg(0)?)?;
                to.parts = self.vector(line.arg(1)?)?;
                return Ok(());
            }
            if name == "mov" && is_vector(0) {
                to.op = Op::Unpack;
                to.parts = self.destinations(line.arg(0)?)?;
                to.sources[0] = self.operand(line.arg(1)?)?;
                return Ok(());
            }
            return self.plain(Op::Unary(op), line, to);
        }
        if let Some(op) = binary(name, wide, high) {
            return self.plain(Op::Binary(op), line, to);
        }
        if let Some(op) = ternary(name, line, wide, high) {
            if line.has("rm") || line.has("rp") || line.has("rz") {
                return Err("a directed rounding".into());
            }
            return self.plain(Op::Ternary(op), line, to);
        }
        match name {
            "bfi" => self.plain(Op::InsertBits, line, to),
            "cvta" => {
                let space = line.space();
                let op = if line.has("to") {
                    Op::FromGeneric(space)
                } else {
                    Op::ToGeneric(space)
                };
                self.plain(op, line, to)
            }
            "cvt" => {
                let conversion = conversion(line)?;
                self.plain(Op::Convert(conversion), line, to)
            }
            "setp" => {
                let comparison = comparison(line)?;
                to.ty = line.types().last().unwrap_or(Type::U32);
                self.plain(Op::Compare(comparison), line, to)
            }
            "bra" => {
                let label = line.arg(0)?;
                let target = self.labels.get(label);
                to.op = Op::Branch(*target.ok_or_else(|| format!("no label {label}"))?);
                Ok(())
            }
            "ret" | "exit" => {
                to.op = Op::Return;
                Ok(())
            }
            "bar" | "barrier" if line.has("warp") => {
                to.op = Op::WarpBarrier;
                to.sources[0] = self.operand(line.arg(0)?)?;
                Ok(())
            }
            "bar" | "barrier" => {
                if line.args.len() != 1 || line.arg(0)? != "0" || !line.has("sync") {
                    return Err("a barrier other than bar.sync 0".into());
                }
                to.op = Op::Barrier;
                Ok(())
            }
            "membar" | "fence" => Ok(()),
            "activemask" => self.plain(Op::ActiveMask, line, to),
            "ld" | "ldu" => {
                to.op = Op::Load(line.space());
                to.parts = self.destinations(line.arg(0)?)?;
                self.address(line.arg(1)?, to)
            }
            "st" => {
                to.op = Op::Store(line.space());
                self.address(line.arg(0)?, to)?;
                to.parts = self.vector(line.arg(1)?)?;
                Ok(())
            }
            "atom" | "red" => self.atomic(line, to),
            "shfl" => self.shuffle(line, to),
            "vote" => {
                let vote = match line.parts.get(2) {
                    Some(&"ballot") => Vote::Ballot,
                    Some(&"any") => Vote::Any,
                    Some(&"all") => Vote::All,
                    _ => return Err("unknown vote".into()),
                };
                self.plain(Op::Vote(vote), line, to)
            }
            "mma" => self.matrix_multiply(line, to),
            _ => Err("unknown instruction".into()),
        }
    }

    fn atomic(&mut self, line: &Line<'_>, to: &mut Instruction) -> Result<(), String> {
        let op = line.parts[1..].iter().find_map(|part| {
            Some(match *part {
                "add" => AtomicOp::Add,
                "and" => AtomicOp::And,
                "or" => AtomicOp::Or,
                "xor" => AtomicOp::Xor,
                "min" => AtomicOp::Minimum,
                "max" => AtomicOp::Maximum,
                "exch" => AtomicOp::Exchange,
                "cas" => AtomicOp::CompareExchange,
                _ => return None,
            })
        });
        to.op = Op::Atomic(op.ok_or("unknown atomic")?, line.space());
        let first = usize::from(line.parts[0] == "atom");
        if first == 1 {
            to.destination = self.destination(line.arg(0)?)?;
        }
        self.address(line.arg(first)?, to)?;
        for (slot, text) in to.sources[1..].iter_mut().zip(&line.args[first + 1..]) {
            *slot = self.operand(text)?;
        }
        Ok(())
    }

    /// Products of signed bytes.
    fn matrix_multiply(&mut self, line: &Line<'_>, to: &mut Instruction) -> Result<(), String> {
        let shape = match line.parts[1..] {
            [
                "sync",
                "aligned",
                shape,
                "row",
                "col",
                "s32",
                "s8",
                "s8",
                "s32",
            ] => MatrixShape::parse(shape),
            _ => None,
        };
        let shape = shape.ok_or("a matrix product other than of bytes")?;
        let [a, b, c] = [
            shape.a_registers(),
            shape.b_registers(),
            shape.c_registers(),
        ];
        if line.args.len() != 4 {
            return Err("a matrix product has four operands".into());
        }
        for (text, registers) in line.args.iter().zip([c, a, b, c]) {
            let parts = self.vector(text)?;
            if parts.len() != registers {
                return Err(format!("{} registers for {registers}", parts.len()));
            }
            to.parts.extend(parts);
        }
        if to.parts[..c].iter().any(|part| part & CONSTANT != 0) {
            return Err("the result cannot be written".into());
        }
        to.op = Op::MatrixMultiply(shape);
        Ok(())
    }

    fn shuffle(&mut self, line: &Line<'_>, to: &mut Instruction) -> Result<(), String> {
        let mode = match line.parts.get(2) {
            Some(&"idx") => Shuffle::Index,
            Some(&"up") => Shuffle::Up,
            Some(&"down") => Shuffle::Down,
            Some(&"bfly") => Shuffle::Butterfly,
            _ => return Err("unknown shuffle".into()),
        };
        to.op = Op::Shuffle(mode);
        let (value, exists) = line.arg(0)?.split_once('|').unwrap_or((line.arg(0)?, "_"));
        to.destination = self.destination(value.trim())?;
        to.second_destination = self.destination(exists.trim())?;
        for (slot, text) in to.sources.iter_mut().zip(&line.args[1..]) {
            *slot = self.operand(text)?;
        }
        Ok(())
    }
}

/// Cuts at commas outside brackets.
fn split_arguments(text: &str) -> Vec<&str> {
    let (mut args, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                args.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        args.push(text[start..].trim());
    }
    args
}

fn immediate(text: &str) -> Option<u64> {
    let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
    if let Some(digits) = text.strip_prefix("0f").or(text.strip_prefix("0F")) {
        return hex(digits);
    }
    if let Some(digits) = text.strip_prefix("0d").or(text.strip_prefix("0D")) {
        return hex(digits);
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return hex(digits.trim_end_matches('U'));
    }
    let signed = text.parse::<i64>().map(i64::cast_unsigned);
    signed.or_else(|_| text.parse::<u64>()).ok()
}

fn unary(name: &str) -> Option<Unary> {
    Some(match name {
        "mov" => Unary::Move,
        "neg" => Unary::Negate,
        "abs" => Unary::Absolute,
        "not" => Unary::Not,
        "sqrt" => Unary::SquareRoot,
        "rsqrt" => Unary::ReciprocalSquareRoot,
        "rcp" => Unary::Reciprocal,
        "ex2" => Unary::Exp2,
        "lg2" => Unary::Log2,
        "sin" => Unary::Sine,
        "cos" => Unary::Cosine,
        "popc" => Unary::CountOnes,
        "clz" => Unary::LeadingZeros,
        "brev" => Unary::ReverseBits,
        _ => return None,
    })
}

fn binary(name: &str, wide: bool, high: bool) -> Option<Binary> {
    Some(match name {
        "add" => Binary::Add,
        "sub" => Binary::Subtract,
        "mul" if wide => Binary::MultiplyWide,
        "mul" if high => Binary::MultiplyHigh,
        "mul" => Binary::Multiply,
        "div" => Binary::Divide,
        "rem" => Binary::Remainder,
        "min" => Binary::Minimum,
        "max" => Binary::Maximum,
        "and" => Binary::And,
        "or" => Binary::Or,
        "xor" => Binary::Xor,
        "shl" => Binary::ShiftLeft,
        "shr" => Binary::ShiftRight,
        _ => return None,
    })
}

fn ternary(name: &str, line: &Line<'_>, wide: bool, high: bool) -> Option<Ternary> {
    Some(match name {
        "fma" => Ternary::FusedMultiplyAdd,
        "mad" if line.types().next().is_some_and(Type::is_float) => Ternary::FusedMultiplyAdd,
        "mad" if wide => Ternary::MultiplyAddWide,
        "mad" if high => Ternary::MultiplyAddHigh,
        "mad" => Ternary::MultiplyAdd,
        "selp" => Ternary::Select,
        "prmt" if line.parts.len() == 2 => Ternary::PermuteBytes,
        "dp4a" => Ternary::Dot4,
        "bfe" => Ternary::ExtractBits,
        "shf" if line.has("l") && line.has("wrap") => Ternary::FunnelLeft,
        "shf" if line.has("r") && line.has("wrap") => Ternary::FunnelRight,
        _ => return None,
    })
}

fn conversion(line: &Line<'_>) -> Result<Conversion, String> {
    let types: Vec<Type> = line.types().collect();
    let [to, from] = types[..] else {
        return Err("a conversion has two types".into());
    };
    let mut rounding = Rounding::None;
    let mut to_integer = !to.is_float();
    for part in &line.parts[1..] {
        (rounding, to_integer) = match *part {
            "rn" => (Rounding::Nearest, to_integer),
            "rz" => (Rounding::Zero, to_integer),
            "rm" => (Rounding::Down, to_integer),
            "rp" => (Rounding::Up, to_integer),
            "rni" => (Rounding::Nearest, true),
            "rzi" => (Rounding::Zero, true),
            "rmi" => (Rounding::Down, true),
            "rpi" => (Rounding::Up, true),
            _ => (rounding, to_integer),
        };
    }
    let narrows = from.is_float() && to.is_float() && to.bits < from.bits;
    if narrows && !matches!(rounding, Rounding::Nearest) {
        return Err("a directed rounding".into());
    }
    Ok(Conversion {
        from,
        rounding,
        to_integer,
        saturate: line.has("sat"),
    })
}

fn comparison(line: &Line<'_>) -> Result<Comparison, String> {
    let name = line.parts.get(1).copied().unwrap_or_default();
    let (base, or_nan) = match name.strip_suffix('u') {
        Some(base) => (base, true),
        None => (name, false),
    };
    let relation = match base {
        "eq" => Relation::Equal,
        "ne" => Relation::NotEqual,
        "lt" | "lo" => Relation::Less,
        "le" | "ls" => Relation::LessEqual,
        "gt" | "hi" => Relation::Greater,
        "ge" | "hs" => Relation::GreaterEqual,
        "num" => Relation::Ordered,
        "nan" => Relation::Unordered,
        _ => return Err("unknown comparison".into()),
    };
    let join = match line.parts.get(2).copied() {
        Some("and") => Some(Binary::And),
        Some("or") => Some(Binary::Or),
        Some("xor") => Some(Binary::Xor),
        _ => None,
    };
    Ok(Comparison {
        relation,
        or_nan,
        join,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Result<Instruction, String> {
        let symbols = HashMap::from([("param_0".to_string(), 8)]);
        let labels = HashMap::from([("$L".to_string(), 3)]);
        Decoder::new(&symbols, &labels).decode(text, 1)
    }

    #[test]
    fn addresses_vectors_and_guards() {
        let load = decode("ld.global.nc.v2.f32 {%f1, %f2}, [%rd1+-16]").unwrap();
        assert_eq!(load.op, Op::Load(Space::Global));
        assert_eq!((load.parts.len(), load.offset), (2, -16));
        let param = decode("ld.param.u64 %rd1, [param_0]").unwrap();
        assert_eq!(param.sources[0], CONSTANT);
        let jump = decode("@!%p1 bra $L").unwrap();
        assert_eq!(jump.op, Op::Branch(3));
        assert!(jump.guard.is_some_and(|(_, negated)| negated));
        let shuffle = decode("shfl.sync.bfly.b32 %r1|%p1, %r2, 8, 31, -1").unwrap();
        assert!(shuffle.is_collective() && shuffle.second_destination != 0);
    }

    #[test]
    fn constants_lie_behind_the_registers() {
        let (symbols, labels) = (HashMap::new(), HashMap::new());
        let mut decoder = Decoder::new(&symbols, &labels);
        let lines = ["add.s32 %r1, %tid.x, 7", "mad.lo.s32 %r2, %r1, 7, %r3"];
        let mut code = lines.map(|line| decoder.decode(line, 1).unwrap());
        let (registers, constants) = decoder.finish(&mut code);
        assert_eq!(registers, 4);
        let tid = Constant::Special(Special::ThreadIndex(0));
        assert_eq!(constants, [tid, Constant::Immediate(7)]);
        assert_eq!(code[0].sources, [4, 5, 0, 0]);
        assert_eq!(code[1].sources[1], 5);
        let mut decoder = Decoder::new(&symbols, &labels);
        assert!(decoder.decode("ld.global.u32 7, [%rd1]", 1).is_err());
    }

    #[test]
    fn matrix_products_name_all_their_registers() {
        let product = decode(
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 \
             {%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%r1, %r2, %r3, %r4}",
        )
        .unwrap();
        assert!(product.is_collective());
        assert_eq!(product.mask(), None);
        assert_eq!(product.parts.len(), 14);
        assert_eq!(product.parts[..4], product.parts[10..]);
    }

    #[test]
    fn comparisons_name_how_nan_counts() {
        let Op::Compare(c) = decode("setp.neu.and.f32 %p1, %f1, %f2, %p2").unwrap().op else {
            panic!("a comparison");
        };
        assert_eq!(
            (c.relation, c.or_nan, c.join),
            (Relation::NotEqual, true, Some(Binary::And))
        );
        assert!(decode("setp.zz.s32 %p1, %r1, %r2").is_err());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            "bar.sync 1",
            "fma.rm.f32 %f1, %f2, %f3, %f4",
            "cvt.rz.f16.f32 %h1, %f1",
            "mma.sync.aligned %r1, %r2",
            "mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%r1, %r2}, {%r3}, {%r4}, {%r1, %r2}",
            "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r1, %r2}, {%r3, %r5}, {%r4}, {%r1, %r2}",
            "mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%r1, %r2}, {%r3}, {%r4}, {%r1, %r2}",
            "add.s32 %r1, %r2, nowhere",
            "bra $nowhere",
        ] {
            assert!(decode(text).is_err(), "{text}");
        }
    }
}
