//! The accuracy matrix as CSV: row = after task, column = on task, an empty cell where nothing was tested.
//!
//! ```text
//! after_task,0,1,2
//! 0,0.9,,
//! 1,0.8,0.88,
//! 2,0.7,0.84,0.95
//! ```
//!
//! Accuracies are fractions, written so that they read back exactly. Test counts and baseline are not part of the
//! table; they are in the JSON form of the matrix.

use std::fmt::Write;

use crate::{AccuracyMatrix, MetricsError};

const CORNER: &str = "after_task";

/// The matrix as CSV text, one line per trained task after a header.
pub fn to_csv(matrix: &AccuracyMatrix) -> String {
    let mut text = String::from(CORNER);
    for on in 0..matrix.n_tasks() {
        // Writing to a string cannot fail.
        let _ = write!(text, ",{on}");
    }
    text.push('\n');
    for after in 0..matrix.n_rows() {
        let _ = write!(text, "{after}");
        for on in 0..matrix.n_tasks() {
            text.push(',');
            if let Some(accuracy) = matrix.get(after, on) {
                let _ = write!(text, "{accuracy}");
            }
        }
        text.push('\n');
    }
    text
}

/// Reads what [`to_csv`] wrote; spaces around cells, Windows line ends and empty lines are accepted.
///
/// # Errors
///
/// If the header or a row label is not as expected, a cell is not a number, a row has another number of columns than
/// the header, or a row does not fit the matrix ([`AccuracyMatrix::push_row`]).
pub fn from_csv(text: &str) -> Result<AccuracyMatrix, MetricsError> {
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(line_idx, line)| (line_idx + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty());
    let (line, header) = lines
        .next()
        .ok_or_else(|| problem(1, format!("the file is empty: expected `{CORNER},0,1,…`")))?;
    let mut columns = header.split(',').map(str::trim);
    if columns.next() != Some(CORNER) {
        return Err(problem(
            line,
            format!("the header must start with `{CORNER}`"),
        ));
    }
    let mut n_tasks = 0;
    for column in columns {
        if column.parse() != Ok(n_tasks) {
            return Err(problem(
                line,
                format!("column is `{column}`, expected task {n_tasks}"),
            ));
        }
        n_tasks += 1;
    }

    let mut matrix = AccuracyMatrix::new(n_tasks);
    for (line, row) in lines {
        let mut cells = row.split(',').map(str::trim);
        let label = cells.next().unwrap_or_default();
        let after = matrix.n_rows();
        if label.parse() != Ok(after) {
            return Err(problem(
                line,
                format!("row is `{label}`, expected task {after}"),
            ));
        }
        let cells: Vec<&str> = cells.collect();
        if cells.len() != n_tasks {
            return Err(problem(
                line,
                format!(
                    "{} cells for {n_tasks} tasks: write one comma for each task",
                    cells.len()
                ),
            ));
        }
        // An empty cell among the seen tasks is one that was not tested.
        let last = cells.iter().rposition(|cell| !cell.is_empty());
        let n = match last {
            None => {
                matrix.push_missing_row()?;
                continue;
            }
            Some(last) if last > after => n_tasks,
            Some(_) => after + 1,
        };
        let accuracies = cells.iter().take(n).map(|cell| match cell.is_empty() {
            true => Ok(None),
            false => parse(line, cell).map(Some),
        });
        let accuracies: Result<_, MetricsError> = accuracies.collect();
        matrix.push_measured(accuracies?)?;
    }
    Ok(matrix)
}

fn parse(line: usize, cell: &str) -> Result<f64, MetricsError> {
    cell.parse().map_err(|_| {
        problem(
            line,
            format!("`{cell}` is not a number: expected a fraction such as 0.93"),
        )
    })
}

fn problem(line: usize, problem: String) -> MetricsError {
    MetricsError::Csv { line, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_back() {
        let mut matrix = AccuracyMatrix::new(4);
        matrix.push_row(vec![0.9, 0.1, 1.0 / 3.0, 0.0]).unwrap();
        matrix.push_missing_row().unwrap();
        matrix.push_row(vec![0.7, 0.84, 1.0]).unwrap();
        let text = to_csv(&matrix);
        assert_eq!(
            text,
            "after_task,0,1,2,3\n0,0.9,0.1,0.3333333333333333,0\n1,,,,\n2,0.7,0.84,1,\n"
        );
        assert_eq!(from_csv(&text).unwrap(), matrix);
        assert_eq!(from_csv(&text.replace('\n', " \r\n\r\n")).unwrap(), matrix);
    }

    #[test]
    fn an_entry_that_was_not_tested_is_an_empty_cell() {
        let mut matrix = AccuracyMatrix::new(3);
        for row in [
            vec![Some(0.5)],
            vec![None, Some(0.25)],
            vec![Some(0.5), None, None],
        ] {
            matrix.push_measured(row).unwrap();
        }
        let text = to_csv(&matrix);
        assert_eq!(text, "after_task,0,1,2\n0,0.5,,\n1,,0.25,\n2,0.5,,\n");
        assert_eq!(from_csv(&text).unwrap(), matrix);
    }

    #[test]
    fn a_matrix_without_rows_reads_back() {
        for n_tasks in [0, 2] {
            let matrix = AccuracyMatrix::new(n_tasks);
            assert_eq!(from_csv(&to_csv(&matrix)).unwrap(), matrix);
        }
    }

    #[test]
    fn the_message_has_line_and_fix() {
        for (text, message) in [
            ("", "line 1 of the accuracy matrix: the file is empty"),
            (
                "task,0\n",
                "line 1 of the accuracy matrix: the header must start with `after_task`",
            ),
            ("after_task,0,2\n", "column is `2`, expected task 1"),
            (
                "after_task,0\n1,0.5\n",
                "line 2 of the accuracy matrix: row is `1`, expected task 0",
            ),
            ("after_task,0,1\n0,0.5\n", "1 cells for 2 tasks"),
            ("after_task,0\n0,high\n", "`high` is not a number"),
            (
                "after_task,0\n0,NaN\n",
                "accuracy NaN on task 0 after task 0",
            ),
            ("after_task,0\n0,93.5\n", "pass fractions"),
            ("after_task,0\n0,0.5\n1,0.5\n", "already has rows"),
        ] {
            let error = from_csv(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text:?}: {error}");
        }
    }
}
