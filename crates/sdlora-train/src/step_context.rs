//! What a method may know of a step.

use burn::tensor::{Device, Tensor};

/// Where in a task a step is.
#[derive(Debug, Clone)]
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
    /// The images of the step `[batch, n_channels, image_size, image_size]`, mixed where they are; `None` where
    /// features are read from a table.
    pub images: Option<Tensor<4>>,
}
