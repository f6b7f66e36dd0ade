//! Heads in closed form against dense formulas: class after class and task after task on features that move (golden
//! README, section 10).

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

use sdlora_testkit::{Compared, golden_json_with, test_device};
use sdlora_train::FeatureTable;
use sdlora_train::heads::{self, HeadState, HeadTask};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Stream {
    name: String,
    d_model: usize,
    tasks: Vec<Task>,
    test: Vec<f32>,
    runs: Vec<Run>,
}

#[derive(Deserialize)]
struct Task {
    before: Vec<f32>,
    after: Vec<f32>,
    labels: Vec<usize>,
}

#[derive(Deserialize)]
struct Run {
    head: String,
    options: Value,
    logits: Vec<f64>,
}

/// Largest distance of logits, relative to the largest; what classes share by row is taken off, as no softmax sees it.
fn apart(found: &[f32], expected: &[f64], n_classes: usize) -> f64 {
    let mut largest = 0.0f64;
    let mut scale = 1.0f64;
    for (found, expected) in found
        .chunks_exact(n_classes)
        .zip(expected.chunks_exact(n_classes))
    {
        let found: Vec<f64> = found.iter().map(|&v| f64::from(v)).collect();
        let mean = |row: &[f64]| row.iter().sum::<f64>() / n_classes as f64;
        let (of_found, of_expected) = (mean(&found), mean(expected));
        for (a, b) in found.iter().zip(expected) {
            largest = largest.max((a - of_found - (b - of_expected)).abs());
            scale = scale.max((b - of_expected).abs());
        }
    }
    largest / scale
}

#[test]
fn heads_give_the_logits_of_dense_formulas() {
    let mut compared = Compared::new("heads in closed form");
    let device = test_device();
    for (path, value) in golden_json_with(&["streams_of_features"]) {
        let streams: Vec<Stream> =
            serde_json::from_value(value["streams_of_features"].clone()).unwrap();
        for stream in streams {
            let table = |features: &[f32], labels: &[usize]| FeatureTable {
                features: features.to_vec(),
                d_model: stream.d_model,
                labels: labels.to_vec(),
                ..FeatureTable::default()
            };
            let n_test = stream.test.len() / stream.d_model;
            let test = table(&stream.test, &vec![0; n_test]);
            for run in &stream.runs {
                let options = toml::Table::try_from(&run.options).unwrap();
                let head = heads::build(&run.head, &options).unwrap();
                let mut state = HeadState::default();
                let mut n_classes = 0;
                for (task_idx, of_task) in stream.tasks.iter().enumerate() {
                    let before = table(&of_task.before, &of_task.labels);
                    let after = table(&of_task.after, &of_task.labels);
                    let at = |table| HeadTask {
                        table,
                        first_label: n_classes,
                        task_idx,
                        seed: 1,
                        device: &device,
                    };
                    if head.wants_features_before() {
                        state = head.before_task(state, &at(&before)).unwrap();
                    }
                    state = head.fit(state, &at(&after)).unwrap();
                    let end = of_task.labels.iter().max().unwrap() + 1;
                    n_classes = n_classes.max(end);
                }
                let what = format!("{}: {} {}", stream.name, run.head, run.options);
                let classifier = head.classifier(&state).unwrap();
                assert_eq!(classifier.n_classes(), n_classes, "{what}");
                let found = classifier.logits(&test);
                assert_eq!(found.len(), run.logits.len(), "{what}");
                let apart = apart(&found, &run.logits, n_classes);
                assert!(apart < 1e-4, "{}, {what}: {apart}", path.display());
                compared.add(what);
            }
        }
    }
}
