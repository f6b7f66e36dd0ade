//! Pre-training of a backbone: supervised on all classes of a data set at once.
//!
//! This is how the backbone that ships with the repository was made. A cosine classifier on the
//! feature learns much faster from few images a class than a linear one; it is thrown away at the
//! end.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_core::Updates;
use sdlora_data::{
    Cache, Dataset, EvalSet, ImageSource, LastBatch, Loader, LoaderConfig, Options, StreamConfig,
    TaskStream, TrainSet, TransformConfig,
};
use sdlora_vit::{Vit, VitConfig};
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::error::TrainError;
use crate::export::TensorFile;
use crate::features::{ClassMeans, FeatureTable, MeanOf, accuracy};
use crate::heads::{CosineHead, cross_entropy};
use crate::observer::{Event, Observer};
use crate::optimizer::OptimizerConfig;
use crate::rooms::EVAL_BATCH;

/// Everything a pre-training run depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainConfig {
    /// Name of the data set whose classes are learned.
    pub dataset: String,
    /// Its options.
    #[serde(default)]
    pub dataset_options: Options,
    /// Name of the data set whose classes judge the features.
    pub eval_dataset: String,
    /// Its options.
    // Left out where there are none, so that the recipe beside an interrupted run compares equal.
    #[serde(default, skip_serializing_if = "has_none")]
    pub eval_options: Options,
    /// Seed of weights, order and augmentation.
    pub seed: u64,
    /// Number of passes over the data.
    pub n_epochs: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Inverse temperature at which the cosine classifier starts.
    pub cosine_scale: f32,
    /// Epochs between checkpoints.
    pub checkpoint_every: usize,
    /// Shape of the backbone.
    pub backbone: VitConfig,
    /// How images are prepared, with the random changes of training.
    pub transform: TransformConfig,
    /// The optimiser.
    pub optimizer: OptimizerConfig,
}

fn has_none(options: &Options) -> bool {
    options.0.is_empty()
}

impl PretrainConfig {
    /// Reads a TOML text.
    ///
    /// # Errors
    ///
    /// [`TrainError::Config`] for unknown or missing keys, [`TrainError::Setting`] for values out of
    /// range.
    pub fn parse(text: &str) -> Result<Self, TrainError> {
        let config: Self = toml::from_str(text).map_err(|source| TrainError::Config {
            source: Box::new(source),
        })?;
        config.backbone.check()?;
        config.optimizer.check()?;
        for (name, value) in [
            ("n_epochs", config.n_epochs),
            ("batch_size", config.batch_size),
            ("checkpoint_every", config.checkpoint_every),
        ] {
            if value == 0 {
                return Err(TrainError::setting(name, value, "at least 1"));
            }
        }
        if config.transform.side != config.backbone.image_size
            || config.transform.channels.count() != config.backbone.n_channels
        {
            return Err(TrainError::setting(
                "transform.side",
                config.transform.side,
                "the image size and channels of the backbone",
            ));
        }
        Ok(config)
    }
}

/// Backbone and classifier while they are trained.
#[derive(Module, Debug)]
pub struct Classifier {
    /// The backbone.
    pub backbone: Vit,
    /// The classifier, thrown away at the end.
    pub head: CosineHead,
}

/// Position and log of a pre-training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PretrainLog {
    /// Epochs that are done.
    pub n_epochs_done: usize,
    /// Mean training loss of every epoch.
    pub losses: Vec<f64>,
    /// Time spent in training, over all sessions.
    pub seconds: f64,
}

/// Runs pre-training in `folder`, continuing from the newest checkpoint if there is one, and returns
/// the backbone on `device` without autodiff.
///
/// # Errors
///
/// [`TrainError::Diverged`] for a loss that is no number, and those of images and files.
pub fn pretrain(
    config: &PretrainConfig,
    dataset: Arc<dyn Dataset>,
    device: &Device,
    folder: &Path,
    observer: &mut dyn Observer,
) -> Result<(Vit, PretrainLog), TrainError> {
    let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::joint())?;
    let task = &stream.tasks()[0];
    let transform = config.transform.init()?;
    let source = Arc::new(ImageSource::new(
        dataset,
        &task.train,
        transform,
        Cache::Memory,
    )?);
    let loader = LoaderConfig::training(config.batch_size)
        .with_last_batch(LastBatch::Drop)
        .init(source, config.seed)?;

    let autodiff = device.clone().autodiff();
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let mut model = Classifier {
        backbone: Vit::init(&config.backbone, &mut rng, &autodiff)?,
        head: CosineHead::init(
            config.backbone.d_model,
            stream.n_classes(),
            config.cosine_scale,
            &mut rng,
            &autodiff,
        ),
    };
    let mut optimizer = config.optimizer.init();
    let mut log = PretrainLog::default();
    let checkpoints = folder.join("checkpoints");
    if let Some(path) = checkpoint::latest(&checkpoints) {
        let saved = checkpoint::load::<PretrainLog>(&path)?;
        model = model
            .try_load_record(saved.model)
            .map_err(|e| TrainError::Checkpoint {
                path: path.clone(),
                problem: e.to_string(),
            })?;
        if let Some(record) = saved.optimizer {
            optimizer = optimizer.load_record(record);
        }
        log = saved.state;
        observer.event(&Event::Resumed { path: &path });
    }

    let n_steps = config.n_epochs * loader.n_batches();
    let none = Updates::default();
    observer.event(&Event::TaskStarted {
        task_idx: 0,
        n_tasks: 1,
        n_new_classes: stream.n_classes(),
        n_seen_classes: stream.n_classes(),
        n_images: loader.n_samples(),
        n_steps,
        n_trained: model.num_params(),
    });
    for epoch in log.n_epochs_done..config.n_epochs {
        let start = Instant::now();
        let mut sum = 0.0;
        for batch in loader.epoch(epoch, &autodiff) {
            let batch = batch?;
            let step = epoch * loader.n_batches() + batch.idx;
            let factor = config.optimizer.lr_factor(step, n_steps, epoch);
            let n_images = batch.len();
            let logits = model
                .head
                .forward(model.backbone.forward(batch.images, &none));
            let loss = cross_entropy(logits, batch.labels);
            let value = f64::from(loss.clone().into_scalar::<f32>());
            if !value.is_finite() {
                return Err(TrainError::Diverged {
                    task_idx: 0,
                    step,
                    loss: value,
                });
            }
            model = config.optimizer.step(&mut optimizer, model, &loss, factor);
            sum += value;
            observer.event(&Event::Step {
                task_idx: 0,
                epoch,
                step,
                n_steps,
                n_images,
                loss: value,
                lr: config.optimizer.lr * factor,
            });
        }
        log.losses.push(sum / loader.n_batches() as f64);
        log.n_epochs_done = epoch + 1;
        log.seconds += start.elapsed().as_secs_f64();
        if log.n_epochs_done % config.checkpoint_every == 0 || log.n_epochs_done == config.n_epochs
        {
            let older = checkpoint::names(&checkpoints);
            let name = format!("epoch-{:05}", log.n_epochs_done);
            let record = model.clone().into_record();
            let path = checkpoint::save(
                &checkpoints,
                &name,
                record,
                Some(&optimizer),
                &TensorFile::default(),
                &log,
            )?;
            checkpoint::remove(&checkpoints, &older);
            observer.event(&Event::Checkpointed { path: &path });
        }
    }
    Ok((model.valid().backbone, log))
}

/// Nearest class mean on frozen features: means from the training half, accuracy over all images
/// of the test half, all classes jointly.
///
/// # Errors
///
/// Those of reading the images.
pub fn nearest_mean_accuracy(
    vit: &Vit,
    dataset: &Arc<dyn Dataset>,
    transform: &TransformConfig,
    device: &Device,
) -> Result<f64, TrainError> {
    let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::joint())?;
    let task = &stream.tasks()[0];
    let transform = transform.for_evaluation();
    let train = evaluation_loader(dataset, Half::Train(&task.train), &transform)?;
    let test = evaluation_loader(dataset, Half::Test(&task.test), &transform)?;
    let means = ClassMeans::of(
        &FeatureTable::extract(vit, &train, device)?,
        MeanOf::Directions,
    );
    let test = FeatureTable::extract(vit, &test, device)?;
    Ok(accuracy(&means.predict(&test), &test.labels))
}

enum Half<'a> {
    Train(&'a TrainSet),
    Test(&'a EvalSet),
}

fn evaluation_loader(
    dataset: &Arc<dyn Dataset>,
    half: Half<'_>,
    transform: &TransformConfig,
) -> Result<Loader, TrainError> {
    let transform = transform.init()?;
    let source = match half {
        Half::Train(set) => ImageSource::new(dataset.clone(), set, transform, Cache::None)?,
        Half::Test(set) => ImageSource::new(dataset.clone(), set, transform, Cache::None)?,
    };
    Ok(LoaderConfig::evaluation(EVAL_BATCH).init(Arc::new(source), 0)?)
}

/// What the model card says of the run, as flat text for the metadata of the weight file.
pub fn card_metadata(
    config: &PretrainConfig,
    log: &PretrainLog,
    ncm: f64,
) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("sdlora.pretrain.dataset".into(), config.dataset.clone()),
        ("sdlora.pretrain.seed".into(), config.seed.to_string()),
        (
            "sdlora.pretrain.n_epochs".into(),
            log.n_epochs_done.to_string(),
        ),
        ("sdlora.pretrain.ncm_accuracy".into(), format!("{ncm:.4}")),
    ])
}
