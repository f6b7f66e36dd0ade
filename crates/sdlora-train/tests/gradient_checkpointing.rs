//! Blocks that are computed again in the backward pass make the same step.
#![allow(clippy::unwrap_used)]

mod toy;

use std::num::NonZeroUsize;

use sdlora_train::{Precision, TrainError};
use toy::{Bench, difference};

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
        let kept = bench.run_on(&format!("{i} kept"), &config, 1);
        config.gradient_checkpointing = true;
        let again = bench.run_on(&format!("{i} again"), &config, n_devices);
        let found = difference(&kept, &again);
        assert!(found < 5e-6, "{method}: {found:e}");
        config.micro_batch = NonZeroUsize::new(5);
        let parts = bench.run_on(&format!("{i} parts"), &config, n_devices);
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
        let kept = bench.run_on(&format!("{precision:?} kept"), &config, 1);
        config.gradient_checkpointing = true;
        let again = bench.run_on(&format!("{precision:?} again"), &config, 1);
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
    let error = config.check().unwrap_err();
    assert!(matches!(error, TrainError::Setting { .. }));
    assert!(error.to_string().contains("prompts"), "{error}");
}
