//! Logits on the host, and how they are shared out over the tasks of the head.

use std::ops::Range;

use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::model::{HeadKind, Model};

/// Logits of samples with their labels.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogitTable {
    /// `[n, n_classes]`, row-major.
    pub logits: Vec<f32>,
    /// Classes of the head.
    pub n_classes: usize,
    /// Label of every row.
    pub labels: Vec<usize>,
}

impl LogitTable {
    /// Logits of a table of features by the classifier of a model; for class means the cosines.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] when the model has no such classifier.
    pub fn of(model: &Model, head: HeadKind, table: &FeatureTable) -> Result<Self, TrainError> {
        Ok(HostClassifier::of(model, head)?.logits(table))
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
        &self.logits[i * self.n_classes..(i + 1) * self.n_classes]
    }

    /// The label of the largest logit of every row, among all classes.
    pub fn predict(&self) -> Vec<usize> {
        self.predict_within(0..self.n_classes)
    }

    /// The label of the largest logit of every row, among some classes: what a task id would give.
    pub fn predict_within(&self, labels: Range<usize>) -> Vec<usize> {
        (0..self.len())
            .map(|i| labels.start + argmax(&self.row(i)[labels.clone()]))
            .collect()
    }

    /// Adds the rows of another table of the same classifier.
    pub fn extend(&mut self, other: Self) {
        self.n_classes = other.n_classes;
        self.logits.extend(other.logits);
        self.labels.extend(other.labels);
    }
}

/// A classifier that is linear in the features, on the host.
#[derive(Debug, Clone)]
pub(super) struct HostClassifier {
    /// `[d_model, n_classes]`.
    pub(super) weight: Vec<f32>,
    /// `[n_classes]`.
    pub(super) bias: Vec<f32>,
    /// Whether features are brought to length 1 first.
    is_cosine: bool,
}

impl HostClassifier {
    pub(super) fn of(model: &Model, head: HeadKind) -> Result<Self, TrainError> {
        let (weight, bias) = model.linear_classifier(head)?;
        Ok(Self {
            weight: weight.into_data().iter::<f32>().collect(),
            bias: bias.into_data().iter::<f32>().collect(),
            is_cosine: head == HeadKind::Ncm,
        })
    }

    /// The classifier of the first `n` classes alone.
    pub(super) fn first_classes(&self, n: usize) -> Self {
        let rows = self.weight.chunks_exact(self.bias.len());
        Self {
            weight: rows.flat_map(|row| row[..n].iter().copied()).collect(),
            bias: self.bias[..n].to_vec(),
            is_cosine: self.is_cosine,
        }
    }

    pub(super) fn logits(&self, table: &FeatureTable) -> LogitTable {
        let n_classes = self.bias.len();
        let mut logits = Vec::with_capacity(table.len() * n_classes);
        for i in 0..table.len() {
            let row = table.row(i);
            let scale = match self.is_cosine {
                true => (1.0 / length(row).max(f64::from(f32::MIN_POSITIVE))) as f32,
                false => 1.0,
            };
            let first = logits.len();
            logits.extend_from_slice(&self.bias);
            for (&x, w) in row.iter().zip(self.weight.chunks_exact(n_classes)) {
                for (logit, &w) in logits[first..].iter_mut().zip(w) {
                    *logit += scale * x * w;
                }
            }
        }
        LogitTable {
            logits,
            n_classes,
            labels: table.labels.clone(),
        }
    }
}

/// How the classes of one task score on test images of all tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskLogits {
    /// Mean over images of this task of the largest logit among its classes.
    pub own: f64,
    /// Mean over images of other tasks of the largest logit among its classes: what a classifier
    /// without preference for a task has equal everywhere. NaN where there is no other task.
    pub foreign: f64,
    /// Standard deviation of the latter over images.
    pub foreign_deviation: f64,
    /// Share of images of other tasks that this task wins.
    pub wins: f64,
}

/// [`TaskLogits`] of every task; `tasks` are the labels of each.
pub fn task_logits(table: &LogitTable, tasks: &[Range<usize>]) -> Vec<TaskLogits> {
    let predictions = table.predict();
    tasks
        .iter()
        .map(|labels| {
            let (mut own, mut foreign, mut wins) = (Vec::new(), Vec::new(), 0usize);
            for (i, &prediction) in predictions.iter().enumerate() {
                let block = &table.row(i)[labels.clone()];
                let top = f64::from(block.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                if labels.contains(&table.labels[i]) {
                    own.push(top);
                } else {
                    wins += usize::from(labels.contains(&prediction));
                    foreign.push(top);
                }
            }
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            let at = mean(&foreign);
            let squares: Vec<f64> = foreign.iter().map(|v| (v - at) * (v - at)).collect();
            TaskLogits {
                own: mean(&own),
                foreign: at,
                foreign_deviation: mean(&squares).sqrt(),
                wins: wins as f64 / foreign.len() as f64,
            }
        })
        .collect()
}

/// Euclidean length of every class's column of the classifier, and its bias.
///
/// # Errors
///
/// [`TrainError::Setting`] when the model has no such classifier.
pub fn head_norms(model: &Model, head: HeadKind) -> Result<Vec<(f64, f64)>, TrainError> {
    let (weight, bias) = model.linear_classifier(head)?;
    let [_, n_classes] = weight.dims();
    let bias: Vec<f32> = bias.into_data().iter::<f32>().collect();
    let mut squares = vec![0.0f64; n_classes];
    for (i, value) in weight.into_data().iter::<f32>().enumerate() {
        squares[i % n_classes] += f64::from(value) * f64::from(value);
    }
    Ok(squares
        .into_iter()
        .zip(bias)
        .map(|(square, bias)| (square.sqrt(), f64::from(bias)))
        .collect())
}

/// Euclidean length in double precision.
pub(super) fn length(row: &[f32]) -> f64 {
    row.iter()
        .map(|&v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        .sqrt()
}

fn argmax(values: &[f32]) -> usize {
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

    /// Two tasks of two classes; the second wins one image of the first.
    fn table() -> LogitTable {
        LogitTable {
            logits: vec![
                3.0, 1.0, 0.0, 2.0, // label 0, right
                0.0, 1.0, 4.0, 2.0, // label 1, lost to label 2
                1.0, 2.0, 5.0, 0.0, // label 2, right
                0.0, 0.0, 7.0, 6.0, // label 3, lost inside its task
            ],
            n_classes: 4,
            labels: vec![0, 1, 2, 3],
        }
    }

    #[test]
    fn a_task_id_leaves_only_the_errors_inside_a_task() {
        assert_eq!(table().predict(), [0, 2, 2, 2]);
        assert_eq!(table().predict_within(0..2), [0, 1, 1, 0]);
        assert_eq!(table().predict_within(2..4), [3, 2, 2, 2]);
    }

    #[test]
    fn own_and_foreign_logits_by_hand() {
        let tasks = task_logits(&table(), &[0..2, 2..4]);
        assert_eq!((tasks[0].own, tasks[0].foreign), (2.0, 1.0));
        assert_eq!((tasks[1].own, tasks[1].foreign), (6.0, 3.0));
        // Foreign tops of the second task are 2 and 4, of the first 2 and 0.
        assert_eq!(tasks[1].foreign_deviation, 1.0);
        assert_eq!((tasks[0].wins, tasks[1].wins), (0.0, 0.5));
    }

    #[test]
    fn one_task_has_no_foreign_images() {
        let only = task_logits(&table(), &[0..4]);
        assert!(only[0].foreign.is_nan() && only[0].own == 4.75);
    }
}
