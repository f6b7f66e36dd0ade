//! The story of somebody with folders: three folders learned in three processes, the earlier ones deleted, a kill in
//! between, more images of a class, a step back, and the model used by every command that takes one.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{data, err, out, sdlora};
use sdlora_data::{Dataset, Options, Split, datasets};
use sdlora_image::encode_png;
use serde_json::Value;

/// A process that has not begun by then hangs.
const LONGEST: Duration = Duration::from_secs(120);

/// The shipped characters.
struct Characters {
    set: Box<dyn Dataset>,
    /// Of every class, the training and then the test images.
    of_class: BTreeMap<usize, Vec<(Split, usize)>>,
}

impl Characters {
    fn open() -> Self {
        let set = datasets::open("omniglot-evaluation", &data(), &Options::none()).unwrap();
        let mut of_class: BTreeMap<usize, Vec<(Split, usize)>> = BTreeMap::new();
        for split in [Split::Train, Split::Test] {
            for (idx, sample) in set.samples(split).iter().enumerate() {
                of_class
                    .entry(sample.class_id)
                    .or_default()
                    .push((split, idx));
            }
        }
        Self { set, of_class }
    }

    /// Writes some images of a class as PNG files and gives their paths.
    fn write(&self, class: usize, images: std::ops::Range<usize>, folder: &Path) -> Vec<PathBuf> {
        fs::create_dir_all(folder).unwrap();
        let of_class = &self.of_class[&class][images];
        let paths = of_class.iter().map(|&(split, idx)| {
            let image = self.set.image(split, idx).unwrap().into_rgb();
            let png = encode_png(image.width(), image.height(), image.data()).unwrap();
            let half = if split == Split::Train { "a" } else { "b" };
            let path = folder.join(format!("{half}{idx}.png"));
            fs::write(&path, png).unwrap();
            path
        });
        paths.collect()
    }
}

/// Name of the folder of a class of the story.
fn name(class: usize) -> String {
    format!("sign {class}")
}

/// A folder of 15 images of each class, and five others of each in `labelled`.
fn folder(characters: &Characters, home: &Path, at: &str, classes: std::ops::Range<usize>) {
    for class in classes {
        characters.write(class, 0..15, &home.join(at).join(name(class)));
        characters.write(class, 15..20, &home.join("labelled").join(name(class)));
    }
}

fn with_data(args: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    all.push("--data-dir".into());
    all.push(data().to_str().unwrap().to_owned());
    all
}

fn run(home: &Path, args: &[&str]) -> Output {
    sdlora(home, args)
}

/// A command that reads data sets or backbones.
fn run_on_data(home: &Path, args: &[&str]) -> Output {
    let args = with_data(args);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    sdlora(home, &args)
}

fn learn(home: &Path, folder: &str, more: &[&str]) -> Output {
    run_on_data(
        home,
        &[&["learn", folder, "--name", "signs"], more].concat(),
    )
}

/// Begins to learn a folder, and kills the process once the history says so.
fn learn_and_kill(home: &Path, folder: &str) {
    let args = with_data(&["learn", folder, "--name", "signs"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdlora"))
        .args(&args)
        .current_dir(home)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let plan = home.join("runs/signs/task-002/plan.toml");
    while !plan.exists() {
        assert!(
            start.elapsed() < LONGEST,
            "{} does not come",
            plan.display()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Everything in a folder by path, but for locks.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.ends_with(".lock") => {}
                false => drop(found.insert(path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    found
}

/// A text with one space for several.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&out(output)).unwrap()
}

/// Share of the labelled images of some classes that are named rightly.
fn share_right(home: &Path, classes: std::ops::Range<usize>) -> f64 {
    let (mut n, mut right) = (0, 0);
    for class in classes {
        let folder = home.join("labelled").join(name(class));
        let said = out(&run(
            home,
            &["predict", "--run", "signs", folder.to_str().unwrap()],
        ));
        for line in said.lines() {
            n += 1;
            right += usize::from(line.ends_with(&format!("\t{}", name(class))));
        }
    }
    assert!(n > 0);
    right as f64 / n as f64
}

#[test]
fn folder_after_folder_with_a_kill_a_step_back_and_every_use_of_the_model() {
    let characters = Characters::open();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    folder(&characters, home, "spring", 0..4);
    folder(&characters, home, "summer", 4..10);
    folder(&characters, home, "autumn", 10..11);

    // The first folder, with nothing but a name.
    let first = learn(home, "spring", &[]);
    let said = squeezed(&out(&first));
    for part in [
        "sign 0 12 3",
        "4 classes 48 12",
        "images of 105 x 105 pixels, grey",
        "no test half: 20 % of the images",
        "ships with sdlora; made for drawn characters",
        "28 x 28 pixels, grey",
        "frozen backbone",
        "class means",
        "learned 4 classes; signs knows 4 classes",
        "accuracy on test images: ",
        "sdlora predict --run signs IMAGES",
    ] {
        assert!(said.contains(part), "`{part}` is not in\n{said}");
    }
    fs::remove_dir_all(home.join("spring")).unwrap();

    // The second is killed; the first state answers meanwhile, and only the same folder goes on.
    learn_and_kill(home, "summer");
    let shown = out(&run(home, &["runs", "show", "signs"]));
    assert!(shown.contains("not finished, begun"), "{shown}");
    assert!(share_right(home, 0..4) >= 0.75);
    let other = learn(home, "autumn", &[]);
    assert_eq!(other.status.code(), Some(2), "{}", err(&other));
    assert!(err(&other).contains("has not finished"), "{}", err(&other));
    let said = out(&learn(home, "summer", &[]));
    assert!(
        said.contains("learned 6 classes; signs knows 10 classes"),
        "{said}"
    );
    fs::remove_dir_all(home.join("summer")).unwrap();

    // One class alone. The earlier ones are measured although their images are gone.
    let said = out(&learn(home, "autumn", &[]));
    assert!(
        said.contains("learned 1 class; signs knows 11 classes"),
        "{said}"
    );
    assert!(!said.contains("not measured"), "{said}");
    fs::remove_dir_all(home.join("autumn")).unwrap();
    let text = fs::read(home.join("runs/signs/task-003/metrics.json")).unwrap();
    let metrics: Value = serde_json::from_slice(&text).unwrap();
    let rows = metrics["log"]["matrix"]["acc"].as_array().unwrap();
    let lengths: Vec<usize> = rows
        .iter()
        .map(|row| row.as_array().unwrap().len())
        .collect();
    assert_eq!(lengths, [1, 2, 3]);
    assert!(
        rows[2].as_array().unwrap().iter().all(Value::is_f64),
        "{rows:?}"
    );
    let classes = metrics["log"]["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 11);
    assert!(classes.iter().all(|class| class["n_images"] == 3));
    assert!(share_right(home, 0..11) >= 0.8);

    // A class that is known is refused, and nothing has changed.
    let more = home.join("more");
    characters.write(5, 15..18, &more.join(name(5)));
    let before = contents(&home.join("runs"));
    let known = learn(home, "more", &[]);
    assert_eq!(known.status.code(), Some(2));
    assert!(err(&known).contains("already: `sign 5`"), "{}", err(&known));
    assert!(
        err(&known).contains("--same-classes extend"),
        "{}",
        err(&known)
    );
    assert_eq!(contents(&home.join("runs")), before);

    // More images of it, and back.
    let said = out(&learn(home, "more", &["--same-classes", "extend"]));
    assert!(
        said.contains("learned no new class and more images of 1 class; signs knows 11 classes"),
        "{said}"
    );
    let head = |task: &str| {
        fs::read(home.join(format!("runs/signs/{task}/model/head.safetensors"))).unwrap()
    };
    assert_ne!(head("task-004"), head("task-003"));
    assert!(share_right(home, 5..6) >= 0.8);
    let shown = out(&run(home, &["runs", "show", "signs"]));
    assert!(shown.contains("signs: 11 classes in 4 tasks"), "{shown}");
    assert!(
        shown.contains("6 new: sign 4, sign 5, sign 6, sign 7, sign 8, sign 9"),
        "{shown}"
    );
    assert!(shown.contains("1 extended: sign 5"), "{shown}");
    let undone = out(&run(home, &["runs", "undo", "signs"]));
    assert!(undone.contains("signs knows 11 classes"), "{undone}");
    assert!(!home.join("runs/signs/task-004").exists());
    assert_eq!(contents(&home.join("runs/signs/task-003")), {
        let mut before = before;
        before.retain(|path, _| path.starts_with(home.join("runs/signs/task-003")));
        before
    });
    let listed = squeezed(&out(&run(home, &["runs", "list"])));
    assert!(listed.contains("signs 11 3 "), "{listed}");

    // Probabilities, and images of no class.
    let labelled = home.join("labelled");
    let labelled = labelled.to_str().unwrap();
    let top = out(&run(
        home,
        &[
            "predict", "--run", "signs", "--top", "3", "--format", "jsonl", labelled,
        ],
    ));
    let answers: Vec<Value> = top
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), 55);
    assert!(
        answers
            .iter()
            .all(|a| a["calibrated"] == true && a["top"].as_array().unwrap().len() == 3)
    );
    let strangers = home.join("strangers");
    for class in (600..630).step_by(2) {
        characters.write(class, 0..2, &strangers);
    }
    let refused = |folder: &str| {
        let said = out(&run(
            home,
            &[
                "predict", "--run", "signs", "--reject", "--format", "jsonl", folder,
            ],
        ));
        let refused = said
            .lines()
            .filter(|line| line.contains("\"refused\":true"))
            .count();
        refused as f64 / said.lines().count() as f64
    };
    let (known, strange) = (refused(labelled), refused(strangers.to_str().unwrap()));
    assert!(
        strange > known + 0.2,
        "{known} of the known, {strange} of the strange"
    );

    // Measured on other images.
    let measured = json(&run_on_data(
        home,
        &["evaluate", "--run", "signs", "--format", "json", labelled],
    ));
    assert_eq!(measured["n_images"], 55);
    assert!(
        measured["accuracy"].as_f64().unwrap() >= 0.8,
        "{}",
        measured["accuracy"]
    );
    assert_eq!(measured["classes"].as_array().unwrap().len(), 11);

    // Every form of the model, and the same answers where a reader is here.
    let export = |format: &str, to: &str| {
        let args = ["export", "--run", "signs", "--format", format, "--out", to];
        run_on_data(home, &args)
    };
    for (format, to) in [
        ("bundle", "signs.safetensors"),
        ("onnx", "signs.onnx"),
        ("timm", "signs-timm"),
        ("hf", "signs-hf"),
    ] {
        let done = export(format, to);
        let reason = err(&done);
        match format {
            // Stated limits of this backbone: it has no class token.
            "hf" => assert!(
                !done.status.success() && reason.contains("class token"),
                "{reason}"
            ),
            _ => assert!(
                done.status.success() && home.join(to).exists(),
                "{format}: {reason}"
            ),
        }
    }
    for format in ["peft", "safetensors"] {
        let done = export(format, format);
        assert!(
            !done.status.success() && !home.join(format).exists(),
            "{format}"
        );
        assert!(err(&done).contains("adapter"), "{format}: {}", err(&done));
    }
    let answers = |model: &str| {
        out(&run(
            home,
            &["predict", "--model", model, "--top", "2", labelled],
        ))
    };
    let of_run = answers("signs");
    assert_eq!(answers("signs.safetensors"), of_run);
    assert_eq!(answers("runs/signs/task-003/model"), of_run);

    // And gone.
    let kept = run(home, &["runs", "rm", "signs"]);
    assert_eq!(kept.status.code(), Some(2), "{}", err(&kept));
    out(&run(home, &["runs", "rm", "signs", "--yes"]));
    assert!(!home.join("runs/signs").exists());
    assert!(out(&run(home, &["runs", "list"])).contains("no runs"));
}

#[test]
fn what_is_odd_in_a_folder_is_said_refused_or_left_out() {
    let characters = Characters::open();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    folder(&characters, home, "photos", 0..2);
    let first = home.join("photos").join(name(0));
    // Known to nobody yet, broken, in another format, and under two classes.
    fs::write(first.join("broken.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    fs::write(first.join("old.gif"), "GIF89a").unwrap();
    let image = fs::read_dir(&first).unwrap().flatten().find(|entry| {
        entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with('a'))
    });
    fs::copy(
        image.unwrap().path(),
        home.join("photos").join(name(1)).join("same.png"),
    )
    .unwrap();
    let broken = learn(home, "photos", &[]);
    assert_eq!(broken.status.code(), Some(2));
    let said = err(&broken);
    for part in [
        "left out 1 unreadable images",
        "formats that are not read: 1 .gif",
        "1 image is there under two classes",
        "--skip-bad",
    ] {
        assert!(said.contains(part), "`{part}` is not in\n{said}");
    }
    assert!(!home.join("runs").exists(), "nothing was written");
    let strict = learn(home, "photos", &["--strict"]);
    assert_eq!(strict.status.code(), Some(2));
    assert!(
        err(&strict).contains("there are 3 notes above"),
        "{}",
        err(&strict)
    );
    assert!(!home.join("runs").exists(), "nothing was written");
    let said = out(&learn(home, "photos", &["--skip-bad"]));
    assert!(said.contains("learned 2 classes"), "{said}");

    // A name that looks like a known one, and a run of another command.
    characters.write(7, 0..15, &home.join("next").join("Sign 0"));
    let alike = learn(home, "next", &[]);
    assert_eq!(alike.status.code(), Some(2));
    assert!(
        err(&alike).contains("`Sign 0` looks like `sign 0`"),
        "{}",
        err(&alike)
    );
    let other = learn(home, "next", &["--set", "head=ridge"]);
    assert_eq!(other.status.code(), Some(2));
    // Refused when the run is opened: files of others in its folder stay.
    fs::create_dir(home.join("runs/mine")).unwrap();
    fs::write(home.join("runs/mine/notes.txt"), "mine").unwrap();
    let args = with_data(&[
        "learn",
        "photos",
        "--name",
        "mine",
        "--skip-bad",
        "--set",
        "stream.n_tasks=9",
    ]);
    let refused = run(home, &args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_ne!(refused.status.code(), Some(0), "{}", out(&refused));
    let left = contents(&home.join("runs/mine"));
    assert_eq!(left.into_values().collect::<Vec<_>>(), [b"mine"]);
    let gone = learn(home, "nowhere", &[]);
    assert!(err(&gone).contains("there is no nowhere"), "{}", err(&gone));
}

#[test]
fn a_method_that_changes_features_leaves_gone_images_unmeasured() {
    let characters = Characters::open();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    folder(&characters, home, "one", 0..2);
    folder(&characters, home, "two", 2..4);
    characters.write(2, 1..2, &home.join("few").join("x"));
    let method = [
        "--set",
        "method={ name = \"sdlora\", rank = 2 }",
        "--set",
        "head=linear",
    ];
    let short = ["--set", "n_epochs=1", "--set", "loss_weights=balanced"];
    let said = out(&learn(home, "one", &[method, short].concat()));
    assert!(
        said.contains("sdlora") && said.contains("1 epochs, rate 0.03"),
        "{said}"
    );
    fs::remove_dir_all(home.join("one")).unwrap();
    // What it knows fits this head only.
    let other = learn(home, "two", &["--set", "head=ncm"]);
    assert_eq!(other.status.code(), Some(2));
    assert!(err(&other).contains("another `head`"), "{}", err(&other));
    let said = out(&learn(home, "two", &[]));
    assert!(said.contains("not measured: task 1"), "{said}");
    let csv = fs::read_to_string(home.join("runs/signs/task-002/accuracy_matrix.csv")).unwrap();
    assert_eq!(csv.lines().count(), 3, "{csv}");
    let text = fs::read(home.join("runs/signs/task-002/metrics.json")).unwrap();
    let metrics: Value = serde_json::from_slice(&text).unwrap();
    let acc = &metrics["log"]["matrix"]["acc"];
    assert!(acc[1][0].is_null() && acc[1][1].is_f64(), "{acc}");
    assert!(metrics["summary"]["final_average_accuracy"].is_null());
    let listed = out(&run(home, &["runs", "list"]));
    assert!(listed.contains("signs"), "{listed}");
}

#[test]
fn ctrl_c_saves_and_the_same_command_goes_on() {
    let characters = Characters::open();
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    folder(&characters, home, "one", 0..2);
    let sets = [
        "method={ name = \"sdlora\", rank = 2 }",
        "head=linear",
        "n_epochs=40",
        "batch_size=4",
    ];
    let mut args = vec!["learn", "one", "--name", "signs"];
    sets.iter().for_each(|set| args.extend(["--set", *set]));
    let child = Command::new(env!("CARGO_BIN_EXE_sdlora"))
        .args(with_data(&args))
        .current_dir(home)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let log = home.join("runs/signs/task-001/log.jsonl");
    while !fs::read_to_string(&log).is_ok_and(|text| text.contains("task_started")) {
        assert!(start.elapsed() < LONGEST, "{} does not come", log.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The folder is held meanwhile.
    let second = run(home, &["runs", "undo", "signs"]);
    assert_eq!(second.status.code(), Some(2), "{}", err(&second));
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let stopped = child.wait_with_output().unwrap();
    let told = err(&stopped);
    assert_eq!(stopped.status.code(), Some(130), "{told}");
    assert!(told.contains("give the same command again"), "{told}");
    assert!(!told.contains("error"), "{told}");
    let other = learn(home, "one", &["--set", "n_epochs=41"]);
    assert_eq!(other.status.code(), Some(2), "{}", err(&other));
    assert!(
        err(&other).contains("with other settings"),
        "{}",
        err(&other)
    );
    let said = out(&run_on_data(home, &args));
    assert!(
        said.contains("learned 2 classes; signs knows 2 classes"),
        "{said}"
    );
    // Every step once.
    let text = fs::read_to_string(&log).unwrap();
    let steps = text
        .lines()
        .filter(|line| line.contains("\"event\":\"step\""))
        .count();
    // Ten images of each class are learned from, four at a time.
    assert_eq!(steps, 40 * 20 / 4);
}
