//! `parameters`: what is stored and what of it is trained, by part.

use sdlora_train::analysis::parts;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, mean};
use super::subject::Subject;
use crate::report::figure::{Axis, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "parameters",
    summary: "numbers stored and trained, by part and task",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let run = subject.run()?;
    let mut rows = Vec::new();
    let mut stored = Vec::new();
    let mut last = Vec::new();
    // The log has what was trained in every task, also in those whose checkpoint is gone.
    let (_, log) = run.model_after(run.last_round())?;
    let trained: Vec<f64> = log.n_trained.iter().map(|&n| n as f64).collect();
    for &round in run.rounds() {
        last = parts(&run.model_after(round)?.0);
        let learned = last.iter().filter(|p| p.name != "backbone");
        stored.push(learned.map(|p| p.n_stored as f64).sum::<f64>());
        rows.extend(last.iter().map(|p| {
            vec![
                round.to_string(),
                p.name.into(),
                p.n_stored.to_string(),
                p.n_trained.to_string(),
                (4 * p.n_stored).to_string(),
            ]
        }));
    }
    let named: Vec<String> = last
        .iter()
        .map(|p| format!("{} {}", p.name, p.n_stored))
        .collect();
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "stored after task {}: {}; {} trained in the last task, {:.0} on average",
            run.last_round(),
            named.join(", "),
            log.n_trained.last().copied().unwrap_or(0),
            mean(&trained),
        ),
        tables: vec![(
            "",
            csv(&["after_task", "part", "stored", "trained", "bytes"], rows),
        )],
        figure: lines(
            "Numbers beside the backbone",
            Axis {
                title: "after task",
                within: &[],
            },
            Axis {
                title: "thousands of numbers",
                within: &[0.0],
            },
            &[
                Series::over("stored", 0, run.rounds(), &thousands(&stored)),
                Series::over_tasks("trained in the task", 1, &thousands(&trained)),
            ],
        ),
    })
}

/// Millions would not fit beside the axis.
fn thousands(numbers: &[f64]) -> Vec<f64> {
    numbers.iter().map(|n| n / 1000.0).collect()
}
