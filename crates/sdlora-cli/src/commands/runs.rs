//! `sdlora runs`: what was learned, and one step back.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use sdlora_train::FolderLock;
use sdlora_train::files::remove_folder;
use sdlora_train::learned::{Learned, LearnedTask, Undone, is_run};

use crate::UsageError;
use crate::commands::learn::accuracy_line;
use crate::commands::train::inside_runs;
use crate::output::{answer, note, say};
use crate::results::{self, METRICS_FILE};
use crate::shown::{clipped, shown, shown_path};

/// List and show runs, undo the last folder that was learned, or remove a run
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the runs
    #[arg(long, global = true, default_value = "runs")]
    runs: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every run, with classes and accuracy
    List,
    /// What a run learned, in order: folders, classes, images, accuracies
    Show {
        /// Name of the run
        name: String,
    },
    /// Go back to the state before the folder that was learned last
    Undo {
        /// Name of the run
        name: String,
    },
    /// Remove a run with its model and checkpoints
    Rm {
        /// Name of the run
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let find = |name: &str| -> anyhow::Result<PathBuf> {
        let folder = args.runs.join(inside_runs(name)?);
        match is_run(&folder) {
            true => Ok(folder),
            false => Err(UsageError(format!(
                "there is no run {}: `sdlora runs list` names those that are there",
                folder.display()
            ))
            .into()),
        }
    };
    match &args.command {
        Command::List => list(&args.runs),
        Command::Show { name } => show(name, &find(name)?),
        Command::Undo { name } => undo(name, &find(name)?),
        Command::Rm { name, yes } => remove(name, &find(name)?, *yes),
    }
}

/// A run in a line.
struct Line {
    name: String,
    classes: String,
    tasks: String,
    accuracy: String,
    what: String,
}

fn list(runs: &Path) -> anyhow::Result<()> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(runs)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_run(path))
        .collect();
    folders.sort();
    if folders.is_empty() {
        answer!(
            "no runs in {}: `sdlora learn FOLDER --name NAME` makes one",
            shown_path(runs)
        )?;
        return Ok(());
    }
    let lines: Vec<Line> = folders.iter().map(|folder| line(folder)).collect();
    let width = |of: fn(&Line) -> &String, least: usize| {
        let widths = lines.iter().map(|line| of(line).chars().count());
        widths.max().unwrap_or(0).max(least)
    };
    let (name, accuracy) = (width(|l| &l.name, 4), width(|l| &l.accuracy, 8));
    answer!(
        "{:<name$}  {:>7}  {:>5}  {:>accuracy$}  what",
        "name",
        "classes",
        "tasks",
        "accuracy"
    )?;
    for line in &lines {
        answer!(
            "{:<name$}  {:>7}  {:>5}  {:>accuracy$}  {}",
            line.name,
            line.classes,
            line.tasks,
            line.accuracy,
            line.what
        )?;
    }
    Ok(())
}

fn line(folder: &Path) -> Line {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let mut line = Line {
        name: clipped(&name),
        classes: "–".into(),
        tasks: "–".into(),
        accuracy: "–".into(),
        what: String::new(),
    };
    match Learned::read(folder) {
        Err(error) => line.what = format!("cannot be read: {}", shown(&error.to_string())),
        Ok(Some(learned)) => {
            line.classes = learned.classes().count().to_string();
            line.tasks = learned.tasks().len().to_string();
            let last = learned.tasks().last();
            line.accuracy = percent(last.and_then(|task| task.result.as_ref()?.accuracy));
            line.what = match (learned.unfinished(), last) {
                (Some(task), _) => {
                    format!("learn, has not finished {}", shown_path(&task.images))
                }
                (None, Some(task)) => {
                    format!(
                        "learn, last {} from {}",
                        task.learned,
                        shown_path(&task.images)
                    )
                }
                (None, None) => "learn, nothing yet".into(),
            };
        }
        Ok(None) if folder.join(METRICS_FILE).is_file() => match results::read(folder) {
            Ok(metrics) => {
                line.classes = metrics.class_names.len().to_string();
                line.tasks = metrics.log.tasks.len().to_string();
                let accuracy = metrics.summary.get("weighted_final_accuracy");
                line.accuracy = percent(accuracy.copied().flatten());
                line.what = "train".into();
            }
            Err(error) => line.what = format!("cannot be read: {}", shown(&error.to_string())),
        },
        Ok(None) => line.what = "train, not finished".into(),
    }
    line
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn show(name: &str, folder: &Path) -> anyhow::Result<()> {
    let Some(learned) = Learned::read(folder)? else {
        let what = line(folder);
        answer!(
            "{}: {} classes in {} tasks, accuracy {}",
            shown(name),
            what.classes,
            what.tasks,
            what.accuracy
        )?;
        answer!(
            "made by {}; {} has its results",
            what.what,
            shown_path(folder)
        )?;
        return Ok(());
    };
    let n_classes = learned.classes().count();
    answer!(
        "{}: {n_classes} classes in {} tasks",
        shown(name),
        learned.tasks().len()
    )?;
    for (i, task) in learned.tasks().iter().enumerate() {
        answer!(
            "\ntask {}, {} UTC, from {}",
            i + 1,
            task.learned,
            shown_path(&task.images)
        )?;
        describe(task)?;
        if let Some(result) = &task.result {
            answer!("  {}", accuracy_line(result))?;
            if !result.not_measured.is_empty() {
                let tasks: Vec<String> = result
                    .not_measured
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                answer!("  not measured then: tasks {}", tasks.join(", "))?;
            }
        }
    }
    if let Some(task) = learned.unfinished() {
        answer!(
            "\nnot finished, begun {} UTC, from {}",
            task.learned,
            shown_path(&task.images)
        )?;
        describe(task)?;
        answer!(
            "  give `sdlora learn` with that folder again, or drop it with `sdlora runs undo {}`",
            shown(name)
        )?;
    }
    if let Some(present) = learned.present() {
        answer!("\nreport and model: {}", shown_path(&present))?;
    }
    Ok(())
}

fn describe(task: &LearnedTask) -> anyhow::Result<()> {
    answer!(
        "  {} images to learn from, {} to test on",
        task.n_train,
        task.n_test
    )?;
    let names = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| clipped(name)).collect();
        names.join(", ")
    };
    if !task.classes.is_empty() {
        answer!("  {} new: {}", task.classes.len(), names(&task.classes))?;
    }
    if !task.extended.is_empty() {
        answer!(
            "  {} extended: {}",
            task.extended.len(),
            names(&task.extended)
        )?;
    }
    Ok(())
}

fn undo(name: &str, folder: &Path) -> anyhow::Result<()> {
    if Learned::read(folder)?.is_none() {
        return Err(UsageError(format!(
            "{name} is no run of `learn`: only what was learned folder by folder can be undone"
        ))
        .into());
    }
    let mut learned = Learned::hold(folder)?;
    match learned.undo()? {
        None => {
            return Err(
                UsageError(format!("{name} has learned nothing that could be undone")).into(),
            );
        }
        Some(Undone::Unfinished(task)) => {
            say!("dropped what began with {}", shown_path(&task.images));
        }
        Some(Undone::Last(task)) => {
            let classes: Vec<String> = task.classes.iter().map(|name| clipped(name)).collect();
            let classes = match classes.is_empty() {
                true => String::new(),
                false => format!("; forgotten: {}", classes.join(", ")),
            };
            say!("undid {}{classes}", shown_path(&task.images));
        }
    }
    let n = learned.classes().count();
    say!(
        "{} knows {n} {}",
        shown(name),
        if n == 1 { "class" } else { "classes" }
    );
    Ok(())
}

fn remove(name: &str, folder: &Path, yes: bool) -> anyhow::Result<()> {
    if !yes {
        if !std::io::stdin().is_terminal() {
            return Err(UsageError(format!(
                "this removes {} with its model and checkpoints: give `--yes`",
                folder.display()
            ))
            .into());
        }
        note!(
            "remove {} with its model and checkpoints? Type the name to confirm:",
            shown_path(folder)
        );
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if answer.trim() != name {
            return Err(UsageError("nothing was removed".to_owned()).into());
        }
    }
    // Nobody may be writing there.
    let lock = FolderLock::take(folder)?;
    remove_folder(folder)?;
    drop(lock);
    say!("removed {}", shown_path(folder));
    Ok(())
}
