//! The images of a run: which ones a round trains on, and which ones are tested after it.
//!
//! The trainer sees the training half of its round, the evaluator the test halves of the tasks seen, and
//! neither sees the other's.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use sdlora_data::{
    Cache, CacheBudget, DataError, Dataset, EvalSet, ImageSource, Loader, LoaderConfig, SampleSet,
    TaskStream, TrainSet,
};
use sdlora_image::TransformConfig;

use crate::config::Plan;
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::methods::TaskImages;
use crate::model::Model;
use crate::task_loader::TaskLoader;

/// Images per batch of an evaluation; large enough to keep all cores busy, small in memory.
pub(crate) const EVAL_BATCH: usize = 256;

/// A task of the stream.
#[derive(Debug)]
pub(crate) struct Task {
    train: TrainSet,
    test: EvalSet,
    /// Held out of the training half to calibrate what the run leaves.
    calibration: Option<EvalSet>,
    /// Labels of its classes, ascending; new ones and those that come again.
    pub(crate) labels: Vec<usize>,
    /// Label of its first new class: the number of classes of the tasks before.
    pub(crate) first_label: usize,
    /// Classes that no earlier task has.
    pub(crate) n_new_classes: usize,
}

impl Task {
    /// Test images.
    pub(crate) fn n_test_images(&self) -> usize {
        self.test.as_ref().len()
    }

    /// Labels of its new classes.
    pub(crate) fn new_labels(&self) -> Range<usize> {
        self.first_label..self.first_label + self.n_new_classes
    }
}

/// What a run trains on at once: a task, or all of them where training is joint.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// Place among the rounds, from 0.
    pub(crate) idx: usize,
    /// Its tasks. All tasks up to the end of this range are seen after the round.
    pub(crate) tasks: Range<usize>,
    /// Labels of its classes, ascending; new ones and those that come again.
    pub(crate) labels: Vec<usize>,
    /// Label of its first new class: the number of classes of the rounds before.
    pub(crate) first_label: usize,
    /// Classes that no earlier round has.
    pub(crate) n_new_classes: usize,
}

impl Round {
    /// The rounds of a stream: one for each task, or a single one of all tasks.
    fn of(tasks: &[Task], is_joint: bool) -> Vec<Self> {
        let ranges: Vec<Range<usize>> = match is_joint {
            true => std::iter::once(0..tasks.len()).collect(),
            false => (0..tasks.len()).map(|i| i..i + 1).collect(),
        };
        let rounds = ranges.into_iter().enumerate().map(|(idx, range)| {
            let of_round = &tasks[range.clone()];
            let mut labels: Vec<usize> = of_round
                .iter()
                .flat_map(|task| task.labels.clone())
                .collect();
            labels.sort_unstable();
            labels.dedup();
            Self {
                idx,
                tasks: range,
                labels,
                first_label: of_round.first().map_or(0, |task| task.first_label),
                n_new_classes: of_round.iter().map(|task| task.n_new_classes).sum(),
            }
        });
        rounds.collect()
    }

    /// Classes of this round and all before.
    pub(crate) fn n_seen_classes(&self) -> usize {
        self.first_label + self.n_new_classes
    }

    /// Tasks of this round and all before.
    pub(crate) fn n_seen_tasks(&self) -> usize {
        self.tasks.end
    }
}

/// The data set of a run, cut into tasks and rounds.
pub(crate) struct RunData {
    pub(crate) dataset: Arc<dyn Dataset>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) rounds: Vec<Round>,
    /// Class ids of the data set in the order of their labels.
    pub(crate) class_order: Vec<usize>,
    transform: TransformConfig,
    /// Memory of prepared images.
    budget: CacheBudget,
    /// The part of it that the test images may take: no more than half, since they are read once a task and those
    /// of training once an epoch.
    test_budget: CacheBudget,
    batch_size: usize,
    seed: u64,
}

impl RunData {
    /// Opens the data set of a plan below `data_dir`, cuts it into tasks, and holds out what the plan says
    /// takes the place of the test halves.
    ///
    /// # Errors
    ///
    /// Those of the data set and of the stream.
    pub(crate) fn open(plan: &Plan, data_dir: &Path) -> Result<Self, TrainError> {
        let config = plan.config();
        let dataset: Arc<dyn Dataset> =
            sdlora_data::datasets::open(&config.dataset, data_dir, &config.dataset_options)?.into();
        let stream = TaskStream::new(dataset.as_ref(), &config.stream)?;
        let mut first_label = 0;
        let mut tasks = Vec::new();
        for task in stream.tasks() {
            let (train, test) = match config.hold_out {
                0 => (task.train.clone(), task.test.clone()),
                n_per_class => task.train.hold_out(n_per_class, config.seed)?,
            };
            let (train, calibration) = held_out(train, config.calibrate_on, config.seed)?;
            tasks.push(Task {
                train,
                test,
                calibration,
                labels: task.labels().to_vec(),
                first_label,
                n_new_classes: task.n_new_classes,
            });
            first_label += task.n_new_classes;
        }
        let budget = CacheBudget::of(config.cache);
        Ok(Self {
            rounds: Round::of(&tasks, plan.method().is_joint()),
            tasks,
            class_order: stream.class_order().to_vec(),
            dataset,
            transform: config.transform.clone(),
            test_budget: budget.part(1, 2),
            budget,
            batch_size: config.batch_size,
            seed: config.seed,
        })
    }

    /// Names of the classes in the order of their labels.
    pub(crate) fn class_names(&self) -> Vec<String> {
        let names = self.dataset.class_names();
        let order = self.class_order.iter();
        order.map(|&id| names[id].clone()).collect()
    }

    /// Test images of every task.
    pub(crate) fn test_counts(&self) -> Vec<usize> {
        self.tasks.iter().map(Task::n_test_images).collect()
    }

    /// Whether images of tasks that are over may be gone, and a later run goes on with more.
    pub(crate) fn is_chain(&self) -> bool {
        self.dataset.compared_part().is_some()
    }

    /// Whether a round has images to train on.
    pub(crate) fn has_images(&self, round: &Round) -> bool {
        let mut tasks = self.tasks[round.tasks.clone()].iter();
        tasks.any(|task| !task.train.as_ref().is_empty())
    }

    /// For every label of a round, ascending, what its images count in the loss: `n / (k · n_c)`, with `n` images of
    /// `k` classes and `n_c` of the class, so that all images together count `n`.
    pub(crate) fn balanced_weights(&self, round: &Round) -> Vec<f32> {
        let mut counts = vec![0usize; round.labels.len()];
        for task in &self.tasks[round.tasks.clone()] {
            for sample in task.train.as_ref().samples() {
                if let Ok(place) = round.labels.binary_search(&sample.label) {
                    counts[place] += 1;
                }
            }
        }
        let n: usize = counts.iter().sum();
        let k = counts.iter().filter(|&&count| count > 0).count();
        let weight = |&count: &usize| match count {
            0 => 0.0,
            count => (n as f64 / (k * count) as f64) as f32,
        };
        counts.iter().map(weight).collect()
    }

    /// Whether a class is part of several tasks.
    pub(crate) fn has_repeats(&self) -> bool {
        let mut tasks = self.tasks.iter();
        tasks.any(|task| task.labels.len() > task.n_new_classes)
    }

    /// The training images of a round, of all its tasks as one set.
    pub(crate) fn train_loader(&self, round: &Round) -> Result<TaskLoader, TrainError> {
        self.loader_of(round.tasks.clone())
    }

    /// The training images of one task alone, whatever the rounds are.
    pub(crate) fn task_loader(&self, task_idx: usize) -> Result<TaskLoader, TrainError> {
        self.loader_of(task_idx..task_idx + 1)
    }

    fn loader_of(&self, tasks: Range<usize>) -> Result<TaskLoader, TrainError> {
        let sets: Vec<TrainSet> = self.tasks[tasks].iter().map(|t| t.train.clone()).collect();
        let Some(set) = TrainSet::joined(&sets) else {
            return Err(TrainError::setting("stream.n_tasks", 0, "at least 1"));
        };
        let transform = self.transform.init()?;
        let source = ImageSource::within(self.dataset.clone(), &set, transform, &self.budget);
        let loader = LoaderConfig::training(self.batch_size).init(Arc::new(source), self.seed)?;
        Ok(TaskLoader::new(loader))
    }

    /// The test images of every task; none is decoded before it is evaluated.
    pub(crate) fn test_loaders(&self) -> Result<Vec<Loader>, TrainError> {
        let loaders = self
            .tasks
            .iter()
            .map(|task| self.plain_loader(&task.test, &self.test_budget));
        loaders.collect()
    }

    /// The images of every task from `first` on that are held out to calibrate; none where the plan holds none out.
    pub(crate) fn calibration_loaders(&self, first: usize) -> Result<Vec<Loader>, TrainError> {
        let sets = self.tasks[first..]
            .iter()
            .filter_map(|task| task.calibration.as_ref());
        // They are read once.
        let none = CacheBudget::of(Cache::None);
        sets.map(|set| self.plain_loader(set, &none)).collect()
    }

    /// At most `n` test images, spread evenly over those of all tasks, each a batch of its own, and their labels.
    ///
    /// # Errors
    ///
    /// Those of the data set.
    pub(crate) fn test_sample(
        &self,
        n: usize,
        device: &Device,
    ) -> Result<(Vec<Tensor<4>>, Vec<usize>), TrainError> {
        let n_images: usize = self.test_counts().iter().sum();
        let n = n.min(n_images);
        let (mut images, mut labels) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut chosen = (0..n).map(|i| i * n_images / n).peekable();
        let mut first = 0;
        for task in &self.tasks {
            let end = first + task.n_test_images();
            let transform = self.transform.for_evaluation().init()?;
            let source = ImageSource::new(self.dataset.clone(), &task.test, transform, Cache::None);
            let one_by_one = LoaderConfig::evaluation(1).with_prefetch(0).with_workers(1);
            let loader = one_by_one.init(Arc::new(source), self.seed)?;
            while let Some(position) = chosen.next_if(|&position| position < end) {
                let mut batches = loader.epoch(0, device).skip_to(position - first)?;
                if let Some(batch) = batches.next() {
                    let batch = batch?;
                    images.push(batch.images);
                    labels.extend(batch.labels_host);
                }
            }
            first = end;
        }
        Ok((images, labels))
    }

    /// The training images of a task in their order, as evaluation prepares them.
    pub(crate) fn plain_train_loader(&self, task_idx: usize) -> Result<Loader, TrainError> {
        // They are read once.
        let none = CacheBudget::of(Cache::None);
        self.plain_loader(&self.tasks[task_idx].train, &none)
    }

    /// The training images of a round for a method that looks at them, on a device without autodiff.
    pub(crate) fn images<'a>(&'a self, round: &Round, device: &Device) -> RoundImages<'a> {
        RoundImages {
            data: self,
            tasks: round.tasks.clone(),
            device: device.clone().inner(),
        }
    }

    /// Features of the training images of a round, as evaluation prepares images.
    pub(crate) fn train_features(
        &self,
        round: &Round,
        model: &Model,
        device: &Device,
    ) -> Result<FeatureTable, TrainError> {
        let extractor = model.extractor();
        let mut all = FeatureTable::default();
        for task_idx in round.tasks.clone() {
            let loader = self.plain_train_loader(task_idx)?;
            let table = FeatureTable::extract(&extractor, &loader, &device.clone().inner())?;
            all.d_model = table.d_model;
            all.features.extend(table.features);
            all.labels.extend(table.labels);
        }
        Ok(all)
    }

    /// Images of a set in its order, as evaluation prepares them.
    fn plain_loader(
        &self,
        set: &impl AsRef<SampleSet>,
        budget: &CacheBudget,
    ) -> Result<Loader, TrainError> {
        let transform = self.transform.for_evaluation().init()?;
        let source = ImageSource::within(self.dataset.clone(), set, transform, budget);
        Ok(LoaderConfig::evaluation(EVAL_BATCH).init(Arc::new(source), self.seed)?)
    }
}

/// A training half without `n_per_class` random images of every class, and those; all of it for 0.
fn held_out(
    train: TrainSet,
    n_per_class: usize,
    seed: u64,
) -> Result<(TrainSet, Option<EvalSet>), TrainError> {
    if n_per_class == 0 {
        return Ok((train, None));
    }
    let (train, held_out) = train
        .hold_out(n_per_class, seed)
        .map_err(|error| match error {
            DataError::Setting {
                found, expected, ..
            } => TrainError::setting("calibrate_on", found, expected),
            other => other.into(),
        })?;
    Ok((train, Some(held_out)))
}

/// The training images of a round for a method that looks at them.
pub(crate) struct RoundImages<'a> {
    data: &'a RunData,
    tasks: Range<usize>,
    device: Device,
}

impl TaskImages for RoundImages<'_> {
    fn each_batch(&self, visit: &mut dyn FnMut(Tensor<4>, &[usize])) -> Result<(), TrainError> {
        for task_idx in self.tasks.clone() {
            let loader = self.data.plain_train_loader(task_idx)?;
            for batch in loader.epoch(0, &self.device) {
                let batch = batch?;
                visit(batch.images, &batch.labels_host);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use sdlora_testkit::test_device;

    use crate::config::RunConfig;

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
    fn all_images_of_a_run_together_stay_within_its_budget() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        // An image has 28 x 28 bytes and some more, 120 of training and 40 of the test halves.
        for (cache, is_full) in [(0, true), (30_000, true), (1 << 40, false)] {
            let mut config = plan("sdlora").config().clone();
            config.cache = Cache::Bytes(cache);
            let data = RunData::open(&config.check().unwrap(), &folder).unwrap();
            let tests = data.test_loaders().unwrap();
            // Nothing is decoded before task 1.
            assert_eq!(data.budget.used(), 0);
            // A thread that works ahead gives back what it has when it ends.
            let wait_for_tests_alone = || {
                while data.budget.used() > data.test_budget.used() {
                    std::thread::yield_now();
                }
            };
            for round in &data.rounds {
                let loader = data.train_loader(round).unwrap();
                for epoch in 0..2 {
                    batches(&loader, epoch);
                }
                assert!(data.budget.used() <= cache);
                drop(loader);
                wait_for_tests_alone();
                for test in &tests[..round.tasks.end] {
                    assert!(test.host_epoch(0).all(|batch| batch.is_ok()));
                }
                let (used, of_tests) = (data.budget.used(), data.test_budget.used());
                assert!(
                    used <= cache && of_tests <= cache / 2,
                    "{used} and {of_tests} of {cache}"
                );
                assert_eq!(cache > 0, of_tests > 0);
            }
            assert!(
                data.budget.peak() <= cache,
                "{} of {cache}",
                data.budget.peak()
            );
            wait_for_tests_alone();
            // An image more would not have fitted.
            assert_eq!(is_full, data.budget.peak() + 2_000 > cache);
        }
    }

    #[test]
    fn joint_batches_have_the_size_that_is_asked_for_and_mix_unequal_tasks() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let joint = RunData::open(&plan("joint"), &data).unwrap();
        let [round] = &joint.rounds[..] else {
            panic!("{} rounds", joint.rounds.len());
        };
        let loader = joint.train_loader(round).unwrap();
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
            let loader = joint.task_loader(task_idx).unwrap();
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

    #[test]
    fn a_round_is_a_task_and_joint_training_is_one_round_of_all_tasks() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let rounds = |method: &str| RunData::open(&plan(method), &data).unwrap().rounds;
        let parts = |r: &Round| (r.idx, r.tasks.clone(), r.first_label, r.n_seen_classes());
        let apart: Vec<_> = rounds("sdlora").iter().map(parts).collect();
        assert_eq!(apart, [(0, 0..1, 0, 5), (1, 1..2, 5, 6), (2, 2..3, 6, 8)]);
        let joint = rounds("joint");
        assert_eq!(
            joint.iter().map(parts).collect::<Vec<_>>(),
            [(0, 0..3, 0, 8)]
        );
        assert_eq!(joint[0].labels, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
