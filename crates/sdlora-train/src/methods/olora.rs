//! O-LoRA: a LoRA per task whose down-projection is pushed to be orthogonal to the earlier ones.
//!
//! Loss of task t: `L + λ Σ_{k<t} Σ_sites ‖A_kᵀ A_t‖_F²` (Wang et al. 2023, "Orthogonal Subspace
//! Learning for Language Model Continual Learning", equations 5 and 6), with `A: [d_input, rank]`.

use burn::tensor::Tensor;
use sdlora_core::{Projection, SdLoraConfig};
use serde::{Deserialize, Serialize};

use super::lora::constant_coefficient;
use super::lora_per_task::new_slot;
use super::{Method, MethodEntry, TaskContext, default_rank, parse, query_and_value};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "olora",
    summary: "a LoRA per task with an orthogonality penalty between their row spaces",
    build: |options| {
        let method: OLora = parse("olora", options)?;
        if method.lambda.is_finite() && method.lambda >= 0.0 {
            return Ok(Box::new(method));
        }
        Err(TrainError::setting(
            "method.lambda",
            method.lambda,
            "a finite number of at least 0",
        ))
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OLora {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Weight of the penalty; 0 is a LoRA per task.
    #[serde(default = "default_lambda")]
    lambda: f64,
}

/// The weight in most runs of the paper.
fn default_lambda() -> f64 {
    0.5
}

impl Method for OLora {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        new_slot(model, task, self.rank)
    }

    fn adapter(&self) -> SdLoraConfig {
        constant_coefficient()
    }

    fn projections(&self) -> &[Projection] {
        &self.projections
    }

    fn penalty(&self, model: &Model) -> Option<Tensor<1>> {
        let overlaps = model.adapter.sites.iter().filter_map(|site| {
            let (past, current) = (site.past.as_ref()?, site.current.as_ref()?);
            let product = past.a.val().transpose().matmul(current.a.val());
            Some(product.square().sum())
        });
        let sum = overlaps.reduce(|sum, overlap| sum + overlap)?;
        Some(sum.mul_scalar(self.lambda))
    }
}
