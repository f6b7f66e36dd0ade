//! A data set whose images are files of their own, in a folder or an archive.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sdlora_image::{Image, ImageReading};
use sha2::{Digest, Sha256};

use crate::dataset::{ClassId, Content, Dataset, Group, ListingFacts, Look, Sample, SampleIdx};
use crate::error::DataError;
use crate::files::Files;
use crate::split::Split;

/// Most names in one note.
const MAX_NAMED: usize = 10;

/// One image before it has a class id.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// Position of its file.
    pub(super) file_idx: usize,
    /// Name of its class.
    pub(super) class: String,
    /// Its half.
    pub(super) split: Split,
}

/// What to do with images and classes that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// The first one is an error.
    Refuse,
    /// They are left out and noted; every image is decoded once to find them.
    Skip,
}

/// Images that can be used: bad ones are gone, so that halves may be drawn from what is left.
#[derive(Debug)]
pub(super) struct Usable {
    /// The images.
    pub(super) images: Vec<Listed>,
    /// Classes without images that are read, each with the reason.
    pub(super) empty_classes: BTreeMap<String, String>,
    bad: Bad,
    reading: ImageReading,
    /// What each file is that was read.
    looks: HashMap<usize, Look>,
    /// The share of each class that was drawn for testing.
    pub(super) drawn: Option<f64>,
    /// What cannot be used and was left out, for the user.
    left_out: Vec<String>,
    /// Other things that the user should know.
    pub(super) notes: Vec<String>,
}

impl Usable {
    /// Refuses or leaves out the images of `listed` that cannot be used, as `bad` says; those of classes that `is_kept`
    /// does not know are not looked at.
    ///
    /// # Errors
    ///
    /// [`DataError::Content`] for an empty file and for what could not be listed, unless `bad` skips them.
    pub(super) fn of(
        files: &Files,
        listed: Vec<Listed>,
        bad: Bad,
        reading: ImageReading,
        is_kept: impl Fn(&str) -> bool,
    ) -> Result<Self, DataError> {
        let mut usable = Self {
            images: listed,
            empty_classes: BTreeMap::new(),
            bad,
            reading,
            looks: HashMap::new(),
            drawn: None,
            left_out: Vec::new(),
            notes: Vec::new(),
        };
        let problems = files.problems();
        match bad {
            Bad::Refuse => {
                let images = usable.images.iter();
                let mut empty = images.filter(|image| files.size(image.file_idx) == 0);
                if let Some(image) = empty.find(|image| is_kept(&image.class)) {
                    return Err(files.error(
                        image.file_idx,
                        "is empty",
                        "replace or remove it, or set the option `skip_bad = true`",
                    ));
                }
                if !problems.is_empty() {
                    return Err(DataError::content(
                        format!("`{}`", files.path().display()),
                        format!("holds what cannot be read: {}", some_of(problems)),
                        "remove or rename it, or set the option `skip_bad = true`",
                    ));
                }
            }
            Bad::Skip => {
                if !problems.is_empty() {
                    usable.left_out.push(format!(
                        "left out what cannot be read: {}",
                        some_of(problems)
                    ));
                }
                usable.skip_unreadable(files, is_kept);
            }
        }
        Ok(usable)
    }

    /// Decodes every image and leaves out those that cannot be.
    fn skip_unreadable(&mut self, files: &Files, is_kept: impl Fn(&str) -> bool) {
        let kept: Vec<usize> = self
            .images
            .iter()
            .filter(|image| is_kept(&image.class))
            .map(|image| image.file_idx)
            .collect();
        let read = |&idx: &usize| {
            let bytes = files.read_image(idx)?;
            let image = Image::decode_as(&bytes, files.name(idx), self.reading)?;
            Ok(Look {
                digest: Sha256::digest(&bytes).into(),
                width: image.width(),
                height: image.height(),
                has_colour: has_colour(&image),
            })
        };
        let results: Vec<Result<Look, DataError>> = kept.par_iter().map(read).collect();
        let mut unreadable = Vec::new();
        let mut is_bad = BTreeSet::new();
        for (idx, result) in kept.into_iter().zip(results) {
            match result {
                Ok(look) => drop(self.looks.insert(idx, look)),
                Err(_) => {
                    is_bad.insert(idx);
                    unreadable.push(format!("`{}`", files.name(idx)));
                }
            }
        }
        self.images
            .retain(|image| !is_bad.contains(&image.file_idx));
        if !unreadable.is_empty() {
            self.left_out.push(format!(
                "left out {} unreadable images: {}",
                unreadable.len(),
                some_of(&unreadable)
            ));
        }
    }

    /// Pairs of images with the same bytes, one to learn from and one to test on; of images whose bytes were read.
    fn in_both_halves(&self, files: &Files) -> Vec<String> {
        let mut learned: HashMap<&[u8; 32], usize> = HashMap::new();
        let of = |split| {
            let images = self.images.iter().filter(move |image| image.split == split);
            images.filter_map(|image| {
                let look = self.looks.get(&image.file_idx)?;
                Some((&look.digest, image.file_idx))
            })
        };
        for (digest, idx) in of(Split::Train) {
            learned.entry(digest).or_insert(idx);
        }
        of(Split::Test)
            .filter_map(|(digest, idx)| Some((learned.get(digest)?, idx)))
            .map(|(first, idx)| format!("`{}` and `{}`", files.name(*first), files.name(idx)))
            .collect()
    }
}

/// A data set made of image files.
#[derive(Debug)]
pub struct ListedImages {
    name: String,
    files: Files,
    class_names: Vec<String>,
    groups: Vec<Group>,
    domains: Vec<String>,
    halves: [Half; 2],
    reading: ImageReading,
    looks: HashMap<usize, Look>,
    drawn: Option<f64>,
    left_out: Vec<String>,
    notes: Vec<String>,
}

/// Samples of a split, and the files with their images.
#[derive(Debug, Default)]
struct Half {
    samples: Vec<Sample>,
    file_idx: Vec<usize>,
    /// Position of the domain of each sample; empty when domains are not told apart.
    domain_idx: Vec<usize>,
}

/// Position of a half.
fn half_idx(split: Split) -> usize {
    match split {
        Split::Train => 0,
        Split::Test => 1,
    }
}

impl ListedImages {
    /// Puts the listed images in order: classes by name, images by file name.
    ///
    /// # Errors
    ///
    /// [`DataError::Content`] for a class without training or test images, unless bad ones are skipped, and for a list
    /// without images.
    pub(super) fn new(name: &str, files: Files, mut usable: Usable) -> Result<Self, DataError> {
        usable.images.sort_by_key(|image| image.file_idx);
        let same = usable.in_both_halves(&files);
        let Usable {
            images: listed,
            empty_classes,
            bad,
            reading,
            looks,
            drawn,
            mut left_out,
            notes: others,
        } = usable;
        let mut notes = Vec::new();
        if !same.is_empty() {
            notes.push(format!(
                "{} test images are the same as an image to learn from: {}",
                same.len(),
                some_of(&same)
            ));
        }
        let mut counts: BTreeMap<String, [usize; 2]> = BTreeMap::new();
        for image in &listed {
            counts.entry(image.class.clone()).or_default()[half_idx(image.split)] += 1;
        }
        let without_images = empty_classes
            .iter()
            .filter(|(class, _)| !counts.contains_key(*class))
            .map(|(class, reason)| {
                format!("class `{class}` has no images that are read, as {reason}")
            });
        let half_empty: Vec<String> = counts
            .iter()
            .filter(|(_, counts)| counts.contains(&0))
            .map(|(class, counts)| {
                let split = if counts[0] == 0 {
                    Split::Train
                } else {
                    Split::Test
                };
                format!("class `{class}` has no {split} images")
            })
            .chain(without_images)
            .collect();
        if !half_empty.is_empty() {
            if bad == Bad::Refuse {
                return Err(DataError::content(
                    format!("data set `{name}` in `{}`", files.path().display()),
                    format!("cannot be split: {}", some_of(&half_empty)),
                    "add images, remove the class, or set the option `skip_bad = true`",
                ));
            }
            left_out.push(format!("left out: {}", some_of(&half_empty)));
            counts.retain(|_, counts| !counts.contains(&0));
        }
        let left = left_out.iter().cloned();
        let notes: Vec<String> = left.chain(others).chain(notes).collect();
        if counts.is_empty() {
            let reason = match notes.is_empty() {
                true => String::new(),
                false => format!(" ({})", notes.join("; ")),
            };
            return Err(DataError::content(
                format!("`{}`", files.path().display()),
                format!("holds no images of data set `{name}`{reason}"),
                "put the images in folders named after their classes",
            ));
        }
        let class_names: Vec<String> = counts.into_keys().collect();
        let mut halves = [Half::default(), Half::default()];
        for image in listed {
            // Absent when the class was left out.
            let Ok(class_id) = class_names.binary_search(&image.class) else {
                continue;
            };
            let half = &mut halves[half_idx(image.split)];
            half.file_idx.push(image.file_idx);
            half.samples.push(Sample {
                class_id,
                name: files.name(image.file_idx).to_owned(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            files,
            class_names,
            groups: Vec::new(),
            domains: Vec::new(),
            halves,
            reading,
            looks,
            drawn,
            left_out,
            notes,
        })
    }

    /// Makes groups of the classes, by the name of the group of each.
    pub(super) fn with_groups(mut self, group_of: impl Fn(&str) -> String) -> Self {
        let mut groups: BTreeMap<String, Vec<ClassId>> = BTreeMap::new();
        for (class_id, class) in self.class_names.iter().enumerate() {
            groups.entry(group_of(class)).or_default().push(class_id);
        }
        self.groups = groups
            .into_iter()
            .map(|(name, classes)| Group { name, classes })
            .collect();
        self
    }

    /// Tells domains apart, by the name of the file of each image; they are in the order of their names.
    pub(super) fn with_domains(mut self, domain_of: impl Fn(&str) -> String) -> Self {
        let names = |half: &Half| -> Vec<String> {
            half.samples
                .iter()
                .map(|sample| domain_of(&sample.name))
                .collect()
        };
        let by_half = [names(&self.halves[0]), names(&self.halves[1])];
        let domains: BTreeSet<&String> = by_half.iter().flatten().collect();
        self.domains = domains.into_iter().cloned().collect();
        for (half, names) in self.halves.iter_mut().zip(&by_half) {
            let position = |name: &String| self.domains.binary_search(name).unwrap_or_default();
            half.domain_idx = names.iter().map(position).collect();
        }
        self
    }

    /// Gives the classes other names; their ids stay.
    pub(super) fn with_class_names(mut self, name_of: impl Fn(&str) -> Option<String>) -> Self {
        for class in &mut self.class_names {
            if let Some(name) = name_of(class) {
                *class = name;
            }
        }
        self
    }

    /// Adds notes for the user.
    pub(super) fn with_notes(mut self, notes: impl IntoIterator<Item = String>) -> Self {
        self.notes.extend(notes);
        self
    }
}

/// Whether any pixel of an image is not grey.
pub(crate) fn has_colour(image: &Image) -> bool {
    let n = image.channels();
    n == 3
        && image
            .data()
            .chunks_exact(3)
            .any(|pixel| pixel[0] != pixel[1] || pixel[1] != pixel[2])
}

/// The first items, and how many more there are.
pub(crate) fn some_of(items: &[String]) -> String {
    let shown = items[..items.len().min(MAX_NAMED)].join(", ");
    match items.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Dataset for ListedImages {
    fn name(&self) -> &str {
        &self.name
    }

    fn class_names(&self) -> &[String] {
        &self.class_names
    }

    fn groups(&self) -> &[Group] {
        &self.groups
    }

    fn samples(&self, split: Split) -> &[Sample] {
        &self.halves[half_idx(split)].samples
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn domain_of(&self, split: Split, idx: SampleIdx) -> Option<usize> {
        self.halves[half_idx(split)].domain_idx.get(idx).copied()
    }

    fn content(&self, split: Split, idx: SampleIdx) -> Content<'_> {
        let file_idx = self.halves[half_idx(split)].file_idx.get(idx);
        file_idx.map_or(Content::Unknown, |&file_idx| {
            Content::Size(self.files.size(file_idx))
        })
    }

    fn stored(&self, split: Split, idx: SampleIdx) -> Option<Result<Vec<u8>, DataError>> {
        let file_idx = *self.halves[half_idx(split)].file_idx.get(idx)?;
        Some(self.files.read(file_idx))
    }

    fn look(&self, split: Split, idx: SampleIdx) -> Option<Look> {
        let file_idx = self.halves[half_idx(split)].file_idx.get(idx)?;
        self.looks.get(file_idx).copied()
    }

    fn listing(&self) -> ListingFacts<'_> {
        ListingFacts {
            left_out: &self.left_out,
            drawn: self.drawn,
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn image(&self, split: Split, idx: SampleIdx) -> Result<Image, DataError> {
        let sample = self.sample(split, idx)?;
        let file_idx = self.halves[half_idx(split)].file_idx[idx];
        let bytes = self.files.read_image(file_idx)?;
        let name = format!("{} in {}", sample.name, self.files.path().display());
        Ok(Image::decode_as(&bytes, &name, self.reading)?)
    }
}
