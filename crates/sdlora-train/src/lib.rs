//! Methods, trainer, evaluator and checkpoints for class-incremental learning.
//!
//! Data flows one way: [`RunConfig`] → [`Plan`] → stream → [`Model`] → [`Trainer`] → [`evaluate`] →
//! log. [`run`] is the driver and reads like the paper: for each task grow, train, evaluate, save.
//! A method is one file in [`methods`]. Nothing here prints or names a backend.

pub mod checkpoint;
mod config;
mod error;
mod evaluator;
mod export;
mod features;
mod head;
pub mod methods;
mod model;
mod observer;
mod optimizer;
pub mod pretrain;
mod resume;
mod rooms;
mod run;
mod trainer;

pub use config::{BackboneConfig, MethodConfig, Plan, RunConfig};
pub use error::TrainError;
pub use evaluator::evaluate;
pub use export::{Predictor, write_model};
pub use features::{ClassMeans, FeatureTable, accuracy};
pub use head::{CosineHead, LinearHead, cross_entropy};
pub use model::{HeadKind, Model};
pub use observer::{Event, Observer, Silent};
pub use optimizer::{OptimizerConfig, Rule, Schedule};
pub use resume::PLAN_FILE;
pub use run::{Finished, RunLog, Start, run};
pub use trainer::{TaskData, TaskLoader, TaskLog, Trainer};
