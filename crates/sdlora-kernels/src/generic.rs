//! The operations of this crate in plain burn tensor operations: they run on every backend and are
//! differentiated by burn's autodiff.
//!
//! They define what the fused forms must compute and are the reference of their tests.

use burn::tensor::{Tensor, activation, module, ops::AttentionModuleOptions};

/// Exact GELU, see [`crate::gelu`].
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    activation::gelu(x)
}

/// Layer norm over the last axis, see [`crate::layer_norm`].
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    eps: f64,
) -> Tensor<D> {
    module::layer_norm(x, gamma, Some(beta), eps)
}

/// Multi-head self-attention on packed `q|k|v`, see [`crate::qkv_attention`].
///
/// # Panics
///
/// If the last axis is not three times a multiple of `n_heads`, or `n_heads` is 0.
pub fn qkv_attention(qkv: Tensor<3>, n_heads: usize) -> Tensor<3> {
    let [batch, n_tokens, d_packed] = qkv.dims();
    let d_model = d_packed / 3;
    let d_head = d_model / n_heads;

    let parts = qkv
        .reshape([batch, n_tokens, 3, n_heads, d_head])
        .permute([2, 0, 3, 1, 4]);
    let part = |idx: usize| -> Tensor<4> {
        parts
            .clone()
            .narrow(0, idx, 1)
            .reshape([batch, n_heads, n_tokens, d_head])
    };
    // Without a scale of its own `attention` divides by the root of the head width.
    let heads = module::attention(
        part(0),
        part(1),
        part(2),
        None,
        None,
        AttentionModuleOptions::default(),
    );
    heads.swap_dims(1, 2).reshape([batch, n_tokens, d_model])
}

/// Linear map of the last axis, see [`crate::linear`].
pub fn linear(x: Tensor<3>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<3> {
    module::linear(x, weight, bias)
}
