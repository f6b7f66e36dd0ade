//! Which images go where: the trainer sees the training half of its task, the evaluator the test
//! halves of the tasks seen, and neither sees the other's.

use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use sdlora_data::{
    Cache, Dataset, EvalSet, ImageSource, Loader, LoaderConfig, SampleSet, TaskStream, TrainSet,
};

use crate::config::{Plan, RunConfig};
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::methods::TaskImages;
use crate::model::Model;
use crate::trainer::TaskLoader;

/// Images per batch of an evaluation; large enough to keep all cores busy, small in memory.
pub(crate) const EVAL_BATCH: usize = 256;

/// The sets of a run, task by task.
pub(crate) struct Rooms {
    train: Vec<TrainSet>,
    test: Vec<EvalSet>,
    n_new_classes: Vec<usize>,
    labels: Vec<Vec<usize>>,
    joint: bool,
}

impl Rooms {
    /// Splits a stream, and holds out what the plan says takes the place of the test halves.
    pub(crate) fn split(plan: &Plan, stream: &TaskStream) -> Result<Self, TrainError> {
        let config = plan.config();
        let mut rooms = Self {
            train: Vec::new(),
            test: Vec::new(),
            n_new_classes: Vec::new(),
            labels: Vec::new(),
            joint: plan.method().is_joint(),
        };
        for task in stream.tasks() {
            let (train, test) = match config.hold_out {
                0 => (task.train.clone(), task.test.clone()),
                n_per_class => task.train.hold_out(n_per_class, config.seed)?,
            };
            rooms.train.push(train);
            rooms.test.push(test);
            rooms.n_new_classes.push(task.n_new_classes);
            rooms.labels.push(task.labels().to_vec());
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

    /// Label of the first new class of a round: the number of classes seen before.
    pub(crate) fn first_label(&self, round: usize) -> usize {
        self.n_new_classes[..round].iter().sum()
    }

    /// Classes of a round that no earlier one has.
    pub(crate) fn n_new_classes(&self, round: usize) -> usize {
        self.n_new_classes[self.tasks_of(round)].iter().sum()
    }

    /// Labels of all classes of a round, ascending.
    pub(crate) fn labels(&self, round: usize) -> Vec<usize> {
        let mut labels = self.labels[self.tasks_of(round)].concat();
        labels.sort_unstable();
        labels.dedup();
        labels
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
        self.loader_of(self.tasks_of(round), dataset, config)
    }

    /// The training images of one task alone, whatever the rounds are.
    pub(crate) fn task_loader(
        &self,
        task_idx: usize,
        dataset: &Arc<dyn Dataset>,
        config: &RunConfig,
    ) -> Result<TaskLoader, TrainError> {
        self.loader_of(task_idx..task_idx + 1, dataset, config)
    }

    fn loader_of(
        &self,
        tasks: std::ops::Range<usize>,
        dataset: &Arc<dyn Dataset>,
        config: &RunConfig,
    ) -> Result<TaskLoader, TrainError> {
        let sets = &self.train[tasks];
        let n_images: usize = sets.iter().map(|set| set.as_ref().len()).sum();
        let mut loaders = Vec::with_capacity(sets.len());
        for set in sets {
            let share = config.batch_size * set.as_ref().len();
            let batch_size = share.div_ceil(n_images.max(1)).max(1);
            let source = Arc::new(ImageSource::new(
                dataset.clone(),
                set,
                config.transform.init()?,
                half(config.cache).part(set.as_ref().len(), n_images),
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
        let n_images: usize = self.test_counts().iter().sum();
        self.test
            .iter()
            .map(|set| {
                let cache = half(config.cache).part(set.as_ref().len(), n_images);
                plain_loader(set, dataset, config, cache)
            })
            .collect()
    }

    /// The training images of a round, as evaluation prepares images.
    pub(crate) fn round_images<'a>(
        &'a self,
        round: usize,
        dataset: &'a Arc<dyn Dataset>,
        config: &'a RunConfig,
        device: &Device,
    ) -> RoundImages<'a> {
        RoundImages {
            sets: &self.train[self.tasks_of(round)],
            dataset,
            config,
            device: device.clone().inner(),
        }
    }

    /// The training images of a task in their order, as evaluation prepares them.
    pub(crate) fn plain_train_loader(
        &self,
        task: usize,
        dataset: &Arc<dyn Dataset>,
        config: &RunConfig,
    ) -> Result<Loader, TrainError> {
        // They are read once.
        plain_loader(&self.train[task], dataset, config, Cache::None)
    }

    /// New classes of every task.
    pub(crate) fn class_counts(&self) -> &[usize] {
        &self.n_new_classes
    }

    /// Whether a class is part of several tasks.
    pub(crate) fn has_repeats(&self) -> bool {
        let mut tasks = self.labels.iter().zip(&self.n_new_classes);
        tasks.any(|(labels, &n_new)| labels.len() > n_new)
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
            // They are read once.
            let loader = plain_loader(set, dataset, config, Cache::None)?;
            let table = FeatureTable::extract(&extractor, &loader, &device.clone().inner())?;
            all.d_model = table.d_model;
            all.features.extend(table.features);
            all.labels.extend(table.labels);
        }
        Ok(all)
    }
}

/// What the training images of a round have of the cache of a run, and what all test images have: half of it.
fn half(cache: Cache) -> Cache {
    cache.part(1, 2)
}

/// The training images of a round for a method that looks at them.
pub(crate) struct RoundImages<'a> {
    sets: &'a [TrainSet],
    dataset: &'a Arc<dyn Dataset>,
    config: &'a RunConfig,
    device: Device,
}

impl TaskImages for RoundImages<'_> {
    fn each_batch(&self, see: &mut dyn FnMut(Tensor<4>, &[usize])) -> Result<(), TrainError> {
        for set in self.sets {
            let loader = plain_loader(set, self.dataset, self.config, Cache::None)?;
            for batch in loader.epoch(0, &self.device) {
                let batch = batch?;
                see(batch.images, &batch.labels_host);
            }
        }
        Ok(())
    }
}

/// Images of a set in its order, as evaluation prepares them.
fn plain_loader(
    set: &impl AsRef<SampleSet>,
    dataset: &Arc<dyn Dataset>,
    config: &RunConfig,
    cache: Cache,
) -> Result<Loader, TrainError> {
    let transform = config.transform.for_evaluation().init()?;
    let source = ImageSource::new(dataset.clone(), set, transform, cache)?;
    Ok(LoaderConfig::evaluation(EVAL_BATCH).init(Arc::new(source), config.seed)?)
}
