//! Methods, trainer, evaluator and checkpoints for class-incremental learning.
//!
//! Data flows one way: [`RunConfig`] → [`Plan`] → stream → [`Model`] → [`Trainer`] → [`evaluate`] →
//! log. [`run`] is the driver and reads like the paper: for each task grow, train, evaluate, save.
//! A method is one file in [`methods`], a head one in [`heads`]. Nothing here prints or names a backend.
//!
//! ```
//! use sdlora_train::{RunConfig, TrainError};
//!
//! let text = r#"
//!     seed = 1993
//!     dataset = "omniglot-evaluation"
//!     n_epochs = 20
//!     batch_size = 32
//!     head = "linear"
//!
//!     [method]
//!     name = "sdlora"
//!     rank = 10
//!
//!     [backbone]
//!     weights = "omniglot/vit_omniglot_patch7_28.safetensors"
//!
//!     [stream]
//!     split = { increment = { init_cls = 20, increment = 20 } }
//!
//!     [transform]
//!     side = 28
//!     channels = "gray"
//!
//!     [optimizer]
//!     rule = "sgd"
//!     lr = 0.02
//! "#;
//! let plan = RunConfig::parse(text)?.check()?;
//! assert!(plan.method().takes_steps());
//!
//! // A method without steps cannot have a head that steps train.
//! let ncm = text.replace("\"sdlora\"\n    rank = 10", "\"ncm\"");
//! let error = RunConfig::parse(&ncm)?.check().unwrap_err();
//! assert!(error.to_string().contains("setting `head` is linear"));
//!
//! // A misspelt key is never ignored.
//! let misspelt = text.replace("lr = 0.02", "lr = 0.02\nmomentm = 0.9");
//! assert!(matches!(RunConfig::parse(&misspelt), Err(TrainError::Config { .. })));
//! # Ok::<(), TrainError>(())
//! ```

mod activation_checkpointing;
pub mod analysis;
mod batch_split;
pub mod checkpoint;
mod config;
mod draws;
mod eigen;
mod error;
mod evaluator;
mod export;
mod extractor;
mod features;
pub mod files;
mod fingerprint;
mod finished;
mod folder_lock;
pub mod heads;
mod kept;
pub mod learned;
mod linalg;
pub mod methods;
mod mix;
mod model;
mod objects;
mod observer;
mod one_class;
mod optimizer;
mod options;
mod pixel_baseline;
mod predicting;
pub mod pretrain;
mod published;
mod resume;
mod run;
mod run_data;
mod run_folder;
mod run_log;
mod run_options;
mod second_pass;
mod session;
pub mod slot;
mod soundness;
mod state;
mod step_context;
mod task_loader;
mod task_log;
mod tested;
mod trainer;

pub use activation_checkpointing::Recompute;
pub use batch_split::BatchSplit;
pub use config::{BackboneConfig, FirstTask, LossWeights, MethodConfig, Plan, RunConfig};
pub use error::TrainError;
pub use evaluator::evaluate;
pub use export::{
    AdapterFolder, Answer, FinishedRun, Format, HostTensor, OnnxOptions, OnnxPreparation,
    OnnxProbe, Predictor, TensorFile, UnpackedBundle, export, extract_features, write_model,
};
pub use extractor::Extractor;
pub use features::{ClassMeans, FeatureTable, MeanOf, accuracy};
pub use fingerprint::Fingerprint;
pub use finished::Finished;
pub use folder_lock::FolderLock;
pub use heads::{ColumnStart, CosineHead, HeadConfig, TrainedHead, cross_entropy};
pub use kept::Kept;
pub use mix::{Mix, MixConfig};
pub use model::{Model, Part};
pub use observer::{Event, Observer, Silent};
pub use optimizer::{LrFactors, OptimizerConfig, Rule, Schedule};
pub use pixel_baseline::pixel_floor;
pub use predicting::{Calibrated, Novelty, PredictConfig};
pub use published::{Expected, MeanOver};
pub use run::run;
pub use run_folder::{PLAN_FILE, RunFolder, check_plan, read_plan};
pub use run_log::{ClassScore, RunLog};
pub use run_options::{RunOptions, Start};
pub use sdlora_core::Precision;
pub use sdlora_onnx::Weights;
pub use second_pass::{SecondPass, SecondPassEntry};
pub use session::Session;
pub use state::{Facts, MethodState, Role};
pub use task_loader::TaskLoader;
pub use task_log::TaskLog;
pub use tested::{Tested, TestedImage};
pub use trainer::{OnCheckpoint, TaskData, Trainer};

/// The Rust code of README.md and docs/adding.md, which rustdoc compiles as doctests.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../../README.md")]
    struct Readme;

    #[doc = include_str!("../../../docs/adding.md")]
    struct Adding;
}
