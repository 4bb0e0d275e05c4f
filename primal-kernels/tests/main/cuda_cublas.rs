//! Float32 products by cuBLAS: layouts, strides and transposes of the calls, on a stand-in of it.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use cuda_standin::{Injection, StandIn};
use primal_kernels::cuda::{self, Device, FloatProducts, ImageChoice, OpenOptions};

use crate::common::{OF_CUBLAS, assert_bits, noise, standin, up};

/// The device on which a kernel crashes.
const BROKEN: u32 = OF_CUBLAS + 1;

/// A device whose products go by the stand-in of cuBLAS.
fn open(ordinal: u32) -> (Device, &'static StandIn) {
    let standin = standin();
    cuda_standin::preload("libcublas_standin.so").unwrap();
    let device = Device::open(OpenOptions {
        ordinal: ordinal as usize,
        image: ImageChoice::CheckedIn,
        float_products: FloatProducts::Cublas,
        ..OpenOptions::default()
    });
    (device.unwrap(), standin)
}

/// What the stand-in computes: sums in f64 on top of `before`, rounded once.
fn sums(
    (rows, cols, depth): (usize, usize, usize),
    before: Option<&[f32]>,
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let element = |i: usize| {
        let (row, col) = (i / cols, i % cols);
        let products = (0..depth).map(|k| f64::from(a(row, k)) * f64::from(b(k, col)));
        let sum = products.sum::<f64>();
        before.map_or(sum, |before| sum + f64::from(before[i])) as f32
    };
    (0..rows * cols).map(element).collect()
}

#[test]
fn products_go_by_cublas_whatever_their_form() {
    let (device, standin) = open(OF_CUBLAS);
    for (n, m, k) in [
        (1, 1, 1),
        (3, 70, 7),
        (65, 64, 33),
        (130, 17, 300),
        (2, 5, 64),
    ] {
        let (x, w, dy) = (noise(n * k, 1), noise(m * k, 2), noise(n * m, 3));
        let [x_at, w_at, dy_at] = [&x, &w, &dy].map(|values| up(&device, values));
        let what = format!("{n}x{m}x{k}");
        standin.counts(OF_CUBLAS);

        // What was there before does not matter, even if it is no number.
        let y = up(&device, &vec![f32::NAN; n * m]);
        let (a, b) = (
            |r: usize, d: usize| x[r * k + d],
            |d: usize, c: usize| w[c * k + d],
        );
        for before in [None, Some(y.view(..))] {
            let old = before.map(|_| y.to_vec().unwrap());
            cuda::matmul_nt(
                x_at.view(..),
                w_at.view(..),
                y.view(..),
                (n, m, k),
                old.is_some(),
            )
            .unwrap();
            let want = sums((n, m, k), old.as_deref(), a, b);
            assert_bits("cuBLAS nt", &what, &y.to_vec().unwrap(), &want);
        }

        let dx = up(&device, &vec![f32::NAN; n * k]);
        let (a, b) = (
            |r: usize, d: usize| dy[r * m + d],
            |d: usize, c: usize| w[d * k + c],
        );
        for accumulate in [false, true] {
            let old = accumulate.then(|| dx.to_vec().unwrap());
            cuda::matmul_nn(
                dy_at.view(..),
                w_at.view(..),
                dx.view(..),
                (n, m, k),
                accumulate,
            )
            .unwrap();
            let want = sums((n, k, m), old.as_deref(), a, b);
            assert_bits("cuBLAS nn", &what, &dx.to_vec().unwrap(), &want);
        }

        // Some columns of dy alone, so that rows of the operand are longer than the result's.
        for (first, rows) in [(0, m), (m / 3, m - m / 3), (m - 1, 1)] {
            let dw = up(&device, &vec![f32::NAN; rows * k]);
            cuda::matmul_tn(
                dy_at.view(..),
                x_at.view(..),
                dw.view(..),
                (n, m, k),
                first,
                rows,
            )
            .unwrap();
            let want = sums(
                (rows, k, n),
                None,
                |r, d| dy[d * m + first + r],
                |d, c| x[d * k + c],
            );
            assert_bits("cuBLAS tn", &what, &dw.to_vec().unwrap(), &want);
        }
        assert_eq!(standin.counts(OF_CUBLAS).launches, 0, "no kernel of ours");
    }
}

#[test]
fn a_product_that_fails_is_an_error() {
    let (device, standin) = open(BROKEN);
    let one = up(&device, &[1.0_f32]);
    let multiply = || cuda::matmul_nt(one.view(..), one.view(..), one.view(..), (1, 1, 1), false);
    multiply().unwrap();
    // A kernel crashes, and the context with it.
    standin.inject(BROKEN, Injection::FailLaunch, 1);
    cuda::add(one.view(..), one.view(..)).unwrap_err();
    let message = multiply().unwrap_err().to_string();
    assert!(
        message.contains("cublasSgemm") && message.contains("MAPPING_ERROR"),
        "{message}"
    );
    standin.inject(BROKEN, Injection::FailLaunch, 0);
}
