//! Ablation (b) of the paper's Table 4: one direction with its magnitude, trained on in every task.
//!
//! With the variant `paper` the direction is normalised while it is trained, which decouples it
//! from its magnitude; with `reference` and `carry` the running direction is raw.

use sdlora_core::SdLoraConfig;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::sdlora::Family;
use super::{Method, MethodEntry, TaskContext, check_counts, default_rank, parse};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora-single",
    summary: "ablation: one direction and its magnitude, trained on in every task",
    build: |options| {
        let method: SdLoraSingle = parse("sdlora-single", options)?;
        method.family.check()?;
        check_counts(&[("rank", method.rank)])?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SdLoraSingle {
    /// Rank of the direction.
    #[serde(default = "default_rank")]
    rank: usize,
    #[serde(flatten)]
    family: Family,
}

impl Method for SdLoraSingle {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if task.task_idx == 0 {
            model = task.begin_direction(model, self.rank)?;
        }
        Ok(task.grow_head(model))
    }

    fn adapter(&self) -> SdLoraConfig {
        self.family.config()
    }

    fn projections(&self) -> &[Projection] {
        self.family.projections()
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Kaiming
    }

    fn ranks(&self) -> Vec<usize> {
        vec![self.rank]
    }
}
