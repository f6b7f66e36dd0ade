//! What checkpoints share: each finished direction is stored once, and nothing that is damaged is believed.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::fs;
use std::path::{Path, PathBuf};

use sdlora_train::{HeadConfig, Plan, Start, checkpoint};
use toy::{Bench, bits};

const N_TASKS: usize = 5;

fn plan(bench: &Bench, method: &str) -> Plan {
    let mut config = bench.config(method);
    config.n_epochs = 1;
    config.stream.n_tasks = Some(N_TASKS);
    config.check().unwrap()
}

fn objects(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints/objects")).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn bytes_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum()
}

fn newest(run: &Path) -> PathBuf {
    checkpoint::latest(&run.join("checkpoints")).unwrap()
}

#[test]
fn a_checkpoint_grows_by_what_is_new() {
    let bench = Bench::new();
    let done = bench
        .run("run", &plan(&bench, "name = \"sdlora\""), Start::Fresh)
        .unwrap();
    drop(done);
    let run = bench.path("run");
    // Directions of all tasks but the running one, and logs of all tasks.
    assert_eq!(objects(&run).len(), (N_TASKS - 1) + N_TASKS);
    let ends = checkpoint::names(&run.join("checkpoints"));
    assert_eq!(ends.len(), N_TASKS);
    let sizes: Vec<u64> = ends
        .iter()
        .map(|name| {
            fs::metadata(run.join("checkpoints").join(name).join("model.bpk"))
                .unwrap()
                .len()
        })
        .collect();
    // A state names one direction and one log more, and repeats nothing that has an entry for each earlier task: its
    // growth does not grow.
    let states: Vec<u64> = ends
        .iter()
        .map(|name| {
            let state = run.join("checkpoints").join(name).join("state.json");
            fs::metadata(state).unwrap().len()
        })
        .collect();
    let grown: Vec<u64> = states.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for growth in &grown {
        assert!(*growth < 400 && *growth < grown[1] + 60, "{states:?}");
    }
    // Three columns of 16 and their bias, and a magnitude: far less than a direction of 4 · 2 · 16 · 10 numbers.
    for pair in sizes.windows(2) {
        let grown = pair[1].saturating_sub(pair[0]);
        assert!(grown < 4 * 200, "{sizes:?}");
    }
}

#[test]
fn every_end_of_a_task_comes_back_to_the_last_bit() {
    let bench = Bench::new();
    for method in [
        "name = \"sdlora\"",
        "name = \"sdlora-kd\"\nthreshold = 1.0",
        "name = \"prilora\"",
        "name = \"raclora\"",
    ] {
        let plan = plan(&bench, method);
        let name = method.replace(['"', ' ', '=', '\n'], "");
        let whole = bench.run(&name, &plan, Start::Fresh).unwrap();
        let expected = bits(&whole.model);
        drop(whole);
        // From each earlier end the run comes to the same model.
        let run = bench.path(&name);
        for _ in 1..N_TASKS {
            fs::remove_dir_all(newest(&run)).unwrap();
            let again = bench.run(&name, &plan, Start::Resume).unwrap();
            assert!(bits(&again.model) == expected, "{method}");
            drop(again);
            let last = newest(&run);
            fs::remove_dir_all(&last).unwrap();
        }
    }
}

#[test]
fn a_damaged_or_missing_object_is_named_and_nothing_is_lost() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"sdlora\"");
    drop(bench.run("run", &plan, Start::Fresh).unwrap());
    let run = bench.path("run");
    let before = objects(&run);
    let object = before[0].clone();
    let whole = fs::read(&object).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for broken in [Some(damaged), None] {
        match &broken {
            Some(bytes) => fs::write(&object, bytes).unwrap(),
            None => fs::remove_file(&object).unwrap(),
        }
        let error = bench
            .run("run", &plan, Start::Resume)
            .unwrap_err()
            .to_string();
        let name = object.file_name().unwrap().to_str().unwrap();
        assert!(error.contains(name), "{error}");
        fs::write(&object, &whole).unwrap();
        assert_eq!(objects(&run), before, "what is damaged is not cleaned away");
    }
    bench.run("run", &plan, Start::Resume).unwrap();
}

#[test]
fn objects_that_no_checkpoint_needs_are_removed_unless_one_cannot_be_read() {
    let bench = Bench::new();
    let plan = plan(&bench, "name = \"lora-per-task\"");
    drop(bench.run("run", &plan, Start::Fresh).unwrap());
    let run = bench.path("run");
    let before = objects(&run);
    let left = run.join("checkpoints/objects").join("ab".repeat(32));
    fs::write(&left, "left over").unwrap();
    // With a state that is unreadable nobody knows what it needs.
    let oldest = run
        .join("checkpoints")
        .join(&checkpoint::names(&run.join("checkpoints"))[0]);
    let state = fs::read(oldest.join("state.json")).unwrap();
    fs::write(oldest.join("state.json"), "{").unwrap();
    drop(bench.run("run", &plan, Start::Resume).unwrap());
    assert!(left.exists());
    fs::write(oldest.join("state.json"), state).unwrap();
    drop(bench.run("run", &plan, Start::Resume).unwrap());
    assert!(!left.exists());
    assert_eq!(objects(&run), before);
}

#[test]
fn only_the_newest_checkpoint_keeps_large_arrays_of_the_head() {
    let bench = Bench::new();
    let mut config = bench.config("name = \"ncm\"");
    // 800 · 800 numbers in two parts of 32 bits: 5 MB.
    config.head = Some(HeadConfig::named("ridge").with("projection", 800));
    let plan = config.check().unwrap();
    drop(bench.run("run", &plan, Start::Fresh).unwrap());
    let run = bench.path("run");
    let large = |run: &Path| {
        let sizes = objects(run)
            .into_iter()
            .map(|path| fs::metadata(path).unwrap().len());
        sizes.filter(|&n| n > 4 << 20).count()
    };
    assert_eq!(large(&run), 1);
    let names = checkpoint::names(&run.join("checkpoints"));
    assert!(bytes_of(&run.join("checkpoints").join(&names[1])) < 4 << 20);
    // A run does not continue from the earlier one as if it had them.
    fs::remove_dir_all(newest(&run)).unwrap();
    let error = bench
        .run("run", &plan, Start::Resume)
        .unwrap_err()
        .to_string();
    assert!(error.contains("newest checkpoint"), "{error}");
}
