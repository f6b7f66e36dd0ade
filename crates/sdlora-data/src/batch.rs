//! A batch: images and labels side by side, first in host memory, then as tensors.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// A batch in host memory, as a loader's thread prepares it.
#[derive(Clone, Debug, PartialEq)]
pub struct HostBatch {
    /// Position in the epoch, from 0.
    pub idx: usize,
    /// Pixels, `[n, channels, side, side]`.
    pub pixels: Vec<f32>,
    /// Shape of one image, `[channels, side, side]`.
    pub shape: [usize; 3],
    /// Label of every image, `n` of them.
    pub labels: Vec<usize>,
}

/// A batch on a device.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Position in the epoch, from 0.
    pub idx: usize,
    /// Images, `[n, channels, side, side]`.
    pub images: Tensor<4>,
    /// Labels, `[n]`.
    pub labels: Tensor<1, Int>,
    /// The same labels in host memory.
    pub labels_host: Vec<usize>,
}

impl HostBatch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images; a loader never makes such a batch.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Uploads the batch.
    pub fn into_batch(self, device: &Device) -> Batch {
        let n = self.labels.len();
        let [channels, height, width] = self.shape;
        let labels: Vec<i32> = self.labels.iter().map(|&label| label as i32).collect();
        Batch {
            idx: self.idx,
            images: Tensor::from_data(
                TensorData::new(self.pixels, [n, channels, height, width]),
                device,
            ),
            labels: Tensor::from_data(TensorData::new(labels, [n]), device),
            labels_host: self.labels,
        }
    }
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels_host.len()
    }

    /// Whether there are no images; a loader never makes such a batch.
    pub fn is_empty(&self) -> bool {
        self.labels_host.is_empty()
    }
}
