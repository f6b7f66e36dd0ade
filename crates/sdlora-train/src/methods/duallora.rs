//! DualLoRA: an orthogonal LoRA that spares what old tasks used, and a residual LoRA per task whose weight depends on
//! the image (Chen et al. 2024, "Replay-Free Continual Low-Rank Adaptation with Dynamic Memory", arXiv 2411.00623); see
//! [`Branches`].
//!
//! ```text
//! W(x) = W0 + Σ_k O_k + Σ_k ω_k(x) R_k        Φᵀ O_t = 0        R_t = Ψ_t Ψ_tᵀ R_t
//! ```
//!
//! `Ψ_t` are the orthonormal directions that the inputs of task t add to those of earlier tasks, until a share of
//! `energy` of every task is held, and `Φ` are those of all earlier tasks. Trained in task t: `O_t`, `R_t` and the
//! head. With Adam a projected gradient leaves its subspace, so `A` itself is projected after every step.
//!
//! A reconstruction: no code was found, and the formula of the similarity `ω` is ours.

mod branches;

use burn::module::Module;
use burn::tensor::Tensor;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::input_subspaces::{Energy, Space, covariances_with};
use super::lora::plain_lora;
use super::lora_per_task::new_slot;
use super::{
    AdapterSpec, Method, MethodEntry, StepContext, TaskContext, TaskImages, check_counts,
    check_number, check_projections, default_rank, parse, query_and_value,
};
use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::model::Model;
use branches::{BranchLayout, Branches, SECOND_PASS, Seen};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "duallora",
    summary: "a LoRA that spares old inputs, and one per task weighed by similarity (energy, sharpness)",
    build: |options| {
        let method: DualLora = parse("duallora", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: Some(SECOND_PASS),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DualLora {
    /// Rank of the orthogonal LoRA of a task.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Rank of the residual LoRA of a task; 0 is none.
    #[serde(default = "default_rank")]
    residual_rank: usize,
    /// Adapted projections of every block: those that see the normed tokens.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Share of the energy of the inputs of every task that the bases hold, above 0, to 1.
    #[serde(default = "default_energy")]
    energy: f64,
    /// How fast a residual LoRA fades with what an image lacks of its task; 0 gives all of them full weight.
    #[serde(default = "default_sharpness")]
    sharpness: f64,
    /// By how much the inferred task moves the logits; 0 is not at all.
    #[serde(default = "one")]
    calibration: f64,
}

/// As for gradient projection memory.
fn default_energy() -> f64 {
    0.95
}

fn default_sharpness() -> f64 {
    0.5
}

fn one() -> f64 {
    1.0
}

impl DualLora {
    fn check(&self) -> Result<(), TrainError> {
        check_counts(&[("rank", self.rank)])?;
        // Those whose inputs the method measures.
        let seen = [Projection::Query, Projection::Key, Projection::Value];
        check_projections(&self.projections, &seen)?;
        if !(self.energy > 0.0 && self.energy <= 1.0) {
            return Err(TrainError::setting(
                "method.energy",
                self.energy,
                "a share above 0, to 1",
            ));
        }
        check_number("method.sharpness", self.sharpness, true)?;
        check_number("method.calibration", self.calibration, true)
    }

    fn layout(&self) -> BranchLayout {
        BranchLayout {
            projections: self.projections.clone(),
            rank: self.residual_rank,
            n_bases: Vec::new(),
            n_reviewed: 0,
            class_tasks: Vec::new(),
            sharpness: self.sharpness,
            calibration: self.calibration,
        }
    }

    /// What the inputs of a task add to the bases of every block, by the model as it is.
    fn more_bases(
        &self,
        model: &Model,
        branches: &Branches,
        images: &dyn TaskImages,
    ) -> Result<Vec<Vec<f64>>, TrainError> {
        let vit = model.merged_backbone();
        let state = model.state.valid();
        let updates = |images: &Tensor<4>| branches::updates(&state, &vit, images);
        let covariances = covariances_with(&vit, images, updates)?;
        let d_model = vit.config().d_model;
        let of_block = |(block_idx, covariance): (usize, &Vec<f64>)| {
            let used = branches.basis_host(block_idx);
            if used.len() >= d_model * d_model {
                return Ok(Vec::new());
            }
            let space = Space::of_used(used, d_model)?;
            Ok(space.split(covariance, Energy::Inputs, self.energy)?.0)
        };
        covariances.iter().enumerate().map(of_block).collect()
    }
}

impl Method for DualLora {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        new_slot(model, task, self.rank)
    }

    /// Finds the bases of the task, and starts its residual LoRA in their span and its orthogonal one outside those of
    /// earlier tasks.
    fn prepare(
        &self,
        mut model: Model,
        task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let d_model = model.backbone.config().d_model;
        let before = Branches::of(&model.state).unwrap_or_else(|| Branches::none(self.layout()));
        let more = self.more_bases(&model, &before, images)?;
        let mut rng = generator(task.seed, Draw::Branches, task.task_idx);
        let grown = before.grown(&more, d_model, &mut rng, &task.device);
        model = grown.projected(model);
        Ok(model)
    }

    fn after_step(&self, model: Model, _step: &StepContext) -> Result<Model, TrainError> {
        Ok(match Branches::of(&model.state) {
            None => model,
            Some(branches) => branches.projected(model),
        })
    }

    /// Adds what the trained model uses to the bases, and keeps how much of their energy the images of the task have
    /// there.
    fn review(
        &self,
        mut model: Model,
        task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let Some(branches) = Branches::of(&model.state) else {
            return Ok(model);
        };
        let more = self.more_bases(&model, &branches, images)?;
        let d_model = model.backbone.config().d_model;
        model.state = branches.extended(&more, d_model, &task.device).into_state();
        let (vit, state) = (model.merged_backbone(), model.state.valid());
        let mut seen = Seen::default();
        images.each_batch(&mut |images, labels| {
            seen.add(branches::shares(&state, &vit, images), labels);
        })?;
        if let Some(branches) = Branches::of(&model.state) {
            model.state = branches.reviewed(&seen, &task.device).into_state();
        }
        Ok(model)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(plain_lora(&self.projections, self.rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_with_their_range() {
        for (options, expected) in [
            ("rank = 0", "at least 1"),
            ("energy = 0.0", "above 0, to 1"),
            ("energy = 1.5", "above 0, to 1"),
            ("energy = nan", "above 0, to 1"),
            ("sharpness = -1.0", "at least 0"),
            ("calibration = inf", "finite"),
            ("projections = [\"fc1\"]", "method.projections"),
            ("lambda = 1.0", "`lambda`"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{options}: {error}");
        }
        (ENTRY.build)(&"residual_rank = 0\nsharpness = 0.0".parse().unwrap()).unwrap();
    }
}
