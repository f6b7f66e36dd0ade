//! Errors of this crate.

use thiserror::Error;

/// What can be wrong with an accuracy matrix or with values to be summarised.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MetricsError {
    /// An entry of the matrix is NaN or outside 0..=1.
    #[error(
        "accuracy {value} on task {on} after task {after} is not within 0..=1: pass fractions, not percentages"
    )]
    Accuracy {
        /// Task after which was tested.
        after: usize,
        /// Task that was tested.
        on: usize,
        /// The refused value.
        value: f64,
    },
    /// A row has neither one entry per seen task nor one per task.
    #[error(
        "the row after task {after} has {found} entries: give {} (seen tasks) or {n_tasks} (all tasks)", .after + 1
    )]
    RowLength {
        /// Task after which was tested.
        after: usize,
        /// Length of the refused row.
        found: usize,
        /// Number of tasks of the matrix.
        n_tasks: usize,
    },
    /// There is a row for every task already.
    #[error(
        "the matrix already has rows for all its {n_tasks} tasks: make it with as many tasks as it has rows"
    )]
    TooManyRows {
        /// Number of tasks of the matrix.
        n_tasks: usize,
    },
    /// A list with one entry per task has another length.
    #[error("{what} has {found} entries for {n_tasks} tasks: give one per task")]
    ListLength {
        /// `test counts`.
        what: &'static str,
        /// Length of the refused list.
        found: usize,
        /// Number of tasks it should cover.
        n_tasks: usize,
    },
    /// A task has no test image.
    #[error(
        "task {on} has no test image: leave the test counts out or give each task at least one image"
    )]
    ZeroCount {
        /// The task.
        on: usize,
    },
    /// A line of a CSV file is not of the form that [`to_csv`](crate::to_csv) writes.
    #[error("line {line} of the accuracy matrix: {problem}")]
    Csv {
        /// Line, from 1.
        line: usize,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// Labels and predictions are not pairs.
    #[error("{n_labels} labels have {n_predictions} predictions: give one for each")]
    Pairs {
        /// Number of labels.
        n_labels: usize,
        /// Number of predictions.
        n_predictions: usize,
    },
    /// A label or prediction names no class.
    #[error("label {label} is none of {n_classes} classes: labels count from 0")]
    Label {
        /// The refused label.
        label: usize,
        /// Number of classes.
        n_classes: usize,
    },
    /// A confidence is NaN or outside 0..=1.
    #[error("confidence {value} of prediction {idx} is not within 0..=1: pass a probability")]
    Confidence {
        /// Position of the prediction.
        idx: usize,
        /// The refused value.
        value: f64,
    },
    /// There is no value to take a mean of.
    #[error("there is no value to take the mean of: give at least one run")]
    NoValue,
    /// A value to be averaged is NaN or infinite.
    #[error("value {value} of run {run_idx} is not finite: leave failed runs out")]
    NotFinite {
        /// Position of the value.
        run_idx: usize,
        /// The refused value.
        value: f64,
    },
}
