//! DualPrompt: a general prefix for all tasks in the first blocks, an expert prefix for each task in
//! later ones (Wang et al., ECCV 2022); see [`TaskPrompts`].
//!
//! Trained in task t: the general prefix, the expert of the task with its key, and the head. Experts
//! and keys of earlier tasks are frozen. Without a class token the prefixes act just the same: they
//! are read by all tokens, and the feature is what the backbone pools.
//!
//! A length counts keys, with as many values, as in the published code; the paper's text halves a
//! prompt into the two. As there, prefixes stand behind the projections of a block.

mod prompts;

use sdlora_vit::VitConfig;
use serde::{Deserialize, Serialize};

use super::{
    Method, MethodEntry, TaskContext, check_block_list, check_blocks, check_counts, check_number,
    default_spread, parse,
};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;
use crate::second_pass::PrefixStart;
use prompts::{SECOND_PASS, TaskPromptLayout, TaskPrompts};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "dualprompt",
    summary: "prefixes for all tasks and for each, found by query and key",
    build: |options| {
        let method: DualPrompt = parse("dualprompt", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: Some(SECOND_PASS),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DualPrompt {
    /// Blocks with the general prefix; by default 0 and 1, or the first half of a backbone of less
    /// than four blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    general_blocks: Option<Vec<usize>>,
    /// Keys of the general prefix in each of them (`L_g = 5`).
    #[serde(default = "default_general_length")]
    general_length: usize,
    /// Blocks with the expert prefix; by default those after the general ones up to block 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expert_blocks: Option<Vec<usize>>,
    /// Keys of the expert prefix in each of them (`L_e = 20`).
    #[serde(default = "default_expert_length")]
    expert_length: usize,
    /// Weight of the distance between queries and the key of their task (published code: 1).
    #[serde(default = "default_pull")]
    pull: f64,
    /// Where the expert of a new task starts: `previous` or `fresh`.
    #[serde(default)]
    start: PrefixStart,
    /// Prefixes and keys start in U(-spread, spread).
    #[serde(default = "default_spread")]
    spread: f32,
}

fn default_general_length() -> usize {
    5
}

fn default_expert_length() -> usize {
    20
}

fn default_pull() -> f64 {
    1.0
}

/// Blocks with the general prefix, and the first block without any (section 5: 0 and 1, 2 to 4).
const N_GENERAL: usize = 2;
const END_OF_EXPERTS: usize = 5;

impl DualPrompt {
    fn check(&self) -> Result<(), TrainError> {
        check_counts(&[
            ("general_length", self.general_length),
            ("expert_length", self.expert_length),
        ])?;
        check_number("method.pull", self.pull, true)?;
        check_number("method.spread", f64::from(self.spread), false)?;
        check_block_list("expert_blocks", self.expert_blocks.as_deref())?;
        // An empty list means no general prefix.
        let general = self.general_blocks.as_deref().filter(|b| !b.is_empty());
        check_block_list("general_blocks", general)?;
        Ok(())
    }

    fn layout(&self, depth: usize) -> Result<TaskPromptLayout, TrainError> {
        let n_general = N_GENERAL.min(depth / 2);
        let general = self.general_blocks.clone();
        let expert = self.expert_blocks.clone();
        let layout = TaskPromptLayout {
            general_blocks: general.unwrap_or_else(|| (0..n_general).collect()),
            general_length: self.general_length,
            expert_blocks: expert
                .unwrap_or_else(|| (n_general..END_OF_EXPERTS.min(depth)).collect()),
            expert_length: self.expert_length,
            pull: self.pull,
            n_tasks: 1,
        };
        check_blocks("general_blocks", &layout.general_blocks, depth)?;
        // A block has one prefix, so the two kinds share none.
        let both = [&layout.general_blocks[..], &layout.expert_blocks].concat();
        check_blocks("expert_blocks, behind general_blocks,", &both, depth)?;
        Ok(layout)
    }
}

impl Method for DualPrompt {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let (spread, mut rng) = (self.spread, task.prompt_rng());
        let prompts = match TaskPrompts::of(&model.state) {
            Some(prompts) => prompts.grown(self.start, spread, &mut rng, &task.device),
            None => {
                let vit = model.backbone.config();
                let layout = self.layout(vit.depth)?;
                TaskPrompts::init(&layout, vit.d_model, spread, &mut rng, &task.device)
            }
        };
        model.state = prompts.into_state();
        Ok(task.grow_head(model))
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Zeros
    }

    fn check_shape(&self, vit: &VitConfig) -> Result<(), TrainError> {
        self.layout(vit.depth).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(options: &str, depth: usize) -> Result<TaskPromptLayout, TrainError> {
        let method: DualPrompt = parse("dualprompt", &options.parse().unwrap())?;
        method.check()?;
        method.layout(depth)
    }

    #[test]
    fn the_published_blocks_are_the_default_and_shallow_backbones_share_theirs() {
        let blocks = |depth| {
            let layout = layout("", depth).unwrap();
            (layout.general_blocks, layout.expert_blocks)
        };
        assert_eq!(blocks(12), (vec![0, 1], vec![2, 3, 4]));
        assert_eq!(blocks(4), (vec![0, 1], vec![2, 3]));
        assert_eq!(blocks(2), (vec![0], vec![1]));
        assert_eq!(blocks(1), (vec![], vec![0]));
    }

    #[test]
    fn blocks_that_do_not_exist_or_are_shared_are_refused() {
        for options in [
            "expert_blocks = [12]",
            "expert_blocks = [1]",
            "general_blocks = [3, 3]",
            "expert_blocks = []",
            "expert_length = 0",
            "pull = -1.0",
            "spread = 0.0",
        ] {
            let error = layout(options, 12).unwrap_err().to_string();
            assert!(error.contains("setting `method."), "{error}");
        }
        let none = layout("general_blocks = []", 12).unwrap();
        assert!(none.general_blocks.is_empty());
    }
}
