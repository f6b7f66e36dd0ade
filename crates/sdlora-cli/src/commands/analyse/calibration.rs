//! `calibration`: whether predictions are right as often as they claim.

use sdlora_metrics::Calibration;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, not_shown, number};
use super::subject::Subject;
use crate::report::figure::{Axis, COLOURS, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "calibration",
    summary: "confidence against accuracy (reliability diagram, ECE)",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    if !subject.run()?.head().needs_steps() {
        return not_shown(
            "the logits of a head that is not trained by steps are no log-probabilities",
        );
    }
    let table = &subject.trajectory()?.last;
    let pairs: Vec<(f64, bool)> = table
        .predict()
        .into_iter()
        .enumerate()
        .map(|(i, prediction)| {
            let confidence = probability(table.row(i), prediction);
            (confidence, prediction == table.labels[i])
        })
        .collect();
    let found = Calibration::of(&pairs, subject.options.bins as usize)?;
    let rows = found.bins.iter().map(|bin| {
        vec![
            number(bin.lower),
            number(bin.upper),
            bin.n.to_string(),
            number(bin.confidence),
            number(bin.accuracy),
        ]
    });
    let used = found.bins.iter().filter(|bin| bin.n > 0);
    let reliability = used.map(|bin| (bin.confidence, bin.accuracy)).collect();
    let series = |name: &str, colour: usize, points| Series {
        name: name.into(),
        colour: COLOURS[colour].into(),
        points,
    };
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "the expected calibration error is {:.4} in {} bins, the largest {:.4}; mean \
             confidence is {:.2} points {} accuracy",
            found.expected_error(),
            found.bins.len(),
            found.largest_error(),
            100.0 * found.overconfidence().abs(),
            if found.overconfidence() < 0.0 {
                "below"
            } else {
                "above"
            },
        ),
        tables: vec![(
            "",
            csv(
                &["lower", "upper", "images", "confidence", "accuracy"],
                rows,
            ),
        )],
        figure: lines(
            "Reliability at the end",
            Axis {
                title: "mean confidence of a bin",
                within: &[0.0, 1.0],
            },
            Axis {
                title: "accuracy",
                within: &[0.0, 1.0],
            },
            &[
                series("predictions", 0, reliability),
                series("right as often as claimed", 4, vec![(0.0, 0.0), (1.0, 1.0)]),
            ],
        ),
    })
}

/// Softmax of the logits at one class, in double precision.
fn probability(logits: &[f32], class: usize) -> f64 {
    let top = f64::from(logits[class]);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - top).exp()).sum();
    (1.0 / sum).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_by_hand_and_without_overflow() {
        assert!((probability(&[0.0, 3f32.ln()], 1) - 0.75).abs() < 1e-6);
        assert_eq!(probability(&[1000.0, -1000.0], 0), 1.0);
    }
}
