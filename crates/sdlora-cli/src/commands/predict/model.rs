//! The model that a command predicts with, and how it wants its images.

use std::path::PathBuf;

use burn::tensor::Device;
use sdlora_data::datasets;
use sdlora_image::{ImageReading, Rotation, Transform};
use sdlora_train::{Calibrated, PLAN_FILE, PredictConfig, Predictor, UnpackedBundle, read_plan};

use crate::UsageError;
use crate::commands::run_parser;

/// Options that name a model.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArgs {
    /// Folder or name of a finished run, its folder `model`, which is enough by itself, or the one file that
    /// `export --format bundle` writes
    #[arg(long, visible_alias = "model", value_name = "RUN|DIR|FILE", value_parser = run_parser())]
    pub run: PathBuf,
    /// Which side of an image is up: `exif`, what its EXIF data say, or `stored`, its first row of pixels. That of the
    /// run's data set when absent
    #[arg(long, value_parser = rotation, value_name = "exif|stored")]
    rotation: Option<Rotation>,
}

/// A model with all that a prediction needs.
pub struct Model {
    pub predictor: Predictor,
    pub transform: Transform,
    pub reading: ImageReading,
    /// What was fitted on held-out images.
    pub calibrated: Option<Calibrated>,
    /// The folder it comes from.
    pub folder: PathBuf,
}

impl ModelArgs {
    /// Reads the model.
    ///
    /// # Errors
    ///
    /// Usage errors for a folder without a model, and for one of an earlier version without its run; those of damaged
    /// files.
    pub fn open(&self, device: &Device) -> anyhow::Result<Model> {
        // Unpacked until the model is in memory.
        let bundle = match self.run.is_file() {
            true => Some(UnpackedBundle::open(&self.run)?),
            false => None,
        };
        let run = bundle
            .as_ref()
            .map_or(self.run.as_path(), UnpackedBundle::folder);
        let below = run.join("model");
        let folder = match below.is_dir() {
            true => below,
            false if run.join("vit.safetensors").is_file() => run.to_path_buf(),
            false => {
                return Err(UsageError(format!(
                    "{} has no model: give the folder of a finished run, or its folder `model`",
                    self.run.display()
                ))
                .into());
            }
        };
        let predictor = Predictor::load(&folder, device)?;
        let config = match predictor.config() {
            Some(config) => config.clone(),
            None => self.of_plan(&folder)?,
        };
        predictor.check(&config.transform)?;
        let mut reading = config.reading();
        reading.rotation = self.rotation.unwrap_or(reading.rotation);
        Ok(Model {
            predictor,
            transform: config.transform.init()?,
            reading,
            calibrated: config.calibrated,
            folder,
        })
    }

    /// How a model of an earlier version wants its images, from the plan of its run.
    fn of_plan(&self, folder: &std::path::Path) -> anyhow::Result<PredictConfig> {
        let above = folder.canonicalize().ok();
        let above = above.as_deref().and_then(|folder| folder.parent());
        let run = [Some(self.run.as_path()), above]
            .into_iter()
            .flatten()
            .find(|run| run.join(PLAN_FILE).is_file());
        let Some(run) = run else {
            return Err(UsageError(format!(
                "{} is of an earlier version and does not say how images are prepared: give the folder of its run, \
                 with {PLAN_FILE}",
                folder.display()
            ))
            .into());
        };
        let plan = read_plan(run)?;
        let reading = datasets::image_reading(&plan.dataset, &plan.dataset_options)?;
        Ok(PredictConfig::new(&plan.transform, reading))
    }
}

fn rotation(text: &str) -> Result<Rotation, String> {
    match text {
        "exif" => Ok(Rotation::Exif),
        "stored" => Ok(Rotation::Stored),
        _ => Err("expected exif or stored".to_owned()),
    }
}
