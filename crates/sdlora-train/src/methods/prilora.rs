//! PRILoRA: a LoRA per task with ranks that rise from the first block to the last, and down-projections that lose
//! their least important entries (Benedek and Wolf 2024, EACL, "PRILoRA: Pruned and Rank-Increasing Low-Rank
//! Adaptation", arXiv 2401.11316).
//!
//! No code is published. Ranks are those of the paper; interval, running mean and share of the pruning are a
//! reconstruction, see [`Pruning`].

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora_per_task::PerTask;
use super::{MethodEntry, check_counts, check_projections, parse, query_and_value};
use crate::slot::{Pruning, SlotSpec};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "prilora",
    summary: "a LoRA per task, ranks rising with depth, pruned while it trains (rank, last_rank, every, share)",
    build: |options| {
        let method: PriLora = parse("prilora", options)?;
        check_counts(&[("last_rank", method.last_rank)])?;
        let seen = [Projection::Query, Projection::Key, Projection::Value];
        check_projections(&method.projections, &seen)?;
        let slot = SlotSpec {
            pruning: Some(Pruning {
                every: method.every,
                share: method.share,
                decay: method.decay,
            }),
            last_block_rank: Some(method.last_rank),
            ..SlotSpec::default()
        };
        PerTask::built(&method.projections, method.rank, slot)
    },
    second_pass: None,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PriLora {
    /// Rank in the first block.
    #[serde(default = "first_rank")]
    rank: usize,
    /// Rank in the last block.
    #[serde(default = "last_rank")]
    last_rank: usize,
    /// Adapted projections of every block: those that see the normed tokens.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Steps between two prunings.
    #[serde(default = "every")]
    every: usize,
    /// Share of the entries of a rank that is pruned; 0 prunes nothing.
    #[serde(default = "share")]
    share: f64,
    /// What the running mean of the norms keeps.
    #[serde(default = "decay")]
    decay: f64,
}

/// The paper's ranks, with the mean 8.
fn first_rank() -> usize {
    4
}

fn last_rank() -> usize {
    12
}

fn every() -> usize {
    Pruning::default().every
}

fn share() -> f64 {
    Pruning::default().share
}

fn decay() -> f64 {
    Pruning::default().decay
}
