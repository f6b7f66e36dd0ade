//! What a killed process left: half of what it wrote is removed, and what it had moved gets its name back.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::new_folder::{ASIDE, UNFINISHED_SHARED, put_back};
use super::ops::remove;

/// Starts of the names of what any version had under construction in the folder of a run.
const UNFINISHED_OF_A_RUN: [&str; 2] = [".writing-", ".tmp"];
/// In an unfinished folder of an earlier version, what the export was about to replace, whose name is not known.
const ASIDE_BEFORE: &str = "old";

/// Removes what killed writers left in a folder of a run, and puts back what they had moved aside; what cannot be
/// removed only takes space. Returns what has its name again.
///
/// Nobody else may be writing there.
pub fn clean(folder: &Path) -> Vec<PathBuf> {
    each_entry(folder, |path, name| {
        if UNFINISHED_OF_A_RUN
            .iter()
            .any(|start| name.starts_with(start))
        {
            let _ = remove(path);
        }
    })
}

/// As [`clean`], in a folder that holds files of others and where other processes may write: only what
/// [`NewFolder::beside`](super::NewFolder::beside) makes is touched, and nothing that a process still holds.
pub fn clean_shared(folder: &Path) -> Vec<PathBuf> {
    each_entry(folder, |path, name| {
        // The copy that an earlier version moved away may be the only one.
        let is_ours = name.starts_with(UNFINISHED_SHARED) && !path.join(ASIDE_BEFORE).exists();
        if is_ours && is_abandoned(path) {
            let _ = remove(path);
        }
    })
}

/// Shows every entry to `see` and puts back what was moved aside.
fn each_entry(folder: &Path, see: impl Fn(&Path, &str)) -> Vec<PathBuf> {
    let mut back = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        match name.strip_prefix(ASIDE) {
            None => see(&path, &name),
            Some(own) => {
                let target = folder.join(own);
                if put_back(&target).is_ok_and(|is_back| is_back) {
                    back.push(target);
                }
            }
        }
    }
    back
}

/// Whether no process holds the lock of a folder; without locks on folders none is known to be abandoned.
fn is_abandoned(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|folder| folder.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_files_of_others_only_what_is_ours_and_abandoned_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            folder
        };
        let (dead, busy) = (make(".sdlora-export-dead"), make(".sdlora-export-busy"));
        // Of an earlier version, which kept a name of no use inside.
        let only_copy = make(".sdlora-export-copy/old");
        let others = [make(".tmp-x"), make(".tmpx"), make("x")];
        let lock = File::open(&busy).unwrap();
        lock.lock().unwrap();
        assert!(clean_shared(root.path()).is_empty());
        assert!(!dead.exists() && busy.exists() && only_copy.exists());
        assert!(others.iter().all(|folder| folder.exists()));
    }
}
