//! The second forward pass: blocks read what a method learned beside the tokens of an image or beside their weights, or
//! run with other updates, and the features of both passes may be used.
//!
//! The query `q(x)` of an image is the feature of the backbone alone, unless a method asks for another. A
//! [`SecondPass`] turns it into the [`Prompting`] of another pass, whose feature is the one that is classified. While
//! a task is trained that may differ from later use, and may add to the loss; evaluation sees no task.
//!
//! Such a model costs two forward passes per image, and plain weights cannot hold it.

pub(crate) mod rows;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_core::Updates;
use sdlora_vit::{Prefix, Prompting, Vit};
use serde::{Deserialize, Serialize};

use crate::state::MethodState;
pub(crate) use crate::state::query;
pub use crate::state::{SecondPass, SecondPassEntry};
use rows::drawn;

/// Features `[batch, width]` of images by a frozen backbone and the state of a method, as evaluation and
/// prediction want them; the width is `d_model` unless a second pass says another.
pub(crate) fn features(
    state: &MethodState,
    vit: &Vit,
    images: Tensor<4>,
    updates: &Updates,
) -> Tensor<2> {
    read(state, vit, images, updates).0
}

/// As [`features`], with what is added to the logits of the first classes.
pub(crate) fn read(
    state: &MethodState,
    vit: &Vit,
    images: Tensor<4>,
    updates: &Updates,
) -> (Tensor<2>, Option<Tensor<2>>) {
    match state.second_pass() {
        None => (vit.forward(images, updates), None),
        Some(second_pass) => {
            let query = second_pass.query(state, vit, images.clone(), updates);
            let shifts = second_pass.shifts(state, &query);
            let prompting = second_pass.prompting(state, query.clone());
            let further = second_pass.further_promptings(state);
            let pass = |prompting: &Prompting| {
                let second = forward(second_pass, state, vit, images.clone(), updates, prompting);
                second_pass.features(&|| query.clone(), second)
            };
            let first = pass(&prompting);
            let n_passes = (1 + further.len()) as f64;
            if further.is_empty() {
                return (first, shifts);
            }
            let sum = further
                .iter()
                .fold(first, |sum, prompting| sum + pass(prompting));
            (sum.div_scalar(n_passes), shifts)
        }
    }
}

/// Features `[batch, d_model]` to train on, and what is added to the loss `[1]`.
pub(crate) fn training_features(
    state: &MethodState,
    vit: &Vit,
    images: Tensor<4>,
    updates: &Updates,
) -> (Tensor<2>, Option<Tensor<1>>) {
    let Some(second_pass) = state.second_pass() else {
        return (vit.forward(images, updates), None);
    };
    let query = || second_pass.query(state, vit, images.clone(), updates);
    let (prompting, of_prompts) = second_pass.training_prompting(state, &query);
    let second = forward(second_pass, state, vit, images.clone(), updates, &prompting);
    let features = second_pass.features(&query, second);
    let of_features = second_pass.feature_loss(state, features.clone());
    let added = match (of_prompts, of_features) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    };
    (features, added)
}

/// The second pass itself; `updates` are those of the first.
fn forward(
    second_pass: &dyn SecondPass,
    state: &MethodState,
    vit: &Vit,
    images: Tensor<4>,
    updates: &Updates,
    prompting: &Prompting,
) -> Tensor<2> {
    let own = second_pass.updates(state);
    vit.forward_prompted(images, own.as_ref().unwrap_or(updates), prompting)
}

/// Most prompts, tokens or tasks that a file is believed to have; their products stay below what an address
/// can count.
const LARGEST: usize = 1 << 20;

/// Checks blocks and counts of a layout from a file: `least_one` may not be 0, `others` may.
pub(crate) fn check_layout(
    depth: usize,
    blocks: &[usize],
    least_one: &[usize],
    others: &[usize],
) -> Result<(), String> {
    if let Some(block) = blocks.iter().find(|&&block| block >= depth) {
        return Err(format!(
            "its prompts are for block {block}, and the backbone has {depth} blocks, which count from 0"
        ));
    }
    if let Some(n) = least_one.iter().chain(others).find(|&&n| n > LARGEST) {
        return Err(format!("its layout has a part of {n}, more than {LARGEST}"));
    }
    match least_one.contains(&0) {
        true => Err("its layout has an empty part".into()),
        false => Ok(()),
    }
}

/// Where the prefix of a new task starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PrefixStart {
    /// From the one before, which the task may not need to learn anew (published code).
    #[default]
    Previous,
    /// Drawn.
    Fresh,
}

impl PrefixStart {
    /// The prefix `[1, width]` of a task after one whose prefix was `previous`.
    pub(crate) fn next(
        self,
        previous: &Param<Tensor<2>>,
        spread: f32,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Param<Tensor<2>> {
        match self {
            Self::Previous => Param::from_tensor(previous.val().detach()),
            Self::Fresh => drawn(previous.lazy_shape().dims::<2>(), spread, rng, device),
        }
    }
}

/// Prefixes for the given blocks from `packed: [batch, n_blocks, 2, length, d_model]` as flat rows
/// `[batch, n_blocks · 2 · length · d_model]`, keys before values.
pub(crate) fn with_prefixes(
    prompting: Prompting,
    packed: Tensor<2>,
    blocks: &[usize],
    length: usize,
) -> Prompting {
    let [batch, n_values] = packed.dims();
    let n_one = n_values / (2 * blocks.len()).max(1);
    let shape = [batch, length, n_one / length.max(1)];
    blocks
        .iter()
        .enumerate()
        .fold(prompting, |prompting, (i, &block_idx)| {
            let part = |k: usize| {
                packed
                    .clone()
                    .narrow(1, (2 * i + k) * n_one, n_one)
                    .reshape(shape)
            };
            prompting.with_prefix(block_idx, Prefix::new(part(0), part(1)))
        })
}
