//! Ablation (c) of the paper's Table 4: a direction per task, the magnitudes of earlier tasks fixed.
//!
//! They are fixed at the value a task starts with: the reset value in `reference`, what was
//! learned in `paper` and `carry`.

use sdlora_core::SdLoraConfig;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::sdlora::Family;
use super::{Method, MethodEntry, TaskContext, check_counts, default_rank, parse};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora-fixed-magnitude",
    summary: "ablation: a direction per task, earlier magnitudes fixed",
    build: |options| {
        let method: SdLoraFixedMagnitude = parse("sdlora-fixed-magnitude", options)?;
        method.family.check()?;
        check_counts(&[("rank", method.rank)])?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SdLoraFixedMagnitude {
    /// Rank of every direction.
    #[serde(default = "default_rank")]
    rank: usize,
    #[serde(flatten)]
    family: Family,
}

impl Method for SdLoraFixedMagnitude {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        model = task.begin_direction(model, self.rank)?;
        model.adapter = model.adapter.with_past_magnitudes_trainable(false);
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
