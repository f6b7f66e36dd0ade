//! Tables for the terminal and for markdown.

use sdlora_metrics::{AccuracyMatrix, Spread, Summary, accuracy_curve};
use sdlora_train::heads::FloatsStored;

/// Stands for a number that is undefined.
const UNDEFINED: &str = "–";

/// Accuracy table that grows by one line per task; rows are after-tasks, columns on-tasks, in percent.
///
/// A stream too long for the width shows every second (third, …) task and the new one.
#[derive(Debug, Clone)]
pub struct AccuracyTable {
    columns: Vec<usize>,
    stride: usize,
}

impl AccuracyTable {
    /// A table for `n_tasks` tasks in at most `width` columns of the terminal; 20 tasks need 114.
    pub fn new(n_tasks: usize, width: usize) -> Self {
        let fixed = |stride: usize| if stride == 1 { 14 } else { 19 };
        // One column is kept whatever the width.
        let stride = (1..n_tasks.max(1))
            .find(|&stride| fixed(stride) + 5 * n_tasks.div_ceil(stride) <= width)
            .unwrap_or(n_tasks.max(1));
        Self {
            columns: (0..n_tasks).step_by(stride).collect(),
            stride,
        }
    }

    /// The two lines above the rows, each with its line end.
    pub fn header(&self) -> String {
        let mut text = String::from(
            "accuracy in %, row: after task, column: on task, avg: mean over the seen tasks\n",
        );
        let cells = self.columns.iter().map(|on| format!("{on:>5}"));
        text.push_str(&self.line("after", cells.collect(), "new", "avg"));
        text
    }

    /// The line of task `after`, with its line end; empty cells where nothing was tested.
    pub fn row(&self, matrix: &AccuracyMatrix, after: usize) -> String {
        let cell = |value: Option<f64>| format!("{:>5}", value.map(percent).unwrap_or_default());
        let cells = self.columns.iter().map(|&on| cell(matrix.get(after, on)));
        let average = accuracy_curve(matrix).get(after).copied().flatten();
        self.line(
            &after.to_string(),
            cells.collect(),
            &matrix.get(after, after).map_or(UNDEFINED.into(), percent),
            &average.map_or(UNDEFINED.into(), percent),
        )
    }

    fn line(&self, label: &str, cells: String, new: &str, average: &str) -> String {
        match self.stride {
            1 => format!("{label:>5} │{cells} │{average:>5}\n"),
            _ => format!("{label:>5} │{cells} │{new:>5}{average:>5}\n"),
        }
    }
}

/// The whole [`AccuracyTable`] of a matrix.
#[cfg(test)]
pub fn accuracy_table(matrix: &AccuracyMatrix, width: usize) -> String {
    let table = AccuracyTable::new(matrix.n_tasks(), width);
    let rows = (0..matrix.n_rows()).map(|after| table.row(matrix, after));
    table.header() + &rows.collect::<String>()
}

/// One line per defined metric, in percent; differences with their sign.
pub fn summary_block(summary: &Summary) -> String {
    let metrics: Vec<_> = summary.metrics();
    let width = metrics
        .iter()
        .map(|metric| metric.label.len())
        .max()
        .unwrap_or(0);
    metrics
        .iter()
        .filter_map(|metric| Some((metric.label, metric.value?)))
        .map(|(label, value)| format!("{label:<width$}  {:>7.2} %\n", 100.0 * value))
        .collect()
}

/// The mean accuracy over classes, a fraction, as a line below those of [`summary_block`].
pub fn class_accuracy_line(accuracy: f64) -> String {
    let label = "final accuracy, over classes";
    format!("{label:<50}  {:>7.2} %", 100.0 * accuracy)
}

/// One method in [`compare_table`]: all its runs, one per seed.
#[derive(Debug, Clone)]
pub struct Comparison<'a> {
    /// Name of the method.
    pub method: &'a str,
    /// Metrics of each run.
    pub summaries: &'a [Summary],
    /// Number of trainable parameters after the last task, if known.
    pub n_parameters: Option<usize>,
    /// What the head keeps after the last task, if known.
    pub stored: Option<FloatsStored>,
    /// Time of a task of each run without evaluation, in seconds.
    pub seconds_per_task: &'a [f64],
}

/// Markdown table with one line per method: mean over its runs ± standard error.
///
/// A metric undefined in one of the runs is shown as undefined.
pub fn compare_table(comparisons: &[Comparison]) -> String {
    let header = [
        "Method",
        "Runs",
        "Acc",
        "AAA",
        "Forgetting",
        "BWT",
        "Parameters",
        "Head keeps",
        "s/task",
    ];
    let mut rows = vec![header.map(String::from)];
    rows.extend(comparisons.iter().map(|comparison| {
        let metric = |of: fn(&Summary) -> Option<f64>| {
            let values = comparison
                .summaries
                .iter()
                .map(|run| Some(100.0 * of(run)?));
            spread(values.collect::<Option<Vec<f64>>>().as_deref(), 2)
        };
        [
            cell_text(comparison.method),
            comparison.summaries.len().to_string(),
            metric(|run| run.final_average_accuracy),
            metric(|run| run.average_anytime_accuracy),
            metric(|run| run.forgetting),
            metric(|run| run.backward_transfer),
            comparison.n_parameters.map_or(UNDEFINED.into(), grouped),
            comparison.stored.map_or(UNDEFINED.into(), stored),
            spread(Some(comparison.seconds_per_task), 2),
        ]
    }));

    let mut text = markdown(&rows);
    text.push_str(
        "\nAcc: final accuracy; AAA: average anytime accuracy; both and forgetting and backward transfer (BWT) in %, \
         means over tasks. Parameters: most trained in one task; head keeps: numbers (32-bit floats) of \
         earlier classes, per class + once. s/task: seconds of a task without evaluation. ±: standard error over runs.\n",
    );
    text
}

/// A text that stays in its cell.
pub(super) fn cell_text(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

/// Widest column that is padded, in characters.
const MOST_COLUMNS: usize = 200;

/// A markdown table whose first row is its header; the first column is text, the others numbers.
pub(super) fn markdown<const N: usize>(rows: &[[String; N]]) -> String {
    let width_of = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    // Longer cells stick out; a width above 65,535 would be refused by the formatter.
    let widths: Vec<usize> = (0..N)
        .map(|column| width_of(column).unwrap_or(0).min(MOST_COLUMNS))
        .collect();
    let mut text = String::new();
    for (row_idx, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let cell = match column {
                0 => format!("| {cell:<width$} |"),
                _ => format!(" {cell:>width$} |"),
            };
            text.push_str(&cell);
        }
        text.push('\n');
        if row_idx == 0 {
            for (column, &width) in widths.iter().enumerate() {
                let rule = "-".repeat(width + 1);
                text.push_str(&if column == 0 {
                    format!("|{rule}-|")
                } else {
                    format!("{rule}:|")
                });
            }
            text.push('\n');
        }
    }
    text
}

/// What a head keeps: `193/class + 73,728`.
pub fn stored(stored: FloatsStored) -> String {
    let per_class = format!("{}/class", grouped(stored.per_class));
    match stored.shared {
        0 => per_class,
        shared => format!("{per_class} + {}", grouped(shared)),
    }
}

/// Fraction as percentage in at most four characters: `9.5`, `93.5`, `100`.
pub(super) fn percent(fraction: f64) -> String {
    let text = format!("{:.1}", 100.0 * fraction);
    text.strip_suffix(".0")
        .filter(|whole| *whole == "100")
        .map(String::from)
        .unwrap_or(text)
}

/// Whole number with groups of three digits: `36,864`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (digit_idx, digit) in digits.chars().enumerate() {
        if digit_idx > 0 && (digits.len() - digit_idx).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(super) fn spread(values: Option<&[f64]>, n_decimals: usize) -> String {
    let Some(spread) = values.and_then(|values| Spread::of(values).ok()) else {
        return UNDEFINED.into();
    };
    match spread.standard_error {
        Some(error) => format!("{:.n_decimals$} ± {error:.n_decimals$}", spread.mean),
        None => format!("{:.n_decimals$}", spread.mean),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> AccuracyMatrix {
        AccuracyMatrix::from_rows(vec![vec![1.0], vec![0.8, 0.88], vec![0.7, 0.84, 0.05]]).unwrap()
    }

    #[test]
    fn the_table_has_one_line_per_task() {
        assert_eq!(
            accuracy_table(&matrix(), 100),
            "\
accuracy in %, row: after task, column: on task, avg: mean over the seen tasks
after │    0    1    2 │  avg
    0 │  100           │  100
    1 │ 80.0 88.0      │ 84.0
    2 │ 70.0 84.0  5.0 │ 53.0
"
        );
    }

    #[test]
    fn a_missing_row_is_empty() {
        let matrix = AccuracyMatrix::from_last_row(vec![0.5, 0.6]).unwrap();
        assert!(
            accuracy_table(&matrix, 100)
                .ends_with("    0 │           │    –\n    1 │ 50.0 60.0 │ 55.0\n")
        );
    }

    #[test]
    fn twenty_tasks_fit_and_more_are_thinned_out() {
        let widest = |n_tasks: usize, width: usize| {
            let mut matrix = AccuracyMatrix::new(n_tasks);
            while !matrix.is_complete() {
                matrix.push_row(vec![1.0; n_tasks]).unwrap();
            }
            let table = accuracy_table(&matrix, width);
            table
                .lines()
                .skip(1)
                .map(|line| line.chars().count())
                .max()
                .unwrap()
        };
        assert_eq!(widest(20, 120), 114);
        assert!(widest(50, 120) <= 120);
        assert!(widest(20, 80) <= 80);
        for width in [0, 24, 40] {
            assert!(widest(100, width) <= width.max(24));
        }

        let mut matrix = AccuracyMatrix::new(6);
        matrix.push_row(vec![0.9]).unwrap();
        matrix.push_row(vec![0.8, 0.5]).unwrap();
        assert_eq!(
            accuracy_table(&matrix, 40)
                .lines()
                .skip(1)
                .collect::<Vec<_>>(),
            [
                "after │    0    2    4 │  new  avg",
                "    0 │ 90.0           │ 90.0 90.0",
                "    1 │ 80.0           │ 50.0 65.0"
            ]
        );
    }

    #[test]
    fn an_empty_matrix_has_a_header_only() {
        assert_eq!(
            accuracy_table(&AccuracyMatrix::new(0), 80).lines().count(),
            2
        );
    }

    #[test]
    fn the_summary_leaves_undefined_metrics_out() {
        assert_eq!(
            summary_block(&Summary::of(&matrix())),
            "\
final accuracy, over tasks                          53.00 %
average anytime accuracy, over tasks                79.00 %
forgetting, over tasks                              17.00 %
forgetting from the best of all rows, over tasks    17.00 %
backward transfer, over tasks                      -17.00 %
"
        );
        assert_eq!(summary_block(&Summary::default()), "");
    }

    #[test]
    fn methods_are_compared_over_runs() {
        let good =
            Summary::of(&AccuracyMatrix::from_rows(vec![vec![0.9], vec![0.8, 0.9]]).unwrap());
        let better =
            Summary::of(&AccuracyMatrix::from_rows(vec![vec![0.92], vec![0.86, 0.92]]).unwrap());
        let joint = Summary::of(&AccuracyMatrix::from_last_row(vec![0.95, 0.97]).unwrap());
        let table = compare_table(&[
            Comparison {
                method: "sdlora",
                summaries: &[good, better],
                n_parameters: Some(36864),
                stored: Some(FloatsStored {
                    per_class: 579,
                    shared: 73728,
                    total: 189528,
                }),
                seconds_per_task: &[10.0, 12.0],
            },
            Comparison {
                method: "joint | all",
                summaries: &[joint],
                n_parameters: None,
                stored: None,
                seconds_per_task: &[],
            },
        ]);
        assert_eq!(
            table.lines().take(4).collect::<Vec<_>>(),
            [
                "| Method       | Runs |          Acc |          AAA |  Forgetting |          BWT | Parameters |         Head keeps |       s/task |",
                "|--------------|-----:|-------------:|-------------:|------------:|-------------:|-----------:|-------------------:|-------------:|",
                "| sdlora       |    2 | 87.00 ± 2.00 | 89.00 ± 1.50 | 8.00 ± 2.00 | -8.00 ± 2.00 |     36,864 | 579/class + 73,728 | 11.00 ± 1.00 |",
                "| joint \\| all |    1 |        96.00 |            – |           – |            – |          – |                  – |            – |",
            ]
        );
    }

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(
            stored(FloatsStored {
                per_class: 1193,
                shared: 0,
                total: 0
            }),
            "1,193/class"
        );
        assert_eq!(
            (percent(0.99951), percent(0.0), percent(0.10)),
            ("100".into(), "0.0".into(), "10.0".into())
        );
    }
}
