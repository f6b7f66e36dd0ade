//! The accuracy matrix `acc[after][on]`: accuracy on task `on` after training task `after`.

use serde::{Deserialize, Serialize};

use crate::MetricsError;

/// Accuracies of one run, fractions 0 to 1, one row for each trained task.
///
/// Row `after` has one entry per seen task (`after + 1`), or one per task where tasks not yet trained were tested
/// too. A row may be missing: a run on all tasks at once knows only its last row. Entries of a row may be missing, of
/// tasks whose test images are gone. What the matrix holds is checked whenever it is built, extended or read.
///
/// Serialised as `{"n_tasks", "acc": [[…], null, …], "test_counts"}`, a missing entry as `null`; the last is left out
/// where unknown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawMatrix", into = "RawMatrix")]
pub struct AccuracyMatrix {
    n_tasks: usize,
    rows: Vec<Option<Row>>,
    test_counts: Option<Vec<usize>>,
}

/// The accuracies after a task.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    /// One for each task, 0 where it is missing.
    values: Vec<f64>,
    /// Tasks that were not tested, ascending.
    missing: Vec<usize>,
}

impl AccuracyMatrix {
    /// A matrix for `n_tasks` tasks, without rows.
    pub fn new(n_tasks: usize) -> Self {
        Self {
            n_tasks,
            rows: Vec::new(),
            test_counts: None,
        }
    }

    /// A matrix of as many tasks as there are rows.
    ///
    /// # Errors
    ///
    /// As [`AccuracyMatrix::push_row`].
    pub fn from_rows(rows: Vec<Vec<f64>>) -> Result<Self, MetricsError> {
        let mut matrix = Self::new(rows.len());
        for row in rows {
            matrix.push_row(row)?;
        }
        Ok(matrix)
    }

    /// A matrix of which only the last row is known, as that of a run on all tasks at once; one entry per task.
    ///
    /// # Errors
    ///
    /// If an accuracy is NaN or outside 0..=1.
    pub fn from_last_row(row: Vec<f64>) -> Result<Self, MetricsError> {
        let mut matrix = Self::new(row.len());
        for _ in 1..row.len() {
            matrix.push_missing_row()?;
        }
        if !row.is_empty() {
            matrix.push_row(row)?;
        }
        Ok(matrix)
    }

    /// Adds the number of test images of each task, which the means over images need.
    ///
    /// # Errors
    ///
    /// If there is not one count per task, or a count is 0.
    pub fn with_test_counts(mut self, test_counts: Vec<usize>) -> Result<Self, MetricsError> {
        check_length("test counts", test_counts.len(), self.n_tasks)?;
        check_counts(&test_counts)?;
        self.test_counts = Some(test_counts);
        Ok(self)
    }

    /// Adds the row of the next task: one accuracy per seen task, or one per task.
    ///
    /// # Errors
    ///
    /// If the row has another length, an accuracy is NaN or outside 0..=1, or all tasks have their row. The matrix
    /// is then as before.
    pub fn push_row(&mut self, row: Vec<f64>) -> Result<(), MetricsError> {
        self.push_measured(row.into_iter().map(Some).collect())
    }

    /// As [`push_row`](Self::push_row), with `None` for tasks that could not be tested.
    ///
    /// # Errors
    ///
    /// Those of [`push_row`](Self::push_row).
    pub fn push_measured(&mut self, row: Vec<Option<f64>>) -> Result<(), MetricsError> {
        let after = self.next_task()?;
        let missing: Vec<usize> = (0..row.len()).filter(|&on| row[on].is_none()).collect();
        let row: Vec<f64> = row.into_iter().map(Option::unwrap_or_default).collect();
        if row.len() != after + 1 && row.len() != self.n_tasks {
            return Err(MetricsError::RowLength {
                after,
                found: row.len(),
                n_tasks: self.n_tasks,
            });
        }
        if let Some((on, value)) = first_outside(&row) {
            return Err(MetricsError::Accuracy { after, on, value });
        }
        let values = row;
        self.rows.push(Some(Row { values, missing }));
        Ok(())
    }

    /// Notes that nothing was tested after the next task.
    ///
    /// # Errors
    ///
    /// If all tasks have their row.
    pub fn push_missing_row(&mut self) -> Result<(), MetricsError> {
        self.next_task()?;
        self.rows.push(None);
        Ok(())
    }

    /// The matrix of the same tasks and test images before any row.
    #[must_use]
    pub fn without_rows(&self) -> Self {
        Self {
            n_tasks: self.n_tasks,
            rows: Vec::new(),
            test_counts: self.test_counts.clone(),
        }
    }

    /// This matrix with room for more tasks, of which `test_counts` has the test images; 0 where they are gone and
    /// the matrix knows how many there were.
    ///
    /// # Errors
    ///
    /// As [`with_test_counts`](Self::with_test_counts), and for fewer tasks than there are.
    pub fn grown(mut self, test_counts: &[usize]) -> Result<Self, MetricsError> {
        if test_counts.len() < self.n_tasks {
            return check_length("test counts", test_counts.len(), self.n_tasks).map(|()| self);
        }
        let known = self.test_counts.take().unwrap_or_default();
        let counts: Vec<usize> = test_counts
            .iter()
            .enumerate()
            .map(|(on, &count)| known.get(on).copied().unwrap_or(count))
            .collect();
        self.n_tasks = counts.len();
        self.with_test_counts(counts)
    }

    /// Number of tasks of the stream, trained or not.
    pub fn n_tasks(&self) -> usize {
        self.n_tasks
    }

    /// Number of tasks trained so far, T in all metrics; missing rows count.
    pub fn n_rows(&self) -> usize {
        self.rows.len()
    }

    /// Whether every task has been trained.
    pub fn is_complete(&self) -> bool {
        self.n_rows() == self.n_tasks
    }

    /// Accuracies after task `after`, `None` if that row or an entry of it is missing, or not there yet.
    pub fn row(&self, after: usize) -> Option<&[f64]> {
        let row = self.rows.get(after)?.as_ref()?;
        row.missing.is_empty().then_some(&row.values)
    }

    /// Accuracies on the seen tasks after task `after`: the first `after + 1` entries of its row. `None` if one of
    /// them is missing.
    pub fn seen(&self, after: usize) -> Option<&[f64]> {
        let row = self.rows.get(after)?.as_ref()?;
        let is_whole = row.missing.first().is_none_or(|&on| on > after);
        is_whole.then(|| row.values.get(..=after)).flatten()
    }

    /// Accuracies after task `after`, `None` for tasks that were not tested; empty if the row is missing.
    pub fn measured(&self, after: usize) -> Vec<Option<f64>> {
        let row = self.rows.get(after).and_then(Option::as_ref);
        row.map(|row| (0..row.values.len()).map(|on| row.get(on)).collect())
            .unwrap_or_default()
    }

    /// Accuracies on the seen tasks after the task trained last.
    pub fn last_seen(&self) -> Option<&[f64]> {
        self.seen(self.n_rows().checked_sub(1)?)
    }

    /// Accuracy on task `on` after task `after`, `None` if it was not tested.
    pub fn get(&self, after: usize, on: usize) -> Option<f64> {
        self.rows.get(after)?.as_ref()?.get(on)
    }

    /// Number of test images of each task.
    pub fn test_counts(&self) -> Option<&[usize]> {
        self.test_counts.as_deref()
    }

    fn next_task(&self) -> Result<usize, MetricsError> {
        if self.is_complete() {
            return Err(MetricsError::TooManyRows {
                n_tasks: self.n_tasks,
            });
        }
        Ok(self.n_rows())
    }
}

impl Row {
    fn get(&self, on: usize) -> Option<f64> {
        let value = self.values.get(on).copied();
        value.filter(|_| self.missing.binary_search(&on).is_err())
    }
}

/// The matrix as it is written, before its checks.
#[derive(Serialize, Deserialize)]
struct RawMatrix {
    n_tasks: usize,
    acc: Vec<Option<Vec<Option<f64>>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    test_counts: Option<Vec<usize>>,
}

impl TryFrom<RawMatrix> for AccuracyMatrix {
    type Error = MetricsError;

    fn try_from(raw: RawMatrix) -> Result<Self, MetricsError> {
        let mut matrix = Self::new(raw.n_tasks);
        for row in raw.acc {
            match row {
                Some(row) => matrix.push_measured(row)?,
                None => matrix.push_missing_row()?,
            }
        }
        if let Some(test_counts) = raw.test_counts {
            matrix = matrix.with_test_counts(test_counts)?;
        }
        Ok(matrix)
    }
}

impl From<AccuracyMatrix> for RawMatrix {
    fn from(matrix: AccuracyMatrix) -> Self {
        let acc = (0..matrix.n_rows()).map(|after| {
            let row = matrix.rows[after].as_ref();
            row.map(|_| matrix.measured(after))
        });
        Self {
            n_tasks: matrix.n_tasks,
            acc: acc.collect(),
            test_counts: matrix.test_counts,
        }
    }
}

fn first_outside(accuracies: &[f64]) -> Option<(usize, f64)> {
    // NaN is in no range, so it is found too.
    let is_outside = |value: &f64| !(0.0..=1.0).contains(value);
    let on = accuracies.iter().position(is_outside)?;
    Some((on, accuracies[on]))
}

fn check_length(what: &'static str, found: usize, n_tasks: usize) -> Result<(), MetricsError> {
    if found == n_tasks {
        return Ok(());
    }
    Err(MetricsError::ListLength {
        what,
        found,
        n_tasks,
    })
}

fn check_counts(counts: &[usize]) -> Result<(), MetricsError> {
    match counts.iter().position(|&count| count == 0) {
        Some(on) => Err(MetricsError::ZeroCount { on }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown() -> AccuracyMatrix {
        AccuracyMatrix::from_rows(vec![vec![0.9], vec![0.8, 0.88], vec![0.7, 0.84, 0.95]]).unwrap()
    }

    #[test]
    fn a_matrix_without_rows_is_of_the_same_tasks() {
        let whole = grown().with_test_counts(vec![1, 2, 3]).unwrap();
        let mut empty = whole.without_rows();
        assert_eq!((empty.n_tasks(), empty.n_rows()), (3, 0));
        for after in 0..3 {
            empty.push_row(whole.row(after).unwrap().to_vec()).unwrap();
        }
        assert_eq!(empty, whole);
    }

    #[test]
    fn rows_are_seen_tasks_or_all_tasks() {
        let mut matrix = AccuracyMatrix::new(3);
        matrix.push_row(vec![0.9, 0.1, 0.2]).unwrap();
        let error = matrix.push_row(vec![0.5]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the row after task 1 has 1 entries: give 2 (seen tasks) or 3 (all tasks)"
        );
        matrix.push_row(vec![0.8, 0.7]).unwrap();
        assert!(!matrix.is_complete());
        matrix.push_missing_row().unwrap();
        assert!(matrix.is_complete());
        assert!(matches!(
            matrix.push_row(vec![0.1; 4]),
            Err(MetricsError::TooManyRows { n_tasks: 3 })
        ));
        assert_eq!(matrix.seen(0), Some([0.9].as_slice()));
        assert_eq!(matrix.get(0, 2), Some(0.2));
        assert_eq!(matrix.get(1, 2), None);
        assert_eq!(matrix.row(2), None);
        assert_eq!(matrix.last_seen(), None);
    }

    #[test]
    fn an_entry_that_is_missing_is_neither_0_nor_part_of_a_mean() {
        let mut matrix = AccuracyMatrix::new(1).with_test_counts(vec![4]).unwrap();
        matrix.push_row(vec![0.75]).unwrap();
        // The images of the first task are gone.
        let mut matrix = matrix.grown(&[0, 6]).unwrap();
        assert_eq!(
            (matrix.n_tasks(), matrix.test_counts()),
            (2, Some(&[4, 6][..]))
        );
        matrix.push_measured(vec![None, Some(0.5)]).unwrap();
        assert_eq!((matrix.get(1, 0), matrix.get(1, 1)), (None, Some(0.5)));
        assert_eq!((matrix.row(1), matrix.seen(1)), (None, None));
        assert_eq!(matrix.measured(1), [None, Some(0.5)]);
        assert_eq!(crate::final_average_accuracy(&matrix), None);
        assert_eq!(crate::weighted_final_accuracy(&matrix), None);
        assert_eq!(crate::forgetting(&matrix), None);
        assert_eq!(crate::accuracy_curve(&matrix), [Some(0.75), None]);
        let json = serde_json::to_string(&matrix).unwrap();
        assert!(json.contains("[null,0.5]"), "{json}");
        assert_eq!(
            serde_json::from_str::<AccuracyMatrix>(&json).unwrap(),
            matrix
        );
        assert!(matrix.clone().grown(&[4]).is_err(), "no task goes");
        assert!(matrix.grown(&[4, 6, 0]).is_err(), "a new task has images");
    }

    #[test]
    fn a_refused_row_leaves_the_matrix_as_it_was() {
        for bad in [f64::NAN, f64::INFINITY, -0.001, 93.5] {
            let mut matrix = AccuracyMatrix::new(4);
            for after in 0..3 {
                matrix.push_row(vec![0.5; after + 1]).unwrap();
            }
            let before = matrix.clone();
            let error = matrix.push_row(vec![0.1, 0.2, bad, 0.4]).unwrap_err();
            assert!(
                matches!(
                    error,
                    MetricsError::Accuracy {
                        after: 3,
                        on: 2,
                        ..
                    }
                ),
                "{error}"
            );
            assert_eq!(matrix, before);
        }
    }

    #[test]
    fn counts_are_one_per_task() {
        assert!(matches!(
            grown().with_test_counts(vec![1, 2]),
            Err(MetricsError::ListLength {
                found: 2,
                n_tasks: 3,
                ..
            })
        ));
        assert!(matches!(
            grown().with_test_counts(vec![1, 0, 2]),
            Err(MetricsError::ZeroCount { on: 1 })
        ));
        assert!(grown().with_test_counts(vec![1, 2, 3]).is_ok());
    }

    #[test]
    fn only_the_last_row() {
        let matrix = AccuracyMatrix::from_last_row(vec![0.5, 0.6]).unwrap();
        assert_eq!(matrix.row(0), None);
        assert_eq!(matrix.last_seen(), Some([0.5, 0.6].as_slice()));
        assert_eq!(AccuracyMatrix::from_last_row(vec![]).unwrap().n_tasks(), 0);
    }

    #[test]
    fn json_is_checked_like_everything_else() {
        let json = serde_json::to_string(&AccuracyMatrix::from_last_row(vec![0.5, 0.25]).unwrap())
            .unwrap();
        assert_eq!(json, r#"{"n_tasks":2,"acc":[null,[0.5,0.25]]}"#);
        for (bad, message) in [
            (
                r#"{"n_tasks":1,"acc":[[0.5],[0.5,0.5]]}"#,
                "already has rows",
            ),
            (r#"{"n_tasks":3,"acc":[[0.5,0.5]]}"#, "has 2 entries"),
            (r#"{"n_tasks":1,"acc":[[50.0]]}"#, "not within 0..=1"),
            (
                r#"{"n_tasks":1,"acc":[],"test_counts":[0]}"#,
                "no test image",
            ),
            (
                r#"{"n_tasks":1,"acc":[],"test_counts":[1,2]}"#,
                "2 entries for 1 tasks",
            ),
        ] {
            let error = serde_json::from_str::<AccuracyMatrix>(bad).unwrap_err();
            assert!(error.to_string().contains(message), "{bad}: {error}");
        }
    }
}
