//! The cache of the Hub, in the layout of Python's `huggingface_hub`, which shares it.
//!
//! ```text
//! models--org--name/refs/main                 the commit a name stood for
//! models--org--name/blobs/ETAG                the content of files
//! models--org--name/snapshots/COMMIT/FILE     links to the contents
//! .locks/models--org--name/ETAG.lock          who downloads a content
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::FetchError;
use crate::repo::HubRepo;
use crate::transfer::open_locked;

/// The part of the cache that belongs to one model.
#[derive(Debug)]
pub(crate) struct ModelCache {
    root: PathBuf,
    locks: PathBuf,
}

impl ModelCache {
    pub(crate) fn new(cache: &Path, repo: &HubRepo) -> Self {
        let name = repo.folder_name();
        Self {
            root: cache.join(&name),
            locks: cache.join(".locks").join(name),
        }
    }

    /// The commit a revision stood for when it was last looked up.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Notes what a revision stands for.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), FetchError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        create_folder_of(&path)?;
        fs::write(&path, commit).map_err(FetchError::io("write", &path))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// Keeps other processes, Python's too, from downloading the same content; until it is dropped.
    pub(crate) fn lock(&self, etag: &str) -> Result<File, FetchError> {
        open_locked(&self.locks.join(format!("{etag}.lock")))
    }

    /// Makes a content a file of a snapshot. `name` must lie below the snapshot.
    pub(crate) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<(), FetchError> {
        let path = self.snapshot(commit).join(name);
        create_folder_of(&path)?;
        if path.symlink_metadata().is_ok() {
            if path.exists() {
                return Ok(());
            }
            // A link whose content was removed.
            fs::remove_file(&path).map_err(FetchError::io("write", &path))?;
        }
        // From the folder of the file up to `models--org--name`.
        let n_up = 2 + name.matches('/').count();
        let target = PathBuf::from("../".repeat(n_up)).join("blobs").join(etag);
        match symlink(&target, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(_) => fs::copy(self.blob(etag), &path)
                .map(drop)
                .map_err(FetchError::io("write", &path)),
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

/// Elsewhere links need rights that users rarely have; Python copies then, too.
#[cfg(not(unix))]
fn symlink(_target: &Path, _path: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn create_folder_of(path: &Path) -> Result<(), FetchError> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(FetchError::io("create", folder)),
        None => Ok(()),
    }
}

/// Whether a revision is a whole commit, which never changes.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
