//! One LoRA for all tasks, fine-tuned in sequence: `W = W0 + A B`, nothing rescaled, nothing kept.

use sdlora_core::{CurrentForm, MagnitudeSharing, MagnitudeStart, PastNorm, SdLoraConfig};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::{
    AdapterSpec, Method, MethodEntry, Ranks, TaskContext, check_counts, check_projections,
    check_slot, default_rank, parse, query_and_value,
};
use crate::error::TrainError;
use crate::model::Model;
use crate::slot::SlotSpec;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "lora",
    summary: "one LoRA, fine-tuned in sequence",
    build: |options| Ok(Box::new(Lora::read("lora", options)?)),
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lora {
    /// Rank of the factors.
    #[serde(default = "default_rank")]
    pub(super) rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// What the slot has besides factors.
    #[serde(default)]
    slot: SlotSpec,
}

impl Lora {
    /// Reads and checks the options of a method that has these.
    pub(super) fn read(name: &str, options: &toml::Table) -> Result<Self, TrainError> {
        let lora: Self = parse(name, options)?;
        check_counts(&[("rank", lora.rank)])?;
        check_projections(&lora.projections, &Projection::ALL)?;
        check_slot(&lora.slot, &lora.projections, lora.rank)?;
        Ok(lora)
    }
}

/// Slots of coefficient 1, never rescaled, of the same rank in every task.
pub(super) fn plain_lora(projections: &[Projection], rank: usize) -> AdapterSpec {
    AdapterSpec {
        settings: SdLoraConfig {
            past_norm: PastNorm::Unit,
            current: CurrentForm::Raw,
            start: MagnitudeStart::Keep { value: 1.0 },
            sharing: MagnitudeSharing::Shared,
        },
        projections: projections.to_vec(),
        ranks: Ranks::constant(rank),
        slot: SlotSpec::default(),
    }
}

impl Lora {
    pub(super) fn spec(&self) -> AdapterSpec {
        AdapterSpec {
            slot: self.slot.clone(),
            ..plain_lora(&self.projections, self.rank)
        }
    }
}

/// Starts the slot in the first task; later tasks go on with it.
impl Method for Lora {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if task.task_idx == 0 {
            model = task.begin_directions(model, &self.spec())?;
            model.adapter = model.adapter.with_current_magnitude_trainable(false);
        }
        Ok(task.grow_head(model))
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(self.spec())
    }
}
