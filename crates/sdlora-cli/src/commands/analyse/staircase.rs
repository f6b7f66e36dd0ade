//! `staircase`: theorem 1 of the paper on a synthetic problem; needs no run.

use sdlora_train::analysis::{StaircaseConfig, staircase};

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, number};
use super::subject::Subject;
use crate::report::figure::{Axis, COLOURS, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "staircase",
    summary: "singular values of a synthetic factorisation appear one after another (theorem 1)",
    is_costly: false,
    ask,
};

fn ask(_: &mut Subject) -> anyhow::Result<Finding> {
    let config = StaircaseConfig::default();
    let found = staircase(&config)?;
    let steps: Vec<String> = found
        .half_steps
        .iter()
        .map(|step| step.map_or("never".into(), |s| s.to_string()))
        .collect();
    let rows = found
        .steps
        .iter()
        .zip(&found.values)
        .flat_map(|(step, values)| {
            let values = values.iter().enumerate();
            values.map(move |(k, &v)| vec![step.to_string(), k.to_string(), number(v)])
        });
    let series: Vec<Series> = config
        .singular_values
        .iter()
        .enumerate()
        .map(|(k, goal)| Series {
            name: format!("value {k}, target {goal}"),
            colour: COLOURS[k % COLOURS.len()].into(),
            points: found
                .steps
                .iter()
                .zip(&found.values)
                .map(|(&step, values)| (step as f64, values[k]))
                .collect(),
        })
        .collect();
    Ok(Finding {
        verdict: Verdict::of(found.is_in_order()),
        line: format!(
            "singular values are said to be learned one after another, the largest first: half of \
             {:?} is reached at the steps {}",
            config.singular_values,
            steps.join(", ")
        ),
        tables: vec![("", csv(&["step", "index", "singular_value"], rows))],
        figure: lines(
            "Singular values of A B in gradient descent",
            Axis {
                title: "step",
                within: &[],
            },
            Axis {
                title: "singular value",
                within: &[0.0],
            },
            &series,
        ),
    })
}
