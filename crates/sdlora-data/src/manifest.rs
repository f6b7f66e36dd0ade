//! Manifest of a data set: where it comes from, what it may be used for, which files and how many images it has.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dataset::Dataset;
use crate::error::DataError;
use crate::files::ARCHIVES;
use crate::split::Split;

/// Contents of `manifests/<name>.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Name of the data set, or of the family of sets that share files.
    pub name: String,
    /// Where it comes from: address and version.
    pub source: String,
    /// Licence, and its limits where it has any.
    pub licence: String,
    /// The publication its authors ask to cite.
    pub citation: String,
    /// Folder of the files, below the data directory.
    pub folder: PathBuf,
    /// Other folders below the data directory that may hold it, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<PathBuf>,
    /// Whether a program may download the files, and what to do where it may not.
    #[serde(default)]
    pub fetch: FetchTerms,
    /// The files the authors publish, as far as their sums are known; empty for folders of one's own.
    #[serde(default)]
    pub files: Vec<ManifestFile>,
    /// The data sets that are made of the files.
    pub sets: Vec<ManifestSet>,
}

/// Whether a program may download the files of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchTerms {
    /// Who may have them.
    pub access: Access,
    /// The reason, as a sentence for the user.
    pub why: String,
    /// What the user does where nothing is downloaded, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}

/// Who may have the files of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Everyone.
    Open,
    /// Everyone who agrees to terms that limit the use.
    Terms,
    /// Those who asked for them on a page: they cannot be downloaded by a program.
    Form,
    /// The user, who brings them.
    #[default]
    Own,
}

impl Access {
    /// Whether a program may download the files, with the user's consent where terms limit the use.
    pub fn is_fetched(self) -> bool {
        matches!(self, Self::Open | Self::Terms)
    }
}

/// One file of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Path below the manifest's folder.
    pub path: PathBuf,
    /// Where its authors offer it; empty when it is not the file that is downloaded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub url: String,
    /// Size in bytes, 0 when it is not known.
    #[serde(default)]
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal, empty when only `md5` is known.
    #[serde(default)]
    pub sha256: String,
    /// MD5 in lower-case hexadecimal, where the authors publish that.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub md5: String,
}

/// One data set of a manifest, as it can be opened by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestSet {
    /// Name under which it is opened.
    pub name: String,
    /// Number of classes, 0 when it depends on the user's files.
    #[serde(default)]
    pub classes: usize,
    /// Number of groups of classes (alphabets, superclasses), 0 when there are none.
    #[serde(default)]
    pub groups: usize,
    /// Number of images, training and test together, 0 when it depends on the user's files.
    #[serde(default)]
    pub images: usize,
    /// How training and test images are told apart, in words.
    pub split: String,
}

impl Manifest {
    /// Reads a manifest from its TOML text; `name` is used in errors only.
    ///
    /// # Errors
    ///
    /// [`DataError::Manifest`] for invalid TOML and unknown or missing fields.
    pub fn parse(text: &str, name: &str) -> Result<Self, DataError> {
        toml::from_str(text).map_err(|source| DataError::Manifest {
            name: name.to_owned(),
            source: Box::new(source),
        })
    }

    /// The entry of the data set `name`, if the manifest has it.
    pub fn set(&self, name: &str) -> Option<&ManifestSet> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// The first of its folders that exists below `data_dir`, if any does.
    pub fn present_folder(&self, data_dir: &Path) -> Option<PathBuf> {
        std::iter::once(&self.folder)
            .chain(&self.also)
            .map(|folder| data_dir.join(folder))
            .find(|folder| folder.exists())
    }

    /// Path of a file of this manifest below `data_dir`, checked to exist.
    ///
    /// # Errors
    ///
    /// [`DataError::MissingFile`] when there is no such file.
    pub fn locate(&self, data_dir: &Path, file: &Path) -> Result<PathBuf, DataError> {
        let path = data_dir.join(&self.folder).join(file);
        if path.is_file() {
            Ok(path)
        } else {
            Err(self.missing(data_dir, path))
        }
    }

    /// The files that a program downloads: none where the licence keeps it from doing so.
    pub fn fetched_files(&self) -> impl Iterator<Item = &ManifestFile> {
        let is_fetched = self.fetch.access.is_fetched();
        let files = self.files.iter();
        files.filter(move |file| is_fetched && !file.url.is_empty())
    }

    /// Number of archives that are downloaded for one data set.
    pub(crate) fn n_archives(&self) -> usize {
        self.fetched_files()
            .filter_map(|file| file.path.to_str())
            .filter(|path| ARCHIVES.iter().any(|end| path.ends_with(end)))
            .count()
    }

    /// Where the files come from, as errors say it.
    pub(crate) fn origin(&self) -> String {
        match self.fetched_files().next() {
            Some(_) => format!(
                "{}; `sdlora data fetch {}` downloads it",
                self.source, self.name
            ),
            None => self.source.clone(),
        }
    }

    /// The error for a file that is not at `path`.
    pub(crate) fn missing(&self, data_dir: &Path, path: PathBuf) -> DataError {
        DataError::MissingFile {
            dataset: self.name.clone(),
            data_dir: data_dir.to_owned(),
            path,
            origin: self.origin(),
        }
    }
}

impl ManifestSet {
    /// How an opened data set differs from this entry, one sentence for each number: a subset is no error.
    pub fn differences(&self, dataset: &dyn Dataset) -> Vec<String> {
        let n_images = dataset.samples(Split::Train).len() + dataset.samples(Split::Test).len();
        [
            ("classes", self.classes, dataset.class_names().len()),
            ("images", self.images, n_images),
        ]
        .into_iter()
        .filter(|&(_, expected, found)| expected != 0 && expected != found)
        .map(|(what, expected, found)| {
            format!(
                "{found} {what}; the original `{}` has {expected}",
                self.name
            )
        })
        .collect()
    }

    /// Compares the classes, groups and images of an opened data set with this entry.
    ///
    /// # Errors
    ///
    /// [`DataError::Count`] for the first number that differs.
    pub fn verify(&self, dataset: &dyn Dataset) -> Result<(), DataError> {
        let n_images = dataset.samples(Split::Train).len() + dataset.samples(Split::Test).len();
        for (what, expected, found) in [
            ("classes", self.classes, dataset.class_names().len()),
            ("groups", self.groups, dataset.groups().len()),
            ("images", self.images, n_images),
        ] {
            if expected != found {
                return Err(DataError::Count {
                    place: format!("data set `{}`", self.name),
                    what,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        name = "toy"
        source = "nowhere"
        licence = "MIT"
        citation = "none"
        folder = "toy"
        [[files]]
        path = "abc.bin"
        bytes = 3
        sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        [[sets]]
        name = "toy"
        classes = 2
        groups = 0
        images = 4
        split = "none"
    "#;

    #[test]
    fn unknown_fields_are_refused() {
        let text = TEXT.replace("licence", "license");
        let message = Manifest::parse(&text, "toy").unwrap_err().to_string();
        assert!(message.contains("toy"), "{message}");
    }
}
