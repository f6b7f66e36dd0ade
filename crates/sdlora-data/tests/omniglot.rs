//! Omniglot as it ships with the repository.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sdlora_data::{
    Cache, DATASETS, Dataset, GroupOrder, ImageSource, LoaderConfig, Options, Split, StreamConfig,
    TaskSplit, TaskStream, datasets,
};
use sdlora_image::TransformConfig;

fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}

fn open(name: &str, options: &Options) -> Box<dyn Dataset> {
    datasets::open(name, &data_dir(), options).unwrap()
}

#[test]
fn both_sets_have_the_published_counts() {
    for (name, n_classes, n_alphabets) in [
        ("omniglot-background", 964, 30),
        ("omniglot-evaluation", 659, 20),
    ] {
        let dataset = open(name, &Options::none());
        assert_eq!(dataset.name(), name);
        assert_eq!(dataset.class_names().len(), n_classes);
        assert_eq!(dataset.groups().len(), n_alphabets);
        assert!(dataset.class_names().is_sorted());
        let in_groups: Vec<usize> = dataset
            .groups()
            .iter()
            .flat_map(|group| group.classes.clone())
            .collect();
        assert_eq!(in_groups, (0..n_classes).collect::<Vec<_>>());
        for (split, n_per_class) in [(Split::Train, 15), (Split::Test, 5)] {
            let mut counts = vec![0; n_classes];
            for sample in dataset.samples(split) {
                counts[sample.class_id] += 1;
            }
            assert_eq!(counts, vec![n_per_class; n_classes], "{name} {split}");
        }
    }
}

#[test]
fn names_classes_and_pixels_belong_together() {
    let dataset = open("omniglot-evaluation", &Options::none());
    assert_eq!(dataset.class_names()[0], "Angelic/character01");
    assert_eq!(dataset.groups()[0].name, "Angelic");
    for (split, first) in [(Split::Train, "0965_01.png"), (Split::Test, "0965_16.png")] {
        assert!(dataset.samples(split)[0].name.ends_with(first));
        for sample in dataset.samples(split) {
            let class = &dataset.class_names()[sample.class_id];
            assert!(
                sample.name.contains(class.as_str()),
                "{} {class}",
                sample.name
            );
        }
    }
    let image = dataset.image(Split::Train, 0).unwrap();
    assert_eq!(
        (image.width(), image.height(), image.channels()),
        (105, 105, 1)
    );
    // Black ink on white paper, one bit.
    assert!(image.data().iter().all(|level| matches!(level, 0 | 255)));
    let n_ink = image.data().iter().filter(|&&level| level == 0).count();
    assert!((50..2000).contains(&n_ink), "{n_ink}");
    assert!(dataset.image(Split::Test, 659 * 5).is_err());
}

#[test]
fn train_drawers_moves_the_border() {
    let options = Options::none().with("train_drawers", 20);
    let dataset = open("omniglot-background", &options);
    assert_eq!(dataset.samples(Split::Train).len(), 19_280);
    assert!(dataset.samples(Split::Test).is_empty());
    // Pre-training on everything is a stream of one task without a test half.
    let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::joint()).unwrap();
    assert_eq!(stream.tasks()[0].train.as_ref().len(), 19_280);
    assert!(stream.tasks()[0].test.as_ref().is_empty());
    for wrong in [0, 21] {
        let options = Options::none().with("train_drawers", wrong);
        let result = datasets::open("omniglot-background", &data_dir(), &options);
        assert!(result.is_err_and(|error| error.to_string().contains("train_drawers")));
    }
}

#[test]
fn the_files_are_those_of_the_manifest() {
    for entry in DATASETS
        .iter()
        .filter(|entry| entry.name.starts_with("omniglot"))
    {
        let manifest = entry.manifest().unwrap();
        manifest.verify(&data_dir()).unwrap();
        for file in &manifest.files {
            let path = manifest.locate(&data_dir(), &file.path).unwrap();
            assert_eq!(std::fs::metadata(path).unwrap().len(), file.bytes);
        }
    }
}

#[test]
fn one_alphabet_a_task_reaches_the_loader() {
    let dataset: Arc<dyn Dataset> = open("omniglot-evaluation", &Options::none()).into();
    let config = StreamConfig::new(TaskSplit::PerGroup {
        order: GroupOrder::Natural,
    });
    let stream = TaskStream::new(dataset.as_ref(), &config).unwrap();
    assert_eq!((stream.tasks().len(), stream.n_classes()), (20, 659));
    let sizes: Vec<usize> = stream
        .tasks()
        .iter()
        .map(|task| task.classes.len())
        .collect();
    assert_eq!(
        (sizes.iter().min(), sizes.iter().max()),
        (Some(&20), Some(&47))
    );

    let transform = TransformConfig::omniglot(28).init().unwrap();
    let source = ImageSource::new(dataset, &stream.tasks()[3].test, transform, Cache::Memory);
    let loader = LoaderConfig::evaluation(64)
        .init(Arc::new(source), 0)
        .unwrap();
    let mut n_images = 0;
    for batch in loader.host_epoch(0) {
        let batch = batch.unwrap();
        n_images += batch.len();
        assert!(
            batch
                .labels
                .iter()
                .all(|label| stream.tasks()[3].labels().contains(label))
        );
        assert!(batch.pixels.iter().all(|level| (0.0..=1.0).contains(level)));
        // Ink is bright and rare.
        let mean = batch.pixels.iter().sum::<f32>() / batch.pixels.len() as f32;
        assert!((0.01..0.3).contains(&mean), "{mean}");
    }
    assert_eq!(n_images, stream.tasks()[3].classes.len() * 5);
}
