//! The images of folders of classes, and what else lies there: other formats, other files, empty folders.

use std::collections::{BTreeMap, BTreeSet};

use sdlora_image::{is_image, other_ending};
use unicode_normalization::UnicodeNormalization;

use super::halves::Part;
use super::layout::{Layout, Place};
use super::listed::{Listed, Usable, some_of};
use crate::error::DataError;
use crate::files::Files;
use crate::split::Split;

/// What lies in folders of classes.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The images; without halves all are for training as yet.
    pub(super) images: Vec<Listed>,
    /// Classes that have no image that is read, each with the reason.
    pub(super) empty_classes: BTreeMap<String, String>,
    /// What was left out, for the user.
    pub(super) notes: Vec<String>,
}

/// How often each ending was seen, as "3 .gif, 1 .heic".
fn counted(endings: &BTreeMap<String, usize>) -> String {
    let counts: Vec<String> = endings
        .iter()
        .map(|(ending, n)| format!("{n} .{ending}"))
        .collect();
    counts.join(", ")
}

impl Listing {
    /// Lists the files of classes.
    ///
    /// # Errors
    ///
    /// [`DataError::Content`] for classes whose names look alike.
    pub(super) fn of(files: &Files, layout: &Layout) -> Result<Self, DataError> {
        let mut listing = Self::default();
        let mut stray = Vec::new();
        let mut unread: BTreeMap<String, usize> = BTreeMap::new();
        let mut unread_of: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
        let mut held_out: BTreeMap<&str, usize> = BTreeMap::new();
        for idx in 0..files.len() {
            let name = files.name(idx);
            let other = other_ending(name);
            if let Some(ending) = &other {
                *unread.entry(ending.clone()).or_default() += 1;
            }
            match layout.place(name) {
                Place::Class(part, class) if is_image(name) => {
                    let split =
                        part.map_or(Some(Split::Train), |part| part.split(layout.has_test()));
                    match split {
                        Some(split) => listing.images.push(Listed {
                            file_idx: idx,
                            class: class.to_owned(),
                            split,
                        }),
                        None => *held_out.entry(layout.half_folder(name)).or_default() += 1,
                    }
                }
                Place::Class(part, class) => match other {
                    Some(ending) if part != Some(Part::Validation) || !layout.has_test() => {
                        let endings = unread_of.entry(class).or_default();
                        *endings.entry(ending).or_default() += 1;
                    }
                    Some(_) => {}
                    None => stray.push(format!("`{}`", layout.below(name))),
                },
                Place::Stray if other.is_none() => stray.push(format!("`{}`", layout.below(name))),
                // What lies outside the images is text about them.
                Place::Outside if is_image(name) => stray.push(format!("`{name}`")),
                Place::Stray | Place::Outside => {}
            }
        }
        check_alike(files, &listing.images)?;
        for (folder, n) in held_out {
            listing.notes.push(format!(
                "`{folder}` ({n} images) is held out: beside a test half it is neither trained nor tested on"
            ));
        }
        if !unread.is_empty() {
            listing.notes.push(format!(
                "left out {} images in formats that are not read: {}; convert them to JPEG or PNG",
                unread.values().sum::<usize>(),
                counted(&unread)
            ));
        }
        if !stray.is_empty() {
            listing.notes.push(format!(
                "{} files are no images of a class: {}",
                stray.len(),
                some_of(&stray)
            ));
        }
        let classes: BTreeSet<&str> = listing.images.iter().map(|i| i.class.as_str()).collect();
        let mut empty_classes = BTreeMap::new();
        for folder in files.empty_folders() {
            match layout.place(&format!("{folder}/")) {
                Place::Class(_, class) if !classes.contains(class) => {
                    empty_classes.insert(class.to_owned(), "its folder is empty".to_owned());
                }
                _ => {}
            }
        }
        for (class, endings) in unread_of {
            if !classes.contains(class) {
                let reason = format!("its folder holds {}", counted(&endings));
                empty_classes.insert(class.to_owned(), reason);
            }
        }
        listing.empty_classes = empty_classes;
        Ok(listing)
    }
}

/// Makes the class `<class>` of all domains of the classes `<domain>/<class>`.
///
/// # Errors
///
/// [`DataError::Content`] for classes whose names look alike.
pub(super) fn merge_domains(files: &Files, usable: &mut Usable) -> Result<(), DataError> {
    without_domains(&mut usable.images);
    check_alike(files, &usable.images)
}

/// Makes the class `<class>` of all domains of the classes `<domain>/<class>`.
pub(super) fn without_domains(listed: &mut [Listed]) {
    for image in listed {
        if let Some((_, class)) = image.class.split_once('/') {
            image.class = class.to_owned();
        }
    }
}

/// What a name looks like: two that look alike have the same, whatever their case and the form of their accents.
pub fn look_of(name: &str) -> String {
    name.nfc().flat_map(char::to_lowercase).nfc().collect()
}

/// Refuses classes whose names look the same: some file systems cannot tell them apart, and neither can a reader.
fn check_alike(files: &Files, listed: &[Listed]) -> Result<(), DataError> {
    // By class and not by image: names are long to compare, and images many.
    let mut first_of: BTreeMap<&str, usize> = BTreeMap::new();
    for image in listed {
        first_of.entry(&image.class).or_insert(image.file_idx);
    }
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (class, file_idx) in &first_of {
        let looks = look_of(class);
        let Some(first) = seen.insert(looks, class) else {
            continue;
        };
        let how = if first.to_lowercase() == class.to_lowercase() {
            "differs from it in upper and lower case only"
        } else {
            "is written with other characters that look the same (composed and decomposed accents)"
        };
        return Err(files.error(
            *file_idx,
            format!("is of class `{class}`, and there is a class `{first}`: one {how}"),
            "rename or merge one of the folders",
        ));
    }
    Ok(())
}
