//! `sdlora analyse`: what the paper says of its method, looked for in a run.
//!
//! A diagnostic is one file and one line in [`DIAGNOSTICS`]. Each turns numbers of
//! [`sdlora_train::analysis`] into a figure, a table and one line; nothing is computed here.

mod calibration;
mod collisions;
mod confusion;
mod diagnostic;
mod drift;
pub(super) mod finding;
mod head;
mod logits;
mod magnitudes;
mod optima;
mod parameters;
mod path;
mod refit;
mod residual;
mod scale;
mod staircase;
mod subject;

use std::path::PathBuf;

use anyhow::Context;
use sdlora_train::TrainError;
use sdlora_train::files::{create_folders, write_file};

use crate::UsageError;
use crate::commands::{Common, run_parser};
use crate::hints::with_hint;
use crate::output::{note, say};
use crate::shown::{shown, shown_path};
use diagnostic::Diagnostic;
use finding::NotShown;
use subject::{Options, Subject};

/// Every diagnostic there is, in the order in which they are shown.
const DIAGNOSTICS: &[Diagnostic] = &[
    optima::DIAGNOSTIC,
    residual::DIAGNOSTIC,
    magnitudes::DIAGNOSTIC,
    path::DIAGNOSTIC,
    staircase::DIAGNOSTIC,
    scale::DIAGNOSTIC,
    collisions::DIAGNOSTIC,
    drift::DIAGNOSTIC,
    confusion::DIAGNOSTIC,
    logits::DIAGNOSTIC,
    head::DIAGNOSTIC,
    refit::DIAGNOSTIC,
    calibration::DIAGNOSTIC,
    parameters::DIAGNOSTIC,
];

/// Check what the paper says of its method in a run, with pictures and tables
#[derive(Debug, clap::Args)]
#[command(after_long_help = names())]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Folder or name of a run, finished or not; `staircase` needs none
    #[arg(value_parser = run_parser())]
    run: Option<PathBuf>,
    /// Only these diagnostics; without it all that do not train
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Folder to write to; RUN/analysis when absent
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

fn names() -> String {
    let width = DIAGNOSTICS.iter().map(|d| d.name.len()).max().unwrap_or(0);
    let lines = DIAGNOSTICS.iter().map(|d| {
        let note = if d.is_costly { " (only by name)" } else { "" };
        format!("  {:width$}  {}{note}", d.name, d.summary)
    });
    format!("Diagnostics:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let asked = asked(&args.only)?;
    let out = match (&args.out, &args.run) {
        (Some(out), _) => out.clone(),
        (None, Some(run)) => run.join("analysis"),
        (None, None) => {
            return Err(UsageError(
                "there is neither a run nor a place to write to: give a RUN, or `--out DIR`".into(),
            )
            .into());
        }
    };
    let mut subject = Subject::open(args.run.as_deref(), &args.common, args.options)?;
    if let Some(text) = subject.stops_short() {
        note!("{text}");
    }
    create_folders(&out).map_err(|e| UsageError(format!("{e}; choose another `--out`")))?;
    let mut lines = String::from("diagnostic,verdict,line\n");
    let mut n_shown = 0;
    for diagnostic in asked {
        let name = diagnostic.name;
        let (verdict, line) = match (diagnostic.ask)(&mut subject) {
            Ok(finding) => {
                n_shown += 1;
                for (suffix, text) in &finding.tables {
                    write_file(&out.join(format!("{name}{suffix}.csv")), text.as_bytes())?;
                }
                write_file(&out.join(format!("{name}.svg")), finding.figure.as_bytes())?;
                (finding.verdict.name(), finding.line)
            }
            Err(error) => (
                "not shown",
                reason(error).with_context(|| format!("diagnostic {name}"))?,
            ),
        };
        say!("{name}: {verdict}: {}", shown(&line));
        lines.push_str(&finding::row(&[name.into(), verdict.into(), line]));
    }
    write_file(&out.join("findings.csv"), lines.as_bytes())?;
    if n_shown > 0 {
        say!("figures and tables: {}", shown_path(&out));
    }
    Ok(())
}

/// Why a diagnostic has nothing to show; an error for what went wrong.
fn reason(error: anyhow::Error) -> anyhow::Result<String> {
    if let Some(NotShown(reason)) = error.downcast_ref() {
        return Ok(reason.clone());
    }
    match error.downcast_ref::<TrainError>() {
        Some(not_kept @ TrainError::NotKept { .. }) => Ok(with_hint(not_kept)),
        _ => Err(error),
    }
}

fn asked(only: &[String]) -> Result<Vec<&'static Diagnostic>, UsageError> {
    if only.is_empty() {
        return Ok(DIAGNOSTICS.iter().filter(|d| !d.is_costly).collect());
    }
    only.iter()
        .map(|name| {
            DIAGNOSTICS.iter().find(|d| d.name == name).ok_or_else(|| {
                let known: Vec<&str> = DIAGNOSTICS.iter().map(|d| d.name).collect();
                UsageError(format!(
                    "there is no diagnostic `{name}`: choose of {}",
                    known.join(", ")
                ))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_listed() {
        let help = names();
        for (i, diagnostic) in DIAGNOSTICS.iter().enumerate() {
            assert!(DIAGNOSTICS[..i].iter().all(|d| d.name != diagnostic.name));
            assert!(
                help.contains(&format!("  {}", diagnostic.name))
                    && help.contains(diagnostic.summary)
            );
        }
    }

    #[test]
    fn what_trains_is_asked_by_name_only() {
        assert!(asked(&[]).unwrap().iter().all(|d| d.name != "optima"));
        assert_eq!(asked(&["optima".into()]).unwrap()[0].name, "optima");
        let error = asked(&["drft".into()]).err().unwrap().to_string();
        assert!(error.contains("drft") && error.contains("drift"), "{error}");
    }
}
