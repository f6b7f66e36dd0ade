//! Columns of the head that take no part in a task: no rule moves them, and no step pays for them.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use sdlora_data::TaskSplit;
use sdlora_train::{Event, Finished, HeadConfig, Observer, Plan, RunConfig, Start};
use toy::{Bench, optimizer};

const N_NEW: usize = 2;

/// Tasks of two classes.
fn plan(bench: &Bench, method: &str, n_tasks: usize, change: impl FnOnce(&mut RunConfig)) -> Plan {
    let mut config = bench.config(method);
    config.stream.split = TaskSplit::Increment {
        init_cls: N_NEW,
        increment: N_NEW,
    };
    config.stream.n_tasks = Some(n_tasks);
    change(&mut config);
    config.check().unwrap()
}

/// Rows and biases of the classes of the first task.
fn first_columns(run: &Finished) -> (Vec<f32>, Vec<f32>) {
    let trained = run.model.head.trained.as_ref().unwrap();
    let (rows, d_model) = trained.rows();
    let bias = trained.bias_host().unwrap_or_default();
    (
        rows[..N_NEW * d_model].to_vec(),
        bias.into_iter().take(N_NEW).collect(),
    )
}

#[test]
fn columns_of_the_first_task_are_the_same_after_the_second_under_every_rule_and_head() {
    let bench = Bench::new();
    for rule in ["sgd", "adam", "adamw"] {
        for (method, head) in [
            ("name = \"linear\"", "linear"),
            ("name = \"linear\"", "cosine"),
            ("name = \"linear\"", "ncm"),
            ("name = \"sdlora\"\nrank = 4", "linear"),
            ("name = \"slca\"", "linear"),
            ("name = \"finetune\"", "cosine"),
            ("name = \"l2p\"", "linear"),
            ("name = \"dualprompt\"", "linear"),
            ("name = \"coda-prompt\"", "linear"),
            ("name = \"hide-prompt\"", "linear"),
        ] {
            let what = format!("{rule}, {method}, {head}").replace('\n', ", ");
            let run = |n_tasks: usize| {
                let plan = plan(&bench, method, n_tasks, |config| {
                    config.head = Some(HeadConfig::named(head));
                    config.optimizer = optimizer(rule, 0.01, 0.05);
                });
                let folder = format!("{what}-{n_tasks}").replace(['"', ' ', ','], "");
                bench.run(&folder, &plan, Start::Fresh).unwrap()
            };
            assert_eq!(first_columns(&run(1)), first_columns(&run(2)), "{what}");
        }
    }
}

#[test]
fn adam_with_decay_does_not_forget_the_first_task() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"linear\"", 2, |config| {
        config.n_epochs = 30;
        config.optimizer = optimizer("adam", 0.01, 2e-4);
    });
    let run = bench.run("run", &plan, Start::Fresh).unwrap();
    let trained = run.model.head.trained.as_ref().unwrap();
    let (rows, d_model) = trained.rows();
    let lengths: Vec<f32> = rows
        .chunks(d_model)
        .map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt())
        .collect();
    // Thirty epochs of two steps of 0.01 each toward 0 are most of a column of this length.
    let (old, new) = (lengths[0].min(lengths[1]), lengths[2].max(lengths[3]));
    assert!(old > 0.4 * new, "{lengths:?}");
    let row = run.log.matrix.row(1).unwrap();
    assert!(row[0] > 0.25, "the first task has {} of its images", row[0]);
}

/// Bytes of the state of the optimiser in the checkpoints inside every task.
#[derive(Default)]
struct Sizes(Vec<u64>);

impl Observer for Sizes {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Checkpointed { path } = event
            && let Ok(file) = std::fs::metadata(path.join("optimizer.bpk"))
        {
            self.0.push(file.len());
        }
    }
}

#[test]
fn the_state_of_the_optimiser_and_what_a_task_trains_do_not_grow_with_old_classes() {
    let bench = Bench::new();
    for (rule, head) in [("sgd", "linear"), ("adam", "cosine"), ("adamw", "linear")] {
        let plan = plan(&bench, "name = \"linear\"", 5, |config| {
            config.checkpoint_every = 2;
            config.head = Some(HeadConfig::named(head));
            config.optimizer = optimizer(rule, 0.01, 0.05);
        });
        let mut sizes = Sizes::default();
        let folder = format!("{rule}-{head}");
        let run = bench
            .run_observed(&folder, &plan, Start::Fresh, &mut sizes)
            .unwrap();
        assert!(sizes.0.len() >= 5, "{:?}", sizes.0);
        // Ids have more digits or fewer; the columns of four old tasks alone are 4 · 2 · 16 numbers.
        let spread = sizes.0.iter().max().unwrap() - sizes.0.iter().min().unwrap();
        assert!(spread < 4 * 2 * 16 * 4 / 2, "{rule}: {:?}", sizes.0);
        assert!(run.log.n_trained.iter().all(|&n| n == run.log.n_trained[0]));
    }
}
