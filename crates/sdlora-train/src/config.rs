//! What a run is: [`RunConfig`] is what was typed, [`Plan`] is what was checked.
//!
//! Only a plan can run. It is written to the run folder before training starts, and a resumed run
//! must have the same one.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Device;
use sdlora_core::Precision;
use sdlora_data::{Cache, Options, StreamConfig};
use sdlora_image::TransformConfig;
use sdlora_vit::{Activation, Checkpoint, Hints, Pooling, PositionResize, Vit, VitConfig};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::heads::{self, ColumnStart, Head, HeadConfig};
use crate::methods::{self, LossOver, METHODS, Method, MethodEntry};
use crate::mix::MixConfig;
use crate::optimizer::OptimizerConfig;
use crate::published::Expected;

/// Version of the form of `plan.toml`; raised when an earlier program would misread it.
pub(crate) const PLAN_FORMAT: u32 = 1;

/// Everything a run depends on, as it stands in a TOML file. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Seed of drawn weights, order of images and augmentation.
    pub seed: u64,
    /// Name of the data set.
    pub dataset: String,
    /// Passes over the data of each task.
    pub n_epochs: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Images of a step that are computed at once (gradient accumulation), for a batch that does not fit
    /// into memory; the step is that of the whole batch up to rounding. All when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<NonZeroUsize>,
    /// Number type of frozen weights and activations in training: `f32`, `bf16` or `f16`. What is
    /// trained, layer norms and losses are `f32` in any case, and so is all that is not a step:
    /// evaluation, fitted heads, checkpoints, exports.
    #[serde(default, skip_serializing_if = "is_default")]
    pub precision: Precision,
    /// Keeps only the inputs of blocks in memory and computes blocks again in the backward pass
    /// (gradient checkpointing): the same step up to rounding, for a third to a half more time.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gradient_checkpointing: bool,
    /// What classifies; that of the method where none is named, see
    /// [`Method::default_head`](crate::methods::Method::default_head).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadConfig>,
    /// Classes the loss of a task runs over.
    #[serde(default)]
    pub loss: LossOver,
    /// What an image counts in the loss: `"equal"`, or `"balanced"` by the number of images of its class, where
    /// classes differ much.
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss_weights: LossWeights,
    /// Steps between two checkpoints inside a task.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: usize,
    /// Tasks between two evaluations on the test images of all tasks seen; the last task is always followed by
    /// one. More than 1 saves time on long streams and leaves rows of the accuracy matrix out, so anytime
    /// accuracy and forgetting are not defined.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub evaluate_every: usize,
    /// Steps between two records of what earlier directions leave of the running one
    /// ([`TaskLog::residuals`](crate::TaskLog::residuals)); 0 records nothing. It changes no weight.
    #[serde(default, skip_serializing_if = "is_default")]
    pub residual_every: usize,
    /// Training images of every class that are held out and take the place of the test half: for
    /// tuning, where test images must stay unseen. 0 evaluates on the test half.
    #[serde(default)]
    pub hold_out: usize,
    /// Training images of every class that no step and no head sees: they turn logits into probabilities and tell
    /// where a class ends, see [`PredictConfig`](crate::PredictConfig). 0 trains on all, and leaves both out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub calibrate_on: usize,
    /// Memory of prepared images: `"auto"`, `"memory"`, `"none"` or a size such as `"2GiB"`, which the training images
    /// of a task, all test images and the batches that are prepared ahead share. It changes speed and memory, no
    /// number, so a run may continue with another one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cache: Cache,
    /// What the first task does differently; joint training is a first task and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_task: Option<FirstTask>,
    /// Mixing of training images; none when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mix: Option<MixConfig>,
    /// Published results of this configuration, shown beside those of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<Expected>,
    /// Options of the data set.
    #[serde(default)]
    pub dataset_options: Options,
    /// The method.
    pub method: MethodConfig,
    /// The backbone.
    pub backbone: BackboneConfig,
    /// The stream of tasks.
    pub stream: StreamConfig,
    /// How images are prepared.
    pub transform: TransformConfig,
    /// The optimiser, made anew for every task.
    pub optimizer: OptimizerConfig,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn one() -> usize {
    1
}

fn is_one(n: &usize) -> bool {
    *n == 1
}

fn default_checkpoint_every() -> usize {
    500
}

/// What an image counts in the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossWeights {
    /// All images the same.
    #[default]
    Equal,
    /// Every class of a task the same: an image counts `n / (k · n_c)`, with `n` images of `k` classes in the task
    /// and `n_c` of its own class.
    Balanced,
}

/// Settings of the first task where they differ from those of all others (PILOT's `init_epoch`,
/// `init_lr` and so on).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirstTask {
    /// Passes over its data, at least 1; those of the other tasks when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_epochs: Option<usize>,
    /// Its whole optimiser; that of the other tasks when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerConfig>,
}

/// A method and its own options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodConfig {
    /// Name in [`METHODS`](crate::methods::METHODS).
    pub name: String,
    /// Options, known to the method alone.
    #[serde(flatten)]
    pub options: toml::Table,
}

/// Where the pre-trained weights are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackboneConfig {
    /// A weight file or a folder with one; relative paths start at the data folder. Who starts the
    /// run may allow other names, and then sets `resolved`.
    pub weights: PathBuf,
    /// Name of the shape, when the file does not carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Attention heads, when neither file nor preset tells; no tensor does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_heads: Option<usize>,
    /// Which tokens become the feature, when neither file nor preset tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// Added to the variance inside every layer norm, above 0 and below 1, when neither file nor
    /// preset tells; no tensor does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
    /// The function in the MLP, when neither file nor preset tells; no tensor does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
    /// How positions are brought to images of another size; as timm does it when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub positions: Option<PositionResize>,
    /// SHA-256 of the weight file, 64 hexadecimal digits, where the run must have exactly this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Where the weights lie on this machine, when `weights` is no path. Not a part of the plan.
    #[serde(skip)]
    pub resolved: Option<PathBuf>,
}

impl BackboneConfig {
    /// Where the weights lie, given the data folder.
    pub fn path(&self, data_dir: &Path) -> PathBuf {
        match &self.resolved {
            Some(path) => path.clone(),
            None => data_dir.join(&self.weights),
        }
    }

    /// What the section knows better than the file; positions are brought to the grid of images of
    /// `side` pixels, where given.
    ///
    /// # Errors
    ///
    /// [`TrainError::Vit`] when there is no preset of that name.
    pub fn hints(&self, side: Option<usize>) -> Result<Hints, TrainError> {
        Ok(Hints {
            config: match &self.preset {
                Some(name) => Some(VitConfig::preset(name)?),
                None => None,
            },
            image_size: side,
            n_heads: self.n_heads,
            pooling: self.pooling,
            norm_eps: self.norm_eps,
            activation: self.activation,
            positions: self.positions,
        })
    }

    /// Reads the weights; positions are brought to the grid of images of `side` pixels, where given.
    ///
    /// # Errors
    ///
    /// [`TrainError::Vit`] when the file is not a whole ViT of this shape.
    pub fn load(
        &self,
        data_dir: &Path,
        side: Option<usize>,
        device: &Device,
    ) -> Result<Vit, TrainError> {
        let hints = self.hints(side)?;
        let checkpoint = Checkpoint::open(&self.path(data_dir), &hints)?;
        Ok(checkpoint.load(device)?.0)
    }
}

impl RunConfig {
    /// Reads a TOML text.
    ///
    /// # Errors
    ///
    /// [`TrainError::Config`] with line and column for unknown or missing keys and wrong types.
    pub fn parse(text: &str) -> Result<Self, TrainError> {
        toml::from_str(text).map_err(|source| TrainError::Config {
            source: Box::new(source),
        })
    }

    /// Passes over the data of a task.
    pub fn n_epochs_of(&self, task_idx: usize) -> usize {
        let first = self.first_task.as_ref().filter(|_| task_idx == 0);
        first
            .and_then(|first| first.n_epochs)
            .unwrap_or(self.n_epochs)
    }

    /// The optimiser of a task.
    pub fn optimizer_of(&self, task_idx: usize) -> &OptimizerConfig {
        let first = self.first_task.as_ref().filter(|_| task_idx == 0);
        first
            .and_then(|first| first.optimizer.as_ref())
            .unwrap_or(&self.optimizer)
    }

    /// Checks that the settings hold together.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] naming the first one that does not, [`TrainError::Data`] when the file
    /// of a class order cannot be read.
    pub fn check(self) -> Result<Plan, TrainError> {
        self.check_with(METHODS)
    }

    /// As [`check`](Self::check), with methods of another crate: `methods` are all that there are.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check).
    pub fn check_with(mut self, methods: &[MethodEntry]) -> Result<Plan, TrainError> {
        for (name, value) in [
            ("n_epochs", self.n_epochs),
            ("first_task.n_epochs", self.n_epochs_of(0)),
            ("batch_size", self.batch_size),
            ("checkpoint_every", self.checkpoint_every),
            ("evaluate_every", self.evaluate_every),
        ] {
            if value == 0 {
                return Err(TrainError::setting(name, value, "at least 1"));
            }
        }
        for (n_epochs, optimizer) in [
            (self.n_epochs, &self.optimizer),
            (self.n_epochs_of(0), self.optimizer_of(0)),
        ] {
            optimizer.check()?;
            optimizer.check_epochs(n_epochs)?;
        }
        for expected in &self.expected {
            expected.check()?;
        }
        self.transform.init()?;
        // A plan does not change with a file.
        self.stream = self.stream.inlined()?;
        self.stream.check()?;
        let entry = *methods::find(methods, &self.method.name)?;
        let method = (entry.build)(&self.method.options)?;
        let adapter = method.adapter();
        let has_patches = adapter
            .as_ref()
            .is_some_and(|spec| spec.slot.patches.is_some());
        if self.gradient_checkpointing && has_patches {
            return Err(TrainError::setting(
                "gradient_checkpointing",
                true,
                "false beside `patches`, because the blocks would be computed again with a gradient from every patch",
            ));
        }
        if self.gradient_checkpointing && adapter.is_some_and(|spec| spec.slot.dropout.is_some()) {
            return Err(TrainError::setting(
                "gradient_checkpointing",
                true,
                "false, because the blocks would be computed again under another mask; `micro_batch` saves \
                 memory too",
            ));
        }
        if self.gradient_checkpointing && entry.second_pass.is_some() {
            return Err(TrainError::setting(
                "gradient_checkpointing",
                true,
                "false, because the blocks of this method read prompts or branches; `micro_batch` saves memory too",
            ));
        }
        let chosen = self.head.get_or_insert_with(|| method.default_head());
        let head = chosen.build()?;
        if !method.takes_steps() && head.needs_steps() {
            return Err(TrainError::setting(
                "head",
                &chosen.name,
                format!(
                    "one of {}, because this method takes no steps",
                    heads::without_steps().join(", ")
                ),
            ));
        }
        let trains_columns = method.takes_steps_in(0);
        let start = match chosen.start {
            None => head.start(method.column_start()),
            Some(_) if !trains_columns => {
                let expected = "left out, because this method trains no columns";
                return Err(TrainError::setting("head.start", "given", expected));
            }
            Some(start) if head.start(start) != start => {
                let expected = "one of kaiming, torch and normal, because this head compares \
                                directions and a column of zeros has none";
                return Err(TrainError::setting("head.start", start.name(), expected));
            }
            Some(start) => start,
        };
        // Plans of versions without the key started at `kaiming`, so only another start is written.
        if trains_columns && start != ColumnStart::Kaiming {
            chosen.start = Some(start);
        }
        if let Some(mix) = &self.mix {
            mix.check()?;
            if method.keeps_features() {
                return Err(TrainError::setting(
                    "mix",
                    "on",
                    "no section, because this method computes the features of an image once",
                ));
            }
            if method.replaces_loss() {
                return Err(TrainError::setting(
                    "mix",
                    "on",
                    "no section, because the loss of this method knows one label an image",
                ));
            }
        }
        if self.loss_weights == LossWeights::Balanced {
            let refuse =
                |expected: &str| Err(TrainError::setting("loss_weights", "balanced", expected));
            if !method.takes_steps() {
                return refuse("left out, because this method takes no steps");
            }
            if method.replaces_loss() {
                return refuse("left out, because this method has a loss of its own");
            }
            if self.mix.is_some() {
                return refuse("left out, or leave out `mix`: a mixed image has two labels");
            }
        }
        Ok(Plan {
            config: self,
            entry,
            method,
            head,
            start,
            version: env!("CARGO_PKG_VERSION"),
        })
    }
}

/// A checked configuration, ready to run.
#[derive(Debug)]
pub struct Plan {
    config: RunConfig,
    entry: MethodEntry,
    method: Box<dyn Method>,
    head: Arc<dyn Head>,
    start: ColumnStart,
    version: &'static str,
}

impl Plan {
    /// The settings.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        self.method.as_ref()
    }

    /// How the method is registered.
    pub fn method_entry(&self) -> &MethodEntry {
        &self.entry
    }

    /// The head.
    pub fn head(&self) -> &Arc<dyn Head> {
        &self.head
    }

    /// Where new columns of the head start.
    pub fn column_start(&self) -> ColumnStart {
        self.start
    }

    /// Name of the head in [`HEADS`](heads::HEADS).
    pub fn head_name(&self) -> &str {
        self.config.head.as_ref().map_or("", |head| &head.name)
    }

    /// The text of `plan.toml`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] when a value has no TOML form.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        let body = toml::to_string(&self.config)
            .map_err(|e| TrainError::setting("configuration", "unwritable", e.to_string()))?;
        Ok(format!(
            "# written by sdlora {}, format {PLAN_FORMAT}\n{body}",
            self.version
        ))
    }
}

/// Checks that images are prepared as a backbone takes them; `path` names it in the message.
pub(crate) fn check_input(
    transform: &TransformConfig,
    vit: &VitConfig,
    path: &Path,
) -> Result<(), TrainError> {
    let (side, n_channels) = (transform.side, transform.channels.count());
    if side == vit.image_size && n_channels == vit.n_channels {
        return Ok(());
    }
    Err(TrainError::setting(
        "transform",
        format!("{n_channels} channels of {side} pixels"),
        format!(
            "the {} channels of {} pixels the backbone {} takes",
            vit.n_channels,
            vit.image_size,
            path.display()
        ),
    ))
}
