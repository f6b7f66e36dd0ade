//! The cases of accuracy matrices (`metrics.json`) and of optimisers (`optim.json`), as plain data.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use crate::discover::golden_json_with;

/// All cases of a file of accuracy matrices, as `metrics.json` is one.
#[derive(Debug, Clone, Deserialize)]
pub struct MetricsFile {
    /// The cases, in file order.
    pub cases: Vec<MetricsCase>,
}

impl MetricsFile {
    /// Reads every file of the golden folder that holds accuracy matrices, by whatever name.
    ///
    /// # Panics
    ///
    /// If one is unreadable or of another form.
    #[track_caller]
    pub fn all() -> Vec<Self> {
        let files = golden_json_with(&["cases"]).into_iter();
        files
            .filter(|(_, value)| value["cases"][0].get("R").is_some())
            .map(|(path, value)| typed(&path, value))
            .collect()
    }
}

/// One accuracy matrix with the metrics expected of it. All accuracies are percentages.
#[derive(Debug, Clone, Deserialize)]
pub struct MetricsCase {
    /// Name of the case, for messages.
    pub name: String,
    /// `accuracy[after][on]`; row `after` has `after + 1` entries, or one per task where the full matrix is known.
    #[serde(rename = "R")]
    pub accuracy: Vec<Vec<f64>>,
    /// Number of test images of each task.
    #[serde(default)]
    pub test_counts: Option<Vec<usize>>,
    /// What must come out.
    pub expected: ExpectedMetrics,
    /// Remark of the author of the case.
    #[serde(default)]
    pub note: Option<String>,
}

/// Expected metrics of one case, in percent.
///
/// The outer option of a number is `None` where the file does not state it, the inner one where it states `null`,
/// that is: undefined.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ExpectedMetrics {
    /// Mean over tasks of the last row.
    #[serde(deserialize_with = "stated")]
    pub final_average_accuracy: Option<Option<f64>>,
    /// Mean over the tasks seen so far, after each task.
    #[serde(deserialize_with = "stated")]
    pub accuracy_curve: Option<Option<Vec<f64>>>,
    /// Mean of the curve.
    #[serde(deserialize_with = "stated")]
    pub average_anytime_accuracy: Option<Option<f64>>,
    /// Mean over the images of the tasks seen so far, after each task.
    #[serde(deserialize_with = "stated")]
    pub weighted_accuracy_curve: Option<Option<Vec<f64>>>,
    /// Last value of the weighted curve.
    #[serde(deserialize_with = "stated")]
    pub weighted_final_accuracy: Option<Option<f64>>,
    /// Mean of the weighted curve.
    #[serde(deserialize_with = "stated")]
    pub weighted_average_anytime_accuracy: Option<Option<f64>>,
    /// Forgetting with the maximum over earlier rows only.
    #[serde(deserialize_with = "stated")]
    pub forgetting: Option<Option<f64>>,
    /// Forgetting with the maximum over all rows.
    #[serde(deserialize_with = "stated")]
    pub forgetting_max_over_all: Option<Option<f64>>,
    /// The terms of `forgetting`, one per task but the last.
    #[serde(deserialize_with = "stated")]
    pub forgetting_per_task: Option<Option<Vec<f64>>>,
    /// Last row minus diagonal.
    #[serde(deserialize_with = "stated")]
    pub backward_transfer: Option<Option<f64>>,
}

/// A file as `optim.json`: trajectories on f(p) = ½ (p−c)ᵀ H (p−c).
#[derive(Debug, Clone, Deserialize)]
pub struct OptimFile {
    /// Symmetric matrix H, by rows.
    #[serde(rename = "H")]
    pub h: Vec<Vec<f64>>,
    /// Minimum c.
    pub c: Vec<f64>,
    /// Start p₀.
    pub p0: Vec<f64>,
    /// The cases by name.
    pub cases: BTreeMap<String, OptimCase>,
}

impl OptimFile {
    /// Reads every file of the golden folder that holds trajectories of optimisers, by whatever name.
    ///
    /// # Panics
    ///
    /// If one is unreadable or of another form.
    #[track_caller]
    pub fn all() -> Vec<Self> {
        let files = golden_json_with(&["H", "c", "p0", "cases"]).into_iter();
        files.map(|(path, value)| typed(&path, value)).collect()
    }
}

/// Trajectory of one optimiser; all vectors have one entry per step.
#[derive(Debug, Clone, Deserialize)]
pub struct OptimCase {
    /// Settings of the optimiser and its schedule.
    pub config: OptimConfig,
    /// Learning rate used in the step.
    pub lr: Vec<f64>,
    /// f before the step.
    pub loss_before_step: Vec<f64>,
    /// Gradient of f before the step, without weight decay.
    pub grad: Vec<Vec<f64>>,
    /// Parameters after the step.
    pub params_after_step: Vec<Vec<f64>>,
}

/// Settings of one optimiser case; what the file leaves out is `None` and means PyTorch's default.
#[derive(Debug, Clone, Deserialize)]
pub struct OptimConfig {
    /// `sgd`, `adam` or `adamw`.
    pub kind: String,
    /// Initial learning rate.
    pub lr: f64,
    /// Momentum of SGD.
    #[serde(default)]
    pub momentum: Option<f64>,
    /// Dampening of SGD.
    #[serde(default)]
    pub dampening: Option<f64>,
    /// Nesterov momentum of SGD.
    #[serde(default)]
    pub nesterov: Option<bool>,
    /// Weight decay: added to the gradient, except for `adamw`, where it shrinks the parameter first.
    #[serde(default)]
    pub weight_decay: Option<f64>,
    /// Decay rates of the first and second moment.
    #[serde(default)]
    pub betas: Option<[f64; 2]>,
    /// Added to the root of the second moment.
    #[serde(default)]
    pub eps: Option<f64>,
    /// `cosine` or `multistep`.
    #[serde(default)]
    pub scheduler: Option<String>,
    /// Number of steps of the cosine from the initial rate to `eta_min`.
    #[serde(default, rename = "T_max")]
    pub t_max: Option<usize>,
    /// Final rate of the cosine.
    #[serde(default)]
    pub eta_min: Option<f64>,
    /// Steps, from 0, from which on the rate is multiplied by `gamma` once more.
    #[serde(default)]
    pub milestones: Option<Vec<usize>>,
    /// Factor at each milestone.
    #[serde(default)]
    pub gamma: Option<f64>,
    /// Remark of the author of the case.
    #[serde(default)]
    pub note: Option<String>,
    /// Settings this struct has no field for, so that a test can refuse a case it would misread.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// Marks a present field as stated, also where its value is `null`.
fn stated<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

#[track_caller]
fn typed<T: DeserializeOwned>(path: &Path, value: serde_json::Value) -> T {
    serde_json::from_value(value)
        .unwrap_or_else(|err| panic!("{} has another form: {err}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_absent_are_told_apart() {
        let case: MetricsCase = serde_json::from_str(
            r#"{"name": "x", "R": [[50.0]], "expected": {"forgetting": null, "final_average_accuracy": 50.0}}"#,
        )
        .unwrap();
        assert_eq!(case.expected.forgetting, Some(None));
        assert_eq!(case.expected.final_average_accuracy, Some(Some(50.0)));
        assert_eq!(case.expected.backward_transfer, None);
        assert!(case.test_counts.is_none() && case.note.is_none());
    }

    #[test]
    fn unknown_optimiser_settings_are_kept() {
        let config: OptimConfig =
            serde_json::from_str(r#"{"kind": "adam", "lr": 0.1, "T_max": 10, "amsgrad": true}"#)
                .unwrap();
        assert_eq!(config.t_max, Some(10));
        assert_eq!(config.other.keys().collect::<Vec<_>>(), ["amsgrad"]);
    }

    #[test]
    fn every_metrics_case_is_well_formed() {
        for case in MetricsFile::all().iter().flat_map(|file| &file.cases) {
            let n_tasks = case.accuracy.len();
            for (after, row) in case.accuracy.iter().enumerate() {
                assert!(
                    row.len() == after + 1 || row.len() == n_tasks,
                    "case {}: row {after} has {} entries",
                    case.name,
                    row.len()
                );
            }
        }
    }

    #[test]
    fn every_optimiser_case_is_well_formed() {
        let files = OptimFile::all();
        let cases = files
            .iter()
            .flat_map(|file| file.cases.iter().map(move |case| (file, case)));
        for (file, (name, case)) in cases {
            let n_steps = case.lr.len();
            assert_eq!(case.loss_before_step.len(), n_steps, "case {name}");
            assert_eq!(case.grad.len(), n_steps, "case {name}");
            assert_eq!(case.params_after_step.len(), n_steps, "case {name}");
            assert!(
                case.config.other.is_empty(),
                "case {name} has unknown settings {:?}",
                case.config.other
            );
            // The first gradient is H (p₀ − c): the fields are not swapped.
            for (row, grad) in file.h.iter().zip(&case.grad[0]) {
                let product: f64 = row
                    .iter()
                    .zip(&file.p0)
                    .zip(&file.c)
                    .map(|((h, p), c)| h * (p - c))
                    .sum();
                assert!(
                    (product - grad).abs() < 1e-10,
                    "case {name}: {product} against {grad}"
                );
            }
        }
    }
}
