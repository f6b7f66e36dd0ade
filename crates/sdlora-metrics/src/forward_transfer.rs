//! Forward transfer: what earlier tasks did for a task before it was trained.

use crate::{AccuracyMatrix, mean};

/// Mean **over all tasks but the first** of the accuracy just before training the task minus its baseline,
/// `acc[j−1][j] − baseline[j]`; a difference of fractions, −1 to 1
/// (Lopez-Paz and Ranzato 2017, "Gradient episodic memory", equation 4).
///
/// `None` with fewer than two trained tasks, without a baseline, or if a task was not tested just before it was
/// trained.
pub fn forward_transfer(matrix: &AccuracyMatrix) -> Option<f64> {
    let baseline = matrix.baseline()?;
    let terms: Option<Vec<f64>> = (1..matrix.n_rows())
        .map(|on| Some(matrix.get(on - 1, on)? - baseline.get(on)?))
        .collect();
    mean(&terms?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_training_minus_baseline() {
        let matrix = AccuracyMatrix::from_rows(vec![
            vec![0.8, 0.3, 0.2],
            vec![0.7, 0.9, 0.25],
            vec![0.6, 0.85, 0.95],
        ])
        .unwrap();
        assert_eq!(forward_transfer(&matrix), None);
        let matrix = matrix.with_baseline(vec![0.1, 0.12, 0.08]).unwrap();
        // ((30 − 12) + (25 − 8)) / 2
        assert!((forward_transfer(&matrix).unwrap() - 0.175).abs() < 1e-12);
    }

    #[test]
    fn undefined_below_the_diagonal_only() {
        let matrix = AccuracyMatrix::from_rows(vec![vec![0.9], vec![0.8, 0.9]])
            .unwrap()
            .with_baseline(vec![0.1, 0.1])
            .unwrap();
        assert_eq!(forward_transfer(&matrix), None);
        let one = AccuracyMatrix::from_rows(vec![vec![0.9]])
            .unwrap()
            .with_baseline(vec![0.1])
            .unwrap();
        assert_eq!(forward_transfer(&one), None);
    }
}
