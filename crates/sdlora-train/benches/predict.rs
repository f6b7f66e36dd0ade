//! Images that `sdlora predict` names in a second, beside those of inference alone.
//!
//! `cargo xtask bench --photographs FOLDER` starts it on a folder of JPEG photographs; by itself it looks for the
//! folder in `SDLORA_PHOTOGRAPHS`, and does nothing without. The model is a ViT-Ti/16 at 224 pixels with ten classes.
//! Rounds alternate between three pieces of work on the same images, in batches of 32 as `predict` has them:
//!
//! - inference: the forward pass and the classifier, of a batch that is ready,
//! - decoding: the loader alone, from files to batches,
//! - predicting: both, the loader beside the forward pass.
//!
//! The last line is what the project promises: predicting has at least 0.9 of the images of inference.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use sdlora_data::{ImageList, Loader};
use sdlora_image::{ImageReading, TransformConfig};
use sdlora_testkit::test_device;
use sdlora_train::heads::Classifier;
use sdlora_train::{Extractor, FeatureTable};
use sdlora_vit::VitConfig;

use common::{N_CLASSES, model};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Images of a forward pass, as in `sdlora predict`.
const BATCH: usize = 32;
const N_ROUNDS: usize = 7;
const SIDE: usize = 224;

/// What published ViTs are evaluated with.
const TRANSFORM: &str = r#"{
    "side": 224, "channels": "rgb",
    "pipeline": {
        "train": [{"resize": {"size": 248, "interpolation": "bicubic"}}, {"center_crop": 224}],
        "test": [{"resize": {"size": 248, "interpolation": "bicubic"}}, {"center_crop": 224}]
    },
    "normalise": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
}"#;

struct Work {
    extractor: Extractor,
    classifier: Classifier,
    device: Device,
    loader: Loader,
    n_images: usize,
}

impl Work {
    fn name(&self, images: Tensor<4>) {
        let features = self.extractor.features(images);
        let [n, d_model] = features.dims();
        let table = FeatureTable {
            features: features.into_data().iter::<f32>().collect(),
            d_model,
            labels: vec![0; n],
            ..FeatureTable::default()
        };
        assert_eq!(self.classifier.logits(&table).len(), n * N_CLASSES);
    }

    /// Images a second of inference, of decoding, and of both.
    fn round(&self) -> [f64; 3] {
        let rate = |work: &dyn Fn()| {
            let start = Instant::now();
            work();
            self.n_images as f64 / start.elapsed().as_secs_f64()
        };
        let inference = rate(&|| {
            for first in (0..self.n_images).step_by(BATCH) {
                let n = BATCH.min(self.n_images - first);
                self.name(Tensor::ones([n, 3, SIDE, SIDE], &self.device));
            }
        });
        let decoding = rate(&|| {
            self.loader
                .host_epoch(0)
                .for_each(|batch| drop(batch.unwrap()))
        });
        let predicting = rate(&|| {
            for batch in self.loader.host_epoch(0) {
                self.name(batch.unwrap().into_batch(&self.device).images);
            }
        });
        [inference, decoding, predicting]
    }
}

fn main() {
    // As `allocator.rs` of the command line: option 15 of mimalloc is how many milliseconds free memory is kept.
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets one number of the allocator.
        unsafe { libmimalloc_sys::mi_option_set(15, 60_000) };
    }
    let Some(folder) = std::env::var_os("SDLORA_PHOTOGRAPHS").map(PathBuf::from) else {
        println!("predict: left out, because SDLORA_PHOTOGRAPHS names no folder of photographs");
        return;
    };
    let device = test_device();
    let config = VitConfig::standard(SIDE, 16, 192, 12, 3);
    let list = Arc::new(ImageList::new([folder.clone()], ImageReading::default()));
    let transform: TransformConfig = serde_json::from_str(TRANSFORM).unwrap();
    let loader = list.loader(transform.init().unwrap(), BATCH).unwrap();
    let n_images = list.images().len();
    assert!(
        n_images >= BATCH,
        "{} has {n_images} images",
        folder.display()
    );
    let d_model = config.d_model;
    let work = Work {
        extractor: model(&config, 0, &device).extractor(),
        classifier: Classifier::linear(vec![0.01; N_CLASSES * d_model], d_model, None),
        device,
        loader,
        n_images,
    };
    work.round();
    for position in 0..n_images {
        if let Some(problem) = list.take_problem(position) {
            panic!("{problem}");
        }
    }
    let rounds: Vec<[f64; 3]> = (0..N_ROUNDS).map(|_| work.round()).collect();
    let median = |of: &dyn Fn(&[f64; 3]) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        (values[N_ROUNDS / 2], values[0], values[N_ROUNDS - 1])
    };
    println!("{n_images} images, {N_ROUNDS} rounds, median (lowest, highest)");
    for (i, name) in ["inference", "decoding", "predicting"].iter().enumerate() {
        let (middle, low, high) = median(&|round| round[i]);
        println!("{name:<11} {middle:>8.1} images/s ({low:.1}, {high:.1})");
    }
    let (share, low, high) = median(&|round| round[2] / round[0]);
    println!("predicting has {share:.3} of inference ({low:.3}, {high:.3})");
}
