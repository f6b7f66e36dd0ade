//! One task of training: losses, backward, step. It reads no test image and writes no file.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Int, Tensor, TensorData};
use sdlora_core::Precision;
use sdlora_data::{Batches, EpochPlan};

use crate::activation_checkpointing::Recompute;
use crate::batch_split::{BatchSplit, Replicas, with_trained};
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::heads::{Head, TrainedHead, cross_entropy, weighted_cross_entropy};
use crate::methods::{LossBatch, LossOver, Method, StepContext};
use crate::mix::{Mix, MixConfig};
use crate::model::{Model, parameters};
use crate::observer::{Event, Observer};
use crate::optimizer::{LrFactors, OptimizerConfig, are_finite};
use crate::slot::{PassPlace, training_updates};
use crate::soundness::{LossWatch, unsound_part};
use crate::task_loader::TaskLoader;
use crate::task_log::TaskLog;

/// A batch on its way to the loss.
struct Batch {
    inputs: Inputs,
    labels: Vec<usize>,
    mix: Mix,
    step: usize,
}

/// What the features come from.
enum Inputs {
    /// Mixed, `[batch, channels, height, width]`.
    Images(Tensor<4>),
    /// The features themselves, `[batch, d_model]`.
    Features(Tensor<2>),
}

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
    /// Mixing of images that are not in a feature table.
    pub mix: Option<&'a MixConfig>,
    /// Seed of what is mixed.
    pub seed: u64,
    /// How the work of a step is divided.
    pub split: BatchSplit,
    /// Steps between two calls of `on_checkpoint`.
    pub checkpoint_every: usize,
    /// Steps between two entries of [`TaskLog::residuals`]; 0 makes none.
    pub residual_every: usize,
    /// Number type of the backbone in training.
    pub precision: Precision,
    /// Whether blocks are computed again in the backward pass, to keep less in memory.
    pub gradient_checkpointing: bool,
    /// Device with autodiff.
    pub device: Device,
}

/// A task as the trainer sees it.
pub struct TaskData<'a> {
    /// Task, from 0.
    pub task_idx: usize,
    /// Labels of its classes, ascending; new ones and those that come again.
    pub labels: &'a [usize],
    /// Its images.
    pub loader: &'a TaskLoader,
    /// Their features with labels, where the method never changes them and nothing is augmented.
    pub features: Option<&'a FeatureTable>,
    /// What an image of each of the labels counts in the loss; all the same where left out.
    pub weights: Option<&'a [f32]>,
}

/// Keeps everything that is needed to continue a task, and says where.
///
/// The last is what [`Observer::mark`] said.
pub type OnCheckpoint<'a> =
    dyn FnMut(&Model, &ModuleOptimizer, &TaskLog, Option<u64>) -> Result<PathBuf, TrainError> + 'a;

impl Trainer<'_> {
    /// Steps of a task, which is counted from 0.
    pub fn n_steps(&self, task_idx: usize, loader: &TaskLoader) -> usize {
        if self.method.takes_steps_in(task_idx) {
            self.n_epochs * loader.n_batches()
        } else {
            0
        }
    }

    /// Numbers of a grown model that a task with these labels trains.
    pub(crate) fn n_trained(&self, model: &Model, labels: &[usize]) -> usize {
        let trained = model.head.trained.as_ref();
        let resting = match self.loss {
            LossOver::NewClasses => trained.map_or(0, |trained| trained.n_outside(labels)),
            LossOver::SeenClasses => 0,
        };
        model.n_trained().saturating_sub(resting)
    }

    /// Trains a grown model on a task from the position of `log` on. Columns of the head that the
    /// loss does not compare are taken out for that time, so no rule can move them. `optimizer` is the state to
    /// continue with, or a fresh one. `on_checkpoint` is called between steps, and before the run ends because
    /// the observer wants it to stop.
    ///
    /// # Errors
    ///
    /// [`TrainError::Diverged`] for a loss that is no number, [`TrainError::Lost`] for one that stays far
    /// above guessing, [`TrainError::LostAtEnd`] for one that is there after the last step,
    /// [`TrainError::GradientRange`] for gradients beyond `f16`,
    /// [`TrainError::Unsound`] for parameters or gradients that are no numbers before a checkpoint or
    /// after the last step, [`TrainError::Device`] for a device that gives up,
    /// [`TrainError::Stopped`] when the observer wants it, and those of images and of `on_checkpoint`.
    pub fn train(
        &self,
        mut model: Model,
        mut optimizer: ModuleOptimizer,
        mut log: TaskLog,
        task: &TaskData<'_>,
        observer: &mut dyn Observer,
        on_checkpoint: &mut OnCheckpoint<'_>,
    ) -> Result<(Model, TaskLog), TrainError> {
        let resting;
        (model.head, resting) = match self.loss {
            LossOver::NewClasses => model.head.of_task(task.labels),
            LossOver::SeenClasses => (model.head, None),
        };
        let n_batches = task.loader.n_batches();
        let n_steps = self.n_steps(task.task_idx, task.loader);
        let before = log.seconds;
        let start = Instant::now();
        // Only steps are computed in the other type: the weights come back as they were, and what is
        // trained never leaves `f32`.
        let is_other = self.precision != Precision::F32 && task.features.is_none();
        let exact = (is_other && log.losses.len() < n_steps).then(|| model.backbone.clone());
        let whole = |mut model: Model| {
            if let Some(exact) = &exact {
                model.backbone = with_trained(exact.clone(), &model.backbone);
            }
            model.head = model.head.with_resting(resting.as_ref());
            model
        };
        if exact.is_some() {
            model.backbone = model.backbone.with_precision(self.precision);
        }
        let factors_of = |model: &Model| LrFactors::of(model, |part| self.method.lr_factor(part));
        let (mut known, mut factors) = (parameters(&model), factors_of(&model));
        let mut replicas = Replicas::of(&model, &self.device, &self.split);
        let mut step = log.losses.len();
        let mut watch = None;
        let mut lost = None;
        while step < n_steps {
            let epoch = step / n_batches;
            let mut batches = task.loader.epoch(epoch, step % n_batches, &self.device)?;
            let plan = task.features.map(|_| task.loader.plan(epoch));
            while let Some(batch) = self.next(&mut batches, plan.as_ref(), task, epoch, step)? {
                let n_images = batch.labels.len();
                let (value, grads) = replicas.gradients(
                    &model,
                    n_images,
                    |model, device, rows| self.loss_of(model, device, &batch, rows, task, step),
                    self.method.penalty(&model),
                    self.precision.loss_scale(),
                )?;
                if !value.is_finite() {
                    return Err(TrainError::Diverged {
                        task_idx: task.task_idx,
                        step,
                        loss: value,
                    });
                }
                let is_kept_next =
                    (step + 1).is_multiple_of(self.checkpoint_every) || step + 1 == n_steps;
                // A loss may be finite where its gradients are not. In `f16` every step can leave the
                // range; in `f32` it is enough to look before something is kept.
                let is_f16 = self.precision == Precision::F16;
                if (is_f16 || is_kept_next) && !are_finite(&grads, &model) {
                    return Err(match is_f16 {
                        true => TrainError::GradientRange {
                            task_idx: task.task_idx,
                            step,
                        },
                        false => self.unsound(task, step, "a gradient".into()),
                    });
                }
                let lr = self.optimizer.lr_at(step, n_steps, epoch);
                let context = StepContext {
                    task_idx: task.task_idx,
                    step,
                    n_steps,
                    lr,
                    seed: self.seed,
                    device: self.device.clone(),
                    images: match &batch.inputs {
                        Inputs::Images(images) => Some(images.clone()),
                        Inputs::Features(_) => None,
                    },
                };
                let grads = self.method.after_backward(&model, grads, &context)?;
                model = self
                    .optimizer
                    .apply(&mut optimizer, model, grads, factors.rates(lr));
                model = self.method.after_step(model, &context)?;
                let now = parameters(&model);
                if now != known {
                    (known, factors) = (now, factors_of(&model));
                    replicas = Replicas::of(&model, &self.device, &self.split);
                }
                log.losses.push(value);
                let watch = *watch.get_or_insert_with(|| {
                    LossWatch::new(self.n_compared(&model), n_steps, log.losses[0])
                });
                if let Some((n_above, window)) = watch.lost(&log.losses) {
                    return Err(TrainError::Lost {
                        task_idx: task.task_idx,
                        step,
                        loss: value,
                        limit: watch.limit(),
                        n_above,
                        window,
                        lr: self.optimizer.lr,
                    });
                }
                if step + 1 == n_steps {
                    let loss = self.loss_after(&model, &batch, task, step);
                    lost = watch.lost_at_end(loss).then(|| TrainError::LostAtEnd {
                        task_idx: task.task_idx,
                        loss,
                        limit: watch.limit(),
                        lr: self.optimizer.lr,
                    });
                }
                if self.residual_every > 0
                    && log.losses.len().is_multiple_of(self.residual_every)
                    && let Some(residual) = model.adapter.current_residual()
                {
                    log.residuals.push((step, residual));
                }
                log.seconds = before + start.elapsed().as_secs_f64();
                observer.event(&Event::Step {
                    task_idx: task.task_idx,
                    epoch,
                    step,
                    n_steps,
                    n_images,
                    loss: value,
                    lr,
                });
                step += 1;
                let stops = observer.wants_stop();
                if stops || step.is_multiple_of(self.checkpoint_every) && step < n_steps {
                    let whole = whole(model.clone());
                    let path = on_checkpoint(&whole, &optimizer, &log, observer.mark())?;
                    observer.event(&Event::Checkpointed { path: &path });
                    if stops {
                        return Err(TrainError::Stopped {
                            path: Some(path),
                            task_idx: task.task_idx,
                            n_steps: step,
                        });
                    }
                }
            }
        }
        let model = whole(model);
        if let Some(what) = (n_steps > 0).then(|| unsound_part(&model)).flatten() {
            return Err(self.unsound(task, n_steps, what));
        }
        if let Some(lost) = lost {
            return Err(lost);
        }
        // `watch` is of this session: a run that continues behind the last step has said it before.
        let unlearnt = watch.and_then(|watch| watch.unlearnt(&log.losses, n_batches));
        if let Some((mean, guessing)) = unlearnt {
            let text = format!(
                "task {} was not learnt: the mean loss of its last epoch is {mean:.3}, and that of a guess {guessing:.3}; \
                 a lower `optimizer.lr` (it is {}) often helps",
                task.task_idx + 1,
                self.optimizer.lr
            );
            observer.event(&Event::Notice { text: &text });
        }
        Ok((model, log))
    }

    /// The loss of a batch, or of as much of it as is computed at once, after its step.
    fn loss_after(&self, model: &Model, batch: &Batch, task: &TaskData<'_>, step: usize) -> f64 {
        let rows = self.split.first_piece(batch.labels.len());
        let (loss, _) = self.loss_of(model, &self.device, batch, rows, task, step);
        let loss = match self.method.penalty(model) {
            None => loss,
            Some(penalty) => loss + penalty,
        };
        f64::from(loss.into_scalar::<f32>())
    }

    /// Classes that the loss of a step compares.
    fn n_compared(&self, model: &Model) -> usize {
        let trained = model.head.trained.as_ref();
        trained.map_or(0, TrainedHead::n_classes)
    }

    fn unsound(&self, task: &TaskData<'_>, n_steps: usize, what: String) -> TrainError {
        TrainError::Unsound {
            what,
            task_idx: task.task_idx,
            n_steps,
        }
    }

    /// The next batch, from a table of features by the `plan` of the epoch; `None` at the end of the epoch.
    fn next(
        &self,
        batches: &mut Batches,
        plan: Option<&EpochPlan>,
        task: &TaskData<'_>,
        epoch: usize,
        step: usize,
    ) -> Result<Option<Batch>, TrainError> {
        let (Some(table), Some(plan)) = (task.features, plan) else {
            let mix = self.mix_of(task, step);
            let batch = batches.next().transpose()?;
            return Ok(batch.map(|batch| Batch {
                inputs: Inputs::Images(mix.apply(batch.images)),
                labels: batch.labels_host,
                mix,
                step,
            }));
        };
        let n_batches = task.loader.n_batches();
        if step >= (epoch + 1) * n_batches {
            return Ok(None);
        }
        let rows = plan.batch(step % n_batches);
        let values: Vec<f32> = rows
            .iter()
            .flat_map(|&i| table.row(i).iter().copied())
            .collect();
        let data = TensorData::new(values, [rows.len(), table.d_model]);
        let labels = rows.iter().map(|&i| table.labels[i]).collect();
        Ok(Some(Batch {
            inputs: Inputs::Features(Tensor::from_data(data, &self.device)),
            labels,
            mix: Mix::None,
            step,
        }))
    }

    /// How the batch of a step is mixed.
    fn mix_of(&self, task: &TaskData<'_>, step: usize) -> Mix {
        let Some(mix) = self.mix else {
            return Mix::None;
        };
        let [_, height, width] = task.loader.shape();
        mix.draw(self.seed, task.task_idx, step, [height, width])
    }

    /// Mean loss `[1]` of some rows of a batch under a model on a device, over the passes of the step, and what
    /// gives the gradients of its blocks where they are computed again.
    fn loss_of(
        &self,
        model: &Model,
        device: &Device,
        batch: &Batch,
        rows: Range<usize>,
        task: &TaskData<'_>,
        step: usize,
    ) -> (Tensor<1>, Option<Recompute>) {
        let n_passes = self.method.n_passes();
        let of_pass = |k: usize| {
            let pass = step * n_passes + k;
            self.loss_of_pass(model, device, batch, rows.clone(), task, pass)
        };
        if n_passes == 1 {
            return of_pass(0);
        }
        let losses = (0..n_passes).map(|k| of_pass(k).0);
        let sum = losses.reduce(|sum, loss| sum + loss);
        let sum = sum.unwrap_or_else(|| Tensor::zeros([1], device));
        (sum.div_scalar(n_passes as f64), None)
    }

    fn loss_of_pass(
        &self,
        model: &Model,
        device: &Device,
        batch: &Batch,
        rows: Range<usize>,
        task: &TaskData<'_>,
        pass: usize,
    ) -> (Tensor<1>, Option<Recompute>) {
        let (task_idx, task_labels) = (task.task_idx, task.labels);
        let mut recompute = None;
        let (images, (features, auxiliary)) = match &batch.inputs {
            Inputs::Features(features) => {
                (None, (rows_of(features, &rows).to_device(device), None))
            }
            Inputs::Images(images) => {
                let images = rows_of(images, &rows).to_device(device);
                let by_blocks = match self.gradient_checkpointing {
                    true => Recompute::features(model, &images),
                    false => None,
                };
                let features = match by_blocks {
                    None => {
                        let patches = self.method.adapter().and_then(|spec| spec.slot.patches);
                        let place = PassPlace {
                            seed: self.seed,
                            task_idx,
                            pass,
                            rows: rows.clone(),
                        };
                        let updates = training_updates(model, patches, &place, device);
                        model.training_features_with(images.clone(), &updates)
                    }
                    Some((features, blocks)) => {
                        recompute = Some(blocks);
                        (features, None)
                    }
                };
                (Some(images), features)
            }
        };
        let of_batch = LossBatch {
            images,
            features: features.clone(),
            labels: &batch.labels[rows.clone()],
            task_labels,
            task_idx,
            step: batch.step,
            first_row: rows.start,
            seed: self.seed,
            head: self.head,
        };
        let own = self.method.loss(model, &of_batch);
        let added = self.method.batch_penalty(model, &of_batch);
        let loss =
            own.unwrap_or_else(|| self.classification_loss(model, features, batch, rows, task));
        let added = auxiliary.into_iter().chain(added);
        let loss = added.fold(loss, |loss, added| loss + added);
        (loss, recompute)
    }

    fn classification_loss(
        &self,
        model: &Model,
        features: Tensor<2>,
        batch: &Batch,
        rows: Range<usize>,
        task: &TaskData<'_>,
    ) -> Tensor<1> {
        let task_labels = task.labels;
        let device = features.device();
        let Some(trained) = &model.head.trained else {
            return Tensor::zeros([1], &device);
        };
        let logits = self.head.logits(trained, features);
        let target = |label: usize| match self.loss {
            LossOver::NewClasses => task_labels.binary_search(&label).unwrap_or_default() as i32,
            LossOver::SeenClasses => label as i32,
        };
        let tensor = |targets: Vec<i32>| {
            let shape = [targets.len()];
            Tensor::<1, Int>::from_data(TensorData::new(targets, shape), &device)
        };
        let labels = &batch.labels;
        let targets = tensor(rows.clone().map(|row| target(labels[row])).collect());
        if let Some(weights) = task.weights {
            let weight = |row: usize| {
                let place = task_labels.binary_search(&labels[row]).ok();
                place
                    .and_then(|place| weights.get(place))
                    .map_or(1.0, |&w| w)
            };
            let weights: Vec<f32> = rows.map(weight).collect();
            let shape = [weights.len()];
            let weights = Tensor::from_data(TensorData::new(weights, shape), &device);
            return weighted_cross_entropy(logits, targets, weights);
        }
        if batch.mix == Mix::None {
            return cross_entropy(logits, targets);
        }
        let partners = partners(rows, labels.len());
        let partners = tensor(partners.map(|row| target(labels[row])).collect());
        batch.mix.cross_entropy_of(logits, targets, partners)
    }
}

/// The partners in a mixed batch of some of its rows: those before them, the last for the first.
fn partners(rows: Range<usize>, batch: usize) -> impl Iterator<Item = usize> {
    rows.map(move |row| (row + batch - 1) % batch)
}

/// Some rows of a tensor; the tensor itself where they are all.
fn rows_of<const D: usize>(tensor: &Tensor<D>, rows: &Range<usize>) -> Tensor<D> {
    match rows.len() == tensor.dims()[0] {
        true => tensor.clone(),
        false => tensor.clone().slice(rows.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;

    #[test]
    fn partners_of_labels_are_those_of_the_images() {
        let device = test_device();
        let images = Tensor::<1>::from_data([0.0f32, 1.0, 2.0, 3.0], &device).reshape([4, 1, 1, 1]);
        let mixed = Mix::Blend { share: 0.0 }.apply(images).into_data();
        let found: Vec<usize> = partners(0..4, 4).collect();
        assert_eq!(
            found,
            mixed.iter().map(|v: f32| v as usize).collect::<Vec<_>>()
        );
        assert_eq!(partners(2..4, 4).collect::<Vec<_>>(), found[2..]);
    }
}
