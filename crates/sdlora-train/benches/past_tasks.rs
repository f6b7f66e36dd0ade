//! Cost of a training step in the number of past tasks.
//!
//! `cargo bench -p sdlora-train --bench past_tasks` prints images per second, the ratio to a model
//! without past tasks (median over interleaved rounds of one process, so a noisy machine moves both),
//! and the memory of a step: the largest number of bytes alive while it runs, beyond those alive
//! before it. Model: d = 192, depth 6, 32 x 32 pixels in patches of 4 (65 tokens), batch 32, rank 10
//! on query and value.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod common;

use std::time::Instant;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sdlora_testkit::allocator::{Counting, peak_of};
use sdlora_train::{Model, OptimizerConfig, cross_entropy};
use sdlora_vit::VitConfig;

use common::{N_CLASSES, RANK, model};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

const BATCH: usize = 32;
const PAST: [usize; 6] = [0, 1, 5, 10, 20, 50];
const STEPS: usize = 2;

struct Case {
    n_past: usize,
    model: Option<Model>,
    optimizer: burn::optim::ModuleOptimizer,
    seconds: Vec<f64>,
    peak: usize,
}

fn main() {
    let rounds = std::env::var("ROUNDS").map_or(9, |r| r.parse().unwrap());
    let device = Device::flex().autodiff();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let pixels: Vec<f32> = (0..BATCH * 3 * 32 * 32)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let images = Tensor::<4>::from_data(TensorData::new(pixels, [BATCH, 3, 32, 32]), &device);
    let labels: Vec<i32> = (0..BATCH).map(|i| (i % N_CLASSES) as i32).collect();
    let labels = Tensor::<1, Int>::from_data(TensorData::new(labels, [BATCH]), &device);
    let config = OptimizerConfig::sgd(1e-4);

    let shape = VitConfig::standard(32, 4, 192, 6, 3);
    let mut cases: Vec<Case> = PAST
        .iter()
        .map(|&n_past| Case {
            n_past,
            model: Some(model(&shape, n_past, &device)),
            optimizer: config.init(),
            seconds: Vec::new(),
            peak: 0,
        })
        .collect();
    for round in 0..=rounds {
        for case in &mut cases {
            let start = Instant::now();
            let (peak, ()) = peak_of(|| {
                for _ in 0..STEPS {
                    let model = case.model.take().unwrap();
                    let features = model.features(images.clone());
                    let logits = model.head.trained.as_ref().unwrap().linear(features);
                    let loss = cross_entropy(logits, labels.clone());
                    case.model = Some(config.step(&mut case.optimizer, model, &loss, config.lr));
                }
            });
            // The first round warms up.
            if round > 0 {
                case.seconds
                    .push(start.elapsed().as_secs_f64() / STEPS as f64);
                case.peak = case.peak.max(peak);
            }
        }
    }

    let stored = |n_past: usize| n_past * 12 * 2 * 192 * RANK * 4;
    println!(
        "| past tasks | images/s | speed against 0 | peak of a step, MiB | growth, MiB | stored factors, MiB |"
    );
    println!("|---|---|---|---|---|---|");
    let mib = |bytes: f64| bytes / (1024.0 * 1024.0);
    let base = cases[0].seconds.clone();
    let base_peak = cases[0].peak;
    for case in &cases {
        let ratios: Vec<f64> = base.iter().zip(&case.seconds).map(|(a, b)| a / b).collect();
        println!(
            "| {} | {:.0} | {:.3} | {:.1} | {:.1} | {:.1} |",
            case.n_past,
            BATCH as f64 / median(&case.seconds),
            median(&ratios),
            mib(case.peak as f64),
            mib(case.peak as f64 - base_peak as f64),
            mib(stored(case.n_past) as f64),
        );
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
