//! Tiny-ImageNet: 200 classes of ImageNet at 64x64 pixels (Stanford CS231N).
//!
//! `train/<wnid>/images/*.JPEG`, and `val/images/*.JPEG` with `val/val_annotations.txt` (file, wnid and a box, between
//! tabs). The validation images are the test half: the labels of `test/` were never published. A `val/` that was
//! sorted into `val/<wnid>/...`, as some scripts do, is read too. Class names are the words of `words.txt`.

use std::collections::HashMap;
use std::path::Path;

use sdlora_image::is_image;

use super::entry::DatasetEntry;
use super::folder::{FolderOptions, find};
use super::listed::{Listed, ListedImages, Usable};
use crate::dataset::{Dataset, Options};
use crate::error::DataError;
use crate::files::Files;
use crate::split::Split;

/// 200 classes.
pub(super) const TINY_IMAGENET: DatasetEntry = DatasetEntry {
    name: "tiny-imagenet",
    summary: "Tiny-ImageNet: 110,000 photographs of 64x64 pixels, 200 classes",
    manifest: include_str!("../../manifests/tiny-imagenet.toml"),
    open,
};

const ALSO: [&str; 2] = ["tiny-imagenet-200", "tiny-imagenet-200.zip"];
const ANNOTATIONS: &str = "val_annotations.txt";

fn open(data_dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, DataError> {
    let name = TINY_IMAGENET.name;
    let options = options.parse::<FolderOptions>(name)?.check()?;
    let manifest = TINY_IMAGENET.manifest()?;
    let files = find(&TINY_IMAGENET, &manifest, &ALSO, data_dir, &options)?;
    let root = files.common_folder(is_image);
    let mut listed = train(&files, root);
    listed.extend(validation(&files, root)?);
    options.keep_classes(&mut listed)?;
    let words = words(&files)?;
    let reading = options.reading(name);
    let usable = Usable::of(&files, listed, options.bad(), reading, |_| true)?;
    let images = ListedImages::new(name, files, usable)?
        .with_class_names(|wnid| words.get(wnid).map(|words| format!("{wnid} {words}")));
    let differences = manifest
        .set(name)
        .map(|set| set.differences(&images))
        .unwrap_or_default();
    Ok(Box::new(images.with_notes(differences)))
}

/// `train/<wnid>/...`
fn train(files: &Files, root: &str) -> Vec<Listed> {
    (0..files.len())
        .filter(|&idx| is_image(files.name(idx)))
        .filter_map(|idx| {
            let rest = files.name(idx).strip_prefix(root)?.strip_prefix("train/")?;
            let (class, _) = rest.split_once('/')?;
            Some(Listed {
                file_idx: idx,
                class: class.to_owned(),
                split: Split::Train,
            })
        })
        .collect()
}

/// `val/images/...` by the annotations, or `val/<wnid>/...`.
fn validation(files: &Files, root: &str) -> Result<Vec<Listed>, DataError> {
    let annotations = files.find(&format!("{root}val/{ANNOTATIONS}"));
    let mut class_of: HashMap<String, String> = HashMap::new();
    if let Some(idx) = annotations {
        for (at, line) in files.read_text(idx)?.lines().enumerate() {
            let mut fields = line.split('\t');
            let (Some(file), Some(wnid)) = (fields.next(), fields.next()) else {
                return Err(files.error(
                    idx,
                    format!("has a line {} without a tab", at + 1),
                    "fetch it again",
                ));
            };
            class_of.insert(file.to_owned(), wnid.trim().to_owned());
        }
    }
    let mut listed = Vec::new();
    for idx in (0..files.len()).filter(|&idx| is_image(files.name(idx))) {
        let rest = files.name(idx).strip_prefix(root);
        let Some((folder, file)) = rest
            .and_then(|rest| rest.strip_prefix("val/"))
            .and_then(|rest| rest.split_once('/'))
        else {
            continue;
        };
        let class = if folder == "images" {
            class_of.get(file).cloned().ok_or_else(|| {
                files.error(
                    idx,
                    format!("has no line in `val/{ANNOTATIONS}`"),
                    "fetch the data set again",
                )
            })?
        } else {
            folder.to_owned()
        };
        listed.push(Listed {
            file_idx: idx,
            class,
            split: Split::Test,
        });
    }
    Ok(listed)
}

/// The first word or words of each wnid.
fn words(files: &Files) -> Result<HashMap<String, String>, DataError> {
    let Some(idx) = files.find_named("words.txt") else {
        return Ok(HashMap::new());
    };
    Ok(files
        .read_text(idx)?
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(wnid, words)| {
            let first = words.split(',').next().unwrap_or(words);
            (wnid.to_owned(), first.trim().to_owned())
        })
        .collect())
}
