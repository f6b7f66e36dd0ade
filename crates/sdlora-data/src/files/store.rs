//! The bytes of an archive: an open file, or memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::names::place_of;
use super::read::open_file;
use crate::error::DataError;

/// The bytes of an archive.
#[derive(Debug)]
pub(super) enum Store {
    /// An open file; the lock is held while one range is read, not while it is unpacked.
    File {
        path: PathBuf,
        len: u64,
        file: Mutex<File>,
    },
    /// A file that is opened for each read: of many archives, not all may be open at once.
    Closed { path: PathBuf, len: u64 },
    /// An archive that was unpacked.
    Memory(Vec<u8>),
}

impl Store {
    /// Opens the file at `path`.
    pub(super) fn file(path: &Path) -> Result<Self, DataError> {
        let (file, len) = open_file(path)?;
        Ok(Self::File {
            path: path.to_owned(),
            len,
            file: Mutex::new(file),
        })
    }

    /// Keeps `bytes`.
    pub(super) fn memory(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes)
    }

    /// The same bytes without a file that stays open.
    pub(super) fn closed(self) -> Self {
        match self {
            Self::File { path, len, .. } => Self::Closed { path, len },
            other => other,
        }
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } | Self::Closed { len, .. } => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Reads `len` bytes from `start`.
    ///
    /// # Errors
    ///
    /// [`DataError::Content`] when the archive ends before, [`DataError::Io`] when it cannot be read.
    pub(super) fn read(&self, start: u64, len: u64) -> Result<Vec<u8>, DataError> {
        // Checked before anything is allocated: a damaged length would ask for any amount.
        let end = start.checked_add(len).filter(|&end| end <= self.len());
        match (self, end) {
            (Self::Memory(bytes), Some(end)) => Ok(bytes[start as usize..end as usize].to_vec()),
            (Self::File { path, file, .. }, Some(_)) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                read_at(&mut file, path, start, len)
            }
            (Self::Closed { path, .. }, Some(_)) => {
                let (mut file, _) = open_file(path)?;
                read_at(&mut file, path, start, len)
            }
            (_, None) => Err(DataError::content(
                match self {
                    Self::File { path, .. } | Self::Closed { path, .. } => place_of(path),
                    Self::Memory(_) => "an archive that was unpacked".to_owned(),
                },
                format!("ends at byte {} in the middle of a member", self.len()),
                "fetch it again",
            )),
        }
    }
}

/// Reads `len` bytes from `start`, which the file had when it was listed.
fn read_at(file: &mut File, path: &Path, start: u64, len: u64) -> Result<Vec<u8>, DataError> {
    let mut bytes = vec![0; len as usize];
    file.seek(SeekFrom::Start(start))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}
