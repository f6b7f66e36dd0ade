//! What is left of a head once learning is over: all that a prediction needs.

use std::path::Path;
use std::sync::Arc;

use super::projection::random_features;
use crate::error::TrainError;
use crate::export::{HostTensor, TensorFile};
use crate::features::FeatureTable;
use crate::linalg::{View, add_product};

/// A classifier of features, on the host: `logits = weight · x + bias`, or of their random features
/// `max(0, projection · x)` instead of `x`. A quadratic one adds `‖factors_c · x − offsets_c‖² / 2` to the logit
/// of class `c`.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    /// `[n_random, d_model]`, where there is one.
    projection: Option<Arc<HostTensor>>,
    /// `[n_classes, d_model]`, or `[n_classes, n_random]`.
    weight: HostTensor,
    /// `[n_classes]`.
    bias: Vec<f32>,
    squares: Option<Squares>,
}

/// What a quadratic classifier adds to the logits.
#[derive(Debug, Clone, PartialEq)]
struct Squares {
    /// `[n_classes, rank, d_model]`.
    factors: HostTensor,
    /// `[n_classes, rank]`.
    offsets: Vec<f32>,
}

/// Rows of a table whose random features are in memory at a time.
const BLOCK: usize = 256;

/// Metadata key of the name of the head.
const HEAD_KEY: &str = "sdlora.head";
/// Name of the matrix of random features in a file.
const PROJECTION: &str = "projection";
/// Names of the two parts of [`Squares`] in a file.
const FACTORS: &str = "factors";
const OFFSETS: &str = "offsets";

impl Classifier {
    /// A linear classifier of rows `[n_classes, d_model]`, each with a bias where one is given.
    pub fn linear(rows: Vec<f32>, d_model: usize, bias: Option<Vec<f32>>) -> Self {
        let n_classes = rows.len() / d_model.max(1);
        Self {
            projection: None,
            weight: HostTensor {
                shape: vec![n_classes, d_model],
                values: rows,
            },
            bias: bias.unwrap_or_else(|| vec![0.0; n_classes]),
            squares: None,
        }
    }

    /// This classifier with `‖factors_c · x − offsets_c‖² / 2` added to the logits, of `factors: [n_classes, rank,
    /// d_model]` and `offsets: [n_classes, rank]`.
    pub(super) fn with_squares(self, factors: Vec<f32>, offsets: Vec<f32>) -> Self {
        let (n_classes, width) = (self.n_classes(), self.width());
        let rank = offsets.len() / n_classes.max(1);
        Self {
            squares: Some(Squares {
                factors: HostTensor {
                    shape: vec![n_classes, rank, width],
                    values: factors,
                },
                offsets,
            }),
            ..self
        }
    }

    /// This classifier, of random features by `projection: [d_model of this classifier, d_model]`.
    pub(super) fn after(self, projection: Arc<HostTensor>) -> Self {
        Self {
            projection: Some(projection),
            ..self
        }
    }

    /// Number of classes.
    pub fn n_classes(&self) -> usize {
        self.bias.len()
    }

    /// Rows `[n_classes, d_model]` and biases `[n_classes]`, where the logits are linear in the features:
    /// `None` behind a projection and of a quadratic classifier. Where cosines classify, these logits are the
    /// cosines times the length of the feature: every prediction is the same, a softmax over them is not.
    pub fn as_linear(&self) -> Option<(&[f32], &[f32])> {
        match (&self.projection, &self.squares) {
            (None, None) => Some((&self.weight.values, &self.bias)),
            _ => None,
        }
    }

    /// Whether logits are quadratic in the features: [`parts`](Self::parts) are then not all of it.
    pub(crate) fn is_quadratic(&self) -> bool {
        self.squares.is_some()
    }

    /// The projection `[n_random, d_model]` where there is one, the weight, and the bias.
    pub(crate) fn parts(&self) -> (Option<&HostTensor>, &HostTensor, &[f32]) {
        (self.projection.as_deref(), &self.weight, &self.bias)
    }

    /// Logits `[n, n_classes]`, row-major, of every row of a table, with its shifts added.
    pub fn logits(&self, table: &FeatureTable) -> Vec<f32> {
        let n_classes = self.n_classes();
        let width = self.width();
        // Feature by feature, so that all classes advance together.
        let columns = transposed(&self.weight.values, n_classes, width);
        let mut out = Vec::with_capacity(table.len() * n_classes);
        let mut logits = vec![0.0f32; n_classes];
        for block in table.features.chunks(BLOCK * table.d_model.max(1)) {
            let features = match &self.projection {
                Some(projection) => &random_features(projection, block)[..],
                None => block,
            };
            let squares = self.squares.as_ref();
            let squares = squares.map(|squares| squares.of(features, n_classes, width));
            for (i, row) in features.chunks_exact(width.max(1)).enumerate() {
                logits.copy_from_slice(&self.bias);
                for (&x, w) in row.iter().zip(columns.chunks_exact(n_classes.max(1))) {
                    for (logit, &w) in logits.iter_mut().zip(w) {
                        *logit += x * w;
                    }
                }
                if let Some(squares) = &squares {
                    let own = &squares[i * n_classes..(i + 1) * n_classes];
                    logits.iter_mut().zip(own).for_each(|(l, s)| *l += s);
                }
                out.extend_from_slice(&logits);
            }
        }
        let n_shifted = table.shifts.len() / table.len().max(1);
        if n_shifted > 0 {
            let rows = out.chunks_exact_mut(n_classes.max(1));
            for (logits, shifts) in rows.zip(table.shifts.chunks_exact(n_shifted)) {
                logits.iter_mut().zip(shifts).for_each(|(l, s)| *l += s);
            }
        }
        out
    }

    /// Numbers that a row of the weight is multiplied by.
    fn width(&self) -> usize {
        self.weight.shape.last().copied().unwrap_or(0)
    }

    /// The label of the largest logit, the first of equals, for every row of a table.
    pub fn predict(&self, table: &FeatureTable) -> Vec<usize> {
        if self.n_classes() == 0 {
            return vec![0; table.len()];
        }
        let logits = self.logits(table);
        logits.chunks_exact(self.n_classes()).map(argmax).collect()
    }

    /// Writes the file that a run leaves: `weight` and `bias`, `projection` where there is one, and
    /// the name of the head.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn write(&self, path: &Path, head: &str) -> Result<(), TrainError> {
        let mut file = TensorFile::default();
        file.insert(
            "weight",
            self.weight.shape.clone(),
            self.weight.values.clone(),
        );
        file.insert("bias", vec![self.bias.len()], self.bias.clone());
        if let Some(projection) = &self.projection {
            let HostTensor { shape, values } = projection.as_ref().clone();
            file.insert(PROJECTION, shape, values);
        }
        if let Some(Squares { factors, offsets }) = &self.squares {
            let rank = factors.shape.get(1).copied().unwrap_or(0);
            file.insert(OFFSETS, vec![self.bias.len(), rank], offsets.clone());
            file.insert(FACTORS, factors.shape.clone(), factors.values.clone());
        }
        file.metadata.insert(HEAD_KEY.into(), head.into());
        file.write(path)
    }

    /// Reads a file that [`write`](Self::write) wrote, for features of width `d_model`. Earlier
    /// versions wrote class means as `class_means`, which then classify.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] for a file that cannot be read, [`TrainError::Export`] for one that holds
    /// no classifier of such features.
    pub fn read(path: &Path, d_model: usize) -> Result<Self, TrainError> {
        let file = TensorFile::read(path)?;
        let (shape, weight, bias) = match file.tensors.contains_key("class_means") {
            true => {
                let (shape, rows) = file.get::<2>(path, "class_means")?;
                (shape, rows, vec![0.0; shape[0]])
            }
            false => {
                let (shape, rows) = file.get::<2>(path, "weight")?;
                let (_, bias) = file.get::<1>(path, "bias")?;
                (shape, rows, bias.to_vec())
            }
        };
        let [n_classes, width] = shape;
        let projection = match file.tensors.contains_key(PROJECTION) {
            true => Some(file.get::<2>(path, PROJECTION)?),
            false => None,
        };
        // Width of the features, and of what the weight multiplies.
        let [expected, takes] = match projection {
            Some((shape, _)) => [shape[1], shape[0]],
            None => [width, width],
        };
        if expected != d_model || takes != width || bias.len() != n_classes {
            let behind = match projection {
                Some((shape, _)) => format!(" behind a projection of {} x {}", shape[0], shape[1]),
                None => String::new(),
            };
            let problem = format!(
                "a classifier of {n_classes} x {width} with {} biases{behind} does not fit features \
                 of width {d_model}; use the `head.safetensors` of the same run",
                bias.len()
            );
            return Err(TrainError::export(path, problem));
        }
        let mut classifier = Self::linear(weight.to_vec(), width, Some(bias));
        if file.tensors.contains_key(FACTORS) {
            let ([n, rank, d], factors) = file.get::<3>(path, FACTORS)?;
            let (of_offsets, offsets) = file.get::<2>(path, OFFSETS)?;
            if [n, d] != [n_classes, width] || of_offsets != [n, rank] {
                let problem = format!(
                    "factors of {n} x {rank} x {d} with offsets of {} x {} do not fit a classifier of \
                     {n_classes} x {width}; use the `head.safetensors` of the same run",
                    of_offsets[0], of_offsets[1]
                );
                return Err(TrainError::export(path, problem));
            }
            classifier = classifier.with_squares(factors.to_vec(), offsets.to_vec());
        }
        Ok(match projection {
            Some((shape, values)) => classifier.after(Arc::new(HostTensor {
                shape: shape.to_vec(),
                values: values.to_vec(),
            })),
            None => classifier,
        })
    }
}

impl Squares {
    /// What is added to the logits `[n, n_classes]` of `features: [n, width]`.
    fn of(&self, features: &[f32], n_classes: usize, width: usize) -> Vec<f32> {
        let n_factors = self.offsets.len();
        let rows = View::rows(features, width);
        let mut along = vec![0.0f32; rows.n_rows() * n_factors];
        let factors = View::rows(&self.factors.values, width).transposed();
        add_product(&mut along, n_factors, 1.0, rows, factors);
        let rank = n_factors / n_classes.max(1);
        let mut out = Vec::with_capacity(rows.n_rows() * n_classes);
        for along in along.chunks_exact(n_factors.max(1)) {
            let pairs = along
                .chunks_exact(rank)
                .zip(self.offsets.chunks_exact(rank));
            out.extend(pairs.map(|(along, offsets)| {
                let apart = along.iter().zip(offsets).map(|(a, o)| (a - o).powi(2));
                0.5 * apart.sum::<f32>()
            }));
        }
        out
    }
}

/// Row-major `[n_rows, n_columns]` to `[n_columns, n_rows]`.
pub(super) fn transposed(values: &[f32], n_rows: usize, n_columns: usize) -> Vec<f32> {
    let column = |j: usize| (0..n_rows).map(move |i| values[i * n_columns + j]);
    (0..n_columns).flat_map(column).collect()
}

/// Position of the largest entry, the first of equals.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(rows: &[[f32; 2]]) -> FeatureTable {
        FeatureTable {
            features: rows.concat(),
            d_model: 2,
            labels: vec![0; rows.len()],
            ..FeatureTable::default()
        }
    }

    #[test]
    fn logits_by_hand_and_the_first_of_equals() {
        let classifier = Classifier::linear(
            vec![1.0, 0.0, 0.0, 1.0, 1.0, 1.0],
            2,
            Some(vec![0.0, 0.5, -1.0]),
        );
        let table = features(&[[2.0, 1.0], [1.0, 0.5], [3.0, 3.0]]);
        assert_eq!(
            classifier.logits(&table),
            [2.0, 1.5, 2.0, 1.0, 1.0, 0.5, 3.0, 3.5, 5.0]
        );
        assert_eq!(classifier.predict(&table), [0, 0, 2]);
    }

    #[test]
    fn a_quadratic_classifier_by_hand_comes_back_from_its_file() {
        let linear = Classifier::linear(vec![1.0, 0.0, 0.0, 1.0], 2, Some(vec![0.0, -1.0]));
        // Of class 0 (x + y − 1)² / 2 and (2 y)² / 2, of class 1 (x − 3)² / 2 and nothing.
        let factors = vec![1.0, 1.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0];
        let classifier = linear
            .clone()
            .with_squares(factors, vec![1.0, 0.0, 3.0, 0.0]);
        let table = features(&[[2.0, 1.0], [0.0, 0.0]]);
        assert_eq!(
            classifier.logits(&table),
            [2.0 + 2.0 + 2.0, 0.0 + 0.5, 0.5, -1.0 + 4.5]
        );
        assert_eq!(classifier.predict(&table), [0, 1]);
        assert!(linear.as_linear().is_some() && classifier.as_linear().is_none());
        assert!(classifier.is_quadratic() && !linear.is_quadratic());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        classifier.write(&path, "qda").unwrap();
        assert_eq!(Classifier::read(&path, 2).unwrap(), classifier);
        let mut file = TensorFile::read(&path).unwrap();
        file.insert(OFFSETS, vec![2, 1], vec![0.0; 2]);
        file.write(&path).unwrap();
        let error = Classifier::read(&path, 2).unwrap_err().to_string();
        assert!(error.contains("factors of 2 x 2 x 2"), "{error}");
    }

    #[test]
    fn files_of_other_features_are_refused_and_those_of_earlier_versions_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        let classifier = Classifier::linear(vec![1.0, 2.0, 3.0, 4.0], 2, None);
        classifier.write(&path, "ncm").unwrap();
        assert_eq!(Classifier::read(&path, 2).unwrap(), classifier);
        let error = Classifier::read(&path, 3).unwrap_err().to_string();
        assert!(error.contains("2 x 2"), "{error}");

        let projection = HostTensor {
            shape: vec![2, 3],
            values: vec![0.5; 6],
        };
        let behind = classifier.clone().after(Arc::new(projection));
        assert!(classifier.as_linear().is_some() && behind.as_linear().is_none());
        behind.write(&path, "ridge").unwrap();
        assert_eq!(Classifier::read(&path, 3).unwrap(), behind);
        let error = Classifier::read(&path, 2).unwrap_err().to_string();
        assert!(error.contains("projection of 2 x 3"), "{error}");

        let mut old = TensorFile::default();
        old.insert("class_means", vec![2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        // Columns that were trained beside them and never classified.
        old.insert("weight", vec![2, 2], vec![0.0; 4]);
        old.insert("bias", vec![2], vec![9.0; 2]);
        old.write(&path).unwrap();
        assert_eq!(Classifier::read(&path, 2).unwrap(), classifier);
    }
}
