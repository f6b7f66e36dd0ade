//! Every accuracy matrix of the golden folder against the values beside it; percent there, fractions here.

// Clippy spares the unwraps of test functions only, not those of their helpers.
#![allow(clippy::unwrap_used)]

use sdlora_metrics::{AccuracyMatrix, Summary};
use sdlora_testkit::{Compared, MetricsCase, MetricsFile};

/// Stated in the golden folder's README, in percent.
const TOLERANCE: f64 = 1e-9;

#[test]
fn every_metric_of_every_case() {
    let mut compared = Compared::new("accuracy matrices");
    for case in MetricsFile::all().iter().flat_map(|file| &file.cases) {
        let summary = Summary::of(&matrix(case));
        let expected = &case.expected;
        let name = &case.name;

        let numbers = [
            (
                "final_average_accuracy",
                summary.final_average_accuracy,
                expected.final_average_accuracy,
            ),
            (
                "average_anytime_accuracy",
                summary.average_anytime_accuracy,
                expected.average_anytime_accuracy,
            ),
            (
                "weighted_final_accuracy",
                summary.weighted_final_accuracy,
                expected.weighted_final_accuracy,
            ),
            (
                "weighted_average_anytime_accuracy",
                summary.weighted_average_anytime_accuracy,
                expected.weighted_average_anytime_accuracy,
            ),
            ("forgetting", summary.forgetting, expected.forgetting),
            (
                "forgetting_max_over_all",
                summary.forgetting_max_over_all,
                expected.forgetting_max_over_all,
            ),
            (
                "backward_transfer",
                summary.backward_transfer,
                expected.backward_transfer,
            ),
        ];
        let mut n_stated = 0;
        for (metric, actual, expected) in numbers {
            if let Some(expected) = expected {
                n_stated += 1;
                compare(
                    &format!("case {name}: {metric}"),
                    actual.as_slice(),
                    expected.as_slice(),
                );
            }
        }

        let defined = |curve: &[Option<f64>]| curve.iter().copied().collect::<Option<Vec<f64>>>();
        let lists = [
            (
                "accuracy_curve",
                defined(&summary.accuracy_curve),
                &expected.accuracy_curve,
            ),
            (
                "weighted_accuracy_curve",
                defined(&summary.weighted_accuracy_curve),
                &expected.weighted_accuracy_curve,
            ),
            (
                "forgetting_per_task",
                summary.forgetting_per_task.clone(),
                &expected.forgetting_per_task,
            ),
        ];
        for (metric, actual, expected) in lists {
            let Some(expected) = expected else { continue };
            n_stated += 1;
            compare(
                &format!("case {name}: {metric}"),
                actual.as_deref().unwrap_or_default(),
                expected.as_deref().unwrap_or_default(),
            );
        }
        assert!(
            n_stated > 0,
            "case {name} states no metric that is known here"
        );
        compared.add(name);
    }
}

fn matrix(case: &MetricsCase) -> AccuracyMatrix {
    let fractions = |row: &Vec<f64>| row.iter().map(|percent| percent / 100.0).collect();
    let mut matrix =
        AccuracyMatrix::from_rows(case.accuracy.iter().map(fractions).collect()).unwrap();
    if let Some(test_counts) = &case.test_counts {
        matrix = matrix.with_test_counts(test_counts.clone()).unwrap();
    }
    matrix
}

/// Compares fractions with percentages; an undefined value is an empty slice on both sides.
fn compare(what: &str, actual: &[f64], expected: &[f64]) {
    assert_eq!(
        actual.len(),
        expected.len(),
        "{what}: actual {actual:?}, expected {expected:?} %"
    );
    for (actual, expected) in actual.iter().zip(expected) {
        assert!(
            (100.0 * actual - expected).abs() <= TOLERANCE,
            "{what}: actual {} %, expected {expected} %",
            100.0 * actual
        );
    }
}
