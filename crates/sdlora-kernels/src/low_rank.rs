//! Low-rank updates of a weight, and how their gradients are computed.

use burn::tensor::Tensor;

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
