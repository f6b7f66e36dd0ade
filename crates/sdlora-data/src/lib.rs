//! Data sets, class order, tasks, streams and batches for class-incremental learning.
//!
//! ```text
//! Dataset ──StreamConfig──▶ TaskStream ──▶ Task { train: TrainSet, test: EvalSet }
//!                                              │
//!                 TransformConfig ──▶ ImageSource ──LoaderConfig──▶ Loader ──▶ Batch
//! ```
//!
//! A [`Dataset`] has classes with ids. A [`TaskStream`] puts the classes in an order, cuts the order into tasks and
//! labels every sample with the position of its class in that order. A [`Loader`] turns the samples of one half of
//! one task into batches. Each step is a pure function of its inputs and a seed.
//!
//! Decoding and transforms are those of [`sdlora_image`]. This crate says which images come in which order under which
//! labels. It knows no model: images and labels leave it as tensors on a device the caller names.
//!
//! ```
//! use std::{path::Path, sync::Arc};
//! use sdlora_data::{
//!     Cache, ClassOrder, Dataset, ImageSource, LoaderConfig, Options, StreamConfig, TaskSplit, TaskStream, datasets,
//! };
//! use sdlora_image::TransformConfig;
//!
//! # fn main() -> Result<(), sdlora_data::DataError> {
//! let data_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
//! let dataset: Arc<dyn Dataset> =
//!     datasets::open("omniglot-evaluation", &data_dir, &Options::none())?.into();
//! let config = StreamConfig::new(TaskSplit::Increment { init_cls: 20, increment: 20 })
//!     .with_class_order(ClassOrder::Numpy { seed: 1993 })
//!     .with_n_tasks(10);
//! let stream = TaskStream::new(dataset.as_ref(), &config)?;
//! let task = &stream.tasks()[1];
//! assert_eq!(task.new_labels(), 20..40);
//!
//! let transform = TransformConfig::omniglot(28).init()?;
//! let source = ImageSource::new(dataset, &task.train, transform, Cache::Auto);
//! let loader = LoaderConfig::training(64).init(Arc::new(source), 1)?;
//! assert_eq!(loader.n_batches(), 5); // 300 images
//! for batch in loader.host_epoch(0) {
//!     let batch = batch?;
//!     assert_eq!(batch.pixels.len(), batch.len() * 28 * 28);
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod archive;
mod batch;
mod budget;
mod cache;
mod checksum;
mod class_order;
mod dataset;
pub mod datasets;
mod epoch;
mod error;
mod files;
mod fingerprint;
mod hex;
mod image_list;
mod loader;
mod machine;
mod manifest;
mod panics;
mod plan;
mod seed;
mod source;
mod split;
mod stream;
mod survey;
mod task;
#[cfg(test)]
mod toy;

pub use batch::{Batch, HostBatch};
pub use budget::CacheBudget;
pub use cache::Cache;
pub use checksum::{FileCheck, FileState};
pub use class_order::{ClassOrder, numpy_permutation};
pub use dataset::{
    ClassId, Content, Dataset, Group, ListingFacts, Look, Options, Sample, SampleIdx,
};
pub use datasets::{DATASETS, DatasetEntry};
pub use epoch::{Batches, HostBatches};
pub use error::DataError;
pub use files::{open_image, read_file};
pub use fingerprint::{Change, ClassPrint, FilesPrint, Fingerprint, HalfPrint};
pub use image_list::{ImageList, NamedImage};
pub use loader::{LastBatch, Loader, LoaderConfig, SampleOrder};
pub use manifest::{Access, FetchTerms, Manifest, ManifestFile, ManifestSet};
pub use plan::EpochPlan;
pub use source::ImageSource;
pub use split::Split;
pub use stream::{ClassRef, GroupOrder, Repeats, StreamConfig, TaskSplit, TaskStream};
pub use survey::{ClassCount, Finding, Survey};
pub use task::{EvalSet, LabelledSample, SampleSet, Task, TrainSet};

// Types in the signatures of this crate.
pub use sdlora_image::{
    Appearance, BitDepth, Image, ImageError, ImageReading, Rotation, Transform,
};
