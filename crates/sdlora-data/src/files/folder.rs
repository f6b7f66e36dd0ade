//! Files below a folder of the file system.

use std::fs::ReadDir;
use std::path::{Path, PathBuf};

use super::listing::{Entry, Listing, Location, too_many};
use super::names::{is_litter, place_of, place_of_bytes};
use super::read::other_kind;
use crate::error::DataError;

/// Deepest accepted nesting; data sets have at most six levels.
const MAX_DEPTH: usize = 32;

/// Lists all files below `root`; links are followed. What cannot be listed is a problem of the listing, and all else is
/// listed: one link to nothing does not hide a hundred thousand images.
pub(super) fn list(root: &Path, max_files: usize) -> Result<Listing, DataError> {
    let real = root.canonicalize().map_err(|source| DataError::Io {
        path: root.to_owned(),
        source,
    })?;
    let mut walk = Walk {
        root,
        max_files,
        listing: Listing::default(),
    };
    let children = std::fs::read_dir(root).map_err(|source| DataError::Io {
        path: root.to_owned(),
        source,
    })?;
    walk.folder(children, root, "", &mut vec![real])?;
    Ok(walk.listing)
}

struct Walk<'a> {
    root: &'a Path,
    max_files: usize,
    listing: Listing,
}

impl Walk<'_> {
    /// Adds the `children` of `folder`, whose name ends in `/` or is empty; `above` are the real paths down to it.
    fn folder(
        &mut self,
        children: ReadDir,
        folder: &Path,
        name: &str,
        above: &mut Vec<PathBuf>,
    ) -> Result<(), DataError> {
        let mut is_empty = true;
        for child in children {
            let child = match child {
                Ok(child) => child,
                Err(source) => {
                    self.problem(format!("{} cannot be listed ({source})", place_of(folder)));
                    // The system would go on to give the same.
                    break;
                }
            };
            let path = child.path();
            let part = match child.file_name().into_string() {
                Ok(part) => part,
                Err(part) => {
                    is_empty = false;
                    let place = place_of_bytes(part.as_encoded_bytes(), folder);
                    self.problem(format!("{place} has a name that is not UTF-8"));
                    continue;
                }
            };
            if is_litter(&part) {
                continue;
            }
            is_empty = false;
            let child_name = format!("{name}{part}");
            // Follows links, so a broken one is named here.
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(source) => {
                    let is_link = child.file_type().is_ok_and(|kind| kind.is_symlink());
                    let what = if is_link {
                        "is a link to nothing that can be read or a loop"
                    } else {
                        "cannot be read"
                    };
                    self.problem(format!("{} {what} ({source})", place_of(&path)));
                    continue;
                }
            };
            if metadata.is_file() {
                if self.listing.entries.len() == self.max_files {
                    return Err(too_many(self.root, self.max_files));
                }
                self.listing.entries.push(Entry {
                    name: child_name,
                    size: metadata.len(),
                    at: Location::Own,
                    part: 0,
                });
                continue;
            }
            if !metadata.is_dir() {
                let what = other_kind(metadata.file_type()).unwrap_or("something else");
                self.problem(format!("{} is {what}, not a file", place_of(&path)));
                continue;
            }
            let opened = path
                .canonicalize()
                .and_then(|real| Ok((real, std::fs::read_dir(&path)?)));
            let (real, inner) = match opened {
                Ok(opened) => opened,
                Err(source) => {
                    self.problem(format!("{} cannot be listed ({source})", place_of(&path)));
                    continue;
                }
            };
            if above.contains(&real) || above.len() > MAX_DEPTH {
                self.problem(format!(
                    "{} is a link to a folder above it, or nested too deep",
                    place_of(&path)
                ));
                continue;
            }
            above.push(real);
            self.folder(inner, &path, &format!("{child_name}/"), above)?;
            above.pop();
        }
        if is_empty && !name.is_empty() {
            let name = name.trim_end_matches('/').to_owned();
            self.listing.empty_folders.push(name);
        }
        Ok(())
    }

    fn problem(&mut self, text: String) {
        self.listing.problems.push(text);
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_and_what_cannot_be_listed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::create_dir_all(root.join("empty/.hidden")).unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        std::fs::write(dir.path().join("elsewhere/1.png"), "x").unwrap();
        symlink(dir.path().join("elsewhere"), root.join("b")).unwrap();
        let listing = list(&root, 10).unwrap();
        assert_eq!(listing.entries.len(), 1);
        assert_eq!(listing.entries[0].name, "b/1.png");
        assert_eq!(listing.problems, [""; 0]);
        let mut empty = listing.empty_folders;
        empty.sort();
        assert_eq!(empty, ["a", "empty"]);

        symlink(&root, root.join("a/again")).unwrap();
        symlink("self", root.join("self")).unwrap();
        symlink("nowhere", root.join("dangling.png")).unwrap();
        std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let latin = std::ffi::OsStr::from_bytes(b"caf\xe9.png");
        std::fs::write(root.join(latin), "x").unwrap();
        let mut listing = list(&root, 10).unwrap();
        assert_eq!(listing.entries.len(), 1);
        listing.problems.sort();
        let parts = [
            "a/again` is a link to a folder above",
            "dangling.png` is a link to nothing",
            "self` is a link to nothing that can be read or a loop",
            "socket` is a socket",
            "`caf\\xe9.png`",
        ];
        assert_eq!(
            listing.problems.len(),
            parts.len(),
            "{:?}",
            listing.problems
        );
        for part in parts {
            let has = |problem: &String| problem.contains(part);
            assert!(
                listing.problems.iter().any(has),
                "{part}: {:?}",
                listing.problems
            );
        }
    }
}
