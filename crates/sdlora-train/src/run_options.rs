//! Where a run reads, computes and writes, and what it may continue.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

/// Whether a run may continue an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The folder must hold no run.
    Fresh,
    /// The folder must hold a run of the same plan, data and weights.
    Resume,
    /// The same, but images may have come, gone or changed; plan and weights may not.
    ResumeOnChangedData,
}

/// Where a run reads, computes and writes.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The folder that data sets and relative weight paths start from.
    pub data_dir: PathBuf,
    /// The devices of one machine that divide every batch among them; autodiff is added. Each computes the
    /// gradients of its share. The first one adds them up, makes the step, and does everything else. Order and
    /// number of the devices change results by rounding only.
    pub devices: Vec<Device>,
    /// The folder of the run.
    pub folder: PathBuf,
    /// Whether the folder holds a run to continue.
    pub start: Start,
    /// The folder of a finished run of the same model, which this one goes on from: its data set has all tasks of
    /// that run and more. That folder is only read.
    pub after: Option<PathBuf>,
}

impl RunOptions {
    /// A fresh run on one device.
    pub fn new(data_dir: &Path, device: &Device, folder: &Path) -> Self {
        Self {
            data_dir: data_dir.into(),
            devices: vec![device.clone()],
            folder: folder.into(),
            start: Start::Fresh,
            after: None,
        }
    }

    /// The same with another start.
    #[must_use]
    pub fn with_start(self, start: Start) -> Self {
        Self { start, ..self }
    }

    /// The same, going on from a finished run.
    #[must_use]
    pub fn going_on_from(self, after: &Path) -> Self {
        Self {
            after: Some(after.into()),
            ..self
        }
    }
}
