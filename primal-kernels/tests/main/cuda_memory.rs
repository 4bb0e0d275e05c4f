//! Buffers in one allocation: where they lie, what does not fit, and what is seen of their ends.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use primal_kernels::cuda::{self, Buffer, CudaError, Device, ImageChoice, OpenOptions};

use crate::common::{OF_MEMORY, standin};

fn open(own: u32, separate_buffers: bool) -> Device {
    standin();
    Device::open(OpenOptions {
        ordinal: (OF_MEMORY + own) as usize,
        image: ImageChoice::CheckedIn,
        separate_buffers,
        ..OpenOptions::default()
    })
    .unwrap()
}

fn used_bytes(own: u32) -> u64 {
    standin().counts(OF_MEMORY + own).used_bytes
}

#[cfg(not(feature = "cublas"))]
#[test]
fn a_build_without_cublas_says_so() {
    standin();
    let asked = Device::open(OpenOptions {
        float_products: cuda::FloatProducts::Cublas,
        ..OpenOptions::default()
    });
    let message = asked.unwrap_err().to_string();
    assert!(message.contains("--features cublas"), "{message}");
}

#[test]
fn buffers_share_one_allocation_and_go_with_it() {
    let device = open(0, false);
    let used = || used_bytes(0);
    let pooled = device.with_pool(1000).unwrap();
    assert_eq!((used(), pooled.taken_bytes()), (1000, Some(1000)));
    let bytes = Buffer::from_slice(&pooled, &[7_u8; 33], "bytes").unwrap();
    let floats = Buffer::from_slice(&pooled, &[0.5_f32; 9], "floats").unwrap();
    cuda::add(floats.view(..), floats.view(..)).unwrap();
    assert_eq!(bytes.to_vec().unwrap(), [7; 33]);
    assert_eq!(floats.to_vec().unwrap(), [1.0; 9]);
    assert_eq!((used(), pooled.placed_bytes()), (1000, 69));
    assert_eq!(device.allocated_bytes(), 1000);

    // 64 bytes for the first, 64 for the second.
    let overdrawn = Buffer::<u8>::zeros(&pooled, 873, "the last straw");
    let left = CudaError::PoolOverdrawn {
        what: "the last straw".into(),
        bytes: 873,
        left: 872,
        total: 1000,
    };
    assert_eq!(overdrawn.unwrap_err(), left);
    let last = Buffer::<u8>::zeros(&pooled, 872, "what fits").unwrap();
    drop((pooled, bytes, floats));
    assert_eq!(used(), 1000);
    drop(last);
    assert_eq!((used(), device.allocated_bytes()), (0, 0));
}

#[test]
fn a_pool_that_does_not_fit_is_an_error() {
    let device = open(1, false);
    let error = device.with_pool(12 << 30).unwrap_err().to_string();
    assert!(error.contains("out of GPU memory: the run"), "{error}");
    assert_eq!(device.allocated_bytes(), 0);
}

#[test]
fn buffers_of_their_own_are_counted_alike_and_end_where_they_end() {
    let device = open(2, true);
    let pooled = device.with_pool(1000).unwrap();
    let bytes = Buffer::from_slice(&pooled, &[7_u8; 33], "bytes").unwrap();
    assert_eq!(used_bytes(2), 33);
    assert_eq!(
        (device.allocated_bytes(), pooled.placed_bytes()),
        (1000, 33)
    );
    assert_eq!(pooled.taken_bytes(), None);
    assert!(Buffer::<u8>::zeros(&pooled, 937, "too much").is_err());
    drop((bytes, pooled));
    assert_eq!(used_bytes(2), 0);
    assert_eq!(device.allocated_bytes(), 0);
}
