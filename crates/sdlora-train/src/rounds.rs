//! What a run does in every round: grow, train, fit, evaluate, save.

use std::sync::Arc;
use std::time::Instant;

use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use sdlora_data::{Dataset, Loader};
use sdlora_metrics::AccuracyMatrix;

use crate::batch_split::BatchSplit;
use crate::checkpoint;
use crate::config::{Plan, RunConfig};
use crate::error::TrainError;
use crate::evaluator::evaluate_unless;
use crate::features::FeatureTable;
use crate::heads::HeadTask;
use crate::methods::TaskContext;
use crate::model::Model;
use crate::observer::{Event, Observer};
use crate::resume::{Position, Restored, restore, save, step_name, steps_done_name};
use crate::rooms::Rooms;
use crate::run::{RunLog, Start};
use crate::run_folder::RunFolder;
use crate::soundness::unsound_part;
use crate::trainer::{TaskData, TaskLoader, TaskLog, Trainer};

/// The rounds of a run, and all that stays the same in them.
pub(crate) struct Rounds<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) rooms: Rooms,
    /// Test images of every task.
    pub(crate) tests: Vec<Loader>,
    pub(crate) dataset: Arc<dyn Dataset>,
    /// With autodiff.
    pub(crate) device: Device,
    pub(crate) more_devices: Vec<Device>,
    pub(crate) folder: RunFolder,
}

/// What a round trains on.
pub(crate) struct RoundData {
    loader: TaskLoader,
    features: Option<FeatureTable>,
}

impl Rounds<'_> {
    fn config(&self) -> &RunConfig {
        self.plan.config()
    }

    pub(crate) fn n_rounds(&self) -> usize {
        self.rooms.n_rounds()
    }

    /// Model, state of the optimiser, log and number of rounds that are over, of a fresh run or of the newest
    /// checkpoint.
    pub(crate) fn begin(
        &self,
        fresh: Model,
        start: Start,
        observer: &mut dyn Observer,
    ) -> Result<(Model, Option<ModuleOptimizer>, RunLog, usize), TrainError> {
        let latest = match start {
            Start::Fresh => None,
            Start::Resume | Start::ResumeOnChangedData => {
                checkpoint::latest(&self.folder.checkpoints())
            }
        };
        let Some(path) = latest else {
            if start != Start::Fresh {
                observer.event(&Event::Resumed {
                    path: None,
                    task_idx: 0,
                    n_steps: 0,
                    mark: Some(0),
                });
            }
            let matrix = AccuracyMatrix::new(self.rooms.n_tasks())
                .with_test_counts(self.rooms.test_counts())?;
            return Ok((fresh, None, RunLog::new(matrix), 0));
        };
        let Restored {
            model,
            optimizer,
            log,
            n_done,
            mark,
        } = restore(fresh, &path, self.config(), &self.device)?;
        let (n_before, n_now) = (log.matrix.n_tasks(), self.rooms.n_tasks());
        if n_before != n_now || n_done > self.n_rounds() {
            return Err(TrainError::checkpoint(
                path,
                format!("it is of a stream of {n_before} tasks, and the data now make {n_now}"),
            ));
        }
        if let Err(problem) = log.check(n_done) {
            return Err(TrainError::checkpoint(path, problem));
        }
        observer.event(&Event::Resumed {
            path: Some(&path),
            task_idx: n_done,
            n_steps: log.tasks.get(n_done).map_or(0, |task| task.losses.len()),
            mark,
        });
        Ok((model, optimizer, log, n_done))
    }

    /// The model with what the method adds for a round; one that was saved inside the round has it.
    pub(crate) fn grow(
        &self,
        round: usize,
        mut model: Model,
        log: &mut RunLog,
    ) -> Result<Model, TrainError> {
        if log.tasks.len() > round {
            return Ok(model);
        }
        let clock = Instant::now();
        let (config, method, head) = (self.config(), self.plan.method(), self.plan.head());
        let context = self.context(round);
        if head.wants_features_before() {
            let table = self.features(round, &model)?;
            model.head = head.before_task(model.head, &self.head_task(round, &table))?;
        }
        let images = self
            .rooms
            .round_images(round, &self.dataset, config, &self.device);
        model = method.before_task(model, &context)?;
        model = method.prepare(model, &context, &images)?;
        log.tasks.push(TaskLog::default());
        log.n_trained.push(match method.takes_steps_in(round) {
            true => self
                .trainer(round)
                .n_trained(&model, &self.rooms.labels(round)),
            false => 0,
        });
        log.tasks[round].around_seconds += clock.elapsed().as_secs_f64();
        Ok(model)
    }

    /// The training images of a round, and their features where they never change, computed once.
    pub(crate) fn images(
        &self,
        round: usize,
        model: &Model,
        log: &mut RunLog,
        observer: &mut dyn Observer,
    ) -> Result<RoundData, TrainError> {
        let (config, rooms) = (self.config(), &self.rooms);
        let loader = rooms.train_loader(round, &self.dataset, config)?;
        observer.event(&Event::TaskStarted {
            task_idx: round,
            n_tasks: rooms.n_rounds(),
            n_new_classes: rooms.n_new_classes(round),
            n_seen_classes: rooms.n_seen_classes(round),
            n_images: loader.n_images(),
            n_steps: self.trainer(round).n_steps(round, &loader),
            n_trained: log.n_trained[round],
        });
        let clock = Instant::now();
        let features = match self.plan.method().keeps_features() && !config.transform.is_random() {
            true => Some(self.features(round, model)?),
            false => None,
        };
        log.tasks[round].around_seconds += clock.elapsed().as_secs_f64();
        Ok(RoundData { loader, features })
    }

    /// The steps of a round that are not made yet, with checkpoints between them.
    pub(crate) fn train(
        &self,
        round: usize,
        model: Model,
        optimizer: Option<ModuleOptimizer>,
        images: &RoundData,
        log: &mut RunLog,
        observer: &mut dyn Observer,
    ) -> Result<Model, TrainError> {
        let config = self.config();
        let labels = self.rooms.labels(round);
        let data = TaskData {
            task_idx: round,
            labels: &labels,
            loader: &images.loader,
            features: images.features.as_ref(),
        };
        let position = log.tasks[round].clone();
        let mut on_checkpoint =
            |model: &Model, optimizer: &ModuleOptimizer, task: &TaskLog, mark: Option<u64>| {
                log.tasks[round] = task.clone();
                save(
                    &self.folder,
                    &step_name(round, task.losses.len()),
                    model,
                    Some(optimizer),
                    Position::of(model, round, log, mark),
                )
            };
        let optimizer = optimizer.unwrap_or_else(|| config.optimizer_of(round).init());
        let (model, task) = self.trainer(round).train(
            model,
            optimizer,
            position,
            &data,
            observer,
            &mut on_checkpoint,
        )?;
        log.tasks[round] = task;
        Ok(model)
    }

    /// What method and head do when the steps of a round are over.
    pub(crate) fn fit(
        &self,
        round: usize,
        mut model: Model,
        images: &RoundData,
        log: &mut RunLog,
        observer: &mut dyn Observer,
    ) -> Result<Model, TrainError> {
        let clock = Instant::now();
        let (config, method, head) = (self.config(), self.plan.method(), self.plan.head());
        let context = self.context(round);
        let plain = self
            .rooms
            .round_images(round, &self.dataset, config, &self.device);
        model = method.review(model, &context, &plain)?;
        model = method.after_task(model, &context)?;
        if head.is_fitted() {
            let of_trained = match &images.features {
                Some(_) => None,
                None => Some(self.features(round, &model)?),
            };
            if let Some(table) = images.features.as_ref().or(of_trained.as_ref()) {
                model.head = head.fit(model.head, &self.head_task(round, table))?;
            }
            // Before it is evaluated: its numbers would be told as results.
            if let Some(what) = unsound_part(&model) {
                return Err(TrainError::Unsound {
                    what,
                    task_idx: round,
                    n_steps: log.tasks[round].losses.len(),
                });
            }
        }
        log.tasks[round].around_seconds += clock.elapsed().as_secs_f64();
        log.floats_stored.push(model.floats_stored());
        log.magnitudes.push(model.adapter.magnitude_rows());
        observer.event(&Event::TaskTrained {
            task_idx: round,
            seconds: log.tasks[round].total_seconds(),
            magnitudes: &log.magnitudes[round],
        });
        Ok(model)
    }

    /// The next row of the accuracy matrix. A run that is to stop meanwhile keeps the trained model.
    pub(crate) fn evaluate(
        &self,
        round: usize,
        model: &Model,
        log: &mut RunLog,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let clock = Instant::now();
        let n_seen = self.rooms.n_seen_tasks(round);
        let tests = &self.tests[..n_seen];
        let head = self.plan.head().as_ref();
        let row = evaluate_unless(model, head, tests, &self.device, &mut || {
            observer.wants_stop()
        })?;
        let Some(row) = row else {
            self.save(steps_done_name(round), model, round, log, observer)?;
            return Err(self.stopped(round, log));
        };
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
        Ok(())
    }

    /// Writes a checkpoint between two tasks, or between training and evaluation.
    pub(crate) fn save(
        &self,
        name: String,
        model: &Model,
        n_done: usize,
        log: &RunLog,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        let position = Position::of(model, n_done, log, observer.mark());
        let path = save(&self.folder, &name, model, None, position)?;
        observer.event(&Event::Checkpointed { path: &path });
        Ok(())
    }

    /// Ends the run where the observer wants it; the newest checkpoint is what it goes on from.
    pub(crate) fn stop_if_asked(
        &self,
        round: usize,
        log: &RunLog,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        match observer.wants_stop() {
            false => Ok(()),
            true => Err(self.stopped(round, log)),
        }
    }

    fn stopped(&self, round: usize, log: &RunLog) -> TrainError {
        TrainError::Stopped {
            path: checkpoint::latest(&self.folder.checkpoints()),
            task_idx: round,
            n_steps: log.tasks.get(round).map_or(0, |task| task.losses.len()),
        }
    }

    fn trainer(&self, round: usize) -> Trainer<'_> {
        let config = self.config();
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
            n_tasks: self.rooms.n_rounds(),
            n_new_classes: self.rooms.n_new_classes(round),
            seed: self.config().seed,
            device: self.device.clone(),
            head: self.plan.head().clone(),
            start: self.plan.column_start(),
        }
    }

    fn features(&self, round: usize, model: &Model) -> Result<FeatureTable, TrainError> {
        self.rooms
            .train_features(round, model, &self.dataset, self.config(), &self.device)
    }

    fn head_task<'a>(&'a self, round: usize, table: &'a FeatureTable) -> HeadTask<'a> {
        HeadTask {
            table,
            first_label: self.rooms.first_label(round),
            task_idx: round,
            seed: self.config().seed,
            device: &self.device,
        }
    }
}
