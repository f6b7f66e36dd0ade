//! Training a linear classifier anew on features sampled from class Gaussians.
//!
//! Loss: cross-entropy of `logits / (τ · n)`, where `n` is the mean over tasks of the norm of the
//! logits of the classes of a task, so that no task wins by the length of its columns (Zhang et al.
//! 2023, "SLCA", section 3.3, and its published `models/slca.py`). SGD with momentum; the rate falls
//! by a half cosine, epoch by epoch; samples are drawn anew in every epoch.
//!
//! Deviates: means of old classes are not shrunk, as the published code does by up to a tenth, and
//! there is no weight decay, which the loss would not see: it does not depend on the length of the
//! whole classifier.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::cross_entropy;
use super::normal::standard_normal;
use crate::export::HostTensor;
use crate::linalg::{Cholesky, Symmetric, packed_len};

/// `τ` (SLCA, section 4.1).
const TEMPERATURE: f32 = 0.1;
/// Samples of a step and momentum, as published.
const BATCH_SIZE: usize = 256;
const MOMENTUM: f64 = 0.9;
/// Keeps the norm of logits that are all 0 away from 0.
const NORM_EPS: f32 = 1e-14;
/// Added to the diagonal of a covariance, relative to its mean: few images leave it singular. (The
/// published code adds 1e-4 to features whose variance is about 1.)
const RIDGE: f64 = 1e-4;

/// A classifier to start from and to end with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Columns {
    /// `[n_classes, d_model]`.
    pub(super) rows: Vec<f32>,
    /// `[n_classes]`.
    pub(super) bias: Vec<f32>,
}

/// How much and how fast.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub(super) n_samples: usize,
    pub(super) n_epochs: usize,
    pub(super) lr: f64,
}

/// How samples lie around the mean of their class.
#[derive(Debug)]
pub(super) enum Spread<'a> {
    /// Lower triangles `[n_classes, d (d + 1) / 2]`.
    Full(&'a HostTensor),
    /// `[n_classes, d]`.
    Diagonal(&'a HostTensor),
    /// One factor for all; none when every image lies on its mean.
    Shared(Option<Cholesky>),
}

/// Class Gaussians.
#[derive(Debug)]
pub(super) struct Gaussians<'a> {
    /// `[n_classes, d_model]`.
    pub(super) means: &'a [f32],
    pub(super) d_model: usize,
    pub(super) spread: Spread<'a>,
}

/// The factor to sample with; `None` where all images are one.
pub(super) fn factor(lower: &[f32], d: usize) -> Option<Cholesky> {
    let covariance = Symmetric::unpacked(lower, d);
    let mean = covariance.mean_diagonal();
    (mean > 0.0)
        .then(|| covariance.cholesky(RIDGE * mean))
        .flatten()
}

impl Gaussians<'_> {
    fn n_classes(&self) -> usize {
        self.means.len() / self.d_model.max(1)
    }

    /// `n` samples `[n, d_model]` of a class.
    fn sample(&self, label: usize, n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        let d = self.d_model;
        let noise = standard_normal(rng, n * d);
        let by = |factor: Option<&Cholesky>| match factor {
            Some(factor) => factor.spread(&noise),
            None => vec![0.0; n * d],
        };
        let around = match &self.spread {
            Spread::Shared(factor) => by(factor.as_ref()),
            Spread::Full(lower) => {
                let lower = row(lower, label, packed_len(d));
                by(factor(lower, d).as_ref())
            }
            Spread::Diagonal(variances) => {
                let variances = row(variances, label, d);
                let deviations: Vec<f64> = variances.iter().map(|&v| f64::from(v).sqrt()).collect();
                let rows = noise.chunks_exact(d.max(1));
                rows.flat_map(|row| row.iter().zip(&deviations).map(|(x, s)| x * s))
                    .collect()
            }
        };
        let mean = &self.means[label * d..(label + 1) * d];
        let values = around.iter().zip(mean.iter().cycle());
        values.map(|(x, &m)| (x + f64::from(m)) as f32).collect()
    }
}

fn row(array: &HostTensor, label: usize, width: usize) -> &[f32] {
    let values = array.values.get(label * width..(label + 1) * width);
    values.unwrap_or_default()
}

/// Trains `start`; class `i` belongs to the task that starts at label `first_labels[i]`.
pub(super) fn align(
    start: Columns,
    gaussians: &Gaussians<'_>,
    first_labels: &[usize],
    schedule: Schedule,
    rng: &mut ChaCha8Rng,
    device: &Device,
) -> Columns {
    let (n_classes, d) = (gaussians.n_classes(), gaussians.d_model);
    // The bias is the column of a feature that is always 1.
    let rows = start.rows.chunks_exact(d.max(1)).zip(&start.bias);
    let values: Vec<f32> = rows
        .flat_map(|(row, &bias)| row.iter().copied().chain([bias]))
        .collect();
    let shape = [n_classes, d + 1];
    let mut columns = Tensor::<2>::from_data(TensorData::new(values, shape), device);
    let mut velocity = columns.zeros_like();
    let tasks = task_columns(first_labels, device);
    let mut order: Vec<usize> = (0..n_classes * schedule.n_samples).collect();
    for epoch in 0..schedule.n_epochs {
        let progress = epoch as f64 / schedule.n_epochs as f64;
        let lr = schedule.lr * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        let samples: Vec<f32> = (0..n_classes)
            .flat_map(|label| gaussians.sample(label, schedule.n_samples, rng))
            .collect();
        order.shuffle(rng);
        for batch in order.chunks(BATCH_SIZE) {
            let (features, labels) = batch_of(&samples, batch, d, schedule.n_samples, device);
            let parameter = columns.clone().require_grad();
            let logits = features.matmul(parameter.clone().transpose());
            let gradients = loss(logits, labels, tasks.clone()).backward();
            if let Some(gradient) = parameter.grad(&gradients) {
                velocity = velocity * MOMENTUM + Tensor::from_inner(gradient);
            }
            columns = (columns - velocity.clone() * lr).detach();
        }
    }
    let values: Vec<f32> = columns.into_data().iter::<f32>().collect();
    let (mut rows, mut bias) = (Vec::with_capacity(n_classes * d), Vec::new());
    for column in values.chunks_exact(d + 1) {
        rows.extend_from_slice(&column[..d]);
        bias.push(column[d]);
    }
    Columns { rows, bias }
}

/// Samples `[batch, d + 1]` at the given places, each with a 1 at its end, and their labels.
fn batch_of(
    samples: &[f32],
    places: &[usize],
    d: usize,
    n_samples: usize,
    device: &Device,
) -> (Tensor<2>, Tensor<1, Int>) {
    let row = |&i: &usize| samples[i * d..(i + 1) * d].iter().copied().chain([1.0]);
    let values: Vec<f32> = places.iter().flat_map(row).collect();
    let labels: Vec<i32> = places.iter().map(|&i| (i / n_samples) as i32).collect();
    (
        Tensor::from_data(TensorData::new(values, [places.len(), d + 1]), device),
        Tensor::from_data(TensorData::new(labels, [places.len()]), device),
    )
}

/// `[n_classes, n_tasks]` with 1 where a class belongs to a task.
fn task_columns(first_labels: &[usize], device: &Device) -> Tensor<2> {
    let mut starts = first_labels.to_vec();
    starts.dedup();
    let values: Vec<f32> = first_labels
        .iter()
        .flat_map(|first| {
            starts
                .iter()
                .map(move |start| f32::from(u8::from(start == first)))
        })
        .collect();
    let shape = [first_labels.len(), starts.len()];
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Mean cross-entropy of `logits: [batch, n_classes]` over their norm by task.
fn loss(logits: Tensor<2>, labels: Tensor<1, Int>, tasks: Tensor<2>) -> Tensor<1> {
    let squares = (logits.clone() * logits.clone()).matmul(tasks);
    let norm = squares.add_scalar(NORM_EPS).sqrt().mean_dim(1);
    cross_entropy(logits / (norm * TEMPERATURE), labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use sdlora_testkit::{Tolerance, assert_close, test_device, test_device_autodiff};

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

    #[test]
    fn samples_have_the_mean_and_the_covariance_of_their_class() {
        let full = array([2, 3], &[1.0, 0.0, 1.0, 4.0, -1.5, 1.0]);
        let diagonal = array([2, 2], &[1.0, 1.0, 4.0, 1.0]);
        let shared = factor(&[4.0, -1.5, 1.0], 2);
        assert!(shared.is_some());
        for (spread, covariance) in [
            (Spread::Full(&full), [4.0, -1.5, 1.0]),
            (Spread::Diagonal(&diagonal), [4.0, 0.0, 1.0]),
            (Spread::Shared(shared), [4.0, -1.5, 1.0]),
            (Spread::Shared(None), [0.0; 3]),
        ] {
            let gaussians = Gaussians {
                means: &[0.0, 0.0, 7.0, -3.0],
                d_model: 2,
                spread,
            };
            let (mean, found) = moments(&gaussians.sample(1, 20_000, &mut rng(4)));
            for (found, expected) in mean.into_iter().zip([7.0, -3.0]) {
                assert!((found - expected).abs() < 0.06, "{found} for {expected}");
            }
            for (found, expected) in found.into_iter().zip(covariance) {
                assert!((found - expected).abs() < 0.15, "{found} for {expected}");
            }
        }
    }

    #[test]
    fn a_class_of_one_image_is_sampled_as_that_image() {
        assert!(factor(&[0.0; 3], 2).is_none());
        // One direction of spread in two: singular, and still sampled.
        assert!(factor(&[1.0, 1.0, 1.0], 2).is_some());
    }

    #[test]
    fn the_loss_by_hand_does_not_depend_on_the_length_of_the_classifier() {
        let device = test_device();
        let tasks = task_columns(&[0, 0, 2], &device);
        assert_close(
            tasks.clone(),
            &[1.0f32, 0.0, 1.0, 0.0, 0.0, 1.0][..],
            Tolerance::Abs(0.0),
            "tasks",
        );
        // Norms by task are 5 and 1: their mean is 3, and τ times it 0.3.
        let value = |factor: f32| -> f32 {
            let logits = Tensor::<2>::from_data([[3.0f32, 4.0, 1.0]], &device) * factor;
            let labels = Tensor::<1, Int>::from_data([0], &device);
            loss(logits, labels, tasks.clone()).into_scalar()
        };
        let exponents = [3.0, 4.0, 1.0f64].map(|l| (l / 0.3).exp());
        let expected = (exponents.iter().sum::<f64>() / exponents[0]).ln();
        for factor in [1.0, 20.0, 0.01] {
            let found = f64::from(value(factor));
            assert!(
                (found - expected).abs() < 1e-4,
                "{factor}: {found}, {expected}"
            );
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_classifier() {
        let variances = array([2, 2], &[0.1; 4]);
        let gaussians = Gaussians {
            means: &[1.0, 0.0, 0.0, 1.0],
            d_model: 2,
            spread: Spread::Diagonal(&variances),
        };
        let start = Columns {
            rows: vec![0.1, 0.2, 0.3, 0.4],
            bias: vec![0.0, 0.5],
        };
        let schedule = Schedule {
            n_samples: 16,
            n_epochs: 3,
            lr: 0.05,
        };
        let aligned = |seed, schedule| {
            let device = test_device_autodiff();
            align(
                start.clone(),
                &gaussians,
                &[0, 1],
                schedule,
                &mut rng(seed),
                &device,
            )
        };
        let first = aligned(1, schedule);
        assert_eq!(aligned(1, schedule), first);
        assert_ne!(aligned(2, schedule), first);
        let none = Schedule {
            n_epochs: 0,
            ..schedule
        };
        assert_eq!(aligned(1, none), start);
    }
}
