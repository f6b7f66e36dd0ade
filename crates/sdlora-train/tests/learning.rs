//! Every method learns: above chance where nothing is known beforehand, and more than a head alone
//! where the features are trained too.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use sdlora_data::TaskSplit;
use sdlora_train::methods::METHODS;
use sdlora_train::{ColumnStart, Finished, HeadConfig, OptimizerConfig, Start};
use toy::{Bench, optimizer};

const N_TASKS: usize = 3;
const N_NEW: usize = 2;

/// Three tasks of two classes on a backbone of random weights.
fn run(bench: &Bench, name: &str, head: Option<HeadConfig>, optimizer: OptimizerConfig) -> Finished {
    let mut config = bench.config(&format!("name = \"{name}\""));
    config.n_epochs = 20;
    config.stream.split = TaskSplit::Increment {
        init_cls: N_NEW,
        increment: N_NEW,
    };
    config.stream.n_tasks = Some(N_TASKS);
    config.head = head;
    config.optimizer = optimizer;
    let plan = config.check().unwrap();
    bench.run(name, &plan, Start::Fresh).unwrap()
}

#[test]
fn print_all() {
    for decay in [0.0, 0.001] {
        for (rule, lr) in [("sgd", 0.05), ("adam", 0.01), ("adam", 0.003)] {
            let bench = Bench::new();
            for entry in METHODS {
                let head = (entry.name == "ranpac")
                    .then(|| HeadConfig::named("ridge").with("projection", 200));
                let clock = std::time::Instant::now();
                let run = run(&bench, entry.name, head, optimizer(rule, lr, decay));
                let row = run.log.matrix.row(N_TASKS - 1).unwrap().to_vec();
                let first = run.log.tasks[0].losses.last().copied();
                let mean = row.iter().sum::<f64>() / row.len() as f64;
                println!(
                    "{rule} {lr} {decay} {} {mean:.3} {row:.2?} {first:.3?} {:.1}",
                    entry.name,
                    clock.elapsed().as_secs_f64()
                );
            }
        }
    }
    let _ = ColumnStart::ALL;
}
