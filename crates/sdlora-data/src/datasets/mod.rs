//! The data sets that can be opened by name.
//!
//! A new one is a file in this folder with its manifest in `manifests/`, and one line in [`DATASETS`].

use std::path::Path;

use sdlora_image::{BitDepth, ImageReading, Rotation};

use crate::dataset::{Dataset, Options};
use crate::error::DataError;

mod cifar;
mod csv;
mod cub;
mod domainnet;
mod entry;
mod folder;
mod folders;
mod gtsrb;
mod halves;
mod idx;
mod layout;
mod listed;
mod listing;
mod numpy;
mod omniglot;
mod pixels;
mod table;
mod tiny_imagenet;
mod webdataset;

pub use cifar::CifarOptions;
pub use domainnet::DomainNetOptions;
pub use entry::{DatasetEntry, OpenDataset};
pub use folder::FolderOptions;
pub use folders::{FoldersOptions, LearnedFolder};
pub use idx::IdxOptions;
pub use layout::FolderLayout;
pub use listed::ListedImages;
pub(crate) use listed::{has_colour, some_of};
pub use listing::look_of;
pub use omniglot::{Omniglot, OmniglotOptions};
pub use webdataset::WebDatasetOptions;

/// Every data set that can be opened by name.
pub const DATASETS: &[DatasetEntry] = &[
    cifar::CIFAR10,
    cifar::CIFAR100,
    cub::CUB200,
    domainnet::DOMAINNET,
    idx::EMNIST_BALANCED,
    idx::EMNIST_BYCLASS,
    idx::EMNIST_LETTERS,
    idx::FASHION_MNIST,
    folder::FOLDER,
    folders::FOLDERS,
    gtsrb::GTSRB,
    folder::IMAGENET_A,
    folder::IMAGENET_R,
    folder::IMAGENET_SUBSET,
    idx::KMNIST,
    idx::MNIST,
    omniglot::BACKGROUND,
    omniglot::EVALUATION,
    tiny_imagenet::TINY_IMAGENET,
    folder::VTAB,
    webdataset::WEBDATASET,
];

/// The entry called `name`.
///
/// # Errors
///
/// [`DataError::UnknownDataset`], which lists the known names.
pub fn find(name: &str) -> Result<&'static DatasetEntry, DataError> {
    DATASETS
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| DataError::UnknownDataset {
            name: name.to_owned(),
            known: DATASETS
                .iter()
                .map(|entry| entry.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// Opens the data set called `name` from the data folder `data_dir`.
///
/// # Errors
///
/// [`DataError::UnknownDataset`] for an unknown name, [`DataError::MissingFile`] when its files are not there,
/// [`DataError::Options`] for options it does not have, and errors about the contents of its files.
pub fn open(name: &str, data_dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, DataError> {
    (find(name)?.open)(data_dir, options)
}

/// How a data set of these options reads its images; others that go the same way are read in the same way.
///
/// # Errors
///
/// [`DataError::Options`] for a wrong value.
pub fn image_reading(name: &str, options: &Options) -> Result<ImageReading, DataError> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Keys {
        rotation: Option<Rotation>,
        bit_depth: BitDepth,
    }
    let Keys {
        rotation,
        bit_depth,
    } = options.parse(name)?;
    let folder = FolderOptions {
        rotation,
        bit_depth,
        ..FolderOptions::default()
    };
    Ok(folder.reading(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_manifest_has_its_entry() {
        for (i, entry) in DATASETS.iter().enumerate() {
            assert!(
                DATASETS[..i].iter().all(|other| other.name != entry.name),
                "{}",
                entry.name
            );
            assert!(
                entry.manifest().unwrap().set(entry.name).is_some(),
                "{}",
                entry.name
            );
        }
    }

    #[test]
    fn every_manifest_says_how_its_files_are_come_by() {
        for entry in DATASETS {
            let manifest = entry.manifest().unwrap();
            let fetch = &manifest.fetch;
            assert!(!fetch.why.is_empty(), "{}", entry.name);
            let n_files = manifest.fetched_files().count();
            assert_eq!(fetch.access.is_fetched(), n_files > 0, "{}", entry.name);
            assert_eq!(fetch.steps.is_empty(), n_files > 0, "{}", entry.name);
            for file in &manifest.files {
                let path = file.path.to_str().unwrap();
                assert!(file.url.is_empty() || file.url.ends_with(path), "{path}");
                let is_sum = |sum: &str, n: usize| {
                    sum.len() == n && sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                };
                assert!(
                    is_sum(&file.sha256, 64) || is_sum(&file.md5, 32),
                    "{path} has no sum"
                );
            }
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let message = |name: &str, options: &Options| match open(name, dir.path(), options) {
            Ok(_) => panic!("opened {name}"),
            Err(error) => error.to_string(),
        };
        let unknown = message("omniglott", &Options::none());
        assert!(
            unknown.contains("omniglot-background, omniglot-evaluation"),
            "{unknown}"
        );
        let missing = message("omniglot-evaluation", &Options::none());
        assert!(missing.contains("images_evaluation.zip"), "{missing}");
        assert!(missing.contains("brendenlake"), "{missing}");
        let options = Options::none().with("drawers", 3);
        let wrong = message("omniglot-evaluation", &options);
        assert!(
            wrong.contains("options of data set `omniglot-evaluation`"),
            "{wrong}"
        );
    }
}
