//! Which images go where: the trainer sees the training half of its task, the evaluator the test
//! halves of the tasks seen, and neither sees the other's.

use std::sync::Arc;

use burn::tensor::Device;
use sdlora_data::{
    Cache, Dataset, EvalSet, ImageSource, Loader, LoaderConfig, SampleSet, TaskStream, TrainSet,
};

use crate::config::{Plan, RunConfig};
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::model::Model;
use crate::trainer::TaskLoader;

/// Images per batch of an evaluation; large enough to keep all cores busy, small in memory.
pub(crate) const EVAL_BATCH: usize = 256;

/// The sets of a run, task by task.
pub(crate) struct Rooms {
    train: Vec<TrainSet>,
    test: Vec<EvalSet>,
    n_classes: Vec<usize>,
    joint: bool,
}

impl Rooms {
    /// Splits a stream, and holds out what the plan says takes the place of the test halves.
    pub(crate) fn split(plan: &Plan, stream: &TaskStream) -> Result<Self, TrainError> {
        let config = plan.config();
        let mut rooms = Self {
            train: Vec::new(),
            test: Vec::new(),
            n_classes: Vec::new(),
            joint: plan.method().is_joint(),
        };
        for task in stream.tasks() {
            let (train, test) = match config.hold_out {
                0 => (task.train.clone(), task.test.clone()),
                n_per_class => task.train.hold_out(n_per_class, config.seed)?,
            };
            rooms.train.push(train);
            rooms.test.push(test);
            rooms.n_classes.push(task.classes.len());
        }
        Ok(rooms)
    }

    /// Rounds of training: one per task, or a single one for joint training.
    pub(crate) fn n_rounds(&self) -> usize {
        if self.joint { 1 } else { self.train.len() }
    }

    /// Tasks of the stream.
    pub(crate) fn n_tasks(&self) -> usize {
        self.train.len()
    }

    /// Tasks seen after a round.
    pub(crate) fn n_seen_tasks(&self, round: usize) -> usize {
        if self.joint {
            self.train.len()
        } else {
            round + 1
        }
    }

    /// Label of the first class of a round.
    pub(crate) fn first_label(&self, round: usize) -> usize {
        self.n_classes[..round].iter().sum()
    }

    /// Classes of a round.
    pub(crate) fn n_new_classes(&self, round: usize) -> usize {
        self.n_classes[self.tasks_of(round)].iter().sum()
    }

    /// Classes of all rounds up to this one.
    pub(crate) fn n_seen_classes(&self, round: usize) -> usize {
        self.first_label(round) + self.n_new_classes(round)
    }

    /// Test images of every task.
    pub(crate) fn test_counts(&self) -> Vec<usize> {
        self.test.iter().map(|set| set.as_ref().len()).collect()
    }

    fn tasks_of(&self, round: usize) -> std::ops::Range<usize> {
        if self.joint {
            0..self.train.len()
        } else {
            round..round + 1
        }
    }

    /// The training images of a round. Joint batches hold a share of every task.
    pub(crate) fn train_loader(
        &self,
        round: usize,
        dataset: &Arc<dyn Dataset>,
        config: &RunConfig,
    ) -> Result<TaskLoader, TrainError> {
        let sets = &self.train[self.tasks_of(round)];
        let n_images: usize = sets.iter().map(|set| set.as_ref().len()).sum();
        let mut loaders = Vec::with_capacity(sets.len());
        for set in sets {
            let share = config.batch_size * set.as_ref().len();
            let batch_size = share.div_ceil(n_images.max(1)).max(1);
            let source = Arc::new(ImageSource::new(
                dataset.clone(),
                set,
                config.transform.init()?,
                Cache::Memory,
            )?);
            loaders.push(LoaderConfig::training(batch_size).init(source, config.seed)?);
        }
        Ok(TaskLoader::new(loaders))
    }

    /// The test images of every task.
    pub(crate) fn test_loaders(
        &self,
        dataset: &Arc<dyn Dataset>,
        config: &RunConfig,
    ) -> Result<Vec<Loader>, TrainError> {
        self.test
            .iter()
            .map(|set| plain_loader(set, dataset, config))
            .collect()
    }

    /// Features of the training images of a round, as evaluation prepares images.
    pub(crate) fn train_features(
        &self,
        round: usize,
        model: &Model,
        dataset: &Arc<dyn Dataset>,
        config: &RunConfig,
        device: &Device,
    ) -> Result<FeatureTable, TrainError> {
        let extractor = model.extractor();
        let mut all = FeatureTable::default();
        for set in &self.train[self.tasks_of(round)] {
            let loader = plain_loader(set, dataset, config)?;
            let table = FeatureTable::extract(&extractor, &loader, &device.clone().inner())?;
            all.d_model = table.d_model;
            all.features.extend(table.features);
            all.labels.extend(table.labels);
        }
        Ok(all)
    }
}

/// Images of a set in its order, as evaluation prepares them.
fn plain_loader(
    set: &impl AsRef<SampleSet>,
    dataset: &Arc<dyn Dataset>,
    config: &RunConfig,
) -> Result<Loader, TrainError> {
    let transform = config.transform.for_evaluation().init()?;
    let source = ImageSource::new(dataset.clone(), set, transform, Cache::Memory)?;
    Ok(LoaderConfig::evaluation(EVAL_BATCH).init(Arc::new(source), config.seed)?)
}
