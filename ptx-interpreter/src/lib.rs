//! Runs the PTX that NVRTC writes, and checks what a GPU does not.
//!
//! One CUDA thread runs at a time, until it meets a barrier or a warp collective; blocks run one
//! after the other. So results are reproducible, and every access to memory can be compared with
//! all before it. A kernel that leaves a buffer, reads what nobody wrote, races, or waits at a
//! barrier that others never reach ends in a [`KernelFault`] that names the line of the PTX, the
//! block and the thread.
//!
//! - [`parse`] reads PTX and refuses what no driver would load.
//! - [`Memory`] is the device's memory; the host copies in and out.
//! - [`launch`] runs a kernel and counts what it executed, [`launch_profiled`] by line.
//!
//! Of tensor cores it has the products of signed bytes m8n8k16 and m16n8k32. Not modelled: timing,
//! caches, occupancy, textures, the weak memory model between blocks (any unordered access is a
//! race), and the last bits of the `approx` instructions.
//!
//! ```
//! use ptx_interpreter::{Launch, Memory, launch, parse};
//!
//! let module = parse(
//!     ".version 7.8
//!      .target sm_61
//!      .visible .entry double(.param .u64 data)
//!      {
//!        ld.param.u64 %rd1, [data];
//!        mul.wide.u32 %rd2, %tid.x, 4;
//!        add.s64 %rd3, %rd1, %rd2;
//!        ld.global.u32 %r1, [%rd3];
//!        shl.b32 %r2, %r1, 1;
//!        st.global.u32 [%rd3], %r2;
//!        ret;
//!      }",
//! )?;
//! let mut memory = Memory::new();
//! let data = memory.allocate(8);
//! memory.write(data, &[1, 0, 0, 0, 2, 0, 0, 0])?;
//!
//! let double = &module.kernels["double"];
//! let two_threads = Launch { grid: [1; 3], block: [2, 1, 1], dynamic_shared_bytes: 0 };
//! let address = data.to_le_bytes();
//! launch(double, &mut memory, &two_threads, &[address.as_slice()])?;
//! let mut out = [0; 8];
//! memory.read(data, &mut out)?;
//! assert_eq!(out, [2, 0, 0, 0, 4, 0, 0, 0]);
//!
//! // A third thread would leave the buffer.
//! let three = Launch { block: [3, 1, 1], ..two_threads };
//! let fault = launch(double, &mut memory, &three, &[address.as_slice()]).unwrap_err();
//! assert_eq!(
//!     fault.to_string(),
//!     "double: PTX line 8: block [0, 0, 0] thread [2, 0, 0]: \
//!      4-byte access at byte 8 of global memory of 8 bytes"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arithmetic;
mod block;
mod decode;
mod error;
mod execute;
mod instruction;
mod launch;
mod matrix;
mod memory;
mod parse;
mod profile;
mod shadow;
mod specialised;
mod types;

pub use error::{Fault, KernelFault, ParseError};
pub use launch::{Counts, Launch, MAX_SHARED_BYTES, launch, launch_profiled};
pub use memory::Memory;
pub use parse::{Kernel, Module, parse};
pub use profile::Profile;
