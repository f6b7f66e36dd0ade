//! How well a score tells two kinds of samples apart: those of known classes, and strangers.

/// Probability that a stranger has a higher score than a known sample, a tie counting half: the area under the ROC
/// curve. 1 is perfect, 0.5 is guessing.
///
/// `None` without samples of both kinds, and for scores that are no numbers.
pub fn auroc(known: &[f64], strangers: &[f64]) -> Option<f64> {
    let known = sorted(known)?;
    let strangers = sorted(strangers)?;
    let below = |value: f64| {
        let less = known.partition_point(|&k| k < value);
        let equal = known.partition_point(|&k| k <= value) - less;
        less as f64 + 0.5 * equal as f64
    };
    let wins: f64 = strangers.iter().map(|&value| below(value)).sum();
    Some(wins / (known.len() as f64 * strangers.len() as f64))
}

/// Share of known samples that are refused by a threshold which refuses at least a share `found` of the strangers: the
/// false alarms, a fraction. A sample is refused from the threshold on.
///
/// `None` without samples of both kinds, and for scores that are no numbers.
pub fn false_alarms(known: &[f64], strangers: &[f64], found: f64) -> Option<f64> {
    let known = sorted(known)?;
    let strangers = sorted(strangers)?;
    let n_found = (found.clamp(0.0, 1.0) * strangers.len() as f64).ceil() as usize;
    let threshold = match n_found {
        0 => return Some(0.0),
        n => strangers[strangers.len() - n],
    };
    let kept = known.partition_point(|&k| k < threshold);
    Some((known.len() - kept) as f64 / known.len() as f64)
}

/// Ascending; `None` of nothing and where one is no number.
fn sorted(values: &[f64]) -> Option<Vec<f64>> {
    if values.is_empty() || values.iter().any(|value| value.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand_with_a_tie() {
        // Of nine pairs the strangers win 3 + 2.5 + 1.
        let (known, strangers) = ([1.0, 2.0, 3.0], [4.0, 3.0, 1.5]);
        assert_eq!(auroc(&known, &strangers), Some(6.5 / 9.0));
        assert_eq!(auroc(&strangers, &known), Some(2.5 / 9.0));
        // Two of three strangers are found from 3 on, where one of three known ones lies; all from 1.5 on.
        assert_eq!(false_alarms(&known, &strangers, 0.6), Some(1.0 / 3.0));
        assert_eq!(false_alarms(&known, &strangers, 1.0), Some(2.0 / 3.0));
        assert_eq!(false_alarms(&known, &strangers, 0.0), Some(0.0));
    }

    #[test]
    fn ends_and_what_is_undefined() {
        assert_eq!(auroc(&[0.0], &[1.0]), Some(1.0));
        assert_eq!(auroc(&[1.0], &[1.0]), Some(0.5));
        assert_eq!(false_alarms(&[0.0, 0.5], &[1.0], 0.95), Some(0.0));
        assert_eq!(auroc(&[], &[1.0]), None);
        assert_eq!(auroc(&[f64::NAN], &[1.0]), None);
        assert_eq!(false_alarms(&[1.0], &[], 0.95), None);
    }
}
