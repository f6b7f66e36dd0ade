//! Nearest class mean by cosine: one direction per class, that of the sum of its unit-length features.
//!
//! Means of an old task are not recomputed when a later task changes the features. The length of the
//! sum is kept, so that the images of a class that comes again count as much as the earlier ones: on
//! features that do not change, the mean is that of all its images.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::error::TrainError;
use crate::features::{ClassMeans, MeanOf};
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "ncm",
    summary: "nearest class mean by cosine (mean: directions, features)",
    build: |options| Ok(Arc::new(parse::<Ncm>("head (ncm)", options)?)),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ncm {
    /// What a class mean is the mean of.
    #[serde(default)]
    mean: MeanOf,
}

/// Unit-length class means `[n_classes, d_model]`.
const MEANS: &str = "means";
/// Length `[n_classes, 1]` of the sum of the unit-length features of every class.
const LENGTHS: &str = "lengths";

impl Head for Ncm {
    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, mut state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let (new, new_lengths) = ClassMeans::with_lengths(task.table, self.mean);
        let d = new.d_model;
        let mut means = state.rows(MEANS);
        let mut lengths = state.rows(LENGTHS);
        let n_before = means.len() / d.max(1);
        let n_classes = n_before.max(new.n_classes());
        means.resize(n_classes * d, 0.0);
        lengths.resize(n_classes, 0.0);
        for (label, &new_length) in new_lengths.iter().enumerate() {
            if new_length == 0.0 {
                continue;
            }
            let mean = &mut means[label * d..(label + 1) * d];
            let new_mean = &new.means[label * d..(label + 1) * d];
            let length = f64::from(lengths[label]);
            if length == 0.0 {
                mean.copy_from_slice(new_mean);
                lengths[label] = new_length as f32;
                continue;
            }
            let sum: Vec<f64> = mean
                .iter()
                .zip(new_mean)
                .map(|(&a, &b)| f64::from(a) * length + f64::from(b) * new_length)
                .collect();
            let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
            for (mean, sum) in mean.iter_mut().zip(sum) {
                *mean = if length > 0.0 { sum / length } else { 0.0 } as f32;
            }
            lengths[label] = length as f32;
        }
        state.set_rows(MEANS, vec![n_classes, d], means);
        state.set_rows(LENGTHS, vec![n_classes, 1], lengths);
        Ok(state)
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let means = state.per_class.get(MEANS)?;
        let &[_, d_model] = means.shape.as_slice() else {
            return None;
        };
        Some(Classifier::linear(means.values.clone(), d_model, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::FeatureTable;
    use sdlora_testkit::test_device_autodiff;

    fn fitted(state: HeadState, rows: &[([f32; 2], usize)], first_label: usize) -> HeadState {
        let device = test_device_autodiff();
        let table = FeatureTable {
            features: rows.iter().flat_map(|(row, _)| *row).collect(),
            d_model: 2,
            labels: rows.iter().map(|(_, label)| *label).collect(),
        };
        let task = HeadTask {
            table: &table,
            first_label,
            task_idx: 0,
            seed: 0,
            device: &device,
        };
        let head = Ncm {
            mean: MeanOf::Directions,
        };
        head.fit(state, &task).unwrap()
    }

    #[test]
    fn a_class_that_comes_again_has_the_mean_of_all_its_images() {
        let rows = [
            ([1.0, 0.0], 0),
            ([0.0, 5.0], 0),
            ([0.0, 1.0], 0),
            ([3.0, 4.0], 1),
        ];
        let whole = fitted(HeadState::default(), &rows, 0);
        // One image of class 0 first, then two: each image counts the same.
        let parts = fitted(HeadState::default(), &[rows[0], rows[3]], 0);
        let first = parts.rows(MEANS);
        let parts = fitted(parts, &rows[1..3], 2);
        for name in [MEANS, LENGTHS] {
            for (a, b) in parts.rows(name).iter().zip(whole.rows(name)) {
                assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
            }
        }
        assert_eq!(parts.rows(MEANS)[2..], first[2..], "the other class");
        // The sum (1, 2) has this direction.
        let expected = [1.0 / 5f32.sqrt(), 2.0 / 5f32.sqrt()];
        for (a, b) in parts.rows(MEANS).iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn opposite_images_leave_a_mean_of_zeros() {
        let state = fitted(HeadState::default(), &[([1.0, 0.0], 0)], 0);
        let state = fitted(state, &[([-1.0, 0.0], 0), ([0.0, 1.0], 1)], 1);
        assert_eq!(state.rows(MEANS), [0.0, 0.0, 0.0, 1.0]);
    }
}
