//! What a diagnostic found.

/// Whether a claim of the paper is seen in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Holds,
    /// It is not.
    DoesNotHold,
    /// The numbers point neither way by more than their spread.
    Undecided,
    /// The paper claims nothing here.
    Measured,
}

impl Verdict {
    /// Of a claim.
    pub fn of(holds: bool) -> Self {
        if holds {
            Self::Holds
        } else {
            Self::DoesNotHold
        }
    }

    /// Of a claim that each of these differences is above zero: it holds where all are by more than
    /// twice their standard error, and does not where one is below by as much.
    pub fn of_differences(differences: &[Difference]) -> Self {
        if differences.iter().any(Difference::is_not_above) {
            Self::DoesNotHold
        } else if differences.iter().all(Difference::is_above) {
            Self::Holds
        } else {
            Self::Undecided
        }
    }

    /// The words in front of the line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "claim holds",
            Self::DoesNotHold => "claim does not hold",
            Self::Undecided => "claim undecided",
            Self::Measured => "measured",
        }
    }
}

/// How far apart two groups of numbers are, against their spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Mean of the one minus mean of the other.
    pub mean: f64,
    /// Standard error of `mean`; 0 where nothing varies, NaN of a single number.
    pub error: f64,
}

impl Difference {
    /// Of two groups that share no numbers (Welch).
    pub fn between(a: &[f64], b: &[f64]) -> Self {
        Self {
            mean: mean(a) - mean(b),
            error: error_of_mean(a).hypot(error_of_mean(b)),
        }
    }

    /// Of each number of `a` from the one at its place in `b`.
    pub fn paired(a: &[f64], b: &[f64]) -> Self {
        let changes: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        Self {
            mean: mean(&changes),
            error: error_of_mean(&changes),
        }
    }

    fn is_above(&self) -> bool {
        self.mean > 0.0 && self.mean > 2.0 * self.error
    }

    /// Numbers without a spread that are equal are a claim that fails, not a doubt.
    fn is_not_above(&self) -> bool {
        self.mean <= 0.0 && self.mean <= -2.0 * self.error
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.error.is_finite() {
            true => write!(f, "{:+.4} ± {:.4}", self.mean, self.error),
            false => write!(f, "{:+.4}, a single number", self.mean),
        }
    }
}

/// Standard error; NaN of less than two numbers.
fn error_of_mean(values: &[f64]) -> f64 {
    sdlora_metrics::standard_error(values).unwrap_or(f64::NAN)
}

/// A figure, tables and one line.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Whether a claim holds.
    pub verdict: Verdict,
    /// The claim or measurement with the numbers it rests on.
    pub line: String,
    /// CSV texts, each with what is added to the name of the file.
    pub tables: Vec<(&'static str, String)>,
    /// The SVG file.
    pub figure: String,
}

/// Why this run has nothing to show; no failure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotShown(pub String);

/// [`NotShown`] as an error of a diagnostic.
pub fn not_shown<T>(reason: impl Into<String>) -> anyhow::Result<T> {
    Err(NotShown(reason.into()).into())
}

/// Why something cannot be told, of rounds whose checkpoints are gone; ascending and at least one.
pub fn missing(rounds: &[usize]) -> String {
    let (first, last) = (
        rounds.first().copied().unwrap_or(0),
        rounds.last().copied().unwrap_or(0),
    );
    let tasks = match rounds.len() {
        0 | 1 => format!("task {first}"),
        n if last - first + 1 == n => format!("tasks {first} to {last}"),
        n => format!("{n} tasks from {first} to {last}"),
    };
    let (has, end) = match rounds.len() {
        0 | 1 => ("the checkpoint", "is gone"),
        _ => ("checkpoints", "are gone"),
    };
    format!("{has} of the end of {tasks} {end}")
}

/// A CSV text.
pub fn csv(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let header: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
    let rows: String = rows.into_iter().map(|cells| row(&cells)).collect();
    row(&header) + &rows
}

/// A matrix as CSV: numbered columns, numbered rows, empty where a value is not finite.
pub fn matrix_csv(corner: &str, rows: &[Vec<f64>]) -> String {
    let n_columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let columns = (0..n_columns).map(|j| j.to_string());
    let header: Vec<String> = std::iter::once(corner.to_owned()).chain(columns).collect();
    let body = rows.iter().enumerate().map(|(i, values)| {
        let mut cells = vec![i.to_string()];
        cells.extend((0..n_columns).map(|j| number(values.get(j).copied().unwrap_or(f64::NAN))));
        row(&cells)
    });
    row(&header) + &body.collect::<String>()
}

/// A line of CSV; cells are quoted where they must be.
pub fn row(cells: &[String]) -> String {
    let quoted: Vec<String> = cells
        .iter()
        .map(|cell| match cell.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell.clone(),
        })
        .collect();
    quoted.join(",") + "\n"
}

/// A number that reads back exactly; empty where it is not finite.
pub fn number(value: f64) -> String {
    if value.is_finite() {
        value.to_string()
    } else {
        String::new()
    }
}

/// A fraction in percent.
pub fn percent(fraction: f64) -> String {
    format!("{:.2} %", 100.0 * fraction)
}

/// Mean of the finite values; NaN without any.
pub fn mean(values: &[f64]) -> f64 {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    finite.iter().sum::<f64>() / finite.len() as f64
}

/// The first and the last third of a list, each at least one entry.
pub fn thirds(values: &[f64]) -> (&[f64], &[f64]) {
    let n = values.len().div_ceil(3).min(values.len());
    (&values[..n], &values[values.len() - n..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_with_commas_and_quotes_read_back_as_one() {
        let text = csv(&["a", "b"], [vec!["x, y".into(), "say \"z\"".into()]]);
        assert_eq!(text, "a,b\n\"x, y\",\"say \"\"z\"\"\"\n");
    }

    #[test]
    fn a_matrix_has_empty_cells_where_nothing_was_measured() {
        let text = matrix_csv("after", &[vec![0.5], vec![0.25, f64::NAN]]);
        assert_eq!(text, "after,0,1\n0,0.5,\n1,0.25,\n");
    }

    #[test]
    fn a_claim_needs_twice_the_standard_error() {
        // Means 2 and 1, standard errors √(1/3) each.
        let wide = Difference::between(&[1.0, 2.0, 3.0], &[0.0, 1.0, 2.0]);
        assert!((wide.error - (2.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Verdict::of_differences(&[wide]), Verdict::Undecided);
        // The same means, each number above its own partner by 1.
        let paired = Difference::paired(&[1.0, 2.0, 3.0], &[0.0, 1.0, 2.0]);
        assert_eq!((paired.mean, paired.error), (1.0, 0.0));
        assert_eq!(Verdict::of_differences(&[paired]), Verdict::Holds);
        assert_eq!(Verdict::of_differences(&[paired, wide]), Verdict::Undecided);
        let below = Difference::paired(&[0.0, 1.0], &[1.0, 2.1]);
        let verdict = Verdict::of_differences(&[paired, wide, below]);
        assert_eq!(verdict, Verdict::DoesNotHold);
        let equal = Difference::between(&[1.0, 1.0], &[1.0, 1.0]);
        assert_eq!(Verdict::of_differences(&[equal]), Verdict::DoesNotHold);
        let single = Difference::between(&[2.0], &[1.0]);
        assert_eq!(Verdict::of_differences(&[single]), Verdict::Undecided);
        assert_eq!(single.to_string(), "+1.0000, a single number");
        assert_eq!(paired.to_string(), "+1.0000 ± 0.0000");
    }

    #[test]
    fn checkpoints_that_are_gone_are_named() {
        assert_eq!(missing(&[4]), "the checkpoint of the end of task 4 is gone");
        let several = missing(&[0, 1, 2]);
        assert_eq!(several, "checkpoints of the end of tasks 0 to 2 are gone");
        assert!(missing(&[0, 2, 5]).contains("3 tasks from 0 to 5"));
    }

    #[test]
    fn thirds_overlap_only_where_there_are_too_few() {
        assert_eq!(
            thirds(&[1.0, 2.0, 3.0, 4.0]),
            (&[1.0, 2.0][..], &[3.0, 4.0][..])
        );
        assert_eq!(thirds(&[1.0]), (&[1.0][..], &[1.0][..]));
        assert!(thirds(&[]).0.is_empty() && mean(&[]).is_nan());
    }
}
