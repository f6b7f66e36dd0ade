//! `sdlora inspect`: what a checkpoint or a run is, without computing anything.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use sdlora_fetch::HubRepo;
use sdlora_metrics::Summary;
use sdlora_train::learned::present_run;
use sdlora_train::{PLAN_FILE, checkpoint, read_plan};
use sdlora_vit::{Checkpoint, Hints, MappedTensor, VitError};
use sdlora_weights::WeightFile;

use crate::UsageError;
use crate::backbone::fetch;
use crate::known::KnownArgs;
use crate::output::answer;
use crate::report::summary_block;
use crate::results;
use crate::shown::{clipped, clipped_to, shown, shown_path};

/// Show what a checkpoint or a run is
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A weight file, a folder with one, a model of the Hub as hf:ORG/NAME, or the folder of a run
    target: String,
    /// Leave out the list of tensors
    #[arg(long)]
    summary: bool,
    #[command(flatten)]
    known: KnownArgs,
    /// Side of the images in pixels, instead of the one the backbone was trained on
    #[arg(long, value_name = "PIXELS")]
    side: Option<usize>,
    /// Folder of the runs, where TARGET may be a name
    #[arg(long, default_value = "runs")]
    runs: PathBuf,
}

/// Longest reason for which a file is no backbone, in characters: some list its tensors.
const LONGEST_ERROR: usize = 2000;

/// Lines of one kind that a summary shows.
const SUMMARY_LINES: usize = 8;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let path = find(&args)?;
    if path.join(PLAN_FILE).is_file() {
        return Ok(answer!("{}", describe_run(&path)?.trim_end())?);
    }
    let hints = Hints {
        image_size: args.side,
        ..args.known.hints()?
    };
    let (text, problem) = describe_weights(&path, &hints, !args.summary)?;
    answer!("{}", text.trim_end())?;
    match problem {
        None => Ok(()),
        Some(problem) => Err(anyhow::Error::from(problem).context("no backbone of this program")),
    }
}

fn find(args: &Args) -> anyhow::Result<PathBuf> {
    if HubRepo::is_spec(&args.target) {
        return fetch(&args.target, false);
    }
    let path = present_run(Path::new(&args.target));
    let run = present_run(&args.runs.join(&args.target));
    if path.exists() {
        Ok(path)
    } else if run.join(PLAN_FILE).is_file() {
        Ok(run)
    } else {
        Err(UsageError(format!(
            "there is no {} and no run {}: give a weight file, a folder, a run, or a model of the \
             Hub as hf:ORG/NAME",
            path.display(),
            run.display()
        ))
        .into())
    }
}

/// What was understood, the metadata, the tensors and what each becomes, and totals; and why it is
/// no backbone, if it is none.
fn describe_weights(
    path: &Path,
    hints: &Hints,
    with_tensors: bool,
) -> anyhow::Result<(String, Option<VitError>)> {
    let file = WeightFile::open(path)?;
    let understood = Checkpoint::open(path, hints);
    let mut out = String::new();
    writeln!(out, "{}", shown_path(file.path()))?;
    match &understood {
        Ok(checkpoint) => writeln!(out, "{}", checkpoint.describe().trim_end())?,
        // Heads and adapters are no backbones, and are listed all the same.
        Err(error) => writeln!(
            out,
            "{}, no backbone: {}",
            file.kind(),
            clipped_to(&error.to_string(), LONGEST_ERROR)
        )?,
    }
    let n_shown = if with_tensors {
        usize::MAX
    } else {
        SUMMARY_LINES
    };
    for (key, value) in file.metadata().iter().take(n_shown) {
        writeln!(out, "metadata {} = {}", clipped(key), clipped(value))?;
    }
    for name in file.unbuilt().iter().take(n_shown) {
        writeln!(
            out,
            "left out: what {} would build, which is Python code",
            clipped(name)
        )?;
    }
    for (n, what) in [
        (file.metadata().len(), "lines of metadata"),
        (file.unbuilt().len(), "names of Python code"),
    ] {
        if n > n_shown {
            writeln!(out, "and {} more {what}", n - n_shown)?;
        }
    }
    if with_tensors {
        writeln!(out)?;
        let mapping = understood
            .as_ref()
            .map_or_else(|_| Vec::new(), Checkpoint::mapping);
        let rows: Vec<[String; 5]> = file
            .tensors()
            .iter()
            .map(|tensor| {
                let mapped = mapping.iter().find(|mapped| mapped.name == tensor.name);
                [
                    tensor.name.clone(),
                    tensor.dtype.to_string(),
                    format!("{:?}", tensor.shape),
                    grouped(tensor.n_elements() as u64),
                    mapped.map_or_else(|| "-".to_owned(), becomes),
                ]
            })
            .collect();
        let headings = ["tensor", "dtype", "shape", "numbers", "becomes"];
        table(&mut out, headings, &rows)?;
    }
    let n_numbers = file.tensors().iter().fold(0_u64, |n, tensor| {
        n.saturating_add(tensor.n_elements() as u64)
    });
    writeln!(
        out,
        "\ntotal: {} tensors, {} numbers, {}",
        file.tensors().len(),
        grouped(n_numbers),
        megabytes(file.n_bytes())
    )?;
    let problem = match understood {
        Ok(checkpoint) => checkpoint.check().err(),
        Err(error) => Some(error),
    };
    Ok((out, problem))
}

/// The parameter a tensor fills, and how, or why it fills none.
fn becomes(mapped: &MappedTensor) -> String {
    match &mapped.target {
        Some(target) if *target == mapped.name => mapped.status.clone(),
        Some(target) => format!("{target}: {}", mapped.status),
        None => mapped.status.clone(),
    }
}

/// Plan, tasks done, results and model files.
pub fn describe_run(folder: &Path) -> anyhow::Result<String> {
    let config = read_plan(folder)?;
    let mut out = String::new();
    writeln!(out, "run       {}", shown_path(folder))?;
    writeln!(out, "method    {}", clipped(&config.method.name))?;
    let dataset = clipped(&config.dataset);
    writeln!(out, "data set  {dataset}, seed {}", config.seed)?;
    let weights = config.backbone.weights.to_string_lossy();
    write!(out, "backbone  {}", clipped(&weights))?;
    if let Some(preset) = &config.backbone.preset {
        write!(out, ", shape {}", clipped(preset))?;
    }
    match &config.backbone.sha256 {
        Some(sum) => writeln!(out, ", SHA-256 {}", clipped(sum))?,
        None => writeln!(out)?,
    }
    writeln!(
        out,
        "training  {} epochs per task, {} images per step",
        config.n_epochs, config.batch_size
    )?;

    let names = checkpoint::names(&folder.join("checkpoints"));
    let n_done = names
        .iter()
        .filter(|name| name.ends_with("-trained"))
        .count();
    if folder.join(results::METRICS_FILE).is_file() {
        let metrics = results::read(folder)?;
        let matrix = &metrics.log.matrix;
        writeln!(
            out,
            "state     finished: {} tasks, {} classes, on {}",
            matrix.n_tasks(),
            metrics.class_names.len(),
            clipped(&metrics.device)
        )?;
        write!(out, "\n{}", summary_block(&Summary::of(matrix)).trim_end())?;
        writeln!(out)?;
    } else {
        let newest = names.last().map_or("none".to_owned(), |name| shown(name));
        writeln!(
            out,
            "state     {n_done} tasks done, newest checkpoint {newest}; continue with `sdlora train \
             --resume` and the settings it was started with"
        )?;
    }

    let model = folder.join("model");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&model)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    if !files.is_empty() {
        writeln!(out)?;
        let rows = files
            .iter()
            .map(|path| model_file(path))
            .collect::<Vec<_>>();
        table(&mut out, ["model file", "what", "tensors", "size"], &rows)?;
    }
    Ok(out)
}

/// A row on one file of a model; a damaged one does not hide the others.
fn model_file(path: &Path) -> [String; 4] {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let size = std::fs::metadata(path).map_or_else(|e| e.to_string(), |m| megabytes(m.len()));
    if !name.ends_with(".safetensors") {
        return [name, "list".into(), "-".into(), size];
    }
    match WeightFile::open(path) {
        Ok(file) => [
            name,
            file.kind().to_string(),
            file.tensors().len().to_string(),
            size,
        ],
        Err(error) => [name, format!("unreadable: {error}"), "-".into(), size],
    }
}

/// Columns under their headings, as wide as their longest cell; of long texts the beginning.
fn table<const N: usize>(
    out: &mut String,
    headings: [&str; N],
    rows: &[[String; N]],
) -> std::fmt::Result {
    let headings = headings.map(str::to_owned);
    let rows = rows
        .iter()
        .map(|row| row.each_ref().map(|cell| clipped(cell)));
    let rows: Vec<_> = [headings].into_iter().chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:<width$}  ")?;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A number with its thousands apart: 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn megabytes(n: u64) -> String {
    format!("{:.2} MB", n as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_long_values_are_shown_readably() {
        assert_eq!(
            [0, 12, 999, 1000, 1_234_567].map(grouped),
            ["0", "12", "999", "1,000", "1,234,567"]
        );
        let mut out = String::new();
        let long = "ü".repeat(70_000);
        let rows = [[long, "1".to_owned()], ["a\nb".to_owned(), "2".to_owned()]];
        table(&mut out, ["name", "n"], &rows).unwrap();
        assert!(
            out.contains("ü ... and 69800 more characters  1\n"),
            "{out}"
        );
        assert!(
            out.contains("\na\\nb ") && out.lines().count() == 3,
            "{out}"
        );
    }
}
