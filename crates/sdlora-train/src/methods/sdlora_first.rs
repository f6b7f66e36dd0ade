//! Ablation (a) of the paper's Table 4: the direction of the first task only, frozen after it; its
//! magnitude is trained in every task.

use sdlora_core::SdLoraConfig;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::sdlora::Family;
use super::{Method, MethodEntry, TaskContext, check_counts, default_rank, parse};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora-first",
    summary: "ablation: the first direction only, its magnitude always trained",
    build: |options| {
        let method: SdLoraFirst = parse("sdlora-first", options)?;
        method.family.check()?;
        check_counts(&[("rank", method.rank)])?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SdLoraFirst {
    /// Rank of the direction.
    #[serde(default = "default_rank")]
    rank: usize,
    #[serde(flatten)]
    family: Family,
}

impl Method for SdLoraFirst {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if task.task_idx == 0 {
            model = task.begin_direction(model, self.rank)?;
        } else {
            model.adapter = model.adapter.begin_task_without_direction(&task.device);
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
