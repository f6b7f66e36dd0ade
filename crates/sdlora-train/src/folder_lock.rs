//! Who may write into a folder: one process at a time.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::TrainError;
use crate::files;

/// Name of the file that is locked; it stays, because removing it would race with who opens it.
const FILE: &str = ".lock";

/// A folder that is held by this process, until this value is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    folder: PathBuf,
    file: File,
    is_held: bool,
}

impl FolderLock {
    /// Holds a folder, which has to be there.
    ///
    /// # Errors
    ///
    /// [`TrainError::Locked`] when somebody holds it, [`TrainError::Io`] when it cannot be written.
    pub fn take(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join(FILE);
        let file = files::open_lock(&path).map_err(TrainError::io("create", &path))?;
        let is_held = match file.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::Locked {
                    path: folder.into(),
                });
            }
            // Some network file systems know no locks; a run there is better than none.
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => false,
            Err(TryLockError::Error(e)) => return Err(TrainError::io("lock", path)(e)),
        };
        Ok(Self {
            folder: folder.into(),
            file,
            is_held,
        })
    }

    /// Whether the file system knows locks; without, nothing keeps a second process out.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes a folder in which nothing lies but the locked file. One in which anything else lies stays as it is, also
    /// where the file system refuses.
    pub fn remove_empty(self) {
        let mut entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        if entries.all(|entry| entry.file_name() == FILE) && self.check().is_ok() {
            // Nobody else holds it.
            let _ = files::remove_file(&self.folder.join(FILE));
            let _ = files::remove_empty_folder(&self.folder);
        }
    }

    /// Checks that the folder is still where it was.
    ///
    /// # Errors
    ///
    /// [`TrainError::FolderGone`] when it was moved, removed or replaced.
    pub fn check(&self) -> Result<(), TrainError> {
        let there = fs::metadata(self.folder.join(FILE)).ok();
        let here = self.file.metadata().ok();
        match there.zip(here) {
            Some((there, here)) if is_same(&there, &here) => Ok(()),
            _ => Err(TrainError::FolderGone {
                path: self.folder.clone(),
            }),
        }
    }
}

#[cfg(unix)]
fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// A folder with an open file cannot be moved here.
#[cfg(not(unix))]
fn is_same(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_holder_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        assert!(first.is_held());
        let error = FolderLock::take(folder.path()).unwrap_err();
        assert!(matches!(error, TrainError::Locked { .. }), "{error}");
        assert!(error.to_string().contains(folder.path().to_str().unwrap()));
        drop(first);
        FolderLock::take(folder.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_was_moved_or_removed_is_missed() {
        let root = tempfile::tempdir().unwrap();
        let (at, elsewhere) = (root.path().join("a"), root.path().join("b"));
        fs::create_dir(&at).unwrap();
        let lock = FolderLock::take(&at).unwrap();
        lock.check().unwrap();
        fs::rename(&at, &elsewhere).unwrap();
        assert!(lock.check().is_err());
        // Another folder of that name is not the one.
        fs::create_dir(&at).unwrap();
        let _other = FolderLock::take(&at).unwrap();
        let error = lock.check().unwrap_err().to_string();
        assert!(error.contains("moved or removed"), "{error}");
    }
}
