//! The fused operations on burn's `flex` backend.
//!
//! [`FusedOps`] extends the backend; burn's macro routes a call to `Flex` or, when the tensors
//! carry autodiff, to `Autodiff<Flex>`, where each operation registers a backward of its own.
//! Every operation has one file: its forward, its backward and the vector code of both.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{
    Autodiff, AutodiffBackend, Backend, Dispatch, DispatchDevice, Flex, backend_extension,
};
use burn::tensor::{DType, Tensor};

use crate::low_rank::{GradientPath, LowRank};

mod attention;
mod buffer;
mod gelu;
mod layer_norm;
mod linear;
mod low_rank;
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

    /// `fused_linear` with another matrix in the place of the weight, which keeps the gradient.
    fn fused_linear_effective(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        effective: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn fused_linear_effective_unbiased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        effective: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    /// `weight + a b` on the columns from `first_column` on, without a gradient.
    fn fused_add_product(
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        first_column: usize,
    ) -> FloatTensor<Self>;

    /// `y`, and in the backward pass the gradients of `a` and `b`, see `low_rank`.
    fn fused_tap(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        first_column: usize,
        path: GradientPath,
    ) -> FloatTensor<Self>;

    #[allow(
        clippy::too_many_arguments,
        reason = "the macro takes no list of tensors"
    )]
    fn fused_tap_two(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        first_column: usize,
        path: GradientPath,
    ) -> FloatTensor<Self>;
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

    fn fused_linear_effective(
        x: FloatTensor<Self>,
        _: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        effective: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::forward(x, effective, Some(bias))
    }

    fn fused_linear_effective_unbiased(
        x: FloatTensor<Self>,
        _: FloatTensor<Self>,
        effective: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::forward(x, effective, None)
    }

    fn fused_add_product(
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        first_column: usize,
    ) -> FloatTensor<Self> {
        low_rank::add(weight, a, b, first_column)
    }

    fn fused_tap(
        y: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: usize,
        _: GradientPath,
    ) -> FloatTensor<Self> {
        y
    }

    fn fused_tap_two(
        y: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: usize,
        _: GradientPath,
    ) -> FloatTensor<Self> {
        y
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
        linear::autodiff::<C>(x, weight, Some(bias), None)
    }

    fn fused_linear_unbiased(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        linear::autodiff::<C>(x, weight, None, None)
    }

    fn fused_linear_effective(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        effective: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::autodiff::<C>(x, weight, Some(bias), Some(effective.into_primitive()))
    }

    fn fused_linear_effective_unbiased(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        effective: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::autodiff::<C>(x, weight, None, Some(effective.into_primitive()))
    }

    fn fused_add_product(
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        first_column: usize,
    ) -> FloatTensor<Self> {
        let (weight, a, b) = (
            weight.into_primitive(),
            a.into_primitive(),
            b.into_primitive(),
        );
        <Self as AutodiffBackend>::from_inner(low_rank::add(weight, a, b, first_column))
    }

    fn fused_tap(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        first_column: usize,
        path: GradientPath,
    ) -> FloatTensor<Self> {
        low_rank::tap::<C>(y, x, [a, b], first_column, path)
    }

    fn fused_tap_two(
        y: FloatTensor<Self>,
        x: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        c: FloatTensor<Self>,
        d: FloatTensor<Self>,
        first_column: usize,
        path: GradientPath,
    ) -> FloatTensor<Self> {
        low_rank::tap_two::<C>(y, x, [a, b], [c, d], first_column, path)
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

/// See [`crate::low_rank_linear`]; there is at least one pair of factors.
pub(crate) fn low_rank_linear(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    updates: &[LowRank],
) -> Tensor<3> {
    let mut effective = weight.clone().into_dispatch();
    for update in updates {
        for (a, b) in &update.pairs {
            let (a, b) = (a.clone().into_dispatch(), b.clone().into_dispatch());
            effective = Dispatch::fused_add_product(effective, a, b, update.first_column);
        }
    }
    let (rows, weight) = (x.clone().into_dispatch(), weight.into_dispatch());
    let mut y = match bias {
        Some(bias) => {
            Dispatch::fused_linear_effective(rows, weight, bias.into_dispatch(), effective)
        }
        None => Dispatch::fused_linear_effective_unbiased(rows, weight, effective),
    };
    for update in updates {
        for pairs in update.pairs.chunks(2) {
            let x = x.clone().into_dispatch();
            let factor = |factor: &Tensor<2>| factor.clone().into_dispatch();
            let (first_column, path) = (update.first_column, update.path);
            y = match pairs {
                [(a, b), (c, d)] => Dispatch::fused_tap_two(
                    y,
                    x,
                    factor(a),
                    factor(b),
                    factor(c),
                    factor(d),
                    first_column,
                    path,
                ),
                [(a, b)] => Dispatch::fused_tap(y, x, factor(a), factor(b), first_column, path),
                _ => y,
            };
        }
    }
    Tensor::from_dispatch(y)
}
