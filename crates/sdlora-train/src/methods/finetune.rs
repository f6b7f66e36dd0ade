//! Full fine-tuning in sequence: the whole backbone and the head are trained in every task.

use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::{Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "finetune",
    summary: "the whole backbone, fine-tuned in sequence",
    build: |options| Ok(Box::new(parse::<Finetune>("finetune", options)?)),
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Finetune {}

impl Method for Finetune {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        Ok(train_all(model, task))
    }
}

/// Everything is trained, with a head grown by the new classes.
pub(super) fn train_all(mut model: Model, task: &TaskContext) -> Model {
    model.backbone = model.backbone.set_require_grad(true);
    task.grow_head(model)
}
