//! Accuracy matrix of continual learning and the metrics derived from it.
//!
//! After every task the model is tested on the tasks it has seen; the results make the [`AccuracyMatrix`]
//! `acc[after][on]`. Each metric is a function of that matrix in a file of its own, and a field of [`Summary`].
//! Accuracies are fractions, 0 to 1, tasks count from 0, and T is the number of tasks trained so far
//! ([`AccuracyMatrix::n_rows`]), so every metric of a running experiment is that of the shorter stream.
//!
//! A mean may run over tasks or over images; published tables use both. Here every metric is a mean over tasks,
//! unless its name begins with `weighted_`: then each task counts by its number of test images.
//!
//! | metric | definition |
//! |---|---|
//! | [`final_average_accuracy`] | mean over tasks of `acc[T−1][j]` |
//! | [`accuracy_curve`] | entry i: mean over tasks `j ≤ i` of `acc[i][j]` |
//! | [`average_anytime_accuracy`] | mean of that curve |
//! | [`weighted_final_accuracy`], [`weighted_accuracy_curve`], [`weighted_average_anytime_accuracy`] | the same over images |
//! | [`forgetting`] | mean over `j < T−1` of the best of `acc[j..T−1][j]` minus `acc[T−1][j]`; may be negative |
//! | [`forgetting_max_over_all`] | the same, the best including the last row; never negative |
//! | [`backward_transfer`] | mean over `j < T−1` of `acc[T−1][j] − acc[j][j]` |
//!
//! Beside the matrix, [`Confusion`] counts which class or task is taken for which, and [`Calibration`] compares the
//! confidence of predictions with how often they are right. [`auroc`] and [`false_alarms`] say how well a score tells
//! strangers from samples of known classes.
//!
//! A metric is `None` where it is undefined: with one task there is no forgetting, without test counts no mean over
//! images, and a missing row leaves undefined whatever needs it.
//!
//! ```
//! use sdlora_metrics::{AccuracyMatrix, Summary};
//!
//! let mut matrix = AccuracyMatrix::new(3).with_test_counts(vec![10, 20, 10])?;
//! matrix.push_row(vec![0.90])?;
//! matrix.push_row(vec![0.80, 0.88])?;
//! matrix.push_row(vec![0.70, 0.84, 0.95])?;
//! let summary = Summary::of(&matrix);
//! assert!((summary.final_average_accuracy.unwrap() - 0.83).abs() < 1e-12);
//! assert!((summary.weighted_final_accuracy.unwrap() - 0.8325).abs() < 1e-12);
//! assert!((summary.forgetting.unwrap() - 0.12).abs() < 1e-12);
//! # Ok::<(), sdlora_metrics::MetricsError>(())
//! ```

#![forbid(unsafe_code)]

mod accuracy_curve;
mod anytime_accuracy;
mod backward_transfer;
mod calibration;
mod confusion;
mod csv;
mod error;
mod final_accuracy;
mod forgetting;
mod matrix;
mod separation;
mod stats;
mod summary;

pub use accuracy_curve::{accuracy_curve, weighted_accuracy_curve};
pub use anytime_accuracy::{average_anytime_accuracy, weighted_average_anytime_accuracy};
pub use backward_transfer::backward_transfer;
pub use calibration::{Calibration, ReliabilityBin};
pub use confusion::Confusion;
pub use csv::{from_csv, to_csv};
pub use error::MetricsError;
pub use final_accuracy::{final_average_accuracy, weighted_final_accuracy};
pub use forgetting::{forgetting, forgetting_max_over_all, forgetting_per_task};
pub use matrix::AccuracyMatrix;
pub use separation::{auroc, false_alarms};
pub use stats::{Spread, mean, standard_error};
pub use summary::{Metric, Summary};
