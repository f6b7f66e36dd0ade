//! `refit`: what heads fitted anew reach, to part spoilt features from a spoilt head.

use sdlora_train::analysis::Refit;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, missing, number, percent};
use super::subject::Subject;
use crate::report::figure::{Axis, COLOURS, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "refit",
    summary: "accuracy of heads fitted anew on all training images: features or head?",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let trajectory = subject.trajectory()?;
    let run = subject.run()?;
    let refit = Refit::of(run, &trajectory.last)?;
    let fresh = percent(refit.fresh);
    let means = match refit.stale {
        Some(stale) => format!(
            "class means taken when learned {}, at the end {fresh}, so drift costs {:.2} points",
            percent(stale),
            100.0 * (refit.fresh - stale),
        ),
        None => format!(
            "class means at the end {fresh}, those taken when learned: not shown, {}",
            missing(&run.missing_rounds())
        ),
    };
    let heads = [
        ("head of the run", Some(refit.own)),
        ("head of the run (tasks levelled)", Some(refit.own_levelled)),
        ("class means when learned", refit.stale),
        ("class means at the end", Some(refit.fresh)),
        ("ridge at the end", refit.fresh_ridge),
        ("class means (pre-trained)", Some(refit.base)),
    ];
    let rows = heads
        .iter()
        .map(|(name, value)| vec![(*name).into(), number(value.unwrap_or(f64::NAN))]);
    let series: Vec<Series> = heads
        .iter()
        .zip(COLOURS)
        .enumerate()
        .map(|(i, ((name, value), colour))| {
            let height = value.unwrap_or(f64::NAN);
            let x = i as f64;
            Series {
                name: match value {
                    Some(value) => format!("{name} {}", percent(*value)),
                    None => format!("{name}: not shown"),
                },
                colour: colour.into(),
                points: vec![(x - 0.3, height), (x + 0.3, height)],
            }
        })
        .collect();
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "the head of the run has {} ({} with its tasks levelled); {means}; ridge at the end {}; \
             pre-trained class means {}",
            percent(refit.own),
            percent(refit.own_levelled),
            refit.fresh_ridge.map_or("not shown".into(), percent),
            percent(refit.base),
        ),
        tables: vec![("", csv(&["head", "accuracy"], rows))],
        figure: lines(
            "Accuracy at the end by head, over images",
            Axis {
                title: "head, in the order of the legend",
                within: &[-0.5, 5.5],
            },
            Axis {
                title: "accuracy",
                within: &[0.0, 1.0],
            },
            &series,
        ),
    })
}
