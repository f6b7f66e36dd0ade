//! A folder of one's own, or an archive of it: a folder of images for each class.
//!
//! ```text
//! root/train/<class>/...   root/test/<class>/...     two halves (also `val` or `validation` for `test`)
//! root/<class>/...                                   one folder, split at random by class
//! root/labels.csv                                    path,label[,split]
//! ```
//!
//! With the option `domain_folders` there is a folder of a domain (photographs, sketches) above those of the classes,
//! `train/<domain>/<class>/...` or `<domain>/<class>/...`, and a class is that of all domains.
//!
//! A class id is the rank of the name of the class. Folders inside a class belong to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::DatasetEntry;
use super::listed::{Bad, Listed, ListedImages, is_image, some_of};
use super::table::{self, Row};
use crate::dataset::{Dataset, Options, Split};
use crate::error::DataError;
use crate::files::{Files, MAX_FILES, Place, locate};
use crate::manifest::Manifest;
use crate::seed::{Purpose, generator};

/// Images of one's own.
pub(super) const FOLDER: DatasetEntry = DatasetEntry {
    name: "folder",
    summary: "images of your own: a folder or archive with a folder for each class (option `root`)",
    manifest: include_str!("../../../../datasets/folder.toml"),
    open: |data_dir, options| open(&FOLDER, &[], data_dir, options),
};

/// 200 classes of ImageNet in other renditions.
pub(super) const IMAGENET_R: DatasetEntry = DatasetEntry {
    name: "imagenet-r",
    summary: "ImageNet-R: 30,000 renditions of 200 ImageNet classes",
    manifest: include_str!("../../../../datasets/imagenet-r.toml"),
    open: |data_dir, options| open(&IMAGENET_R, &["imagenet-r.tar"], data_dir, options),
};

/// 200 classes of ImageNet, chosen to be hard.
pub(super) const IMAGENET_A: DatasetEntry = DatasetEntry {
    name: "imagenet-a",
    summary: "ImageNet-A: 7,500 photographs of 200 ImageNet classes that networks get wrong",
    manifest: include_str!("../../../../datasets/imagenet-a.toml"),
    open: |data_dir, options| open(&IMAGENET_A, &["imagenet-a.tar"], data_dir, options),
};

/// Any classes of ImageNet.
pub(super) const IMAGENET_SUBSET: DatasetEntry = DatasetEntry {
    name: "imagenet-subset",
    summary: "ImageNet or a subset of its classes, `train/<wnid>` and `val/<wnid>` (option `classes`)",
    manifest: include_str!("../../../../datasets/imagenet-subset.toml"),
    open: |data_dir, options| {
        open(
            &IMAGENET_SUBSET,
            &["imagenet", "imagenet100"],
            data_dir,
            options,
        )
    },
};

/// Classes of several sources.
pub(super) const VTAB: DatasetEntry = DatasetEntry {
    name: "vtab",
    summary: "VTAB for class-incremental learning: 50 classes of five data sets",
    manifest: include_str!("../../../../datasets/vtab.toml"),
    open: |data_dir, options| open(&VTAB, &["vtab-cil"], data_dir, options),
};

/// Options of data sets that are folders of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FolderOptions {
    /// Folder or archive, below the data directory or absolute; each data set has a default.
    pub root: Option<PathBuf>,
    /// Part of each class that is tested on when there is one folder only; above 0 and below 1.
    pub test_fraction: f64,
    /// Seed of that split.
    pub seed: u64,
    /// A table of `path,label[,split]` below `root`, instead of folders of classes.
    pub csv: Option<String>,
    /// The classes that are kept; all when empty.
    pub classes: Vec<String>,
    /// The folders above those of the classes are domains, which a stream may have a task for each of.
    pub domain_folders: bool,
    /// Decode every image when opening, and leave out and note what cannot be used.
    pub skip_bad: bool,
    /// Most files that are listed.
    pub max_files: usize,
}

impl Default for FolderOptions {
    fn default() -> Self {
        Self {
            root: None,
            test_fraction: 0.2,
            seed: 1993,
            csv: None,
            classes: Vec::new(),
            domain_folders: false,
            skip_bad: false,
            max_files: MAX_FILES,
        }
    }
}

impl FolderOptions {
    /// The options, checked.
    pub(super) fn check(self) -> Result<Self, DataError> {
        if self.test_fraction > 0.0 && self.test_fraction < 1.0 {
            Ok(self)
        } else {
            Err(DataError::setting(
                "test_fraction",
                self.test_fraction,
                "a number above 0 and below 1",
            ))
        }
    }

    /// What happens to bad images.
    pub(super) fn bad(&self) -> Bad {
        if self.skip_bad {
            Bad::Skip
        } else {
            Bad::Refuse
        }
    }
}

fn open(
    entry: &DatasetEntry,
    also: &[&str],
    data_dir: &Path,
    options: &Options,
) -> Result<Box<dyn Dataset>, DataError> {
    let options = options.parse::<FolderOptions>(entry.name)?.check()?;
    let manifest = entry.manifest()?;
    let files = find(entry, &manifest, also, data_dir, &options)?;
    let images = read(entry.name, files, &options)?;
    let differences = manifest
        .set(entry.name)
        .map(|set| set.differences(&images))
        .unwrap_or_default();
    Ok(Box::new(images.with_notes(differences)))
}

/// The files of a data set of this kind.
pub(super) fn find(
    entry: &DatasetEntry,
    manifest: &Manifest,
    also: &[&str],
    data_dir: &Path,
    options: &FolderOptions,
) -> Result<Files, DataError> {
    let place = Place {
        dataset: entry.name,
        manifest,
        data_dir,
        root: options.root.as_deref(),
        also,
        max_files: options.max_files,
    };
    locate(&place, |files| files.names().any(is_image))
}

/// Reads the classes of `files` by whichever layout they have.
pub(super) fn read(
    name: &str,
    files: Files,
    options: &FolderOptions,
) -> Result<ListedImages, DataError> {
    let mut notes = Vec::new();
    let (mut listed, layout) = match &options.csv {
        Some(_) if options.domain_folders => {
            return Err(DataError::setting(
                "domain_folders",
                "true beside `csv`",
                "one of the two, as a table names no domains",
            ));
        }
        Some(csv) => (from_table(&files, csv, options)?, None),
        None => {
            let layout = Layout::of(&files);
            let listed = from_folders(&files, &layout, options, &mut notes)?;
            (listed, options.domain_folders.then_some(layout))
        }
    };
    if !options.classes.is_empty() {
        let kept: BTreeSet<&str> = options.classes.iter().map(String::as_str).collect();
        let known: BTreeSet<&str> = listed.iter().map(|image| image.class.as_str()).collect();
        if let Some(unknown) = kept.difference(&known).next() {
            return Err(DataError::setting(
                "classes",
                unknown,
                "names of class folders",
            ));
        }
        listed.retain(|image| kept.contains(image.class.as_str()));
    }
    let mut images = ListedImages::new(name, files, listed, options.bad())?.with_notes(notes);
    if let Some(layout) = layout {
        images = images.with_domains(|name| {
            let inner = layout.split(name).map_or("", |(_, inner)| inner);
            inner.split('/').next().unwrap_or_default().to_owned()
        });
    }
    Ok(images)
}

/// How the folders are nested.
struct Layout {
    /// What stands before every name, with a `/` at the end, or nothing.
    root: String,
    /// Whether the folders below it are the two halves.
    has_halves: bool,
}

impl Layout {
    fn of(files: &Files) -> Self {
        let root = files.common_folder(is_image).to_owned();
        let images = files.names().filter(|name| is_image(name));
        let tops: BTreeSet<&str> = images
            .filter_map(|name| Some(name.strip_prefix(root.as_str())?.split_once('/')?.0))
            .collect();
        let has = |split| tops.iter().any(|top| half_of(top) == Some(split));
        let has_halves = has(Split::Train) && has(Split::Test);
        Self { root, has_halves }
    }

    /// Half and inner path of a file; without folders of halves everything is for training as yet.
    fn split<'a>(&self, name: &'a str) -> Option<(Split, &'a str)> {
        let below = name.strip_prefix(self.root.as_str())?;
        if self.has_halves {
            let (top, inner) = below.split_once('/')?;
            Some((half_of(top)?, inner))
        } else {
            Some((Split::Train, below))
        }
    }
}

fn half_of(folder: &str) -> Option<Split> {
    match folder {
        "train" | "training" => Some(Split::Train),
        "test" | "val" | "valid" | "validation" => Some(Split::Test),
        _ => None,
    }
}

fn from_folders(
    files: &Files,
    layout: &Layout,
    options: &FolderOptions,
    notes: &mut Vec<String>,
) -> Result<Vec<Listed>, DataError> {
    let mut listed = Vec::new();
    let mut stray = Vec::new();
    for idx in 0..files.len() {
        let name = files.name(idx);
        // What lies outside the images is text about them.
        let Some(below) = name.strip_prefix(layout.root.as_str()) else {
            continue;
        };
        let parts = layout.split(name).and_then(|(split, inner)| {
            let (class, rest) = inner.split_once('/')?;
            if !options.domain_folders {
                return Some((split, class));
            }
            // Domain and class, so that a split at random is drawn inside each domain.
            let (folder, _) = rest.split_once('/')?;
            Some((split, &inner[..class.len() + 1 + folder.len()]))
        });
        match parts {
            Some((split, class)) if is_image(name) => listed.push(Listed {
                file_idx: idx,
                class: class.to_owned(),
                split,
            }),
            _ => stray.push(format!("`{below}`")),
        }
    }
    if !stray.is_empty() {
        notes.push(format!(
            "{} files are no images of a class: {}",
            stray.len(),
            some_of(&stray)
        ));
    }
    if !layout.has_halves {
        hold_out(&mut listed, files, options.test_fraction, options.seed);
    }
    if options.domain_folders {
        without_domains(&mut listed);
    }
    check_case(files, &listed)?;
    Ok(listed)
}

/// Makes the class `<class>` of all domains of the classes `<domain>/<class>`.
pub(super) fn without_domains(listed: &mut [Listed]) {
    for image in listed {
        if let Some((_, class)) = image.class.split_once('/') {
            image.class = class.to_owned();
        }
    }
}

/// Refuses classes that some file systems could not tell apart.
fn check_case(files: &Files, listed: &[Listed]) -> Result<(), DataError> {
    let mut seen: HashMap<String, &Listed> = HashMap::new();
    for image in listed {
        let first = seen.entry(image.class.to_lowercase()).or_insert(image);
        if first.class != image.class {
            return Err(files.error(
                image.file_idx,
                format!(
                    "is of class `{}`, which differs from `{}` in upper and lower case only",
                    image.class, first.class
                ),
                "rename or merge one of the folders",
            ));
        }
    }
    Ok(())
}

/// Moves a random part of each class to the test half; the draw depends on seed and file names alone.
///
/// Of two images or more, each half gets at least one.
pub(super) fn hold_out(listed: &mut [Listed], files: &Files, test_fraction: f64, seed: u64) {
    let mut by_class: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, image) in listed.iter().enumerate() {
        by_class.entry(image.class.clone()).or_default().push(at);
    }
    for (class_idx, mut members) in by_class.into_values().enumerate() {
        members.sort_by(|&a, &b| {
            files
                .name(listed[a].file_idx)
                .cmp(files.name(listed[b].file_idx))
        });
        let position = [u32::try_from(class_idx).unwrap_or(u32::MAX), 0, 0];
        members.shuffle(&mut generator(seed, Purpose::HoldOut, position));
        let n = members.len();
        let n_test = ((n as f64 * test_fraction).round() as usize)
            .max(1)
            .min(n.saturating_sub(1));
        for (rank, at) in members.into_iter().enumerate() {
            listed[at].split = if rank < n_test {
                Split::Test
            } else {
                Split::Train
            };
        }
    }
}

fn from_table(files: &Files, csv: &str, options: &FolderOptions) -> Result<Vec<Listed>, DataError> {
    let root = files.common_folder(|_| true);
    let Some(table_idx) = files
        .find(&format!("{root}{csv}"))
        .or_else(|| files.find(csv))
    else {
        return Err(DataError::setting(
            "csv",
            csv,
            format!("a table below `{}`", files.path().display()),
        ));
    };
    let rows = table::read(files, table_idx)?;
    let folder = match files.name(table_idx).rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/"),
        None => String::new(),
    };
    let mut listed = Vec::with_capacity(rows.len());
    let mut line_of = HashMap::new();
    let n_split = rows.iter().filter(|row| row.split.is_some()).count();
    if n_split != 0 && n_split != rows.len() {
        return Err(files.error(
            table_idx,
            format!("names a split in {n_split} of {} rows", rows.len()),
            "name it in all or in none",
        ));
    }
    for Row {
        line,
        path,
        label,
        split,
    } in rows
    {
        let path = path.trim_start_matches("./");
        let Some(file_idx) = files
            .find(&format!("{folder}{path}"))
            .or_else(|| files.find(path))
        else {
            return Err(files.error(
                table_idx,
                format!("names `{path}` in line {line}, which is not there"),
                "correct the path, which starts at the folder of the table",
            ));
        };
        if let Some(first) = line_of.insert(file_idx, line) {
            return Err(files.error(
                table_idx,
                format!("names `{path}` in lines {first} and {line}"),
                "remove one",
            ));
        }
        listed.push(Listed {
            file_idx,
            class: label,
            split: split.unwrap_or(Split::Train),
        });
    }
    if n_split == 0 {
        hold_out(&mut listed, files, options.test_fraction, options.seed);
    }
    Ok(listed)
}
