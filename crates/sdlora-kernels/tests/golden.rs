//! GELU and its slope against `x Φ(x)` and `Φ(x) + x φ(x)` by the `erfc` of C's library in float64, on any
//! backend.
//!
//! The slope of the `tanh` approximation is up to 9e-4 away, and burn's own backward takes that one on most backends.
#![allow(clippy::unwrap_used)]

use burn::tensor::Tensor;
use sdlora_kernels::{gelu, generic};
use sdlora_testkit::{Tolerance, assert_close, test_device_autodiff};

/// Rounding of `f32`, and of the `erf` of a graphics driver.
const TOLERANCE: Tolerance = Tolerance::Abs(1e-6);

/// `x`, value, slope.
const POINTS: [[f64; 3]; 12] = [
    [-4.0, -1.266_849_673e-4, -5.036_496_612e-4],
    [-2.0, -4.550_026_390e-2, -8.523_180_108e-2],
    [-1.0, -1.586_552_539e-1, -8.331_547_059e-2],
    [-0.5, -1.542_687_694e-1, 1.325_048_753e-1],
    [-0.125, -5.628_272_190e-2, 4.007_820_643e-1],
    [0.0, 0.0, 0.5],
    [0.25, 1.496_765_814e-1, 6.953_733_549e-1],
    [0.75, 5.800_294_857e-1, 9.992_257_217e-1],
    [1.0, 8.413_447_461e-1, 1.083_315_471],
    [1.5, 1.399_789_198, 1.127_469_192],
    [2.5, 2.484_475_837, 1.037_611_086],
    [5.0, 4.999_998_567, 1.000_007_147],
];

#[test]
fn gelu_has_the_exact_value_and_slope() {
    type Form = fn(Tensor<1>) -> Tensor<1>;
    for (name, form) in [("fused", gelu as Form), ("generic", generic::gelu)] {
        let device = test_device_autodiff();
        let x = Tensor::<1>::from_data(POINTS.map(|[x, _, _]| x as f32), &device).require_grad();
        let y = form(x.clone());
        let grads = y.clone().sum().backward();
        let slope = x.grad(&grads).unwrap();
        assert_close(
            y.inner(),
            &POINTS.map(|[_, value, _]| value)[..],
            TOLERANCE,
            &format!("gelu, {name}"),
        );
        assert_close(
            slope,
            &POINTS.map(|[_, _, slope]| slope)[..],
            TOLERANCE,
            &format!("slope of gelu, {name}"),
        );
    }
}
