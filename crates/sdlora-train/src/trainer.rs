//! One task of training: losses, backward, step. It reads no test image and writes no file.

use std::path::PathBuf;
use std::time::Instant;

use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Int, Tensor, TensorData};
use sdlora_data::{Batches, Loader};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::heads::{Head, cross_entropy};
use crate::methods::{LossOver, Method};
use crate::model::Model;
use crate::observer::{Event, Observer};
use crate::optimizer::OptimizerConfig;

/// Position and log of a task in training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskLog {
    /// Loss of every step so far, before its update; its length is the position.
    pub losses: Vec<f64>,
    /// Seconds of training, over all sessions.
    pub seconds: f64,
}

/// The training images of a task, in batches. Joint training reads several sets side by side, each
/// batch with a share of every one.
pub struct TaskLoader {
    loaders: Vec<Loader>,
    n_batches: usize,
}

impl TaskLoader {
    /// Batches of one or more sets.
    pub fn new(loaders: Vec<Loader>) -> Self {
        let n_batches = loaders.iter().map(Loader::n_batches).max().unwrap_or(0);
        Self { loaders, n_batches }
    }

    /// Batches per epoch.
    pub fn n_batches(&self) -> usize {
        self.n_batches
    }

    /// Images per epoch.
    pub fn n_images(&self) -> usize {
        self.loaders.iter().map(Loader::n_samples).sum()
    }

    fn epoch(&self, epoch: usize, first: usize, device: &Device) -> Result<Epoch, TrainError> {
        let mut parts = Vec::with_capacity(self.loaders.len());
        for loader in &self.loaders {
            let batches = loader.epoch(epoch, device);
            parts.push(batches.skip_to(first.min(loader.n_batches()))?);
        }
        Ok(Epoch { parts })
    }
}

struct Epoch {
    parts: Vec<Batches>,
}

impl Epoch {
    /// The next images and labels of all sets that still have some.
    fn next(&mut self) -> Result<Option<Images>, TrainError> {
        let (mut images, mut labels) = (Vec::new(), Vec::new());
        for part in &mut self.parts {
            if let Some(batch) = part.next() {
                let batch = batch?;
                images.push(batch.images);
                labels.extend(batch.labels_host);
            }
        }
        Ok(match images.len() {
            0 => None,
            1 => images.pop().map(|images| (images, labels)),
            _ => Some((Tensor::cat(images, 0), labels)),
        })
    }
}

type Images = (Tensor<4>, Vec<usize>);
type Featured = (Tensor<2>, Option<Tensor<1>>, Vec<usize>);

/// Settings of the trainer that hold for every task.
#[derive(Debug, Clone)]
pub struct Trainer<'a> {
    /// The method.
    pub method: &'a dyn Method,
    /// The head whose logits the loss compares.
    pub head: &'a dyn Head,
    /// Passes over the data.
    pub n_epochs: usize,
    /// The optimiser.
    pub optimizer: &'a OptimizerConfig,
    /// Classes of the loss.
    pub loss: LossOver,
    /// Steps between two calls of `on_checkpoint`.
    pub checkpoint_every: usize,
    /// Device with autodiff.
    pub device: Device,
}

/// A task as the trainer sees it.
pub struct TaskData<'a> {
    /// Task, from 0.
    pub task_idx: usize,
    /// Label of its first class.
    pub first_label: usize,
    /// Its images.
    pub loader: &'a TaskLoader,
    /// Their features with labels, where the method never changes them and nothing is augmented.
    pub features: Option<&'a FeatureTable>,
}

/// Keeps everything that is needed to continue a task, and says where.
pub type OnCheckpoint<'a> =
    dyn FnMut(&Model, &ModuleOptimizer, &TaskLog) -> Result<PathBuf, TrainError> + 'a;

impl Trainer<'_> {
    /// Steps of a task.
    pub fn n_steps(&self, loader: &TaskLoader) -> usize {
        if self.method.takes_steps() {
            self.n_epochs * loader.n_batches()
        } else {
            0
        }
    }

    /// Trains a grown model on a task from the position of `log` on. `optimizer` is the state to
    /// continue with, or a fresh one. `on_checkpoint` is called between steps.
    ///
    /// # Errors
    ///
    /// [`TrainError::Diverged`] for a loss that is no number, and those of images and of
    /// `on_checkpoint`.
    pub fn train(
        &self,
        mut model: Model,
        mut optimizer: ModuleOptimizer,
        mut log: TaskLog,
        task: &TaskData<'_>,
        observer: &mut dyn Observer,
        on_checkpoint: &mut OnCheckpoint<'_>,
    ) -> Result<(Model, TaskLog), TrainError> {
        let n_batches = task.loader.n_batches();
        let n_steps = self.n_steps(task.loader);
        let before = log.seconds;
        let start = Instant::now();
        let mut step = log.losses.len();
        while step < n_steps {
            let epoch = step / n_batches;
            let mut batches = task.loader.epoch(epoch, step % n_batches, &self.device)?;
            while let Some((features, auxiliary, labels)) =
                self.next(&mut batches, &model, task, epoch, step)?
            {
                let n_images = labels.len();
                let mut loss = self.loss_of(&model, features, &labels, task.first_label);
                for term in auxiliary.into_iter().chain(self.method.penalty(&model)) {
                    loss = loss + term;
                }
                let value = f64::from(loss.clone().into_scalar::<f32>());
                if !value.is_finite() {
                    return Err(TrainError::Diverged {
                        task_idx: task.task_idx,
                        step,
                        loss: value,
                    });
                }
                let factor = self.optimizer.lr_factor(step, n_steps, epoch);
                model = self.optimizer.step(&mut optimizer, model, &loss, factor);
                log.losses.push(value);
                log.seconds = before + start.elapsed().as_secs_f64();
                observer.event(&Event::Step {
                    task_idx: task.task_idx,
                    epoch,
                    step,
                    n_steps,
                    n_images,
                    loss: value,
                    lr: self.optimizer.lr * factor,
                });
                step += 1;
                if step.is_multiple_of(self.checkpoint_every) && step < n_steps {
                    let path = on_checkpoint(&model, &optimizer, &log)?;
                    observer.event(&Event::Checkpointed { path: &path });
                }
            }
        }
        Ok((model, log))
    }

    /// Features with gradients, what getting them adds to the loss, and labels of the next batch;
    /// `None` at the end of the epoch.
    fn next(
        &self,
        batches: &mut Epoch,
        model: &Model,
        task: &TaskData<'_>,
        epoch: usize,
        step: usize,
    ) -> Result<Option<Featured>, TrainError> {
        let Some(table) = task.features else {
            return Ok(batches.next()?.map(|(images, labels)| {
                let (features, auxiliary) = model.training_features(images);
                (features, auxiliary, labels)
            }));
        };
        let n_batches = task.loader.n_batches();
        if step >= (epoch + 1) * n_batches {
            return Ok(None);
        }
        let loader = &task.loader.loaders[0];
        let plan = loader.plan(epoch);
        let rows = plan.batch(step % n_batches);
        let values: Vec<f32> = rows
            .iter()
            .flat_map(|&i| table.row(i).iter().copied())
            .collect();
        let data = TensorData::new(values, [rows.len(), table.d_model]);
        let labels = rows.iter().map(|&i| table.labels[i]).collect();
        Ok(Some((Tensor::from_data(data, &self.device), None, labels)))
    }

    fn loss_of(
        &self,
        model: &Model,
        features: Tensor<2>,
        labels: &[usize],
        first_label: usize,
    ) -> Tensor<1> {
        let Some(trained) = &model.head.trained else {
            return Tensor::zeros([1], &self.device);
        };
        let mut logits = self.head.logits(trained, features);
        let [batch, n_classes] = logits.dims();
        let first = match self.loss {
            LossOver::NewClasses => first_label,
            LossOver::SeenClasses => 0,
        };
        if first > 0 {
            logits = logits.slice([0..batch, first..n_classes]);
        }
        let targets: Vec<i32> = labels.iter().map(|&label| (label - first) as i32).collect();
        let targets = Tensor::<1, Int>::from_data(TensorData::new(targets, [batch]), &self.device);
        cross_entropy(logits, targets)
    }
}
