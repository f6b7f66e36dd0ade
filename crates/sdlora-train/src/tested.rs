//! What a model says of every test image it has seen a task of: what stands behind a row of the accuracy matrix.

use std::ops::Range;

use sdlora_data::{DataError, Loader};
use sdlora_image::Image;
use sdlora_metrics::{Confusion, MetricsError};

use crate::features::{FeatureTable, accuracy};
use crate::heads::{Classifier, argmax};
use crate::run_log::ClassScore;

/// The answer for one test image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TestedImage {
    /// What it shows.
    pub label: usize,
    /// What the model says.
    pub prediction: usize,
    /// Softmax of the plain logits at the prediction, 0 to 1: not calibrated, good for an order.
    pub probability: f32,
}

/// The answers for all test images of the tasks seen, in the order of the tasks.
#[derive(Debug, Clone, Default)]
pub struct Tested {
    /// The answers.
    pub images: Vec<TestedImage>,
    /// Names of the classes seen, by their labels.
    pub class_names: Vec<String>,
    /// Labels of the classes that each task brought.
    pub new_labels: Vec<Range<usize>>,
    /// Mean feature of the test images of every class, `[n_classes, d_model]`; zeros for a class without any.
    pub class_means: Vec<f32>,
    /// Width of a mean.
    pub d_model: usize,
    /// One for every task, in the order of `images`.
    tests: Vec<Loader>,
    /// Answers for every task.
    counts: Vec<usize>,
}

/// What is tested.
pub(crate) struct Of<'a> {
    /// The images of every task.
    pub(crate) tests: &'a [Loader],
    /// Names of all classes by their labels.
    pub(crate) class_names: &'a [String],
    /// Labels of the new classes of every task.
    pub(crate) new_labels: &'a [Range<usize>],
}

impl Tested {
    /// What a classifier says of a table for every task.
    pub(crate) fn of(classifier: &Classifier, tables: &[FeatureTable], of: Of<'_>) -> Self {
        let n_classes = of.new_labels.iter().map(|labels| labels.end).max();
        let n_classes = n_classes.unwrap_or(0).min(of.class_names.len());
        let mut images = Vec::new();
        for table in tables {
            images.extend(answers(classifier, table));
        }
        let d_model = tables.first().map_or(0, |table| table.d_model);
        Self {
            images,
            class_names: of.class_names[..n_classes].to_vec(),
            new_labels: of.new_labels.to_vec(),
            class_means: class_means(tables, n_classes, d_model),
            d_model,
            tests: of.tests.to_vec(),
            counts: tables.iter().map(FeatureTable::len).collect(),
        }
    }

    /// Accuracy on every task, a fraction over its images; `None` for a task without images.
    pub fn accuracies(&self) -> Vec<Option<f64>> {
        let mut rest = &self.images[..];
        let counts = self.counts.iter();
        counts
            .map(|&count| {
                let own;
                (own, rest) = rest.split_at(count.min(rest.len()));
                let (labels, predictions): (Vec<_>, Vec<_>) =
                    own.iter().map(|i| (i.label, i.prediction)).unzip();
                (!own.is_empty()).then(|| accuracy(&predictions, &labels))
            })
            .collect()
    }

    /// How every class was tested, by its label.
    pub fn class_scores(&self) -> Vec<ClassScore> {
        let mut scores = vec![ClassScore::default(); self.class_names.len()];
        for image in &self.images {
            if let Some(score) = scores.get_mut(image.label) {
                score.n_images += 1;
                score.n_right += usize::from(image.prediction == image.label);
            }
        }
        scores
    }

    /// Which class is taken for which.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Label`] when the classifier knows more classes than the tasks brought.
    pub fn confusion(&self) -> Result<Confusion, MetricsError> {
        let (labels, predictions): (Vec<_>, Vec<_>) =
            self.images.iter().map(|i| (i.label, i.prediction)).unzip();
        Confusion::of(&labels, &predictions, self.class_names.len())
    }

    /// The image behind an entry of `images`, as it looks in its task, before its numbers are scaled; `None` where
    /// there is no such entry, and where the images of its task are gone.
    ///
    /// # Errors
    ///
    /// Those of reading it.
    pub fn picture(&self, image_idx: usize) -> Result<Option<Image>, DataError> {
        let mut position = image_idx;
        for (test, &count) in self.tests.iter().zip(&self.counts) {
            match position.checked_sub(count) {
                Some(rest) => position = rest,
                // Of images that are gone, only the features were kept.
                None if test.n_samples() != count => return Ok(None),
                None => return test.source().picture(position).map(Some),
            }
        }
        Ok(None)
    }
}

/// The answers for the rows of a table.
fn answers(classifier: &Classifier, table: &FeatureTable) -> Vec<TestedImage> {
    let n_classes = classifier.n_classes();
    let labels = table.labels.iter();
    if n_classes == 0 {
        let unknown = |&label: &usize| TestedImage {
            label,
            prediction: 0,
            probability: 0.0,
        };
        return labels.map(unknown).collect();
    }
    let logits = classifier.logits(table);
    let rows = logits.chunks_exact(n_classes);
    labels
        .zip(rows)
        .map(|(&label, row)| {
            let prediction = argmax(row);
            let top = row[prediction];
            let sum: f32 = row.iter().map(|logit| (logit - top).exp()).sum();
            TestedImage {
                label,
                prediction,
                probability: 1.0 / sum,
            }
        })
        .collect()
}

fn class_means(tables: &[FeatureTable], n_classes: usize, d_model: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; n_classes * d_model];
    let mut counts = vec![0usize; n_classes];
    for table in tables {
        for (i, &label) in table.labels.iter().enumerate() {
            if label < n_classes {
                counts[label] += 1;
                let sum = &mut sums[label * d_model..(label + 1) * d_model];
                sum.iter_mut()
                    .zip(table.row(i))
                    .for_each(|(sum, &x)| *sum += f64::from(x));
            }
        }
    }
    let rows = sums.chunks_exact(d_model.max(1)).zip(counts);
    rows.flat_map(|(sum, n)| sum.iter().map(move |sum| (sum / n.max(1) as f64) as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_means_by_hand() {
        let classifier = Classifier::linear(vec![1.0, 0.0, 0.0, 1.0], 2, None);
        let table = FeatureTable {
            features: vec![2.0, 1.0, 0.0, 3.0, 4.0, 0.0],
            d_model: 2,
            labels: vec![0, 0, 1],
            ..FeatureTable::default()
        };
        let found = answers(&classifier, &table);
        let pairs: Vec<_> = found.iter().map(|i| (i.label, i.prediction)).collect();
        assert_eq!(pairs, [(0, 0), (0, 1), (1, 0)]);
        let sure = 1.0 / (1.0 + (-1.0f32).exp());
        assert!((found[0].probability - sure).abs() < 1e-6);
        // A third class without images has zeros.
        let means = class_means(std::slice::from_ref(&table), 3, 2);
        assert_eq!(means, [1.0, 2.0, 4.0, 0.0, 0.0, 0.0]);
        let names = ["a", "b"].map(str::to_owned);
        let tested = Tested::of(
            &classifier,
            &[table],
            Of {
                tests: &[],
                class_names: &names,
                new_labels: &[0..1, 1..2],
            },
        );
        let confusion = tested.confusion().unwrap();
        assert_eq!((confusion.count(0, 1), confusion.count(1, 0)), (1, 1));
        assert!(tested.picture(0).unwrap().is_none());
    }
}
