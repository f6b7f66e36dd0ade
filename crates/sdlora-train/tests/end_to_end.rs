//! Whole runs: the loss falls, what is frozen stays, a rerun and a resumed run give the same bits,
//! and what cannot run says so and leaves the folder usable.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::path::PathBuf;

use burn::module::Module;
use sdlora_train::{
    Event, Finished, FirstTask, HeadConfig, MixConfig, Observer, OptimizerConfig, Plan, RunConfig,
    Schedule, Start, TrainError, check_plan, checkpoint,
};
use toy::{Bench, bits, copy_folder, optimizer};

/// Methods whose runs must continue to the same bits, with the classifier they are run with.
const RESUMED: &[(&str, &str)] = &[
    (
        "name = \"sdlora\"\nrank = 4\nvariant = \"reference\"",
        "linear",
    ),
    ("name = \"sdlora\"\nrank = 4\nvariant = \"paper\"", "linear"),
    ("name = \"sdlora\"\nrank = 4\nvariant = \"carry\"", "linear"),
    ("name = \"sdlora\"\nrank = 4", "ncm"),
    ("name = \"sdlora\"\nrank = 4", "ridge"),
    ("name = \"sdlora\"\nrank = 4", "cosine"),
    (
        "name = \"sdlora\"\nrank = 4",
        "{ name = \"ridge\", projection = 40 }",
    ),
    (
        "name = \"sdlora\"\nrank = 4",
        "{ name = \"gaussian\", drift = \"compensated\", n_samples = 20 }",
    ),
    (
        "name = \"sdlora\"\nrank = 4",
        "{ name = \"ridge\", projection = 40, drift = \"linear\" }",
    ),
    (
        "name = \"sdlora\"\nrank = 4",
        "{ name = \"qda\", drift = \"linear\" }",
    ),
    (
        "name = \"sdlora\"\nrank = 4",
        "{ name = \"gaussian\", covariance = \"low-rank\", drift = \"linear\", n_samples = 20, max_steps = 7, \
         robust_weight = 0.1 }",
    ),
    ("name = \"lora\"\nrank = 4", "linear"),
    ("name = \"finetune\"", "linear"),
    ("name = \"linear\"", "linear"),
    ("name = \"l2p\"", "linear"),
    ("name = \"dualprompt\"", "ncm"),
    ("name = \"coda-prompt\"", "cosine"),
];

/// The rules beside SGD with momentum, whose moments must find their columns again, and a decay.
const OTHER_RULES: &[(&str, &str, &str)] = &[
    ("name = \"linear\"", "linear", "adam"),
    ("name = \"sdlora\"\nrank = 4", "cosine", "adamw"),
];

/// A folder name of the lines of a method.
fn folder_of(method: &str) -> String {
    method.replace(['"', ' ', '=', '\n'], "")
}

/// A name, or an inline table.
fn head_config(text: &str) -> HeadConfig {
    match text.starts_with('{') {
        true => {
            let table: toml::Table = format!("head = {text}").parse().unwrap();
            table["head"].clone().try_into().unwrap()
        }
        false => HeadConfig::named(text),
    }
}

fn plan(bench: &Bench, method: &str, change: impl FnOnce(&mut RunConfig)) -> Plan {
    let mut config = bench.config(method);
    change(&mut config);
    config.check().unwrap()
}

/// Everything of a run that must not depend on the clock.
#[track_caller]
fn assert_same(a: &Finished, b: &Finished, what: &str) {
    let losses = |run: &Finished| -> Vec<Vec<u64>> {
        let tasks = run.log.tasks.iter();
        tasks
            .map(|task| task.losses.iter().map(|loss| loss.to_bits()).collect())
            .collect()
    };
    assert_eq!(losses(a), losses(b), "{what}: losses");
    assert_eq!(a.log.matrix, b.log.matrix, "{what}: accuracies");
    assert_eq!(a.log.magnitudes, b.log.magnitudes, "{what}: magnitudes");
    assert_eq!(
        a.log.n_trained, b.log.n_trained,
        "{what}: trained parameters"
    );
    assert_eq!(
        a.model.n_trained(),
        b.model.n_trained(),
        "{what}: trained at the end"
    );
    assert_eq!(a.class_order, b.class_order, "{what}: classes");
    assert!(bits(&a.model) == bits(&b.model), "{what}: weights");
    assert_eq!(a.classifier, b.classifier, "{what}: classifier");
    let arrays = |run: &Finished| {
        (
            run.model.head.per_class.clone(),
            run.model.head.shared.clone(),
        )
    };
    assert!(arrays(a) == arrays(b), "{what}: arrays of the head");
}

#[test]
fn the_loss_falls_and_the_backbone_stays_bit_equal() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"sdlora\"\nrank = 4", |config| {
        config.n_epochs = 8
    });
    let run = bench.run("run", &plan, Start::Fresh).unwrap();
    for (t, task) in run.log.tasks.iter().enumerate() {
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let n = task.losses.len() / 8;
        let (first, last) = (mean(&task.losses[..n]), mean(&task.losses[7 * n..]));
        assert!(
            last < 0.9 * first,
            "task {t}: mean loss {first} in the first epoch, {last} in the last"
        );
    }
    assert!(bits(&run.model.backbone.valid()) == bits(&bench.backbone()));
    assert_eq!(run.log.matrix.n_rows(), 2);
    assert_eq!(run.class_names.len(), 6);
}

#[test]
fn a_rerun_gives_the_same_bits_and_another_seed_does_not() {
    let bench = Bench::new();
    let same = plan(&bench, "name = \"sdlora\"\nrank = 4", |_| {});
    let other = plan(&bench, "name = \"sdlora\"\nrank = 4", |config| {
        config.seed += 1
    });
    let a = bench.run("a", &same, Start::Fresh).unwrap();
    let b = bench.run("b", &same, Start::Fresh).unwrap();
    let c = bench.run("c", &other, Start::Fresh).unwrap();
    assert_same(&a, &b, "rerun");
    assert_ne!(a.log.tasks[0].losses, c.log.tasks[0].losses);
}

#[test]
fn how_much_memory_images_may_take_changes_no_number() {
    let bench = Bench::new();
    let of = |cache: &str, seed: u64| {
        plan(&bench, "name = \"sdlora\"\nrank = 4", |config| {
            config.head = Some(HeadConfig::named("ridge"));
            config.cache = toml::Value::from(cache).try_into().unwrap();
            config.seed = seed;
        })
    };
    let memory = of("memory", 11);
    let expected = bench.run("memory", &memory, Start::Fresh).unwrap();
    // A few images of 28 x 28 bytes, and the machine's share.
    for cache in ["0", "5kB", "auto"] {
        let other = of(cache, 11);
        let run = bench.run(cache, &other, Start::Fresh).unwrap();
        assert_same(&expected, &run, cache);
        // The folder goes on with any of them.
        check_plan(&bench.path("memory"), &other).unwrap();
    }
    assert!(check_plan(&bench.path("memory"), &of("0", 12)).is_err());
}

/// The seconds that a run tells of its tasks.
#[derive(Default)]
struct Told(Vec<f64>);

impl Observer for Told {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::TaskTrained { seconds, .. } = event {
            self.0.push(*seconds);
        }
    }
}

#[test]
fn the_seconds_of_a_task_are_those_of_its_steps_and_of_what_is_computed_around_them() {
    let bench = Bench::new();
    for (i, (method, head, takes_steps)) in [
        ("name = \"ncm\"", "ridge", false),
        ("name = \"sdlora\"\nrank = 4", "ncm", true),
    ]
    .into_iter()
    .enumerate()
    {
        let plan = plan(&bench, method, |config| {
            config.head = Some(head_config(head))
        });
        let mut told = Told::default();
        let clock = std::time::Instant::now();
        let run = bench
            .run_observed(&format!("run-{i}"), &plan, Start::Fresh, &mut told)
            .unwrap();
        let elapsed = clock.elapsed().as_secs_f64();
        for (task, &told) in run.log.tasks.iter().zip(&told.0) {
            assert_eq!(task.seconds > 0.0, takes_steps, "{method}: {task:?}");
            assert!(task.around_seconds > 0.0, "{method}: {task:?}");
            assert_eq!(task.total_seconds(), told, "{method}");
            assert_eq!(told, task.seconds + task.around_seconds, "{method}");
        }
        // Nothing is counted twice.
        let counted = told.0.iter().chain(&run.log.eval_seconds).sum::<f64>();
        assert!(
            told.0.len() == 2 && counted < elapsed,
            "{method}: {counted}, {elapsed}"
        );
    }
}

/// Copies the folder of a run while step 5 of a task is over: as a kill would leave it, with the
/// checkpoint of step 4 as the newest.
struct Killed {
    task_idx: usize,
    folder: PathBuf,
    copy: PathBuf,
    n_told: usize,
}

impl Observer for Killed {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Step {
                task_idx, step: 5, ..
            } if *task_idx == self.task_idx => {
                copy_folder(&self.folder, &self.copy);
            }
            Event::Checkpointed { path } => {
                assert!(path.is_dir());
                self.n_told += 1;
            }
            _ => {}
        }
    }
}

/// Remembers where a run continued and how many steps it made.
#[derive(Default)]
struct Continued {
    from: Option<PathBuf>,
    n_steps: usize,
}

impl Observer for Continued {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Resumed { path, .. } => self.from = path.map(PathBuf::from),
            Event::Step { .. } => self.n_steps += 1,
            _ => {}
        }
    }
}

#[test]
fn a_run_killed_inside_a_task_ends_with_the_bits_of_an_unbroken_one() {
    let bench = Bench::new();
    let with_sgd = RESUMED.iter().map(|&(method, head)| (method, head, "sgd"));
    let others = OTHER_RULES.iter().copied();
    for (i, (method, head, rule)) in with_sgd.chain(others).enumerate() {
        for task_idx in [0, 1] {
            let what = format!("{method}, {head}, {rule}, killed in task {task_idx}");
            let what = what.replace('\n', ", ");
            let plan = plan(&bench, method, |config| {
                config.head = Some(head_config(head));
                if rule != "sgd" {
                    config.optimizer = toy::optimizer(rule, 0.01, 0.01);
                }
            });
            let (whole, rest) = (
                format!("whole-{i}-{task_idx}"),
                format!("rest-{i}-{task_idx}"),
            );
            let mut killed = Killed {
                task_idx,
                folder: bench.path(&whole),
                copy: bench.path(&rest),
                n_told: 0,
            };
            let unbroken = bench
                .run_observed(&whole, &plan, Start::Fresh, &mut killed)
                .unwrap();
            // Two inside each of the tasks of nine steps, and one after each.
            assert_eq!(killed.n_told, 6, "{what}");

            let newest = checkpoint::latest(&bench.path(&rest).join("checkpoints")).unwrap();
            assert!(
                newest.ends_with(format!("task-{task_idx:03}-step-0000004")),
                "{newest:?}"
            );
            let mut continued = Continued::default();
            let resumed = bench
                .run_observed(&rest, &plan, Start::Resume, &mut continued)
                .unwrap();
            assert_eq!(continued.from, Some(newest), "{what}");
            assert_eq!(continued.n_steps, 5 + 9 * (1 - task_idx), "{what}");
            assert_same(&unbroken, &resumed, &what);
        }
    }
}

#[test]
fn a_first_task_with_settings_of_its_own_and_mixed_images_resume_to_the_same_bits() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"sdlora\"\nrank = 4", |config| {
        config.first_task = Some(FirstTask {
            n_epochs: Some(2),
            optimizer: Some(OptimizerConfig::adamw(1e-3, 0.1)),
        });
        config.mix = Some(MixConfig {
            mixup: Some(0.4),
            cutmix: Some(1.0),
            probability: 0.9,
            cutmix_share: 0.5,
        });
    });
    for task_idx in [0, 1] {
        let (whole, rest) = (format!("whole-{task_idx}"), format!("rest-{task_idx}"));
        let mut killed = Killed {
            task_idx,
            folder: bench.path(&whole),
            copy: bench.path(&rest),
            n_told: 0,
        };
        let unbroken = bench
            .run_observed(&whole, &plan, Start::Fresh, &mut killed)
            .unwrap();
        let n_steps: Vec<_> = unbroken.log.tasks.iter().map(|t| t.losses.len()).collect();
        assert_eq!(n_steps, [6, 9]);
        let resumed = bench.run(&rest, &plan, Start::Resume).unwrap();
        assert_same(&unbroken, &resumed, &format!("killed in task {task_idx}"));
    }
}

#[test]
fn the_optimiser_of_the_first_task_is_of_no_other() {
    let bench = Bench::new();
    let method = "name = \"sdlora\"\nrank = 4";
    let slow = OptimizerConfig::sgd(1e-9);
    let only_first = plan(&bench, method, |config| {
        config.first_task = Some(FirstTask {
            n_epochs: None,
            optimizer: Some(slow.clone()),
        });
    });
    let always = plan(&bench, method, |config| config.optimizer = slow.clone());
    let losses = |name: &str, plan: &Plan| {
        let run = bench.run(name, plan, Start::Fresh).unwrap();
        [0, 1].map(|t| run.log.tasks[t].losses.clone())
    };
    let first = losses("first", &only_first);
    let always = losses("always", &always);
    assert_eq!(first[0], always[0]);
    // The second task starts from the same model and leaves it with its first step.
    assert_eq!(first[1][0], always[1][0]);
    assert_ne!(first[1][1], always[1][1]);
    let error = |first: FirstTask| {
        let mut config = bench.config(method);
        config.first_task = Some(first);
        config.check().unwrap_err().to_string()
    };
    let none = FirstTask {
        n_epochs: Some(0),
        optimizer: None,
    };
    assert!(error(none).contains("first_task.n_epochs"));
    let wrong = FirstTask {
        n_epochs: None,
        optimizer: Some(OptimizerConfig::sgd(-1.0)),
    };
    assert!(error(wrong).contains("lr"));
}

#[test]
fn the_frozen_magnitude_of_one_lora_stays_frozen_after_a_resume() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"lora\"\nrank = 4", |_| {});
    let mut killed = Killed {
        task_idx: 0,
        folder: bench.path("whole"),
        copy: bench.path("rest"),
        n_told: 0,
    };
    bench
        .run_observed("whole", &plan, Start::Fresh, &mut killed)
        .unwrap();
    let resumed = bench.run("rest", &plan, Start::Resume).unwrap();
    let magnitudes = resumed.model.adapter.magnitudes.as_ref().unwrap();
    assert!(!magnitudes.current.is_require_grad());
    assert_eq!(resumed.log.magnitudes, [[[1.0]], [[1.0]]]);
}

#[test]
fn a_finished_run_that_is_resumed_is_left_as_it_is() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"sdlora\"\nrank = 4", |_| {});
    let first = bench.run("run", &plan, Start::Fresh).unwrap();
    // The first holds its folder.
    copy_folder(&bench.path("run"), &bench.path("copy"));
    let mut continued = Continued::default();
    let again = bench
        .run_observed("copy", &plan, Start::Resume, &mut continued)
        .unwrap();
    assert_eq!(continued.n_steps, 0);
    assert_same(&first, &again, "finished");
}

#[test]
fn a_folder_is_neither_overwritten_nor_continued_with_another_plan() {
    let bench = Bench::new();
    let method = "name = \"linear\"";
    let original = plan(&bench, method, |_| {});
    assert!(matches!(
        bench.run("run", &original, Start::Resume),
        Err(TrainError::NoRun { .. })
    ));
    let first = bench.run("run", &original, Start::Fresh).unwrap();
    let error = bench.run("run", &original, Start::Fresh).unwrap_err();
    assert!(matches!(error, TrainError::RunExists { .. }), "{error}");
    let other = plan(&bench, method, |config| config.optimizer.lr = 0.5);
    // Held by the first, whatever its plan is.
    let error = bench.run("run", &other, Start::Resume).unwrap_err();
    assert!(matches!(error, TrainError::Locked { .. }), "{error}");
    copy_folder(&bench.path("run"), &bench.path("copy"));
    let error = bench.run("copy", &other, Start::Resume).unwrap_err();
    assert!(matches!(error, TrainError::PlanChanged { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("`lr = 0.02` there, `lr = 0.5` now"),
        "{error}"
    );
    assert_same(
        &first,
        &bench.run("copy", &original, Start::Resume).unwrap(),
        "afterwards",
    );
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint() {
    let bench = Bench::new();
    let method = "name = \"sdlora\"\nrank = 4";
    let hot = plan(&bench, method, |config| config.optimizer.lr = 1e38);
    let error = bench.run("hot", &hot, Start::Fresh).unwrap_err();
    assert!(
        matches!(error, TrainError::Diverged { task_idx: 0, .. }),
        "{error}"
    );

    // The first epoch of three steps is sound, then the rate explodes: in a step behind a checkpoint,
    // and in one that a checkpoint follows at once.
    for (checkpoint_every, kept) in [(3, 3), (2, 2), (1, 3)] {
        let explodes = plan(&bench, method, |config| {
            config.checkpoint_every = checkpoint_every;
            config.optimizer.schedule = Schedule::MultiStep {
                milestones: vec![1],
                gamma: 1e40,
            };
        });
        let name = format!("explodes-{checkpoint_every}");
        let checkpoints = bench.path(&name).join("checkpoints");
        for start in [Start::Fresh, Start::Resume] {
            let mut continued = Continued::default();
            let error = bench
                .run_observed(&name, &explodes, start, &mut continued)
                .unwrap_err();
            let n_steps = match error {
                TrainError::Diverged {
                    task_idx: 0, step, ..
                } if checkpoint_every == 3 => step,
                TrainError::Unsound {
                    task_idx: 0,
                    n_steps,
                    ref what,
                } if checkpoint_every < 3 => {
                    assert!(what.contains('.') || what == "a gradient", "{what}");
                    n_steps
                }
                other => panic!("{checkpoint_every}: {other}"),
            };
            assert!(n_steps > 3, "{n_steps}");
            // The one before is whole: hashes agree, and the second turn starts from it.
            let names = [format!("task-000-step-{kept:07}")];
            assert_eq!(checkpoint::names(&checkpoints), names);
            let path = checkpoint::latest(&checkpoints).unwrap();
            checkpoint::load::<serde_json::Value>(&path).unwrap();
            assert_eq!(continued.from.is_some(), start == Start::Resume);
            let from = if start == Start::Resume { kept } else { 0 };
            assert_eq!(continued.n_steps, n_steps - from);
        }
    }
}

#[test]
fn an_explosion_in_the_last_step_of_a_task_is_no_success() {
    let bench = Bench::new();
    for method in [
        "name = \"sdlora\"\nrank = 4",
        "name = \"finetune\"",
        "name = \"linear\"",
    ] {
        let explodes = plan(&bench, method, |config| {
            // One step an epoch.
            config.batch_size = 100;
            config.optimizer.schedule = Schedule::MultiStep {
                milestones: vec![2],
                gamma: 1e40,
            };
        });
        let folder = folder_of(method);
        let mut continued = Continued::default();
        let error = bench
            .run_observed(&folder, &explodes, Start::Fresh, &mut continued)
            .unwrap_err();
        let TrainError::Unsound {
            task_idx: 0,
            n_steps: 3,
            ..
        } = error
        else {
            panic!("{method}: {error}");
        };
        let checkpoints = bench.path(&folder).join("checkpoints");
        assert!(checkpoint::names(&checkpoints).is_empty(), "{method}");
    }
}

#[test]
fn a_task_of_one_step_that_explodes_is_no_success() {
    let bench = Bench::new();
    for method in [
        "name = \"sdlora\"\nrank = 4",
        "name = \"lora\"\nrank = 4",
        "name = \"finetune\"",
        "name = \"linear\"",
        "name = \"l2p\"",
    ] {
        for (rule, lr) in [("sgd", 1e4), ("sgd", 1e6), ("adam", 1e2), ("adam", 1e6)] {
            let hot = plan(&bench, method, |config| {
                config.n_epochs = 1;
                config.batch_size = 100;
                config.optimizer = optimizer(rule, lr, 0.0);
            });
            let folder = format!("{}-{rule}-{lr}", folder_of(method));
            let what = format!("{method}, {rule}, {lr}");
            let error = bench.run(&folder, &hot, Start::Fresh).map(drop);
            let error = error.expect_err(&what);
            let text = error.to_string();
            assert!(text.contains("optimizer.lr"), "{what}: {text}");
            assert!(
                matches!(
                    error,
                    TrainError::LostAtEnd { task_idx: 0, .. }
                        | TrainError::Unsound { task_idx: 0, .. }
                ),
                "{what}: {text}"
            );
            let checkpoints = bench.path(&folder).join("checkpoints");
            assert!(checkpoint::names(&checkpoints).is_empty(), "{what}");
        }
    }
}

/// What a run says that the user should know.
#[derive(Default)]
struct Noticed(Vec<String>);

impl Observer for Noticed {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Notice { text } = event {
            self.0.push((*text).to_owned());
        }
    }
}

#[test]
fn a_task_that_ends_no_better_than_a_guess_is_said() {
    let bench = Bench::new();
    for (lr, expected) in [(1e-12, 2), (0.05, 0)] {
        let plan = plan(&bench, "name = \"linear\"", |config| {
            config.n_epochs = 10;
            config.optimizer.lr = lr;
            let start = "{ name = \"linear\", start = \"zeros\" }";
            config.head = Some(head_config(start));
        });
        let mut noticed = Noticed::default();
        let folder = format!("lr-{lr}");
        bench
            .run_observed(&folder, &plan, Start::Fresh, &mut noticed)
            .unwrap();
        let not_learnt = |text: &&String| text.contains("was not learnt");
        let said: Vec<_> = noticed.0.iter().filter(not_learnt).collect();
        assert_eq!(said.len(), expected, "{lr}: {:?}", noticed.0);
        // Tasks count from 1, and the loss of guessing among three classes stands beside.
        for (text, task) in said.iter().zip(["task 1 ", "task 2 "]) {
            assert!(text.starts_with(task) && text.contains("1.099"), "{text}");
        }
    }
}

#[test]
fn a_rate_a_million_times_too_large_is_no_success() {
    let bench = Bench::new();
    for method in [
        "name = \"sdlora\"\nrank = 4",
        "name = \"lora\"\nrank = 4",
        "name = \"finetune\"",
        "name = \"linear\"",
        "name = \"l2p\"",
    ] {
        for head in ["linear", "ncm"] {
            let hot = plan(&bench, method, |config| {
                config.n_epochs = 10;
                config.optimizer.lr = 1e6;
                config.head = Some(head_config(head));
            });
            let folder = format!("{}-{head}", folder_of(method));
            let error = bench.run(&folder, &hot, Start::Fresh).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("optimizer.lr"), "{text}");
            assert!(
                matches!(
                    error,
                    TrainError::Lost { task_idx: 0, .. }
                        | TrainError::LostAtEnd { task_idx: 0, .. }
                        | TrainError::Diverged { task_idx: 0, .. }
                        | TrainError::Unsound { task_idx: 0, .. }
                ),
                "{method}, {head}: {text}"
            );
        }
    }
}
