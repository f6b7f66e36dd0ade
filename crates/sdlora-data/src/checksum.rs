//! Checksums of the files of a data set: those its authors publish, and those of a `SHA256SUMS` beside the files.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::error::DataError;
use crate::files::read_file;
use crate::hex::hex;
use crate::manifest::{Manifest, ManifestFile};

/// Name of a list of sums, as `sha256sum` writes it.
const SUMS: &str = "SHA256SUMS";
/// Largest such list, in bytes.
const MAX_SUMS_BYTES: u64 = 256 << 20;

/// One file and how its checksum compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCheck {
    /// The file.
    pub path: PathBuf,
    /// How it compares.
    pub state: FileState,
}

/// How a file compares with its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileState {
    /// It has the checksum.
    Matches,
    /// It has another checksum.
    Differs {
        /// The sum it should have, in hexadecimal.
        expected: String,
        /// The sum it has.
        found: String,
    },
    /// It is not there; the data set may be unpacked, or come as another of its archives.
    Missing,
}

impl Manifest {
    /// Compares the files below `data_dir` with the sums of this manifest and of `SHA256SUMS` in its folder.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`] for a file that cannot be read; what differs or is missing is part of the answer.
    pub fn check_files(&self, data_dir: &Path) -> Result<Vec<FileCheck>, DataError> {
        let folder = self
            .present_folder(data_dir)
            .unwrap_or_else(|| data_dir.join(&self.folder));
        let mut checks = Vec::new();
        for file in &self.files {
            let inside = folder.join(&file.path);
            // An archive is often left beside the folder it was to be put in.
            let beside = data_dir.join(&file.path);
            let path = if !inside.is_file() && beside.is_file() {
                beside
            } else {
                inside
            };
            let state = compare(&path, file)?;
            checks.push(FileCheck { path, state });
        }
        let sums = folder.join(SUMS);
        if !sums.is_file() {
            return Ok(checks);
        }
        let text = read_file(&sums, MAX_SUMS_BYTES)?;
        let text = String::from_utf8_lossy(&text);
        for line in text.lines() {
            // A star marks a file that was read as bytes.
            let Some((sum, name)) = line.split_once(char::is_whitespace) else {
                continue;
            };
            let name = name.trim_start().trim_start_matches('*');
            let path = folder.join(name.trim_start_matches("./"));
            if checks.iter().any(|check| check.path == path) {
                continue;
            }
            let file = ManifestFile {
                path: PathBuf::new(),
                url: String::new(),
                bytes: 0,
                sha256: sum.to_owned(),
                md5: String::new(),
            };
            let state = compare(&path, &file)?;
            checks.push(FileCheck { path, state });
        }
        Ok(checks)
    }

    /// Compares every file below `data_dir` with its checksum.
    ///
    /// # Errors
    ///
    /// The first [`DataError::MissingFile`], [`DataError::Io`] or [`DataError::Checksum`].
    pub fn verify(&self, data_dir: &Path) -> Result<(), DataError> {
        for file in &self.files {
            let path = data_dir.join(&self.folder).join(&file.path);
            match compare(&path, file)? {
                FileState::Matches => {}
                FileState::Missing => return Err(self.missing(data_dir, path)),
                FileState::Differs { expected, found } => {
                    return Err(DataError::Checksum {
                        path,
                        expected,
                        found,
                    });
                }
            }
        }
        Ok(())
    }
}

/// Compares the file at `path` with the sums of `file`; without a sum it only has to be there.
fn compare(path: &Path, file: &ManifestFile) -> Result<FileState, DataError> {
    let (expected, found) = if file.sha256.is_empty() && !file.md5.is_empty() {
        (&file.md5, hexadecimal::<Md5>(path))
    } else {
        (&file.sha256, hexadecimal::<Sha256>(path))
    };
    match found {
        Ok(found) if found.eq_ignore_ascii_case(expected) || expected.is_empty() => {
            Ok(FileState::Matches)
        }
        Ok(found) => Ok(FileState::Differs {
            expected: expected.clone(),
            found,
        }),
        Err(source) if source.kind() == ErrorKind::NotFound => Ok(FileState::Missing),
        Err(source) => Err(DataError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Digest of a file in lower-case hexadecimal, read in pieces.
fn hexadecimal<D: Digest>(path: &Path) -> std::io::Result<String> {
    // Links are followed; a pipe or a device has no end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(
            ErrorKind::InvalidInput,
            "it is no regular file",
        ));
    }
    let mut file = File::open(path)?;
    let mut hasher = D::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_the_manifest_and_of_the_list_are_compared() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("toy");
        std::fs::create_dir(&folder).unwrap();
        // The test vectors of RFC 1321 and FIPS 180-4 for "abc".
        std::fs::write(folder.join("abc.bin"), "abc").unwrap();
        std::fs::write(folder.join("abd.bin"), "abd").unwrap();
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let list = format!("{sum}  abc.bin\n{sum} *./abd.bin\n");
        std::fs::write(folder.join(SUMS), list).unwrap();
        let text = r#"
            name = "toy"
            source = "nowhere"
            licence = "MIT"
            citation = "none"
            folder = "toy"
            sets = []
            [[files]]
            path = "abc.bin"
            md5 = "900150983cd24fb0d6963f7d28e17f72"
            [[files]]
            path = "toy.zip"
            md5 = "900150983cd24fb0d6963f7d28e17f72"
        "#;
        let checks = Manifest::parse(text, "toy")
            .unwrap()
            .check_files(dir.path())
            .unwrap();
        let states: Vec<_> = checks
            .iter()
            .map(|check| {
                (
                    check.path.file_name().unwrap().to_str().unwrap(),
                    &check.state,
                )
            })
            .collect();
        assert!(
            matches!(
                states.as_slice(),
                [
                    ("abc.bin", FileState::Matches),
                    ("toy.zip", FileState::Missing),
                    ("abd.bin", FileState::Differs { .. }),
                ]
            ),
            "{states:?}"
        );
    }

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
}
