//! `collisions`: whether tasks change the same entries of the weights.

use sdlora_train::analysis::collisions;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, matrix_csv, mean, not_shown, percent};
use super::subject::Subject;
use crate::report::figure::heat;

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "collisions",
    summary: "entries of the weights that two tasks both change, and those that a task leaves (--threshold)",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let threshold = subject.options.threshold;
    let found = collisions(subject.run()?, threshold)?;
    let Some(rate) = found.mean_rate() else {
        return not_shown("there are not two tasks to compare");
    };
    if found.sparsity.iter().all(|&share| share == 1.0) {
        return not_shown(format!(
            "no task changes an entry of a weight by {threshold} or more"
        ));
    }
    let sparsity = mean(&found.sparsity);
    let largest = found.rates.iter().flatten().copied().fold(0.0, f64::max);
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "two tasks both change {} of the entries of the weights on average, and a task leaves {} \
             of them ({threshold} and more is a change)",
            percent(rate),
            percent(sparsity),
        ),
        // On the diagonal the share that the task itself changes.
        tables: vec![("", matrix_csv("task", &found.rates))],
        figure: heat(
            "Share of the entries of the weights that two tasks both change",
            ("of the row, task", "of the column, task"),
            &found.rates,
            (0.0, largest),
        ),
    })
}
