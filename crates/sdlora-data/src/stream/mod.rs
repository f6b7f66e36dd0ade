//! The stream of a run: which classes arrive in which task, and with which label.
//!
//! A stream is a pure function of data set and [`StreamConfig`]. The label of a class is its position in the order in
//! which classes first arrive, so the new labels of a task are consecutive and a head that grows task by task keeps its
//! rows. A class that comes again, as in a domain-incremental stream, keeps its label.

mod config;
mod cut;
mod share;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use config::{ClassRef, GroupOrder, Repeats, StreamConfig, TaskSplit};

use crate::dataset::{ClassId, Dataset};
use crate::error::DataError;
use crate::split::Split;
use crate::task::{EvalSet, SampleSet, Task, TrainSet};
use cut::cut;
use share::share;

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
    /// [`DataError::Setting`] for settings out of range or a data set without groups or domains, and
    /// [`DataError::EmptyClass`] when a class of a task has no training images, or no test images in a data
    /// set that has some; in a task of one domain only the task as a whole must have test images.
    pub fn new(dataset: &dyn Dataset, config: &StreamConfig) -> Result<Self, DataError> {
        let cuts = cut(dataset, config)?;
        let n_tasks = match config.n_tasks {
            Some(n_tasks) if n_tasks == 0 || n_tasks > cuts.len() => {
                return Err(DataError::setting(
                    "n_tasks",
                    n_tasks,
                    format!("from 1 to the {} tasks of the split", cuts.len()),
                ));
            }
            n_tasks => n_tasks.unwrap_or(cuts.len()),
        };
        // What the data set tells says more, so it comes first.
        config.check()?;
        let mut labels = vec![None; dataset.class_names().len()];
        let mut class_order = Vec::new();
        let mut first_tasks = Vec::new();
        let mut first_labels = Vec::with_capacity(n_tasks + 1);
        for (task_idx, cut) in cuts[..n_tasks].iter().enumerate() {
            first_labels.push(class_order.len());
            for &class in &cut.classes {
                if labels[class].is_none() {
                    labels[class] = Some(class_order.len());
                    class_order.push(class);
                    first_tasks.push(task_idx);
                }
            }
        }
        first_labels.push(class_order.len());
        let first_tasks: Arc<[usize]> = first_tasks.into();

        // All tasks take part, also those that `n_tasks` leaves out: the ones it keeps do not depend on it.
        let mut train = share(dataset, Split::Train, &cuts, &labels, config.repeats)?;
        let mut test = share(dataset, Split::Test, &cuts, &labels, config.repeats)?;
        let tasks = cuts
            .into_iter()
            .take(n_tasks)
            .enumerate()
            .map(|(idx, cut)| {
                let appearance = match config.appearances.len() {
                    0 => Vec::new(),
                    n => config.appearances[idx % n].clone(),
                };
                let half = |split, samples| SampleSet {
                    task_idx: idx,
                    split,
                    samples,
                    appearance: appearance.clone(),
                    first_tasks: first_tasks.clone(),
                    parts: Arc::new([]),
                };
                Task {
                    idx,
                    first_label: first_labels[idx],
                    n_new_classes: first_labels[idx + 1] - first_labels[idx],
                    labels: cut.classes.iter().filter_map(|&c| labels[c]).collect(),
                    classes: cut.classes,
                    domain: cut.domain,
                    train: TrainSet(half(Split::Train, std::mem::take(&mut train[idx]))),
                    test: EvalSet(half(Split::Test, std::mem::take(&mut test[idx]))),
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

    /// The class ids of the stream by label: the new classes of all tasks one after another.
    pub fn class_order(&self) -> &[ClassId] {
        &self.class_order
    }

    /// Number of classes of all tasks, each counted once.
    pub fn n_classes(&self) -> usize {
        self.class_order.len()
    }

    /// Label of a class, `None` when the class is not part of the stream.
    pub fn label_of(&self, class_id: ClassId) -> Option<usize> {
        self.labels.get(class_id).copied().flatten()
    }

    /// Task in which a label is learned first, `None` when there is no such label.
    pub fn task_of_label(&self, label: usize) -> Option<usize> {
        self.tasks
            .iter()
            .position(|task| task.new_labels().contains(&label))
    }

    fn check_classes_have_samples(&self, dataset: &dyn Dataset) -> Result<(), DataError> {
        let has_test = !dataset.samples(Split::Test).is_empty();
        let n_domains = dataset.domains().len();
        let absent: BTreeSet<ClassId> = (0..n_domains)
            .flat_map(|domain| dataset.absent_classes(domain).iter().copied())
            .collect();
        for task in &self.tasks {
            for half in [task.train.as_ref(), task.test.as_ref()] {
                if half.split == Split::Test && !has_test {
                    continue;
                }
                let mut has_sample = vec![false; self.n_classes()];
                for sample in &half.samples {
                    has_sample[sample.label] = true;
                }
                let mut missing = task.labels.iter().filter(|&&label| {
                    !has_sample[label] && !absent.contains(&self.class_order[label])
                });
                if half.split == Split::Test && task.domain.is_some() && !half.is_empty() {
                    continue;
                }
                if let Some(&label) = missing.next() {
                    return Err(DataError::EmptyClass {
                        task_idx: task.idx,
                        split: half.split,
                        class: dataset.class_names()[self.class_order[label]].clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class_order::ClassOrder;
    use crate::toy::ToyDataset;
    use sdlora_image::Appearance;

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
        assert_eq!((last.first_label, last.new_labels()), (6, 6..8));
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

    fn refs(groups: &[&[usize]]) -> TaskSplit {
        let refs = |group: &&[usize]| group.iter().map(|&id| ClassRef::Id(id)).collect();
        TaskSplit::Groups(groups.iter().map(refs).collect())
    }

    fn sample_idxs(set: &SampleSet) -> Vec<usize> {
        set.samples().iter().map(|sample| sample.idx).collect()
    }

    #[test]
    fn groups_are_taken_by_name_or_id_in_their_order() {
        let dataset = ToyDataset::new(5, 1, 1);
        let name = |name: &str| ClassRef::Name(name.to_owned());
        let split = TaskSplit::Groups(vec![
            vec![name("class4"), ClassRef::Id(0)],
            vec![name("class1")],
        ]);
        let stream = TaskStream::new(&dataset, &StreamConfig::new(split)).unwrap();
        assert_eq!(classes(&stream), [vec![4, 0], vec![1]]);
        assert_eq!(stream.class_order(), [4, 0, 1]);
        assert_eq!(stream.label_of(2), None);
    }

    #[test]
    fn a_repeated_class_keeps_its_label_and_the_head_grows_by_new_classes_only() {
        let dataset = ToyDataset::new(4, 6, 2);
        let config = StreamConfig::new(refs(&[&[2, 0], &[0, 3], &[2, 0], &[1]]));
        let refused = TaskStream::new(&dataset, &config).unwrap_err().to_string();
        assert!(
            refused.contains("`class0` is in tasks 0 and 1"),
            "{refused}"
        );

        let all = TaskStream::new(&dataset, &config.clone().with_repeats(Repeats::All)).unwrap();
        let n_new: Vec<usize> = all.tasks().iter().map(|task| task.n_new_classes).collect();
        assert_eq!(n_new, [2, 1, 0, 1]);
        let labels: Vec<&[usize]> = all.tasks().iter().map(Task::labels).collect();
        assert_eq!(labels, [&[0, 1][..], &[1, 2], &[0, 1], &[3]]);
        assert_eq!(all.tasks()[2].new_labels(), 3..3);
        assert_eq!(all.class_order(), [2, 0, 3, 1]);
        assert_eq!(
            (all.task_of_label(1), all.task_of_label(3)),
            (Some(0), Some(3))
        );
        let train = |stream: &TaskStream, i: usize| sample_idxs(stream.tasks()[i].train.as_ref());
        assert_eq!(train(&all, 0), train(&all, 2));
        assert_eq!(train(&all, 0).len(), 12);

        let config = config.with_repeats(Repeats::Split { seed: 3 });
        let split = TaskStream::new(&dataset, &config).unwrap();
        // Class 2 has two tasks, class 0 three, of six images.
        let n_train: Vec<usize> = (0..4).map(|i| train(&split, i).len()).collect();
        assert_eq!(n_train, [3 + 2, 2 + 6, 3 + 2, 6]);
        let mut every: Vec<usize> = (0..4).flat_map(|i| train(&split, i)).collect();
        every.sort_unstable();
        assert_eq!(every, (0..24).collect::<Vec<_>>(), "each image once");
        for i in 0..4 {
            assert!(train(&split, i).is_sorted(), "the order of the data set");
            // Tests are whole in every task.
            let n_test = split.tasks()[i].test.as_ref().len();
            assert_eq!(n_test, 2 * split.tasks()[i].classes.len());
        }
        let other = config.clone().with_repeats(Repeats::Split { seed: 4 });
        assert_ne!(
            train(&split, 0),
            train(&TaskStream::new(&dataset, &other).unwrap(), 0)
        );
        // Later tasks do not change earlier ones.
        let fewer = TaskStream::new(&dataset, &config.with_n_tasks(2)).unwrap();
        assert_eq!(train(&fewer, 0), train(&split, 0));
        assert_eq!(fewer.n_classes(), 3);
    }

    #[test]
    fn what_is_held_out_of_a_repeated_class_is_never_trained_on() {
        let dataset = ToyDataset::new(2, 6, 1);
        let config = StreamConfig::new(refs(&[&[0], &[1, 0]])).with_repeats(Repeats::All);
        let stream = TaskStream::new(&dataset, &config).unwrap();
        for seed in 0..8 {
            let held = |i: usize| {
                let (train, held) = stream.tasks()[i].train.hold_out(2, seed).unwrap();
                (sample_idxs(train.as_ref()), sample_idxs(held.as_ref()))
            };
            let ((_, first), (train, second)) = (held(0), held(1));
            assert!(first.iter().all(|idx| second.contains(idx)), "{second:?}");
            assert!(first.iter().all(|idx| !train.contains(idx)), "{train:?}");
        }
    }

    #[test]
    fn a_domain_is_a_task_with_the_same_classes() {
        let dataset = ToyDataset::new(3, 4, 2).with_domains(&["photo", "sketch"]);
        let config = StreamConfig::new(TaskSplit::PerDomain {
            order: GroupOrder::Named(vec!["sketch".into(), "photo".into()]),
        })
        .with_class_order(ClassOrder::Listed(vec![2, 0]));
        let stream = TaskStream::new(&dataset, &config).unwrap();
        assert_eq!(classes(&stream), [vec![2, 0], vec![2, 0]]);
        let [first, second] = stream.tasks() else {
            panic!("two tasks");
        };
        assert_eq!((first.n_new_classes, second.n_new_classes), (2, 0));
        assert_eq!((first.domain, second.domain), (Some(1), Some(0)));
        assert_eq!(second.labels(), [0, 1]);
        for task in [first, second] {
            let domain = task.domain;
            for half in [task.train.as_ref(), task.test.as_ref()] {
                let domains = half
                    .samples()
                    .iter()
                    .map(|s| dataset.domain_of(half.split(), s.idx));
                assert!(domains.clone().all(|found| found == domain));
                assert!(domains.count() > 0);
            }
        }
        let n = |task: &Task| (task.train.as_ref().len(), task.test.as_ref().len());
        assert_eq!((n(first), n(second)), ((4, 2), (4, 2)));
    }

    #[test]
    fn a_class_is_learned_in_the_first_domain_that_has_it() {
        // Class 1 has its only training image of domain 0 taken away.
        let dataset = ToyDataset::new(2, 2, 2)
            .with_domains(&["photo", "sketch"])
            .without_train_image(2);
        let order = GroupOrder::Natural;
        let config = StreamConfig::new(TaskSplit::PerDomain { order });
        let stream = TaskStream::new(&dataset, &config).unwrap();
        assert_eq!(classes(&stream), [vec![0], vec![0, 1]]);
        let n_new: Vec<usize> = stream
            .tasks()
            .iter()
            .map(|task| task.n_new_classes)
            .collect();
        assert_eq!(n_new, [1, 1]);
        // Test images of a class that its task does not have are left out.
        assert_eq!(stream.tasks()[0].test.as_ref().len(), 1);
    }

    #[test]
    fn mistakes_in_groups_and_domains_are_named() {
        let plain = ToyDataset::new(3, 2, 1);
        let domains = ToyDataset::new(3, 2, 2).with_domains(&["photo", "sketch"]);
        let named = |names: &[&str]| TaskSplit::PerDomain {
            order: GroupOrder::Named(names.iter().map(ToString::to_string).collect()),
        };
        let name = |name: &str| TaskSplit::Groups(vec![vec![ClassRef::Name(name.into())]]);
        let natural = GroupOrder::Natural;
        let numpy = ClassOrder::Numpy { seed: 1 };
        for (dataset, config, part) in [
            (&plain, StreamConfig::new(refs(&[])), "at least one task"),
            (&plain, StreamConfig::new(refs(&[&[0], &[]])), "groups[1]"),
            (&plain, StreamConfig::new(refs(&[&[0], &[3]])), "below 3"),
            (
                &plain,
                StreamConfig::new(refs(&[&[1, 1]])),
                "`class1` twice",
            ),
            (&plain, StreamConfig::new(name("cat")), "such as `class0`"),
            (
                &plain,
                StreamConfig::new(refs(&[&[1]])).with_class_order(numpy),
                "class_order",
            ),
            (
                &plain,
                StreamConfig::joint().with_repeats(Repeats::All),
                "repeats",
            ),
            (
                &plain,
                StreamConfig::new(refs(&[&[1], &[1], &[1]]))
                    .with_repeats(Repeats::Split { seed: 1 }),
                "2 training images of class `class1` in 3 tasks",
            ),
            (
                &plain,
                StreamConfig::new(TaskSplit::PerDomain { order: natural }),
                "no domains",
            ),
            (
                &domains,
                StreamConfig::new(named(&["art"])),
                "photo, sketch",
            ),
            (&domains, StreamConfig::new(named(&["photo"; 2])), "twice"),
            (&domains, StreamConfig::new(named(&[])), "empty"),
        ] {
            let error = TaskStream::new(dataset, &config).unwrap_err();
            assert!(matches!(error, DataError::Setting { .. }), "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
