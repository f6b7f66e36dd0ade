//! The floor under every backbone: nearest class mean on the pixels themselves.

use std::path::Path;

use sdlora_metrics::AccuracyMatrix;

use crate::config::Plan;
use crate::error::TrainError;
use crate::features::unit;
use crate::observer::{Event, Observer};
use crate::run_data::RunData;

/// Accuracy after every task when an image is given the class whose mean is nearest by cosine, both
/// taken of the prepared pixels (size, channels and normalisation of the plan, no augmentation).
///
/// The same rule as [`ClassMeans`](crate::ClassMeans), so that the distance to the method `ncm` is
/// what the backbone adds. Method, head, optimiser and backbone of the plan are not looked at, and
/// no weights are needed; `observer` is told what the data set has to say. Accuracies are fractions over the images of
/// each task.
///
/// # Errors
///
/// Those of the data set, the stream and its images, and [`TrainError::Setting`] for a stream with
/// classes that come again.
pub fn pixel_floor(
    plan: &Plan,
    data_dir: &Path,
    observer: &mut dyn Observer,
) -> Result<AccuracyMatrix, TrainError> {
    let data = RunData::open(plan, data_dir)?;
    for text in data.dataset.notes() {
        observer.event(&Event::Notice { text });
    }
    if data.has_repeats() {
        return Err(TrainError::setting(
            "stream",
            "one with classes that come again",
            "a stream whose classes come once, because the floor takes the mean of a class for final",
        ));
    }
    let n_tasks = data.tasks.len();
    let n_seen: Vec<usize> = data
        .tasks
        .iter()
        .map(|task| task.new_labels().end)
        .collect();

    // Rows of unit length, by label. Images come batch by batch: a whole task may not fit.
    let mut means: Vec<Vec<f64>> = vec![Vec::new(); n_seen.last().copied().unwrap_or(0)];
    for task in 0..n_tasks {
        let loader = data.plain_train_loader(task)?;
        for batch in loader.host_epoch(0) {
            let batch = batch?;
            let d = batch.shape.iter().product();
            for (pixels, &label) in batch.pixels.chunks_exact(d).zip(&batch.labels) {
                let sum = &mut means[label];
                sum.resize(d, 0.0);
                for (sum, value) in sum.iter_mut().zip(unit(pixels)) {
                    *sum += value;
                }
            }
        }
    }
    let means: Vec<Vec<f32>> = means
        .into_iter()
        .map(|sum| {
            let norm = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
            let inverse = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            sum.iter().map(|v| (v * inverse) as f32).collect()
        })
        .collect();

    // A mean never changes once its task is over, so one pass over the test images is enough: what is
    // predicted after a task is the best of the classes seen by then.
    let mut hits = vec![vec![0usize; n_tasks]; n_tasks];
    for (on, loader) in data.test_loaders()?.iter().enumerate() {
        for batch in loader.host_epoch(0) {
            let batch = batch?;
            let d = batch.shape.iter().product();
            for (pixels, &label) in batch.pixels.chunks_exact(d).zip(&batch.labels) {
                let mut best = (0, f32::NEG_INFINITY);
                let mut first = 0;
                for (after, &end) in n_seen.iter().enumerate() {
                    for (class, mean) in means.iter().enumerate().take(end).skip(first) {
                        let score = mean.iter().zip(pixels).map(|(a, b)| a * b).sum::<f32>();
                        if score > best.1 {
                            best = (class, score);
                        }
                    }
                    first = end;
                    if after >= on && best.0 == label {
                        hits[after][on] += 1;
                    }
                }
            }
        }
    }
    let counts = data.test_counts();
    let mut matrix = AccuracyMatrix::new(n_tasks).with_test_counts(counts.clone())?;
    for (after, hits) in hits.iter().enumerate() {
        let row = hits[..=after].iter().zip(&counts);
        matrix.push_row(row.map(|(&hits, &n)| hits as f64 / n as f64).collect())?;
    }
    Ok(matrix)
}
