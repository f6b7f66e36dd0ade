//! A data set made in memory and loaders of it, for the tests of this crate.

use std::sync::Arc;

use sdlora_image::{AugmentConfig, Channels, Image, RandomAffine, TransformConfig};

use crate::batch::HostBatch;
use crate::budget::CacheBudget;
use crate::cache::Cache;
use crate::dataset::{Dataset, Group, Sample, SampleIdx};
use crate::error::DataError;
use crate::loader::{Loader, LoaderConfig};
use crate::source::ImageSource;
use crate::split::Split;
use crate::stream::{StreamConfig, TaskSplit, TaskStream};

/// Gray 8x8 images; each pixel depends on class, sample and position.
#[derive(Clone, Debug)]
pub(crate) struct ToyDataset {
    class_names: Vec<String>,
    groups: Vec<Group>,
    train: Vec<Sample>,
    test: Vec<Sample>,
    domains: Vec<String>,
    /// Sample of the training half whose image fails, and how.
    pub(crate) fault: Option<(SampleIdx, Fault)>,
}

/// How reading an image fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Error,
    Panic,
}

impl ToyDataset {
    pub(crate) fn new(n_classes: usize, n_train: usize, n_test: usize) -> Self {
        let samples = |n: usize, split: Split| {
            (0..n_classes * n)
                .map(|i| Sample {
                    class_id: i / n,
                    name: format!("{split}{i}"),
                })
                .collect()
        };
        Self {
            class_names: (0..n_classes)
                .map(|class| format!("class{class}"))
                .collect(),
            groups: Vec::new(),
            train: samples(n_train, Split::Train),
            test: samples(n_test, Split::Test),
            domains: Vec::new(),
            fault: None,
        }
    }

    pub(crate) fn with_groups(mut self, groups: &[&[usize]]) -> Self {
        self.groups = groups
            .iter()
            .enumerate()
            .map(|(i, classes)| Group {
                name: format!("group{i}"),
                classes: classes.to_vec(),
            })
            .collect();
        self
    }

    /// The samples of a half belong to the domains in turn.
    pub(crate) fn with_domains(mut self, domains: &[&str]) -> Self {
        self.domains = domains.iter().map(ToString::to_string).collect();
        for half in [&mut self.train, &mut self.test] {
            for (idx, sample) in half.iter_mut().enumerate() {
                sample.name = format!("{}/{idx}", domains[idx % domains.len()]);
            }
        }
        self
    }

    pub(crate) fn without_train_image(mut self, idx: SampleIdx) -> Self {
        self.train.remove(idx);
        self
    }

    pub(crate) fn without_test_images_of(mut self, class: usize) -> Self {
        self.test.retain(|sample| sample.class_id != class);
        self
    }
}

impl Dataset for ToyDataset {
    fn name(&self) -> &str {
        "toy"
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn samples(&self, split: Split) -> &[Sample] {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn domain_of(&self, split: Split, idx: SampleIdx) -> Option<usize> {
        let (domain, _) = self.samples(split).get(idx)?.name.split_once('/')?;
        self.domains.iter().position(|known| known == domain)
    }

    fn image(&self, split: Split, idx: SampleIdx) -> Result<Image, DataError> {
        match self.fault {
            Some((at, Fault::Panic)) if at == idx => panic!("toy panic"),
            Some((at, Fault::Error)) if at == idx => return Ok(Image::decode(b"?", "toy")?),
            _ => {}
        }
        let sample = self.sample(split, idx)?;
        let pixels = (0..64)
            .map(|p| (p * 3 + sample.class_id * 29 + idx * 7) as u8)
            .collect();
        Ok(Image::new(8, 8, 1, pixels)?)
    }
}

/// 21 samples of the second task of a toy stream, with augmentation.
pub(crate) fn loader_of(
    dataset: ToyDataset,
    config: LoaderConfig,
    cache: Cache,
    seed: u64,
) -> Loader {
    loader_within(dataset, config, &CacheBudget::of(cache), seed)
}

/// The same in a budget.
pub(crate) fn loader_within(
    dataset: ToyDataset,
    config: LoaderConfig,
    budget: &CacheBudget,
    seed: u64,
) -> Loader {
    let split = TaskSplit::Sizes(vec![1, 3]);
    let stream = TaskStream::new(&dataset, &StreamConfig::new(split)).unwrap();
    let affine = Some(RandomAffine::default());
    let transform = TransformConfig::new(4, Channels::Gray)
        .with_augment(AugmentConfig {
            affine,
            ..Default::default()
        })
        .init()
        .unwrap();
    let train = &stream.tasks()[1].train;
    let source = ImageSource::within(Arc::new(dataset), train, transform, budget);
    config.init(Arc::new(source), seed).unwrap()
}

/// The same with images in memory and seed 5.
pub(crate) fn loader(config: LoaderConfig) -> Loader {
    loader_of(ToyDataset::new(4, 7, 1), config, Cache::Memory, 5)
}

/// All batches of an epoch.
pub(crate) fn batches(loader: &Loader, epoch_idx: usize) -> Vec<HostBatch> {
    loader
        .host_epoch(epoch_idx)
        .collect::<Result<_, _>>()
        .unwrap()
}
