//! RanPAC: features adapted to the first task at most, then a ridge regression on a random
//! projection of them (McDonnell et al. 2023, NeurIPS, "RanPAC: Random Projections and Pre-trained
//! Models for Continual Learning", algorithm 1).
//!
//! The first task trains a LoRA, its magnitude the constant 1, and a linear classifier that is thrown
//! away; from then on no step is made. The `ridge` head with 10,000 random features is the head where
//! none is named.
//!
//! Deviates: the paper adapts by AdaptFormer, SSF or VPT, whichever did best on a data set; here it
//! is the LoRA of the other methods, so that what differs from them is what is named here.

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora::plain_lora;
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, check_counts, check_projections, default_rank,
    parse, query_and_value,
};
use crate::error::TrainError;
use crate::heads::HeadConfig;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "ranpac",
    summary: "a LoRA in the first task, then ridge regression on random features",
    build: |options| {
        let method: RanPac = parse("ranpac", options)?;
        check_counts(&[("rank", method.rank)])?;
        check_projections(&method.projections, &Projection::ALL)?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RanPac {
    /// Whether the first task adapts the features; without it nothing is trained at all.
    #[serde(default = "yes")]
    adapt: bool,
    /// Rank of the LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
}

fn yes() -> bool {
    true
}

/// Random features of the paper (section 5).
const N_RANDOM_FEATURES: i64 = 10_000;

impl Method for RanPac {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if !self.takes_steps_in(task.task_idx) {
            return Ok(model);
        }
        let mut model = task.begin_direction(model, self.rank)?;
        model.adapter = model.adapter.with_current_magnitude_trainable(false);
        Ok(task.grow_head(model))
    }

    fn after_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if self.takes_steps_in(task.task_idx) {
            model.adapter = model
                .adapter
                .finish_task(&task.device)
                .with_current_magnitude_trainable(false);
            model.head.trained = None;
        }
        Ok(model)
    }

    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("ridge").with("projection", N_RANDOM_FEATURES)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        self.adapt.then(|| plain_lora(&self.projections, self.rank))
    }

    fn takes_steps(&self) -> bool {
        // The classifier of the steps is thrown away, so no head may rely on them.
        false
    }

    fn takes_steps_in(&self, task_idx: usize) -> bool {
        self.adapt && task_idx == 0
    }

    fn keeps_features(&self) -> bool {
        !self.adapt
    }
}
