//! SD-LoRA: a new direction per task, all magnitudes trained, earlier directions frozen.
//!
//! `W = W0 + Σ_{k<t} α_k D_k + α_t A_t B_t`; trained in task t: A_t, B_t, α_1..α_t and the head.
//! The variants differ in norms and starts only, see [`Variant`].

use sdlora_core::{SdLoraConfig, Variant};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::{
    Method, MethodEntry, TaskContext, check_counts, check_projections, default_rank, parse,
    query_and_value,
};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora",
    summary: "a direction per task with shared trainable magnitudes (variant: reference, paper, carry)",
    build: |options| {
        let method: SdLora = parse("sdlora", options)?;
        method.family.check()?;
        check_counts(&[("rank", method.rank)])?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

/// What every method of the SD-LoRA family lets choose.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Family {
    /// Named combination of settings.
    #[serde(default = "default_variant")]
    variant: Variant,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Single settings instead of the variant's.
    #[serde(default)]
    settings: Option<SdLoraConfig>,
}

fn default_variant() -> Variant {
    Variant::Reference
}

impl Family {
    pub(super) fn config(&self) -> SdLoraConfig {
        self.settings.unwrap_or_else(|| self.variant.config())
    }

    pub(super) fn check(&self) -> Result<(), TrainError> {
        check_projections(&self.projections, &Projection::ALL)?;
        Ok(self.config().check()?)
    }

    pub(super) fn projections(&self) -> &[Projection] {
        &self.projections
    }
}

// No `deny_unknown_fields` here and in the rest of the family: serde cannot combine it with
// `flatten`; `parse` refuses unknown options.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct SdLora {
    /// Rank of every direction.
    #[serde(default = "default_rank")]
    rank: usize,
    #[serde(flatten)]
    family: Family,
}

impl Method for SdLora {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let model = task.begin_direction(model, self.rank)?;
        Ok(task.grow_head(model))
    }

    fn adapter(&self) -> SdLoraConfig {
        self.family.config()
    }

    fn projections(&self) -> &[Projection] {
        self.family.projections()
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Kaiming
    }

    fn ranks(&self) -> Vec<usize> {
        vec![self.rank]
    }
}
