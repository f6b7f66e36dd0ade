//! Average anytime accuracy (AAA): how good the model was on what it had seen, averaged over its life.

use crate::{AccuracyMatrix, accuracy_curve, mean, weighted_accuracy_curve};

/// Mean over the trained tasks of the [`accuracy_curve`], whose entries are means **over tasks**; a fraction.
///
/// `None` if a row is missing or nothing was trained.
pub fn average_anytime_accuracy(matrix: &AccuracyMatrix) -> Option<f64> {
    mean_of_curve(accuracy_curve(matrix))
}

/// Mean over the trained tasks of the [`weighted_accuracy_curve`], whose entries are accuracies **over images**; a
/// fraction. The outer mean gives every task the same weight.
///
/// `None` without test counts, if a row is missing, or nothing was trained.
pub fn weighted_average_anytime_accuracy(matrix: &AccuracyMatrix) -> Option<f64> {
    mean_of_curve(weighted_accuracy_curve(matrix))
}

fn mean_of_curve(curve: Vec<Option<f64>>) -> Option<f64> {
    let values: Option<Vec<f64>> = curve.into_iter().collect();
    mean(&values?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_is_averaged() {
        let matrix = AccuracyMatrix::from_rows(vec![vec![1.0], vec![0.5, 1.0]])
            .unwrap()
            .with_test_counts(vec![3, 1])
            .unwrap();
        assert_eq!(average_anytime_accuracy(&matrix), Some(0.875));
        assert_eq!(weighted_average_anytime_accuracy(&matrix), Some(0.8125));
    }

    #[test]
    fn undefined_with_a_missing_row() {
        let matrix = AccuracyMatrix::from_last_row(vec![0.5, 1.0]).unwrap();
        assert_eq!(average_anytime_accuracy(&matrix), None);
        assert_eq!(average_anytime_accuracy(&AccuracyMatrix::new(1)), None);
    }
}
