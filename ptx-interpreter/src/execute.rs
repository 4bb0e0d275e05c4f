//! One thread, instruction by instruction, until it ends or must wait.

use crate::arithmetic::{
    atomic, binary, compare, convert, insert_bits, is_predicate, join, ternary, unary,
};
use crate::block::MAX_INSTRUCTIONS;
use crate::error::Fault;
use crate::instruction::{AtomicOp, Constant, Instruction, Op, Register, Special};
use crate::launch::{Counts, Launch};
use crate::memory::{Bytes, Memory};
use crate::parse::Kernel;
use crate::profile::Profile;
use crate::shadow::{Access, Place, Shadow};
use crate::types::{LOCAL_WINDOW, SHARED_WINDOW, Space, WINDOW_BYTES};

/// What the threads of a block have in common.
pub(crate) struct Context<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) params: Vec<u8>,
    pub(crate) sizes: Launch,
    pub(crate) block: [u32; 3],
    pub(crate) shared: Bytes,
    pub(crate) shared_shadow: Shadow,
    /// Barriers passed.
    pub(crate) epoch: u32,
    /// Number of the block within the launch, from 1.
    pub(crate) run: u32,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    No,
    Barrier,
    Collective,
    Ended,
}

pub(crate) struct Thread {
    /// Next instruction; of a waiting thread, the one it waits at.
    pub(crate) pc: usize,
    pub(crate) waiting: Waiting,
    /// (x, y, z) in the block, and linear.
    pub(crate) index: [u32; 3],
    linear: u32,
    registers: Vec<u64>,
    local: Bytes,
    /// See [`Place`].
    pub(crate) collective: u32,
    pub(crate) mask: u32,
    pub(crate) whole_warp: u32,
}

impl Thread {
    pub(crate) fn new(linear: u32, index: [u32; 3], kernel: &Kernel) -> Self {
        Thread {
            pc: 0,
            waiting: Waiting::No,
            index,
            linear,
            registers: vec![0; kernel.registers + kernel.constants.len()],
            local: Bytes::new(kernel.local_bytes),
            collective: 0,
            mask: 0,
            whole_warp: 0,
        }
    }

    pub(crate) fn restart(&mut self, context: &Context<'_>) {
        self.pc = 0;
        self.waiting = Waiting::No;
        let (registers, constants) = self.registers.split_at_mut(context.kernel.registers);
        // A register that is read before it is set makes results visibly wrong.
        registers.fill(0xdead_beef_dead_beef);
        for (value, constant) in constants.iter_mut().zip(&context.kernel.constants) {
            *value = match *constant {
                Constant::Immediate(value) => value,
                Constant::Special(special) => u64::from(match special {
                    Special::ThreadIndex(axis) => self.index[axis as usize],
                    Special::BlockSize(axis) => context.sizes.block[axis as usize],
                    Special::BlockIndex(axis) => context.block[axis as usize],
                    Special::GridSize(axis) => context.sizes.grid[axis as usize],
                    Special::Lane => self.linear % 32,
                }),
            };
        }
        self.local.clear();
        (self.collective, self.mask, self.whole_warp) = (0, 0, 0);
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, register: Register, value: u64) {
        self.registers[register as usize] = value;
    }

    #[inline(always)]
    pub(crate) fn value(&self, operand: Register) -> u64 {
        self.registers[operand as usize]
    }

    /// Runs until the thread ends or waits, for at most `most` instructions; returns their number.
    pub(crate) fn run(
        &mut self,
        context: &mut Context<'_>,
        memory: &mut Memory,
        counts: &mut Counts,
        profile: &mut Profile,
        most: u64,
    ) -> Result<u64, Fault> {
        let code = &context.kernel.code;
        let mut done = 0;
        loop {
            // A body without a final `ret` ends at its brace.
            let Some(instruction) = code.get(self.pc) else {
                self.waiting = Waiting::Ended;
                return Ok(done);
            };
            if done == most {
                return Err(Fault::Endless(MAX_INSTRUCTIONS));
            }
            done += 1;
            if let Some((predicate, negated)) = instruction.guard
                && (self.registers[predicate as usize] & 1 != 0) == negated
            {
                profile.passed_over[self.pc] += 1;
                self.pc += 1;
                continue;
            }
            profile.executed[self.pc] += 1;
            if let Some(compute) = instruction.compute {
                let [a, b, c, _] = instruction.sources;
                let result = compute(self.value(a), self.value(b), self.value(c));
                self.set(instruction.destination, result);
                self.pc += 1;
                continue;
            }
            match &instruction.op {
                Op::Branch(target) => {
                    self.pc = *target;
                    continue;
                }
                Op::Return => {
                    self.waiting = Waiting::Ended;
                    return Ok(done);
                }
                Op::Barrier => {
                    self.waiting = Waiting::Barrier;
                    return Ok(done);
                }
                _ if instruction.is_collective() => {
                    self.waiting = Waiting::Collective;
                    return Ok(done);
                }
                Op::Load(space) => self.load(*space, instruction, context, memory, counts)?,
                Op::Store(space) => self.store(*space, instruction, context, memory, counts)?,
                Op::Atomic(op, space) => {
                    self.atomic((*op, *space), instruction, context, memory, counts)?;
                }
                _ => self.compute(instruction)?,
            }
            self.pc += 1;
        }
    }

    /// Instructions that touch registers alone.
    #[inline]
    fn compute(&mut self, instruction: &Instruction) -> Result<(), Fault> {
        let ty = instruction.ty;
        let source = |i: usize| self.value(instruction.sources[i]);
        let result = match &instruction.op {
            Op::Unary(op) => unary(*op, ty, source(0)),
            Op::Binary(op) => binary(*op, ty, source(0), source(1))?,
            Op::Ternary(op) => ternary(*op, ty, [source(0), source(1), source(2)]),
            Op::InsertBits => insert_bits(ty, source(0), source(1), source(2), source(3)),
            Op::Convert(conversion) => convert(*conversion, ty, source(0)),
            Op::Compare(comparison) => {
                let holds = if is_predicate(ty) {
                    false
                } else {
                    compare(*comparison, ty, source(0), source(1))
                };
                u64::from(join(comparison.join, holds, source(2) & 1 == 1))
            }
            Op::Pack => {
                let bits = ty.bits / instruction.parts.len() as u32;
                let mask = u64::MAX >> (64 - bits);
                let parts = instruction.parts.iter().rev();
                parts.fold(0, |whole, &part| {
                    whole << (bits % 64) | self.value(part) & mask
                })
            }
            Op::Unpack => {
                let bits = ty.bits / instruction.parts.len() as u32;
                let mask = u64::MAX >> (64 - bits);
                let whole = source(0);
                for (i, &part) in instruction.parts.iter().enumerate() {
                    self.set(part, whole >> (i as u32 * bits) & mask);
                }
                return Ok(());
            }
            Op::ToGeneric(space) => source(0).wrapping_add(window(*space)),
            Op::FromGeneric(space) => source(0).wrapping_sub(window(*space)),
            Op::ActiveMask => 1 << (self.linear % 32),
            // Fences order nothing here: threads run one after the other.
            _ => return Ok(()),
        };
        self.set(instruction.destination, result);
        Ok(())
    }

    fn place(&self, context: &Context<'_>, run: u32) -> Place {
        Place {
            run,
            block: context.run - 1,
            thread: self.linear,
            epoch: context.epoch,
            collective: self.collective,
            mask: self.mask,
            whole_warp: self.whole_warp,
        }
    }

    /// The checked target of an access: the bytes, the offset in them, the name of the space.
    #[inline]
    fn target<'m>(
        &'m mut self,
        space: Space,
        address: u64,
        (bytes, access): (usize, Access),
        context: &'m mut Context<'_>,
        memory: &'m mut Memory,
        counts: &mut Counts,
    ) -> Result<(&'m mut Bytes, usize, &'static str), Fault> {
        check_alignment(address, bytes)?;
        let (space, address) = resolve(space, address);
        match space {
            Space::Shared => {
                counts.shared_accesses += 1;
                let at = context.shared.check(address, bytes, "shared")?;
                let place = self.place(context, context.run);
                let size = context.shared.values.len();
                context
                    .shared_shadow
                    .access((at, bytes, size), access, &place, "shared")?;
                Ok((&mut context.shared, at, "shared"))
            }
            Space::Local => {
                let at = self.local.check(address, bytes, "local")?;
                Ok((&mut self.local, at, "local"))
            }
            _ => {
                let traffic = match access {
                    Access::Read => &mut counts.global_read_bytes,
                    _ => &mut counts.global_written_bytes,
                };
                *traffic += bytes as u64;
                let place = self.place(context, memory.launches);
                let (target, at) = memory.access(address, bytes, access, &place)?;
                Ok((target, at, "global"))
            }
        }
    }

    fn load(
        &mut self,
        space: Space,
        instruction: &Instruction,
        context: &mut Context<'_>,
        memory: &mut Memory,
        counts: &mut Counts,
    ) -> Result<(), Fault> {
        let ty = instruction.ty;
        let bytes = ty.bytes();
        let start = self.address(instruction);
        self.check_vector(start, bytes, instruction)?;
        for (i, &part) in instruction.parts.iter().enumerate() {
            let address = start.wrapping_add((i * bytes) as u64);
            let value = if space == Space::Param {
                param(&context.params, address, bytes)?
            } else {
                let access = (bytes, Access::Read);
                let (target, at, name) =
                    self.target(space, address, access, context, memory, counts)?;
                target.read(at, bytes, name)?
            };
            // A register may be wider than what is loaded into it: signed values fill it.
            let value = if ty.is_signed() && ty.bits < 32 {
                ty.sign_extend(value).cast_unsigned() & 0xffff_ffff
            } else {
                value
            };
            self.set(part, value);
        }
        Ok(())
    }

    fn store(
        &mut self,
        space: Space,
        instruction: &Instruction,
        context: &mut Context<'_>,
        memory: &mut Memory,
        counts: &mut Counts,
    ) -> Result<(), Fault> {
        let bytes = instruction.ty.bytes();
        let start = self.address(instruction);
        self.check_vector(start, bytes, instruction)?;
        for (i, &part) in instruction.parts.iter().enumerate() {
            let value = self.value(part);
            let address = start.wrapping_add((i * bytes) as u64);
            let access = (bytes, Access::Write);
            let (target, at, _) = self.target(space, address, access, context, memory, counts)?;
            target.write(at, bytes, value);
        }
        Ok(())
    }

    fn atomic(
        &mut self,
        (op, space): (AtomicOp, Space),
        instruction: &Instruction,
        context: &mut Context<'_>,
        memory: &mut Memory,
        counts: &mut Counts,
    ) -> Result<(), Fault> {
        let ty = instruction.ty;
        let bytes = ty.bytes();
        let address = self.address(instruction);
        let value = self.value(instruction.sources[1]);
        let swap = self.value(instruction.sources[2]);
        let access = (bytes, Access::Atomic);
        let (target, at, name) = self.target(space, address, access, context, memory, counts)?;
        let old = target.read(at, bytes, name)?;
        target.write(at, bytes, atomic(op, ty, old, value, swap)?);
        self.set(instruction.destination, old);
        Ok(())
    }

    fn address(&self, instruction: &Instruction) -> u64 {
        let base = self.value(instruction.sources[0]);
        base.wrapping_add_signed(instruction.offset)
    }

    /// A vector must be aligned as a whole.
    fn check_vector(
        &self,
        address: u64,
        bytes: usize,
        instruction: &Instruction,
    ) -> Result<(), Fault> {
        check_alignment(address, bytes * instruction.parts.len())
    }
}

/// Sizes of accesses are powers of two.
#[inline]
fn check_alignment(address: u64, bytes: usize) -> Result<(), Fault> {
    if address & (bytes as u64 - 1) == 0 {
        Ok(())
    } else {
        Err(Fault::Misaligned { bytes, address })
    }
}

fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        _ => 0,
    }
}

/// The space that a generic address lies in, and the address there.
fn resolve(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, address);
    }
    for space in [Space::Shared, Space::Local] {
        let offset = address.wrapping_sub(window(space));
        if offset < WINDOW_BYTES {
            return (space, offset);
        }
    }
    (Space::Global, address)
}

fn param(params: &[u8], address: u64, bytes: usize) -> Result<u64, Fault> {
    let at = address as usize;
    let found = at.checked_add(bytes).and_then(|end| params.get(at..end));
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(found.ok_or(Fault::OutOfBounds {
        bytes,
        offset: address,
        size: params.len(),
        space: "param",
    })?);
    Ok(u64::from_le_bytes(value))
}
