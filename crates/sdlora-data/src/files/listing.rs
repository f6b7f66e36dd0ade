//! What a folder or an archive lists.

use std::collections::HashSet;
use std::path::Path;

use super::member::Member;
use super::names::place_of;
use crate::error::DataError;

/// One file: its name with `/` between the parts, and where its bytes are.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) at: Location,
    /// Position of its part.
    pub(super) part: usize,
}

/// What a folder or an archive lists.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<Entry>,
    /// Names of folders in which nothing lies.
    pub(super) empty_folders: Vec<String>,
    /// What cannot be listed, as sentences without a stop: a link to nothing, a name that is no text.
    pub(super) problems: Vec<String>,
}

/// Where the bytes of a file are.
#[derive(Debug)]
pub(super) enum Location {
    /// A file of its own.
    Own,
    /// A range of the archive.
    Range { start: u64 },
    /// A member of a zip.
    Zip(Member),
}

/// Those of the `folders` of an archive in which no entry lies, without the `/` at their ends.
pub(super) fn empty(folders: Vec<String>, entries: &[Entry]) -> Vec<String> {
    let mut full: HashSet<&str> = HashSet::new();
    for entry in entries {
        let mut name = entry.name.as_str();
        while let Some((folder, _)) = name.rsplit_once('/') {
            if !full.insert(folder) {
                break;
            }
            name = folder;
        }
    }
    let names = folders
        .into_iter()
        .map(|folder| folder.trim_end_matches('/').to_owned());
    names
        .filter(|folder| !folder.is_empty() && !full.contains(folder.as_str()))
        .collect()
}

/// The error of a listing that does not end in time.
pub(super) fn too_many(path: &Path, max_files: usize) -> DataError {
    DataError::content(
        place_of(path),
        format!("holds more than {max_files} files"),
        "name the folder of one data set, or raise `max_files`",
    )
}
