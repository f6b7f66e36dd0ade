//! The state of a method and the second pass that reads it: each is a part of the other.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use sdlora_core::Updates;
use sdlora_vit::{Prompting, Vit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a matrix of a [`MethodState`] is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A parameter that some task trains or trained; not counted as kept of old classes.
    Parameter,
    /// Kept of old classes, one row per class.
    PerClass,
    /// Kept of old classes, of a size that does not depend on their number.
    Shared,
}

/// A named matrix.
#[derive(Module, Debug)]
pub(crate) struct Matrix {
    pub(super) values: Param<Tensor<2>>,
    #[module(skip)]
    pub(super) name: String,
    #[module(skip)]
    pub(super) role: Role,
}

/// Small values by name: what a method has to know of its matrices besides their numbers.
pub type Facts = BTreeMap<String, Value>;

/// The matrices that a method keeps from task to task; empty for a method without.
#[derive(Module, Debug, Default)]
pub struct MethodState {
    pub(super) matrices: Vec<Matrix>,
    #[module(skip)]
    pub(super) facts: Facts,
    #[module(skip)]
    pub(super) second_pass: Option<Arc<dyn SecondPass>>,
}

/// A state without its numbers, as a checkpoint keeps it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StateShape {
    pub(super) matrices: Vec<MatrixShape>,
    #[serde(default)]
    pub(super) facts: Facts,
    /// The layout of the second pass with its kind.
    #[serde(default)]
    pub(super) second_pass: Option<Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MatrixShape {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) shape: [usize; 2],
}

/// Key of the kind in the layout of a second pass.
const KIND: &str = "kind";

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

/// `q(x)`, a constant: no gradient goes through it.
pub(crate) fn query(vit: &Vit, images: Tensor<4>, updates: &Updates) -> Tensor<2> {
    vit.forward(images, updates).detach()
}

/// The layout of a second pass with its kind.
pub(super) fn layout_of(second_pass: &dyn SecondPass) -> Value {
    let mut layout = second_pass.layout();
    if let Value::Object(fields) = &mut layout {
        fields.insert(KIND.into(), second_pass.kind().into());
    }
    layout
}

/// The kind that a layout names.
pub(crate) fn kind_of(layout: &Value) -> &str {
    layout.get(KIND).and_then(Value::as_str).unwrap_or("")
}
