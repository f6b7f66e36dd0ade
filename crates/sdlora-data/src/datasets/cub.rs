//! CUB-200-2011: 200 species of birds (Wah et al. 2011), `images/<class>/*`.
//!
//! The halves are those of `images.txt` and `train_test_split.txt` where they are, `train/` and `test/` where
//! the images were sorted into those, and else drawn at random.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use sdlora_image::is_image;

use super::entry::DatasetEntry;
use super::folder::{FolderOptions, find, read};
use super::listed::{Listed, ListedImages, Usable};
use crate::dataset::{Dataset, Options};
use crate::error::DataError;
use crate::files::Files;
use crate::split::Split;

/// 200 species.
pub(super) const CUB200: DatasetEntry = DatasetEntry {
    name: "cub200",
    summary: "CUB-200-2011: 11,788 photographs of 200 species of birds",
    manifest: include_str!("../../manifests/cub200.toml"),
    open,
};

const ALSO: [&str; 3] = ["CUB_200_2011", "CUB_200_2011.tgz", "cub"];

fn open(data_dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, DataError> {
    let name = CUB200.name;
    let options = options.parse::<FolderOptions>(name)?.check()?;
    let manifest = CUB200.manifest()?;
    let files = find(&CUB200, &manifest, &ALSO, data_dir, &options)?;
    let lists = files
        .find_named("images.txt")
        .zip(files.find_named("train_test_split.txt"));
    let images = match lists {
        Some((images, split)) if options.csv.is_none() => {
            let mut listed = by_lists(&files, images, split)?;
            options.keep_classes(&mut listed)?;
            let reading = options.reading(name);
            let usable = Usable::of(&files, listed, options.bad(), reading, |_| true)?;
            ListedImages::new(name, files, usable)?
        }
        _ => read(name, files, &options)?,
    };
    let differences = manifest
        .set(name)
        .map(|set| set.differences(&images))
        .unwrap_or_default();
    Ok(Box::new(images.with_notes(differences)))
}

/// `images.txt` has a number and a path a line, `train_test_split.txt` the number and 1 for training.
fn by_lists(files: &Files, images: usize, split: usize) -> Result<Vec<Listed>, DataError> {
    let pairs = |idx: usize| -> Result<HashMap<String, String>, DataError> {
        let text = files.read_text(idx)?;
        text.lines()
            .enumerate()
            .map(|(at, line)| match line.trim().split_once(' ') {
                Some((number, value)) => Ok((number.to_owned(), value.to_owned())),
                None => Err(files.error(
                    idx,
                    format!("has a line {} without a number and a value", at + 1),
                    "fetch it again",
                )),
            })
            .collect()
    };
    let paths = pairs(images)?;
    let training: HashSet<String> = pairs(split)?
        .into_iter()
        .filter(|(_, is_training)| is_training == "1")
        .filter_map(|(number, _)| paths.get(&number).cloned())
        .collect();
    Ok((0..files.len())
        .filter(|&idx| is_image(files.name(idx)))
        .filter_map(|idx| {
            let (_, path) = files.name(idx).rsplit_once("images/")?;
            let (class, _) = path.split_once('/')?;
            Some(Listed {
                file_idx: idx,
                class: class.to_owned(),
                split: if training.contains(path) {
                    Split::Train
                } else {
                    Split::Test
                },
            })
        })
        .collect())
}
