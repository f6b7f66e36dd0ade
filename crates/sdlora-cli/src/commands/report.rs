//! `sdlora report`: finished runs side by side on one page.

use std::path::{Path, PathBuf};

use sdlora_metrics::Summary;
use sdlora_train::files::write_file;
use sdlora_train::read_plan;

use crate::UsageError;
use crate::commands::{check_place, run_parser};
use crate::output::say;
use crate::report::{Entry, side_by_side};
use crate::results::{self, METRICS_FILE};
use crate::shown::shown_path;

/// Put finished runs side by side on one page
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders or names of finished runs; each has a report of its own in it
    #[arg(required = true, value_name = "RUN", value_parser = run_parser())]
    runs: Vec<PathBuf>,
    /// File to write the page to; it needs nothing beside it
    #[arg(long, value_name = "FILE", default_value = "comparison.html")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    check_place("--out", &args.out)?;
    for (i, run) in args.runs.iter().enumerate() {
        let (place, earlier) = (real(run), &args.runs[..i]);
        if earlier.iter().any(|other| real(other) == place) {
            return Err(UsageError(format!(
                "{} stands twice in the list: name every run once",
                run.display()
            ))
            .into());
        }
        if place.is_some() && place == real(args.out.parent().unwrap_or(Path::new("."))) {
            return Err(UsageError(format!(
                "`--out {}` lies in the folder of a run, which holds that run alone: choose another place",
                args.out.display()
            ))
            .into());
        }
    }
    let names = names(&args.runs);
    let entries: Vec<Entry> = args
        .runs
        .iter()
        .zip(names)
        .map(|(run, name)| entry(run, name))
        .collect::<anyhow::Result<_>>()?;
    let title = match entries.len() {
        1 => entries[0].name.clone(),
        n => format!("{n} runs side by side"),
    };
    write_file(&args.out, side_by_side(&title, &entries).as_bytes())?;
    say!("report: {}", shown_path(&args.out));
    Ok(crate::output::check()?)
}

fn real(path: &Path) -> Option<PathBuf> {
    let path = match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    };
    std::fs::canonicalize(path).ok()
}

/// A run as a row of the page.
fn entry(run: &Path, name: String) -> anyhow::Result<Entry> {
    if !run.join(METRICS_FILE).is_file() {
        return Err(UsageError(format!(
            "{} is no folder of a finished run: it has no {METRICS_FILE}",
            run.display()
        ))
        .into());
    }
    let metrics = results::read(run)?;
    let config = read_plan(run)?;
    let log = &metrics.log;
    let seconds: f64 = log.tasks.iter().map(|task| task.total_seconds()).sum();
    let n_tasks = log.tasks.len().max(1);
    let fact = |name: &str, value: String| (name.to_owned(), value);
    Ok(Entry {
        name,
        summaries: vec![Summary::of(&log.matrix)],
        seconds_per_task: vec![seconds / n_tasks as f64],
        n_parameters: log.n_trained.iter().copied().max(),
        facts: vec![
            fact("Method", config.method.name.clone()),
            fact("Data set", config.dataset.clone()),
            fact("Tasks", log.matrix.n_tasks().to_string()),
            fact("Seed", config.seed.to_string()),
        ],
    })
}

/// What the runs are called: the names of their folders, and of as many folders above as tell them apart.
fn names(runs: &[PathBuf]) -> Vec<String> {
    let parts: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let run = real(run).unwrap_or_else(|| run.clone());
            let parts = run.components().rev();
            parts
                .map(|part| part.as_os_str().to_string_lossy().into_owned())
                .collect()
        })
        .collect();
    let deepest = parts.iter().map(Vec::len).max().unwrap_or(1);
    let named = |depth: usize| -> Vec<String> {
        let name = |parts: &Vec<String>| {
            let own: Vec<&str> = parts.iter().take(depth).rev().map(String::as_str).collect();
            own.join("/")
        };
        parts.iter().map(name).collect()
    };
    let is_apart = |names: &Vec<String>| {
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        sorted.len() == names.len()
    };
    let found = (1..=deepest).map(named).find(is_apart);
    found.unwrap_or_else(|| named(deepest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_what_tells_them_apart() {
        let of = |runs: &[&str]| names(&runs.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["no/a", "no/b"]), ["a", "b"]);
        assert_eq!(of(&["no/x/a", "no/y/a", "no/y/b"]), ["x/a", "y/a", "y/b"]);
    }
}
