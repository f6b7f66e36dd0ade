//! Forgetting: how far the accuracy on a task has fallen below its best.

use crate::{AccuracyMatrix, mean};

/// Mean **over all tasks but the last** of best earlier accuracy minus final accuracy; a difference of fractions,
/// −1 to 1.
///
/// The best is taken over rows `j..T−1`, without the last, so a task that ends better than it ever was counts as
/// negative forgetting (Chaudhry et al. 2018, "Riemannian walk for incremental learning", equation 3).
/// `None` with fewer than two tasks or a missing row.
pub fn forgetting(matrix: &AccuracyMatrix) -> Option<f64> {
    mean(&forgetting_per_task(matrix)?)
}

/// The terms of [`forgetting`], one for each trained task but the last; empty with one task.
///
/// `None` if a row is missing or nothing was trained.
pub fn forgetting_per_task(matrix: &AccuracyMatrix) -> Option<Vec<f64>> {
    let last = matrix.n_rows().checked_sub(1)?;
    matrix.seen(last)?;
    (0..last)
        .map(|on| best_minus_final(matrix, on, last, last))
        .collect()
}

/// As [`forgetting`] with the best taken over all rows including the last: each term, and so the mean **over all
/// tasks but the last**, is 0 to 1.
///
/// `None` with fewer than two tasks or a missing row.
pub fn forgetting_max_over_all(matrix: &AccuracyMatrix) -> Option<f64> {
    let last = matrix.n_rows().checked_sub(1)?;
    let terms: Option<Vec<f64>> = (0..last)
        .map(|on| best_minus_final(matrix, on, last + 1, last))
        .collect();
    mean(&terms?)
}

/// Best of `acc[on..end][on]` minus `acc[last][on]`.
fn best_minus_final(matrix: &AccuracyMatrix, on: usize, end: usize, last: usize) -> Option<f64> {
    let column: Option<Vec<f64>> = (on..end).map(|after| matrix.get(after, on)).collect();
    let best = column?.into_iter().reduce(f64::max)?;
    Some(best - matrix.get(last, on)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(actual: Option<f64>, expected: f64) -> bool {
        actual.is_some_and(|actual| (actual - expected).abs() < 1e-12)
    }

    #[test]
    fn a_gain_is_negative_forgetting_or_none() {
        let matrix =
            AccuracyMatrix::from_rows(vec![vec![0.5], vec![0.6, 0.7], vec![0.75, 0.65, 0.8]])
                .unwrap();
        // ((60 − 75) + (70 − 65)) / 2 and ((75 − 75) + (70 − 65)) / 2
        assert!(close(forgetting(&matrix), -0.05));
        assert!(close(forgetting_max_over_all(&matrix), 0.025));
    }

    #[test]
    fn entries_above_the_diagonal_are_no_earlier_best() {
        let matrix = AccuracyMatrix::from_rows(vec![
            vec![0.9, 1.0, 1.0],
            vec![0.9, 0.8],
            vec![0.9, 0.8, 0.7],
        ])
        .unwrap();
        assert!(close(forgetting(&matrix), 0.0));
        assert!(close(forgetting_max_over_all(&matrix), 0.0));
    }

    #[test]
    fn undefined_with_one_task_or_a_missing_row() {
        let one = AccuracyMatrix::from_rows(vec![vec![0.9]]).unwrap();
        assert_eq!(forgetting(&one), None);
        assert_eq!(forgetting_max_over_all(&one), None);
        assert_eq!(forgetting_per_task(&one), Some(vec![]));
        let joint = AccuracyMatrix::from_last_row(vec![0.9, 0.9]).unwrap();
        assert_eq!(forgetting(&joint), None);
        assert_eq!(forgetting_max_over_all(&joint), None);
        assert_eq!(forgetting_per_task(&AccuracyMatrix::new(2)), None);
    }
}
