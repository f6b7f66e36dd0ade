//! Presets, files of PILOT and published numbers from the command line.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{data, err, out, sdlora};

const WEIGHTS: &str = "omniglot/vit_omniglot_patch7_28.safetensors";

#[test]
fn presets_are_listed_shown_and_compared_and_the_old_spelling_holds() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| sdlora(home.path(), args);
    let all = out(&run(&["presets"]));
    assert_eq!(all, out(&run(&["presets", "list"])));
    assert!(all.lines().count() > 45 && all.contains("cub200-n10-sdlora-kd-paper"));
    let name = "imagenet-r-n10-sdlora-reference";
    let text = out(&run(&["presets", name]));
    assert_eq!(text, out(&run(&["presets", "show", name])));
    assert!(text.contains("acc = 77.34"));
    assert_eq!(out(&run(&["presets", "list", name])).lines().count(), 1);
    let different = out(&run(&[
        "presets",
        "diff",
        name,
        "imagenet-r-n20-sdlora-reference",
    ]));
    assert!(
        different.contains("stream.split.increment.increment  20"),
        "{different}"
    );
    for wrong in [
        &["presets", "nothing"][..],
        &["presets", "show", "nothing"],
        &["presets", "list", "nothing"],
        &["presets", "diff", name, "nothing"],
    ] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(err(&output).contains("presets list"), "{}", err(&output));
    }
}

#[test]
fn a_preset_without_its_data_says_what_is_missing_and_where_it_comes_from() {
    let home = tempfile::tempdir().unwrap();
    let args = ["train", "--preset", "imagenet-r-n10-sdlora-reference"];
    let output = sdlora(home.path(), &args);
    let error = err(&output);
    assert!(!output.status.success());
    assert!(
        error.contains("imagenet-r") && error.contains("hendrycks"),
        "{error}"
    );
    assert!(!home.path().join("runs").exists());
    // With the data, the backbone is what is missing.
    for half in ["train", "test"] {
        for class in ["a", "b"] {
            let folder = home
                .path()
                .join("datasets/imagenet-r")
                .join(half)
                .join(class);
            fs::create_dir_all(&folder).unwrap();
            fs::copy(
                Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("../sdlora-image/tests/images/palette.png"),
                folder.join("0.png"),
            )
            .unwrap();
        }
    }
    let error = err(&sdlora(home.path(), &args));
    assert!(
        error.contains("vit_base_patch16_224.augreg2_in21k_ft_in1k"),
        "{error}"
    );

    let args = ["train", "--preset", "cifar100-10x10"];
    let error = err(&sdlora(home.path(), &args));
    assert!(error.contains("pretrain --data tiny-imagenet"), "{error}");
}

#[test]
fn a_file_of_pilot_trains_and_names_the_keys_it_leaves_out() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("exps.json");
    let json = r#"{
        "prefix": "x", "dataset": "omniglot-evaluation", "memory_size": 0, "shuffle": true,
        "init_cls": 3, "increment": 3, "model_name": "linear", "backbone_type": "resnet18",
        "device": ["0", "1"], "seed": [1993, 1994], "init_epoch": 2, "init_lr": 0.1, "epochs": 1,
        "lrate": 0.05, "batch_size": 16, "weight_decay": 0.0, "optimizer": "sgd",
        "scheduler": "constant", "lamb": 0.95
    }"#;
    fs::write(&file, json).unwrap();
    let data = data();
    let (weights, data) = (data.join(WEIGHTS), data.to_str().unwrap().to_owned());
    let mut args = vec![
        "train",
        "--config",
        "exps.json",
        "--data-dir",
        &data,
        "--backbone",
        weights.to_str().unwrap(),
        "--set",
        "transform={ side = 28, channels = \"gray\", polarity = \"inverted\" }",
        "--set",
        "stream.n_tasks=2",
        "--set",
        "expected=[{ acc = 88.25, source = \"a table\" }]",
        "--name",
        "one",
    ];
    let refused = sdlora(home.path(), &args);
    assert_eq!(refused.status.code(), Some(2));
    assert!(err(&refused).contains("--seed 1993"), "{}", err(&refused));
    args.extend(["--seed", "1994"]);
    let output = sdlora(home.path(), &args);
    let text = out(&output);
    assert!(
        text.contains("88.25 %, here ") && text.contains("(a table)"),
        "{text}"
    );
    let told = err(&output);
    for key in ["prefix", "device", "lamb"] {
        assert!(told.contains(&format!("exps.json: `{key}`")), "{told}");
    }
    let run = home.path().join("runs/one");
    let plan = fs::read_to_string(run.join("plan.toml")).unwrap();
    assert!(plan.contains("[first_task]\nn_epochs = 2"), "{plan}");
    assert!(
        plan.contains("seed = 1994") && !plan.contains("1993"),
        "{plan}"
    );
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("published final accuracy, over tasks"));
}

#[test]
fn a_wrong_name_or_setting_is_the_users_and_the_message_lists_what_there_is() {
    let home = tempfile::tempdir().unwrap();
    let data = data();
    let data_dir = data.to_str().unwrap();
    let show = [
        "data",
        "show",
        "omniglot-evaluation",
        "--data-dir",
        data_dir,
    ];
    for (args, part) in [
        (&["compare", "--suite", "nosuch"][..], "omniglot-relatives"),
        (&["data", "verify", "nosuch"], "omniglot-evaluation"),
        (&["data", "show", "nosuch"], "omniglot-evaluation"),
        (
            &[&show[..], &["--stream", "b0-inc0"]].concat(),
            "init_cls` is 0",
        ),
        (
            &[
                "pretrain",
                "--epochs",
                "0",
                "--run",
                "made",
                "--data-dir",
                data_dir,
            ],
            "--epochs",
        ),
        (
            &[
                "train",
                "--set",
                "method.projections=[]",
                "--data-dir",
                data_dir,
            ],
            "method.projections",
        ),
        (
            &["train", "--set", "method.rank=500", "--data-dir", data_dir],
            "rank 500",
        ),
    ] {
        let found = sdlora(home.path(), args);
        assert_eq!(found.status.code(), Some(2), "{args:?}: {}", err(&found));
        assert!(err(&found).contains(part), "{args:?}: {}", err(&found));
    }
    // Nothing was made on the way: neither the folder of the one nor those of the others.
    assert!(!home.path().join("made").exists());
    let runs = fs::read_dir(home.path().join("runs"));
    assert_eq!(runs.map_or(0, Iterator::count), 0);
}

/// The answer of `presets cost` as JSON.
fn cost(home: &Path, args: &[&str]) -> serde_json::Value {
    let args = [&["presets", "cost"], args, &["--format", "json"]].concat();
    let output = sdlora(home, &args);
    assert!(output.status.success(), "{}", err(&output));
    serde_json::from_str(&out(&output)).unwrap()
}

#[test]
fn the_cost_of_a_run_is_what_the_run_takes() {
    let home = tempfile::tempdir().unwrap();
    let data = data();
    let data_dir = data.to_str().unwrap();
    let text = "base = \"omniglot-10x20\"\nn_epochs = 2\n[stream]\nn_tasks = 2\n\
                split = { increment = { init_cls = 3, increment = 3 } }\n";
    fs::write(home.path().join("a.toml"), text).unwrap();
    let found = cost(home.path(), &["a.toml", "--data-dir", data_dir]);
    // 3 classes of 15 and 5 images a task, in two batches; test images of one task, then of both.
    for (key, expected) in [
        ("train_images", 90),
        ("test_images", 30),
        ("classes", 6),
        ("tasks", 2),
        ("steps", 8),
        ("trained_passes", 180),
        ("forward_passes", 45),
    ] {
        assert_eq!(found[key], expected, "{key}");
    }
    assert_eq!(found["counted"], true);
    let train = [
        "train",
        "--config",
        "a.toml",
        "--data-dir",
        data_dir,
        "--name",
        "one",
        "--quiet",
    ];
    let output = sdlora(home.path(), &train);
    assert!(output.status.success(), "{}", err(&output));
    let run = home.path().join("runs/one");
    let log = fs::read_to_string(run.join("log.jsonl")).unwrap();
    let is_step = |line: &&str| line.contains("\"event\":\"step\"");
    assert_eq!(found["steps"], log.lines().filter(is_step).count());
    for (key, folder) in [
        ("checkpoint_bytes", run.join("checkpoints")),
        ("disk_bytes", run),
    ] {
        let (expected, real) = (
            found[key].as_u64().unwrap() as f64,
            bytes_in(&folder) as f64,
        );
        let most = if key == "checkpoint_bytes" { 0.2 } else { 0.3 };
        assert!(
            (expected / real - 1.0).abs() < most,
            "{key}: {expected}, real {real}"
        );
    }
}

/// Bytes of all files in and below a folder.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let sizes = entries.map(|path| match path.is_dir() {
        true => bytes_in(&path),
        false => path.metadata().unwrap().len(),
    });
    sizes.sum()
}

#[test]
fn the_cost_of_a_preset_without_its_data_is_estimated_and_says_so() {
    let home = tempfile::tempdir().unwrap();
    let name = "imagenet-r-n10-sdlora-reference";
    let found = cost(
        home.path(),
        &[name, "--gflops", "1000", "--utilisation", "0.5"],
    );
    assert_eq!(found["counted"], false);
    // 30,000 images, of which 80 % train: 2,400 a task in 19 batches, 20 epochs, 10 tasks.
    assert_eq!(found["train_images"], 24_000);
    assert_eq!(found["steps"], 3_800);
    let seconds = found["times"][1]["seconds"].as_f64().unwrap();
    let expected = found["flops"].as_f64().unwrap() / 0.5e12;
    assert!((seconds / expected - 1.0).abs() < 1e-9);
    let text = out(&sdlora(home.path(), &["presets", "cost", name]));
    for part in [
        "about 24000 to train on",
        "manifest",
        "H100",
        "an assumption",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    for (args, part) in [
        (&["nothing"][..], "presets list"),
        (&[name, "--utilisation", "0"], "--utilisation"),
        (&[name, "--gflops", "0"], "--gflops"),
        (&["omniglot-10x20"], "backbone"),
    ] {
        let output = sdlora(home.path(), &[&["presets", "cost"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(err(&output).contains(part), "{args:?}: {}", err(&output));
    }
}
