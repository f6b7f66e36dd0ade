//! The fused operations on burn's `flex` backend.
//!
//! [`FusedOps`] extends the backend; burn's macro routes a call to `Flex` or, when the tensors
//! carry autodiff, to `Autodiff<Flex>`, where each operation registers a backward of its own.
//! Every operation has one file: its forward, its backward and the vector code of both.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, backend_extension};
use burn::tensor::{DType, Tensor};

mod attention;
mod buffer;
mod gelu;
mod layer_norm;
mod linear;
mod matmul;
mod product;
mod simd;

/// The operations `flex` gains. Inputs are `f32` and have been checked for shape.
#[backend_extension(Flex, Autodiff)]
trait FusedOps: Backend {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;

    fn fused_attention(qkv: FloatTensor<Self>, n_heads: usize) -> FloatTensor<Self>;

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    // The macro takes no optional tensor.
    fn fused_linear_unbiased(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl FusedOps for Flex {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::forward(x)
    }

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        layer_norm::forward(x, gamma, beta, eps)
    }

    fn fused_attention(qkv: FloatTensor<Self>, n_heads: usize) -> FloatTensor<Self> {
        attention::forward(qkv, n_heads)
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::forward(x, weight, Some(bias))
    }

    fn fused_linear_unbiased(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::forward(x, weight, None)
    }
}

impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        gelu::autodiff::<C>(x)
    }

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        layer_norm::autodiff::<C>(x, gamma, beta, eps)
    }

    fn fused_attention(qkv: FloatTensor<Self>, n_heads: usize) -> FloatTensor<Self> {
        attention::autodiff::<C>(qkv, n_heads)
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::autodiff::<C>(x, weight, Some(bias))
    }

    fn fused_linear_unbiased(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::autodiff::<C>(x, weight, None)
    }
}

/// Whether the fused operations take this tensor: `f32` on `flex`.
pub(crate) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32
        && matches!(
            x.device().as_dispatch().clone().inner(),
            DispatchDevice::Flex(_)
        )
}

/// See [`crate::gelu`].
pub(crate) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::fused_gelu(x.into_dispatch()))
}

/// See [`crate::layer_norm`].
pub(crate) fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::fused_layer_norm(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        eps,
    ))
}

/// See [`crate::qkv_attention`].
pub(crate) fn qkv_attention(qkv: Tensor<3>, n_heads: usize) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::fused_attention(qkv.into_dispatch(), n_heads))
}

/// See [`crate::linear`].
pub(crate) fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => Dispatch::fused_linear(x, weight, bias.into_dispatch()),
        None => Dispatch::fused_linear_unbiased(x, weight),
    })
}
