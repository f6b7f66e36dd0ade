//! Every method learns: it names most of six characters that the backbone has never seen, and it does
//! so by its steps, because the same run with steps of no size stays near guessing.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use sdlora_data::TaskSplit;
use sdlora_image::Normalise;
use sdlora_train::methods::METHODS;
use sdlora_train::{HeadConfig, OptimizerConfig, RunConfig, Start};
use toy::Bench;

const N_TASKS: usize = 2;
const N_NEW: usize = 3;

/// Accuracy over two tasks of three characters, with the shipped backbone, after the last task.
fn accuracy(bench: &Bench, name: &str, lr: f64) -> f64 {
    let mut config: RunConfig = bench.config(&format!("name = \"{name}\""));
    config.n_epochs = 5;
    config.batch_size = 15;
    config.backbone.weights = "omniglot/vit_omniglot_patch7_28.safetensors".into();
    config.transform.side = 28;
    // As the backbone was trained.
    config.transform.normalise = Some(Normalise {
        mean: vec![0.08],
        std: vec![0.25],
    });
    config.stream.split = TaskSplit::Increment {
        init_cls: N_NEW,
        increment: N_NEW,
    };
    config.stream.n_tasks = Some(N_TASKS);
    config.optimizer = OptimizerConfig::sgd(lr);
    if name == "ranpac" {
        // Ten thousand random features would take minutes.
        config.head = Some(HeadConfig::named("ridge").with("projection", 200));
    }
    let plan = config.check().unwrap();
    let run = bench
        .run(&format!("{name}-{lr}"), &plan, Start::Fresh)
        .unwrap();
    let row = run.log.matrix.row(N_TASKS - 1).unwrap();
    row.iter().sum::<f64>() / row.len() as f64
}

/// The objective of T-SPMO divides by its tokens and weighs them by their probability, so its gradient is about a
/// tenth of that of cross-entropy.
fn rate(name: &str) -> f64 {
    match name {
        "tspmo" => 0.3,
        _ => 0.03,
    }
}

#[test]
fn every_method_names_most_of_six_characters() {
    let bench = Bench::new();
    for entry in METHODS {
        let found = accuracy(&bench, entry.name, rate(entry.name));
        // Guessing names a sixth.
        assert!(found >= 0.65, "{}: {found:.2}", entry.name);
    }
}

#[test]
fn a_trained_head_without_steps_of_any_size_guesses() {
    let bench = Bench::new();
    // Not of a head that starts at 0: its first gradient points to the class means, however small the
    // step, and no length matters to the largest logit.
    for name in ["linear", "sdlora", "finetune", "coda-prompt"] {
        let found = accuracy(&bench, name, 1e-9);
        assert!(found <= 0.5, "{name}: {found:.2}");
    }
}
