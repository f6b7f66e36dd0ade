//! `drift`: how far the features of old test images have moved.

use sdlora_train::analysis::{TaskState, TrainedRun};

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, mean, missing, number};
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
    let run = subject.run()?;
    // The tasks of a round have not drifted at its end.
    let old = |of: fn(&TaskState) -> Option<f64>| -> Vec<f64> {
        let rounds = trajectory.rounds.iter().zip(&trajectory.states);
        rounds
            .map(|(&round, row)| mean(&values(&row[..n_old(run, round)], of)))
            .collect()
    };
    let first: Vec<f64> = trajectory
        .states
        .iter()
        .map(|row| row[0].cosine.unwrap_or(f64::NAN))
        .collect();
    let cosine = old(|s| s.cosine);
    let base = trajectory.mean(|s| s.cosine_to_base);
    let at_end = trajectory.states.last().map_or(&[][..], Vec::as_slice);
    let rows = trajectory.rounds.iter().zip(&trajectory.states);
    let rows = rows.flat_map(|(round, row)| {
        row.iter().enumerate().map(move |(task_idx, state)| {
            vec![
                round.to_string(),
                task_idx.to_string(),
                number(state.cosine.unwrap_or(f64::NAN)),
                number(state.relative_change.unwrap_or(f64::NAN)),
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
    let rounds = &trajectory.rounds;
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "{}; all have {:.3} with the pre-trained ones",
            since_learned(run, &at_end[..n_old(run, run.last_round())]),
            base.last().copied().unwrap_or(f64::NAN),
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
                Series::over("old tasks, with when learned", 0, rounds, &cosine),
                Series::over("task 0", 1, rounds, &first),
                Series::over("all tasks, with pre-trained", 2, rounds, &base),
            ],
        ),
    })
}

/// Tasks that an earlier round has learned.
fn n_old(run: &TrainedRun, round: usize) -> usize {
    (0..run.n_seen_tasks(round))
        .filter(|&task_idx| run.round_of(task_idx) < round)
        .count()
}

/// The numbers that are known.
fn values(states: &[TaskState], of: fn(&TaskState) -> Option<f64>) -> Vec<f64> {
    states.iter().filter_map(of).collect()
}

/// What the last kept round tells of features since they were learned, given the old tasks there.
fn since_learned(run: &TrainedRun, old: &[TaskState]) -> String {
    let cosines = values(old, |s| s.cosine);
    if cosines.is_empty() {
        let reason = match old.is_empty() {
            true => "there is no old task".to_owned(),
            false => missing(&run.missing_rounds()),
        };
        return format!(
            "at the end, features of old tasks against those when learned: not shown, {reason}"
        );
    }
    let mut line = format!(
        "at the end, features of old tasks have the cosine {:.3} with those when learned (relative \
         change {:.3})",
        mean(&cosines),
        mean(&values(old, |s| s.relative_change)),
    );
    if cosines.len() < old.len() {
        line.push_str(&format!(
            ", over {} of {} of them, because {}",
            cosines.len(),
            old.len(),
            missing(&run.missing_rounds())
        ));
    }
    if let (Some(cosine), Some(change)) = (old[0].cosine, old[0].relative_change) {
        line.push_str(&format!("; task 0 alone {cosine:.3} ({change:.3})"));
    }
    line
}
