//! A frozen linear map with low-rank updates on blocks of its columns.
//!
//! The forward pass multiplies once, by `W + Σ a b`, whatever the number of updates.
//! What the updates need in the backward pass hangs on the result as taps: operations that leave
//! the value as it is, pass its gradient `dy` on untouched, and give `da = xᵀ dy bᵀ` and
//! `db = aᵀ xᵀ dy` from the columns they cover.
//! Either way of bracketing gives the same numbers: through the weight, `(xᵀ dy)`, whose cost does
//! not grow with the rank, or through the rows, `(x a)` and `(dy bᵀ)`, which is cheaper for a small
//! rank.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, NodeGuard, Ops, OpsKind},
};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::Shape;

use super::buffer;
use super::matmul::{Matrix, add_product, multiply};
use crate::low_rank::GradientPath;

/// `weight + a b` on the columns from `first_column` on, in place where `weight` is not shared.
pub(super) fn add(
    weight: FlexTensor,
    a: FlexTensor,
    b: FlexTensor,
    first_column: usize,
) -> FlexTensor {
    /// Elements of one task that copies a shared weight.
    const CHUNK: usize = 1 << 14;

    let mut weight = buffer::owned(weight, CHUNK);
    let width = b.layout().shape()[1];
    add_product(
        Matrix::of(&a),
        Matrix::of(&b),
        &mut weight,
        first_column..first_column + width,
    );
    weight
}

/// The factors of one update.
#[derive(Clone, Debug)]
struct Pair {
    a: FlexTensor,
    b: FlexTensor,
}

/// `y` with the gradient of one update; see the module.
pub(super) fn tap<C: CheckpointStrategy>(
    y: FloatTensor<Autodiff<Flex, C>>,
    x: FloatTensor<Autodiff<Flex, C>>,
    [a, b]: [FloatTensor<Autodiff<Flex, C>>; 2],
    first_column: usize,
    path: GradientPath,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = [y.node(), a.node(), b.node()];
    let pairs = vec![Pair {
        a: a.into_primitive(),
        b: b.into_primitive(),
    }];
    record::<C, _>(nodes, y, x, pairs, first_column, path)
}

/// `y` with the gradients of two updates of the same columns, which share `xᵀ dy`.
pub(super) fn tap_two<C: CheckpointStrategy>(
    y: FloatTensor<Autodiff<Flex, C>>,
    x: FloatTensor<Autodiff<Flex, C>>,
    [a, b]: [FloatTensor<Autodiff<Flex, C>>; 2],
    [c, d]: [FloatTensor<Autodiff<Flex, C>>; 2],
    first_column: usize,
    path: GradientPath,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = [y.node(), a.node(), b.node(), c.node(), d.node()];
    let pairs = [(a, b), (c, d)].map(|(a, b)| Pair {
        a: a.into_primitive(),
        b: b.into_primitive(),
    });
    record::<C, _>(nodes, y, x, pairs.into(), first_column, path)
}

fn record<C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    y: FloatTensor<Autodiff<Flex, C>>,
    x: FloatTensor<Autodiff<Flex, C>>,
    pairs: Vec<Pair>,
    first_column: usize,
    path: GradientPath,
) -> FloatTensor<Autodiff<Flex, C>> {
    match Tap.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let state = State {
                x: x.into_primitive(),
                pairs,
                first_column,
                path,
            };
            prep.finish(state, y.into_primitive())
        }
        OpsKind::UnTracked(prep) => prep.finish(y.into_primitive()),
    }
}

#[derive(Debug)]
struct Tap;

#[derive(Clone, Debug)]
struct State {
    x: FlexTensor,
    pairs: Vec<Pair>,
    first_column: usize,
    path: GradientPath,
}

/// The parents are `y`, then `a` and `b` of each pair.
impl<const N: usize> Backward<Flex, N> for Tap {
    type State = State;

    fn backward(self, ops: Ops<State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let parents = ops.parents.map(|node| node.map(|node| node.id));
        let [node_y, node_factors @ ..] = &parents[..] else {
            return;
        };
        let State {
            x,
            pairs,
            first_column,
            path,
        } = ops.state;
        let grad = buffer::contiguous(grads.consume::<Flex>(&ops.node));
        let x = buffer::contiguous(x);
        let width = pairs[0].b.layout().shape()[1];
        let (rows, d_y) = (
            Matrix::rows_of(&x),
            Matrix::rows_of(&grad).columns(first_column..first_column + width),
        );
        let d_weight = match path {
            GradientPath::Weight if node_factors.iter().any(Option::is_some) => {
                let shape = Shape::new([rows.n_columns(), width]);
                let values = multiply(rows.transposed(), d_y, None);
                Some(buffer::tensor(values, shape))
            }
            _ => None,
        };
        for (pair, nodes) in pairs.iter().zip(node_factors.chunks_exact(2)) {
            let (a, b) = (Matrix::of(&pair.a), Matrix::of(&pair.b));
            if let Some(node) = nodes[0] {
                let values = match &d_weight {
                    Some(d_weight) => multiply(Matrix::of(d_weight), b.transposed(), None),
                    None => {
                        let inner = multiply(d_y, b.transposed(), None);
                        let inner = buffer::tensor(inner, Shape::new([d_y.n_rows(), b.n_rows()]));
                        multiply(rows.transposed(), Matrix::of(&inner), None)
                    }
                };
                let shape = pair.a.layout().shape().clone();
                grads.register::<Flex>(node, buffer::tensor(values, shape));
            }
            if let Some(node) = nodes[1] {
                let values = match &d_weight {
                    Some(d_weight) => multiply(a.transposed(), Matrix::of(d_weight), None),
                    None => {
                        let inner = multiply(rows, a, None);
                        let inner =
                            buffer::tensor(inner, Shape::new([rows.n_rows(), a.n_columns()]));
                        multiply(Matrix::of(&inner).transposed(), d_y, None)
                    }
                };
                let shape = pair.b.layout().shape().clone();
                grads.register::<Flex>(node, buffer::tensor(values, shape));
            }
        }
        if let Some(node) = node_y {
            grads.register::<Flex>(*node, grad);
        }
    }
}
