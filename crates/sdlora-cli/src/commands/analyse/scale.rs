//! `scale`: the update of the weights against the weights.

use sdlora_train::analysis::update_scale;

use super::diagnostic::Diagnostic;
use super::finding::{Finding, Verdict, csv, not_shown, number};
use super::subject::Subject;
use crate::report::figure::{Axis, Series, lines};

pub(super) const DIAGNOSTIC: Diagnostic = Diagnostic {
    name: "scale",
    summary: "size of the update against the pre-trained weights, per site and task",
    is_costly: false,
    ask,
};

fn ask(subject: &mut Subject) -> anyhow::Result<Finding> {
    let run = subject.run()?;
    let scale = update_scale(run)?;
    let all = scale.relative(None);
    let (Some(first), Some(last)) = (all.first(), all.last()) else {
        return not_shown("the method leaves the weights of the backbone as they are");
    };
    let projections = scale.projections();
    let mut series = vec![Series::over("all that changes", 0, run.rounds(), &all)];
    let mut parts = Vec::new();
    for (i, &projection) in projections.iter().enumerate() {
        let values = scale.relative(Some(projection));
        parts.push(format!(
            "{} {:.3}",
            projection.name(),
            values.last().copied().unwrap_or(f64::NAN)
        ));
        series.push(Series::over(
            projection.name(),
            i + 1,
            run.rounds(),
            &values,
        ));
    }
    let rows = scale.sites.iter().flat_map(|site| {
        let rounds = run.rounds().iter().zip(&site.update);
        rounds.map(move |(round, &update)| {
            vec![
                round.to_string(),
                site.block_idx.to_string(),
                site.projection.name().into(),
                number(site.base),
                number(update),
                number(update / site.base),
            ]
        })
    });
    let header = [
        "after_task",
        "block",
        "projection",
        "base_norm",
        "update_norm",
        "ratio",
    ];
    Ok(Finding {
        verdict: Verdict::Measured,
        line: format!(
            "‖ΔW‖/‖W0‖ is {first:.3} after task {} and {last:.3} after task {} ({})",
            run.rounds()[0],
            run.last_round(),
            parts.join(", ")
        ),
        tables: vec![("", csv(&header, rows))],
        figure: lines(
            "Size of the update, ‖ΔW‖ / ‖W0‖",
            Axis {
                title: "after task",
                within: &[],
            },
            Axis {
                title: "ratio of Frobenius norms",
                within: &[0.0],
            },
            &series,
        ),
    })
}
