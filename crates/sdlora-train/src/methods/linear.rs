//! A linear head on the frozen backbone: what adapting has to beat.

use serde::{Deserialize, Serialize};

use super::{Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "linear",
    summary: "frozen backbone, linear head",
    build: |options| Ok(Box::new(parse::<Linear>("linear", options)?)),
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Linear {}

impl Method for Linear {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        Ok(task.grow_head(model))
    }

    fn keeps_features(&self) -> bool {
        true
    }
}
