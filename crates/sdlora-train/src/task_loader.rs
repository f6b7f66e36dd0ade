//! The training images of a task, epoch by epoch.

use burn::tensor::Device;
use sdlora_data::{Batches, EpochPlan, Loader};

use crate::error::TrainError;

/// The training images of a task, in batches.
pub struct TaskLoader {
    loader: Loader,
}

impl TaskLoader {
    /// Batches of a set.
    pub fn new(loader: Loader) -> Self {
        Self { loader }
    }

    /// Batches per epoch.
    pub fn n_batches(&self) -> usize {
        self.loader.n_batches()
    }

    /// Images per epoch.
    pub fn n_images(&self) -> usize {
        self.loader.n_samples()
    }

    /// Order and cut of an epoch.
    pub(crate) fn plan(&self, epoch: usize) -> EpochPlan {
        self.loader.plan(epoch)
    }

    /// Channels, height and width of an image.
    pub(crate) fn shape(&self) -> [usize; 3] {
        self.loader.source().transform().shape()
    }

    pub(crate) fn epoch(
        &self,
        epoch: usize,
        first: usize,
        device: &Device,
    ) -> Result<Batches, TrainError> {
        let batches = self.loader.epoch(epoch, device);
        Ok(batches.skip_to(first.min(self.n_batches()))?)
    }
}
