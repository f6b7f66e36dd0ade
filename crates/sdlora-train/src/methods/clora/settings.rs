//! The options of CLoRA.

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use crate::methods::{default_rank, query_and_value};

/// Options of the method.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CLora {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    pub(super) rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    pub(super) projections: Vec<Projection>,
    /// Weight of the penalty (released code: 1); 0 is a LoRA per task.
    #[serde(default = "default_lambda")]
    pub(super) lambda: f64,
    /// What is kept small.
    #[serde(default)]
    pub(super) form: Form,
    /// Where P and Q come from.
    #[serde(default)]
    pub(super) bases: Source,
    /// Columns of P and Q, at most the smaller width of a site less the rank. Left out, an eighth of that
    /// width: the example of the released code has 512, of the 4096 of the models in the paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) columns: Option<usize>,
    /// With `old-features`, the share of the energy of the inputs of every task that P holds; 0.95 when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) share: Option<f64>,
}

fn default_lambda() -> f64 {
    1.0
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Form {
    /// `‖Pᵀ A‖² + ‖B Q‖²`, as in paper and released code.
    #[default]
    Factors,
    /// `‖Pᵀ A B‖² + ‖A B Q‖²`, which is a property of the update alone.
    Update,
}

/// Where the columns of P and Q come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Source {
    /// Drawn from the seed of the run.
    #[default]
    Random,
    /// Singular vectors of the pre-trained weight to its smallest singular values.
    Minor,
    /// To its largest ones.
    Major,
    /// What old tasks used of the inputs; nothing in the first task.
    OldFeatures,
}
