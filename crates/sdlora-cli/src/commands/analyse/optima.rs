//! `optima`: figure 1 of the paper, whether the optima of tasks are near each other.

use sdlora_train::analysis::task_optima;

use super::diagnostic::Diagnostic;
use super::finding::{self, Finding, Verdict, matrix_csv};
use super::subject::Subject;
use crate::report::figure::heat;

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "optima",
    summary: "distances between weights fine-tuned on single tasks, against those to the start (F1); trains",
    is_costly: true,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let run = subject.run()?;
    let (n_tasks, lr_factor) = (subject.options.tasks as usize, subject.options.lr_factor);
    let mut progress = subject.progress();
    let optima = task_optima(run, n_tasks, lr_factor, &mut |task_idx| {
        progress(format!("fine-tuned on task {task_idx}"));
    })?;
    let n = optima.to_base.len();
    let mut rows: Vec<Vec<f64>> = (0..n)
        .map(|i| (0..n).map(|j| optima.relative(i, j)).collect())
        .collect();
    let largest = rows.iter().flatten().copied().fold(0.0, f64::max);
    let mean = optima.mean_relative();
    let figure = heat(
        "Distance between the optima of two tasks, relative to that of the row's to the start",
        ("of the row, task", "of the column, task"),
        &rows,
        (0.0, largest.max(1.0)),
    );
    let moved = finding::mean(&optima.to_base);
    rows.push(optima.to_base.clone());
    let mut table = matrix_csv("task", &rows);
    // The last row is another kind of number.
    if let Some(at) = table.trim_end().rfind('\n') {
        let rest = table.split_off(at + 1);
        table.push_str(&rest.replacen(&n.to_string(), "distance_to_start", 1));
    }
    Ok(Finding {
        verdict: Verdict::of(mean < 1.0),
        line: format!(
            "optima of tasks are said to be nearer to each other than to the start: the relative \
             distance is {mean:.3} on average over {n} tasks, at most {largest:.3} (below 1 is nearer; \
             moves in random directions give 1.414); tasks move the weights by {moved:.3} on average"
        ),
        tables: vec![("", table)],
        figure,
    })
}
