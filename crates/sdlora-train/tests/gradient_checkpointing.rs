//! Blocks that are computed again in the backward pass make the same step.
#![allow(clippy::unwrap_used)]

mod toy;

use std::num::NonZeroUsize;

use sdlora_testkit::test_device;
use sdlora_train::{Finished, Precision, RunConfig, Silent, Start, TrainError, run_on_devices};
use toy::{Bench, bits, data_dir};

fn run(bench: &Bench, name: &str, config: RunConfig, n_devices: usize) -> Finished {
    let plan = config.check().unwrap();
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

fn losses(run: &Finished) -> Vec<f64> {
    let tasks = run.log.tasks.iter();
    tasks.flat_map(|task| task.losses.clone()).collect()
}

/// The largest difference of two runs in a loss or a parameter, relative to those above 1.
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

#[test]
fn a_step_is_the_one_with_everything_kept() {
    let bench = Bench::new();
    let methods = [
        ("name = \"sdlora\"\nrank = 4", 1),
        // One magnitude serves all blocks, so that its gradient comes in parts.
        ("name = \"sdlora\"\nrank = 4\nvariant = \"paper\"", 1),
        // A penalty goes its own way to the parameters.
        ("name = \"olora\"\nrank = 4", 1),
        ("name = \"lora\"\nrank = 4", 2),
        // Images, tokens and positions get a gradient too.
        ("name = \"finetune\"", 1),
        // Nothing in the backbone does.
        ("name = \"linear\"", 1),
    ];
    for (i, (method, n_devices)) in methods.into_iter().enumerate() {
        let mut config = bench.config(method);
        config.n_epochs = 1;
        let kept = run(&bench, &format!("{i} kept"), config.clone(), 1);
        config.gradient_checkpointing = true;
        let again = run(&bench, &format!("{i} again"), config.clone(), n_devices);
        let found = difference(&kept, &again);
        assert!(found < 5e-6, "{method}: {found:e}");
        config.micro_batch = NonZeroUsize::new(5);
        let parts = run(&bench, &format!("{i} parts"), config, n_devices);
        let found = difference(&kept, &parts);
        assert!(found < 2e-5, "{method} in parts: {found:e}");
    }
}

#[test]
fn it_goes_with_half_precision() {
    let bench = Bench::new();
    for precision in [Precision::Bf16, Precision::F16] {
        let mut config = bench.config("name = \"sdlora\"\nrank = 4");
        config.n_epochs = 1;
        config.precision = precision;
        let kept = run(&bench, &format!("{precision:?} kept"), config.clone(), 1);
        config.gradient_checkpointing = true;
        let again = run(&bench, &format!("{precision:?} again"), config, 1);
        // Gradients are added in halves in another order.
        let found = difference(&kept, &again);
        assert!(found < 0.02, "{precision:?}: {found:e}");
    }
}

#[test]
fn prompts_are_refused_by_name() {
    let bench = Bench::new();
    let mut config = bench.config("name = \"dualprompt\"");
    config.gradient_checkpointing = true;
    let plan = config.check().unwrap();
    let error = bench.run("prompts", &plan, Start::Fresh).unwrap_err();
    assert!(matches!(error, TrainError::Setting { .. }));
    assert!(error.to_string().contains("prompts"), "{error}");
}
