//! Layer norm over the last axis.
//!
//! `x̂ = (x − μ) r` with `r = 1 / √(σ² + ε)`, `y = x̂ γ + β`.
//! The backward pass needs `x`, `μ` and `r`; with `g = dy γ` it is
//! `dx = r (g − mean(g) − x̂ mean(g x̂))`, `dγ = Σ dy x̂` and `dβ = Σ dy` over the rows.

use std::sync::Arc;

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::Shape;
use rayon::prelude::*;

use super::buffer;
use super::simd::vectorize;
use kernel::{InputGradient, Moments, Normalise, ParameterGradients};

mod kernel;

/// Elements of one task: a few rows of a wide model, many of a narrow one.
const CHUNK: usize = 4096;
/// Rows summed by one task for the gradients of `γ` and `β`; fixes the order of the sum.
const SUM_ROWS: usize = 64;

/// Layer norm of every row, in place where `x` is not shared.
pub(super) fn forward(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, eps: f64) -> FlexTensor {
    normalise(x, gamma, beta, eps).0
}

fn normalise(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    eps: f64,
) -> (FlexTensor, Vec<Moments>) {
    let width = width_of(&x);
    let (gamma, beta) = (buffer::contiguous(gamma), buffer::contiguous(beta));
    let (gamma, beta) = (buffer::values(&gamma), buffer::values(&beta));
    let mut moments = vec![Moments::default(); x.layout().num_elements() / width];
    let rows = rows_of(width);
    let out = buffer::map(
        x,
        rows * width,
        moments.par_chunks_mut(rows),
        |x, moments| {
            vectorize(Normalise {
                x,
                gamma,
                beta,
                eps: eps as f32,
                moments,
            });
        },
    );
    (out, moments)
}

/// [`forward`] with its backward.
pub(super) fn autodiff<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    gamma: FloatTensor<Autodiff<Flex, C>>,
    beta: FloatTensor<Autodiff<Flex, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = [x.node(), gamma.node(), beta.node()];
    match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let x_id = prep.checkpoint(&x);
            let gamma = gamma.into_primitive();
            let (out, moments) = normalise(
                x.into_primitive(),
                gamma.clone(),
                beta.into_primitive(),
                eps,
            );
            let state = State {
                x: x_id,
                gamma,
                moments: moments.into(),
            };
            prep.finish(state, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(
            x.into_primitive(),
            gamma.into_primitive(),
            beta.into_primitive(),
            eps,
        )),
    }
}

#[derive(Debug)]
struct LayerNorm;

#[derive(Clone, Debug)]
struct State {
    x: NodeId,
    gamma: FlexTensor,
    moments: Arc<[Moments]>,
}

impl Backward<Flex, 3> for LayerNorm {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [node_x, node_gamma, node_beta] = ops.parents;
        let State { x, gamma, moments } = ops.state;
        let grad = buffer::contiguous(grads.consume::<Flex>(&ops.node));
        let x = buffer::contiguous(checkpointer.retrieve_node_output::<FlexTensor>(x));

        if node_gamma.is_some() || node_beta.is_some() {
            let (d_gamma, d_beta) = parameter_gradients(&grad, &x, &moments);
            if let Some(node) = node_gamma {
                grads.register::<Flex>(node.id, d_gamma);
            }
            if let Some(node) = node_beta {
                grads.register::<Flex>(node.id, d_beta);
            }
        }
        if let Some(node) = node_x {
            grads.register::<Flex>(node.id, input_gradient(grad, &x, gamma, &moments));
        }
    }
}

/// The gradient of `x`, in place of `grad` where that is not shared.
fn input_gradient(
    grad: FlexTensor,
    x: &FlexTensor,
    gamma: FlexTensor,
    moments: &[Moments],
) -> FlexTensor {
    let width = width_of(x);
    let gamma = buffer::contiguous(gamma);
    let gamma = buffer::values(&gamma);
    let rows = rows_of(width);
    let inputs = buffer::values(x)
        .par_chunks(rows * width)
        .zip(moments.par_chunks(rows));
    buffer::map(grad, rows * width, inputs, |grad, (x, moments)| {
        vectorize(InputGradient {
            grad,
            x,
            gamma,
            moments,
        });
    })
}

/// The gradients of `γ` and `β`.
fn parameter_gradients(
    grad: &FlexTensor,
    x: &FlexTensor,
    moments: &[Moments],
) -> (FlexTensor, FlexTensor) {
    let width = width_of(x);
    let n_parts = moments.len().div_ceil(SUM_ROWS);
    let inputs = buffer::values(grad)
        .par_chunks(SUM_ROWS * width)
        .zip(buffer::values(x).par_chunks(SUM_ROWS * width))
        .zip(moments.par_chunks(SUM_ROWS));
    let parts = buffer::build(
        n_parts * 2 * width,
        2 * width,
        inputs,
        |sums, ((grad, x), moments)| {
            let (gamma, beta) = sums.split_at_mut(width);
            vectorize(ParameterGradients {
                grad,
                x,
                moments,
                gamma,
                beta,
            });
        },
    );
    let mut total = vec![0.0; 2 * width];
    for part in parts.chunks_exact(2 * width) {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
    let beta = total.split_off(width);
    let shape = Shape::new([width]);
    (
        buffer::tensor(total, shape.clone()),
        buffer::tensor(beta, shape),
    )
}

/// Length of the last axis; 1 for an axis of length 0, whose tensor has no rows.
fn width_of(x: &FlexTensor) -> usize {
    x.layout().shape().last().copied().unwrap_or(1).max(1)
}

/// Rows of one task.
fn rows_of(width: usize) -> usize {
    (CHUNK / width).max(1)
}
