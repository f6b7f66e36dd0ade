//! What makes each method itself, with a negative control where a property could hold by chance.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::num::NonZeroUsize;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use sdlora_core::{Adapter, HostFactors, Updates};
use sdlora_data::{Cache, Dataset, ImageSource, LoaderConfig, TaskSplit, TaskStream};
use sdlora_testkit::{test_device, test_device_autodiff, toy::SplitMix64};
use sdlora_train::analysis::{collision_rate, sparsity};
use sdlora_train::methods::{self, AdapterSpec, LossOver, METHODS, TaskContext};
use sdlora_train::{ColumnStart, Finished, HeadConfig, Model, Plan, Schedule, Start};
use sdlora_vit::Vit;
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

/// Settings with which a method, in a stream of one task, is the one it comes from.
const RELATIVES: &[(&str, &[&str])] = &[
    (
        "name = \"lora\"",
        &[
            "name = \"lora-per-task\"",
            "name = \"olora\"",
            "name = \"nlora\"\nlambda = 0.0",
            "name = \"clora\"\nlambda = 0.0",
            "name = \"clora\"\nbases = \"old-features\"",
            "name = \"raclora\"\nevery = 0\nfrozen = \"none\"",
            "name = \"prolora\"\nchunks = 1\nunshared = 0",
            "name = \"prolora\"\nunshared = 10",
            "name = \"prilora\"\nrank = 10\nlast_rank = 10\nshare = 0.0",
            "name = \"lora-dropout\"\ndropout = 0.0\nn_masks = 1",
            "name = \"duallora\"\nresidual_rank = 0",
            "name = \"joint\"",
        ],
    ),
    (
        "name = \"sdlora\"",
        &[
            "name = \"sdlora-rr\"\nranks = [{ from_task = 0, rank = 10 }]",
            "name = \"sdlora-kd\"",
            "name = \"sdlora-first\"",
            "name = \"sdlora-single\"",
            "name = \"sdlora-fixed-magnitude\"",
        ],
    ),
];

/// Methods that are no setting of another, or whose test says of which.
const ON_THEIR_OWN: &[&str] = &[
    "sdlora-relative",
    "sdlora-merge",
    "xgblora",
    "sora",
    "beamlora",
    "tspmo",
    "sgrpo",
    "lora-recycle",
    "inflora",
    "e2lora",
    "l2p",
    "dualprompt",
    "coda-prompt",
    "hide-prompt",
    "finetune",
    "slca",
    "ranpac",
    "linear",
    "ncm",
    "simplecil",
    "aper",
];

#[test]
fn every_method_has_a_setting_that_is_another_or_stands_on_its_own() {
    for entry in METHODS {
        let quoted = format!("name = \"{}\"", entry.name);
        let is_related = RELATIVES.iter().any(|(original, relatives)| {
            original.contains(&quoted) || relatives.iter().any(|r| r.contains(&quoted))
        });
        assert!(
            is_related != ON_THEIR_OWN.contains(&entry.name),
            "{}: say what it is with one task",
            entry.name
        );
    }
}

#[test]
fn with_one_task_the_relatives_are_the_method_they_come_from() {
    let bench = Bench::new();
    for (original, relatives) in RELATIVES {
        let folder = |method: &str| method.replace(['"', '\n', ' '], "");
        let expected = run(&bench, &folder(original), original, 1);
        for relative in *relatives {
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
fn before_inflora_has_seen_images_it_is_a_lora_per_task() {
    let bench = Bench::new();
    let device = test_device_autodiff();
    let begun = |name: &str| {
        let options = toml::Table::from_iter([("projections".into(), vec!["value"].into())]);
        let method = methods::build(name, &options).unwrap();
        let adapter = AdapterSpec::adapter(method.adapter().as_ref(), &toy::shape()).unwrap();
        let backbone = Vit::load(&bench.path("vit.safetensors"), None, &device)
            .unwrap()
            .0;
        let task = TaskContext {
            task_idx: 0,
            n_tasks: 1,
            n_new_classes: 2,
            seed: 1,
            device: device.clone(),
            head: HeadConfig::named("linear").build().unwrap(),
            start: method.column_start(),
        };
        method
            .before_task(Model::new(backbone, adapter), &task)
            .unwrap()
    };
    let (expected, found) = (begun("lora-per-task"), begun("inflora"));
    assert_eq!(bits(&found), bits(&expected));
    assert_eq!(found.n_trained(), expected.n_trained());
}

#[test]
fn simplecil_with_means_of_directions_is_ncm() {
    let bench = Bench::new();
    let means = |folder: &str, method: &str, head: Option<HeadConfig>| {
        let mut config = bench.config(method);
        config.head = head;
        let plan = config.check().unwrap();
        let run = bench.run(folder, &plan, Start::Fresh).unwrap();
        run.model.head.per_class
    };
    let simple = "name = \"simplecil\"";
    let expected = means("ncm", "name = \"ncm\"", None);
    let same = means("same", simple, Some(HeadConfig::named("ncm")));
    assert_eq!(same, expected);
    assert_ne!(means("default", simple, None), expected);
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
fn ranks_fall_and_directions_are_absorbed_in_one_run_as_in_the_algorithm_of_the_paper() {
    let bench = Bench::new();
    let ranks = "ranks = [{ from_task = 0, rank = 4 }, { from_task = 1, rank = 2 }]";
    let with = |folder: &str, method: &str| {
        let method = format!("{method}\n{ranks}");
        run(&bench, folder, &method, 3).model.adapter
    };
    let falling = with("rr", "name = \"sdlora-rr\"");
    let kept = with("kd", "name = \"sdlora-kd\"\nthreshold = 0.0");
    assert_eq!(bits(&kept), bits(&falling));
    let all = "name = \"sdlora-kd\"\nthreshold = 1.0\nnorm = \"fro\"";
    assert_eq!(with("absorbed", all).ranks(), [4]);
    for (options, expected) in [
        (format!("rank = 4\n{ranks}"), "beside `ranks`"),
        ("ranks = []".into(), "method.ranks"),
        ("threshold = -1.0".into(), "method.threshold"),
        ("coefficients = \"mean\"".into(), "kept"),
    ] {
        let error = methods::build("sdlora-kd", &options.parse().unwrap());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_direction_that_is_absorbed_as_kept_goes_when_the_next_task_starts() {
    let bench = Bench::new();
    let with = |coefficients: &str, n_tasks: usize| {
        // A fit for all sites together leaves more than one of a site's own.
        let method = format!(
            "name = \"sdlora-kd\"\nrank = 4\nnorm = \"fro\"\nthreshold = 10.0\n\
             coefficients = \"{coefficients}\""
        );
        let folder = format!("{coefficients}-{n_tasks}");
        let run = run(&bench, &folder, &method, n_tasks);
        (run.model.adapter.ranks(), run.log.magnitudes)
    };
    // The last one stays, because no task follows.
    for (coefficients, ranks) in [
        ("trained", vec![4]),
        ("paper", vec![4]),
        ("kept", vec![4, 4]),
    ] {
        let (found, magnitudes) = with(coefficients, 3);
        assert_eq!(found, ranks, "{coefficients}");
        let n_last = magnitudes.last().unwrap()[0].len();
        assert_eq!(n_last, ranks.len(), "{coefficients}");
    }
    assert_eq!(with("kept", 1).0, [4]);
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
    let overlap_with = |penalty: &str, lambda: &str| {
        let method =
            format!("name = \"olora\"\nrank = 4\npenalty = \"{penalty}\"\nlambda = {lambda}");
        let mut config = bench.config(&method);
        config.n_epochs = 20;
        let plan = config.check().unwrap();
        let name = format!("{penalty}-{lambda}");
        let run = bench.run(&name, &plan, Start::Fresh).unwrap();
        overlap(&past(&run.model.adapter, 0), &current(&run.model.adapter))
    };
    let free = overlap_with("absolute", "0.0");
    assert!(
        free > 0.02,
        "without the penalty the spaces overlap: {free}"
    );
    // The slope of an absolute value does not fall: at a constant rate products swing about 0.
    for (penalty, lambda, bound) in [("squared", "5.0", 1e-3), ("absolute", "0.5", 0.2 * free)] {
        let pushed = overlap_with(penalty, lambda);
        assert!(
            pushed < bound,
            "{penalty}: with it they do not: {pushed}, {free}"
        );
    }
}

#[test]
fn a_weight_of_zero_is_a_lora_per_task_to_the_bit_and_nlora_makes_updates_sparse() {
    let bench = Bench::new();
    let with = |folder: &str, method: &str| {
        let mut config = bench.config(method);
        config.n_epochs = 20;
        config.optimizer.schedule = Schedule::cosine();
        let plan = config.check().unwrap();
        bench
            .run(folder, &plan, Start::Fresh)
            .unwrap()
            .model
            .adapter
    };
    let plain = with("plain", "name = \"lora-per-task\"\nrank = 4");
    let free = with("free", "name = \"nlora\"\nrank = 4\nlambda = 0.0");
    assert_eq!(bits(&free), bits(&plain));
    let sparse = with("sparse", "name = \"nlora\"\nrank = 4\nlambda = 1.0");
    let released = with(
        "released",
        "name = \"nlora\"\nrank = 4\nlambda = 1.0\npenalty = \"rank-product\"",
    );
    let update_of = |factors: HostFactors| -> Vec<f32> {
        let d_output = factors.b.len() / factors.rank;
        let entry = |row: &[f32], j: usize| -> f32 {
            let column = factors.b.iter().skip(j).step_by(d_output);
            row.iter().zip(column).map(|(a, b)| a * b).sum()
        };
        let rows = factors.a.chunks_exact(factors.rank);
        rows.flat_map(|row| (0..d_output).map(|j| entry(row, j)).collect::<Vec<_>>())
            .collect()
    };
    let updates = |adapter: &Adapter| [update_of(past(adapter, 0)), update_of(current(adapter))];
    // A tenth of what an entry is without a penalty.
    let dense = updates(&free).concat();
    let square: f64 = dense.iter().map(|v| f64::from(*v).powi(2)).sum();
    let threshold = 0.1 * (square / dense.len() as f64).sqrt();
    let measured = |adapter: &Adapter| {
        let [first, second] = updates(adapter);
        let share = (sparsity(&first, threshold) + sparsity(&second, threshold)) / 2.0;
        (share, collision_rate(&first, &second, threshold))
    };
    let found = [free, sparse, released].map(|adapter| measured(&adapter));
    let [free, sparse, released] = found;
    assert!(free.0 < 0.3 && free.1 > 0.5, "without it: {found:?}");
    assert!(sparse.0 > 0.6 && sparse.1 < 0.3, "{found:?}");
    // The product of ranks says nothing of single entries.
    assert!(released.0 < 0.5 && released.1 > 0.3, "{found:?}");
}

/// Attention inputs `[n_tokens, d_model]` of the first block for the training images of a task. No
/// update changes what the first block sees.
fn first_inputs(bench: &Bench, plan: &Plan, task_idx: usize) -> Tensor<2> {
    let (config, device) = (plan.config(), test_device());
    let dataset: Arc<dyn Dataset> =
        sdlora_data::datasets::open(&config.dataset, &toy::data_dir(), &Default::default())
            .unwrap()
            .into();
    let stream = TaskStream::new(dataset.as_ref(), &config.stream).unwrap();
    let transform = config.transform.for_evaluation().init().unwrap();
    let set = &stream.tasks()[task_idx].train;
    let source = ImageSource::new(dataset, set, transform, Cache::Memory);
    let loader = LoaderConfig::evaluation(1000)
        .init(Arc::new(source), 0)
        .unwrap();
    let batch = loader.epoch(0, &device).next().unwrap().unwrap();
    let mut inputs = None;
    let none = Updates::default();
    bench
        .backbone()
        .attention_inputs(batch.images, &none, |block_idx, tokens| {
            if block_idx == 0 {
                let [batch, n_tokens, d_model] = tokens.dims();
                inputs = Some(tokens.reshape([batch * n_tokens, d_model]));
            }
        });
    inputs.unwrap()
}

#[test]
fn inflora_leaves_the_outputs_on_old_inputs_as_they_were() {
    let bench = Bench::new();
    // The share of the mean square of the old inputs that lies along the columns of the new
    // down-projection, and what the new update makes of old inputs, for an update of length 1.
    let shares = |lamb: f64, energy: &str| {
        let method = format!(
            "name = \"inflora\"\nrank = 3\nlamb = {lamb}\nlame = {lamb}\nenergy = \"{energy}\""
        );
        let plan = plan(&bench, &method, 2);
        let name = format!("{lamb}-{energy}");
        let run = bench.run(&name, &plan, Start::Fresh).unwrap();
        let current = run.model.adapter.sites[0].current.as_ref().unwrap();
        let (a, b) = (current.a.val().inner(), current.b.val().inner());
        assert!(
            current.to_host().b.iter().any(|&v| v != 0.0),
            "the update was trained"
        );
        let square = |x: Tensor<2>| f64::from((x.clone() * x).sum().into_scalar::<f32>());
        let old = first_inputs(&bench, &plan, 0);
        let of_old = square(old.clone());
        // Columns have the length 1/√3.
        let along = 3.0 * square(old.clone().matmul(a.clone())) / of_old;
        let update = a.matmul(b);
        let changed = square(old.matmul(update.clone())) / (of_old * square(update));
        (along, changed)
    };
    let (along, interference) = shares(0.99, "inputs");
    assert!(along <= 0.01 + 1e-6, "{along} of the old inputs");
    assert!(interference <= 0.01 + 1e-6, "{interference}");
    // The energy of the published code leaves more, and nothing held leaves everything.
    let (published, _) = shares(0.99, "covariance");
    assert!(published < 0.3 && published > along, "{published}");
    let (along, interference) = shares(0.0, "inputs");
    assert!(along > 0.5, "without a memory {along} of the old inputs");
    assert!(interference > 0.1, "without a memory {interference}");
}

#[test]
fn clora_without_a_weight_is_a_lora_per_task_and_keeps_nothing_that_it_can_draw() {
    let bench = Bench::new();
    let of = |folder: &str, method: &str| run(&bench, folder, method, 3);
    let plain = of("plain", "name = \"lora-per-task\"\nrank = 4");
    let free = of("free", "name = \"clora\"\nrank = 4\nlambda = 0.0");
    assert_eq!(bits(&free.model), bits(&plain.model));
    for bases in ["random", "minor", "major"] {
        let method = format!("name = \"clora\"\nrank = 4\nbases = \"{bases}\"");
        let found = of(bases, &method);
        assert!(bits(&found.model.adapter) != bits(&plain.model.adapter));
        assert!(found.model.state.is_empty(), "{bases}");
        assert_eq!(found.log.floats_stored, plain.log.floats_stored, "{bases}");
    }
}

#[test]
fn clora_with_bases_of_old_features_keeps_the_new_factors_away_from_old_inputs() {
    let bench = Bench::new();
    // The share of the mean square of old inputs that lies along the columns of the new down-projection.
    let along = |lambda: f64| {
        let method =
            format!("name = \"clora\"\nrank = 3\nbases = \"old-features\"\nlambda = {lambda:?}");
        let mut config = bench.config(&method);
        config.n_epochs = 20;
        let plan = config.check().unwrap();
        let name = format!("lambda-{lambda}");
        let run = bench.run(&name, &plan, Start::Fresh).unwrap();
        assert!(run.log.floats_stored[0].shared > 0, "the memory is kept");
        let a = run.model.adapter.sites[0].current.as_ref().unwrap();
        let a = a.a.val().inner();
        let square = |x: Tensor<2>| f64::from((x.clone() * x).sum().into_scalar::<f32>());
        let old = first_inputs(&bench, &plan, 0);
        let of_old = square(old.clone()) * square(a.clone());
        3.0 * square(old.matmul(a)) / of_old
    };
    let (free, held) = (along(0.0), along(5.0));
    assert!(free > 0.05 && held < 0.2 * free, "{free} and {held}");
}

#[test]
fn which_paths_are_drawn_does_not_depend_on_how_a_batch_is_divided_and_does_on_the_seed() {
    let bench = Bench::new();
    for name in ["tspmo", "sgrpo"] {
        let with = |n_at_once: usize, seed: u64| {
            let mut config = bench.config(&format!("name = \"{name}\"\nrank = 4"));
            config.micro_batch = NonZeroUsize::new(n_at_once);
            config.seed = seed;
            let plan = config.check().unwrap();
            let folder = format!("{name}-{n_at_once}-{seed}");
            bench.run(&folder, &plan, Start::Fresh).unwrap()
        };
        let (whole, divided) = (with(16, 11), with(5, 11));
        let far = toy::difference(&whole, &divided);
        assert!(far < 1e-4, "{name}: {far}");
        let far = toy::difference(&whole, &with(16, 12));
        assert!(far > 1e-2, "{name}, another seed: {far}");
        // Shares of wrong paths.
        let losses = toy::losses(&whole);
        assert!(losses.iter().all(|l| (0.0..=1.0).contains(l)), "{losses:?}");
    }
}

#[test]
fn paths_that_start_with_a_task_know_that_of_every_class_also_in_a_run_that_is_continued() {
    let bench = Bench::new();
    let mut config = bench.config("name = \"tspmo\"\nrank = 4\ngroups = \"tasks\"");
    config.stream.split = TaskSplit::Increment {
        init_cls: 2,
        increment: 2,
    };
    config.stream.n_tasks = Some(3);
    config.loss = LossOver::SeenClasses;
    let plan = config.check().unwrap();
    let whole = bench.run("whole", &plan, Start::Fresh).unwrap();
    let tasks = whole.model.state.fact("class_tasks").unwrap();
    assert_eq!(tasks.to_string(), "[0,0,1,1,2,2]");
    assert_eq!(whole.log.floats_stored.last().unwrap().shared, 0);
    toy::copy_folder(&bench.path("whole"), &bench.path("broken"));
    let checkpoints = bench.path("broken").join("checkpoints");
    std::fs::remove_dir_all(checkpoints.join("task-002-trained")).unwrap();
    let resumed = bench.run("broken", &plan, Start::Resume).unwrap();
    assert_eq!(bits(&resumed.model), bits(&whole.model));
}

#[test]
fn the_memory_of_inflora_grows_and_frozen_factors_stay() {
    let bench = Bench::new();
    let method = "name = \"inflora\"\nrank = 2\nlamb = 0.98\nenergy = \"inputs\"";
    let held = |n_tasks: usize| {
        let run = run(&bench, &format!("run-{n_tasks}"), method, n_tasks);
        let d_model = toy::shape().d_model;
        let state = &run.model.state;
        let keeps = state.fact("keeps").unwrap().as_array().unwrap();
        let n_vectors: Vec<usize> = state
            .names()
            .map(|name| state.get(name).unwrap().val().dims()[0])
            .collect();
        let stored = run.log.floats_stored.last().unwrap();
        let kept = d_model * n_vectors.iter().sum::<usize>();
        assert_eq!(stored.shared, kept, "reported as stored");
        let used: Vec<usize> = n_vectors
            .iter()
            .zip(keeps)
            .map(|(&n, keeps)| match keeps.as_str().unwrap() {
                "used" => n,
                "free" => d_model - n,
                other => panic!("{other}"),
            })
            .collect();
        (used, run.model.adapter)
    };
    let ((first, one), (third, three)) = (held(1), held(3));
    let grows = first.iter().zip(&third).all(|(a, b)| a < b);
    assert!(grows, "{first:?} {third:?}");
    assert_eq!(past(&three, 0), current(&one));
}

#[test]
fn inflora_refuses_shares_and_projections_it_cannot_have() {
    let bench = Bench::new();
    for (options, setting) in [
        ("lamb = 1.5", "method.lamb"),
        ("lamb = 0.9\nlame = 0.8", "method.lame"),
        ("lamb = nan", "method.lamb"),
        ("projections = [\"fc1\"]", "method.projections"),
        ("projections = []", "method.projections"),
    ] {
        let error = bench
            .config(&format!("name = \"inflora\"\n{options}"))
            .check()
            .unwrap_err()
            .to_string();
        assert!(error.contains(setting), "{options}: {error}");
    }
}

#[test]
fn slca_at_the_full_rate_is_finetune_and_at_a_small_one_the_backbone_moves_less() {
    let bench = Bench::new();
    let start = bits(&bench.backbone());
    let trained = |folder: &str, method: &str| {
        let mut config = bench.config(method);
        // Their own starts differ, as their published codes do.
        config.head = Some(HeadConfig::named("linear").starting(ColumnStart::Normal));
        let plan = config.check().unwrap();
        let model = bench.run(folder, &plan, Start::Fresh).unwrap().model;
        let end = bits(&model.backbone.valid());
        let values = |bits: &[Vec<u32>]| -> Vec<f32> {
            bits.iter().flatten().map(|&v| f32::from_bits(v)).collect()
        };
        let moved: f32 = values(&start)
            .iter()
            .zip(values(&end))
            .map(|(a, b)| (a - b) * (a - b))
            .sum();
        (end, bits(&model.head), moved.sqrt())
    };
    let (backbone, head, far) = trained("finetune", "name = \"finetune\"");
    let same = trained("same", "name = \"slca\"\nbackbone_lr = 1.0");
    assert!(same.0 == backbone && same.1 == head);
    let (_, slow_head, near) = trained("slow", "name = \"slca\"");
    assert!(near > 0.0 && near < 0.05 * far, "{near} and {far}");
    assert!(slow_head != head);
}

#[test]
fn ranpac_learns_a_lora_in_its_first_task_and_nothing_more() {
    let bench = Bench::new();
    let method = "name = \"ranpac\"\nrank = 4";
    let with_ridge = |folder: &str, method: &str, n_tasks: usize| {
        let mut config = bench.config(method);
        config.head = Some(HeadConfig::named("ridge"));
        config.stream.n_tasks = Some(n_tasks);
        let plan = config.check().unwrap();
        bench.run(folder, &plan, Start::Fresh).unwrap()
    };
    let lora = with_ridge("lora", "name = \"lora\"\nrank = 4", 1);
    let ranpac = with_ridge("ranpac", method, 3);
    assert_eq!(past(&ranpac.model.adapter, 0), current(&lora.model.adapter));
    assert_eq!(ranpac.log.tasks[0].losses, lora.log.tasks[0].losses);
    assert!(ranpac.log.tasks[1..].iter().all(|t| t.losses.is_empty()));
    assert_eq!(ranpac.log.n_trained[1..], [0, 0]);
    assert_eq!(
        ranpac.log.matrix.row(0).unwrap(),
        lora.log.matrix.row(0).unwrap()
    );

    // Without adaptation it is the frozen backbone.
    let plain = with_ridge("plain", &format!("{method}\nadapt = false"), 3);
    let frozen = with_ridge("frozen", "name = \"ncm\"", 3);
    assert_eq!(plain.model.head.per_class, frozen.model.head.per_class);
    assert_eq!(plain.log.matrix, frozen.log.matrix);
    assert_ne!(ranpac.model.head.per_class, frozen.model.head.per_class);
}

#[test]
fn features_of_aper_are_those_of_the_backbone_beside_those_of_the_first_task() {
    let bench = Bench::new();
    let lora = run(&bench, "lora", "name = \"lora\"\nrank = 4", 1);
    let aper = run(&bench, "aper", "name = \"aper\"\nrank = 4", 3);
    assert_eq!(aper.log.tasks[0].losses, lora.log.tasks[0].losses);
    assert!(aper.log.tasks[1..].iter().all(|t| t.losses.is_empty()));
    let (d, side) = (toy::shape().d_model, toy::shape().image_size);
    let pixels = SplitMix64::new(4).fill(3 * side * side, 1.0);
    let images =
        Tensor::<4>::from_data(TensorData::new(pixels, [3, 1, side, side]), &test_device());
    let both = aper.model.extractor();
    assert_eq!(both.width(), 2 * d);
    let both = both.features(images.clone());
    let far = |a: Tensor<2>, b: Tensor<2>| -> f32 { (a - b).abs().max().into_scalar() };
    let plain = bench
        .backbone()
        .forward(images.clone(), &Updates::default());
    let adapted = lora.model.extractor().features(images);
    let halves = [both.clone().narrow(1, 0, d), both.narrow(1, d, d)];
    assert!(far(halves[0].clone(), plain) < 1e-6);
    assert!(far(halves[1].clone(), adapted) < 1e-5);
    let [left, right] = halves;
    assert!(far(left, right) > 1e-4, "the first task has adapted it");
}

#[test]
fn prototypes_of_aper_are_means_of_both_features_and_half_of_them_those_of_simplecil() {
    let bench = Bench::new();
    // Sums of the features of every class.
    let sums = |folder: &str, method: &str| -> Vec<Vec<f32>> {
        let head = run(&bench, folder, method, 3).model.head;
        let (means, lengths) = (&head.per_class["means"], &head.per_class["lengths"]);
        let rows = means.values.chunks_exact(means.shape[1]);
        rows.zip(&lengths.values)
            .map(|(row, length)| row.iter().map(|v| v * length).collect())
            .collect()
    };
    let simple = sums("simplecil", "name = \"simplecil\"");
    let both = sums("aper", "name = \"aper\"\nrank = 4");
    assert_eq!((simple.len(), both.len()), (6, 6));
    let d = toy::shape().d_model;
    for (both, simple) in both.iter().zip(&simple) {
        assert_eq!((both.len(), simple.len()), (2 * d, d));
        let far = |half: &[f32]| {
            let differences = half.iter().zip(simple).map(|(a, b)| (a - b).abs());
            differences.fold(0.0f32, f32::max)
        };
        assert!(far(&both[..d]) < 1e-3, "{}", far(&both[..d]));
        assert!(far(&both[d..]) > 1e-2, "{}", far(&both[d..]));
    }
}

/// The update of every site as one list of numbers, the running direction included.
fn update(adapter: &Adapter) -> Vec<f32> {
    let updates = adapter.updates();
    let dense = adapter.sites.iter().map(|bank| {
        let site = bank.site();
        updates.get(&site.name).unwrap().dense()
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
            let update = updates.get(&site.name).unwrap().dense();
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
    assert_eq!(names.collect::<Vec<_>>(), ["lengths", "means"]);
}
