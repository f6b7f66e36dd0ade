//! The images of one sample set after the first stage of a transform, cached or made when asked for.

use std::ops::Range;
use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use sdlora_image::{BaseImage, Image, Transform};
use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::seed::{Purpose, generator};
use crate::split::Split;
use crate::task::SampleSet;

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
    /// In memory as far as these million bytes go, the first images of the set; the others are decoded each time. What
    /// comes out is the same as with the other two.
    Megabytes(usize),
}

impl Cache {
    /// The part `share` of `total` of the cache, for one of several sets that together have it.
    #[must_use]
    pub fn part(self, share: usize, total: usize) -> Self {
        match self {
            Self::Megabytes(n) => {
                let part = n as u128 * share as u128 / (total as u128).max(1);
                Self::Megabytes(usize::try_from(part).unwrap_or(n))
            }
            all => all,
        }
    }
}

/// Images decoded at once while a cache of limited size is filled.
const CHUNK: usize = 256;

/// Labelled base images of one sample set; shared by the loaders that read it.
pub struct ImageSource {
    dataset: Arc<dyn Dataset>,
    set: SampleSet,
    transform: Transform,
    /// Those of the first samples.
    cached: Vec<BaseImage>,
}

impl std::fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageSource")
            .field("dataset", &self.dataset.name())
            .field("n_samples", &self.set.len())
            .field("transform", &self.transform)
            .field("n_cached", &self.cached.len())
            .finish()
    }
}

impl ImageSource {
    /// Prepares the images of `set` (a training or evaluation set) with `transform`.
    ///
    /// # Errors
    ///
    /// The first error of reading or decoding an image that is kept: any image with [`Cache::Memory`].
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
            cached: Vec::new(),
        };
        source.cached = match cache {
            Cache::None => Vec::new(),
            Cache::Memory => source.decode_all(0..source.set.len())?,
            Cache::Megabytes(n) => source.decode_first(n.saturating_mul(1_000_000))?,
        };
        Ok(source)
    }

    fn decode_all(&self, positions: Range<usize>) -> Result<Vec<BaseImage>, DataError> {
        let images = positions.into_par_iter().map(|at| self.decode(at));
        images.collect()
    }

    /// The first images that fit into `n_bytes` together.
    fn decode_first(&self, n_bytes: usize) -> Result<Vec<BaseImage>, DataError> {
        let mut left = n_bytes;
        let mut images = Vec::new();
        for first in (0..self.set.len()).step_by(CHUNK) {
            let n_chunk = CHUNK.min(self.set.len() - first);
            // Of images like those before, no more are decoded than fit: what is decoded for nothing costs time.
            let mean = (n_bytes - left).checked_div(images.len()).unwrap_or(0);
            let n_fit = left.checked_div(mean).unwrap_or(CHUNK).saturating_add(1);
            for image in self.decode_all(first..first + n_chunk.min(n_fit))? {
                match left.checked_sub(image.n_bytes()) {
                    Some(rest) => left = rest,
                    None => return Ok(images),
                }
                images.push(image);
            }
            if n_fit < n_chunk {
                break;
            }
        }
        Ok(images)
    }

    /// The samples it gives images of.
    pub fn set(&self) -> &SampleSet {
        &self.set
    }

    /// The transform its images are made with.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// Whether all its images are in memory.
    pub fn is_cached(&self) -> bool {
        self.n_cached() == self.set.len()
    }

    /// Number of its images that are in memory, the first of the set.
    pub fn n_cached(&self) -> usize {
        self.cached.len()
    }

    /// The image at a position of the set after the first stage of the transform, to be looked at.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] beyond the end of the set, and those of reading the image.
    pub fn picture(&self, position: usize) -> Result<Image, DataError> {
        let len = self.set.len();
        if position >= len {
            return Err(DataError::OutOfRange {
                what: "image",
                idx: position,
                len,
            });
        }
        self.with_base(position, |image| image.clone().into_image())
    }

    /// Calls `read` with the base image at a position of the set.
    pub(crate) fn with_base<R>(
        &self,
        position: usize,
        read: impl FnOnce(&BaseImage) -> R,
    ) -> Result<R, DataError> {
        match self.cached.get(position) {
            Some(image) => Ok(read(image)),
            None => self.decode(position).map(|image| read(&image)),
        }
    }

    fn decode(&self, position: usize) -> Result<BaseImage, DataError> {
        let (split, idx) = (self.set.split, self.set.samples[position].idx);
        let (_, appearance) = self.set.origin(position);
        let image = self.dataset.image(split, idx)?;
        let place = [u32::from(split == Split::Test), idx as u32, 0];
        let noise = |seed| generator(seed, Purpose::Appearance, place);
        Ok(self.transform.base_image_as(image, appearance, noise))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{StreamConfig, TaskStream};
    use crate::toy::{Fault, ToyDataset};
    use sdlora_image::{Channels, TransformConfig};

    fn source(
        mut dataset: ToyDataset,
        fault: Option<usize>,
        cache: Cache,
    ) -> Result<ImageSource, DataError> {
        dataset.fault = fault.map(|idx| (idx, Fault::Error));
        let stream = TaskStream::new(&dataset, &StreamConfig::joint())?;
        let transform = TransformConfig::new(4, Channels::Gray).init()?;
        ImageSource::new(
            Arc::new(dataset),
            &stream.tasks()[0].train,
            transform,
            cache,
        )
    }

    #[test]
    fn a_cache_of_limited_size_keeps_the_first_images() {
        let dataset = || ToyDataset::new(2, 800, 1);
        let all = source(dataset(), None, Cache::Memory).unwrap();
        assert!(all.is_cached());
        // An image has 8 x 8 bytes; the last one does not fit as a whole.
        let mut some = source(dataset(), None, Cache::None).unwrap();
        assert_eq!(some.n_cached(), 0);
        some.cached = some.decode_first(700 * 64 + 63).unwrap();
        assert_eq!(some.n_cached(), 700);
        assert!(!some.is_cached());
        for position in [0, 699, 700, 1599] {
            let base = |source: &ImageSource| source.with_base(position, BaseImage::clone);
            assert_eq!(base(&some).unwrap(), base(&all).unwrap());
        }
        let none = source(dataset(), None, Cache::Megabytes(0)).unwrap();
        assert_eq!(none.n_cached(), 0);
        for n in [1, usize::MAX] {
            let large = source(dataset(), None, Cache::Megabytes(n)).unwrap();
            assert!(large.is_cached());
        }
    }

    #[test]
    fn a_bad_image_is_an_error_when_it_is_kept_or_read() {
        let dataset = || ToyDataset::new(2, 800, 1);
        assert!(source(dataset(), Some(3), Cache::Memory).is_err());
        assert!(source(dataset(), Some(3), Cache::Megabytes(1)).is_err());
        let late = source(dataset(), Some(1500), Cache::None).unwrap();
        assert_eq!(late.set().split(), Split::Train);
        assert_eq!(late.decode_first(64 * 256).unwrap().len(), 256);
        assert!(late.with_base(1500, |_| ()).is_err());
    }

    #[test]
    fn parts_of_a_cache_make_up_the_whole_at_most() {
        assert_eq!(Cache::Memory.part(1, 3), Cache::Memory);
        assert_eq!(Cache::Megabytes(10).part(1, 3), Cache::Megabytes(3));
        assert_eq!(Cache::Megabytes(10).part(0, 0), Cache::Megabytes(0));
    }

    #[test]
    fn caches_have_names() {
        #[derive(Deserialize)]
        struct Config {
            cache: Cache,
        }
        for (text, cache) in [
            ("cache = 'memory'", Cache::Memory),
            ("cache = 'none'", Cache::None),
            ("cache = { megabytes = 500 }", Cache::Megabytes(500)),
        ] {
            assert_eq!(toml::from_str::<Config>(text).unwrap().cache, cache);
        }
    }
}
