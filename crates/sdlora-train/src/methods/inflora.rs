//! InfLoRA: a LoRA per task whose down-projection is designed before the task and frozen, in the
//! subspace that old tasks leave free (Liang and Li 2024, CVPR, "InfLoRA: Interference-Free Low-Rank
//! Adaptation for Continual Learning", sections 3.2 and 3.3).
//!
//! `W = W0 + Σ_k A_k B_k`; trained in task t: `B_t` and the head. Before the task the covariance `C`
//! of what the projections of a block see over the new images is taken; `A_t` are the strongest
//! directions of `C` among those orthogonal to the input subspace of old tasks. So the update
//! of a task leaves the outputs on old inputs as they were, up to the share 1 − ε that the memory
//! leaves out, with `ε_t = lamb + (lame − lamb) · t / T` for task t of T, from 0. With the energy of the
//! published code the first task keeps one direction less than hold its share, see [`Energy`].
//!
//! Deviates: the published code passes over augmented images, which differ from pass to pass; here
//! both passes see the images as evaluation does, so that a resumed run finds the same directions.
//! It also keeps the used instead of the free basis where the first task alone uses more than half of
//! the width; here the basis that is named is kept.

use burn::tensor::TensorData;
use rayon::prelude::*;
use sdlora_core::Direction;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::input_subspaces::{Energy, covariances, into_state, spaces};
use super::lora::plain_lora;
use super::lora_per_task::new_slot;
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, TaskImages, check_counts, check_projections,
    default_rank, parse,
};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "inflora",
    summary: "a LoRA per task, designed orthogonal to what old tasks used (lamb, lame, energy)",
    build: |options| {
        let method: InfLora = parse("inflora", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InfLora {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block: those that see the normed tokens.
    #[serde(default = "key_and_value")]
    projections: Vec<Projection>,
    /// Share of the energy the memory holds after the first task, from 0 to 1.
    #[serde(default = "default_lamb")]
    lamb: f64,
    /// The share it would reach after one task more than the stream has; at least `lamb`.
    #[serde(default = "default_lame")]
    lame: f64,
    /// What is measured.
    #[serde(default)]
    energy: Energy,
}

/// Those of the published code.
fn key_and_value() -> Vec<Projection> {
    vec![Projection::Key, Projection::Value]
}

/// Published settings of CIFAR-100 in 10 tasks.
fn default_lamb() -> f64 {
    0.95
}

fn default_lame() -> f64 {
    1.0
}

/// A drawn down-projection has columns of about this length (`U(±1/√d)` has variance `1/(3d)`), so
/// learning rates mean the same as for the other methods.
const COLUMN_LENGTH: f64 = 0.577_350_269_189_625_8;

impl InfLora {
    fn check(&self) -> Result<(), TrainError> {
        check_counts(&[("rank", self.rank)])?;
        // Those whose inputs the method measures.
        let seen = [Projection::Query, Projection::Key, Projection::Value];
        check_projections(&self.projections, &seen)?;
        for (name, value, least) in [("lamb", self.lamb, 0.0), ("lame", self.lame, self.lamb)] {
            if !(least..=1.0).contains(&value) {
                return Err(TrainError::setting(
                    format!("method.{name}"),
                    value,
                    format!("a share from {least} to 1"),
                ));
            }
        }
        Ok(())
    }

    /// ε after a task.
    fn threshold(&self, task: &TaskContext) -> f64 {
        let past = task.task_idx as f64 / task.n_tasks.max(1) as f64;
        self.lamb + (self.lame - self.lamb) * past
    }
}

impl Method for InfLora {
    /// Its threshold rises from the first to the last.
    fn needs_all_tasks(&self) -> bool {
        true
    }

    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        new_slot(model, task, self.rank)
    }

    fn prepare(
        &self,
        mut model: Model,
        task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let covariances = covariances(&model.merged_backbone(), images)?;
        let designed = spaces(&model)?
            .par_iter()
            .zip(&covariances)
            .map(|(space, covariance)| space.strongest_free(covariance, self.energy, self.rank))
            .collect::<Result<Vec<_>, _>>()?;
        for bank in &mut model.adapter.sites {
            let (site, rank) = (bank.site(), self.rank);
            let mut a = vec![0.0f32; site.d_input * rank];
            // Where fewer directions than the rank are free, the last columns stay 0 and so does
            // what they add.
            let directions = designed[site.group].chunks_exact(site.d_input);
            for (j, direction) in directions.enumerate() {
                for (i, v) in direction.iter().enumerate() {
                    a[i * rank + j] = (v * COLUMN_LENGTH) as f32;
                }
            }
            let mut designed = Direction::from_factors(
                TensorData::new(a, [site.d_input, rank]),
                TensorData::zeros::<f32, _>([rank, site.d_output]),
                &task.device,
            );
            designed.a = designed.a.set_require_grad(false);
            bank.current = Some(designed);
        }
        Ok(model)
    }

    fn review(
        &self,
        mut model: Model,
        task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let covariances = covariances(&model.merged_backbone(), images)?;
        let threshold = self.threshold(task);
        let extended = spaces(&model)?
            .into_par_iter()
            .zip(&covariances)
            .map(|(space, covariance)| space.extended(covariance, self.energy, threshold))
            .collect::<Result<Vec<_>, _>>()?;
        model.state = into_state(&extended, &task.device);
        Ok(model)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(plain_lora(&self.projections, self.rank))
    }
}
