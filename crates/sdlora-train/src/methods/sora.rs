//! SoRA: a LoRA per task whose ranks have a gate that is driven to exact zeros, so that data choose the rank of
//! every site (Ding et al. 2023, EMNLP, "Sparse Low-rank Adaptation of Pre-trained Language Models", arXiv
//! 2311.11696).
//!
//! `W = W0 + Σ_k A_k diag(g_k) B_k`. After every step `g ← sign(g) · max(|g| − ξ, 0)`; after the task ranks with a
//! gate of 0 disappear. See [`SoftThreshold`].

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora_per_task::PerTask;
use super::{MethodEntry, default_rank, parse, query_and_value};
use crate::slot::{SlotSpec, SoftThreshold, Thresholds};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sora",
    summary: "a LoRA per task that loses ranks while it trains (threshold, penalty)",
    build: |options| {
        let sora: Sora = parse("sora", options)?;
        let slot = SlotSpec {
            gate: Some(SoftThreshold {
                threshold: sora.threshold,
                penalty: sora.penalty,
                lr_factor: sora.gate_lr,
            }),
            ..SlotSpec::default()
        };
        PerTask::built(&sora.projections, sora.rank, slot)
    },
    second_pass: None,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sora {
    /// Rank at the start of every task.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// ξ, or a list whose values share the steps of a task out among them.
    #[serde(default = "published_threshold")]
    threshold: Thresholds,
    /// λ of the mean of |g| in the loss.
    #[serde(default)]
    penalty: f64,
    /// Factor on the learning rate of the gates.
    #[serde(default = "one")]
    gate_lr: f64,
}

fn published_threshold() -> Thresholds {
    SoftThreshold::default().threshold
}

fn one() -> f64 {
    1.0
}
