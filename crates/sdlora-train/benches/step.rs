//! One training step, or one pass of inference, of the models that are compared with PyTorch.
//!
//! `cargo xtask bench --against pytorch` starts this program and its counterpart
//! `crates/sdlora-testkit/python/bench_pytorch.py` side by side and asks them in turn.
//! `step MODEL MODE PAST THREADS BATCH PRECISION` builds one case, then answers every line `N` of
//! its input, a number of steps, with one line `WALL PROCESSOR PEAK`: seconds of one step by the
//! clock and by the processor (all threads together), and the bytes the process grew since the model
//! stood, or those its device then holds where that one has a memory of its own.
//! Modes are `infer`, `train`, and of training `train-checkpointing` (blocks computed again) and
//! `train-burn-checkpointing` (burn's strategy). The device is that of the tests, chosen by
//! `SDLORA_TEST_DEVICE`.
//! `step product train 0 THREADS N PRECISION` times a product of two matrices [N, N] instead: the rate that the device
//! reaches at most with what burn launches.
//! Without these arguments (`cargo xtask bench --bench step`) it prints a table of the smallest
//! model.
//!
//! Rank 10 on query and value, 10 classes, gradient descent with momentum; inference runs the
//! merged model without autodiff, as evaluation and prediction do.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod common;

use std::io::{BufRead, Write};
use std::time::Instant;

use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, FloatDType, Int, Tensor, TensorData};
use cpu_time::ProcessTime;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sdlora_core::Updates;
use sdlora_testkit::test_device;
use sdlora_train::{Model, OptimizerConfig, Precision, Recompute, TrainedHead, cross_entropy};
use sdlora_vit::{Vit, VitConfig};

use common::{N_CLASSES, model};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Shape of a model by its name in the table.
fn shape(name: &str) -> VitConfig {
    match name {
        "small" => VitConfig::standard(32, 4, 192, 6, 3),
        "vit-ti" => VitConfig::standard(224, 16, 192, 12, 3),
        "vit-b" => VitConfig::standard(224, 16, 768, 12, 12),
        _ => panic!("no model `{name}`: small, vit-ti or vit-b"),
    }
}

#[allow(clippy::large_enum_variant, reason = "there is one")]
enum Work {
    Train {
        model: Option<Model>,
        optimizer: ModuleOptimizer,
        config: OptimizerConfig,
        /// Whether blocks are computed again in the backward pass.
        checkpoints: bool,
        labels: Tensor<1, Int>,
    },
    Infer {
        backbone: Vit,
        head: TrainedHead,
    },
    Product {
        left: Option<Tensor<2>>,
        right: Tensor<2>,
    },
}

struct Case {
    work: Work,
    images: Tensor<4>,
    device: Device,
}

impl Case {
    /// A chain of products of matrices `[n, n]`, whose entries neither grow nor vanish.
    fn product(n: usize, precision: Precision) -> Self {
        let device = test_device();
        let matrix = || {
            let spread = Distribution::Normal(0.0, (n as f64).powf(-0.5));
            Tensor::<2>::random([n, n], spread, &device).cast(match precision {
                Precision::F32 => FloatDType::F32,
                Precision::Bf16 => FloatDType::BF16,
                Precision::F16 => FloatDType::F16,
            })
        };
        Self {
            work: Work::Product {
                left: Some(matrix()),
                right: matrix(),
            },
            images: Tensor::zeros([1, 1, 1, 1], &device),
            device,
        }
    }

    fn new(name: &str, mode: &str, n_past: usize, batch: usize, precision: Precision) -> Self {
        let config = shape(name);
        let device = test_device();
        let device = match mode {
            "infer" => device,
            "train-burn-checkpointing" => device.autodiff().gradient_checkpointing(),
            _ => device.autodiff(),
        };
        let side = config.image_size;
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let pixels: Vec<f32> = (0..batch * 3 * side * side)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let data = TensorData::new(pixels, [batch, 3, side, side]);
        let images = Tensor::from_data(data, &device);
        let mut model = model(&config, n_past, &device);
        if mode != "infer" {
            model.backbone = model.backbone.with_precision(precision);
        }
        let work = match mode {
            "train" | "train-checkpointing" | "train-burn-checkpointing" => {
                let labels: Vec<i32> = (0..batch).map(|i| (i % N_CLASSES) as i32).collect();
                let config = OptimizerConfig::sgd(1e-4);
                Work::Train {
                    model: Some(model),
                    optimizer: config.init(),
                    config,
                    checkpoints: mode == "train-checkpointing",
                    labels: Tensor::from_data(TensorData::new(labels, [batch]), &device),
                }
            }
            "infer" => Work::Infer {
                backbone: model.merged_backbone().with_precision(precision),
                head: model.head.trained.unwrap(),
            },
            _ => panic!(
                "no mode `{mode}`: infer, train, train-checkpointing or train-burn-checkpointing"
            ),
        };
        Self {
            work,
            images,
            device,
        }
    }

    fn step(&mut self) {
        match &mut self.work {
            Work::Train {
                model,
                optimizer,
                config,
                checkpoints,
                labels,
            } => {
                let net = model.take().unwrap();
                let (features, blocks) = match checkpoints {
                    true => {
                        let (features, blocks) = Recompute::features(&net, &self.images).unwrap();
                        (features, Some(blocks))
                    }
                    false => (net.features(self.images.clone()), None),
                };
                let logits = net.head.trained.as_ref().unwrap().linear(features);
                let loss = cross_entropy(logits, labels.clone());
                let Some(blocks) = blocks else {
                    *model = Some(config.step(optimizer, net, &loss, 1.0));
                    return;
                };
                let mut found = loss.backward();
                let mut sum = GradientsAccumulator::new();
                sum.accumulate(&net, GradientsParams::from_module(&mut found, &net));
                blocks.backward(&net, &mut found, |new| sum.accumulate(&net, new));
                *model = Some(config.apply(optimizer, net, sum.grads(), config.lr.into()));
            }
            Work::Infer { backbone, head } => {
                let features = backbone.forward(self.images.clone(), &Updates::default());
                head.linear(features).into_data();
            }
            Work::Product { left, right } => {
                *left = Some(left.take().unwrap().matmul(right.clone()));
            }
        }
    }

    /// Seconds of one step by the clock and by the processor.
    fn time(&mut self, n_steps: usize) -> (f64, f64) {
        let (wall, processor) = (Instant::now(), ProcessTime::now());
        for _ in 0..n_steps {
            self.step();
        }
        // A device with a queue has only been told what to do.
        self.device.sync().unwrap();
        let n = n_steps as f64;
        (
            wall.elapsed().as_secs_f64() / n,
            processor.elapsed().as_secs_f64() / n,
        )
    }
}

/// A number of bytes from `/proc/self/status`; 0 where there is none.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(field));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok())
        .unwrap_or(0)
        * 1024
}

fn serve(mut case: Case) {
    // The kernel forgets the peak of the set-up.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let before = status("VmRSS");
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let n_steps: usize = line.unwrap().trim().parse().unwrap();
        let (wall, processor) = case.time(n_steps);
        let peak = match case.device.memory_pool_usage() {
            Some(usage) => usage.bytes_reserved as usize,
            None => status("VmHWM").saturating_sub(before),
        };
        println!("{wall} {processor} {peak}");
        std::io::stdout().flush().unwrap();
    }
}

fn main() {
    // As `allocator.rs` of the command line: option 15 of mimalloc is how many milliseconds free
    // memory is kept.
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets one number of the allocator.
        unsafe { libmimalloc_sys::mi_option_set(15, 60_000) };
    }
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if let [name, mode, n_past, threads, batch, precision] = &args[..] {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.parse().unwrap())
            .build_global()
            .unwrap();
        let precision = match &precision[..] {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            "f16" => Precision::F16,
            _ => panic!("no precision `{precision}`: f32, bf16 or f16"),
        };
        let (n_past, batch) = (n_past.parse().unwrap(), batch.parse().unwrap());
        if name == "product" {
            return serve(Case::product(batch, precision));
        }
        return serve(Case::new(name, mode, n_past, batch, precision));
    }
    println!("| past tasks | mode | ms of a step | processor ms |");
    println!("|---|---|---|---|");
    for mode in ["train", "infer"] {
        for n_past in [0, 20] {
            let mut case = Case::new("small", mode, n_past, 32, Precision::F32);
            case.time(2);
            let mut times: Vec<(f64, f64)> = (0..9).map(|_| case.time(2)).collect();
            times.sort_by(|a, b| a.1.total_cmp(&b.1));
            let (wall, processor) = times[times.len() / 2];
            println!(
                "| {n_past} | {mode} | {:.1} | {:.1} |",
                1e3 * wall,
                1e3 * processor
            );
        }
    }
}
