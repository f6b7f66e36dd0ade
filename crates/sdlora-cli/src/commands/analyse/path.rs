//! `path`: figure 3 of the paper, whether a straight line between checkpoints crosses a barrier.

use sdlora_train::analysis::{PathPoint, straight_path};

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, not_shown, number};
use super::subject::Subject;
use crate::report::figure::{Axis, COLOURS, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "path",
    summary: "accuracy on tasks 0 and 1 along straight lines between checkpoints: no barrier (F3)",
    is_costly: false,
    ask,
};

/// A fall of accuracy below both ends that counts as a barrier: a point, as pictures show.
const BARRIER: f64 = 0.01;

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let run = subject.run()?;
    let last = run.last_round();
    let starts: Vec<usize> = run
        .rounds()
        .iter()
        .copied()
        .filter(|&r| r < last)
        .take(2)
        .collect();
    if starts.is_empty() {
        return not_shown("a line needs checkpoints of the ends of two tasks");
    }
    let n_steps = subject.options.points as usize;
    let mut progress = subject.progress();
    let (mut rows, mut series) = (Vec::new(), Vec::new());
    let mut deepest: f64 = 0.0;
    let mut ends = Vec::new();
    let named: Vec<String> = starts.iter().map(ToString::to_string).collect();
    for start in starts {
        progress(format!("line from task {start} to task {last}"));
        let Some(path) = straight_path(run, start, last, 2, n_steps)? else {
            return not_shown(
                "the head is not linear in the features, or the model has prompts: there is no line between two",
            );
        };
        for task_idx in 0..path[0].accuracy.len() {
            let curve: Vec<(f64, f64)> = path
                .iter()
                .map(|p| (p.lambda, p.accuracy[task_idx]))
                .collect();
            deepest = deepest.max(dip(&path, task_idx));
            ends.push(format!(
                "task {task_idx} from {:.2} to {:.2}",
                100.0 * curve[0].1,
                100.0 * curve[n_steps].1
            ));
            rows.extend(curve.iter().map(|&(lambda, accuracy)| {
                vec![
                    start.to_string(),
                    last.to_string(),
                    task_idx.to_string(),
                    number(lambda),
                    number(accuracy),
                ]
            }));
            series.push(Series {
                name: format!("task {task_idx}, from task {start} to {last}"),
                colour: COLOURS[series.len() % COLOURS.len()].into(),
                points: curve,
            });
        }
    }
    Ok(Finding {
        verdict: Verdict::of(deepest <= BARRIER),
        line: format!(
            "checkpoints are said to be joined by a path of low loss: on straight lines accuracy falls \
             at most {:.2} points below its lower end (lines from the ends of tasks {} to that of task \
             {last}: {}, among the classes known at the start)",
            100.0 * deepest,
            named.join(" and "),
            ends.join("; ")
        ),
        tables: vec![(
            "",
            csv(
                &["from_task", "to_task", "on_task", "lambda", "accuracy"],
                rows,
            ),
        )],
        figure: lines(
            "Accuracy along straight lines between checkpoints",
            Axis {
                title: "λ, from the earlier checkpoint to the later",
                within: &[0.0, 1.0],
            },
            Axis {
                title: "accuracy",
                within: &[1.0],
            },
            &series,
        ),
    })
}

/// How far the accuracy on a task falls below the lower of the two ends.
fn dip(path: &[PathPoint], task_idx: usize) -> f64 {
    let at = |point: &PathPoint| point.accuracy[task_idx];
    let lowest = path.iter().map(at).fold(f64::INFINITY, f64::min);
    let end = at(&path[0]).min(at(&path[path.len() - 1]));
    end - lowest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valley_is_a_dip_and_a_slope_is_none() {
        let path = |values: [f64; 3]| -> Vec<PathPoint> {
            let points = values.iter().enumerate();
            points
                .map(|(i, &v)| PathPoint {
                    lambda: i as f64 / 2.0,
                    accuracy: vec![v],
                })
                .collect()
        };
        assert_eq!(dip(&path([0.9, 0.8, 0.5]), 0), 0.0);
        assert_eq!(dip(&path([0.75, 0.25, 0.5]), 0), 0.25);
    }
}
