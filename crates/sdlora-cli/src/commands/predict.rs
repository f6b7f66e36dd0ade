//! `sdlora predict`: name the class of images with the model of a run.

use std::path::PathBuf;

use burn::tensor::{Tensor, TensorData};
use sdlora_data::{datasets, open_image};
use sdlora_image::Rotation;
use sdlora_train::{Predictor, read_plan};

use crate::UsageError;
use crate::commands::Common;
use crate::output::answer;
use crate::shown::{shown, shown_path};

/// Name the class of images
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Folder of a finished run
    #[arg(long)]
    run: PathBuf,
    /// Which side of an image is up: `exif`, what its EXIF data say, or `stored`, its first row of pixels. That of the
    /// run's data set when absent
    #[arg(long, value_parser = rotation, value_name = "exif|stored")]
    rotation: Option<Rotation>,
    /// Image files (PNG, JPEG, WebP, BMP, PNM)
    #[arg(required = true)]
    images: Vec<PathBuf>,
}

/// Images per forward pass.
const BATCH: usize = 64;

/// Runs the command. An image that cannot be read has an error for its class, and the command fails at the end.
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
    let mut reading = datasets::image_reading(&config.dataset, &config.dataset_options)?;
    reading.rotation = args.rotation.unwrap_or(reading.rotation);
    let transform = config.transform.for_evaluation().init()?;
    let predictor = Predictor::load(&args.run.join("model"), &device)?;
    predictor.check(&config.transform)?;
    let [channels, height, width] = transform.shape();
    let mut n_failed = 0;
    for paths in args.images.chunks(BATCH) {
        let mut pixels = Vec::new();
        let mut problems = Vec::with_capacity(paths.len());
        for path in paths {
            let problem = match open_image(path, reading) {
                Ok(image) => {
                    let base = transform.base_image(image);
                    let start = pixels.len();
                    pixels.resize(start + transform.n_values(), 0.0);
                    transform.write(&base, None, &mut pixels[start..]);
                    None
                }
                Err(error) => Some(anyhow::Error::from(error)),
            };
            problems.push(problem);
        }
        let n_read = pixels.len() / transform.n_values();
        let mut classes = Vec::new();
        if n_read > 0 {
            let shape = [n_read, channels, height, width];
            let images = Tensor::<4>::from_data(TensorData::new(pixels, shape), predictor.device());
            classes = predictor.predict(images);
        }
        let mut classes = classes.into_iter();
        for (path, problem) in paths.iter().zip(problems) {
            let line = match problem {
                None => classes.next().unwrap_or_default().to_owned(),
                Some(error) => {
                    n_failed += 1;
                    format!("error: {error:#}")
                }
            };
            answer!("{}\t{}", shown_path(path), shown(&line))?;
        }
    }
    if n_failed > 0 {
        anyhow::bail!(
            "{n_failed} of {} images cannot be read: their lines say why",
            args.images.len()
        );
    }
    Ok(())
}

fn rotation(text: &str) -> Result<Rotation, String> {
    match text {
        "exif" => Ok(Rotation::Exif),
        "stored" => Ok(Rotation::Stored),
        _ => Err("expected exif or stored".to_owned()),
    }
}
