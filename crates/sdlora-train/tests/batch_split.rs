//! A step in parts is the step of the whole batch: gradient accumulation and several devices.
#![allow(clippy::unwrap_used)]

mod toy;

use std::num::NonZeroUsize;

use sdlora_testkit::test_device;
use sdlora_train::{MixConfig, RunConfig, RunOptions, Silent, TrainError, run};
use toy::{Bench, bits, data_dir, difference, losses};

/// Methods with everything a loss is made of, and the settings of the run.
fn cases(bench: &Bench) -> Vec<(&'static str, RunConfig)> {
    let mut cases: Vec<_> = [
        ("directions", "name = \"sdlora\"\nrank = 4"),
        ("a penalty", "name = \"olora\"\nrank = 4\nlambda = 0.5"),
        ("prompts with keys", "name = \"dualprompt\""),
        ("prompts of a pool", "name = \"l2p\""),
        ("composed prompts", "name = \"coda-prompt\""),
        ("the whole backbone", "name = \"finetune\""),
        ("features that are kept", "name = \"linear\""),
        ("all tasks at once", "name = \"joint\""),
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
        let whole = bench.run_on(&format!("{what}-whole"), &config, 1);
        // 45 images: two batches of 16 and one of 13. Pieces of 5, and thirds of 6, 5 and 5.
        let mut in_pieces = config.clone();
        in_pieces.micro_batch = NonZeroUsize::new(5);
        for (how, config, n_devices) in [
            ("pieces", &in_pieces, 1),
            ("devices", &config, 3),
            ("both", &in_pieces, 2),
        ] {
            let name = format!("{what}-{how}");
            let parts = bench.run_on(&name, config, n_devices);
            let difference = difference(&whole, &parts);
            assert!(difference < 2e-5, "{name}: {difference:e}");
        }
        // The control: a smaller batch is another run, by several times the bound above even where a
        // head that starts at 0 has hardly moved.
        let mut smaller = config.clone();
        smaller.batch_size = 12;
        let smaller = bench.run_on(&format!("{what}-smaller"), &smaller, 1);
        let last = |run| losses(run)[losses(run).len() - 1];
        let difference = (last(&whole) - last(&smaller)).abs();
        assert!(difference > 1e-4, "{what}: {difference:e}");
    }
}

#[test]
fn a_batch_in_one_piece_is_bit_equal_to_one_without_pieces() {
    let bench = Bench::new();
    let config = bench.config("name = \"sdlora\"\nrank = 4");
    let mut in_one = config.clone();
    in_one.micro_batch = NonZeroUsize::new(16);
    let (whole, in_one) = (
        bench.run_on("whole", &config, 1),
        bench.run_on("one", &in_one, 1),
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
    let options = RunOptions {
        devices: Vec::new(),
        ..RunOptions::new(&data_dir(), &test_device(), &folder)
    };
    let error = run(&plan, &options, &mut Silent);
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
