//! Features of whole sample sets, and the class means that classify without training.

use burn::tensor::Device;
use sdlora_data::Loader;

use crate::error::TrainError;
use crate::extractor::{Extractor, Read};

/// Features of samples with their labels, in host memory.
#[derive(Debug, Clone, Default)]
pub struct FeatureTable {
    /// `[n, d_model]`, row-major.
    pub features: Vec<f32>,
    /// Width of a feature.
    pub d_model: usize,
    /// Label of every row.
    pub labels: Vec<usize>,
    /// What is added to the logits of the first classes, `[n, n_shifted]`, row-major; empty for models that infer no
    /// task.
    pub shifts: Vec<f32>,
}

impl FeatureTable {
    /// Features of all samples of a loader in its order, by a model on `device` without autodiff.
    ///
    /// # Errors
    ///
    /// Those of reading the images.
    pub fn extract(
        extractor: &Extractor,
        loader: &Loader,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let mut table = Self {
            d_model: extractor.width(),
            ..Self::default()
        };
        for batch in loader.epoch(0, device) {
            let batch = batch?;
            table.extend(extractor.read(batch.images));
            table.labels.extend(batch.labels_host);
        }
        Ok(table)
    }

    /// Adds rows, without their labels.
    pub(crate) fn extend(&mut self, read: Read) {
        let Read { features, shifts } = read;
        self.features.extend(features.into_data().iter::<f32>());
        if let Some(shifts) = shifts {
            self.shifts.extend(shifts.into_data().iter::<f32>());
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.features[i * self.d_model..(i + 1) * self.d_model]
    }
}

/// What a class mean is the mean of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeanOf {
    /// The features at unit length: every image counts the same.
    #[default]
    Directions,
    /// The features as they are: an image counts by the length of its feature.
    Features,
}

/// The mean direction of every class: nearest class mean by cosine.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassMeans {
    /// `[n_classes, d_model]`, rows of unit length; a class without samples has a row of zeros.
    pub means: Vec<f32>,
    /// Width of a mean.
    pub d_model: usize,
}

impl ClassMeans {
    /// Means of each label from 0 to the largest of the table.
    pub fn of(table: &FeatureTable, mean_of: MeanOf) -> Self {
        Self::with_lengths(table, mean_of).0
    }

    /// The means of [`of`](Self::of), and the length of the sum of the features of each label; 0 for a
    /// label without samples.
    pub(crate) fn with_lengths(table: &FeatureTable, mean_of: MeanOf) -> (Self, Vec<f64>) {
        let n_classes = table.labels.iter().max().map_or(0, |&label| label + 1);
        let d = table.d_model;
        let mut sums = vec![0.0f64; n_classes * d];
        for (i, &label) in table.labels.iter().enumerate() {
            let scale = match mean_of {
                MeanOf::Directions => inverse_length(table.row(i)),
                MeanOf::Features => 1.0,
            };
            let sum = &mut sums[label * d..(label + 1) * d];
            for (sum, &value) in sum.iter_mut().zip(table.row(i)) {
                *sum += scale * f64::from(value);
            }
        }
        let means = sums
            .chunks_exact(d.max(1))
            .flat_map(|sum| {
                let sum: Vec<f32> = sum.iter().map(|&v| v as f32).collect();
                unit(&sum).map(|v| v as f32).collect::<Vec<_>>()
            })
            .collect();
        let lengths = sums
            .chunks_exact(d.max(1))
            .map(|sum| sum.iter().map(|v| v * v).sum::<f64>().sqrt())
            .collect();
        (Self { means, d_model: d }, lengths)
    }

    /// Number of classes.
    pub fn n_classes(&self) -> usize {
        self.means.len() / self.d_model.max(1)
    }

    /// The class of largest cosine for every row of a table.
    pub fn predict(&self, table: &FeatureTable) -> Vec<usize> {
        (0..table.len())
            .map(|i| {
                let row = table.row(i);
                let dot = |mean: &[f32]| mean.iter().zip(row).map(|(a, b)| a * b).sum::<f32>();
                let mut best = (0, f32::NEG_INFINITY);
                for (label, mean) in self.means.chunks_exact(self.d_model).enumerate() {
                    let score = dot(mean);
                    if score > best.1 {
                        best = (label, score);
                    }
                }
                best.0
            })
            .collect()
    }
}

/// Share of equal entries; 0 for empty lists.
pub fn accuracy(predictions: &[usize], labels: &[usize]) -> f64 {
    if labels.is_empty() {
        return 0.0;
    }
    let hits = predictions
        .iter()
        .zip(labels)
        .filter(|(a, b)| a == b)
        .count();
    hits as f64 / labels.len() as f64
}

/// The row brought to length 1; a row of zeros stays.
pub(crate) fn unit(row: &[f32]) -> impl Iterator<Item = f64> + '_ {
    let inverse = inverse_length(row);
    row.iter().map(move |&v| f64::from(v) * inverse)
}

/// 0 for a row of zeros.
fn inverse_length(row: &[f32]) -> f64 {
    let length = length(row);
    if length > 0.0 { 1.0 / length } else { 0.0 }
}

/// Euclidean length in double precision.
pub(crate) fn length(row: &[f32]) -> f64 {
    row.iter()
        .map(|&v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        .sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mean_is_the_nearest_by_angle_not_by_length() {
        let train = FeatureTable {
            features: vec![1.0, 0.0, 2.0, 0.2, 0.0, 9.0],
            d_model: 2,
            labels: vec![0, 0, 1],
            ..FeatureTable::default()
        };
        let means = ClassMeans::of(&train, MeanOf::Directions);
        assert_eq!(means.n_classes(), 2);
        let test = FeatureTable {
            features: vec![100.0, 30.0, 0.1, 0.2],
            d_model: 2,
            labels: vec![0, 1],
            ..FeatureTable::default()
        };
        assert_eq!(means.predict(&test), [0, 1]);
        assert_eq!(accuracy(&means.predict(&test), &test.labels), 1.0);
    }

    #[test]
    fn a_long_feature_pulls_the_mean_of_features_and_not_that_of_directions() {
        // Of one class, (1, 0) and (0, 3).
        let table = FeatureTable {
            features: vec![1.0, 0.0, 0.0, 3.0],
            d_model: 2,
            labels: vec![0, 0],
            ..FeatureTable::default()
        };
        let near = |mean_of, expected: [f32; 2]| {
            let means = ClassMeans::of(&table, mean_of).means;
            let close = means
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(close, "{mean_of:?}: {means:?}");
        };
        near(MeanOf::Directions, [0.5f32.sqrt(), 0.5f32.sqrt()]);
        near(MeanOf::Features, [0.1f32.sqrt(), 0.9f32.sqrt()]);
    }
}
