//! The floor agrees with class means on a table of the same pixels.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use std::sync::Arc;

use sdlora_data::{Cache, Dataset, ImageSource, LoaderConfig, TaskStream, datasets};
use sdlora_train::{ClassMeans, FeatureTable, MeanOf, Silent, accuracy, pixel_floor};
use toy::{Bench, data_dir};

#[test]
fn the_floor_is_the_nearest_class_mean_of_pixels_among_the_classes_seen() {
    // Neither the method nor its head is looked at.
    let mut config = Bench::new().config("name = \"linear\"");
    // No weights are needed.
    config.backbone.weights = "missing.safetensors".into();
    let dataset: Arc<dyn Dataset> =
        datasets::open(&config.dataset, &data_dir(), &config.dataset_options)
            .unwrap()
            .into();
    let stream = TaskStream::new(dataset.as_ref(), &config.stream).unwrap();
    let transform = config.transform.for_evaluation().init().unwrap();
    let table = |set: &dyn AsRef<sdlora_data::SampleSet>| {
        let source = ImageSource::new(
            dataset.clone(),
            &set.as_ref(),
            transform.clone(),
            Cache::None,
        );
        let loader = LoaderConfig::evaluation(8).init(Arc::new(source), 0);
        let mut table = FeatureTable::default();
        for batch in loader.unwrap().host_epoch(0) {
            let batch = batch.unwrap();
            table.d_model = batch.shape.iter().product();
            table.features.extend(batch.pixels);
            table.labels.extend(batch.labels);
        }
        table
    };
    let tasks = stream.tasks();
    let mut train = table(&tasks[0].train);
    let tests: Vec<_> = tasks.iter().map(|task| table(&task.test)).collect();
    let mut expected = Vec::new();
    for (after, task) in tasks.iter().enumerate() {
        if after > 0 {
            let more = table(&task.train);
            train.features.extend(more.features);
            train.labels.extend(more.labels);
        }
        let means = ClassMeans::of(&train, MeanOf::Directions);
        expected.push(
            tests[..=after]
                .iter()
                .map(|test| accuracy(&means.predict(test), &test.labels))
                .collect::<Vec<_>>(),
        );
    }
    let matrix = pixel_floor(&config.check().unwrap(), &data_dir(), &mut Silent).unwrap();
    for (after, expected) in expected.iter().enumerate() {
        assert_eq!(matrix.seen(after).unwrap(), expected, "after task {after}");
    }
    // Characters share their paper: pixels tell something, and not everything.
    let last = matrix.last_seen().unwrap();
    assert!(last.iter().all(|a| *a > 0.2) && last.iter().any(|a| *a < 1.0));
}
