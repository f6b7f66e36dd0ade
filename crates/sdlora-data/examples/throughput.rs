//! Images a second of the pre-training pipeline: Omniglot background, random affine, 28 pixels.
//!
//! `cargo run --release --example throughput`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use sdlora_data::{
    Cache, DataError, Dataset, ImageSource, LoaderConfig, Options, StreamConfig, TaskStream,
    datasets,
};
use sdlora_image::{AugmentConfig, RandomAffine, TransformConfig};

#[expect(
    clippy::print_stdout,
    reason = "the numbers are what this program is for"
)]
fn main() -> Result<(), DataError> {
    let data_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    for name in ["omniglot-evaluation", "omniglot-background"] {
        let start = Instant::now();
        datasets::open(name, &data_dir, &Options::none())?;
        println!("open {name}: {:.3} s", start.elapsed().as_secs_f64());
    }

    let options = Options::none().with("train_drawers", 20);
    let dataset: Arc<dyn Dataset> =
        datasets::open("omniglot-background", &data_dir, &options)?.into();
    let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::joint())?;
    let transform = TransformConfig::omniglot(28).with_augment(AugmentConfig {
        affine: Some(RandomAffine::default()),
        ..Default::default()
    });

    for cache in [Cache::Memory, Cache::None] {
        let start = Instant::now();
        let train = &stream.tasks()[0].train;
        let source = ImageSource::new(Arc::clone(&dataset), train, transform.init()?, cache);
        let source = Arc::new(source);
        let n = source.set().len();
        println!(
            "{cache:?}: source of {n} images in {:.3} s",
            start.elapsed().as_secs_f64()
        );
        for (prefetch, workers) in [(0, 1), (2, 1), (2, 2)] {
            let config = LoaderConfig::training(128)
                .with_prefetch(prefetch)
                .with_workers(workers);
            let loader = config.init(Arc::clone(&source), 0)?;
            let start = Instant::now();
            let mut sum = 0.0;
            for batch in loader.host_epoch(0) {
                sum += batch?.pixels.iter().map(|&v| f64::from(v)).sum::<f64>();
            }
            let rate = n as f64 / start.elapsed().as_secs_f64();
            println!(
                "  prefetch {prefetch}, workers {workers}: {rate:.0} images/s (checksum {sum:.3})"
            );
        }
    }
    Ok(())
}
