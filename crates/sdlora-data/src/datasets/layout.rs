//! How the folders of a data set are nested: which of them are halves, which are classes.
//!
//! A folder that is called as a half is may be a class: there are data sets of vehicles. The rule is in `docs/data.md`;
//! where it decides nothing, the folders are refused by name and the option `layout` decides.

use std::collections::{BTreeMap, BTreeSet};

use sdlora_image::{is_image, other_ending};
use serde::{Deserialize, Serialize};

use super::halves::Part;
use crate::error::DataError;
use crate::files::{Files, place_of};

/// What the folders below the root are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FolderLayout {
    /// Halves when they are called so and hold folders of classes, else classes.
    #[default]
    Auto,
    /// Halves: those called `train`, `val`, `test` or similar; others are left out.
    Halves,
    /// Classes, whatever they are called.
    Classes,
}

/// How the folders are nested.
#[derive(Debug)]
pub(super) struct Layout {
    /// What stands before every name, with a `/` at the end, or nothing.
    root: String,
    /// The part that each folder below the root is; empty where they are classes.
    parts: BTreeMap<String, Part>,
    /// Folders of a class down to its images: its own, and with domains that of the domain.
    depth: usize,
}

/// Where a file lies.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// In the folder of a class of a part; the class is `<domain>/<class>` where folders of domains stand above.
    Class(Option<Part>, &'a str),
    /// Below the root, and in no folder of a class.
    Stray,
    /// Outside the root.
    Outside,
}

/// What lies in one folder below the root.
#[derive(Debug, Default)]
struct Top<'a> {
    /// Images that lie in no folder of a class in it.
    n_direct: usize,
    /// Those that do, or would if it were a half.
    n_deep: usize,
    /// Its folders.
    inner: BTreeSet<&'a str>,
}

impl Layout {
    /// The layout of `files`, as the option says or the names of folders tell; with `has_domains` there are folders of
    /// domains above those of the classes.
    ///
    /// # Errors
    ///
    /// [`DataError::Content`] for folders that look like halves and may be classes.
    pub(super) fn of(
        files: &Files,
        option: FolderLayout,
        has_domains: bool,
    ) -> Result<Self, DataError> {
        let depth = if has_domains { 2 } else { 1 };
        // What is not read counts as well: a class does not become a half for its images being of another format.
        let pictures: Vec<&str> = files
            .names()
            .filter(|name| is_image(name) || other_ending(name).is_some())
            .collect();
        let root = root(&pictures, depth);
        let tops = tops(&pictures, root, depth);
        let parts = match option {
            FolderLayout::Classes => BTreeMap::new(),
            FolderLayout::Halves => {
                let parts = parts(&tops, |top| top.n_deep > 0);
                if !has_halves(&parts) {
                    return Err(refusal(
                        files,
                        root,
                        "has no folder of a training half and one of a test half, each with folders of classes"
                            .to_owned(),
                        "call them `train` and `test`, or leave out `layout`",
                    ));
                }
                parts
            }
            FolderLayout::Auto => told_by_names(files, root, &tops)?,
        };
        Ok(Self {
            root: root.to_owned(),
            parts,
            depth,
        })
    }

    /// Whether the folders below the root are halves.
    pub(super) fn has_halves(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Whether one of them is for testing; without one, that for validation is.
    pub(super) fn has_test(&self) -> bool {
        self.parts.values().any(|part| *part == Part::Test)
    }

    /// Where the file called `name` lies.
    pub(super) fn place<'a>(&self, name: &'a str) -> Place<'a> {
        let Some(below) = name.strip_prefix(self.root.as_str()) else {
            return Place::Outside;
        };
        let (part, inner) = if self.has_halves() {
            let Some((top, inner)) = below.split_once('/') else {
                return Place::Stray;
            };
            match self.parts.get(top) {
                Some(part) => (Some(*part), inner),
                None => return Place::Stray,
            }
        } else {
            (None, below)
        };
        match inner.match_indices('/').nth(self.depth - 1) {
            Some((end, _)) => Place::Class(part, &inner[..end]),
            None => Place::Stray,
        }
    }

    /// The name of a file without the root.
    pub(super) fn below<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(self.root.as_str()).unwrap_or(name)
    }

    /// Name of the folder of a half in which a file lies.
    pub(super) fn half_folder<'a>(&self, name: &'a str) -> &'a str {
        self.below(name).split('/').next().unwrap_or_default()
    }
}

/// The folder whose folders are halves, classes or domains, with a `/` at its end: the deepest one in which all images
/// lie, as long as folders of classes are left below it.
fn root<'a>(pictures: &[&'a str], depth: usize) -> &'a str {
    let mut root = "";
    loop {
        let below = |name: &&'a str| name.strip_prefix(root).map(|below| (*name, below));
        // Of images that lie in no folder here, nobody needs a folder.
        let mut in_folders = pictures
            .iter()
            .filter_map(below)
            .filter(|(_, below)| below.contains('/'));
        let Some((first, inner)) = in_folders.next() else {
            return root;
        };
        let top = inner.split('/').next().unwrap_or_default();
        let is_deep = |below: &str| {
            below
                .strip_prefix(top)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|rest| rest.matches('/').count() >= depth)
        };
        if !is_deep(inner) || !in_folders.all(|(_, below)| is_deep(below)) {
            return root;
        }
        root = &first[..root.len() + top.len() + 1];
    }
}

fn tops<'a>(pictures: &[&'a str], root: &str, depth: usize) -> BTreeMap<&'a str, Top<'a>> {
    let mut tops: BTreeMap<&str, Top<'_>> = BTreeMap::new();
    for name in pictures {
        let Some((top, inner)) = name
            .strip_prefix(root)
            .and_then(|below| below.split_once('/'))
        else {
            continue;
        };
        let top = tops.entry(top).or_default();
        if inner.matches('/').count() >= depth {
            top.n_deep += 1;
        } else {
            top.n_direct += 1;
        }
        if let Some((folder, _)) = inner.split_once('/') {
            top.inner.insert(folder);
        }
    }
    tops
}

/// The parts that folders are called, of those that `counts` accepts.
fn parts(
    tops: &BTreeMap<&str, Top<'_>>,
    counts: impl Fn(&Top<'_>) -> bool,
) -> BTreeMap<String, Part> {
    tops.iter()
        .filter(|(_, top)| counts(top))
        .filter_map(|(name, _)| Some(((*name).to_owned(), Part::of(name)?)))
        .collect()
}

fn has_halves(parts: &BTreeMap<String, Part>) -> bool {
    let has = |part| parts.values().any(|found| *found == part);
    has(Part::Train) && (has(Part::Test) || has(Part::Validation))
}

/// The parts that folders are, by their names and by what is in them; none where they are classes.
fn told_by_names(
    files: &Files,
    root: &str,
    tops: &BTreeMap<&str, Top<'_>>,
) -> Result<BTreeMap<String, Part>, DataError> {
    let named = parts(tops, |_| true);
    if named.is_empty() {
        return no_halves_inside(files, root, tops);
    }
    let with_classes = parts(tops, |top| top.n_deep > 0);
    let has_others = named.len() < tops.len();
    let quoted = |names: Vec<&str>| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        names.join(", ")
    };
    let looks = quoted(named.keys().map(String::as_str).collect());
    if has_halves(&with_classes) {
        let classes = |wanted: fn(Part) -> bool| -> BTreeSet<&str> {
            let of = with_classes.iter().filter(|(_, part)| wanted(**part));
            of.filter_map(|(name, _)| tops.get(name.as_str()))
                .flat_map(|top| top.inner.iter().copied())
                .collect()
        };
        let (learned, tested) = (
            classes(|part| part == Part::Train),
            classes(|part| part != Part::Train),
        );
        if !has_others || !learned.is_disjoint(&tested) {
            return Ok(with_classes);
        }
        return Err(refusal(
            files,
            root,
            format!(
                "has folders that look like halves ({looks}) and share no class, beside folders that do not"
            ),
            "set the option `layout` to \"halves\" or \"classes\"",
        ));
    }
    if with_classes.is_empty() && has_others {
        // Images lie in them as in the folders beside them.
        return Ok(BTreeMap::new());
    }
    let without = tops
        .iter()
        .filter(|(name, top)| named.contains_key(**name) && top.n_deep == 0)
        .map(|(name, _)| *name)
        .collect::<Vec<_>>();
    let problem = if without.is_empty() {
        format!("has folders that look like one half ({looks}), and none that looks like the other")
    } else {
        format!(
            "has folders that look like halves ({looks}), and no folders of classes in {}",
            quoted(without)
        )
    };
    Err(refusal(
        files,
        root,
        problem,
        "put the images of both halves in folders named after their classes, name the folder of the classes with the \
         option `root`, or set `layout = \"classes\"` if these are classes",
    ))
}

/// Classes, unless a folder holds both halves: then `root` is one folder too high, or halves lie below the classes.
fn no_halves_inside(
    files: &Files,
    root: &str,
    tops: &BTreeMap<&str, Top<'_>>,
) -> Result<BTreeMap<String, Part>, DataError> {
    for (name, top) in tops {
        let has = |wanted: fn(Part) -> bool| {
            let mut parts = top.inner.iter().filter_map(|inner| Part::of(inner));
            parts.any(wanted)
        };
        if has(|part| part == Part::Train) && has(|part| part != Part::Train) {
            return Err(refusal(
                files,
                root,
                format!("has a folder `{name}` that holds folders that look like halves"),
                "name it with the option `root`, put the halves above the classes, or set `layout = \"classes\"`",
            ));
        }
    }
    Ok(BTreeMap::new())
}

fn refusal(files: &Files, root: &str, problem: String, action: &str) -> DataError {
    let path = files.path().join(root.trim_end_matches('/'));
    DataError::content(place_of(&path), problem, action)
}
