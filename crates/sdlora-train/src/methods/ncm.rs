//! Nearest class mean on the frozen backbone: no training at all.

use serde::{Deserialize, Serialize};

use super::{Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "ncm",
    summary: "frozen backbone, nearest class mean; needs `head = \"ncm\"`",
    build: |options| Ok(Box::new(parse::<Ncm>("ncm", options)?)),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ncm {}

impl Method for Ncm {
    fn before_task(&self, model: Model, _: &TaskContext) -> Result<Model, TrainError> {
        Ok(model)
    }

    fn takes_steps(&self) -> bool {
        false
    }

    fn keeps_features(&self) -> bool {
        true
    }
}
