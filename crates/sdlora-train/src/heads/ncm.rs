//! Nearest class mean by cosine: one direction per class, that of the sum of its unit-length features.
//!
//! Means of an old task are not recomputed when a later task changes the features; with
//! `drift = "compensated"` they follow the features of the new images, see `drift.rs`, as directions. With
//! `drift = "linear"` they move by one linear map of features: exact where a mean is one of features
//! (`mean = "features"`), and where the map changes all lengths alike.
//! The length of the sum is kept, so that the images of a class that comes again count as much as the earlier ones: on
//! features that do not change, the mean is that of all its images.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::drift::{self, Drift, LinearMap};
use super::{Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::error::TrainError;
use crate::features::{ClassMeans, FeatureTable, MeanOf, length as feature_length, unit};
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "ncm",
    summary: "nearest class mean by cosine (options: mean, drift)",
    build: |options| Ok(Arc::new(parse::<Ncm>("head (ncm)", options)?)),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ncm {
    /// What a class mean is the mean of.
    #[serde(default)]
    mean: MeanOf,
    /// What becomes of old means when the features change.
    #[serde(default)]
    drift: Drift,
}

/// Unit-length class means `[n_classes, d_model]`.
const MEANS: &str = "means";
/// Length `[n_classes, 1]` of the sum of the unit-length features of every class.
const LENGTHS: &str = "lengths";

impl Head for Ncm {
    fn drift(&self) -> Drift {
        self.drift
    }

    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, mut state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let (new, new_lengths) = ClassMeans::with_lengths(task.table, self.mean);
        let d = new.d_model;
        let mut means = state.rows(MEANS);
        let mut lengths = state.rows(LENGTHS);
        if let Some(before) = drift::take_before(&mut state) {
            match self.drift {
                Drift::Ignored => {}
                Drift::Compensated => follow(&mut means, &before, task.table),
                Drift::Linear => {
                    let (after, labels) = (&task.table.features, &task.table.labels);
                    if let Some(map) = LinearMap::fit(&before, after, d, labels) {
                        self.turn(&map, &mut means, &mut lengths, d);
                    }
                }
            }
        }
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

impl Ncm {
    /// Moves unit-length `means`. The length of a sum of features follows its sum; a sum of directions has as
    /// many as before.
    fn turn(&self, map: &LinearMap, means: &mut [f32], lengths: &mut [f32], d: usize) {
        map.apply_near(means);
        for (mean, length) in means.chunks_exact_mut(d.max(1)).zip(lengths) {
            if self.mean == MeanOf::Features {
                *length *= feature_length(mean) as f32;
            }
            let unit: Vec<f32> = unit(mean).map(|v| v as f32).collect();
            mean.copy_from_slice(&unit);
        }
    }
}

/// Moves unit-length `means` as the directions of the new images near them moved; `before` are the
/// features of the rows of `after` before the task. They are of unit length again, and a mean of zeros
/// stays one.
fn follow(means: &mut [f32], before: &[f32], after: &FeatureTable) {
    let d = after.d_model;
    let directions = |rows: &[f32]| -> Vec<f32> {
        let rows = rows.chunks_exact(d.max(1));
        rows.flat_map(unit).map(|v| v as f32).collect()
    };
    let moved = FeatureTable {
        features: directions(&after.features),
        ..after.clone()
    };
    let old = means.to_vec();
    drift::compensate(means, &directions(before), &moved);
    for (mean, old) in means
        .chunks_exact_mut(d.max(1))
        .zip(old.chunks_exact(d.max(1)))
    {
        let unit: Vec<f32> = match old.iter().all(|&v| v == 0.0) {
            true => old.to_vec(),
            false => unit(mean).map(|v| v as f32).collect(),
        };
        mean.copy_from_slice(&unit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device_autodiff;

    fn table(rows: &[([f32; 2], usize)]) -> FeatureTable {
        FeatureTable {
            features: rows.iter().flat_map(|(row, _)| *row).collect(),
            d_model: 2,
            labels: rows.iter().map(|(_, label)| *label).collect(),
            ..FeatureTable::default()
        }
    }

    fn fitted(state: HeadState, rows: &[([f32; 2], usize)], first_label: usize) -> HeadState {
        let device = test_device_autodiff();
        let task = HeadTask {
            table: &table(rows),
            first_label,
            task_idx: 0,
            seed: 0,
            device: &device,
        };
        let head = Ncm {
            mean: MeanOf::Directions,
            drift: Drift::Ignored,
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

    #[test]
    fn old_means_turn_with_the_features_where_asked_to() {
        // The task turns every feature by 30 degrees; the old class lies between the new ones, which are
        // near enough for the mean of their moves to be its own within half a degree.
        let at = |degrees: f32, length: f32| {
            let (sin, cos) = degrees.to_radians().sin_cos();
            [length * cos, length * sin]
        };
        let old = [(at(50.0, 2.0), 0)];
        let new = |turn: f32| {
            let image = |degrees: f32, label| (at(degrees + turn, 3.0), label);
            [
                image(35.0, 1),
                image(45.0, 1),
                image(55.0, 2),
                image(65.0, 2),
            ]
        };
        for (drift, expected) in [
            ("ignored", 50.0),
            ("none", 50.0),
            ("compensated", 80.0),
            ("linear", 80.0),
        ] {
            let options = format!("drift = \"{drift}\"").parse().unwrap();
            let head = (ENTRY.build)(&options).unwrap();
            assert_eq!(head.wants_features_before(), expected == 80.0);
            let device = test_device_autodiff();
            let task = |table| HeadTask {
                table,
                first_label: 1,
                task_idx: 1,
                seed: 0,
                device: &device,
            };
            let mut state = fitted(HeadState::default(), &old, 0);
            let before = table(&new(0.0));
            if head.wants_features_before() {
                state = head.before_task(state, &task(&before)).unwrap();
            }
            let after = table(&new(30.0));
            let state = head.fit(state, &task(&after)).unwrap();
            assert!(state.shared.is_empty());
            let means = state.rows(MEANS);
            let found = means[1].atan2(means[0]).to_degrees();
            assert!((found - expected).abs() < 0.6, "{drift}: {found}");
            assert!((means[0].hypot(means[1]) - 1.0).abs() < 1e-6);
            assert_eq!(state.rows(LENGTHS)[0], 1.0, "one image as before");
        }
    }

    #[test]
    fn means_of_features_are_restored_where_features_move_by_a_linear_map() {
        use sdlora_testkit::toy::SplitMix64;
        const D: usize = 8;
        let mut noise = SplitMix64::new(3);
        let matrix = noise.fill(D * D, 0.5);
        let features = |labels: std::ops::Range<usize>, seed: u64| {
            let mut noise = SplitMix64::new(seed);
            let mut table = FeatureTable {
                d_model: D,
                ..FeatureTable::default()
            };
            for label in labels {
                let centre = noise.fill(D, 2.0);
                for _ in 0..20 {
                    let row = noise.fill(D, 0.5);
                    table
                        .features
                        .extend(row.iter().zip(&centre).map(|(a, b)| a + b));
                    table.labels.push(label);
                }
            }
            table
        };
        let moved = |table: &FeatureTable| {
            let mut moved = table.clone();
            for (to, row) in moved
                .features
                .chunks_exact_mut(D)
                .zip(table.features.chunks_exact(D))
            {
                for (to, m) in to.iter_mut().zip(matrix.chunks_exact(D)) {
                    *to += m.iter().zip(row).map(|(m, x)| m * x).sum::<f32>();
                }
            }
            moved
        };
        let device = test_device_autodiff();
        let (old, new) = (features(0..3, 1), features(3..6, 2));
        let (old_moved, new_moved) = (moved(&old), moved(&new));
        let task = |table, first_label| HeadTask {
            table,
            first_label,
            task_idx: first_label / 3,
            seed: 0,
            device: &device,
        };
        let state_after = |drift: &str| {
            let options = format!("drift = \"{drift}\"\nmean = \"features\"");
            let head = (ENTRY.build)(&options.parse().unwrap()).unwrap();
            let mut state = head.fit(HeadState::default(), &task(&old, 0)).unwrap();
            if head.wants_features_before() {
                state = head.before_task(state, &task(&new, 3)).unwrap();
            }
            head.fit(state, &task(&new_moved, 3)).unwrap()
        };
        let expected = {
            let mut all = old_moved.clone();
            all.features.extend(&new_moved.features);
            all.labels.extend(&new_moved.labels);
            ClassMeans::with_lengths(&all, MeanOf::Features)
        };
        let apart = |drift: &str| -> f32 {
            let state = state_after(drift);
            let means = state.rows(MEANS);
            let pairs = means.iter().zip(&expected.0.means);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(apart("linear") < 1e-5, "{}", apart("linear"));
        assert!(apart("none") > 0.05, "{}", apart("none"));
        for (a, b) in state_after("linear").rows(LENGTHS).iter().zip(&expected.1) {
            assert!((f64::from(*a) / b - 1.0).abs() < 1e-4, "{a}, {b}");
        }
    }

    #[test]
    fn a_mean_of_zeros_follows_nothing() {
        let mut means = vec![0.0, 0.0, 1.0, 0.0];
        let before = [1.0, 0.0, 0.6, 0.8];
        follow(
            &mut means,
            &before,
            &table(&[([0.0, 1.0], 0), ([0.8, 0.6], 0)]),
        );
        assert_eq!(means[..2], [0.0, 0.0]);
        assert_ne!(means[2..], [1.0, 0.0]);
    }
}
