//! A run under way: what every step of the loop over rounds does.
//!
//! [`run`](crate::run) is the loop. Each step takes the session and gives it back, so an error ends it: what
//! is half done cannot be used by mistake, and the newest checkpoint is what a later session continues.

use std::path::Path;
use std::time::Instant;

use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use sdlora_data::datasets::image_reading;
use sdlora_metrics::AccuracyMatrix;

use crate::batch_split::BatchSplit;
use crate::checkpoint;
use crate::config::{LossWeights, Plan, RunConfig, check_input};
use crate::error::TrainError;
use crate::evaluator::{self, Evaluator};
use crate::export::TensorFile;
use crate::features::FeatureTable;
use crate::fingerprint::Fingerprint;
use crate::finished::Finished;
use crate::heads::{Classifier, HeadTask};
use crate::kept::Kept;
use crate::methods::{AdapterSpec, TaskContext};
use crate::model::Model;
use crate::observer::{Event, Observer};
use crate::one_class;
use crate::predicting::{self, Calibrated, Novelty, PredictConfig};
use crate::resume::{
    Arrays, Position, Restored, clean_objects, restore, save, step_name, steps_done_name,
    task_end_name,
};
use crate::run_data::{Round, RunData, Task};
use crate::run_folder::{CHECKPOINTS, RunFolder};
use crate::run_log::RunLog;
use crate::run_options::{RunOptions, Start};
use crate::soundness::unsound_part;
use crate::task_loader::TaskLoader;
use crate::task_log::TaskLog;
use crate::tested::Tested;
use crate::trainer::{TaskData, Trainer};

/// Model, optimiser and log of a run, with all that stays the same in it.
pub struct Session<'a> {
    plan: &'a Plan,
    data: RunData,
    evaluator: Evaluator,
    /// Whether features may have changed since the last row.
    is_changed: bool,
    /// With autodiff.
    device: Device,
    more_devices: Vec<Device>,
    folder: RunFolder,
    observer: &'a mut dyn Observer,
    model: Model,
    /// State of the optimiser where the run continues inside a round.
    optimizer: Option<ModuleOptimizer>,
    log: RunLog,
    /// Features of the round's training images, where they never change.
    features: Option<FeatureTable>,
    /// Features of held-out images of tasks of an earlier run, one table for each.
    kept_calibration: Vec<FeatureTable>,
    /// Rounds that are over.
    n_done: usize,
    /// What the newest evaluation of this session said.
    tested: Option<Tested>,
    /// Names of the logs of rounds that are over and that this session has stored.
    stored: Vec<String>,
}

impl<'a> Session<'a> {
    /// Checks plan, data, weights and devices, claims the folder, and restores the newest checkpoint of a run
    /// that continues. A refusal leaves the folder as it was.
    ///
    /// # Errors
    ///
    /// Those of settings, data and weights, and of a folder that is taken or holds another run.
    pub fn open(
        plan: &'a Plan,
        options: &RunOptions,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, TrainError> {
        check_devices(plan, &options.devices)?;
        let device = options.devices[0].clone().inner().autodiff();
        let data = RunData::open(plan, &options.data_dir)?;
        one_class::check(plan, &data.rounds)?;
        let model = new_model(plan, &options.data_dir, &device)?;
        plan.method().check_stream(&model, data.rounds.len())?;
        let tests = data.test_loaders()?;
        let fingerprint = Fingerprint::of(data.dataset.as_ref(), Some(&model.backbone));
        let before = match &options.after {
            None => {
                check_images(&data, 0)?;
                None
            }
            Some(folder) => {
                fingerprint.check_weights(folder)?;
                Some(end_of(folder, plan, &data, &model, &device)?)
            }
        };
        check_chain(plan, &data)?;
        let first = before.as_ref().map_or(0, |(restored, _)| restored.n_done);
        // Images that were left out, for instance.
        let mut notices = data.dataset.notes().to_vec();
        let folder = RunFolder::claim(
            &options.folder,
            plan,
            &fingerprint,
            options.start,
            &mut notices,
        )?;
        clean_objects(&folder.checkpoints());
        let fresh = model.clone();
        let (model, log, kept) = match before {
            // With the counts of the tests that are gone.
            Some((restored, kept)) => (restored.model, restored.log, kept),
            None => {
                let matrix = AccuracyMatrix::new(data.tasks.len());
                let log = RunLog::new(matrix.with_test_counts(data.test_counts())?);
                (model, log, None)
            }
        };
        let is_changed = kept.is_none();
        let Kept {
            tests: kept_tests,
            calibration,
        } = kept.unwrap_or_default();
        let class_names = data.class_names();
        let new_labels = data.tasks.iter().map(Task::new_labels).collect();
        let evaluator = Evaluator::new(tests, class_names, new_labels);
        let mut session = Self {
            plan,
            data,
            evaluator: evaluator.with_features(kept_tests),
            is_changed,
            device,
            more_devices: options.devices[1..].to_vec(),
            folder,
            observer,
            model,
            optimizer: None,
            log,
            features: None,
            kept_calibration: calibration,
            n_done: first,
            tested: None,
            stored: Vec::new(),
        };
        if options.start != Start::Fresh {
            session = session.resumed(fresh)?;
        }
        for text in &notices {
            session.observer.event(&Event::Notice { text });
        }
        Ok(session)
    }

    /// The session at its newest checkpoint, or at its start where it has none; `fresh` is the model before any task.
    fn resumed(mut self, fresh: Model) -> Result<Self, TrainError> {
        let Some(path) = checkpoint::latest(&self.folder.checkpoints()) else {
            self.observer.event(&Event::Resumed {
                path: None,
                task_idx: self.n_done,
                n_steps: 0,
                mark: Some(0),
                log: Some(&self.log),
            });
            return Ok(self);
        };
        let mark;
        Restored {
            model: self.model,
            optimizer: self.optimizer,
            log: self.log,
            n_done: self.n_done,
            mark,
        } = restore(fresh, &path, self.plan, Arrays::All, &self.device)?;
        let (log, n_done) = (&self.log, self.n_done);
        let (n_before, n_now) = (log.matrix.n_tasks(), self.data.tasks.len());
        if n_before != n_now || n_done > self.data.rounds.len() {
            return Err(TrainError::checkpoint(
                path,
                format!("it is of a stream of {n_before} tasks, and the data now make {n_now}"),
            ));
        }
        if let Err(problem) = log.check(n_done) {
            return Err(TrainError::checkpoint(path, problem));
        }
        self.observer.event(&Event::Resumed {
            path: Some(&path),
            task_idx: n_done,
            n_steps: log.tasks.get(n_done).map_or(0, |task| task.losses.len()),
            mark,
            log: Some(log),
        });
        Ok(self)
    }

    /// The round that comes next, counted from 0; `None` when all are over.
    pub fn next_round(&self) -> Option<usize> {
        (self.n_done < self.data.rounds.len()).then_some(self.n_done)
    }

    /// Adds what method and head need for a round: columns, directions, prompts. A model that was saved inside
    /// the round has it.
    ///
    /// # Errors
    ///
    /// [`TrainError::Stopped`] when the observer wants it, and those of method and images.
    pub fn grow(mut self, round: usize) -> Result<Self, TrainError> {
        self.stop_if_asked(round)?;
        if self.log.tasks.len() > round {
            return Ok(self);
        }
        let clock = Instant::now();
        let (method, head) = (self.plan.method(), self.plan.head());
        let seed = self.config().seed;
        let context = self.context(round);
        // Features that stay are the same before and after.
        let is_changed = method.takes_steps_in(round) && !method.keeps_features();
        if is_changed && head.wants_features_before() {
            let table = self.features_of(round)?;
            let task = head_task(&self.data.rounds[round], &table, seed, &self.device);
            self.model.head = head.before_task(self.model.head, &task)?;
        }
        let images = self.data.images(&self.data.rounds[round], &self.device);
        self.model = method.before_task(self.model, &context)?;
        self.model = method.prepare(self.model, &context, &images)?;
        let n_trained = match method.takes_steps_in(round) {
            true => self
                .trainer(round)
                .n_trained(&self.model, &self.round(round).labels),
            false => 0,
        };
        self.log.tasks.push(TaskLog::default());
        self.log.n_trained.push(n_trained);
        self.log.tasks[round].around_seconds += clock.elapsed().as_secs_f64();
        Ok(self)
    }

    /// Makes the steps of a round that are not made yet, with checkpoints between them.
    ///
    /// # Errors
    ///
    /// Those of [`Trainer::train`].
    pub fn train(mut self, round: usize) -> Result<Self, TrainError> {
        if self.log.is_trained(round) {
            return Ok(self);
        }
        let loader = self.data.train_loader(self.round(round))?;
        self.tell_start(round, &loader);
        let clock = Instant::now();
        let config = self.plan.config();
        if self.plan.method().keeps_features() && !config.transform.is_random() {
            self.features = Some(self.features_of(round)?);
        }
        self.log.tasks[round].around_seconds += clock.elapsed().as_secs_f64();
        self.stop_if_asked(round)?;

        let position = self.log.tasks[round].clone();
        let optimizer = self.optimizer.take();
        let optimizer = optimizer.unwrap_or_else(|| config.optimizer_of(round).init());
        let trainer = self.trainer(round);
        let weights = match config.loss_weights {
            LossWeights::Equal => None,
            LossWeights::Balanced => Some(self.data.balanced_weights(&self.data.rounds[round])),
        };
        let data = TaskData {
            weights: weights.as_deref(),
            task_idx: round,
            labels: &self.data.rounds[round].labels,
            loader: &loader,
            features: self.features.as_ref(),
        };
        let (folder, log, stored) = (&self.folder, &mut self.log, &mut self.stored);
        let mut on_checkpoint =
            |model: &Model, optimizer: &ModuleOptimizer, task: &TaskLog, mark: Option<u64>| {
                log.tasks[round] = task.clone();
                save(
                    folder,
                    &step_name(round, task.losses.len()),
                    model,
                    Some(optimizer),
                    Position::of(model, round, log, mark),
                    stored,
                )
            };
        let task;
        (self.model, task) = trainer.train(
            self.model,
            optimizer,
            position,
            &data,
            self.observer,
            &mut on_checkpoint,
        )?;
        self.log.tasks[round] = task;
        Ok(self)
    }

    /// Lets method and head do what they do after the last step of a round.
    ///
    /// # Errors
    ///
    /// Those of method, head and images, and [`TrainError::Unsound`] for a head whose numbers are none.
    pub fn fit(mut self, round: usize) -> Result<Self, TrainError> {
        if self.log.is_trained(round) {
            return Ok(self);
        }
        let clock = Instant::now();
        let (method, head) = (self.plan.method(), self.plan.head());
        let seed = self.config().seed;
        let context = self.context(round);
        let images = self.data.images(&self.data.rounds[round], &self.device);
        self.model = method.review(self.model, &context, &images)?;
        self.model = method.after_task(self.model, &context)?;
        if round + 1 == self.data.rounds.len() {
            self.model = method.after_stream(self.model, &context, &images)?;
        }
        let features = self.features.take();
        let gathers = self.config().calibrate_on > 0 || predicting::gathers(&self.model.head);
        if head.is_fitted() || gathers {
            let table = match features {
                Some(table) => table,
                None => self.features_of(round)?,
            };
            if gathers {
                let first_label = self.round(round).first_label;
                predicting::gather(&mut self.model.head, &table, first_label);
            }
            if head.is_fitted() {
                let task = head_task(&self.data.rounds[round], &table, seed, &self.device);
                self.model.head = head.fit(self.model.head, &task)?;
            }
            // Before it is evaluated: its numbers would be told as results.
            if let Some(what) = unsound_part(&self.model) {
                return Err(TrainError::Unsound {
                    what,
                    task_idx: round,
                    n_steps: self.log.tasks[round].losses.len(),
                });
            }
        }
        let log = &mut self.log;
        log.tasks[round].around_seconds += clock.elapsed().as_secs_f64();
        log.floats_stored.push(self.model.floats_stored());
        log.magnitudes.push(self.model.adapter.magnitude_rows());
        self.observer.event(&Event::TaskTrained {
            task_idx: round,
            seconds: log.tasks[round].total_seconds(),
            magnitudes: &log.magnitudes[round],
        });
        Ok(self)
    }

    /// Adds the next row of the accuracy matrix, or a missing one where the plan evaluates later. A session that
    /// is to stop meanwhile saves the trained model.
    ///
    /// # Errors
    ///
    /// [`TrainError::Stopped`] when the observer wants it, and those of the images.
    pub fn evaluate(mut self, round: usize) -> Result<Self, TrainError> {
        let clock = Instant::now();
        let (method, n_seen) = (self.plan.method(), self.round(round).n_seen_tasks());
        let is_changed = method.takes_steps_in(round) && !method.keeps_features();
        self.is_changed |= is_changed;
        if !self.is_evaluated(round) {
            self.log.matrix.push_missing_row()?;
            self.log.eval_seconds.push(0.0);
            return Ok(self);
        }
        let observer = &*self.observer;
        let tested = self.evaluator.test(
            &self.model,
            self.plan.head().as_ref(),
            n_seen,
            self.is_changed,
            &self.device,
            &mut || observer.wants_stop(),
        )?;
        let Some(tested) = tested else {
            self.checkpoint(&steps_done_name(round))?;
            return Err(self.stopped(round));
        };
        self.is_changed = false;
        let log = &mut self.log;
        while log.matrix.n_rows() + 1 < n_seen {
            log.matrix.push_missing_row()?;
        }
        log.matrix.push_measured(tested.accuracies())?;
        log.classes = tested.class_scores();
        self.tested = Some(tested);
        log.eval_seconds.push(clock.elapsed().as_secs_f64());
        self.observer.event(&Event::Evaluated {
            task_idx: n_seen - 1,
            matrix: &log.matrix,
            class_accuracy: log.class_accuracy(),
            seconds: log.eval_seconds[round],
        });
        Ok(self)
    }

    /// Whether the accuracies after a round are wanted; those after the last one always are.
    fn is_evaluated(&self, round: usize) -> bool {
        let n_done = round + 1;
        n_done == self.data.rounds.len() || n_done.is_multiple_of(self.config().evaluate_every)
    }

    /// Writes the checkpoint of the end of a round, which is then over.
    ///
    /// # Errors
    ///
    /// Those of the file system, and [`TrainError::Unsound`] for a model whose numbers are none.
    pub fn save(mut self, round: usize) -> Result<Self, TrainError> {
        self.n_done = round + 1;
        self.checkpoint(&task_end_name(round))?;
        self.observer.event(&Event::TaskDone {
            task_idx: round,
            log: &self.log,
            tested: self.tested.as_ref(),
        });
        Ok(self)
    }

    /// What the run has come to, with its folder. Reads the images that were held out to calibrate.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for a session that no round is over of, and those of the images.
    pub fn finish(mut self) -> Result<Finished, TrainError> {
        let classifier = self.model.classifier(self.plan.head().as_ref())?;
        let calibration = self.calibration()?;
        let (predicting, novelty) = self.predicting(&classifier, &calibration)?;
        let tested = self.tested_at_end()?;
        let keeps = self.data.is_chain() && self.plan.method().keeps_features();
        let kept = match keeps {
            false => None,
            true => {
                let (n_tasks, d_model) =
                    (self.data.tasks.len(), self.model.backbone.config().d_model);
                let none = FeatureTable {
                    d_model,
                    ..FeatureTable::default()
                };
                let mut calibration = calibration;
                calibration.resize(n_tasks, none);
                Some(Kept {
                    tests: self
                        .evaluator
                        .into_features(&self.model.extractor(), &self.device)?,
                    calibration,
                })
            }
        };
        Ok(Finished {
            classifier,
            kept,
            predicting,
            novelty,
            tested,
            head_name: self.plan.head_name().to_owned(),
            model: self.model,
            log: self.log,
            class_names: self.data.class_names(),
            class_order: self.data.class_order,
            folder: self.folder,
        })
    }

    /// The newest evaluation. A session that continues a run all of whose rounds are over repeats it.
    fn tested_at_end(&mut self) -> Result<Tested, TrainError> {
        if let Some(tested) = self.tested.take() {
            return Ok(tested);
        }
        let n_seen = match self.n_done.checked_sub(1) {
            Some(round) => self.round(round).n_seen_tasks(),
            None => 0,
        };
        let tested = self.evaluator.test(
            &self.model,
            self.plan.head().as_ref(),
            n_seen,
            self.is_changed,
            &self.device,
            &mut || false,
        )?;
        // Nobody stops it.
        Ok(tested.unwrap_or_default())
    }

    /// Features of the images that are held out to calibrate, one table for every task that has some: those that were
    /// kept, and those of images that are read now.
    fn calibration(&self) -> Result<Vec<FeatureTable>, TrainError> {
        let mut tables = self.kept_calibration.clone();
        let loaders = self.data.calibration_loaders(tables.len())?;
        let extractor = self.model.extractor();
        let new = evaluator::features(&extractor, &loaders, &self.device, &mut || false)?;
        tables.extend(new.unwrap_or_default());
        Ok(tables)
    }

    /// How images are prepared, and what the held-out ones say of the numbers of the model.
    fn predicting(
        &self,
        classifier: &Classifier,
        calibration: &[FeatureTable],
    ) -> Result<(PredictConfig, Option<TensorFile>), TrainError> {
        let config = self.config();
        let reading = image_reading(&config.dataset, &config.dataset_options)?;
        let mut predicting = PredictConfig::new(&config.transform, reading);
        let has_images = calibration.iter().any(|table| !table.is_empty());
        let Some((novelty, file)) = Novelty::of(&self.model.head)?.filter(|_| has_images) else {
            return Ok((predicting, None));
        };
        predicting.calibrated = Some(Calibrated::of(classifier, &novelty, calibration));
        Ok((predicting, Some(file)))
    }

    /// The log so far.
    pub fn log(&self) -> &RunLog {
        &self.log
    }

    /// The model as it is.
    pub fn model(&self) -> &Model {
        &self.model
    }

    fn config(&self) -> &RunConfig {
        self.plan.config()
    }

    fn round(&self, round: usize) -> &Round {
        &self.data.rounds[round]
    }

    /// Writes a checkpoint of a model that no optimiser is at work on.
    fn checkpoint(&mut self, name: &str) -> Result<(), TrainError> {
        let mark = self.observer.mark();
        let position = Position::of(&self.model, self.n_done, &self.log, mark);
        let stored = &mut self.stored;
        let path = save(&self.folder, name, &self.model, None, position, stored)?;
        self.observer.event(&Event::Checkpointed { path: &path });
        Ok(())
    }

    /// Ends the session where the observer wants it; the newest checkpoint is what a later one continues.
    fn stop_if_asked(&self, round: usize) -> Result<(), TrainError> {
        match self.observer.wants_stop() {
            false => Ok(()),
            true => Err(self.stopped(round)),
        }
    }

    fn stopped(&self, round: usize) -> TrainError {
        TrainError::Stopped {
            path: checkpoint::latest(&self.folder.checkpoints()),
            task_idx: round,
            n_steps: self
                .log
                .tasks
                .get(round)
                .map_or(0, |task| task.losses.len()),
        }
    }

    fn tell_start(&mut self, round: usize, loader: &TaskLoader) {
        let n_steps = self.trainer(round).n_steps(round, loader);
        let of_round = &self.data.rounds[round];
        self.observer.event(&Event::TaskStarted {
            task_idx: round,
            n_tasks: self.data.rounds.len(),
            n_new_classes: of_round.n_new_classes,
            n_seen_classes: of_round.n_seen_classes(),
            n_images: loader.n_images(),
            n_steps,
            n_trained: self.log.n_trained[round],
        });
    }

    fn trainer(&self, round: usize) -> Trainer<'a> {
        let config = self.plan.config();
        Trainer {
            method: self.plan.method(),
            head: self.plan.head().as_ref(),
            n_epochs: config.n_epochs_of(round),
            optimizer: config.optimizer_of(round),
            loss: config.loss,
            mix: config.mix.as_ref(),
            seed: config.seed,
            split: BatchSplit {
                micro_batch: config.micro_batch,
                more_devices: self.more_devices.clone(),
            },
            precision: config.precision,
            gradient_checkpointing: config.gradient_checkpointing,
            checkpoint_every: config.checkpoint_every,
            residual_every: config.residual_every,
            device: self.device.clone(),
        }
    }

    fn context(&self, round: usize) -> TaskContext {
        TaskContext {
            task_idx: round,
            n_tasks: self.data.rounds.len(),
            n_new_classes: self.round(round).n_new_classes,
            seed: self.config().seed,
            device: self.device.clone(),
            head: self.plan.head().clone(),
            start: self.plan.column_start(),
        }
    }

    /// Features of the training images of a round by the model as it is.
    fn features_of(&self, round: usize) -> Result<FeatureTable, TrainError> {
        let round = self.round(round);
        self.data.train_features(round, &self.model, &self.device)
    }
}

/// Where a finished run ended, with its log grown by the tasks that are new, and the features that it kept.
fn end_of(
    folder: &Path,
    plan: &Plan,
    data: &RunData,
    fresh: &Model,
    device: &Device,
) -> Result<(Restored, Option<Kept>), TrainError> {
    let checkpoints = folder.join(CHECKPOINTS);
    let path = checkpoint::latest(&checkpoints).ok_or_else(|| TrainError::NotFinished {
        path: folder.into(),
        missing: checkpoints,
    })?;
    let mut restored = restore(fresh.clone(), &path, plan, Arrays::All, device)?;
    let log = &restored.log;
    log.check(restored.n_done)
        .map_err(|problem| TrainError::checkpoint(&path, problem))?;
    let (n_before, n_now) = (log.matrix.n_tasks(), data.tasks.len());
    if restored.n_done != n_before || n_now <= n_before || restored.optimizer.is_some() {
        return Err(TrainError::checkpoint(
            path,
            format!(
                "{} of its {n_before} tasks are over, and the run that goes on from it has {n_now}",
                restored.n_done
            ),
        ));
    }
    let kept = match plan.method().keeps_features() {
        true => Kept::read(folder, n_before, fresh.backbone.config().d_model)?,
        false => None,
    };
    // Before the counts of their tests are.
    check_images(data, n_before)?;
    let matrix = restored.log.matrix.clone();
    restored.log.matrix = matrix.grown(&data.test_counts())?;
    Ok((restored, kept))
}

/// Refuses to go on where a round from `first` on has lost its images.
fn check_images(data: &RunData, first: usize) -> Result<(), TrainError> {
    let mut rest = data.rounds.iter().skip(first);
    match rest.find(|round| !data.has_images(round)) {
        None => Ok(()),
        Some(round) => Err(TrainError::setting(
            "dataset_options.folders",
            format!("without the images of task {}", round.idx + 1),
            "the folder as it was when the task began",
        )),
    }
}

/// Refuses a method that has to know all tasks where more may follow.
fn check_chain(plan: &Plan, data: &RunData) -> Result<(), TrainError> {
    if !data.is_chain() || !plan.method().needs_all_tasks() {
        return Ok(());
    }
    Err(TrainError::setting(
        "method",
        &plan.config().method.name,
        "another one, because this one has to know all tasks from the start, and here more may follow",
    ))
}

/// A round as a head sees it.
fn head_task<'t>(
    round: &Round,
    table: &'t FeatureTable,
    seed: u64,
    device: &'t Device,
) -> HeadTask<'t> {
    HeadTask {
        table,
        first_label: round.first_label,
        task_idx: round.idx,
        seed,
        device,
    }
}

/// Refuses an empty list of devices, and one that lacks the number type of the plan.
fn check_devices(plan: &Plan, devices: &[Device]) -> Result<(), TrainError> {
    if devices.is_empty() {
        return Err(TrainError::setting(
            "devices",
            "an empty list",
            "one device or more",
        ));
    }
    let precision = plan.config().precision;
    match devices
        .iter()
        .find(|device| !device.supports_dtype(precision.dtype()))
    {
        None => Ok(()),
        Some(device) => Err(TrainError::setting(
            "precision",
            precision.name(),
            format!("`f32`, because the device {device:?} has no such numbers"),
        )),
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
    let adapter = AdapterSpec::adapter(method.adapter().as_ref(), vit)?;
    method.check_shape(vit)?;
    Ok(Model::new(backbone, adapter))
}
