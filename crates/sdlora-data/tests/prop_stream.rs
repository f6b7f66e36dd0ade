//! Streams of random data sets and settings: tasks split the classes, labels are positions in the class order.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use proptest::prelude::*;
use sdlora_data::{
    ClassOrder, ClassRef, DataError, Dataset, Group, GroupOrder, Repeats, Sample, SampleIdx, Split,
    StreamConfig, TaskSplit, TaskStream,
};
use sdlora_image::Image;

/// Classes in groups of up to `group_size`, samples of all classes interleaved.
#[derive(Debug)]
struct Grid {
    class_names: Vec<String>,
    groups: Vec<Group>,
    samples: [Vec<Sample>; 2],
}

impl Grid {
    fn new(n_classes: usize, n_per_class: usize, group_size: usize) -> Self {
        let classes: Vec<usize> = (0..n_classes).collect();
        let samples = |n: usize| -> Vec<Sample> {
            (0..n * n_classes)
                .map(|i| Sample {
                    class_id: i % n_classes,
                    name: i.to_string(),
                })
                .collect()
        };
        Self {
            class_names: classes.iter().map(ToString::to_string).collect(),
            groups: classes
                .chunks(group_size)
                .map(|classes| Group {
                    name: String::new(),
                    classes: classes.to_vec(),
                })
                .collect(),
            samples: [samples(n_per_class), samples(1)],
        }
    }
}

impl Dataset for Grid {
    fn name(&self) -> &str {
        "grid"
    }
    fn class_names(&self) -> &[String] {
        &self.class_names
    }
    fn groups(&self) -> &[Group] {
        &self.groups
    }
    fn samples(&self, split: Split) -> &[Sample] {
        &self.samples[usize::from(split == Split::Test)]
    }
    fn image(&self, _: Split, _: SampleIdx) -> Result<Image, DataError> {
        Ok(Image::new(1, 1, 1, vec![0])?)
    }
}

fn class_order() -> impl Strategy<Value = ClassOrder> {
    prop_oneof![
        Just(ClassOrder::Natural),
        any::<u32>().prop_map(|seed| ClassOrder::Numpy { seed }),
    ]
}

fn split(n_classes: usize) -> impl Strategy<Value = TaskSplit> {
    let group_order = prop_oneof![
        Just(GroupOrder::Natural),
        any::<u32>().prop_map(|seed| GroupOrder::Numpy { seed }),
    ];
    prop_oneof![
        Just(TaskSplit::Joint),
        (1..=n_classes, 1..=n_classes).prop_map(|(init_cls, increment)| TaskSplit::Increment {
            init_cls,
            increment
        }),
        group_order.prop_map(|order| TaskSplit::PerGroup { order }),
    ]
}

fn cases() -> impl Strategy<Value = (Grid, StreamConfig)> {
    (1..40_usize, 1..4_usize, 1..8_usize).prop_flat_map(|(n_classes, n_per_class, group_size)| {
        (class_order(), split(n_classes)).prop_map(move |(order, split)| {
            let grid = Grid::new(n_classes, n_per_class, group_size);
            (grid, StreamConfig::new(split).with_class_order(order))
        })
    })
}

proptest! {
    #[test]
    fn tasks_split_classes_and_samples((grid, config) in cases()) {
        let stream = TaskStream::new(&grid, &config).unwrap();
        let n_classes = grid.class_names.len();

        let mut classes = stream.class_order().to_vec();
        prop_assert_eq!(&stream.tasks().iter().flat_map(|t| t.classes.clone()).collect::<Vec<_>>(), &classes);
        classes.sort_unstable();
        prop_assert_eq!(classes, (0..n_classes).collect::<Vec<_>>());

        for split in [Split::Train, Split::Test] {
            let mut seen = vec![false; grid.samples(split).len()];
            for task in stream.tasks() {
                let half = if split == Split::Train { task.train.as_ref() } else { task.test.as_ref() };
                prop_assert_eq!((half.task_idx(), half.split()), (task.idx, split));
                for sample in half.samples() {
                    prop_assert!(!std::mem::replace(&mut seen[sample.idx], true));
                    let class = grid.samples(split)[sample.idx].class_id;
                    prop_assert_eq!(stream.class_order()[sample.label], class);
                    prop_assert_eq!(task.classes[sample.label - task.first_label], class);
                    prop_assert_eq!(stream.task_of_label(sample.label), Some(task.idx));
                }
            }
            prop_assert!(seen.iter().all(|&seen| seen));
        }
    }

    #[test]
    fn repeated_classes_keep_their_labels_and_parts_are_disjoint(
        seed in any::<u64>(),
        lists in prop::collection::vec(prop::sample::subsequence((0..6_usize).collect::<Vec<_>>(), 1..=6), 1..5),
    ) {
        let grid = Grid::new(6, 5, 1);
        let refs = |list: &Vec<usize>| list.iter().map(|&id| ClassRef::Id(id)).collect();
        let groups = TaskSplit::Groups(lists.iter().map(refs).collect());
        for repeats in [Repeats::All, Repeats::Split { seed }] {
            let config = StreamConfig::new(groups.clone()).with_repeats(repeats);
            let stream = TaskStream::new(&grid, &config).unwrap();
            let mut n_seen = 0;
            let mut n_uses = vec![0; grid.samples(Split::Train).len()];
            for (task, list) in stream.tasks().iter().zip(&lists) {
                prop_assert_eq!(&task.classes, list);
                prop_assert_eq!(task.new_labels(), n_seen..n_seen + task.n_new_classes);
                n_seen += task.n_new_classes;
                for (&class, &label) in task.classes.iter().zip(task.labels()) {
                    prop_assert_eq!(stream.label_of(class), Some(label));
                    prop_assert!(label < n_seen);
                }
                for sample in task.train.as_ref().samples() {
                    n_uses[sample.idx] += 1;
                    prop_assert!(task.labels().contains(&sample.label));
                }
            }
            prop_assert_eq!(n_seen, stream.n_classes());
            for (idx, sample) in grid.samples(Split::Train).iter().enumerate() {
                let n_tasks = lists.iter().filter(|list| list.contains(&sample.class_id)).count();
                let expected = if repeats == Repeats::All { n_tasks } else { n_tasks.min(1) };
                prop_assert_eq!(n_uses[idx], expected);
            }
        }
    }

    #[test]
    fn same_config_same_stream((grid, config) in cases()) {
        prop_assert_eq!(TaskStream::new(&grid, &config).unwrap(), TaskStream::new(&grid, &config).unwrap());
    }

    #[test]
    fn increments_have_their_sizes(n in 1..60_usize, init in 1..60_usize, step in 1..60_usize) {
        let config = StreamConfig::new(TaskSplit::Increment { init_cls: init, increment: step });
        let grid = Grid::new(n, 1, 1);
        match TaskStream::new(&grid, &config) {
            Err(_) => prop_assert!(init > n || step > n),
            Ok(stream) => {
                let sizes: Vec<usize> = stream.tasks().iter().map(|t| t.classes.len()).collect();
                prop_assert_eq!(sizes[0], init);
                let (last, middle) = sizes.split_last().unwrap();
                prop_assert!(middle.iter().skip(1).all(|&size| size == step));
                prop_assert!(sizes.len() == 1 || (1..=step).contains(last));
                prop_assert_eq!(sizes.iter().sum::<usize>(), n);
            }
        }
    }

    #[test]
    fn a_seed_is_a_permutation(seed: u32, n in 0..500_usize) {
        let mut order = ClassOrder::Numpy { seed }.resolve(&vec![String::new(); n]).unwrap();
        order.sort_unstable();
        prop_assert_eq!(order, (0..n).collect::<Vec<_>>());
    }

    #[test]
    fn held_out_samples_stay_in_their_classes((grid, config) in cases(), seed: u64) {
        let stream = TaskStream::new(&grid, &config).unwrap();
        let task = &stream.tasks()[0];
        let n_per_class = grid.samples(Split::Train).len() / grid.class_names.len();
        match task.train.hold_out(1, seed) {
            Err(_) => prop_assert_eq!(n_per_class, 1),
            Ok((train, held)) => {
                prop_assert_eq!(held.as_ref().len(), task.classes.len());
                prop_assert_eq!(train.as_ref().len() + held.as_ref().len(), task.train.as_ref().len());
            }
        }
    }
}
