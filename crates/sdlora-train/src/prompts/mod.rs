//! What prompt methods learn: tokens, or keys and values, that a frozen backbone reads beside the
//! image's own, and how those of one image are found.
//!
//! The query `q(x)` of an image is the feature of the backbone without prompts. [`Prompts`] turns it
//! into the [`Prompting`] of a second forward pass. While a task is trained that may differ from
//! later use, and may add to the loss; evaluation sees no task.
//!
//! Such a model is two forward passes an image and cannot be merged into plain weights.

mod components;
mod file;
mod hierarchical;
mod per_task;
mod pool;
mod rows;
mod task_identity;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sdlora_core::Updates;
use sdlora_vit::{Prefix, Prompting, Vit};
use serde::{Deserialize, Serialize};

use crate::heads::FloatsStored;

pub use components::{BlockComponents, ComponentLayout, Components, PromptComponents};
pub(crate) use file::{read, write};
pub use hierarchical::{HierarchicalLayout, HierarchicalPrompts};
pub use per_task::{ExpertStart, TaskPromptLayout, TaskPrompts};
pub use pool::{PoolLayout, PromptPool};
pub use task_identity::{Review, TaskIdentity};

/// Prompts of a model.
#[allow(
    clippy::large_enum_variant,
    reason = "a model holds one, and a module cannot be boxed"
)]
#[derive(Module, Debug)]
pub enum Prompts {
    /// Tokens chosen from one pool (L2P).
    Pool(PromptPool),
    /// Prefixes shared by all tasks and prefixes of one task (DualPrompt).
    PerTask(TaskPrompts),
    /// Prefixes that are weighted sums of components (CODA-Prompt).
    Components(PromptComponents),
    /// Prefixes of one task, found by class Gaussians (HiDe-Prompt).
    Hierarchical(HierarchicalPrompts),
}

/// Everything about prompts but their numbers: with the width of the backbone it tells every shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PromptLayout {
    /// Of [`Prompts::Pool`].
    Pool(PoolLayout),
    /// Of [`Prompts::PerTask`].
    PerTask(TaskPromptLayout),
    /// Of [`Prompts::Components`].
    Components(ComponentLayout),
    /// Of [`Prompts::Hierarchical`].
    Hierarchical(HierarchicalLayout),
}

/// Most prompts, tokens or tasks that a file is believed to have; their products stay below what an address
/// can count.
const LARGEST: usize = 1 << 20;

impl PromptLayout {
    /// Checks that the numbers of a file describe prompts for a backbone of `depth` blocks.
    pub(crate) fn check(&self, depth: usize) -> Result<(), String> {
        let (blocks, counts) = match self {
            Self::Pool(pool) => {
                if pool.top > pool.n_prompts {
                    return Err(format!("{} of {} prompts", pool.top, pool.n_prompts));
                }
                (Vec::new(), vec![pool.top, pool.length])
            }
            Self::PerTask(tasks) => {
                let blocks = [&tasks.general_blocks[..], &tasks.expert_blocks].concat();
                (blocks, vec![tasks.n_tasks, tasks.expert_length])
            }
            Self::Components(c) => (c.blocks.clone(), vec![c.length, c.n_current]),
            Self::Hierarchical(tasks) => {
                if let Some(task) = tasks.class_tasks.iter().find(|&&t| t >= tasks.n_tasks) {
                    return Err(format!("a class of task {task} of {} tasks", tasks.n_tasks));
                }
                (tasks.blocks.clone(), vec![tasks.n_tasks, tasks.length])
            }
        };
        if let Some(block) = blocks.iter().find(|&&block| block >= depth) {
            return Err(format!(
                "its prompts are for block {block}, and the backbone has {depth} blocks, which \
                 count from 0"
            ));
        }
        let others = match self {
            Self::Pool(pool) => pool.n_prompts,
            Self::PerTask(tasks) => tasks.general_length,
            Self::Components(c) => c.n_past,
            Self::Hierarchical(_) => 0,
        };
        if let Some(n) = counts.iter().chain([&others]).find(|&&n| n > LARGEST) {
            return Err(format!("its layout has a part of {n}, more than {LARGEST}"));
        }
        if counts.contains(&0) {
            return Err(format!("its layout {self:?} has an empty part"));
        }
        Ok(())
    }
}

impl Prompts {
    /// Prompts of zeros, to be filled with saved ones.
    pub fn zeros(layout: &PromptLayout, d_model: usize, device: &Device) -> Self {
        match layout {
            PromptLayout::Pool(layout) => Self::Pool(PromptPool::zeros(layout, d_model, device)),
            PromptLayout::PerTask(layout) => {
                Self::PerTask(TaskPrompts::zeros(layout, d_model, device))
            }
            PromptLayout::Components(layout) => {
                Self::Components(PromptComponents::zeros(layout, d_model, device))
            }
            PromptLayout::Hierarchical(layout) => {
                Self::Hierarchical(HierarchicalPrompts::zeros(layout, d_model, device))
            }
        }
    }

    /// What [`Prompts::zeros`] needs for prompts of these shapes.
    pub fn layout(&self) -> PromptLayout {
        match self {
            Self::Pool(prompts) => PromptLayout::Pool(prompts.layout()),
            Self::PerTask(prompts) => PromptLayout::PerTask(prompts.layout()),
            Self::Components(prompts) => PromptLayout::Components(prompts.layout()),
            Self::Hierarchical(prompts) => PromptLayout::Hierarchical(prompts.layout()),
        }
    }

    /// Features `[batch, d_model]` of images by a frozen backbone with these prompts, as evaluation
    /// and prediction want them.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the backbone.
    pub fn features(&self, vit: &Vit, images: Tensor<4>, updates: &Updates) -> Tensor<2> {
        let query = query(vit, images.clone(), updates);
        let prompting = match self {
            Self::Pool(prompts) => prompts.prompting(query).0,
            Self::PerTask(prompts) => prompts.prompting(query),
            Self::Components(prompts) => prompts.prompting(query),
            Self::Hierarchical(prompts) => prompts.prompting(query),
        };
        vit.forward_prompted(images, updates, &prompting)
    }

    /// What is kept of classes whose images are gone, the prompts themselves aside.
    pub fn floats_stored(&self) -> FloatsStored {
        match self {
            Self::Hierarchical(prompts) => prompts.floats_stored(),
            Self::Pool(_) | Self::PerTask(_) | Self::Components(_) => FloatsStored::default(),
        }
    }

    /// Features `[batch, d_model]` to train on, and what is added to the loss `[1]`.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the backbone.
    pub fn training_features(
        &self,
        vit: &Vit,
        images: Tensor<4>,
        updates: &Updates,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        let query = || query(vit, images.clone(), updates);
        let (prompting, auxiliary) = match self {
            Self::Pool(prompts) => {
                let (prompting, pull) = prompts.prompting(query());
                (prompting, Some(pull))
            }
            Self::PerTask(prompts) => {
                let (prompting, pull) = prompts.training_prompting(query());
                (prompting, Some(pull))
            }
            Self::Components(prompts) => (prompts.prompting(query()), None),
            // The task is known, so nothing has to be asked for.
            Self::Hierarchical(prompts) => (prompts.training_prompting(), None),
        };
        let features = vit.forward_prompted(images.clone(), updates, &prompting);
        let auxiliary = match self {
            Self::Hierarchical(prompts) => prompts.contrast(features.clone()),
            _ => auxiliary,
        };
        (features, auxiliary)
    }
}

/// `q(x)`, a constant: no gradient goes through it.
fn query(vit: &Vit, images: Tensor<4>, updates: &Updates) -> Tensor<2> {
    vit.forward(images, updates).detach()
}

/// Prefixes for the given blocks from `packed: [batch, n_blocks, 2, length, d_model]` as flat rows
/// `[batch, n_blocks · 2 · length · d_model]`, keys before values.
fn with_prefixes(
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
