//! The entry to a run, and what comes out of it.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use crate::config::Plan;
use crate::error::TrainError;
use crate::export::TensorFile;
use crate::heads::Classifier;
use crate::kept::Kept;
use crate::model::Model;
use crate::observer::Observer;
use crate::predicting::PredictConfig;
use crate::run_folder::RunFolder;
use crate::run_log::RunLog;
use crate::session::Session;
use crate::tested::Tested;

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    /// The model after the last task, on the autodiff device.
    pub model: Model,
    /// What predicts after the last task.
    pub classifier: Classifier,
    /// Features of test images and held-out ones, where the data set may lose images and features stay.
    pub kept: Option<Kept>,
    /// Name of the head it comes from.
    pub head_name: String,
    /// How its images are prepared, and what is known of its numbers.
    pub predicting: PredictConfig,
    /// Means and precision of [`Novelty`](crate::Novelty), where the plan has them gathered.
    pub novelty: Option<TensorFile>,
    /// What its last evaluation said of every test image.
    pub tested: Tested,
    /// Its log.
    pub log: RunLog,
    /// Class ids in the order of their labels.
    pub class_order: Vec<usize>,
    /// Names of the classes in the order of their labels.
    pub class_names: Vec<String>,
    /// Its folder, held as long as this lives, so that nobody else writes there meanwhile.
    pub folder: RunFolder,
}

/// Whether a run may continue an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The folder must hold no run.
    Fresh,
    /// The folder must hold a run of the same plan, data and weights.
    Resume,
    /// The same, but images may have come, gone or changed; plan and weights may not.
    ResumeOnChangedData,
}

/// Where a run reads, computes and writes.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The folder that data sets and relative weight paths start from.
    pub data_dir: PathBuf,
    /// The devices of one machine that divide every batch among them; autodiff is added. Each computes the
    /// gradients of its share. The first one adds them up, makes the step, and does everything else. Order and
    /// number of the devices change results by rounding only.
    pub devices: Vec<Device>,
    /// The folder of the run.
    pub folder: PathBuf,
    /// Whether the folder holds a run to continue.
    pub start: Start,
    /// The folder of a finished run of the same model, which this one goes on from: its data set has all tasks of
    /// that run and more. That folder is only read.
    pub after: Option<PathBuf>,
}

impl RunOptions {
    /// A fresh run on one device.
    pub fn new(data_dir: &Path, device: &Device, folder: &Path) -> Self {
        Self {
            data_dir: data_dir.into(),
            devices: vec![device.clone()],
            folder: folder.into(),
            start: Start::Fresh,
            after: None,
        }
    }

    /// The same with another start.
    #[must_use]
    pub fn with_start(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// The same, going on from a finished run.
    #[must_use]
    pub fn going_on_from(self, after: &Path) -> Self {
        Self {
            after: Some(after.into()),
            ..self
        }
    }
}

/// Runs a plan: for each round grow the model, train it, fit the head, evaluate, save.
///
/// # Errors
///
/// Those of settings, files, images and training; what was checkpointed stays usable.
/// [`TrainError::Stopped`] when the observer wants it; [`Start::Resume`] then goes on.
/// [`TrainError::Setting`] for an empty list of devices, and [`TrainError::Device`] when a device gives up.
pub fn run(
    plan: &Plan,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Finished, TrainError> {
    let mut session = Session::open(plan, options, observer)?;
    while let Some(round) = session.next_round() {
        session = session
            .grow(round)?
            .train(round)?
            .fit(round)?
            .evaluate(round)?
            .save(round)?;
    }
    session.finish()
}
