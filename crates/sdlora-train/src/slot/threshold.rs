//! SoRA: a gate over ranks, soft-thresholded after every step (Ding et al. 2023, EMNLP, arXiv 2311.11696).
//!
//! `g ← sign(g) · max(|g| − ξ, 0)` after the step of the optimiser, where as in the released code ξ is not
//! multiplied by the learning rate. A rank whose gate is 0 gets no gradient through its factors any more, but its
//! gate does, so it may come back until the task ends.
//!
//! Differs from the released code:
//! - Gates have the optimiser of the run and a factor on its rate, not an AdamW of their own.
//! - What is left below ξ stays, as the proximal step of the paper has it. The code clears it, so its gates are never
//!   between 0 and ξ.

use burn::tensor::{Device, Tensor};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use sdlora_core::{Gate, GateForm};
use serde::{Deserialize, Serialize};

use super::kept::with_values;
use crate::error::TrainError;
use crate::model::Model;
use crate::options::check_number;
use crate::step_context::StepContext;

/// Settings of the gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftThreshold {
    /// ξ, at least 0; a list shares the steps of a task out to its values, in equal parts.
    #[serde(default = "published_threshold")]
    pub threshold: Thresholds,
    /// λ of the mean of |g| over all gates in the loss, at least 0.
    #[serde(default)]
    pub penalty: f64,
    /// Factor on the learning rate of the gates, above 0.
    #[serde(default = "one")]
    pub lr_factor: f64,
}

impl Default for SoftThreshold {
    fn default() -> Self {
        Self {
            threshold: published_threshold(),
            penalty: 0.0,
            lr_factor: one(),
        }
    }
}

/// One threshold, or one after another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Thresholds {
    /// The same in every step.
    One(f64),
    /// A schedule: what it leaves after each of its parts traces sparsity against accuracy.
    Schedule(Vec<f64>),
}

impl Thresholds {
    /// ξ of a step of `n_steps`, from 0.
    pub fn at(&self, step: usize, n_steps: usize) -> f64 {
        match self {
            Self::One(threshold) => *threshold,
            Self::Schedule(list) => {
                let part = step * list.len() / n_steps.max(1);
                list.get(part).or(list.last()).copied().unwrap_or(0.0)
            }
        }
    }

    fn values(&self) -> &[f64] {
        match self {
            Self::One(threshold) => std::slice::from_ref(threshold),
            Self::Schedule(list) => list,
        }
    }
}

/// Of the released scripts.
fn published_threshold() -> Thresholds {
    Thresholds::One(3e-4)
}

fn one() -> f64 {
    1.0
}

impl SoftThreshold {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let thresholds = self.threshold.values();
        if thresholds.is_empty() {
            return Err(TrainError::setting(
                "method.slot.gate.threshold",
                "[]",
                "a number of at least 0, or a list of one or more",
            ));
        }
        for &threshold in thresholds {
            check_number("method.slot.gate.threshold", threshold, true)?;
        }
        check_number("method.slot.gate.penalty", self.penalty, true)?;
        check_number("method.slot.gate.lr_factor", self.lr_factor, false)
    }

    /// λ times the mean of |g| over the gates of all sites.
    pub(super) fn penalty(&self, model: &Model) -> Option<Tensor<1>> {
        if self.penalty == 0.0 {
            return None;
        }
        let currents = model
            .adapter
            .sites
            .iter()
            .filter_map(|bank| bank.current.as_ref());
        let values = currents.filter_map(|current| Some(current.gate.as_ref()?.values.val()));
        let values: Vec<_> = values.collect();
        (!values.is_empty()).then(|| Tensor::cat(values, 1).abs().mean().mul_scalar(self.penalty))
    }

    pub(super) fn after_step(&self, mut model: Model, step: &StepContext) -> Model {
        let threshold = self.threshold.at(step.step, step.n_steps);
        for bank in &mut model.adapter.sites {
            let gate = bank
                .current
                .as_mut()
                .and_then(|current| current.gate.take());
            let Some(mut gate) = gate else { continue };
            let values = soft_thresholded(gate.values.val().detach(), threshold);
            gate.values = with_values(gate.values, values);
            if let Some(current) = &mut bank.current {
                current.gate = Some(gate);
            }
        }
        model
    }
}

/// `sign(g) · max(|g| − ξ, 0)`; zeros are exact.
fn soft_thresholded(values: Tensor<2>, threshold: f64) -> Tensor<2> {
    let shrunk = values.clone().abs().sub_scalar(threshold).clamp_min(0.0);
    values.sign() * shrunk
}

/// Starts a gate from N(0, 1), as the released code does.
pub(super) fn draw(gate: &mut Gate, rng: &mut impl Rng, device: &Device) {
    let [_, rank] = gate.values.lazy_shape().dims();
    let values = (0..rank).map(|_| StandardNormal.sample(rng)).collect();
    *gate = Gate::new(values, GateForm::Linear, device);
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::TensorData;
    use sdlora_testkit::test_device;

    /// Gradient steps on `½ Σ (g − σ)²`, which is what a gate between orthonormal factors has for a target with
    /// singular values σ; `shrink` follows every step.
    fn descended(shrink: impl Fn(Tensor<2>) -> Tensor<2>) -> Vec<f32> {
        let sigma = [3.0f32, 2.0, 1.0, 0.5, 0.3, 0.1, 0.05, 0.01];
        let device = test_device();
        let target = Tensor::<2>::from_data(TensorData::new(sigma.to_vec(), [1, 8]), &device);
        let mut gate = Tensor::<2>::ones([1, 8], &device);
        for _ in 0..500 {
            let gradient = gate.clone() - target.clone();
            gate = shrink(gate - gradient.mul_scalar(0.1));
        }
        gate.into_data().iter::<f32>().collect()
    }

    #[test]
    fn the_threshold_gives_the_values_of_the_closed_form_and_exact_zeros() {
        // soft(σ, ξ / η) with ξ = 0.02 and η = 0.1.
        let found = descended(|gate| soft_thresholded(gate, 0.02));
        let expected = [2.8f32, 1.8, 0.8, 0.3, 0.1, 0.0, 0.0, 0.0];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert!(found[5..].iter().all(|v| *v == 0.0), "{found:?}");
        // A subgradient of the same penalty has no exact zero.
        let found = descended(|gate| {
            let sign = gate.clone().sign();
            gate - sign.mul_scalar(0.02)
        });
        assert!(found.iter().all(|v| *v != 0.0), "{found:?}");
    }

    #[test]
    fn a_schedule_shares_the_steps_out() {
        let schedule = Thresholds::Schedule(vec![0.1, 0.2, 0.3]);
        let found: Vec<f64> = (0..7).map(|step| schedule.at(step, 7)).collect();
        assert_eq!(found, [0.1, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3]);
    }
}
