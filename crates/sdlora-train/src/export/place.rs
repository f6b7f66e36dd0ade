//! Where an export goes: refused before anything is written, and then put there whole.
//!
//! A folder grows under a temporary name beside its place and takes its name at the end, so a killed export leaves
//! nothing under the final name, and a replaced folder keeps no file of the old format: programs take what lies in a
//! folder for one model. See [`NewFolder`] for how, and for what a kill leaves.

use std::fs;
use std::path::{Path, PathBuf};

use super::card;
use super::finished_run::FinishedRun;
use crate::error::TrainError;
use crate::files::{NewFolder, clean_shared, create_folders, put_back};
use crate::run_folder::PLAN_FILE;

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
            (Kind::File, Some(there)) if !there.is_file() => {
                return refuse("it is no regular file; choose another place");
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
        let new = NewFolder::beside(&self.out)?;
        write(new.path()).map_err(|error| renamed(error, new.path(), &self.out))?;
        self.make_folders_above()?;
        new.finish()
    }

    fn make_folders_above(&self) -> Result<(), TrainError> {
        match self.out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => create_folders(parent),
            _ => Ok(()),
        }
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
        self.make_folders_above()?;
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

/// The first entry of a folder that no export writes: those are tensors, descriptions in JSON, the page of a model,
/// and the base model of an adapter.
fn foreign(folder: &Path) -> std::io::Result<Option<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let extension = Path::new(&name).extension().and_then(|e| e.to_str());
        let is_ours = match entry.file_type()?.is_dir() {
            true => name == "base" && foreign(&entry.path())?.is_none(),
            // The file of that name belongs to the model folder of a run.
            false => {
                let is_page = name == card::FILE && is_card(&entry.path());
                is_page
                    || matches!(extension, Some("json" | "safetensors"))
                        && name != "vit.safetensors"
            }
        };
        if !is_ours {
            found.push(name.to_string_lossy().into_owned());
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

/// Whether a page is that of an exported model, and not the user's own.
fn is_card(page: &Path) -> bool {
    fs::read_to_string(page).is_ok_and(|text| text.contains(card::MARK))
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

/// Mends what killed exports left around a place: what they had moved aside gets its name back, what they left half
/// written is removed. Returns what is back.
///
/// # Errors
///
/// [`TrainError::MovedAside`], which says where it is, when what lay at the place cannot get its name back.
pub(super) fn recover(out: &Path) -> Result<Vec<PathBuf>, TrainError> {
    // A link stays one, so what was replaced lay where it leads.
    let out = match fs::read_link(out) {
        Ok(to) => out.parent().unwrap_or(Path::new("")).join(to),
        Err(_) => out.into(),
    };
    let out = absolute(&out);
    let mut back: Vec<PathBuf> = put_back(&out)?.then(|| out.clone()).into_iter().collect();
    if let Some(above) = out.ancestors().skip(1).find(|folder| folder.is_dir()) {
        back.extend(clean_shared(above));
    }
    Ok(back)
}

/// Whether two paths lead to one place.
pub(super) fn is_same(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
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
    use crate::files::{faults, write_file};

    fn place(out: &Path) -> Place {
        Place { out: out.into() }
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

    /// Fills a folder as an export does, whose file is the text `of` it.
    fn export(out: &Path, of: &'static str) -> Result<(), TrainError> {
        recover(out)?;
        place(out).folder(|folder| {
            create_folders(&folder.join("base"))?;
            write_file(&folder.join("base/config.json"), of.as_bytes())?;
            write_file(&folder.join("model.safetensors"), of.as_bytes())
        })
    }

    /// The text of a whole export.
    fn text(out: &Path) -> Option<String> {
        let text = fs::read_to_string(out.join("model.safetensors")).ok()?;
        assert_eq!(
            fs::read_to_string(out.join("base/config.json")).unwrap(),
            text
        );
        assert_eq!(names(out), ["base", "model.safetensors"]);
        Some(text)
    }

    #[test]
    fn whichever_operation_fails_or_is_the_last_an_export_is_the_old_or_the_new_one() {
        let mut n_back = 0;
        for exchanges in [true, false] {
            for kind in [faults::Kind::Error, faults::Kind::Kill] {
                for n in 1.. {
                    let home = tempfile::tempdir().unwrap();
                    // The folder of the program's user, with other things in it.
                    fs::write(home.path().join("thesis.docx"), "mine").unwrap();
                    let out = home.path().join("out");
                    export(&out, "old").unwrap();
                    faults::set_exchange(exchanges);
                    faults::arm(n, kind);
                    let made = export(&out, "new");
                    let happened = faults::disarm();
                    let what = format!("{exchanges} {kind:?} {n}: {made:?}");
                    // The next start, to the same place or to one beside it.
                    let next = if n % 2 == 0 { "out" } else { "next" };
                    let back = recover(&home.path().join(next)).unwrap();
                    assert!(back.iter().all(|path| is_same(path, &out)), "{what}");
                    n_back += back.len();
                    assert!(back.is_empty() || kind == faults::Kind::Kill, "{what}");
                    let expected = if made.is_ok() { "new" } else { "old" };
                    assert_eq!(text(&out).as_deref(), Some(expected), "{what}");
                    assert_eq!(names(home.path()), ["out", "thesis.docx"], "{what}");
                    // The next export works as usual.
                    export(&out, "next").unwrap();
                    assert_eq!(text(&out).as_deref(), Some("next"), "{what}");
                    faults::set_exchange(true);
                    if !happened {
                        assert!(n > 12, "{n}");
                        break;
                    }
                }
            }
        }
        assert!(n_back > 0, "no kill fell between two renames");
    }

    #[cfg(unix)]
    #[test]
    fn what_a_link_led_to_is_put_back_too() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join(".sdlora-before-real")).unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        let back = recover(&link).unwrap();
        assert_eq!(back.len(), 1);
        assert!(is_same(&back[0], &link) && link.is_dir());
    }

    #[test]
    fn what_no_export_writes_is_named() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("base")).unwrap();
        for name in ["config.json", "model.safetensors", "base/config.json"] {
            fs::write(home.path().join(name), "").unwrap();
        }
        assert_eq!(foreign(home.path()).unwrap(), None);
        // The page of an export, and one of the user.
        let page = home.path().join(card::FILE);
        fs::write(
            &page,
            format!("Trained and {}https://example.org)", card::MARK),
        )
        .unwrap();
        assert_eq!(foreign(home.path()).unwrap(), None);
        fs::write(&page, "my notes").unwrap();
        assert_eq!(foreign(home.path()).unwrap().as_deref(), Some(card::FILE));
        fs::remove_file(page).unwrap();
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
