//! Backward transfer: what later tasks did to earlier ones.

use crate::{AccuracyMatrix, mean};

/// Mean **over all tasks but the last** of final accuracy minus accuracy just after training the task,
/// `acc[T−1][j] − acc[j][j]`; a difference of fractions, −1 to 1, negative where the model forgot
/// (Lopez-Paz and Ranzato 2017, "Gradient episodic memory", equation 3).
///
/// `None` with fewer than two tasks, or if the last row or a diagonal entry is missing.
pub fn backward_transfer(matrix: &AccuracyMatrix) -> Option<f64> {
    let last = matrix.n_rows().checked_sub(1)?;
    let terms: Option<Vec<f64>> = (0..last)
        .map(|on| Some(matrix.get(last, on)? - matrix.get(on, on)?))
        .collect();
    mean(&terms?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_minus_diagonal() {
        let matrix =
            AccuracyMatrix::from_rows(vec![vec![0.9], vec![0.8, 0.88], vec![0.7, 0.84, 0.95]])
                .unwrap();
        // ((70 − 90) + (84 − 88)) / 2
        assert!((backward_transfer(&matrix).unwrap() + 0.12).abs() < 1e-12);
    }

    #[test]
    fn undefined_with_one_task_or_a_missing_diagonal() {
        let one = AccuracyMatrix::from_rows(vec![vec![0.9]]).unwrap();
        assert_eq!(backward_transfer(&one), None);
        let joint = AccuracyMatrix::from_last_row(vec![0.9, 0.9]).unwrap();
        assert_eq!(backward_transfer(&joint), None);
        assert_eq!(backward_transfer(&AccuracyMatrix::new(2)), None);
    }
}
