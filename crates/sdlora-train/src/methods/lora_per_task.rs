//! A LoRA per task: `W = W0 + Σ_k A_k B_k`, earlier ones frozen, nothing rescaled.
//!
//! What SD-LoRA adds to it are norms and trained magnitudes.

use sdlora_vit::Projection;

use super::lora::{Lora, plain_lora};
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, check_counts, check_projections, check_slot,
};
use crate::error::TrainError;
use crate::model::Model;
use crate::slot::SlotSpec;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "lora-per-task",
    summary: "a LoRA per task, summed, nothing rescaled",
    build: |options| {
        let lora = Lora::read("lora-per-task", options)?;
        Ok(Box::new(PerTask(lora.spec())))
    },
    second_pass: None,
};

/// A slot per task; what it has besides factors is what makes several methods.
#[derive(Debug, Clone)]
pub(super) struct PerTask(pub(super) AdapterSpec);

impl PerTask {
    /// Slots of a rank on these projections, checked.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for the first setting out of its range.
    pub(super) fn built(
        projections: &[Projection],
        rank: usize,
        slot: SlotSpec,
    ) -> Result<Box<dyn Method>, TrainError> {
        check_counts(&[("rank", rank)])?;
        check_projections(projections, &Projection::ALL)?;
        check_slot(&slot, projections, rank)?;
        Ok(Box::new(Self(AdapterSpec {
            slot,
            ..plain_lora(projections, rank)
        })))
    }
}

impl Method for PerTask {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        begun(task.begin_directions(model, &self.0)?, task)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(self.0.clone())
    }
}

/// Freezes the slots there are, adds one of coefficient 1, and grows the head.
pub(super) fn new_slot(model: Model, task: &TaskContext, rank: usize) -> Result<Model, TrainError> {
    begun(task.begin_direction(model, rank)?, task)
}

fn begun(mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
    model.adapter = model
        .adapter
        .with_past_magnitudes_trainable(false)
        .with_current_magnitude_trainable(false);
    Ok(task.grow_head(model))
}
