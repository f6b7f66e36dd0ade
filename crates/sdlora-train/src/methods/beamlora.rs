//! BeamLoRA: a LoRA per task whose ranks compete, and whose weak ranks give way to copies of strong ones (Gu et al.
//! 2025, ACL, "BeamLoRA: Beam-Constraint Low-Rank Adaptation", arXiv 2502.13604).
//!
//! `W = W0 + Σ_k A_k diag(r · softmax(g_k / τ)) B_k`, see [`Beam`].

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora_per_task::PerTask;
use super::{MethodEntry, default_rank, parse, query_and_value};
use crate::slot::{Beam, SlotSpec};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "beamlora",
    summary: "a LoRA per task whose weak ranks are replaced by copies of strong ones (temperature, period, share)",
    build: |options| {
        let method: BeamLora = parse("beamlora", options)?;
        let slot = SlotSpec {
            beam: Some(Beam {
                temperature: method.temperature,
                period: method.period,
                share: method.share,
            }),
            ..SlotSpec::default()
        };
        PerTask::built(&method.projections, method.rank, slot)
    },
    second_pass: None,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BeamLora {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// τ of the softmax.
    #[serde(default = "temperature")]
    temperature: f64,
    /// Share of the steps of a task between two exchanges.
    #[serde(default = "period")]
    period: f64,
    /// Share of the importance that stays at the start of a task.
    #[serde(default = "share")]
    share: f64,
}

fn temperature() -> f64 {
    Beam::default().temperature
}

fn period() -> f64 {
    Beam::default().period
}

fn share() -> f64 {
    Beam::default().share
}
