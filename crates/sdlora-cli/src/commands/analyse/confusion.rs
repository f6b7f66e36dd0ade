//! `confusion`: which class and which task is taken for which.

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, matrix_csv, percent};
use super::subject::Subject;
use crate::report::figure::heat;

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "confusion",
    summary: "per class and per task, and what a task id would give",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let trajectory = subject.trajectory()?;
    let classes = subject.confusion()?;
    let run = subject.run()?;
    let labels = run.task_labels(run.last_round());
    let tasks = classes.grouped(&labels);
    let shares: Vec<Vec<f64>> = (0..tasks.n())
        .map(|i| {
            (0..tasks.n())
                .map(|j| tasks.share(i, j).unwrap_or(f64::NAN))
                .collect()
        })
        .collect();
    let states = trajectory.states.last().map_or(&[][..], Vec::as_slice);
    let n_images: Vec<f64> = (0..tasks.n()).map(|i| tasks.total(i) as f64).collect();
    let total: f64 = n_images.iter().sum();
    let weighted = states
        .iter()
        .zip(&n_images)
        .map(|(s, n)| s.accuracy_in_task * n);
    let with_id = weighted.sum::<f64>() / total;
    let later: usize = states.iter().map(|s| s.n_lost_later).sum();
    let earlier: usize = states.iter().map(|s| s.n_lost_earlier).sum();
    // Without preference every other class is as likely as any.
    let n_classes = classes.n() as f64;
    let expected_later: f64 = labels
        .iter()
        .zip(states)
        .map(|(labels, s)| {
            let others = n_classes - labels.len() as f64;
            let lost = (s.n_lost_later + s.n_lost_earlier) as f64;
            lost * (n_classes - labels.end as f64) / others.max(1.0)
        })
        .sum();
    let lost = (later + earlier).max(1) as f64;
    let pairs = (0..classes.n()).flat_map(|i| (0..classes.n()).map(move |j| (i, j)));
    let rows = pairs
        .filter(|&(i, j)| classes.count(i, j) > 0)
        .map(|(i, j)| {
            vec![
                i.to_string(),
                run.class_name(i).into(),
                j.to_string(),
                run.class_name(j).into(),
                classes.count(i, j).to_string(),
            ]
        });
    let header = [
        "label",
        "class",
        "predicted_label",
        "predicted_class",
        "count",
    ];
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "{} of test images are right, {} with a task id; of the images lost to another task, \
             {} went to a later one, {} expected without preference",
            percent(classes.accuracy().unwrap_or(f64::NAN)),
            percent(with_id),
            percent(later as f64 / lost),
            percent(expected_later / lost),
        ),
        tables: vec![
            ("", csv(&header, rows)),
            ("-tasks", matrix_csv("task", &shares)),
        ],
        figure: heat(
            "Share of a task's images that go to each task",
            ("task", "predicted task"),
            &shares,
            (0.0, 1.0),
        ),
    })
}
