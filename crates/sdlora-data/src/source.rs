//! The images of one sample set after the first stage of a transform, kept as far as a budget goes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sdlora_image::{BaseImage, Image, Transform};

use crate::budget::{CacheBudget, Taken};
use crate::cache::Cache;
use crate::dataset::Dataset;
use crate::error::DataError;
use crate::seed::{Purpose, generator};
use crate::split::Split;
use crate::task::SampleSet;

/// What an image takes beside its pixels: the pixels are a vector of their own, and an allocation has a header.
const BYTES_BESIDE: usize = size_of::<BaseImage>() + 32;

/// Labelled base images of one sample set; shared by the loaders that read it.
///
/// An image is decoded when it is first asked for, and kept as long as the budget has room for it. Kept images stay
/// until the source is dropped: every epoch reads all of them in another order, so whichever image made room for
/// another would be the next one to be asked for.
pub struct ImageSource {
    dataset: Arc<dyn Dataset>,
    set: SampleSet,
    transform: Transform,
    budget: CacheBudget,
    /// One for each sample; none where nothing is kept.
    kept: Vec<OnceLock<Box<BaseImage>>>,
    /// What the kept images have of the budget.
    taken: Mutex<Option<Taken>>,
}

impl std::fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageSource")
            .field("dataset", &self.dataset.name())
            .field("n_samples", &self.set.len())
            .field("transform", &self.transform)
            .field("n_cached", &self.n_cached())
            .finish()
    }
}

impl ImageSource {
    /// The images of `set` (a training or evaluation set) with `transform`, kept in a budget of their own. Nothing is
    /// decoded yet.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        set: &impl AsRef<SampleSet>,
        transform: Transform,
        cache: Cache,
    ) -> Self {
        Self::within(dataset, set, transform, &CacheBudget::of(cache))
    }

    /// The same in a budget that other sets share.
    pub fn within(
        dataset: Arc<dyn Dataset>,
        set: &impl AsRef<SampleSet>,
        transform: Transform,
        budget: &CacheBudget,
    ) -> Self {
        let set = set.as_ref().clone();
        let n_kept = match budget.limit() {
            0 => 0,
            _ => set.len(),
        };
        Self {
            dataset,
            transform,
            budget: budget.clone(),
            kept: (0..n_kept).map(|_| OnceLock::new()).collect(),
            taken: Mutex::new(None),
            set,
        }
    }

    /// The samples it gives images of.
    pub fn set(&self) -> &SampleSet {
        &self.set
    }

    /// The transform its images are made with.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// The memory that its images and their batches may take.
    pub fn budget(&self) -> &CacheBudget {
        &self.budget
    }

    /// Number of its images that are in memory.
    pub fn n_cached(&self) -> usize {
        self.kept.iter().filter(|kept| kept.get().is_some()).count()
    }

    /// Whether the image at a position is in memory.
    pub(crate) fn is_cached(&self, position: usize) -> bool {
        self.kept
            .get(position)
            .is_some_and(|kept| kept.get().is_some())
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
        let kept = self.kept.get(position);
        if let Some(image) = kept.and_then(OnceLock::get) {
            return Ok(read(image));
        }
        let image = self.decode(position)?;
        let value = read(&image);
        if let Some(kept) = kept {
            self.keep(kept, image);
        }
        Ok(value)
    }

    /// Keeps an image where there is room for it.
    fn keep(&self, place: &OnceLock<Box<BaseImage>>, image: BaseImage) {
        let n_bytes = (image.n_bytes() + BYTES_BESIDE) as u64;
        let Some(new) = self.budget.take(n_bytes) else {
            return;
        };
        // Another thread may have been first; what was taken for this copy then goes back.
        if place.set(Box::new(image)).is_ok() {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *taken {
                Some(taken) => taken.join(new),
                none => *none = Some(new),
            }
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

    fn source(mut dataset: ToyDataset, fault: Option<usize>, budget: &CacheBudget) -> ImageSource {
        dataset.fault = fault.map(|idx| (idx, Fault::Error));
        let stream = TaskStream::new(&dataset, &StreamConfig::joint()).unwrap();
        let transform = TransformConfig::new(4, Channels::Gray).init().unwrap();
        let train = &stream.tasks()[0].train;
        ImageSource::within(Arc::new(dataset), train, transform, budget)
    }

    /// Reads every image once.
    fn read_all(source: &ImageSource) -> Vec<BaseImage> {
        let positions = 0..source.set().len();
        let images = positions.map(|at| source.with_base(at, BaseImage::clone));
        images.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_budget_is_kept_to_and_changes_no_image() {
        let dataset = || ToyDataset::new(2, 800, 1);
        let unlimited = CacheBudget::of(Cache::Memory);
        let all = source(dataset(), None, &unlimited);
        // Nothing is decoded before it is asked for.
        assert_eq!((all.n_cached(), unlimited.used()), (0, 0));
        let expected = read_all(&all);
        assert_eq!(all.n_cached(), 1600);
        // An image has 8 x 8 bytes; the last one does not fit as a whole.
        let n_bytes = 64 + BYTES_BESIDE as u64;
        let some_budget = CacheBudget::new(701 * n_bytes - 1);
        let some = source(dataset(), None, &some_budget);
        for _ in 0..2 {
            assert_eq!(read_all(&some), expected);
            assert_eq!(some.n_cached(), 700);
            assert!(some.is_cached(699) && !some.is_cached(700));
            assert_eq!(some_budget.used(), 700 * n_bytes);
        }
        // Another set finds what is left: nothing, until the first is gone.
        let next = source(dataset(), None, &some_budget);
        assert_eq!(read_all(&next), expected);
        assert_eq!(next.n_cached(), 0);
        drop(some);
        assert_eq!(some_budget.used(), 0);
        assert_eq!(read_all(&next), expected);
        assert_eq!(next.n_cached(), 700);
        assert_eq!(some_budget.peak(), 700 * n_bytes);
        let none = source(dataset(), None, &CacheBudget::of(Cache::None));
        assert_eq!(read_all(&none), expected);
        assert_eq!(none.n_cached(), 0);
    }

    #[test]
    fn an_image_that_two_threads_decode_counts_once() {
        let budget = CacheBudget::of(Cache::Memory);
        let source = source(ToyDataset::new(2, 100, 1), None, &budget);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| read_all(&source));
            }
        });
        assert_eq!(budget.used(), 200 * (64 + BYTES_BESIDE as u64));
    }

    #[test]
    fn a_bad_image_is_an_error_when_it_is_read() {
        for cache in [Cache::Memory, Cache::None] {
            let budget = CacheBudget::of(cache);
            let source = source(ToyDataset::new(2, 800, 1), Some(1500), &budget);
            assert_eq!(source.set().split(), Split::Train);
            assert!(source.with_base(1499, |_| ()).is_ok());
            for _ in 0..2 {
                assert!(source.with_base(1500, |_| ()).is_err());
            }
        }
    }
}
