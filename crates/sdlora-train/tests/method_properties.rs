//! What makes each method itself, with a negative control where a property could hold by chance.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::tensor::{Tensor, TensorData};
use sdlora_core::{Adapter, HostFactors};
use sdlora_data::TaskSplit;
use sdlora_testkit::{test_device_autodiff, toy::SplitMix64};
use sdlora_train::{Finished, Plan, Start};
use toy::{Bench, bits};

/// Tasks of two classes; `method` are lines of `[method]`.
fn plan(bench: &Bench, method: &str, n_tasks: usize) -> Plan {
    let mut config = bench.config(method);
    config.stream.split = TaskSplit::Increment {
        init_cls: 2,
        increment: 2,
    };
    config.stream.n_tasks = Some(n_tasks);
    config.check().unwrap()
}

fn run(bench: &Bench, folder: &str, method: &str, n_tasks: usize) -> Finished {
    bench
        .run(folder, &plan(bench, method, n_tasks), Start::Fresh)
        .unwrap()
}

/// The frozen factors of a direction on the first site.
fn past(adapter: &Adapter, task_idx: usize) -> HostFactors {
    adapter.sites[0].past.as_ref().unwrap().to_host()[task_idx].clone()
}

fn current(adapter: &Adapter) -> HostFactors {
    adapter.sites[0].current.as_ref().unwrap().to_host()
}

#[test]
fn with_one_task_the_relatives_are_the_method_they_come_from() {
    let bench = Bench::new();
    let one_step = "name = \"sdlora-rr\"\nranks = [{ from_task = 0, rank = 10 }]";
    for (original, relatives) in [
        (
            "name = \"lora\"",
            &["name = \"lora-per-task\"", "name = \"olora\""][..],
        ),
        (
            "name = \"sdlora\"",
            &[
                one_step,
                "name = \"sdlora-kd\"",
                "name = \"sdlora-first\"",
                "name = \"sdlora-single\"",
                "name = \"sdlora-fixed-magnitude\"",
            ][..],
        ),
    ] {
        let folder = |method: &str| method.replace(['"', '\n', ' '], "");
        let expected = run(&bench, &folder(original), original, 1);
        for relative in relatives {
            let found = run(&bench, &folder(relative), relative, 1);
            assert_eq!(
                bits(&found.model.adapter),
                bits(&expected.model.adapter),
                "{relative}"
            );
            assert_eq!(found.log.matrix, expected.log.matrix, "{relative}");
        }
    }
}

#[test]
fn a_constant_schedule_is_sdlora_and_a_falling_one_falls() {
    let bench = Bench::new();
    let expected = run(&bench, "sdlora", "name = \"sdlora\"\nrank = 4", 3);
    let constant = "name = \"sdlora-rr\"\nranks = [{ from_task = 0, rank = 4 }]";
    let found = run(&bench, "constant", constant, 3);
    assert_eq!(bits(&found.model.adapter), bits(&expected.model.adapter));

    let falling = "name = \"sdlora-rr\"\n\
                   ranks = [{ from_task = 0, rank = 4 }, { from_task = 1, rank = 2 }]";
    let found = run(&bench, "falling", falling, 3);
    assert_eq!(found.model.adapter.ranks(), [4, 2, 2]);
}

#[test]
fn the_first_direction_stays_alone_and_its_magnitude_is_trained() {
    let bench = Bench::new();
    let method = "name = \"sdlora-first\"";
    let one = run(&bench, "one", method, 1).model.adapter;
    let three = run(&bench, "three", method, 3).model.adapter;
    assert_eq!(three.ranks(), [10]);
    assert_eq!(past(&three, 0), current(&one));
    let magnitude = three.magnitude_rows()[0][0];
    assert!((magnitude - 0.8).abs() > 1e-6, "{magnitude} is the start");
}

#[test]
fn a_threshold_of_zero_keeps_every_direction_and_a_high_one_absorbs_every_later_one() {
    let bench = Bench::new();
    let expected = run(&bench, "sdlora", "name = \"sdlora\"\nrank = 4", 3);
    let with = |threshold: &str, variant: &str| {
        let method = format!(
            "name = \"sdlora-kd\"\nrank = 4\nnorm = \"fro\"\n\
             threshold = {threshold}\nvariant = \"{variant}\""
        );
        let folder = format!("kd-{threshold}-{variant}");
        run(&bench, &folder, &method, 3).model.adapter
    };
    let kept = with("0.0", "reference");
    assert_eq!(bits(&kept), bits(&expected.model.adapter));
    for variant in ["reference", "carry"] {
        let absorbed = with("1.0", variant);
        assert_eq!(absorbed.ranks(), [4], "{variant}");
        let past = absorbed.sites[0].past.as_ref().unwrap();
        assert!(past.offsets_host()[0] != 0.0, "{variant}");
    }
}

#[test]
fn a_run_without_a_new_direction_resumes_where_it_stopped() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"sdlora-first\"", 3);
    let whole = bench.run("whole", &plan, Start::Fresh).unwrap();
    // As if the machine had stopped after the second task.
    toy::copy_folder(&bench.path("whole"), &bench.path("broken"));
    let checkpoints = bench.path("broken").join("checkpoints");
    std::fs::remove_dir_all(checkpoints.join("task-002-trained")).unwrap();
    let resumed = bench.run("broken", &plan, Start::Resume).unwrap();
    assert_eq!(bits(&resumed.model), bits(&whole.model));
    assert_eq!(resumed.log.matrix, whole.log.matrix);
}

#[test]
fn the_single_direction_is_trained_on() {
    let bench = Bench::new();
    let method = "name = \"sdlora-single\"";
    let one = run(&bench, "one", method, 1).model.adapter;
    let three = run(&bench, "three", method, 3).model.adapter;
    assert_eq!(three.ranks(), [10]);
    assert_ne!(current(&three), current(&one));
}

#[test]
fn fixed_magnitudes_stay_at_their_start_where_those_of_sdlora_move() {
    let bench = Bench::new();
    let start = f64::from(0.8f32);
    let moved = |folder: &str, method: &str| -> Vec<bool> {
        let rows = run(&bench, folder, method, 3)
            .model
            .adapter
            .magnitude_rows();
        rows[0].iter().map(|&alpha| alpha != start).collect()
    };
    assert_eq!(
        moved("fixed", "name = \"sdlora-fixed-magnitude\""),
        [false, false, true]
    );
    assert_eq!(moved("trained", "name = \"sdlora\""), [true, true, true]);
}

#[test]
fn a_lora_per_task_is_never_rescaled() {
    let bench = Bench::new();
    let adapter = run(&bench, "run", "name = \"lora-per-task\"", 3)
        .model
        .adapter;
    assert_eq!(adapter.ranks(), [10, 10, 10]);
    assert_eq!(adapter.magnitude_rows(), [[1.0, 1.0, 1.0]]);
    let past = adapter.sites[0].past.as_ref().unwrap();
    assert_eq!(past.inverse_norms(), [1.0, 1.0]);
}

/// Mean square cosine between the down-projections of two directions, rank by rank.
fn overlap(first: &HostFactors, second: &HostFactors) -> f64 {
    let column = |f: &HostFactors, j: usize| -> Vec<f64> {
        f.a.iter()
            .skip(j)
            .step_by(f.rank)
            .map(|&v| f64::from(v))
            .collect()
    };
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let mut sum = 0.0;
    for i in 0..first.rank {
        for j in 0..second.rank {
            let (x, y) = (column(first, i), column(second, j));
            sum += dot(&x, &y).powi(2) / (dot(&x, &x) * dot(&y, &y));
        }
    }
    sum / (first.rank * second.rank) as f64
}

#[test]
fn the_penalty_of_olora_turns_row_spaces_orthogonal() {
    let bench = Bench::new();
    let overlap_with = |lambda: &str| {
        let method = format!("name = \"olora\"\nrank = 4\nlambda = {lambda}");
        let mut config = bench.config(&method);
        config.n_epochs = 20;
        let plan = config.check().unwrap();
        let name = format!("lambda-{lambda}");
        let run = bench.run(&name, &plan, Start::Fresh).unwrap();
        overlap(&past(&run.model.adapter, 0), &current(&run.model.adapter))
    };
    let (free, pushed) = (overlap_with("0.0"), overlap_with("5.0"));
    assert!(
        free > 0.02,
        "without the penalty the spaces overlap: {free}"
    );
    assert!(pushed < 1e-3, "with it they do not: {pushed}");
}

/// The update of every site as one list of numbers, the running direction included.
fn update(adapter: &Adapter) -> Vec<f32> {
    let updates = adapter.updates();
    let dense = adapter.sites.iter().map(|bank| {
        let site = bank.site();
        updates
            .get(site.block_idx, site.projection)
            .unwrap()
            .dense()
    });
    dense
        .flat_map(|update| update.into_data().iter::<f32>().collect::<Vec<_>>())
        .collect()
}

/// `‖after − before‖ / ‖before‖` of the update, where a direction was finished in between.
fn jump(adapter: &Adapter) -> f64 {
    let before = update(adapter);
    let finished = adapter.clone().finish_task(&test_device_autodiff());
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
    };
    let after = update(&finished);
    let mut change = after.iter().zip(&before).map(|(a, b)| a - b);
    norm(&mut change) / norm(&mut before.iter().copied())
}

#[test]
fn a_relative_direction_enters_the_sum_as_it_was_trained_and_one_of_sdlora_jumps() {
    let bench = Bench::new();
    let relative = run(&bench, "relative", "name = \"sdlora-relative\"", 3);
    let past = relative.model.adapter.sites[0].past.as_ref().unwrap();
    assert_eq!(past.inverse_norms(), [1.0, 1.0]);
    let jumped = jump(&relative.model.adapter);
    assert!(jumped < 1e-5, "relative: {jumped}");
    let reference = run(&bench, "reference", "name = \"sdlora\"", 2);
    let jumped = jump(&reference.model.adapter);
    assert!(jumped > 0.5, "reference: {jumped}");
}

#[test]
fn a_step_of_a_relative_magnitude_moves_the_weight_by_the_squared_norm_of_what_carry_does() {
    let bench = Bench::new();
    let device = test_device_autodiff();
    // After one task both have the same direction, so the same function.
    let carry = "name = \"sdlora\"\nvariant = \"carry\"";
    let [carry, relative] = [("carry", carry), ("relative", "name = \"sdlora-relative\"")]
        .map(|(folder, method)| run(&bench, folder, method, 1).model.adapter);
    assert_eq!(bits(&relative), bits(&carry));
    // A loss that is linear in the update: how far one step against its gradient moves it.
    let moved = |adapter: Adapter| {
        let adapter = adapter.finish_task(&device);
        let updates = adapter.updates();
        let mut pull = SplitMix64::new(8);
        let loss = adapter.sites.iter().map(|bank| {
            let site = bank.site();
            let update = updates
                .get(site.block_idx, site.projection)
                .unwrap()
                .dense();
            let [rows, columns] = update.dims();
            let pull = TensorData::new(pull.fill(rows * columns, 1.0), [rows, columns]);
            (update * Tensor::from_data(pull, &device)).sum()
        });
        let grads = loss.reduce(|sum, term| sum + term).unwrap().backward();
        let magnitude = adapter.magnitudes.as_ref().unwrap().current.val();
        let grad: f32 = magnitude.grad(&grads).unwrap().into_scalar();
        let past = adapter.sites[0].past.as_ref().unwrap();
        let (scale, norm) = (past.inverse_norms()[0], past.to_host()[0].frobenius_norm());
        f64::from(grad) * scale * norm
    };
    let sites = carry.sites.iter();
    let squares = sites.map(|bank| bank.current.as_ref().unwrap().to_host().frobenius_norm());
    let mean_square = squares.map(|norm| norm * norm).sum::<f64>() / carry.sites.len() as f64;
    let ratio = moved(relative) / moved(carry);
    assert!(
        (ratio / mean_square - 1.0).abs() < 1e-3,
        "{ratio}, not the squared norm {mean_square}"
    );
    assert!(
        mean_square < 0.9,
        "a norm of 1 would tell nothing: {mean_square}"
    );
}

#[test]
fn old_relative_magnitudes_are_trained() {
    let bench = Bench::new();
    let relative = run(&bench, "run", "name = \"sdlora-relative\"", 3);
    let rows = relative.model.adapter.magnitude_rows();
    assert!(rows[0].iter().all(|&m| m != 1.0), "{rows:?}");
    let names = relative.model.head.per_class.keys();
    assert_eq!(names.collect::<Vec<_>>(), ["means"]);
}
