//! `sdlora evaluate`: how good a finished model is on labelled images.

mod anew;
mod report;
mod subject;

use std::path::PathBuf;

use sdlora_train::files::{create_folders, write_file};

use crate::UsageError;
use crate::commands::Common;
use crate::commands::predict::{ModelArgs, each_answer};
use crate::image_progress::ImageProgress;
use crate::output::{answer, note};
use crate::shown::{json_shown, shown, shown_path};
use report::{Evaluation, Tally};
use subject::Subject;

/// Measure a finished model on labelled images
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    model: ModelArgs,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Form,
    /// Folder to write to: `evaluation.json`, `classes.csv`, `confusion.csv` and figures
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Bins of the calibration
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    bins: u32,
    /// Measure distances from means that are gathered anew, from all training images of the run by its finished model
    #[arg(long, hide = true, conflicts_with = "folder")]
    anew: bool,
    /// A folder, zip or tar with a folder for every class, called as the class is; other folders are strangers.
    /// The test images of the run's data set when absent, where classes that the run did not learn are strangers
    folder: Option<PathBuf>,
}

/// A form of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// A table
    Text,
    /// One object
    Json,
}

/// Runs the command. Images that cannot be read are named and left out, and the command fails at the end.
pub fn run(args: Args) -> anyhow::Result<()> {
    let device = crate::device::open(&args.common.device)?;
    if let Some(out) = args
        .out
        .as_deref()
        .filter(|out| out.exists() && !out.is_dir())
    {
        let text = format!("`--out {}` is a file: give a folder", out.display());
        return Err(UsageError(text).into());
    }
    let mut model = args.model.open(&device)?;
    let subject = match &args.folder {
        Some(folder) => Subject::of_folder(folder, &model)?,
        None => Subject::of_run(&args.model.run, &args.common, &model)?,
    };
    if args.anew {
        let novelty = anew::novelty(&args.model.run, &args.common)?;
        model.predictor = model.predictor.with_novelty(novelty);
        // The threshold is one of the other distances.
        model.calibrated = None;
    }
    let mut tally = Tally::default();
    let mut progress = ImageProgress::new(args.common.quiet, subject.len());
    let (loader, problem) = (subject.loader(), |position| subject.take_problem(position));
    each_answer(&model, loader, 1, &problem, &mut |position, answer| {
        match answer {
            Ok(answer) => tally.add(subject.truth(position), &answer),
            Err(problem) => {
                let name = subject.name(position);
                note!("{}: {}", shown(&name), shown(&problem));
                tally.unreadable.push((name, problem));
            }
        }
        progress.advance(1);
        Ok(())
    })?;
    progress.finish();
    let evaluation = Evaluation::of(&model, &subject, tally, args.bins as usize)?;
    if let Some(out) = &args.out {
        create_folders(out).map_err(|e| UsageError(format!("{e}; choose another `--out`")))?;
        for (name, text) in evaluation.files()? {
            write_file(&out.join(name), text.as_bytes())?;
        }
    }
    match args.format {
        Form::Text => answer!("{}", evaluation.table().trim_end())?,
        Form::Json => answer!("{}", json_shown(&serde_json::to_string(&evaluation)?))?,
    }
    if let Some(out) = args.out.as_ref().filter(|_| !args.common.quiet) {
        note!("figures and tables: {}", shown_path(out));
    }
    match evaluation.n_unreadable() {
        0 => Ok(()),
        n => anyhow::bail!(
            "{n} of {} images cannot be read and are left out",
            subject.len()
        ),
    }
}
