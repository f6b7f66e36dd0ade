//! Accuracy on the seen tasks, after every task.

use crate::{AccuracyMatrix, mean};

/// After each trained task, the mean **over the tasks** seen so far; fractions, one entry per row.
///
/// An entry is `None` where its row is missing.
pub fn accuracy_curve(matrix: &AccuracyMatrix) -> Vec<Option<f64>> {
    (0..matrix.n_rows())
        .map(|after| mean(matrix.seen(after)?))
        .collect()
}

/// After each trained task, the accuracy **over all test images** of the classes seen so far; fractions, one entry
/// per row.
///
/// An entry is `None` where its row is missing, all are without test counts.
pub fn weighted_accuracy_curve(matrix: &AccuracyMatrix) -> Vec<Option<f64>> {
    (0..matrix.n_rows())
        .map(|after| mean_over_images(matrix.seen(after)?, matrix.test_counts()?))
        .collect()
}

/// `Σ n_j · acc_j / Σ n_j` over the tasks in `accuracies`; counts are positive, so only an empty row is undefined.
fn mean_over_images(accuracies: &[f64], test_counts: &[usize]) -> Option<f64> {
    let n_images: f64 = test_counts
        .iter()
        .take(accuracies.len())
        .map(|&count| count as f64)
        .sum();
    let n_right: f64 = accuracies
        .iter()
        .zip(test_counts)
        .map(|(accuracy, &count)| accuracy * count as f64)
        .sum();
    (n_images > 0.0).then(|| n_right / n_images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_follow_the_rows() {
        let mut matrix = AccuracyMatrix::new(3)
            .with_test_counts(vec![10, 30, 60])
            .unwrap();
        matrix.push_row(vec![0.9]).unwrap();
        matrix.push_missing_row().unwrap();
        matrix.push_row(vec![0.4, 0.5, 0.9]).unwrap();
        let curve = accuracy_curve(&matrix);
        assert_eq!(curve[..2], [Some(0.9), None]);
        assert!((curve[2].unwrap() - 0.6).abs() < 1e-15);
        let weighted = weighted_accuracy_curve(&matrix);
        assert_eq!(weighted[1], None);
        // (4 + 15 + 54) / 100
        assert!((weighted[2].unwrap() - 0.73).abs() < 1e-15);
    }

    #[test]
    fn tasks_not_yet_trained_do_not_count() {
        let mut matrix = AccuracyMatrix::new(2).with_test_counts(vec![1, 9]).unwrap();
        matrix.push_row(vec![0.8, 0.0]).unwrap();
        assert_eq!(accuracy_curve(&matrix), [Some(0.8)]);
        assert_eq!(weighted_accuracy_curve(&matrix), [Some(0.8)]);
    }

    #[test]
    fn no_task_has_no_mean_over_images() {
        assert_eq!(mean_over_images(&[], &[3]), None);
    }
}
