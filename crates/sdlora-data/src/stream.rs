//! The stream of a run: which classes arrive in which task, and with which label.
//!
//! A stream is a pure function of data set and [`StreamConfig`]. The label of a class is its position in the class
//! order, so the labels of a task are consecutive and a head that grows task by task keeps its rows.

use serde::{Deserialize, Serialize};

use crate::appearance::Appearance;
use crate::class_order::{ClassOrder, numpy_permutation};
use crate::dataset::{ClassId, Dataset, Split};
use crate::error::DataError;
use crate::task::{EvalSet, LabelledSample, SampleSet, Task, TrainSet};

/// How a stream is made of a data set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// Order in which classes are learned.
    #[serde(default)]
    pub class_order: ClassOrder,
    /// How the ordered classes are cut into tasks.
    pub split: TaskSplit,
    /// Number of tasks to keep; later tasks and their classes are left out. All when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_tasks: Option<usize>,
    /// Changes of appearance: task `t` gets entry `t` modulo their number, training and test half alike.
    /// No entry leaves all images as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub appearances: Vec<Vec<Appearance>>,
}

/// How the ordered classes are cut into tasks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TaskSplit {
    /// One task of all classes: pre-training, or joint training as an upper bound.
    Joint,
    /// `init_cls` classes, then `increment` a task; classes left over make a last, smaller task (names as in PILOT).
    Increment {
        /// Number of classes of the first task, at least 1.
        init_cls: usize,
        /// Number of classes of every later task, at least 1.
        increment: usize,
    },
    /// Tasks of exactly these sizes, each at least 1; classes beyond their sum are left out.
    Sizes(Vec<usize>),
    /// One task for each group of the data set (alphabet, superclass); inside a group the class order holds.
    PerGroup {
        /// Order of the groups.
        order: GroupOrder,
    },
}

/// Order of the groups of a [`TaskSplit::PerGroup`] stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GroupOrder {
    /// As the data set lists them.
    #[default]
    Natural,
    /// NumPy's legacy permutation of the groups.
    Numpy {
        /// Argument of `numpy.random.seed`.
        seed: u32,
    },
}

impl StreamConfig {
    /// A stream with the classes in natural order.
    pub fn new(split: TaskSplit) -> Self {
        Self {
            class_order: ClassOrder::Natural,
            split,
            n_tasks: None,
            appearances: Vec::new(),
        }
    }

    /// One task of all classes, in natural order, images as they are.
    pub fn joint() -> Self {
        Self::new(TaskSplit::Joint)
    }

    /// Classes in the given order.
    #[must_use]
    pub fn with_class_order(mut self, class_order: ClassOrder) -> Self {
        self.class_order = class_order;
        self
    }

    /// At most `n_tasks` tasks.
    #[must_use]
    pub fn with_n_tasks(mut self, n_tasks: usize) -> Self {
        self.n_tasks = Some(n_tasks);
        self
    }

    /// Changes of appearance, by task.
    #[must_use]
    pub fn with_appearances(mut self, appearances: Vec<Vec<Appearance>>) -> Self {
        self.appearances = appearances;
        self
    }
}

/// The ordered tasks of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskStream {
    tasks: Vec<Task>,
    class_order: Vec<ClassId>,
    labels: Vec<Option<usize>>,
}

impl TaskStream {
    /// Cuts `dataset` into tasks as `config` says.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] for settings out of range or a data set without groups, [`DataError::EmptyClass`] when
    /// a class of the stream has no training images, or no test images in a data set that has some.
    pub fn new(dataset: &dyn Dataset, config: &StreamConfig) -> Result<Self, DataError> {
        let n_classes = dataset.class_names().len();
        let order = config.class_order.resolve(n_classes)?;
        let mut class_lists = cut(dataset, order, &config.split)?;
        if let Some(n_tasks) = config.n_tasks {
            if n_tasks == 0 || n_tasks > class_lists.len() {
                return Err(DataError::setting(
                    "n_tasks",
                    n_tasks,
                    format!("from 1 to the {} tasks of the split", class_lists.len()),
                ));
            }
            class_lists.truncate(n_tasks);
        }
        for (i, appearance) in config.appearances.iter().flatten().enumerate() {
            appearance.check(&format!("appearances[{i}]"))?;
        }

        let class_order: Vec<ClassId> = class_lists.concat();
        let mut labels = vec![None; n_classes];
        for (label, &class) in class_order.iter().enumerate() {
            labels[class] = Some(label);
        }
        let first_labels: Vec<usize> = class_lists
            .iter()
            .scan(0, |next, classes| {
                let first = *next;
                *next += classes.len();
                Some(first)
            })
            .collect();

        let mut train = label_samples(dataset, Split::Train, &labels, &first_labels);
        let mut test = label_samples(dataset, Split::Test, &labels, &first_labels);
        let tasks = class_lists
            .into_iter()
            .enumerate()
            .map(|(idx, classes)| {
                let appearance = match config.appearances.len() {
                    0 => Vec::new(),
                    n => config.appearances[idx % n].clone(),
                };
                let half = |split, samples| SampleSet {
                    task_idx: idx,
                    split,
                    samples,
                    appearance: appearance.clone(),
                };
                Task {
                    idx,
                    first_label: first_labels[idx],
                    train: TrainSet(half(Split::Train, std::mem::take(&mut train[idx]))),
                    test: EvalSet(half(Split::Test, std::mem::take(&mut test[idx]))),
                    classes,
                }
            })
            .collect();
        let stream = Self {
            tasks,
            class_order,
            labels,
        };
        stream.check_classes_have_samples(dataset)?;
        Ok(stream)
    }

    /// The tasks in order.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The class ids of the stream by label: the classes of all tasks one after another.
    pub fn class_order(&self) -> &[ClassId] {
        &self.class_order
    }

    /// Number of classes of all tasks.
    pub fn n_classes(&self) -> usize {
        self.class_order.len()
    }

    /// Label of a class, `None` when the class is not part of the stream.
    pub fn label_of(&self, class_id: ClassId) -> Option<usize> {
        self.labels.get(class_id).copied().flatten()
    }

    /// Task in which a label is learned, `None` when there is no such label.
    pub fn task_of_label(&self, label: usize) -> Option<usize> {
        self.tasks
            .iter()
            .position(|task| task.labels().contains(&label))
    }

    fn check_classes_have_samples(&self, dataset: &dyn Dataset) -> Result<(), DataError> {
        let has_test = !dataset.samples(Split::Test).is_empty();
        for task in &self.tasks {
            for half in [task.train.as_ref(), task.test.as_ref()] {
                if half.split == Split::Test && !has_test {
                    continue;
                }
                let mut has_sample = vec![false; task.classes.len()];
                for sample in &half.samples {
                    has_sample[sample.label - task.first_label] = true;
                }
                if let Some(i) = has_sample.iter().position(|has| !has) {
                    return Err(DataError::EmptyClass {
                        task_idx: task.idx,
                        split: half.split,
                        class: dataset.class_names()[task.classes[i]].clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Classes of each task.
fn cut(
    dataset: &dyn Dataset,
    order: Vec<ClassId>,
    split: &TaskSplit,
) -> Result<Vec<Vec<ClassId>>, DataError> {
    match split {
        TaskSplit::Joint => Ok(vec![order]),
        TaskSplit::Increment {
            init_cls,
            increment,
        } => {
            let at_most = order.len();
            for (name, value) in [("init_cls", *init_cls), ("increment", *increment)] {
                if value == 0 || value > at_most {
                    return Err(DataError::setting(
                        format!("split.increment.{name}"),
                        value,
                        format!("from 1 to the {at_most} classes of the class order"),
                    ));
                }
            }
            let (first, rest) = order.split_at(*init_cls);
            let mut lists = vec![first.to_vec()];
            lists.extend(rest.chunks(*increment).map(<[ClassId]>::to_vec));
            Ok(lists)
        }
        TaskSplit::Sizes(sizes) => {
            let total = sizes.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n));
            let in_range = total.is_some_and(|total| total <= order.len());
            if sizes.is_empty() || sizes.contains(&0) || !in_range {
                return Err(DataError::setting(
                    "split.sizes",
                    format!("{sizes:?}"),
                    format!("positive sizes with a sum of at most {}", order.len()),
                ));
            }
            let mut rest = order.as_slice();
            Ok(sizes
                .iter()
                .map(|&size| {
                    let (task, later) = rest.split_at(size);
                    rest = later;
                    task.to_vec()
                })
                .collect())
        }
        TaskSplit::PerGroup { order: group_order } => per_group(dataset, &order, group_order),
    }
}

fn per_group(
    dataset: &dyn Dataset,
    order: &[ClassId],
    group_order: &GroupOrder,
) -> Result<Vec<Vec<ClassId>>, DataError> {
    let groups = dataset.groups();
    if groups.is_empty() {
        return Err(DataError::setting(
            "split",
            format!("per_group for data set `{}`", dataset.name()),
            "another split, as this data set has no groups",
        ));
    }
    let mut group_of = vec![None; dataset.class_names().len()];
    for (group_idx, group) in groups.iter().enumerate() {
        for &class in &group.classes {
            group_of[class] = Some(group_idx);
        }
    }
    let mut lists = vec![Vec::new(); groups.len()];
    for &class in order {
        if let Some(group_idx) = group_of[class] {
            lists[group_idx].push(class);
        }
    }
    let by_rank = match group_order {
        GroupOrder::Natural => (0..groups.len()).collect(),
        GroupOrder::Numpy { seed } => numpy_permutation(*seed, groups.len()),
    };
    Ok(by_rank
        .into_iter()
        .map(|group_idx| std::mem::take(&mut lists[group_idx]))
        .filter(|classes| !classes.is_empty())
        .collect())
}

/// Labelled samples of a split, by task, each in the order of the data set.
fn label_samples(
    dataset: &dyn Dataset,
    split: Split,
    labels: &[Option<usize>],
    first_labels: &[usize],
) -> Vec<Vec<LabelledSample>> {
    let mut by_task = vec![Vec::new(); first_labels.len()];
    for (idx, sample) in dataset.samples(split).iter().enumerate() {
        if let Some(label) = labels.get(sample.class_id).copied().flatten() {
            let task_idx = first_labels.partition_point(|&first| first <= label) - 1;
            by_task[task_idx].push(LabelledSample { idx, label });
        }
    }
    by_task
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toy::ToyDataset;

    fn classes(stream: &TaskStream) -> Vec<Vec<ClassId>> {
        stream
            .tasks()
            .iter()
            .map(|task| task.classes.clone())
            .collect()
    }

    fn increment(init_cls: usize, increment: usize) -> TaskSplit {
        TaskSplit::Increment {
            init_cls,
            increment,
        }
    }

    #[test]
    fn leftover_classes_make_a_last_smaller_task() {
        let dataset = ToyDataset::new(8, 3, 1);
        let stream = TaskStream::new(&dataset, &StreamConfig::new(increment(2, 4))).unwrap();
        assert_eq!(classes(&stream), [vec![0, 1], vec![2, 3, 4, 5], vec![6, 7]]);
        let last = &stream.tasks()[2];
        assert_eq!((last.first_label, last.labels()), (6, 6..8));
        assert_eq!(
            (last.train.as_ref().len(), last.test.as_ref().len()),
            (6, 2)
        );
    }

    #[test]
    fn labels_are_positions_in_the_class_order() {
        let dataset = ToyDataset::new(5, 2, 1);
        let order = ClassOrder::Listed(vec![3, 0, 4, 1]);
        let config = StreamConfig::new(increment(2, 2)).with_class_order(order);
        let stream = TaskStream::new(&dataset, &config).unwrap();
        assert_eq!(stream.class_order(), [3, 0, 4, 1]);
        assert_eq!(stream.label_of(4), Some(2));
        assert_eq!((stream.label_of(2), stream.label_of(9)), (None, None));
        assert_eq!(stream.task_of_label(2), Some(1));
        for task in stream.tasks() {
            for sample in task.train.as_ref().samples() {
                let class = dataset.samples(Split::Train)[sample.idx].class_id;
                assert_eq!(stream.label_of(class), Some(sample.label));
                assert!(task.labels().contains(&sample.label));
            }
        }
    }

    #[test]
    fn groups_make_tasks_and_keep_the_class_order_inside() {
        let dataset = ToyDataset::new(5, 1, 1).with_groups(&[&[0, 2], &[1, 3, 4]]);
        let config = StreamConfig::new(TaskSplit::PerGroup {
            order: GroupOrder::Natural,
        })
        .with_class_order(ClassOrder::Listed(vec![4, 2, 3, 0, 1]));
        let stream = TaskStream::new(&dataset, &config).unwrap();
        assert_eq!(classes(&stream), [vec![2, 0], vec![4, 3, 1]]);
        assert_eq!(stream.class_order(), [2, 0, 4, 3, 1]);
    }

    #[test]
    fn n_tasks_leaves_later_classes_out() {
        let dataset = ToyDataset::new(6, 1, 1);
        let config = StreamConfig::new(increment(2, 2)).with_n_tasks(2);
        let stream = TaskStream::new(&dataset, &config).unwrap();
        assert_eq!((stream.n_classes(), stream.label_of(4)), (4, None));
        assert!(TaskStream::new(&dataset, &config.with_n_tasks(4)).is_err());
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let dataset = ToyDataset::new(4, 1, 1);
        for split in [
            increment(0, 2),
            increment(2, 0),
            increment(5, 1),
            TaskSplit::Sizes(vec![]),
            TaskSplit::Sizes(vec![2, 0]),
            TaskSplit::Sizes(vec![3, 2]),
            TaskSplit::Sizes(vec![usize::MAX, 2]),
            TaskSplit::PerGroup {
                order: GroupOrder::Natural,
            },
        ] {
            let result = TaskStream::new(&dataset, &StreamConfig::new(split.clone()));
            assert!(
                matches!(result, Err(DataError::Setting { .. })),
                "{split:?}"
            );
        }
    }

    #[test]
    fn a_class_without_images_is_named() {
        let dataset = ToyDataset::new(2, 1, 1).without_test_images_of(1);
        let message = TaskStream::new(&dataset, &StreamConfig::joint())
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("no test images for class `class1`"),
            "{message}"
        );
    }

    #[test]
    fn appearances_cycle_over_tasks() {
        let dataset = ToyDataset::new(3, 1, 1);
        let config = StreamConfig::new(increment(1, 1))
            .with_appearances(vec![vec![], vec![Appearance::Invert]]);
        let stream = TaskStream::new(&dataset, &config).unwrap();
        let lengths = |i: usize| {
            let task = &stream.tasks()[i];
            (
                task.train.as_ref().appearance().len(),
                task.test.as_ref().appearance().len(),
            )
        };
        assert_eq!(
            [lengths(0), lengths(1), lengths(2)],
            [(0, 0), (1, 1), (0, 0)]
        );
    }

    #[test]
    fn configuration_reads_back_what_it_writes() {
        let text = r#"
            class_order = { numpy = { seed = 1993 } }
            split = { increment = { init_cls = 2, increment = 4 } }
            n_tasks = 3
            appearances = [[], [{ rotate = { degrees = 90.0 } }, "invert"]]
        "#;
        let config: StreamConfig = toml::from_str(text).unwrap();
        assert_eq!(config.class_order, ClassOrder::Numpy { seed: 1993 });
        assert_eq!(config.appearances[1].len(), 2);
        let again: StreamConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(config, again);
        for wrong in [
            "split = 'joint'\nsplits = 1",
            "split = { increment = { init_cls = 2, increment = 4, x = 1 } }",
        ] {
            assert!(toml::from_str::<StreamConfig>(wrong).is_err(), "{wrong}");
        }
    }
}
