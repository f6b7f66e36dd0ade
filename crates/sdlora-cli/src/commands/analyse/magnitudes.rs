//! `magnitudes`: figure 2 of the paper, whether early directions weigh more than late ones.

use super::diagnostic::Diagnostic;
use super::finding::{Difference, Finding, Verdict, csv, mean, not_shown, number, thirds};
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
    let n = finished.len();
    let n_third = thirds(finished).0.len();
    let (early, late) = (
        sizes(&log.magnitudes, 0..n_third),
        sizes(&log.magnitudes, n - n_third..n),
    );
    let rise = Difference::paired(&early.last, &early.learned);
    let lead = Difference::between(&early.last, &late.last);
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
        verdict: Verdict::of_differences(&[rise, lead]),
        line: format!(
            "early directions are said to gain weight and late ones to have less: |α| of the first \
             third is {:.4} at the end and {:.4} when learned ({rise}), of the last third {:.4} (the \
             first third less it: {lead}); ± is the standard error, over {} magnitudes a third",
            mean(&early.last),
            mean(&early.learned),
            mean(&late.last),
            early.last.len(),
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

/// `|α|` of some directions, one number for each direction of each group of sites.
#[derive(Debug, PartialEq)]
struct Sizes {
    last: Vec<f64>,
    /// At the end of the first task after a direction's own: the first time it is divided by its norm.
    learned: Vec<f64>,
}

/// Of `magnitudes[after task][group][direction]`.
fn sizes(magnitudes: &[Vec<Vec<f64>>], directions: std::ops::Range<usize>) -> Sizes {
    let (mut last, mut learned) = (Vec::new(), Vec::new());
    let n_groups = magnitudes.last().map_or(0, Vec::len);
    for group in 0..n_groups {
        for k in directions.clone() {
            let seen = magnitudes.iter().filter_map(|row| row.get(group)?.get(k));
            let seen: Vec<f64> = seen.map(|magnitude| magnitude.abs()).collect();
            if let Some(&end) = seen.last() {
                last.push(end);
                learned.push(*seen.get(1).unwrap_or(&end));
            }
        }
    }
    Sizes { last, learned }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_is_first_seen_after_the_task_behind_its_own_in_every_group() {
        let one = [vec![0.8], vec![0.9, 0.8], vec![1.1, -0.7, 0.8]];
        let both: Vec<Vec<Vec<f64>>> = one
            .iter()
            .map(|row| vec![row.clone(), row.iter().map(|v| 2.0 * v).collect()])
            .collect();
        let first = sizes(&both, 0..1);
        assert_eq!(
            (first.last, first.learned),
            (vec![1.1, 2.2], vec![0.9, 1.8])
        );
        assert_eq!(sizes(&both, 1..3).last, [0.7, 0.8, 1.4, 1.6]);
        assert_eq!(sizes(&both, 2..3).learned, [0.8, 1.6]);
        assert_eq!(mean_of(&[vec![1.0, 2.0], vec![3.0, 4.0]]), [2.0, 3.0]);
    }
}
