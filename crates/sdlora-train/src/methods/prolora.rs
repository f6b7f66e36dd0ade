//! PRoLoRA: a LoRA per task whose factors are rotated repetitions of one chunk (Wang et al. 2024, ACL, "PRoLoRA:
//! Partial Rotation Empowers More Parameter-Efficient LoRA", arXiv 2402.16902).
//!
//! `W = W0 + Σ_k A_k B_k`, with `A_k` and `B_k` expanded from `n` times smaller factors but for `unshared` ranks;
//! see [`sdlora_core::Chunks`].

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora_per_task::PerTask;
use super::{MethodEntry, check_counts, default_rank, parse, query_and_value};
use crate::slot::{Chunking, SlotSpec};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "prolora",
    summary: "a LoRA per task expanded from rotated chunks, for a fraction of the numbers (chunks, unshared)",
    build: |options| {
        let method: ProLora = parse("prolora", options)?;
        check_counts(&[("chunks", method.chunks)])?;
        let slot = SlotSpec {
            chunks: Some(Chunking {
                n: method.chunks,
                unshared: method.unshared,
            }),
            ..SlotSpec::default()
        };
        PerTask::built(&method.projections, method.rank, slot)
    },
    second_pass: None,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProLora {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Chunks of either factor; 1 is plain LoRA.
    #[serde(default = "two")]
    chunks: usize,
    /// Ranks with factors of their own; all of them is plain LoRA.
    #[serde(default = "one")]
    unshared: usize,
}

fn one() -> usize {
    1
}

fn two() -> usize {
    2
}
