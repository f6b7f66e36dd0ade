//! Mistakes of the user end with 2 and leave every file as it was.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{data, err, out, sdlora, toy_run};

/// Every file below a folder with its bytes.
fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(snapshot(&path));
            all.insert(path, Vec::new());
        } else {
            all.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    all
}

#[test]
fn mistakes_end_with_2_and_change_nothing() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let shipped = data().join("omniglot/vit_omniglot_patch7_28.safetensors");
    fs::copy(&shipped, at("vit.safetensors")).unwrap();
    let image =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdlora-image/tests/images/palette.png");
    fs::create_dir(at("images")).unwrap();
    fs::copy(&image, at("images/a.png")).unwrap();
    let mut recipe = out(&sdlora(home.path(), &["presets", "show", "omniglot-10x20"]));
    fs::write(at("config.toml"), &recipe).unwrap();
    recipe = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("presets/pretrain-omniglot.toml"),
    )
    .unwrap();
    let no_depth: String = recipe
        .lines()
        .map(|line| match line.starts_with("depth") {
            true => "depth = 0\n".to_owned(),
            false => format!("{line}\n"),
        })
        .collect();
    assert_ne!(no_depth, recipe);
    fs::write(at("no-depth.toml"), no_depth).unwrap();
    fs::write(at("recipe.toml"), &recipe).unwrap();
    let suite = "name = \"own\"\nbase = \"omniglot-10x20\"\n[[entry]]\nlabel = \"ncm\"\nset = [\"method={ name = \\\"ncm\\\" }\"]\n";
    fs::write(at("suite.toml"), suite).unwrap();

    let data = data();
    let data_dir = data.to_str().unwrap();
    let before = snapshot(home.path());
    let features = ["features", "--backbone", "vit.safetensors", "--input"];
    let compare = ["compare", "--suite", "suite.toml", "--data-dir", data_dir];
    let with = |base: &[&'static str], more: &[&'static str]| -> Vec<String> {
        base.iter().chain(more).map(|&arg| arg.to_owned()).collect()
    };
    let of_compare = |more: &[&str]| -> Vec<String> {
        compare
            .iter()
            .chain(more)
            .map(|&arg| arg.to_owned())
            .collect()
    };
    for (args, part) in [
        (
            with(&features, &["images", "--out", "f", "--layer", "99"]),
            "99",
        ),
        (
            with(&features, &["images", "--out", "images/a.png"]),
            "is what the command reads",
        ),
        (
            with(
                &features,
                &["images/a.png", "--out", "./images/../images/a.png"],
            ),
            "reads",
        ),
        (
            with(&features, &["images", "--out", "vit.safetensors"]),
            "reads",
        ),
        (
            with(&features, &["images", "--out", "images"]),
            "is what the command reads",
        ),
        (
            with(&features, &["nothing.png", "--out", "f"]),
            "nothing.png",
        ),
        (
            with(
                &features,
                &["images", "--out", "f", "--backbone-preset", "nosuch"],
            ),
            "nosuch",
        ),
        (of_compare(&["--seeds", "1,2,1"]), "seed 1 stands twice"),
        (of_compare(&["--only", "nosuch"]), "choose of ncm"),
        (
            of_compare(&["--out", "no/tables.md"]),
            "there is no folder no",
        ),
        (
            of_compare(&["--records", "no/records"]),
            "there is no folder no",
        ),
        (
            with(&["pretrain", "--out", "no/vit.safetensors"], &[]),
            "no folder no",
        ),
        (
            with(&features, &["images", "--out", "no/f"]),
            "no folder no",
        ),
        (
            of_compare(&["--out", "suite.toml"]),
            "is what the command reads",
        ),
        (with(&["pretrain", "--epochs", "0"], &[]), "--epochs"),
        (
            with(&["pretrain", "--config", "no-depth.toml"], &[]),
            "depth",
        ),
        (
            with(
                &[
                    "pretrain",
                    "--config",
                    "recipe.toml",
                    "--out",
                    "recipe.toml",
                ],
                &[],
            ),
            "is what the command reads",
        ),
        (with(&["pretrain", "--out", "card.md"], &[]), ".safetensors"),
        (
            with(&["predict", "--run", "images", "images/a.png"], &[]),
            "has no model",
        ),
        (
            with(&["train", "--config", "images/a.png"], &[]),
            "is no UTF-8 text",
        ),
        (
            with(&["train", "--config", "nothing.toml"], &[]),
            "nothing.toml",
        ),
        (
            with(
                &["export", "--run", "images", "--format", "hf", "--out", "o"],
                &[],
            ),
            "images",
        ),
        (
            with(
                &[
                    "export", "--run", "images", "--format", "tflite", "--out", "o",
                ],
                &[],
            ),
            "onnx",
        ),
        (with(&["analyse", "images"], &[]), "is no run"),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let found = sdlora(home.path(), &args);
        assert_eq!(found.status.code(), Some(2), "{args:?}: {}", err(&found));
        assert!(err(&found).contains(part), "{args:?}: {}", err(&found));
    }
    assert!(snapshot(home.path()) == before, "something was written");
}

#[test]
fn an_export_replaces_a_whole_folder_or_nothing() {
    let home = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| sdlora(home.path(), args);
    let args = toy_run(home.path(), "one");
    out(&run(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    let data = data();
    let export = |format: &str, to: &str, force: bool| {
        let mut args = vec![
            "export", "--run", "runs/one", "--format", format, "--out", to,
        ];
        args.extend(["--data-dir", data.to_str().unwrap()]);
        args.extend(force.then_some("--force"));
        run(&args)
    };
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(home.path().join(folder)).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let before = snapshot(&home.path().join("runs"));

    // The backbone has no class token, which the format needs: nothing is left behind.
    let refused = export("hf", "new/folder", false);
    assert_eq!(refused.status.code(), Some(2), "{}", err(&refused));
    assert!(err(&refused).contains("new/folder"), "{}", err(&refused));
    assert!(!home.path().join("new").exists());

    out(&export("safetensors", "out", false));
    assert!(names("out").contains(&"adapter.json".to_owned()));
    assert_eq!(export("timm", "out", false).status.code(), Some(2));
    assert!(names("out").contains(&"adapter.json".to_owned()));
    out(&export("timm", "out", true));
    let of_timm = ["README.md", "config.json", "model.safetensors"];
    assert_eq!(names("out"), of_timm);
    assert_eq!(names("."), ["out", "runs"]);
    // An empty folder is no obstacle.
    fs::create_dir(home.path().join("empty")).unwrap();
    out(&export("timm", "empty", false));
    assert_eq!(names("empty"), of_timm);

    // With `--force` neither the run nor other files are replaced.
    fs::write(home.path().join("empty/thesis.txt"), "years").unwrap();
    for (to, part) in [
        ("runs/one/model", "read from there"),
        ("runs/one", "read from there"),
        ("runs", "read from there"),
        ("runs/one/model/vit.safetensors", "read from there"),
        (".", "read from there"),
        ("empty", "thesis.txt"),
    ] {
        let refused = export("timm", to, true);
        assert_eq!(refused.status.code(), Some(2), "{to}: {}", err(&refused));
        assert!(err(&refused).contains(part), "{to}: {}", err(&refused));
    }
    assert!(
        snapshot(&home.path().join("runs")) == before,
        "the run was changed"
    );
}
