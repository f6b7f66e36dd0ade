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

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sdlora_image::{BitDepth, ImageReading, Rotation, bits_in_use, is_image, other_ending};
use serde::{Deserialize, Serialize};

use super::entry::{DatasetEntry, OWN};
use super::halves::hold_out;
use super::layout::{FolderLayout, Layout, Place as FolderPlace};
use super::listed::{Bad, Listed, ListedImages, Usable};
use super::listing::{Listing, merge_domains};
use super::table::Table;
use crate::dataset::{Dataset, Options};
use crate::error::DataError;
use crate::files::{Files, MAX_FILES, Place, locate};
use crate::manifest::Manifest;

/// Images of one's own.
pub(super) const FOLDER: DatasetEntry = DatasetEntry {
    name: "folder",
    summary: "images of your own: a folder or archive with a folder for each class (option `root`)",
    manifest: include_str!("../../manifests/folder.toml"),
    open: |data_dir, options| open(&FOLDER, &[], data_dir, options),
};

/// 200 classes of ImageNet in other renditions.
pub(super) const IMAGENET_R: DatasetEntry = DatasetEntry {
    name: "imagenet-r",
    summary: "ImageNet-R: 30,000 renditions of 200 ImageNet classes",
    manifest: include_str!("../../manifests/imagenet-r.toml"),
    open: |data_dir, options| open(&IMAGENET_R, &["imagenet-r.tar"], data_dir, options),
};

/// 200 classes of ImageNet, chosen to be hard.
pub(super) const IMAGENET_A: DatasetEntry = DatasetEntry {
    name: "imagenet-a",
    summary: "ImageNet-A: 7,500 photographs of 200 ImageNet classes that networks get wrong",
    manifest: include_str!("../../manifests/imagenet-a.toml"),
    open: |data_dir, options| open(&IMAGENET_A, &["imagenet-a.tar"], data_dir, options),
};

/// Any classes of ImageNet.
pub(super) const IMAGENET_SUBSET: DatasetEntry = DatasetEntry {
    name: "imagenet-subset",
    summary: "ImageNet or a subset of its classes, `train/<wnid>` and `val/<wnid>` (option `classes`)",
    manifest: include_str!("../../manifests/imagenet-subset.toml"),
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
    manifest: include_str!("../../manifests/vtab.toml"),
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
    /// What the folders below the root are.
    pub layout: FolderLayout,
    /// The folders above those of the classes are domains, which a stream may have a task for each of.
    pub domain_folders: bool,
    /// Which side of an image is up; what its EXIF data say for a folder of one's own, as stored for published data.
    pub rotation: Option<Rotation>,
    /// How many bits the samples of 16-bit images use.
    pub bit_depth: BitDepth,
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
            layout: FolderLayout::Auto,
            domain_folders: false,
            rotation: None,
            bit_depth: BitDepth::File,
            skip_bad: false,
            max_files: MAX_FILES,
        }
    }
}

/// Refuses a list of an option that has a name twice.
pub(super) fn once(option: &str, names: &[String]) -> Result<(), DataError> {
    match (1..names.len()).find(|&i| names[..i].contains(&names[i])) {
        None => Ok(()),
        Some(i) => {
            let found = format!("`{}` twice", names[i]);
            Err(DataError::setting(option, found, "each name once"))
        }
    }
}

impl FolderOptions {
    /// The options, checked.
    pub(super) fn check(self) -> Result<Self, DataError> {
        once("classes", &self.classes)?;
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

    /// How the images of the data set `name` are read.
    pub(super) fn reading(&self, name: &str) -> ImageReading {
        // Cameras lay an image down and say so; published data were read without a look at that.
        let usual = if OWN.contains(&name) {
            Rotation::Exif
        } else {
            Rotation::Stored
        };
        ImageReading {
            rotation: self.rotation.unwrap_or(usual),
            bit_depth: self.bit_depth,
        }
    }

    /// Keeps the images of the classes asked for, all of which there must be.
    pub(super) fn keep_classes(&self, listed: &mut Vec<Listed>) -> Result<(), DataError> {
        let is_known = |class: &&String| listed.iter().any(|image| image.class == **class);
        if let Some(unknown) = self.classes.iter().find(|class| !is_known(class)) {
            let expected = "names of class folders";
            return Err(DataError::setting("classes", unknown, expected));
        }
        listed.retain(|image| self.keeps(&image.class));
        Ok(())
    }

    /// Whether the images of a class are kept.
    pub(super) fn keeps(&self, class: &str) -> bool {
        self.classes.is_empty() || self.classes.iter().any(|kept| kept == class)
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
    locate(&place, |files| {
        // Images that are not read say why a data set is none, where no archive may be it.
        let has_others = || files.names().any(|name| other_ending(name).is_some());
        files.names().any(is_image) || (files.archives().is_empty() && has_others())
    })
}

/// Reads the classes of `files` by whichever layout they have.
pub(super) fn read(
    name: &str,
    files: Files,
    options: &FolderOptions,
) -> Result<ListedImages, DataError> {
    let reading = options.reading(name);
    let draw = |usable: &mut Usable| {
        let (fraction, seed) = (options.test_fraction, options.seed);
        hold_out(&mut usable.images, &files, fraction, seed);
        usable.drawn = Some(fraction);
    };
    let (mut usable, known, notes, layout) = match &options.csv {
        Some(_) if options.domain_folders => {
            return Err(DataError::setting(
                "domain_folders",
                "true beside `csv`",
                "one of the two, as a table names no domains",
            ));
        }
        Some(csv) => {
            let table = Table::read(&files, csv)?;
            let known = classes(&table.images, |class| class);
            let is_kept = |class: &str| options.keeps(class);
            let mut usable = Usable::of(&files, table.images, options.bad(), reading, is_kept)?;
            if !table.has_splits {
                draw(&mut usable);
            }
            (usable, known, table.notes, None)
        }
        None => {
            let layout = Layout::of(&files, options.layout, options.domain_folders)?;
            let listing = Listing::of(&files, &layout)?;
            // Below a domain, the class is the last part.
            let class_of = |class: &'_ str| -> usize { class.rfind('/').map_or(0, |at| at + 1) };
            let known = classes(&listing.images, |class| &class[class_of(class)..]);
            let is_kept = |class: &str| options.keeps(&class[class_of(class)..]);
            let mut usable = Usable::of(&files, listing.images, options.bad(), reading, is_kept)?;
            if !layout.has_halves() {
                draw(&mut usable);
            }
            usable.empty_classes = listing.empty_classes;
            if options.domain_folders {
                merge_domains(&files, &mut usable)?;
            }
            let layout = options.domain_folders.then_some(layout);
            (usable, known, listing.notes, layout)
        }
    };
    if !options.classes.is_empty() {
        let mut kept = options.classes.iter();
        if let Some(unknown) = kept.find(|class| !known.contains(*class)) {
            return Err(DataError::setting(
                "classes",
                unknown,
                "names of class folders",
            ));
        }
        usable.images.retain(|image| options.keeps(&image.class));
        usable.empty_classes.retain(|class, _| options.keeps(class));
    }
    usable.notes.extend(notes);
    if name == FOLDER.name && reading.bit_depth == BitDepth::File {
        let note = dark(&files, &usable);
        usable.notes.extend(note);
    }
    let mut images = ListedImages::new(name, files, usable)?;
    if let Some(layout) = layout {
        images = images.with_domains(|name| match layout.place(name) {
            FolderPlace::Class(_, class) => class.split('/').next().unwrap_or_default().to_owned(),
            FolderPlace::Stray | FolderPlace::Outside => String::new(),
        });
    }
    Ok(images)
}

/// The names of the classes of images.
fn classes(listed: &[Listed], name_of: impl Fn(&str) -> &str) -> BTreeSet<String> {
    let names = listed.iter().map(|image| name_of(&image.class));
    let names: BTreeSet<&str> = names.collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Images that are looked at for the bits they use.
const N_LOOKED_AT: usize = 16;

/// A note when 16-bit images use so few bits that they become nearly black; some of them are looked at.
fn dark(files: &Files, usable: &Usable) -> Option<String> {
    let images = &usable.images;
    let is_png = |idx: usize| files.name(idx).to_ascii_lowercase().ends_with(".png");
    let step = images.len().div_ceil(N_LOOKED_AT).max(1);
    let bits = images
        .iter()
        .step_by(step)
        .map(|image| image.file_idx)
        .filter(|&idx| is_png(idx))
        .filter_map(|idx| bits_in_use(&files.read_image(idx).ok()?))
        .max()
        .filter(|&bits| bits <= 14)?;
    // Sensors have an even number.
    let suggested = bits.max(8).next_multiple_of(2);
    Some(format!(
        "16-bit images use the lower {bits} bits at most, of those that were looked at, and become dark: set the option \
         `bit_depth = {suggested}`"
    ))
}
