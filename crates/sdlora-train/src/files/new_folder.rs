//! A folder that appears under its name when all of it is there.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::faults::{self, Operation};
use super::ops::{
    UNFINISHED, parent_of, remove, remove_folder, rename, sync_folder, temporary_name,
};
use super::sums;
use crate::error::TrainError;

/// Start of the names of folders under construction beside files of the user.
pub(super) const UNFINISHED_SHARED: &str = ".sdlora-export-";
/// Start of the name of what is being replaced, where two folders cannot be exchanged; its own name follows.
pub(super) const ASIDE: &str = ".sdlora-before-";

/// A folder under construction. It is removed again unless [`finish`](Self::finish) gives it its name.
#[derive(Debug)]
pub struct NewFolder {
    target: PathBuf,
    temporary: Option<PathBuf>,
    sums: sums::Sums,
    /// Locked as long as it grows, so that nobody takes it for a leftover.
    _lock: Option<File>,
}

impl NewFolder {
    /// A folder that will be `target`; the one above it has to be there, and this process has to be the only
    /// one that writes in it.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn named(target: &Path) -> Result<Self, TrainError> {
        Self::inside(parent_of(target), UNFINISHED, target)
    }

    /// A folder that will be `target`, beside files of the user and of other processes. It grows in the nearest
    /// folder above that is there; [`finish`](Self::finish) needs all of them.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn beside(target: &Path) -> Result<Self, TrainError> {
        let mut above = parent_of(target);
        while !above.is_dir() {
            above = parent_of(above);
        }
        let mut new = Self::inside(above, UNFINISHED_SHARED, target)?;
        let lock = File::open(new.path()).ok();
        new._lock = lock.filter(|folder| folder.try_lock().is_ok());
        Ok(new)
    }

    fn inside(above: &Path, prefix: &str, target: &Path) -> Result<Self, TrainError> {
        let temporary = faults::pass(Operation::Create)
            .and_then(|()| temporary_name(prefix, 0o777).tempdir_in(above))
            .map_err(TrainError::io("create", target))?;
        Ok(Self {
            target: target.into(),
            temporary: Some(temporary.keep()),
            sums: sums::Sums::default(),
            _lock: None,
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

    /// Gives the folder its name. One that has it exchanges names with it and is then removed: at every moment
    /// the name stands for one of them, whole.
    ///
    /// Where the system cannot exchange two names, the earlier one is moved aside first. A process that is
    /// killed between the two renames leaves no folder of that name; [`put_back`] and the `clean` functions
    /// give it back.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses; an earlier folder of that name is then intact.
    /// [`TrainError::MovedAside`], which says where it is, when it could not be moved back.
    pub fn finish(mut self) -> Result<(), TrainError> {
        let Some(temporary) = self.temporary.clone() else {
            return Ok(());
        };
        sync_folder(&temporary);
        let earlier = replace(&temporary, &self.target)?;
        self.temporary = None;
        if let Some(earlier) = earlier {
            // It only takes space, until the next start.
            let _ = remove(&earlier);
        }
        sync_folder(parent_of(&self.target));
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

/// Gives `new` the name `target`, and says where that is which had it before.
fn replace(new: &Path, target: &Path) -> Result<Option<PathBuf>, TrainError> {
    let refused = |e| TrainError::io("rename", target)(e);
    if target.symlink_metadata().is_err() {
        rename(new, target).map_err(refused)?;
        return Ok(None);
    }
    match exchange(new, target) {
        Ok(()) => return Ok(Some(new.into())),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
        Err(e) => return Err(refused(e)),
    }
    // One that an earlier start could not remove would be in the way.
    put_back(target)?;
    let aside = aside_of(target);
    // Held, so that nobody puts it back meanwhile.
    let folder = File::open(target).ok();
    let _lock = folder.filter(|folder| folder.try_lock().is_ok());
    rename(target, &aside).map_err(refused)?;
    match rename(new, target) {
        Ok(()) => Ok(Some(aside)),
        Err(source) => Err(match rename(&aside, target) {
            Ok(()) => refused(source),
            Err(_) => TrainError::MovedAside {
                path: target.into(),
                aside,
                source,
            },
        }),
    }
}

/// Gives back its name to what a killed process had moved aside to replace it, and says whether there was such a
/// thing. Once the name is taken again, what lies aside is removed.
///
/// # Errors
///
/// [`TrainError::MovedAside`], which says where it is, when the file system refuses.
pub fn put_back(target: &Path) -> Result<bool, TrainError> {
    let aside = aside_of(target);
    if aside.symlink_metadata().is_err() || is_held(&aside) {
        return Ok(false);
    }
    if target.symlink_metadata().is_ok() {
        let _ = remove(&aside);
        return Ok(false);
    }
    rename(&aside, target).map_err(|source| TrainError::MovedAside {
        path: target.into(),
        aside,
        source,
    })?;
    sync_folder(parent_of(target));
    Ok(true)
}

/// Whether a process is about to replace it. Where folders know no locks, none is known to be held: what lies there
/// without its name is worth more than the instant in which that is meant.
fn is_held(folder: &Path) -> bool {
    let folder = File::open(folder);
    folder.is_ok_and(|folder| matches!(folder.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Where a folder lies while its name passes to another.
fn aside_of(target: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(ASIDE);
    name.push(target.file_name().unwrap_or_default());
    target.with_file_name(name)
}

/// Exchanges two names at once; [`io::ErrorKind::Unsupported`] where the system or the file system cannot.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    if !faults::can_exchange() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    faults::pass(Operation::Rename)?;
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(|e| match e {
        Errno::INVAL | Errno::NOSYS | Errno::NOTSUP => io::ErrorKind::Unsupported.into(),
        other => other.into(),
    })
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::super::{clean, clean_shared};
    use super::*;
    use faults::Kind;

    fn fill(mut folder: NewFolder, text: &str) -> Result<(), TrainError> {
        folder.write("a", text.as_bytes())?;
        folder.write("b", text.as_bytes())?;
        folder.seal()?;
        folder.finish()
    }

    fn named(at: &Path, text: &str) -> Result<(), TrainError> {
        fill(NewFolder::named(at)?, text)
    }

    fn beside(at: &Path, text: &str) -> Result<(), TrainError> {
        fill(NewFolder::beside(at)?, text)
    }

    fn read(at: &Path) -> Option<String> {
        let a = fs::read_to_string(at.join("a")).ok()?;
        assert_eq!(fs::read_to_string(at.join("b")).unwrap(), a);
        sums::Sums::read(at).unwrap().unwrap();
        Some(a)
    }

    type Write = fn(&Path, &str) -> Result<(), TrainError>;
    type Clean = fn(&Path) -> Vec<PathBuf>;
    const WAYS: [(Write, Clean); 2] = [(named, clean), (beside, clean_shared)];

    /// Lets every operation fail in turn, in each of the ways; what is there then goes to `check`: whether names are
    /// exchanged, how it failed, what came of it, what lies at the place, and what was put back.
    fn each_fault(
        mut check: impl FnMut(bool, Kind, Result<(), TrainError>, Option<String>, usize),
    ) {
        for (write, clean) in WAYS {
            for exchanges in [true, false] {
                faults::set_exchange(exchanges);
                for kind in [Kind::Error, Kind::Kill] {
                    for n in 1.. {
                        let root = tempfile::tempdir().unwrap();
                        let at = root.path().join("x");
                        write(&at, "old").unwrap();
                        faults::arm(n, kind);
                        let written = write(&at, "new");
                        let happened = faults::disarm();
                        let before = read(&at);
                        let back = clean(root.path());
                        assert!(back.iter().all(|path| *path == at), "{back:?}");
                        assert_eq!(back.is_empty(), before.is_some());
                        let left: Vec<_> = fs::read_dir(root.path()).unwrap().flatten().collect();
                        assert_eq!(left.len(), 1, "{exchanges} {kind:?} {n}: {left:?}");
                        check(exchanges, kind, written, read(&at), back.len());
                        if !happened {
                            assert!(n > 10, "{n}");
                            break;
                        }
                    }
                }
            }
            faults::set_exchange(true);
        }
    }

    #[test]
    fn whatever_fails_a_folder_is_the_old_or_the_new_one_and_the_rest_is_cleaned() {
        let mut n_back = 0;
        each_fault(|exchanges, kind, written, found, back| {
            let what = format!("{exchanges} {kind:?}: {written:?}, {found:?}");
            let expected = if written.is_ok() { "new" } else { "old" };
            assert_eq!(found.as_deref(), Some(expected), "{what}");
            // Only a kill between two renames, which an exchange does not need.
            let may_be_back = kind == Kind::Kill && (!exchanges || cfg!(not(target_os = "linux")));
            assert!(back == 0 || may_be_back, "{what}");
            n_back += back;
        });
        assert!(n_back >= 2, "{n_back}");
    }

    #[test]
    fn what_cannot_be_moved_back_is_named() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("x");
        named(&at, "old").unwrap();
        faults::set_exchange(false);
        let mut said = 0;
        for n in 1..20 {
            faults::arm(n, Kind::Kill);
            let error = named(&at, "new").err();
            faults::disarm();
            if let Some(TrainError::MovedAside { aside, .. }) = &error {
                let text = error.as_ref().unwrap().to_string();
                assert!(text.contains(".sdlora-before-x"), "{text}");
                assert_eq!(read(aside).as_deref(), Some("old"));
                said += 1;
                assert!(put_back(&at).unwrap());
            }
            clean(root.path());
            if read(&at).as_deref() == Some("new") {
                break;
            }
        }
        faults::set_exchange(true);
        assert_eq!(said, 1);
    }

    #[test]
    fn what_lies_aside_goes_when_the_name_is_taken_and_stays_while_it_is_held() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("x");
        let aside = aside_of(&at);
        named(&aside, "old").unwrap();
        let lock = File::open(&aside).unwrap();
        lock.lock().unwrap();
        assert!(clean_shared(root.path()).is_empty() && aside.exists() && !at.exists());
        drop(lock);
        named(&at, "new").unwrap();
        assert!(clean_shared(root.path()).is_empty() && !aside.exists());
        assert_eq!(read(&at).as_deref(), Some("new"));
    }

    #[test]
    fn folders_above_that_are_missing_are_left_to_the_caller() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("a/b/x");
        let new = NewFolder::beside(&at).unwrap();
        assert_eq!(new.path().parent(), Some(root.path()));
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fill(new, "new").unwrap();
        assert_eq!(read(&at).as_deref(), Some("new"));
    }
}
