//! A file of the user under another name, of which nothing else may be there: nothing is overwritten, and at every
//! moment the file is whole under one name at least.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::faults::{self, Operation};
use super::ops::{parent_of, sync_folder};

/// Moves a file to a name that nothing has.
///
/// The name is a second one of the same file first, where the file system has that; else of a copy, with the same time
/// of the last change. Only then is the first one removed.
///
/// # Errors
///
/// [`io::ErrorKind::AlreadyExists`] when something has the name, and those of the file system; the file is then where
/// it was.
pub fn move_new(from: &Path, to: &Path) -> io::Result<()> {
    faults::pass(Operation::Create)?;
    match fs::hard_link(from, to) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(e),
        // Another file system, or one without second names.
        Err(_) => copy_new(from, to)?,
    }
    sync_folder(parent_of(to));
    let removed = faults::pass(Operation::Remove).and_then(|()| fs::remove_file(from));
    if removed.is_err() {
        // It could not leave, so it is not to be there twice.
        let _ = fs::remove_file(to);
    }
    removed
}

/// Copies a file to a name that nothing has, with its permissions and the time of its last change.
///
/// # Errors
///
/// [`io::ErrorKind::AlreadyExists`] when something has the name, and those of the file system; no part of a copy is
/// then left.
pub fn copy_new(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let metadata = source.metadata()?;
    faults::pass(Operation::Create)?;
    let mut copy = OpenOptions::new().write(true).create_new(true).open(to)?;
    let copied = faults::pass(Operation::Write)
        .and_then(|()| io::copy(&mut source, &mut copy))
        .and_then(|_| copy.set_permissions(metadata.permissions()))
        .and_then(|()| copy.set_modified(metadata.modified()?))
        .and_then(|()| faults::pass(Operation::Sync))
        .and_then(|()| copy.sync_all());
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

#[cfg(test)]
mod tests {
    use super::super::faults::Kind;
    use super::*;

    #[test]
    fn whatever_fails_the_file_is_whole_under_one_name_and_nothing_is_overwritten() {
        type Way = fn(&Path, &Path) -> io::Result<()>;
        for (way, moves) in [(move_new as Way, true), (copy_new as Way, false)] {
            for n in 1.. {
                let root = tempfile::tempdir().unwrap();
                let (from, to) = (root.path().join("from"), root.path().join("to"));
                fs::write(&from, "image").unwrap();
                faults::arm(n, Kind::Error);
                let done = way(&from, &to);
                let happened = faults::disarm();
                let read = |path: &Path| fs::read_to_string(path).ok();
                let image = Some("image".to_owned());
                match done {
                    Ok(()) => assert_eq!(
                        (read(&from), read(&to)),
                        (image.clone().filter(|_| !moves), image)
                    ),
                    Err(_) => assert_eq!((read(&from), read(&to)), (image, None)),
                }
                if !happened {
                    break;
                }
            }
            let root = tempfile::tempdir().unwrap();
            let (from, to) = (root.path().join("from"), root.path().join("to"));
            fs::write(&from, "image").unwrap();
            fs::write(&to, "other").unwrap();
            let error = way(&from, &to).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&from).unwrap(), "image");
            assert_eq!(fs::read_to_string(&to).unwrap(), "other");
        }
    }
}
