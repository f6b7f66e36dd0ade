//! Images of one's own, from `train` to `predict`.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{err, out, sdlora};
use sdlora_image::encode_png;

/// A folder of two classes, one dark and one bright.
fn images(home: &Path) {
    for (class, base) in [("dark", 10u8), ("bright", 200)] {
        let folder = home.join("mine").join(class);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..5u8 {
            let data: Vec<u8> = (0..28 * 28 * 3)
                .map(|at| base + (at % 40) as u8 + i)
                .collect();
            fs::write(
                folder.join(format!("{i}.png")),
                encode_png(28, 28, &data).unwrap(),
            )
            .unwrap();
        }
    }
}

fn train(home: &Path, more: &[&str]) -> std::process::Output {
    let data = common::data();
    let root = format!("dataset_options={{ root = {:?} }}", home.join("mine"));
    let settings = [
        "dataset=folder",
        root.as_str(),
        "method={ name = \"ncm\" }",
        "stream={ split = \"joint\" }",
    ];
    let mut args = vec!["train", "--name", "r", "--data-dir", data.to_str().unwrap()];
    settings
        .iter()
        .for_each(|setting| args.extend(["--set", *setting]));
    sdlora(home, &[&args[..], more].concat())
}

#[test]
fn training_says_which_images_are_not_read() {
    let home = tempfile::tempdir().unwrap();
    images(home.path());
    fs::write(home.path().join("mine/dark/1.HEIC"), "x").unwrap();
    fs::write(home.path().join("mine/dark/2.gif"), "x").unwrap();
    let said = out(&train(home.path(), &[]));
    let note = "note: left out 2 images in formats that are not read: 1 .gif, 1 .heic";
    assert!(said.contains(note), "{said}");
    fs::remove_dir_all(home.path().join("runs")).unwrap();
    let quiet = train(home.path(), &["--quiet"]);
    assert!(err(&quiet).contains(note), "{}", err(&quiet));
}

#[test]
fn an_image_that_cannot_be_read_costs_its_own_line_only() {
    let home = tempfile::tempdir().unwrap();
    images(home.path());
    out(&train(home.path(), &["--quiet"]));
    let whole = fs::read(home.path().join("mine/dark/0.png")).unwrap();
    fs::write(home.path().join("half.png"), &whole[..whole.len() / 2]).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(home.path().join("socket")).unwrap();
    let images = [
        "mine/dark/0.png",
        "half.png",
        "none.png",
        "/dev/zero",
        "socket",
        "mine/bright/0.png",
    ];
    let args = [&["predict", "--run", "runs/r"], &images[..]].concat();
    let output = sdlora(home.path(), &args);
    drop(listener);
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, images);
    let classes: Vec<&str> = lines.iter().map(|(_, class)| *class).collect();
    assert_eq!((classes[0], classes[5]), ("dark", "bright"), "{text}");
    for (class, part) in classes[1..5]
        .iter()
        .zip(["half.png", "none.png", "a device", "a socket"])
    {
        assert!(
            class.starts_with("error: ") && class.contains(part),
            "{class}"
        );
    }
    assert!(err(&output).contains("4 of 6 images"), "{}", err(&output));
    let good = sdlora(
        home.path(),
        &["predict", "--run", "runs/r", "mine/dark/1.png"],
    );
    assert_eq!(out(&good), "mine/dark/1.png\tdark\n");
}

#[test]
fn verify_says_which_images_are_in_both_halves() {
    let home = tempfile::tempdir().unwrap();
    images(home.path());
    let folder = home.path().join("mine");
    for (half, i) in [("train", 0), ("train", 1), ("test", 1), ("test", 2)] {
        let class = home.path().join("folder").join(half).join("dark");
        fs::create_dir_all(&class).unwrap();
        fs::copy(
            folder.join(format!("dark/{i}.png")),
            class.join(format!("{half}{i}.png")),
        )
        .unwrap();
    }
    let args = ["data", "verify", "folder", "--images", "--data-dir", "."];
    let said = out(&sdlora(home.path(), &args));
    assert!(said.contains("1 test images are the same"), "{said}");
    assert!(
        said.contains("`train/dark/train1.png` and `test/dark/test1.png`"),
        "{said}"
    );
}
