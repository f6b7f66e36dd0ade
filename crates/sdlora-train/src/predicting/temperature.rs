//! One temperature for all logits: `p = softmax(logits / T)` (Guo et al. 2017, "On calibration of modern neural
//! networks", section 4.2).
//!
//! Where every held-out image is right, the likelihood has no largest value: the smaller `T`, the better. So one more
//! image counts whose class is uniformly unknown, spread over the others: every image has the target
//! `(1 − 1/(n + 1)) · onehot + 1/(n + 1) · uniform`. With many images it changes nothing that shows.

/// Steps of the bisection; each halves the interval of `ln(1 / T)`, so the result is exact to double precision.
const N_STEPS: usize = 64;
/// Largest `|ln T|`, about 1e9 or its inverse: logits are neither smaller nor larger.
const MOST: f64 = 20.0;

/// The temperature under which `labels` are most likely, of logits `[n, n_classes]`, row by row; 1 without images or
/// with fewer than two classes.
pub(crate) fn fit_temperature(logits: &[f32], n_classes: usize, labels: &[usize]) -> f64 {
    if labels.is_empty() || n_classes < 2 {
        return 1.0;
    }
    let unknown = 1.0 / (labels.len() + 1) as f64;
    let slope = |inverse: f64| -> f64 {
        let rows = logits.chunks_exact(n_classes).zip(labels);
        rows.map(|(row, &label)| {
            let mean = row.iter().map(|&l| f64::from(l)).sum::<f64>() / n_classes as f64;
            let target = (1.0 - unknown) * f64::from(row[label]) + unknown * mean;
            target - expected(row, inverse)
        })
        .sum()
    };
    // The log-likelihood is concave in 1/T, so its slope falls.
    let (mut low, mut high) = (-MOST, MOST);
    for _ in 0..N_STEPS {
        let middle = 0.5 * (low + high);
        match slope(middle.exp()) > 0.0 {
            true => low = middle,
            false => high = middle,
        }
    }
    (-0.5 * (low + high)).exp()
}

/// Mean of logits under their own softmax at an inverse temperature.
fn expected(row: &[f32], inverse: f64) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut total) = (0.0, 0.0);
    for &logit in row {
        let weight = (inverse * (f64::from(logit) - f64::from(largest))).exp();
        sum += weight * f64::from(logit);
        total += weight;
    }
    sum / total
}

/// Softmax of logits divided by a temperature, in double precision.
pub(crate) fn probabilities(logits: &[f32], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shares = logits
        .iter()
        .map(|&l| ((f64::from(l) - f64::from(largest)) / temperature).exp());
    let mut shares: Vec<f64> = shares.collect();
    let total: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= total);
    shares
}

/// `−T log Σ exp(logit / T)`, in double precision.
pub(crate) fn energy(logits: &[f32], temperature: f64) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = f64::from(largest);
    let terms = logits
        .iter()
        .map(|&l| ((f64::from(l) - largest) / temperature).exp());
    -(largest + temperature * terms.sum::<f64>().ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_by_hand_and_without_overflow() {
        let found = probabilities(&[0.0, 2.0 * 3f32.ln()], 2.0);
        assert!((found[1] - 0.75).abs() < 1e-6, "{found:?}");
        assert_eq!(probabilities(&[1e30, -1e30], 1.0), [1.0, 0.0]);
        // −2 log (1 + 3).
        let found = energy(&[0.0, 2.0 * 3f32.ln()], 2.0);
        assert!((found + 2.0 * 4f64.ln()).abs() < 1e-6, "{found}");
    }

    #[test]
    fn three_of_four_right_is_a_probability_of_three_quarters() {
        // Logits 0 and 1; of 4000 images 3000 are of the second class.
        let n = 4000;
        let logits: Vec<f32> = (0..n).flat_map(|_| [0.0, 1.0]).collect();
        let labels: Vec<usize> = (0..n).map(|i| usize::from(i % 4 != 0)).collect();
        let temperature = fit_temperature(&logits, 2, &labels);
        // The image whose class is unknown pulls 3/4 towards 1/2 by a share of 1/4001.
        let share = 0.75 - 0.25 / f64::from(n + 1);
        let expected = 1.0 / (share / (1.0 - share)).ln();
        assert!(
            (temperature - expected).abs() < 1e-9,
            "{temperature} {expected}"
        );
        // Ten times the logits is ten times the temperature, and the same probabilities.
        let larger: Vec<f32> = logits.iter().map(|l| 10.0 * l).collect();
        let ten = fit_temperature(&larger, 2, &labels);
        assert!((ten - 10.0 * temperature).abs() < 1e-6, "{ten}");
    }

    #[test]
    fn without_a_mistake_the_temperature_is_still_a_number() {
        // Three of three right: as sure as one of four allows, 1 − 1/4 + 1/8.
        let temperature = fit_temperature(&[5.0, 0.0, 5.0, 0.0, 0.0, 5.0], 2, &[0, 0, 1]);
        let expected = 5.0 / (0.875f64 / 0.125).ln();
        assert!(
            (temperature - expected).abs() < 1e-9,
            "{temperature} {expected}"
        );
        assert_eq!(fit_temperature(&[], 2, &[]), 1.0);
        // Nothing to tell classes apart by: whatever it is, it is a number.
        assert!(fit_temperature(&[1.0; 4], 2, &[0, 1]).is_finite());
    }
}
