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
    let (mut to_weight, mut beside) = (Vec::new(), Vec::new());
    for update in updates {
        let terms = update.pairs.iter().map(|(a, b)| match update.path {
            GradientPath::Weight => a.clone().matmul(b.clone()),
            GradientPath::Rows => rows.clone().matmul(a.clone()).matmul(b.clone()),
        });
        let Some(sum) = terms.reduce(|sum, term| sum + term) else {
            continue;
        };
        match update.path {
            GradientPath::Weight => to_weight.push((update.first_column, sum)),
            GradientPath::Rows => beside.push((update.first_column, sum)),
        }
    }
    let weight = match embed(to_weight, d_output) {
        Some(sum) => weight + sum,
        None => weight,
    };
    let y = linear(x, weight, bias);
    match embed(beside, d_output) {
        Some(sum) => y + sum.reshape([batch, n_tokens, d_output]),
        None => y,
    }
}

/// The sum of blocks of columns, each beginning at its column, in a matrix of `n_columns` that is 0 elsewhere; `None`
/// for no block.
///
/// Blocks beside each other are written into one matrix at once. A matrix for each and a sum would make two more of the
/// full size for every further block: 232 MB each for a ViT-B of 224 pixels and a batch of 128 in `f32`.
///
/// # Panics
///
/// If a block reaches beyond the last column.
fn embed(blocks: Vec<(usize, Tensor<2>)>, n_columns: usize) -> Option<Tensor<2>> {
    // Blocks that overlap go into different layers.
    let mut layers: Vec<Vec<(usize, Tensor<2>)>> = Vec::new();
    for (first, block) in blocks {
        let end = first + block.dims()[1];
        let is_free = |layer: &&mut Vec<(usize, Tensor<2>)>| {
            layer
                .iter()
                .all(|(column, other)| end <= *column || column + other.dims()[1] <= first)
        };
        match layers.iter_mut().find(is_free) {
            Some(layer) => layer.push((first, block)),
            None => layers.push(vec![(first, block)]),
        }
    }
    layers
        .into_iter()
        .map(|layer| beside_each_other(layer, n_columns))
        .reduce(|sum, layer| sum + layer)
}

/// Sets at least one block, none of which overlaps another one, into a matrix of `n_columns` that is 0 elsewhere.
fn beside_each_other(mut blocks: Vec<(usize, Tensor<2>)>, n_columns: usize) -> Tensor<2> {
    blocks.sort_by_key(|&(first, _)| first);
    let (device, dtype) = (blocks[0].1.device(), blocks[0].1.dtype());
    let [n_rows, _] = blocks[0].1.dims();
    let zeros = |width| Tensor::<2>::zeros([n_rows, width], (&device, dtype));
    let mut pieces = Vec::with_capacity(2 * blocks.len() + 1);
    let mut column = 0;
    for (first, block) in blocks {
        if first > column {
            pieces.push(zeros(first - column));
        }
        column = first + block.dims()[1];
        pieces.push(block);
    }
    assert!(
        column <= n_columns,
        "an update reaches to column {column} of {n_columns}"
    );
    if column < n_columns {
        pieces.push(zeros(n_columns - column));
    }
    match pieces.len() {
        1 => pieces.remove(0),
        _ => Tensor::cat(pieces, 1),
    }
}
