//! The frozen backbone without any step: nearest class mean, or another head that needs none.

use serde::{Deserialize, Serialize};

use super::{Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::heads::HeadConfig;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "ncm",
    summary: "frozen backbone, nearest class mean or another head that needs no steps",
    build: |options| Ok(Box::new(parse::<Ncm>("ncm", options)?)),
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ncm {}

impl Method for Ncm {
    fn before_task(&self, model: Model, _: &TaskContext) -> Result<Model, TrainError> {
        Ok(model)
    }

    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("ncm")
    }

    fn takes_steps(&self) -> bool {
        false
    }

    fn keeps_features(&self) -> bool {
        true
    }
}
