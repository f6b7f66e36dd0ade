//! The second forward pass: blocks read what a method learned beside the tokens of an image or beside their weights, or
//! run with other updates, and the features of both passes may be used.
//!
//! The query `q(x)` of an image is the feature of the backbone alone, unless a method asks for another. A
//! [`SecondPass`] turns it into the [`Prompting`] of another pass, whose feature is the one that is classified. While
//! a task is trained that may differ from later use, and may add to the loss; evaluation sees no task.
//!
//! Such a model costs two forward passes per image, and plain weights cannot hold it.

pub(crate) mod rows;

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_core::Updates;
use sdlora_vit::{Prefix, Prompting, Vit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::state::{MethodState, kind_of};
use rows::drawn;

/// How blocks read the [`MethodState`] of a method. It holds everything about the matrices but their numbers.
pub trait SecondPass: Any + Debug + Send + Sync {
    /// The name of this reading in files, unique among all methods.
    fn kind(&self) -> &'static str;

    /// The fields of this value as a JSON object; [`SecondPassEntry`] reads it back.
    fn layout(&self) -> Value;

    /// Checks that a layout from a file makes sense for a backbone of `depth` blocks.
    ///
    /// # Errors
    ///
    /// A sentence without a full stop that says what does not.
    fn check(&self, depth: usize) -> Result<(), String>;

    /// Room for the matrices of this layout, for a backbone of width `d_model`.
    fn room(&self, d_model: usize, device: &Device) -> MethodState;

    /// What such a model does that no form of weights can hold, as the end of "the method …".
    fn does(&self) -> &'static str {
        "makes a second pass for every image"
    }

    /// The query `[batch, width]` of images, by one forward pass without gradients; the feature unless said otherwise.
    fn query(
        &self,
        _state: &MethodState,
        vit: &Vit,
        images: Tensor<4>,
        updates: &Updates,
    ) -> Tensor<2> {
        query(vit, images, updates)
    }

    /// What a query adds to the logits of the first classes `[batch, n_shifted]`, where it tells of their tasks.
    fn shifts(&self, _state: &MethodState, _query: &Tensor<2>) -> Option<Tensor<2>> {
        None
    }

    /// What the blocks read for images with this [`query`](Self::query), as evaluation and prediction want it: no
    /// task is told.
    fn prompting(&self, state: &MethodState, query: Tensor<2>) -> Prompting;

    /// What the blocks read in further passes, as [`prompting`](Self::prompting): the features of all of them are
    /// averaged.
    fn further_promptings(&self, _state: &MethodState) -> Vec<Prompting> {
        Vec::new()
    }

    /// What the blocks read for images of the task that is trained, and what that adds to the loss `[1]`. A
    /// query costs one forward pass.
    fn training_prompting(
        &self,
        state: &MethodState,
        query: &dyn Fn() -> Tensor<2>,
    ) -> (Prompting, Option<Tensor<1>>) {
        (self.prompting(state, query()), None)
    }

    /// The updates of the second pass, in the place of those of the first; `None` where both have the same.
    fn updates(&self, _state: &MethodState) -> Option<Updates> {
        None
    }

    /// The features of images, of those of the `second` pass and of the `query`, both `[batch, d_model]`. The query
    /// is computed where it is called for.
    fn features(&self, _query: &dyn Fn() -> Tensor<2>, second: Tensor<2>) -> Tensor<2> {
        second
    }

    /// The width of [`features`](Self::features) where that of a pass is `d_model`.
    fn width(&self, d_model: usize) -> usize {
        d_model
    }

    /// What features `[batch, d_model]` of the second pass add to the loss `[1]` of the task that is trained.
    fn feature_loss(&self, _state: &MethodState, _features: Tensor<2>) -> Option<Tensor<1>> {
        None
    }
}

/// A second pass as a method registers it.
#[derive(Debug, Clone, Copy)]
pub struct SecondPassEntry {
    kind: &'static str,
    read: fn(&Value) -> Result<Arc<dyn SecondPass>, String>,
}

impl SecondPassEntry {
    /// The second pass of layout `L`, which is called `kind` in files.
    pub const fn of<L: SecondPass + DeserializeOwned + 'static>(kind: &'static str) -> Self {
        fn read<L: SecondPass + DeserializeOwned + 'static>(
            layout: &Value,
        ) -> Result<Arc<dyn SecondPass>, String> {
            let layout = L::deserialize(layout)
                .map_err(|e| format!("the layout of its prompts is unreadable ({e})"))?;
            Ok(Arc::new(layout))
        }
        Self {
            kind,
            read: read::<L>,
        }
    }

    /// The name in files.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Reads a layout.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong with it.
    pub(crate) fn read(&self, layout: &Value) -> Result<Arc<dyn SecondPass>, String> {
        match kind_of(layout) {
            kind if kind == self.kind => (self.read)(layout),
            kind => Err(format!(
                "its prompts are of kind `{kind}`, and `{}` is needed",
                self.kind
            )),
        }
    }
}

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

/// `q(x)`, a constant: no gradient goes through it.
pub(crate) fn query(vit: &Vit, images: Tensor<4>, updates: &Updates) -> Tensor<2> {
    vit.forward(images, updates).detach()
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
