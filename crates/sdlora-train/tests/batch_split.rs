//! A step in parts is the step of the whole batch: gradient accumulation and several devices.
#![allow(clippy::unwrap_used)]

mod toy;

use std::num::NonZeroUsize;

use sdlora_testkit::test_device;
use sdlora_train::{Finished, MixConfig, RunConfig, Silent, Start, TrainError, run_on_devices};
use toy::{Bench, bits, data_dir};

/// Runs a plan on the same device several times over.
fn run(bench: &Bench, name: &str, config: &RunConfig, n_devices: usize) -> Finished {
    let plan = config.clone().check().unwrap();
    let devices = vec![test_device(); n_devices];
    let folder = bench.path(name);
    run_on_devices(
        &plan,
        &data_dir(),
        &devices,
        &folder,
        Start::Fresh,
        &mut Silent,
    )
    .unwrap()
}

fn losses(finished: &Finished) -> Vec<f64> {
    let tasks = finished.log.tasks.iter();
    tasks.flat_map(|task| task.losses.clone()).collect()
}

/// The largest difference of two runs in a loss or a parameter of the model they end with, relative to
/// those above 1.
fn difference(a: &Finished, b: &Finished) -> f64 {
    let values = |finished: &Finished| -> Vec<f64> {
        let parameters = bits(&finished.model).into_iter().flatten();
        let parameters = parameters.map(|bits| f64::from(f32::from_bits(bits)));
        losses(finished).into_iter().chain(parameters).collect()
    };
    let (a, b) = (values(a), values(b));
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs() / a.abs().max(1.0))
        .fold(0.0, f64::max)
}

/// Methods with everything a loss is made of, and the settings of the run.
fn cases(bench: &Bench) -> Vec<(&'static str, RunConfig)> {
    let mut cases: Vec<_> = [
        ("directions", "name = \"sdlora\"\nrank = 4"),
        ("a penalty", "name = \"olora\"\nrank = 4\nlambda = 0.5"),
        ("prompts with keys", "name = \"dualprompt\""),
        ("the whole backbone", "name = \"finetune\""),
        ("features that are kept", "name = \"linear\""),
    ]
    .map(|(what, method)| (what, bench.config(method)))
    .into();
    let mut mixed = bench.config("name = \"sdlora\"\nrank = 4");
    mixed.mix = Some(MixConfig {
        mixup: Some(0.4),
        cutmix: Some(1.0),
        probability: 1.0,
        cutmix_share: 0.5,
    });
    cases.push(("mixed images", mixed));
    // The norm is that of the whole gradient, so it must be bounded after the parts are added.
    let mut clipped = bench.config("name = \"sdlora\"\nrank = 4");
    clipped.optimizer.max_grad_norm = Some(0.5);
    cases.push(("a bounded norm", clipped));
    for (_, config) in &mut cases {
        config.n_epochs = 1;
    }
    cases
}

#[test]
fn parts_one_after_another_and_on_several_devices_make_the_step_of_the_whole_batch() {
    let bench = Bench::new();
    for (what, config) in cases(&bench) {
        let whole = run(&bench, &format!("{what}-whole"), &config, 1);
        // 45 images: two batches of 16 and one of 13. Pieces of 5, and thirds of 6, 5 and 5.
        let mut in_pieces = config.clone();
        in_pieces.micro_batch = NonZeroUsize::new(5);
        for (how, config, n_devices) in [
            ("pieces", &in_pieces, 1),
            ("devices", &config, 3),
            ("both", &in_pieces, 2),
        ] {
            let name = format!("{what}-{how}");
            let parts = run(&bench, &name, config, n_devices);
            let difference = difference(&whole, &parts);
            assert!(difference < 2e-5, "{name}: {difference:e}");
        }
        // The control: a smaller batch is another run.
        let mut smaller = config.clone();
        smaller.batch_size = 15;
        let smaller = run(&bench, &format!("{what}-smaller"), &smaller, 1);
        assert!(
            (losses(&whole)[1] - losses(&smaller)[1]).abs() > 1e-3,
            "{what}"
        );
    }
}

#[test]
fn a_batch_in_one_piece_is_bit_equal_to_one_without_pieces() {
    let bench = Bench::new();
    let config = bench.config("name = \"sdlora\"\nrank = 4");
    let mut in_one = config.clone();
    in_one.micro_batch = NonZeroUsize::new(16);
    let (whole, in_one) = (
        run(&bench, "whole", &config, 1),
        run(&bench, "one", &in_one, 1),
    );
    assert_eq!(bits(&whole.model), bits(&in_one.model));
    assert_eq!(losses(&whole), losses(&in_one));
}

#[test]
fn no_device_and_no_image_are_refused_by_name() {
    let bench = Bench::new();
    let config = bench.config("name = \"sdlora\"\nrank = 4");
    let folder = bench.path("none");
    let plan = config.check().unwrap();
    let error = run_on_devices(&plan, &data_dir(), &[], &folder, Start::Fresh, &mut Silent);
    assert!(matches!(error, Err(TrainError::Setting { .. })));
    assert!(!folder.exists());

    let text = "micro_batch = 0";
    let error = toml::from_str::<toml::Table>(text)
        .unwrap()
        .try_into::<RunConfig>()
        .unwrap_err()
        .to_string();
    assert!(error.contains("nonzero"), "{error}");
}
