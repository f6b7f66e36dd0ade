//! What a method is, and what it may know of a task, a step and a batch.

use std::fmt::Debug;
use std::sync::Arc;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use sdlora_core::{Direction, Site};
use sdlora_vit::VitConfig;

use super::AdapterSpec;
use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::heads::{ColumnStart, Head, HeadConfig};
use crate::model::{Model, Part};
use crate::second_pass::SecondPassEntry;
use crate::step_context::StepContext;

/// What a method may know of a task before it trains: its size and place, no image.
#[derive(Debug, Clone)]
pub struct TaskContext {
    /// Task, from 0.
    pub task_idx: usize,
    /// Tasks of the stream.
    pub n_tasks: usize,
    /// Classes of this task that no earlier one has; 0 where only known classes come again.
    pub n_new_classes: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Device with autodiff.
    pub device: Device,
    /// The head, whose columns grow with the classes.
    pub head: Arc<dyn Head>,
    /// Where its new columns start.
    pub start: ColumnStart,
}

impl TaskContext {
    /// The model with a head grown by the new classes.
    pub fn grow_head(&self, mut model: Model) -> Model {
        let mut rng = generator(self.seed, Draw::HeadColumns, self.task_idx);
        let (d_model, n_new) = (model.backbone.config().d_model, self.n_new_classes);
        let (head, device) = (self.head.as_ref(), &self.device);
        model.head = model
            .head
            .grown(head, self.start, d_model, n_new, &mut rng, device);
        model
    }

    /// The model with a new direction on every adapted site.
    ///
    /// # Errors
    ///
    /// When the rank does not fit a site.
    pub fn begin_direction(&self, mut model: Model, rank: usize) -> Result<Model, TrainError> {
        let mut rng = generator(self.seed, Draw::Direction, self.task_idx);
        model.adapter = model.adapter.begin_task(rank, &mut rng, &self.device)?;
        Ok(model)
    }

    /// The model with a new direction on every adapted site, of the rank and the slot that a method names.
    ///
    /// # Errors
    ///
    /// When a rank does not fit a site.
    pub fn begin_directions(
        &self,
        mut model: Model,
        adapter: &AdapterSpec,
    ) -> Result<Model, TrainError> {
        let begun = self.directions(&model, adapter);
        model.adapter = model.adapter.begin_task_with(begun, &self.device)?;
        Ok(model)
    }

    /// The directions that begin in this task, one per site of a model, of the rank and the slot that a method names.
    pub(super) fn directions(&self, model: &Model, adapter: &AdapterSpec) -> Vec<Direction> {
        let mut rng = generator(self.seed, Draw::Direction, self.task_idx);
        let banks = model.adapter.sites.iter();
        let sites: Vec<Site> = banks.map(|bank| bank.site().clone()).collect();
        let rank = adapter.ranks.at(self.task_idx);
        adapter
            .slot
            .directions(&sites, rank, &mut rng, &self.device)
    }

    /// What this task draws for its prompts.
    pub(super) fn prompt_rng(&self) -> ChaCha8Rng {
        generator(self.seed, Draw::Prompts, self.task_idx)
    }
}

/// What a loss is taken of: a batch, or the share of it that one device or one micro-batch has.
#[derive(Debug, Clone)]
pub struct LossBatch<'a> {
    /// The images of the batch `[batch, n_channels, image_size, image_size]`, mixed where they are; `None` where
    /// features are read from a table.
    pub images: Option<Tensor<4>>,
    /// Features `[batch, d_model]`, in the graph.
    pub features: Tensor<2>,
    /// Label of every row.
    pub labels: &'a [usize],
    /// Labels of the classes of the task, ascending.
    pub task_labels: &'a [usize],
    /// Task, from 0.
    pub task_idx: usize,
    /// Step of the task, from 0.
    pub step: usize,
    /// Place of the first row in the batch of the step: what is drawn for an image goes by its place there, so
    /// that it does not depend on how the batch is divided.
    pub first_row: usize,
    /// Seed of the run.
    pub seed: u64,
    /// The head, whose logits of the trained columns the loss compares.
    pub head: &'a dyn Head,
}

/// The training images of a task, prepared as for evaluation, always in the same order.
pub trait TaskImages {
    /// Calls `see` with every batch `[batch, n_channels, image_size, image_size]`, on the device
    /// without autodiff, and the labels of its images.
    ///
    /// # Errors
    ///
    /// Those of reading the images.
    fn each_batch(&self, see: &mut dyn FnMut(Tensor<4>, &[usize])) -> Result<(), TrainError>;
}

/// Over which classes the loss of a task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossOver {
    /// The classes of the task only, new ones and those that come again; other columns of the head take no
    /// part: no gradient, no decay, no moments (published code).
    #[default]
    NewClasses,
    /// All classes seen so far.
    SeenClasses,
}

/// A way to learn a stream. The trainer only sequences its answers.
///
/// The default of a hook carries out the [`SlotSpec`](crate::slot::SlotSpec) of [`adapter`](Self::adapter), and does
/// nothing for a plain one; a method that has its own calls that of the slot first.
pub trait Method: Debug + Send + Sync {
    /// Grows the model and says what is trained, before the first step of a task.
    ///
    /// # Errors
    ///
    /// When the settings do not fit the model.
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError>;

    /// Looks at the images of a task after [`before_task`](Self::before_task) and before the first
    /// step. Each pass over the images costs a forward pass; without one nothing is read.
    ///
    /// # Errors
    ///
    /// Those of reading the images, and what the method makes of them.
    fn prepare(
        &self,
        model: Model,
        _task: &TaskContext,
        _images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        Ok(model)
    }

    /// Looks at the images of a task again after its last step and before
    /// [`after_task`](Self::after_task).
    ///
    /// # Errors
    ///
    /// As those of [`prepare`](Self::prepare).
    fn review(
        &self,
        model: Model,
        _task: &TaskContext,
        _images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        Ok(model)
    }

    /// Changes the structure of the model after the last step of a task, before it is evaluated.
    ///
    /// # Errors
    ///
    /// When the settings do not fit the model.
    fn after_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        Ok(match self.adapter() {
            None => model,
            Some(adapter) => adapter.slot.after_task(model, &task.device),
        })
    }

    /// The low-rank updates that it trains; `None` for a method without.
    fn adapter(&self) -> Option<AdapterSpec> {
        None
    }

    /// Refuses settings that do not fit the shape of the backbone, before anything of a run is written.
    /// The ranks are checked apart.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] naming the first one that does not fit.
    fn check_shape(&self, _vit: &VitConfig) -> Result<(), TrainError> {
        Ok(())
    }

    /// Refuses a stream of so many tasks, before anything of a run is written; `model` has no direction yet.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] naming the setting that the stream is too long for.
    fn check_stream(&self, _model: &Model, _n_tasks: usize) -> Result<(), TrainError> {
        Ok(())
    }

    /// Whether gradient steps are made at all.
    fn takes_steps(&self) -> bool {
        true
    }

    /// The head where the configuration names none.
    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("linear")
    }

    /// Where the columns of new classes start, as in the published code of the method; as a
    /// `torch.nn.Linear` does where a method has none.
    fn column_start(&self) -> ColumnStart {
        ColumnStart::Torch
    }

    /// Whether gradient steps are made in this task; a method that makes them in some tasks only is
    /// not one that a head may rely on. Features stay what they are in a task without steps.
    fn takes_steps_in(&self, _task_idx: usize) -> bool {
        self.takes_steps()
    }

    /// Whether features never change, so they can be computed once.
    fn keeps_features(&self) -> bool {
        false
    }

    /// Whether all tasks are trained at once: an upper bound, not continual learning.
    fn is_joint(&self) -> bool {
        false
    }

    /// Whether it has to know the number of all tasks: then no run goes on with more of them.
    fn needs_all_tasks(&self) -> bool {
        self.is_joint()
    }

    /// Changes the gradients of a step, which are those of the whole batch: projects or rescales them.
    /// [`GradientsParams::remove`] takes the gradient of a parameter out, `register` puts another in.
    ///
    /// # Errors
    ///
    /// When the state does not fit the model.
    fn after_backward(
        &self,
        _model: &Model,
        gradients: GradientsParams,
        _step: &StepContext,
    ) -> Result<GradientsParams, TrainError> {
        Ok(gradients)
    }

    /// Changes the model after a step: prunes, thresholds, merges, draws factors again.
    ///
    /// The moments of an optimiser belong to the id of a parameter. A parameter that is set by
    /// [`Param::map`](burn::module::Param::map) keeps its id and so its moments; one from
    /// [`Param::from_tensor`](burn::module::Param::from_tensor) has a fresh id and starts without any. Give a
    /// fresh id to every frozen parameter that changes, or replicas on other devices keep the old one.
    ///
    /// # Errors
    ///
    /// When the state does not fit the model.
    fn after_step(&self, model: Model, step: &StepContext) -> Result<Model, TrainError> {
        match self.adapter() {
            None => Ok(model),
            Some(adapter) => adapter.slot.after_step(model, step),
        }
    }

    /// Changes the model after the last step of the last task, before the head is fitted for the last time.
    ///
    /// # Errors
    ///
    /// Those of reading the images of the last task, and what the method makes of them.
    fn after_stream(
        &self,
        model: Model,
        _task: &TaskContext,
        _images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        Ok(model)
    }

    /// Whether [`loss`](Self::loss) takes the place of cross-entropy: labels cannot be mixed then.
    fn replaces_loss(&self) -> bool {
        false
    }

    /// The mean loss `[1]` of a batch; `None` is the cross-entropy of the head's columns.
    fn loss(&self, _model: &Model, _batch: &LossBatch<'_>) -> Option<Tensor<1>> {
        None
    }

    /// Added to the loss of a batch, whatever that is: what compares the model with another one on the same images.
    fn batch_penalty(&self, _model: &Model, _batch: &LossBatch<'_>) -> Option<Tensor<1>> {
        None
    }

    /// Factor on the learning rate of a part of the model, greater than 0.
    fn lr_factor(&self, part: Part) -> f64 {
        let adapter = self.adapter();
        adapter.map_or(1.0, |adapter| adapter.slot.lr_factor(part))
    }

    /// Added to the loss of every step.
    fn penalty(&self, model: &Model) -> Option<Tensor<1>> {
        self.adapter()?.slot.penalty(model)
    }

    /// Forward and backward passes of a step, whose losses are averaged: more than one where each is under a mask
    /// of its own.
    fn n_passes(&self) -> usize {
        self.adapter().map_or(1, |adapter| adapter.slot.n_masks())
    }
}

/// A registered method.
#[derive(Debug, Clone, Copy)]
pub struct MethodEntry {
    /// Name in configuration files.
    pub name: &'static str,
    /// One line for the help text.
    pub summary: &'static str,
    /// Reads the options of the method.
    pub build: fn(&toml::Table) -> Result<Box<dyn Method>, TrainError>,
    /// How a second forward pass reads its state; `None` for a method that needs one pass.
    pub second_pass: Option<SecondPassEntry>,
}
