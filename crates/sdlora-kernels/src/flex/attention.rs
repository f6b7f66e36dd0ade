//! Multi-head self-attention on packed `q|k|v`.
//!
//! For one head `P = softmax(q kᵀ s)` with `s = 1 / √d_head` and `o = P v`.
//! With `dP = do vᵀ` and `dS = P (dP − Σⱼ P dP) s` row by row, the backward is `dq = dS k`,
//! `dk = dSᵀ q`, `dv = Pᵀ do`.
//!
//! One task handles one head of one image, reads its columns of the packed rows in place and
//! writes its columns of the result: nothing is permuted, sliced or joined.
//! The probabilities are not kept but computed again in the backward pass, from the same scores
//! and the same two numbers a row, hence to the same bits.

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
use columns::{Sizes, heads};
use kernel::{Forward, Gradient, Softmax};

mod columns;
mod kernel;

/// Attention over packed `q|k|v` `[batch, n_tokens, 3 * d_model]`.
pub(super) fn forward(qkv: FlexTensor, n_heads: usize) -> FlexTensor {
    attend(&buffer::contiguous(qkv), n_heads).0
}

fn attend(qkv: &FlexTensor, n_heads: usize) -> (FlexTensor, Vec<Softmax>) {
    let sizes = Sizes::new(qkv, n_heads);
    let Sizes {
        batch,
        n_tokens,
        d_model,
        ..
    } = sizes;
    let mut softmax = vec![Softmax::default(); batch * n_heads * n_tokens];
    let images = buffer::values(qkv)
        .par_chunks((n_tokens * 3 * d_model).max(1))
        .zip(softmax.par_chunks_mut((n_heads * n_tokens).max(1)));
    let out = buffer::build(
        batch * n_tokens * d_model,
        n_tokens * d_model,
        images,
        |out, (qkv, softmax)| {
            heads(out, d_model, sizes.d_head)
                .into_par_iter()
                .zip(softmax.par_chunks_mut(n_tokens))
                .enumerate()
                .with_min_len(sizes.heads_per_task())
                .for_each(|(head, (out, softmax))| {
                    vectorize(Forward {
                        sizes,
                        qkv,
                        head,
                        out,
                        softmax,
                    });
                });
        },
    );
    let out = buffer::tensor(out, Shape::new([batch, n_tokens, d_model]));
    (out, softmax)
}

/// [`forward`] with its backward.
pub(super) fn autodiff<C: CheckpointStrategy>(
    qkv: FloatTensor<Autodiff<Flex, C>>,
    n_heads: usize,
) -> FloatTensor<Autodiff<Flex, C>> {
    match Attention
        .prepare::<C>([qkv.node()])
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(mut prep) => {
            let qkv_id = prep.checkpoint(&qkv);
            let (out, softmax) = attend(&buffer::contiguous(qkv.into_primitive()), n_heads);
            let state = State {
                qkv: qkv_id,
                n_heads,
                softmax: softmax.into(),
            };
            prep.finish(state, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(qkv.into_primitive(), n_heads)),
    }
}

#[derive(Debug)]
struct Attention;

#[derive(Clone, Debug)]
struct State {
    qkv: NodeId,
    n_heads: usize,
    softmax: Arc<[Softmax]>,
}

impl Backward<Flex, 1> for Attention {
    type State = State;

    fn backward(self, ops: Ops<State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let State {
            qkv,
            n_heads,
            softmax,
        } = ops.state;
        let grad = buffer::contiguous(grads.consume::<Flex>(&ops.node));
        let qkv = buffer::contiguous(checkpointer.retrieve_node_output::<FlexTensor>(qkv));
        if let Some(node) = node {
            let grad = gradient(&grad, &qkv, n_heads, &softmax);
            grads.register::<Flex>(node.id, grad);
        }
    }
}

/// The gradient of the packed input.
fn gradient(
    grad: &FlexTensor,
    qkv: &FlexTensor,
    n_heads: usize,
    softmax: &[Softmax],
) -> FlexTensor {
    let sizes = Sizes::new(qkv, n_heads);
    let Sizes {
        batch,
        n_tokens,
        d_model,
        ..
    } = sizes;
    let images = buffer::values(qkv)
        .par_chunks((n_tokens * 3 * d_model).max(1))
        .zip(buffer::values(grad).par_chunks((n_tokens * d_model).max(1)))
        .zip(softmax.par_chunks((n_heads * n_tokens).max(1)));
    let out = buffer::build(
        batch * n_tokens * 3 * d_model,
        n_tokens * 3 * d_model,
        images,
        |out, ((qkv, grad), softmax)| {
            let mut queries = heads(out, 3 * d_model, sizes.d_head);
            let mut keys = queries.split_off(n_heads);
            let values = keys.split_off(n_heads);
            queries
                .into_par_iter()
                .zip(keys)
                .zip(values)
                .zip(softmax.par_chunks(n_tokens))
                .enumerate()
                .with_min_len(sizes.heads_per_task())
                .for_each(|(head, (((d_q, d_k), d_v), softmax))| {
                    vectorize(Gradient {
                        sizes,
                        qkv,
                        grad,
                        head,
                        softmax,
                        d_q,
                        d_k,
                        d_v,
                    });
                });
        },
    );
    buffer::tensor(out, Shape::new([batch, n_tokens, 3 * d_model]))
}
