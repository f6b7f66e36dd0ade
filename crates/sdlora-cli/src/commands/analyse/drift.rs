//! `drift`: how far the features of old test images have moved.

use sdlora_train::analysis::TaskState;

use super::Diagnostic;
use super::finding::{Finding, Verdict, csv, mean, number};
use super::subject::Subject;
use crate::report::figure::{Axis, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "drift",
    summary: "features of old test images against those when their task was learned",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let trajectory = subject.trajectory()?;
    // The newest task has not drifted yet.
    let old = |of: fn(&TaskState) -> f64| -> Vec<f64> {
        let rows = trajectory.states.iter();
        rows.map(|row| mean(&row[..row.len() - 1].iter().map(of).collect::<Vec<_>>()))
            .collect()
    };
    let first: Vec<f64> = trajectory.states.iter().map(|row| row[0].cosine).collect();
    let (cosine, change) = (old(|s| s.cosine), old(|s| s.relative_change));
    let base = trajectory.mean(|s| s.cosine_to_base);
    let end = |values: &[f64]| values.last().copied().unwrap_or(f64::NAN);
    let rows = trajectory.rounds.iter().zip(&trajectory.states);
    let rows = rows.flat_map(|(round, row)| {
        row.iter().enumerate().map(move |(task_idx, state)| {
            vec![
                round.to_string(),
                task_idx.to_string(),
                number(state.cosine),
                number(state.relative_change),
                number(state.cosine_to_base),
            ]
        })
    });
    let header = [
        "after_task",
        "on_task",
        "cosine",
        "relative_change",
        "cosine_to_pretrained",
    ];
    let at_end = trajectory.states.last().map(|row| &row[0]);
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "at the end, features of old tasks have the cosine {:.3} with those when learned \
             (relative change {:.3}); task 0 alone {:.3} ({:.3}); all have {:.3} with the \
             pre-trained ones",
            end(&cosine),
            end(&change),
            end(&first),
            at_end.map_or(f64::NAN, |s| s.relative_change),
            end(&base),
        ),
        tables: vec![("", csv(&header, rows))],
        figure: lines(
            "Drift of features of old test images",
            Axis {
                title: "after task",
                within: &[],
            },
            Axis {
                title: "cosine",
                within: &[1.0],
            },
            &[
                Series::over_tasks("old tasks, with when learned", 0, &cosine),
                Series::over_tasks("task 0", 1, &first),
                Series::over_tasks("all tasks, with pre-trained", 2, &base),
            ],
        ),
    })
}
