//! A LoRA per task: `W = W0 + Σ_k A_k B_k`, earlier ones frozen, nothing rescaled.
//!
//! What SD-LoRA adds to it are norms and trained magnitudes.

use super::lora::Lora;
use super::{AdapterSpec, Method, MethodEntry, TaskContext};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "lora-per-task",
    summary: "a LoRA per task, summed, nothing rescaled",
    build: |options| Ok(Box::new(LoraPerTask(Lora::read("lora-per-task", options)?))),
    second_pass: None,
};

/// The options are those of [`Lora`].
#[derive(Debug, Clone)]
struct LoraPerTask(Lora);

impl Method for LoraPerTask {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        new_slot(model, task, self.0.rank)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        self.0.adapter()
    }
}

/// Freezes the slots there are, adds one of coefficient 1, and grows the head.
pub(super) fn new_slot(model: Model, task: &TaskContext, rank: usize) -> Result<Model, TrainError> {
    let mut model = task.begin_direction(model, rank)?;
    model.adapter = model
        .adapter
        .with_past_magnitudes_trainable(false)
        .with_current_magnitude_trainable(false);
    Ok(task.grow_head(model))
}
