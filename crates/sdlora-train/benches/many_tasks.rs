//! What a task costs beside its steps after hundreds of tasks: bookkeeping, evaluation, checkpoints, memory.
//!
//! `cargo bench -p sdlora-train --bench many_tasks -- [--tasks 1000] [--classes 2] [--method sdlora] [--head linear]
//! [--evaluate-every 1]`
//!
//! Tasks of one class need `--method ncm --head ncm`.
//!
//! One whole run on pictures of 4 x 4 pixels that are made for it, three to learn from and one to test on for each
//! class, with a backbone of two blocks of width 16 and directions of rank 1: an epoch of a task is one step, so
//! nearly all that is left is what a run does around it. It prints a row after 50, 100, 200, 500 and 1,000 tasks, each
//! the mean of ten tasks, and how much each column grows from task to task (least squares over all tasks but the first
//! tenth). A column that is linear in the past tasks has the same slope in runs of any length; `cargo test -p
//! sdlora-train --bench many_tasks -- --tasks 24` tries it without optimisation.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_testkit::allocator::{Counting, alive};
use sdlora_train::{Event, Observer, RunConfig, RunOptions, run};
use sdlora_vit::{Pooling, Vit, VitConfig, WeightDtype};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

/// Tasks after which a row is printed.
const MARKS: [usize; 5] = [50, 100, 200, 500, 1000];
/// Tasks that a row is the mean of.
const MEAN_OF: usize = 10;
const N_TRAIN: usize = 3;
const SIDE: usize = 4;
const COLUMNS: [(&str, f64, usize); 7] = [
    ("steps, ms", 1e3, 1),
    ("around the steps, ms", 1e3, 1),
    ("evaluation, ms", 1e3, 1),
    ("save, ms", 1e3, 1),
    ("alive, MiB", 1.0 / (1 << 20) as f64, 2),
    ("checkpoint, KiB", 1.0 / 1024.0, 1),
    ("of it state, KiB", 1.0 / 1024.0, 1),
];

struct Arguments {
    n_tasks: usize,
    n_classes: usize,
    method: String,
    head: String,
    evaluate_every: usize,
}

impl Arguments {
    fn read() -> Self {
        // Cargo adds `--bench`.
        let given: Vec<String> = std::env::args()
            .skip(1)
            .filter(|arg| arg != "--bench")
            .collect();
        let known = [
            "--tasks",
            "--classes",
            "--method",
            "--head",
            "--evaluate-every",
        ];
        for pair in given.chunks(2) {
            assert!(
                known.contains(&&pair[0][..]) && pair.len() == 2,
                "{pair:?}: one of {known:?} and its value"
            );
        }
        let value = |name: &str, default: &str| {
            let found = given.chunks(2).find(|pair| pair[0] == name);
            found.map_or(default, |pair| &pair[1]).to_owned()
        };
        let number = |name: &str, default: &str| value(name, default).parse().unwrap();
        Self {
            n_tasks: number("--tasks", "1000"),
            n_classes: number("--classes", "2"),
            method: value("--method", "sdlora"),
            head: value("--head", "linear"),
            evaluate_every: number("--evaluate-every", "1"),
        }
    }
}

/// A row of numbers for each task, in the order of [`COLUMNS`].
#[derive(Default)]
struct Costs {
    tasks: Vec<[f64; COLUMNS.len()]>,
    steps: Option<Instant>,
    since: Option<Instant>,
    now: [f64; COLUMNS.len()],
}

impl Observer for Costs {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::TaskStarted { .. } => self.steps = Some(Instant::now()),
            Event::Step { .. } => {
                self.now[0] = self
                    .steps
                    .map_or(0.0, |start| start.elapsed().as_secs_f64());
            }
            Event::TaskTrained { seconds, .. } => {
                self.now[1] = seconds - self.now[0];
                self.since = Some(Instant::now());
            }
            Event::Evaluated { seconds, .. } => {
                self.now[2] = *seconds;
                self.since = Some(Instant::now());
            }
            Event::Checkpointed { path } => {
                self.now[3] = self.since.take().unwrap().elapsed().as_secs_f64();
                self.now[4] = alive() as f64;
                self.now[5] = bytes_of(path) as f64;
                self.now[6] = fs::metadata(path.join("state.json")).unwrap().len() as f64;
                self.tasks.push(std::mem::take(&mut self.now));
            }
            _ => {}
        }
    }
}

/// Bytes of the files of a folder and those below it.
fn bytes_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => bytes_of(&entry.path()),
            false => entry.metadata().unwrap().len(),
        })
        .sum()
}

/// Pictures that differ from class to class and from image to image.
fn write_pictures(folder: &Path, n_classes: usize) {
    for class in 0..n_classes {
        for image in 0..=N_TRAIN {
            let half = if image < N_TRAIN { "train" } else { "test" };
            let folder = folder.join(half).join(format!("{class:06}"));
            fs::create_dir_all(&folder).unwrap();
            let pixel = |i: usize| ((class * 37 + i * 11 + image * 3 + class * i * 7) % 251) as u8;
            let pixels: Vec<u8> = (0..SIDE * SIDE * 3).map(pixel).collect();
            let png = sdlora_image::encode_png(SIDE, SIDE, &pixels).unwrap();
            fs::write(folder.join(format!("{image}.png")), png).unwrap();
        }
    }
}

fn main() {
    let arguments = Arguments::read();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_pictures(&path("pictures"), arguments.n_tasks * arguments.n_classes);
    let device = sdlora_testkit::test_device();
    let shape = VitConfig {
        n_channels: 1,
        class_token: false,
        pooling: Pooling::Average,
        ..VitConfig::standard(SIDE, 2, 16, 2, 2)
    };
    let vit = Vit::init(&shape, &mut ChaCha8Rng::seed_from_u64(5), &device).unwrap();
    let bytes = vit.to_bytes(WeightDtype::F32, &BTreeMap::new()).unwrap();
    fs::write(path("vit.safetensors"), bytes).unwrap();
    let rank = if arguments.method == "sdlora" {
        "rank = 1"
    } else {
        ""
    };
    let text = format!(
        "seed = 1\ndataset = \"folder\"\nn_epochs = 1\nbatch_size = {batch}\nhead = \"{head}\"\n\
         evaluate_every = {every}\n\
         [dataset_options]\nroot = \"pictures\"\nlayout = \"halves\"\n\
         [method]\nname = \"{method}\"\n{rank}\n\
         [backbone]\nweights = \"vit.safetensors\"\n\
         [stream]\nsplit = {{ increment = {{ init_cls = {n}, increment = {n} }} }}\n\
         [transform]\nside = {SIDE}\nchannels = \"gray\"\n\
         [optimizer]\nrule = \"sgd\"\nlr = 0.001\n",
        batch = N_TRAIN * arguments.n_classes,
        head = arguments.head,
        every = arguments.evaluate_every,
        method = arguments.method,
        n = arguments.n_classes,
    );
    let plan = RunConfig::parse(&text).unwrap().check().unwrap();
    let options = RunOptions::new(folder.path(), &device, &path("run"));
    let mut costs = Costs::default();
    let start = Instant::now();
    let finished = run(&plan, &options, &mut costs).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!(costs.tasks.len(), arguments.n_tasks);
    assert_eq!(finished.log.matrix.n_rows(), arguments.n_tasks);

    println!(
        "{} tasks of {} classes, {} + {}: {seconds:.1} s, {:.1} MiB of checkpoints",
        arguments.n_tasks,
        arguments.n_classes,
        arguments.method,
        arguments.head,
        bytes_of(&path("run/checkpoints")) as f64 / (1 << 20) as f64
    );
    let head = COLUMNS.map(|(name, _, _)| format!(" {name} |")).concat();
    println!("| tasks |{head}\n|---:|{}", "---:|".repeat(COLUMNS.len()));
    let mut marks: Vec<usize> = MARKS
        .into_iter()
        .filter(|&n| n < arguments.n_tasks)
        .collect();
    marks.push(arguments.n_tasks);
    for n in marks {
        let tasks = &costs.tasks[n.saturating_sub(MEAN_OF)..n];
        let mean =
            |column: usize| tasks.iter().map(|task| task[column]).sum::<f64>() / tasks.len() as f64;
        println!("| {n} |{}", row(mean, 0));
    }
    let later = arguments.n_tasks / 10;
    let slope = |column: usize| {
        let points = costs.tasks.iter().enumerate().skip(later);
        slope(points.map(|(idx, task)| (idx as f64, task[column])))
    };
    println!("| a task more |{}", row(slope, 3));
}

/// The cells of a row, with so many digits more than usual.
fn row(value: impl Fn(usize) -> f64, more_digits: usize) -> String {
    let columns = COLUMNS.iter().enumerate();
    let cells = columns
        .map(|(i, (_, unit, digits))| format!(" {:.*} |", digits + more_digits, value(i) * unit));
    cells.collect()
}

/// Slope of the line through points by least squares.
fn slope(points: impl Iterator<Item = (f64, f64)>) -> f64 {
    let points: Vec<(f64, f64)> = points.collect();
    let n = points.len() as f64;
    let (x, y) = (
        points.iter().map(|p| p.0).sum::<f64>() / n,
        points.iter().map(|p| p.1).sum::<f64>() / n,
    );
    let both: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
    both / points.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
}
