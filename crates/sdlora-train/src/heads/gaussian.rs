//! Class Gaussians, and a linear classifier aligned on features sampled from them after every task
//! (Zhang et al. 2023, ICCV, "SLCA: Slow Learner with Classifier Alignment", section 3.3).
//!
//! Columns that the steps of a task trained compare new classes with each other only; sampled features
//! of all classes seen put old and new columns on one scale. The aligned classifier predicts and is
//! written; the next task goes on with the columns as they were before, as in SLCA's code, or with the
//! aligned ones, as in HiDe-Prompt's (`next_task`). Where a method trains no columns, alignment starts
//! at the class means about their common mean.
//!
//! What is kept of a class: its mean, and by `covariance` the factor of a whole covariance (half of a
//! matrix), a variance per feature, a part in one covariance for all, or that and a few directions of its own, as
//! `qda.rs` has them. With
//! `drift = "compensated"` old means follow the features, see `drift.rs`; covariances stay. With
//! `drift = "linear"` both move by one linear map, see `drift/linear.rs`; of diagonal covariances the
//! diagonal is kept.

pub(super) mod covariance;
pub(super) mod moments;

use std::sync::Arc;

use burn::tensor::TensorData;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::align::{Columns, Gaussians, LogitNorm, Recipe, Spread, align};
use super::drift::{self, Drift, LinearMap};
use super::{Classifier, Head, HeadEntry, HeadState, HeadTask, TrainedHead, qda};
use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::linalg::{Cholesky, Symmetric, packed_len};
use crate::options::parse;
use covariance::{factor, factors, moved_factors, moved_variances, pooled};
use moments::ClassMoments;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "gaussian",
    summary: "a linear classifier aligned on features sampled from class Gaussians (options: \
              covariance, rank, drift, logit_norm, n_samples, n_epochs, max_steps, lr, weight_decay, \
              robust_weight, next_task)",
    build: |options| {
        let head: Gaussian = parse("head (gaussian)", options)?;
        if !(1..=MAX_SAMPLES).contains(&head.n_samples) {
            return Err(TrainError::setting(
                "head.n_samples",
                head.n_samples,
                format!("1 to {MAX_SAMPLES}"),
            ));
        }
        if !(head.lr.is_finite() && head.lr > 0.0) {
            let expected = "a finite number above 0";
            return Err(TrainError::setting("head.lr", head.lr, expected));
        }
        if !(head.weight_decay.is_finite() && head.weight_decay >= 0.0) {
            let expected = "a finite number of at least 0";
            let setting = "head.weight_decay";
            return Err(TrainError::setting(setting, head.weight_decay, expected));
        }
        match head.rank {
            Some(rank) if head.covariance != Covariance::LowRank => {
                let expected = "left out, or `covariance = \"low-rank\"`";
                return Err(TrainError::setting("head.rank", rank, expected));
            }
            Some(rank) if !(1..=qda::MAX_RANK).contains(&rank) => {
                let expected = format!("1 to {} directions of a class", qda::MAX_RANK);
                return Err(TrainError::setting("head.rank", rank, expected));
            }
            _ => {}
        }
        if let Some(max) = head.max_steps
            && !(1..=MAX_STEPS).contains(&max)
        {
            let expected = format!("1 to {MAX_STEPS} steps, or leave it out");
            return Err(TrainError::setting("head.max_steps", max, expected));
        }
        if !(0.0..=MAX_ROBUST_WEIGHT).contains(&head.robust_weight) {
            let expected = format!("0 to {MAX_ROBUST_WEIGHT}");
            let setting = "head.robust_weight";
            return Err(TrainError::setting(setting, head.robust_weight, expected));
        }
        Ok(Arc::new(head))
    },
};

/// Beyond these nothing is bounded any more.
const MAX_STEPS: usize = 1_000_000;
/// Far above the 0.1 of LCA's code.
const MAX_ROBUST_WEIGHT: f64 = 1000.0;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gaussian {
    /// What is kept of the spread of a class.
    #[serde(default)]
    covariance: Covariance,
    /// Directions of a class with `covariance = "low-rank"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// What becomes of old means when the features change.
    #[serde(default)]
    drift: Drift,
    /// What the logits are divided by in the loss: their norm by task, or nothing.
    #[serde(default)]
    logit_norm: LogitNorm,
    /// Samples of every class in every epoch, and samples of a step.
    #[serde(default = "default_n_samples")]
    n_samples: usize,
    /// Epochs of alignment; 0 leaves the classifier as it is.
    #[serde(default = "default_n_epochs")]
    n_epochs: usize,
    /// Most steps of an alignment, all epochs together; one for every class in every epoch where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_steps: Option<usize>,
    /// Weight of the differences of losses within a class, as LCA has it (0.1 in its code).
    #[serde(default)]
    robust_weight: f64,
    /// Learning rate of the first epoch; with `logit_norm = "by-task"` for columns of the length that the
    /// published code has, whatever length they have grown to.
    #[serde(default = "default_lr")]
    lr: f64,
    /// Share of the columns that is added to their gradient.
    #[serde(default)]
    weight_decay: f64,
    /// The columns that the steps of the next task go on with.
    #[serde(default)]
    next_task: NextTask,
}

/// Which columns the steps of the next task go on with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NextTask {
    /// Those that steps trained, as SLCA has it.
    #[default]
    Trained,
    /// The aligned ones, as HiDe-Prompt has it.
    Aligned,
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
    /// That, and directions in which a class spreads more.
    LowRank,
}

/// Samples of an epoch lie in memory together; of 200 classes of width 768 these are 6 GB.
const MAX_SAMPLES: usize = 10_000;

/// The three numbers of SLCA's code.
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
/// Lower triangles of the factors of whole covariances `[n_classes, d_model (d_model + 1) / 2]`.
const FACTORS: &str = "factors";
/// The lower triangle of the covariance that all classes share `[d_model (d_model + 1) / 2]`; in files of
/// earlier versions also those of the covariances that have become factors, per class.
const COVARIANCE: &str = "covariance";
/// Variances `[n_classes, d_model]`.
const VARIANCES: &str = "variances";
/// Own directions of classes `[n_classes, rank, d_model]`.
const DIRECTIONS: &str = "directions";
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

    /// The Gaussian of a class is that of its first task.
    fn extends_classes(&self) -> bool {
        false
    }

    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, mut state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let (table, d) = (task.table, task.table.d_model);
        let mut means = state.rows(MEANS);
        means.truncate(task.first_label * d);
        if let Some(before) = drift::take_before(&mut state) {
            match self.drift {
                Drift::Ignored => {}
                Drift::Compensated => drift::compensate(&mut means, &before, table),
                Drift::Linear => {
                    if let Some(map) = LinearMap::fit(&before, &table.features, d, &table.labels) {
                        map.apply_near(&mut means);
                        self.covariance.follow(&mut state, &map, d)?;
                    }
                }
            }
        }
        let new = ClassMoments::of(&table.features, d, &table.labels, task.first_label);
        means.extend(&new.means);
        let n_classes = means.len() / d.max(1);
        state.set_rows(MEANS, vec![n_classes, d], means);
        let rank = self.rank.unwrap_or(qda::RANK);
        self.covariance
            .keep(&mut state, &new, task.first_label, rank)?;

        let mut first_labels = state.rows(FIRST_LABELS);
        first_labels.truncate(task.first_label);
        first_labels.resize(n_classes, task.first_label as f32);
        state.set_rows(FIRST_LABELS, vec![n_classes, 1], first_labels);

        let aligned = self.classify(&state, task)?;
        if self.next_task == NextTask::Aligned {
            go_on_with(&mut state, &aligned, d);
        }
        let Columns { rows, bias } = aligned;
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
        let spread = self.covariance.spread(state, d)?;
        let gaussians = Gaussians {
            means: &means,
            d_model: d,
            spread,
        };
        let first_labels: Vec<usize> = state
            .rows(FIRST_LABELS)
            .into_iter()
            .map(|first| first as usize)
            .collect();
        let recipe = Recipe {
            n_samples: self.n_samples,
            n_epochs: self.n_epochs,
            lr: self.lr,
            weight_decay: self.weight_decay,
            norm: self.logit_norm,
            max_steps: self.max_steps,
            robust_weight: self.robust_weight,
        };
        let mut rng = generator(task.seed, Draw::Alignment, task.task_idx);
        let aligned = align(&start, &gaussians, &first_labels, recipe, &mut rng);
        let is_finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        if is_finite(&aligned.rows) && is_finite(&aligned.bias) {
            return Ok(aligned);
        }
        Err(TrainError::setting(
            "head.lr",
            self.lr,
            format!(
                "a smaller value: the alignment after task {} did not end in numbers",
                task.task_idx + 1
            ),
        ))
    }
}

/// Puts aligned columns in the place of those that steps trained; of a method without any there are none.
fn go_on_with(state: &mut HeadState, aligned: &Columns, d: usize) {
    let Some(trained) = state.trained.take() else {
        return;
    };
    if trained.n_classes() * d != aligned.rows.len() {
        state.trained = Some(trained);
        return;
    }
    let device = trained.weight.val().device();
    let n_classes = trained.n_classes();
    let column = |i: usize| aligned.rows.iter().skip(i).step_by(d.max(1)).copied();
    let weight: Vec<f32> = (0..d).flat_map(column).collect();
    let replaced = TrainedHead::from_data(
        TensorData::new(weight, [d, n_classes]),
        TensorData::new(aligned.bias.clone(), [n_classes]),
        &device,
    );
    state.trained = Some(TrainedHead {
        weight: replaced.weight,
        bias: trained.bias.and(replaced.bias),
        ..trained
    });
}

impl Covariance {
    /// Keeps that of new classes, the first of which has the label `first_label`.
    ///
    /// # Errors
    ///
    /// Those of [`factor`].
    fn keep(
        self,
        state: &mut HeadState,
        new: &ClassMoments,
        first_label: usize,
        rank: usize,
    ) -> Result<(), TrainError> {
        let d = new.d_model;
        let (name, width) = match self {
            Self::Full => (FACTORS, packed_len(d)),
            Self::Diagonal => (VARIANCES, d),
            Self::Shared => {
                pool(state, new);
                return Ok(());
            }
            Self::LowRank => {
                pool(state, new);
                return keep_directions(state, new, first_label, rank);
            }
        };
        factorise_earlier(state, d)?;
        let mut values = state.rows(name);
        values.truncate(first_label * width);
        for class in 0..new.n_classes() {
            match self {
                Self::Diagonal => values.extend(new.variances(class)),
                _ => values.extend(factor(new.covariance(class), d)?),
            }
        }
        state.set_rows(name, vec![values.len() / width.max(1), width], values);
        Ok(())
    }

    /// Moves those of old classes.
    ///
    /// # Errors
    ///
    /// Those of [`factor`].
    fn follow(self, state: &mut HeadState, map: &LinearMap, d: usize) -> Result<(), TrainError> {
        match self {
            Self::Full => {
                factorise_earlier(state, d)?;
                let moved = moved_factors(&state.rows(FACTORS), d, map)?;
                let width = packed_len(d);
                state.set_rows(FACTORS, vec![moved.len() / width.max(1), width], moved);
            }
            Self::Diagonal => {
                let mut variances = state.rows(VARIANCES);
                moved_variances(&mut variances, d, map);
                let shape = vec![variances.len() / d.max(1), d];
                state.set_rows(VARIANCES, shape, variances);
            }
            Self::Shared | Self::LowRank => {
                if let Some(directions) = state.per_class.get(DIRECTIONS).cloned() {
                    let mut values = directions.values.clone();
                    map.apply_near(&mut values);
                    state.set_rows(DIRECTIONS, directions.shape.clone(), values);
                }
                if let Some(shared) = state.shared.get(COVARIANCE) {
                    let moved = map.congruent(&Symmetric::unpacked(&shared.values, d));
                    state.set_shared(COVARIANCE, vec![packed_len(d)], moved.packed());
                }
            }
        }
        Ok(())
    }

    /// How samples lie around their means, of features of width `d`.
    ///
    /// # Errors
    ///
    /// Those of [`factor`].
    fn spread(self, state: &HeadState, d: usize) -> Result<Spread<'_>, TrainError> {
        let spread = match self {
            Self::Full => state.per_class.get(FACTORS).map(|a| Spread::Full(a)),
            Self::Diagonal => state.per_class.get(VARIANCES).map(|a| Spread::Diagonal(a)),
            Self::Shared => {
                let shared = state.shared.get(COVARIANCE);
                let shared = shared.map(|a| factor(Symmetric::unpacked(&a.values, d), d));
                Some(Spread::Shared(shared.transpose()?))
            }
            Self::LowRank => {
                let shared = low_rank_factor(state, d)?;
                let shared = shared.map(|factor| factor.lower().map(|v| v as f32).collect());
                let directions = state.per_class.get(DIRECTIONS);
                directions.map(|directions| Spread::LowRank(shared, directions))
            }
        };
        Ok(spread.unwrap_or(Spread::Shared(None)))
    }
}

/// Turns the covariances that an earlier version kept into the factors that are kept now.
fn factorise_earlier(state: &mut HeadState, d: usize) -> Result<(), TrainError> {
    let Some(earlier) = state.per_class.remove(COVARIANCE) else {
        return Ok(());
    };
    let factors = factors(&earlier.values, d)?;
    state.set_rows(FACTORS, earlier.shape.clone(), factors);
    Ok(())
}

/// Adds the spread of new classes to the covariance within classes.
fn pool(state: &mut HeadState, new: &ClassMoments) {
    let before = |name: &str| state.shared.get(name).map_or(&[][..], |a| &a.values);
    let degrees = before(DEGREES).first().copied().map_or(0.0, f64::from);
    let (lower, total) = pooled(before(COVARIANCE), degrees, new);
    state.set_shared(COVARIANCE, vec![packed_len(new.d_model)], lower);
    state.set_shared(DEGREES, vec![1], vec![total as f32]);
}

/// The factor of the shared covariance, shrunk as `qda` shrinks it; `None` when every image lies on its mean.
///
/// # Errors
///
/// [`TrainError::Numbers`] for a covariance that has none.
fn low_rank_factor(state: &HeadState, d: usize) -> Result<Option<Cholesky>, TrainError> {
    let shared = |name: &str| state.shared.get(name).map_or(&[][..], |a| &a.values);
    let covariance = Symmetric::unpacked(shared(COVARIANCE), d);
    if covariance.mean_diagonal() == 0.0 {
        return Ok(None);
    }
    let degrees = shared(DEGREES).first().copied().map_or(0.0, f64::from);
    let factor = qda::shrunk(&covariance, d, degrees, None);
    factor.map(Some).ok_or(TrainError::Numbers {
        what: "the covariance within classes",
        problem: "values that are no numbers",
    })
}

/// Keeps the directions of new classes.
///
/// # Errors
///
/// Those of [`low_rank_factor`] and of the directions.
fn keep_directions(
    state: &mut HeadState,
    new: &ClassMoments,
    first_label: usize,
    rank: usize,
) -> Result<(), TrainError> {
    let d = new.d_model;
    let mut values = state.rows(DIRECTIONS);
    values.truncate(first_label * rank * d);
    match low_rank_factor(state, d)? {
        None => values.resize(values.len() + new.n_classes() * rank * d, 0.0),
        Some(shared) => {
            let of_class =
                |class: usize| qda::excess(new.deviations(class), d, &shared, rank, d as f64);
            let classes: Vec<usize> = (0..new.n_classes()).collect();
            let found = classes.par_iter().map(|&class| of_class(class));
            for own in found.collect::<Result<Vec<_>, _>>()? {
                values.extend(own);
            }
        }
    }
    let n = values.len() / (rank * d).max(1);
    state.set_rows(DIRECTIONS, vec![n, rank, d], values);
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::FeatureTable;
    use sdlora_testkit::test_device_autodiff;
    use sdlora_testkit::toy::SplitMix64;

    pub(super) const D: usize = 6;

    pub(super) fn head(options: &str) -> Arc<dyn Head> {
        (ENTRY.build)(&options.parse().unwrap()).unwrap()
    }

    /// Noisy features of each of the labels, around the axis of the label and `shift`.
    pub(super) fn table(labels: std::ops::Range<usize>, seed: u64, shift: f32) -> FeatureTable {
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

    pub(super) fn fit(
        head: &dyn Head,
        state: HeadState,
        table: &FeatureTable,
        first: usize,
    ) -> HeadState {
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

    /// HiDe-Prompt's recipe beside the default one, which is SLCA's.
    const HIDE: &str = "n_samples = 120\nn_epochs = 30\nlr = 0.005\nlogit_norm = \"none\"\n\
                        weight_decay = 5e-4\nnext_task = \"aligned\"";

    #[test]
    fn alignment_repairs_new_columns_that_outweigh_old_ones() {
        // Features about as long as those of the shipped backbone.
        const LONG: f32 = 7.0;
        let table = |labels, seed| {
            let mut table = table(labels, seed, 0.0);
            table.features.iter_mut().for_each(|x| *x *= LONG);
            table
        };
        for covariance in ["full", "diagonal", "shared", "low-rank"] {
            for (recipe, length) in [("", 1.0), ("", 15.0), ("", 0.5), (HIDE, 1.0)] {
                let of = |recipe: &str| {
                    let head = head(&format!("covariance = \"{covariance}\"\n{recipe}"));
                    let mut state = HeadState::default();
                    state = fit(head.as_ref(), state, &table(0..2, 1), 0);
                    // As after a task whose loss saw new classes only.
                    let lengths = [1.0, 1.0, 4.0, 4.0].map(|v| v * length / LONG);
                    let bias = [0.0, 0.0, 2.0, 2.0].map(|v| v * length);
                    state.trained = Some(columns(lengths, bias));
                    state = fit(head.as_ref(), state, &table(2..4, 2), 2);
                    let classifier = head.classifier(&state).unwrap();
                    [0..2, 2..4].map(|labels| {
                        let test = table(labels, 77);
                        crate::accuracy(&classifier.predict(&test), &test.labels)
                    })
                };
                let what = format!("{covariance}, {recipe}, length {length}");
                let [old, new] = of("n_epochs = 0");
                assert!(old < 0.05 && new > 0.95, "{what}: {old}, {new}");
                let [old, new] = of(recipe);
                assert!(old > 0.95 && new > 0.95, "{what}: {old}, {new}");
            }
        }
    }

    #[test]
    fn the_next_task_goes_on_with_the_columns_that_are_asked_for() {
        for (next_task, is_aligned) in [("trained", false), ("aligned", true)] {
            let head = head(&format!("next_task = \"{next_task}\""));
            let mut state = HeadState::default();
            state = fit(head.as_ref(), state, &table(0..2, 1, 0.0), 0);
            let trained = columns([1.0, 1.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0]);
            let (before, _) = trained.rows();
            state.trained = Some(trained);
            state = fit(head.as_ref(), state, &table(2..4, 2, 0.0), 2);
            assert_ne!(state.rows(WEIGHT), before);
            let trained = state.trained.as_ref().unwrap();
            let bias = trained.bias_host().unwrap();
            assert!(trained.weight.is_require_grad());
            if is_aligned {
                assert_eq!(trained.rows().0, state.rows(WEIGHT));
                assert_eq!(bias, state.rows(BIAS));
            } else {
                assert_eq!(trained.rows().0, before);
                assert_eq!(bias, [0.0, 0.0, 2.0, 2.0]);
            }
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
        for covariance in ["full", "diagonal", "shared", "low-rank"] {
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
    fn spreads_move_with_the_means_where_features_move_by_a_linear_map() {
        // Twice as far along the first axis, and a turn of the next two.
        let moves = |table: &FeatureTable| {
            let mut moved = table.clone();
            for row in moved.features.chunks_exact_mut(D) {
                row[0] *= 2.0;
                (row[1], row[2]) = (0.6 * row[1] - 0.8 * row[2], 0.8 * row[1] + 0.6 * row[2]);
            }
            moved
        };
        let device = test_device_autodiff();
        for covariance in ["full", "diagonal", "shared", "low-rank"] {
            let (old, new) = (table(0..2, 1, 0.0), table(2..4, 2, 0.0));
            let of = |drift: &str, first: &FeatureTable| {
                let options = format!("covariance = \"{covariance}\"\ndrift = \"{drift}\"");
                let head = head(&options);
                let mut state = fit(head.as_ref(), HeadState::default(), first, 0);
                if head.wants_features_before() {
                    state = head.before_task(state, &task(&new, 2, &device)).unwrap();
                }
                fit(head.as_ref(), state, &moves(&new), 2)
            };
            let expected = of("none", &moves(&old));
            let apart = |state: &HeadState| -> f32 {
                let mut largest = 0.0f32;
                for name in [MEANS, FACTORS, VARIANCES] {
                    let pairs = state.rows(name);
                    let pairs = pairs.iter().zip(expected.rows(name));
                    largest = pairs.map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
                }
                if let (Some(a), Some(b)) = (
                    state.shared.get(COVARIANCE),
                    expected.shared.get(COVARIANCE),
                ) {
                    let pairs = a.values.iter().zip(&b.values);
                    largest = pairs.map(|(a, b)| (a - b).abs()).fold(largest, f32::max);
                }
                largest
            };
            // The ridge of a factor is relative to a mean that has moved, and a diagonal knows no turn.
            let tolerance = match covariance {
                "full" => 1e-4,
                "diagonal" => 0.03,
                _ => 1e-5,
            };
            let found = apart(&of("linear", &old));
            assert!(found < tolerance, "{covariance}: {found}");
            let found = apart(&of("none", &old));
            assert!(found > 0.3, "{covariance}: {found}");
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
            ("weight_decay = -1.0", "head.weight_decay"),
            ("logit_norm = \"by-class\"", "by-task"),
            ("next_task = \"previous\"", "aligned"),
            ("covariance = \"half\"", "covariance"),
            ("rank = 3", "low-rank"),
            ("covariance = \"low-rank\"\nrank = 0", "head.rank"),
            ("max_steps = 0", "head.max_steps"),
            ("robust_weight = -0.1", "head.robust_weight"),
            ("robust_weight = nan", "0 to 1000"),
            ("drift = \"quadratic\"", "drift"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let head = head("lr = 1e30");
        let device = test_device_autodiff();
        let table = table(0..2, 1, 0.0);
        let task = task(&table, 0, &device);
        let error = head.fit(HeadState::default(), &task).unwrap_err();
        assert!(error.to_string().contains("smaller value"), "{error}");
    }
}
