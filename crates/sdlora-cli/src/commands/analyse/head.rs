//! `head`: lengths of the classifier's columns by task.

use sdlora_train::analysis::head_norms;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, mean, not_shown, number, thirds};
use super::subject::Subject;
use crate::report::figure::{Axis, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "head",
    summary: "length of the classifier's columns, and its bias, by task",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let (model, _) = subject.last()?;
    let run = subject.run()?;
    let Some(classes) = head_norms(&run.classifier(&model)?) else {
        return not_shown("the head has no column for each class");
    };
    let labels = run.task_labels(run.last_round());
    let by_task = |of: fn(&(f64, f64)) -> f64| -> Vec<f64> {
        let values: Vec<f64> = classes.iter().map(of).collect();
        labels.iter().map(|l| mean(&values[l.clone()])).collect()
    };
    let (norms, biases) = (by_task(|c| c.0), by_task(|c| c.1));
    let (early, late) = thirds(&norms);
    let rows = labels.iter().enumerate().flat_map(|(task_idx, labels)| {
        let classes = &classes;
        labels.clone().map(move |label| {
            vec![
                label.to_string(),
                run.class_name(label).into(),
                task_idx.to_string(),
                number(classes[label].0),
                number(classes[label].1),
            ]
        })
    });
    let header = ["label", "class", "task", "norm", "bias"];
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "columns have the mean length {:.3} in the first third of tasks and {:.3} in the last",
            mean(early),
            mean(late)
        ),
        tables: vec![("", csv(&header, rows))],
        figure: lines(
            "Columns of the classifier, mean over the classes of a task",
            Axis {
                title: "task",
                within: &[],
            },
            Axis {
                title: "length, bias",
                within: &[0.0],
            },
            &[
                Series::over_tasks("length", 0, &norms),
                Series::over_tasks("bias", 1, &biases),
            ],
        ),
    })
}
