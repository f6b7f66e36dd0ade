//! Files of a run, written whole or not at all.
//!
//! | what | how |
//! |---|---|
//! | [`write_file`] | one file: temporary name, sync, rename |
//! | [`NewFolder`] | a folder of files that appears under its name when all of it is there |
//! | [`sums`] | `SHA256SUMS` of such a folder, checked when its files are read |
//! | [`clean`] | removes what a killed writer left |
//! | [`faults`] | lets a test fail any single operation of the above |
//!
//! What is under construction is called `.tmp-…` and never read.

pub mod faults;
pub mod sums;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::TrainError;
use faults::Operation;

/// Start of the names of files and folders under construction.
const UNFINISHED: &str = ".tmp-";
/// Starts of the names that earlier versions gave them.
const UNFINISHED_BEFORE: [&str; 2] = [".writing-", ".tmp"];

/// Writes a file: temporary name, sync, rename.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses; an earlier file of that name is then intact.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = parent_of(path);
    faults::pass(Operation::Create).map_err(TrainError::io("create", path))?;
    let (mut file, temporary) = temporary_name()
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
    let created = faults::pass(Operation::Create).and_then(|()| fs::create_dir(path));
    match created {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(TrainError::io("create", path)),
    }
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

/// Removes what killed writers left in a folder; what cannot be removed only takes space.
///
/// Nobody else may be writing there.
pub fn clean(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if UNFINISHED_BEFORE
            .iter()
            .any(|start| name.starts_with(start))
        {
            let _ = match entry.file_type() {
                Ok(kind) if kind.is_dir() => remove_folder(&entry.path()),
                _ => remove_file(&entry.path()),
            };
        }
    }
}

/// A folder under construction. It is removed again unless [`finish`](Self::finish) gives it its name.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    temporary: Option<PathBuf>,
    sums: sums::Sums,
}

impl NewFolder {
    /// A folder that will be `target`; the one above it has to be there.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn named(target: &Path) -> Result<Self, TrainError> {
        let temporary = faults::pass(Operation::Create)
            .and_then(|()| folder_name().tempdir_in(parent_of(target)))
            .map_err(TrainError::io("create", target))?;
        Ok(Self {
            target: target.into(),
            temporary: Some(temporary.keep()),
            sums: sums::Sums::default(),
        })
    }

    /// Where it is until it is finished.
    pub fn path(&self) -> &Path {
        self.temporary.as_deref().unwrap_or(&self.target)
    }

    /// Writes a file in it.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let path = self.path().join(name);
        faults::pass(Operation::Create)
            .and_then(|()| File::create(&path))
            .and_then(|mut file| {
                faults::write(&mut file, bytes)?;
                faults::pass(Operation::Sync)?;
                file.sync_all()
            })
            .map_err(TrainError::io("write", self.target.join(name)))?;
        self.sums.add(name, bytes);
        Ok(())
    }

    /// Takes in a file that something else wrote into [`path`](Self::path).
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when it cannot be read.
    pub fn adopt(&mut self, name: &str) -> Result<(), TrainError> {
        let path = self.path().join(name);
        let bytes = fs::read(&path).map_err(TrainError::io("read", &path))?;
        self.sums.add(name, &bytes);
        Ok(())
    }

    /// Adds `SHA256SUMS` with the files written so far.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn seal(&mut self) -> Result<(), TrainError> {
        let text = self.sums.to_string();
        self.write(sums::FILE, text.as_bytes())
    }

    /// Gives the folder its name. One that has it is moved away first, and removed at the end: at no moment
    /// does the name stand for a part of either.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses; an earlier folder of that name is then intact.
    pub fn finish(mut self) -> Result<(), TrainError> {
        let Some(temporary) = self.temporary.clone() else {
            return Ok(());
        };
        let target = &self.target;
        sync_folder(&temporary);
        let refused = |e| TrainError::io("rename", target)(e);
        let earlier = match target.symlink_metadata() {
            Err(_) => None,
            Ok(_) => {
                let mut aside = temporary.clone().into_os_string();
                aside.push("-before");
                let aside = PathBuf::from(aside);
                rename(target, &aside).map_err(refused)?;
                Some(aside)
            }
        };
        if let Err(e) = rename(&temporary, target) {
            if let Some(aside) = &earlier {
                let _ = rename(aside, target);
            }
            return Err(refused(e));
        }
        self.temporary = None;
        if let Some(aside) = earlier {
            // It only takes space, until the next run.
            let _ = match aside.is_dir() {
                true => remove_folder(&aside),
                false => remove_file(&aside),
            };
        }
        sync_folder(parent_of(target));
        Ok(())
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = remove_folder(temporary);
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    faults::pass(Operation::Rename)?;
    fs::rename(from, to)
}

fn remove_file(path: &Path) -> io::Result<()> {
    faults::pass(Operation::Remove)?;
    fs::remove_file(path)
}

/// Temporary files are private by default; what a run leaves is as readable as any other file.
fn temporary_name() -> tempfile::Builder<'static, 'static> {
    with_mode(0o666)
}

fn folder_name() -> tempfile::Builder<'static, 'static> {
    with_mode(0o777)
}

#[cfg_attr(not(unix), allow(unused_variables))]
fn with_mode(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    builder
}

/// Makes a rename durable. Not every file system can sync a folder; the rename is atomic anyway.
fn sync_folder(folder: &Path) {
    if let Ok(file) = File::open(folder) {
        let _ = file.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faults::Kind;

    fn folder(at: &Path, text: &str) -> Result<(), TrainError> {
        let mut folder = NewFolder::named(at)?;
        folder.write("a", text.as_bytes())?;
        folder.write("b", text.as_bytes())?;
        folder.seal()?;
        folder.finish()
    }

    fn read(at: &Path) -> Option<String> {
        let a = fs::read_to_string(at.join("a")).ok()?;
        assert_eq!(fs::read_to_string(at.join("b")).unwrap(), a);
        sums::Sums::read(at).unwrap().unwrap();
        Some(a)
    }

    #[test]
    fn whatever_fails_a_folder_is_the_old_or_the_new_one_and_the_rest_is_cleaned() {
        for kind in [Kind::Error, Kind::Kill] {
            for n in 1.. {
                let root = tempfile::tempdir().unwrap();
                let at = root.path().join("x");
                folder(&at, "old").unwrap();
                faults::arm(n, kind);
                let written = folder(&at, "new");
                let happened = faults::disarm();
                clean(root.path());
                let left: Vec<_> = fs::read_dir(root.path()).unwrap().flatten().collect();
                assert!(left.len() <= 1, "{kind:?} {n}: {left:?}");
                match (written, read(&at).as_deref()) {
                    (Ok(()), Some("new")) => {}
                    (Err(_), Some("old")) => {}
                    // Killed between the two renames.
                    (Err(_), None) if kind == Kind::Kill => {}
                    (written, found) => panic!("{kind:?} {n}: {written:?}, {found:?}"),
                }
                if !happened {
                    assert!(n > 10, "{n}");
                    break;
                }
            }
        }
    }

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
}
