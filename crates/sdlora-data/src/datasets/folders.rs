//! Several folders of one's own, learned one after the other: each is a domain, and a stream `per_domain` has a task
//! for each.
//!
//! A class id is the place of a class in the order of learning. A folder that says what it held (`classes` and
//! `listing`) may be gone, or hold something else by now: its classes then stay as those of a domain without images.

use std::path::{Path, PathBuf};

use sdlora_image::{BitDepth, Image, Rotation};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::entry::DatasetEntry;
use super::folder::{self, FOLDER, FolderOptions};
use super::layout::FolderLayout;
use super::listed::ListedImages;
use crate::dataset::{
    ClassId, Content, Dataset, Group, ListingFacts, Look, Options, Sample, SampleIdx,
};
use crate::error::DataError;
use crate::files::MAX_FILES;
use crate::hex::hex;
use crate::split::Split;

/// Images of one's own, folder after folder.
pub(super) const FOLDERS: DatasetEntry = DatasetEntry {
    name: "folders",
    summary: "several folders of your own, one after the other, each a domain (option `folders`)",
    manifest: include_str!("../../manifests/folder.toml"),
    open: |data_dir, options| Ok(Box::new(Folders::open(data_dir, options)?)),
};

/// A folder among several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedFolder {
    /// Folder or archive, below the data directory or absolute.
    pub root: PathBuf,
    /// Its classes in the order of learning; in the order of their names where left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Digest of what it held, see [`LearnedFolder::listing_of`]. A folder with it may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<String>,
    /// Leave out and note what cannot be used.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_bad: bool,
}

impl LearnedFolder {
    /// Digest of the classes, names and sizes of all images of a data set.
    pub fn listing_of(dataset: &dyn Dataset) -> String {
        let mut digest = Sha256::new();
        let names = dataset.class_names();
        for split in [Split::Train, Split::Test] {
            for (idx, sample) in dataset.samples(split).iter().enumerate() {
                let class = names.get(sample.class_id).map_or("", String::as_str);
                for text in [class, &sample.name] {
                    digest.update((text.len() as u64).to_le_bytes());
                    digest.update(text);
                }
                if let Content::Size(size) = dataset.content(split, idx) {
                    digest.update(size.to_le_bytes());
                }
            }
            digest.update([split as u8]);
        }
        hex(&digest.finalize())
    }
}

/// Options of the data set `folders`; those of all folders mean what they mean for `folder`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FoldersOptions {
    /// The folders in the order of learning.
    pub folders: Vec<LearnedFolder>,
    /// Part of each class that is tested on where a folder has no halves; above 0 and below 1.
    pub test_fraction: f64,
    /// Seed of that split.
    pub seed: u64,
    /// What the folders below a root are.
    pub layout: FolderLayout,
    /// Which side of an image is up; what its EXIF data say when left out.
    pub rotation: Option<Rotation>,
    /// How many bits the samples of 16-bit images use.
    pub bit_depth: BitDepth,
    /// Most files that are listed in a folder.
    pub max_files: usize,
}

impl Default for FoldersOptions {
    fn default() -> Self {
        let one = FolderOptions::default();
        Self {
            folders: Vec::new(),
            test_fraction: one.test_fraction,
            seed: one.seed,
            layout: one.layout,
            rotation: one.rotation,
            bit_depth: one.bit_depth,
            max_files: MAX_FILES,
        }
    }
}

impl FoldersOptions {
    /// The options of one of the folders as a data set of its own.
    pub fn one(&self, folder: &LearnedFolder) -> FolderOptions {
        FolderOptions {
            root: Some(folder.root.clone()),
            test_fraction: self.test_fraction,
            seed: self.seed,
            layout: self.layout,
            rotation: self.rotation,
            bit_depth: self.bit_depth,
            skip_bad: folder.skip_bad,
            max_files: self.max_files,
            ..FolderOptions::default()
        }
    }
}

/// Several folders as one data set.
struct Folders {
    class_names: Vec<String>,
    domains: Vec<String>,
    /// One for every domain; `None` of a folder whose images are gone.
    folders: Vec<Option<ListedImages>>,
    /// Classes of every domain whose images are gone.
    absent: Vec<Vec<ClassId>>,
    /// Samples of both halves, with the folder and the place there.
    halves: [Vec<Sample>; 2],
    places: [Vec<(usize, SampleIdx)>; 2],
    /// Whether folders may be gone: then only the last one has to stay.
    is_chain: bool,
    notes: Vec<String>,
}

fn half(split: Split) -> usize {
    match split {
        Split::Train => 0,
        Split::Test => 1,
    }
}

impl Folders {
    fn open(data_dir: &Path, options: &Options) -> Result<Self, DataError> {
        let options: FoldersOptions = options.parse(FOLDERS.name)?;
        if options.folders.is_empty() {
            return Err(DataError::setting(
                "folders",
                "an empty list",
                "one folder or more, as `[{ root = \"photos\" }]`",
            ));
        }
        let manifest = FOLDERS.manifest()?;
        let mut found = Self {
            class_names: Vec::new(),
            domains: Vec::new(),
            folders: Vec::new(),
            absent: Vec::new(),
            halves: [Vec::new(), Vec::new()],
            places: [Vec::new(), Vec::new()],
            is_chain: options.folders.iter().any(|f| f.listing.is_some()),
            notes: Vec::new(),
        };
        for (place, learned) in options.folders.iter().enumerate() {
            let is_last = place + 1 == options.folders.len();
            let one = options.one(learned).check()?;
            let opened = folder::find(&FOLDER, &manifest, &[], data_dir, &one)
                .and_then(|files| folder::read(FOLDER.name, files, &one));
            let images = match (opened, &learned.listing) {
                (Ok(images), None) => Some(images),
                (Ok(images), Some(listing)) => {
                    // What is to be learned now is compared image by image, which says more.
                    let is_same = is_last || *listing == LearnedFolder::listing_of(&images);
                    is_same.then_some(images)
                }
                (Err(problem), None) => return Err(problem),
                (Err(_), Some(_)) => None,
            };
            found.add(learned, images)?;
        }
        Ok(found)
    }

    fn add(
        &mut self,
        learned: &LearnedFolder,
        images: Option<ListedImages>,
    ) -> Result<(), DataError> {
        let place = self.folders.len();
        let names = match (&images, learned.classes.is_empty()) {
            (Some(images), true) => images.class_names().to_vec(),
            (Some(images), false) => {
                let mut named = learned.classes.clone();
                named.sort_unstable();
                if named != images.class_names() {
                    return Err(DataError::setting(
                        format!("folders[{place}].classes"),
                        format!("{:?}", learned.classes),
                        format!("the classes of {}, each once", learned.root.display()),
                    ));
                }
                learned.classes.clone()
            }
            (None, _) => learned.classes.clone(),
        };
        let ids: Vec<ClassId> = names.iter().map(|name| self.id_of(name)).collect();
        match images {
            Some(images) => {
                for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
                    for (idx, sample) in images.samples(split).iter().enumerate() {
                        let name = &images.class_names()[sample.class_id];
                        let class_id = self.id_of(name);
                        self.places[half].push((place, idx));
                        let name = sample.name.clone();
                        self.halves[half].push(Sample { class_id, name });
                    }
                }
                self.notes.extend(images.notes().iter().cloned());
                self.absent.push(Vec::new());
                self.folders.push(Some(images));
            }
            None => {
                self.absent.push(ids);
                self.folders.push(None);
            }
        }
        let name = learned.root.file_name().unwrap_or_default();
        self.domains
            .push(format!("{} {}", place + 1, name.to_string_lossy()));
        Ok(())
    }

    /// The id of a class, which is the next one where it is new.
    fn id_of(&mut self, name: &str) -> ClassId {
        let known = self.class_names.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            self.class_names.push(name.to_owned());
            self.class_names.len() - 1
        })
    }

    fn place(&self, split: Split, idx: SampleIdx) -> Option<(&ListedImages, SampleIdx)> {
        let &(folder, idx) = self.places[half(split)].get(idx)?;
        Some((self.folders[folder].as_ref()?, idx))
    }
}

impl Dataset for Folders {
    fn name(&self) -> &str {
        FOLDERS.name
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn groups(&self) -> &[Group] {
        &[]
    }

    fn samples(&self, split: Split) -> &[Sample] {
        &self.halves[half(split)]
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn domain_of(&self, split: Split, idx: SampleIdx) -> Option<usize> {
        Some(self.places[half(split)].get(idx)?.0)
    }

    fn absent_classes(&self, domain: usize) -> &[ClassId] {
        self.absent.get(domain).map_or(&[], Vec::as_slice)
    }

    fn compared_part(&self) -> Option<&dyn Dataset> {
        let last = self.folders.last()?.as_ref()?;
        self.is_chain.then_some(last as &dyn Dataset)
    }

    fn content(&self, split: Split, idx: SampleIdx) -> Content<'_> {
        self.place(split, idx)
            .map_or(Content::Unknown, |(folder, idx)| folder.content(split, idx))
    }

    fn stored(&self, split: Split, idx: SampleIdx) -> Option<Result<Vec<u8>, DataError>> {
        let (folder, idx) = self.place(split, idx)?;
        folder.stored(split, idx)
    }

    fn look(&self, split: Split, idx: SampleIdx) -> Option<Look> {
        let (folder, idx) = self.place(split, idx)?;
        folder.look(split, idx)
    }

    fn listing(&self) -> ListingFacts<'_> {
        let last = self.folders.last().and_then(Option::as_ref);
        last.map_or_else(ListingFacts::default, Dataset::listing)
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn image(&self, split: Split, idx: SampleIdx) -> Result<Image, DataError> {
        self.sample(split, idx)?;
        match self.place(split, idx) {
            Some((folder, idx)) => folder.image(split, idx),
            None => Err(DataError::OutOfRange {
                what: "sample",
                idx,
                len: 0,
            }),
        }
    }
}
