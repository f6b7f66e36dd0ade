//! Accuracy after the task trained last.

use crate::{AccuracyMatrix, mean, weighted_accuracy_curve};

/// Mean **over tasks** of the last row, `acc[T−1][j]`; a fraction.
///
/// `None` if the last row is missing or nothing was trained.
pub fn final_average_accuracy(matrix: &AccuracyMatrix) -> Option<f64> {
    mean(matrix.last_seen()?)
}

/// Accuracy **over all test images** of the seen classes after the task trained last; a fraction.
///
/// `None` without test counts, if the last row is missing, or nothing was trained.
pub fn weighted_final_accuracy(matrix: &AccuracyMatrix) -> Option<f64> {
    weighted_accuracy_curve(matrix).pop()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_and_images_weigh_differently() {
        let matrix = AccuracyMatrix::from_last_row(vec![0.5, 1.0])
            .unwrap()
            .with_test_counts(vec![30, 10])
            .unwrap();
        assert_eq!(final_average_accuracy(&matrix), Some(0.75));
        assert_eq!(weighted_final_accuracy(&matrix), Some(0.625));
    }

    #[test]
    fn undefined_without_counts_or_rows() {
        let matrix = AccuracyMatrix::from_last_row(vec![0.5, 1.0]).unwrap();
        assert_eq!(weighted_final_accuracy(&matrix), None);
        assert_eq!(final_average_accuracy(&AccuracyMatrix::new(3)), None);
    }

    #[test]
    fn a_running_experiment_counts_what_it_has_trained() {
        let mut matrix = AccuracyMatrix::new(5);
        matrix.push_row(vec![0.9, 0.0, 0.0, 0.0, 0.0]).unwrap();
        assert_eq!(final_average_accuracy(&matrix), Some(0.9));
    }
}
