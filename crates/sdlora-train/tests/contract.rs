//! What every method owes, read from the same slice as help text and configuration check.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use sdlora_core::Updates;
use sdlora_data::TaskSplit;
use sdlora_testkit::{Tolerance, assert_close, test_device_autodiff, toy::SplitMix64};
use sdlora_train::heads;
use sdlora_train::methods::{self, AdapterSpec, METHODS, TaskContext};
use sdlora_train::{Finished, HeadConfig, Model, Plan, RunConfig, Start};
use toy::{Bench, bits, shape};

const N_NEW: usize = 2;
/// Rank of every direction, the default of all methods that have one.
const RANK: usize = 10;

/// Two tasks of two classes, one epoch, default options.
fn plan(bench: &Bench, name: &str, change: impl FnOnce(&mut RunConfig)) -> Plan {
    let mut config = bench.config(&format!("name = \"{name}\""));
    config.n_epochs = 1;
    config.stream.split = TaskSplit::Increment {
        init_cls: N_NEW,
        increment: N_NEW,
    };
    if name == "ranpac" {
        // Ten thousand random features would take minutes.
        config.head = Some(HeadConfig::named("ridge").with("projection", 40));
    }
    change(&mut config);
    config.check().unwrap()
}

fn run(bench: &Bench, name: &str) -> Finished {
    bench
        .run(name, &plan(bench, name, |_| {}), Start::Fresh)
        .unwrap()
}

#[test]
fn names_are_unique_and_described() {
    for (i, entry) in METHODS.iter().enumerate() {
        assert!(
            METHODS[..i].iter().all(|other| other.name != entry.name),
            "{}",
            entry.name
        );
        assert!(!entry.summary.is_empty(), "{}", entry.name);
    }
    let error = methods::build("sgd", &Default::default())
        .unwrap_err()
        .to_string();
    assert!(
        METHODS.iter().all(|entry| error.contains(entry.name)),
        "{error}"
    );
}

#[test]
fn every_method_builds_by_default_and_refuses_unknown_options_by_name() {
    for entry in METHODS {
        (entry.build)(&Default::default()).unwrap();
        let options = toml::Table::from_iter([("surprise".to_owned(), 1.into())]);
        let error = (entry.build)(&options).unwrap_err().to_string();
        assert!(
            error.contains("`surprise`") && error.contains(entry.name),
            "{error}"
        );
    }
}

#[test]
fn every_method_learns_two_tasks_and_leaves_the_backbone_unless_it_trains_it() {
    let bench = Bench::new();
    let before = bits(&bench.backbone());
    for entry in METHODS {
        let run = run(&bench, entry.name);
        let same = bits(&run.model.backbone.valid()) == before;
        assert_eq!(
            same,
            !["finetune", "slca"].contains(&entry.name),
            "{}: backbone unchanged",
            entry.name
        );
        let last = run.log.matrix.row(1).unwrap();
        // A share of the test images of the task, and not of all: a whole number of them is right.
        let counts = run.log.matrix.test_counts().unwrap();
        assert_eq!((last.len(), counts.len()), (2, 2), "{}", entry.name);
        for (share, &count) in last.iter().zip(counts) {
            let right = share * count as f64;
            assert!(
                count == 10 && (right - right.round()).abs() < 1e-9,
                "{}: {share} of {count}",
                entry.name
            );
        }
        for (t, task) in run.log.tasks.iter().enumerate() {
            let takes_steps = match entry.name {
                "ncm" | "simplecil" => false,
                "ranpac" | "aper" => t == 0,
                _ => true,
            };
            assert_eq!(
                task.losses.is_empty(),
                !takes_steps,
                "{}, task {t}",
                entry.name
            );
        }
    }
}

#[test]
fn the_number_of_trained_parameters_follows_its_formula() {
    let (bench, vit) = (Bench::new(), shape());
    let d = vit.d_model;
    let n_sites = 2 * vit.depth;
    let direction = n_sites * RANK * (d + d);
    let gated = direction + n_sites * RANK;
    let chunked = n_sites * ((RANK - 1) * (d.div_ceil(2) + d.div_ceil(2)) + (d + d));
    let head = |n_classes: usize| (d + 1) * n_classes;
    let backbone = bench.backbone().num_params();
    // Patch projection, positions, four linear layers and two norms a block, and the last norm.
    let (patch, n_tokens) = (
        vit.patch_size * vit.patch_size * vit.n_channels,
        vit.n_tokens(),
    );
    let block = 3 * d * (d + 1) + d * (d + 1) + vit.d_mlp * (d + 1) + d * (vit.d_mlp + 1) + 4 * d;
    assert_eq!(
        backbone,
        d * (patch + 1) + n_tokens * d + vit.depth * block + 2 * d
    );
    let formulas = [
        // Of the running task the factors, and one magnitude for each task so far.
        (
            "sdlora",
            vec![direction + 1 + head(N_NEW), direction + 2 + head(N_NEW)],
        ),
        (
            "sdlora-rr",
            vec![direction + 1 + head(N_NEW), direction + 2 + head(N_NEW)],
        ),
        (
            "sdlora-kd",
            vec![direction + 1 + head(N_NEW), direction + 2 + head(N_NEW)],
        ),
        (
            "sdlora-relative",
            vec![direction + 1 + head(N_NEW), direction + 2 + head(N_NEW)],
        ),
        (
            "sdlora-merge",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        // In the second task one magnitude and no direction.
        (
            "sdlora-first",
            vec![direction + 1 + head(N_NEW), 1 + head(N_NEW)],
        ),
        (
            "sdlora-single",
            vec![direction + 1 + head(N_NEW), direction + 1 + head(N_NEW)],
        ),
        (
            "sdlora-fixed-magnitude",
            vec![direction + 1 + head(N_NEW), direction + 1 + head(N_NEW)],
        ),
        // The magnitude is the constant 1.
        (
            "lora",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        (
            "lora-per-task",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        (
            "olora",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        (
            "nlora",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        // P and Q are fixed.
        (
            "clora",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        // Paths are read off the head's logits.
        (
            "tspmo",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        (
            "sgrpo",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        // The up-projections alone, of as many sites; the down-projections are designed.
        (
            "inflora",
            vec![direction / 2 + head(N_NEW), direction / 2 + head(N_NEW)],
        ),
        // An orthogonal and a residual one.
        (
            "duallora",
            vec![2 * direction + head(N_NEW), 2 * direction + head(N_NEW)],
        ),
        // All of the width on three projections; in the second task what the first gives away, see below.
        (
            "e2lora",
            vec![3 * vit.depth * d * (d + d) + head(N_NEW), head(N_NEW)],
        ),
        // One factor of every site.
        (
            "raclora",
            vec![direction / 2 + head(N_NEW), direction / 2 + head(N_NEW)],
        ),
        // Rank 1 on one of two blocks.
        (
            "xgblora",
            vec![2 * (d + d) + head(N_NEW), 2 * (d + d) + head(N_NEW)],
        ),
        // A gate for every rank of a site.
        ("sora", vec![gated + head(N_NEW), gated + head(N_NEW)]),
        ("beamlora", vec![gated + head(N_NEW), gated + head(N_NEW)]),
        // Nine ranks in two chunks, one of its own.
        (
            "prolora",
            vec![chunked + head(N_NEW), chunked + head(N_NEW)],
        ),
        // Ranks 4 and 12 in two blocks.
        (
            "prilora",
            vec![
                2 * (4 + 12) * (d + d) + head(N_NEW),
                2 * (4 + 12) * (d + d) + head(N_NEW),
            ],
        ),
        (
            "lora-dropout",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        // In the stream; the meta-LoRA is trained behind it.
        (
            "lora-recycle",
            vec![direction + head(N_NEW), direction + head(N_NEW)],
        ),
        ("linear", vec![head(N_NEW), head(N_NEW)]),
        // Ten prompts of five tokens with a key each, all of them in every task.
        (
            "l2p",
            vec![10 * 6 * d + head(N_NEW), 10 * 6 * d + head(N_NEW)],
        ),
        // One block each: keys and values of the general prefix, of one expert, and its key.
        (
            "dualprompt",
            vec![
                (2 * 5 + 2 * 20 + 1) * d + head(N_NEW),
                (2 * 5 + 2 * 20 + 1) * d + head(N_NEW),
            ],
        ),
        // In both blocks ten new components of key, attention, four keys and four values.
        (
            "coda-prompt",
            vec![
                2 * 10 * (2 + 8) * d + head(N_NEW),
                2 * 10 * (2 + 8) * d + head(N_NEW),
            ],
        ),
        // Keys and values of one prefix in both blocks.
        (
            "hide-prompt",
            vec![2 * 2 * 20 * d + head(N_NEW), 2 * 2 * 20 * d + head(N_NEW)],
        ),
        (
            "finetune",
            vec![backbone + head(N_NEW), backbone + head(N_NEW)],
        ),
        // As finetune: what differs is a rate.
        ("slca", vec![backbone + head(N_NEW), backbone + head(N_NEW)]),
        ("ranpac", vec![direction + head(N_NEW), 0]),
        ("aper", vec![direction + head(N_NEW), 0]),
        ("ncm", vec![0, 0]),
        ("simplecil", vec![0, 0]),
        ("joint", vec![direction + head(2 * N_NEW)]),
    ];
    for entry in METHODS {
        let known = formulas.iter().any(|(name, _)| *name == entry.name);
        assert!(known, "{}: state its formula here", entry.name);
    }
    for (name, mut expected) in formulas {
        let run = run(&bench, name);
        if name == "e2lora" {
            let banks = run.model.adapter.sites.iter();
            let ranks = banks.map(|bank| bank.current.as_ref().unwrap().rank());
            expected[1] += d * ranks.sum::<usize>();
        }
        assert_eq!(run.log.n_trained, expected, "{name}");
    }
}

#[test]
fn past_directions_do_not_move() {
    let bench = Bench::new();
    for variant in ["reference", "paper", "carry"] {
        let with_variant = |n_tasks| {
            plan(&bench, "sdlora", |config| {
                config
                    .method
                    .options
                    .insert("variant".into(), variant.into());
                config.stream.n_tasks = Some(n_tasks);
                // Enough steps that a direction that is not frozen would be seen to move.
                config.n_epochs = 3;
            })
        };
        let run = |n_tasks: usize| {
            let name = format!("{variant}-{n_tasks}");
            bench
                .run(&name, &with_variant(n_tasks), Start::Fresh)
                .unwrap()
                .model
                .adapter
        };
        let (first, third) = (run(1), run(3));
        for (before, after) in first.sites.iter().zip(&third.sites) {
            let expected = before.current.as_ref().unwrap().to_host();
            assert!(
                expected.b.iter().any(|&v| v != 0.0),
                "the first task was learned"
            );
            let past = after.past.as_ref().unwrap().to_host();
            assert_eq!(past.len(), 2);
            assert_eq!(past[0], expected, "{variant}, {}", before.site());
        }
    }
}

#[test]
fn old_columns_of_the_head_do_not_move() {
    let bench = Bench::new();
    for name in ["sdlora", "lora", "linear", "finetune", "dualprompt"] {
        let run = |n_tasks: usize| {
            let plan = plan(&bench, name, |config| config.stream.n_tasks = Some(n_tasks));
            let name = format!("{name}-{n_tasks}");
            let model = bench.run(&name, &plan, Start::Fresh).unwrap().model;
            model.head.trained.unwrap().weight.val().inner()
        };
        let old: Vec<f32> = run(1).into_data().iter().collect();
        let new = run(2).slice([0..shape().d_model, 0..N_NEW]);
        assert_close(new, old.as_slice(), Tolerance::Abs(0.0), name);
    }
}

#[test]
fn attaching_a_method_changes_no_feature_but_through_its_prompts() {
    let (bench, device, vit) = (Bench::new(), test_device_autodiff(), shape());
    let side = vit.image_size;
    let pixels = SplitMix64::new(4).fill(3 * side * side, 1.0);
    let images = Tensor::<4>::from_data(TensorData::new(pixels, [3, 1, side, side]), &device);
    for entry in METHODS {
        let method = (entry.build)(&Default::default()).unwrap();
        let (backbone, _) =
            sdlora_vit::Vit::load(&bench.path("vit.safetensors"), None, &device).unwrap();
        let expected: Vec<f32> = backbone
            .forward(images.clone(), &Updates::default())
            .into_data()
            .iter()
            .collect();
        let adapter = AdapterSpec::adapter(method.adapter().as_ref(), &vit).unwrap();
        let task = TaskContext {
            task_idx: 0,
            n_tasks: 2,
            n_new_classes: N_NEW,
            seed: 1,
            device: device.clone(),
            head: heads::build("linear", &Default::default()).unwrap(),
            start: method.column_start(),
        };
        let mut model = method
            .before_task(Model::new(backbone, adapter), &task)
            .unwrap();
        // An image is alone with its prompts: others in its batch change nothing.
        let features = model.features(images.clone());
        let n = features.dims()[0];
        for i in 0..n {
            let alone = model.features(images.clone().narrow(0, i, 1));
            let beside: Vec<f32> = features
                .clone()
                .narrow(0, i, 1)
                .into_data()
                .iter()
                .collect();
            let what = format!("{}, image {i} alone", entry.name);
            assert_close(alone, beside.as_slice(), Tolerance::Abs(1e-6), &what);
        }
        let state = std::mem::take(&mut model.state);
        if state.second_pass().is_none() {
            let exact = Tolerance::Abs(0.0);
            assert_close(features, expected.as_slice(), exact, entry.name);
            continue;
        }
        // A prompt is attended to from the start, or it would never get a gradient; without it the model is
        // what it was.
        let found: Vec<f32> = features.into_data().iter().collect();
        let changes = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let largest = changes.fold(0.0, f32::max);
        assert!(
            largest > 1e-3,
            "{}: the prompts change {largest}",
            entry.name
        );
        let without = model.features(images.clone());
        assert_close(
            without,
            expected.as_slice(),
            Tolerance::Abs(0.0),
            entry.name,
        );
    }
}
