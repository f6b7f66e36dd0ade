//! A linear map whose weight carries low-rank updates.

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use crate::flex;
use crate::generic;

/// How the gradients of an update's factors are bracketed; both give the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GradientPath {
    /// Through `xᵀ dy`, a matrix of the weight's shape: its cost hardly grows with the rank.
    Weight,
    /// Through `x a` and `dy bᵀ`, two matrices of `rank` columns: the cheaper way for a small rank.
    Rows,
}

/// An update `Σ a b` of a block of a weight's columns.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// First output column the update covers.
    pub first_column: usize,
    /// Factors `a: [d_input, rank]` and `b: [rank, width]`; at least one pair, all of one width.
    pub pairs: Vec<(Tensor<2>, Tensor<2>)>,
    /// How the gradients of the factors are computed.
    pub path: GradientPath,
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
        return crate::linear(x, weight, bias);
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
