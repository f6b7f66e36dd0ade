//! What a head sees of a task.

use burn::tensor::Device;

use crate::features::FeatureTable;

/// A task as a head sees it: features of its training images, and where its new classes begin.
#[derive(Debug, Clone)]
pub struct HeadTask<'a> {
    /// Features of the training images, prepared as for evaluation, always in the same order.
    pub table: &'a FeatureTable,
    /// Number of classes seen before: labels from here on are new, smaller ones come again.
    pub first_label: usize,
    /// Task, from 0.
    pub task_idx: usize,
    /// Seed of the run.
    pub seed: u64,
    /// Device with autodiff.
    pub device: &'a Device,
}
