//! What comes out of a run.

use crate::export::TensorFile;
use crate::heads::Classifier;
use crate::kept::Kept;
use crate::model::Model;
use crate::predicting::PredictConfig;
use crate::run_folder::RunFolder;
use crate::run_log::RunLog;
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
