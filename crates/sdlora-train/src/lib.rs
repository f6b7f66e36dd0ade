//! Methods, trainer, evaluator and checkpoints for class-incremental learning.

pub mod checkpoint;
mod error;
mod features;
mod head;
mod observer;
mod optimizer;
pub mod pretrain;

pub use error::TrainError;
pub use features::{ClassMeans, FeatureTable, accuracy};
pub use head::{CosineHead, LinearHead, cross_entropy};
pub use observer::{Event, Observer, Silent};
pub use optimizer::{OptimizerConfig, Rule, Schedule};
