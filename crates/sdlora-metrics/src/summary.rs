//! All metrics of one run.

use serde::{Deserialize, Serialize};

use crate::AccuracyMatrix;

/// Name and value of one single-number metric, for tables.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Name of the field in [`Summary`].
    pub name: &'static str,
    /// What a reader sees, with what the mean runs over.
    pub label: &'static str,
    /// The value, `None` if undefined.
    pub value: Option<f64>,
}

/// Builds [`Summary`] from one line per metric, so that a new metric is a new file and a line here.
macro_rules! summary {
    (
        curves { $($(#[$curve_doc:meta])* $curve:ident: $curve_type:ty,)* }
        numbers { $($(#[$doc:meta])* $metric:ident: $label:literal,)* }
    ) => {
        /// All metrics of one run; differences and accuracies are fractions, `None` where undefined.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        pub struct Summary {
            /// Number of trained tasks, T.
            pub n_tasks: usize,
            $($(#[$doc])* pub $metric: Option<f64>,)*
            $($(#[$curve_doc])* pub $curve: $curve_type,)*
        }

        impl Summary {
            /// Computes every metric.
            pub fn of(matrix: &AccuracyMatrix) -> Self {
                Self {
                    n_tasks: matrix.n_rows(),
                    $($metric: crate::$metric(matrix),)*
                    $($curve: crate::$curve(matrix),)*
                }
            }

            /// The single-number metrics, in the order of the fields.
            pub fn metrics(&self) -> Vec<Metric> {
                vec![$(Metric { name: stringify!($metric), label: $label, value: self.$metric },)*]
            }
        }
    };
}

summary! {
    curves {
        /// After each task, mean **over the tasks** seen so far.
        accuracy_curve: Vec<Option<f64>>,
        /// After each task, accuracy **over the test images** of the seen classes.
        weighted_accuracy_curve: Vec<Option<f64>>,
        /// Terms of `forgetting`, one for each task but the last.
        forgetting_per_task: Option<Vec<f64>>,
    }
    numbers {
        /// Mean **over tasks** of the last row.
        final_average_accuracy: "final accuracy, over tasks",
        /// Accuracy **over all test images** after the last task.
        weighted_final_accuracy: "final accuracy, over images",
        /// Mean **over tasks** of `accuracy_curve`.
        average_anytime_accuracy: "average anytime accuracy, over tasks",
        /// Mean over tasks of `weighted_accuracy_curve`, whose entries are **over images**.
        weighted_average_anytime_accuracy: "average anytime accuracy, over images",
        /// Mean **over all tasks but the last** of best earlier accuracy minus final accuracy.
        forgetting: "forgetting, over tasks",
        /// As `forgetting`, the best including the final accuracy, so never negative; **over tasks**.
        forgetting_max_over_all: "forgetting from the best of all rows, over tasks",
        /// Mean **over all tasks but the last** of final accuracy minus accuracy just after training.
        backward_transfer: "backward transfer, over tasks",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_filled_and_survives_json() {
        let matrix = AccuracyMatrix::from_rows(vec![vec![0.75, 0.25], vec![0.5, 1.0]])
            .unwrap()
            .with_test_counts(vec![3, 1])
            .unwrap();
        let summary = Summary::of(&matrix);
        assert_eq!(summary.n_tasks, 2);
        assert_eq!(summary.accuracy_curve, [Some(0.75), Some(0.75)]);
        assert_eq!(summary.weighted_accuracy_curve, [Some(0.75), Some(0.625)]);
        assert_eq!(summary.forgetting_per_task, Some(vec![0.25]));
        let values: Vec<f64> = summary
            .metrics()
            .iter()
            .map(|metric| metric.value.unwrap())
            .collect();
        assert_eq!(values, [0.75, 0.625, 0.75, 0.6875, 0.25, 0.25, -0.25]);
        let json = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
    }

    #[test]
    fn undefined_metrics_are_null() {
        let summary = Summary::of(&AccuracyMatrix::from_last_row(vec![0.5, 0.75]).unwrap());
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["final_average_accuracy"], 0.625);
        assert!(json["forgetting"].is_null() && json["accuracy_curve"][0].is_null());
    }
}
