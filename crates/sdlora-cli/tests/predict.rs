//! `sdlora predict` and `sdlora evaluate`, as people and scripts use them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{err, out, sdlora};
use sdlora_image::encode_png;
use serde_json::Value;

const N_IMAGES: u8 = 8;

/// Levels of the pixels of an image of 28 x 28: those of a class differ by `i` alone.
fn picture(class: &str, i: u8) -> Vec<u8> {
    let level = |at: usize| -> u8 {
        let (x, y) = (at % 28, at / 28);
        match class {
            "dark" => 10 + (at % 40) as u8 + i,
            "bright" => 200 + (at % 40) as u8 + i,
            // Of no class that is learned.
            _ if (x / 2 + y / 2 + usize::from(i)).is_multiple_of(2) => 255,
            _ => 0,
        }
    };
    let levels: Vec<u8> = (0..28 * 28).flat_map(|at| [level(at); 3]).collect();
    encode_png(28, 28, &levels).unwrap()
}

fn write(path: &Path, class: &str, i: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, picture(class, i)).unwrap();
}

/// A home with the folder `mine` of two classes, and a run `r` that has learned them.
fn home(more: &[&str]) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for class in ["dark", "bright"] {
        for i in 0..N_IMAGES {
            write(&home.path().join(format!("mine/{class}/{i}.png")), class, i);
        }
    }
    let data = common::data();
    let root = format!(
        "dataset_options={{ root = {:?} }}",
        home.path().join("mine")
    );
    let settings = [
        "dataset=folder",
        root.as_str(),
        "method={ name = \"ncm\" }",
        "stream={ split = \"joint\" }",
    ];
    let mut args = vec![
        "train",
        "--name",
        "r",
        "--quiet",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    for setting in settings.iter().chain(more) {
        args.extend(["--set", setting]);
    }
    out(&sdlora(home.path(), &args));
    home
}

const CALIBRATED: &[&str] = &["calibrate_on=2"];

fn predict(home: &Path, args: &[&str]) -> Output {
    let command = ["predict", "--run", "runs/r"];
    sdlora(home, &[&command[..], args].concat())
}

/// `predict` with a list on standard input.
fn predict_list(home: &Path, args: &[&str], list: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdlora"))
        .args(["predict", "--run", "runs/r"])
        .args(args)
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(list).unwrap();
    child.wait_with_output().unwrap()
}

fn values(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A distance above that of every image of `mine`, and below that of every image of `strange`, which it makes.
fn between(home: &Path) -> f64 {
    write(&home.join("strange/0.png"), "chequers", 0);
    write(&home.join("strange/1.png"), "chequers", 1);
    let distances = |folder: &str| -> Vec<f64> {
        let args = ["--reject", "--format", "jsonl", folder];
        let all = values(&out(&predict(home, &args)));
        let distances = all.iter().map(|value| value["distance"].as_f64().unwrap());
        distances.collect()
    };
    let known = distances("mine").into_iter().fold(0.0, f64::max);
    let strange = distances("strange")
        .into_iter()
        .fold(f64::INFINITY, f64::min);
    assert!(known < strange, "{known} {strange}");
    0.5 * (known + strange)
}

fn refused(found: &Output, part: &str) {
    assert_eq!(found.status.code(), Some(2), "{}", err(found));
    assert!(err(found).contains(part), "{part}: {}", err(found));
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

/// The parts of a tar, uncompressed: a header of 512 bytes and the bytes of every file, rounded up.
fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, bytes) in files {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

#[test]
fn whatever_names_images_they_come_in_order_with_their_classes() {
    let home = home(&[]);
    let home = home.path();
    let members = [
        ("x/1.png", picture("bright", 1)),
        ("x/0.png", picture("dark", 3)),
    ];
    fs::write(home.join("some.tar"), tar(&members)).unwrap();
    fs::write(home.join("mine/dark/notes.txt"), "x").unwrap();
    let folder = |class: &str| -> Vec<String> {
        let names = (0..N_IMAGES).map(|i| format!("mine/{class}/{i}.png\t{class}"));
        names.collect()
    };
    let all = [folder("bright"), folder("dark")].concat();
    let lines =
        |output: &Output| -> Vec<String> { out(output).lines().map(str::to_owned).collect() };
    // More images than a batch: each folder several times.
    let many = predict(home, &["mine", "mine", "mine", "mine/dark/1.png"]);
    let expected = [all.clone(), all.clone(), all.clone(), vec![all[9].clone()]].concat();
    assert_eq!(lines(&many), expected);
    assert!(err(&many).contains("left out 3 files"), "{}", err(&many));
    let of_tar = ["some.tar/x/0.png\tdark", "some.tar/x/1.png\tbright"];
    assert_eq!(lines(&predict(home, &["some.tar", "--quiet"])), of_tar);
    let pattern = predict(home, &["mine/*/3.png"]);
    assert_eq!(lines(&pattern), [&all[3][..], &all[11]]);
    for list in [
        &b"mine/dark/2.png\r\n\nsome.tar\nmine/bright\n"[..],
        b"mine/dark/2.png\0some.tar\0mine/bright",
    ] {
        let found = predict_list(home, &["-", "mine/dark/0.png"], list);
        let mut expected = vec![all[10].as_str(), of_tar[0], of_tar[1]];
        expected.extend(all[..8].iter().map(String::as_str));
        expected.push(&all[8]);
        assert_eq!(lines(&found), expected);
    }
}

#[test]
fn what_cannot_be_read_is_a_line_and_what_cannot_be_meant_is_refused() {
    let home = home(&[]);
    let home = home.path();
    fs::create_dir(home.join("empty")).unwrap();
    fs::write(home.join("broken.zip"), b"PK\x03\x04 and no more").unwrap();
    let twice = [("a.png", picture("dark", 1)), ("A.png", picture("dark", 1))];
    fs::write(home.join("twice.tar"), tar(&twice)).unwrap();
    fs::write(home.join("cut.png"), &picture("dark", 0)[..60]).unwrap();
    let names = [
        "empty",
        "broken.zip",
        "twice.tar",
        "cut.png",
        "none*.png",
        "mine/dark/0.png",
    ];
    let found = predict(home, &names);
    assert_eq!(found.status.code(), Some(1), "{}", err(&found));
    assert!(err(&found).contains("5 of 6 images"), "{}", err(&found));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    for ((line, name), part) in lines.iter().zip(names).zip([
        "holds no file",
        "broken.zip",
        "upper and lower case",
        "cut.png",
        "matches no file",
    ]) {
        let problem = line.strip_prefix(&format!("{name}\terror: ")).unwrap();
        assert!(problem.contains(part), "{problem}");
    }
    assert_eq!(lines[5], "mine/dark/0.png\tdark");

    refused(
        &predict_list(home, &["-"], b"\n \n".trim_ascii()),
        "names no image",
    );
    refused(&predict(home, &["-", "-"]), "given twice");
    refused(
        &predict(home, &["mine", "--top", "0"]),
        "whole number from 1",
    );
    refused(
        &predict(home, &["mine", "--top", "3"]),
        "more classes than the 2",
    );
    refused(&predict(home, &["mine", "--threshold", "1"]), "--reject");
    for number in ["NaN", "inf", "-1", "x"] {
        let threshold = format!("--threshold={number}");
        let found = predict(home, &["mine", "--reject", &threshold]);
        refused(&found, "number of at least 0");
    }
    refused(&predict(home, &["mine", "--reject"]), "calibrate_on=3");
    refused(
        &predict(home, &["mine/dark/0.png", "--out", "mine/dark/0.png"]),
        "what the command reads",
    );
    refused(
        &predict(home, &["mine", "--out", "mine/bright/1.png"]),
        "what the command reads",
    );
    refused(
        &predict(home, &["mine", "--out", "runs/r/model/vit.safetensors"]),
        "what the command reads",
    );
    refused(
        &predict(home, &["mine", "--out", "none/x.csv"]),
        "there is no folder none",
    );
    refused(&predict(home, &["mine", "--out", "mine"]), "it is a folder");
}

#[test]
fn every_form_says_the_same_and_breaks_no_line() {
    let home = home(CALIBRATED);
    let home = home.path();
    let evil = "mine/e,v\"i\nl\u{1b}[2J.png";
    fs::write(home.join(evil), picture("bright", 4)).unwrap();
    fs::write(home.join("mine/no.png"), "x").unwrap();
    let with = |args: &[&str]| {
        let found = predict(home, &[&["--top", "2", "mine"][..], args].concat());
        assert_eq!(found.status.code(), Some(1), "{}", err(&found));
        assert!(!err(&found).contains("not calibrated"), "{}", err(&found));
        String::from_utf8(found.stdout).unwrap()
    };
    let n = 2 * usize::from(N_IMAGES) + 2;
    let jsonl = with(&["--format", "jsonl"]);
    let all = values(&jsonl);
    assert_eq!(all.len(), n);
    let array: Value = serde_json::from_str(&with(&["--format", "json"])).unwrap();
    assert_eq!(array.as_array().unwrap(), &all);
    let csv = with(&["--format", "csv"]);
    assert_eq!(csv.lines().count(), n + 1, "{csv}");
    let text = with(&[]);
    assert_eq!(text.lines().count(), n, "{text}");
    for printed in [&jsonl, &csv, &text] {
        assert!(
            printed
                .chars()
                .all(|c| !c.is_control() || c == '\n' || c == '\t')
        );
    }
    let evil = all.iter().find(|value| value["path"] == evil).unwrap();
    assert_eq!(evil["class"], "bright");
    assert!(
        csv.contains("\"mine/e,v\"\"i\\nl\\u{1b}[2J.png\",bright,"),
        "{csv}"
    );
    for value in all.iter().filter(|value| value["path"] != "mine/no.png") {
        let (first, second) = (&value["top"][0], &value["top"][1]);
        let p = |share: &Value| share["probability"].as_f64().unwrap();
        assert!((p(first) + p(second) - 1.0).abs() < 1e-9, "{value}");
        assert!(p(first) > 0.5 && value["probability"] == first["probability"]);
        assert_eq!(value["class"], first["class"]);
        assert_eq!(value["calibrated"], true);
        let line = format!("{}\t{:.4}\t", value["class"].as_str().unwrap(), p(first));
        assert!(text.contains(&line), "{line}");
    }
    let unreadable = all
        .iter()
        .find(|value| value["path"] == "mine/no.png")
        .unwrap();
    assert!(unreadable["error"].as_str().unwrap().contains("no.png"));
    assert!(unreadable.get("class").is_none());

    // The file is what would have been printed, also where an image has failed.
    assert_eq!(with(&["--format", "csv", "--out", "a.csv"]), "");
    assert_eq!(fs::read_to_string(home.join("a.csv")).unwrap(), csv);
    let left = fs::read_dir(home).unwrap().flatten();
    assert!(
        left.map(|e| e.file_name())
            .all(|name| !name.to_string_lossy().starts_with(".tmp"))
    );
}

#[test]
fn what_is_no_class_is_refused_with_the_reason() {
    let home = home(CALIBRATED);
    let home = home.path();
    let between = between(home);
    let json = |more: &[&str]| {
        let args = [
            &["--reject", "--format", "jsonl", "mine", "strange"][..],
            more,
        ]
        .concat();
        values(&out(&predict(home, &args)))
    };
    let all = json(&[]);
    let n = 2 * usize::from(N_IMAGES);
    // Those that were held out do not exceed the threshold, but for rounding.
    let kept: Vec<&Value> = all[..n]
        .iter()
        .filter(|value| value["refused"] == false)
        .collect();
    assert!(kept.len() >= 3, "{} of {n}", kept.len());
    for value in &all[n..] {
        assert_eq!(
            (&value["refused"], &value["class"]),
            (&true.into(), &Value::Null)
        );
        let (distance, threshold) = (value["distance"].as_f64(), value["threshold"].as_f64());
        assert!(distance > threshold && threshold > Some(0.0), "{value}");
        let reason = value["reason"].as_str().unwrap();
        let part = format!(
            "is {:.4}, above {:.4}, which 95 %",
            distance.unwrap(),
            threshold.unwrap()
        );
        assert!(reason.contains(&part), "{reason}");
    }
    let path = kept[0]["path"].as_str().unwrap();
    let text = out(&predict(home, &["--reject", "strange", path]));
    let class = kept[0]["class"].as_str().unwrap();
    let expected =
        format!("strange/0.png\tnone of these\nstrange/1.png\tnone of these\n{path}\t{class}\n");
    assert_eq!(text, expected);
    // A threshold that the user gives.
    let own = json(&["--threshold", &between.to_string()]);
    for (i, value) in own.iter().enumerate() {
        assert_eq!(
            (&value["refused"], &value["threshold"]),
            (&(i >= n).into(), &between.into())
        );
    }
    let is_refused = |value: &Value| value["refused"] == true;
    assert!(json(&["--threshold", "0"]).iter().all(is_refused));
    let none = json(&["--threshold", "1e30"]);
    assert!(!none.iter().any(is_refused) && none[0].get("reason").is_none());
    assert!(
        json(&["--threshold", "0"])[0]["reason"]
            .as_str()
            .unwrap()
            .contains("--threshold")
    );
}

#[test]
fn a_model_folder_is_enough_and_one_of_an_earlier_version_is_told() {
    let home = home(CALIBRATED);
    let home = home.path();
    let args = ["--top", "2", "--format", "jsonl", "mine"];
    let expected = out(&predict(home, &args));
    let file = "mine.safetensors";
    let export = ["export", "--run", "runs/r", "--format", "bundle", "--out"];
    out(&sdlora(home, &[&export[..], &[file]].concat()));
    fs::create_dir(home.join("elsewhere")).unwrap();
    fs::rename(home.join("runs/r/model"), home.join("elsewhere/model")).unwrap();
    for option in ["--run", "--model"] {
        for folder in ["elsewhere/model", "elsewhere"] {
            let found = sdlora(home, &[&["predict", option, folder][..], &args].concat());
            assert_eq!(out(&found), expected);
        }
        // One file with all of it, calibration included.
        let found = sdlora(home, &[&["predict", option, file][..], &args].concat());
        assert_eq!(out(&found), expected);
    }
    let alone = ["predict", "--model", file, "--out", file, "mine"];
    refused(&sdlora(home, &alone), "is what the command reads");
    refused(
        &sdlora(home, &["predict", "--run", "runs/r", "mine"]),
        "has no model",
    );

    // As an earlier version left it.
    for name in ["predict.json", "novelty.safetensors", "SHA256SUMS"] {
        fs::remove_file(home.join("elsewhere/model").join(name)).unwrap();
    }
    let alone = sdlora(home, &["predict", "--run", "elsewhere/model", "mine"]);
    refused(&alone, "give the folder of its run");
    fs::rename(home.join("elsewhere/model"), home.join("runs/r/model")).unwrap();
    for folder in ["runs/r", "runs/r/model"] {
        let found = sdlora(home, &[&["predict", "--run", folder][..], &args].concat());
        let classes = |text: &str| -> Vec<Value> {
            values(text)
                .iter()
                .map(|value| value["class"].clone())
                .collect()
        };
        assert_eq!(classes(&out(&found)), classes(&expected));
        assert!(
            values(&out(&found))
                .iter()
                .all(|value| value["calibrated"] == false)
        );
        assert!(err(&found).contains("not calibrated"), "{}", err(&found));
    }
    refused(&predict(home, &["--reject", "mine"]), "calibrate_on=3");
}

#[test]
fn holding_images_out_changes_the_run_and_nothing_else_does() {
    // Without the setting a plan says nothing of it.
    let plain = home(&[]);
    let plan = fs::read_to_string(plain.path().join("runs/r/plan.toml")).unwrap();
    assert!(!plan.contains("calibrate_on"), "{plan}");
    let model = plain.path().join("runs/r/model");
    assert!(model.join("predict.json").is_file() && !model.join("novelty.safetensors").exists());
    let held = home(CALIBRATED);
    let text = fs::read_to_string(held.path().join("runs/r/model/predict.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["calibrated"]["n_images"], 4);
    // As many as there are, and the message names the setting.
    let data = common::data();
    let root = format!(
        "dataset_options={{ root = {:?} }}",
        held.path().join("mine")
    );
    let mut args = vec![
        "train",
        "--name",
        "x",
        "--quiet",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    for setting in [
        "dataset=folder",
        &root,
        "stream={ split = \"joint\" }",
        "calibrate_on=99",
    ] {
        args.extend(["--set", setting]);
    }
    refused(&sdlora(held.path(), &args), "calibrate_on");
}

#[test]
fn images_go_to_the_folders_of_their_classes_and_none_is_lost() {
    let home = home(CALIBRATED);
    let home = home.path();
    for (name, class, i) in [
        ("in/a/1.png", "dark", 1),
        ("in/b/1.png", "dark", 2),
        ("in/b/2.png", "bright", 2),
        ("in/c/2.png", "chequers", 0),
    ] {
        write(&home.join(name), class, i);
    }
    fs::write(home.join("in/broken.png"), "x").unwrap();
    fs::create_dir_all(home.join("sorted/dark")).unwrap();
    fs::write(home.join("sorted/dark/1.png"), "was here").unwrap();
    let read = |name: &str| fs::read(home.join(name)).ok();

    // Refused before anything moves.
    refused(
        &predict(home, &["in", "--move-to", "in/sorted"]),
        "choose a folder outside",
    );
    refused(
        &predict(home, &["in", "--move-to", "in"]),
        "choose a folder outside",
    );
    refused(
        &predict(home, &["in", "in/a/1.png", "--move-to", "out"]),
        "is named twice",
    );
    refused(
        &predict(home, &["in", "--move-to", "in/a/1.png"]),
        "is a file",
    );
    refused(
        &predict(home, &["in", "--move-to", "a", "--copy-to", "b"]),
        "cannot be used with",
    );
    fs::write(home.join("some.tar"), tar(&[("1.png", picture("dark", 1))])).unwrap();
    refused(
        &predict(home, &["some.tar", "--copy-to", "out"]),
        "is an archive",
    );
    std::os::unix::fs::symlink("mine/dark/0.png", home.join("link.png")).unwrap();
    refused(
        &predict(home, &["link.png", "--move-to", "out"]),
        "is a link",
    );
    assert!(!home.join("out").exists() && read("in/a/1.png").is_some());

    let between = format!("--threshold={}", between(home));
    let copied = predict(home, &["in", "--reject", &between, "--copy-to", "copies"]);
    assert_eq!(copied.status.code(), Some(1), "{}", err(&copied));
    assert_eq!(
        read("copies/none-of-these/2.png"),
        Some(picture("chequers", 0))
    );
    assert_eq!(read("copies/dark/1-2.png"), Some(picture("dark", 2)));
    assert_eq!(read("in/b/1.png"), Some(picture("dark", 2)));

    let moved = predict(home, &["in", "--reject", &between, "--move-to", "sorted"]);
    assert_eq!(moved.status.code(), Some(1), "{}", err(&moved));
    assert!(
        err(&moved).contains("moved 2 to sorted/dark"),
        "{}",
        err(&moved)
    );
    assert!(
        err(&moved).contains("moved 1 to sorted/none-of-these"),
        "{}",
        err(&moved)
    );
    assert_eq!(read("sorted/dark/1.png"), Some(b"was here".to_vec()));
    assert_eq!(read("sorted/dark/1-2.png"), Some(picture("dark", 1)));
    assert_eq!(read("sorted/dark/1-3.png"), Some(picture("dark", 2)));
    assert_eq!(read("sorted/bright/2.png"), Some(picture("bright", 2)));
    assert_eq!(
        read("sorted/none-of-these/2.png"),
        Some(picture("chequers", 0))
    );
    assert_eq!((read("in/a/1.png"), read("in/c/2.png")), (None, None));
    assert_eq!(read("in/broken.png"), Some(b"x".to_vec()));
}

#[test]
fn a_labelled_folder_is_measured_with_its_strangers() {
    let home = home(CALIBRATED);
    let home = home.path();
    write(&home.join("test/dark/0.png"), "dark", 0);
    write(&home.join("test/dark/1.png"), "bright", 1);
    write(&home.join("test/dark/2.png"), "dark", 2);
    write(&home.join("test/bright/0.png"), "bright", 3);
    write(&home.join("test/chequers/0.png"), "chequers", 0);
    write(&home.join("test/chequers/1.png"), "chequers", 1);
    let evaluate =
        |args: &[&str]| sdlora(home, &[&["evaluate", "--run", "runs/r"][..], args].concat());
    let json: Value = serde_json::from_str(&out(&evaluate(&["test", "--format", "json"]))).unwrap();
    // Three of four are right; of the classes, two thirds and all.
    assert_eq!(
        (&json["n_images"], &json["accuracy"]),
        (&4.into(), &0.75.into())
    );
    let mean = json["class_accuracy"].as_f64().unwrap();
    assert!((mean - 5.0 / 6.0).abs() < 1e-12, "{mean}");
    let dark = json["classes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["class"] == "dark")
        .unwrap();
    assert_eq!(dark["taken_for"][0]["class"], "bright");
    assert_eq!(dark["taken_for"][0]["n_images"], 1);
    assert_eq!(json["strangers"][0]["class"], "chequers");
    assert_eq!(json["rejection"]["refused_strangers"], 1.0);
    let scores = json["rejection"]["scores"].as_array().unwrap();
    let names: Vec<_> = scores
        .iter()
        .map(|score| score["score"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["distance", "energy", "probability"]);
    assert_eq!(scores[0]["auroc"], 1.0);
    assert_eq!(json["calibrated"], true);

    let table = out(&evaluate(&["test", "--out", "found"]));
    for part in [
        "75.00 %",
        "83.33 %",
        "2 images of 1 class",
        "AUROC by distance",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let read = |name: &str| fs::read_to_string(home.join("found").join(name)).unwrap();
    let written: Value = serde_json::from_str(&read("evaluation.json")).unwrap();
    assert_eq!(written, json);
    assert!(
        read("confusion.csv").contains("dark,bright,1\n"),
        "{}",
        read("confusion.csv")
    );
    assert!(
        read("classes.csv").contains("bright,1,1,\n"),
        "{}",
        read("classes.csv")
    );
    assert!(
        read("confusion.svg").starts_with("<svg") && read("calibration.svg").starts_with("<svg")
    );

    // Unreadable images are named and left out; folders that say nothing are refused.
    fs::write(home.join("test/dark/3.png"), "x").unwrap();
    let found = evaluate(&["test"]);
    assert_eq!(found.status.code(), Some(1));
    assert!(
        err(&found).contains("dark/3.png") && err(&found).contains("1 of 7 images"),
        "{}",
        err(&found)
    );
    assert!(String::from_utf8_lossy(&found.stdout).contains("75.00 %"));
    refused(&evaluate(&["test/chequers"]), "is called as a class");
    refused(&evaluate(&["none"]), "there is no none");
    refused(
        &evaluate(&["test", "--out", "runs/r/plan.toml"]),
        "is a file",
    );
    refused(&evaluate(&["test", "--bins", "0"]), "--bins");
}

#[test]
fn without_a_folder_the_test_half_of_the_run_is_measured() {
    let home = tempfile::tempdir().unwrap();
    let mut args = common::toy_run(home.path(), "toy");
    args.extend(["--set", "calibrate_on=3", "--quiet"].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    out(&sdlora(home.path(), &args));
    let data = common::data();
    let found = [
        "evaluate",
        "--run",
        "runs/toy",
        "--format",
        "json",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let json: Value = serde_json::from_str(&out(&sdlora(home.path(), &found))).unwrap();
    let metrics = fs::read_to_string(home.path().join("runs/toy/metrics.json")).unwrap();
    let metrics: Value = serde_json::from_str(&metrics).unwrap();
    let expected = metrics["summary"]["weighted_final_accuracy"]
        .as_f64()
        .unwrap();
    assert_eq!(json["n_images"], 30);
    assert!(
        (json["accuracy"].as_f64().unwrap() - expected).abs() < 1e-12,
        "{expected}"
    );
    // Of 659 characters six are learned.
    assert_eq!(json["strangers"].as_array().unwrap().len(), 653);
    let alone = ["evaluate", "--run", "runs/toy/model"];
    refused(
        &sdlora(home.path(), &alone),
        "give the folder of a run, or a folder of images",
    );
}
