//! Whether a classifier is right as often as it claims: reliability bins and expected calibration
//! error.

use crate::MetricsError;

/// Predictions of similar confidence.
#[derive(Debug, Clone, PartialEq)]
pub struct ReliabilityBin {
    /// Lower end of the confidences, not included except in the first bin.
    pub lower: f64,
    /// Upper end, included.
    pub upper: f64,
    /// Number of predictions.
    pub n: usize,
    /// Their mean confidence, 0 to 1; 0 without predictions.
    pub confidence: f64,
    /// Share of them that are right, 0 to 1; 0 without predictions.
    pub accuracy: f64,
}

/// Confidence against accuracy in bins of equal width.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    /// The bins, ascending.
    pub bins: Vec<ReliabilityBin>,
}

impl Calibration {
    /// Sorts predictions into `n_bins` bins; each is its confidence and whether it is right.
    ///
    /// # Errors
    ///
    /// [`MetricsError::Confidence`] for a confidence that is NaN or outside 0..=1,
    /// [`MetricsError::NoValue`] without predictions or bins.
    pub fn of(predictions: &[(f64, bool)], n_bins: usize) -> Result<Self, MetricsError> {
        if predictions.is_empty() || n_bins == 0 {
            return Err(MetricsError::NoValue);
        }
        let width = 1.0 / n_bins as f64;
        let mut bins: Vec<ReliabilityBin> = (0..n_bins)
            .map(|i| ReliabilityBin {
                lower: i as f64 * width,
                upper: (i + 1) as f64 * width,
                n: 0,
                confidence: 0.0,
                accuracy: 0.0,
            })
            .collect();
        for (idx, &(confidence, is_right)) in predictions.iter().enumerate() {
            if !(0.0..=1.0).contains(&confidence) {
                return Err(MetricsError::Confidence {
                    idx,
                    value: confidence,
                });
            }
            // A confidence on an edge belongs to the bin below it.
            let bin = (confidence * n_bins as f64).ceil() as usize;
            let bin = &mut bins[bin.clamp(1, n_bins) - 1];
            bin.n += 1;
            bin.confidence += confidence;
            bin.accuracy += f64::from(u8::from(is_right));
        }
        for bin in bins.iter_mut().filter(|bin| bin.n > 0) {
            bin.confidence /= bin.n as f64;
            bin.accuracy /= bin.n as f64;
        }
        Ok(Self { bins })
    }

    /// Expected calibration error: mean over predictions of `|accuracy − confidence|` of their bin, 0
    /// to 1 (Guo et al. 2017, "On calibration of modern neural networks", equation 3).
    pub fn expected_error(&self) -> f64 {
        self.mean(|bin| (bin.accuracy - bin.confidence).abs())
    }

    /// Largest `|accuracy − confidence|` of a bin (equation 5 there); that of a bin without predictions is 0.
    pub fn largest_error(&self) -> f64 {
        let of_bin = |bin: &ReliabilityBin| (bin.accuracy - bin.confidence).abs();
        self.bins.iter().map(of_bin).fold(0.0, f64::max)
    }

    /// Mean confidence minus accuracy over all predictions: greater than 0 claims too much.
    pub fn overconfidence(&self) -> f64 {
        self.mean(|bin| bin.confidence - bin.accuracy)
    }

    fn mean(&self, of: impl Fn(&ReliabilityBin) -> f64) -> f64 {
        let n: usize = self.bins.iter().map(|bin| bin.n).sum();
        let sum: f64 = self.bins.iter().map(|bin| bin.n as f64 * of(bin)).sum();
        sum / n as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_predictions_by_hand() {
        // Bins of a half: one right at 0.5 (on the edge, so below); 0.6 right, 0.8 wrong, 1.0 right.
        let predictions = [(0.5, true), (0.6, true), (0.8, false), (1.0, true)];
        let found = Calibration::of(&predictions, 2).unwrap();
        assert_eq!((found.bins[0].n, found.bins[1].n), (1, 3));
        assert!((found.bins[1].confidence - 0.8).abs() < 1e-12);
        assert!((found.bins[1].accuracy - 2.0 / 3.0).abs() < 1e-12);
        let expected = (0.5 + 3.0 * (0.8 - 2.0 / 3.0)) / 4.0;
        assert!((found.expected_error() - expected).abs() < 1e-12);
        assert!((found.largest_error() - 0.5).abs() < 1e-12);
        let over = (0.5 + 0.6 + 0.8 + 1.0) / 4.0 - 0.75;
        assert!((found.overconfidence() - over).abs() < 1e-12);
    }

    #[test]
    fn bins_have_equal_widths_and_follow_each_other() {
        let found = Calibration::of(&[(0.5, true)], 4).unwrap();
        let edges: Vec<_> = found
            .bins
            .iter()
            .map(|bin| (bin.lower, bin.upper))
            .collect();
        assert_eq!(edges, [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]);
    }

    #[test]
    fn right_as_often_as_claimed_is_no_error() {
        let predictions = [(0.5, true), (0.5, false), (1.0, true)];
        assert_eq!(
            Calibration::of(&predictions, 15).unwrap().expected_error(),
            0.0
        );
    }

    #[test]
    fn ends_and_refusals() {
        let found = Calibration::of(&[(0.0, false), (1.0, true)], 3).unwrap();
        assert_eq!((found.bins[0].n, found.bins[2].n), (1, 1));
        assert!(Calibration::of(&[], 3).is_err());
        assert!(Calibration::of(&[(0.5, true)], 0).is_err());
        assert!(Calibration::of(&[(f64::NAN, true)], 3).is_err());
        let error = Calibration::of(&[(0.5, true), (1.5, true)], 3).unwrap_err();
        assert!(error.to_string().contains("1.5"), "{error}");
    }
}
