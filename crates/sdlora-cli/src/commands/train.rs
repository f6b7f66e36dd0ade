//! `sdlora train`: the main job.

use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use sdlora_metrics::Summary;
use sdlora_train::files::{create_folders, create_new_folder, remove_empty_folder};
use sdlora_train::{Finished, Observer, Plan, RunOptions, Start, TrainError};

use crate::UsageError;
use crate::commands::Common;
use crate::config::ConfigArgs;
use crate::device::Devices;
use crate::live_report::LiveReport;
use crate::output::say;
use crate::progress::Progress;
use crate::report::{class_accuracy_line, published_block, published_numbers, summary_block};
use crate::results;
use crate::run_log::RunLogger;
use crate::shown::shown_path;
use crate::stop::{StopRequest, Stoppable, Stopped};
use crate::tensorboard::{TensorBoard, has_events};

/// Learn a stream of tasks one after another
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    config: ConfigArgs,
    /// Name of the run; its files go to runs/NAME. Counted up from the preset's name when absent
    #[arg(long)]
    name: Option<String>,
    /// Folder of the runs
    #[arg(long, default_value = "runs")]
    runs: PathBuf,
    /// Devices that share every batch, for instance cuda:0,cuda:1; the first makes the steps and evaluates
    #[arg(long, value_delimiter = ',', conflicts_with = "device")]
    devices: Vec<String>,
    /// Write event files for TensorBoard: to DIR/NAME, or without DIR to the folder `tensorboard` of the run
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<Option<PathBuf>>,
    /// Continue the run NAME where it stopped
    #[arg(long, requires = "name")]
    resume: bool,
    /// Continue although images came, went or changed since the run started; tasks that are done stay as they are
    #[arg(long, requires = "resume")]
    accept_changed_data: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let named = args.name.as_deref().map(inside_runs).transpose()?;
    let plan = args.config.plan(&args.common)?;
    let names = match args.devices.is_empty() {
        true => std::slice::from_ref(&args.common.device),
        false => &args.devices,
    };
    // Before a folder is announced that will not come to be.
    let devices = Devices::open(names)?;
    let start = match (args.resume, args.accept_changed_data) {
        (false, _) => Start::Fresh,
        (true, false) => Start::Resume,
        (true, true) => Start::ResumeOnChangedData,
    };
    let folder = match named {
        Some(name) => args.runs.join(name),
        None => next_folder(&args.runs, &stem(&args.config))?,
    };
    let board = args.tensorboard.as_ref().map(|place| match place {
        Some(place) => place.join(folder.strip_prefix(&args.runs).unwrap_or(&folder)),
        None => folder.join("tensorboard"),
    });
    if let Some(board) = board
        .as_deref()
        .filter(|board| !args.resume && has_events(board))
    {
        // A run without a name has just got its folder.
        let _ = remove_empty_folder(&folder);
        return Err(UsageError(format!(
            "{} holds the events of another run: choose another `--tensorboard`, or remove it",
            shown_path(board)
        ))
        .into());
    }
    let mut progress = Progress::new(args.common.quiet);
    progress.println(&format!(
        "{} on {}: run folder {}",
        plan.config().method.name,
        plan.config().dataset,
        shown_path(&folder)
    ));
    let data_dir = &args.common.data_dir;
    let stop = StopRequest::on_signals()?;
    let mut observer = Stoppable::new(&stop, &mut progress);
    let finished = match &board {
        Some(board) => {
            let mut observer = TensorBoard::new(board, &mut observer);
            execute(&plan, data_dir, &devices, &folder, start, &mut observer)
        }
        None => execute(&plan, data_dir, &devices, &folder, start, &mut observer),
    };
    progress.finish();
    let finished = finished.map_err(|error| {
        if args.name.is_none() {
            // Refused before anything was written: the number is free again.
            let _ = remove_empty_folder(&folder);
        }
        let own = folder.file_name().unwrap_or_default().to_string_lossy();
        with_way_on(error, args.name.as_deref().unwrap_or(&own))
    })?;
    let summary = Summary::of(&finished.log.matrix);
    say!("\n{}", summary_block(&summary).trim_end());
    if let Some(accuracy) = finished.log.class_accuracy() {
        say!("{}", class_accuracy_line(accuracy));
    }
    let published = published_numbers(&plan.config().expected, &summary);
    say!("{}", published_block(&published));
    say!("report: {}", shown_path(&folder.join("report.html")));
    say!("model:  {}", shown_path(&folder.join("model")));
    if let Some(board) = &board {
        say!("events: {}", shown_path(board));
    }
    Ok(())
}

/// Tells the user how to continue a run that was stopped.
fn with_way_on(error: anyhow::Error, name: &str) -> anyhow::Error {
    match error.downcast_ref() {
        Some(TrainError::Stopped { .. }) => anyhow::anyhow!(Stopped(format!(
            "{error}; to continue, give the same command with `--name {name} --resume`"
        ))),
        _ => error,
    }
}

/// The name of a run as a path below the folder of the runs.
pub fn inside_runs(name: &str) -> Result<&Path, UsageError> {
    let path = Path::new(name);
    let is_inside = path
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    match is_inside && path.components().next().is_some() {
        true => Ok(path),
        false => Err(UsageError(format!(
            "`--name {name:?}` is no name below the folder of the runs: give one like `try-1`, and another \
             folder with `--runs`"
        ))),
    }
}

/// Runs a plan on devices and writes its files.
///
/// # Errors
///
/// Those of the run and of its files.
pub fn execute(
    plan: &Plan,
    data_dir: &Path,
    devices: &Devices,
    folder: &Path,
    start: Start,
    observer: &mut dyn Observer,
) -> anyhow::Result<Finished> {
    let options = RunOptions {
        data_dir: data_dir.into(),
        devices: devices.opened.clone(),
        folder: folder.into(),
        start,
        after: None,
    };
    execute_with(plan, &options, devices, observer)
}

/// As [`execute`], with all options of a run.
///
/// # Errors
///
/// Those of the run and of its files.
pub fn execute_with(
    plan: &Plan,
    options: &RunOptions,
    devices: &Devices,
    observer: &mut dyn Observer,
) -> anyhow::Result<Finished> {
    let folder = options.folder.as_path();
    let mut report = LiveReport::new(folder, plan, &devices.names, observer);
    let mut log = RunLogger::new(folder, &mut report);
    let finished = sdlora_train::run(plan, options, &mut log);
    drop(log);
    if finished.is_err() {
        report.stop();
    }
    let finished = finished?;
    results::write(folder, plan, &finished, &devices.names).with_context(|| {
        format!(
            "the run in {} is complete, its files are not",
            folder.display()
        )
    })?;
    Ok(finished)
}

fn stem(config: &ConfigArgs) -> String {
    config
        .config
        .as_ref()
        .and_then(|path| path.file_stem())
        .map_or_else(
            || config.preset.clone(),
            |stem| stem.to_string_lossy().into_owned(),
        )
}

/// Makes the first of `stem-001`, `stem-002`, … that is not there; of two that ask at the same time each gets
/// its own.
fn next_folder(runs: &Path, stem: &str) -> anyhow::Result<PathBuf> {
    let cannot = |path: &Path| format!("cannot create {}; choose another --runs", path.display());
    create_folders(runs).context("choose another --runs")?;
    for i in 1.. {
        let path = runs.join(format!("{stem}-{i:03}"));
        match create_new_folder(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| cannot(&path)),
        }
    }
    unreachable!("there is always a next number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_without_a_name_that_start_together_get_different_numbers() {
        let runs = tempfile::tempdir().unwrap();
        let runs = runs.path().join("runs");
        let mut found: Vec<PathBuf> = std::thread::scope(|scope| {
            let start = || (0..20).map(|_| next_folder(&runs, "x").unwrap()).collect();
            let all: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            all.into_iter()
                .flat_map(|thread| -> Vec<PathBuf> { thread.join().unwrap() })
                .collect()
        });
        found.sort();
        found.dedup();
        assert_eq!(found.len(), 80);
        assert!(found[79].ends_with("x-080"), "{:?}", found[79]);
    }

    #[test]
    fn a_name_stays_below_the_folder_of_the_runs() {
        for name in ["", ".", "..", "../x", "a/../b", "/x", "./x"] {
            let error = inside_runs(name).unwrap_err().to_string();
            assert!(error.contains("--name"), "{error}");
        }
        for name in ["try-1", "mine/try 1", ".hidden"] {
            assert_eq!(inside_runs(name).unwrap(), Path::new(name));
        }
    }
}
