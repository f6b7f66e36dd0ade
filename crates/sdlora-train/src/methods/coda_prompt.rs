//! CODA-Prompt: prefixes that are sums of components, each weighted by how well an image's query
//! fits it (Smith et al., CVPR 2023); see [`PromptComponents`].
//!
//! Trained in task t: the components the task adds, and the head. Components of earlier tasks stay
//! in the sum and are frozen. Without a class token the prefixes act just the same.
//!
//! The paper shares a fixed number of components (100) out to the tasks; here a task adds
//! `n_components`, so the number of tasks need not be known: 10 is the paper's in its streams of ten
//! tasks. On longer streams share the 100 out as the paper does (1 for each of 100 tasks): keys and
//! attentions have `d_model` numbers, so no more than `d_model` of them can be orthogonal. Components
//! beyond that start as random directions of length 1, overlap with all earlier ones from the start,
//! and so every image answers to components of other tasks.
//!
//! New components are made orthogonal by Gram and Schmidt, as the published code does; so the penalty
//! of the paper (`λ = 0.1`) is 0 by default, as in the published scripts.

mod components;

use burn::tensor::Tensor;
use sdlora_vit::VitConfig;
use serde::{Deserialize, Serialize};

use super::{
    Method, MethodEntry, TaskContext, check_block_list, check_blocks, check_counts, check_number,
    parse,
};
use crate::error::TrainError;
use crate::model::Model;
use components::{ComponentLayout, PromptComponents, SECOND_PASS};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "coda-prompt",
    summary: "prefixes summed from components weighted by attention, more for every task",
    build: |options| {
        let method: CodaPrompt = parse("coda-prompt", options)?;
        check_counts(&[
            ("n_components", method.n_components),
            ("length", method.length),
        ])?;
        check_number("method.orthogonality", method.orthogonality, true)?;
        check_block_list("blocks", method.blocks.as_deref())?;
        Ok(Box::new(method))
    },
    second_pass: Some(SECOND_PASS),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CodaPrompt {
    /// Components that a task adds to every block with prompts.
    #[serde(default = "ten")]
    n_components: usize,
    /// Keys of a prefix, and as many values: half the prompt length of the paper (8).
    #[serde(default = "four")]
    length: usize,
    /// Blocks with prompts; by default the first five.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blocks: Option<Vec<usize>>,
    /// Weight of the penalty on components that are not orthogonal (paper: `λ = 0.1`; published
    /// scripts: 0, beside a start by Gram and Schmidt).
    #[serde(default)]
    orthogonality: f64,
}

fn ten() -> usize {
    10
}

fn four() -> usize {
    4
}

/// Blocks with prompts, from the first (section 5).
const N_BLOCKS: usize = 5;

impl CodaPrompt {
    fn layout(&self, depth: usize) -> Result<ComponentLayout, TrainError> {
        let all = || (0..N_BLOCKS.min(depth)).collect();
        let layout = ComponentLayout {
            blocks: self.blocks.clone().unwrap_or_else(all),
            length: self.length,
            n_past: 0,
            n_current: self.n_components,
        };
        check_blocks("blocks", &layout.blocks, depth)?;
        Ok(layout)
    }
}

impl Method for CodaPrompt {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let mut rng = task.prompt_rng();
        let prompts = match PromptComponents::of(&model.state) {
            Some(prompts) => prompts.grown(self.n_components, &mut rng, &task.device),
            None => {
                let vit = model.backbone.config();
                let layout = self.layout(vit.depth)?;
                PromptComponents::init(&layout, vit.d_model, &mut rng, &task.device)
            }
        };
        model.state = prompts.into_state();
        Ok(task.grow_head(model))
    }

    fn check_shape(&self, vit: &VitConfig) -> Result<(), TrainError> {
        self.layout(vit.depth).map(drop)
    }

    fn penalty(&self, model: &Model) -> Option<Tensor<1>> {
        if self.orthogonality == 0.0 {
            return None;
        }
        let overlap = PromptComponents::of(&model.state)?.overlap()?;
        Some(overlap.mul_scalar(self.orthogonality))
    }
}
