//! What tells a data set from what it was before: names, sizes, order and content of what was listed.
//!
//! A run keeps it, so that one that continues notices an image that came or went, a class that has another name, and
//! pixels that changed. Image files are read for it, all of them up to [`READ_WHOLE`] bytes together. Of more than that
//! it is every n-th file of every class, so that about as many bytes are read; an edit of one of the others that keeps
//! its size stays unnoticed.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::{Content, Dataset, SampleIdx};
use crate::hex::hex;
use crate::split::Split;

/// Bytes of image files up to which all of them are read. That takes seconds on a slow disk and covers most folders
/// of users.
const READ_WHOLE: u64 = 1 << 30;

/// The fingerprint of a data set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The classes in the order of their ids.
    pub classes: Vec<ClassPrint>,
    /// Digest of the groups and domains, by which streams are cut.
    pub groups: String,
    /// Digest of the order of all samples, of the training and of the test half.
    pub order: [String; 2],
}

/// A class and what its images are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassPrint {
    /// Its name.
    pub name: String,
    /// Its training images.
    pub train: HalfPrint,
    /// Its test images.
    pub test: HalfPrint,
}

/// The images of a class in one half.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfPrint {
    /// How many there are.
    pub n_images: usize,
    /// Their bytes together, as far as they are known.
    pub n_bytes: u64,
    /// Digest of their names, domains and what is known of their content, in their order.
    pub digest: String,
    /// What is in their files; absent where they are no files, and in fingerprints of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesPrint>,
}

/// The content of image files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesPrint {
    /// How many of them were read, of equally many each the first.
    pub n_read: usize,
    /// Digest of their bytes, in their order.
    pub digest: String,
}

/// How a data set differs from what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The first difference, in words.
    pub text: String,
    /// Whether every label still means what it meant, so that a run could go on.
    pub keeps_labels: bool,
}

impl Fingerprint {
    /// That of an opened data set. Files that cannot be read count as such: what needs them will say so.
    pub fn of(dataset: &dyn Dataset) -> Self {
        let part = dataset.compared_part().unwrap_or(dataset);
        Self::reading(part, READ_WHOLE)
    }

    /// With another limit of bytes that are read as a whole.
    fn reading(dataset: &dyn Dataset, read_whole: u64) -> Self {
        let names = dataset.class_names();
        let mut halves: Vec<[Half; 2]> = names.iter().map(|_| Default::default()).collect();
        let mut order = [Sha256::new(), Sha256::new()];
        for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
            for (idx, sample) in dataset.samples(split).iter().enumerate() {
                let class = sample.class_id as u64;
                order[half].update(class.to_le_bytes());
                // A sample of no class is refused where the stream is cut.
                if let Some(class) = halves.get_mut(sample.class_id) {
                    let domain = dataset.domain_of(split, idx);
                    class[half].add(&sample.name, domain, dataset.content(split, idx));
                }
            }
        }
        for (half, class, digest) in file_digests(dataset, &halves, read_whole) {
            halves[class][half].add_file(digest);
        }
        let mut groups = Sha256::new();
        for group in dataset.groups() {
            text(&mut groups, &group.name);
            for &class in &group.classes {
                groups.update((class as u64).to_le_bytes());
            }
        }
        for domain in dataset.domains() {
            text(&mut groups, domain);
        }
        let classes = names
            .iter()
            .zip(halves)
            .map(|(name, [train, test])| ClassPrint {
                name: name.clone(),
                train: train.finish(),
                test: test.finish(),
            });
        Self {
            classes: classes.collect(),
            groups: hexadecimal(groups),
            order: order.map(hexadecimal),
        }
    }

    /// The first difference to the same data set as it is `now`.
    pub fn change(&self, now: &Self) -> Option<Change> {
        let lost = |text: String| {
            Some(Change {
                text,
                keeps_labels: false,
            })
        };
        let other = |text: String| {
            Some(Change {
                text,
                keeps_labels: true,
            })
        };
        let place = |of: &Self, name: &str| of.classes.iter().position(|c| c.name == name);
        if self.classes.len() != now.classes.len() {
            let (before, n) = (self.classes.len(), now.classes.len());
            let new = now.classes.iter().find(|c| place(self, &c.name).is_none());
            let gone = self.classes.iter().find(|c| place(now, &c.name).is_none());
            let which = match (new, gone) {
                (Some(new), _) if n > before => format!(", `{}` is new", new.name),
                (_, Some(gone)) => format!(", `{}` is gone", gone.name),
                _ => String::new(),
            };
            return lost(format!(
                "there were {before} classes and are {n} now{which}"
            ));
        }
        let pairs = || self.classes.iter().zip(&now.classes).enumerate();
        for (id, (_, class)) in pairs() {
            if let Some(before) = place(self, &class.name).filter(|&before| before != id) {
                return lost(format!(
                    "class `{}` was number {} and is number {} now",
                    class.name,
                    before + 1,
                    id + 1
                ));
            }
        }
        if self.groups != now.groups {
            return lost("the groups or domains of its classes differ".into());
        }
        for (id, (before, class)) in pairs() {
            if before.name != class.name {
                return other(format!(
                    "class number {} was `{}` and is `{}` now",
                    id + 1,
                    before.name,
                    class.name
                ));
            }
        }
        for (_, (before, class)) in pairs() {
            let train = before.train.change(&class.train, "training");
            if let Some(text) = train.or_else(|| before.test.change(&class.test, "test")) {
                return other(format!("class `{}` {text}", class.name));
            }
        }
        if self.order != now.order {
            return other("its images come in another order".into());
        }
        None
    }
}

impl HalfPrint {
    /// What follows the name of a class, whose `half` this is.
    fn change(&self, now: &Self, half: &str) -> Option<String> {
        if self.n_images != now.n_images {
            let (before, now) = (self.n_images, now.n_images);
            return Some(format!("had {before} {half} images and has {now} now"));
        }
        if (&self.digest, self.n_bytes) != (&now.digest, now.n_bytes) {
            return Some(format!(
                "has other {half} images: of another name or size, or with other pixels ({} images of {} bytes \
                 together then, {} bytes now)",
                now.n_images, self.n_bytes, now.n_bytes
            ));
        }
        let (before, now) = self.files.as_ref().zip(now.files.as_ref())?;
        // Another version may read others of them.
        (before.n_read == now.n_read && before.digest != now.digest).then(|| {
            format!(
                "has other {half} images: files of the same names and sizes, with other content"
            )
        })
    }
}

/// The images of a class in one half, while they are counted.
#[derive(Default)]
struct Half {
    n_images: usize,
    n_bytes: u64,
    n_file_bytes: u64,
    digest: Sha256,
    n_read: usize,
    files: Sha256,
}

/// Half, class and digest of every file that is read, in the order of the samples; no digest of one that cannot be.
fn file_digests(
    dataset: &dyn Dataset,
    halves: &[[Half; 2]],
    read_whole: u64,
) -> Vec<(usize, usize, Option<[u8; 32]>)> {
    let sizes = halves.iter().flatten().map(|half| half.n_file_bytes);
    let every = sizes.sum::<u64>().div_ceil(read_whole.max(1)).max(1);
    let mut read: Vec<(usize, usize, Split, SampleIdx)> = Vec::new();
    for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
        let mut n_before = vec![0u64; halves.len()];
        for (idx, sample) in dataset.samples(split).iter().enumerate() {
            let is_file = matches!(dataset.content(split, idx), Content::Size(_));
            if let Some(n) = n_before.get_mut(sample.class_id).filter(|_| is_file) {
                if n.is_multiple_of(every) {
                    read.push((half, sample.class_id, split, idx));
                }
                *n += 1;
            }
        }
    }
    read.par_iter()
        .filter_map(|&(half, class, split, idx)| {
            let bytes = dataset.stored(split, idx)?;
            let digest = bytes.ok().map(|bytes| Sha256::digest(bytes).into());
            Some((half, class, digest))
        })
        .collect()
}

impl Half {
    fn add(&mut self, name: &str, domain: Option<usize>, content: Content<'_>) {
        self.n_images += 1;
        text(&mut self.digest, name);
        let domain = domain.map_or(u64::MAX, |domain| domain as u64);
        self.digest.update(domain.to_le_bytes());
        match content {
            Content::Unknown => self.digest.update([0]),
            Content::Size(size) => {
                self.n_bytes += size;
                self.n_file_bytes += size;
                self.digest.update([1]);
                self.digest.update(size.to_le_bytes());
            }
            Content::Bytes(bytes) => {
                self.n_bytes += bytes.len() as u64;
                self.digest.update([2]);
                self.digest.update((bytes.len() as u64).to_le_bytes());
                self.digest.update(bytes);
            }
        }
    }

    fn add_file(&mut self, digest: Option<[u8; 32]>) {
        self.n_read += 1;
        // Of equal length, and an unreadable one is told from every other.
        self.files.update([u8::from(digest.is_some())]);
        self.files.update(digest.unwrap_or_default());
    }

    fn finish(self) -> HalfPrint {
        let files = (self.n_read > 0).then(|| FilesPrint {
            n_read: self.n_read,
            digest: hexadecimal(self.files),
        });
        HalfPrint {
            n_images: self.n_images,
            n_bytes: self.n_bytes,
            digest: hexadecimal(self.digest),
            files,
        }
    }
}

/// A text whose end is told from the start of the next.
fn text(digest: &mut Sha256, text: &str) {
    digest.update((text.len() as u64).to_le_bytes());
    digest.update(text);
}

/// The first half of a digest, which is enough to tell what changed by accident, in a file of thousands of them.
fn hexadecimal(digest: Sha256) -> String {
    hex(&digest.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Options;
    use crate::datasets;
    use sdlora_image::encode_png;
    use std::path::Path;

    /// A folder of two classes with three images each in both halves.
    fn folder(root: &Path) {
        let png = encode_png(2, 2, &[80; 12]).unwrap();
        for half in ["train", "test"] {
            for class in ["cat", "dog"] {
                let folder = root.join("own").join(half).join(class);
                std::fs::create_dir_all(&folder).unwrap();
                for i in 0..3 {
                    std::fs::write(folder.join(format!("{i}.png")), &png).unwrap();
                }
            }
        }
    }

    fn of(root: &Path) -> Fingerprint {
        let options = Options::none().with("root", "own");
        let dataset = datasets::open("folder", root, &options).unwrap();
        Fingerprint::of(dataset.as_ref())
    }

    #[test]
    fn a_folder_that_changes_says_its_first_difference() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path());
        let before = of(root.path());
        assert_eq!(before.change(&of(root.path())), None);
        let at = |name: &str| root.path().join("own").join(name);
        let change = || before.change(&of(root.path())).unwrap();

        std::fs::copy(at("train/dog/0.png"), at("train/dog/9.png")).unwrap();
        let added = change();
        assert!(added.keeps_labels, "{added:?}");
        assert_eq!(
            added.text,
            "class `dog` had 3 training images and has 4 now"
        );
        std::fs::remove_file(at("train/dog/9.png")).unwrap();

        std::fs::rename(at("test/cat/1.png"), at("test/cat/1b.png")).unwrap();
        let renamed = change();
        assert!(
            renamed.keeps_labels
                && renamed
                    .text
                    .starts_with("class `cat` has other test images")
        );
        std::fs::rename(at("test/cat/1b.png"), at("test/cat/1.png")).unwrap();

        let mut bytes = std::fs::read(at("train/cat/2.png")).unwrap();
        bytes.push(0);
        std::fs::write(at("train/cat/2.png"), &bytes).unwrap();
        assert!(
            change()
                .text
                .contains("class `cat` has other training images")
        );
        bytes.pop();
        std::fs::write(at("train/cat/2.png"), &bytes).unwrap();

        for half in ["train", "test"] {
            std::fs::rename(at(&format!("{half}/cat")), at(&format!("{half}/cats"))).unwrap();
        }
        let class = change();
        assert!(class.keeps_labels);
        assert_eq!(class.text, "class number 1 was `cat` and is `cats` now");
        // Behind the other one in the alphabet, so that labels would be exchanged.
        for half in ["train", "test"] {
            std::fs::rename(at(&format!("{half}/cats")), at(&format!("{half}/zebra"))).unwrap();
        }
        let exchanged = change();
        assert!(!exchanged.keeps_labels);
        assert_eq!(
            exchanged.text,
            "class `dog` was number 2 and is number 1 now"
        );
    }

    #[test]
    fn a_file_that_changes_and_keeps_its_size_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path());
        let before = of(root.path());
        let path = root.path().join("own/test/dog/1.png");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[50] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let change = before.change(&of(root.path())).unwrap();
        assert!(change.keeps_labels);
        assert_eq!(
            change.text,
            "class `dog` has other test images: files of the same names and sizes, with other content"
        );
        // What a version kept that read no file is compared as far as it goes.
        let mut earlier = before.clone();
        for class in &mut earlier.classes {
            (class.train.files, class.test.files) = (None, None);
        }
        let text = toml::to_string(&earlier).unwrap();
        assert!(!text.contains("files"), "{text}");
        let earlier: Fingerprint = toml::from_str(&text).unwrap();
        assert_eq!(earlier.change(&of(root.path())), None);
    }

    #[test]
    fn of_many_bytes_every_nth_file_of_every_class_is_read() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path());
        let options = Options::none().with("root", "own");
        let of = || {
            let dataset = datasets::open("folder", root.path(), &options).unwrap();
            // Twelve files of one size: half of their bytes.
            let n_bytes = std::fs::metadata(root.path().join("own/train/cat/0.png"));
            Fingerprint::reading(dataset.as_ref(), 6 * n_bytes.unwrap().len())
        };
        let before = of();
        for class in &before.classes {
            let n_read =
                [&class.train, &class.test].map(|half| half.files.as_ref().unwrap().n_read);
            assert_eq!(n_read, [2, 2], "the first and the third");
        }
        for (name, is_noticed) in [("0", true), ("1", false), ("2", true)] {
            let path = root.path().join(format!("own/train/cat/{name}.png"));
            let whole = std::fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            bytes[50] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(before.change(&of()).is_some(), is_noticed, "{name}");
            std::fs::write(&path, &whole).unwrap();
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_read_is_told_from_one_that_can() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path());
        let options = Options::none().with("root", "own");
        let dataset = datasets::open("folder", root.path(), &options).unwrap();
        let before = Fingerprint::of(dataset.as_ref());
        std::fs::remove_file(root.path().join("own/train/cat/0.png")).unwrap();
        let change = before.change(&Fingerprint::of(dataset.as_ref())).unwrap();
        assert!(change.text.contains("class `cat`"), "{change:?}");
    }

    #[test]
    fn a_class_that_comes_or_goes_is_named() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path());
        let before = of(root.path());
        for half in ["train", "test"] {
            let at = |name: &str| root.path().join("own").join(half).join(name);
            std::fs::create_dir(at("bird")).unwrap();
            std::fs::copy(at("cat/0.png"), at("bird/0.png")).unwrap();
        }
        let after = of(root.path());
        let come = before.change(&after).unwrap();
        let gone = after.change(&before).unwrap();
        assert_eq!(
            come.text,
            "there were 2 classes and are 3 now, `bird` is new"
        );
        assert_eq!(
            gone.text,
            "there were 3 classes and are 2 now, `bird` is gone"
        );
        assert!(!come.keeps_labels && !gone.keeps_labels);
    }

    #[test]
    fn pixels_in_memory_count_with_every_bit() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("mnist");
        std::fs::create_dir(&folder).unwrap();
        let write = |half: &str, pixel: u8| {
            let mut images = vec![0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7];
            images.push(pixel);
            let labels = [0, 0, 8, 1, 0, 0, 0, 1, 4];
            std::fs::write(folder.join(format!("{half}-images-idx3-ubyte")), images).unwrap();
            std::fs::write(folder.join(format!("{half}-labels-idx1-ubyte")), labels).unwrap();
        };
        let of = || {
            let dataset = datasets::open("mnist", root.path(), &Options::none()).unwrap();
            Fingerprint::of(dataset.as_ref())
        };
        write("train", 1);
        write("t10k", 1);
        let before = of();
        write("t10k", 0);
        let change = before.change(&of()).unwrap();
        assert!(
            change.text.starts_with("class `4` has other test images"),
            "{change:?}"
        );
    }
}
