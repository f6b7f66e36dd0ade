//! SD-LoRA: a new direction per task, all magnitudes trained, earlier directions frozen.
//!
//! `W = W0 + Σ_{k<t} α_k D_k + α_t A_t B_t`; trained in task t: A_t, B_t, α_1..α_t and the head.
//! The variants differ in norms and starts only, see [`Variant`].

use sdlora_core::{Projection, SdLoraConfig, Variant};
use serde::{Deserialize, Serialize};

use super::{Method, MethodEntry, TaskContext, default_rank, parse, query_and_value};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora",
    summary: "a direction per task with shared trainable magnitudes (variant: reference, paper, carry)",
    build: |options| {
        let method: SdLora = parse("sdlora", options)?;
        method.config().check()?;
        Ok(Box::new(method))
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SdLora {
    /// Named combination of settings.
    #[serde(default = "default_variant")]
    variant: Variant,
    /// Rank of every direction.
    #[serde(default = "default_rank")]
    rank: usize,
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

impl SdLora {
    fn config(&self) -> SdLoraConfig {
        self.settings.unwrap_or_else(|| self.variant.config())
    }
}

impl Method for SdLora {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let model = task.begin_direction(model, self.rank)?;
        Ok(task.grow_head(model))
    }

    fn adapter(&self) -> SdLoraConfig {
        self.config()
    }

    fn projections(&self) -> &[Projection] {
        &self.projections
    }
}
