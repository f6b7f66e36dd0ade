//! Pre-training of a backbone: supervised on all classes of a data set at once.
//!
//! This is how the backbone that ships with the repository was made. A cosine classifier on the
//! feature learns much faster from few images a class than a linear one; it is thrown away at the
//! end.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_core::Updates;
use sdlora_data::{
    Cache, Dataset, EvalSet, ImageSource, LastBatch, Loader, LoaderConfig, Options, StreamConfig,
    TaskStream, TrainSet,
};
use sdlora_image::TransformConfig;
use sdlora_vit::{Vit, VitConfig};
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::error::TrainError;
use crate::export::TensorFile;
use crate::extractor::Extractor;
use crate::features::{ClassMeans, FeatureTable, MeanOf, accuracy};
use crate::files;
use crate::fingerprint::{Compared, Fingerprint};
use crate::folder_lock::FolderLock;
use crate::heads::{CosineHead, cross_entropy};
use crate::observer::{Event, Observer};
use crate::optimizer::OptimizerConfig;
use crate::run_data::EVAL_BATCH;
use crate::soundness::unsound_parameter;

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
        config.check()?;
        Ok(config)
    }

    /// Checks that the settings hold together.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] naming the first one that does not.
    pub fn check(&self) -> Result<(), TrainError> {
        self.backbone.check()?;
        self.transform.init()?;
        self.optimizer.check()?;
        for (name, value) in [
            ("n_epochs", self.n_epochs),
            ("batch_size", self.batch_size),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            if value == 0 {
                return Err(TrainError::setting(name, value, "at least 1"));
            }
        }
        if self.transform.side != self.backbone.image_size
            || self.transform.channels.count() != self.backbone.n_channels
        {
            return Err(TrainError::setting(
                "transform.side",
                self.transform.side,
                "the image size and channels of the backbone",
            ));
        }
        self.optimizer.check_epochs(self.n_epochs)
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
    /// Steps of the running epoch that are done; 0 between epochs.
    #[serde(default)]
    pub n_steps_done: usize,
    /// Sum of their losses.
    #[serde(default)]
    pub loss_sum: f64,
    /// Mean training loss of every epoch.
    pub losses: Vec<f64>,
    /// Time spent in training, over all sessions.
    pub seconds: f64,
}

/// A pre-training run as a checkpoint keeps it.
#[derive(Serialize, Deserialize)]
struct Position {
    #[serde(flatten)]
    log: PretrainLog,
    /// What the observer said of its own log.
    #[serde(default)]
    mark: Option<u64>,
}

/// A pre-training run before its first step: nothing is left that settings or data could refuse, and nothing
/// has been written.
pub struct Pretraining<'a> {
    config: &'a PretrainConfig,
    loader: Loader,
    n_classes: usize,
    model: Classifier,
    fingerprint: Fingerprint,
    device: Device,
}

impl<'a> Pretraining<'a> {
    /// Makes the images ready and draws the weights; what is trained will lie on `device`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for settings that do not hold together or do not fit the data set, and those of
    /// images.
    pub fn prepare(
        config: &'a PretrainConfig,
        dataset: Arc<dyn Dataset>,
        device: &Device,
    ) -> Result<Self, TrainError> {
        config.check()?;
        let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::joint())?;
        let task = &stream.tasks()[0];
        let transform = config.transform.init()?;
        let fingerprint = Fingerprint::of(dataset.as_ref(), None);
        let source = Arc::new(ImageSource::new(
            dataset,
            &task.train,
            transform,
            Cache::Auto,
        ));
        let loader = LoaderConfig::training(config.batch_size)
            .with_last_batch(LastBatch::Drop)
            .init(source, config.seed)?;

        let autodiff = device.clone().autodiff();
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let model = Classifier {
            backbone: Vit::init(&config.backbone, &mut rng, &autodiff)?,
            head: CosineHead::init(
                config.backbone.d_model,
                stream.n_classes(),
                config.cosine_scale,
                &mut rng,
                &autodiff,
            ),
        };
        Ok(Self {
            config,
            loader,
            n_classes: stream.n_classes(),
            model,
            fingerprint,
            device: device.clone(),
        })
    }

    /// Runs in the folder of `lock`, continuing from the newest checkpoint if there is one, and returns the
    /// backbone without autodiff.
    ///
    /// # Errors
    ///
    /// [`TrainError::Diverged`] for a loss that is no number, [`TrainError::Unsound`] for parameters that are
    /// none before a checkpoint, [`TrainError::DataChanged`] when the data set is not the one it was started
    /// on, [`TrainError::Stopped`] when the observer wants it, and those of images and files.
    pub fn run(
        self,
        lock: &FolderLock,
        observer: &mut dyn Observer,
    ) -> Result<(Vit, PretrainLog), TrainError> {
        let Self {
            config,
            loader,
            n_classes,
            mut model,
            fingerprint,
            device,
        } = self;
        let (folder, autodiff) = (lock.folder(), device.autodiff());
        let mut optimizer = config.optimizer.init();
        let mut log = PretrainLog::default();
        let checkpoints = folder.join("checkpoints");
        files::clean(folder);
        checkpoint::clean(&checkpoints);
        match checkpoint::latest(&checkpoints) {
            Some(path) => {
                fingerprint.check(folder)?;
                let saved = checkpoint::load::<Position>(&path)?;
                model = model
                    .try_load_record(saved.model)
                    .map_err(|e| TrainError::checkpoint(&path, e.to_string()))?;
                if let Some(record) = saved.optimizer {
                    optimizer = optimizer.load_record(record);
                }
                log = saved.state.log;
                observer.event(&Event::Resumed {
                    path: Some(&path),
                    task_idx: 0,
                    n_steps: log.n_epochs_done * loader.n_batches() + log.n_steps_done,
                    mark: saved.state.mark,
                    log: None,
                });
            }
            None if fingerprint.compare(folder)? != Compared::Unknown => {
                observer.event(&Event::Resumed {
                    path: None,
                    task_idx: 0,
                    n_steps: 0,
                    mark: Some(0),
                    log: None,
                });
            }
            None => {}
        }
        fingerprint.write(folder)?;

        let n_steps = config.n_epochs * loader.n_batches();
        let none = Updates::default();
        observer.event(&Event::TaskStarted {
            task_idx: 0,
            n_tasks: 1,
            n_new_classes: n_classes,
            n_seen_classes: n_classes,
            n_images: loader.n_samples(),
            n_steps,
            n_trained: model.num_params(),
        });
        for epoch in log.n_epochs_done..config.n_epochs {
            let (start, before) = (Instant::now(), log.seconds);
            let batches = loader.epoch(epoch, &autodiff).skip_to(log.n_steps_done)?;
            for batch in batches {
                let batch = batch?;
                let step = epoch * loader.n_batches() + batch.idx;
                let lr = config.optimizer.lr_at(step, n_steps, epoch);
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
                model = config.optimizer.step(&mut optimizer, model, &loss, lr);
                log.loss_sum += value;
                log.n_steps_done += 1;
                log.seconds = before + start.elapsed().as_secs_f64();
                observer.event(&Event::Step {
                    task_idx: 0,
                    epoch,
                    step,
                    n_steps,
                    n_images,
                    loss: value,
                    lr,
                });
                if observer.wants_stop() {
                    let path = save(lock, &model, &optimizer, &log, step + 1, observer)?;
                    return Err(TrainError::Stopped {
                        path: Some(path),
                        task_idx: 0,
                        n_steps: step + 1,
                    });
                }
            }
            log.losses.push(log.loss_sum / loader.n_batches() as f64);
            (log.n_steps_done, log.loss_sum) = (0, 0.0);
            log.n_epochs_done = epoch + 1;
            log.seconds = before + start.elapsed().as_secs_f64();
            if log.n_epochs_done % config.checkpoint_every == 0
                || log.n_epochs_done == config.n_epochs
            {
                let n_steps = log.n_epochs_done * loader.n_batches();
                save(lock, &model, &optimizer, &log, n_steps, observer)?;
            }
        }
        Ok((model.valid().backbone, log))
    }
}

/// Writes a checkpoint and removes the others.
fn save(
    lock: &FolderLock,
    model: &Classifier,
    optimizer: &ModuleOptimizer,
    log: &PretrainLog,
    n_steps: usize,
    observer: &mut dyn Observer,
) -> Result<PathBuf, TrainError> {
    lock.check()?;
    if let Some(what) = unsound_parameter(model) {
        return Err(TrainError::Unsound {
            what,
            task_idx: 0,
            n_steps,
        });
    }
    let checkpoints = lock.folder().join("checkpoints");
    let name = match log.n_steps_done {
        0 => format!("epoch-{:05}", log.n_epochs_done),
        n => format!("epoch-{:05}-step-{n:07}", log.n_epochs_done),
    };
    let mut older = checkpoint::names(&checkpoints);
    older.retain(|other| *other != name);
    let position = Position {
        log: log.clone(),
        mark: observer.mark(),
    };
    let path = checkpoint::save(
        &checkpoints,
        &name,
        model.clone().into_record(),
        Some(optimizer),
        &TensorFile::default(),
        &position,
    )?;
    checkpoint::remove(&checkpoints, &older);
    observer.event(&Event::Checkpointed { path: &path });
    Ok(path)
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
    let extractor = Extractor::from(vit.clone());
    let means = ClassMeans::of(
        &FeatureTable::extract(&extractor, &train, device)?,
        MeanOf::Directions,
    );
    let test = FeatureTable::extract(&extractor, &test, device)?;
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
        Half::Train(set) => ImageSource::new(dataset.clone(), set, transform, Cache::None),
        Half::Test(set) => ImageSource::new(dataset.clone(), set, transform, Cache::None),
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
