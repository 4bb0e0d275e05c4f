//! The threads of a block: each runs until it must wait; barriers and warp collectives bring them
//! together.

use crate::error::{Fault, KernelFault};
use crate::execute::{Context, Thread, Waiting};
use crate::instruction::{Op, Shuffle, Vote};
use crate::launch::{Counts, Launch};
use crate::matrix::MatrixShape;
use crate::memory::{Bytes, Memory};
use crate::parse::Kernel;
use crate::profile::Profile;
use crate::shadow::Shadow;

/// More instructions of one block than any kernel here takes.
pub(crate) const MAX_INSTRUCTIONS: u64 = 4_000_000_000;

/// Threads and shared memory, used again for every block of a launch.
pub(crate) struct Block<'a> {
    kernel: &'a Kernel,
    context: Context<'a>,
    threads: Vec<Thread>,
    /// Collectives of each warp so far.
    collectives: Vec<u32>,
}

impl<'a> Block<'a> {
    pub(crate) fn new(kernel: &'a Kernel, sizes: &Launch, params: Vec<u8>) -> Self {
        let n = sizes.threads();
        let [width, height, _] = sizes.block;
        let index = |i: u32| [i % width, i / width % height, i / (width * height)];
        Block {
            kernel,
            context: Context {
                kernel,
                params,
                sizes: *sizes,
                block: [0; 3],
                shared: Bytes::new(kernel.static_shared_bytes + sizes.dynamic_shared_bytes),
                shared_shadow: Shadow::default(),
                epoch: 0,
                run: 0,
            },
            threads: (0..n).map(|i| Thread::new(i, index(i), kernel)).collect(),
            collectives: vec![0; n.div_ceil(32) as usize],
        }
    }

    pub(crate) fn run(
        &mut self,
        block: [u32; 3],
        memory: &mut Memory,
        counts: &mut Counts,
        profile: &mut Profile,
    ) -> Result<(), Box<KernelFault>> {
        self.context.block = block;
        self.context.shared.clear();
        self.context.epoch = 0;
        self.context.run += 1;
        self.collectives.fill(0);
        for thread in &mut self.threads {
            thread.restart(&self.context);
        }
        let mut left = MAX_INSTRUCTIONS;
        loop {
            for i in 0..self.threads.len() {
                let thread = &mut self.threads[i];
                if thread.waiting == Waiting::No {
                    let result = thread.run(&mut self.context, memory, counts, profile, left);
                    left -= result.map_err(|fault| self.fault(i, fault))?;
                }
            }
            let mut progress = false;
            for warp in 0..self.collectives.len() {
                progress |= self.complete_collectives(warp)?;
            }
            if progress {
                continue;
            }
            if self.threads.iter().all(|it| it.waiting == Waiting::Ended) {
                return Ok(());
            }
            self.check_stuck_collectives()?;
            self.pass_barrier()?;
        }
    }

    fn fault(&self, thread: usize, fault: Fault) -> Box<KernelFault> {
        let thread = &self.threads[thread];
        Box::new(KernelFault {
            kernel: self.kernel.name.clone(),
            line: self.kernel.code.get(thread.pc).map_or(0, |it| it.line),
            block: self.context.block,
            thread: thread.index,
            fault,
        })
    }

    /// Every thread must have come to the same barrier.
    fn pass_barrier(&mut self) -> Result<(), Box<KernelFault>> {
        let first = self
            .threads
            .iter()
            .position(|it| it.waiting == Waiting::Barrier)
            .unwrap_or(0);
        let pc = self.threads[first].pc;
        let elsewhere = |it: &Thread| it.waiting != Waiting::Barrier || it.pc != pc;
        if let Some(other) = self.threads.iter().find(|it| elsewhere(it)) {
            let what = match other.waiting {
                Waiting::Ended => "has returned".to_string(),
                _ => format!("waits at PTX line {}", self.kernel.code[other.pc].line),
            };
            let what = format!("thread {:?} {what}", other.index);
            return Err(self.fault(first, Fault::DivergentBarrier(what)));
        }
        self.context.epoch += 1;
        for thread in &mut self.threads {
            thread.pc += 1;
            thread.waiting = Waiting::No;
        }
        Ok(())
    }

    fn warp_lanes(&self, warp: usize) -> std::ops::Range<usize> {
        warp * 32..(warp * 32 + 32).min(self.threads.len())
    }

    /// The mask that a thread at a collective names.
    fn mask(&self, thread: usize) -> u32 {
        let thread = &self.threads[thread];
        let mask = self.kernel.code[thread.pc].mask();
        mask.map_or(u32::MAX, |mask| thread.value(mask) as u32)
    }

    /// Runs every collective of a warp whose lanes are all there.
    fn complete_collectives(&mut self, warp: usize) -> Result<bool, Box<KernelFault>> {
        let lanes = self.warp_lanes(warp);
        let mut progress = false;
        for leader in lanes.clone() {
            if self.threads[leader].waiting != Waiting::Collective {
                continue;
            }
            let (mask, pc) = (self.mask(leader), self.threads[leader].pc);
            let exists = |lane: u32| lanes.start + (lane as usize) < lanes.end;
            if let Some(lane) = (0..32).find(|&lane| mask >> lane & 1 == 1 && !exists(lane)) {
                let what = format!("mask {mask:#x} names lane {lane}, which does not exist");
                return Err(self.fault(leader, Fault::IncompleteCollective(what)));
            }
            if mask >> (leader - lanes.start) & 1 == 0 {
                let what = format!("mask {mask:#x} leaves the calling lane out");
                return Err(self.fault(leader, Fault::IncompleteCollective(what)));
            }
            let members: Vec<usize> = lanes
                .clone()
                .filter(|lane| mask >> (lane - lanes.start) & 1 == 1)
                .collect();
            let here = |&lane: &usize| {
                let thread = &self.threads[lane];
                thread.waiting == Waiting::Collective && thread.pc == pc && self.mask(lane) == mask
            };
            if members.iter().all(here) {
                self.collect(warp, &members, mask)?;
                progress = true;
            }
        }
        Ok(progress)
    }

    fn check_stuck_collectives(&self) -> Result<(), Box<KernelFault>> {
        let stuck = |it: &Thread| it.waiting == Waiting::Collective;
        let Some(at) = self.threads.iter().position(stuck) else {
            return Ok(());
        };
        let what = format!("not all lanes of mask {:#x} come here", self.mask(at));
        Err(self.fault(at, Fault::IncompleteCollective(what)))
    }

    /// One collective of the lanes `members`, all of them waiting at it.
    fn collect(
        &mut self,
        warp: usize,
        members: &[usize],
        mask: u32,
    ) -> Result<(), Box<KernelFault>> {
        let first_lane = warp * 32;
        let whole = members.len() == self.warp_lanes(warp).len();
        let instruction = &self.kernel.code[self.threads[members[0]].pc];
        if let Op::MatrixMultiply(shape) = instruction.op {
            self.multiply_matrices(shape, members);
            return Ok(());
        }
        let value =
            |lane: usize, source: usize| self.threads[lane].value(instruction.sources[source]);
        let mut results = Vec::with_capacity(members.len());
        match instruction.op {
            Op::Shuffle(mode) => {
                for &lane in members {
                    let own = (lane - first_lane) as u32;
                    let by = value(lane, 1) as u32;
                    let clamp = value(lane, 2) as u32;
                    let (source, exists) = shuffle_source(mode, own, by, clamp);
                    if mask >> source & 1 == 0 {
                        let fault = Fault::ShuffleOutsideMask { lane: source, mask };
                        return Err(self.fault(lane, fault));
                    }
                    let result = value(first_lane + source as usize, 0);
                    results.push((instruction.ty.truncate(result), u64::from(exists)));
                }
            }
            Op::Vote(mode) => {
                let ballot = members.iter().fold(0_u64, |ballot, &lane| {
                    ballot | (value(lane, 0) & 1) << (lane - first_lane)
                });
                let result = match mode {
                    Vote::Ballot => ballot,
                    Vote::Any => u64::from(ballot != 0),
                    Vote::All => u64::from(ballot == u64::from(mask)),
                };
                results.resize(members.len(), (result, 0));
            }
            _ => results.resize(members.len(), (0, 0)),
        }
        let has_result = !matches!(instruction.op, Op::WarpBarrier);
        let (destination, second) = (instruction.destination, instruction.second_destination);
        self.collectives[warp] += 1;
        let number = self.collectives[warp];
        for (&lane, (result, exists)) in members.iter().zip(results) {
            let thread = &mut self.threads[lane];
            if has_result {
                thread.set(destination, result);
                thread.set(second, exists);
            }
            thread.collective = number;
            thread.mask = mask;
            if whole {
                thread.whole_warp = number;
            }
            thread.pc += 1;
            thread.waiting = Waiting::No;
        }
        Ok(())
    }

    /// A matrix product of a warp. Unlike the other collectives it orders no accesses to memory.
    fn multiply_matrices(&mut self, shape: MatrixShape, lanes: &[usize]) {
        let instruction = &self.kernel.code[self.threads[lanes[0]].pc];
        let registers = |lane: &usize| -> Vec<u32> {
            let thread = &self.threads[*lane];
            let operands = &instruction.parts[shape.c_registers()..];
            let values = operands.iter().map(|&part| thread.value(part) as u32);
            values.collect()
        };
        let operands: Vec<Vec<u32>> = lanes.iter().map(registers).collect();
        for (&lane, result) in lanes.iter().zip(shape.multiply_add(&operands)) {
            let thread = &mut self.threads[lane];
            for (&part, value) in instruction.parts.iter().zip(result) {
                thread.set(part, value.into());
            }
            thread.pc += 1;
            thread.waiting = Waiting::No;
        }
    }
}

/// The lane that a shuffle reads, and whether it was in range (PTX ISA, `shfl.sync`).
fn shuffle_source(mode: Shuffle, own: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (by, segment, clamp) = (by & 31, clamp >> 8 & 31, clamp & 31);
    let last = own & segment | clamp & !segment;
    let first = own & segment;
    let (source, exists) = match mode {
        Shuffle::Index => {
            let source = first | by & !segment;
            (source, source <= last)
        }
        Shuffle::Up => (
            own.wrapping_sub(by),
            i64::from(own) - i64::from(by) >= i64::from(last),
        ),
        Shuffle::Down => (own + by, own + by <= last),
        Shuffle::Butterfly => (own ^ by, own ^ by <= last),
    };
    if exists { (source, true) } else { (own, false) }
}
