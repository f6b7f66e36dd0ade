//! A ridge regression from features to one-hot labels: a closed-form classifier without steps.
//!
//! `W = (G + λI)⁻¹ C` with the Gram matrix `G = Σ x xᵀ` and the class sums `C = Σ x yᵀ` of all
//! images seen. Both are sums, so tasks add up and their order does not matter (Zhuang et al. 2022,
//! "ACIL", equation 9; McDonnell et al. 2023, "RanPAC", equation 5, here without projection).
//!
//! Every fifth image of a class is held out while λ is chosen: its own `G` and `C` are enough for
//! the squared error of any `W`, `tr(WᵀGW) − 2 tr(WᵀC) + n`. The final `W` uses all images.
//!
//! Stored per class: `3 · d_model` numbers (two sums, one row of `W`), and `2 · d_model²` once. No
//! image is kept, but these are statistics of old images: more than SD-LoRA keeps.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "ridge",
    summary: "ridge regression in closed form",
    build: |options| Ok(Arc::new(parse::<Ridge>("head (ridge)", options)?)),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ridge {}

/// Gram matrices `[2, d_model, d_model]` of the fitted and of the held-out images.
const GRAM: &str = "gram";
/// Class sums `[n_classes, 2, d_model]` of the same.
const SUMS: &str = "sums";
/// The classifier `[n_classes, d_model]`; it has no bias.
const WEIGHT: &str = "weight";

/// Of so many images of a class one is held out to choose λ.
const HOLD_OUT_EVERY: usize = 5;

/// Candidates for λ, relative to the mean of the diagonal of the Gram matrix.
const LAMBDAS: [f64; 8] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

impl Head for Ridge {
    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let mut statistics = Statistics::of(&state, task.table);
        statistics.add(task.table);
        let weight = statistics.solve();
        Ok(statistics.keep(weight, state))
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let weight = state.per_class.get(WEIGHT)?;
        let &[_, d_model] = weight.shape.as_slice() else {
            return None;
        };
        Some(Classifier::linear(weight.values.clone(), d_model, None))
    }
}

/// `G` and `C` on the host, in double precision: of fitted images at 0, of held-out ones at 1.
struct Statistics {
    gram: [Vec<f64>; 2],
    sums: [Vec<f64>; 2],
    d_model: usize,
    n_classes: usize,
}

impl Statistics {
    fn new(d_model: usize, n_classes: usize) -> Self {
        let zeros = |n: usize| [vec![0.0; n], vec![0.0; n]];
        Self {
            gram: zeros(d_model * d_model),
            sums: zeros(n_classes * d_model),
            d_model,
            n_classes,
        }
    }

    /// Those kept, with room for the labels of `table`, which may be new or known.
    fn of(state: &HeadState, table: &FeatureTable) -> Self {
        let d = table.d_model;
        let n_table = table.labels.iter().max().map_or(0, |&label| label + 1);
        let sums = state.rows(SUMS);
        let n_before = sums.len() / (2 * d).max(1);
        let mut statistics = Self::new(d, n_table.max(n_before));
        for (label, halves) in sums.chunks_exact((2 * d).max(1)).enumerate() {
            for (to, from) in statistics.sums.iter_mut().zip(halves.chunks_exact(d)) {
                widen(from, &mut to[label * d..(label + 1) * d]);
            }
        }
        if let Some(gram) = state.shared.get(GRAM) {
            let halves = gram.values.chunks_exact((d * d).max(1));
            for (to, from) in statistics.gram.iter_mut().zip(halves) {
                widen(from, to);
            }
        }
        statistics
    }

    fn keep(&self, weight: Vec<f64>, mut state: HeadState) -> HeadState {
        let (d, n) = (self.d_model, self.n_classes);
        let [fitted, held_out] = &self.sums;
        let sums = fitted
            .chunks_exact(d.max(1))
            .zip(held_out.chunks_exact(d.max(1)));
        let sums = sums.flat_map(|(a, b)| narrow(a).chain(narrow(b))).collect();
        let gram = self.gram.iter().flat_map(|half| narrow(half)).collect();
        state.set_rows(SUMS, vec![n, 2, d], sums);
        state.set_rows(WEIGHT, vec![n, d], narrow(&weight).collect());
        state.set_shared(GRAM, vec![2, d, d], gram);
        state
    }

    fn add(&mut self, table: &FeatureTable) {
        let d = self.d_model;
        let mut seen = vec![0usize; self.n_classes];
        for (i, &label) in table.labels.iter().enumerate() {
            seen[label] += 1;
            let half = usize::from(seen[label].is_multiple_of(HOLD_OUT_EVERY));
            let row: Vec<f64> = table.row(i).iter().map(|&v| f64::from(v)).collect();
            let sum = &mut self.sums[half][label * d..(label + 1) * d];
            for (sum, x) in sum.iter_mut().zip(&row) {
                *sum += x;
            }
            for (gram, x) in self.gram[half].chunks_exact_mut(d).zip(&row) {
                for (gram, y) in gram.iter_mut().zip(&row) {
                    *gram += x * y;
                }
            }
        }
    }

    /// `W` `[n_classes, d_model]` on all images, with the λ of least error on those held out.
    fn solve(&self) -> Vec<f64> {
        let best = LAMBDAS
            .iter()
            .filter_map(|&lambda| {
                let weight = ridge(&self.gram[0], &self.sums[0], self.d_model, lambda)?;
                Some((self.held_out_error(&weight), lambda))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map_or(1.0, |(_, lambda)| lambda);
        let sum =
            |[a, b]: &[Vec<f64>; 2]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        ridge(&sum(&self.gram), &sum(&self.sums), self.d_model, best)
            // Features of zeros only have no best direction.
            .unwrap_or_else(|| vec![0.0; self.n_classes * self.d_model])
    }

    /// Squared error on the held-out images, up to a constant.
    fn held_out_error(&self, weight: &[f64]) -> f64 {
        let d = self.d_model;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let rows = weight.chunks_exact(d).zip(self.sums[1].chunks_exact(d));
        rows.map(|(w, sum)| {
            let quadratic: f64 = self.gram[1]
                .chunks_exact(d)
                .zip(w)
                .map(|(gram, &w_i)| w_i * dot(gram, w))
                .sum();
            quadratic - 2.0 * dot(w, sum)
        })
        .sum()
    }
}

fn widen(from: &[f32], to: &mut [f64]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = f64::from(from);
    }
}

fn narrow(values: &[f64]) -> impl Iterator<Item = f32> + '_ {
    values.iter().map(|&v| v as f32)
}

/// Rows `(G + λ·mean(diag G)·I)⁻¹ c` for every row `c` of `sums`, by a Cholesky factorisation; `None`
/// when the matrix is not positive definite to working precision.
fn ridge(gram: &[f64], sums: &[f64], d: usize, lambda: f64) -> Option<Vec<f64>> {
    let mean_diagonal = (0..d).map(|i| gram[i * d + i]).sum::<f64>() / d as f64;
    let mut lower = gram.to_vec();
    for i in 0..d {
        lower[i * d + i] += lambda * mean_diagonal;
    }
    for i in 0..d {
        for j in 0..=i {
            let (row_i, row_j) = (&lower[i * d..i * d + j], &lower[j * d..j * d + j]);
            let inner: f64 = row_i.iter().zip(row_j).map(|(a, b)| a * b).sum();
            let rest = lower[i * d + j] - inner;
            lower[i * d + j] = if i == j {
                if rest.is_nan() || rest <= f64::EPSILON * mean_diagonal {
                    return None;
                }
                rest.sqrt()
            } else {
                rest / lower[j * d + j]
            };
        }
    }
    let mut out = sums.to_vec();
    for row in out.chunks_exact_mut(d) {
        for i in 0..d {
            let inner: f64 = (0..i).map(|j| lower[i * d + j] * row[j]).sum();
            row[i] = (row[i] - inner) / lower[i * d + i];
        }
        for i in (0..d).rev() {
            let inner: f64 = (i + 1..d).map(|j| lower[j * d + i] * row[j]).sum();
            row[i] = (row[i] - inner) / lower[i * d + i];
        }
    }
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

    fn fit(state: HeadState, table: &FeatureTable) -> HeadState {
        let device = test_device();
        let task = HeadTask {
            table,
            first_label: 0,
            task_idx: 0,
            seed: 1,
            device: &device,
        };
        Ridge {}.fit(state, &task).unwrap()
    }

    #[test]
    fn two_classes_on_a_line_by_hand() {
        // x = 1, 3 of class 0: G = 10, c = 4; λ·G = 1 gives W = 4 / (10 + 1).
        let w = ridge(&[10.0], &[4.0], 1, 0.1).unwrap();
        assert!((w[0] - 4.0 / 11.0).abs() < 1e-12);
        // [[2, 1], [1, 2]] + I has the inverse [[3, -1], [-1, 3]] / 8.
        let w = ridge(&[2.0, 1.0, 1.0, 2.0], &[8.0, 0.0], 2, 0.5).unwrap();
        assert!(
            (w[0] - 3.0).abs() < 1e-12 && (w[1] + 1.0).abs() < 1e-12,
            "{w:?}"
        );
        assert!(ridge(&[0.0], &[0.0], 1, 0.1).is_none());
    }

    #[test]
    fn the_order_of_tasks_does_not_matter_and_one_task_is_the_sum_of_two() {
        let (first, second) = (table(&[0, 1], 1), table(&[2, 3], 2));
        let in_order = |tables: &[&FeatureTable]| {
            let fitted = tables.iter().fold(HeadState::default(), |s, t| fit(s, t));
            fitted.rows(WEIGHT)
        };
        let expected = in_order(&[&first, &second]);
        let mut both = first.clone();
        both.features.extend(&second.features);
        both.labels.extend(&second.labels);
        for other in [in_order(&[&second, &first]), in_order(&[&both])] {
            for (a, b) in other.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-5, "{a} and {b}");
            }
        }
        // Not so for other images: the statistics do enter.
        let other = in_order(&[&first, &table(&[2, 3], 9)]);
        assert!(
            other
                .iter()
                .zip(&expected)
                .any(|(a, b)| (a - b).abs() > 1e-3)
        );
    }

    #[test]
    fn lambda_has_the_least_error_on_held_out_images() {
        let mut statistics = Statistics::new(D, 4);
        statistics.add(&table(&[0, 1, 2, 3], 4));
        let chosen = statistics.solve();
        let all = |lambda| {
            let sum = |[a, b]: &[Vec<f64>; 2]| -> Vec<f64> {
                a.iter().zip(b).map(|(a, b)| a + b).collect()
            };
            ridge(&sum(&statistics.gram), &sum(&statistics.sums), D, lambda).unwrap()
        };
        let error = |lambda| {
            let weight = ridge(&statistics.gram[0], &statistics.sums[0], D, lambda).unwrap();
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
        let state = fit(HeadState::default(), &table);
        assert_eq!(state.rows(WEIGHT), [0.0; 2 * D]);
    }
}
