//! The methods: what grows, what is trained and how a classifier comes about.
//!
//! A method is one file and one line in [`METHODS`]; a family of methods shares a file. Help text,
//! configuration check and contract tests read the same slice.

mod adapter_spec;
mod coda_prompt;
mod dualprompt;
mod finetune;
mod hide_prompt;
mod inflora;
mod joint;
mod l2p;
mod linear;
mod lora;
mod lora_per_task;
mod ncm;
mod olora;
mod ranpac;
mod sdlora;
mod sdlora_relative;
mod simplecil;
mod slca;

use std::fmt::Debug;
use std::sync::Arc;

use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use sdlora_vit::{Projection, VitConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TrainError;
use crate::heads::{ColumnStart, Head, HeadConfig};
use crate::model::{Model, Part, generator};
use crate::second_pass::SecondPassEntry;
pub use adapter_spec::{AdapterSpec, RankStep, Ranks};

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
        let mut rng = generator(self.seed, HEAD_DRAW, self.task_idx);
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
        let mut rng = generator(self.seed, DIRECTION_DRAW, self.task_idx);
        model.adapter = model.adapter.begin_task(rank, &mut rng, &self.device)?;
        Ok(model)
    }

    /// What this task draws for its prompts.
    fn prompt_rng(&self) -> ChaCha8Rng {
        generator(self.seed, PROMPT_DRAW, self.task_idx)
    }
}

/// Where in a task a step is.
#[derive(Debug, Clone, PartialEq)]
pub struct StepContext {
    /// Task, from 0.
    pub task_idx: usize,
    /// Step of the task, from 0.
    pub step: usize,
    /// Steps of the task.
    pub n_steps: usize,
    /// Learning rate of the step, before the factor of a part.
    pub lr: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Device with autodiff.
    pub device: Device,
}

/// What a loss is taken of: a batch, or the share of it that one device or one micro-batch has.
#[derive(Debug, Clone)]
pub struct LossBatch<'a> {
    /// Features `[batch, d_model]`, in the graph.
    pub features: Tensor<2>,
    /// Label of every row.
    pub labels: &'a [usize],
    /// Labels of the classes of the task, ascending.
    pub task_labels: &'a [usize],
    /// Task, from 0.
    pub task_idx: usize,
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

/// Streams of the generator, so that changing what one part draws leaves the others as they were.
const HEAD_DRAW: u64 = 1;
const DIRECTION_DRAW: u64 = 2;
const PROMPT_DRAW: u64 = 0x50;

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
    fn after_task(&self, model: Model, _task: &TaskContext) -> Result<Model, TrainError> {
        Ok(model)
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
    fn after_step(&self, model: Model, _step: &StepContext) -> Result<Model, TrainError> {
        Ok(model)
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

    /// The mean loss `[1]` of a batch; `None` is the cross-entropy of the head's columns.
    fn loss(&self, _model: &Model, _batch: &LossBatch<'_>) -> Option<Tensor<1>> {
        None
    }

    /// Factor on the learning rate of a part of the model, greater than 0.
    fn lr_factor(&self, _part: Part) -> f64 {
        1.0
    }

    /// Added to the loss of every step.
    fn penalty(&self, _model: &Model) -> Option<Tensor<1>> {
        None
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

/// Every method there is.
pub const METHODS: &[MethodEntry] = &[
    sdlora::SDLORA,
    sdlora::RR,
    sdlora::KD,
    sdlora::FIRST,
    sdlora::SINGLE,
    sdlora::FIXED_MAGNITUDE,
    sdlora_relative::ENTRY,
    lora::ENTRY,
    lora_per_task::ENTRY,
    olora::ENTRY,
    inflora::ENTRY,
    l2p::ENTRY,
    dualprompt::ENTRY,
    coda_prompt::ENTRY,
    hide_prompt::ENTRY,
    finetune::ENTRY,
    slca::ENTRY,
    ranpac::ENTRY,
    linear::ENTRY,
    ncm::ENTRY,
    simplecil::ENTRY,
    joint::ENTRY,
];

/// The method of that name among some.
///
/// # Errors
///
/// [`TrainError::Setting`] for an unknown name.
pub fn find<'a>(methods: &'a [MethodEntry], name: &str) -> Result<&'a MethodEntry, TrainError> {
    methods.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<_> = methods.iter().map(|m| m.name).collect();
        TrainError::setting("method.name", name, format!("one of {}", known.join(", ")))
    })
}

/// Builds the method of that name with its options.
///
/// # Errors
///
/// [`TrainError::Setting`] for an unknown name or option.
pub fn build(name: &str, options: &toml::Table) -> Result<Box<dyn Method>, TrainError> {
    (find(METHODS, name)?.build)(options)
}

/// Reads options as the type of a method.
fn parse<T: Serialize + DeserializeOwned>(
    method: &str,
    options: &toml::Table,
) -> Result<T, TrainError> {
    crate::options::parse(&format!("method ({method})"), options)
}

fn default_rank() -> usize {
    10
}

fn query_and_value() -> Vec<Projection> {
    vec![Projection::Query, Projection::Value]
}

/// Half the width of the uniform distribution that prompts and keys of L2P and DualPrompt are drawn
/// from. Published code draws from U(0, 0.01).
///
/// Deviates: here the distribution is symmetric, so that no two keys start in the same direction.
fn default_spread() -> f32 {
    0.01
}

/// Refuses a setting that is no finite number above 0, or not at least 0 where that is allowed.
fn check_number(setting: &str, value: f64, is_zero_allowed: bool) -> Result<(), TrainError> {
    let is_fine = value.is_finite() && (value > 0.0 || is_zero_allowed && value == 0.0);
    let expected = match is_zero_allowed {
        true => "a finite number of at least 0",
        false => "a finite number above 0",
    };
    match is_fine {
        true => Ok(()),
        false => Err(TrainError::setting(setting, value, expected)),
    }
}

/// Refuses counts of 0.
fn check_counts(counts: &[(&str, usize)]) -> Result<(), TrainError> {
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((name, _)) => Err(TrainError::setting(
            format!("method.{name}"),
            0,
            "at least 1",
        )),
        None => Ok(()),
    }
}

/// Refuses an empty list of projections, which leaves nothing to train, one that is not among `known`, and
/// one named twice: its second direction would never be read, and so never get a gradient.
fn check_projections(projections: &[Projection], known: &[Projection]) -> Result<(), TrainError> {
    let names = |list: &[Projection]| -> String {
        let names: Vec<_> = list.iter().map(|p| p.name()).collect();
        names.join(", ")
    };
    let is_twice = |i: usize| projections[..i].contains(&projections[i]);
    let is_wrong = |i: usize| !known.contains(&projections[i]) || is_twice(i);
    if projections.is_empty() || (0..projections.len()).any(is_wrong) {
        return Err(TrainError::setting(
            "method.projections",
            format!("[{}]", names(projections)),
            format!("one or more of {}, each once", names(known)),
        ));
    }
    Ok(())
}

/// Refuses, of a list of blocks as it is typed, one without any or with one twice; whether the backbone has
/// them is asked by [`check_blocks`].
fn check_block_list(setting: &str, blocks: Option<&[usize]>) -> Result<(), TrainError> {
    let Some(blocks) = blocks else {
        return Ok(());
    };
    let is_twice = |i: usize| blocks[..i].contains(&blocks[i]);
    if blocks.is_empty() || (0..blocks.len()).any(is_twice) {
        return Err(TrainError::setting(
            format!("method.{setting}"),
            format!("{blocks:?}"),
            "one or more blocks, each once, or none of the key to have the default",
        ));
    }
    Ok(())
}

/// Refuses blocks that the backbone lacks or that are named twice.
fn check_blocks(setting: &str, blocks: &[usize], depth: usize) -> Result<(), TrainError> {
    let is_twice = |i: usize| blocks[..i].contains(&blocks[i]);
    if (0..blocks.len()).any(|i| blocks[i] >= depth || is_twice(i)) {
        return Err(TrainError::setting(
            format!("method.{setting}"),
            format!("{blocks:?}"),
            format!(
                "different blocks of the backbone, from 0 to {}",
                depth.saturating_sub(1)
            ),
        ));
    }
    Ok(())
}
