//! Images into folders of their classes: nothing is overwritten, and no image is lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use sdlora_data::NamedImage;
use sdlora_train::files::{copy_new, create_folders, move_new};

use super::lines::Said;
use crate::UsageError;
use crate::output::note;
use crate::shown::shown_path;

/// How images get to their folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Move,
    Copy,
}

impl Way {
    fn option(self) -> &'static str {
        match self {
            Self::Move => "--move-to",
            Self::Copy => "--copy-to",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Move => "moved",
            Self::Copy => "copied",
        }
    }
}

/// Folder of images that belong to no class.
const REFUSED: &str = "none-of-these";
/// Most names that are tried for an image whose own name is taken.
const MOST_NAMES: usize = 100_000;

/// Images on their way into folders.
#[derive(Debug)]
pub struct Sorting {
    way: Way,
    to: PathBuf,
    /// Folder of every class, below `to`.
    folders: HashMap<String, PathBuf>,
    /// Images and where they go, in their order.
    planned: Vec<(PathBuf, PathBuf)>,
}

impl Sorting {
    /// Checks that the images can be sorted into `to`; nothing is written.
    ///
    /// # Errors
    ///
    /// Usage errors for a target that is a file, or lies in a folder that is sorted, for images in archives, links,
    /// images that are named twice, and classes whose folders would be one.
    pub fn check(
        way: Way,
        to: &Path,
        inputs: &[PathBuf],
        images: &[NamedImage],
        classes: &[String],
    ) -> Result<Self, UsageError> {
        let option = way.option();
        let refuse = |text: String| Err(UsageError(text));
        if to.exists() && !to.is_dir() {
            return refuse(format!(
                "`{option} {}` is a file: give a folder",
                to.display()
            ));
        }
        let target = real(to);
        for input in inputs.iter().filter(|input| input.is_dir()) {
            if target.starts_with(real(input)) {
                return refuse(format!(
                    "`{option} {}` lies in {}, whose images are sorted, and would be sorted with them the next time: \
                     choose a folder outside",
                    to.display(),
                    input.display()
                ));
            }
        }
        let mut seen = HashSet::new();
        for image in images {
            let path = image.path.display();
            if image.member.is_some() {
                return refuse(format!(
                    "`{option}` sorts files, and {path} is an archive: unpack it and name the folder"
                ));
            }
            if way == Way::Move && image.path.is_symlink() {
                return refuse(format!(
                    "{path} is a link, which would lead elsewhere once it is moved: use `--copy-to`, or name the file"
                ));
            }
            if way == Way::Move && image.path.is_file() && !seen.insert(real(&image.path)) {
                return refuse(format!(
                    "{path} is named twice, and can be moved once: name it once"
                ));
            }
        }
        Ok(Self {
            way,
            to: to.into(),
            folders: folders(classes)?,
            planned: Vec::new(),
        })
    }

    /// Remembers where an image goes; one that could not be read stays.
    pub fn note(&mut self, image: &Path, said: &Said<'_>) {
        let Said::Found(found) = said else {
            return;
        };
        let folder = match found.answer() {
            None => Path::new(REFUSED),
            Some((class, _)) => match self.folders.get(class) {
                Some(folder) => folder,
                None => return,
            },
        };
        self.planned.push((image.into(), self.to.join(folder)));
    }

    /// Sorts the images, and says how many went where. One that cannot be sorted stays where it is.
    ///
    /// # Errors
    ///
    /// When some could not be sorted; they are named.
    pub fn run(self, quiet: bool) -> anyhow::Result<()> {
        let mut counts: BTreeMap<&Path, usize> = BTreeMap::new();
        let mut n_failed = 0;
        for (image, folder) in &self.planned {
            match self.sort(image, folder) {
                Ok(()) => *counts.entry(folder).or_insert(0) += 1,
                Err(problem) => {
                    n_failed += 1;
                    note!("{} stays where it is: {problem:#}", shown_path(image));
                }
            }
        }
        if !quiet {
            let done = self.way.done();
            for (folder, n) in &counts {
                note!("{done} {n} to {}", shown_path(folder));
            }
            if counts.is_empty() {
                note!("{done} nothing");
            }
        }
        match n_failed {
            0 => Ok(()),
            n => anyhow::bail!(
                "{n} of {} images could not be {}",
                self.planned.len(),
                self.way.done()
            ),
        }
    }

    /// Brings an image into a folder, under another name where its own is taken.
    fn sort(&self, image: &Path, folder: &Path) -> anyhow::Result<()> {
        create_folders(folder)?;
        for n in 1..=MOST_NAMES {
            let to = folder.join(name(image, n));
            let done = match self.way {
                Way::Move => move_new(image, &to),
                Way::Copy => copy_new(image, &to),
            };
            match done {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => return Ok(other?),
            }
        }
        anyhow::bail!(
            "{MOST_NAMES} names like it are taken in {}",
            folder.display()
        )
    }
}

/// The `n`-th name of an image: its own, then `name-2.png` and so on.
fn name(image: &Path, n: usize) -> std::ffi::OsString {
    let own = image.file_name().unwrap_or_default();
    if n == 1 {
        return own.to_owned();
    }
    let mut name = image.file_stem().unwrap_or(own).to_owned();
    name.push(format!("-{n}"));
    if let Some(ending) = image.extension() {
        name.push(".");
        name.push(ending);
    }
    name
}

/// A path without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for above in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (above.canonicalize(), path.strip_prefix(above)) {
            return match rest.as_os_str().is_empty() {
                true => real,
                false => real.join(rest),
            };
        }
    }
    path
}

/// The folder of every class: its name, with a `/` between folders, and what a folder cannot be called replaced.
///
/// # Errors
///
/// A usage error for two classes whose folders would be one, also where upper and lower case are the same.
fn folders(classes: &[String]) -> Result<HashMap<String, PathBuf>, UsageError> {
    let mut folders = HashMap::new();
    let mut taken: HashMap<String, &str> = HashMap::from([(REFUSED.to_owned(), "none of these")]);
    for class in classes {
        let parts: Vec<String> = class.split('/').map(harmless).collect();
        let folder = parts.join("/");
        if let Some(other) = taken.insert(folder.to_lowercase(), class) {
            return Err(UsageError(format!(
                "the images of {other:?} and {class:?} would go to one folder, {folder:?}: sort them by the answer of \
                 `--format jsonl` instead"
            )));
        }
        folders.insert(class.clone(), folder.into());
    }
    Ok(folders)
}

/// A name that a folder can have on every system and that leads nowhere else.
fn harmless(part: &str) -> String {
    let is_bad = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
    let name: String = part
        .chars()
        .map(|c| if is_bad(c) { '_' } else { c })
        .collect();
    // Neither the folder itself or that above it, nor a hidden one, nor a name that Windows would shorten.
    match name.is_empty() || name.starts_with('.') || name.ends_with(['.', ' ']) {
        true => format!("_{}_", name.trim_matches(['.', ' '])),
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings<const N: usize>(names: [&str; N]) -> Vec<String> {
        names.map(str::to_owned).to_vec()
    }

    #[test]
    fn a_class_has_a_folder_below_the_target_whatever_it_is_called() {
        let classes = strings([
            "cat",
            "Greek/alpha",
            "../up",
            "/root",
            "a:b",
            "",
            "con.",
            ".git",
        ]);
        let found = folders(&classes).unwrap();
        let expected = [
            "cat",
            "Greek/alpha",
            "__/up",
            "__/root",
            "a_b",
            "__",
            "_con_",
            "_git_",
        ];
        for (class, expected) in classes.iter().zip(expected) {
            assert_eq!(found[class], Path::new(expected), "{class:?}");
        }
        for names in [["a:b", "a?b"], ["Cat", "cat"], ["none-of-these", "x"]] {
            let error = folders(&strings(names)).unwrap_err().to_string();
            assert!(error.contains("one folder"), "{error}");
        }
    }

    #[test]
    fn names_that_are_taken_are_counted_up() {
        let names = |image: &str| [1, 2, 3].map(|n| name(Path::new(image), n));
        assert_eq!(names("x/a.b.png"), ["a.b.png", "a.b-2.png", "a.b-3.png"]);
        assert_eq!(names("plain"), ["plain", "plain-2", "plain-3"]);
    }

    #[test]
    fn a_path_that_is_not_there_yet_is_known_by_what_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(real(&dir.path().join("a/b")), root.join("a/b"));
        assert_eq!(real(dir.path()), root);
    }
}
