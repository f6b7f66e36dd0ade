//! Turns a sample set into the batches of any epoch.
//!
//! The order of an epoch is drawn from (seed, task, epoch), the augmentation of a sample from (seed, task, epoch,
//! sample). So a batch depends neither on how many threads prepare it, nor on how far they are ahead, nor on whether
//! the epoch started at its beginning: a run that resumes at batch k sees what the uninterrupted run saw.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::batch::HostBatch;
use crate::error::DataError;
use crate::panics::panic_message;
use crate::plan::EpochPlan;
use crate::seed::{Purpose, generator};
use crate::source::ImageSource;

/// Settings of a [`Loader`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderConfig {
    /// Number of images of a batch, at least 1.
    pub batch_size: usize,
    /// Order of the samples.
    #[serde(default)]
    pub order: SampleOrder,
    /// What becomes of samples that do not fill a batch.
    #[serde(default)]
    pub last_batch: LastBatch,
    /// Number of batches prepared ahead, as far as the budget of the images has room for more than one; with 0 each is
    /// prepared when asked for, by the asking thread.
    #[serde(default = "default_prefetch")]
    pub prefetch: usize,
    /// Number of threads that share the images of a batch, at least 1. When absent, all threads of the pool take part
    /// in a batch with images that are still to be decoded, and one does the work if all are in memory. Batches are
    /// the same for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<usize>,
}

fn default_prefetch() -> usize {
    2
}

/// Order of the samples of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleOrder {
    /// A new permutation in every epoch.
    #[default]
    Shuffled,
    /// As in the sample set.
    Sequential,
}

/// What becomes of samples that do not fill a batch at the end of an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LastBatch {
    /// They make a smaller batch.
    #[default]
    Keep,
    /// They are left out of this epoch; a set smaller than one batch is refused.
    Drop,
}

impl LoaderConfig {
    /// Shuffled batches for training; a smaller last batch is kept.
    pub fn training(batch_size: usize) -> Self {
        Self {
            batch_size,
            order: SampleOrder::Shuffled,
            last_batch: LastBatch::Keep,
            prefetch: default_prefetch(),
            workers: None,
        }
    }

    /// Batches in the order of the set, for evaluation.
    pub fn evaluation(batch_size: usize) -> Self {
        Self {
            order: SampleOrder::Sequential,
            ..Self::training(batch_size)
        }
    }

    /// Other treatment of the last batch.
    #[must_use]
    pub fn with_last_batch(mut self, last_batch: LastBatch) -> Self {
        self.last_batch = last_batch;
        self
    }

    /// Another number of batches prepared ahead.
    #[must_use]
    pub fn with_prefetch(mut self, prefetch: usize) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// Another number of threads.
    #[must_use]
    pub fn with_workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// Makes the loader of `source`; `seed` is the run's.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] for a batch size or number of threads of 0, and with [`LastBatch::Drop`] for a set
    /// smaller than one batch.
    pub fn init(&self, source: Arc<ImageSource>, seed: u64) -> Result<Loader, DataError> {
        for (name, value) in [
            ("batch_size", self.batch_size),
            ("workers", self.workers.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(DataError::setting(
                    format!("loader.{name}"),
                    0,
                    "at least 1",
                ));
            }
        }
        let n_samples = source.set().len();
        if self.last_batch == LastBatch::Drop && n_samples < self.batch_size {
            return Err(DataError::setting(
                "loader.batch_size",
                self.batch_size,
                format!(
                    "at most the {n_samples} samples of the set when the last batch is dropped"
                ),
            ));
        }
        Ok(Loader {
            config: self.clone(),
            // Of the pool that asks: runs that share a machine share its processors.
            n_threads: rayon::current_num_threads(),
            source,
            seed,
        })
    }
}

/// Makes the batches of every epoch over one sample set.
#[derive(Clone, Debug)]
pub struct Loader {
    config: LoaderConfig,
    n_threads: usize,
    source: Arc<ImageSource>,
    seed: u64,
}

impl Loader {
    /// The settings it was made of.
    pub fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// The images it reads.
    pub fn source(&self) -> &ImageSource {
        &self.source
    }

    /// Number of samples of the set.
    pub fn n_samples(&self) -> usize {
        self.source.set().len()
    }

    /// Number of batches of an epoch; 0 only for an empty set.
    pub fn n_batches(&self) -> usize {
        match self.config.last_batch {
            LastBatch::Keep => self.n_samples().div_ceil(self.config.batch_size),
            LastBatch::Drop => self.n_samples() / self.config.batch_size,
        }
    }

    /// The order and cut of epoch `epoch_idx`.
    pub fn plan(&self, epoch_idx: usize) -> EpochPlan {
        let mut positions: Vec<usize> = (0..self.n_samples()).collect();
        if self.config.order == SampleOrder::Shuffled {
            let task_idx = self.source.set().task_idx() as u32;
            let place = [task_idx, epoch_idx as u32, 0];
            positions.shuffle(&mut generator(self.seed, Purpose::EpochOrder, place));
        }
        EpochPlan::new(
            epoch_idx,
            positions,
            self.config.batch_size,
            self.n_batches(),
        )
    }

    /// Bytes of a batch of a plan, once prepared.
    pub(crate) fn n_bytes(&self, plan: &EpochPlan, batch_idx: usize) -> u64 {
        let n_values = plan.batch(batch_idx).len() * self.source.transform().n_values();
        (n_values * size_of::<f32>()) as u64
    }

    /// Prepares batch `batch_idx` of a plan.
    pub(crate) fn prepare(
        &self,
        plan: &EpochPlan,
        batch_idx: usize,
    ) -> Result<HostBatch, DataError> {
        let positions = plan.batch(batch_idx);
        let transform = self.source.transform();
        let n_values = transform.n_values();
        let mut pixels = vec![0.0; positions.len() * n_values];
        let is_cached = || positions.iter().all(|&at| self.source.is_cached(at));
        let n_workers = match self.config.workers {
            Some(n) => n,
            None if is_cached() => 1,
            None => self.n_threads,
        };
        let n_workers = n_workers.min(positions.len());
        let images = positions.iter().zip(pixels.chunks_exact_mut(n_values));
        if n_workers <= 1 {
            self.fill(plan, images)?;
        } else {
            // A worker takes the next image when it is done with one: images differ in what they cost.
            let images = Shared(Mutex::new(images));
            thread::scope(|scope| {
                let workers: Vec<_> = (0..n_workers)
                    .map(|_| {
                        thread::Builder::new()
                            .name("sdlora-loader-worker".to_owned())
                            .spawn_scoped(scope, || self.fill(plan, &images))
                            .map_err(|error| DataError::Worker {
                                reason: error.to_string(),
                            })
                    })
                    .collect();
                workers.into_iter().try_for_each(|worker| {
                    worker?.join().unwrap_or_else(|panic| {
                        Err(DataError::Worker {
                            reason: panic_message(panic.as_ref()),
                        })
                    })
                })
            })?;
        }
        let samples = self.source.set().samples();
        Ok(HostBatch {
            idx: batch_idx,
            pixels,
            shape: transform.shape(),
            labels: positions
                .iter()
                .map(|&position| samples[position].label)
                .collect(),
        })
    }

    /// Writes images: each comes as its position in the sample set and the place of its pixels.
    fn fill<'a>(
        &self,
        plan: &EpochPlan,
        images: impl IntoIterator<Item = (&'a usize, &'a mut [f32])>,
    ) -> Result<(), DataError> {
        let transform = self.source.transform();
        let set = self.source.set();
        let augments = transform.config().is_random();
        for (&position, out) in images {
            let sample_idx = set.samples()[position].idx as u32;
            let (task_idx, _) = set.origin(position);
            let place = [task_idx as u32, plan.epoch_idx() as u32, sample_idx];
            let mut rng = augments.then(|| generator(self.seed, Purpose::Augment, place));
            self.source
                .with_base(position, |base| transform.write(base, rng.as_mut(), out))?;
        }
        Ok(())
    }
}

/// An iterator that several threads take from.
struct Shared<I>(Mutex<I>);

impl<I: Iterator> Iterator for &Shared<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        // A panic between two items leaves the iterator whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next()
    }
}

#[cfg(test)]
mod tests {
    use sdlora_image::{
        Channels, ColorJitter, Interpolation, PipelineConfig, RandAugment, RandomCrop,
        RandomErasing, RandomResizedCrop, Resize, Size, Step, TransformConfig,
    };

    use super::*;
    use crate::cache::Cache;
    use crate::stream::{StreamConfig, TaskSplit, TaskStream};
    use crate::toy::{ToyDataset, batches, loader, loader_of};

    #[test]
    fn an_epoch_shows_every_sample_once() {
        let loader = loader(LoaderConfig::training(4));
        let plan = loader.plan(3);
        let mut positions: Vec<usize> = (0..6).flat_map(|i| plan.batch(i).to_vec()).collect();
        assert_eq!(
            (plan.n_batches(), plan.batch(5).len(), plan.batch(6).len()),
            (6, 1, 0)
        );
        assert_ne!(positions, (0..21).collect::<Vec<_>>());
        positions.sort_unstable();
        assert_eq!(positions, (0..21).collect::<Vec<_>>());
        let labels: Vec<usize> = batches(&loader, 3)
            .into_iter()
            .flat_map(|b| b.labels)
            .collect();
        assert_eq!(labels.iter().filter(|&&label| label == 2).count(), 7);
    }

    #[test]
    fn the_last_batch_is_kept_or_dropped() {
        let dropping = LoaderConfig::training(4).with_last_batch(LastBatch::Drop);
        assert_eq!(batches(&loader(dropping.clone()), 0).len(), 5);
        let too_large = LoaderConfig {
            batch_size: 22,
            ..dropping
        };
        let source = Arc::clone(&loader(LoaderConfig::training(4)).source);
        assert!(too_large.init(source, 0).is_err());
        let sequential = batches(&loader(LoaderConfig::evaluation(20)), 0);
        assert_eq!(
            sequential[0].labels,
            [[1; 7].as_slice(), &[2; 7], &[3; 6]].concat()
        );
        assert_eq!(sequential[1].labels, [3]);
    }

    #[test]
    fn epoch_and_seed_change_order_and_augmentation() {
        let sorted_first_values = |seed, epoch_idx| {
            let config = LoaderConfig::evaluation(21);
            let loader = loader_of(ToyDataset::new(4, 7, 1), config, Cache::Memory, seed);
            batches(&loader, epoch_idx).swap_remove(0).pixels
        };
        assert_ne!(sorted_first_values(5, 0), sorted_first_values(5, 1));
        assert_ne!(sorted_first_values(5, 0), sorted_first_values(6, 0));
        let shuffled = loader(LoaderConfig::training(4));
        assert_ne!(shuffled.plan(0).batch(0), shuffled.plan(1).batch(0));
    }

    #[test]
    fn tensors_hold_what_the_host_batch_holds() {
        let device = sdlora_testkit::test_device();
        let loader = loader(LoaderConfig::training(4));
        let host = batches(&loader, 0);
        for (batch, host) in loader.epoch(0, &device).zip(host) {
            let batch = batch.unwrap();
            assert_eq!(batch.images.dims(), [host.len(), 1, 4, 4]);
            assert_eq!(
                batch.images.into_data().try_to_vec::<f32>().unwrap(),
                host.pixels
            );
            let labels: Vec<i64> = batch.labels.into_data().iter::<i64>().collect();
            assert_eq!(
                labels,
                host.labels.iter().map(|&l| l as i64).collect::<Vec<_>>()
            );
            assert_eq!(batch.labels_host, host.labels);
        }
    }

    #[test]
    fn zero_sizes_are_refused() {
        let source = Arc::clone(&loader(LoaderConfig::training(4)).source);
        assert!(
            LoaderConfig::training(0)
                .init(Arc::clone(&source), 0)
                .is_err()
        );
        assert!(
            LoaderConfig::training(1)
                .with_workers(0)
                .init(source, 0)
                .is_err()
        );
    }

    /// Every kind of geometry, for 8 x 8 images.
    fn toy_pipeline() -> PipelineConfig {
        PipelineConfig {
            train: vec![
                Step::Resize(Resize {
                    size: Size::Shorter(7),
                    interpolation: Interpolation::Bicubic,
                }),
                Step::RandomCrop(RandomCrop {
                    size: 7,
                    padding: 1,
                }),
                Step::RandomResizedCrop(RandomResizedCrop::new(4)),
                Step::RandomHorizontalFlip(0.5),
                Step::RandAugment(RandAugment::default()),
                Step::ColorJitter(ColorJitter {
                    brightness: 0.3,
                    contrast: 0.3,
                    saturation: 0.3,
                    hue: 0.1,
                }),
                Step::RandomErasing(RandomErasing::default()),
            ],
            test: PipelineConfig::imagenet_test(6, 4, Interpolation::Bicubic),
        }
    }

    fn pipeline_loader(cache: Cache, config: LoaderConfig) -> Loader {
        let dataset = ToyDataset::new(2, 12, 1);
        let stream =
            TaskStream::new(&dataset, &StreamConfig::new(TaskSplit::Sizes(vec![2]))).unwrap();
        let transform = TransformConfig::new(4, Channels::Rgb)
            .with_pipeline(toy_pipeline())
            .init()
            .unwrap();
        let train = &stream.tasks()[0].train;
        let source = ImageSource::new(Arc::new(dataset), train, transform, cache);
        config.init(Arc::new(source), 5).unwrap()
    }

    #[test]
    fn batches_of_a_pipeline_depend_on_neither_workers_nor_cache_nor_start() {
        let plain = pipeline_loader(Cache::None, LoaderConfig::training(5).with_prefetch(0));
        let expected = batches(&plain, 3);
        for cache in [Cache::None, Cache::Bytes(1000), Cache::Memory] {
            for workers in [1, 2, 3, 7] {
                let config = LoaderConfig::training(5).with_workers(workers);
                let loader = pipeline_loader(cache, config);
                assert_eq!(batches(&loader, 3), expected, "{cache:?}, {workers}");
                for start in 0..=expected.len() {
                    let rest = loader.host_epoch(3).skip_to(start).unwrap();
                    let rest: Vec<_> = rest.collect::<Result<_, _>>().unwrap();
                    assert_eq!(rest, expected[start..]);
                }
            }
        }
        assert_ne!(batches(&plain, 4), expected);
    }

    #[test]
    fn a_training_image_is_new_in_every_epoch_and_evaluation_is_not() {
        let sorted = LoaderConfig::evaluation(24);
        let loader = pipeline_loader(Cache::Memory, sorted);
        let pixels = |epoch| batches(&loader, epoch).swap_remove(0).pixels;
        assert_ne!(pixels(0), pixels(1));
        let config = TransformConfig::new(4, Channels::Rgb).with_pipeline(toy_pipeline());
        assert!(config.is_random() && !config.for_evaluation().is_random());
        assert!(config.for_evaluation().init().is_ok());
    }
}
