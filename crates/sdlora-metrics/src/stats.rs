//! Mean and standard error, over tasks inside a run and over seeds between runs.

use serde::{Deserialize, Serialize};

use crate::MetricsError;

/// Arithmetic mean; `None` without values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Standard error of the mean: standard deviation with divisor n − 1, divided by √n; `None` with fewer than two
/// values.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len();
    if n < 2 {
        return None;
    }
    let mean = mean(values)?;
    // Two passes: the one-pass form loses all digits where the spread is small against the mean.
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (n - 1) as f64 / n as f64).sqrt())
}

/// One number over the seeds of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Mean over runs.
    pub mean: f64,
    /// Standard error of that mean, `None` with one run.
    pub standard_error: Option<f64>,
    /// Number of runs.
    pub n: usize,
}

impl Spread {
    /// Mean and standard error of one value per run.
    ///
    /// # Errors
    ///
    /// If there is no value, or one is NaN or infinite.
    pub fn of(values: &[f64]) -> Result<Self, MetricsError> {
        if let Some(run_idx) = values.iter().position(|value| !value.is_finite()) {
            return Err(MetricsError::NotFinite {
                run_idx,
                value: values[run_idx],
            });
        }
        Ok(Self {
            mean: mean(values).ok_or(MetricsError::NoValue)?,
            standard_error: standard_error(values),
            n: values.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Deviations −3, −1, 1, 3: variance 20/3, standard error √(20/3/4).
        let spread = Spread::of(&[2.0, 4.0, 6.0, 8.0]).unwrap();
        assert_eq!((spread.mean, spread.n), (5.0, 4));
        assert!((spread.standard_error.unwrap() - (20.0f64 / 12.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn one_run_has_no_error_and_none_is_refused() {
        assert_eq!(Spread::of(&[0.5]).unwrap().standard_error, None);
        assert_eq!(Spread::of(&[]), Err(MetricsError::NoValue));
        assert!(matches!(
            Spread::of(&[0.5, f64::NAN]),
            Err(MetricsError::NotFinite { run_idx: 1, .. })
        ));
        assert_eq!(mean(&[]), None);
    }

    #[test]
    fn a_small_spread_on_a_large_mean_survives() {
        let error = standard_error(&[1e9 + 0.25, 1e9 + 0.75]).unwrap();
        assert!((error - 0.25).abs() < 1e-6, "{error}");
    }
}
