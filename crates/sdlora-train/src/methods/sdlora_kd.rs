//! SD-LoRA-KD: after its task a direction that the earlier ones span is absorbed into their weights
//! (paper, section 4.3), so the number of directions grows only with what is new.
//!
//! The paper gives the threshold 9e-4 and leaves the norm open; see [`ResidualNorm`].
//!
//! Deviates from the paper: equation 8 adds the coefficients `Δα_k` of the unit direction, here they
//! count by the magnitude `α_t` it was trained to, so that absorbing changes the function by the
//! residual alone; see `crates/sdlora-core/src/absorb.rs`.

use sdlora_core::{ResidualNorm, SdLoraConfig};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::sdlora::Family;
use super::{Method, MethodEntry, TaskContext, check_counts, default_rank, parse};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora-kd",
    summary: "SD-LoRA that absorbs a direction which the earlier ones span (options: norm, threshold)",
    build: |options| {
        let method: SdLoraKd = parse("sdlora-kd", options)?;
        method.family.check()?;
        check_counts(&[("rank", method.rank)])?;
        if method.threshold.is_finite() && method.threshold >= 0.0 {
            return Ok(Box::new(method));
        }
        Err(TrainError::setting(
            "method.threshold",
            method.threshold,
            "a finite number of at least 0",
        ))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SdLoraKd {
    /// Rank of every direction.
    #[serde(default = "default_rank")]
    rank: usize,
    /// How the residual is measured.
    #[serde(default)]
    norm: ResidualNorm,
    /// A direction whose residual is at most this on every site is absorbed.
    #[serde(default = "default_threshold")]
    threshold: f64,
    #[serde(flatten)]
    family: Family,
}

/// The paper's τ.
fn default_threshold() -> f64 {
    9e-4
}

impl Method for SdLoraKd {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let model = task.begin_direction(model, self.rank)?;
        Ok(task.grow_head(model))
    }

    fn after_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let (adapter, _) = model
            .adapter
            .absorb_current(self.norm, self.threshold, &task.device);
        model.adapter = adapter;
        Ok(model)
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
