//! A run read back from its folder, with the model it had at the end of every task.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use sdlora_data::Loader;

use crate::checkpoint;
use crate::config::Plan;
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::fingerprint::Fingerprint;
use crate::heads::{Classifier, Head};
use crate::model::Model;
use crate::resume::{Arrays, restore, task_end_name};
use crate::run_data::RunData;
use crate::run_log::RunLog;
use crate::session::new_model;

/// A run whose checkpoints at the ends of tasks can be read.
pub struct TrainedRun {
    plan: Plan,
    device: Device,
    data: RunData,
    fresh: Model,
    folder: PathBuf,
    rounds: Vec<usize>,
    class_names: Vec<String>,
}

impl TrainedRun {
    /// Opens the run in `folder`. `plan` is the one in its `plan.toml`, with its backbone found; data
    /// set and weights are looked for from `data_dir`.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotKept`] when no task end has a checkpoint, [`TrainError::Setting`] for a stream
    /// whose classes come again, [`TrainError::DataChanged`] and [`TrainError::WeightsChanged`] when data or
    /// weights are not those of the run, and those of data and weights.
    pub fn open(
        folder: &Path,
        plan: Plan,
        data_dir: &Path,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let device = device.clone().inner().autodiff();
        let data = RunData::open(&plan, data_dir)?;
        let fresh = new_model(&plan, data_dir, &device)?;
        Fingerprint::of(data.dataset.as_ref(), Some(&fresh.backbone)).check(folder)?;
        let kept = checkpoint::names(&folder.join("checkpoints"));
        let rounds: Vec<usize> = (0..data.rounds.len())
            .filter(|&round| kept.contains(&task_end_name(round)))
            .collect();
        if rounds.is_empty() {
            return Err(TrainError::NotKept {
                path: folder.into(),
                what: "of the end of a task".into(),
            });
        }
        if data.has_repeats() {
            return Err(TrainError::setting(
                "stream",
                "tasks whose classes come again",
                "a class-incremental stream: what is measured here asks which task a class is of",
            ));
        }
        let class_names = data.class_names();
        Ok(Self {
            plan,
            device,
            data,
            fresh,
            folder: folder.into(),
            rounds,
            class_names,
        })
    }

    /// The plan of the run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The head.
    pub fn head(&self) -> &dyn Head {
        self.plan.head().as_ref()
    }

    /// What predicts with a model of this run.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for a model before its first task.
    pub fn classifier(&self, model: &Model) -> Result<Classifier, TrainError> {
        model.classifier(self.head())
    }

    /// The folder of the run.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The device with autodiff.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tasks of the stream.
    pub fn n_tasks(&self) -> usize {
        self.data.tasks.len()
    }

    /// Rounds of training that have a checkpoint of their end, ascending: one per task, or a single
    /// one for joint training.
    pub fn rounds(&self) -> &[usize] {
        &self.rounds
    }

    /// Rounds of training of the whole stream, with those that have no checkpoint.
    pub fn n_rounds(&self) -> usize {
        self.data.rounds.len()
    }

    /// Rounds up to the last kept one whose checkpoint is gone, ascending.
    pub fn missing_rounds(&self) -> Vec<usize> {
        let seen = 0..=self.last_round();
        seen.filter(|round| !self.rounds.contains(round)).collect()
    }

    /// The round that learns a task.
    pub fn round_of(&self, task_idx: usize) -> usize {
        let rounds = 0..self.data.rounds.len();
        rounds
            .take_while(|&round| self.n_seen_tasks(round) <= task_idx)
            .count()
    }

    /// The last round that has a checkpoint.
    pub fn last_round(&self) -> usize {
        self.rounds.last().copied().unwrap_or(0)
    }

    /// Tasks seen after a round.
    pub fn n_seen_tasks(&self, round: usize) -> usize {
        self.data.rounds[round].n_seen_tasks()
    }

    /// Labels of a task.
    pub fn labels_of(&self, task_idx: usize) -> std::ops::Range<usize> {
        self.data.tasks[task_idx].new_labels()
    }

    /// Labels of every task seen after a round, in order.
    pub fn task_labels(&self, round: usize) -> Vec<std::ops::Range<usize>> {
        (0..self.n_seen_tasks(round))
            .map(|task_idx| self.labels_of(task_idx))
            .collect()
    }

    /// Name of the class of a label.
    pub fn class_name(&self, label: usize) -> &str {
        self.class_names.get(label).map_or("", String::as_str)
    }

    /// The model before any task: pre-trained weights, no direction, no head.
    pub fn base(&self) -> &Model {
        &self.fresh
    }

    /// The model at the end of a round, and the log up to there.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotKept`] when the run has no such checkpoint, [`TrainError::Checkpoint`] when
    /// it is damaged.
    pub fn model_after(&self, round: usize) -> Result<(Model, RunLog), TrainError> {
        if !self.rounds.contains(&round) {
            return Err(TrainError::NotKept {
                path: self.folder.clone(),
                what: format!("of the end of task {round}"),
            });
        }
        let path = self.folder.join("checkpoints").join(task_end_name(round));
        let run = restore(
            self.fresh.clone(),
            &path,
            &self.plan,
            Arrays::ThoseKept,
            &self.device,
        )?;
        Ok((run.model, run.log))
    }

    /// The test images of every task (or those held out in their place).
    ///
    /// # Errors
    ///
    /// Those of the data set.
    pub fn test_loaders(&self) -> Result<Vec<Loader>, TrainError> {
        self.data.test_loaders()
    }

    /// Features of test images in a model, one table for each of the loaders.
    ///
    /// # Errors
    ///
    /// Those of the data set.
    pub fn test_features(
        &self,
        model: &Model,
        loaders: &[Loader],
    ) -> Result<Vec<FeatureTable>, TrainError> {
        let extractor = model.extractor();
        let device = self.device.clone().inner();
        loaders
            .iter()
            .map(|loader| FeatureTable::extract(&extractor, loader, &device))
            .collect()
    }

    /// Features of the training images of a round in a model, as evaluation prepares images.
    ///
    /// # Errors
    ///
    /// Those of the data set.
    pub fn train_features(&self, round: usize, model: &Model) -> Result<FeatureTable, TrainError> {
        let round = &self.data.rounds[round];
        self.data.train_features(round, model, &self.device)
    }

    /// The sets of the run, for what trains anew.
    pub(super) fn data(&self) -> &RunData {
        &self.data
    }
}
