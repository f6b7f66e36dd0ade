//! `magnitudes`: figure 2 of the paper, whether early directions weigh more than late ones.

use super::Diagnostic;
use super::finding::{Finding, Verdict, csv, mean, not_shown, number, thirds};
use super::subject::Subject;
use crate::report::figure::{Axis, Series, lines, shade};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "magnitudes",
    summary: "magnitudes after every task: early ones rise, late ones are smaller (F2b)",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let (model, log) = subject.last()?;
    let rows: Vec<Vec<f64>> = log
        .magnitudes
        .iter()
        .map(|groups| mean_of(groups))
        .collect();
    let last = rows.last().map_or(&[][..], Vec::as_slice);
    // The direction of the last task is not divided by its norm yet where the method does so only
    // afterwards: its magnitude says something else.
    let is_running = model
        .adapter
        .sites
        .first()
        .is_some_and(|s| s.current.is_some());
    let finished = &last[..last.len() - usize::from(is_running && !last.is_empty())];
    if finished.len() < 2 {
        return not_shown("there are not two finished directions with magnitudes to compare");
    }
    let sizes: Vec<f64> = finished.iter().map(|m| m.abs()).collect();
    let (early, late) = thirds(&sizes);
    let learned: Vec<f64> = (0..early.len())
        .map(|k| first_value(&rows, k).abs())
        .collect();
    let rise = mean(early) - mean(&learned);
    let holds = mean(early) > mean(late) && rise > 0.0;
    let table = rows.iter().enumerate().flat_map(|(after, row)| {
        row.iter()
            .enumerate()
            .map(move |(k, &value)| vec![after.to_string(), k.to_string(), number(value)])
    });
    let series: Vec<Series> = (0..last.len())
        .map(|k| Series {
            name: match k {
                0 => "direction of task 0".into(),
                _ if k + 1 == last.len() => format!("of task {k}"),
                _ => String::new(),
            },
            colour: shade(k, last.len()),
            points: rows
                .iter()
                .enumerate()
                .filter_map(|(after, row)| Some((after as f64, *row.get(k)?)))
                .collect(),
        })
        .collect();
    Ok(Finding {
        verdict: Verdict::of(holds),
        line: format!(
            "early directions are said to gain weight and late ones to have less: |α| of the first \
             third is {:.4} at the end and {:.4} when learned ({rise:+.4}), of the last third {:.4}",
            mean(early),
            mean(&learned),
            mean(late),
        ),
        tables: vec![("", csv(&["after_task", "direction", "magnitude"], table))],
        figure: lines(
            "Magnitude of every direction",
            Axis {
                title: "after task",
                within: &[],
            },
            Axis {
                title: "magnitude",
                within: &[],
            },
            &series,
        ),
    })
}

/// The mean over groups of each column.
fn mean_of(groups: &[Vec<f64>]) -> Vec<f64> {
    let n = groups.first().map_or(0, Vec::len);
    (0..n)
        .map(|k| mean(&groups.iter().map(|g| g[k]).collect::<Vec<_>>()))
        .collect()
}

/// A direction's magnitude at the end of the first task after its own: the first time it is divided
/// by its norm.
fn first_value(rows: &[Vec<f64>], k: usize) -> f64 {
    let mut seen = rows.iter().filter_map(|row| row.get(k).copied());
    let own = seen.next().unwrap_or(f64::NAN);
    seen.next().unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_is_first_seen_after_the_task_behind_its_own() {
        let rows = [vec![0.8], vec![0.9, 0.8], vec![1.1, 0.7, 0.8]];
        assert_eq!(first_value(&rows, 0), 0.9);
        assert_eq!(first_value(&rows, 1), 0.7);
        assert_eq!(first_value(&rows, 2), 0.8);
        assert_eq!(mean_of(&[vec![1.0, 2.0], vec![3.0, 4.0]]), [2.0, 3.0]);
    }
}
