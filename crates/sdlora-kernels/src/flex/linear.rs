//! Linear map of the last axis: one matrix product over all rows, `y = x W + b`.
//!
//! `dx = dy Wᵀ`, `dW = xᵀ dy`, `db = Σ dy` over the rows, each only where it is tracked; `x` is
//! kept only for `dW` and `W` only for `dx`.

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, NodeGuard, Ops, OpsKind},
};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::Shape;

use super::buffer;
use super::matmul::{Matrix, column_sums, multiply};

/// `x W + b` for every row of `x`.
pub(super) fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
    let x = buffer::contiguous(x);
    let bias = bias.map(buffer::contiguous);
    let weight = Matrix::of(&weight);
    let out = multiply(
        Matrix::rows_of(&x),
        weight,
        bias.as_ref().map(buffer::values),
    );
    buffer::tensor(out, with_last(x.layout().shape(), weight.n_columns()))
}

/// [`forward`] with its backward. Where `effective` is given, the weight plus a term with a gradient
/// of its own, it stands in for the weight: the gradient of either is `xᵀ dy`.
pub(super) fn autodiff<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    weight: FloatTensor<Autodiff<Flex, C>>,
    bias: Option<FloatTensor<Autodiff<Flex, C>>>,
    effective: Option<FlexTensor>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = [x.node(), weight.node()];
    match bias {
        None => record::<C, 2>(nodes, x, weight, None, effective),
        Some(bias) => {
            let [node_x, node_weight] = nodes;
            let (bias, node_bias) = bias.into_parts();
            let nodes = [node_x, node_weight, node_bias];
            record::<C, 3>(nodes, x, weight, Some(bias), effective)
        }
    }
}

fn record<C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    x: FloatTensor<Autodiff<Flex, C>>,
    weight: FloatTensor<Autodiff<Flex, C>>,
    bias: Option<FlexTensor>,
    effective: Option<FlexTensor>,
) -> FloatTensor<Autodiff<Flex, C>> {
    match Linear.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = State {
                x: weight.is_tracked().then(|| prep.checkpoint(&x)),
                weight: x.is_tracked().then(|| match &effective {
                    None => Weight::Node(prep.checkpoint(&weight)),
                    Some(effective) => Weight::Kept(effective.clone()),
                }),
            };
            let weight = effective.unwrap_or_else(|| weight.into_primitive());
            prep.finish(state, forward(x.into_primitive(), weight, bias))
        }
        OpsKind::UnTracked(prep) => {
            let weight = effective.unwrap_or_else(|| weight.into_primitive());
            prep.finish(forward(x.into_primitive(), weight, bias))
        }
    }
}

#[derive(Debug)]
struct Linear;

/// The operands the gradients need: each the other's.
#[derive(Clone, Debug)]
struct State {
    x: Option<NodeId>,
    weight: Option<Weight>,
}

#[derive(Clone, Debug)]
enum Weight {
    Node(NodeId),
    /// Belongs to no node.
    Kept(FlexTensor),
}

/// The parents are `x`, the weight and, for `N = 3`, the bias.
impl<const N: usize> Backward<Flex, N> for Linear {
    type State = State;

    fn backward(self, ops: Ops<State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let mut parents = ops.parents.into_iter().map(|node| node.map(|node| node.id));
        let mut next = || parents.next().flatten();
        let (node_x, node_weight, node_bias) = (next(), next(), next());
        let grad = buffer::contiguous(grads.consume::<Flex>(&ops.node));
        let mut operand = |id| checkpointer.retrieve_node_output::<FlexTensor>(id);

        let weight = ops.state.weight.map(|weight| match weight {
            Weight::Node(id) => operand(id),
            Weight::Kept(weight) => weight,
        });
        if let (Some(node), Some(weight)) = (node_x, weight) {
            let weight = Matrix::of(&weight).transposed();
            let d_x = multiply(Matrix::rows_of(&grad), weight, None);
            let shape = with_last(grad.layout().shape(), weight.n_columns());
            grads.register::<Flex>(node, buffer::tensor(d_x, shape));
        }
        if let (Some(node), Some(x)) = (node_weight, ops.state.x.map(&mut operand)) {
            let x = buffer::contiguous(x);
            let (x, grad) = (Matrix::rows_of(&x).transposed(), Matrix::rows_of(&grad));
            let shape = Shape::new([x.n_rows(), grad.n_columns()]);
            grads.register::<Flex>(node, buffer::tensor(multiply(x, grad, None), shape));
        }
        if let Some(node) = node_bias {
            let d_bias = column_sums(&grad);
            let shape = Shape::new([d_bias.len()]);
            grads.register::<Flex>(node, buffer::tensor(d_bias, shape));
        }
    }
}

/// `shape` with another last axis.
fn with_last(shape: &Shape, width: usize) -> Shape {
    let mut shape = shape.clone();
    let last = shape.num_dims() - 1;
    shape[last] = width;
    shape
}
