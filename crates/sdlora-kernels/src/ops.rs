//! The public operations: each picks its fused or its generic form for the tensors it is given.

use burn::tensor::{FloatDType, Tensor};

#[cfg(feature = "flex")]
use crate::flex;
use crate::generic;
use crate::low_rank::LowRank;

/// Whether the operations on a tensor run in their fused form; where they do not, they run in [`generic`].
///
/// How something is best computed can depend on it, because a fused form neither launches a kernel nor makes a tensor
/// for every step of the formula.
pub fn is_fused<const D: usize>(x: &Tensor<D>) -> bool {
    #[cfg(feature = "flex")]
    if flex::takes(x) {
        return true;
    }
    let _ = x;
    false
}

/// Exact GELU, element by element: `x Φ(x)` with `Φ` the cumulative normal distribution.
///
/// This is the form with `erf`, the default of PyTorch and of timm's ViTs, not the `tanh`
/// approximation.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if flex::takes(&x) {
        return flex::gelu(x);
    }
    generic::gelu(x)
}

/// Layer norm over the last axis: `(x − μ) / √(σ² + eps) · gamma + beta`.
///
/// # Shapes
///
/// - `x`: `[.., d_model]`
/// - `gamma`, `beta`: `[d_model]`
/// - output: `[.., d_model]`
///
/// `σ²` is the biased variance (divided by `d_model`), as in PyTorch.
/// Gradients of `gamma` and `beta` are computed only where they are tracked.
/// An `x` of another number type is normed in the type of `gamma` and given back in its own: means
/// and variances of half-precision tokens are those of `f32`.
///
/// # Panics
///
/// If `gamma` or `beta` is not as wide as the last axis of `x`.
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    let d_model = x.dims()[D - 1];
    let ([d_gamma], [d_beta]) = (gamma.dims(), beta.dims());
    assert!(
        d_gamma == d_model && d_beta == d_model,
        "layer_norm: gamma has width {d_gamma} and beta {d_beta}, the last axis of x has \
         {d_model}: pass parameters of that width"
    );
    let (dtype, within) = (x.dtype(), gamma.dtype());
    if dtype != within {
        let x = x.cast(FloatDType::from(within));
        return layer_norm(x, gamma, beta, eps).cast(FloatDType::from(dtype));
    }
    #[cfg(feature = "flex")]
    if flex::takes(&x) && flex::takes(&gamma) && flex::takes(&beta) {
        return flex::layer_norm(x, gamma, beta, eps);
    }
    generic::layer_norm(x, gamma, beta, eps)
}

/// Multi-head self-attention on a packed projection: `softmax(q kᵀ / √d_head) v` for each head.
///
/// # Shapes
///
/// - `qkv`: `[batch, n_tokens, 3 * d_model]`, the last axis packed as `q|k|v` with the heads of
///   each one after another (the layout of timm's `qkv` layer), `d_head = d_model / n_heads`
/// - output: `[batch, n_tokens, d_model]`, heads one after another
///
/// The gradient has the packed layout of the input.
///
/// # Panics
///
/// If the last axis is not three times a multiple of `n_heads`, or `n_heads` is 0.
pub fn qkv_attention(qkv: Tensor<3>, n_heads: usize) -> Tensor<3> {
    let [_, _, d_packed] = qkv.dims();
    assert!(
        n_heads > 0 && d_packed.is_multiple_of(3 * n_heads),
        "qkv_attention: packed width {d_packed} is not 3 x {n_heads} heads x a whole head width: \
         pass q|k|v of equal width, each divisible by the number of heads"
    );
    #[cfg(feature = "flex")]
    if flex::takes(&qkv) {
        return flex::qkv_attention(qkv, n_heads);
    }
    generic::qkv_attention(qkv, n_heads)
}

/// Linear map of the last axis: `x W + b`.
///
/// # Shapes
///
/// - `x`: `[batch, n_tokens, d_input]`
/// - `weight`: `[d_input, d_output]`, burn's layout
/// - `bias`: `[d_output]`
/// - output: `[batch, n_tokens, d_output]`
///
/// Only tracked operands get a gradient: a frozen weight costs nothing in the backward pass.
///
/// # Panics
///
/// If the widths do not fit together.
pub fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    let [_, _, d_input] = x.dims();
    let [d_weight_input, d_output] = weight.dims();
    assert!(
        d_weight_input == d_input,
        "linear: weight expects {d_weight_input} input features, x has {d_input}: pass a weight \
         of shape [{d_input}, d_output]"
    );
    if let Some(bias) = &bias {
        let [d_bias] = bias.dims();
        assert!(
            d_bias == d_output,
            "linear: bias has width {d_bias}, weight has {d_output} output features: pass a bias \
             of that width"
        );
    }
    #[cfg(feature = "flex")]
    if flex::takes(&x) && flex::takes(&weight) && bias.as_ref().is_none_or(flex::takes) {
        return flex::linear(x, weight, bias);
    }
    generic::linear(x, weight, bias)
}

/// Linear map with updates added to its weight: `x (W + Σ a b) + bias`.
///
/// The sum is formed once, so the product over the rows costs what it costs without updates.
///
/// # Shapes
///
/// - `x`: `[batch, n_tokens, d_input]`
/// - `weight`: `[d_input, d_output]`
/// - `bias`: `[d_output]`
/// - output: `[batch, n_tokens, d_output]`
///
/// Only tracked operands get a gradient: a frozen weight costs nothing in the backward pass, and
/// of its gradient only what the updates need is formed.
///
/// # Panics
///
/// If the widths do not fit together or an update reaches beyond the last column.
pub fn low_rank_linear(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    updates: &[LowRank],
) -> Tensor<3> {
    let [d_input, d_output] = weight.dims();
    for LowRank {
        first_column,
        pairs,
        ..
    } in updates
    {
        for (a, b) in pairs {
            let ([rows, rank], [rank_b, width]) = (a.dims(), b.dims());
            assert!(
                rows == d_input && rank == rank_b && first_column + width <= d_output,
                "low_rank_linear: factors [{rows}, {rank}] and [{rank_b}, {width}] at column \
                 {first_column} do not fit a weight [{d_input}, {d_output}]: pass an update \
                 that lies within the weight"
            );
        }
    }
    if updates.iter().all(|update| update.pairs.is_empty()) {
        return linear(x, weight, bias);
    }
    #[cfg(feature = "flex")]
    {
        let factors = || updates.iter().flat_map(|update| &update.pairs);
        if flex::takes(&x)
            && flex::takes(&weight)
            && bias.as_ref().is_none_or(flex::takes)
            && factors().all(|(a, b)| flex::takes(a) && flex::takes(b))
        {
            return flex::low_rank_linear(x, weight, bias, updates);
        }
    }
    generic::low_rank_linear(x, weight, bias, updates)
}
