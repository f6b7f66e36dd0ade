//! All tasks at once with one LoRA: the upper bound of what the adapter can reach on this stream.
//!
//! Not continual learning: it sees every image of every task in every epoch, all shuffled together, in
//! steps of `batch_size` images; each looks as it does in its task.

use super::lora::Lora;
use super::{AdapterSpec, Method, MethodEntry, TaskContext};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "joint",
    summary: "one LoRA on the data of all tasks at once: the upper bound",
    build: |options| Ok(Box::new(Joint(Lora::read("joint", options)?))),
    second_pass: None,
};

/// The adapter and the options are those of [`Lora`].
#[derive(Debug, Clone)]
struct Joint(Lora);

impl Method for Joint {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        self.0.before_task(model, task)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        self.0.adapter()
    }

    fn is_joint(&self) -> bool {
        true
    }
}
