//! DomainNet: 345 classes in six domains (Peng et al. 2019), `<domain>/<class>/*`.
//!
//! The halves are those of the authors' lists `<domain>_train.txt` and `<domain>_test.txt` (a path and a
//! number a line) where they lie beside the images, else each class of each domain is split at random. The
//! six archives are read as they are. A class is that of all domains, so that a stream can have a task for
//! each domain; or, with `by_domain`, that of one: then there are 2,070, and the domains are groups.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use sdlora_image::is_image;
use serde::{Deserialize, Serialize};

use super::entry::DatasetEntry;
use super::folder::{FolderOptions, find, once};
use super::halves::hold_out;
use super::listed::{Listed, ListedImages, Usable};
use super::listing::without_domains;
use crate::dataset::{Dataset, Options};
use crate::error::DataError;
use crate::files::{Files, MAX_FILES};
use crate::split::Split;

/// 345 classes in six domains.
pub(super) const DOMAINNET: DatasetEntry = DatasetEntry {
    name: "domainnet",
    summary: "DomainNet: 586,575 images of 345 classes in six domains (option `by_domain`)",
    manifest: include_str!("../../manifests/domainnet.toml"),
    open,
};

const DOMAINS: [&str; 6] = [
    "clipart",
    "infograph",
    "painting",
    "quickdraw",
    "real",
    "sketch",
];

/// Options of DomainNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DomainNetOptions {
    /// Folder or archive, below the data directory or absolute.
    pub root: Option<PathBuf>,
    /// The domains that are read; all when empty.
    pub domains: Vec<String>,
    /// A class for each class of each domain, and the domains as groups.
    pub by_domain: bool,
    /// Part of each class that is tested on where there are no lists; above 0 and below 1.
    pub test_fraction: f64,
    /// Seed of that split.
    pub seed: u64,
    /// Decode every image when opening, and leave out and note what cannot be used.
    pub skip_bad: bool,
    /// Most files that are listed.
    pub max_files: usize,
}

impl Default for DomainNetOptions {
    fn default() -> Self {
        Self {
            root: None,
            domains: Vec::new(),
            by_domain: false,
            test_fraction: 0.2,
            seed: 1993,
            skip_bad: false,
            max_files: MAX_FILES,
        }
    }
}

fn open(data_dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, DataError> {
    let name = DOMAINNET.name;
    let options: DomainNetOptions = options.parse(name)?;
    if let Some(unknown) = options
        .domains
        .iter()
        .find(|domain| !DOMAINS.contains(&domain.as_str()))
    {
        return Err(DataError::setting("domains", unknown, DOMAINS.join(", ")));
    }
    once("domains", &options.domains)?;
    let folder = FolderOptions {
        root: options.root.clone(),
        test_fraction: options.test_fraction,
        seed: options.seed,
        skip_bad: options.skip_bad,
        max_files: options.max_files,
        ..FolderOptions::default()
    }
    .check()?;
    let manifest = DOMAINNET.manifest()?;
    let files = find(&DOMAINNET, &manifest, &["DomainNet"], data_dir, &folder)?;
    let halves = halves(&files)?;
    let listed = list(&files, &halves, &options);
    let mut usable = Usable::of(&files, listed, folder.bad(), folder.reading(name), |_| true)?;
    let is_given = |image: &Listed| {
        let parts = parts(files.name(image.file_idx));
        parts.is_some_and(|(_, _, path)| halves.contains_key(path))
    };
    let (given, mut drawn): (Vec<_>, Vec<_>) = usable.images.into_iter().partition(is_given);
    // Drawn inside each domain, so that every domain is in both halves.
    hold_out(&mut drawn, &files, options.test_fraction, options.seed);
    usable.images = given.into_iter().chain(drawn).collect();
    if !options.by_domain {
        without_domains(&mut usable.images);
    }
    let domain_of = |name: &str| parts(name).map_or("", |(domain, ..)| domain).to_owned();
    let mut images = ListedImages::new(name, files, usable)?.with_domains(domain_of);
    let mut differences = Vec::new();
    if options.by_domain {
        images = images.with_groups(|class| class.split('/').next().unwrap_or(class).to_owned());
    } else if let Some(set) = manifest.set(name) {
        differences = set.differences(&images);
    }
    Ok(Box::new(images.with_notes(differences)))
}

/// The images of the domains that are read, each of the class `<domain>/<class>`; those that no list names are for
/// training as yet.
fn list(files: &Files, halves: &HashMap<String, Split>, options: &DomainNetOptions) -> Vec<Listed> {
    let is_read = |domain: &str| {
        options.domains.is_empty() || options.domains.iter().any(|kept| kept == domain)
    };
    (0..files.len())
        .filter(|&idx| is_image(files.name(idx)))
        .filter_map(|idx| Some((idx, parts(files.name(idx))?)))
        .filter(|(_, (domain, ..))| is_read(domain))
        .map(|(file_idx, (domain, class, path))| Listed {
            file_idx,
            class: format!("{domain}/{class}"),
            split: halves.get(path).copied().unwrap_or(Split::Train),
        })
        .collect()
}

/// Domain, class, and the path from the domain on.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let mut path = name;
    loop {
        let (first, rest) = path.split_once('/')?;
        if DOMAINS.contains(&first) {
            let (class, _) = rest.split_once('/')?;
            return Some((first, class, path));
        }
        path = rest;
    }
}

/// The half of each path that a list names.
fn halves(files: &Files) -> Result<HashMap<String, Split>, DataError> {
    let mut halves = HashMap::new();
    for domain in DOMAINS {
        for split in [Split::Train, Split::Test] {
            let Some(idx) = files.find_named(&format!("{domain}_{split}.txt")) else {
                continue;
            };
            for (at, line) in files.read_text(idx)?.lines().enumerate() {
                let Some((path, _)) = line.trim().rsplit_once(' ') else {
                    return Err(files.error(
                        idx,
                        format!("has a line {} without a path and a number", at + 1),
                        "fetch it again",
                    ));
                };
                halves.insert(path.to_owned(), split);
            }
        }
    }
    Ok(halves)
}
