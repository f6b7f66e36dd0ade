//! Shards of WebDataset: tar files that are read in place, with `KEY.jpg` and `KEY.cls` for each image.
//!
//! ```text
//! root/train-000000.tar  ...  root/val-000000.tar    halves by the names of shards, or of folders above them
//! root/000000.tar  ...                               split at random by class
//!
//! a/0001.jpg  a/0001.cls                             in a shard: an image and its class, a number or a name
//! cat/0001.jpg                                       or, where no shard has a `.cls`, a folder for each class
//! ```
//!
//! The key of a member is its path up to the first dot of its last part, as in WebDataset. Members with other endings,
//! `KEY.json` or `KEY.seg.png`, are not read. Shards stay closed but for the moment of a read: there may be more of
//! them than a process may have files open.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sdlora_image::{BitDepth, Rotation, is_image};
use serde::{Deserialize, Serialize};

use super::entry::DatasetEntry;
use super::folder::FolderOptions;
use super::halves::{Part, hold_out};
use super::listed::{Bad, Listed, ListedImages, Usable, some_of};
use crate::dataset::{Dataset, Options};
use crate::error::DataError;
use crate::files::Files;
use crate::split::Split;

/// Shards of WebDataset.
pub(super) const WEBDATASET: DatasetEntry = DatasetEntry {
    name: "webdataset",
    summary: "WebDataset: tar shards with KEY.jpg and KEY.cls, or a folder for each class (option `root`)",
    manifest: include_str!("../../manifests/webdataset.toml"),
    open,
};

/// Most members of all shards that are listed by default: ImageNet-1k has 1.3 million images with two or three members
/// each.
const MAX_MEMBERS: usize = 8_000_000;
/// Longest class in a `.cls`, in bytes.
const MAX_CLASS_BYTES: u64 = 1024;
/// Digits of the largest number of a class.
const N_DIGITS: usize = 20;

/// Options of a data set of shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebDatasetOptions {
    /// Folder of shards or a single one, below the data directory or absolute.
    pub root: Option<PathBuf>,
    /// A text below `root` with a name for each class, that of class 0 first; where classes are numbers.
    pub class_names: Option<String>,
    /// Part of each class that is tested on where no shard is named as a half; above 0 and below 1.
    pub test_fraction: f64,
    /// Seed of that split.
    pub seed: u64,
    /// Which side of an image is up; as stored when left out.
    pub rotation: Option<Rotation>,
    /// How many bits the samples of 16-bit images use.
    pub bit_depth: BitDepth,
    /// Decode every image when opening, and leave out and note what cannot be used.
    pub skip_bad: bool,
    /// Most members of all shards together.
    pub max_files: usize,
}

impl Default for WebDatasetOptions {
    fn default() -> Self {
        let folder = FolderOptions::default();
        Self {
            root: None,
            class_names: None,
            test_fraction: folder.test_fraction,
            seed: folder.seed,
            rotation: folder.rotation,
            bit_depth: folder.bit_depth,
            skip_bad: folder.skip_bad,
            max_files: MAX_MEMBERS,
        }
    }
}

fn open(data_dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, DataError> {
    let name = WEBDATASET.name;
    let options: WebDatasetOptions = options.parse(name)?;
    let folder = FolderOptions {
        test_fraction: options.test_fraction,
        seed: options.seed,
        rotation: options.rotation,
        bit_depth: options.bit_depth,
        skip_bad: options.skip_bad,
        ..FolderOptions::default()
    }
    .check()?;
    let manifest = WEBDATASET.manifest()?;
    let root = options.root.as_ref().unwrap_or(&manifest.folder);
    let path = data_dir.join(root);
    if !path.exists() {
        return Err(DataError::MissingFile {
            dataset: name.to_owned(),
            data_dir: data_dir.to_owned(),
            path,
            origin: manifest.origin(),
        });
    }
    let files = Files::open_shards(&path, options.max_files)?;
    let halves = Halves::of(&files)?;
    let mut notes = Vec::new();
    let pairs = pairs(&files, folder.bad(), &mut notes)?;
    let (classes, is_numbers) = classes(&files, &pairs)?;
    let mut listed = Vec::with_capacity(pairs.len());
    let mut n_held_out = 0;
    for (pair, class) in pairs.iter().zip(classes) {
        match halves.split(pair.shard) {
            Some(split) => listed.push(Listed {
                file_idx: pair.image,
                class,
                split,
            }),
            None => n_held_out += 1,
        }
    }
    let mut usable = Usable::of(&files, listed, folder.bad(), folder.reading(name), |_| true)?;
    if !halves.are_named() {
        hold_out(
            &mut usable.images,
            &files,
            options.test_fraction,
            options.seed,
        );
    }
    if n_held_out > 0 {
        notes.push(format!(
            "{n_held_out} images of validation shards are held out: beside test shards they are neither trained nor \
             tested on"
        ));
    }
    usable.notes.extend(notes);
    let names = match &options.class_names {
        Some(file) => Some(class_names(&files, file, is_numbers)?),
        None => None,
    };
    let images = ListedImages::new(name, files, usable)?;
    if !is_numbers {
        return Ok(Box::new(images));
    }
    if let Some(names) = &names
        && let Some(class) = images
            .class_names()
            .iter()
            .find(|class| number(class).is_none_or(|n| n >= names.len()))
    {
        return Err(DataError::setting(
            "class_names",
            format!("a file of {} names", names.len()),
            format!("a name for each class, also for {}", without_zeros(class)),
        ));
    }
    let name_of = |class: &str| match &names {
        Some(names) => names.get(number(class)?).cloned(),
        None => Some(without_zeros(class).to_owned()),
    };
    Ok(Box::new(images.with_class_names(name_of)))
}

/// Which half each shard belongs to.
struct Halves<'a> {
    /// By the name of a shard; empty where none is named as a half.
    parts: HashMap<&'a str, Part>,
    has_test: bool,
}

impl<'a> Halves<'a> {
    /// The halves that the names of the shards say.
    fn of(files: &'a Files) -> Result<Self, DataError> {
        let shards = files.shards();
        let mut parts = HashMap::new();
        let mut unnamed = None;
        for shard in &shards {
            match part_of(shard) {
                Ok(Some(part)) => drop(parts.insert(*shard, part)),
                Ok(None) => unnamed = Some(*shard),
                Err(words) => {
                    return Err(DataError::content(
                        format!("shard `{shard}` of `{}`", files.path().display()),
                        format!("is named as two halves: {words}"),
                        "rename it, or put it in a folder named `train` or `test`",
                    ));
                }
            }
        }
        if let (false, Some(shard)) = (parts.is_empty(), unnamed) {
            return Err(DataError::content(
                format!("shard `{shard}` of `{}`", files.path().display()),
                "belongs to no half, and others do",
                "rename it, or put it in a folder named `train` or `test`",
            ));
        }
        let has = |part| parts.values().any(|found| *found == part);
        let has_others = has(Part::Test) || has(Part::Validation);
        if has_others && !has(Part::Train) {
            return Err(DataError::content(
                format!("`{}`", files.path().display()),
                "has no training shards",
                "name the folder that has all shards, or rename them",
            ));
        }
        let has_test = has(Part::Test);
        if !has_others {
            // Only `train`: it is split as shards without a name are.
            parts.clear();
        }
        Ok(Self { parts, has_test })
    }

    /// Whether the names of the shards say which are tested on.
    fn are_named(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The half of the images of a shard; `None` for those that are held out.
    fn split(&self, shard: &str) -> Option<Split> {
        match self.parts.get(shard) {
            Some(part) => part.split(self.has_test),
            None => Some(Split::Train),
        }
    }
}

/// The part that the folders of a shard name, the innermost first, or else a word of its own name; the words where they
/// name several.
fn part_of(shard: &str) -> Result<Option<Part>, String> {
    let (folders, file) = shard.rsplit_once('/').unwrap_or(("", shard));
    if let Some(part) = folders.rsplit('/').find_map(Part::of) {
        return Ok(Some(part));
    }
    let words = file.split(|c: char| !c.is_ascii_alphabetic());
    let named: BTreeMap<Part, &str> = words
        .filter_map(|word| Some((Part::of(word)?, word)))
        .collect();
    match named.len() {
        0 | 1 => Ok(named.into_keys().next()),
        _ => Err(named.into_values().collect::<Vec<_>>().join(", ")),
    }
}

/// An image and what says its class.
struct Pair<'a> {
    shard: &'a str,
    image: usize,
    class: ClassAt<'a>,
}

/// Where the class of an image stands.
#[derive(Clone, Copy)]
enum ClassAt<'a> {
    /// In the file at this position.
    File(usize),
    /// In the name of its folder.
    Folder(&'a str),
}

/// The images of all shards, each with its class, in the order of their names.
fn pairs<'a>(
    files: &'a Files,
    bad: Bad,
    notes: &mut Vec<String>,
) -> Result<Vec<Pair<'a>>, DataError> {
    // By shard and key: the same key in two shards is two images.
    let mut members: BTreeMap<(&str, &str), [Option<usize>; 2]> = BTreeMap::new();
    let mut has_classes = false;
    for idx in 0..files.len() {
        let Some((shard, name)) = files.shard_of(idx) else {
            continue;
        };
        let (key, ending) = key_of(name);
        let is_class = ending.eq_ignore_ascii_case("cls");
        let is_picture = !ending.contains('.') && is_image(&format!("x.{ending}"));
        if !is_class && !is_picture {
            continue;
        }
        has_classes |= is_class;
        let place = &mut members.entry((shard, key)).or_default()[usize::from(is_class)];
        if place.is_some() {
            return Err(files.error(
                idx,
                format!(
                    "is the second {} of its key",
                    if is_class { "class" } else { "image" }
                ),
                "give each image a key of its own",
            ));
        }
        *place = Some(idx);
    }
    let mut pairs = Vec::with_capacity(members.len());
    let mut without = Vec::new();
    for ((shard, key), [image, class]) in members {
        let Some(image) = image else { continue };
        let folder = || {
            let (folders, _) = key.rsplit_once('/')?;
            folders.rsplit('/').next()
        };
        let class = match has_classes {
            true => class.map(ClassAt::File),
            false => folder().map(ClassAt::Folder),
        };
        match class {
            Some(class) => pairs.push(Pair {
                shard,
                image,
                class,
            }),
            None if bad == Bad::Skip => without.push(format!("`{}`", files.name(image))),
            None => {
                return Err(files.error(
                    image,
                    match has_classes {
                        true => "has no `.cls` of the same key",
                        false => {
                            "has neither a `.cls` of the same key nor a folder that names its class"
                        }
                    },
                    "add it, remove the image, or set the option `skip_bad = true`",
                ));
            }
        }
    }
    if !without.is_empty() {
        notes.push(format!(
            "left out {} images without a class: {}",
            without.len(),
            some_of(&without)
        ));
    }
    Ok(pairs)
}

/// The key of a member and its ending: a path, and what follows the first dot of its last part.
fn key_of(name: &str) -> (&str, &str) {
    let file = name.rfind('/').map_or(0, |at| at + 1);
    match name[file..].find('.') {
        Some(dot) => (&name[..file + dot], &name[file + dot + 1..]),
        None => (name, ""),
    }
}

/// The class of every pair, and whether all are numbers, which then have as many digits that their order is that of
/// their values.
fn classes(files: &Files, pairs: &[Pair<'_>]) -> Result<(Vec<String>, bool), DataError> {
    let read = |pair: &Pair<'_>| {
        let idx = match pair.class {
            ClassAt::Folder(name) => return Ok(name.to_owned()),
            ClassAt::File(idx) => idx,
        };
        let wrong =
            |problem: &str| files.error(idx, problem, "write a number or a name, nothing else");
        if files.size(idx) > MAX_CLASS_BYTES {
            return Err(wrong("is too long for a class"));
        }
        let text = String::from_utf8(files.read(idx)?).map_err(|_| wrong("is not UTF-8"))?;
        let class = text.trim();
        if class.is_empty() || class.contains(char::is_control) {
            return Err(wrong("names no class"));
        }
        Ok(class.to_owned())
    };
    let mut classes: Vec<String> = pairs.par_iter().map(read).collect::<Result<_, _>>()?;
    let is_numbers = !classes.is_empty() && classes.iter().all(|class| number(class).is_some());
    if is_numbers {
        for class in &mut classes {
            let number = without_zeros(class);
            *class = format!("{number:0>N_DIGITS$}");
        }
    }
    Ok((classes, is_numbers))
}

/// The number that a class is.
fn number(class: &str) -> Option<usize> {
    let is_digits = class.len() <= N_DIGITS && class.bytes().all(|c| c.is_ascii_digit());
    is_digits.then(|| class.parse().ok()).flatten()
}

/// A number as it is usually written.
fn without_zeros(class: &str) -> &str {
    match class.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    }
}

/// The lines of the file of names.
fn class_names(files: &Files, file: &str, is_numbers: bool) -> Result<Vec<String>, DataError> {
    if !is_numbers {
        return Err(DataError::setting(
            "class_names",
            file,
            "nothing, as the classes have names in the shards",
        ));
    }
    let idx = files.find(file).ok_or_else(|| {
        DataError::setting("class_names", file, "the name of a text beside the shards")
    })?;
    let text = files.read_text(idx)?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    let mut seen = HashMap::new();
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(files.error(idx, format!("has no name in line {}", i + 1), "write one"));
        }
        if let Some(first) = seen.insert(name, i) {
            return Err(files.error(
                idx,
                format!("has `{name}` in line {} and in line {}", first + 1, i + 1),
                "give each class a name of its own",
            ));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::{gzipped, tarred};
    use sdlora_image::encode_png;
    use std::fs;

    fn png(level: u8) -> Vec<u8> {
        encode_png(2, 2, &[level; 12]).unwrap()
    }

    /// Name of a shard, and names and contents of its members: the level of an image, or a text.
    type Shard<'a> = (&'a str, &'a [(&'a str, &'a str)]);

    /// Writes shards.
    fn shards(dir: &Path, shards: &[Shard<'_>]) {
        for (name, members) in shards {
            let members: Vec<(&str, Vec<u8>)> = members
                .iter()
                .map(|(name, value)| match value.parse() {
                    Ok(level) if !name.ends_with("cls") => (*name, png(level)),
                    _ => (*name, value.as_bytes().to_vec()),
                })
                .collect();
            let members: Vec<(&str, &[u8])> = members
                .iter()
                .map(|(name, bytes)| (*name, &bytes[..]))
                .collect();
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, tarred(&members)).unwrap();
        }
    }

    fn opened(dir: &Path, options: Options) -> Result<Box<dyn Dataset>, DataError> {
        open(dir, &options.with("root", "."))
    }

    fn message(dir: &Path, options: Options) -> String {
        match opened(dir, options) {
            Ok(_) => panic!("opened"),
            Err(error) => error.to_string(),
        }
    }

    /// Class and first pixel of every image of a half.
    fn seen(dataset: &dyn Dataset, split: Split) -> Vec<(String, u8)> {
        let samples = dataset.samples(split).iter().enumerate();
        samples
            .map(|(idx, sample)| {
                let image = dataset.image(split, idx).unwrap();
                (
                    dataset.class_names()[sample.class_id].clone(),
                    image.data()[0],
                )
            })
            .collect()
    }

    fn pairs(pairs: &[(&str, u8)]) -> Vec<(String, u8)> {
        pairs
            .iter()
            .map(|(class, level)| ((*class).to_owned(), *level))
            .collect()
    }

    #[test]
    fn numbers_are_classes_in_the_order_of_their_values_over_all_shards() {
        let dir = tempfile::tempdir().unwrap();
        shards(
            dir.path(),
            &[
                (
                    "x-train-000000.tar",
                    &[
                        ("a/1.png", "11"),
                        ("a/1.cls", "10\n"),
                        ("a/1.json", "{}"),
                        ("a/1.seg.png", "99"),
                        ("a/2.cls", "2"),
                        ("a/2.png", "12"),
                    ],
                ),
                // The same keys in another shard are other images; a leading zero changes no number.
                (
                    "x-train-000001.tar",
                    &[("a/1.PNG", "21"), ("a/1.cls", "02")],
                ),
                (
                    "x-val-0.tar",
                    &[
                        ("1.png", "31"),
                        ("1.cls", "10"),
                        ("2.png", "32"),
                        ("2.cls", "2"),
                    ],
                ),
            ],
        );
        let dataset = opened(dir.path(), Options::none()).unwrap();
        assert_eq!(dataset.class_names(), ["2", "10"]);
        let train = pairs(&[("10", 11), ("2", 12), ("2", 21)]);
        assert_eq!(seen(dataset.as_ref(), Split::Train), train);
        let test = pairs(&[("10", 31), ("2", 32)]);
        assert_eq!(seen(dataset.as_ref(), Split::Test), test);
        assert_eq!(
            dataset.samples(Split::Train)[0].name,
            "x-train-000000.tar/a/1.png"
        );
        assert_eq!(dataset.notes(), [""; 0]);

        // Beside test shards, validation is held out, and the classes have names.
        shards(
            dir.path(),
            &[(
                "test/0.tar",
                &[
                    ("1.png", "41"),
                    ("1.cls", "10"),
                    ("2.png", "42"),
                    ("2.cls", "2"),
                ],
            )],
        );
        let names: Vec<String> = (0..11).map(|i| format!("name {i}")).collect();
        fs::write(dir.path().join("names.txt"), names.join("\n")).unwrap();
        let with_names = Options::none().with("class_names", "names.txt");
        let dataset = opened(dir.path(), with_names.clone()).unwrap();
        let test = pairs(&[("name 10", 41), ("name 2", 42)]);
        assert_eq!(seen(dataset.as_ref(), Split::Test), test);
        assert!(dataset.notes()[0].starts_with("2 images of validation shards"));
        for (text, part) in [
            (names[..10].join("\n"), "also for 10"),
            ("a\nb\na".into(), "`a` in line 1 and in line 3"),
            ("a\n\nb".into(), "no name in line 2"),
        ] {
            fs::write(dir.path().join("names.txt"), text).unwrap();
            let error = message(dir.path(), with_names.clone());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn folders_name_the_classes_where_no_file_does_and_one_shard_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..10)
            .map(|i| format!("set/{}/{i}.png", ["cat", "dog"][i % 2]))
            .collect();
        let members: Vec<(&str, &str)> = names.iter().map(|name| (&name[..], "7")).collect();
        shards(dir.path(), &[("train.tar", &members)]);
        for root in [dir.path().to_owned(), dir.path().join("train.tar")] {
            let options = Options::none().with("root", root.to_str().unwrap());
            let dataset = open(Path::new("/"), &options).unwrap();
            assert_eq!(dataset.class_names(), ["cat", "dog"]);
            // Of five images a class, one is drawn.
            let n = |split| dataset.samples(split).len();
            assert_eq!((n(Split::Train), n(Split::Test)), (8, 2));
            assert_eq!(seen(dataset.as_ref(), Split::Test)[0].1, 7);
        }
    }

    #[test]
    fn more_shards_than_files_may_be_open_are_read() {
        let dir = tempfile::tempdir().unwrap();
        // Names as text, and no class of one shard alone.
        let of_shards: Vec<String> = (0..1500).map(|i| format!("{i:05}.tar")).collect();
        for (i, name) in of_shards.iter().enumerate() {
            let class = ["b", "a"][i % 2];
            shards(dir.path(), &[(name, &[("k.png", "5"), ("k.cls", class)])]);
        }
        let dataset = opened(dir.path(), Options::none()).unwrap();
        assert_eq!(dataset.class_names(), ["a", "b"]);
        let n: usize = [Split::Train, Split::Test]
            .map(|split| dataset.samples(split).len())
            .iter()
            .sum();
        assert_eq!(n, 1500);
        #[cfg(target_os = "linux")]
        assert!(fs::read_dir("/proc/self/fd").unwrap().count() < 500);
        assert!(dataset.image(Split::Train, 1000).is_ok());
        let error = message(dir.path(), Options::none().with("max_files", 2000));
        assert!(error.contains("more than 2000 files"), "{error}");
    }

    #[test]
    fn what_cannot_be_a_data_set_is_named() {
        let image = ("a.png", "1");
        let cases: [(&[Shard<'_>], &str); 9] = [
            (&[("0.tar", &[image])], "`a.png` in `"),
            (
                &[("0.tar", &[image, ("b.png", "1"), ("b.cls", "1")])],
                "no `.cls`",
            ),
            (
                &[("0.tar", &[image, ("a.jpg", "x"), ("a.cls", "1")])],
                "second image",
            ),
            (&[("0.tar", &[image, ("a.cls", "")])], "names no class"),
            (&[("train-test.tar", &[image])], "two halves: train, test"),
            (
                &[("train.tar", &[image]), ("x.tar", &[image])],
                "belongs to no half",
            ),
            (
                &[("val.tar", &[image]), ("test.tar", &[image])],
                "no training shards",
            ),
            (&[("0.tar", &[("a/b.txt", "x")])], "holds no images"),
            (&[], "no shard"),
        ];
        for (of_case, part) in cases {
            let dir = tempfile::tempdir().unwrap();
            shards(dir.path(), of_case);
            let error = message(dir.path(), Options::none());
            assert!(error.contains(part), "{part}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let long = "x".repeat(2000);
        shards(dir.path(), &[("0.tar", &[image, ("a.cls", &long)])]);
        let error = message(dir.path(), Options::none());
        assert!(error.contains("too long for a class"), "{error}");
        // Packed shards would be unpacked into memory one after another.
        let packed = gzipped(&fs::read(dir.path().join("0.tar")).unwrap());
        fs::write(dir.path().join("0.tar"), packed).unwrap();
        let error = message(dir.path(), Options::none());
        assert!(
            error.contains("0.tar") && error.contains("is no tar"),
            "{error}"
        );
        let missing = Options::none().with("root", "nowhere");
        assert!(matches!(
            open(dir.path(), &missing),
            Err(DataError::MissingFile { .. })
        ));
    }

    #[test]
    fn bad_images_and_images_without_a_class_are_left_out_where_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        shards(
            dir.path(),
            &[(
                "0.tar",
                &[
                    ("1.png", "1"),
                    ("1.cls", "0"),
                    ("2.png", "2"),
                    ("2.cls", "0"),
                    ("3.png", "3"),
                    ("4.png", "no image"),
                    ("4.cls", "0"),
                ],
            )],
        );
        let dataset = opened(dir.path(), Options::none().with("skip_bad", true)).unwrap();
        let n = |split| dataset.samples(split).len();
        assert_eq!((n(Split::Train), n(Split::Test)), (1, 1));
        let notes = dataset.notes().join("\n");
        assert!(
            notes.contains("1 images without a class: `0.tar/3.png`"),
            "{notes}"
        );
        assert!(
            notes.contains("1 unreadable images: `0.tar/4.png`"),
            "{notes}"
        );
    }

    #[test]
    fn the_key_ends_at_the_first_dot_of_the_last_part() {
        for (name, expected) in [
            ("a/b.jpg", ("a/b", "jpg")),
            ("a.b/c.left.jpg", ("a.b/c", "left.jpg")),
            ("a.b/c", ("a.b/c", "")),
            ("c.cls", ("c", "cls")),
        ] {
            assert_eq!(key_of(name), expected);
        }
    }
}
