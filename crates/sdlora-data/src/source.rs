//! The images of one sample set after the first stage of a transform, cached or made when asked for.

use std::sync::Arc;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::task::{LabelledSample, SampleSet};
use crate::transform::{BaseImage, Transform};

/// Where the base images of a set are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// In memory: every image is decoded once, when the source is made. Takes about
    /// `channels * (oversample * side)^2` bytes an image; with a pipeline, one byte for each value of the image after
    /// the steps before the first random one, so for a random resized crop the whole decoded image.
    #[default]
    Memory,
    /// Nowhere: an image is decoded each time it is needed.
    None,
}

/// Labelled base images of one sample set; shared by the loaders that read it.
pub struct ImageSource {
    dataset: Arc<dyn Dataset>,
    set: SampleSet,
    transform: Transform,
    cached: Option<Vec<BaseImage>>,
}

impl std::fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageSource")
            .field("dataset", &self.dataset.name())
            .field("n_samples", &self.set.len())
            .field("transform", &self.transform)
            .field("is_cached", &self.cached.is_some())
            .finish()
    }
}

impl ImageSource {
    /// Prepares the images of `set` (a training or evaluation set) with `transform`.
    ///
    /// # Errors
    ///
    /// With [`Cache::Memory`] the first error of reading or decoding an image.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        set: &impl AsRef<SampleSet>,
        transform: Transform,
        cache: Cache,
    ) -> Result<Self, DataError> {
        let mut source = Self {
            dataset,
            set: set.as_ref().clone(),
            transform,
            cached: None,
        };
        if cache == Cache::Memory {
            let images = source
                .set
                .samples
                .par_iter()
                .map(|sample| source.decode(sample));
            source.cached = Some(images.collect::<Result<_, _>>()?);
        }
        Ok(source)
    }

    /// The samples it gives images of.
    pub fn set(&self) -> &SampleSet {
        &self.set
    }

    /// The transform its images are made with.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// Whether its images are in memory.
    pub fn is_cached(&self) -> bool {
        self.cached.is_some()
    }

    /// Calls `read` with the base image at a position of the set.
    pub(crate) fn with_base<R>(
        &self,
        position: usize,
        read: impl FnOnce(&BaseImage) -> R,
    ) -> Result<R, DataError> {
        match &self.cached {
            Some(images) => Ok(read(&images[position])),
            None => self
                .decode(&self.set.samples[position])
                .map(|image| read(&image)),
        }
    }

    fn decode(&self, sample: &LabelledSample) -> Result<BaseImage, DataError> {
        let split = self.set.split;
        let image = self.dataset.image(split, sample.idx)?;
        Ok(self
            .transform
            .base_image(image, &self.set.appearance, split, sample.idx))
    }
}
