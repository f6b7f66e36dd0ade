//! Training a linear classifier anew on features sampled from class Gaussians.
//!
//! Loss, with [`LogitNorm::ByTask`]: cross-entropy of `logits / (τ · n)`, where `n` is the mean over tasks
//! of the norm of the logits of the classes of a task, so that no task wins by the length of its columns
//! (Zhang et al. 2023, "SLCA", section 3.3, and its published `models/slca.py`); with [`LogitNorm::None`] of
//! the logits themselves (HiDe-Prompt's published engine). SGD with momentum; the rate falls by a half
//! cosine, epoch by epoch; samples are drawn anew in every epoch, and a step has as many as a class.
//!
//! The normed loss does not change with the length of the whole classifier, so its gradient falls with
//! that length, and a step turns columns by the rate over its square. Columns are therefore brought
//! to the length at which the published rate is published, by one factor for all, and back behind the last
//! step: what is found does not depend on how long columns have grown.
//!
//! With `max_steps` the steps do not grow with the classes: an epoch then has as many as fit, each still with as many
//! samples as ever, and classes share those samples out evenly; which of them get one more is drawn. So a task of a
//! long stream draws and multiplies no more than one of a short stream, but for the width of the classifier.
//!
//! With `robust_weight` a step has the loss of local classifier alignment (Tran et al. 2026, "LCA: Local Classifier
//! Alignment for Continual Learning", and its published `lca.py`): the mean over the classes of a step of the mean loss
//! of their samples, and by that weight the mean of `|l − l′|` over pairs of them, so that a loss changes little around
//! a class. Samples count that are nearer to the mean of their class than to any other; of a class without one all do,
//! and no pairs. Deviates: the entropy that its code may add is not there.
//!
//! Deviates: that scaling, which the published code has no need of, as its columns stay near their start;
//! means of old classes are not shrunk, as SLCA's code does by up to a tenth.
//!
//! All of it is computed on the host: batches are too small for a device, and the result does not depend
//! on one.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::argmax;
use super::normal::fill_normal;
use super::softmax::exponentials;
use crate::export::HostTensor;
use crate::linalg::{View, add_product, packed_len};

/// `τ` (SLCA, section 4.1).
const TEMPERATURE: f32 = 0.1;
/// Momentum, as published.
const MOMENTUM: f32 = 0.9;
/// Length of the columns for which SLCA publishes its rate: 768 numbers of standard deviation 0.02.
const COLUMN_LENGTH: f64 = 0.554_256_258_422_040_7;
/// Keeps the norm of logits that are all 0 away from 0.
const NORM_EPS: f32 = 1e-14;
/// A classifier to start from and to end with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Columns {
    /// `[n_classes, d_model]`.
    pub(super) rows: Vec<f32>,
    /// `[n_classes]`.
    pub(super) bias: Vec<f32>,
}

/// What the logits are divided by in the loss of alignment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum LogitNorm {
    /// Their norm by task, as SLCA has it.
    #[default]
    ByTask,
    /// Nothing, as HiDe-Prompt has it.
    None,
}

/// How much and how fast.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recipe {
    /// Samples of every class in every epoch, and of a step.
    pub(super) n_samples: usize,
    pub(super) n_epochs: usize,
    /// Of the first epoch.
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    pub(super) norm: LogitNorm,
    /// Most steps of all epochs together; as many as there are classes in each epoch where left out.
    pub(super) max_steps: Option<usize>,
    /// Weight of differences of losses within a class.
    pub(super) robust_weight: f64,
}

impl Recipe {
    /// Steps of an epoch.
    fn n_steps(&self, n_classes: usize) -> usize {
        match self.max_steps {
            None => n_classes,
            Some(max) => n_classes.min((max / self.n_epochs.max(1)).max(1)),
        }
    }
}

/// How samples lie around the mean of their class.
#[derive(Debug)]
pub(super) enum Spread<'a> {
    /// Lower triangles of [factors](super::gaussian::covariance::factor) `[n_classes, d (d + 1) / 2]`.
    Full(&'a HostTensor),
    /// Variances `[n_classes, d]`.
    Diagonal(&'a HostTensor),
    /// One triangle for all; none when every image lies on its mean.
    Shared(Option<Vec<f32>>),
    /// The same, and directions of every class `[n_classes, rank, d]`.
    LowRank(Option<Vec<f32>>, &'a HostTensor),
}

/// Class Gaussians.
#[derive(Debug)]
pub(super) struct Gaussians<'a> {
    /// `[n_classes, d_model]`.
    pub(super) means: &'a [f32],
    pub(super) d_model: usize,
    pub(super) spread: Spread<'a>,
}

impl Gaussians<'_> {
    fn n_classes(&self) -> usize {
        self.means.len() / self.d_model.max(1)
    }

    /// Fills rows `[n, d_model + 1]` with samples of a class, each with a 1 at its end.
    fn sample(&self, label: usize, rows: &mut [f32], rng: &mut ChaCha8Rng) {
        let (d, width) = (self.d_model, self.d_model + 1);
        let n = rows.len() / width;
        let mut noise = vec![0.0f32; n * d];
        fill_normal(rng, &mut noise);
        let mean = &self.means[label * d..(label + 1) * d];
        for row in rows.chunks_exact_mut(width) {
            row[..d].copy_from_slice(mean);
            row[d] = 1.0;
        }
        let mut add = |lower: &[f32]| {
            let upper = square(lower, d);
            let upper = View::rows(&upper, d).transposed();
            add_product(rows, width, 1.0, View::rows(&noise, d), upper);
        };
        match &self.spread {
            Spread::Shared(None) => {}
            Spread::Shared(Some(lower)) => add(lower),
            Spread::Full(lower) => add(row(lower, label, packed_len(d))),
            Spread::LowRank(lower, directions) => {
                if let Some(lower) = lower {
                    add(lower);
                }
                let rank = directions.shape.get(1).copied().unwrap_or(0);
                let mut own = vec![0.0f32; n * rank];
                fill_normal(rng, &mut own);
                let directions = View::rows(row(directions, label, rank * d), d);
                add_product(rows, width, 1.0, View::rows(&own, rank), directions);
            }
            Spread::Diagonal(variances) => {
                let deviations: Vec<f32> = row(variances, label, d)
                    .iter()
                    .map(|variance| variance.sqrt())
                    .collect();
                for (row, noise) in rows
                    .chunks_exact_mut(width)
                    .zip(noise.chunks_exact(d.max(1)))
                {
                    for ((x, z), s) in row.iter_mut().zip(noise).zip(&deviations) {
                        *x += z * s;
                    }
                }
            }
        }
    }
}

/// A lower triangle, row by row, as `[d, d]` with zeros above it.
fn square(lower: &[f32], d: usize) -> Vec<f32> {
    let mut values = vec![0.0; d * d];
    let mut rest = lower;
    for (i, row) in values.chunks_exact_mut(d.max(1)).enumerate() {
        let (own, after) = rest.split_at((i + 1).min(rest.len()));
        row[..own.len()].copy_from_slice(own);
        rest = after;
    }
    values
}

fn row(array: &HostTensor, label: usize, width: usize) -> &[f32] {
    let values = array.values.get(label * width..(label + 1) * width);
    values.unwrap_or_default()
}

/// Trains `start`; class `i` belongs to the task that starts at label `first_labels[i]`.
pub(super) fn align(
    start: &Columns,
    gaussians: &Gaussians<'_>,
    first_labels: &[usize],
    recipe: Recipe,
    rng: &mut ChaCha8Rng,
) -> Columns {
    let (n_classes, d) = (gaussians.n_classes(), gaussians.d_model);
    let width = d + 1;
    let length = length_factor(&start.rows, d, recipe.norm);
    // The bias is the column of a feature that is always 1.
    let rows = start.rows.chunks_exact(d.max(1)).zip(&start.bias);
    let mut columns: Vec<f32> = rows
        .flat_map(|(row, &bias)| row.iter().copied().chain([bias]))
        .map(|v| (f64::from(v) / length) as f32)
        .collect();
    let mut velocity = vec![0.0f32; columns.len()];
    let tasks = task_ranges(first_labels);
    let n_step = recipe.n_samples;
    let n_drawn = recipe.n_steps(n_classes) * n_step;
    let local = (recipe.robust_weight > 0.0).then(|| Local::of(gaussians, recipe.robust_weight));
    let mut samples = vec![0.0f32; n_drawn * width];
    let mut labels = vec![0; n_drawn];
    let mut batch = vec![0.0f32; n_step * width];
    let mut logits = vec![0.0f32; n_step * n_classes];
    let mut order: Vec<usize> = (0..n_drawn).collect();
    for epoch in 0..recipe.n_epochs {
        let progress = epoch as f64 / recipe.n_epochs as f64;
        let lr = recipe.lr * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        let (lr, decay) = (lr as f32, recipe.weight_decay as f32);
        let counts = shares(n_drawn, n_classes, rng);
        let seeds: Vec<u64> = (0..n_classes).map(|_| rng.random()).collect();
        let mut rest = (&mut samples[..], &mut labels[..]);
        let parts = counts.into_iter().enumerate().map(|(label, count)| {
            let (rows, others) = std::mem::take(&mut rest.0).split_at_mut(count * width);
            let (own, after) = std::mem::take(&mut rest.1).split_at_mut(count);
            own.fill(label);
            rest = (others, after);
            rows
        });
        let parts: Vec<&mut [f32]> = parts.collect();
        let classes = parts.into_par_iter().zip(&seeds).enumerate();
        classes.for_each(|(label, (rows, &seed))| {
            gaussians.sample(label, rows, &mut ChaCha8Rng::seed_from_u64(seed));
        });
        order.shuffle(rng);
        for places in order.chunks_exact(n_step) {
            for (to, &from) in batch.chunks_exact_mut(width).zip(places) {
                to.copy_from_slice(&samples[from * width..(from + 1) * width]);
            }
            logits.fill(0.0);
            let rows = View::rows(&batch, width);
            let weight = View::rows(&columns, width).transposed();
            add_product(&mut logits, n_classes, 1.0, rows, weight);
            match &local {
                None => {
                    let scale = 1.0 / n_step as f32;
                    let of_sample = logits.par_chunks_exact_mut(n_classes).zip(places);
                    of_sample.with_min_len(MIN_ROWS).for_each(|(row, &place)| {
                        to_gradient(row, labels[place], &tasks, recipe.norm, scale);
                    });
                }
                Some(local) => {
                    let own: Vec<usize> = places.iter().map(|&place| labels[place]).collect();
                    let of_sample = logits.par_chunks_exact_mut(n_classes).zip(&own);
                    let losses = of_sample
                        .with_min_len(MIN_ROWS)
                        .map(|(row, &label)| to_gradient(row, label, &tasks, recipe.norm, 1.0));
                    let losses: Vec<f32> = losses.collect();
                    let weights = local.weights(rows, &own, &losses);
                    for (row, weight) in logits.chunks_exact_mut(n_classes).zip(weights) {
                        row.iter_mut().for_each(|v| *v *= weight);
                    }
                }
            }
            for (v, &w) in velocity.iter_mut().zip(&columns) {
                *v = MOMENTUM * *v + decay * w;
            }
            let gradient = View::rows(&logits, n_classes).transposed();
            add_product(&mut velocity, width, 1.0, gradient, rows);
            for (w, &v) in columns.iter_mut().zip(&velocity) {
                *w -= lr * v;
            }
        }
    }
    let (mut rows, mut bias) = (Vec::with_capacity(n_classes * d), Vec::new());
    for column in columns.chunks_exact(width) {
        let long = |v: &f32| (f64::from(*v) * length) as f32;
        rows.extend(column[..d].iter().map(long));
        bias.push(long(&column[d]));
    }
    Columns { rows, bias }
}

/// Samples of every class of `n_drawn` in all: as many of each, and one more of some that are drawn.
fn shares(n_drawn: usize, n_classes: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let (each, n_more) = (n_drawn / n_classes.max(1), n_drawn % n_classes.max(1));
    let mut counts = vec![each; n_classes];
    if n_more > 0 {
        let mut classes: Vec<usize> = (0..n_classes).collect();
        let (chosen, _) = classes.partial_shuffle(rng, n_more);
        chosen.iter().for_each(|class| counts[*class] += 1);
    }
    counts
}

/// The loss of local classifier alignment: what the gradient of the loss of a sample counts.
struct Local {
    weight: f64,
    /// Rows `[n_classes, d_model + 1]`: a mean, and `−‖mean‖² / 2` for the 1 at the end of a sample. The largest
    /// product is that of the nearest mean.
    means: Vec<f32>,
}

impl Local {
    fn of(gaussians: &Gaussians<'_>, weight: f64) -> Self {
        let rows = gaussians.means.chunks_exact(gaussians.d_model.max(1));
        let means = rows.flat_map(|mean| {
            let squares: f32 = mean.iter().map(|m| m * m).sum();
            mean.iter().copied().chain([-0.5 * squares])
        });
        Self {
            weight,
            means: means.collect(),
        }
    }

    /// The derivative of the loss of a step by the loss of every sample, of `samples: [n, d_model + 1]`.
    fn weights(&self, samples: View<'_, f32>, labels: &[usize], losses: &[f32]) -> Vec<f32> {
        let n_classes = self.means.len() / samples.n_columns().max(1);
        let mut scores = vec![0.0f32; labels.len() * n_classes];
        let means = View::rows(&self.means, samples.n_columns()).transposed();
        add_product(&mut scores, n_classes, 1.0, samples, means);
        let near = scores.chunks_exact(n_classes.max(1)).zip(labels);
        let near: Vec<bool> = near.map(|(row, &label)| argmax(row) == label).collect();
        let mut of_class = BTreeMap::<usize, Vec<usize>>::new();
        for (at, &label) in labels.iter().enumerate() {
            of_class.entry(label).or_default().push(at);
        }
        let n_found = of_class.len().max(1) as f64;
        let mut weights = vec![0.0f32; labels.len()];
        for members in of_class.into_values() {
            let local: Vec<usize> = members.iter().copied().filter(|&at| near[at]).collect();
            let (counted, pairs) = match local.is_empty() {
                true => (members, 0.0),
                false => {
                    let n = local.len() as f64;
                    let pairs = if n > 1.0 {
                        2.0 * self.weight / (n * (n - 1.0))
                    } else {
                        0.0
                    };
                    (local, pairs)
                }
            };
            let mean = 1.0 / counted.len() as f64;
            for &at in &counted {
                let side = |&other: &usize| f64::from(losses[at].total_cmp(&losses[other]) as i8);
                let sides: f64 = counted.iter().map(side).sum();
                weights[at] = ((mean + pairs * sides) / n_found) as f32;
            }
        }
        weights
    }
}

/// Rows that are worth a thread.
const MIN_ROWS: usize = 32;

/// What columns are divided by while they are trained: 1 where the loss sees their length.
fn length_factor(rows: &[f32], d: usize, norm: LogitNorm) -> f64 {
    let n = rows.len() / d.max(1);
    let squares: f64 = rows.iter().map(|&v| f64::from(v).powi(2)).sum();
    let length = (squares / n.max(1) as f64).sqrt();
    match norm {
        LogitNorm::ByTask if length > 0.0 && length.is_finite() => length / COLUMN_LENGTH,
        _ => 1.0,
    }
}

/// Where the classes of every task lie, from the first label of the task of every class.
fn task_ranges(first_labels: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut ranges: Vec<std::ops::Range<usize>> = Vec::new();
    for (class, first) in first_labels.iter().enumerate() {
        match ranges.last_mut() {
            Some(last) if first_labels[last.start] == *first => last.end = class + 1,
            _ => ranges.push(class..class + 1),
        }
    }
    ranges
}

/// Replaces the logits of a sample by the gradient of its loss times `scale`; gives the loss back.
fn to_gradient(
    logits: &mut [f32],
    label: usize,
    tasks: &[std::ops::Range<usize>],
    norm: LogitNorm,
    scale: f32,
) -> f32 {
    let of_task = |logits: &[f32], task: &std::ops::Range<usize>| -> f32 {
        let squares: f32 = logits[task.clone()].iter().map(|l| l * l).sum();
        (squares + NORM_EPS).sqrt()
    };
    let divisor = match norm {
        LogitNorm::None => 1.0,
        LogitNorm::ByTask => {
            let sum: f32 = tasks.iter().map(|task| of_task(logits, task)).sum();
            TEMPERATURE * sum / tasks.len() as f32
        }
    };
    if !divisor.is_finite() {
        // Divided by infinity every logit would be 0, and the end would look sound.
        logits.fill(f32::NAN);
        return f32::NAN;
    }
    let mut shares: Vec<f32> = logits.iter().map(|l| l / divisor).collect();
    let own = shares[label];
    let (largest, sum) = exponentials(&mut shares);
    let loss = largest + sum.ln() - own;
    shares.iter_mut().for_each(|share| *share *= scale / sum);
    shares[label] -= scale;
    if norm == LogitNorm::ByTask {
        // The divisor is τ times the mean of the norms n_t, and d n_t / d l = l / n_t.
        let inner: f32 = shares.iter().zip(logits.iter()).map(|(g, l)| g * l).sum();
        let along = inner * TEMPERATURE / (divisor * tasks.len() as f32);
        for task in tasks {
            let of_task = along / of_task(logits, task);
            let parts = shares[task.clone()].iter_mut();
            for (share, l) in parts.zip(&logits[task.clone()]) {
                *share = (*share - of_task * l) / divisor;
            }
        }
    }
    logits.copy_from_slice(&shares);
    loss
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::gaussian::covariance::factor;
    use crate::linalg::Symmetric;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    fn array(shape: [usize; 2], values: &[f32]) -> HostTensor {
        HostTensor {
            shape: shape.to_vec(),
            values: values.to_vec(),
        }
    }

    /// Mean and covariance `[xx, xy, yy]` of samples of width 2.
    fn moments(samples: &[f32]) -> ([f64; 2], [f64; 3]) {
        let n = (samples.len() / 2) as f64;
        let rows = || {
            samples
                .chunks_exact(2)
                .map(|r| [f64::from(r[0]), f64::from(r[1])])
        };
        let mean = [0, 1].map(|i| rows().map(|r| r[i]).sum::<f64>() / n);
        let product = |(i, j): (usize, usize)| {
            rows()
                .map(|r| (r[i] - mean[i]) * (r[j] - mean[j]))
                .sum::<f64>()
                / n
        };
        (mean, [(0, 0), (0, 1), (1, 1)].map(product))
    }

    const LOWER: [f32; 3] = [4.0, -1.5, 1.0];

    fn factor_of(lower: &[f32]) -> Vec<f32> {
        factor(Symmetric::unpacked(lower, 2), 2).unwrap()
    }

    #[test]
    fn samples_have_the_mean_and_the_covariance_of_their_class() {
        let full = array(
            [2, 3],
            &[factor_of(&[1.0, 0.0, 1.0]), factor_of(&LOWER)].concat(),
        );
        let diagonal = array([2, 2], &[1.0, 1.0, 4.0, 1.0]);
        // (2, -1) and (0, 0.5) beside a half of the unit matrix.
        let directions = HostTensor {
            shape: vec![2, 2, 2],
            values: vec![9.0, 9.0, 9.0, 9.0, 2.0, -1.0, 0.0, 0.5],
        };
        let half = factor_of(&[0.5, 0.0, 0.5]);
        for (spread, covariance) in [
            (Spread::Full(&full), [4.0, -1.5, 1.0]),
            (Spread::Diagonal(&diagonal), [4.0, 0.0, 1.0]),
            (Spread::Shared(Some(factor_of(&LOWER))), [4.0, -1.5, 1.0]),
            (Spread::LowRank(Some(half), &directions), [4.5, -2.0, 1.75]),
            (Spread::LowRank(None, &directions), [4.0, -2.0, 1.25]),
            (Spread::Shared(None), [0.0; 3]),
        ] {
            let gaussians = Gaussians {
                means: &[0.0, 0.0, 7.0, -3.0],
                d_model: 2,
                spread,
            };
            let mut rows = vec![f32::NAN; 3 * 20_000];
            gaussians.sample(1, &mut rows, &mut rng(4));
            assert!(rows.iter().skip(2).step_by(3).all(|&one| one == 1.0));
            let rows: Vec<f32> = rows.chunks_exact(3).flat_map(|r| [r[0], r[1]]).collect();
            let (mean, found) = moments(&rows);
            for (found, expected) in mean.into_iter().zip([7.0, -3.0]) {
                assert!((found - expected).abs() < 0.06, "{found} for {expected}");
            }
            for (found, expected) in found.into_iter().zip(covariance) {
                assert!((found - expected).abs() < 0.15, "{found} for {expected}");
            }
        }
    }

    #[test]
    fn the_loss_by_hand_does_not_depend_on_the_length_of_the_classifier() {
        let tasks = task_ranges(&[0, 0, 2]);
        assert_eq!(tasks, [0..2, 2..3]);
        // Norms by task are 5 and 1: their mean is 3, and τ times it 0.3.
        let value = |factor: f32, norm| {
            let mut logits = [3.0f32, 4.0, 1.0].map(|l| l * factor);
            f64::from(to_gradient(&mut logits, 0, &tasks, norm, 1.0))
        };
        let expected = |divisor: f64| {
            let exponents = [3.0, 4.0, 1.0f64].map(|l| (l / divisor).exp());
            (exponents.iter().sum::<f64>() / exponents[0]).ln()
        };
        for factor in [1.0, 20.0, 0.01] {
            let found = value(factor, LogitNorm::ByTask);
            let error = (found - expected(0.3)).abs();
            assert!(error < 1e-4, "{factor}: {found}");
        }
        assert!((value(1.0, LogitNorm::None) - expected(1.0)).abs() < 1e-5);
        assert!((value(2.0, LogitNorm::None) - expected(0.5)).abs() < 1e-5);
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        let tasks = task_ranges(&[0, 0, 2, 3, 3]);
        let logits = [0.7f32, -0.4, 1.1, 0.2, -0.9];
        for norm in [LogitNorm::ByTask, LogitNorm::None] {
            for label in 0..5 {
                let loss = |moved: usize, by: f32| {
                    let mut logits = logits;
                    logits[moved] += by;
                    f64::from(to_gradient(&mut logits, label, &tasks, norm, 1.0))
                };
                let mut gradient = logits;
                to_gradient(&mut gradient, label, &tasks, norm, 0.5);
                for (moved, found) in gradient.into_iter().enumerate() {
                    let slope = 0.5 * (loss(moved, 1e-2) - loss(moved, -1e-2)) / 2e-2;
                    let error = (slope - f64::from(found)).abs();
                    assert!(
                        error < 3e-3 * slope.abs().max(1.0),
                        "{norm:?}: {found}, {slope}"
                    );
                }
            }
        }
    }

    /// Two classes of one task and one of another, and columns that are too long for the last.
    fn problem() -> (HostTensor, Columns) {
        let variances = array([3, 2], &[0.1; 6]);
        let start = Columns {
            rows: vec![0.5, 0.2, 0.3, 0.4, -1.0, 2.0],
            bias: vec![0.0, 0.5, 0.3],
        };
        (variances, start)
    }

    fn aligned(start: &Columns, variances: &HostTensor, recipe: Recipe, seed: u64) -> Columns {
        let gaussians = Gaussians {
            means: &[1.0, 0.0, 0.0, 1.0, -1.0, 0.0],
            d_model: 2,
            spread: Spread::Diagonal(variances),
        };
        align(start, &gaussians, &[0, 0, 2], recipe, &mut rng(seed))
    }

    const RECIPE: Recipe = Recipe {
        n_samples: 16,
        n_epochs: 3,
        lr: 0.05,
        weight_decay: 0.0,
        norm: LogitNorm::ByTask,
        max_steps: None,
        robust_weight: 0.0,
    };

    #[test]
    fn the_same_seed_gives_the_same_classifier() {
        let (variances, start) = problem();
        let first = aligned(&start, &variances, RECIPE, 1);
        assert_eq!(aligned(&start, &variances, RECIPE, 1), first);
        assert_ne!(aligned(&start, &variances, RECIPE, 2), first);
        let none = Recipe {
            n_epochs: 0,
            ..RECIPE
        };
        let unchanged = aligned(&start, &variances, none, 1);
        for (found, expected) in unchanged.rows.iter().zip(&start.rows) {
            assert!((found - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn what_the_normed_loss_finds_does_not_depend_on_the_length_of_columns() {
        let (variances, start) = problem();
        let scaled = |columns: &Columns, by: f32| Columns {
            rows: columns.rows.iter().map(|v| v * by).collect(),
            bias: columns.bias.iter().map(|v| v * by).collect(),
        };
        let distance = |a: &Columns, b: &Columns| -> f64 {
            let values = |c: &Columns| [c.rows.clone(), c.bias.clone()].concat();
            let (a, b) = (values(a), values(b));
            let pairs = a.iter().zip(&b);
            pairs
                .map(|(a, b)| f64::from(a - b).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let short = aligned(&start, &variances, RECIPE, 1);
        let moved = distance(&short, &start);
        assert!(moved > 0.05, "{moved}");
        for by in [5.0, 0.01] {
            let long = aligned(&scaled(&start, by), &variances, RECIPE, 1);
            let apart = distance(&scaled(&long, 1.0 / by), &short);
            assert!(apart < 1e-4 * moved, "{by}: {apart} of {moved}");
        }
        // Not so for the loss that sees the length.
        let plain = Recipe {
            norm: LogitNorm::None,
            ..RECIPE
        };
        let short = aligned(&start, &variances, plain, 1);
        let long = aligned(&scaled(&start, 5.0), &variances, plain, 1);
        assert!(distance(&scaled(&long, 0.2), &short) > 0.1 * distance(&short, &start));
    }

    #[test]
    fn bounded_steps_are_those_of_all_classes_where_these_are_fewer() {
        let (variances, start) = problem();
        let with = |max_steps| {
            let recipe = Recipe {
                max_steps,
                ..RECIPE
            };
            aligned(&start, &variances, recipe, 1)
        };
        // Three classes in three epochs.
        assert_eq!(with(Some(9)), with(None));
        assert_ne!(with(Some(8)), with(None));
        // Two steps and one step of an epoch, and never none.
        assert_eq!(with(Some(8)), with(Some(6)));
        assert_eq!(with(Some(1)), with(Some(5)));
        assert_ne!(with(Some(5)), with(Some(6)));
        for (n_drawn, n_classes) in [(12, 3), (16, 3), (2, 5)] {
            let counts = shares(n_drawn, n_classes, &mut rng(3));
            assert_eq!(counts.iter().sum::<usize>(), n_drawn);
            let least = n_drawn / n_classes;
            assert!(
                counts.iter().all(|&n| n == least || n == least + 1),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn weights_of_the_local_loss_are_its_slopes() {
        let gaussians = Gaussians {
            means: &[0.0, 0.0, 4.0, 0.0, 0.0, 4.0],
            d_model: 2,
            spread: Spread::Shared(None),
        };
        let local = Local::of(&gaussians, 0.3);
        // Of class 0 three near samples and one that lies at class 1; of class 1 one that lies at class 2.
        let samples = [
            [0.1, 0.0, 1.0],
            [0.0, 0.5, 1.0],
            [-0.5, 0.0, 1.0],
            [3.5, 0.0, 1.0],
            [0.0, 3.0, 1.0f32],
        ];
        let labels = [0, 0, 0, 0, 1];
        let losses = [0.5f32, 2.0, 1.0, 9.0, 4.0];
        let loss = |l: &[f64]| {
            let mean = (l[0] + l[1] + l[2]) / 3.0;
            let pairs = ((l[0] - l[1]).abs() + (l[0] - l[2]).abs() + (l[1] - l[2]).abs()) / 3.0;
            (mean + 0.3 * pairs + l[4]) / 2.0
        };
        let flat = samples.concat();
        let found = local.weights(View::rows(&flat, 3), &labels, &losses);
        for (at, found) in found.iter().enumerate() {
            let moved = |by: f64| {
                let mut l = losses.map(f64::from);
                l[at] += by;
                loss(&l)
            };
            let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
            assert!(
                (f64::from(*found) - slope).abs() < 1e-6,
                "{at}: {found}, {slope}"
            );
        }
    }

    #[test]
    fn training_by_the_local_loss_lowers_it_more_than_training_by_the_mean_does() {
        const WEIGHT: f64 = 3.0;
        let (variances, start) = problem();
        let local_loss = |robust_weight: f64| -> f64 {
            let recipe = Recipe {
                n_epochs: 60,
                norm: LogitNorm::None,
                robust_weight,
                ..RECIPE
            };
            let found = aligned(&start, &variances, recipe, 1);
            let gaussians = Gaussians {
                means: &[1.0, 0.0, 0.0, 1.0, -1.0, 0.0],
                d_model: 2,
                spread: Spread::Diagonal(&variances),
            };
            let mut total = 0.0;
            for label in 0..3 {
                let mut rows = vec![0.0; 3 * 200];
                gaussians.sample(label, &mut rows, &mut rng(8));
                let loss_of = |x: &[f32]| {
                    let logit = |c: usize| {
                        found.rows[2 * c] * x[0] + found.rows[2 * c + 1] * x[1] + found.bias[c]
                    };
                    let mut logits = [logit(0), logit(1), logit(2)];
                    f64::from(to_gradient(&mut logits, label, &[], LogitNorm::None, 1.0))
                };
                let losses: Vec<f64> = rows.chunks_exact(3).map(loss_of).collect();
                let n = losses.len() as f64;
                let apart = losses
                    .iter()
                    .flat_map(|a| losses.iter().map(move |b| (a - b).abs()));
                let pairs: f64 = apart.sum();
                total += losses.iter().sum::<f64>() / n + WEIGHT * pairs / (n * (n - 1.0));
            }
            total
        };
        let (by_mean, by_local) = (local_loss(0.0), local_loss(WEIGHT));
        assert!(by_local < 0.99 * by_mean, "{by_local}, {by_mean}");
    }

    #[test]
    fn weight_decay_shortens_columns() {
        let (variances, start) = problem();
        let norm = |recipe| -> f32 {
            let rows = aligned(&start, &variances, recipe, 1).rows;
            rows.iter().map(|v| v * v).sum()
        };
        let plain = Recipe {
            norm: LogitNorm::None,
            ..RECIPE
        };
        let decayed = Recipe {
            weight_decay: 0.5,
            ..plain
        };
        assert!(norm(decayed) < 0.9 * norm(plain));
    }
}
