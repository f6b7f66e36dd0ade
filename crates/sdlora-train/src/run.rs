//! The driver: for each task grow, train, evaluate, save.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use sdlora_core::Adapter;
use sdlora_data::{Dataset, TaskStream};
use sdlora_metrics::AccuracyMatrix;
use serde::{Deserialize, Serialize};

use crate::config::{Plan, check_input};
use crate::error::TrainError;
use crate::fingerprint::Fingerprint;
use crate::heads::{Classifier, FloatsStored};
use crate::model::Model;
use crate::observer::{Event, Observer};
use crate::one_class;
use crate::resume::task_end_name;
use crate::rooms::Rooms;
use crate::rounds::Rounds;
use crate::run_folder::RunFolder;
use crate::trainer::TaskLog;

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
    /// Its folder, held as long as this lives, so that nobody else writes there meanwhile.
    pub folder: RunFolder,
}

/// Whether a run may continue an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The folder must hold no run.
    Fresh,
    /// The folder must hold a run of the same plan, data and weights.
    Resume,
    /// The same, but images may have come, gone or changed; plan and weights may not.
    ResumeOnChangedData,
}

/// Runs a plan in `folder` on `device` (autodiff is added).
///
/// # Errors
///
/// Those of settings, files, images and training; what was checkpointed stays usable.
/// [`TrainError::Stopped`] when the observer wants it; [`Start::Resume`] then goes on.
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
    let config = plan.config();
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
    one_class::check(plan, &rooms)?;
    let fresh = new_model(plan, data_dir, &device)?;
    let tests = rooms.test_loaders(&dataset, config)?;
    let fingerprint = Fingerprint::of(dataset.as_ref(), Some(&fresh.backbone));
    // Images that were left out, for instance.
    let mut notices = dataset.notes().to_vec();
    let folder = RunFolder::claim(folder, plan, &fingerprint, start, &mut notices)?;

    let rounds = Rounds {
        plan,
        rooms,
        tests,
        dataset,
        device,
        more_devices: more_devices.to_vec(),
        folder,
    };
    let (mut model, mut optimizer, mut log, n_done) = rounds.begin(fresh, start, observer)?;
    for text in &notices {
        observer.event(&Event::Notice { text });
    }
    for round in n_done..rounds.n_rounds() {
        rounds.stop_if_asked(round, &log, observer)?;
        if !log.is_trained(round) {
            model = rounds.grow(round, model, &mut log)?;
            let images = rounds.images(round, &model, &mut log, observer)?;
            rounds.stop_if_asked(round, &log, observer)?;
            let state = optimizer.take();
            model = rounds.train(round, model, state, &images, &mut log, observer)?;
            model = rounds.fit(round, model, &images, &mut log, observer)?;
        }
        rounds.evaluate(round, &model, &mut log, observer)?;
        rounds.save(task_end_name(round), &model, round + 1, &log, observer)?;
    }

    let names = rounds.dataset.class_names();
    Ok(Finished {
        classifier: model.classifier(plan.head().as_ref())?,
        head_name: plan.head_name().to_owned(),
        model,
        log,
        class_names: stream
            .class_order()
            .iter()
            .map(|&id| names[id].clone())
            .collect(),
        class_order: stream.class_order().to_vec(),
        folder: rounds.folder,
    })
}

impl RunLog {
    pub(crate) fn new(matrix: AccuracyMatrix) -> Self {
        Self {
            matrix,
            tasks: Vec::new(),
            eval_seconds: Vec::new(),
            magnitudes: Vec::new(),
            n_trained: Vec::new(),
            floats_stored: Vec::new(),
        }
    }

    /// Checks that as many entries are there as rounds are over, or one more of what is known before the end.
    pub(crate) fn check(&self, n_done: usize) -> Result<(), String> {
        let begun = [self.tasks.len(), self.n_trained.len()];
        let is_whole = begun[0] == begun[1]
            && (begun[0] == n_done || begun[0] == n_done + 1)
            && self.eval_seconds.len() == n_done
            && (self.magnitudes.len() == n_done || self.magnitudes.len() == begun[0]);
        match is_whole {
            true => Ok(()),
            false => Err(format!(
                "its log does not fit the {n_done} tasks it says are done"
            )),
        }
    }

    /// Whether only the evaluation of a round is missing.
    fn is_trained(&self, round: usize) -> bool {
        self.magnitudes.len() > round
    }
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
    let vit = backbone.config();
    check_input(&config.transform, vit, &path)?;
    let adapter = Adapter::new(method.adapter(), &vit.sites(method.projections()))?;
    for rank in method.ranks() {
        adapter.check_rank(rank)?;
    }
    method.check_shape(vit)?;
    Ok(Model::new(backbone, adapter))
}
