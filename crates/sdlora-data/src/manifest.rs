//! Manifest of a data set: where it comes from, what it may be used for, which files and how many images it has.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::{Dataset, Split};
use crate::error::DataError;

/// Contents of `<data dir>/<name>.toml`.
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
    /// The files the loader reads.
    pub files: Vec<ManifestFile>,
    /// The data sets that are made of the files.
    pub sets: Vec<ManifestSet>,
}

/// One file of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Path below the manifest's folder.
    pub path: PathBuf,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// One data set of a manifest, as it can be opened by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestSet {
    /// Name under which it is opened.
    pub name: String,
    /// Number of classes.
    pub classes: usize,
    /// Number of groups of classes (alphabets, superclasses), 0 when there are none.
    pub groups: usize,
    /// Number of images, training and test together.
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

    /// Compares every file below `data_dir` with its SHA-256.
    ///
    /// # Errors
    ///
    /// The first [`DataError::MissingFile`], [`DataError::Io`] or [`DataError::Checksum`].
    pub fn verify(&self, data_dir: &Path) -> Result<(), DataError> {
        for file in &self.files {
            let path = data_dir.join(&self.folder).join(&file.path);
            let found = match sha256(&path) {
                Ok(found) => found,
                Err(source) if source.kind() == ErrorKind::NotFound => {
                    return Err(self.missing(data_dir, path));
                }
                Err(source) => return Err(DataError::Io { path, source }),
            };
            if found != file.sha256 {
                return Err(DataError::Checksum {
                    path,
                    expected: file.sha256.clone(),
                    found,
                });
            }
        }
        Ok(())
    }

    fn missing(&self, data_dir: &Path, path: PathBuf) -> DataError {
        DataError::MissingFile {
            dataset: self.name.clone(),
            data_dir: data_dir.to_owned(),
            path,
            origin: self.source.clone(),
        }
    }
}

impl ManifestSet {
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

/// SHA-256 of a file in lower-case hexadecimal, read in pieces.
fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
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
    fn sums_are_compared() {
        let manifest = Manifest::parse(TEXT, "toy").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let missing = manifest.verify(dir.path()).unwrap_err();
        assert!(
            matches!(missing, DataError::MissingFile { .. }),
            "{missing}"
        );
        assert!(missing.to_string().contains("nowhere"), "{missing}");

        std::fs::create_dir(dir.path().join("toy")).unwrap();
        // The test vector of FIPS 180-4 for "abc".
        std::fs::write(dir.path().join("toy/abc.bin"), "abc").unwrap();
        manifest.verify(dir.path()).unwrap();

        std::fs::write(dir.path().join("toy/abc.bin"), "abd").unwrap();
        let wrong = manifest.verify(dir.path()).unwrap_err();
        assert!(matches!(wrong, DataError::Checksum { .. }), "{wrong}");
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = TEXT.replace("licence", "license");
        let message = Manifest::parse(&text, "toy").unwrap_err().to_string();
        assert!(message.contains("toy"), "{message}");
    }
}
