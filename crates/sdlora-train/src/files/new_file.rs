//! A file that grows line by line and appears under its name when all of it is there.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::faults::{self, Operation};
use super::ops::{UNFINISHED, parent_of, remove, rename, sync_folder, temporary_name};
use crate::error::TrainError;

/// A file under construction. It is removed again unless [`finish`](Self::finish) gives it its name.
#[derive(Debug)]
pub struct NewFile {
    target: PathBuf,
    temporary: Option<PathBuf>,
    file: BufWriter<Faulty>,
}

/// A file whose writing a test can let fail.
#[derive(Debug)]
struct Faulty(File);

impl Write for Faulty {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        faults::write(&mut self.0, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl NewFile {
    /// A file that will be `target`; the folder above it has to be there.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn named(target: &Path) -> Result<Self, TrainError> {
        faults::pass(Operation::Create).map_err(TrainError::io("create", target))?;
        let (file, temporary) = temporary_name(UNFINISHED, 0o666)
            .tempfile_in(parent_of(target))
            .and_then(|file| file.keep().map_err(|e| e.error))
            .map_err(TrainError::io("create", target))?;
        Ok(Self {
            target: target.into(),
            temporary: Some(temporary),
            file: BufWriter::new(Faulty(file)),
        })
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses, for these bytes or earlier ones.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        self.file
            .write_all(bytes)
            .map_err(TrainError::io("write", &self.target))
    }

    /// Gives the file its name, replacing one of before.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses; an earlier file of that name is then intact.
    pub fn finish(mut self) -> Result<(), TrainError> {
        let Some(temporary) = self.temporary.clone() else {
            return Ok(());
        };
        self.file
            .flush()
            .and_then(|()| faults::pass(Operation::Sync))
            .and_then(|()| self.file.get_ref().0.sync_all())
            .map_err(TrainError::io("write", &self.target))?;
        rename(&temporary, &self.target).map_err(TrainError::io("rename", &self.target))?;
        self.temporary = None;
        sync_folder(parent_of(&self.target));
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = remove(temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::clean;
    use super::super::faults::Kind;
    use super::*;
    use std::fs;

    #[test]
    fn whatever_fails_a_file_is_the_old_or_the_new_one() {
        for kind in [Kind::Error, Kind::Kill] {
            for n in 1.. {
                let root = tempfile::tempdir().unwrap();
                let at = root.path().join("x");
                fs::write(&at, b"old").unwrap();
                faults::arm(n, kind);
                let written = NewFile::named(&at).and_then(|mut file| {
                    file.write(b"new ")?;
                    file.write(b"and longer")?;
                    file.finish()
                });
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

    #[test]
    fn what_is_not_finished_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let mut file = NewFile::named(&root.path().join("x")).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
