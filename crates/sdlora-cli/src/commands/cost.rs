//! `sdlora presets cost`: what a run takes, before anybody starts it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use burn::tensor::{Device, Tensor};
use clap::ValueEnum;
use sdlora_data::{TaskSplit, TaskStream, datasets};
use sdlora_train::{Plan, Precision, Rule, RunConfig};
use sdlora_vit::{Checkpoint, VitConfig};
use serde::Serialize;

use crate::UsageError;
use crate::device;
use crate::output::answer;
use crate::shown::{clipped, shown_path};

/// Bytes of an `f32`.
const F32: usize = 4;

/// Share of training images of a data set that is not there; most are cut 80 to 20.
const TRAIN_SHARE: f64 = 0.8;

/// Bytes of a finished direction beside its factors, of a checkpoint beside its numbers, and of a step in its log. Read
/// from the folder of `omniglot-10x20`, as those below.
const DIRECTION_BYTES: usize = 2_200;
const CHECKPOINT_BYTES: usize = 4_900;
const LOSS_BYTES: usize = 20;

/// Bytes of a step, of a class and of all else in a run outside its checkpoints and its model: log, metrics, report.
const STEP_BYTES: usize = 115;
const CLASS_BYTES: usize = 330;
const RUN_BYTES: usize = 100_000;

/// Cards with the products of `f32` and of half precision that their data sheets give, in 10⁹ a second, dense.
const CARDS: [(&str, f64, f64); 4] = [
    ("NVIDIA T4", 8_100.0, 65_000.0),
    ("NVIDIA A100 SXM", 19_500.0, 312_000.0),
    ("NVIDIA RTX 4090", 82_600.0, 165_200.0),
    ("NVIDIA H100 SXM", 67_000.0, 989_000.0),
];

/// Say what a run takes, before it starts: images, steps, products, disk, memory and time
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A preset, or a configuration file (TOML)
    pub name: String,
    /// Folder of the data sets; a data set that is not there is estimated from its manifest
    #[arg(long, default_value = "datasets")]
    data_dir: PathBuf,
    /// Where the run will compute: its rate of products is measured now
    #[arg(long, default_value = "flex")]
    device: String,
    /// Rate of a GPU, in 10⁹ operations a second, instead of the data sheets of some cards
    #[arg(long)]
    gflops: Option<f64>,
    /// Share of the rate that a run reaches, above 0 and at most 1
    #[arg(long, default_value_t = 0.4)]
    utilisation: f64,
    /// text, or json for a program
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// A task, as far as it costs something.
#[derive(Debug, Clone, Copy)]
struct Task {
    n_train: usize,
    n_test: usize,
    n_new_classes: usize,
}

/// What a run takes.
#[derive(Debug, Serialize)]
struct Cost {
    /// Whether the data set was counted, or its size is estimated.
    counted: bool,
    train_images: usize,
    test_images: usize,
    classes: usize,
    tasks: usize,
    /// Steps of the optimiser.
    steps: usize,
    /// Images that go through a forward and a backward pass.
    trained_passes: usize,
    /// Images that go through a forward pass alone: evaluation, features for heads, queries of prompts.
    forward_passes: usize,
    /// Floating-point operations; a multiplication with its addition is two.
    flops: f64,
    /// Checkpoints of the ends of all tasks.
    checkpoint_bytes: usize,
    /// The whole folder of the run at its end.
    disk_bytes: usize,
    memory: Memory,
    times: Vec<Time>,
    /// What the numbers rest on.
    basis: Vec<String>,
}

/// Memory of the device, in bytes.
#[derive(Debug, Serialize)]
struct Memory {
    weights: usize,
    optimizer: usize,
    activations: usize,
    total: usize,
}

/// An estimated time.
#[derive(Debug, Serialize)]
struct Time {
    device: String,
    gflops: f64,
    /// Whether the rate was measured here, or stands in a data sheet or on the command line.
    measured: bool,
    seconds: f64,
}

/// Runs the command for the complete text of a configuration.
///
/// # Errors
///
/// Usage errors for a configuration that cannot be used, and for a data set or backbone of which neither the files
/// are there nor the size is known.
pub fn run(args: &Args, text: &str) -> anyhow::Result<()> {
    for (option, value) in [
        ("--utilisation", Some(args.utilisation)),
        ("--gflops", args.gflops),
    ] {
        let most = if option == "--gflops" { f64::MAX } else { 1.0 };
        if value.is_some_and(|value| !(value > 0.0 && value <= most)) {
            return Err(UsageError(format!(
                "`{option}` is out of range: give a number above 0{}",
                if most == 1.0 { " and at most 1" } else { "" }
            ))
            .into());
        }
    }
    let plan = RunConfig::parse(text)?.check()?;
    let vit = shape(plan.config(), &args.data_dir)?;
    let mut cost = Cost::of(&plan, &vit, &args.data_dir)?;
    let device = device::open(&args.device)?;
    let rate = product_rate(&device);
    cost.add_times(args, plan.config().precision, rate);
    match args.format {
        Format::Json => answer!("{}", serde_json::to_string_pretty(&cost)?)?,
        Format::Text => answer!("{}", cost.text().trim_end())?,
    }
    Ok(())
}

/// The shape of the backbone: that of the preset, or of the file.
fn shape(config: &RunConfig, data_dir: &Path) -> anyhow::Result<VitConfig> {
    let hints = config.backbone.hints(Some(config.transform.side))?;
    let path = config.backbone.path(data_dir);
    if let Some(mut vit) = hints.config.clone().filter(|_| !path.exists()) {
        vit.image_size = config.transform.side;
        return Ok(vit);
    }
    if !path.exists() {
        return Err(UsageError(format!(
            "the backbone {} is not there and no `backbone.preset` tells its shape: name one, or give `--data-dir`",
            shown_path(&path)
        ))
        .into());
    }
    let checkpoint = Checkpoint::open(&path, &hints)
        .with_context(|| format!("the backbone {} has no known shape", shown_path(&path)))?;
    Ok(checkpoint.config().clone())
}

/// The tasks of a plan, and whether they were counted.
fn tasks(config: &RunConfig, data_dir: &Path) -> anyhow::Result<(Vec<Task>, bool)> {
    let opened = datasets::open(&config.dataset, data_dir, &config.dataset_options);
    let missing = match opened {
        Ok(dataset) => {
            let stream = TaskStream::new(dataset.as_ref(), &config.stream)?;
            let mut tasks = Vec::new();
            for task in stream.tasks() {
                let (mut train, mut test) = (task.train.clone(), task.test.as_ref().len());
                for (n, is_test) in [(config.hold_out, true), (config.calibrate_on, false)] {
                    if n > 0 {
                        let held_out;
                        (train, held_out) = train.hold_out(n, config.seed)?;
                        if is_test {
                            test = held_out.as_ref().len();
                        }
                    }
                }
                tasks.push(Task {
                    n_train: train.as_ref().len(),
                    n_test: test,
                    n_new_classes: task.n_new_classes,
                });
            }
            return Ok((tasks, true));
        }
        Err(missing) => missing,
    };
    let entry = datasets::DATASETS
        .iter()
        .find(|entry| entry.name == config.dataset);
    let manifest = entry.map(|entry| entry.manifest()).transpose()?;
    let set = manifest
        .as_ref()
        .and_then(|found| found.set(&config.dataset));
    let set = set.filter(|set| set.classes > 0 && set.images > 0);
    let (
        Some(set),
        TaskSplit::Increment {
            init_cls,
            increment,
        },
    ) = (set, &config.stream.split)
    else {
        return Err(anyhow::Error::from(missing).context(UsageError(format!(
            "the data set `{}` is not there and its tasks cannot be estimated: give `--data-dir`",
            clipped(&config.dataset)
        ))));
    };
    let n_all = set.classes;
    let mut sizes = Vec::new();
    let mut n_left = n_all;
    while n_left > 0 {
        let wanted = if sizes.is_empty() {
            *init_cls
        } else {
            *increment
        };
        let n = wanted.clamp(1, n_left);
        sizes.push(n);
        n_left -= n;
    }
    sizes.truncate(config.stream.n_tasks.unwrap_or(usize::MAX));
    let a_class = set.images as f64 / n_all as f64;
    let tasks = sizes.into_iter().map(|n| {
        let n_images = (a_class * n as f64).round() as usize;
        let n_train = (n_images as f64 * TRAIN_SHARE).round() as usize;
        Task {
            n_train,
            n_test: n_images - n_train,
            n_new_classes: n,
        }
    });
    Ok((tasks.collect(), false))
}

/// Operations of a forward pass of one image.
fn forward_flops(vit: &VitConfig) -> f64 {
    let [n, d, h] = [vit.n_tokens(), vit.d_model, vit.d_mlp].map(|n| n as f64);
    let n_patches = (vit.grid() * vit.grid()) as f64;
    let patch = (vit.patch_size * vit.patch_size * vit.n_channels) as f64;
    // Query, key, value and projection; both maps of the MLP; scores and their products with the values.
    let block = 2.0 * n * 4.0 * d * d + 2.0 * n * 2.0 * d * h + 2.0 * 2.0 * n * n * d;
    2.0 * n_patches * patch * d + vit.depth as f64 * block
}

impl Cost {
    fn of(plan: &Plan, vit: &VitConfig, data_dir: &Path) -> anyhow::Result<Self> {
        let config = plan.config();
        let method = plan.method();
        let (tasks, counted) = tasks(config, data_dir)?;
        let rounds: Vec<Task> = match method.is_joint() {
            false => tasks.clone(),
            true => vec![tasks.iter().fold(
                Task {
                    n_train: 0,
                    n_test: 0,
                    n_new_classes: 0,
                },
                |sum, task| Task {
                    n_train: sum.n_train + task.n_train,
                    n_test: sum.n_test + task.n_test,
                    n_new_classes: sum.n_new_classes + task.n_new_classes,
                },
            )],
        };
        // What is computed once and then read from a table.
        let is_table = method.keeps_features() && !config.transform.is_random();
        let head = plan.head();
        let has_query = plan.method_entry().second_pass.is_some();
        let (mut steps, mut trained, mut forward, mut n_seen_tests) = (0, 0, 0, 0);
        for (round, task) in rounds.iter().enumerate() {
            let n_batches = task.n_train.div_ceil(config.batch_size);
            if method.takes_steps_in(round) {
                let n_epochs = config.n_epochs_of(round);
                steps += n_epochs * n_batches;
                match is_table {
                    true => forward += task.n_train,
                    false => trained += n_epochs * task.n_train * method.n_passes(),
                }
            }
            let moves = method.takes_steps_in(round) && !method.keeps_features();
            if head.is_fitted() && !is_table {
                forward += task.n_train;
            }
            if moves && head.wants_features_before() {
                forward += task.n_train;
            }
            n_seen_tests += task.n_test;
            let n_done = round + 1;
            if n_done == rounds.len() || n_done.is_multiple_of(config.evaluate_every) {
                // Features that stay are those of the evaluation before.
                forward += if moves { n_seen_tests } else { task.n_test };
            }
        }
        // Features move, and neither an adapter nor prompts move them.
        let is_backbone = method.takes_steps()
            && !method.keeps_features()
            && method.adapter().is_none()
            && !has_query;
        // Back through frozen weights goes the gradient of the inputs alone.
        let per_step = if is_backbone { 3.0 } else { 2.0 } + f64::from(u8::from(has_query));
        let per_forward = 1.0 + f64::from(u8::from(has_query));
        let recomputed = f64::from(u8::from(config.gradient_checkpointing));
        let one = forward_flops(vit);
        let flops = one * (trained as f64 * (per_step + recomputed) + forward as f64 * per_forward);

        let n_classes: usize = tasks.iter().map(|task| task.n_new_classes).sum();
        let spec = method.adapter();
        let sites = spec.as_ref().map(|spec| vit.sites(&spec.projections));
        let sites = sites.unwrap_or_default();
        let widths: usize = sites.iter().map(|site| site.d_input + site.d_output).sum();
        let rank_at = |round| spec.as_ref().map_or(0, |spec| spec.ranks.at(round));
        let factors: Vec<usize> = (0..rounds.len())
            .map(|round| widths * rank_at(round))
            .collect();
        let n_backbone = vit.n_parameters();
        let a_class = vit.d_model + 1;

        let (mut checkpoints, mut n_seen) = (steps * LOSS_BYTES, 0);
        for (round, (task, n_factors)) in rounds.iter().zip(&factors).enumerate() {
            n_seen += task.n_new_classes;
            // The running direction; it becomes an object when the next one begins.
            checkpoints += n_factors * F32 + n_seen * a_class * F32 + CHECKPOINT_BYTES;
            if round + 1 < rounds.len() && *n_factors > 0 {
                checkpoints += n_factors * F32 + DIRECTION_BYTES;
            }
            if is_backbone {
                checkpoints += n_backbone * F32;
            }
        }
        let model = n_backbone + factors.iter().sum::<usize>() + n_classes * a_class;
        let disk =
            checkpoints + model * F32 + steps * STEP_BYTES + n_classes * CLASS_BYTES + RUN_BYTES;

        let n_trained = factors.iter().max().copied().unwrap_or(0)
            + if is_backbone { n_backbone } else { 0 }
            + rounds
                .iter()
                .map(|task| task.n_new_classes)
                .max()
                .unwrap_or(0)
                * a_class;
        let moments = match config.optimizer.rule {
            Rule::Sgd { momentum, .. } => usize::from(momentum > 0.0),
            Rule::Adam { .. } | Rule::AdamW { .. } => 2,
        };
        let width = if config.precision == Precision::F32 {
            F32
        } else {
            F32 / 2
        };
        let at_once = config
            .micro_batch
            .map_or(config.batch_size, |n| n.get().min(config.batch_size));
        let (n, d) = (vit.n_tokens(), vit.d_model);
        // Inputs of both norms, query, key, value, what attention gives and what is added; the MLP before and after its
        // function; and the scores.
        let block = n * (7 * d + 2 * vit.d_mlp) + vit.n_heads * n * n;
        let kept = match (is_table, config.gradient_checkpointing) {
            (true, _) => 0,
            (false, true) => vit.depth * n * d + block,
            (false, false) => vit.depth * block,
        };
        let summed: usize = sites.iter().map(|site| site.d_input * site.d_output).sum();
        let memory = Memory {
            weights: (n_backbone + summed) * width + factors.iter().sum::<usize>() * F32,
            // Gradients, too.
            optimizer: n_trained * (moments + 1) * F32,
            activations: at_once * kept * width,
            total: 0,
        };
        let total = memory.weights + memory.optimizer + memory.activations;
        let mut basis = vec![match counted {
            true => "images, classes and steps are counted in the data set".to_owned(),
            false => format!(
                "the data set is not there: its manifest gives all images, of which {:.0} % train, evenly over classes",
                100.0 * TRAIN_SHARE
            ),
        }];
        basis.push(format!(
            "operations are those of matrix products: {:.3} · 10⁹ for an image forward, {per_step} times as many in a \
             step; updates, norms, heads and decoding are left out",
            one / 1e9
        ));
        basis.push(
            "disk and memory leave out prompts, statistics of heads and a method's own arrays; memory leaves out what a \
             backend keeps in reserve"
                .into(),
        );
        Ok(Self {
            counted,
            train_images: tasks.iter().map(|task| task.n_train).sum(),
            test_images: tasks.iter().map(|task| task.n_test).sum(),
            classes: n_classes,
            tasks: tasks.len(),
            steps,
            trained_passes: trained,
            forward_passes: forward,
            flops,
            checkpoint_bytes: checkpoints,
            disk_bytes: disk,
            memory: Memory { total, ..memory },
            times: Vec::new(),
            basis,
        })
    }

    fn add_times(&mut self, args: &Args, precision: Precision, rate: f64) {
        let mut add = |device: &str, gflops: f64, measured| {
            self.times.push(Time {
                device: device.to_owned(),
                gflops,
                measured,
                seconds: self.flops / (gflops * 1e9 * args.utilisation),
            });
        };
        add(&args.device, rate / 1e9, true);
        match args.gflops {
            Some(gflops) => add("--gflops", gflops, false),
            None => {
                for (card, single, half) in CARDS {
                    let is_single = precision == Precision::F32;
                    add(card, if is_single { single } else { half }, false);
                }
            }
        }
        self.basis.push(format!(
            "time is operations over rate · {}, an assumption (`--utilisation`); the rate of {} is that of a product of \
             two matrices of {SIDE} by {SIDE}, measured now; rates of cards are those of their data sheets, \
             which a small model does not come near",
            args.utilisation, args.device
        ));
    }

    fn text(&self) -> String {
        let about = if self.counted { "" } else { "about " };
        let mut text = format!(
            "images      {about}{} to train on, {about}{} to test\nclasses     {} in {} tasks\nsteps       {about}{}\n\
             passes      {about}{} with gradients, {about}{} without\noperations  {:.3e}\ndisk        {}, of which checkpoints {}\n\
             memory      {}: weights {}, optimiser {}, activations {}\n",
            self.train_images,
            self.test_images,
            self.classes,
            self.tasks,
            self.steps,
            self.trained_passes,
            self.forward_passes,
            self.flops,
            size(self.disk_bytes),
            size(self.checkpoint_bytes),
            size(self.memory.total),
            size(self.memory.weights),
            size(self.memory.optimizer),
            size(self.memory.activations),
        );
        for time in &self.times {
            let how = if time.measured { "measured" } else { "given" };
            text += &format!(
                "time        {} on {}, {:.0} · 10⁹ operations a second ({how})\n",
                duration(time.seconds),
                time.device,
                time.gflops
            );
        }
        for line in &self.basis {
            text += &format!("note        {line}\n");
        }
        text
    }
}

fn size(bytes: usize) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    format!("{value:.1} {unit}")
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3_600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// Side of the matrices that are multiplied to measure a rate.
const SIDE: usize = 512;

/// Seconds that are measured.
const MEASURED_SECONDS: f64 = 0.3;

/// Floating-point operations a second of products on a device: the best of some.
fn product_rate(device: &Device) -> f64 {
    let matrix = Tensor::<2>::ones([SIDE, SIDE], device);
    let product = || {
        let clock = Instant::now();
        // Reading the numbers waits for them.
        let read = matrix.clone().matmul(matrix.clone()).into_data();
        std::hint::black_box(read);
        clock.elapsed().as_secs_f64()
    };
    let start = Instant::now();
    let mut least = product();
    while start.elapsed().as_secs_f64() < MEASURED_SECONDS {
        least = least.min(product());
    }
    2.0 * (SIDE * SIDE * SIDE) as f64 / least.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_of_a_vit_base_are_those_by_hand() {
        let vit = VitConfig::preset("vit_base_patch16_224").unwrap();
        // 12 blocks of 197 · 12 · 768² + 2 · 197² · 768 multiplications with additions, and 196 · 768² for patches.
        let macs = forward_flops(&vit) / 2.0;
        assert!((macs / 17.563e9 - 1.0).abs() < 0.01, "{macs:e}");
    }

    #[test]
    fn sizes_and_times_are_written_for_people() {
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(12), "12.0 B");
        assert_eq!(duration(0.3), "0.3 s");
        assert_eq!(duration(90.0), "90 s");
        assert_eq!(duration(600.0), "10 min");
        assert_eq!(duration(86_400.0), "24.0 h");
        assert_eq!(duration(864_000.0), "10.0 days");
    }
}
