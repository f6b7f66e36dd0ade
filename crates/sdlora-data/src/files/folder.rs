//! Files below a folder of the file system.

use std::path::{Path, PathBuf};

use super::{Entry, Location, is_litter, place_of, too_many};
use crate::error::DataError;

/// Deepest accepted nesting; data sets have at most six levels.
const MAX_DEPTH: usize = 32;

/// Lists all files below `root`; links are followed.
pub(super) fn list(root: &Path, max_files: usize) -> Result<Vec<Entry>, DataError> {
    let real = root.canonicalize().map_err(|source| DataError::Io {
        path: root.to_owned(),
        source,
    })?;
    let mut walk = Walk {
        root,
        max_files,
        entries: Vec::new(),
    };
    walk.folder(root, "", &mut vec![real])?;
    Ok(walk.entries)
}

struct Walk<'a> {
    root: &'a Path,
    max_files: usize,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    /// Adds what is in `folder`, whose name ends in `/` or is empty; `above` are the real paths down to it.
    fn folder(
        &mut self,
        folder: &Path,
        name: &str,
        above: &mut Vec<PathBuf>,
    ) -> Result<(), DataError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| DataError::Io { path, source }
        };
        for child in std::fs::read_dir(folder).map_err(io_error(folder))? {
            let child = child.map_err(io_error(folder))?;
            let path = child.path();
            let Ok(part) = child.file_name().into_string() else {
                return Err(DataError::content(
                    place_of(&path),
                    "has a name that is not UTF-8",
                    "rename it",
                ));
            };
            if is_litter(&part) {
                continue;
            }
            let child_name = format!("{name}{part}");
            // Follows links, so a broken one is named here.
            let metadata = std::fs::metadata(&path).map_err(|source| {
                let is_link = child.file_type().is_ok_and(|kind| kind.is_symlink());
                let what = if is_link {
                    "is a link to nothing that can be read or a loop"
                } else {
                    "cannot be read"
                };
                DataError::content(place_of(&path), format!("{what} ({source})"), "remove it")
            })?;
            if metadata.is_dir() {
                let real = path.canonicalize().map_err(io_error(&path))?;
                if above.contains(&real) || above.len() > MAX_DEPTH {
                    return Err(DataError::content(
                        place_of(&path),
                        "is a link to a folder above it, or nested too deep",
                        "remove it",
                    ));
                }
                above.push(real);
                self.folder(&path, &format!("{child_name}/"), above)?;
                above.pop();
            } else if metadata.is_file() {
                if self.entries.len() == self.max_files {
                    return Err(too_many(self.root, self.max_files));
                }
                self.entries.push(Entry {
                    name: child_name,
                    size: metadata.len(),
                    at: Location::Own,
                    part: 0,
                });
            }
        }
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_but_loops_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::fs::write(dir.path().join("elsewhere/1.png"), "x").unwrap();
        symlink(dir.path().join("elsewhere"), root.join("b")).unwrap();
        let entries = list(&root, 10).unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].name, "b/1.png");

        symlink(&root, root.join("a/again")).unwrap();
        let error = list(&root, 10).unwrap_err().to_string();
        assert!(error.contains("a/again"), "{error}");

        std::fs::remove_file(root.join("a/again")).unwrap();
        symlink("self", root.join("self")).unwrap();
        let error = list(&root, 10).unwrap_err().to_string();
        assert!(error.contains("self"), "{error}");
    }
}
