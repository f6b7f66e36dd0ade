//! Facts that hold for every accuracy matrix.

// Clippy spares the unwraps of test functions only, not those of their helpers.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use sdlora_metrics::{AccuracyMatrix, MetricsError, Spread, Summary, from_csv, to_csv};

/// Full or lower-triangular matrices of 1 to 8 tasks, some with counts.
fn matrices() -> impl Strategy<Value = AccuracyMatrix> {
    (1usize..=8, any::<bool>(), any::<bool>()).prop_flat_map(|(n_tasks, full, counted)| {
        let rows: Vec<_> = (0..n_tasks)
            .map(|after| {
                prop::collection::vec(0.0..=1.0f64, if full { n_tasks } else { after + 1 })
            })
            .collect();
        (rows, prop::collection::vec(1usize..500, n_tasks)).prop_map(move |(rows, counts)| {
            let matrix = AccuracyMatrix::from_rows(rows).unwrap();
            if counted {
                matrix.with_test_counts(counts).unwrap()
            } else {
                matrix
            }
        })
    })
}

/// The matrix with each seen accuracy replaced; entries above the diagonal are dropped.
fn map_seen(matrix: &AccuracyMatrix, map: impl Fn(usize, usize, f64) -> f64) -> AccuracyMatrix {
    let rows = (0..matrix.n_rows())
        .map(|after| {
            let seen = matrix.seen(after).unwrap().iter().enumerate();
            seen.map(|(on, &value)| map(after, on, value)).collect()
        })
        .collect();
    AccuracyMatrix::from_rows(rows).unwrap()
}

fn close(left: Option<f64>, right: Option<f64>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => (left - right).abs() < 1e-12,
        (left, right) => left == right,
    }
}

proptest! {
    #[test]
    fn a_constant_matrix_forgets_nothing(n_tasks in 2usize..10, value in 0.0..=1.0f64) {
        let rows = (0..n_tasks).map(|after| vec![value; after + 1]).collect();
        let summary = Summary::of(&AccuracyMatrix::from_rows(rows).unwrap());
        prop_assert_eq!(summary.forgetting, Some(0.0));
        prop_assert_eq!(summary.forgetting_max_over_all, Some(0.0));
        prop_assert_eq!(summary.backward_transfer, Some(0.0));
        prop_assert!(close(summary.final_average_accuracy, Some(value)));
        prop_assert!(close(summary.average_anytime_accuracy, Some(value)));
    }

    #[test]
    fn equal_counts_weigh_like_tasks(matrix in matrices(), count in 1usize..1000) {
        let n_tasks = matrix.n_tasks();
        let summary = Summary::of(&matrix.with_test_counts(vec![count; n_tasks]).unwrap());
        prop_assert!(close(summary.weighted_final_accuracy, summary.final_average_accuracy));
        prop_assert!(close(summary.weighted_average_anytime_accuracy, summary.average_anytime_accuracy));
        for (weighted, plain) in summary.weighted_accuracy_curve.iter().zip(&summary.accuracy_curve) {
            prop_assert!(close(*weighted, *plain));
        }
    }

    #[test]
    fn only_the_ratio_of_counts_matters(matrix in matrices(), factor in 2usize..50) {
        let counts: Vec<usize> = (1..=matrix.n_tasks()).collect();
        let scaled = counts.iter().map(|count| count * factor).collect();
        let once = Summary::of(&matrix.clone().with_test_counts(counts).unwrap());
        let times = Summary::of(&matrix.with_test_counts(scaled).unwrap());
        prop_assert!(close(once.weighted_final_accuracy, times.weighted_final_accuracy));
        prop_assert!(close(once.weighted_average_anytime_accuracy, times.weighted_average_anytime_accuracy));
    }

    #[test]
    fn the_order_of_tasks_in_the_last_row_does_not_move_final_accuracy(
        row in prop::collection::vec((0.0..=1.0f64, 1usize..500), 1..10),
        seed in any::<prop::sample::Index>(),
    ) {
        let summary = |row: &[(f64, usize)]| {
            let (accuracies, counts): (Vec<f64>, Vec<usize>) = row.iter().copied().unzip();
            let matrix = AccuracyMatrix::from_last_row(accuracies).unwrap();
            Summary::of(&matrix.with_test_counts(counts).unwrap())
        };
        let mut permuted = row.clone();
        permuted.rotate_left(seed.index(row.len()));
        permuted.reverse();
        let (before, after) = (summary(&row), summary(&permuted));
        prop_assert!(close(before.final_average_accuracy, after.final_average_accuracy));
        prop_assert!(close(before.weighted_final_accuracy, after.weighted_final_accuracy));
    }

    #[test]
    fn the_two_kinds_of_forgetting_are_ordered(matrix in matrices()) {
        let summary = Summary::of(&matrix);
        prop_assert_eq!(summary.forgetting.is_none(), matrix.n_tasks() == 1);
        if let (Some(earlier), Some(all), Some(transfer)) =
            (summary.forgetting, summary.forgetting_max_over_all, summary.backward_transfer)
        {
            prop_assert!(all >= 0.0 && all >= earlier - 1e-12);
            // The best earlier accuracy is at least the diagonal.
            prop_assert!(earlier >= -transfer - 1e-12);
            prop_assert!((-1.0..=1.0).contains(&earlier) && (-1.0..=1.0).contains(&transfer));
        }
    }

    #[test]
    fn a_falling_column_makes_forgetting_the_negative_of_backward_transfer(matrix in matrices()) {
        let falling = map_seen(&matrix, |after, on, _| 1.0 / (1 + after - on) as f64);
        let summary = Summary::of(&falling);
        prop_assert!(close(summary.forgetting, summary.backward_transfer.map(|transfer| -transfer)));
        prop_assert!(close(summary.forgetting, summary.forgetting_max_over_all));
    }

    #[test]
    fn a_shift_moves_accuracies_and_no_difference(matrix in matrices()) {
        let low = map_seen(&matrix, |_, _, value| 0.5 * value);
        let high = map_seen(&matrix, |_, _, value| 0.5 * value + 0.25);
        let (low, high) = (Summary::of(&low), Summary::of(&high));
        prop_assert!(close(low.final_average_accuracy.map(|value| value + 0.25), high.final_average_accuracy));
        prop_assert!(close(low.average_anytime_accuracy.map(|value| value + 0.25), high.average_anytime_accuracy));
        prop_assert!(close(low.forgetting, high.forgetting));
        prop_assert!(close(low.forgetting_max_over_all, high.forgetting_max_over_all));
        prop_assert!(close(low.backward_transfer, high.backward_transfer));
    }

    #[test]
    fn entries_above_the_diagonal_change_nothing(matrix in matrices()) {
        let lower = map_seen(&matrix, |_, _, value| value);
        let lower = match matrix.test_counts() {
            Some(counts) => lower.with_test_counts(counts.to_vec()).unwrap(),
            None => lower,
        };
        prop_assert_eq!(Summary::of(&lower), Summary::of(&matrix));
    }

    #[test]
    fn a_running_experiment_is_the_shorter_stream(matrix in matrices(), at in any::<prop::sample::Index>()) {
        let matrix = map_seen(&matrix, |_, _, value| value);
        let n_rows = 1 + at.index(matrix.n_rows());
        let rows: Vec<Vec<f64>> = (0..n_rows).map(|after| matrix.row(after).unwrap().to_vec()).collect();
        let mut running = AccuracyMatrix::new(matrix.n_tasks());
        for row in rows.clone() {
            running.push_row(row).unwrap();
        }
        let short = AccuracyMatrix::from_rows(rows).unwrap();
        prop_assert_eq!(Summary::of(&running), Summary::of(&short));
    }

    #[test]
    fn csv_and_json_read_back(matrix in matrices()) {
        let from_json: AccuracyMatrix = serde_json::from_str(&serde_json::to_string(&matrix).unwrap()).unwrap();
        prop_assert_eq!(from_json.test_counts(), matrix.test_counts());
        let from_csv = from_csv(&to_csv(&matrix)).unwrap();
        for after in 0..matrix.n_rows() {
            prop_assert_eq!(from_csv.row(after), matrix.row(after));
            // The JSON reader may be off by one unit in the last place.
            for on in 0..matrix.n_tasks() {
                prop_assert!(close(from_json.get(after, on), matrix.get(after, on)));
            }
        }
    }

    #[test]
    fn text_never_panics(text in "[after_task0-9,.\\-\\nNa ]{0,80}") {
        let _ = from_csv(&text);
        let _ = from_csv(&format!("after_task,0,1,2\n{text}"));
    }

    #[test]
    fn what_is_not_a_fraction_is_refused(value in prop::num::f64::ANY) {
        let result = AccuracyMatrix::from_rows(vec![vec![value]]);
        if (0.0..=1.0).contains(&value) {
            prop_assert!(result.is_ok());
        } else {
            let is_accuracy_error = matches!(result, Err(MetricsError::Accuracy { .. }));
            prop_assert!(is_accuracy_error);
        }
    }

    #[test]
    fn the_error_of_the_mean_follows_scale_and_not_shift(
        values in prop::collection::vec(-10.0..10.0f64, 2..10),
        shift in -10.0..10.0f64,
        scale in 0.1..10.0f64,
    ) {
        let moved: Vec<f64> = values.iter().map(|value| scale * value + shift).collect();
        let (before, after) = (Spread::of(&values).unwrap(), Spread::of(&moved).unwrap());
        prop_assert!((scale * before.mean + shift - after.mean).abs() < 1e-9);
        prop_assert!((scale * before.standard_error.unwrap() - after.standard_error.unwrap()).abs() < 1e-9);
    }
}
