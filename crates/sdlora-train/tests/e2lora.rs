//! `e2lora`: whose output directions are whose, what a site keeps, and what old logits are held by.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use sdlora_core::{Adapter, HostFactors};
use sdlora_data::TaskSplit;
use sdlora_train::{ColumnStart, Finished, HeadConfig, Plan, Start, TrainError};
use toy::{Bench, StopAfter, bits};

/// Tasks of two classes at a rate that moves the features.
fn plan(bench: &Bench, method: &str, n_tasks: usize) -> Plan {
    let mut config = bench.config(method);
    config.stream.split = TaskSplit::Increment {
        init_cls: 2,
        increment: 2,
    };
    config.stream.n_tasks = Some(n_tasks);
    config.optimizer.lr = 0.1;
    config.head = Some(HeadConfig::named("linear").starting(ColumnStart::Torch));
    config.check().unwrap()
}

fn run(bench: &Bench, folder: &str, method: &str, n_tasks: usize) -> Finished {
    bench
        .run(folder, &plan(bench, method, n_tasks), Start::Fresh)
        .unwrap()
}

const E2LORA: &str = "name = \"e2lora\"";

/// The update of every site.
fn updates(adapter: &Adapter) -> Vec<Vec<f32>> {
    let updates = adapter.updates();
    let dense = adapter.sites.iter().map(|bank| {
        let update = updates.get(&bank.site().name).unwrap().dense();
        update.into_data().iter().collect()
    });
    dense.collect()
}

/// The directions of all tasks on a site, the last one too.
fn directions(adapter: &Adapter, site: usize) -> Vec<HostFactors> {
    let bank = &adapter.sites[site];
    let mut all = bank.past.as_ref().map_or(Vec::new(), |past| past.to_host());
    all.extend(bank.current.as_ref().map(|current| current.to_host()));
    all
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    products.sum()
}

/// The largest `|b_i · b_j|` of rows of B of different tasks, relative to their lengths.
fn overlap(directions: &[HostFactors], d_output: usize) -> f64 {
    let mut largest: f64 = 0.0;
    for (k, first) in directions.iter().enumerate() {
        for second in &directions[k + 1..] {
            for x in first.b.chunks_exact(d_output) {
                for y in second.b.chunks_exact(d_output) {
                    let lengths = (dot(x, x) * dot(y, y)).sqrt().max(1e-30);
                    largest = largest.max(dot(x, y).abs() / lengths);
                }
            }
        }
    }
    largest
}

#[test]
fn one_task_is_a_lora_with_its_factors_turned() {
    let bench = Bench::new();
    let sites = "projections = [\"query\", \"key\", \"value\"]";
    let lora = run(
        &bench,
        "lora",
        &format!("name = \"lora\"\nrank = 16\n{sites}"),
        1,
    );
    let e2lora = run(&bench, "e2lora", E2LORA, 1);
    assert_eq!(toy::losses(&e2lora), toy::losses(&lora));
    assert_eq!(bits(&e2lora.model.head), bits(&lora.model.head));
    assert_ne!(bits(&e2lora.model.adapter), bits(&lora.model.adapter));
    let (found, expected) = (updates(&e2lora.model.adapter), updates(&lora.model.adapter));
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn tasks_share_a_pool_of_orthonormal_output_directions_that_never_grows() {
    let bench = Bench::new();
    let d = toy::shape().d_model;
    let adapters: Vec<Adapter> = [2, 4]
        .map(|n| run(&bench, &format!("e2-{n}"), E2LORA, n).model.adapter)
        .into();
    for (adapter, n_tasks) in adapters.iter().zip([2, 4]) {
        for site in 0..adapter.sites.len() {
            let all = directions(adapter, site);
            assert_eq!(all.len(), n_tasks);
            let ranks: Vec<usize> = all.iter().map(|one| one.rank).collect();
            assert_eq!(ranks.iter().sum::<usize>(), d, "{ranks:?}");
            // The last task has its part at least.
            assert!(*ranks.last().unwrap() >= d / n_tasks, "{ranks:?}");
            assert!(overlap(&all, d) < 1e-4, "{}", overlap(&all, d));
            let trained = all.last().unwrap().a.iter().any(|v| *v != 0.0);
            assert!(trained, "the last task has learned");
        }
    }
    let free = run(&bench, "free", "name = \"lora-per-task\"\nrank = 4", 2);
    let overlap = overlap(&directions(&free.model.adapter, 0), d);
    assert!(overlap > 0.1, "without it they overlap: {overlap}");
}

#[test]
fn old_logits_are_held_from_the_second_task_on_by_the_weight_that_is_set() {
    let bench = Bench::new();
    let with = |weight: f64| {
        let method = format!("{E2LORA}\ndistill = {weight:?}");
        run(&bench, &format!("distill-{weight}"), &method, 2)
    };
    let (free, held) = (with(0.0), with(0.25));
    assert_eq!(free.log.tasks[0].losses, held.log.tasks[0].losses);
    let (free, held) = (&free.log.tasks[1].losses, &held.log.tasks[1].losses);
    // In the first step the model is what it was, so there is nothing to hold.
    assert!((free[0] - held[0]).abs() < 1e-6);
    assert!(
        held[1..]
            .iter()
            .zip(&free[1..])
            .all(|(held, free)| held != free)
    );
    // And nothing that it needs is left behind.
    let kept = with(0.5).model.state;
    assert!(kept.names().all(|name| name.starts_with("energies.")));
}

#[test]
fn a_run_that_was_stopped_inside_a_later_task_ends_with_the_same_bits() {
    let bench = Bench::new();
    let plan = plan(&bench, E2LORA, 3);
    let whole = bench.run("whole", &plan, Start::Fresh).unwrap();
    let n_steps: usize = whole.log.tasks.iter().map(|task| task.losses.len()).sum();
    let mut stop = StopAfter::new(n_steps - 2);
    let error = bench.run_observed("broken", &plan, Start::Fresh, &mut stop);
    assert!(matches!(error, Err(TrainError::Stopped { .. })));
    let resumed = bench.run("broken", &plan, Start::Resume).unwrap();
    assert!(bits(&resumed.model) == bits(&whole.model));
    assert_eq!(resumed.log.matrix, whole.log.matrix);
}

#[test]
fn what_it_cannot_have_is_refused_by_name() {
    let bench = Bench::new();
    for (options, expected) in [
        ("pool = 0", "method.pool"),
        ("energy = 1.0", "method.energy"),
        ("energy = nan", "method.energy"),
        ("distill = -1.0", "method.distill"),
        ("temperature = 0.0", "method.temperature"),
        ("projections = [\"fc1\"]", "method.projections"),
        ("rank = 4", "rank"),
    ] {
        let error = bench.config(&format!("{E2LORA}\n{options}")).check();
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{options}: {error}");
    }
    // A pool without a direction for every task, refused before anything is written.
    let plan = plan(&bench, &format!("{E2LORA}\npool = 2"), 3);
    let error = bench.run("small", &plan, Start::Fresh).unwrap_err();
    assert!(error.to_string().contains("number of tasks, 3"), "{error}");
    assert!(!bench.path("small").exists());
}
