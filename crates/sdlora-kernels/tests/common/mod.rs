//! Devices, random inputs, the comparison of two tensors, and of runs on several threads.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use burn::tensor::{DType, Device, Tensor, TensorData};

/// The backend with fused kernels.
pub fn plain() -> Device {
    Device::flex()
}

/// The same with gradients.
pub fn tracking() -> Device {
    Device::flex().autodiff()
}

/// Asserts that `run` gives the same on one thread and on several.
#[track_caller]
pub fn assert_same_on_threads<T: PartialEq + Send>(run: impl Fn() -> T + Sync) {
    let pool = |n| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .unwrap()
    };
    let expected = pool(1).install(&run);
    for n in [2, 3, 7] {
        assert!(pool(n).install(&run) == expected, "{n} threads");
    }
}

/// Values between −2 and 2 from a fixed seed (a linear congruential generator: the device's
/// generator is shared by all tests of a process).
pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let n = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values: Vec<f32> = (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The values as `f64`, whatever the tensor holds.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

/// The bits of an `f32` tensor.
pub fn bits<const D: usize>(x: Tensor<D>) -> Vec<u32> {
    x.into_data().iter::<f32>().map(f32::to_bits).collect()
}

/// The same tensor as a leaf in `f64`, for which no operation is fused.
pub fn precise<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
    x.clone().cast(DType::F64)
}

/// Largest difference relative to the largest value; `actual` in `f32`, `expected` in `f64`.
#[track_caller]
pub fn assert_near<const D: usize>(
    actual: Tensor<D>,
    expected: Tensor<D>,
    tolerance: f64,
    what: &str,
) {
    assert_eq!(actual.dims(), expected.dims(), "{what}: shape");
    let (actual, expected) = (values(actual), values(expected));
    let size = expected.iter().fold(1e-30_f64, |size, x| size.max(x.abs()));
    for (idx, (a, e)) in actual.iter().zip(&expected).enumerate() {
        let error = (a - e).abs() / size;
        assert!(
            error <= tolerance,
            "{what}: element {idx} is {a}, expected {e}: off by {error:e} of the largest value"
        );
    }
}
