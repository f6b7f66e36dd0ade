//! Single operations on files, each of which a test can let fail.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::faults::{self, Operation};
use crate::error::TrainError;

/// Start of the names of files and folders under construction.
pub(super) const UNFINISHED: &str = ".tmp-";

/// Writes a file: temporary name, sync, rename.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses, or when something that is no regular file has the name; an
/// earlier file of that name is then intact.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = parent_of(path);
    if path
        .symlink_metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_symlink())
    {
        let problem = io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file");
        return Err(TrainError::io("write", path)(problem));
    }
    faults::pass(Operation::Create).map_err(TrainError::io("create", path))?;
    let (mut file, temporary) = temporary_name(UNFINISHED, 0o666)
        .tempfile_in(folder)
        .and_then(|file| file.keep().map_err(|e| e.error))
        .map_err(TrainError::io("create", path))?;
    let written = faults::write(&mut file, bytes)
        .and_then(|()| faults::pass(Operation::Sync).and_then(|()| file.sync_all()))
        .map_err(TrainError::io("write", path))
        .and_then(|()| rename(&temporary, path).map_err(TrainError::io("rename", path)));
    if written.is_err() {
        // What cannot be removed is removed by the next run.
        let _ = remove_file(&temporary);
    }
    sync_folder(folder);
    written
}

/// A folder below the one for temporary files, removed with all that is in it when this is dropped.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new and empty one, which nobody else reads.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn new() -> Result<Self, TrainError> {
        let folder = faults::pass(Operation::Create)
            .and_then(|()| temporary_name("sdlora-", 0o700).tempdir())
            .map_err(TrainError::io("create", std::env::temp_dir()))?;
        Ok(Self(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Creates a folder and those above it.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses.
pub fn create_folders(path: &Path) -> Result<(), TrainError> {
    faults::pass(Operation::Create)
        .and_then(|()| fs::create_dir_all(path))
        .map_err(TrainError::io("create", path))
}

/// Creates a folder in one that is there; nothing when it is there itself.
///
/// # Errors
///
/// [`TrainError::Io`] when the folder above is gone or the file system refuses.
pub fn create_folder(path: &Path) -> Result<(), TrainError> {
    match create_new_folder(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(TrainError::io("create", path)),
    }
}

/// Creates a folder that is not there yet: of several processes that ask, one gets it.
///
/// # Errors
///
/// That of the file system; [`io::ErrorKind::AlreadyExists`] when the name is taken.
pub fn create_new_folder(path: &Path) -> io::Result<()> {
    faults::pass(Operation::Create)?;
    fs::create_dir(path)
}

/// Removes a folder with everything in it.
///
/// # Errors
///
/// That of the file system.
pub fn remove_folder(path: &Path) -> io::Result<()> {
    faults::pass(Operation::Remove)?;
    fs::remove_dir_all(path)
}

/// Removes a folder in which nothing lies.
///
/// # Errors
///
/// That of the file system, also for a folder in which something lies.
pub fn remove_empty_folder(path: &Path) -> io::Result<()> {
    faults::pass(Operation::Remove)?;
    fs::remove_dir(path)
}

/// Opens an empty file that is only there to be locked, and makes it where it is missing.
///
/// # Errors
///
/// That of the file system.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    faults::pass(Operation::Create)?;
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    faults::pass(Operation::Rename)?;
    fs::rename(from, to)
}

/// Removes a file.
///
/// # Errors
///
/// That of the file system.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    faults::pass(Operation::Remove)?;
    fs::remove_file(path)
}

/// Gives a file the name of another with the same bytes too, so that both lie on the disk once.
///
/// # Errors
///
/// That of the file system, also of one that has no second names; both files are then what they were.
pub(crate) fn link_over(from: &Path, to: &Path) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(UNFINISHED);
    name.push(to.file_name().unwrap_or_default());
    let temporary = to.with_file_name(name);
    // What a killed process left.
    let _ = fs::remove_file(&temporary);
    faults::pass(Operation::Create)?;
    fs::hard_link(from, &temporary)?;
    let renamed = rename(&temporary, to);
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// Removes whatever it is; of a link, the link.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match path.symlink_metadata()?.is_dir() {
        true => remove_folder(path),
        false => remove_file(path),
    }
}

/// Temporary files are private by default; what a run leaves is as readable as any other file.
#[cfg_attr(not(unix), allow(unused_variables))]
pub(super) fn temporary_name(prefix: &str, mode: u32) -> tempfile::Builder<'_, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    builder
}

/// Makes a rename durable. Not every file system can sync a folder; the rename is atomic anyway.
pub(super) fn sync_folder(folder: &Path) {
    if let Ok(file) = File::open(folder) {
        let _ = file.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::clean;
    use super::super::faults::Kind;
    use super::*;

    #[test]
    fn whatever_fails_a_file_is_the_old_or_the_new_one() {
        for kind in [Kind::Error, Kind::Kill] {
            for n in 1.. {
                let root = tempfile::tempdir().unwrap();
                let at = root.path().join("x");
                write_file(&at, b"old").unwrap();
                faults::arm(n, kind);
                let written = write_file(&at, b"new and longer");
                let happened = faults::disarm();
                let expected: &[u8] = match written {
                    Ok(()) => b"new and longer",
                    Err(_) => b"old",
                };
                assert_eq!(fs::read(&at).unwrap(), expected, "{kind:?} {n}");
                clean(root.path());
                assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
                if !happened {
                    assert_eq!(n, 5, "create, write, sync, rename");
                    break;
                }
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_replaced_by_one() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = write_file(&socket, b"x").unwrap_err().to_string();
        assert!(error.contains("socket"), "{error}");
        assert!(!socket.symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
