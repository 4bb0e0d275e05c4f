//! Shared by the tests of the GPU's kernels: a device, noise, comparison, and the table of what
//! was compared.
#![allow(clippy::unwrap_used, reason = "helpers of several tests")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use bytemuck::Pod;
use cuda_standin::{DeviceCounts, Injection, StandIn};
use primal_kernels::Isa;
use primal_kernels::cuda::{Buffer, Device, ImageChoice, OpenOptions};

/// Devices that tests take in turn, so that those that run side by side each have their own.
const ANYBODYS: u32 = 16;

/// Devices behind them that are one test file's, which breaks them, counts on them, or needs
/// several.
#[cfg(feature = "cublas")]
pub const OF_CUBLAS: u32 = ANYBODYS;
pub const OF_MEMORY: u32 = ANYBODYS + 2;
#[cfg(feature = "nccl")]
pub const OF_NCCL: u32 = ANYBODYS + 5;
const DEVICES: u32 = ANYBODYS + 15;

/// The stand-in with all devices.
pub fn standin() -> &'static StandIn {
    cuda_standin::install(DEVICES).unwrap()
}

/// A device of its own for a test: of the stand-in with the PTX that is part of the program, or,
/// with `PRIMAL_CUDA_TESTS=gpu`, the machine's GPU with kernels compiled for it.
pub fn device() -> Device {
    device_with(61, false).0
}

/// What a device of the stand-in executed since the last call; `None` of a GPU.
pub type Counts = Box<dyn Fn() -> Option<DeviceCounts>>;

/// [`device`] of a compute capability, if it is of the stand-in, with or without the use of tensor
/// cores.
pub fn device_with(capability: u64, without_tensor_cores: bool) -> (Device, Counts) {
    if std::env::var_os("PRIMAL_CUDA_TESTS").is_some_and(|value| value == "gpu") {
        let options = OpenOptions {
            without_tensor_cores,
            ..OpenOptions::default()
        };
        return (Device::open(options).unwrap(), Box::new(|| None));
    }
    static NEXT: AtomicU32 = AtomicU32::new(0);
    static OPENING: Mutex<()> = Mutex::new(());
    let standin = standin();
    let ordinal = NEXT.fetch_add(1, Ordering::Relaxed) % ANYBODYS;
    let _alone = OPENING.lock().unwrap();
    standin.inject(ordinal, Injection::Capability, capability);
    let device = Device::open(OpenOptions {
        ordinal: ordinal as usize,
        image: ImageChoice::CheckedIn,
        without_tensor_cores,
        ..OpenOptions::default()
    });
    (
        device.unwrap(),
        Box::new(move || Some(standin.counts(ordinal))),
    )
}

pub fn isa() -> Isa {
    Isa::best()
}

pub fn up<T: Pod>(device: &Device, values: &[T]) -> Buffer<T> {
    Buffer::from_slice(device, values, "test data").unwrap()
}

pub fn zeros(device: &Device, len: usize) -> Buffer<f32> {
    Buffer::zeros(device, len, "test data").unwrap()
}

/// `len` numbers in -1..1 that look random, the same for the same `seed`.
pub fn noise(len: usize, seed: u32) -> Vec<f32> {
    let word = |i: usize| primal_kernels::philox4x32([i as u32, seed, 0, 0], [7, 8])[0];
    (0..len)
        .map(|i| (f64::from(word(i)) / f64::from(1_u32 << 31) - 1.0) as f32)
        .collect()
}

/// The bits must be equal.
pub fn assert_bits(kernel: &str, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{kernel}, {what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan(),
            "{kernel}, {what}: element {i} is {g:e}, on the CPU {w:e}"
        );
    }
    report(kernel, what, "bit-equal");
}

/// Each within `tolerance` of the largest; says whether the bits happen to be equal.
pub fn assert_close(kernel: &str, what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{kernel}, {what}");
    let largest = want
        .iter()
        .fold(f32::MIN_POSITIVE, |most, w| most.max(w.abs()));
    let mut worst = 0.0_f32;
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let error = (g - w).abs() / largest;
        assert!(
            error <= tolerance,
            "{kernel}, {what}: element {i} is {g}, on the CPU {w}, off by {error:e}"
        );
        worst = worst.max(error);
    }
    let equal = got
        .iter()
        .zip(want)
        .all(|(g, w)| g.to_bits() == w.to_bits());
    let verdict = if equal {
        "bit-equal".to_string()
    } else {
        format!("{worst:.1e}")
    };
    report(kernel, what, &verdict);
}

/// A line of the table in docs/cuda.md; shown with `--nocapture`.
pub fn report(kernel: &str, what: &str, verdict: &str) {
    println!("parity | {kernel} | {what} | {verdict}");
}
