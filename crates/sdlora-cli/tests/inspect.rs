//! `sdlora inspect` and `--backbone` from the command line.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{data, err, out, sdlora};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "omniglot/vit_omniglot_patch7_28.safetensors";

/// A cache that has the shipped backbone as the model `acme/tiny`.
fn cache() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("hub/models--acme--tiny");
    let snapshot = root.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(root.join("refs")).unwrap();
    fs::write(root.join("refs/main"), COMMIT).unwrap();
    fs::copy(data().join(WEIGHTS), snapshot.join("model.safetensors")).unwrap();
    home
}

#[test]
fn the_shipped_backbone_is_listed_with_shapes_and_totals() {
    let home = cache();
    let file = data().join(WEIGHTS);
    let from_file = out(&sdlora(home.path(), &["inspect", file.to_str().unwrap()]));
    let from_hub = out(&sdlora(home.path(), &["inspect", "hf:acme/tiny"]));
    for text in [&from_file, &from_hub] {
        for part in [
            "safetensors, ",
            "28 x 28 pixels, 1 channels, patches of 7",
            "  as it is",
            "patch_embed.proj.weight",
            "[128, 1, 7, 7]",
            "F16",
            "blocks.0.attn.qkv.weight",
        ] {
            assert!(text.contains(part), "`{part}` is not in\n{text}");
        }
    }
    let total = |text: &str| text.lines().last().unwrap().to_owned();
    assert!(total(&from_file).starts_with("total: "), "{from_file}");
    assert_eq!(total(&from_file), total(&from_hub));
    let short = out(&sdlora(
        home.path(),
        &["inspect", "--summary", "hf:acme/tiny"],
    ));
    assert!(!short.contains("blocks.0.attn.qkv.weight  "), "{short}");
}

#[test]
fn what_is_not_there_is_a_mistake_of_the_user() {
    let home = cache();
    let output = sdlora(home.path(), &["inspect", "nothing-here"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("hf:ORG/NAME"), "{}", err(&output));
    let output = sdlora(home.path(), &["inspect", "hf:acme/other"]);
    assert!(err(&output).contains("HF_HUB_OFFLINE"), "{}", err(&output));
    let output = sdlora(home.path(), &["inspect", "hf:a/b/c"]);
    assert_eq!(output.status.code(), Some(2));
    let notes = home.path().join("notes.txt");
    fs::write(&notes, "no weights").unwrap();
    let output = sdlora(home.path(), &["inspect", "notes.txt"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("notes.txt"), "{}", err(&output));
}

#[test]
fn a_run_on_a_model_of_the_hub_notes_name_and_sum_and_is_inspected_and_resumed() {
    let home = cache();
    let data = data();
    let train = |more: &[&str]| {
        let mut args = vec![
            "train",
            "--data-dir",
            data.to_str().unwrap(),
            "--name",
            "first",
            "--set",
            "method={ name = \"ncm\" }",
            "--set",
            "head=ncm",
            "--set",
            "stream.n_tasks=2",
            "--set",
            "stream.split={ increment = { init_cls = 3, increment = 3 } }",
        ];
        args.extend(more);
        sdlora(home.path(), &args)
    };
    let text = out(&train(&["--backbone", "hf:acme/tiny"]));
    let line = text
        .lines()
        .find(|line| line.starts_with("backbone "))
        .unwrap();
    assert!(
        line.contains("hf:acme/tiny") && line.contains("safetensors"),
        "{line}"
    );

    let plan = fs::read_to_string(home.path().join("runs/first/plan.toml")).unwrap();
    let sum = sdlora_fetch::sha256_of(&data.join(WEIGHTS)).unwrap();
    assert!(plan.contains("weights = \"hf:acme/tiny\""), "{plan}");
    assert!(plan.contains(&format!("sha256 = \"{sum}\"")), "{plan}");
    assert!(!plan.contains(home.path().to_str().unwrap()), "{plan}");

    let text = out(&sdlora(home.path(), &["inspect", "first"]));
    for part in [
        "ncm",
        "hf:acme/tiny",
        &sum,
        "finished: 2 tasks, 6 classes",
        "vit.safetensors",
    ] {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }

    // The name now stands for other weights: the run is not continued with them.
    let model = home
        .path()
        .join("hub/models--acme--tiny/snapshots")
        .join(COMMIT)
        .join("model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&model, bytes).unwrap();
    let output = train(&["--backbone", "hf:acme/tiny", "--resume"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("sha256"), "{}", err(&output));
}

fn golden(case: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdlora-testkit/golden/vit");
    root.join(case).to_str().unwrap().to_owned()
}

#[test]
fn heads_that_nothing_tells_are_asked_for_and_taken() {
    let home = cache();
    let file = golden("dino_pth/checkpoint.pth");
    let output = sdlora(home.path(), &["inspect", &file, "--summary"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("--heads"), "{}", err(&output));
    let args = ["inspect", &file, "--summary", "--heads", "2"];
    let told = out(&sdlora(home.path(), &args));
    assert!(told.contains("ViT of 2 blocks, width 32"), "{told}");
}

#[test]
fn what_is_no_backbone_is_listed_and_not_a_success() {
    let home = cache();
    let weights = data().join(WEIGHTS);
    let input = home.path().join("input.safetensors");
    let (weights, input) = (weights.to_str().unwrap(), input.to_str().unwrap());
    let image = golden("../transform/center_crop_0.png");
    let args = [
        "features",
        "--backbone",
        weights,
        "--input",
        &image,
        "--out",
        input,
    ];
    out(&sdlora(home.path(), &args));
    let output = sdlora(home.path(), &["inspect", input]);
    assert_eq!(output.status.code(), Some(1));
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        listed.contains("features") && listed.contains("[1, 128]"),
        "{listed}"
    );
    assert!(
        err(&output).contains("patch projection"),
        "{}",
        err(&output)
    );
}

#[test]
fn features_take_another_side_and_a_way_to_resize_positions() {
    let home = cache();
    let weights = data().join(WEIGHTS);
    let weights = weights.to_str().unwrap();
    let image = golden("../transform/center_crop_0.png");
    let features = |name: &str, more: &[&str]| {
        let mut args = vec![
            "features",
            "--backbone",
            weights,
            "--input",
            &image,
            "--layer",
            "0",
        ];
        args.extend(["--out", name]);
        args.extend(more);
        out(&sdlora(home.path(), &args));
        let file = sdlora_train::TensorFile::read(&home.path().join(name)).unwrap();
        (
            file.tensors["block.0"].shape[1],
            file.tensors["features"].values.clone(),
        )
    };
    let (n_tokens, own) = features("own.safetensors", &[]);
    assert_eq!(n_tokens, 16);
    let (n_tokens, large) = features("large.safetensors", &["--side", "56"]);
    assert_eq!(n_tokens, 64);
    let (_, bicubic) = features("b.safetensors", &["--side", "56", "--positions", "bicubic"]);
    assert!(own != large && large != bicubic);
    let args = [
        "features",
        "--backbone",
        weights,
        "--input",
        &image,
        "--out",
        "x",
    ];
    let wrong = [&args[..], &["--positions", "linear"]].concat();
    let output = sdlora(home.path(), &wrong);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("antialiased"), "{}", err(&output));
}

#[test]
fn preprocessing_comes_with_the_checkpoint_below_keys_that_are_set() {
    let home = cache();
    let data = data();
    let backbone = golden("hf_vit");
    let args = [
        "train",
        "--data-dir",
        data.to_str().unwrap(),
        "--backbone",
        &backbone,
        "--runs",
        "runs",
        "--name",
        "hf",
        "--quiet",
        "--set",
        "n_epochs=1",
        "--set",
        "stream.n_tasks=1",
        "--set",
        "stream.split={increment={init_cls=2,increment=2}}",
        "--set",
        "method.rank=2",
        "--set",
        "transform.normalise.mean=[0.25]",
    ];
    out(&sdlora(home.path(), &args));
    let plan = fs::read_to_string(home.path().join("runs/hf/plan.toml")).unwrap();
    // Of preprocessor_config.json: 32 pixels, deviation 0.25; mean 0.5 is replaced.
    for part in [
        "side = 32",
        "std = [0.25, 0.25, 0.25]",
        "mean = [0.25]",
        "center_crop = 32",
    ] {
        assert!(plan.contains(part), "{part} is missing:\n{plan}");
    }
}
