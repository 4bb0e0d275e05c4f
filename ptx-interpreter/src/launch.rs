//! Launching: arguments against parameters, then block after block.

use crate::block::Block;
use crate::error::{Fault, KernelFault};
use crate::instruction::{Op, Ternary};
use crate::memory::Memory;
use crate::parse::Kernel;
use crate::profile::Profile;

/// Shared memory of a block without special permission, on every GPU from Pascal on.
pub const MAX_SHARED_BYTES: usize = 48 * 1024;

/// The sizes of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks (x, y, z).
    pub grid: [u32; 3],
    /// Threads of a block (x, y, z).
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared_bytes: usize,
}

impl Launch {
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }
}

/// What a launch executed, added up over its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// PTX instructions.
    pub instructions: u64,
    /// Float additions, multiplications, fused multiply-adds and what else works on floats.
    pub float: u64,
    /// dp4a.
    pub dot4: u64,
    /// mma.sync, counted by every lane.
    pub matrix: u64,
    /// Bytes read from global memory.
    pub global_read_bytes: u64,
    /// Bytes written to global memory, atomics included.
    pub global_written_bytes: u64,
    /// Accesses to shared memory.
    pub shared_accesses: u64,
}

impl Counts {
    /// Adds up a profile by kind of instruction.
    fn count_instructions(&mut self, kernel: &Kernel, profile: &Profile) {
        let counts = profile.executed.iter().zip(&profile.passed_over);
        for (instruction, (executed, passed_over)) in kernel.code.iter().zip(counts) {
            self.instructions += executed + passed_over;
            match instruction.op {
                Op::Ternary(Ternary::Dot4) => self.dot4 += executed,
                Op::MatrixMultiply(_) => self.matrix += executed,
                _ if instruction.ty.is_float() => self.float += executed,
                _ => {}
            }
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.instructions += other.instructions;
        self.float += other.float;
        self.dot4 += other.dot4;
        self.matrix += other.matrix;
        self.global_read_bytes += other.global_read_bytes;
        self.global_written_bytes += other.global_written_bytes;
        self.shared_accesses += other.shared_accesses;
    }
}

/// Runs `kernel`; `args` are the bytes of its arguments, in order.
///
/// The first fault ends the launch; memory then holds what was written up to it.
pub fn launch(
    kernel: &Kernel,
    memory: &mut Memory,
    sizes: &Launch,
    args: &[&[u8]],
) -> Result<Counts, Box<KernelFault>> {
    launch_profiled(kernel, memory, sizes, args).map(|(counts, _)| counts)
}

/// [`launch`], which also says how often each line was executed.
pub fn launch_profiled(
    kernel: &Kernel,
    memory: &mut Memory,
    sizes: &Launch,
    args: &[&[u8]],
) -> Result<(Counts, Profile), Box<KernelFault>> {
    let wrong = |what: String| {
        Box::new(KernelFault {
            kernel: kernel.name.clone(),
            line: 0,
            block: [0; 3],
            thread: [0; 3],
            fault: Fault::WrongLaunch(what),
        })
    };
    let params = param_bytes(kernel, args).map_err(wrong)?;
    check_sizes(kernel, sizes).map_err(wrong)?;
    memory.launches += 1;
    let mut counts = Counts::default();
    let mut profile = Profile::new(kernel);
    let mut block = Block::new(kernel, sizes, params);
    let [x_blocks, y_blocks, z_blocks] = sizes.grid;
    for z in 0..z_blocks {
        for y in 0..y_blocks {
            for x in 0..x_blocks {
                block.run([x, y, z], memory, &mut counts, &mut profile)?;
            }
        }
    }
    counts.count_instructions(kernel, &profile);
    Ok((counts, profile))
}

/// The parameter space of a launch.
fn param_bytes(kernel: &Kernel, args: &[&[u8]]) -> Result<Vec<u8>, String> {
    if args.len() != kernel.params.len() {
        return Err(format!(
            "{} arguments for {} parameters",
            args.len(),
            kernel.params.len()
        ));
    }
    let mut params = vec![0; kernel.param_bytes];
    let places = kernel.params.iter().zip(&kernel.param_offsets);
    for (i, (arg, (&bytes, &offset))) in args.iter().zip(places).enumerate() {
        if arg.len() != bytes {
            return Err(format!(
                "argument {i} has {} bytes, the parameter {bytes}",
                arg.len()
            ));
        }
        params[offset..offset + bytes].copy_from_slice(arg);
    }
    Ok(params)
}

fn check_sizes(kernel: &Kernel, sizes: &Launch) -> Result<(), String> {
    let product = |sizes: [u32; 3]| sizes.iter().map(|&size| u64::from(size)).product::<u64>();
    let threads = product(sizes.block);
    if product(sizes.grid) == 0 || threads == 0 {
        return Err(format!("grid {:?}, block {:?}", sizes.grid, sizes.block));
    }
    if threads > u64::from(kernel.max_threads) {
        return Err(format!(
            "{threads} threads, the kernel takes {}",
            kernel.max_threads
        ));
    }
    if sizes.grid[1] > 65535 || sizes.grid[2] > 65535 {
        return Err(format!("grid {:?}", sizes.grid));
    }
    let shared = kernel.static_shared_bytes + sizes.dynamic_shared_bytes;
    if shared > MAX_SHARED_BYTES {
        return Err(format!("{shared} bytes of shared memory"));
    }
    Ok(())
}
