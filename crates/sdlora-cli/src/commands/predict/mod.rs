//! `sdlora predict`: name the class of images with the model of a run.

mod lines;
mod model;
mod names;
mod sorting;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sdlora_data::{DataError, ImageList, Loader};
use sdlora_train::Answer;
use sdlora_train::files::NewFile;

use crate::UsageError;
use crate::commands::{Common, check_place, refuse_overwriting};
use crate::image_progress::ImageProgress;
use crate::output::{self, answer, note, say};
use lines::{Form, Found, Lines, Said};
pub use model::{Model, ModelArgs};
use sorting::{Sorting, Way};

/// Name the class of images
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    model: ModelArgs,
    /// Most likely classes of an image with their probabilities, so many
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top: Option<usize>,
    /// Say "none of these" of an image that is too far from every class; needs a run with `calibrate_on`
    #[arg(long)]
    reject: bool,
    /// Largest distance of an image that belongs to a class, instead of the fitted one
    #[arg(long, value_name = "DISTANCE", requires = "reject", value_parser = distance)]
    threshold: Option<f64>,
    /// Form of the answer
    #[arg(long, value_enum, default_value = "text")]
    format: Form,
    /// File to write the answer to, instead of standard output; it appears when it is complete
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Folder to move images to, each into the folder of its class, those that `--reject` refuses into
    /// `none-of-these`; nothing is overwritten, and what cannot be read stays
    #[arg(long, value_name = "DIR", conflicts_with = "copy_to")]
    move_to: Option<PathBuf>,
    /// The same, with copies
    #[arg(long, value_name = "DIR")]
    copy_to: Option<PathBuf>,
    /// Images (PNG, JPEG, WebP, BMP, PNM), folders with all that is in them, zip and tar archives, patterns with `*`;
    /// `-` for a list of them on standard input
    #[arg(required = true)]
    images: Vec<PathBuf>,
}

/// Images of a forward pass.
pub const BATCH: usize = 32;

/// Runs the command. An image that cannot be read has an error for its class, and the command fails at the end.
pub fn run(args: Args) -> anyhow::Result<()> {
    let names = names::names(&args.images)?;
    if let Some(out) = &args.out {
        check_place("--out", out)?;
        for name in &names {
            refuse_overwriting(out, name)?;
        }
    }
    let device = crate::device::open(&args.common.device)?;
    let model = args.model.open(&device)?;
    let lines = args.lines(&model)?;
    let list = Arc::new(ImageList::new(names.clone(), model.reading));
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        let of_model = std::fs::read_dir(&model.folder).into_iter().flatten();
        let of_model = of_model.flatten().map(|entry| entry.path());
        let images = list.images().iter().map(|image| image.path.clone());
        // One file, where the model is a bundle.
        let bundle = [args.model.run.clone()];
        for input in of_model.chain(images).chain(bundle) {
            refuse_overwriting(out, &input)?;
        }
    }
    let mut sorting = args.sorting(&names, &list, &model)?;
    let mut sink = Sink::open(args.out.as_deref(), sorting.is_some())?;
    let n_images = list.images().len();
    if list.n_others() > 0 && !args.common.quiet {
        note!(
            "note: left out {} files that do not end as images do",
            list.n_others()
        );
    }
    let mut progress = ImageProgress::new(args.common.quiet, n_images);
    if let Some(head) = lines.head() {
        sink.line(&head)?;
    }
    let mut n_failed = 0;
    let loader = list.loader(model.transform.clone(), BATCH)?;
    let n_top = lines.n_top.unwrap_or(1);
    let problem = |position| list.take_problem(position);
    each_answer(&model, &loader, n_top, &problem, &mut |position, answer| {
        let said = said(answer, model.predictor.class_names(), lines.threshold);
        n_failed += usize::from(matches!(said, Said::Problem(_)));
        let image = &list.images()[position];
        if let Some(sorting) = &mut sorting {
            sorting.note(&image.path, &said);
        }
        let line = lines.line(image, &said, position + 1 == n_images);
        sink.line(&line)?;
        progress.advance(1);
        Ok(())
    })?;
    if let Some(foot) = lines.foot() {
        sink.line(foot)?;
    }
    sink.finish()?;
    progress.finish();
    // Last, so that a command that ends early has moved nothing.
    if let Some(sorting) = sorting {
        sorting.run(args.common.quiet)?;
        output::check()?;
    }
    if n_failed > 0 {
        anyhow::bail!("{n_failed} of {n_images} images cannot be read: their lines say why");
    }
    Ok(())
}

/// What a model says of the images of a loader, batch by batch: `tell` has the position of every image and the answer,
/// or why there is none, in their order and as soon as its batch is done. `problem` names those that cannot be read.
///
/// # Errors
///
/// Those of `tell`, of images that the loader does not get over, and of the threads that prepare images.
pub fn each_answer(
    model: &Model,
    loader: &Loader,
    n_top: usize,
    problem: &dyn Fn(usize) -> Option<DataError>,
    tell: &mut dyn FnMut(usize, Result<Answer, String>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for batch in loader.host_epoch(0) {
        let batch = batch?;
        let (first, n) = (batch.idx * loader.config().batch_size, batch.len());
        let problems: Vec<_> = (first..first + n).map(problem).collect();
        let answers = match problems.iter().all(Option::is_some) {
            true => Vec::new(),
            false => {
                let images = batch.into_batch(model.predictor.device()).images;
                model.predictor.answers(images, n_top)
            }
        };
        let mut answers = answers.into_iter();
        for (i, problem) in problems.into_iter().enumerate() {
            let answer = answers.next();
            let answer = match problem {
                Some(problem) => Err(format!("{:#}", anyhow::Error::from(problem))),
                None => answer.ok_or_else(|| "the model knows no class".to_owned()),
            };
            tell(first + i, answer)?;
        }
    }
    Ok(())
}

impl Args {
    /// Where images are sorted to, if they are.
    fn sorting(
        &self,
        names: &[PathBuf],
        list: &ImageList,
        model: &Model,
    ) -> anyhow::Result<Option<Sorting>> {
        let (way, to) = match (&self.move_to, &self.copy_to) {
            (Some(to), _) => (Way::Move, to),
            (None, Some(to)) => (Way::Copy, to),
            (None, None) => return Ok(None),
        };
        let classes = model.predictor.class_names();
        Ok(Some(Sorting::check(
            way,
            to,
            names,
            list.images(),
            classes,
        )?))
    }

    /// How the answer is written, once the model can give it.
    fn lines(&self, model: &Model) -> Result<Lines, UsageError> {
        let n_classes = model.predictor.class_names().len();
        if let Some(n_top) = self.top.filter(|&n_top| n_top > n_classes) {
            return Err(UsageError(format!(
                "`--top {n_top}` asks for more classes than the {n_classes} of {}: give {n_classes} or fewer",
                model.folder.display()
            )));
        }
        let calibrated = model.calibrated.as_ref();
        if self.top.is_some() && calibrated.is_none() && !self.common.quiet {
            note!(
                "note: the probabilities are not calibrated, because the run held out no images to fit them on: train \
                 with `--set calibrate_on=3`"
            );
        }
        let (threshold, meaning) = match (self.reject, calibrated) {
            (false, _) => (None, String::new()),
            (true, None) => {
                return Err(UsageError(format!(
                    "`--reject` needs a model that knows how far its classes reach, and {} does not, because its run \
                     held out no images: train again with `--set calibrate_on=3`",
                    model.folder.display()
                )));
            }
            (true, Some(calibrated)) => match self.threshold {
                Some(threshold) => (Some(threshold), "the value of `--threshold`".to_owned()),
                None => (
                    Some(calibrated.threshold),
                    format!(
                        "which {:.0} % of the held-out images do not exceed",
                        100.0 * calibrated.kept
                    ),
                ),
            },
        };
        Ok(Lines {
            form: self.format,
            n_top: self.top,
            is_calibrated: calibrated.is_some(),
            threshold,
            meaning,
        })
    }
}

/// What is said of an image: with a `threshold`, whether it is farther than that from every class.
fn said(answer: Result<Answer, String>, classes: &[String], threshold: Option<f64>) -> Said<'_> {
    match answer {
        Err(problem) => Said::Problem(problem),
        Ok(answer) => {
            let top = answer.top.into_iter();
            let distance = answer.distance.filter(|_| threshold.is_some());
            Said::Found(Found {
                top: top
                    .map(|(label, probability)| (classes[label].as_str(), probability))
                    .collect(),
                distance,
                // An unknown distance, and one that is not a number, refuses the image.
                is_refused: threshold.map(|threshold| {
                    distance.is_none_or(|distance| distance.is_nan() || distance > threshold)
                }),
            })
        }
    }
}

/// Where the answer goes.
enum Sink {
    /// To standard output, where it is all that the command does.
    Standard,
    /// To standard output of a command that also sorts images: sorting continues after the reader has gone.
    Beside,
    File(NewFile),
}

impl Sink {
    fn open(out: Option<&Path>, sorts: bool) -> anyhow::Result<Self> {
        Ok(match out {
            None if sorts => Self::Beside,
            None => Self::Standard,
            Some(out) => Self::File(NewFile::named(out)?),
        })
    }

    fn line(&mut self, text: &str) -> anyhow::Result<()> {
        match self {
            Self::Standard => answer!("{text}")?,
            Self::Beside => say!("{text}"),
            Self::File(file) => {
                file.write(text.as_bytes())?;
                file.write(b"\n")?;
            }
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        match self {
            Self::Standard | Self::Beside => Ok(()),
            Self::File(file) => Ok(file.finish()?),
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number from 1".to_owned()),
    }
}

fn distance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number of at least 0".to_owned()),
    }
}
