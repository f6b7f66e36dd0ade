//! SimpleCIL: class means of the frozen backbone's features, compared by cosine (Zhou et al. 2023,
//! "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity
//! are All You Need", section 4.1).
//!
//! The `ncm` head, with the one difference that a prototype is the mean of the features as they are,
//! where `ncm` averages their directions. The cosine is what counts, so no scale changes a prediction.

use serde::{Deserialize, Serialize};

use super::{Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::heads::HeadConfig;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "simplecil",
    summary: "frozen backbone, prototypes that are means of its features",
    build: |options| Ok(Box::new(parse::<SimpleCil>("simplecil", options)?)),
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SimpleCil {}

impl Method for SimpleCil {
    fn before_task(&self, model: Model, _: &TaskContext) -> Result<Model, TrainError> {
        Ok(model)
    }

    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("ncm").with("mean", "features")
    }

    fn takes_steps(&self) -> bool {
        false
    }

    fn keeps_features(&self) -> bool {
        true
    }
}
