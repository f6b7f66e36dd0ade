//! The folder of a run: what it is continued with, who may write it, where a run stops, and what any
//! failing operation of the file system leaves.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::cell::Cell;
use std::fs;
use std::path::Path;

use sdlora_image::encode_png;
use sdlora_testkit::test_device;
use sdlora_train::files::faults::{self, Kind};
use sdlora_train::{
    Event, Finished, HeadConfig, Observer, Plan, RunConfig, RunOptions, Silent, Start, TrainError,
    checkpoint, run, write_model,
};
use toy::{Bench, bits, copy_folder, losses};

const SDLORA: &str = "name = \"sdlora\"\nrank = 4";

/// A folder of `n_classes` classes with images of their own brightness, four in each half.
fn images(root: &Path, n_classes: usize) {
    for class in 0..n_classes {
        for (half, shift) in [("train", 0), ("test", 1)] {
            let folder = root.join(half).join(format!("class {class}"));
            fs::create_dir_all(&folder).unwrap();
            for i in 0..4 {
                let pixels: Vec<u8> = (0..14 * 14 * 3)
                    .map(|p| (p * (class + 1) + 7 * i + shift) as u8)
                    .collect();
                let png = encode_png(14, 14, &pixels).unwrap();
                fs::write(folder.join(format!("{i}.png")), png).unwrap();
            }
        }
    }
}

/// A plan of two tasks on images in the bench.
fn on_images(bench: &Bench, method: &str) -> Plan {
    let mut config = bench.config(method);
    config.dataset = "folder".into();
    config.dataset_options = sdlora_data::Options::none().with("root", "images");
    config.stream = StreamOf(3).config();
    config.check().unwrap()
}

/// A stream of so many classes a task.
struct StreamOf(usize);

impl StreamOf {
    fn config(&self) -> sdlora_data::StreamConfig {
        let Self(n) = *self;
        sdlora_data::StreamConfig::new(sdlora_data::TaskSplit::Increment {
            init_cls: n,
            increment: n,
        })
    }
}

/// Asks to stop when an event is the one, and remembers what it was told.
#[derive(Default)]
struct StopAt {
    step: Option<(usize, usize)>,
    trained: Option<usize>,
    wants: bool,
    /// Task and steps it continued with.
    resumed: Option<(usize, usize)>,
    notices: Vec<String>,
    n_steps: usize,
    mark: Cell<u64>,
}

impl Observer for StopAt {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Step { task_idx, step, .. } => {
                self.n_steps += 1;
                self.wants |= self.step == Some((*task_idx, *step));
            }
            Event::TaskTrained { task_idx, .. } => self.wants |= self.trained == Some(*task_idx),
            Event::Resumed {
                task_idx, n_steps, ..
            } => self.resumed = Some((*task_idx, *n_steps)),
            Event::Notice { text } => self.notices.push((*text).to_owned()),
            _ => {}
        }
    }

    fn mark(&mut self) -> Option<u64> {
        self.mark.set(self.mark.get() + 1);
        Some(self.mark.get())
    }

    fn wants_stop(&self) -> bool {
        self.wants
    }
}

fn go(
    bench: &Bench,
    name: &str,
    plan: &Plan,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<Finished, TrainError> {
    let (data, folder) = (bench.path(""), bench.path(name));
    let options = RunOptions::new(&data, &test_device(), &folder);
    run(plan, &options.with_start(start), observer)
}

/// A run on images that was stopped in its second task.
fn stopped(bench: &Bench, name: &str, plan: &Plan) {
    let mut observer = StopAt {
        step: Some((1, 1)),
        ..StopAt::default()
    };
    let error = go(bench, name, plan, Start::Fresh, &mut observer).unwrap_err();
    assert!(matches!(error, TrainError::Stopped { .. }), "{error}");
}

#[test]
fn other_images_are_noticed_and_accepted_only_when_asked() {
    let bench = Bench::new();
    let root = bench.path("images");
    images(&root, 6);
    let plan = on_images(&bench, SDLORA);
    stopped(&bench, "run", &plan);
    let refused = |name: &str, start: Start| {
        let error = go(&bench, name, &plan, start, &mut Silent).unwrap_err();
        assert!(matches!(error, TrainError::DataChanged { .. }), "{error}");
        error.to_string()
    };

    let new = root.join("train/class 2/9.png");
    fs::copy(root.join("train/class 2/0.png"), &new).unwrap();
    let text = refused("run", Start::Resume);
    assert!(
        text.contains("`class 2` had 4 training images and has 5 now"),
        "{text}"
    );
    assert!(text.contains("accept the changed data"), "{text}");

    copy_folder(&bench.path("run"), &bench.path("accepted"));
    let mut observer = StopAt::default();
    let accepted = go(
        &bench,
        "accepted",
        &plan,
        Start::ResumeOnChangedData,
        &mut observer,
    )
    .unwrap();
    assert_eq!(accepted.log.matrix.n_rows(), 2);
    assert!(
        observer.notices[0].contains("`class 2`"),
        "{:?}",
        observer.notices
    );
    drop(accepted);
    // From now on the new data are those of the run.
    go(&bench, "accepted", &plan, Start::Resume, &mut Silent).unwrap();

    fs::remove_file(&new).unwrap();
    for half in ["train", "test"] {
        let at = |name: &str| root.join(half).join(name);
        fs::rename(at("class 5"), at("class six")).unwrap();
    }
    let text = refused("run", Start::Resume);
    assert!(
        text.contains("`class 5`") && text.contains("`class six`"),
        "{text}"
    );
    for half in ["train", "test"] {
        let at = |name: &str| root.join(half).join(name);
        fs::rename(at("class six"), at("a class")).unwrap();
    }
    // Now the first of them, so that every label would be another class.
    let text = refused("run", Start::ResumeOnChangedData);
    assert!(text.contains("labels would change their meaning"), "{text}");
    for half in ["train", "test"] {
        let at = |name: &str| root.join(half).join(name);
        fs::rename(at("a class"), at("class 5")).unwrap();
    }
    go(&bench, "run", &plan, Start::Resume, &mut Silent).unwrap();
}

#[test]
fn an_image_that_changes_and_keeps_its_size_is_noticed() {
    let bench = Bench::new();
    let root = bench.path("images");
    images(&root, 6);
    // Without compression, so that other pixels are as many bytes.
    let changed = root.join("train/class 2/0.ppm");
    let pixels = |value: u8| [b"P6\n14 14\n255\n".to_vec(), vec![value; 14 * 14 * 3]].concat();
    fs::remove_file(changed.with_extension("png")).unwrap();
    fs::write(&changed, pixels(7)).unwrap();
    let plan = on_images(&bench, SDLORA);
    stopped(&bench, "run", &plan);

    fs::write(&changed, pixels(8)).unwrap();
    let error = go(&bench, "run", &plan, Start::Resume, &mut Silent).unwrap_err();
    assert!(matches!(error, TrainError::DataChanged { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("`class 2`") && text.contains("with other content"),
        "{text}"
    );
    copy_folder(&bench.path("run"), &bench.path("accepted"));
    let accepted = Start::ResumeOnChangedData;
    go(&bench, "accepted", &plan, accepted, &mut Silent).unwrap();

    // A run of a version that read no file goes on, and notices from then on.
    let file = bench.path("run").join("fingerprint.json");
    let mut earlier: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for class in earlier["data"]["classes"].as_array_mut().unwrap() {
        for half in ["train", "test"] {
            assert!(
                class[half]
                    .as_object_mut()
                    .unwrap()
                    .remove("files")
                    .is_some()
            );
        }
    }
    fs::write(&file, serde_json::to_vec(&earlier).unwrap()).unwrap();
    go(&bench, "run", &plan, Start::Resume, &mut Silent).unwrap();
    fs::write(&changed, pixels(9)).unwrap();
    let error = go(&bench, "run", &plan, Start::Resume, &mut Silent).unwrap_err();
    assert!(matches!(error, TrainError::DataChanged { .. }), "{error}");
}

#[test]
fn one_bit_of_the_backbone_is_noticed_and_never_accepted() {
    let bench = Bench::new();
    images(&bench.path("images"), 6);
    let plan = on_images(&bench, SDLORA);
    stopped(&bench, "run", &plan);
    let weights = bench.path("vit.safetensors");
    let sound = fs::read(&weights).unwrap();
    let mut changed = sound.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&weights, &changed).unwrap();
    for start in [Start::Resume, Start::ResumeOnChangedData] {
        let error = go(&bench, "run", &plan, start, &mut Silent).unwrap_err();
        assert!(
            matches!(error, TrainError::WeightsChanged { .. }),
            "{error}"
        );
    }
    fs::write(&weights, &sound).unwrap();
    go(&bench, "run", &plan, Start::Resume, &mut Silent).unwrap();
}

#[test]
fn a_run_of_a_version_without_fingerprints_goes_on_and_says_so() {
    let bench = Bench::new();
    images(&bench.path("images"), 6);
    let plan = on_images(&bench, SDLORA);
    stopped(&bench, "run", &plan);
    let file = bench.path("run").join("fingerprint.json");
    let kept = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let mut observer = StopAt::default();
    go(&bench, "run", &plan, Start::Resume, &mut observer).unwrap();
    assert_eq!(observer.notices.len(), 1, "{:?}", observer.notices);
    assert_eq!(fs::read(&file).unwrap(), kept);
    let next = String::from_utf8(kept)
        .unwrap()
        .replacen("\"format\": 1", "\"format\": 2", 1);
    fs::write(&file, next).unwrap();
    let error = go(&bench, "run", &plan, Start::Resume, &mut Silent).unwrap_err();
    assert!(matches!(error, TrainError::Newer { .. }), "{error}");
}

fn small(bench: &Bench, method: &str, head: &str, change: impl FnOnce(&mut RunConfig)) -> Plan {
    let mut config = bench.config(method);
    config.head = Some(HeadConfig::named(head));
    config.n_epochs = 1;
    config.checkpoint_every = 2;
    change(&mut config);
    config.check().unwrap()
}

fn same(a: &Finished, b: &Finished, what: &str) {
    assert_eq!(losses(a), losses(b), "{what}: losses");
    assert_eq!(a.log.matrix, b.log.matrix, "{what}: accuracies");
    assert!(bits(&a.model) == bits(&b.model), "{what}: weights");
    assert_eq!(a.classifier, b.classifier, "{what}: classifier");
}

#[test]
fn a_run_that_is_stopped_keeps_every_step_and_says_where_it_goes_on() {
    let bench = Bench::new();
    for (i, (method, head)) in [
        (SDLORA, "linear"),
        (SDLORA, "ncm"),
        ("name = \"ncm\"", "ncm"),
    ]
    .into_iter()
    .enumerate()
    {
        let plan = small(&bench, method, head, |_| {});
        let whole = bench
            .run(&format!("whole {i}"), &plan, Start::Fresh)
            .unwrap();
        let n_steps = whole.log.tasks[0].losses.len();
        let mut places: Vec<StopAt> = Vec::new();
        for task_idx in 0..2 {
            // The last step too, behind which only fitting and evaluation are left.
            places.extend((0..n_steps).map(|step| StopAt {
                step: Some((task_idx, step)),
                ..StopAt::default()
            }));
            places.push(StopAt {
                trained: Some(task_idx),
                ..StopAt::default()
            });
        }
        for (j, mut observer) in places.into_iter().enumerate() {
            let (name, what) = (format!("{i} {j}"), format!("{method}, {head}, place {j}"));
            let error = bench
                .run_observed(&name, &plan, Start::Fresh, &mut observer)
                .unwrap_err();
            let TrainError::Stopped {
                path,
                task_idx,
                n_steps: n_done,
            } = &error
            else {
                panic!("{what}: {error}");
            };
            let path = path.as_ref().unwrap();
            assert_eq!(
                checkpoint::latest(&bench.path(&name).join("checkpoints")).as_ref(),
                Some(path)
            );
            let expected = match (observer.step, observer.trained) {
                (Some((task, step)), _) => (task, step + 1),
                (_, Some(task)) => (task, n_steps),
                _ => unreachable!(),
            };
            assert_eq!((*task_idx, *n_done), expected, "{what}");
            let mut rest = StopAt::default();
            let resumed = bench
                .run_observed(&name, &plan, Start::Resume, &mut rest)
                .unwrap();
            assert_eq!(rest.resumed, Some(expected), "{what}");
            assert_eq!(
                observer.n_steps + rest.n_steps,
                2 * n_steps,
                "{what}: no step twice"
            );
            same(&whole, &resumed, &what);
        }
    }
}

#[test]
fn a_resume_without_a_checkpoint_says_that_it_starts_again() {
    let bench = Bench::new();
    let plan = small(&bench, SDLORA, "linear", |_| {});
    let mut observer = StopAt {
        wants: true,
        ..StopAt::default()
    };
    let error = bench
        .run_observed("run", &plan, Start::Fresh, &mut observer)
        .unwrap_err();
    assert!(
        matches!(error, TrainError::Stopped { path: None, .. }),
        "{error}"
    );
    let mut rest = StopAt::default();
    bench
        .run_observed("run", &plan, Start::Resume, &mut rest)
        .unwrap();
    assert_eq!(rest.resumed, Some((0, 0)));
}

#[test]
fn a_folder_has_one_writer_and_a_fresh_run_mixes_with_no_other() {
    let bench = Bench::new();
    let plan = small(&bench, SDLORA, "linear", |_| {});
    let first = bench.run("run", &plan, Start::Fresh).unwrap();
    let error = bench.run("run", &plan, Start::Resume).unwrap_err();
    assert!(matches!(error, TrainError::Locked { .. }), "{error}");
    assert!(error.to_string().contains("wait until it ends"), "{error}");
    drop(first);
    bench.run("run", &plan, Start::Resume).unwrap();
    // Its checkpoints would be taken for those of the new run.
    fs::remove_file(bench.path("run").join("plan.toml")).unwrap();
    let error = bench.run("run", &plan, Start::Fresh).unwrap_err();
    assert!(matches!(error, TrainError::LeftOver { .. }), "{error}");
}

/// Moves the folder of a run away in the middle of its first task.
struct Move<'a>(&'a Bench);

impl Observer for Move<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if matches!(
            event,
            Event::Step {
                task_idx: 0,
                step: 0,
                ..
            }
        ) {
            fs::rename(self.0.path("run"), self.0.path("elsewhere")).unwrap();
        }
    }
}

#[cfg(unix)]
#[test]
fn a_run_whose_folder_is_moved_fails_and_leaves_nothing_in_its_place() {
    let bench = Bench::new();
    let plan = small(&bench, SDLORA, "linear", |_| {});
    let error = bench
        .run_observed("run", &plan, Start::Fresh, &mut Move(&bench))
        .unwrap_err();
    assert!(matches!(error, TrainError::FolderGone { .. }), "{error}");
    assert!(!bench.path("run").exists());
    fs::rename(bench.path("elsewhere"), bench.path("run")).unwrap();
    bench.run("run", &plan, Start::Resume).unwrap();
}

#[test]
fn whichever_operation_fails_or_is_the_last_a_resumed_run_ends_with_the_same_bits() {
    let bench = Bench::new();
    // One task: a checkpoint inside it, one at its end, and the model.
    let plan = small(&bench, SDLORA, "ncm", |config| {
        config.stream.n_tasks = Some(1)
    });
    let whole = bench.run("whole", &plan, Start::Fresh).unwrap();
    let all = |name: &str, start: Start| {
        let finished = bench.run(name, &plan, start)?;
        write_model(&bench.path(name).join("model"), &finished)?;
        Ok::<_, TrainError>(finished)
    };
    for kind in [Kind::Error, Kind::Kill] {
        for n in 1.. {
            let name = format!("{kind:?} {n}");
            faults::arm(n, kind);
            let broken = all(&name, Start::Fresh).map(drop);
            let happened = faults::disarm();
            if !happened {
                assert!(broken.is_ok() && n > 40, "{n} operations");
                break;
            }
            let start = match bench.path(&name).join("plan.toml").exists() {
                true => Start::Resume,
                false => Start::Fresh,
            };
            // A checkpoint that is there is sound.
            let checkpoints = bench.path(&name).join("checkpoints");
            for kept in checkpoint::names(&checkpoints) {
                checkpoint::load::<serde_json::Value>(&checkpoints.join(kept)).unwrap();
            }
            let again = all(&name, start).unwrap_or_else(|e| panic!("{name}: {e}"));
            same(&whole, &again, &name);
            for folder in [bench.path(&name), checkpoints] {
                let left: Vec<_> = fs::read_dir(&folder)
                    .unwrap()
                    .flatten()
                    .map(|entry| entry.file_name().into_string().unwrap())
                    .filter(|name| name.starts_with(".tmp"))
                    .collect();
                assert!(left.is_empty(), "{name}: {left:?}");
            }
            fs::remove_dir_all(bench.path(&name)).unwrap();
        }
    }
}

/// Replaces every integer of a tree in turn; `f` sees each changed tree.
fn each_integer(tree: &serde_json::Value, values: &[u64], f: &mut dyn FnMut(&serde_json::Value)) {
    fn paths(tree: &serde_json::Value, at: String, found: &mut Vec<String>) {
        match tree {
            serde_json::Value::Number(n) if n.is_u64() => found.push(at),
            // Ids and logs are no shapes.
            serde_json::Value::Object(fields) => {
                for (key, value) in fields
                    .iter()
                    .filter(|(key, _)| *key != "trained" && *key != "log")
                {
                    paths(value, format!("{at}/{key}"), found);
                }
            }
            serde_json::Value::Array(items) => {
                for (i, value) in items.iter().enumerate() {
                    paths(value, format!("{at}/{i}"), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    paths(tree, String::new(), &mut found);
    assert!(found.len() > 3, "{found:?}");
    for path in found {
        for &value in values {
            let mut changed = tree.clone();
            *changed.pointer_mut(&path).unwrap() = value.into();
            f(&changed);
        }
    }
}

#[test]
fn no_shape_in_a_state_panics_also_under_a_hash_that_fits() {
    for method in [
        SDLORA,
        "name = \"l2p\"",
        "name = \"coda-prompt\"",
        "name = \"inflora\"",
    ] {
        let bench = Bench::new();
        let plan = small(&bench, method, "linear", |_| {});
        let mut observer = StopAt {
            step: Some((1, 0)),
            ..StopAt::default()
        };
        bench
            .run_observed("run", &plan, Start::Fresh, &mut observer)
            .unwrap_err();
        let newest = checkpoint::latest(&bench.path("run").join("checkpoints")).unwrap();
        let name = newest.file_name().unwrap().to_owned();
        let state = fs::read(newest.join("state.json")).unwrap();
        let sums = fs::read_to_string(newest.join("SHA256SUMS")).unwrap();
        let tree = serde_json::from_slice(&state).unwrap();
        each_integer(&tree, &[0, 7, u64::MAX], &mut |changed| {
            let _ = fs::remove_dir_all(bench.path("case"));
            copy_folder(&bench.path("run"), &bench.path("case"));
            let at = bench.path("case").join("checkpoints").join(&name);
            let bytes = serde_json::to_vec(changed).unwrap();
            let mut folder = sdlora_train::files::sums::Sums::default();
            folder.add("state.json", &bytes);
            let new = folder.to_string();
            let others = sums.lines().filter(|line| !line.ends_with("state.json"));
            let all: String = others.map(|line| format!("{line}\n")).collect();
            fs::write(at.join("state.json"), bytes).unwrap();
            fs::write(at.join("SHA256SUMS"), all + &new).unwrap();
            // Whatever it says: an end, and no panic.
            let mut stop = StopAt {
                step: Some((1, 1)),
                ..StopAt::default()
            };
            let _ = bench.run_observed("case", &plan, Start::Resume, &mut stop);
        });
    }
}
