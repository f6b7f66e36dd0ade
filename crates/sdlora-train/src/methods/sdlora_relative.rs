//! SD-LoRA for long streams: a direction stays as long as it was trained, and its magnitude is
//! relative to that length.
//!
//! `W = W0 + Σ_{k≤t} m_k A_k B_k`, nothing divided; m_t starts at 1, and trained in task t are A_t,
//! B_t, m_1..m_t and the head. The functions are those of the variant `carry`, whose α_k is
//! m_k · norm_k: neither jumps where a task ends. What differs is how far a step of a magnitude
//! moves the weight. The gradient of m_k is norm_k times that of α_k and moves the weight by another
//! norm_k, so old directions move by norm_k² of what they do in `carry`. A direction of a short
//! task is short, and after a hundred tasks it is steps of old magnitudes, driven by the newest
//! classes alone, that carry the features away from what old classes were learned with.
//!
//! The head is nearest class mean where the configuration names none: columns that were trained in
//! different tasks were never compared with each other, and with a hundred tasks that alone costs
//! more than anything the backbone does (`docs/decisions/0015-long-streams.md`).

use sdlora_core::{CurrentForm, MagnitudeSharing, MagnitudeStart, PastNorm, SdLoraConfig};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::{
    AdapterSpec, Method, MethodEntry, Ranks, TaskContext, check_counts, check_projections,
    default_rank, parse, query_and_value,
};
use crate::error::TrainError;
use crate::heads::{ColumnStart, HeadConfig};
use crate::model::Model;
use crate::slot::SlotSpec;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora-relative",
    summary: "for long streams: directions keep their trained length, magnitudes are relative to it, class means classify",
    build: |options| {
        let method: SdLoraRelative = parse("sdlora-relative", options)?;
        check_counts(&[("rank", method.rank)])?;
        check_projections(&method.projections, &Projection::ALL)?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SdLoraRelative {
    /// Rank of every direction.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
}

impl Method for SdLoraRelative {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let model = task.begin_direction(model, self.rank)?;
        Ok(task.grow_head(model))
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(AdapterSpec {
            settings: SdLoraConfig {
                past_norm: PastNorm::Unit,
                current: CurrentForm::Raw,
                start: MagnitudeStart::Keep { value: 1.0 },
                sharing: MagnitudeSharing::Shared,
            },
            projections: self.projections.clone(),
            ranks: Ranks::constant(self.rank),
            slot: SlotSpec::default(),
        })
    }

    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("ncm")
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Kaiming
    }
}
