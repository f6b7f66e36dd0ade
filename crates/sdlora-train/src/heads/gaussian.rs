//! Class Gaussians, and a linear classifier aligned on features sampled from them after every task
//! (Zhang et al. 2023, ICCV, "SLCA: Slow Learner with Classifier Alignment", section 3.3).
//!
//! Columns that the steps of a task trained compare new classes with each other only; sampled features
//! of all classes seen put old and new columns on one scale. The aligned classifier predicts and is
//! written; the next task goes on with the columns as they were before, as in the published code.
//! Where a method trains no columns, alignment starts at the class means about their common mean.
//!
//! What is kept of a class: its mean, and by `covariance` a whole covariance (half of a symmetric
//! matrix), a variance per feature, or a part in one covariance for all. With
//! `drift = "compensated"` old means follow the features, see `drift.rs`; covariances stay.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::align::{Columns, Gaussians, Schedule, Spread, align, factor};
use super::drift::{self, Drift};
use super::{ALIGNMENT_DRAW, Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::linalg::{Symmetric, packed_len};
use crate::model::generator;
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "gaussian",
    summary: "a linear classifier aligned on features sampled from class Gaussians (options: \
              covariance, drift, n_samples, n_epochs, lr)",
    build: |options| {
        let head: Gaussian = parse("head (gaussian)", options)?;
        if !(1..=MAX_SAMPLES).contains(&head.n_samples) {
            return Err(TrainError::setting(
                "head.n_samples",
                head.n_samples,
                format!("1 to {MAX_SAMPLES}"),
            ));
        }
        if head.lr.is_finite() && head.lr > 0.0 {
            return Ok(Arc::new(head));
        }
        Err(TrainError::setting(
            "head.lr",
            head.lr,
            "a finite number above 0",
        ))
    },
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gaussian {
    /// What is kept of the spread of a class.
    #[serde(default)]
    covariance: Covariance,
    /// What becomes of old means when the features change.
    #[serde(default)]
    drift: Drift,
    /// Samples of every class in every epoch.
    #[serde(default = "default_n_samples")]
    n_samples: usize,
    /// Epochs of alignment; 0 leaves the classifier as it is.
    #[serde(default = "default_n_epochs")]
    n_epochs: usize,
    /// Learning rate of the first epoch.
    #[serde(default = "default_lr")]
    lr: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Covariance {
    /// One whole matrix for every class, as published.
    #[default]
    Full,
    /// Variances of every class.
    Diagonal,
    /// One whole matrix for all classes, pooled within classes.
    Shared,
}

/// Samples of an epoch lie in memory together; of 200 classes of width 768 these are 6 GB.
const MAX_SAMPLES: usize = 10_000;

/// The three numbers of the published code.
fn default_n_samples() -> usize {
    256
}

fn default_n_epochs() -> usize {
    5
}

fn default_lr() -> f64 {
    0.01
}

/// Class means `[n_classes, d_model]`.
const MEANS: &str = "means";
/// Lower triangles `[n_classes, d_model (d_model + 1) / 2]`, or one of them when it is shared.
const COVARIANCE: &str = "covariance";
/// Variances `[n_classes, d_model]`.
const VARIANCES: &str = "variances";
/// Degrees of freedom `[1]` that the shared covariance comes from.
const DEGREES: &str = "degrees";
/// First label of the task of a class `[n_classes, 1]`.
const FIRST_LABELS: &str = "first_labels";
/// The aligned classifier `[n_classes, d_model]` and `[n_classes, 1]`.
const WEIGHT: &str = "weight";
const BIAS: &str = "bias";

impl Head for Gaussian {
    fn drift(&self) -> Drift {
        self.drift
    }

    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, mut state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let (table, d) = (task.table, task.table.d_model);
        let mut means = state.rows(MEANS);
        means.truncate(task.first_label * d);
        if let Some(before) = drift::take_before(&mut state) {
            drift::compensate(&mut means, &before, table);
        }
        let new = ClassMoments::of(table, task.first_label);
        means.extend(&new.means);
        let n_classes = means.len() / d.max(1);
        state.set_rows(MEANS, vec![n_classes, d], means);
        self.keep_spread(&mut state, &new, task.first_label);

        let mut first_labels = state.rows(FIRST_LABELS);
        first_labels.truncate(task.first_label);
        first_labels.resize(n_classes, task.first_label as f32);
        state.set_rows(FIRST_LABELS, vec![n_classes, 1], first_labels);

        let Columns { rows, bias } = self.classify(&state, task)?;
        state.set_rows(WEIGHT, vec![n_classes, d], rows);
        state.set_rows(BIAS, vec![n_classes, 1], bias);
        Ok(state)
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let weight = state.per_class.get(WEIGHT)?;
        let &[_, d_model] = weight.shape.as_slice() else {
            return None;
        };
        let bias = state.rows(BIAS);
        Some(Classifier::linear(
            weight.values.clone(),
            d_model,
            Some(bias),
        ))
    }
}

impl Gaussian {
    fn keep_spread(&self, state: &mut HeadState, new: &ClassMoments, first_label: usize) {
        let d = new.d_model;
        let (name, width) = match self.covariance {
            Covariance::Full => (COVARIANCE, packed_len(d)),
            Covariance::Diagonal => (VARIANCES, d),
            Covariance::Shared => return pool(state, new),
        };
        let mut values = state.rows(name);
        values.truncate(first_label * width);
        for class in 0..new.n_classes() {
            match self.covariance {
                Covariance::Diagonal => values.extend(new.variances(class)),
                _ => values.extend(new.covariance(class).packed()),
            }
        }
        state.set_rows(name, vec![values.len() / width.max(1), width], values);
    }

    /// The classifier after a task, aligned where there is something to align.
    fn classify(&self, state: &HeadState, task: &HeadTask<'_>) -> Result<Columns, TrainError> {
        let d = task.table.d_model;
        let means = state.rows(MEANS);
        let n_classes = means.len() / d.max(1);
        let trained = state.trained.as_ref();
        let trained = trained.filter(|columns| columns.n_classes() == n_classes);
        let start = match trained {
            Some(columns) => Columns {
                rows: columns.rows().0,
                bias: columns.bias_host().unwrap_or_else(|| vec![0.0; n_classes]),
            },
            None => about_the_common_mean(&means, d),
        };
        // Columns of one task were trained together: there is nothing to put on one scale.
        if trained.is_some() && task.first_label == 0 {
            return Ok(start);
        }
        let spread = match self.covariance {
            Covariance::Full => state.per_class.get(COVARIANCE).map(|a| Spread::Full(a)),
            Covariance::Diagonal => state.per_class.get(VARIANCES).map(|a| Spread::Diagonal(a)),
            Covariance::Shared => {
                let shared = state.shared.get(COVARIANCE);
                shared.map(|a| Spread::Shared(factor(&a.values, d)))
            }
        };
        let gaussians = Gaussians {
            means: &means,
            d_model: d,
            spread: spread.unwrap_or(Spread::Shared(None)),
        };
        let first_labels: Vec<usize> = state
            .rows(FIRST_LABELS)
            .into_iter()
            .map(|first| first as usize)
            .collect();
        let schedule = Schedule {
            n_samples: self.n_samples,
            n_epochs: self.n_epochs,
            lr: self.lr,
        };
        let mut rng = generator(task.seed, ALIGNMENT_DRAW, task.task_idx);
        let aligned = align(
            start,
            &gaussians,
            &first_labels,
            schedule,
            &mut rng,
            task.device,
        );
        let is_finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        if is_finite(&aligned.rows) && is_finite(&aligned.bias) {
            return Ok(aligned);
        }
        Err(TrainError::setting(
            "head.lr",
            self.lr,
            format!(
                "a smaller value: the alignment after task {} did not end in numbers",
                task.task_idx
            ),
        ))
    }
}

/// Rows `(μ_c − μ) / ‖μ_c − μ‖` about the mean `μ` of all means: the nearest mean by angle around it.
fn about_the_common_mean(means: &[f32], d: usize) -> Columns {
    let n = means.len() / d.max(1);
    let mut common = vec![0.0f64; d];
    for mean in means.chunks_exact(d.max(1)) {
        for (sum, &value) in common.iter_mut().zip(mean) {
            *sum += f64::from(value) / n as f64;
        }
    }
    let (mut rows, mut bias) = (Vec::with_capacity(n * d), Vec::with_capacity(n));
    for mean in means.chunks_exact(d.max(1)) {
        let row: Vec<f64> = mean
            .iter()
            .zip(&common)
            .map(|(&m, c)| f64::from(m) - c)
            .collect();
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        let length = if length > 0.0 { length } else { 1.0 };
        let at_common: f64 = row.iter().zip(&common).map(|(x, c)| x * c).sum();
        rows.extend(row.iter().map(|x| (x / length) as f32));
        bias.push((-at_common / length) as f32);
    }
    Columns { rows, bias }
}

/// Adds the spread of new classes to the covariance within classes.
fn pool(state: &mut HeadState, new: &ClassMoments) {
    let d = new.d_model;
    let before = |name: &str| state.shared.get(name).map_or(&[][..], |a| &a.values);
    let degrees = before(DEGREES).first().copied().map_or(0.0, f64::from);
    let mut sum = Symmetric::zeros(d);
    sum.add(degrees, &Symmetric::unpacked(before(COVARIANCE), d));
    let mut total = degrees;
    for class in 0..new.n_classes() {
        let own = new.degrees(class);
        sum.add(own, &new.covariance(class));
        total += own;
    }
    let mut mean = Symmetric::zeros(d);
    mean.add(1.0 / total.max(1.0), &sum);
    state.set_shared(COVARIANCE, vec![packed_len(d)], mean.packed());
    state.set_shared(DEGREES, vec![1], vec![total as f32]);
}

/// Means of the classes of a task, and the distances of their images to them.
struct ClassMoments {
    /// `[n_new, d_model]`.
    means: Vec<f32>,
    d_model: usize,
    /// For every class `[n_images, d_model]`.
    deviations: Vec<Vec<f64>>,
}

impl ClassMoments {
    fn of(table: &FeatureTable, first_label: usize) -> Self {
        let d = table.d_model;
        let end = table.labels.iter().max().map_or(0, |&label| label + 1);
        let mut images: Vec<Vec<f64>> = vec![Vec::new(); end.saturating_sub(first_label)];
        for (i, &label) in table.labels.iter().enumerate() {
            if let Some(class) = label.checked_sub(first_label) {
                images[class].extend(table.row(i).iter().map(|&x| f64::from(x)));
            }
        }
        let mut means = Vec::with_capacity(images.len() * d);
        for rows in &mut images {
            let n = (rows.len() / d.max(1)).max(1) as f64;
            let mut mean = vec![0.0; d];
            for row in rows.chunks_exact(d.max(1)) {
                mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / n);
            }
            for row in rows.chunks_exact_mut(d.max(1)) {
                row.iter_mut().zip(&mean).for_each(|(x, m)| *x -= m);
            }
            means.extend(mean.iter().map(|&m| m as f32));
        }
        Self {
            means,
            d_model: d,
            deviations: images,
        }
    }

    fn n_classes(&self) -> usize {
        self.deviations.len()
    }

    /// Images less one; 0 of a class with one image or none.
    fn degrees(&self, class: usize) -> f64 {
        let n = self.deviations[class].len() / self.d_model.max(1);
        n.saturating_sub(1) as f64
    }

    /// Unbiased, and zeros of a class with one image.
    fn covariance(&self, class: usize) -> Symmetric {
        let mut sum = Symmetric::zeros(self.d_model);
        sum.add_gram(&self.deviations[class]);
        let mut covariance = Symmetric::zeros(self.d_model);
        covariance.add(1.0 / self.degrees(class).max(1.0), &sum);
        covariance
    }

    /// The diagonal of [`covariance`](Self::covariance).
    fn variances(&self, class: usize) -> impl Iterator<Item = f32> {
        let mut sums = vec![0.0f64; self.d_model];
        for row in self.deviations[class].chunks_exact(self.d_model.max(1)) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
        let degrees = self.degrees(class).max(1.0);
        sums.into_iter().map(move |sum| (sum / degrees) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::TrainedHead;
    use burn::tensor::TensorData;
    use sdlora_testkit::test_device_autodiff;
    use sdlora_testkit::toy::SplitMix64;

    const D: usize = 6;

    fn head(options: &str) -> Arc<dyn Head> {
        (ENTRY.build)(&options.parse().unwrap()).unwrap()
    }

    /// Noisy features of each of the labels, around the axis of the label and `shift`.
    fn table(labels: std::ops::Range<usize>, seed: u64, shift: f32) -> FeatureTable {
        let mut noise = SplitMix64::new(seed);
        let mut table = FeatureTable {
            d_model: D,
            ..FeatureTable::default()
        };
        for label in labels {
            for _ in 0..30 {
                let mut row = noise.fill(D, 0.3);
                row[label] += 1.0;
                row[D - 1] += shift;
                table.features.extend(row);
                table.labels.push(label);
            }
        }
        table
    }

    fn fit(head: &dyn Head, state: HeadState, table: &FeatureTable, first: usize) -> HeadState {
        let device = test_device_autodiff();
        head.fit(state, &task(table, first, &device)).unwrap()
    }

    fn task<'a>(
        table: &'a FeatureTable,
        first_label: usize,
        device: &'a burn::tensor::Device,
    ) -> HeadTask<'a> {
        HeadTask {
            table,
            first_label,
            task_idx: first_label / 2,
            seed: 5,
            device,
        }
    }

    /// Columns along the axes of four classes, of the given length and bias each.
    fn columns(lengths: [f32; 4], bias: [f32; 4]) -> TrainedHead {
        let mut weight = vec![0.0; D * 4];
        (0..4).for_each(|i| weight[i * 4 + i] = lengths[i]);
        TrainedHead::from_data(
            TensorData::new(weight, [D, 4]),
            TensorData::new(bias.to_vec(), [4]),
            &test_device_autodiff(),
        )
    }

    fn accuracy(head: &dyn Head, state: &HeadState, labels: std::ops::Range<usize>) -> f64 {
        let test = table(labels, 77, 0.0);
        let classifier = head.classifier(state).unwrap();
        crate::accuracy(&classifier.predict(&test), &test.labels)
    }

    #[test]
    fn alignment_repairs_new_columns_that_outweigh_old_ones() {
        for covariance in ["full", "diagonal", "shared"] {
            let of = |n_epochs: usize| {
                let options = format!("covariance = \"{covariance}\"\nn_epochs = {n_epochs}");
                let head = head(&options);
                let mut state = HeadState::default();
                state = fit(head.as_ref(), state, &table(0..2, 1, 0.0), 0);
                // As after a task whose loss saw new classes only.
                state.trained = Some(columns([1.0, 1.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]));
                state = fit(head.as_ref(), state, &table(2..4, 2, 0.0), 2);
                let old = accuracy(head.as_ref(), &state, 0..2);
                let new = accuracy(head.as_ref(), &state, 2..4);
                (old, new)
            };
            let (old, new) = of(0);
            assert!(old < 0.05 && new > 0.95, "{covariance}: {old}, {new}");
            let (old, new) = of(25);
            assert!(old > 0.95 && new > 0.95, "{covariance}: {old}, {new}");
        }
    }

    #[test]
    fn the_first_task_keeps_trained_columns_and_the_next_goes_on_with_them() {
        let head = head("");
        let trained = columns([1.0, 2.0, 3.0, 4.0], [0.1, 0.2, 0.3, 0.4]);
        let (rows, _) = trained.rows();
        let mut state = HeadState {
            trained: Some(trained),
            ..HeadState::default()
        };
        state = fit(head.as_ref(), state, &table(0..4, 1, 0.0), 0);
        assert_eq!(state.rows(WEIGHT), rows);
        assert_eq!(state.rows(BIAS), [0.1, 0.2, 0.3, 0.4]);
        assert_eq!(state.trained.unwrap().rows().0, rows);
    }

    #[test]
    fn without_trained_columns_alignment_starts_at_the_means() {
        for covariance in ["full", "diagonal", "shared"] {
            let head = head(&format!("covariance = \"{covariance}\""));
            let mut state = fit(head.as_ref(), HeadState::default(), &table(0..2, 1, 0.0), 0);
            state = fit(head.as_ref(), state, &table(2..4, 2, 0.0), 2);
            let found = accuracy(head.as_ref(), &state, 0..4);
            assert!(found > 0.95, "{covariance}: {found}");
        }
        // (1, 0) and (3, 2) lie around (2, 1): rows ∓(1, 1) / √2, and 0 at the middle.
        let start = about_the_common_mean(&[1.0, 0.0, 3.0, 2.0], 2);
        let half = 0.5f32.sqrt();
        let expected = [-half, -half, half, half, 3.0 * half, -3.0 * half];
        for (found, expected) in start.rows.iter().chain(&start.bias).zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{start:?}");
        }
    }

    #[test]
    fn means_and_spreads_by_hand() {
        let tables = [
            // Class 0: mean (1, 2), variances 2 and 8, covariance 4. Class 1: one image.
            ([[0.0, 0.0], [2.0, 4.0], [7.0, 7.0]], [0, 0, 1]),
            // Class 2: mean (0, 0), variances 2 and 2, covariance -2. Class 3: one image.
            ([[1.0, -1.0], [-1.0, 1.0], [5.0, 5.0f32]], [2, 2, 3]),
        ];
        for (covariance, per_class, shared) in [
            (
                "full",
                vec![2.0, 4.0, 8.0, 0.0, 0.0, 0.0, 2.0, -2.0, 2.0, 0.0, 0.0, 0.0],
                vec![],
            ),
            (
                "diagonal",
                vec![2.0, 8.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0],
                vec![],
            ),
            ("shared", vec![], vec![2.0, 1.0, 5.0]),
        ] {
            let head = head(&format!("covariance = \"{covariance}\"\nn_epochs = 0"));
            let mut state = HeadState::default();
            for (rows, labels) in &tables {
                let table = FeatureTable {
                    features: rows.concat(),
                    d_model: 2,
                    labels: labels.to_vec(),
                };
                state = fit(head.as_ref(), state, &table, labels[0]);
            }
            let means = [1.0, 2.0, 7.0, 7.0, 0.0, 0.0, 5.0, 5.0];
            assert_eq!(state.rows(MEANS), means);
            assert_eq!(state.rows(FIRST_LABELS), [0.0, 0.0, 2.0, 2.0]);
            let found = [state.rows(COVARIANCE), state.rows(VARIANCES)].concat();
            assert_eq!(found, per_class, "{covariance}");
            let found = state.shared.get(COVARIANCE);
            assert_eq!(found.map_or(vec![], |a| a.values.clone()), shared);
        }
    }

    #[test]
    fn old_means_follow_the_features_where_asked_to() {
        for (drift, expected) in [("ignored", 0.0), ("compensated", 3.0)] {
            let head = head(&format!("drift = \"{drift}\""));
            assert_eq!(head.wants_features_before(), drift == "compensated");
            let device = test_device_autodiff();
            let mut state = HeadState::default();
            for first in [0, 2] {
                let before = table(first..first + 2, 1, 0.0);
                let after = table(first..first + 2, 1, 3.0 * (first as f32) / 2.0);
                if head.wants_features_before() {
                    let task = task(&before, first, &device);
                    state = head.before_task(state, &task).unwrap();
                    assert_eq!(state.shared.contains_key(drift::BEFORE), first > 0);
                }
                state = fit(head.as_ref(), state, &after, first);
                assert!(!state.shared.contains_key(drift::BEFORE));
            }
            let means = state.rows(MEANS);
            for old in means.chunks_exact(D).take(2) {
                assert!((old[D - 1] - expected).abs() < 0.2, "{drift}: {old:?}");
            }
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for (options, expected) in [
            ("n_samples = 0", "n_samples"),
            ("n_samples = 99999999999", "1 to 10000"),
            ("lr = 0.0", "head.lr"),
            ("covariance = \"half\"", "covariance"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let head = head("lr = 1e30");
        let state = fit(head.as_ref(), HeadState::default(), &table(0..2, 1, 0.0), 0);
        let device = test_device_autodiff();
        let table = table(2..4, 2, 0.0);
        let error = head.fit(state, &task(&table, 2, &device)).unwrap_err();
        assert!(error.to_string().contains("smaller value"), "{error}");
    }
}
