//! LoRA Dropout: a LoRA per task whose inputs and outputs are dropped at random while it trains (Lin et al. 2024,
//! "LoRA Dropout as a Sparsity Regularizer for Overfitting Control", arXiv 2404.09610).
//!
//! A step averages the losses of `n_masks` masks over rows of A and columns of B; a rank is never dropped, and what
//! is kept is not scaled up. At inference the update counts `(1 − p)²`, the mean over masks: one model that merges.
//! With `inference = "ensemble"` the features of `n_passes` masked models are averaged, as the paper does; see
//! [`MaskEnsemble`].

mod ensemble;

use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora_per_task::PerTask;
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, check_counts, default_rank, parse,
    query_and_value,
};
use crate::error::TrainError;
use crate::model::Model;
use crate::slot::{Masks, SlotSpec};
use ensemble::{MaskEnsemble, SECOND_PASS};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "lora-dropout",
    summary: "a LoRA per task under masks on inputs and outputs (dropout, n_masks, inference)",
    build: |options| {
        let method: LoraDropout = parse("lora-dropout", options)?;
        check_counts(&[("n_masks", method.n_masks)])?;
        let slot = SlotSpec {
            dropout: Some(Masks {
                share: method.dropout,
                n_masks: method.n_masks,
            }),
            ..SlotSpec::default()
        };
        let mean_field = PerTask::built(&method.projections, method.rank, slot)?;
        match (method.inference, method.n_passes) {
            (Inference::MeanField, None) => Ok(mean_field),
            (Inference::MeanField, Some(n)) => Err(TrainError::setting(
                "method.n_passes",
                n,
                "left out without `inference = \"ensemble\"`: the mean of the masks needs one pass",
            )),
            (Inference::Ensemble, n) => {
                let n_passes = n.unwrap_or(DEFAULT_PASSES);
                if !(1..=MOST_PASSES).contains(&n_passes) {
                    let expected = format!("from 1 to {MOST_PASSES}");
                    return Err(TrainError::setting("method.n_passes", n_passes, expected));
                }
                Ok(Box::new(Ensemble {
                    mean_field,
                    dropout: method.dropout,
                    n_passes,
                }))
            }
        }
    },
    second_pass: Some(SECOND_PASS),
};

/// Masked models of an ensemble, where nothing is said.
const DEFAULT_PASSES: usize = 8;

/// More masks tell nothing new, and a count from a file is believed up to here.
const MOST_PASSES: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoraDropout {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// p: share of inputs and of outputs that a mask drops; 0 is plain LoRA.
    #[serde(default = "half")]
    dropout: f64,
    /// Masks a step; each costs a forward and a backward pass.
    #[serde(default = "four")]
    n_masks: usize,
    /// What stands for the masks at inference.
    #[serde(default)]
    inference: Inference,
    /// Masked models of an ensemble; each costs a forward pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n_passes: Option<usize>,
}

/// What stands for the masks at inference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Inference {
    /// The mean over masks: one model.
    #[default]
    MeanField,
    /// The mean feature of masked models.
    Ensemble,
}

/// The same training; prediction by several masked models.
#[derive(Debug)]
struct Ensemble {
    mean_field: Box<dyn Method>,
    dropout: f64,
    n_passes: usize,
}

impl Method for Ensemble {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        self.mean_field.before_task(model, task)
    }

    fn after_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let mut model = self.mean_field.after_task(model, task)?;
        let settings = (self.dropout, self.n_passes, task.seed);
        model.state = MaskEnsemble::of(&model.adapter, settings, &task.device);
        Ok(model)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        self.mean_field.adapter()
    }
}

fn half() -> f64 {
    0.5
}

fn four() -> usize {
    4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_belong_to_an_ensemble_and_have_a_range() {
        for (options, expected) in [
            ("n_passes = 4", "ensemble"),
            ("inference = \"ensemble\"\nn_passes = 0", "from 1 to 1024"),
            (
                "inference = \"ensemble\"\nn_passes = 2000",
                "from 1 to 1024",
            ),
            ("inference = \"mean\"", "mean-field"),
            ("inference = \"ensemble\"\ndropout = 1.0", "dropout"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{options}: {error}");
        }
        (ENTRY.build)(&"inference = \"ensemble\"".parse().unwrap()).unwrap();
    }
}
