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

    /// The training images of a round; of all tasks as one set where training is joint.
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
        let cache = half(config.cache);
        let transform = config.transform.init()?;
        let Some(set) = TrainSet::joined(&self.train[tasks]) else {
            return Err(TrainError::setting("stream.n_tasks", 0, "at least 1"));
        };
        let source = Arc::new(ImageSource::new(dataset.clone(), &set, transform, cache)?);
        let loader = LoaderConfig::training(config.batch_size).init(source, config.seed)?;
        Ok(TaskLoader::new(loader))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::Path;

    use sdlora_testkit::test_device;

    /// A plan of tasks of five, one and two characters, the second inverted.
    fn plan(method: &str) -> Plan {
        let text = format!(
            r#"
            seed = 11
            dataset = "omniglot-evaluation"
            n_epochs = 2
            batch_size = 16
            method = {{ name = "{method}" }}

            [backbone]
            weights = "vit.safetensors"

            [stream]
            class_order = {{ numpy = {{ seed = 3 }} }}
            split = {{ sizes = [5, 1, 2] }}
            appearances = [[], ["invert"], []]

            [transform]
            side = 14
            channels = "gray"
            polarity = "inverted"

            [optimizer]
            rule = "sgd"
            lr = 0.02
            "#
        );
        RunConfig::parse(&text).unwrap().check().unwrap()
    }

    /// Labels and sums of the pixels of the images of every batch of an epoch.
    fn batches(loader: &TaskLoader, epoch: usize) -> Vec<Vec<(usize, f32)>> {
        let batches = loader.epoch(epoch, 0, &test_device()).unwrap();
        batches
            .map(|batch| {
                let batch = batch.unwrap();
                let n = batch.labels_host.len();
                let pixels: Vec<f32> = batch.images.into_data().iter().collect();
                let sums = pixels
                    .chunks_exact(pixels.len() / n)
                    .map(|p| p.iter().sum());
                batch.labels_host.into_iter().zip(sums).collect()
            })
            .collect()
    }

    #[test]
    fn joint_batches_have_the_size_that_is_asked_for_and_mix_unequal_tasks() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let dataset =
            sdlora_data::datasets::open("omniglot-evaluation", &data, &Default::default());
        let dataset: Arc<dyn Dataset> = dataset.unwrap().into();
        let rooms = |plan: &Plan| {
            let stream = TaskStream::new(dataset.as_ref(), &plan.config().stream).unwrap();
            Rooms::split(plan, &stream).unwrap()
        };
        let plan = plan("joint");
        let (config, joint) = (plan.config(), rooms(&plan));
        let loader = joint.train_loader(0, &dataset, config).unwrap();
        // 75, 15 and 30 images.
        assert_eq!((loader.n_images(), loader.n_batches()), (120, 8));
        let task_of = |label: usize| [0, 0, 0, 0, 0, 1, 2, 2][label];
        let mut seen = Vec::new();
        for batch in batches(&loader, 0) {
            assert_eq!(batch.len(), if seen.len() < 112 { 16 } else { 8 });
            let mut tasks: Vec<usize> = batch.iter().map(|&(label, _)| task_of(label)).collect();
            tasks.sort_unstable();
            tasks.dedup();
            assert!(tasks.len() > 1, "a batch of task {tasks:?} alone");
            seen.extend(batch);
        }
        assert_ne!(batches(&loader, 1)[0], batches(&loader, 0)[0]);
        // Each image looks as it does in its task.
        let mut alone = Vec::new();
        for task_idx in 0..3 {
            let loader = joint.task_loader(task_idx, &dataset, config).unwrap();
            alone.extend(batches(&loader, 0).concat());
        }
        let by_label = |images: &[(usize, f32)]| {
            let mut by_label: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
            for &(label, sum) in images {
                by_label.entry(label).or_default().push(sum);
            }
            by_label
                .values_mut()
                .for_each(|sums| sums.sort_by(f32::total_cmp));
            by_label
        };
        let (joint, alone) = (by_label(&seen), by_label(&alone));
        assert_eq!(joint, alone);
        assert!(
            joint[&5][0] > 2.0 * joint[&4][14],
            "the second task is inverted"
        );
    }
}
