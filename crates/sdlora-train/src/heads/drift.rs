//! Where the statistics of old classes have moved, guessed from the images of a new task.
//!
//! The features of the new images before and after the task show how the space moved. Two guesses are made
//! of them. By `compensated` an old mean moves as the new images near it did:
//! `μ_c += Σ_i w_i (after_i − before_i) / Σ_i w_i` with `w_i = exp(−‖before_i − μ_c‖² / 2σ²)`
//! (Yu et al. 2020, "Semantic Drift Compensation for Class-Incremental Learning", equations 7 and 8).
//! By `linear` all statistics move by one linear map, see `drift/linear.rs`.
//!
//! Deviates: `σ²` is not a setting. It is the mean squared distance of the new features to their own
//! class mean, so that it follows the scale of the features.

mod linear;

use serde::{Deserialize, Serialize};

use super::{HeadState, HeadTask};
use crate::features::FeatureTable;
pub(super) use linear::LinearMap;

/// What becomes of the statistics of old classes when the features change; the option `drift` of every head
/// that is fitted in closed form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drift {
    /// They stay what they were, as published. Written `none`; versions up to 0.1 write `ignored`.
    #[default]
    #[serde(rename = "none", alias = "ignored")]
    Ignored,
    /// Means move as the new task's features near them did.
    Compensated,
    /// Means, covariances and Gram matrices move by the linear map that the new task's features moved by.
    Linear,
}

/// Features `[n, d_model]` of the running task's images before its first step; gone at its end.
pub(super) const BEFORE: &str = "before";

/// Keeps the features of a task before its first step, where there are means that could move.
pub(super) fn keep_before(state: &mut HeadState, task: &HeadTask<'_>) {
    if task.first_label > 0 {
        let shape = vec![task.table.len(), task.table.d_model];
        state.set_shared(BEFORE, shape, task.table.features.clone());
    }
}

/// Takes the features that were kept; none where means stay.
pub(super) fn take_before(state: &mut HeadState) -> Option<Vec<f32>> {
    let before = state.shared.remove(BEFORE)?;
    Some(before.values.clone())
}

/// Moves `means: [n, d_model]` of old classes; `before: [m, d_model]` are the features of the rows of
/// `after` before the task.
pub(super) fn compensate(means: &mut [f32], before: &[f32], after: &FeatureTable) {
    let d = after.d_model;
    let variance = variance_within(before, after);
    if d == 0 || before.is_empty() || variance <= 0.0 {
        return;
    }
    for mean in means.chunks_exact_mut(d) {
        let exponents: Vec<f64> = before
            .chunks_exact(d)
            .map(|row| -squared_distance(row, mean) / (2.0 * variance))
            .collect();
        // Weights relative to the largest: far from every image all of them would round to 0.
        let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut shift = vec![0.0f64; d];
        let mut total = 0.0;
        for (i, (row, exponent)) in before.chunks_exact(d).zip(exponents).enumerate() {
            let weight = (exponent - largest).exp();
            total += weight;
            for ((shift, &a), &b) in shift.iter_mut().zip(after.row(i)).zip(row) {
                *shift += weight * (f64::from(a) - f64::from(b));
            }
        }
        for (mean, shift) in mean.iter_mut().zip(shift) {
            *mean += (shift / total) as f32;
        }
    }
}

/// Mean squared distance of `rows` to the mean of their class, by the labels of `table`.
fn variance_within(rows: &[f32], table: &FeatureTable) -> f64 {
    let d = table.d_model.max(1);
    let n_classes = table.labels.iter().max().map_or(0, |&label| label + 1);
    let mut means = vec![0.0f64; n_classes * d];
    let mut counts = vec![0usize; n_classes];
    for (row, &label) in rows.chunks_exact(d).zip(&table.labels) {
        counts[label] += 1;
        for (mean, &x) in means[label * d..(label + 1) * d].iter_mut().zip(row) {
            *mean += f64::from(x);
        }
    }
    for (mean, &count) in means.chunks_exact_mut(d).zip(&counts) {
        mean.iter_mut().for_each(|m| *m /= count.max(1) as f64);
    }
    let distances = rows
        .chunks_exact(d)
        .zip(&table.labels)
        .map(|(row, &label)| {
            let mean = &means[label * d..(label + 1) * d];
            let squares = row
                .iter()
                .zip(mean)
                .map(|(&x, m)| (f64::from(x) - m).powi(2));
            squares.sum::<f64>()
        });
    distances.sum::<f64>() / table.len().max(1) as f64
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[f32; 2]], labels: &[usize]) -> FeatureTable {
        FeatureTable {
            features: rows.concat(),
            d_model: 2,
            labels: labels.to_vec(),
            ..FeatureTable::default()
        }
    }

    #[test]
    fn a_mean_moves_as_the_images_near_it_did() {
        // Images around (0, 0) go up by 1, images around (10, 0) to the right by 2.
        let before = [[-1.0, 0.0], [1.0, 0.0], [9.0, 0.0], [11.0, 0.0f32]].concat();
        let after = table(
            &[[-1.0, 1.0], [1.0, 1.0], [11.0, 0.0], [13.0, 0.0]],
            &[2, 2, 3, 3],
        );
        let mut means = vec![0.0, 0.5, 10.0, -0.5, 5.0, 0.0];
        compensate(&mut means, &before, &after);
        let expected = [0.0, 1.5, 12.0, -0.5, 6.0, 0.5];
        for (found, expected) in means.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{means:?}");
        }
    }

    #[test]
    fn weights_by_hand_and_none_lost_far_away() {
        // Distances to the own mean are 1, so σ² = 1; exponents of (0, 0): -0.5 and -4.5.
        let before = [[1.0, 0.0], [3.0, 0.0f32]].concat();
        let after = table(&[[2.0, 0.0], [3.0, 0.0]], &[1, 1]);
        let mut means = vec![0.0, 0.0];
        compensate(&mut means, &before, &after);
        let expected = 1.0 / (1.0 + (-4.0f32).exp());
        assert!((means[0] - expected).abs() < 1e-6, "{means:?}");

        let mut far = vec![-1e4, 0.0];
        compensate(&mut far, &before, &after);
        assert!((far[0] - (-1e4 + 1.0)).abs() < 1e-2, "{far:?}");
    }

    #[test]
    fn images_that_are_one_point_each_move_nothing() {
        let mut means = vec![1.0, 2.0];
        compensate(&mut means, &[5.0, 5.0], &table(&[[6.0, 6.0]], &[1]));
        assert_eq!(means, [1.0, 2.0]);
    }
}
