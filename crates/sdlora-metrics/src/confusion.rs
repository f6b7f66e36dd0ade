//! Which class, or task, is taken for which.

use std::ops::Range;

use crate::MetricsError;

/// Counts of predictions: row = true label, column = predicted label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion {
    counts: Vec<usize>,
    n: usize,
}

impl Confusion {
    /// Counts predictions of `n` classes.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Pairs`] when the lists differ in length, [`MetricsError::Label`] when a
    /// label is not below `n`.
    pub fn of(labels: &[usize], predictions: &[usize], n: usize) -> Result<Self, MetricsError> {
        if labels.len() != predictions.len() {
            return Err(MetricsError::Pairs {
                n_labels: labels.len(),
                n_predictions: predictions.len(),
            });
        }
        let mut counts = vec![0; n * n];
        for (&label, &prediction) in labels.iter().zip(predictions) {
            if label >= n || prediction >= n {
                return Err(MetricsError::Label {
                    label: label.max(prediction),
                    n_classes: n,
                });
            }
            counts[label * n + prediction] += 1;
        }
        Ok(Self { counts, n })
    }

    /// Number of rows and of columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// How many samples of `label` were taken for `prediction`; 0 for labels that do not exist.
    pub fn count(&self, label: usize, prediction: usize) -> usize {
        if label < self.n && prediction < self.n {
            self.counts[label * self.n + prediction]
        } else {
            0
        }
    }

    /// Number of samples of a label.
    pub fn total(&self, label: usize) -> usize {
        (0..self.n).map(|j| self.count(label, j)).sum()
    }

    /// Share of the samples of a label that were taken for `prediction`, a fraction; `None` without
    /// samples.
    pub fn share(&self, label: usize, prediction: usize) -> Option<f64> {
        let total = self.total(label);
        (total > 0).then(|| self.count(label, prediction) as f64 / total as f64)
    }

    /// Share of right predictions over all samples, a fraction; `None` without samples.
    pub fn accuracy(&self) -> Option<f64> {
        let total: usize = self.counts.iter().sum();
        let hits: usize = (0..self.n).map(|i| self.count(i, i)).sum();
        (total > 0).then(|| hits as f64 / total as f64)
    }

    /// Share of right predictions of every class, a fraction; `None` for a class without samples.
    pub fn per_class_accuracy(&self) -> Vec<Option<f64>> {
        (0..self.n).map(|label| self.share(label, label)).collect()
    }

    /// Mean **over the classes** that have samples of [`per_class_accuracy`](Self::per_class_accuracy), a fraction;
    /// `None` without samples. A class counts the same however many samples it has.
    pub fn mean_class_accuracy(&self) -> Option<f64> {
        let of_classes: Vec<f64> = self.per_class_accuracy().into_iter().flatten().collect();
        crate::mean(&of_classes)
    }

    /// The same counts by group, for instance by task; `groups` are the labels of each. What lies in
    /// no group is left out.
    pub fn grouped(&self, groups: &[Range<usize>]) -> Self {
        let n = groups.len();
        let mut counts = vec![0; n * n];
        for (i, rows) in groups.iter().enumerate() {
            for (j, columns) in groups.iter().enumerate() {
                counts[i * n + j] = rows
                    .clone()
                    .flat_map(|row| columns.clone().map(move |column| (row, column)))
                    .map(|(row, column)| self.count(row, column))
                    .sum();
            }
        }
        Self { counts, n }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_shares_and_groups_by_hand() {
        let labels = [0, 0, 1, 2, 2, 3];
        let predictions = [0, 1, 2, 2, 0, 3];
        let confusion = Confusion::of(&labels, &predictions, 4).unwrap();
        assert_eq!(confusion.count(0, 1), 1);
        assert_eq!(confusion.total(2), 2);
        assert_eq!(confusion.share(2, 0), Some(0.5));
        assert_eq!(confusion.accuracy(), Some(0.5));
        assert_eq!(confusion.n(), 4);
        // Labels that do not exist, also the first such one, whose place in memory is that of (2, 0).
        assert_eq!(confusion.count(9, 0), 0);
        assert_eq!(confusion.count(4, 0), 0);
        assert_eq!((confusion.count(1, 4), confusion.count(2, 0)), (0, 1));
        let of_classes = [Some(0.5), Some(0.0), Some(0.5), Some(1.0)];
        assert_eq!(confusion.per_class_accuracy(), of_classes);
        assert_eq!(confusion.mean_class_accuracy(), Some(0.5));
        let tasks = confusion.grouped(&[0..2, 2..4]);
        assert_eq!(
            [
                tasks.count(0, 0),
                tasks.count(0, 1),
                tasks.count(1, 0),
                tasks.count(1, 1)
            ],
            [2, 1, 1, 2]
        );
        assert_eq!(tasks.accuracy(), Some(4.0 / 6.0));
    }

    #[test]
    fn nothing_has_no_shares() {
        let empty = Confusion::of(&[], &[], 2).unwrap();
        assert_eq!((empty.accuracy(), empty.share(0, 0)), (None, None));
        assert_eq!(empty.per_class_accuracy(), [None, None]);
        assert_eq!(empty.mean_class_accuracy(), None);
        // A class without samples is no class of accuracy 0.
        let one = Confusion::of(&[0], &[0], 2).unwrap();
        assert_eq!(one.mean_class_accuracy(), Some(1.0));
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        assert!(Confusion::of(&[0], &[], 2).is_err());
        let error = Confusion::of(&[0], &[2], 2).unwrap_err().to_string();
        assert!(error.contains("label 2"), "{error}");
    }
}
