//! The number type in which a backbone computes.

use burn::tensor::{DType, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// Number type of frozen weights and activations while a task is trained.
///
/// What is trained, its gradients and the state of its optimiser are `f32` in any case, and so are
/// layer norms, features and losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the range of `f32` and 8 bits of precision.
    Bf16,
    /// 16 bits with 11 bits of precision and numbers from 6e-8 to 65504; losses are scaled so that
    /// small gradients are not lost.
    F16,
}

impl Precision {
    /// The type of tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// Factor on the loss before the backward pass, to be divided out of the gradients: a power of
    /// two, so that it rounds nothing.
    ///
    /// For `f16` 1024: gradients of a mean over a batch lie near the smallest numbers of the type,
    /// and far below its largest.
    pub fn loss_scale(self) -> f64 {
        match self {
            Self::F32 | Self::Bf16 => 1.0,
            Self::F16 => 1024.0,
        }
    }

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// `x` as numbers of a floating-point type; `x` itself where it is of that type.
///
/// # Panics
///
/// If the type is not a floating-point one.
pub fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype {
        return x;
    }
    x.cast(FloatDType::from(dtype))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device_autodiff;

    #[test]
    fn a_gradient_comes_back_in_the_type_of_its_tensor() {
        let x = Tensor::<1>::from_data([0.1f32, 3.0], &test_device_autodiff()).require_grad();
        let half = cast(x.clone(), DType::BF16);
        assert_eq!(half.dtype(), DType::BF16);
        let grads = (half.clone() * half).sum().backward();
        let grad = x.grad(&grads).unwrap();
        assert_eq!(grad.dtype(), DType::F32);
        let grad: Vec<f32> = grad.into_data().iter().collect();
        // 2 x to 8 bits.
        assert!(
            (grad[0] - 0.2).abs() < 0.2 / 256.0 && grad[1] == 6.0,
            "{grad:?}"
        );
    }
}
