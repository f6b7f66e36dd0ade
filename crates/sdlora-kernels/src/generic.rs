//! The operations of this crate in plain burn tensor operations: they run on every backend and are
//! differentiated by burn's autodiff.
//!
//! They define what the fused forms must compute and are the reference of their tests.

use core::f64::consts::FRAC_1_SQRT_2;

use burn::tensor::{Tensor, module, ops::AttentionModuleOptions};

use crate::low_rank::{GradientPath, LowRank};

/// Exact GELU, see [`crate::gelu`].
///
/// Composed of `erf`, not burn's own operation: the backward of that is the derivative of the `tanh`
/// approximation on every backend but `flex` (burn 0.22.1, `burn-backend/src/backend/ops/activation.rs`).
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let twice_share = x.clone().mul_scalar(FRAC_1_SQRT_2).erf() + 1.0;
    x * twice_share * 0.5
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

/// Linear map with updates added to its weight, see [`crate::low_rank_linear`].
///
/// Gradients are those of autodiff, so an update whose gradient goes through the rows is computed
/// through them in the forward pass too: `x W + (x a) b`.
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
    let [batch, n_tokens, d_input] = x.dims();
    let [_, d_output] = weight.dims();
    let rows = x.clone().reshape([batch * n_tokens, d_input]);
    let mut weight = weight;
    let mut beside: Option<Tensor<2>> = None;
    for update in updates {
        let terms = update.pairs.iter().map(|(a, b)| match update.path {
            GradientPath::Weight => a.clone().matmul(b.clone()),
            GradientPath::Rows => rows.clone().matmul(a.clone()).matmul(b.clone()),
        });
        let Some(sum) = terms.reduce(|sum, term| sum + term) else {
            continue;
        };
        let block = embed(sum, update.first_column, d_output);
        match update.path {
            GradientPath::Weight => weight = weight + block,
            GradientPath::Rows => {
                beside = Some(match beside {
                    Some(sum) => sum + block,
                    None => block,
                });
            }
        }
    }
    let y = linear(x, weight, bias);
    match beside {
        Some(sum) => y + sum.reshape([batch, n_tokens, d_output]),
        None => y,
    }
}

/// Sets a block of columns into a matrix of `n_columns` that is 0 elsewhere.
fn embed(block: Tensor<2>, first_column: usize, n_columns: usize) -> Tensor<2> {
    let [n_rows, width] = block.dims();
    let (device, dtype) = (block.device(), block.dtype());
    let zeros = |width| Tensor::<2>::zeros([n_rows, width], &device).cast(dtype);
    let last = first_column + width;
    let mut blocks = vec![block];
    if first_column > 0 {
        blocks.insert(0, zeros(first_column));
    }
    if last < n_columns {
        blocks.push(zeros(n_columns - last));
    }
    match blocks.len() {
        1 => blocks.remove(0),
        _ => Tensor::cat(blocks, 1),
    }
}
