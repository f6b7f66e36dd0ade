//! Logits on the host, and how they are shared out over the tasks of the head.

use std::ops::Range;

use crate::features::{FeatureTable, length};
use crate::heads::{Classifier, argmax};

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
    /// Logits of a table of features.
    pub fn of(classifier: &Classifier, table: &FeatureTable) -> Self {
        Self {
            logits: classifier.logits(table),
            n_classes: classifier.n_classes(),
            labels: table.labels.clone(),
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

/// Euclidean length of every class's row of the classifier, and its bias; `None` where logits are not
/// linear in the features.
pub fn head_norms(classifier: &Classifier) -> Option<Vec<(f64, f64)>> {
    let (rows, bias) = classifier.as_linear()?;
    let d_model = rows.len() / bias.len().max(1);
    let lengths = rows.chunks_exact(d_model.max(1)).map(length);
    Some(lengths.zip(bias.iter().map(|&b| f64::from(b))).collect())
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
    fn lengths_of_rows_by_hand() {
        let rows = vec![3.0, 4.0, 0.0, 2.0];
        let norms = head_norms(&Classifier::linear(rows, 2, Some(vec![0.5, -1.0]))).unwrap();
        assert_eq!(norms, [(5.0, 0.5), (2.0, -1.0)]);
    }

    #[test]
    fn one_task_has_no_foreign_images() {
        let only = task_logits(&table(), &[0..4]);
        assert!(only[0].foreign.is_nan() && only[0].own == 4.75);
    }
}
