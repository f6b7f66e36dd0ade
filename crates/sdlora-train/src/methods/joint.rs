//! All tasks at once with one LoRA: the upper bound of what the adapter can reach on this stream.
//!
//! Not continual learning: it sees every image of every task in every epoch.

use sdlora_core::{Projection, SdLoraConfig};
use serde::{Deserialize, Serialize};

use super::lora::{constant_coefficient, one_slot};
use super::{Method, MethodEntry, TaskContext, default_rank, parse, query_and_value};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "joint",
    summary: "one LoRA on the data of all tasks at once: the upper bound",
    build: |options| Ok(Box::new(parse::<Joint>("joint", options)?)),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Joint {
    /// Rank of the factors.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
}

impl Method for Joint {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        Ok(task.grow_head(one_slot(model, task, self.rank)?))
    }

    fn adapter(&self) -> SdLoraConfig {
        constant_coefficient()
    }

    fn projections(&self) -> &[Projection] {
        &self.projections
    }

    fn is_joint(&self) -> bool {
        true
    }
}
