//! A ridge regression from features to one-hot labels: a closed-form classifier without steps.
//!
//! `W = (G + λI)⁻¹ C` with the Gram matrix `G = Σ x xᵀ` and the class sums `C = Σ x yᵀ` of all
//! images seen. Both are sums, so tasks add up and their order does not matter (Zhuang et al. 2022,
//! "ACIL", equation 9; McDonnell et al. 2023, "RanPAC", equation 5).
//!
//! With `projection = M` the regression runs on M random features of `x` instead, see
//! `projection.rs`.
//!
//! Every fifth image of a class is held out while λ is chosen: its own `G` and `C` are enough for
//! the squared error of any `W`, `tr(WᵀGW) − 2 tr(WᵀC) + n`. The final `W` uses all images.
//!
//! Stored per class: `3 d` numbers (two sums, one row of `W`), and `d (d + 1)` once, where `d` is
//! `d_model`, or M with `M · d_model` for the projection. No image is kept, but these are statistics of
//! old images: more than SD-LoRA keeps.
//!
//! Deviates: RanPAC holds out a fifth of the last task alone while λ is chosen, so that its λ, and with
//! it `W`, depends on the order of tasks.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::projection::{draw, random_features};
use super::{Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::error::TrainError;
use crate::export::HostTensor;
use crate::features::FeatureTable;
use crate::linalg::{Symmetric, packed_len};
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "ridge",
    summary: "ridge regression in closed form, on random features where wanted (options: projection)",
    build: |options| {
        let head: Ridge = parse("head (ridge)", options)?;
        match head.projection {
            Some(n) if !(1..=MAX_RANDOM_FEATURES).contains(&n) => Err(TrainError::setting(
                "head.projection",
                n,
                format!("1 to {MAX_RANDOM_FEATURES} random features, or leave it out"),
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
}

/// Twice what RanPAC uses: four matrices of half its square, 6.4 GB in double precision.
const MAX_RANDOM_FEATURES: usize = 20_000;

/// Images whose random features are in memory at a time.
const BLOCK: usize = 512;

/// Lower triangles `[2, d (d + 1) / 2]` of the Gram matrices of fitted and held-out images.
const GRAM: &str = "gram";
/// Class sums `[n_classes, 2, d]` of the same.
const SUMS: &str = "sums";
/// The classifier `[n_classes, d]`; it has no bias.
const WEIGHT: &str = "weight";
/// Matrix `[d, d_model]` of the random features.
const PROJECTION: &str = "projection";

/// Of so many images of a class one is held out to choose λ.
const HOLD_OUT_EVERY: usize = 5;

/// Candidates for λ, relative to the mean of the diagonal of the Gram matrix.
const LAMBDAS: [f64; 8] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

impl Head for Ridge {
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
        statistics.add(table, projection.as_deref());
        let weight = statistics.solve();
        Ok(statistics.keep(&weight, state))
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

/// `G` and `C` on the host, in double precision: of fitted images at 0, of held-out ones at 1.
struct Statistics {
    gram: [Symmetric; 2],
    sums: [Vec<f64>; 2],
    d: usize,
    n_classes: usize,
}

impl Statistics {
    fn new(d: usize, n_classes: usize) -> Self {
        Self {
            gram: [Symmetric::zeros(d), Symmetric::zeros(d)],
            sums: [vec![0.0; n_classes * d], vec![0.0; n_classes * d]],
            d,
            n_classes,
        }
    }

    /// Those kept, with room for the labels of `table`, which may be new or known.
    fn of(state: &HeadState, d: usize, table: &FeatureTable) -> Self {
        let n_table = table.labels.iter().max().map_or(0, |&label| label + 1);
        let sums = state.rows(SUMS);
        let n_before = sums.len() / (2 * d).max(1);
        let mut statistics = Self::new(d, n_table.max(n_before));
        for (label, halves) in sums.chunks_exact((2 * d).max(1)).enumerate() {
            for (to, from) in statistics.sums.iter_mut().zip(halves.chunks_exact(d)) {
                let to = &mut to[label * d..(label + 1) * d];
                to.iter_mut()
                    .zip(from)
                    .for_each(|(a, &b)| *a = f64::from(b));
            }
        }
        if let Some(gram) = state.shared.get(GRAM) {
            let halves = gram.values.chunks_exact(packed_len(d).max(1));
            for (to, from) in statistics.gram.iter_mut().zip(halves) {
                *to = Symmetric::unpacked(from, d);
            }
        }
        statistics
    }

    fn keep(&self, weight: &[f64], mut state: HeadState) -> HeadState {
        let (d, n) = (self.d, self.n_classes);
        let [fitted, held_out] = &self.sums;
        let sums = fitted
            .chunks_exact(d.max(1))
            .zip(held_out.chunks_exact(d.max(1)));
        let sums = sums.flat_map(|(a, b)| narrow(a).chain(narrow(b))).collect();
        let gram = self.gram.iter().flat_map(Symmetric::packed).collect();
        state.set_rows(SUMS, vec![n, 2, d], sums);
        state.set_rows(WEIGHT, vec![n, d], narrow(weight).collect());
        state.set_shared(GRAM, vec![2, packed_len(d)], gram);
        state
    }

    fn add(&mut self, table: &FeatureTable, projection: Option<&HostTensor>) {
        let d = self.d;
        let mut seen = vec![0usize; self.n_classes];
        let blocks = table.features.chunks(BLOCK * table.d_model.max(1));
        for (block, labels) in blocks.zip(table.labels.chunks(BLOCK)) {
            let features = match projection {
                Some(projection) => &random_features(projection, block)[..],
                None => block,
            };
            let mut halves = [Vec::new(), Vec::new()];
            for (row, &label) in features.chunks_exact(d.max(1)).zip(labels) {
                seen[label] += 1;
                let half = usize::from(seen[label].is_multiple_of(HOLD_OUT_EVERY));
                let sum = &mut self.sums[half][label * d..(label + 1) * d];
                for (sum, &x) in sum.iter_mut().zip(row) {
                    *sum += f64::from(x);
                }
                halves[half].extend(row.iter().map(|&x| f64::from(x)));
            }
            for (gram, rows) in self.gram.iter_mut().zip(&halves) {
                gram.add_gram(rows);
            }
        }
    }

    /// `W` `[n_classes, d]` on all images, with the λ of least error on those held out.
    fn solve(&self) -> Vec<f64> {
        let best = LAMBDAS
            .iter()
            .filter_map(|&lambda| {
                let weight = ridge(&self.gram[0], &self.sums[0], lambda)?;
                Some((self.held_out_error(&weight), lambda))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(1.0, |(_, lambda)| lambda);
        let [fitted, held_out] = &self.gram;
        let mut gram = fitted.clone();
        gram.add(1.0, held_out);
        let [fitted, held_out] = &self.sums;
        let sums: Vec<f64> = fitted.iter().zip(held_out).map(|(a, b)| a + b).collect();
        ridge(&gram, &sums, best)
            // Features of zeros only have no best direction.
            .unwrap_or_else(|| vec![0.0; self.n_classes * self.d])
    }

    /// Squared error on the held-out images, up to a constant.
    fn held_out_error(&self, weight: &[f64]) -> f64 {
        let products = weight.iter().zip(&self.sums[1]).map(|(w, c)| w * c);
        self.gram[1].quadratic(weight) - 2.0 * products.sum::<f64>()
    }
}

fn narrow(values: &[f64]) -> impl Iterator<Item = f32> + '_ {
    values.iter().map(|&v| v as f32)
}

/// Rows `(G + λ·mean(diag G)·I)⁻¹ c` for every row `c` of `sums`, by a Cholesky factorisation; `None`
/// when the matrix is not positive definite to working precision.
fn ridge(gram: &Symmetric, sums: &[f64], lambda: f64) -> Option<Vec<f64>> {
    let factor = gram.clone().cholesky(lambda * gram.mean_diagonal())?;
    let mut out = sums.to_vec();
    factor.solve(&mut out);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
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

    const PLAIN: Ridge = Ridge { projection: None };

    /// The matrix with these rows of its lower triangle.
    fn matrix(lower: &[f32], n: usize) -> Symmetric {
        Symmetric::unpacked(lower, n)
    }

    #[test]
    fn two_classes_on_a_line_by_hand() {
        // x = 1, 3 of class 0: G = 10, c = 4; λ·G = 1 gives W = 4 / (10 + 1).
        let w = ridge(&matrix(&[10.0], 1), &[4.0], 0.1).unwrap();
        assert!((w[0] - 4.0 / 11.0).abs() < 1e-12);
        // [[2, 1], [1, 2]] + I has the inverse [[3, -1], [-1, 3]] / 8.
        let w = ridge(&matrix(&[2.0, 1.0, 2.0], 2), &[8.0, 0.0], 0.5).unwrap();
        assert!(
            (w[0] - 3.0).abs() < 1e-12 && (w[1] + 1.0).abs() < 1e-12,
            "{w:?}"
        );
        assert!(ridge(&matrix(&[0.0], 1), &[0.0], 0.1).is_none());
    }

    #[test]
    fn the_order_of_tasks_does_not_matter_and_one_task_is_the_sum_of_two() {
        for head in [
            PLAIN,
            Ridge {
                projection: Some(30),
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
            }),
        );
        assert!(without < 0.7 && with > 0.95, "{without}, {with}");
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
    fn lambda_has_the_least_error_on_held_out_images() {
        let mut statistics = Statistics::new(D, 4);
        statistics.add(&table(&[0, 1, 2, 3], 4), None);
        let chosen = statistics.solve();
        let all = |lambda| {
            let mut gram = statistics.gram[0].clone();
            gram.add(1.0, &statistics.gram[1]);
            let [a, b] = &statistics.sums;
            let sums: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            ridge(&gram, &sums, lambda).unwrap()
        };
        let error = |lambda| {
            let weight = ridge(&statistics.gram[0], &statistics.sums[0], lambda).unwrap();
            statistics.held_out_error(&weight)
        };
        let best = LAMBDAS
            .into_iter()
            .min_by(|&a, &b| error(a).total_cmp(&error(b)))
            .unwrap();
        assert_eq!(chosen, all(best));
        assert_ne!(chosen, all(10.0));
    }

    #[test]
    fn features_of_zeros_give_a_classifier_of_zeros() {
        let table = FeatureTable {
            features: vec![0.0; 2 * D],
            d_model: D,
            labels: vec![0, 1],
        };
        let state = fit(&PLAIN, HeadState::default(), &table);
        assert_eq!(state.rows(WEIGHT), [0.0; 2 * D]);
    }
}
