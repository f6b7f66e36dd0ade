//! What drift costs the distance: means and spread of all classes by the finished model, instead of those that each
//! task left. It reads the training images of all tasks, so it is for measurements only.

use std::path::Path;

use anyhow::Context;
use sdlora_train::analysis::TrainedRun;
use sdlora_train::{FeatureTable, Novelty, read_plan};

use crate::backbone::Backbones;
use crate::commands::Common;

/// Distances as they would be if no feature had moved since the task of its class.
///
/// # Errors
///
/// Those of [`TrainedRun::open`] and of the images.
pub fn novelty(run: &Path, common: &Common) -> anyhow::Result<Novelty> {
    let mut config = read_plan(run)?;
    Backbones::default().resolve(&mut config.backbone, common)?;
    let device = crate::device::open(&common.device)?;
    let run = TrainedRun::open(run, config.check()?, &common.data_dir, &device)?;
    let (model, _) = run.model_after(run.last_round())?;
    let mut all = FeatureTable::default();
    for round in 0..run.n_rounds() {
        let table = run.train_features(round, &model)?;
        all.d_model = table.d_model;
        all.features.extend(table.features);
        all.labels.extend(table.labels);
    }
    Novelty::of_features(&all)?.context("the run has no training image")
}
