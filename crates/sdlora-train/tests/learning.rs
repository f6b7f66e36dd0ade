//! Every method learns: above chance where nothing is known of a class beforehand, with and without
//! weight decay, and more than a head alone where the features are trained too.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use sdlora_data::TaskSplit;
use sdlora_train::methods::METHODS;
use sdlora_train::{ColumnStart, Finished, HeadConfig, RunConfig, Start};
use toy::{Bench, optimizer};

const N_TASKS: usize = 3;
const N_NEW: usize = 3;

/// Three tasks of three characters that the backbone, the shipped one, has never seen.
fn run(bench: &Bench, name: &str, change: impl FnOnce(&mut RunConfig)) -> Finished {
    let mut config = bench.config(&format!("name = \"{name}\""));
    config.n_epochs = 6;
    config.batch_size = 15;
    config.backbone.weights = "omniglot/vit_omniglot_patch7_28.safetensors".into();
    config.transform.side = 28;
    config.stream.split = TaskSplit::Increment {
        init_cls: N_NEW,
        increment: N_NEW,
    };
    config.stream.n_tasks = Some(N_TASKS);
    if name == "ranpac" {
        // Ten thousand random features would take minutes.
        config.head = Some(HeadConfig::named("ridge").with("projection", 200));
    }
    change(&mut config);
    let plan = config.check().unwrap();
    bench.run(name, &plan, Start::Fresh).unwrap()
}

/// Accuracies on all tasks after the last one.
fn last_row(run: &Finished) -> Vec<f64> {
    let row = run.log.matrix.row(N_TASKS - 1).unwrap();
    row.to_vec()
}

#[test]
fn every_method_names_most_of_nine_classes_with_and_without_decay() {
    for (rule, lr, decay) in [("sgd", 0.03, 0.0), ("adam", 0.003, 2e-4)] {
        let bench = Bench::new();
        for entry in METHODS {
            let run = run(&bench, entry.name, |config| {
                config.optimizer = optimizer(rule, lr, decay);
            });
            let row = last_row(&run);
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            let what = format!("{}, {rule}, decay {decay}: {row:.2?}", entry.name);
            println!("{what}");
            // Guessing names a ninth.
            assert!(mean > 0.4, "{what}");
        }
    }
}

#[test]
fn a_head_under_adam_with_decay_keeps_every_task() {
    let bench = Bench::new();
    let run = run(&bench, "linear", |config| {
        config.n_epochs = 20;
        config.optimizer = optimizer("adam", 0.01, 2e-4);
    });
    let row = last_row(&run);
    assert!(row.iter().all(|&share| share > 0.6), "{row:.2?}");
}

#[test]
fn what_trains_the_features_has_less_loss_than_the_same_head_alone() {
    // On random weights, which a head alone makes little of.
    let bench = Bench::new();
    let loss = |name: &str| {
        let mut config = bench.config(&format!("name = \"{name}\""));
        config.n_epochs = 20;
        config.stream.n_tasks = Some(1);
        config.head = Some(HeadConfig::named("linear").starting(ColumnStart::Torch));
        config.optimizer = optimizer("adam", 0.01, 0.0);
        let plan = config.check().unwrap();
        let run = bench.run(name, &plan, Start::Fresh).unwrap();
        let losses = &run.log.tasks[0].losses;
        let last = &losses[losses.len() * 19 / 20..];
        last.iter().sum::<f64>() / last.len() as f64
    };
    let alone = loss("linear");
    let frozen = ["linear", "ncm", "simplecil", "ranpac"];
    for entry in METHODS.iter().filter(|entry| !frozen.contains(&entry.name)) {
        // A prompt of a backbone that never saw one changes less than a weight.
        let share = if entry.name.contains("prompt") || entry.name == "l2p" {
            1.1
        } else {
            0.5
        };
        let found = loss(entry.name);
        assert!(found < share * alone, "{}: {found} and {alone}", entry.name);
    }
}
