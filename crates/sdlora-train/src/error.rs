//! The errors of this crate.

use std::path::PathBuf;

use sdlora_core::CoreError;
use sdlora_data::{Change, DataError, ImageError};
use sdlora_metrics::MetricsError;
use sdlora_vit::VitError;

/// What can go wrong between a configuration and its report.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A setting has a value that cannot work.
    #[error("setting `{setting}` is {found}: give it {expected}")]
    Setting {
        /// Name of the setting, as in the configuration file.
        setting: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A configuration that is not valid TOML or has unknown keys.
    #[error("configuration is not usable: {source}")]
    Config {
        /// The reason with line and column, given by the reader.
        source: Box<toml::de::Error>,
    },
    /// The loss became infinite or not a number.
    #[error(
        "the loss is {loss} in task {}, step {step}: lower `optimizer.lr`, or start from \
         another seed; what was saved before is intact",
        .task_idx + 1
    )]
    Diverged {
        /// Task of the step, from 0.
        task_idx: usize,
        /// Step in the task, from 0.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// The loss is a number and far above that of guessing, in most of the last steps.
    #[error(
        "the loss of task {} is lost: in {n_above} of the last {window} steps up to step {step} it \
         lies above {limit:.1}, ten times that of guessing or of its first step (it is {loss:.3e}): lower \
         `optimizer.lr` (it is {lr}), or bound gradients with `optimizer.max_grad_norm`; the last \
         checkpoint is intact",
        .task_idx + 1
    )]
    Lost {
        /// Task, from 0.
        task_idx: usize,
        /// Step in the task, from 0.
        step: usize,
        /// The loss of the step.
        loss: f64,
        /// The loss above which a step counts.
        limit: f64,
        /// Steps above it.
        n_above: usize,
        /// Steps that are looked at.
        window: usize,
        /// The learning rate of the settings.
        lr: f64,
    },
    /// What was to be replaced lost its name and could not get it back.
    #[error(
        "`{path}` cannot be replaced ({source}), and what it was lies whole in `{aside}`: rename it, or start again, \
         which does so"
    )]
    MovedAside {
        /// The name.
        path: PathBuf,
        /// Where it is.
        aside: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// The loss after the last step of a task is far above that of guessing, or no number.
    #[error(
        "the last step of task {} lost what was learned: its images have a loss of {loss:.3e} after it, \
         above {limit:.1}, ten times that of guessing or of the first step: lower `optimizer.lr` (it is {lr}), \
         or bound gradients with `optimizer.max_grad_norm`; nothing of it was saved, and what was saved before \
         is intact",
        .task_idx + 1
    )]
    LostAtEnd {
        /// Task, from 0.
        task_idx: usize,
        /// The loss after the step.
        loss: f64,
        /// The loss above which a task is lost.
        limit: f64,
        /// The learning rate of the settings.
        lr: f64,
    },
    /// Something that was learned holds numbers which are infinite, not a number or far too large.
    #[error(
        "`{what}` is infinite, not a number or far too large (above 1e7) after {n_steps} steps of task {}: \
         lower `optimizer.lr`, or bound gradients with `optimizer.max_grad_norm`; nothing of it was saved, \
         and what was saved before is intact",
        .task_idx + 1
    )]
    Unsound {
        /// The parameter, array or gradient.
        what: String,
        /// Task, from 0.
        task_idx: usize,
        /// Steps of the task so far.
        n_steps: usize,
    },
    /// Gradients left the range of `f16`.
    #[error(
        "a gradient in task {}, step {step} is beyond the range of `f16`: take `precision = \"bf16\"`, \
         or lower `optimizer.lr`; what was saved before is intact",
        .task_idx + 1
    )]
    GradientRange {
        /// The task.
        task_idx: usize,
        /// The step.
        step: usize,
    },
    /// A device stopped in the middle of a step.
    #[error(
        "device {device} gave up: {problem}; make `micro_batch` smaller if its memory is full, or leave the device out; what was saved before is intact"
    )]
    Device {
        /// The device.
        device: String,
        /// What it said.
        problem: String,
    },
    /// Statistics that a method takes of features mean nothing any more.
    #[error(
        "{what} has {problem}: lower `optimizer.lr`, or start from another seed; the last \
         checkpoint is intact"
    )]
    Numbers {
        /// The statistics.
        what: &'static str,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// A file or folder of a run cannot be read or written.
    #[error("cannot {action} {path}: {source}; check the path and the free space")]
    Io {
        /// `read`, `write`, `create` or `rename`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason given by the system.
        source: std::io::Error,
    },
    /// A checkpoint is damaged or belongs to another run.
    #[error(
        "checkpoint {path} cannot be used: {problem}; {}",
        from_before(.earlier)
    )]
    Checkpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// The newest one before it, from which the run can go on.
        earlier: Option<PathBuf>,
    },
    /// Another file or folder of a run is damaged.
    #[error(
        "{path} is damaged: {problem}; continue the run with the same settings to write it again"
    )]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file that says which tasks a run has learned, folder after folder, is missing or damaged.
    #[error(
        "{path} {problem}: put it back from a copy, or move the folder away and learn anew; nothing was removed"
    )]
    LostHistory {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as the rest of a sentence.
        problem: String,
    },
    /// A file of a later version of the program.
    #[error(
        "{path} was written by a newer version of sdlora (format {format}, this one reads up to {known}): \
         install that version; the file is sound, keep it"
    )]
    Newer {
        /// The file or folder.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The last format this version reads.
        known: u32,
    },
    /// Another process writes the folder.
    #[error(
        "{path} is being written by another process: wait until it ends, or choose another folder"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is not where it was when the run began.
    #[error(
        "{path} was moved or removed while the run was going on, so nothing more can be saved: put the folder \
         back and continue the run"
    )]
    FolderGone {
        /// Where it was.
        path: PathBuf,
    },
    /// The run was asked to stop.
    #[error(
        "stopped {}; {}",
        place(.task_idx, .n_steps),
        goes_on(.path)
    )]
    Stopped {
        /// Where it is saved; `None` where nothing was done yet.
        path: Option<PathBuf>,
        /// Task it was in, from 0.
        task_idx: usize,
        /// Steps of this task that are done.
        n_steps: usize,
    },
    /// A fresh run was asked to start where parts of another one lie.
    #[error(
        "{path} has no plan and yet `{found}` of a run: remove the folder, or choose another one"
    )]
    LeftOver {
        /// The folder.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// The data set of a run is no longer what it was.
    #[error(
        "{path} was started on other data ({difference}): {}",
        data_advice(.keeps_labels)
    )]
    DataChanged {
        /// The folder of the run.
        path: PathBuf,
        /// The first difference.
        difference: String,
        /// Whether labels mean what they meant.
        keeps_labels: bool,
    },
    /// The weights a run started from are no longer what they were.
    #[error(
        "{path} was started from another backbone ({difference}): what was trained fits no other weights; put \
         the weights back, or start anew in another folder"
    )]
    WeightsChanged {
        /// The folder of the run.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A run was asked to start in a folder that holds one.
    #[error("{path} already holds a run: continue it, or choose another folder")]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// Nothing to continue.
    #[error("{path} holds no run to continue: start one")]
    NoRun {
        /// The folder.
        path: PathBuf,
    },
    /// The run to continue was started with other settings.
    #[error(
        "{path} was started with another plan ({difference}): use the same settings to continue \
         it, or another folder to start anew"
    )]
    PlanChanged {
        /// The folder.
        path: PathBuf,
        /// The first lines that differ.
        difference: String,
    },
    /// A question about a run that needs a checkpoint it does not have.
    #[error(
        "{path} keeps no checkpoint {what}: a run keeps one of the end of every task in \
         `checkpoints`; train it again, or leave out what needs it"
    )]
    NotKept {
        /// The run.
        path: PathBuf,
        /// Of which moment.
        what: String,
    },
    /// A run folder without the model of a finished run.
    #[error(
        "{path} is not the folder of a finished run: {missing} is missing; give the folder of one, \
         or finish it"
    )]
    NotFinished {
        /// The folder.
        path: PathBuf,
        /// The first file it lacks.
        missing: PathBuf,
    },
    /// An export would replace something.
    #[error("{path} exists: choose another place, or have it replaced")]
    OutputExists {
        /// The file or folder.
        path: PathBuf,
    },
    /// A file or run that the format of an export cannot express or read.
    #[error("{path} cannot be exported or read: {problem}")]
    Export {
        /// The run, file or folder.
        path: PathBuf,
        /// What is in the way, and what to do.
        problem: String,
    },
    /// From the SD-LoRA layer.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// From data sets and streams.
    #[error(transparent)]
    Data(#[from] DataError),
    /// From the accuracy matrix.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// From the backbone and its weights.
    #[error(transparent)]
    Vit(#[from] VitError),
}

impl TrainError {
    pub(crate) fn setting(
        setting: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting {
            setting: setting.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    pub(crate) fn export(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Export {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn newer(path: impl Into<PathBuf>, format: u32, known: u32) -> Self {
        Self::Newer {
            path: path.into(),
            format,
            known,
        }
    }

    pub(crate) fn data_changed(path: impl Into<PathBuf>, change: Change) -> Self {
        Self::DataChanged {
            path: path.into(),
            difference: change.text,
            keeps_labels: change.keeps_labels,
        }
    }

    /// A checkpoint that cannot be used; who knows the others says which one was before it.
    pub(crate) fn checkpoint(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.into(),
            problem: problem.into(),
            earlier: None,
        }
    }

    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    /// Whether the user's input is at fault (exit code 2) rather than the run (exit code 1).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Data(error) => return error.is_usage(),
            Self::Vit(error) => return error.is_usage(),
            _ => {}
        }
        matches!(
            self,
            Self::Setting { .. }
                | Self::Config { .. }
                | Self::RunExists { .. }
                | Self::NoRun { .. }
                | Self::PlanChanged { .. }
                | Self::DataChanged { .. }
                | Self::WeightsChanged { .. }
                | Self::Locked { .. }
                | Self::LeftOver { .. }
                | Self::Newer { .. }
                | Self::NotFinished { .. }
                | Self::NotKept { .. }
                | Self::OutputExists { .. }
                | Self::Export { .. }
                | Self::Core(CoreError::Setting { .. } | CoreError::Rank { .. })
        )
    }
}

/// A transform of the plan that cannot be made.
impl From<ImageError> for TrainError {
    fn from(error: ImageError) -> Self {
        Self::Data(error.into())
    }
}

fn from_before(earlier: &Option<PathBuf>) -> String {
    match earlier {
        Some(earlier) => format!(
            "remove it to continue from the one before, {}",
            earlier.display()
        ),
        None => "no earlier checkpoint is there, so start the run anew in another folder".into(),
    }
}

fn place(task_idx: &usize, n_steps: &usize) -> String {
    match n_steps {
        0 => format!("before the first step of task {}", task_idx + 1),
        n => format!("in task {} after step {n}", task_idx + 1),
    }
}

fn goes_on(path: &Option<PathBuf>) -> String {
    match path {
        Some(path) => format!("{} keeps everything up to there", path.display()),
        None => "nothing was done that could be kept".into(),
    }
}

fn data_advice(keeps_labels: &bool) -> &'static str {
    match keeps_labels {
        true => "put the data back, or accept the changed data and go on with them",
        false => {
            "labels would change their meaning; put the data back, or start anew in another folder"
        }
    }
}
