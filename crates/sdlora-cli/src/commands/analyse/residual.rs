//! `residual`: figure 2 of the paper, whether later directions lie in the span of earlier ones.

use sdlora_train::RunLog;
use sdlora_train::analysis::direction_residuals;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, mean, not_shown, number, thirds};
use super::subject::Subject;
use crate::report::figure::{Axis, Series, lines, shade};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "residual",
    summary: "what earlier directions leave of each new one: less and less (F2a)",
    is_costly: false,
    ask,
};

/// A fall of the residual that counts: directions drawn at random are orthogonal up to less.
const FALL: f64 = 0.01;

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let run = subject.run()?;
    let (sites, residuals) = direction_residuals(run)?;
    let n = residuals.first().map_or(0, Vec::len);
    if n < 3 {
        return not_shown("there are not three directions to compare");
    }
    let of = |f: fn(f64, f64) -> f64, start: f64| -> Vec<f64> {
        (0..n)
            .map(|k| residuals.iter().map(|site| site[k]).fold(start, f))
            .collect()
    };
    let means: Vec<f64> = (0..n)
        .map(|k| mean(&residuals.iter().map(|site| site[k]).collect::<Vec<_>>()))
        .collect();
    let (low, high) = (of(f64::min, f64::INFINITY), of(f64::max, 0.0));
    // The first direction has nothing before it.
    let (early, late) = thirds(&means[1..]);
    let (early, late) = (mean(early), mean(late));
    let rows = sites.iter().zip(&residuals).flat_map(|(site, values)| {
        let values = values.iter().enumerate();
        values.map(move |(k, &v)| vec![site.clone(), k.to_string(), number(v)])
    });
    let (_, log) = subject.last()?;
    let steps = by_step(&log);
    let mut line = format!(
        "later directions are said to lie more in the span of earlier ones: the relative residual \
         is {early:.4} in the first third of tasks and {late:.4} in the last (1 is orthogonal)"
    );
    let mut figure = lines(
        "Residual of each direction on the span of the earlier ones",
        Axis {
            title: "direction of task",
            within: &[],
        },
        Axis {
            title: "relative residual",
            within: &[1.0],
        },
        &[
            Series::over_tasks("mean over sites", 0, &means),
            Series::over_tasks("smallest", 4, &low),
            Series::over_tasks("largest", 4, &high),
        ],
    );
    let mut tables = vec![("", csv(&["site", "direction", "residual"], rows))];
    if !steps.is_empty() {
        let (first, last) = (mean(&ends(&steps, false)), mean(&ends(&steps, true)));
        line.push_str(&format!(
            "; inside a task it goes from {first:.4} at the first recorded step to {last:.4} at the last"
        ));
        let rows = steps.iter().flat_map(|(task_idx, points)| {
            points
                .iter()
                .map(move |&(step, v)| vec![task_idx.to_string(), step.to_string(), number(v)])
        });
        tables.push(("-steps", csv(&["task", "step", "residual"], rows)));
        let n = steps.len();
        let series: Vec<Series> = steps
            .iter()
            .enumerate()
            .map(|(i, (task_idx, points))| Series {
                name: match i == 0 || i + 1 == n {
                    true => format!("task {task_idx}"),
                    false => String::new(),
                },
                colour: shade(i, n),
                points: points.iter().map(|&(step, v)| (step as f64, v)).collect(),
            })
            .collect();
        figure = lines(
            "Residual of the running direction on the span of the earlier ones",
            Axis {
                title: "step of the task",
                within: &[],
            },
            Axis {
                title: "relative residual",
                within: &[1.0],
            },
            &series,
        );
    }
    Ok(Finding {
        verdict: Verdict::of(early - late >= FALL),
        line,
        tables,
        figure,
    })
}

/// Tasks with the steps that were recorded in them.
fn by_step(log: &RunLog) -> Vec<(usize, &[(usize, f64)])> {
    let tasks = log.tasks.iter().enumerate();
    tasks
        .map(|(task_idx, task)| (task_idx, task.residuals.as_slice()))
        .filter(|(_, residuals)| !residuals.is_empty())
        .collect()
}

/// The first or the last record of every task.
fn ends(steps: &[(usize, &[(usize, f64)])], last: bool) -> Vec<f64> {
    let at = |points: &[(usize, f64)]| points[if last { points.len() - 1 } else { 0 }].1;
    steps.iter().map(|(_, points)| at(points)).collect()
}
