//! The functions of libnccl that PRIMAL calls, between the devices of the stand-in: a library of
//! both names in one file, since collectives reach into the devices' memory.
//!
//! What a real NCCL would wait for in vain, a member that does not take part or takes part
//! otherwise, is an error here. A collective has run when its group ends.

#![allow(non_snake_case, reason = "the names of NCCL's API")]

use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use crate::device::{code as cuda, number};
use crate::driver::device;

/// `ncclResult_t`.
const SUCCESS: c_int = 0;
const UNHANDLED_CUDA: c_int = 1;
const INVALID_ARGUMENT: c_int = 4;
const INVALID_USAGE: c_int = 5;

/// `ncclDataType_t` and `ncclRedOp_t`.
const UINT32: c_int = 3;
const SUM: c_int = 0;

/// 2.21.5, the last one for CUDA 11.
const VERSION: u64 = 22_105;

/// One device's place in a clique.
struct Member {
    rank: usize,
    /// The devices of all members.
    devices: Arc<Vec<usize>>,
}

/// What a member asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// Bytes of each member.
    Gather { bytes: usize },
    /// Words that are summed.
    Sum { words: usize },
}

struct Request {
    comm: usize,
    what: What,
    from: u64,
    to: u64,
}

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static QUEUE: RefCell<Vec<Request>> = const { RefCell::new(Vec::new()) };
}

/// The member behind a communicator.
///
/// # Safety
/// `comm` came from `ncclCommInitAll` and was not destroyed.
unsafe fn member<'a>(comm: usize) -> &'a Member {
    // SAFETY: the caller's promise.
    unsafe { &*std::ptr::with_exposed_provenance(comm) }
}

/// Queues a request; outside of a group it is one of its own.
fn ask(request: Request) -> c_int {
    QUEUE.with_borrow_mut(|queue| queue.push(request));
    if DEPTH.get() == 0 {
        run_queue()
    } else {
        SUCCESS
    }
}

/// Runs what was queued: the n-th request of each member of a clique is one collective.
fn run_queue() -> c_int {
    let mut queue = QUEUE.take();
    while let Some(first) = queue.first() {
        // SAFETY: communicators of a queue exist.
        let devices = Arc::clone(unsafe { &member(first.comm).devices });
        let mut requests = Vec::with_capacity(devices.len());
        for rank in 0..devices.len() {
            let at = queue.iter().position(|request| {
                // SAFETY: as above.
                let member = unsafe { member(request.comm) };
                member.rank == rank && Arc::ptr_eq(&member.devices, &devices)
            });
            let Some(at) = at else {
                return INVALID_USAGE;
            };
            requests.push(queue.remove(at));
        }
        if requests.iter().any(|it| it.what != requests[0].what) {
            return INVALID_USAGE;
        }
        match collective(&requests, &devices) {
            cuda::SUCCESS => {}
            _ => return UNHANDLED_CUDA,
        }
    }
    SUCCESS
}

/// One collective, its members by rank; returns a code of the driver.
fn collective(requests: &[Request], devices: &[usize]) -> c_int {
    let bytes = match requests[0].what {
        What::Gather { bytes } => bytes,
        What::Sum { words } => 4 * words,
    };
    let mut given = Vec::with_capacity(requests.len());
    for (request, &ordinal) in requests.iter().zip(devices) {
        let Some(mut device) = device(ordinal) else {
            return cuda::INVALID_DEVICE;
        };
        let mut part = vec![0; bytes];
        match device.give(&mut part, request.from) {
            cuda::SUCCESS => given.push(part),
            code => return code,
        }
    }
    let result = match requests[0].what {
        What::Gather { .. } => given.concat(),
        What::Sum { .. } => sum_of_words(&given),
    };
    for (request, &ordinal) in requests.iter().zip(devices) {
        let code = device(ordinal).map(|mut device| device.take(request.to, &result));
        if code != Some(cuda::SUCCESS) {
            return code.unwrap_or(cuda::INVALID_DEVICE);
        }
    }
    cuda::SUCCESS
}

/// Sums of little-endian words, modulo 2^32.
fn sum_of_words(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut sums = vec![0_u32; parts[0].len() / 4];
    for part in parts {
        for (sum, word) in sums.iter_mut().zip(part.as_chunks().0) {
            *sum = sum.wrapping_add(u32::from_le_bytes(*word));
        }
    }
    sums.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// As in NCCL.
///
/// # Safety
/// `version` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { version.write(number("CUDA_STANDIN_NCCL", VERSION) as c_int) };
    SUCCESS
}

/// As in NCCL.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: c_int) -> *const c_char {
    match code {
        SUCCESS => c"no error",
        UNHANDLED_CUDA => c"unhandled cuda error (stand-in)",
        INVALID_ARGUMENT => c"invalid argument (stand-in)",
        INVALID_USAGE => c"invalid usage (stand-in)",
        _ => c"another error (stand-in)",
    }
    .as_ptr()
}

/// As in NCCL: members of one process, no device twice.
///
/// # Safety
/// `comms` and `ordinals` must be valid for `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitAll(
    comms: *mut *mut c_void,
    count: c_int,
    ordinals: *const c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let ordinals = unsafe { std::slice::from_raw_parts(ordinals, count.max(0) as usize) };
    let devices: Vec<usize> = ordinals.iter().map(|&it| it as usize).collect();
    for (rank, ordinal) in devices.iter().enumerate() {
        if device(*ordinal).is_none() {
            return INVALID_ARGUMENT;
        }
        if devices[..rank].contains(ordinal) {
            return INVALID_USAGE;
        }
    }
    let devices = Arc::new(devices);
    for rank in 0..devices.len() {
        let devices = Arc::clone(&devices);
        let comm = Box::into_raw(Box::new(Member { rank, devices }));
        // SAFETY: the caller's promise.
        unsafe { comms.add(rank).write(comm.cast()) };
    }
    SUCCESS
}

/// As in NCCL.
///
/// # Safety
/// `comm` must come from [`ncclCommInitAll`] and not be used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(comm: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(comm.cast::<Member>()) });
    SUCCESS
}

/// As in NCCL.
///
/// # Safety
/// As of [`ncclCommDestroy`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { ncclCommDestroy(comm) }
}

/// As in NCCL: what went wrong was said when the group ended.
///
/// # Safety
/// `code` must be valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(_comm: *mut c_void, code: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { code.write(SUCCESS) };
    SUCCESS
}

/// As in NCCL.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> c_int {
    DEPTH.set(DEPTH.get() + 1);
    SUCCESS
}

/// As in NCCL.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> c_int {
    match DEPTH.get() {
        0 => INVALID_USAGE,
        1 => {
            DEPTH.set(0);
            run_queue()
        }
        depth => {
            DEPTH.set(depth - 1);
            SUCCESS
        }
    }
}

/// As in NCCL, of any type.
///
/// # Safety
/// `comm` must come from [`ncclCommInitAll`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    comm: *mut c_void,
    _stream: *mut c_void,
) -> c_int {
    let element = match kind {
        0 | 1 => 1,
        2 | 3 | 7 => 4,
        4 | 5 | 8 => 8,
        6 | 9 => 2,
        _ => return INVALID_ARGUMENT,
    };
    ask(Request {
        comm: comm.expose_provenance(),
        what: What::Gather {
            bytes: count * element,
        },
        from: from.addr() as u64,
        to: to.addr() as u64,
    })
}

/// As in NCCL, of sums of 32-bit words without a sign: all others have an order or an overflow that
/// a run must not depend on.
///
/// # Safety
/// `comm` must come from [`ncclCommInitAll`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    kind: c_int,
    operation: c_int,
    comm: *mut c_void,
    _stream: *mut c_void,
) -> c_int {
    if (kind, operation) != (UINT32, SUM) {
        return INVALID_ARGUMENT;
    }
    ask(Request {
        comm: comm.expose_provenance(),
        what: What::Sum { words: count },
        from: from.addr() as u64,
        to: to.addr() as u64,
    })
}
