//! The driver: for each task grow, train, evaluate, save.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use sdlora_core::Adapter;
use sdlora_data::{Dataset, TaskStream};
use sdlora_metrics::AccuracyMatrix;
use serde::{Deserialize, Serialize};

use crate::batch_split::BatchSplit;
use crate::checkpoint;
use crate::config::{Plan, RunConfig};
use crate::error::TrainError;
use crate::evaluator::evaluate;
use crate::features::FeatureTable;
use crate::heads::{Classifier, FloatsStored, HeadTask};
use crate::methods::TaskContext;
use crate::model::Model;
use crate::observer::{Event, Observer};
use crate::resume::{Position, claim, restore, save};
use crate::rooms::Rooms;
use crate::trainer::{TaskData, TaskLog, Trainer};

/// Everything a run learned besides its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunLog {
    /// Accuracy after each task on each task seen.
    pub matrix: AccuracyMatrix,
    /// Losses and seconds of every task; the last may be in progress.
    pub tasks: Vec<TaskLog>,
    /// Seconds of evaluation after every task.
    pub eval_seconds: Vec<f64>,
    /// Magnitudes after every task, one row per group.
    pub magnitudes: Vec<Vec<Vec<f64>>>,
    /// Parameters that received gradients in every task.
    pub n_trained: Vec<usize>,
    /// Numbers that head and method keep of old tasks, after every task; absent in logs of earlier versions.
    #[serde(default)]
    pub floats_stored: Vec<FloatsStored>,
}

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    /// The model after the last task, on the autodiff device.
    pub model: Model,
    /// What predicts after the last task.
    pub classifier: Classifier,
    /// Name of the head it comes from.
    pub head_name: String,
    /// Its log.
    pub log: RunLog,
    /// Class ids in the order of their labels.
    pub class_order: Vec<usize>,
    /// Names of the classes in the order of their labels.
    pub class_names: Vec<String>,
}

/// Whether a run may continue an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The folder must hold no run.
    Fresh,
    /// The folder must hold a run of the same plan.
    Resume,
}

/// Runs a plan in `folder` on `device` (autodiff is added).
///
/// # Errors
///
/// Those of settings, files, images and training; what was checkpointed stays usable.
pub fn run(
    plan: &Plan,
    data_dir: &Path,
    device: &Device,
    folder: &Path,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<Finished, TrainError> {
    run_on_devices(
        plan,
        data_dir,
        std::slice::from_ref(device),
        folder,
        start,
        observer,
    )
}

/// As [`run`], with every batch divided among `devices` of one machine: each computes the gradients of
/// its share, the first one adds them up, makes the step, and does everything else. The order of
/// the devices and their number change results by rounding only.
///
/// # Errors
///
/// Those of [`run`], [`TrainError::Setting`] when there is no device, and [`TrainError::Device`] when one
/// of the others gives up.
pub fn run_on_devices(
    plan: &Plan,
    data_dir: &Path,
    devices: &[Device],
    folder: &Path,
    start: Start,
    observer: &mut dyn Observer,
) -> Result<Finished, TrainError> {
    let Some((device, more_devices)) = devices.split_first() else {
        return Err(TrainError::setting(
            "devices",
            "an empty list",
            "one device or more",
        ));
    };
    let (config, method, head) = (plan.config(), plan.method(), plan.head());
    for device in devices {
        if !device.supports_dtype(config.precision.dtype()) {
            return Err(TrainError::setting(
                "precision",
                config.precision.name(),
                format!("`f32`, because the device {device:?} has no such numbers"),
            ));
        }
    }
    let device = device.clone().inner().autodiff();
    let dataset: Arc<dyn Dataset> =
        sdlora_data::datasets::open(&config.dataset, data_dir, &config.dataset_options)?.into();
    let stream = TaskStream::new(dataset.as_ref(), &config.stream)?;
    let rooms = Rooms::split(plan, &stream)?;
    let fresh = new_model(plan, data_dir, &device)?;
    let tests = rooms.test_loaders(&dataset, config)?;
    claim(folder, plan, start)?;

    let checkpoints = folder.join("checkpoints");
    let (mut model, mut optimizer, mut log, n_done) = match checkpoint::latest(&checkpoints) {
        Some(path) if start == Start::Resume => {
            observer.event(&Event::Resumed { path: &path });
            restore(fresh, &path, config, &device)?
        }
        _ => {
            let matrix =
                AccuracyMatrix::new(rooms.n_tasks()).with_test_counts(rooms.test_counts())?;
            (fresh, None, RunLog::new(matrix), 0)
        }
    };

    for round in n_done..rooms.n_rounds() {
        let trainer = Trainer {
            method,
            head: head.as_ref(),
            n_epochs: config.n_epochs_of(round),
            optimizer: config.optimizer_of(round),
            loss: config.loss,
            mix: config.mix.as_ref(),
            seed: config.seed,
            split: BatchSplit {
                micro_batch: config.micro_batch,
                more_devices: more_devices.to_vec(),
            },
            precision: config.precision,
            gradient_checkpointing: config.gradient_checkpointing,
            checkpoint_every: config.checkpoint_every,
            residual_every: config.residual_every,
            device: device.clone(),
        };
        let loader = rooms.train_loader(round, &dataset, config)?;
        let context = TaskContext {
            task_idx: round,
            n_tasks: rooms.n_rounds(),
            n_new_classes: rooms.n_new_classes(round),
            seed: config.seed,
            device: device.clone(),
            head: head.clone(),
        };
        let images = rooms.round_images(round, &dataset, config, &device);
        let clock = Instant::now();
        if log.tasks.len() == round {
            if head.wants_features_before() {
                let table = rooms.train_features(round, &model, &dataset, config, &device)?;
                let task = head_task(&table, round, &rooms, config, &device);
                model.head = head.before_task(model.head, &task)?;
            }
            model = method.before_task(model, &context)?;
            model = method.prepare(model, &context, &images)?;
            log.tasks.push(TaskLog::default());
            log.n_trained.push(if method.takes_steps_in(round) {
                model.n_trained()
            } else {
                0
            });
        }
        let before = clock.elapsed();
        observer.event(&Event::TaskStarted {
            task_idx: round,
            n_tasks: rooms.n_rounds(),
            n_new_classes: rooms.n_new_classes(round),
            n_seen_classes: rooms.n_seen_classes(round),
            n_images: loader.n_images(),
            n_steps: trainer.n_steps(round, &loader),
            n_trained: log.n_trained[round],
        });

        // Features that never change are computed once.
        let clock = Instant::now();
        let features = if method.keeps_features() && !config.transform.is_random() {
            Some(rooms.train_features(round, &model, &dataset, config, &device)?)
        } else {
            None
        };
        let labels = rooms.labels(round);
        let data = TaskData {
            task_idx: round,
            labels: &labels,
            loader: &loader,
            features: features.as_ref(),
        };
        log.tasks[round].around_seconds += (before + clock.elapsed()).as_secs_f64();
        let position = log.tasks[round].clone();
        let mut on_checkpoint = |model: &Model, optimizer: &ModuleOptimizer, task: &TaskLog| {
            log.tasks[round] = task.clone();
            let name = format!("task-{round:03}-step-{:07}", task.losses.len());
            save(
                &checkpoints,
                &name,
                model,
                Some(optimizer),
                Position::of(model, round, &log),
            )
        };
        let optimizer = optimizer
            .take()
            .unwrap_or_else(|| config.optimizer_of(round).init());
        let (trained, task) = trainer.train(
            model,
            optimizer,
            position,
            &data,
            observer,
            &mut on_checkpoint,
        )?;
        log.tasks[round] = task;
        let clock = Instant::now();
        model = method.review(trained, &context, &images)?;
        model = method.after_task(model, &context)?;

        if head.is_fitted() {
            let table = match features {
                Some(table) => table,
                None => rooms.train_features(round, &model, &dataset, config, &device)?,
            };
            let task = head_task(&table, round, &rooms, config, &device);
            model.head = head.fit(model.head, &task)?;
        }
        log.tasks[round].around_seconds += clock.elapsed().as_secs_f64();
        log.floats_stored.push(model.floats_stored());
        log.magnitudes.push(model.adapter.magnitude_rows());
        observer.event(&Event::TaskTrained {
            task_idx: round,
            seconds: log.tasks[round].total_seconds(),
            magnitudes: &log.magnitudes[round],
        });

        let clock = Instant::now();
        let n_seen = rooms.n_seen_tasks(round);
        let row = evaluate(&model, head.as_ref(), &tests[..n_seen], &device)?;
        while log.matrix.n_rows() + 1 < n_seen {
            log.matrix.push_missing_row()?;
        }
        log.matrix.push_row(row)?;
        log.eval_seconds.push(clock.elapsed().as_secs_f64());
        observer.event(&Event::Evaluated {
            task_idx: n_seen - 1,
            matrix: &log.matrix,
            seconds: log.eval_seconds[round],
        });

        let name = task_end_name(round);
        let path = save(
            &checkpoints,
            &name,
            &model,
            None,
            Position::of(&model, round + 1, &log),
        )?;
        observer.event(&Event::Checkpointed { path: &path });
    }

    let names = dataset.class_names();
    Ok(Finished {
        classifier: model.classifier(head.as_ref())?,
        head_name: plan.head_name().to_owned(),
        model,
        log,
        class_names: stream
            .class_order()
            .iter()
            .map(|&id| names[id].clone())
            .collect(),
        class_order: stream.class_order().to_vec(),
    })
}

fn head_task<'a>(
    table: &'a FeatureTable,
    round: usize,
    rooms: &Rooms,
    config: &RunConfig,
    device: &'a Device,
) -> HeadTask<'a> {
    HeadTask {
        table,
        first_label: rooms.first_label(round),
        task_idx: round,
        seed: config.seed,
        device,
    }
}

impl RunLog {
    fn new(matrix: AccuracyMatrix) -> Self {
        Self {
            matrix,
            tasks: Vec::new(),
            eval_seconds: Vec::new(),
            magnitudes: Vec::new(),
            n_trained: Vec::new(),
            floats_stored: Vec::new(),
        }
    }
}

/// Name of the checkpoint at the end of a round; it sorts behind those inside the round.
pub(crate) fn task_end_name(round: usize) -> String {
    format!("task-{round:03}-trained")
}

/// The pre-trained backbone with the method's adapter, before any task.
pub(crate) fn new_model(
    plan: &Plan,
    data_dir: &Path,
    device: &Device,
) -> Result<Model, TrainError> {
    let (config, method) = (plan.config(), plan.method());
    let path = config.backbone.path(data_dir);
    let side = config.transform.side;
    let backbone = config.backbone.load(data_dir, Some(side), device)?;
    let (vit, transform) = (backbone.config(), &config.transform);
    if transform.side != vit.image_size || transform.channels.count() != vit.n_channels {
        return Err(TrainError::setting(
            "transform",
            format!(
                "{} channels of {} pixels",
                transform.channels.count(),
                transform.side
            ),
            format!(
                "the {} channels of {} pixels the backbone {} takes",
                vit.n_channels,
                vit.image_size,
                path.display()
            ),
        ));
    }
    let adapter = Adapter::new(method.adapter(), &vit.sites(method.projections()))?;
    Ok(Model::new(backbone, adapter))
}
