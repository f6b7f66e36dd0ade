//! Where an export goes: refused before anything is written, and then put there whole.
//!
//! A folder grows under a temporary name beside its place and is renamed at the end, so a killed
//! export leaves nothing under the final name, and a replaced folder keeps no file of the old format:
//! programs take what lies in a folder for one model.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::FinishedRun;
use crate::error::TrainError;
use crate::run_folder::PLAN_FILE;

/// Folders under construction start with this.
const TEMPORARY: &str = ".sdlora-export-";
/// In such a folder, the export.
const NEW: &str = "new";
/// In such a folder, what the export is about to replace.
const OLD: &str = "old";

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
}

/// A place that may be written to.
#[derive(Debug)]
pub(super) struct Place {
    /// Where the export goes; links are followed, so that a link stays one.
    out: PathBuf,
    is_there: bool,
}

impl Place {
    /// Checks the place, writing nothing.
    ///
    /// # Errors
    ///
    /// [`TrainError::OutputExists`] for a place that is taken, unless `force`, and
    /// [`TrainError::Export`] for one that no export may replace: what the run is read from, and
    /// what is no export.
    pub(super) fn check(
        out: &Path,
        kind: Kind,
        run: &FinishedRun,
        force: bool,
    ) -> Result<Self, TrainError> {
        let refuse = |problem: &str| Err(TrainError::export(out, problem));
        let found = fs::canonicalize(out).ok();
        // A link that leads nowhere is there as well.
        let is_there = fs::symlink_metadata(out).is_ok();
        let is_empty_folder =
            out.is_dir() && fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
        if is_there && !force && !(is_empty_folder && kind == Kind::Folder) {
            return Err(TrainError::OutputExists { path: out.into() });
        }
        let place = found.clone().unwrap_or_else(|| absolute(out));
        for source in run.sources() {
            let Ok(source) = fs::canonicalize(source) else {
                continue;
            };
            if place.starts_with(&source) || source.starts_with(&place) {
                return refuse("the run is read from there; choose another place");
            }
        }
        match (kind, found.as_deref()) {
            (Kind::File, Some(there)) if there.is_dir() => {
                return refuse("it is a folder, and a file is asked for; choose another place");
            }
            (Kind::Folder, Some(there)) if !there.is_dir() => {
                return refuse("it is a file, and this format is a folder; choose another place");
            }
            (Kind::Folder, Some(there)) => {
                if let Some(name) = foreign(there).map_err(TrainError::io("read", there))? {
                    return refuse(&format!(
                        "it holds `{name}`, which no export writes and replacing the folder would \
                         remove; choose another place"
                    ));
                }
            }
            _ => {}
        }
        Ok(Self {
            out: found.unwrap_or_else(|| out.into()),
            is_there,
        })
    }

    /// Lets `write` fill a folder and puts it in its place.
    ///
    /// # Errors
    ///
    /// Those of `write`, under the name of the place, and of the file system. What was there before
    /// is then still there.
    pub(super) fn folder(
        &self,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let out = &self.out;
        let beside = existing_parent(out);
        remove_leftovers(&beside);
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&beside)
            .map_err(TrainError::io("create", &beside))?;
        // Until this process ends nobody takes it for a leftover.
        let lock = File::open(temporary.path());
        let _lock = lock.and_then(|folder| {
            folder.try_lock().map_err(std::io::Error::from)?;
            Ok(folder)
        });
        let (new, old) = (temporary.path().join(NEW), temporary.path().join(OLD));
        fs::create_dir(&new).map_err(TrainError::io("create", &new))?;
        write(&new).map_err(|error| renamed(error, &new, out))?;
        if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(TrainError::io("create", parent))?;
        }
        if self.is_there {
            fs::rename(out, &old).map_err(TrainError::io("rename", out))?;
        }
        if let Err(error) = fs::rename(&new, out) {
            // Back to where it was: nothing is lost with an export that fails here.
            if self.is_there && fs::rename(&old, out).is_err() {
                let kept = temporary.keep();
                let problem = format!("{error}; what it replaces lies in {}", kept.display());
                return Err(TrainError::export(out, problem));
            }
            return Err(TrainError::io("rename", out)(error));
        }
        Ok(())
    }

    /// Lets `write` write a file; it does so under a temporary name by itself.
    ///
    /// # Errors
    ///
    /// Those of `write` and of the file system.
    pub(super) fn file(
        &self,
        write: impl FnOnce(&Path) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        if let Some(parent) = self.out.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent).map_err(TrainError::io("create", parent))?;
        }
        write(&self.out)
    }
}

impl FinishedRun {
    /// What an export is made of.
    fn sources(&self) -> [PathBuf; 4] {
        [
            self.folder.join("model"),
            self.folder.join("checkpoints"),
            self.folder.join(PLAN_FILE),
            self.config.backbone.path(&self.data_dir),
        ]
    }
}

/// The first entry of a folder that no export writes: those are tensors, descriptions in JSON, and
/// the base model of an adapter.
fn foreign(folder: &Path) -> std::io::Result<Option<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let extension = Path::new(&name).extension().and_then(|e| e.to_str());
        let is_ours = match entry.file_type()?.is_dir() {
            true => name == "base" && foreign(&entry.path())?.is_none(),
            // The file of that name belongs to the model folder of a run.
            false => matches!(extension, Some("json" | "safetensors")) && name != "vit.safetensors",
        };
        if !is_ours {
            found.push(name.to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

/// The nearest folder above a path that exists, on the file system the path will be on.
fn existing_parent(path: &Path) -> PathBuf {
    let absolute = absolute(path);
    let found = absolute.ancestors().skip(1).find(|folder| folder.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The path from the root, links in the part that exists followed.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    for folder in path.ancestors().skip(1) {
        if let Ok(found) = fs::canonicalize(folder) {
            return match path.strip_prefix(folder) {
                Ok(rest) => found.join(rest),
                Err(_) => path,
            };
        }
    }
    path
}

/// Removes what killed exports left half written. One that has moved away what it was to replace is
/// kept, because that may be the only copy.
fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_ours = entry.file_name().to_string_lossy().starts_with(TEMPORARY);
        if is_ours && !path.join(OLD).exists() && is_abandoned(&path) {
            // What cannot be removed only takes space.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Whether no process holds the lock of a folder; without locks on folders none is known to be.
fn is_abandoned(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|folder| folder.try_lock().is_ok())
}

/// The error with the place instead of the temporary folder.
fn renamed(error: TrainError, temporary: &Path, out: &Path) -> TrainError {
    let place = |path: PathBuf| match path.strip_prefix(temporary) {
        Ok(rest) if rest.as_os_str().is_empty() => out.to_owned(),
        Ok(rest) => out.join(rest),
        Err(_) => path,
    };
    match error {
        TrainError::Export { path, problem } => TrainError::Export {
            path: place(path),
            problem,
        },
        TrainError::Io {
            action,
            path,
            source,
        } => TrainError::Io {
            action,
            path: place(path),
            source,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(out: &Path) -> Place {
        Place {
            out: out.into(),
            is_there: out.exists(),
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_replaced_as_a_whole() {
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("a/b/out");
        let fill = |name: &'static str| {
            move |folder: &Path| {
                fs::write(folder.join(name), name).map_err(TrainError::io("write", folder))
            }
        };
        place(&out).folder(fill("adapter_config.json")).unwrap();
        place(&out).folder(fill("config.json")).unwrap();
        assert_eq!(names(&out), ["config.json"]);
        assert_eq!(names(home.path()), ["a"]);
        assert_eq!(names(&home.path().join("a/b")), ["out"]);
    }

    #[test]
    fn a_refused_export_leaves_nothing_and_what_was_there() {
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("out");
        let refuse = |folder: &Path| {
            fs::write(folder.join("model.safetensors"), "half").unwrap();
            Err(TrainError::export(folder, "no place for it"))
        };
        let error = place(&out).folder(refuse).unwrap_err();
        // Its message names the place, not the temporary folder.
        let expected = format!("{} cannot be exported", out.display());
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(names(home.path()).is_empty());

        fs::create_dir(&out).unwrap();
        fs::write(out.join("config.json"), "old").unwrap();
        place(&out).folder(refuse).unwrap_err();
        assert_eq!(fs::read(out.join("config.json")).unwrap(), b"old");
        assert_eq!(names(home.path()), ["out"]);
    }

    #[test]
    fn leftovers_of_killed_exports_are_removed_and_those_at_work_are_not() {
        let home = tempfile::tempdir().unwrap();
        let leftover = |name: &str, inside: &str| {
            let folder = home.path().join(format!("{TEMPORARY}{name}"));
            fs::create_dir_all(folder.join(inside)).unwrap();
            folder
        };
        let (dead, busy, only_copy) = (
            leftover("dead", NEW),
            leftover("busy", NEW),
            leftover("copy", OLD),
        );
        let lock = File::open(&busy).unwrap();
        lock.lock().unwrap();
        place(&home.path().join("out")).folder(|_| Ok(())).unwrap();
        assert!(!dead.exists() && busy.exists() && only_copy.exists());
    }

    #[test]
    fn what_no_export_writes_is_named() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("base")).unwrap();
        for name in ["config.json", "model.safetensors", "base/config.json"] {
            fs::write(home.path().join(name), "").unwrap();
        }
        assert_eq!(foreign(home.path()).unwrap(), None);
        for name in ["thesis.docx", "base/notes", "vit.safetensors"] {
            let path = home.path().join(name);
            fs::write(&path, "").unwrap();
            let expected = if name.starts_with("base") {
                "base"
            } else {
                name
            };
            assert_eq!(foreign(home.path()).unwrap().as_deref(), Some(expected));
            fs::remove_file(path).unwrap();
        }
    }
}
