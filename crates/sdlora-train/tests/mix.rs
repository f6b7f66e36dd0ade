//! MixUp and CutMix against torchvision, and in whole runs.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use burn::tensor::{Int, Tensor, TensorData};
use sdlora_testkit::{Compared, Tolerance, assert_close, golden_json_with, test_device};
use sdlora_train::{Mix, MixConfig, RunConfig, Start};
use serde::Deserialize;
use toy::Bench;

#[derive(Deserialize)]
struct Golden {
    shape: [usize; 4],
    images: Vec<f32>,
    logits: Vec<f32>,
    labels: Vec<i32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    share: f64,
    centre: Option<[usize; 2]>,
    images: Vec<f32>,
    labels: Vec<f64>,
    loss: f32,
}

#[test]
fn images_labels_and_loss_are_those_of_torchvision() {
    let mut compared = Compared::new("mixed batches");
    for (path, value) in golden_json_with(&["shape", "images", "logits", "labels", "cases"]) {
        let golden: Golden = serde_json::from_value(value).unwrap();
        assert!(!golden.cases.is_empty(), "{} has no case", path.display());
        agrees_with_torchvision(&golden);
        compared.add(path.display().to_string());
    }
}

fn agrees_with_torchvision(golden: &Golden) {
    let device = test_device();
    let [n, _, height, width] = golden.shape;
    let n_classes = golden.logits.len() / n;
    for case in &golden.cases {
        let mix = match (case.kind.as_str(), case.centre) {
            ("mixup", None) => Mix::Blend { share: case.share },
            ("cutmix", Some(centre)) => Mix::paste(case.share, [height, width], centre),
            _ => panic!("{}", case.kind),
        };
        let what = format!("{} {} {:?}", case.kind, case.share, case.centre);
        // The share, read off the label of the first image, whose partner is the last.
        let own = case.labels[golden.labels[0] as usize];
        assert!((mix.share() - own).abs() < 1e-6, "{what}: {mix:?}");
        let images = Tensor::from_data(
            TensorData::new(golden.images.clone(), golden.shape),
            &device,
        );
        let mixed: Vec<f32> = mix.apply(images).into_data().iter().collect();
        assert_close(&mixed, &case.images, Tolerance::Abs(1e-6), &what);
        let logits = TensorData::new(golden.logits.clone(), [n, n_classes]);
        let labels = TensorData::new(golden.labels.clone(), [n]);
        let loss = mix.cross_entropy(
            Tensor::from_data(logits, &device),
            Tensor::<1, Int>::from_data(labels, &device),
        );
        assert_close(
            [loss.into_scalar::<f32>()],
            [case.loss],
            Tolerance::Abs(1e-6),
            &what,
        );
    }
}

fn mixed(change: impl FnOnce(&mut RunConfig)) -> RunConfig {
    // The file of the backbone is not looked at.
    let mut config = Bench::new().config("name = \"sdlora\"\nrank = 4");
    config.mix = Some(MixConfig {
        mixup: Some(0.4),
        cutmix: Some(1.0),
        probability: 1.0,
        cutmix_share: 0.5,
    });
    change(&mut config);
    config
}

#[test]
fn frozen_features_are_not_mixed_and_a_plan_says_so() {
    mixed(|_| {}).check().unwrap();
    let error = mixed(|config| {
        config.method.name = "linear".into();
        config.method.options.clear();
    })
    .check()
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("`mix`") && error.contains("features"),
        "{error}"
    );
    let error = mixed(|config| config.mix.as_mut().unwrap().cutmix_share = 2.0)
        .check()
        .unwrap_err()
        .to_string();
    assert!(error.contains("mix.cutmix_share"), "{error}");
}

#[test]
fn a_mixed_run_differs_from_its_first_step_on_and_ends_in_the_same_bits_again() {
    let bench = Bench::new();
    let losses = |name: &str, mix: Option<MixConfig>| {
        let mut config = bench.config("name = \"sdlora\"\nrank = 4");
        config.mix = mix;
        let run = bench.run(name, &config.check().unwrap(), Start::Fresh);
        run.unwrap().log.tasks[0].losses.clone()
    };
    let mixup = MixConfig {
        mixup: Some(1.0),
        cutmix: None,
        probability: 1.0,
        cutmix_share: 0.5,
    };
    let plain = losses("plain", None);
    let mixed = losses("mixed", Some(mixup.clone()));
    assert_ne!(plain[0], mixed[0]);
    assert_eq!(mixed, losses("again", Some(mixup)));
}
