//! A suite of several entries and seeds from the command line.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{data, err, out, sdlora};
use sdlora_train::checkpoint;

/// Two entries on frozen features; in the first of them a rate can be set that breaks it.
fn suite(rate: &str) -> String {
    format!(
        "name = \"own\"\nbase = \"omniglot-10x20\"\n\
         set = [\"stream.n_tasks=2\", \"n_epochs=1\", \"stream.split={{ increment = {{ init_cls = 4, increment = 4 }} }}\"]\n\
         [[entry]]\nlabel = \"linear\"\nset = [\"method={{ name = \\\"linear\\\" }}\", \"optimizer.lr={rate}\"]\n\
         [[entry]]\nlabel = \"ncm\"\nset = [\"method={{ name = \\\"ncm\\\" }}\"]\n\
         [[claim]]\nhigher = \"ncm\"\nlower = \"linear\"\nsource = \"one epoch\"\n"
    )
}

fn compare(home: &Path, rate: &str, more: &[&str]) -> std::process::Output {
    let file = home.join("suite.toml");
    fs::write(&file, suite(rate)).unwrap();
    let data = data();
    let args = [
        "compare",
        "--suite",
        file.to_str().unwrap(),
        "--seeds",
        "1,2",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    sdlora(home, &[&args[..], more].concat())
}

/// The columns of a table that are no times.
fn without_seconds(text: &str) -> Vec<String> {
    let rows = text.lines().filter(|line| line.starts_with("| "));
    rows.map(|line| line.split('|').take(9).collect::<Vec<_>>().join("|"))
        .collect()
}

#[test]
fn runs_at_the_same_time_give_the_table_of_runs_one_after_another() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let page = two.path().join("page.md");
    let around = "before\n<!-- compare: begin -->\nold\n<!-- compare: end -->\nafter\n";
    fs::write(&page, around).unwrap();
    let alone = out(&compare(one.path(), "0.1", &[]));
    let more = ["--jobs", "2", "--out", page.to_str().unwrap()];
    let parallel = out(&compare(two.path(), "0.1", &more));
    let table = without_seconds(&alone);
    assert_eq!(table, without_seconds(&parallel));
    assert!(table[1].starts_with("| linear") && table[2].starts_with("| ncm"));
    assert!(alone.contains("| ncm > linear |"), "{alone}");
    let page = fs::read_to_string(&page).unwrap();
    assert!(
        page.starts_with("before\n<!-- compare: begin -->\n| Method"),
        "{page}"
    );
    assert!(page.ends_with("<!-- compare: end -->\nafter\n") && !page.contains("old"));

    // The end of every task is kept, so that `analyse` can look back.
    let kept = |home: &Path| {
        let folder = home.join("runs/compare/own/ncm-seed1/checkpoints");
        checkpoint::names(&folder).len()
    };
    assert_eq!((kept(one.path()), kept(two.path())), (2, 2));

    // A second call makes nothing again.
    let metrics = one.path().join("runs/compare/own/ncm-seed2/metrics.json");
    let written = fs::metadata(&metrics).unwrap().modified().unwrap();
    assert_eq!(out(&compare(one.path(), "0.1", &[])), alone);
    assert_eq!(fs::metadata(&metrics).unwrap().modified().unwrap(), written);
}

#[test]
fn what_a_data_set_leaves_out_is_said_once() {
    let home = tempfile::tempdir().unwrap();
    for class in ["dark", "bright"] {
        let folder = home.path().join("mine").join(class);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..5u8 {
            let pixels = vec![i * 20 + class.len() as u8; 28 * 28 * 3];
            let png = sdlora_image::encode_png(28, 28, &pixels).unwrap();
            fs::write(folder.join(format!("{i}.png")), png).unwrap();
        }
    }
    fs::write(home.path().join("mine/dark/1.HEIC"), "x").unwrap();
    let root = format!(
        "dataset_options={{ root = {:?} }}",
        home.path().join("mine")
    );
    let mut more = vec!["--only", "ncm", "--floor"];
    for set in ["dataset=folder", &root, "stream={ split = \"joint\" }"] {
        more.extend(["--set", set]);
    }
    // Two runs, and twice the pixels themselves.
    let found = compare(home.path(), "0.1", &more);
    let said = err(&found);
    assert!(found.status.success(), "{said}");
    let note = "note: left out 1 image in a format that is not read";
    assert_eq!(
        said.matches("note: left out 1 image").count(),
        1,
        "{note}: {said}"
    );
    assert!(said.contains(".heic"), "{said}");
}

#[test]
fn a_run_that_fails_is_named_and_the_others_stand() {
    let home = tempfile::tempdir().unwrap();
    let found = compare(home.path(), "1e38", &["--jobs", "2"]);
    assert_ne!(found.status.code(), Some(0));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let table = without_seconds(&text);
    assert!(table[1].contains("| linear |    0 |"), "{text}");
    assert!(table[2].contains("| ncm    |    2 |"), "{text}");
    assert!(text.contains("no seed in common"), "{text}");
    let message = err(&found);
    assert!(message.contains("2 runs are not finished"), "{message}");
    assert!(message.contains("entry `linear`, seed 1: "), "{message}");
}

#[test]
fn recorded_runs_give_the_same_table_without_their_folders() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = one.path().join("own.jsonl");
    let records = ["--records", file.to_str().unwrap()];
    let made = out(&compare(one.path(), "0.1", &records));
    let lines = fs::read_to_string(&file).unwrap();
    assert_eq!(lines.lines().count(), 4);
    assert!(!lines.contains(one.path().to_str().unwrap()), "{lines}");

    // Everything is there, the times too: no run is made.
    let finished = [&records[..], &["--finished"]].concat();
    for more in [&records[..], &finished] {
        let again = out(&compare(two.path(), "0.1", more));
        assert_eq!(table(&again), table(&made));
        assert!(!two.path().join("runs").exists());
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), lines);

    // Another rate is another recipe: `linear` is not there, and no run of it is made.
    let found = compare(two.path(), "0.2", &finished);
    assert!(err(&found).contains("2 of 4 runs are finished"));
    let other = out(&found);
    assert!(!two.path().join("runs").exists());
    let rows = table(&other);
    assert!(rows.len() == 2 && rows[1].starts_with("| ncm"), "{other}");

    // Runs in their folders are finished too, and come into another file of records.
    let file = one.path().join("new.jsonl");
    let more = ["--records", file.to_str().unwrap(), "--finished"];
    assert_eq!(
        table(&out(&compare(one.path(), "0.1", &more))),
        table(&made)
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), lines);
}

/// The lines of the tables.
fn table(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("| ")).collect()
}
