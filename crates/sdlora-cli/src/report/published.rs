//! Published results beside those of the run.

use sdlora_metrics::Summary;
use sdlora_train::{Expected, MeanOver};

/// One published number and what the run has in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedNumber {
    /// Name of the metric, with what its mean runs over.
    pub label: &'static str,
    /// Percentage with its standard error where it is known.
    pub published: String,
    /// The same metric of the run, a fraction; `None` where it is undefined.
    pub here: Option<f64>,
    /// Where the number stands.
    pub source: String,
}

/// The numbers of all sources, in their order.
pub fn published_numbers(expected: &[Expected], summary: &Summary) -> Vec<PublishedNumber> {
    let mut numbers = Vec::new();
    for one in expected {
        let (acc, aaa) = match one.over {
            MeanOver::Tasks => ("final_average_accuracy", "average_anytime_accuracy"),
            MeanOver::Images => (
                "weighted_final_accuracy",
                "weighted_average_anytime_accuracy",
            ),
        };
        for (name, value, error) in [
            (acc, one.acc, one.acc_standard_error),
            (aaa, one.aaa, one.aaa_standard_error),
        ] {
            let metric = summary.metrics().into_iter().find(|m| m.name == name);
            if let (Some(value), Some(metric)) = (value, metric) {
                let error = error.map(|e| format!(" ± {e:.2}")).unwrap_or_default();
                numbers.push(PublishedNumber {
                    label: metric.label,
                    published: format!("{value:.2}{error} %"),
                    here: metric.value,
                    source: one.source.clone(),
                });
            }
        }
    }
    numbers
}

/// The numbers as lines for the terminal; empty where nothing is published.
pub fn published_block(numbers: &[PublishedNumber]) -> String {
    if numbers.is_empty() {
        return String::new();
    }
    let width = numbers.iter().map(|n| n.label.len()).max().unwrap_or(0);
    let mut text = String::from("\npublished for this configuration, with its own settings:\n");
    for number in numbers {
        let here = number.here.map_or("undefined".into(), |value| {
            format!("{:.2} %", 100.0 * value)
        });
        text.push_str(&format!(
            "{:<width$}  {}, here {here} ({})\n",
            number.label, number.published, number.source
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_metrics::AccuracyMatrix;

    #[test]
    fn every_number_stands_beside_the_metric_with_the_same_mean() {
        // Task 0 has 1 image, task 1 has 3: means over tasks and over images differ.
        let matrix = AccuracyMatrix::from_rows(vec![vec![1.0], vec![0.5, 0.9]])
            .unwrap()
            .with_test_counts(vec![1, 3])
            .unwrap();
        let expected = |over| Expected {
            acc: Some(77.34),
            acc_standard_error: Some(0.35),
            aaa: None,
            aaa_standard_error: None,
            over,
            source: "a table".into(),
        };
        let both = [expected(MeanOver::Tasks), expected(MeanOver::Images)];
        let numbers = published_numbers(&both, &Summary::of(&matrix));
        assert_eq!(numbers.len(), 2);
        assert!((numbers[0].here.unwrap() - 0.7).abs() < 1e-12);
        assert!((numbers[1].here.unwrap() - 0.8).abs() < 1e-12);
        let text = published_block(&numbers);
        assert!(
            text.contains("77.34 ± 0.35 %, here 70.00 % (a table)"),
            "{text}"
        );
        assert!(
            text.contains("over images  77.34 ± 0.35 %, here 80.00 %"),
            "{text}"
        );
        assert_eq!(published_block(&[]), "");
    }
}
