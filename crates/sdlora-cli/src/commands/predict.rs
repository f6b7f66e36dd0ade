//! `sdlora predict`: name the class of images with the model of a run.

use std::path::{Path, PathBuf};

use anyhow::Context;
use burn::tensor::{Tensor, TensorData};
use sdlora_data::{Image, Split};
use sdlora_train::{Predictor, read_plan};

use crate::UsageError;
use crate::commands::Common;

/// Name the class of images
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Folder of a finished run
    #[arg(long)]
    run: PathBuf,
    /// PNG or JPEG files
    #[arg(required = true)]
    images: Vec<PathBuf>,
}

/// Images per forward pass.
const BATCH: usize = 64;

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    if !args.run.join("model").is_dir() {
        return Err(UsageError(format!(
            "{} has no model: give the folder of a finished run",
            args.run.display()
        ))
        .into());
    }
    let device = crate::device::open(&args.common.device)?;
    let config = read_plan(&args.run)?;
    let transform = config.transform.for_evaluation().init()?;
    let predictor = Predictor::load(&args.run.join("model"), &device)?;
    predictor.check(&config.transform)?;
    let [channels, height, width] = transform.shape();
    for paths in args.images.chunks(BATCH) {
        let mut pixels = vec![0.0; paths.len() * transform.n_values()];
        for (path, out) in paths
            .iter()
            .zip(pixels.chunks_exact_mut(transform.n_values()))
        {
            let base = transform.base_image(decode(path)?, &[], Split::Test, 0);
            transform.write(&base, None, out);
        }
        let shape = [paths.len(), channels, height, width];
        let images = Tensor::<4>::from_data(TensorData::new(pixels, shape), predictor.device());
        for (path, class) in paths.iter().zip(predictor.predict(images)) {
            println!("{}\t{class}", path.display());
        }
    }
    Ok(())
}

fn decode(path: &Path) -> anyhow::Result<Image> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read image {}; check the path", path.display()))?;
    Ok(Image::decode(&bytes, &path.display().to_string())?)
}
