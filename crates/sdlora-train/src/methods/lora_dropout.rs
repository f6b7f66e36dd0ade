//! LoRA Dropout: a LoRA per task whose inputs and outputs are dropped at random while it trains (Lin et al. 2024,
//! "LoRA Dropout as a Sparsity Regularizer for Overfitting Control", arXiv 2404.09610).
//!
//! A step averages the losses of `n_masks` masks over rows of A and columns of B; a rank is never dropped, and what
//! is kept is not scaled up. Elsewhere the update counts `(1 − p)²`, the mean over masks: one model that merges.
//! Differs from the paper: it may also average the outputs of several masked models at inference; here the mean of
//! the weights stands for them, because one file and one pass is what a merged model is for.

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora_per_task::PerTask;
use super::{MethodEntry, check_counts, default_rank, parse, query_and_value};
use crate::slot::{Masks, SlotSpec};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "lora-dropout",
    summary: "a LoRA per task under masks on inputs and outputs (dropout, n_masks)",
    build: |options| {
        let method: LoraDropout = parse("lora-dropout", options)?;
        check_counts(&[("n_masks", method.n_masks)])?;
        let slot = SlotSpec {
            dropout: Some(Masks {
                share: method.dropout,
                n_masks: method.n_masks,
            }),
            ..SlotSpec::default()
        };
        PerTask::built(&method.projections, method.rank, slot)
    },
    second_pass: None,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoraDropout {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// p: share of inputs and of outputs that a mask drops; 0 is plain LoRA.
    #[serde(default = "half")]
    dropout: f64,
    /// Masks a step; each costs a forward and a backward pass.
    #[serde(default = "four")]
    n_masks: usize,
}

fn half() -> f64 {
    0.5
}

fn four() -> usize {
    4
}
