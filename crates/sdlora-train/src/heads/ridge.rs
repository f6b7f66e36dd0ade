//! A ridge regression from features to one-hot labels: a closed-form classifier without steps.
//!
//! `W = (G + λI)⁻¹ C` with the Gram matrix `G = Σ x xᵀ` and the class sums `C = Σ x yᵀ` of all
//! images seen. Both are sums, so tasks add up and their order does not matter (Zhuang et al. 2022,
//! "ACIL", equation 9; McDonnell et al. 2023, "RanPAC", equation 5).
//!
//! With `projection = M` the regression runs on M random features of `x` instead, see
//! `projection.rs`.
//!
//! Of the images of a class the second, seventh, twelfth and so on are held out while λ is chosen, counted
//! over all tasks: at least one of two. Their own `G` and `C` are enough for the squared error of any `W`,
//! `tr(WᵀGW) − 2 tr(WᵀC) + n`. The final `W` uses all images. Of equal errors the largest λ is taken, and
//! where every class has a single image, 1.
//!
//! Stored per class: `5 d + 1` numbers (two sums, one row of `W`, a count), and `2 d (d + 1)` once, where `d`
//! is `d_model`, or M with `M · d_model` for the projection. Sums are kept as pairs of numbers: 32 bits
//! of a Gram matrix would leave no solution at a small λ. No image is kept, but these are statistics
//! of old images: more than SD-LoRA keeps.
//!
//! With `drift = "linear"` the features `x` of old images are guessed to have moved by one linear map `M`, so
//! `G` becomes `M G Mᵀ` and `C` becomes `M C`, see `drift/linear.rs`. Behind a projection `x` are the random
//! features: they do not move linearly where the features do, so the map is fitted on them, and costs the
//! images of the task times the square of their number.
//!
//! Deviates: RanPAC holds out a fifth of the last task alone while λ is chosen, so that its λ, and with
//! it `W`, depends on the order of tasks; its candidates are 1e-8 to 1e8, not relative to the features.

mod statistics;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::drift::{self, Drift, LinearMap};
use super::projection::{draw, random_features};
use super::{Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::error::TrainError;
use crate::options::parse;
use statistics::Statistics;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "ridge",
    summary: "ridge regression in closed form, on random features where wanted (options: projection, \
              drift)",
    build: |options| {
        let head: Ridge = parse("head (ridge)", options)?;
        match head.projection {
            Some(n) if !(1..=MAX_RANDOM_FEATURES).contains(&n) => Err(TrainError::setting(
                "head.projection",
                n,
                format!("1 to {MAX_RANDOM_FEATURES} random features, or leave it out"),
            )),
            _ if head.drift == Drift::Compensated => Err(TrainError::setting(
                "head.drift",
                "compensated",
                "\"none\" or \"linear\": ridge keeps no means that could move one by one",
            )),
            _ => Ok(Arc::new(head)),
        }
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ridge {
    /// Number of random features; without it the regression runs on the features themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    projection: Option<usize>,
    /// What becomes of the sums of old images when the features change.
    #[serde(default)]
    drift: Drift,
}

/// Twice what RanPAC uses: four matrices of half its square, 6.4 GB in double precision.
const MAX_RANDOM_FEATURES: usize = 20_000;

/// The classifier `[n_classes, d]`; it has no bias.
const WEIGHT: &str = "weight";
/// Matrix `[d, d_model]` of the random features.
const PROJECTION: &str = "projection";

impl Head for Ridge {
    fn drift(&self) -> Drift {
        self.drift
    }

    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, mut state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let (table, d_model) = (task.table, task.table.d_model);
        if let Some(n) = self.projection {
            let drawn = state.shared.entry(PROJECTION.into());
            drawn.or_insert_with(|| draw(n, d_model, task.seed));
        }
        let projection = state.shared.get(PROJECTION).cloned();
        let width = self.projection.unwrap_or(d_model);
        let mut statistics = Statistics::of(&state, width, table);
        if let Some(before) = drift::take_before(&mut state) {
            let map = match &projection {
                None => LinearMap::fit(&before, &table.features, width, &table.labels),
                Some(projection) => {
                    let random = |rows: &[f32]| random_features(projection, rows);
                    let (before, after) = (random(&before), random(&table.features));
                    LinearMap::fit(&before, &after, width, &table.labels)
                }
            };
            if let Some(map) = map {
                statistics.follow(&map);
            }
        }
        statistics.add(table, projection.as_deref());
        let weight = statistics.solve()?;
        statistics.keep(&mut state);
        let weight: Vec<f32> = weight.into_iter().map(|w| w as f32).collect();
        state.set_rows(WEIGHT, vec![weight.len() / width.max(1), width], weight);
        Ok(state)
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let weight = state.per_class.get(WEIGHT)?;
        let &[_, d] = weight.shape.as_slice() else {
            return None;
        };
        let classifier = Classifier::linear(weight.values.clone(), d, None);
        Some(match state.shared.get(PROJECTION) {
            Some(projection) => classifier.after(projection.clone()),
            None => classifier,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::FeatureTable;
    use sdlora_testkit::test_device;
    use sdlora_testkit::toy::SplitMix64;

    const D: usize = 5;

    /// Ten noisy images of each of the labels; a class lies around its own axis.
    fn table(labels: &[usize], seed: u64) -> FeatureTable {
        let mut noise = SplitMix64::new(seed);
        let mut table = FeatureTable {
            d_model: D,
            ..FeatureTable::default()
        };
        for &label in labels {
            for _ in 0..10 {
                let mut row = noise.fill(D, 0.3);
                row[label % D] += 1.0;
                table.features.extend(row);
                table.labels.push(label);
            }
        }
        table
    }

    fn fit(ridge: &Ridge, state: HeadState, table: &FeatureTable) -> HeadState {
        let device = test_device();
        let task = HeadTask {
            table,
            first_label: 0,
            task_idx: 0,
            seed: 1,
            device: &device,
        };
        ridge.fit(state, &task).unwrap()
    }

    const PLAIN: Ridge = Ridge {
        projection: None,
        drift: Drift::Ignored,
    };

    #[test]
    fn the_order_of_tasks_does_not_matter_and_one_task_is_the_sum_of_two() {
        for head in [
            PLAIN,
            Ridge {
                projection: Some(30),
                ..PLAIN
            },
        ] {
            let (first, second) = (table(&[0, 1], 1), table(&[2, 3], 2));
            let in_order = |tables: &[&FeatureTable]| {
                let empty = HeadState::default();
                let fitted = tables.iter().fold(empty, |s, t| fit(&head, s, t));
                fitted.rows(WEIGHT)
            };
            let expected = in_order(&[&first, &second]);
            let mut both = first.clone();
            both.features.extend(&second.features);
            both.labels.extend(&second.labels);
            for other in [in_order(&[&second, &first]), in_order(&[&both])] {
                for (a, b) in other.iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-4, "{head:?}: {a} and {b}");
                }
            }
            // Not so for other images: the statistics do enter.
            let other = in_order(&[&first, &table(&[2, 3], 9)]);
            let pairs = || other.iter().zip(&expected);
            assert!(pairs().any(|(a, b)| (a - b).abs() > 1e-3), "{head:?}");
        }
    }

    #[test]
    fn random_features_separate_what_no_line_does() {
        // Opposite quadrants are one class: by the features themselves each is as near as the other.
        let quadrants = |seed: u64| {
            let mut noise = SplitMix64::new(seed);
            let mut table = FeatureTable {
                d_model: 2,
                ..FeatureTable::default()
            };
            for i in 0..200 {
                let turns = i as f32 / 4.0 + 0.125 + noise.fill(1, 0.08)[0];
                let (sine, cosine) = (turns * std::f32::consts::TAU).sin_cos();
                table.features.extend([cosine, sine]);
                table.labels.push(i % 2);
            }
            table
        };
        let accuracy = |head: &Ridge| {
            let state = fit(head, HeadState::default(), &quadrants(1));
            let test = quadrants(2);
            let found = head.classifier(&state).unwrap().predict(&test);
            crate::accuracy(&found, &test.labels)
        };
        let (without, with) = (
            accuracy(&PLAIN),
            accuracy(&Ridge {
                projection: Some(60),
                ..PLAIN
            }),
        );
        assert!(without < 0.7 && with > 0.95, "{without}, {with}");
    }

    /// Two classes, then three more while all features move by `moves`: the weights, of whole statistics where
    /// `of_all` and else of what is kept with `drift`.
    fn after_a_move(
        projection: Option<usize>,
        drift: Drift,
        moves: impl Fn(&FeatureTable) -> FeatureTable,
        of_all: bool,
    ) -> Vec<f32> {
        let (old, new) = (table(&[0, 1], 1), table(&[2, 3, 4], 2));
        let head = Ridge { projection, drift };
        let device = test_device();
        let task = |table, first_label| HeadTask {
            table,
            first_label,
            task_idx: first_label,
            seed: 1,
            device: &device,
        };
        let (old_moved, new_moved) = (moves(&old), moves(&new));
        let first = if of_all { &old_moved } else { &old };
        let mut state = head.fit(HeadState::default(), &task(first, 0)).unwrap();
        if !of_all && head.wants_features_before() {
            state = head.before_task(state, &task(&new, 2)).unwrap();
        }
        let state = head.fit(state, &task(&new_moved, 2)).unwrap();
        assert!(!state.shared.contains_key(drift::BEFORE));
        state.rows(WEIGHT)
    }

    fn apart(a: &[f32], b: &[f32]) -> f64 {
        let squares = |values: &mut dyn Iterator<Item = f32>| -> f64 {
            values.map(|v| f64::from(v).powi(2)).sum()
        };
        let between = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
        (between / squares(&mut b.iter().copied())).sqrt()
    }

    #[test]
    fn sums_are_restored_where_features_move_by_a_linear_map() {
        let matrix = SplitMix64::new(8).fill(D * D, 0.6);
        let moves = |table: &FeatureTable| {
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
        let expected = after_a_move(None, Drift::Ignored, moves, true);
        let with = apart(&after_a_move(None, Drift::Linear, moves, false), &expected);
        let without = apart(&after_a_move(None, Drift::Ignored, moves, false), &expected);
        assert!(with < 1e-4, "{with}");
        assert!(without > 0.1, "{without}");
        // Random features move along with longer features, and only nearly with others.
        let longer = |table: &FeatureTable| {
            let mut moved = table.clone();
            moved.features.iter_mut().for_each(|x| *x *= 1.5);
            moved
        };
        let expected = after_a_move(Some(60), Drift::Ignored, longer, true);
        let of = |drift| apart(&after_a_move(Some(60), drift, longer, false), &expected);
        let (with, without) = (of(Drift::Linear), of(Drift::Ignored));
        assert!(with < 0.7 * without, "{with}, {without}");
    }

    #[test]
    fn drift_that_ridge_has_no_means_for_is_refused() {
        let options = "drift = \"compensated\"".parse().unwrap();
        let error = (ENTRY.build)(&options).unwrap_err().to_string();
        assert!(
            error.contains("head.drift") && error.contains("linear"),
            "{error}"
        );
    }

    #[test]
    fn so_many_random_features_are_refused() {
        for n in [0, MAX_RANDOM_FEATURES + 1] {
            let options = format!("projection = {n}");
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains("head.projection"), "{error}");
        }
    }

    #[test]
    fn features_without_a_solution_are_an_error_and_not_a_classifier_of_zeros() {
        let table = FeatureTable {
            features: vec![0.0; 2 * D],
            d_model: D,
            labels: vec![0, 1],
            ..FeatureTable::default()
        };
        let device = test_device();
        let task = HeadTask {
            table: &table,
            first_label: 0,
            task_idx: 0,
            seed: 1,
            device: &device,
        };
        let error = PLAIN.fit(HeadState::default(), &task).unwrap_err();
        assert!(error.to_string().contains("no solution"), "{error}");
    }
}
