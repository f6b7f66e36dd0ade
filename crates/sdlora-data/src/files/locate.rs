//! Where a data set lies below the data directory: unpacked, as an archive, or as an archive in its folder.

use std::path::{Path, PathBuf};

use super::Files;
use super::names::place_of;
use crate::error::DataError;
use crate::manifest::Manifest;

/// Where to look for a data set, and how to know it.
pub(crate) struct Place<'a> {
    /// Name of the data set, for errors.
    pub(crate) dataset: &'a str,
    /// Its manifest: the folder is looked into first.
    pub(crate) manifest: &'a Manifest,
    /// The data directory.
    pub(crate) data_dir: &'a Path,
    /// Folder or archive the user named, below the data directory or absolute.
    pub(crate) root: Option<&'a Path>,
    /// Other folders and archives below the data directory, by the names its authors gave.
    pub(crate) also: &'a [&'a str],
    /// Most files that are listed.
    pub(crate) max_files: usize,
}

/// The paths at which the data set may be, in the order in which they are tried.
fn candidates(place: &Place<'_>) -> Vec<PathBuf> {
    match place.root {
        Some(root) => vec![place.data_dir.join(root)],
        None => std::iter::once(place.data_dir.join(&place.manifest.folder))
            .chain(place.also.iter().map(|name| place.data_dir.join(name)))
            .collect(),
    }
}

/// Opens the first place whose files `is_it` knows; in a folder of archives, the one archive it knows, or all of them
/// where the data set comes in several.
///
/// # Errors
///
/// [`DataError::MissingFile`] if no place exists, [`DataError::Content`] if a place has nothing to read or several
/// archives that would do, and errors of opening.
pub(crate) fn locate(
    place: &Place<'_>,
    is_it: impl Fn(&Files) -> bool,
) -> Result<Files, DataError> {
    let candidates = candidates(place);
    for path in candidates.iter().filter(|path| path.exists()) {
        let files = Files::open(path, place.max_files)?;
        if is_it(&files) {
            return Ok(files);
        }
        let archives = files.archives();
        if archives.len() > 1 && place.manifest.n_archives() > 1 {
            let files = Files::open_with_archives(path, place.max_files)?;
            if is_it(&files) {
                return Ok(files);
            }
        }
        let mut found: Vec<Files> = Vec::new();
        for name in &archives {
            let inner = Files::open(&path.join(name), place.max_files)?;
            if is_it(&inner) {
                found.push(inner);
            }
        }
        match (found.pop(), found.is_empty()) {
            (Some(files), true) => return Ok(files),
            (Some(last), false) => {
                found.push(last);
                let names: Vec<_> = found
                    .iter()
                    .map(|files| files.path().display().to_string())
                    .collect();
                return Err(DataError::content(
                    place_of(path),
                    format!("holds {} archives: {}", names.len(), names.join(", ")),
                    "name one with the option `root`",
                ));
            }
            (None, _) => {}
        }
    }
    if let Some(path) = candidates.iter().find(|path| path.exists()) {
        return Err(DataError::content(
            place_of(path),
            format!("has no file that the data set `{}` reads", place.dataset),
            format!(
                "put its files there (origin: {}), or name their folder with the option `root`",
                place.manifest.origin()
            ),
        ));
    }
    let path = candidates.into_iter().next().unwrap_or_default();
    Err(DataError::MissingFile {
        dataset: place.dataset.to_owned(),
        data_dir: place.data_dir.to_owned(),
        path,
        origin: place.manifest.origin(),
    })
}

#[cfg(test)]
mod tests {
    use crate::datasets::open;
    use crate::{DataError, Options};

    #[test]
    fn a_place_with_nothing_to_read_is_not_said_to_be_missing() {
        let home = tempfile::tempdir().unwrap();
        let said = |root: &str| {
            let options = Options::none().with("root", root);
            open("folder", home.path(), &options).err().unwrap()
        };
        assert!(matches!(said("photos"), DataError::MissingFile { .. }));
        std::fs::create_dir_all(home.path().join("photos/cat")).unwrap();
        std::fs::write(home.path().join("photos/notes.txt"), "mine").unwrap();
        let error = said("photos");
        assert!(matches!(error, DataError::Content { .. }), "{error}");
        let error = error.to_string();
        assert!(
            error.contains("has no file that the data set `folder` reads"),
            "{error}"
        );
    }
}
