//! `logits`: whether classes of newer tasks have larger logits.

use sdlora_train::analysis::task_logits;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, mean, not_shown, number, thirds};
use super::subject::Subject;
use crate::report::figure::{Axis, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "logits",
    summary: "largest logit of each task's classes on its own and on other images",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let trajectory = subject.trajectory()?;
    let run = subject.run()?;
    let tasks = task_logits(&trajectory.last, &run.task_labels(run.last_round()));
    if tasks.len() < 2 {
        return not_shown("one task alone has no images of others");
    }
    let of = |f: fn(&sdlora_train::analysis::TaskLogits) -> f64| -> Vec<f64> {
        tasks.iter().map(f).collect()
    };
    let (own, foreign, wins) = (of(|t| t.own), of(|t| t.foreign), of(|t| t.wins));
    let deviation = mean(&of(|t| t.foreign_deviation));
    let (early, late) = thirds(&foreign);
    let (early, late) = (mean(early), mean(late));
    let at = mean(&foreign);
    let unequal: Vec<f64> = foreign.iter().map(|f| (f - at) * (f - at)).collect();
    let (early_wins, late_wins) = thirds(&wins);
    let rows = tasks.iter().enumerate().map(|(i, t)| {
        vec![
            i.to_string(),
            number(t.own),
            number(t.foreign),
            number(t.foreign_deviation),
            number(t.wins),
        ]
    });
    let header = ["task", "own", "foreign", "foreign_deviation", "wins"];
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "on images of other tasks the largest logit is {early:.2} for the first third of tasks \
             and {late:.2} for the last, {:+.2} deviations; tasks differ by {:.2} deviations; a \
             task wins {:.2} % of foreign images in the first third, {:.2} % in the last",
            (late - early) / deviation,
            mean(&unequal).sqrt() / deviation,
            100.0 * mean(early_wins),
            100.0 * mean(late_wins),
        ),
        tables: vec![("", csv(&header, rows))],
        figure: lines(
            "Largest logit of each task's classes at the end",
            Axis {
                title: "task",
                within: &[],
            },
            Axis {
                title: "mean logit",
                within: &[],
            },
            &[
                Series::over_tasks("on its own images", 0, &own),
                Series::over_tasks("on images of other tasks", 1, &foreign),
            ],
        ),
    })
}
